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
What every reader makes of held-out targets, in one pass: batch by batch, from a stream as from a list.

The readers of a window, each of whom predicts the same target Y:

    teacher         the frozen T on all of X
    gist            G on the gist and the last k tokens L
    null            G on L and an empty gist
    shuffled        G on L and another document's gist
    random          G on L and as many random tokens
    full            G on all of X in the place of L, and no gist: what G lost, or gained, as a reader of plain text
    last_k          T on L alone
    tail            T on the last k + |Z| tokens: as many tokens, verbatim
    generator_only  another G, trained as long on empty gists, on L

A gist is written once for each number of last tokens and for each budget asked for. Of a window with several targets
each is a row of its own: its cue is in the place of L, and all of them are read with the one gist of the context.
"""

import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ...common.arguments import whole_number, whole_numbers
from ...common.tokens import characters_of, decode
from ...inference.compactor import GistCompactor
from ...models.lm_head import check_logits
from ...prompts import GistPrompts, before_last_k, one_row_each, seen_ids, stands_for, targets_of, through_last_k
from ...scoring.controls import tail_ids
from ...scoring.gist_scorer import GistScorer, target_sizes
from ...scoring.targets import TargetScorer


CONTROLS = ("null", "shuffled", "random", "full", "last_k", "tail", "generator_only")
READERS = ("teacher", "gist", *CONTROLS)
_LENDERS = 64


@dataclass
class PairReadings:
    """
    Writes the gists of held-out windows and lets every reader predict their targets.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        teacher ([`~transformers.PreTrainedModel`]):
            The frozen teacher; see [`~evaluation.load_teacher`].
        batch_size (`int`, *optional*, defaults to `8`):
            Windows in one forward.
        last_k (`list[int]`, *optional*):
            Numbers of last tokens L to measure with. `None` takes each window's own.
        budgets (`list[int]`, *optional*):
            Most tokens of a gist to measure with. `None` takes the pair's own.
        generator_only ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            A generator trained without gists.
        target_floor (`float`, *optional*):
            What T must gain from the context over the cue alone for one of several targets to be read, in nats per
            token. The best of a window always is. `None` asks nothing.

    Raises:
        ValueError: if a model's logits are capped or scaled in a way that scoring does not know.
    """

    compactor: GistCompactor
    teacher: PreTrainedModel
    batch_size: int = 8
    last_k: list[int] | None = None
    budgets: list[int] | None = None
    generator_only: PreTrainedModel | PeftModel | None = None
    target_floor: float | None = None
    _lenders: dict = field(default_factory=dict, repr=False)
    _read: dict = field(default_factory=dict, repr=False)  # of one batch, by who reads what

    def __post_init__(self):
        self.batch_size = whole_number("batch_size", self.batch_size)
        for name in ("last_k", "budgets"):
            if getattr(self, name) is not None:
                setattr(self, name, whole_numbers(name, getattr(self, name)))
        models = [self.compactor.generator, self.teacher]
        for model in models if self.generator_only is None else [*models, self.generator_only]:
            check_logits(model)
        self.alone = None if self.generator_only is None else TargetScorer(self.generator_only)
        self.scorer = GistScorer(
            TargetScorer(self.compactor.generator),
            TargetScorer(self.teacher),
            self.compactor.prompts,
            self.batch_size,
            teacher_cache=_MemoryCache(),
            target_floor=self.target_floor,
        )

    @property
    def settings(self) -> list[tuple[int | None, int | None]]:
        """The `(last_k, budget)` that every window is measured with."""
        return [(last_k, budget) for last_k in self.last_k or [None] for budget in self.budgets or [None]]

    def read(self, windows: Iterable[dict], read_before: Iterable[dict] = ()) -> Iterator[list[dict]]:
        """
        Args:
            windows (`Iterable[dict]`):
                Rows of [`~data.windows.prepare_windows`].
            read_before (`Iterable[dict]`, *optional*):
                Rows of an earlier pass that this one goes on from; their gists are lent to the shuffled control.

        Yields:
            `list[dict]`: A batch of windows at a time, a row for each window and setting: the window's columns, its
            gist, the sizes of all that is read, and under `log_probs` and `kls` what each reader makes of every token
            of the target, in nats. `shuffled` is missing where no other document came before. Of a window with a column
            `targets` a row for each target and setting, as of [`one_row_each`], and under `exacts` whether every token of
            it is the reader's likeliest; with `target_floor`, under `window_dropped` how many of each kind it left out.

        Raises:
            ValueError: if windows have `targets`, and the gist cannot be the same for all of them.
        """
        self._lenders.clear()
        read_before = list(read_before)
        for start, _ in window_blocks(read_before, len(self.settings)):
            for row in read_before[start : start + len(self.settings)]:
                self._lend([row], (row["setting"][0], row["setting"][1]))
        windows = iter(windows)
        while batch := list(islice(windows, self.batch_size)):
            yield self._read_batch(batch)

    def _read_batch(self, windows):
        self.scorer.teacher_cache.clear()
        self._read.clear()
        by_setting = [self._read_setting(windows, *setting) for setting in self.settings]
        # One window after the other, and of a window one target after the other
        return [
            row
            for by_context in zip(*by_setting, strict=True)
            for of_target in zip(*by_context, strict=True)
            for row in of_target
        ]

    def _read_setting(self, windows, last_k, budget):
        contexts = [self._with_last_k(window, last_k) for window in windows]
        gists = self.compactor.compress_batch(
            [row["context_ids"] for row in contexts],
            budget,
            False,
            self.batch_size,
            # Of several targets each has a cue of its own, and the gist stands for all of the context
            [[] if "targets" in row else row["last_k_ids"] for row in contexts],
        )
        by_context, teacher_hidden = self._rows(contexts)
        rows = [row for of_context in by_context for row in of_context]
        gists = [gist for of_context, gist in zip(by_context, gists, strict=True) for _ in of_context]
        for row, gist in zip(rows, gists, strict=True):
            row |= {"setting": [last_k, budget], "last_k": len(row["last_k_ids"]), "budget": budget}
            row |= {"gist_ids": gist.token_ids, "gist": gist.text, "summarizer_log_prob": gist.log_prob}
            row |= self._sizes(row)
            row |= self._texts(row)
        self._lend([of_context[0] for of_context in by_context], (last_k, budget))
        for row, logps_T in zip(rows, self.scorer.teacher_readings(rows, teacher_hidden), strict=True):
            row["log_probs"] = {"teacher": _rounded(logps_T)}
            row["kls"] = {"teacher": [0.0] * len(logps_T)}
        for row, hidden_TH in zip(rows, teacher_hidden, strict=True):
            if "window_targets" in row:
                row["exacts"] = {"teacher": self._teacher_is_exact(row, hidden_TH)}
        for reader, (model, prompts) in self._prompts(rows, (last_k, budget)).items():
            for row, reading in zip(rows, self._read_once(model, rows, prompts, teacher_hidden), strict=True):
                if reading is not None:
                    row["log_probs"][reader], row["kls"][reader], exact = reading
                    if "window_targets" in row:
                        row["exacts"][reader] = exact
        return by_context

    def _rows(self, contexts):
        """A context's rows, one for each target that is worth asking, and the teacher's hidden states at each of them."""
        hidden_D = self.scorer.teacher_hidden(contexts)
        if "targets" not in contexts[0]:
            return [[row] for row in contexts], hidden_D
        if self.target_floor is not None:
            readings_D = self.scorer.teacher_readings(contexts, hidden_D)
            asked = contexts
            contexts, hidden_D, _ = self.scorer.worth_asking(asked, hidden_D, readings_D)
            contexts = [
                {**kept, "window_dropped": Counter(kinds_of(context)) - Counter(kinds_of(kept))}
                for context, kept in zip(asked, contexts, strict=True)
            ]
        hidden = [
            of_target
            for context, hidden_TH in zip(contexts, hidden_D, strict=True)
            for of_target in hidden_TH.split(target_sizes(context["targets"]))
        ]
        return [one_row_each(context) for context in contexts], hidden

    def _teacher_is_exact(self, row, hidden_TH):
        with torch.no_grad():
            return self.scorer.teacher.log_probs(hidden_TH).argmax(-1).tolist() == list(row["target_ids"])

    def _read_once(self, model, rows, prompts, teacher_hidden):
        """Readings of a batch's prompts, `None` where there is none; what another setting asked is not read again."""
        keys = [None if ids is None else (id(model), row, *ids) for row, ids in enumerate(prompts)]
        new = [row for row, key in enumerate(keys) if key is not None and key not in self._read]
        of_new = ([column[row] for row in new] for column in (rows, prompts, teacher_hidden))
        for row, (logps_T, kl_T, greedy_T) in zip(new, self.scorer.read(model, *of_new), strict=True):
            self._read[keys[row]] = _rounded(logps_T), _rounded(kl_T), bool(greedy_T.all())
        return [self._read.get(key) for key in keys]

    def _with_last_k(self, window, last_k):
        row = {name: window[name] for name in ("document_id", "context_ids", "last_k_ids", "target_ids")}
        if "targets" in window:
            check_several_targets(self.compactor.prompts, last_k)
            return row | {"targets": window["targets"]}
        if last_k is None:
            return row
        if len(before_last_k(row["context_ids"], row["last_k_ids"])) == len(row["context_ids"]):
            raise ValueError(
                f"`last_k` ({last_k}) cannot be varied: document {row['document_id']} brings last tokens of its own "
                "that are not the end of its context."
            )
        if not 0 < last_k < len(row["context_ids"]):
            raise ValueError(
                f"`last_k` ({last_k}) must be between 1 and the context's {len(row['context_ids'])} tokens."
            )
        ids = row["context_ids"]
        # So few tokens may hold no whole character
        return row | {"last_k_ids": characters_of(self.compactor.tokenizer).last(ids, last_k) or ids[-last_k:]}

    def _sizes(self, row):
        prompts, spelled = self.compactor.prompts, self.compactor.tokenizer.decode
        budget = self.compactor.pair.tail_length if row["budget"] is None else row["budget"]
        length, read = len(row["context_ids"]), len(prompts.generator(row["gist_ids"], row["last_k_ids"]))
        return {
            "gist_length": len(row["gist_ids"]),
            "gist_bytes": len(row["gist"].encode()),
            "context_length": length,
            "context_bytes": len(spelled(row["context_ids"]).encode()),
            "target_bytes": len(spelled(row["target_ids"]).encode()),
            "summarizer_tokens": len(prompts.summarizer(row["context_ids"], row["last_k_ids"], budget))
            + len(row["gist_ids"]),
            "generator_tokens": read,
            "teacher_tokens": len(prompts.teacher(seen_ids(row), row["last_k_ids"])),
            "gist_rate": len(row["gist_ids"]) / length,
            "total_rate": read / length,
        }

    def _texts(self, row):
        """What a person reads of a window."""
        texts = {"context": stands_for(row), "last_k_text": row["last_k_ids"], "target": row["target_ids"]}
        return {name: decode(self.compactor.tokenizer, ids, False) for name, ids in texts.items()}

    def _prompts(self, rows, setting):
        """Who reads what, but for the teacher on X: `{reader: (model, a prompt for each row or None)}`."""
        prompts, generator, teacher = self.compactor.prompts, self.scorer.generator, self.scorer.teacher

        def generated(gists):
            return [
                None if gist is None else prompts.generator(gist, row["last_k_ids"])
                for row, gist in zip(rows, gists, strict=True)
            ]

        empty = [[] for _ in rows]
        readers = {
            "gist": (generator, generated([row["gist_ids"] for row in rows])),
            "null": (generator, generated(empty)),
            "shuffled": (generator, generated([self._borrow(row, setting) for row in rows])),
            "random": (generator, generated([self._random_tokens(row) for row in rows])),
            "full": (
                generator,
                [prompts.generator([], through_last_k(seen_ids(row), row["last_k_ids"])) for row in rows],
            ),
            "last_k": (teacher, [prompts.plain(row["last_k_ids"]) for row in rows]),
            "tail": (teacher, [prompts.plain(tail_ids(row)) for row in rows]),
        }
        if self.generator_only is not None:
            readers["generator_only"] = (self.alone, generated(empty))
        return readers

    def _lend(self, rows, setting):
        lenders = self._lenders.setdefault(setting, deque(maxlen=_LENDERS))
        lenders.extend((row["document_id"], row["gist_ids"]) for row in rows)

    def _borrow(self, row, setting):
        """Another document's gist: of those at hand, the one that the context picks."""
        others = [gist for document, gist in self._lenders[setting] if document != row["document_id"]]
        return others[sum(row["context_ids"]) % len(others)] if others else None

    def _random_tokens(self, row):
        return random.Random(str(row["context_ids"])).choices(self._ordinary_tokens, k=row["gist_length"])

    @cached_property
    def _ordinary_tokens(self):
        special = self.compactor.prompts.special_ids
        return [token for token in range(len(self.compactor.tokenizer)) if token not in special]


