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
Random drop: tokens at random, the floor under every method that chooses them (a baseline of
[Selective-Context](https://huggingface.co/papers/2310.06201)).
"""

import random
from dataclasses import dataclass

from .base import ExtractiveCompressor


@dataclass
class RandomDrop(ExtractiveCompressor):
    """
    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            See [`ExtractiveCompressor`].
        seed (`int`, *optional*, defaults to `0`):
            With the context, it decides which: the same in every batch and on every machine.
    """

    seed: int = 0

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        return [
            random.Random(repr((self.seed, context))).sample(range(len(context)), budget)
            for context, budget in zip(contexts, budgets, strict=True)
        ]
