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
Sampling all gists of a context together.

`generate` gives each gist a row, so the prompt's keys and values are kept, and read at every token, once per gist. Here
a context is one row: its prompt is read once, and each step appends one token of every gist to the same cache, each
seeing the prompt and its own past. Nothing is approximated: the distributions are those of a row per gist.
"""

from functools import partial
from itertools import count

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.distributed.fsdp import is_fsdp_managed_module
from transformers.integrations import is_deepspeed_zero3_enabled

from .shared_prefix import adjacent_groups, attention_masks


def sample_gists(
    model: PreTrainedModel, prompt_ids: list[list[int]], generation_config: GenerationConfig, pad_token_id: int
) -> torch.Tensor:
    """
    Samples a completion for each prompt; adjacent equal prompts are read once. For models that
    [`~models.shared_prefix.why_not_shared`] lets through.

    Returns:
        `torch.LongTensor` of shape `(rows, completion positions)`, as `generate` pads it.
    """
    device = model.get_input_embeddings().weight.device
    width = max(len(ids) for ids in prompt_ids)
    ids_NP = torch.full((len(prompt_ids), width), pad_token_id, device=device)
    mask_NP = torch.zeros_like(ids_NP)
    for row, ids in enumerate(prompt_ids):
        ids_NP[row, width - len(ids) :] = torch.tensor(ids, device=device)
        mask_NP[row, width - len(ids) :] = 1
    sequences = model.generate(
        input_ids=ids_NP,
        attention_mask=mask_NP,
        generation_config=generation_config,
        # transformers 5.23 drops a mask without padding, and `synced_gpus` where the decoding method is not its own
        custom_generate=partial(_decode, prompt_mask=mask_NP, synced_gpus=_is_sharded(model)),
    )
    return sequences[:, width:]


def _decode(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    prompt_mask,
    synced_gpus,
    **model_kwargs,
):
    """A decoding method for `generate(custom_generate=…)`, which has prepared processors and stopping criteria."""
    context_N, slot_N = adjacent_groups(input_ids, prompt_mask)
    contexts, slots = int(context_N[-1]) + 1, int(slot_N.max()) + 1
    first_D = torch.nonzero(slot_N == 0).squeeze(1)
    real_DP = prompt_mask[first_D].bool()
    # Not the model's own choice of cache: one for sliding windows forgets by count, and a step adds a token per gist
    cache = DynamicCache()
    key_positions_DK = (real_DP.cumsum(1) - 1).clamp(min=0)
    logits_NV = model(
        input_ids=input_ids[first_D],
        attention_mask=real_DP.long(),
        position_ids=key_positions_DK,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[context_N, -1]

    visible_DGK = real_DP.unsqueeze(1).expand(-1, slots, -1)
    own_DGG = torch.eye(slots, dtype=torch.bool, device=input_ids.device).expand(contexts, -1, -1)
    token_DG = input_ids.new_zeros(contexts, slots)
    unfinished_N, width = torch.ones_like(context_N, dtype=torch.bool), None
    for step in count():
        scores_NV = logits_processor(input_ids, logits_NV.float())
        token_N = _draw(scores_NV) if generation_config.do_sample else scores_NV.argmax(-1)
        token_N = torch.where(unfinished_N, token_N, generation_config.pad_token_id)
        input_ids = torch.cat([input_ids, token_N.unsqueeze(1)], dim=1)
        unfinished_N &= ~stopping_criteria(input_ids, None)
        if not unfinished_N.any():
            width = width or input_ids.shape[1]
            # Where the weights are sharded every rank takes part in every forward, up to the last position
            if not synced_gpus or input_ids.shape[1] == generation_config.max_length:
                return input_ids[:, :width]
        token_DG[context_N, slot_N] = token_N
        position_DG = (real_DP.sum(1, keepdim=True) + step).expand(-1, slots)
        key_positions_DK = torch.cat([key_positions_DK, position_DG], dim=1)
        visible_DGK = torch.cat([visible_DGK, own_DGG], dim=2)
        logits_NV = model(
            input_ids=token_DG,
            attention_mask=attention_masks(model, visible_DGK, position_DG, key_positions_DK),
            position_ids=position_DG,
            past_key_values=cache,
            use_cache=True,
        ).logits[context_N, slot_N]


def _is_sharded(model):
    """Whether a forward needs every rank: the condition of `generate`."""
    distributed = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return distributed and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))


def _draw(scores_NV):
    """A token from each distribution, by inverting its cumulative distribution: the same law as `torch.multinomial`,
    which on a CPU draws a random number for every entry of the vocabulary."""
    cumulative_NV = scores_NV.softmax(-1).cumsum(-1, dtype=torch.float64)
    if not cumulative_NV[:, -1].isfinite().all():
        raise FloatingPointError(
            "The summarizer's probabilities are not finite; nothing was sampled. Resume from the last checkpoint with a "
            "lower `learning_rate`."
        )
    level_N1 = torch.rand(len(scores_NV), 1, dtype=torch.float64, device=scores_NV.device) * cumulative_NV[:, -1:]
    # `right`: the first entry above the level, so that one of probability 0 is never drawn
    return torch.searchsorted(cumulative_NV, level_N1, right=True).squeeze(1).clamp(max=scores_NV.shape[-1] - 1)
