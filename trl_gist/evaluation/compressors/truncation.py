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
Truncation: the beginning of the context, which sums up many texts (the lead baseline, [See et al.,
2017](https://huggingface.co/papers/1704.04368)), or its end, the rival to beat: what comes next mostly hangs on what
came just before.
"""

from dataclasses import dataclass

from .base import ExtractiveCompressor


@dataclass
class Head(ExtractiveCompressor):
    """The first tokens of the context."""

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        return [list(range(budget)) for budget in budgets]


@dataclass
class Tail(ExtractiveCompressor):
    """The last tokens of the context, those just before L: the cold start's rule `"tail"`."""

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        return [
            list(range(len(context) - budget, len(context))) for context, budget in zip(contexts, budgets, strict=True)
        ]
