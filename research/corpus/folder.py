# Copyright 2026 The trl_gist authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The finished corpus: a parquet file a split, a dataset card and a manifest, all or nothing."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset

from research.corpus.fetch import CorpusError, sha256_of
from research.corpus.sources import Source


# Raise it when the same downloads give other documents
RECIPE = 2
SPLITS = ("train", "validation", "test", "other_genres")
LIBRARIES = ("resiliparse", "ftfy", "datasketch", "datasets", "pyarrow")


def split_of(document_id: str) -> str:
    """
    The in-domain split of a document: 85% train, 5% validation, 10% test, by a hash of its id, so that documents that
    come later move no other. The short pages of a chapter stay together, whatever is joined with what.
    """
    place = int.from_bytes(hashlib.sha256(document_id.partition("#")[0].encode()).digest()[:4]) / 2**32
    return "validation" if place < 0.05 else "test" if place < 0.15 else "train"


def is_complete(folder: Path, names: Sequence[str]) -> bool:
    """
    Whether the corpus of these sources is in `folder`, byte for byte.

    Raises:
        CorpusError: if something else is, which is not to be overwritten.
    """
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return False
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        found, files = list(manifest["sources"]), manifest["files"].items()
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{folder} is there and holds no corpus with a readable manifest.json. Choose another folder, or delete it."
        ) from error
    if found != list(names):
        raise CorpusError(
            f"{folder} holds the sources {' '.join(found)}, not {' '.join(names)}. Choose another folder, or delete it."
        )
    return manifest["recipe"] == RECIPE and all(
        (folder / name).is_file() and sha256_of(folder / name) == sha256 for name, sha256 in files
    )


def write_corpus(folder: Path, documents: list[dict[str, str]], sources: Sequence[Source], manifest: dict):
    """
    Writes the corpus beside `folder` and moves it there when it is whole. An earlier one stays until then.

    Args:
        folder (`Path`):
            Where the corpus will be.
        documents (`list[dict[str, str]]`):
            Rows with `text`, `document_id`, `source`, `licence` and `title`.
        sources (`list[Source]`):
            What they come from.
        manifest (`dict`):
            `downloads` and `dropped`, as [`prepare_corpus.build`] counts them.

    Raises:
        CorpusError: if the disk is full.
    """
    work, old = (folder.with_name(f"{folder.name}.{state}") for state in ("building", "old"))
    for leftover in (work, old):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        held_out = {source.name for source in sources if source.held_out}
        rows = {split: [] for split in SPLITS}
        # By hash, not by source: the first documents of a split are of all kinds
        for row in sorted(documents, key=lambda row: hashlib.sha256(row["document_id"].encode()).digest()):
            rows["other_genres" if row["source"] in held_out else split_of(row["document_id"])].append(row)
        rows = {split: found for split, found in rows.items() if found}
        for split, found in rows.items():
            Dataset.from_list(found).to_parquet(work / f"{split}.parquet")
        manifest = {
            "recipe": RECIPE,
            "sources": [source.name for source in sources],
            "libraries": {name: version(name) for name in LIBRARIES},
            **manifest,
            "counts": {split: count(found) for split, found in rows.items()},
        }
        (work / "README.md").write_text(_card(manifest, sources), encoding="utf-8")
        manifest["files"] = {path.name: sha256_of(path) for path in sorted(work.iterdir())}
        (work / "manifest.json").write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if folder.exists():
            os.replace(folder, old)
        os.replace(work, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CorpusError(
                f"No room is left for {folder}, which takes about 30 MB. What was there before is as it was, and the "
                "downloads are kept. Make room and run again."
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def count(rows: list[dict[str, str]]) -> dict[str, dict[str, int]]:
    """Documents, words and characters of each source."""
    counts = {}
    for row in rows:
        found = counts.setdefault(row["source"], {"documents": 0, "words": 0, "characters": 0})
        found["documents"] += 1
        found["words"] += len(row["text"].split())
        found["characters"] += len(row["text"])
    return dict(sorted(counts.items()))


def _card(manifest, sources):
    splits = list(manifest["counts"])
    front = ["license: other", "language:", "- en", "task_categories:", "- text-generation", "configs:"]
    front += ["- config_name: default", "  data_files:"]
    for split in splits:
        front += [f"  - split: {split}", f"    path: {split}.parquet"]
    lines = ["---", *front, "---", "", "# Running prose for learned context compaction", ""]
    lines += [
        "Whole documents of at least 450 words, columns `text` (a paragraph a line), `document_id`, `source`, "
        "`licence` and `title`. Code listings, tables, headings, navigation, indexes, change logs, one-line "
        "reference entries and paragraphs that do not end as sentences are left out; so are near-duplicates "
        "(Jaccard similarity of five-word shingles, by MinHash, of 0.5 or more) and paragraphs that came before, "
        "across all sources. Pages that are too short are joined with the others of their chapter.",
        "",
        "`train`, `validation` and `test` are split by a hash of the document's id. `other_genres` holds whole "
        "sources that are in no other split: prose of a kind that training never sees.",
        "",
        f"| source | what it is | licence | {' | '.join(splits)} |",
        "|---|---|---|" + "---|" * len(splits),
    ]
    for source in sources:
        cells = []
        for split in splits:
            found = manifest["counts"][split].get(source.name)
            cells.append(f"{found['documents']:,} documents, {found['words']:,} words" if found else "")
        lines.append(f"| `{source.name}` | {source.genre} | {source.licence} | {' | '.join(cells)} |")
    lines += ["", "| download | version | sha256 |", "|---|---|---|"]
    lines += [f"| {found['package']} | {found['version']} | `{found['sha256']}` |" for found in manifest["downloads"]]
    lines += ["", "Made by `research/corpus/prepare_corpus.py`; `manifest.json` has the checksum of every file.", ""]
    return "\n".join(lines)
