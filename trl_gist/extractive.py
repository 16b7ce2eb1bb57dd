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
"""

import math
from collections import Counter
from collections.abc import Iterable

import torch

from .lm_head import token_log_probs
from .prompts import before_last_k
from .roles import base_of
from .scoring import TargetScorer


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
    """

    def __init__(self, rule: str, contexts: Iterable[list[int]] = (), teacher: TargetScorer | None = None):
        self.rule = rule
        self.teacher = teacher
        self.document_frequencies, self.documents = Counter(), 0
        for context_ids in contexts if rule in ("tf_idf", "mixed") else ():
            self.document_frequencies.update(set(context_ids))
            self.documents += 1

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
        context_ids = before_last_k(row["context_ids"], row["last_k_ids"])
        shares = {"tail": (0, 0), "mixed": (0, 0.5)}.get(self.rule, (1, 1))
        shares_G = torch.linspace(*shares, len(lengths_G)).tolist()
        scores_T = self._scores(context_ids) if shares != (0, 0) else None
        gists = []
        for length, share in zip(lengths_G, shares_G, strict=True):
            tail = min(round(length * (1 - share)), len(context_ids))
            rest = context_ids[: len(context_ids) - tail]
            keywords = _best_in_order(rest, scores_T, length - tail) if length > tail and rest else []
            gists.append(keywords + context_ids[len(rest) :])
        return gists

    def _scores(self, context_ids):
        """How much each token of the context is worth keeping."""
        if self.rule == "surprisal":
            return self._surprisals(context_ids)
        counts = Counter(context_ids)
        return [
            counts[token] * math.log((1 + self.documents) / (1 + self.document_frequencies[token]))
            for token in context_ids
        ]

    def _surprisals(self, context_ids):
        base = base_of(self.teacher.model)
        ids_T = torch.tensor(context_ids, device=base.get_input_embeddings().weight.device)
        with torch.no_grad():
            hidden_TH = base.base_model(input_ids=ids_T.unsqueeze(0), use_cache=False).last_hidden_state[0]
            logps_T, _ = token_log_probs(base, hidden_TH[:-1], ids_T[1:], temperature=1.0)
        return [0.0, *(-logps_T).tolist()]  # nothing comes before the first token to expect it from


def _best_in_order(token_ids, scores_T, count):
    """The best-scored tokens, each at its first occurrence, in the order they came."""
    first = {}
    for position, token in enumerate(token_ids):
        first.setdefault(token, position)
    best = sorted(first.values(), key=lambda position: -scores_T[position])[:count]
    return [token_ids[position] for position in sorted(best)]
