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
One pass over a context for all of its gists, in training.

The gists of a context share a long prompt. Padded into one row each, they pay for it G times. Here a context is one row:
the prompt, then its gists side by side, each seeing the prompt and itself, with positions that restart where the prompt
ends. At 552 tokens of prompt and 8 gists of 48 tokens that is 936 tokens instead of 4,800. The numbers are the same; a
test holds both paths together. `sampling.py` grows the same row token by token.
"""

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .attention import ATTENTION_NAME, additive_mask, attention_of
from .checks import probe_ids, rounding_of, same_logits
from .lm_head import token_log_probs
from .roles import backbone_of


# What a forward raises that does not take what it is given
_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass
class SharedPrefixBatch:
    """
    Contexts with their gists side by side.

    Attributes:
        input_ids_DS (`torch.LongTensor` of shape `(contexts, sequence)`):
            Prompt, then each gist in a slot of its own.
        position_ids_DS (`torch.LongTensor` of shape `(contexts, sequence)`):
            Restart at the prompt's length in each slot.
        visible_DSS (`torch.BoolTensor` of shape `(contexts, sequence, sequence)`):
            Which position (last axis) each position sees.
        predicted_at_P (`torch.LongTensor` of shape `(gist tokens,)`):
            Where in `(contexts, sequence)`, flattened, each gist token is predicted.
        token_ids_P (`torch.LongTensor` of shape `(gist tokens,)`):
            The gist tokens, a gist after the other.
    """

    input_ids_DS: torch.Tensor
    position_ids_DS: torch.Tensor
    visible_DSS: torch.Tensor
    predicted_at_P: torch.Tensor
    token_ids_P: torch.Tensor

    @classmethod
    def build(cls, prompt_ids_NP, prompt_mask_NP, completion_ids_NC, completion_mask_NC) -> "SharedPrefixBatch":
        """From TRL's padded rows (prompts padded on the left, completions on the right); adjacent rows with the same
        prompt share it."""
        device = prompt_ids_NP.device
        rows, width = completion_ids_NC.shape
        prompt_width = prompt_ids_NP.shape[1]
        context_N, slot_N = adjacent_groups(prompt_ids_NP, prompt_mask_NP)
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
        visible_DSS = (causal_SS & real_DS[:, None, :]) | own_SS

        predicted_at_NC = prompt_width + slot_N[:, None] * width + torch.arange(-1, width - 1, device=device)
        predicted_at_NC[:, 0] = prompt_width - 1
        keep_NC = completion_mask_NC.bool()
        predicted_at_NC += context_N[:, None] * input_ids_DS.shape[1]
        return cls(input_ids_DS, position_ids_DS, visible_DSS, predicted_at_NC[keep_NC], completion_ids_NC[keep_NC])


def shared_prefix_log_probs(
    model: torch.nn.Module,
    base: PreTrainedModel,
    prompt_ids_NP: torch.Tensor,
    prompt_mask_NP: torch.Tensor,
    completion_ids_NC: torch.Tensor,
    completion_mask_NC: torch.Tensor,
    temperature: float,
    differentiable_entropies: bool = False,
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
        differentiable_entropies (`bool`, *optional*, defaults to `False`):
            Whether entropies carry a gradient.

    Returns:
        `logps_NC` and `entropies_NC`, 0 at padding.
    """
    batch = SharedPrefixBatch.build(prompt_ids_NP, prompt_mask_NP, completion_ids_NC, completion_mask_NC)
    logps_P, entropies_P = batch_log_probs(model, base, batch, temperature, differentiable_entropies)
    keep_NC = completion_mask_NC.bool()
    zeros_NC = torch.zeros(keep_NC.shape, dtype=logps_P.dtype, device=logps_P.device)
    return zeros_NC.masked_scatter(keep_NC, logps_P), zeros_NC.masked_scatter(keep_NC, entropies_P)


def batch_log_probs(
    model: torch.nn.Module,
    base: PreTrainedModel,
    batch: SharedPrefixBatch,
    temperature: float,
    differentiable_entropies: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`shared_prefix_log_probs`], of a batch that is built: no shape depends on what a tensor holds."""
    hidden = []
    # The forward's own logits would be those of every position; only the gists' reach the head below
    hook = backbone_of(base).register_forward_hook(
        lambda module, args, output: hidden.append(output.last_hidden_state)
    )
    try:
        model(
            input_ids=batch.input_ids_DS,
            attention_mask=attention_masks(base, batch.visible_DSS, batch.position_ids_DS, batch.position_ids_DS),
            position_ids=batch.position_ids_DS,
            use_cache=False,
            logits_to_keep=1,
        )
    finally:
        hook.remove()
    hidden_PH = hidden[0].flatten(0, 1)[batch.predicted_at_P]
    return token_log_probs(base, hidden_PH, batch.token_ids_P, temperature, differentiable_entropies)


def attention_masks(
    base: PreTrainedModel, visible_DQK: torch.Tensor, query_positions_DQ: torch.Tensor, key_positions_DK: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """
    What a model takes as `attention_mask` so that each query sees the given keys, and in layers with a sliding window
    only those inside it: a mask, or, for models that mix kinds of layers, one for each kind.
    """
    config = vars(base.config.get_text_config())
    kinds, window = _layer_kinds(config), config.get("sliding_window")
    # Eager attention must be given a mask to add; ours, where it is at work, would make one in every layer
    attention = attention_of(base)
    adds = attention == "eager" or (attention == ATTENTION_NAME and base.dtype == torch.bfloat16)

    def mask(kind):
        visible = visible_DQK
        if kind == "sliding_attention":
            visible = visible & (key_positions_DK[:, None, :] > query_positions_DQ[:, :, None] - window)
        visible = visible.unsqueeze(1)
        return additive_mask(visible, base.dtype) if adds else visible

    return {kind: mask(kind) for kind in kinds} if len(kinds) > 1 else mask(*kinds)


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Why a model must take the padded batch instead, or `None` if it can share prefixes."""
    attention = attention_of(model)
    if attention not in ("sdpa", "eager", ATTENTION_NAME):
        return f"its attention ({attention}) takes no 4D mask; load it with attn_implementation='sdpa'"
    other = _layer_kinds(vars(model.config.get_text_config())) - {"full_attention", "sliding_attention"}
    if other:
        return f"it has {', '.join(sorted(other))} layers"
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "its forward takes no logits_to_keep"
    try:
        agrees = _agrees_with_padded(model)
    except _FAILURES as error:
        return f"its forward does not take the mask ({type(error).__name__}: {error})"
    return None if agrees else "its probabilities come out different there"


