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
Scores of tokens from a model's last hidden states, without ever holding the logits of a whole batch.

The vocabulary is the widest axis there is: 152k logits for each of a few thousand positions are gigabytes. Only the
positions that are scored reach the LM head; their logits exist one chunk at a time; and the gradient of a score by the
logits is written down in closed form where the score is, from the same softmax, so that no pass over the vocabulary is
made twice. Where the head is frozen the hidden state's gradient is taken at once and kept instead of the logits, as
fused linear cross-entropy kernels do.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .checks import check_causal
from .deepspeed import head_logits
from .roles import backbone_of, base_of


# Rows of logits that exist at one time. 128 × a vocabulary of 152k in float32 is 78 MB a tensor.
_ROWS_PER_CHUNK = 128


def token_log_probs(
    base: nn.Module,
    hidden_PH: torch.Tensor,
    token_ids_P: torch.Tensor,
    temperature: float,
    differentiable_entropies: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probs of tokens and entropies of the distributions they came from, both of shape `(positions,)`, from a model's
    last hidden states. Entropies carry a gradient only where asked to.
    """
    score = partial(_policy_scores, differentiable_entropies)
    logps_P1, entropies_P1 = _by_chunks(score, base, temperature, hidden_PH.unsqueeze(1), token_ids_P)
    return logps_P1.squeeze(1), entropies_P1.squeeze(1)


def target_scores(
    base: nn.Module,
    hidden_UGH: torch.Tensor,
    target_ids_U: torch.Tensor,
    teacher_log_probs: Callable[[torch.Tensor], torch.Tensor] | None = None,
    teacher_hidden_UH: torch.Tensor | None = None,
    loss: str = "forward_kl",
    greedy: bool = False,
) -> tuple[torch.Tensor, ...]:
    """
    Scores of target positions, each predicted from `G` hidden states (one for each gist): the teacher's distribution
    there is computed once.

    Args:
        base (`torch.nn.Module`):
            The causal language model that the hidden states come from.
        hidden_UGH (`torch.Tensor` of shape `(target positions, gists, hidden)`):
            Its last hidden states.
        target_ids_U (`torch.LongTensor` of shape `(target positions,)`):
            The tokens that came.
        teacher_log_probs (`Callable`, *optional*):
            The teacher's log-probabilities `(positions, vocabulary)` of its last hidden states.
        teacher_hidden_UH (`torch.Tensor` of shape `(target positions, teacher hidden)`, *optional*):
            The teacher's last hidden states.
        loss (`str`, *optional*, defaults to `"forward_kl"`):
            The loss of the third score. With P the teacher's distribution and Q the model's: `"forward_kl"` KL(P‖Q),
            `"cross_entropy"` −log Q(target).
        greedy (`bool`, *optional*, defaults to `False`):
            Whether the last score is wanted, which takes one more pass over the vocabulary.

    Returns:
        Log-probs of the targets and KL(teacher ‖ model), both without a gradient, and the loss, which alone carries
        one, all in nats; and, if `greedy`, 1.0 where the target is the model's likeliest token, else 0.0. Each of
        shape `(positions, gists)`. Without a teacher the KL is 0 and the loss the cross-entropy.

        Heads of one family may be padded to different vocabularies. What the teacher's head alone has is left out;
        what the model's alone has is impossible under the teacher, so that probability there costs.
    """
    columns = [target_ids_U] if teacher_hidden_UH is None else [target_ids_U, teacher_hidden_UH]
    score = partial(_distillation_scores, loss, greedy, teacher_log_probs)
    return _by_chunks(score, base, 1.0, hidden_UGH, *columns)


def check_logits(model: nn.Module):
    """
    Raises `ValueError` if the model is not causal, or its own logits are not what scoring computes from its hidden
    states. Architectures scale or cap their logits under various names; a wrong one would train on wrong probabilities
    in silence.
    """
    check_causal(model)
    base = base_of(model)
    ids = torch.arange(4, device=base.get_input_embeddings().weight.device).unsqueeze(0)
    with torch.no_grad():
        own = base(input_ids=ids, use_cache=False).logits[0]
        ours = output_logits(base, backbone_of(base)(input_ids=ids, use_cache=False).last_hidden_state[0])
    if not torch.allclose(own.float(), ours.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(base).__name__} post-processes its logits in a way that scoring does not know, so its "
            "probabilities would be wrong. Use another architecture, or add its scaling to `lm_head.output_logits`."
        )


def output_logits(base: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """The model's logits of shape `(…, vocabulary)` for last hidden states of shape `(…, hidden)`."""
    config = vars(base.config.get_text_config())
    logits = head_logits(base.get_output_embeddings(), hidden)
    if config.get("logit_scale"):  # Cohere
        logits = logits * config["logit_scale"]
    if config.get("logits_scaling"):  # Granite
        logits = logits / config["logits_scaling"]
    if config.get("final_logit_softcapping"):  # Gemma 2
        cap = config["final_logit_softcapping"]
        logits = (logits / cap).tanh() * cap
    return logits


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities over the last axis, in float32 or better."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    return (logits.float() if half else logits).log_softmax(-1)


# ---- Scores of one chunk ----
# Each yields its scores (positions, gists), then, where it is asked, their gradients by the logits, `None` for none.
# They may overwrite the log-probabilities that they are given.


def _policy_scores(differentiable_entropies, log_p_PGV, token_ids_P):
    index_PG1 = token_ids_P.view(-1, 1, 1).expand(-1, log_p_PGV.shape[1], 1)
    logps_PG = log_p_PGV.gather(-1, index_PG1).squeeze(-1)
    p_PGV = log_p_PGV.exp()
    entropies_PG = -(p_PGV * log_p_PGV).sum(-1)
    yield logps_PG, entropies_PG
    by_entropy_PGV = -p_PGV * (log_p_PGV + entropies_PG.unsqueeze(-1)) if differentiable_entropies else None
    yield p_PGV.neg_().scatter_add_(-1, index_PG1, torch.ones_like(logps_PG).unsqueeze(-1)), by_entropy_PGV


def _distillation_scores(loss, greedy, teacher_log_probs, log_q_UGV, target_ids_U, teacher_hidden_UH=None):
    index_UG1 = target_ids_U.view(-1, 1, 1).expand(-1, log_q_UGV.shape[1], 1)
    logps_UG = log_q_UGV.gather(-1, index_UG1).squeeze(-1)
    # Before the log-probabilities are overwritten
    exact = [(log_q_UGV.argmax(-1) == target_ids_U.unsqueeze(1)).to(logps_UG)] if greedy else []
    if teacher_log_probs is None:
        kl_UG, loss = torch.zeros_like(logps_UG), "cross_entropy"
    else:
        log_p_UV = teacher_log_probs(teacher_hidden_UH)
        shared = min(log_p_UV.shape[-1], log_q_UGV.shape[-1])
        log_p_UV = log_p_UV[:, :shared]
        p_UV1 = log_p_UV.exp().unsqueeze(-1)
        log_ratio_UGV = log_q_UGV[..., :shared] - log_p_UV.unsqueeze(1)
        kl_UG = -(log_ratio_UGV @ p_UV1).squeeze(-1)
    if loss == "cross_entropy":
        yield logps_UG, kl_UG, -logps_UG, *exact
        by_logits_UGV = log_q_UGV.exp_().scatter_add_(-1, index_UG1, -torch.ones_like(logps_UG).unsqueeze(-1))
    else:
        yield logps_UG, kl_UG, kl_UG.clone(), *exact
        by_logits_UGV = log_q_UGV.exp_().mul_(p_UV1.sum(1, keepdim=True))
        by_logits_UGV[..., :shared] -= p_UV1.mT
    yield None, None, by_logits_UGV, *(None for _ in exact)


# ---- The chunks ----


def _by_chunks(score, base, temperature, hidden_UGH, *columns_U):
    """The scores of all positions, one chunk of positions at a time and without keeping logits for the backward."""

    def logits_of(hidden_UGH):
        logits_UGV = output_logits(base, hidden_UGH)
        return logits_UGV if temperature == 1 else logits_UGV / temperature

    def with_logits_kept(hidden_UGH, *columns_U):
        return _FromLogits.apply(score, logits_of(hidden_UGH), *columns_U)

    head_is_frozen = not any(parameter.requires_grad for parameter in base.get_output_embeddings().parameters())
    size = max(1, _ROWS_PER_CHUNK // hidden_UGH.shape[1])
    scores = []
    for chunk_UGH, *chunk_U in zip(*(column.split(size) for column in (hidden_UGH, *columns_U)), strict=True):
        if not torch.is_grad_enabled():
            scores.append(next(score(log_softmax(logits_of(chunk_UGH)), *chunk_U)))
        elif head_is_frozen:
            scores.append(_FromHidden.apply(score, logits_of, chunk_UGH, *chunk_U))
        else:  # the head's gradient needs the logits again, recomputed for one LM head product
            scores.append(checkpoint(with_logits_kept, chunk_UGH, *chunk_U, use_reentrant=False))
    return tuple(torch.cat(score) for score in zip(*scores, strict=True))


class _Scores(torch.autograd.Function):
    """Scores, each with the gradient that it will need, saved as it is computed."""

    @staticmethod
    def save(ctx, scores, gradients):
        ctx.differentiable = [gradient is not None for gradient in gradients]
        ctx.mark_non_differentiable(*(s for s, gradient in zip(scores, gradients, strict=True) if gradient is None))
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        return scores

    @staticmethod
    def backward(ctx, *by_scores_UG):
        by_scores_UG = [by_UG for by_UG, given in zip(by_scores_UG, ctx.differentiable, strict=True) if given]
        gradient = sum(
            by_UG.unsqueeze(-1) * saved for by_UG, saved in zip(by_scores_UG, ctx.saved_tensors, strict=True)
        )
        return tuple(gradient.to(ctx.dtype) if needed else None for needed in ctx.needs_input_grad)


class _FromLogits(_Scores):
    @staticmethod
    def forward(ctx, score, logits_UGV, *columns_U):
        ctx.dtype = logits_UGV.dtype
        return _Scores.save(ctx, *score(log_softmax(logits_UGV), *columns_U))


class _FromHidden(_Scores):
    """
    Positions are independent, so the gradient of a position's score by its hidden state can be taken when the score
    is, and kept (a vector of the hidden size) instead of the logits (one of the vocabulary's).
    """

    @staticmethod
    def forward(ctx, score, logits_of, hidden_UGH, *columns_U):
        ctx.dtype = hidden_UGH.dtype
        with torch.enable_grad():
            hidden_UGH = hidden_UGH.detach().requires_grad_()
            logits_UGV = logits_of(hidden_UGH)
        scores, by_logits = score(log_softmax(logits_UGV.detach()), *columns_U)
        gradients = [
            None
            if by_UGV is None
            else torch.autograd.grad(logits_UGV, hidden_UGH, by_UGV.to(logits_UGV.dtype), retain_graph=True)[0]
            for by_UGV in by_logits
        ]
        return _Scores.save(ctx, scores, gradients)
