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

"""
Every route that takes a path, walked with one name for all that it reads and writes. Beside each file lie others,
which a pattern, an address or a hop in that name would find instead. For the tests, and for the page that
`research/what_users_bring` prints.
"""

import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from tiny import make_documents
from tiny_recipes import RECIPE

from trl_gist import GistCompactor
from trl_gist.cli import main
from trl_gist.data.documents import load_documents
from trl_gist.evaluation.compressors import FromFile, write_contexts


# What globs, addresses, hops and shells take for something else
SIGNS = (
    *(
        "[1]",
        "*",
        "?",
        "::",
        ":",
        "%",
        "%20",
        "\\",
        "'",
        '"',
        " ",
        "#",
        "&",
        "{a,b}",
        "~",
        "!x",
        "=",
        "y :",
        "$HOME",
        "|",
        "`",
        ";",
        "(x)",
    ),
    *("Карта", "漢字", "e\u0301", "-"),
)
ALL_SIGNS = "".join(SIGNS)
# In place of such a sign in a name, what others have that the name would find, were it a pattern
OTHERS = ("", "1", "x", "a", "b")


@dataclass
class Place:
    """A folder with a sign in its name, as in the names of all that is in it; and the model to train there."""

    folder: Path
    sign: str
    checkpoint: str | None = None

    def __post_init__(self):
        self.name = f"docs{self.sign}"
        self.folder = self.folder / self.name
        self.folder.mkdir()

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}{suffix}"

    def documents(self, suffix: str = ".jsonl", pack: Callable[[bytes], bytes] = bytes) -> Path:
        """A file of documents that all begin with "right"; those beside it are wrong."""
        for other in OTHERS:
            self._write(self.folder / f"docs{other}{suffix}", "wrong", pack)
        self._write(self.path(suffix), "right", pack)
        return self.path(suffix)

    def _write(self, path, beginning, pack):
        rows = [{"body": f"{beginning} {text}"} for text in make_documents(6)]
        path.write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))

    @property
    def pair(self) -> Path:
        return self.path(" pair")

    @cached_property
    def compactor(self) -> GistCompactor:
        return GistCompactor.from_pretrained(self.pair, device="cpu")

    @cached_property
    def article(self) -> Path:
        self.path(".txt").write_text(make_documents(1)[0])
        return self.path(".txt")

    def written(self, *argv) -> str:
        """What a command prints."""
        with redirect_stdout(io.StringIO()) as out:
            assert main([str(part) for part in argv]) == 0
        return out.getvalue()


def _all_right(rows) -> bool:
    texts = [row["body"] for row in rows]
    return len(texts) == 6 and all(text.startswith("right ") for text in texts)


def _load(place):
    file = place.documents()
    return all(_all_right(load_documents(source)) for source in (str(file), file, [file]))


def _stream(place):
    return _all_right(load_documents(str(place.documents()), streaming=True))


def _packed(place):
    return _all_right(load_documents([place.documents(".jsonl.gz", gzip.compress)]))


def _folder(place):
    file, folder = place.documents(), place.path(" folder")
    for name in (*OTHERS, place.sign):
        other = place.folder / f"docs{name} folder"
        other.mkdir()
        source = file if other == folder else place.folder / "docs.jsonl"
        shutil.copy(source, other / file.name)
    streamed = load_documents([str(folder)], streaming=True)
    return all(map(_all_right, (load_documents([folder]), load_documents(str(folder)), streamed)))


def _folder_with_card(place):
    folder = place.path(" dataset")
    folder.mkdir()
    shutil.copy(place.documents(), folder / "held.jsonl")
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: held.jsonl\n---\n"
    (folder / "README.md").write_text(card)
    return _all_right(load_documents(str(folder), split="test"))


