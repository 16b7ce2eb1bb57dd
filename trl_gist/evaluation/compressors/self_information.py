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
Selective-Context ([Li et al., 2023](https://huggingface.co/papers/2310.06201)): what a language model could have
guessed is left out.

The paper drops tokens, phrases or sentences, and does best with phrases, which it takes from a parser. Here words are
dropped: whole, so that the gist can be read, and without a parser to install for every language. As in the authors'
code, a word's self-information is the mean over its tokens. [`PerplexityPruning`] in one segment drops single tokens.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from ...prompts import bos_ids
from ...scoring.extraction import surprisals
from .base import ExtractiveCompressor, best_words, split_words


@dataclass
class SelfInformation(ExtractiveCompressor):
    """
    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            See [`ExtractiveCompressor`].
        model (`torch.nn.Module`):
            The causal language model of the tokenizer that guesses, as the teacher.
        batch_size (`int`, *optional*, defaults to `8`):
            Contexts in one forward.
    """

    model: nn.Module
    batch_size: int = 8

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        kept = []
        information = surprisals(self.model, contexts, bos_ids(self.tokenizer), self.batch_size)
        for context, budget, information_T in zip(contexts, budgets, information, strict=True):
            _, words = split_words(self.tokenizer, context)
            scores = [np.mean([information_T[position] for position in word.positions]) for word in words]
            kept.append(best_words(words, scores, budget))
        return kept
