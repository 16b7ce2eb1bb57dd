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
    passages    the same, but by turns keywords, the context's beginning, or the passage that has most of L's rare tokens:
                what is worth as much as the tail on average, and much more or less than it in one context
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn

from .lm_head import token_log_probs
from .prompts import before_last_k
from .roles import backbone_of, base_of
from .scoring import TargetScorer


IDF_CONTEXTS = 1000  # as many tell how rare a token is

_SHARES = {"tail": (0, 0), "mixed": (0, 0.5), "passages": (0, 0.5)}  # of what is not tail, in the gists of a group
BESIDE_TAIL = ("keywords", "beginning", "passage")


class TokenRarity:
    """
    How rare each token is among contexts.

    Args:
        contexts (`Iterable[list[int]]`):
            The contexts to learn it from.
    """

    def __init__(self, contexts: Iterable[list[int]]):
        self.document_frequencies, self.documents = Counter(), 0
        for context_ids in contexts:
            self.document_frequencies.update(set(context_ids))
            self.documents += 1

    def tf_idf(self, context_ids: list[int]) -> list[float]:
        """For each token of a context: how often it comes in it, times the log of how rare it is in others."""
        counts = Counter(context_ids)
        return [
            counts[token] * math.log((1 + self.documents) / (1 + self.document_frequencies[token]))
            for token in context_ids
        ]


def surprisals(
    model: nn.Module, sequences: list[list[int]], bos: tuple[int, ...] = (), batch_size: int = 8
) -> list[list[float]]:
    """
    −log p of each token after those before it, in nats.

    Args:
        model (`torch.nn.Module`):
            A causal language model, or one under an adapter.
        sequences (`list[list[int]]`):
            Token ids, none of them empty.
        bos (`tuple[int, ...]`, *optional*):
            What comes before each sequence. Without it there is nothing to expect a first token from, and its
            surprisal is 0.
        batch_size (`int`, *optional*, defaults to `8`):
            Sequences in one forward.
    """
    base = base_of(model)
    device = base.get_input_embeddings().weight.device
    known = max(1, len(bos))
    surprisals_N = []
    for start in range(0, len(sequences), batch_size):
        rows = [torch.tensor([*bos, *ids]) for ids in sequences[start : start + batch_size]]
        # Padded on the right: causal attention never looks there
        ids_NS = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths = [len(row) - known for row in rows]
        with torch.no_grad():
            hidden_NSH = backbone_of(base)(input_ids=ids_NS, use_cache=False).last_hidden_state[:, known - 1 :]
            hidden_PH = torch.cat([row_SH[:length] for row_SH, length in zip(hidden_NSH, lengths, strict=True)])
            token_ids_P = torch.cat([row[known:] for row in rows]).to(device)
            logps_P, _ = token_log_probs(base, hidden_PH, token_ids_P, temperature=1.0)
        first = [] if bos else [0.0]
        surprisals_N += [[*first, *row_T] for row_T in (values_T.tolist() for values_T in (-logps_P).split(lengths))]
    return surprisals_N


def keywords_and_tail(token_ids: list[int], scores_T: list[float] | None, length: int, share: float) -> list[int]:
    """
    Positions of the tokens of a gist that is part keywords, part tail.

    Args:
        token_ids (`list[int]`):
            The context.
        scores_T (`list[float]`, *optional*):
            How much each of its tokens is worth as a keyword; `None` where `share` is 0.
        length (`int`):
            Tokens of the gist, which is shorter only where the context has no more, or no more different ones.
        share (`float`):
            The keywords' share of it. They are the best-scored tokens before the tail, each at its first occurrence.
    """
    tail = min(round(length * (1 - share)), len(token_ids))
    rest = len(token_ids) - tail
    first = {}
    for position in range(rest if length > tail else 0):
        first.setdefault(token_ids[position], position)
    keywords = sorted(first.values(), key=lambda position: -scores_T[position])[: length - tail]
    return [*sorted(keywords), *range(rest, len(token_ids))]


def passage_and_tail(scores_T: list[float], length: int, share: float) -> list[int]:
    """
    Positions of the tokens of a gist that is part passage, part tail.

    Args:
        scores_T (`list[float]`):
            How much each token of the context is worth.
        length (`int`):
            Tokens of the gist, which is shorter only where the context is.
        share (`float`):
            The passage's share of it: the adjacent tokens before the tail with the greatest sum of scores, the first
            of equals.
    """
    tail = min(round(length * (1 - share)), len(scores_T))
    rest = len(scores_T) - tail
    size = min(length - tail, rest)
    sums = list(itertools.accumulate(scores_T, initial=0.0))
    start = max(range(rest - size + 1), key=lambda start: sums[start + size] - sums[start])
    return [*range(start, start + size), *range(rest, len(scores_T))]


class ExtractiveSummarizer:
    """
    Writes gists by one of the rules above.

    Args:
        rule (`str`):
            The rule.
        contexts (`Iterable[list[int]]`):
            Contexts from which the rules by tf-idf learn how rare a token is; the others read none.
        teacher ([`TargetScorer`], *optional*):
            Whose surprise counts, for `"surprisal"`.
        unread_ids (`frozenset[int]`, *optional*):
            Tokens that are left out of gists, as special tokens: G never reads them, and S would learn to write them.
    """

    def __init__(
        self,
        rule: str,
        contexts: Iterable[list[int]] = (),
        teacher: TargetScorer | None = None,
        unread_ids: frozenset[int] = frozenset(),
    ):
        self.rule = rule
        self.teacher = teacher
        self.unread_ids = unread_ids
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
        first = sum(before_last_k(row["context_ids"], row["last_k_ids"]))
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
        text_ids = before_last_k(row["context_ids"], row["last_k_ids"])
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