def _train(place):
    shutil.copytree(place.checkpoint, place.path(" model"))
    paths = {
        "model_name_or_path": place.path(" model"),
        "dataset_path": place.documents(),
        "output_dir": place.pair,
        "teacher_cache_dir": place.path(" cache"),
    }
    recipe = {
        **RECIPE,
        **{"eval_documents": 2, "max_windows_per_document": 1, "max_steps": 1, "per_device_train_batch_size": 4},
        **{name: str(path) for name, path in paths.items()},
    }
    del recipe["eval_strategy"], recipe["eval_steps"]
    place.path(".yaml").write_text(yaml.safe_dump(recipe))
    place.written("train", "--config", place.path(".yaml"))
    return [path.name for path in place.pair.glob("checkpoint-*")] == ["checkpoint-1"] and any(
        place.path(" cache").iterdir()
    )


def _held_out(place, command, *flags):
    output = place.path(f" {command}")
    data = ("--dataset", place.documents(), "--text_column", "body", "--split", "train", "--max_documents", 2)
    place.written(command, place.pair, *data, *flags, "--output_dir", output)
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    return (output / "evaluation.html").is_file() and rows


def _evaluate(place):
    rows = _held_out(place, "evaluate", "--max_windows_per_document", 1)
    return len(rows) == 2 and all(row["context"].startswith("right ") for row in rows)


def _distance(place):
    rows = _held_out(place, "distance", "--windows", 1)
    return len(rows) == 2 and all(row["chunk"].startswith("right ") for row in rows)


def _report(place):
    place.written("report", place.pair, "--output", place.path(".html"))
    return place.path(".html").is_file()


def _compress(place):
    gists = place.compactor.compress_windows(place.article.read_text())
    return place.written("compress", place.pair, place.article) == "".join(f"{gist.text}\n" for gist in gists)


def _continue(place):
    session = place.compactor.session()
    session.append(place.article.read_text())
    return place.written("continue", place.pair, place.article, "--tokens", 3) == session.generate(3).text + "\n"


def _session(place):
    session = place.compactor.session(keep_history=place.path(" tokens"))
    session.append(place.article.read_text())
    session.save(place.path(" session"))
    return place.compactor.load_session(place.path(" session")).stream() == session.stream()


def _gists(place):
    ids = place.compactor.token_ids(place.article.read_text(), "The text")[:20]
    window = {"context_ids": ids, "last_k_ids": [], "document_id": 0}
    write_contexts([window], [6], place.compactor.tokenizer, place.path(" contexts.jsonl"))
    (row,) = map(json.loads, place.path(" contexts.jsonl").read_text().splitlines())
    place.path(" gists.jsonl").write_text(json.dumps({"context_hash": row["context_hash"], "gist_ids": ids[:3]}))
    return FromFile(place.compactor.tokenizer, place.path(" gists.jsonl")).compress([ids], [6]) == [ids[:3]]


# To documents, in whatever way they are read
DOCUMENTS = {
    "file": _load,
    "streamed": _stream,
    "packed": _packed,
    "folder": _folder,
    "folder with a card": _folder_with_card,
}
# To all else, in this order: training makes the pair of those that follow
OTHER_ROUTES = {
    "`train`: recipe, model, documents, `output_dir`, `teacher_cache_dir`": _train,
    "`evaluate`: pair, documents, `--output_dir`": _evaluate,
    "`distance`: pair, documents, `--output_dir`": _distance,
    "`report`: run, `--output`": _report,
    "`compress`: pair, text": _compress,
    "`continue`: pair, text": _continue,
    "`Session`: `keep_history`, `save`, `load_session`": _session,
    "`write_contexts`, `FromFile`": _gists,
}


def walked(place: Place, routes: dict[str, Callable[[Place], bool]]) -> Iterator[tuple[str, str]]:
    """Each route, and "right", "**wrong**" where it reads or writes another file, or the error that it ends with."""
    for route, right in routes.items():
        try:
            yield route, "right" if right(place) else "**wrong**"
        except (Exception, SystemExit) as error:
            yield route, f"**{type(error).__name__}: {error}**"
