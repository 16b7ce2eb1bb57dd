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
LLMLingua ([Jiang et al., 2023](https://huggingface.co/papers/2310.05736)): tokens that a small language model expected
are pruned, segment by segment, each read after what was kept of those before.

Of the paper's parts this is the iterative token-level compression. Its budget controller shares the budget out among
instruction, demonstrations and question; a window has one text, so every segment gets its share by length, which also
makes the budget exact where the paper estimates a threshold. The small model is not tuned to the large one's output.
"""

from dataclasses import dataclass

from torch import nn

from ...prompts import bos_ids
from ...scoring.extraction import surprisals
from .base import ExtractiveCompressor


@dataclass
class PerplexityPruning(ExtractiveCompressor):
    """
    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            See [`ExtractiveCompressor`].
        model (`torch.nn.Module`):
            The causal language model of the tokenizer that reads, as the teacher.
        segment_length (`int`, *optional*, defaults to `32`):
            Tokens pruned at a time. The paper's 100 are for prompts of thousands of tokens; a window has hundreds. One
            segment of the whole context prunes by self-information, whatever else was dropped.
        batch_size (`int`, *optional*, defaults to `8`):
            Contexts in one forward.
    """

    model: nn.Module
    segment_length: int = 32
    batch_size: int = 8

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        kept = [[] for _ in contexts]
        bos = bos_ids(self.tokenizer)
        for start in range(0, max(map(len, contexts)), self.segment_length):
            rows = [row for row, context in enumerate(contexts) if start < len(context)]
            before = [[contexts[row][position] for position in kept[row]] for row in rows]
            segments = [contexts[row][start : start + self.segment_length] for row in rows]
            read = [ids + segment for ids, segment in zip(before, segments, strict=True)]
            surprisals_N = surprisals(self.model, read, bos, self.batch_size)
            for row, ids, segment, surprisals_T in zip(rows, before, segments, surprisals_N, strict=True):
                stop = start + len(segment)
                count = budgets[row] * stop // len(contexts[row]) - len(ids)
                surprisals_T = surprisals_T[len(ids) :]
                best = sorted(range(len(segment)), key=lambda place: -surprisals_T[place])[:count]
                kept[row] += [start + place for place in sorted(best)]
        return kept
