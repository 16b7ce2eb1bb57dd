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
    tf_idf      the tokens that are frequent in this context and rare in others, each once, in order
    surprisal   the tokens that the teacher expected least, in order (self-information, Li et al. 2023,
                https://huggingface.co/papers/2310.06201)
    mixed       keywords by tf-idf, then the tail; the gists of a group range from all tail to half keywords, so that
                there is something to choose from
    facts       names, numbers and dates with commas between them: the first ones, and in the other gists of a group some
                drawn at random, in their order
    surprising_facts
                of these facts the tokens that the teacher expects least after the few before them, in order, without
                commas; in the other gists of a group, of three facts in four, drawn at random
    passages    the same, but by turns keywords, the context's beginning, or the passage that has most of L's rare
    tokens:
                what is worth as much as the tail on average, and much more or less than it in one context
"""

import random
from collections.abc import Iterable
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from ..data.targets import fact_list
from ..prompts import stands_for
from ..scoring.extraction import (
    BESIDE_TAIL,
    TokenRarity,
    fact_surprisals,
    keywords_and_tail,
    most_surprising,
    passage_and_tail,
    surprisals,
)
from ..scoring.targets import TargetScorer


_SHARES = {"tail": (0, 0), "mixed": (0, 0.5), "passages": (0, 0.5)}  # of what is not tail, in the gists of a group


class ExtractiveSummarizer:
    """
    Writes gists by one of the rules above.

    Args:
        rule (`str`):
            The rule.
        contexts (`Iterable[list[int]]`):
            Contexts from which the rules by tf-idf learn how rare a token is; the others read none.
        teacher ([`TargetScorer`], *optional*):
            Whose surprise counts, for `"surprisal"` and `"surprising_facts"`.
        unread_ids (`frozenset[int]`, *optional*):
            Tokens that are left out of gists, as special tokens: G never reads them, and S would learn to write them.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Of the contexts, for the rules that list facts.
    """

    def __init__(
        self,
        rule: str,
        contexts: Iterable[list[int]] = (),
        teacher: TargetScorer | None = None,
        unread_ids: frozenset[int] = frozenset(),
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.rule = rule
        self.teacher = teacher
        self.unread_ids = unread_ids
        self.tokenizer = tokenizer
        self._scored = [], []
        self.rarity = TokenRarity(contexts if rule in ("tf_idf", "mixed", "passages") else ())

    def gists(self, row: dict, lengths_G: list[int]) -> list[list[int]]:
        """
        The gists of one context.

        Args:
            row (`dict`):
                A window with `context_ids` and `last_k_ids`.
            lengths_G (`list[int]`):
                Longest gist of each slot, in tokens.

        Returns:
            `list[list[int]]`: A gist for each slot, shorter only where the context is.
        """
        shares_G = torch.linspace(*_SHARES.get(self.rule, (1, 1)), len(lengths_G)).tolist()
        # By the context too, or one kind would always have the largest share
        first = sum(stands_for(row))
        if self.rule in ("facts", "surprising_facts"):
            ids = [token for token in stands_for(row) if token not in self.unread_ids]
            draws = [None, *(random.Random(first + slot) for slot in range(1, len(lengths_G)))]
            if self.rule == "facts":
                return [fact_list(self.tokenizer, ids, *each) for each in zip(lengths_G, draws, strict=True)]
            (facts,) = fact_surprisals(self.teacher.model, self.tokenizer, [ids], batch_size=len(ids) + 1)
            some = [facts if draw is None else draw.sample(facts, -(-3 * len(facts) // 4)) for draw in draws]
            return [[ids[place] for place in most_surprising(*each)] for each in zip(some, lengths_G, strict=True)]
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
            kept = keywords_and_tail(context_ids, scores(), length, share)
        elif kind == "beginning":
            kept = passage_and_tail([0.0] * len(context_ids), length, share)
        else:
            wanted = set(row["last_k_ids"])
            in_L_T = [score * (token in wanted) for token, score in zip(context_ids, scores(), strict=True)]
            kept = passage_and_tail(in_L_T, length, share)
        return [context_ids[position] for position in kept]

    def _scores(self, context_ids):
        """How much each token of the context is worth keeping; the gists of a context ask one after the other."""
        if self._scored[0] != context_ids:
            if self.rule == "surprisal":
                (scores_T,) = surprisals(self.teacher.model, [context_ids])
            else:
                scores_T = self.rarity.tf_idf(context_ids)
            self._scored = context_ids, scores_T
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
