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

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class GistPrompts:
    """
    The prompts of the three roles, assembled from token ids.

    A context is cut in token space and must reach every role as exactly those tokens. Decoding and re-tokenising a
    prompt would merge tokens across the seams, so each fixed part is tokenised once, alone, and then only concatenated.

        summarizer  <chat header> Compress the text below … X … Gist: <chat footer>        → Z
        generator   <bos> GIST: Z \\n LAST K TOKENS: L \\n CONTINUE:                        → Y
        teacher     <bos> X                                                                → Y

    An empty Z gives the *null* prompt, the baseline of the reward.
    """

    bos: tuple[int, ...]
    before_context: tuple[int, ...]
    after_context: tuple[int, ...]
    before_gist: tuple[int, ...]
    before_last_k: tuple[int, ...]
    before_target: tuple[int, ...]
    special_ids: frozenset[int]

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, summarizer_prompt: str) -> "GistPrompts":
        def ids(text):
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        bos = _bos_ids(tokenizer)
        before, after = _render(tokenizer, summarizer_prompt)
        # A chat template writes its own bos as text; a plain prompt gets the tokenizer's
        before_context = ids(before) if tokenizer.chat_template else bos + ids(before)
        return cls(
            bos=bos,
            before_context=before_context,
            after_context=ids(after),
            before_gist=bos + ids("GIST:"),
            before_last_k=ids("\nLAST K TOKENS:"),
            before_target=ids("\nCONTINUE:"),
            special_ids=frozenset(tokenizer.all_special_ids),
        )

    def summarizer(self, context_ids: list[int]) -> list[int]:
        """What S reads before it writes a gist."""
        return [*self.before_context, *context_ids, *self.after_context]

    def generator(self, gist_ids: list[int], last_k_ids: list[int]) -> list[int]:
        """What G reads before the target. Special tokens in the gist never reach G."""
        gist_ids = [token for token in gist_ids if token not in self.special_ids]
        return [*self.before_gist, *gist_ids, *self.before_last_k, *last_k_ids, *self.before_target]

    def plain(self, ids: list[int]) -> list[int]:
        """What a frozen language model reads before the target: the teacher's X, or only its tail."""
        return [*self.bos, *ids]

    @property
    def generator_overhead(self) -> int:
        """Tokens of the generator's template, counted in the total rate."""
        return len(self.generator([], []))

    @property
    def summarizer_overhead(self) -> int:
        """Tokens of the summarizer's template."""
        return len(self.summarizer([]))


def gist_from_completion(completion_ids: list[int], eos_token_ids: list[int]) -> list[int]:
    """Every token S wrote up to, not including, its first end-of-sequence token."""
    for position, token in enumerate(completion_ids):
        if token in eos_token_ids:
            return list(completion_ids[:position])
    return list(completion_ids)


def _bos_ids(tokenizer):
    """The tokens that the tokenizer itself puts before a text (Gemma and Llama have one, SmolLM2 and Qwen have none)."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(with_special)):
        if with_special[start : start + len(plain)] == plain:
            return tuple(with_special[:start])
    return ()


def _render(tokenizer, summarizer_prompt):
    """The text before and after the context, in the tokenizer's chat template if it has one."""
    if not tokenizer.chat_template:
        before, after = summarizer_prompt.split("{context}", 1)
        return before, after
    # A private-use character cannot be in the template; it marks where the context's ids go
    marker = "\ue000"
    message = {"role": "user", "content": summarizer_prompt.replace("{context}", marker, 1)}
    rendered = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    before, after = rendered.split(marker, 1)
    return before, after
