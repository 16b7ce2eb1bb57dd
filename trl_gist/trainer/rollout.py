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

"""Where the gists of a rollout come from. What they are worth, and what is done with them, is the trainer's."""

from collections.abc import Iterator

import torch
from datasets import IterableDataset

from ..prompts import gist_from_completion, stands_for
from ..scoring.extraction import IDF_CONTEXTS
from .cold_start import FROM_THE_TEXT, ONE_GIST, ExtractiveSummarizer


# Multiples of it, modulo 1, spread evenly over [0, 1) however many there are
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class GistRollout:
    """
    Writes the gists of a rollout: S samples them, in the cold start a rule cuts them out of the context, or where G
    alone is trained a compressor writes them. On walks it goes window after window, for all walks at once; in
    evaluation, which is greedy, the first gist of a window is carried on.

    It is what TRL (1.16) calls a `rollout_func`, but is handed rows: re-tokenising the text of their prompts could
    move the tokens of X.

    Args:
        trainer ([`GistTrainer`]):
            Samples from S, and says which of the sources is asked. Its prompts, windows and teacher are there already.
        compressor (*optional*):
            See [`GistTrainer`].

    Attributes:
        compressor (*optional*):
            The same, which may be set later: it may need the trainer's models.
        extractive_summarizer ([`~trainer.cold_start.ExtractiveSummarizer`], *optional*):
            The rule of the cold start, if there is one.
    """

    def __init__(self, trainer, compressor=None):
        self.trainer = trainer
        self.args = trainer.args
        self.compressor = compressor
        self.extractive_summarizer = None
        if self.args.cold_start_steps > 0 and not self.args.generator_only:
            self.extractive_summarizer = ExtractiveSummarizer(
                self.args.cold_start_gists,
                self.first_contexts(),
                self.unread_ids,
                trainer.processing_class,
                trainer.generator_trainer.scorer.teacher.model,
            )

    def first_contexts(self) -> Iterator[list[int]]:
        """Training contexts, from which rules learn how rare a token is."""
        dataset = self.trainer.train_dataset
        yield from (row["context_ids"] for row in dataset.take(IDF_CONTEXTS))
        if isinstance(dataset, IterableDataset):
            self.trainer.skipped_rows["train"].counts.clear()  # training reads them again

    def rows(self, inputs: list[dict]) -> list[dict]:
        """
        The rows of a rollout, one a gist: of walks, those of all windows.

        If the limit varies (`gist_length_range`) each has the most tokens that its gist may have: its `budget` column,
        or one drawn for all gists of a context.
        """
        trainer = self.trainer
        if trainer.walk is not None:
            inputs = trainer.walk.rows(inputs, trainer.gists_per_context)
        if self.args.gist_length_range is not None:
            self._set_budgets(inputs, *self.args.gist_length_range)
        return inputs

    def _set_budgets(self, rows, least, greatest):
        for index, row in enumerate(rows):
            if row.get("budget") is not None:  # a column of the dataset
                continue
            if not self.trainer.model.training:  # spread evenly, and the same in every evaluation
                fraction = _GOLDEN_RATIO * (len(self.trainer.eval_rows) + index) % 1
                row["budget"] = least + int(fraction * (greatest - least + 1))
            elif index % self.trainer.gists_per_context == 0:
                row["budget"] = torch.randint(least, greatest + 1, ()).item()
            else:
                row["budget"] = rows[index - 1]["budget"]

    def __call__(self, rows: list[dict]) -> dict[str, list]:
        """
        Writes a gist for each row; the rows of a walk's later windows get their `context_ids`, with the gist carried
        on.

        Args:
            rows (`list[dict]`):
                Of [`~GistRollout.rows`]. Those of a context are adjacent.

        Returns:
            `dict[str, list]`: `prompt_ids` and `completion_ids` of each row, and `logprobs`, which are `None` but for
            what vLLM samples.
        """
        walk, size, training = self.trainer.walk, self.trainer.gists_per_context, self.trainer.model.training
        if walk is None:
            prompt_ids = self.prompt_ids(rows)
            completion_ids, logprobs = self.write(rows, prompt_ids)
            return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}
        output = {name: [None] * len(rows) for name in ("prompt_ids", "completion_ids", "logprobs")}
        carried = [[] for _ in range(len(rows) // (walk.windows * size))]
        for index in range(walk.windows):
            where = [place for place, row in enumerate(rows) if row["window"] == index]
            of_window = [rows[place] for place in where]
            for place, row in enumerate(of_window):
                row["context_ids"] = walk.context_ids(row, carried[place // size])
            prompt_ids = self.prompt_ids(of_window)
            completions, logprobs = self.write(of_window, prompt_ids)
            for place, *values in zip(where, prompt_ids, completions, logprobs or [None] * len(where), strict=True):
                for name, value in zip(output, values, strict=True):
                    output[name][place] = value
            if self.goes_on_from_own and index < walk.windows - 1:
                # Ranks sample together, so all of it, though half is used
                own = _within_budgets(of_window, self.trainer.sample(prompt_ids)[0])
                completions = list(completions)  # those that are imitated stay
                for place in range(0, len(where), size):
                    if _draw(2):
                        completions[place : place + size] = own[place : place + size]
            chosen = [group * size + (_draw(size) if training else 0) for group in range(len(carried))]
            carried = [gist_from_completion(completions[place], self.trainer.eos_token_ids) for place in chosen]
        if output["logprobs"][0] is None:
            output["logprobs"] = None
        return output

    def prompt_ids(self, rows: list[dict]) -> list[list[int]]:
        """What S reads."""
        summarizer = self.trainer.prompts.summarizer
        return [summarizer(row["context_ids"], row["last_k_ids"], row.get("budget")) for row in rows]

    def write(self, rows: list[dict], prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        """A completion for each row of one window, and the log-probs of those that vLLM samples."""
        if self.args.generator_only:
            return self._by_compressor(rows), None
        if self.trainer.in_cold_start:
            completions = self._by_rule(rows)
            # vLLM's log-probs correct what it samples; `None` stands for no correction
            return completions, [[None] * len(ids) for ids in completions] if self.trainer.use_vllm else None
        completions, logprobs = self.trainer.sample(prompt_ids)
        if not self.trainer.model.training:  # asked all the same: ranks generate together
            completions = [self._as_in_use(row, ids) for row, ids in zip(rows, completions, strict=True)]
            logprobs = None if logprobs is None else [[None] * len(ids) for ids in completions]
        # What S would have written on is cut: up to there its gist is what it would be with a limit of its own
        return _within_budgets(rows, completions), None if logprobs is None else _within_budgets(rows, logprobs)

    def _by_rule(self, rows):
        size, completions = self.trainer.gists_per_context, []
        for row in rows[::size]:
            length = row.get("budget") or self._cold_start_length()
            gists = self.extractive_summarizer.gists(row, [length] * size)
            if self.args.distilled_gists is not None:
                # G learns from the first ones, and a slot has a kind of its own: so each is first in some contexts
                turn = sum(row["context_ids"]) % size
                gists = [*gists[turn:], *gists[:turn]]
            for gist in gists:
                # Where the limit cuts, S need not learn to stop
                completions.append(gist if len(gist) == self._limit(row) else self._ended(gist))
        return completions

    def _as_in_use(self, row, completion):
        """As the pair writes it: of a context that fits, [`GistPrompts.own_gist`]."""
        own = self.trainer.prompts.own_gist(stands_for(row), self._limit(row))
        if own is None:
            return completion
        return own if len(own) == self._limit(row) else self._ended(own)

    def _limit(self, row):
        return row.get("budget") or self.args.max_completion_length

    def _cold_start_length(self):
        if self.args.max_teacher_kl is None:
            return self.args.tail_length
        # The rate is S's to find: it needs the habit of stopping, and every length a chance
        return torch.randint(1, self.args.max_completion_length + 1, ()).item()

    def _by_compressor(self, rows):
        size, unread = self.trainer.gists_per_context, self.unread_ids
        rows = rows[::size]
        gists = [[] for _ in rows]
        if self.compressor is not None:
            budgets = [row.get("budget") or self.args.tail_length for row in rows]
            gists = self.compressor.compress([stands_for(row) for row in rows], budgets)
        gists = [[token for token in gist if token not in unread] for gist in gists]
        return [self._ended(gist) for gist in gists for _ in range(size)]

    @property
    def goes_on_from_own(self) -> bool:
        """Whether half of the contexts go on from a gist that S samples: it would never see one of its own that went wrong,
        and come back from it. Only under a rule that takes from it what the text says, or S would learn to invent."""
        imitates = self.trainer.in_cold_start and self.args.cold_start_gists in FROM_THE_TEXT
        return imitates and self.trainer.walk is not None

    @property
    def one_gist_a_context(self) -> bool:
        """Whether the gists of a group are one and the same, which then is read once."""
        return self.args.generator_only or (self.trainer.in_cold_start and self.args.cold_start_gists in ONE_GIST)

    @property
    def unread_ids(self) -> frozenset[int]:
        """What no gist cut out of a context may have: special tokens, which G never reads, and whatever ends a gist."""
        return self.trainer.prompts.special_ids | set(self.trainer.eos_token_ids)

    def _ended(self, gist):
        # The model may stop at several tokens, in an order of its own. TRL (1.16) has the tokenizer's always among
        # them
        return [*gist, self.trainer.processing_class.eos_token_id]


def _within_budgets(rows, values):
    return [of_row[: row.get("budget")] for row, of_row in zip(rows, values, strict=True)]


def _draw(count):
    return torch.randint(count, ()).item()
