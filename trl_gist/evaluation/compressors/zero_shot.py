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
Zero-shot summaries: what the summarizer's base writes when asked, before any training ([Goyal et al.,
2022](https://huggingface.co/papers/2209.12356)).
"""

import dataclasses
from dataclasses import dataclass

from ...inference.compactor import GistCompactor
from ..readers import load_teacher
from .trained import compress_by_budget


PROMPT = "Summarize the text below in at most {budget} tokens. Write only the summary.\n\n{context}\n\nSummary:"


@dataclass
class ZeroShot:
    """
    Args:
        compactor ([`GistCompactor`]):
            The pair. The base under its summarizer shares memory with an adapter's, and is loaded if there is none.
        prompt (`str`, *optional*, defaults to `PROMPT`):
            With `{context}` and, to state it, `{budget}`.
        batch_size (`int`, *optional*, defaults to `8`):
            Contexts in one forward. Where the prompt states budgets, those of one budget share it.
    """

    compactor: GistCompactor
    prompt: str = PROMPT
    batch_size: int = 8

    def __post_init__(self):
        pair = dataclasses.replace(self.compactor.pair, summarizer_prompt=self.prompt)
        base = load_teacher(self.compactor, pair.base_models["summarizer"])
        self._asked = GistCompactor(base, base, self.compactor.tokenizer, pair)

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """See [`Compressor`]. Greedy, and cut off at the budget: a small model does not count its tokens."""
        return compress_by_budget(self._asked, contexts, budgets, self.batch_size)