def _agrees_with_padded(model):
    """Whether two short gists get the log-probs of a row each: a mask or positions that a model ignores do not fail."""
    device = model.get_input_embeddings().weight.device
    prompt_ids, completion_ids = torch.arange(4, device=device).repeat(2, 1), torch.arange(4, device=device).view(2, 2)
    ones_NP, ones_NC = torch.ones_like(prompt_ids), torch.ones_like(completion_ids)
    with torch.no_grad():
        shared_NC, _ = shared_prefix_log_probs(model, model, prompt_ids, ones_NP, completion_ids, ones_NC, 1.0)
        logits_NCV = model(input_ids=torch.cat([prompt_ids, completion_ids], 1), use_cache=False).logits[:, 3:-1]
    padded_NC = logits_NCV.float().log_softmax(-1).gather(-1, completion_ids.unsqueeze(-1)).squeeze(-1)
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.25
    return torch.allclose(shared_NC.float(), padded_NC, atol=tolerance)


def check_padded(model: PreTrainedModel, temperature: float, aux_loss: bool):
    """
    Raises `ValueError` if TRL's forward over padded rows fails, or gives a text other log-probs than it has by itself.
    TRL 1.16 reads `base_model`'s hidden states with a head of its own, and gives a mask but no positions: a model must
    count them from the mask, or only by their distances.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            As GRPOTrainer has patched it.
        temperature (`float`):
            Of TRL's head.
        aux_loss (`bool`):
            Whether TRL asks for the load-balancing loss of experts.
    """
    name, ids_1S = type(model).__name__, probe_ids(model)
    padding_1P = ids_1S.new_zeros(1, 24)
    mask, padded_ids = (torch.cat(both, dim=1) for both in ((padding_1P, ids_1S.clamp(max=1)), (padding_1P, ids_1S)))
    labels = padded_ids.masked_fill(mask == 0, -100)
    rows = {"input_ids": padded_ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True}
    with torch.no_grad():
        logits_1SV = model(input_ids=ids_1S, use_cache=False).logits
        try:
            output = model(**rows)
        except _FAILURES as error:
            raise ValueError(
                f"{name} cannot be the summarizer: TRL's forward over padded rows fails in it "
                f"({type(error).__name__}: {error}). Use another architecture."
            ) from error
        try:
            if aux_loss:
                model(**rows, output_router_logits=True)
        except _FAILURES as error:
            raise ValueError(
                f"TRL's load-balancing loss of experts fails in {name} ({type(error).__name__}: {error}). Set "
                "`router_aux_loss_coef=0.0`, which leaves it out."
            ) from error
    log_p_1SV = (logits_1SV.float() / temperature).log_softmax(-1)
    alone_1S = log_p_1SV[:, :-1].gather(-1, ids_1S[:, 1:, None]).squeeze(-1)
    if not same_logits(alone_1S, output.log_probs[:, padding_1P.shape[1] :], rounding_of(model)):
        raise ValueError(
            f"{name} cannot be the summarizer. The gists of a context cannot share a row in it, and its forward in "
            "transformers gives a text padded on the left, as TRL scores it, other log-probs than the text alone: it "
            "counts positions from the padding, reads it, or scales its logits as TRL does not know. Use another "
            "architecture."
        )


def _layer_kinds(config):
    """The kinds of attention in a model's layers."""
    kinds = config.get("layer_types") or config.get("attention_layers")  # the latter in GPT-Neo
    if kinds:
        return set(kinds)
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    return {"sliding_attention" if windowed else "full_attention"}


def adjacent_groups(ids_NP: torch.Tensor, mask_NP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The context of each padded row, and its place among the adjacent rows with that same prompt."""
    same = ((ids_NP[1:] == ids_NP[:-1]) & (mask_NP[1:] == mask_NP[:-1])).all(dim=1)
    new_N = torch.cat([torch.ones(1, dtype=torch.bool, device=ids_NP.device), ~same])
    context_N = new_N.cumsum(0) - 1
    rows_N = torch.arange(len(ids_NP), device=ids_NP.device)
    return context_N, rows_N - rows_N[new_N][context_N]
