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

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from .prompts import GistPrompts
from .roles import base_of
from .teacher_cache import TeacherCache


# Positions whose logits exist at one time. 128 × a vocabulary of 152k in float32 is 78 MB a tensor.
_POSITIONS_PER_CHUNK = 128


@dataclass
class TargetRows:
    """
    A batch of prompts, each followed by its target.

    Rows are padded on the right, so that no attention mask is needed: causal attention never looks right, and the
    hidden states of padding are never read.

    Attributes:
        input_ids_NS (`torch.LongTensor` of shape `(rows, sequence)`):
            Prompt, target, padding.
        positions_NT (`torch.LongTensor` of shape `(rows, target positions)`):
            Where each target token is predicted: the position before it.
        target_ids_NT (`torch.LongTensor` of shape `(rows, target positions)`):
            The targets, padded with 0.
        mask_NT (`torch.BoolTensor` of shape `(rows, target positions)`):
            True at real target tokens.
    """

    input_ids_NS: torch.Tensor
    positions_NT: torch.Tensor
    target_ids_NT: torch.Tensor
    mask_NT: torch.Tensor

    @classmethod
    def build(cls, prompts: list[list[int]], targets: list[list[int]], device) -> "TargetRows":
        rows, length = len(prompts), max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
        width = max(len(target) for target in targets)
        input_ids_NS = torch.zeros(rows, length, dtype=torch.long)
        positions_NT = torch.zeros(rows, width, dtype=torch.long)
        target_ids_NT = torch.zeros(rows, width, dtype=torch.long)
        mask_NT = torch.zeros(rows, width, dtype=torch.bool)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            input_ids_NS[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
            positions_NT[row, : len(target)] = torch.arange(len(prompt) - 1, len(prompt) + len(target) - 1)
            target_ids_NT[row, : len(target)] = torch.tensor(target)
            mask_NT[row, : len(target)] = True
        return cls(*(tensor.to(device) for tensor in (input_ids_NS, positions_NT, target_ids_NT, mask_NT)))


class TargetScorer(nn.Module):
    """
    Scores targets under a model: only the hidden states at the target's positions ever reach the LM head, and their
    logits exist one chunk of positions at a time, so memory does not grow with vocabulary × rows.

    It is a module around the model, so that data-parallel wrappers see one forward with all of the loss inside.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, rows: TargetRows, teacher_hidden_NTH=None, teacher: "TargetScorer | None" = None):
        """
        Args:
            rows ([`TargetRows`]):
                Prompts and targets.
            teacher_hidden_NTH (`torch.Tensor` of shape `(rows, target positions, teacher hidden)`, *optional*):
                The teacher's hidden states for the same targets, from [`~TargetScorer.hidden_states`].
            teacher ([`TargetScorer`], *optional*):
                Whose LM head turns them into the teacher's distribution.

        Returns:
            `logps_NT`, log p(Y_t | ·), and `kl_NT`, KL(teacher ‖ model) over the full vocabulary (`None` without a
            teacher), in nats, 0 where `rows.mask_NT` is False.
        """
        columns = [self.hidden_states(rows)[rows.mask_NT], rows.target_ids_NT[rows.mask_NT]]
        if teacher is not None:
            columns.append(teacher_hidden_NTH[rows.mask_NT])
        logps_P, kl_P = _per_position(partial(self._score_chunk, teacher), base_of(self.model), *columns)
        return _scatter(logps_P, rows.mask_NT), None if teacher is None else _scatter(kl_P, rows.mask_NT)

    def hidden_states(self, rows: TargetRows) -> torch.Tensor:
        """Hidden states of shape `(rows, target positions, hidden)` from which the targets are predicted."""
        backbone = base_of(self.model).base_model
        hidden_NSH = backbone(input_ids=rows.input_ids_NS, use_cache=False).last_hidden_state
        index = rows.positions_NT.unsqueeze(-1).expand(-1, -1, hidden_NSH.shape[-1])
        return hidden_NSH.gather(1, index)

    def log_probs(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of shape `(positions, vocabulary)`, in float32 or better."""
        return _log_softmax(output_logits(base_of(self.model), hidden_PH))

    def _score_chunk(self, teacher, hidden_PH, targets_P, teacher_PH=None):
        log_q_PV = self.log_probs(hidden_PH)
        logps_P = log_q_PV.gather(-1, targets_P.unsqueeze(-1)).squeeze(-1)
        if teacher is None:
            return logps_P, torch.zeros_like(logps_P)
        with torch.no_grad():
            log_p_PV = teacher.log_probs(teacher_PH)
            p_PV = log_p_PV.exp()
        vocabulary = min(log_p_PV.shape[-1], log_q_PV.shape[-1])  # heads of one family may be padded differently
        kl_P = (p_PV[:, :vocabulary] * (log_p_PV[:, :vocabulary] - log_q_PV[:, :vocabulary])).sum(-1)
        return logps_P, kl_P


class GistScorer:
    """
    Scores gists with the generator and the teacher.

    T(Y|X) and G(Y|L) depend on the context only and are computed once per context, G(Y|Z,L) once per gist. The forward
    that gives a gist's score is the one to differentiate: `backward` is called with its result, chunk by chunk, so no
    activation outlives its chunk.

    Args:
        generator, teacher ([`TargetScorer`]):
            G (possibly in a data-parallel wrapper) and T.
        prompts ([`GistPrompts`]):
            How gists, last tokens and contexts become prompts.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows in one forward.
        autocast (`Callable`, *optional*):
            Gives the context manager to run forwards in, as `accelerator.autocast`.
        teacher_cache ([`TeacherCache`], *optional*):
            Where the teacher's hidden states are looked up and kept.
    """

    def __init__(
        self,
        generator: nn.Module,
        teacher: TargetScorer,
        prompts: GistPrompts,
        batch_size: int = 8,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        teacher_cache: TeacherCache | None = None,
    ):
        self.generator = generator
        self.teacher = teacher
        self.prompts = prompts
        self.batch_size = batch_size
        self.autocast = autocast
        self.teacher_cache = teacher_cache

    def score(
        self,
        rows: list[dict],
        gists: list[list[int]],
        num_generations: int = 1,
        backward: Callable | None = None,
        null_backward: Callable | None = None,
    ) -> list[dict]:
        """
        Args:
            rows (`list[dict]`):
                Windows with `context_ids`, `last_k_ids` and `target_ids`; the rows of one context are adjacent.
            gists (`list[list[int]]`):
                A gist per row.
            num_generations (`int`, *optional*, defaults to `1`):
                Rows per context.
            backward, null_backward (`Callable`, *optional*):
                Called as `backward(logps_NT, kl_NT, rows)` after each forward of the generator with gists, and with
                the empty gist. Gradients are enabled where it is given.

        Returns:
            `list[dict]`: The scored columns of each row, means over the target's tokens in nats, as listed in
            [`trl_gist.rewards`].
        """
        documents = rows[::num_generations]
        hidden_D, teacher_log_prob_D = self.read_contexts(documents)
        null_D = self._score(documents, [[]] * len(documents), hidden_D, null_backward)
        hidden_N = [hidden_TH for hidden_TH in hidden_D for _ in range(num_generations)]
        gist_N = self._score(rows, gists, hidden_N, backward)
        columns = []
        for row, (gist_log_prob, teacher_kl) in enumerate(gist_N):
            null_log_prob, null_teacher_kl = null_D[row // num_generations]
            columns.append(
                {
                    "gist_ids": gists[row],
                    "gist_length": len(gists[row]),
                    "gist_log_prob": gist_log_prob,
                    "null_log_prob": null_log_prob,
                    "teacher_log_prob": teacher_log_prob_D[row // num_generations],
                    "log_prob_gain": gist_log_prob - null_log_prob,
                    "teacher_kl": teacher_kl,
                    "null_teacher_kl": null_teacher_kl,
                    "kl_gain": null_teacher_kl - teacher_kl,
                }
            )
        return columns

    def read_contexts(self, documents: list[dict]) -> tuple[list[torch.Tensor], list[float]]:
        """
        The teacher on each whole context: its hidden states at the target, of shape `(target positions, hidden)`, from
        which its distribution is recomputed where it is needed, and its mean log-prob of the target.
        """
        device = self._device()
        cached_D = [None if self.teacher_cache is None else self.teacher_cache.get(row) for row in documents]
        unread = [row for row, hidden_TH in zip(documents, cached_D, strict=True) if hidden_TH is None]
        read, log_prob_D = [], []
        with torch.no_grad(), self.autocast():
            for batch in self._batches(unread, [self.prompts.plain(row["context_ids"]) for row in unread]):
                hidden_NTH = self.teacher.hidden_states(batch)
                read += [hidden_TH[mask_T] for hidden_TH, mask_T in zip(hidden_NTH, batch.mask_NT, strict=True)]
            if self.teacher_cache is not None:
                for row, hidden_TH in zip(unread, read, strict=True):
                    self.teacher_cache.put(row, hidden_TH)
            new = iter(read)
            hidden_D = [next(new) if hidden_TH is None else hidden_TH.to(device) for hidden_TH in cached_D]
            for row, hidden_TH in zip(documents, hidden_D, strict=True):
                target_T = torch.tensor(row["target_ids"], device=device)
                logps_T = self.teacher.log_probs(hidden_TH).gather(-1, target_T.unsqueeze(-1))
                log_prob_D.append(logps_T.double().mean().item())
        return hidden_D, log_prob_D

    def generator_log_probs(self, rows: list[dict], gists: list[list[int]]) -> list[float]:
        """Mean log-prob of each row's target under the generator with the given gist."""
        prompts = [self.prompts.generator(gist, row["last_k_ids"]) for row, gist in zip(rows, gists, strict=True)]
        return self._log_probs(self.generator, rows, prompts)

    def teacher_log_probs(self, rows: list[dict], prefixes: list[list[int]]) -> list[float]:
        """Mean log-prob of each row's target under the frozen teacher that saw only the given prefix."""
        return self._log_probs(self.teacher, rows, [self.prompts.plain(prefix) for prefix in prefixes])

    def _score(self, rows, gists, hidden_N, backward):
        """Mean log-prob and KL of each row."""
        prompts = [self.prompts.generator(gist, row["last_k_ids"]) for row, gist in zip(rows, gists, strict=True)]
        scored = []
        for batch in self._batches(rows, prompts):
            chunk = slice(len(scored), len(scored) + len(batch.mask_NT))
            hidden_NTH = pad_sequence(hidden_N[chunk], batch_first=True)
            with torch.set_grad_enabled(backward is not None), self.autocast():
                logps_NT, kl_NT = self.generator(batch, hidden_NTH, self.teacher)
            if backward is not None:
                backward(logps_NT, kl_NT, rows[chunk])
            scored += zip(_row_means(logps_NT, batch), _row_means(kl_NT, batch), strict=True)
        return scored

    def _log_probs(self, scorer, rows, prompts):
        means = []
        with torch.no_grad(), self.autocast():
            for batch in self._batches(rows, prompts):
                means += _row_means(scorer(batch)[0], batch)
        return means

    def _batches(self, rows, prompts):
        for start in range(0, len(rows), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            yield TargetRows.build(prompts[chunk], [row["target_ids"] for row in rows[chunk]], self._device())

    def _device(self):
        return self.teacher.model.get_input_embeddings().weight.device


def token_log_probs(
    base: nn.Module, hidden_PH: torch.Tensor, token_ids_P: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probs of tokens and entropies of the distributions they came from, both of shape `(positions,)`, from a model's
    last hidden states, one chunk of logits at a time.
    """

    def score_chunk(hidden_PH, token_ids_P):
        log_p_PV = _log_softmax(output_logits(base, hidden_PH) / temperature)
        entropies_P = -(log_p_PV.exp() * log_p_PV).sum(-1)
        return log_p_PV.gather(-1, token_ids_P.unsqueeze(-1)).squeeze(-1), entropies_P

    return _per_position(score_chunk, base, hidden_PH, token_ids_P)


def check_logits(model: nn.Module):
    """
    Raises `ValueError` if the model's own logits are not what scoring computes from its hidden states. Architectures
    scale or cap their logits under various names; a wrong one would train on wrong probabilities in silence.
    """
    base = base_of(model)
    ids = torch.arange(4, device=base.get_input_embeddings().weight.device).unsqueeze(0)
    with torch.no_grad():
        own = base(input_ids=ids, use_cache=False).logits[0]
        ours = output_logits(base, base.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    if not torch.allclose(own.float(), ours.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(base).__name__} post-processes its logits in a way that scoring does not know, so its "
            "probabilities would be wrong. Use another architecture, or add its scaling to `scoring.output_logits`."
        )


def output_logits(base: nn.Module, hidden_PH: torch.Tensor) -> torch.Tensor:
    """The model's logits of shape `(positions, vocabulary)` for last hidden states."""
    config = base.config.get_text_config().to_dict()
    logits_PV = base.get_output_embeddings()(hidden_PH)
    if config.get("logit_scale"):  # Cohere
        logits_PV = logits_PV * config["logit_scale"]
    if config.get("logits_scaling"):  # Granite
        logits_PV = logits_PV / config["logits_scaling"]
    if config.get("final_logit_softcapping"):  # Gemma 2
        cap = config["final_logit_softcapping"]
        logits_PV = (logits_PV / cap).tanh() * cap
    return logits_PV


def _log_softmax(logits_PV):
    half = logits_PV.dtype in (torch.bfloat16, torch.float16)
    return (logits_PV.float() if half else logits_PV).log_softmax(-1)


def _per_position(function, base, hidden_PH, *columns_P):
    """
    `function(hidden_PH, *columns_P)`, which gives two scores for each position, one chunk of positions at a time and
    without keeping their logits for the backward pass.
    """
    head_is_frozen = not any(parameter.requires_grad for parameter in base.get_output_embeddings().parameters())
    scores = []
    for chunk in zip(*(column.split(_POSITIONS_PER_CHUNK) for column in (hidden_PH, *columns_P)), strict=True):
        if not torch.is_grad_enabled():
            scores.append(function(*chunk))
        elif head_is_frozen:
            scores.append(_KeepGradient.apply(function, *chunk))
        else:  # the head's gradient needs the logits again, recomputed for one LM head product
            scores.append(checkpoint(function, *chunk, use_reentrant=False))
    return tuple(torch.cat(score) for score in zip(*scores, strict=True))


class _KeepGradient(torch.autograd.Function):
    """
    Positions are independent, so the gradient of a position's score by its hidden state can be taken when the score
    is, and kept (a vector of the hidden size) instead of the logits (one of the vocabulary's). As fused linear
    cross-entropy kernels do.
    """

    @staticmethod
    def forward(ctx, function, hidden_PH, *columns_P):
        with torch.enable_grad():
            hidden_PH = hidden_PH.detach().requires_grad_()
            first_P, second_P = function(hidden_PH, *columns_P)
            (first_gradient_PH,) = torch.autograd.grad(first_P.sum(), hidden_PH, retain_graph=True)
            (second_gradient_PH,) = torch.autograd.grad(second_P.sum(), hidden_PH)
        ctx.save_for_backward(first_gradient_PH, second_gradient_PH)
        ctx.columns = len(columns_P)
        return first_P.detach(), second_P.detach()

    @staticmethod
    def backward(ctx, by_first_P, by_second_P):
        gradient_PH = 0.0
        for by_P, saved_PH in zip((by_first_P, by_second_P), ctx.saved_tensors, strict=True):
            gradient_PH = gradient_PH + by_P.unsqueeze(-1) * saved_PH
        return None, gradient_PH.to(saved_PH.dtype), *[None] * ctx.columns


def _scatter(values_P, mask_NT):
    return torch.zeros(mask_NT.shape, dtype=values_P.dtype, device=values_P.device).masked_scatter(mask_NT, values_P)


def _row_means(values_NT, batch):
    return (values_NT.detach().double().sum(-1) / batch.mask_NT.sum(-1)).tolist()
