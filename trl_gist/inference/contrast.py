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

"""What the generator says from a gist beside what a reader of the whole context says, and each token under both."""

from dataclasses import dataclass, field

import torch

from ..common.tokens import characters_of
from ..models.generation import generate
from ..models.lm_head import check_logits, token_log_probs
from ..models.roles import base_of
from .certify import Reader, full_context_reader, hidden_states
from .pair import LoadedPair


@dataclass
class Side:
    """
    What one of the two says.

    Attributes:
        reader (`str`):
            `"generator"` of the gist; of the whole context that of [`~inference.certify.full_context_reader`].
        prompt_tokens (`int`):
            What it read.
        token_ids (`list[int]`):
            What it wrote, greedily, up to its end-of-sequence token.
        log_probs, other_log_probs (`list[float]`):
            Of each of these tokens, in nats, under itself and under the other. Empty where the other cannot read.
        error (`str`, *optional*):
            Why it cannot, as where its model has no positions for the whole context.
    """

    reader: str
    prompt_tokens: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    other_log_probs: list[float] = field(default_factory=list)
    error: str | None = None


def contrast(
    loaded: LoadedPair,
    gist_ids: list[int],
    context_ids: list[int],
    last_ids: list[int] | None = None,
    max_new_tokens: int = 48,
) -> tuple[Side, Side]:
    """
    The generator's continuation of a gist and L, and the full-context reader's of X and L.

    Args:
        loaded ([`~inference.pair.LoadedPair`]):
            The pair.
        gist_ids, context_ids (`list[int]`):
            Z and X.
        last_ids (`list[int]`, *optional*):
            L, as a question about the context. Defaults to the context's own last `last_k` tokens.
        max_new_tokens (`int`, *optional*, defaults to `48`):
            Longest continuation.

    Raises:
        ValueError: if the gist does not fit the generator's positions, or the generator's logits are capped or scaled in
            a way that scoring does not know. A whole context that does not fit is no error: see `Side.error`.
    """
    if last_ids is None:
        last_ids = characters_of(loaded.tokenizer).last(context_ids, loaded.pair.last_k)
    reader = full_context_reader(loaded)
    prompts = (loaded.prompts.generator(gist_ids, last_ids), reader.prompt(context_ids, last_ids))
    names = ("generator", "full-context reader")
    readers = (Reader("generator", loaded.generator, loaded.prompts.generator), reader)
    sides = tuple(Side(each.name, len(prompt)) for each, prompt in zip(readers, prompts, strict=True))
    with loaded.lock:
        check_logits(loaded.generator)
        for side, each, prompt, name in zip(sides, readers, prompts, names, strict=True):
            try:
                (side.token_ids,), _ = generate(each.model, loaded.tokenizer, [prompt], max_new_tokens, name=name)
            except ValueError as error:
                if side is sides[0]:
                    raise
                side.error = str(error)
                return sides
        answers = [side.token_ids for side in sides]
        (sides[0].log_probs, sides[1].other_log_probs), (sides[0].other_log_probs, sides[1].log_probs) = (
            _log_probs(each.model, prompt, answers) for each, prompt in zip(readers, prompts, strict=True)
        )
    return sides


@torch.no_grad()
def _log_probs(model, prompt, targets):
    """Of each token of each target after the prompt, at temperature 1."""
    hidden_NTH, base = hidden_states(model, [prompt], targets), base_of(model)
    return [
        token_log_probs(base, hidden_TH[: len(target)], torch.tensor(target).to(hidden_TH.device), 1.0)[0].tolist()
        if target
        else []
        for hidden_TH, target in zip(hidden_NTH, targets, strict=True)
    ]
