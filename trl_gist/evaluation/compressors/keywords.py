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
Keywords by tf-idf ([Spärck Jones, 1972](https://doi.org/10.1108/eb026526)), alone or before the tail: the cold start's
rule `"mixed"`, by the same function.
"""

from dataclasses import dataclass

from ...scoring.extraction import TokenRarity, keywords_and_tail
from .base import ExtractiveCompressor


@dataclass
class Keywords(ExtractiveCompressor):
    """
    The tokens that are frequent in this context and rare in others, each once; then the tail of the context.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            See [`ExtractiveCompressor`].
        rarity ([`~scoring.extraction.TokenRarity`]):
            Of tokens in other contexts.
        share (`float`, *optional*, defaults to `1.0`):
            The keywords' share of the budget; `0.5` is the gist of `"mixed"` with the most keywords.
            With `1.0` a context of few different tokens gives fewer than its budget.
    """

    rarity: TokenRarity
    share: float = 1.0

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        return [
            keywords_and_tail(self.tokenizer, context, self.rarity.tf_idf(context), budget, self.share)
            for context, budget in zip(contexts, budgets, strict=True)
        ]
