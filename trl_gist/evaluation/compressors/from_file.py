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
Gists from a file, so that any outside system can be scored: [`write_contexts`] writes what there is to compress, the
system answers in JSON lines, [`FromFile`] reads them.

    {"context_hash": "5f0c…", "budget": 24, "context": "In 1854 …", "context_ids": […], "document_id": 7, "index": 0}
    {"context_hash": "5f0c…", "gist": "Snow, Broad Street pump"}
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ...common.arguments import token_ids
from ...common.tokens import decode, literal_ids, special_ids
from ...prompts import stands_for


def context_hash(context_ids: list[int]) -> str:
    """What names a context in the files: the SHA-256 of its token ids, in decimals with commas between."""
    return hashlib.sha256(",".join(map(str, context_ids)).encode()).hexdigest()


def write_contexts(rows: list[dict], budgets: list[int], tokenizer: PreTrainedTokenizerBase, path: str | os.PathLike):
    """
    Writes what an outside system is to compress: a JSON line for each window.

    Args:
        rows (`list[dict]`):
            Windows with `context_ids`, `last_k_ids` and `document_id`.
        budgets (`list[int]`):
            The most tokens of each gist, in the pair's vocabulary; more are cut off.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The pair's.
        path (`str` or `os.PathLike`):
            Where to. `context` in it is the text without L, which the reader sees anyway; all of it, where rows are
            several targets of a context, each with a cue of its own. Then it has a line for each context.
    """
    with open(path, "w", encoding="utf-8") as file:
        for index, (row, budget) in enumerate(zip(rows, budgets, strict=True)):
            ids = stands_for(row)
            line = {"context_hash": context_hash(ids), "budget": budget, "context": decode(tokenizer, ids, False)}
            line |= {"context_ids": ids, "document_id": row["document_id"], "index": index}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


@dataclass
class FromFile:
    """
    Gists from JSON lines with `context_hash` and either `gist`, text, or `gist_ids`, ids of the pair's tokenizer;
    other fields are not read.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The pair's.
        path (`str` or `os.PathLike`):
            The file.

    Raises:
        ValueError: if it is no UTF-8, a line is not of that form or, from `compress`, if contexts have no gist in it.
    """

    tokenizer: PreTrainedTokenizerBase
    path: str | os.PathLike
    gists: dict[str, list[int]] = field(init=False, repr=False)

    def __post_init__(self):
        try:
            lines = Path(self.path).read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is no UTF-8 ({error}). Write it in UTF-8.") from error
        self.gists = dict(self._read(line, number) for number, line in enumerate(lines, 1) if line.strip())

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """See [`Compressor`]. A gist over its budget is cut off there."""
        hashes = [context_hash(context) for context in contexts]
        missing = [name for name in hashes if name not in self.gists]
        if missing:
            raise ValueError(
                f"{self.path} has no gist for {len(missing)} of {len(contexts)} contexts, the first with context_hash "
                f"{missing[0]}. Write the contexts with `write_contexts`, and for each of its lines one with the same "
                "`context_hash` and a `gist`, which may be empty."
            )
        return [self.gists[name][:budget] for name, budget in zip(hashes, budgets, strict=True)]

    def _read(self, line, number):
        try:
            values = json.loads(line)
            name = values["context_hash"]
            ids = values["gist_ids"] if "gist_ids" in values else literal_ids(self.tokenizer, values["gist"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}, line {number}, is not a JSON object with `context_hash` and `gist` (text) or "
                f"`gist_ids`: {type(error).__name__} {error}."
            ) from error
        special = special_ids(self.tokenizer)
        ids = token_ids(f"{self.path}, line {number},", ids, len(self.tokenizer))
        return name, [token for token in ids if token not in special]
