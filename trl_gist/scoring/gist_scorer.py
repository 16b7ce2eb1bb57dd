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

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from ..common.arguments import token_ids, whole_number
from ..models.roles import base_of
from ..models.shared_prefix import why_not_shared
from ..prompts import GistPrompts, seen_ids, targets_of
from .targets import TargetRows, TargetScorer
from .teacher_cache import TeacherCache


# The attention mask of a row is the square of its length
ROW_TOKENS = 4096


class _Row(NamedTuple):
    """A gist's number, and of its context the targets that share this row, with the teacher's hidden states there."""

    gist: int
    document: dict
    targets: list[dict]
    hidden_TH: torch.Tensor


class GistScorer:
    """
    Scores gists with the generator and the teacher.

    T(Y|X) and G(Y|L) depend on the context only and are computed once per context, G(Y|Z,L) once per gist. The forward
    that gives a gist's score is the one to differentiate: `backward` is called with its loss, chunk by chunk, so no
    activation outlives its chunk. A context's targets stand side by side in one row, or, where they are too many, in a few,
    where the models can share one, and each counts alike, however many tokens it has.

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
            What `backward` is called with: `"forward_kl"` or `"cross_entropy"`.
        target_floor (`float`, *optional*):
            What T must gain from the context over the cue alone for a target to count, in nats per token. The best target
            of a context always counts. `None` asks nothing.
        row_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens of targets and their cues in one row, if no prompt of theirs is longer. `None` leaves all in one, so
            that the number of forwards depends on nothing but that of contexts.
        mean (`str`, *optional*, defaults to `"targets"`):
            What the loss of a context of several targets is a mean over: `"targets"`, each alike, or their `"tokens"`.
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
        target_floor: float | None = None,
        row_tokens: int | None = ROW_TOKENS,
        mean: str = "targets",
    ):
        self.generator = generator
        self.teacher = teacher
        self.prompts = prompts
        self.batch_size = whole_number("batch_size", batch_size)
        self.autocast = autocast
        self.teacher_cache = teacher_cache
        self.loss = loss
        self.target_floor = target_floor
        self.row_tokens = row_tokens
        self.mean = mean
        self._models = generator.model, teacher.model  # the generator may come to stand in a wrapper

    @functools.cached_property
    def shares_rows(self) -> bool:
        """Whether both models can read several targets in one row."""
        return all(why_not_shared(base_of(model)) is None for model in self._models)

    def score(
        self,
        rows: list[dict],
        gists: list[list[int]],
        num_generations: int = 1,
        backward: Callable | None = None,
        null_backward: Callable | None = None,
        windows: int = 1,
        discount: float = 0.0,
        learned: int | None = None,
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
            learned (`int`, *optional*):
                Gists of each context, the first ones, for which `backward` is called, at most `num_generations`. `None` is
                all of them.

        Returns:
            `list[dict]`: The scored columns of each row, in nats, as listed in [`trl_gist.rewards`]. With `backward`,
            `exact` is left out where no context has several targets: it takes a pass over the vocabulary.
        """
        gists = [token_ids("A gist", gist) for gist in gists]
        documents = rows[::num_generations]
        hidden_D, teacher_D = self.read_targets(documents)
        if self.target_floor is not None and any("targets" in document for document in documents):
            documents, hidden_D, teacher_D = self.worth_asking(documents, hidden_D, teacher_D)
        null_D = self.score_gists(documents, [[]] * len(documents), 1, hidden_D, null_backward)
        asks_exact = backward is None or any("targets" in document for document in documents)
        learned = num_generations if learned is None else learned
        parts = []  # of each context the gists that are learned from, then the others
        for first, count, learn in ((0, learned, backward), (learned, num_generations - learned, None)):
            some = [gist for row, gist in enumerate(gists) if first <= row % num_generations < first + count]
            parts.append(iter(self.score_gists(documents, some, count, hidden_D, learn, asks_exact) if some else ()))
        gist_N = [next(parts[row % num_generations >= learned]) for row in range(len(gists))]
        later_N2 = self._later_gains(documents, gists, num_generations, hidden_D, null_D, windows, discount)
        columns = []
        for row, (logps_T, kl_T, *greedy) in enumerate(gist_N):
            index = row // num_generations
            null_logps_T, null_kl_T = null_D[index]
            targets = targets_of(documents[index])
            values = {
                "gist_log_prob": logps_T,
                "null_log_prob": null_logps_T,
                "teacher_log_prob": teacher_D[index],
                "teacher_kl": kl_T,
                "null_teacher_kl": null_kl_T,
            }
            values = {name: target_means(values_T, targets) for name, values_T in values.items()}
            means = {name: values_K.mean().item() for name, values_K in values.items()}
            if greedy:
                values["exact"] = target_means(*greedy, targets) == 1
            columns.append(
                {
                    "gist_ids": gists[row],
                    "gist_length": len(gists[row]),
                    **_with_gains(means),
                    "token_log_prob_gains": (logps_T - null_logps_T).tolist(),
                    "token_kl_gains": (null_kl_T - kl_T).tolist(),
                    "later_log_prob_gain": later_N2[row, 0].item(),
                    "later_kl_gain": later_N2[row, 1].item(),
                    "target_scores": [
                        {"kind": target["kind"]}
                        | _with_gains({name: values_K[place].item() for name, values_K in values.items()})
                        for place, target in enumerate(targets)
                    ],
                }
            )
            if "targets" in documents[index]:
                columns[-1]["targets"] = targets
        return columns

    def worth_asking(
        self, documents: list[dict], hidden_D: list[torch.Tensor], teacher_D: list[torch.Tensor]
    ) -> Iterator[tuple]:
        """
        Keeps of each context the targets that T predicts better for having read it, by `target_floor`, and always the
        best one.

        Args:
            documents (`list[dict]`):
                Contexts with their targets.
            hidden_D, teacher_D (`list[torch.Tensor]`):
                Of [`read_targets`].

        Returns:
            The same three, without what belongs to the other targets.
        """
        kept_D = []
        readings_D = self.context_readings(documents, teacher_D)
        for document, hidden_TH, logps_T, (read_K, alone_K) in zip(
            documents, hidden_D, teacher_D, readings_D, strict=True
        ):
            targets = targets_of(document)
            gain_K = read_K - alone_K
            # What is no number is kept, for the check of the loss to find
            keep_K = (~(gain_K < min(self.target_floor, gain_K.max().item()))).tolist()
            keep_T = [keep for keep, size in zip(keep_K, target_sizes(targets), strict=True) for _ in range(size)]
            if not all(keep_K):
                document = {**document, "targets": [t for t, keep in zip(targets, keep_K, strict=True) if keep]}
                hidden_TH, logps_T = hidden_TH[keep_T], logps_T[keep_T]
            kept_D.append((document, hidden_TH, logps_T))
        return zip(*kept_D, strict=True)

    def context_readings(
        self, documents: list[dict], teacher_D: list[torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        What a context is worth to T: its log-prob of each target after the context, and after the cue alone.

        Args:
            documents (`list[dict]`):
                Contexts with their targets.
            teacher_D (`list[torch.Tensor]`):
                Of [`teacher_readings`].

        Returns:
            `list[tuple[torch.Tensor, torch.Tensor]]`: For each context both, of shape `(targets,)`, means over the tokens
            of each target in nats; float64, on the CPU.
        """
        # What stands between X and the target is no part of the context; a cue may begin before it, or after
        alone_D = self._log_probs_after(documents, lambda target: max(target["after_ids"], target["cue_ids"], key=len))
        return [
            (target_means(logps_T, targets_of(document)).cpu(), alone_K)
            for document, logps_T, alone_K in zip(documents, teacher_D, alone_D, strict=True)
        ]

    def _later_gains(self, documents, gists_N, num_generations, hidden_D, null_D, windows, discount):
        """What each gist would gain, as log-prob and as KL, were it read as it is in the later windows of its walk; a sum
        over them, discounted."""
        gains_N2 = torch.zeros(len(gists_N), 2, dtype=torch.float64)
        for lag in range(1, windows if discount > 0 else 1):
            own = [index for index in range(len(documents)) if index % windows + lag < windows]
            gist_rows = [index * num_generations + gist for index in own for gist in range(num_generations)]
            read = self.score_gists(
                [documents[index + lag] for index in own],
                [gists_N[row] for row in gist_rows],
                num_generations,
                [hidden_D[index + lag] for index in own],
            )
            for row, (logps_T, kl_T) in zip(gist_rows, read, strict=True):
                null_logps_T, null_kl_T = null_D[row // num_generations + lag]
                targets = targets_of(documents[row // num_generations + lag])
                gains = (target_means(gain_T, targets).mean() for gain_T in (logps_T - null_logps_T, null_kl_T - kl_T))
                gains_N2[row] += discount**lag * torch.stack([*gains])
        return gains_N2

    def read_contexts(self, documents: list[dict]) -> tuple[list[torch.Tensor], list[float]]:
        """What [`teacher_hidden`] returns, and T's mean log-prob of each context's targets, in nats per token."""
        hidden_D, logps_D = self.read_targets(documents)
        readings = zip(documents, logps_D, strict=True)
        return hidden_D, [target_means(logps_T, targets_of(row)).mean().item() for row, logps_T in readings]

    def read_targets(self, documents: list[dict]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What [`teacher_hidden`] returns, and [`teacher_readings`] of it."""
        hidden_D = self.teacher_hidden(documents)
        return hidden_D, self.teacher_readings(documents, hidden_D)

    def teacher_hidden(self, documents: list[dict]) -> list[torch.Tensor]:
        """
        The teacher on each whole context, and on a target's cue after it where that is not its end: its hidden states at
        the targets, of shape `(target positions, hidden)`, from which its distribution is recomputed where it is needed.
        The windows of a walk are read in one row.
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
            return [next(new) if hidden_TH is None else hidden_TH.to(device) for hidden_TH in cached_D]

    def _read_walks(self, walks):
        """The teacher's hidden states at each window's targets; a context by itself is a walk of one window."""
        prompts, targets = [], []
        for walk in walks:
            seen = seen_ids(walk[0])
            if len(walk) > 1 and "targets" not in walk[0]:
                # From the first window's target on to the end of the last one's
                prompts.append(self.prompts.plain(seen))
                targets.append([([], [*seen_ids(walk[-1])[len(seen) :], *walk[-1]["target_ids"]])])
                continue
            prompts.append(self.prompts.plain(seen_ids(walk[-1])))
            targets.append(
                [
                    (target["after_ids"], target["target_ids"], len(self.prompts.bos) + len(seen_ids(row)))
                    for row in walk
                    for target in targets_of(row)
                ]
            )
        hidden_W = [[] for _ in walks]
        for rows in _split(self._rows(prompts, targets), self.batch_size):
            read = self.teacher.hidden_states(TargetRows.of_several(*_columns(rows), 1, self._device()))
            for (walk, _, own), hidden_TH in zip(rows, read, strict=True):
                hidden_W[walk].append(hidden_TH[: sum(len(target) for _, target, *_ in own)])
        hidden_D = []
        for walk, hidden_TH in zip(walks, map(torch.cat, hidden_W), strict=True):
            if len(walk) > 1 and "targets" in walk[0]:
                hidden_D += hidden_TH.split([sum(target_sizes(targets_of(row))) for row in walk])
            elif len(walk) > 1:
                starts = (len(seen_ids(row)) - len(seen_ids(walk[0])) for row in walk)
                hidden_D += [
                    hidden_TH[start:][: len(row["target_ids"])].clone()
                    for row, start in zip(walk, starts, strict=True)
                ]
            else:
                hidden_D.append(hidden_TH)
        return hidden_D

    def teacher_readings(self, documents: list[dict], teacher_hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """T's log-prob of every target token on the whole context, in nats, from what [`teacher_hidden`] returned: for
        each context of shape `(target tokens,)`, in float64."""
        logps_D = []
        with torch.no_grad(), self.autocast():
            for row, hidden_TH in zip(documents, teacher_hidden, strict=True):
                ids = [token for target in targets_of(row) for token in token_ids("A target", target["target_ids"])]
                target_T = torch.tensor(ids, device=hidden_TH.device)
                logps_T = self.teacher.log_probs(hidden_TH).gather(-1, target_T.unsqueeze(-1)).squeeze(-1)
                logps_D.append(logps_T.double())
        return logps_D

    def read(
        self, model: nn.Module, rows: list[dict], prompts: list[list[int]], teacher_hidden: list[torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
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
            `list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]`: For each row the log-prob of every target token and
            the KL from the teacher on the whole context at it, in nats, and 1.0 where it is the model's likeliest;
            float64, on the CPU.
        """
        readings = []
        with torch.no_grad(), self.autocast():
            for start in range(0, len(rows), self.batch_size):
                some = slice(start, start + self.batch_size)
                targets = [row["target_ids"] for row in rows[some]]
                batch = TargetRows.build(prompts[some], targets, 1, self._device())
                hidden_UH = torch.cat(teacher_hidden[some])
                logps_NT, kl_NT, _, greedy_NT = model(batch, hidden_UH, self.teacher, greedy=True)
                readings += _by_row((logps_NT, kl_NT, greedy_NT), batch.mask_NT)
        return readings

    def generator_log_probs(self, rows: list[dict], gists: list[list[int]]) -> list[float]:
        """Mean log-prob of each row's targets under the generator with the given gist."""
        prompts = [self.prompts.generator_before_cue(gist) for gist in gists]
        targets = [self._cued(targets_of(row)) for row in rows]
        return [logps_K.mean().item() for logps_K in self._target_log_probs(self.generator, prompts, targets)]

    def teacher_log_probs(self, rows: list[dict], prefixes: list[list[int]]) -> list[float]:
        """Mean log-prob of each row's one target under the frozen teacher that saw only the given prefix."""
        prompts, targets = [self.prompts.plain(ids) for ids in prefixes], [[([], row["target_ids"])] for row in rows]
        return [logps_K.item() for logps_K in self._target_log_probs(self.teacher, prompts, targets)]

    def cue_log_probs(self, rows: list[dict]) -> list[float]:
        """Mean log-prob of each row's targets under the frozen teacher that saw only their cues."""
        return [logps_K.mean().item() for logps_K in self._log_probs_after(rows, lambda target: target["cue_ids"])]

    def _log_probs_after(self, rows, ids_before):
        """T's mean log-prob of each target after nothing but certain tokens."""
        targets = [
            [(self.prompts.plain(ids_before(target)), target["target_ids"]) for target in targets_of(row)]
            for row in rows
        ]
        return self._target_log_probs(self.teacher, [[]] * len(rows), targets)

    def _cued(self, targets):
        """Targets after what G reads before each."""
        return [(self.prompts.generator_cue(target["cue_ids"]), target["target_ids"]) for target in targets]

    def _sharing_a_row(self, targets, prompt_tokens=0):
        """Which of a prompt's targets, cue and tokens of each, are read in one row: as many as it takes, or each by itself
        where a model cannot."""
        if len(targets) > 1 and not self.shares_rows:
            return runs_within([1] * len(targets), 1)
        most = None if self.row_tokens is None else max(self.row_tokens, prompt_tokens)
        return runs_within([len(cue) + len(target) for cue, target, *_ in targets], most)

    def _rows(self, prompts, targets):
        """Each prompt with the targets that share its row, and its number."""
        return [
            (index, prompt, all_own[own])
            for index, (prompt, all_own) in enumerate(zip(prompts, targets, strict=True))
            for own in self._sharing_a_row(all_own, len(prompt))
        ]

    def score_gists(
        self,
        documents: list[dict],
        gists_N: list[list[int]],
        num_generations: int,
        hidden_D: list[torch.Tensor],
        backward: Callable | None = None,
        greedy: bool = False,
    ) -> list[tuple[torch.Tensor, ...]]:
        """
        Scores gists of contexts that the teacher has read.

        Args:
            documents (`list[dict]`), hidden_D (`list[torch.Tensor]`):
                The contexts, and of [`read_targets`] or [`worth_asking`] the teacher's hidden states at their targets.
            gists_N (`list[list[int]]`):
                Gists, those of a context adjacent.
            num_generations (`int`):
                Gists of each context.
            backward (`Callable`, *optional*):
                As in [`score`].
            greedy (`bool`, *optional*, defaults to `False`):
                Whether the third is wanted.

        Returns:
            `list[tuple[torch.Tensor, ...]]`: For each gist the log-prob of each token of its context's targets, the KL
            from the teacher at it, in nats, and 1.0 where it is G's likeliest; float64, on the CPU.
        """
        rows = []  # of each gist, with what it is scored on there
        for index, (document, hidden_TH) in enumerate(zip(documents, hidden_D, strict=True)):
            targets = targets_of(document)
            groups = [targets[own] for own in self._sharing_a_row(self._cued(targets))]
            parts = hidden_TH.split([sum(target_sizes(own)) for own in groups])
            for own, part_TH in zip(groups, parts, strict=True):
                rows += [
                    _Row(index * num_generations + gist, document, own, part_TH) for gist in range(num_generations)
                ]
        scored_N = [[] for _ in gists_N]
        for start, stop, together in gists_together(len(rows), num_generations, self.batch_size):
            chunk = rows[start:stop]
            prompts = [self.prompts.generator_before_cue(gists_N[row.gist]) for row in chunk]
            targets = [self._cued(row.targets) for row in chunk]
            batch = TargetRows.of_several(prompts, targets, together, self._device())
            hidden_UH = torch.cat([row.hidden_TH for row in chunk[::together]])
            # Where nothing is differentiated, the loss that costs nothing
            loss = "forward_kl" if backward is None else self.loss
            with torch.set_grad_enabled(backward is not None), self.autocast():
                logps_NT, kl_NT, loss_NT, *exact = self.generator(batch, hidden_UH, self.teacher, loss, greedy)
            if backward is not None:
                weights_NT = _target_weights(chunk, loss_NT, self.mean)
                weighted_NT = loss_NT if weights_NT is None else loss_NT * weights_NT
                backward(weighted_NT, [row.document for row in chunk])
            scores = _by_row((logps_NT.detach(), kl_NT.detach(), *exact), batch.mask_NT)
            for row, score in zip(chunk, scores, strict=True):
                scored_N[row.gist].append(score)
        return [tuple(map(torch.cat, zip(*of_gist, strict=True))) for of_gist in scored_N]

    def _target_log_probs(self, scorer, prompts, targets):
        """For each prompt the mean log-probs of its targets, in float64 on the CPU."""
        means_N = [[] for _ in prompts]
        with torch.no_grad(), self.autocast():
            for rows in _split(self._rows(prompts, targets), self.batch_size):
                batch = TargetRows.of_several(*_columns(rows), 1, self._device())
                for (index, _, own), (logps_T,) in zip(rows, _by_row(scorer(batch)[:1], batch.mask_NT), strict=True):
                    means_N[index] += [logps.mean() for logps in logps_T.split([len(target) for _, target in own])]
        return [torch.stack(means) for means in means_N]

    def _device(self):
        return self.teacher.model.get_input_embeddings().weight.device


def row_tokens_of_run(processes: int) -> int | None:
    """
    [`GistScorer`]'s `row_tokens` in training. Ranks wait for each other in every forward, so that on several of them a
    context of any number of targets is one row.
    """
    return ROW_TOKENS if processes == 1 else None


def runs_within(sizes: list[int], most: int | None) -> list[slice]:
    """Neighbours of so many tokens each that have no more than `most` together; one alone may have more."""
    starts, tokens = [0], 0
    for place, size in enumerate(sizes):
        if most is not None and 0 < tokens > most - size:
            starts.append(place)
            tokens = 0
        tokens += size
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(sizes)], strict=True)]


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


