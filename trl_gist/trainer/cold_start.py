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
Gists cut out of the context by a rule: what a summarizer imitates before it has a signal of its own.

    tail        the tokens just before L, verbatim: the rival to start from and to beat
    mixed       keywords by tf-idf (tokens that are frequent in this context and rare in others, each once, in order),
                then the tail; the gists of a group range from all tail to half keywords, so that there is something to
                choose from
    passages    the same, but by turns keywords, the context's beginning, or the passage that has most of L's rare
                tokens: what is worth as much as the tail on average, and much more or less than it in one context
    facts       names, numbers and dates with commas between them: the first ones, and in the other gists of a group
                some drawn at random, in their order
    surprising_facts
                of these facts the tokens that the teacher expects least after the few before them, without commas, and
                rare words where the facts run out: one gist a context, not a group's
    recurring_facts
                the facts that the context says most often, with semicolons between them, and where they leave room
                other words that it says often; one gist a context too. On walks an earlier gist is a part of the context
    answers     the sentences that hold what the context's targets ask for, in their order: one gist a context too
"""

import random
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from ..prompts import seen_ids, stands_for
from ..scoring.extraction import (
    BESIDE_TAIL,
    TokenRarity,
    answering_sentences,
    fact_list,
    keywords_and_tail,
    passage_and_tail,
    recurring_facts,
    surprising_facts,
)


# Rules that write one gist a context, which all slots of a group have
ONE_GIST = ("tail", "surprising_facts", "recurring_facts", "answers")
# Rules that take from an earlier gist only what the text said
FROM_THE_TEXT = ("recurring_facts", "answers")
_SHARES = {"tail": (0, 0), "mixed": (0, 0.5), "passages": (0, 0.5)}  # of what is not tail, in the gists of a group


class ExtractiveSummarizer:
    """
    Writes gists by one of the rules above.

    Args:
        rule (`str`):
            The rule.
        contexts (`Iterable[list[int]]`):
            Contexts from which the rules by tf-idf learn how rare a token is; the others read none.
        unread_ids (`frozenset[int]`, *optional*):
            Tokens that are left out of gists, as special tokens: G never reads them, and S would learn to write them.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Of the contexts, for all rules but the tail.
        teacher (`torch.nn.Module`, *optional*):
            Whose surprise counts, for `"surprising_facts"`.
    """

    def __init__(
        self,
        rule: str,
        contexts: Iterable[list[int]] = (),
        unread_ids: frozenset[int] = frozenset(),
        tokenizer: PreTrainedTokenizerBase | None = None,
        teacher: nn.Module | None = None,
    ):
        self.rule = rule
        self.teacher = teacher
        self.unread_ids = unread_ids
        self.tokenizer = tokenizer
        self._scored = [], []
        self.rarity = TokenRarity(contexts if rule in ("mixed", "passages", "surprising_facts") else ())

    def gists(self, row: dict, lengths_G: list[int]) -> list[list[int]]:
        """
        The gists of one context.

        Args:
            row (`dict`):
                A window with `context_ids` and `last_k_ids`, and for `"answers"` its `targets`; of a walk also
                `seen_ids`, all text so far, and `later_targets`, which its later windows ask for.
            lengths_G (`list[int]`):
                Longest gist of each slot, in tokens; the same for all of them where the rule writes one gist.

        Returns:
            `list[list[int]]`: A gist for each slot, shorter only where the context is.
        """
        # By the context too, or one kind would always have the largest share
        first = sum(stands_for(row))
        if self.rule in ("facts", "surprising_facts", "recurring_facts", "answers"):
            ids = [token for token in stands_for(row) if token not in self.unread_ids]
            if self.rule == "answers":
                asked = [*row["targets"], *row.get("later_targets", ())]
                return [answering_sentences(self.tokenizer, ids, asked, lengths_G[0], seen_ids(row))] * len(lengths_G)
            if self.rule == "recurring_facts":
                return [recurring_facts(self.tokenizer, ids, lengths_G[0], seen_ids(row))] * len(lengths_G)
            if self.rule == "surprising_facts":
                model, facts = self.teacher, len(ids) + 1  # no more than tokens: one forward
                (gist,) = surprising_facts(model, self.tokenizer, [ids], lengths_G[:1], self.rarity, batch_size=facts)
                return [gist] * len(lengths_G)
            draws = [None, *(random.Random(first + slot) for slot in range(1, len(lengths_G)))]
            return [fact_list(self.tokenizer, ids, *each) for each in zip(lengths_G, draws, strict=True)]
        shares_G = torch.linspace(*_SHARES[self.rule], len(lengths_G)).tolist()
        kinds = BESIDE_TAIL if self.rule == "passages" else ("keywords",)
        return [
            self.gist(row, length, kinds[(first + slot) % len(kinds)], share)
            for slot, (length, share) in enumerate(zip(lengths_G, shares_G, strict=True))
        ]

    def gist(self, row: dict, length: int, kind: str, share: float) -> list[int]:
        """
        One gist: what stands beside the tail, then the tail.

        Args:
            row (`dict`):
                A window with `context_ids` and `last_k_ids`.
            length (`int`):
                Its tokens; fewer only where the context has no more.
            kind (`str`):
                `"keywords"`, `"beginning"` or `"passage"`.
            share (`float`):
                Its share of the gist.
        """
        text_ids = stands_for(row)
        readable = [position for position, token in enumerate(text_ids) if token not in self.unread_ids]
        context_ids = [text_ids[position] for position in readable]

        def scores():  # of what is read with all the text before it
            scores_T = self._scores(text_ids)
            return [scores_T[position] for position in readable]

        if share == 0 or not context_ids:
            kept = range(max(0, len(context_ids) - length), len(context_ids))
        elif kind == "keywords":
            kept = keywords_and_tail(self.tokenizer, context_ids, scores(), length, share)
        elif kind == "beginning":
            kept = passage_and_tail(self.tokenizer, context_ids, [0.0] * len(context_ids), length, share)
        else:
            wanted = set(row["last_k_ids"])
            in_L_T = [score * (token in wanted) for token, score in zip(context_ids, scores(), strict=True)]
            kept = passage_and_tail(self.tokenizer, context_ids, in_L_T, length, share)
        return [context_ids[position] for position in kept]

    def _scores(self, context_ids):
        """How much each token of the context is worth keeping; the gists of a context ask one after the other."""
        if self._scored[0] != context_ids:
            self._scored = context_ids, self.rarity.tf_idf(context_ids)
        return self._scored[1]


def first_steps_times(factor: float, steps: int, scheduler: LambdaLR) -> LambdaLR:
    """A fresh schedule with the learning rate of its first steps multiplied."""
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"`cold_start_learning_rate` needs a schedule that is a function of the step, got {type(scheduler).__name__}. "
            "Pass another one in `optimizers`, or leave it out."
        )

    def times(schedule, step):
        return schedule(step) * (factor if step < steps else 1.0)

    return LambdaLR(scheduler.optimizer, [partial(times, schedule) for schedule in scheduler.lr_lambdas])
