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

"""Gists scored: log-probs and KLs of the target under the generator, against no gist and against the teacher."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from ..prompts import GistPrompts, seen_ids
from .targets import TargetRows, TargetScorer
from .teacher_cache import TeacherCache


class GistScorer:
    """
    Scores gists with the generator and the teacher.

    T(Y|X) and G(Y|L) depend on the context only and are computed once per context, G(Y|Z,L) once per gist. The forward
    that gives a gist's score is the one to differentiate: `backward` is called with its loss, chunk by chunk, so no
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
        loss (`str`, *optional*, defaults to `"forward_kl"`):
            What `backward` is called with: `"forward_kl"`, `"reverse_kl"`, `"jsd"` or `"cross_entropy"`.
    """

    def __init__(
        self,
        generator: nn.Module,
        teacher: TargetScorer,
        prompts: GistPrompts,
        batch_size: int = 8,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        teacher_cache: TeacherCache | None = None,
        loss: str = "forward_kl",
    ):
        self.generator = generator
        self.teacher = teacher
        self.prompts = prompts
        self.batch_size = batch_size
        self.autocast = autocast
        self.teacher_cache = teacher_cache
        self.loss = loss

    def score(
        self,
        rows: list[dict],
        gists: list[list[int]],
        num_generations: int = 1,
        backward: Callable | None = None,
        null_backward: Callable | None = None,
        windows: int = 1,
        discount: float = 0.0,
    ) -> list[dict]:
        """
        Args:
            rows (`list[dict]`):
                Windows with `context_ids`, `last_k_ids` and `target_ids`; the rows of one context are adjacent, and the
                contexts of one walk, in their order.
            gists (`list[list[int]]`):
                A gist per row.
            num_generations (`int`, *optional*, defaults to `1`):
                Rows per context.
            backward, null_backward (`Callable`, *optional*):
                Called as `backward(loss_NT, rows)` after each forward of the generator with gists, and with the empty
                gist. Gradients are enabled where it is given.
            windows (`int`, *optional*, defaults to `1`):
                Contexts of one walk.
            discount (`float`, *optional*, defaults to `0.0`):
                How much a gist's gain counts one window after its own, for `later_log_prob_gain` and `later_kl_gain`.

        Returns:
            `list[dict]`: The scored columns of each row, in nats, as listed in [`trl_gist.rewards`].
        """
        documents = rows[::num_generations]
        hidden_D, teacher_log_prob_D = self.read_contexts(documents)
        null_D = self._score(documents, [[]] * len(documents), 1, hidden_D, null_backward)
        gist_N = self._score(documents, gists, num_generations, hidden_D, backward)
        later_N2 = self._later_gains(documents, gists, num_generations, hidden_D, null_D, windows, discount)
        columns = []
        for row, (logps_T, kl_T) in enumerate(gist_N):
            null_logps_T, null_kl_T = null_D[row // num_generations]
            gist_log_prob, null_log_prob, teacher_kl, null_teacher_kl = (
                values_T.mean().item() for values_T in (logps_T, null_logps_T, kl_T, null_kl_T)
            )
            columns.append(
                {
                    "gist_ids": gists[row],
                    "gist_length": len(gists[row]),
                    "gist_log_prob": gist_log_prob,
                    "null_log_prob": null_log_prob,
                    "teacher_log_prob": teacher_log_prob_D[row // num_generations],
                    "log_prob_gain": gist_log_prob - null_log_prob,
                    "token_log_prob_gains": (logps_T - null_logps_T).tolist(),
                    "teacher_kl": teacher_kl,
                    "null_teacher_kl": null_teacher_kl,
                    "kl_gain": null_teacher_kl - teacher_kl,
                    "token_kl_gains": (null_kl_T - kl_T).tolist(),
                    "later_log_prob_gain": later_N2[row, 0].item(),
                    "later_kl_gain": later_N2[row, 1].item(),
                }
            )
        return columns

    def _later_gains(self, documents, gists_N, num_generations, hidden_D, null_D, windows, discount):
        """What each gist would gain, as log-prob and as KL, were it read as it is in the later windows of its walk; a sum
        over them, discounted."""
        gains_N2 = torch.zeros(len(gists_N), 2, dtype=torch.float64)
        for lag in range(1, windows if discount > 0 else 1):
            own = [index for index in range(len(documents)) if index % windows + lag < windows]
            gist_rows = [index * num_generations + gist for index in own for gist in range(num_generations)]
            read = self._score(
                [documents[index + lag] for index in own],
                [gists_N[row] for row in gist_rows],
                num_generations,
                [hidden_D[index + lag] for index in own],
                None,
            )
            for row, (logps_T, kl_T) in zip(gist_rows, read, strict=True):
                null_logps_T, null_kl_T = null_D[row // num_generations + lag]
                gains = (logps_T - null_logps_T).mean(), (null_kl_T - kl_T).mean()
                gains_N2[row] += discount**lag * torch.stack(gains)
        return gains_N2

    def read_contexts(self, documents: list[dict]) -> tuple[list[torch.Tensor], list[float]]:
        """
        The teacher on each whole context, and on L after it where L is not its end: its hidden states at the target, of
        shape `(target positions, hidden)`, from which its distribution is recomputed where it is needed, and its mean
        log-prob of the target. The windows of a walk are read in one row.
        """
        cached_D = [None if self.teacher_cache is None else self.teacher_cache.get(row) for row in documents]
        unread = [row for row, hidden_TH in zip(documents, cached_D, strict=True) if hidden_TH is None]
        read, device = [], self._device()
        with torch.no_grad(), self.autocast():
            for walks in _split(_by_walk(unread), self.batch_size):
                read += self._read_walks(walks)
            if self.teacher_cache is not None:
                for row, hidden_TH in zip(unread, read, strict=True):
                    self.teacher_cache.put(row, hidden_TH)
            new = iter(read)
            hidden_D = [next(new) if hidden_TH is None else hidden_TH.to(device) for hidden_TH in cached_D]
        return hidden_D, [logps_T.mean().item() for logps_T in self.teacher_readings(documents, hidden_D)]

    def _read_walks(self, walks):
        """The teacher's hidden states at each window's target; a context by itself is a walk of one window."""
        prompts = [self.prompts.teacher(seen_ids(walk[0]), walk[0]["last_k_ids"]) for walk in walks]
        # From the first window's target on to the end of the last one's
        texts = [[*seen_ids(walk[-1])[len(seen_ids(walk[0])) :], *walk[-1]["target_ids"]] for walk in walks]
        hidden_NTH = self.teacher.hidden_states(TargetRows.build(prompts, texts, 1, self._device()))
        return [
            hidden_TH[len(seen_ids(row)) - len(seen_ids(walk[0])) :][: len(row["target_ids"])].clone()
            for walk, hidden_TH in zip(walks, hidden_NTH, strict=True)
            for row in walk
        ]

    def teacher_readings(self, documents: list[dict], teacher_hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """The teacher's log-prob of every target token on the whole context, from what [`read_contexts`] gave of it."""
        logps_D = []
        with torch.no_grad(), self.autocast():
            for row, hidden_TH in zip(documents, teacher_hidden, strict=True):
                target_T = torch.tensor(row["target_ids"], device=hidden_TH.device)
                logps_T = self.teacher.log_probs(hidden_TH).gather(-1, target_T.unsqueeze(-1)).squeeze(-1)
                logps_D.append(logps_T.double())
        return logps_D

    def read(
        self, model: nn.Module, rows: list[dict], prompts: list[list[int]], teacher_hidden: list[torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        What a model makes of each row's target after any prompt, without a gradient.

        Args:
            model ([`TargetScorer`]):
                Who reads: the generator, the teacher, or another of the same vocabulary.
            rows (`list[dict]`):
                Windows with `target_ids`.
            prompts (`list[list[int]]`):
                Token ids before each target, as of [`GistPrompts.generator`] or [`GistPrompts.plain`].
            teacher_hidden (`list[torch.Tensor]`):
                Of [`read_contexts`], for the same rows.

        Returns:
            `list[tuple[torch.Tensor, torch.Tensor]]`: For each row the log-prob of every target token, and the KL
            from the teacher on the whole context at it; in nats, float64, on the CPU.
        """
        readings = []
        with torch.no_grad(), self.autocast():
            for start, batch in zip(range(0, len(rows), self.batch_size), self._batches(rows, prompts), strict=True):
                hidden_UH = torch.cat(teacher_hidden[start : start + self.batch_size])
                logps_NT, kl_NT, _ = model(batch, hidden_UH, self.teacher)
                readings += _by_row(logps_NT, kl_NT, batch.mask_NT)
        return readings

    def generator_log_probs(self, rows: list[dict], gists: list[list[int]]) -> list[float]:
        """Mean log-prob of each row's target under the generator with the given gist."""
        prompts = [self.prompts.generator(gist, row["last_k_ids"]) for row, gist in zip(rows, gists, strict=True)]
        return self._log_probs(self.generator, rows, prompts)

    def teacher_log_probs(self, rows: list[dict], prefixes: list[list[int]]) -> list[float]:
        """Mean log-prob of each row's target under the frozen teacher that saw only the given prefix."""
        return self._log_probs(self.teacher, rows, [self.prompts.plain(prefix) for prefix in prefixes])

    def _score(self, documents, gists_N, num_generations, hidden_D, backward):
        """Log-probs and KLs of each gist's target tokens, in float64 on the CPU."""
        rows = [(document, hidden_TH) for document, hidden_TH in zip(documents, hidden_D, strict=True)]
        scored = []
        for start, stop, together in gists_together(len(gists_N), num_generations, self.batch_size):
            of_batch = [rows[index // num_generations] for index in range(start, stop)]
            prompts = [
                self.prompts.generator(gist, document["last_k_ids"])
                for gist, (document, _) in zip(gists_N[start:stop], of_batch, strict=True)
            ]
            targets = [document["target_ids"] for document, _ in of_batch]
            batch = TargetRows.build(prompts, targets, together, self._device())
            hidden_UH = torch.cat([hidden_TH for _, hidden_TH in of_batch[::together]])
            # Where nothing is differentiated, the loss that costs nothing
            loss = "forward_kl" if backward is None else self.loss
            with torch.set_grad_enabled(backward is not None), self.autocast():
                logps_NT, kl_NT, loss_NT = self.generator(batch, hidden_UH, self.teacher, loss)
            if backward is not None:
                backward(loss_NT, [document for document, _ in of_batch])
            scored += _by_row(logps_NT.detach(), kl_NT.detach(), batch.mask_NT)
        return scored

    def _log_probs(self, scorer, rows, prompts):
        means = []
        with torch.no_grad(), self.autocast():
            for batch in self._batches(rows, prompts):
                means += (scorer(batch)[0].double().sum(-1) / batch.mask_NT.sum(-1)).tolist()
        return means

    def _batches(self, rows, prompts):
        for some in _split(list(zip(rows, prompts, strict=True)), self.batch_size):
            targets = [row["target_ids"] for row, _ in some]
            yield TargetRows.build([prompt for _, prompt in some], targets, 1, self._device())

    def _device(self):
        return self.teacher.model.get_input_embeddings().weight.device


def _split(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


def _by_walk(rows):
    """Windows of one walk together, in their order: the text of each begins with that of the one before."""
    walks = []
    for row in rows:
        last = walks[-1][-1] if walks else {}
        if "walk_ids" in last and last["window"] < row["window"] and last["walk_ids"] == row["walk_ids"]:
            walks[-1].append(row)
        else:
            walks.append([row])
    return walks


def gists_together(count, num_generations, batch_size):
    """Batches of gists, `(start, stop, gists of one context in it)`: whole contexts, or equal parts of one."""
    if batch_size >= num_generations:
        together, size = num_generations, batch_size // num_generations * num_generations
    else:
        size = together = max(n for n in range(1, batch_size + 1) if num_generations % n == 0)
    return [(start, min(start + size, count), together) for start in range(0, count, size)]


def _by_row(logps_NT, kl_NT, mask_NT):
    """Both scores of each row's target tokens, in float64 on the CPU."""
    scores_N2T = torch.stack((logps_NT, kl_NT), dim=1).double().cpu()
    return [tuple(row_2T[:, mask_T]) for row_2T, mask_T in zip(scores_N2T, mask_NT.cpu(), strict=True)]
