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
The trained summarizer of a pair, as one compressor among the others: the pair under test, or another of the same
vocabulary.
"""

import zlib
from collections import defaultdict
from dataclasses import dataclass

import torch

from ...inference.compactor import GistCompactor


@dataclass
class TrainedSummarizer:
    """
    Gists of a pair's summarizer ([`GistCompactor.compress_batch`]), cut off at the budget. A pair that was trained
    with budgets is told its own.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        batch_size (`int`, *optional*, defaults to `8`):
            Contexts in one forward.
        seed (`int`, *optional*):
            Sample at temperature 1, from this seed and the contexts, instead of writing greedily.

    Raises:
        ValueError: if the summarizer's prompt shows L, which a compressor is not given: such a pair's gists come from
            [`evaluate_pair`].
    """

    compactor: GistCompactor
    batch_size: int = 8
    seed: int | None = None

    def __post_init__(self):
        if self.compactor.prompts.sees_last_k:
            raise ValueError(
                "The summarizer's prompt has `{last_k}`, and a compressor is given the context alone. Write its gists "
                "with `evaluate_pair`, whose rows `compare_compressors` takes as they are."
            )

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """See [`Compressor`]."""
        if self.seed is None:
            return compress_by_budget(self.compactor, contexts, budgets, self.batch_size)
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(repr((self.seed, contexts)).encode()))
            return compress_by_budget(self.compactor, contexts, budgets, self.batch_size, do_sample=True)


def compress_by_budget(
    compactor: GistCompactor, contexts: list[list[int]], budgets: list[int], batch_size: int, do_sample: bool = False
) -> list[list[int]]:
    """Gists within budgets: those of one budget in one batch, if the prompt states it or contexts are short, else all."""
    prompts, most = compactor.prompts, compactor.pair.max_gist_length
    together = defaultdict(list)
    for row, (context, budget) in enumerate(zip(contexts, budgets, strict=True)):
        if context and budget:
            # What fits a gist of full length is its own gist, which is not to be cut off at the budget
            alone = prompts.states_budget or budget < len(context) <= most
            together[budget if alone else None].append(row)
    gists = [[] for _ in contexts]
    for budget, rows in together.items():
        # L is empty: what the context has of it was taken off before
        written = compactor.compress_batch(
            [contexts[row] for row in rows], budget, do_sample, batch_size, last_k=[[] for _ in rows]
        )
        for row, gist in zip(rows, written, strict=True):
            gists[row] = prompts.without_special(gist.token_ids)[: budgets[row]]
    return gists
