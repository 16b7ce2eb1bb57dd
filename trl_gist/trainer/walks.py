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
Walks over consecutive windows of a document, for training on what a `rolling` session does.

```text
chunk 0        → Z0 → G continues from Z0, L0
Z0, chunk 1    → Z1 → G continues from Z1, L1          L: the tokens after a chunk, with which the next chunk begins
Z1, chunk 2    → Z2 → …
```

All gists of a window are written from the same context: of the gists of the window before it, one drawn at random is
carried on, as a session carries on the one it has. So a group still differs in its gists alone, and advantages compare
gists of one document and window; a context is still read once for all its gists. What a gist is worth later on is
measured by letting G read it, as it is, in the later windows; how S then carries it on has no part in that, and is
what the later gists are rewarded for.

With `target_kinds`, a window also asks for facts and sentences of earlier chunks (`recall_age`). Only the gist that was
carried on holds them, so that of the gists of a group the ones that keep them are worth more.
"""

from collections.abc import Callable

from ..common.geometry import SEPARATOR, Geometry, WindowedText, join, rolling_chunk_length
from ..common.tokens import characters_of
from ..prompts import GistPrompts


def walk_geometry(args, separator_length: int) -> Geometry:
    """How a walk is cut, by a [`GistConfig`]. Raises `ValueError` if a context has no room for a chunk."""
    gist_length = args.max_completion_length
    chunk_length = rolling_chunk_length(args.context_length, args.last_k, gist_length, separator_length)
    if chunk_length < 1:
        raise ValueError(
            f"`windows_per_document` ({args.windows_per_document}): a context of `context_length` ({args.context_length}) "
            f"tokens must hold a gist (`max_completion_length`, {gist_length}), a separator ({separator_length}), `last_k` "
            f"({args.last_k}) and a chunk. Raise `context_length`."
        )
    return Geometry(args.context_length, chunk_length, args.last_k, args.target_length)


class Walk:
    """
    The walks of a rollout, as rows: walk after walk, in each its windows, in each the gists of its context.

    Args:
        prompts ([`GistPrompts`]):
            How roles are prompted.
        args ([`GistConfig`]):
            Lengths and windows.
        decode (`Callable`):
            Of the tokenizer, for the `prompt` column that TRL logs.
    """

    def __init__(self, prompts: GistPrompts, args, decode: Callable[[list[int]], str]):
        self.separator_ids = list(prompts.tokenize(SEPARATOR))
        self.prompts = prompts
        self.geometry = walk_geometry(args, len(self.separator_ids))
        self.windows = args.windows_per_document
        self.decode = decode

    def rows(self, inputs: list[dict], num_generations: int) -> list[dict]:
        """A row for each window of each input, with its `window`; inputs with the same walk are adjacent."""
        rows, characters = [], characters_of(self.prompts.tokenizer)
        for start in range(0, len(inputs), num_generations):
            text = WindowedText(inputs[start]["walk_ids"], self.geometry, characters)
            for window in range(self.windows):
                columns = self._window(inputs[start], text, window)
                rows += [{**row, **columns} for row in inputs[start : start + num_generations]]
        return rows

    def _window(self, row, text, window):
        """What is known of it before there is the gist that S reads first."""
        chunk_ids, last_k_ids = text.chunk(window), text.last(window)
        asked = {"targets": [], "later_targets": []} if "targets" in row else {}
        for target in row.get("targets", ()):
            if target["window"] >= window:
                asked["targets" if target["window"] == window else "later_targets"].append(target)
        return asked | {
            "window": window,
            "prompt": self.decode(chunk_ids + last_k_ids),
            "chunk_ids": chunk_ids,
            "last_k_ids": last_k_ids,
            "target_ids": text.target(window),
            "seen_ids": text.ids[: text.before(window)],
        }

    def context_ids(self, row: dict, gist_ids: list[int]) -> list[int]:
        """What S reads of a window: the gist carried on, as a session has it, chunk, L."""
        gist_ids = characters_of(self.prompts.tokenizer).whole(gist_ids)
        parts = [self.prompts.without_special(gist_ids), row["chunk_ids"]]
        return join(parts, self.separator_ids) + row["last_k_ids"]

    def measures(self, rows: list[dict]) -> dict[str, float]:
        """Means over the gists of each window, to log."""
        names = "log_prob_gain", "teacher_kl"
        means = {"later_log_prob_gain": _mean(rows, "later_log_prob_gain")}
        for index in range(self.windows):
            of_window = [row for row in rows if row["window"] == index]
            means |= {f"window_{index}/{name}": _mean(of_window, name) for name in names}
        return means


def _mean(rows, name):
    return sum(row[name] for row in rows) / len(rows)
