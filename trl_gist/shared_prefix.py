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
One pass over a context for all of its gists.

The gists of a context share a long prompt. Padded into one row each, they pay for it G times, in sampling and in
training. Here a context is prefilled once for sampling, and is one row for training: the prompt, then its gists side by
side, each seeing the prompt and itself, with positions that restart where the prompt ends. At 552 tokens of prompt and
8 gists of 48 tokens that is 936 tokens instead of 4,800. The numbers are the same; a test holds both paths together.
"""

import inspect
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from .scoring import token_log_probs


@dataclass
class SharedPrefixBatch:
    """
    Contexts with their gists side by side.

    Attributes:
        input_ids_DS (`torch.LongTensor` of shape `(contexts, sequence)`):
            Prompt, then each gist in a slot of its own.
        position_ids_DS (`torch.LongTensor` of shape `(contexts, sequence)`):
            Restart at the prompt's length in each slot.
        visible_D1SS (`torch.BoolTensor` of shape `(contexts, 1, sequence, sequence)`):
            Which position (last axis) each position sees.
        context_N (`torch.LongTensor` of shape `(rows,)`):
            The context of each gist.
        predicted_at_NC (`torch.LongTensor` of shape `(rows, completion positions)`):
            Where in its context's sequence each gist token is predicted.
    """

    input_ids_DS: torch.Tensor
    position_ids_DS: torch.Tensor
    visible_D1SS: torch.Tensor
    context_N: torch.Tensor
    predicted_at_NC: torch.Tensor

    @classmethod
    def build(cls, prompt_ids_NP, prompt_mask_NP, completion_ids_NC, completion_mask_NC) -> "SharedPrefixBatch":
        """From TRL's padded rows (prompts padded on the left, completions on the right); adjacent rows with the same
        prompt share it."""
        device = prompt_ids_NP.device
        rows, width = completion_ids_NC.shape
        prompt_width = prompt_ids_NP.shape[1]
        context_N, slot_N = _adjacent_groups(prompt_ids_NP, prompt_mask_NP)
        contexts, slots = int(context_N[-1]) + 1, int(slot_N.max()) + 1
        first_D = torch.nonzero(slot_N == 0).squeeze(1)

        ids_DGC = torch.zeros(contexts, slots, width, dtype=torch.long, device=device)
        mask_DGC = torch.zeros(contexts, slots, width, dtype=torch.bool, device=device)
        ids_DGC[context_N, slot_N] = completion_ids_NC
        mask_DGC[context_N, slot_N] = completion_mask_NC.bool()
        prompt_mask_DP = prompt_mask_NP[first_D].bool()
        input_ids_DS = torch.cat([prompt_ids_NP[first_D], ids_DGC.flatten(1)], dim=1)
        real_DS = torch.cat([prompt_mask_DP, mask_DGC.flatten(1)], dim=1)

        prompt_length_D1 = prompt_mask_DP.sum(1, keepdim=True)
        in_slot_S = torch.arange(slots * width, device=device) % width
        position_ids_DS = torch.cat([(prompt_mask_DP.cumsum(1) - 1).clamp(min=0), prompt_length_D1 + in_slot_S], dim=1)
        slot_S = torch.cat(
            [
                torch.full((prompt_width,), -1, device=device),
                torch.arange(slots, device=device).repeat_interleave(width),
            ]
        )
        order_S = torch.arange(len(slot_S), device=device)
        same_branch_SS = (slot_S[None, :] == -1) | (slot_S[None, :] == slot_S[:, None])
        causal_SS = same_branch_SS & (order_S[None, :] <= order_S[:, None])
        # Padding sees itself, so that no row of the softmax is empty
        own_SS = order_S[None, :] == order_S[:, None]
        visible_D1SS = ((causal_SS & real_DS[:, None, :]) | own_SS).unsqueeze(1)

        predicted_at_NC = prompt_width + slot_N[:, None] * width + torch.arange(-1, width - 1, device=device)
        predicted_at_NC[:, 0] = prompt_width - 1
        return cls(input_ids_DS, position_ids_DS, visible_D1SS, context_N, predicted_at_NC)


def shared_prefix_log_probs(
    model: torch.nn.Module,
    base: PreTrainedModel,
    prompt_ids_NP: torch.Tensor,
    prompt_mask_NP: torch.Tensor,
    completion_ids_NC: torch.Tensor,
    completion_mask_NC: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probs of the completions and the entropies of their distributions, as the padded batch gives them.

    Args:
        model (`torch.nn.Module`):
            The policy, possibly in a data-parallel wrapper: its own forward runs, so that the wrapper sees it.
        base ([`~transformers.PreTrainedModel`]):
            The causal language model inside it.
        prompt_ids_NP, prompt_mask_NP, completion_ids_NC, completion_mask_NC (`torch.Tensor`):
            TRL's padded rows; the rows of one context are adjacent.
        temperature (`float`):
            Logits are divided by it.

    Returns:
        `logps_NC` and `entropies_NC`, 0 at padding.
    """
    batch = SharedPrefixBatch.build(prompt_ids_NP, prompt_mask_NP, completion_ids_NC, completion_mask_NC)
    mask = batch.visible_D1SS
    if base.config._attn_implementation == "eager":  # adds its mask, where SDPA takes booleans
        mask = torch.zeros(mask.shape, dtype=base.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(base.dtype).min
        )
    hidden = []
    # The forward's own logits would be those of every position; only the gists' reach the head below
    hook = base.base_model.register_forward_hook(lambda module, args, output: hidden.append(output.last_hidden_state))
    try:
        model(
            input_ids=batch.input_ids_DS,
            attention_mask=mask,
            position_ids=batch.position_ids_DS,
            use_cache=False,
            logits_to_keep=1,
        )
    finally:
        hook.remove()
    hidden_NCH = hidden[0][batch.context_N[:, None], batch.predicted_at_NC]
    keep_NC = completion_mask_NC.bool()
    logps_P, entropies_P = token_log_probs(base, hidden_NCH[keep_NC], completion_ids_NC[keep_NC], temperature)
    zeros_NC = torch.zeros(keep_NC.shape, dtype=logps_P.dtype, device=logps_P.device)
    return zeros_NC.masked_scatter(keep_NC, logps_P), zeros_NC.masked_scatter(keep_NC, entropies_P)


