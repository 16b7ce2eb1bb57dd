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
Held-out measures of a pair, each against its controls.

A co-trained pair flatters itself: the generator adapts to the domain whether or not it reads the gist, and tokens are
tokens. So the log-prob of the target with the real gist is held against

    null        the same generator with an empty gist
    shuffled    the same generator with another document's gist
    last_k      the frozen teacher on the last k tokens alone
    tail        the frozen teacher on the last k + |Z| tokens, verbatim: as many tokens, no summarizer (where L is not
                the end of X, as a question after its passage, on the last |Z| tokens of X followed by L)

Gap closed against a control is [NLL(control) − NLL(gist)] / [NLL(control) − NLL(teacher on X)], a ratio of sums over
windows. Windows of one document are not independent, so standard errors are over documents.
"""

from collections import Counter

import numpy as np

from ..common.arguments import several
from ..common.statistics import mean_and_error, ratio_and_error
from ..prompts import seen_ids, through_last_k
from .gist_scorer import GistScorer


CONTROLS = ("null", "shuffled", "last_k", "tail")

# For each mean that an evaluation gives, of all targets or of one kind (`fact/exact`), which way it is better. None where
# it is neither, since it is not of the gists
GREATER_IS_BETTER = {
    "teacher_kl": False,
    "nll_gist": False,
    "exact": True,
    **{f"gain_over_{control}": True for control in CONTROLS},
    **{f"gap_closed_{control}": True for control in CONTROLS},
    **dict.fromkeys(("gist_length", "gist_rate", "total_rate"), False),
    **dict.fromkeys(("null_teacher_kl", "nll_teacher", *(f"nll_{control}" for control in CONTROLS))),
}


def add_controls(scorer: GistScorer, rows: list[dict], share: list[int] | None = None):
    """
    Adds the log-probs of the controls to scored rows, in place.

    Args:
        scorer ([`GistScorer`]):
            The pair and its teacher.
        rows (`list[dict]`):
            Windows with the columns of [`GistScorer.score`]. A row that finds no partner from another document gets a
            `shuffled_log_prob` of NaN.
        share (`list[int]`, *optional*):
            Indices of the rows to score, by default all; the others only lend their gists. For data parallelism.
    """
    shuffled = shuffled_log_probs(scorer, rows, share)
    rows = rows if share is None else [rows[index] for index in share]
    last_k = scorer.cue_log_probs(rows)
    tails = [tail_ids(row) for row in rows]
    tail = scorer.teacher_log_probs(rows, tails)
    for index, row in enumerate(rows):
        row["shuffled_log_prob"] = shuffled[index]
        row["last_k_log_prob"] = last_k[index]
        row["tail_log_prob"] = tail[index]
        # Of one of several targets T may read more, as before a far one, than the gist stands for
        read = row.get("window_length", len(seen_ids(row)))
        row["gist_rate"] = row["gist_length"] / read
        prompt_length = len(scorer.prompts.generator(row["gist_ids"], row["last_k_ids"]))
        row["total_rate"] = prompt_length / read


def tail_ids(row: dict) -> list[int]:
    """The last K + |Z| tokens before a row's target, of what S and G have together; none where both are empty."""
    ids = through_last_k(row["context_ids"], row["last_k_ids"])
    return ids[max(0, len(ids) - len(row["last_k_ids"]) - row["gist_length"]) :]


def shuffled_log_probs(scorer: GistScorer, rows: list[dict], share: list[int] | None = None) -> list[float]:
    """
    Mean log-prob of each row's target under the same generator with another document's gist.

    Args:
        scorer ([`GistScorer`]):
            The pair.
        rows (`list[dict]`):
            Windows with `document_id`, `context_ids` and `gist_ids`; those of the share with `last_k_ids` and
            `target_ids` too.
        share (`list[int]`, *optional*):
            Indices of the rows to score, by default all; the others only lend their gists.

    Returns:
        `list[float]`: In nats, for each row of the share. NaN for one that finds no partner from another document.
    """
    share = range(len(rows)) if share is None else share
    partners = other_documents(rows)
    lenders = [rows[partners[index]] for index in share]
    rows = [rows[index] for index in share]
    shuffled = scorer.generator_log_probs(rows, [lender["gist_ids"] for lender in lenders])
    return [
        float("nan") if row["document_id"] == lender["document_id"] else log_prob
        for row, lender, log_prob in zip(rows, lenders, shuffled, strict=True)
    ]


def summarize(rows: list[dict], controls: tuple[str, ...] = CONTROLS) -> dict[str, float]:
    """
    Means over windows, with standard errors over documents under the same name with `_se`.

    Args:
        rows (`list[dict]`):
            Windows after [`add_controls`].
        controls (`tuple[str]`, *optional*):
            Those that the rows have.

    Returns:
        `dict[str, float]`: In nats per target token: `teacher_kl`, `null_teacher_kl`, `nll_gist`, `nll_teacher` and
        `nll_{control}`, the paired difference `gain_over_{control}` = NLL(control) − NLL(gist); `gap_closed_{control}`;
        `gist_length` in tokens, `gist_rate`, `total_rate`; `exact`, the share of targets whose every token is the
        generator's likeliest, of other kinds than the continuation; and the counts `windows`, `documents`.
    """
    controls = several("controls", controls, "names", "put it in a list")
    documents = [row["document_id"] for row in rows]

    def column(name):
        return np.array([row[name] for row in rows], dtype=float)

    values = {name: column(name) for name in ("teacher_kl", "null_teacher_kl")}
    nll = {name: -column(f"{name}_log_prob") for name in ("gist", "teacher", *controls)}
    values |= {f"nll_{name}": nll[name] for name in nll}
    values |= {f"gain_over_{name}": nll[name] - nll["gist"] for name in controls}
    values |= {name: column(name) for name in ("gist_length", "gist_rate", "total_rate")}
    measures = {}
    for name, value in values.items():
        measures[name], measures[f"{name}_se"] = mean_and_error(value, documents)
    for name in controls:
        gap = nll[name] - nll["teacher"]
        measures[f"gap_closed_{name}"], measures[f"gap_closed_{name}_se"] = ratio_and_error(
            nll[name] - nll["gist"], gap, documents
        )
    others = not_continued(rows)
    if others.any():
        measures["exact"], measures["exact_se"] = ratio_and_error(column("exact") * others, others, documents)
    return measures | {"windows": len(rows), "documents": len(set(documents))}


def not_continued(rows: list[dict]) -> np.ndarray:
    """1 for a row whose target is of another kind than the continuation, so that it can be recalled; else 0."""
    return np.array([row.get("kind", "continuation") != "continuation" for row in rows], dtype=float)


def other_documents(rows: list[dict]) -> list[int]:
    """For each row, the index of a row of another document, each row used once; the same document only if one holds
    over half. The contexts decide, not the order the rows come in."""
    order = sorted(range(len(rows)), key=lambda row: (str(rows[row]["document_id"]), rows[row]["context_ids"]))
    shift = max(Counter(row["document_id"] for row in rows).values())
    partners = [0] * len(rows)
    for position, row in enumerate(order):
        partners[row] = order[(position + shift) % len(order)]
    return partners