def _by_row(scores, mask_NT):
    """Each row's scores of its target tokens, in float64 on the CPU."""
    scores_NCT = torch.stack(scores, dim=1).double().cpu()
    return [tuple(row_CT[:, mask_T]) for row_CT, mask_T in zip(scores_NCT, mask_NT.cpu(), strict=True)]


def _with_gains(scores):
    """The scores and, from them, what the gist bought."""
    return scores | {
        "log_prob_gain": scores["gist_log_prob"] - scores["null_log_prob"],
        "kl_gain": scores["null_teacher_kl"] - scores["teacher_kl"],
    }


def _columns(rows):
    """Prompts, and their targets, of numbered rows."""
    return [prompt for _, prompt, _ in rows], [targets for _, _, targets in rows]


def _target_weights(rows, loss_NT, mean):
    """What makes the summed loss of a context of several targets a mean, so that it weighs as much as one token; `None`
    where each context has one target."""
    if all("targets" not in row.document for row in rows):
        return None
    weights_NT = torch.zeros_like(loss_NT)
    for place, row in enumerate(rows):
        sizes, targets = torch.tensor(target_sizes(row.targets), device=loss_NT.device), targets_of(row.document)
        if mean == "tokens":
            weights_NT[place, : sizes.sum()] = 1 / sum(target_sizes(targets))
        else:
            each = 1 / (len(targets) * sizes.to(loss_NT.dtype))
            weights_NT[place, : sizes.sum()] = each.repeat_interleave(sizes)
    return weights_NT


def target_sizes(targets: list[dict]) -> list[int]:
    """Tokens of each target."""
    return [len(target["target_ids"]) for target in targets]


def target_means(values_T: torch.Tensor, targets: list[dict]) -> torch.Tensor:
    """Means over each target, of shape `(targets,)`, of values at the tokens of a context's targets in their order."""
    return torch.stack([values.mean() for values in values_T.split(target_sizes(targets))])