def sample_with_shared_prefill(
    model: PreTrainedModel, prompt_ids: list[list[int]], generation_config: GenerationConfig, pad_token_id: int
) -> torch.Tensor:
    """
    Samples a completion for each prompt, reading adjacent equal prompts once.

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
    context_N, slot_N = _adjacent_groups(ids_NP, mask_NP)
    cache = None
    if width > 1 and int(slot_N.max()) > 0:
        first_D = torch.nonzero(slot_N == 0).squeeze(1)
        prefix_mask_DP = mask_NP[first_D, :-1]
        cache = model(
            input_ids=ids_NP[first_D, :-1],
            attention_mask=prefix_mask_DP,
            position_ids=(prefix_mask_DP.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        cache.batch_select_indices(context_N)
    sampled = model.generate(
        input_ids=ids_NP, attention_mask=mask_NP, past_key_values=cache, generation_config=generation_config
    )
    return sampled[:, width:]


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Why a model must take the padded batch instead, or `None` if it can share prefixes."""
    config = model.config.get_text_config().to_dict()
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"its attention ({attention}) takes no 4D mask; load it with attn_implementation='sdpa'"
    if any(kind != "full_attention" for kind in config.get("layer_types") or []):
        return "it has sliding-window or linear-attention layers"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        return "it has sliding-window attention"
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "its forward takes no logits_to_keep"
    return None


def _adjacent_groups(ids_NP, mask_NP):
    """The context of each row, and its place among the rows of that context."""
    same = ((ids_NP[1:] == ids_NP[:-1]) & (mask_NP[1:] == mask_NP[:-1])).all(dim=1)
    new_N = torch.cat([torch.ones(1, dtype=torch.bool, device=ids_NP.device), ~same])
    context_N = new_N.cumsum(0) - 1
    rows_N = torch.arange(len(ids_NP), device=ids_NP.device)
    return context_N, rows_N - rows_N[new_N][context_N]