def kinds_of(context: dict) -> list[str]:
    """The kind of each of its targets."""
    return [target["kind"] for target in context["targets"]]


def check_several_targets(prompts: GistPrompts, last_k: int | list[int] | None):
    """Raises `ValueError` where a context's targets cannot all be read with one gist, and each after its own cue."""
    if prompts.needs_last_k:
        raise ValueError(
            "The windows have several targets, which are read with one gist, and this pair's summarizer is shown the "
            "context by where its last tokens begin ('{before_last_k}', '{tail}' or '{last_k}' in its prompt), which is the "
            "cue of one target alone. Evaluate a pair that was trained with '{context}' in `summarizer_prompt`, or leave "
            "`--target_kinds` out."
        )
    check_no_last_k(last_k)


def check_no_last_k(last_k: int | list[int] | None):
    """Raises `ValueError` if last tokens are varied; what [`check_several_targets`] can tell without a pair."""
    if last_k is not None:
        raise ValueError(
            f"`last_k` ({last_k}) cannot be varied where windows have several targets, each with a cue of its own: leave "
            "`--last_k` out."
        )


def window_blocks(rows: list[dict], settings: int = 1) -> list[tuple[int, int]]:
    """
    Where each whole window's rows begin and end, of rows as [`PairReadings.read`] gives them.

    Args:
        rows (`list[dict]`):
            The rows; those of a last window may be cut off.
        settings (`int`, *optional*, defaults to `1`):
            Rows of a target.
    """
    blocks, start = [], 0
    while start < len(rows) and (end := start + settings * rows[start].get("window_targets", 1)) <= len(rows):
        blocks.append((start, end))
        start = end
    return blocks


def _rounded(values_T):
    return [round(value, 5) for value in values_T.tolist()]


class _MemoryCache(dict):
    """The teacher's hidden states of one batch, which all settings share: T reads X whatever L is."""

    def get(self, row):
        return super().get(self._key(row))

    def put(self, row, hidden_TH):
        self[self._key(row)] = hidden_TH

    def _key(self, row):
        read = [(tuple(target["after_ids"]), tuple(target["target_ids"])) for target in targets_of(row)]
        return tuple(seen_ids(row)), *read
