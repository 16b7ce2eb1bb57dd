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

"""What a finished corpus holds, counted from its files."""

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from research.corpus.folder import SPLITS


def print_counts(folder: Path, tokenizer_name: str | None, overlap: bool, console: Console):
    """
    Prints documents, words and megabytes by split and source.

    Args:
        folder (`Path`):
            The corpus.
        tokenizer_name (`str`, *optional*):
            Counts its tokens too, and windows of 512 + 64 of them.
        overlap (`bool`):
            Also the share of 13-word sequences that are in the training split too.
        console ([`~rich.console.Console`]):
            Where to print.
    """
    tokenizer = None if tokenizer_name is None else AutoTokenizer.from_pretrained(tokenizer_name)
    headings = ["documents", "words", "MB"] + ["tokens", "windows"] * (tokenizer is not None) + ["in train"] * overlap
    table = Table(box=box.SIMPLE, padding=0, show_edge=False)  # fits 80 columns
    for heading in ("split", "source", *headings):
        table.add_column(heading, justify="right" if heading in headings else "left", no_wrap=True)
    seen = set()
    for split in SPLITS:
        if not (folder / f"{split}.parquet").exists():
            continue
        totals = {}
        for row in pq.read_table(folder / f"{split}.parquet").to_pylist():
            found = Counter(documents=1, words=len(row["text"].split()), bytes=len(row["text"].encode()))
            if tokenizer is not None:
                tokens = len(tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"])
                found += Counter(tokens=tokens, windows=tokens // 576)
            if overlap:
                sequences = _sequences(row["text"])
                if split == "train":
                    seen.update(sequences)
                found += Counter(sequences=len(sequences), old=sum(sequence in seen for sequence in sequences))
            for name in (row["source"], "all"):
                totals.setdefault(name, Counter()).update(found)
        for name in sorted(totals, key=lambda name: (name == "all", name)):
            cells = [_cell(totals[name], heading, split) for heading in headings]
            table.add_row(split, name, *cells, style="bold" if name == "all" else None, end_section=name == "all")
    console.print(table)


def _sequences(text, length=13):
    words = re.findall(r"\w+", text.lower())
    return [hash(tuple(words[start : start + length])) for start in range(len(words) - length + 1)]


def _cell(total, heading, split):
    if heading == "MB":
        return f"{total['bytes'] / 1e6:.1f}"
    if heading == "in train":
        return "" if split == "train" else f"{total['old'] / total['sequences']:.2%}"
    return f"{total[heading]:,}"
