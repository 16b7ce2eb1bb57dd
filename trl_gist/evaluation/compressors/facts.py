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

"""Lists of facts: what a reader asks for by name, number and date, without a sentence around it."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...scoring.extraction import TokenRarity, fact_list, surprising_facts
from .base import without_special


@dataclass
class Facts:
    """
    The context's names, numbers and dates from its beginning, each once, with commas between them: the cold start's rule
    `"facts"`. Where they run out before the budget does, the gist is shorter.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids. Its special tokens are dropped first.
    """

    tokenizer: PreTrainedTokenizerBase

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """See [`Compressor`]."""
        contexts = without_special(self.tokenizer, contexts)
        return [fact_list(self.tokenizer, context, budget) for context, budget in zip(contexts, budgets, strict=True)]


@dataclass
class SurprisingFacts:
    """
    The tokens of the same facts that a language model expects least when it has read but the few tokens before them,
    and rare words where the facts run out; see [`~scoring.extraction.surprising_facts`]. What is left out of a name is
    what can be guessed from the rest. The cold start's rule `"surprising_facts"`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            See [`Facts`].
        model (`torch.nn.Module`):
            The causal language model of the tokenizer that guesses, as the teacher.
        rarity ([`TokenRarity`]):
            Says which words are rare.
        batch_size (`int`, *optional*, defaults to `8`):
            Contexts whose facts are read together.
    """

    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    rarity: TokenRarity
    batch_size: int = 8

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """See [`Compressor`]."""
        contexts = without_special(self.tokenizer, contexts)
        size = 8 * self.batch_size
        return surprising_facts(self.model, self.tokenizer, contexts, budgets, self.rarity, batch_size=size)
