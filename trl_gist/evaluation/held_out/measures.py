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
Quality against rate: what the readings of [`readings`] come to, each figure with its standard error over documents.

In nats per target token unless a name says otherwise. Bits per byte are Σ NLL / (ln 2 · Σ bytes of the target), which
does not depend on the tokenizer.
"""

import math
from collections import Counter

import numpy as np

from ...common.statistics import mean_and_error, ratio_and_error
from ...scoring.controls import not_continued, summarize
from .readings import CONTROLS, READERS


_POSITION_BINS = 8


def with_means(row: dict) -> dict:
    """A row of [`PairReadings.read`] with the columns that [`summarize`] knows: means over the target's tokens."""
    means = {f"{reader}_log_prob": _mean(values) for reader, values in row["log_probs"].items()}
    missing = {"shuffled_log_prob": float("nan")} if "shuffled_log_prob" not in means else {}
    kls = {"teacher_kl": _mean(row["kls"]["gist"]), "null_teacher_kl": _mean(row["kls"]["null"])}
    exact = {"exact": row["exacts"]["gist"]} if "exacts" in row else {}
    return row | means | missing | kls | exact


def readers_of(rows: list[dict]) -> list[str]:
    """Those who read some row; and the shuffled control, which says by its absence that there was one document."""
    present = {reader for row in rows for reader in row["log_probs"]} | {"shuffled"}
    return [reader for reader in READERS if reader in present]


def quality(rows: list[dict]) -> dict:
    """
    Args:
        rows (`list[dict]`):
            Of [`PairReadings.read`], of one setting.

    Returns:
        `dict`: The measures of [`summarize`] against every control; for each reader `kl_{reader}`, its KL from the
        teacher, and `bits_per_byte_{reader}`; `gist_bytes`, `bytes_rate` (bytes of the gist over bytes of the
        context), `bits_per_gist_token` (its information under S); the costs of [`costs`]; and under `positions` the
        NLL and KL of each reader by position in the target. Standard errors under the same names with `_se`.

        Where windows have several targets each row is one of them: `windows` counts targets and `contexts` the windows,
        `cue_tokens` is the mean length of what is in the place of L, and `exact_{reader}` the share of targets whose every
        token is the reader's likeliest, of other kinds than the continuation. With a floor, `targets_dropped` says how
        many of each kind it left out. If there are several kinds, `kinds` has the same of each, without positions.
    """
    rows = [with_means(row) for row in rows]
    readers = readers_of(rows)
    documents = [row["document_id"] for row in rows]
    measures = summarize(rows, tuple(reader for reader in CONTROLS if reader in readers))

    def add(name, numerator, denominator=None):
        denominator = np.ones(len(rows)) if denominator is None else np.asarray(denominator, dtype=float)
        error = ratio_and_error(np.asarray(numerator, dtype=float), denominator, documents)
        measures[name], measures[f"{name}_se"] = error

    target_bytes = [row["target_bytes"] for row in rows]
    for reader in readers:
        add(f"kl_{reader}", [_mean(row["kls"].get(reader)) for row in rows])
        bits = [-np.sum(row["log_probs"].get(reader, float("nan"))) / math.log(2) for row in rows]
        add(f"bits_per_byte_{reader}", bits, target_bytes)
    add("gist_bytes", [row["gist_bytes"] for row in rows])
    add("bytes_rate", [row["gist_bytes"] for row in rows], [row["context_bytes"] for row in rows])
    gist_bits = [-row["summarizer_log_prob"] / math.log(2) for row in rows]
    add("bits_per_gist_token", gist_bits, [row["gist_length"] for row in rows])
    measures |= costs(rows)
    if "window_targets" in rows[0]:
        measures["contexts"] = round(sum(1 / row["window_targets"] for row in rows))
        measures["cue_tokens"] = float(np.mean([len(row["last_k_ids"]) for row in rows]))
        if all("window_dropped" in row for row in rows):
            measures["targets_dropped"] = _dropped(rows)
        others = not_continued(rows)
        if others.any():
            for reader in readers:
                add(f"exact_{reader}", others * [row["exacts"].get(reader, math.nan) for row in rows], others)
    measures["positions"] = by_position(rows, readers)
    kinds = sorted({row["kind"] for row in rows if "kind" in row})
    if len(kinds) > 1:
        measures["kinds"] = {kind: quality([row for row in rows if row["kind"] == kind]) for kind in kinds}
        for of_kind in measures["kinds"].values():
            del of_kind["positions"], of_kind["contexts"]
            of_kind.pop("targets_dropped", None)
    return measures


def _dropped(rows):
    """By kind, over windows: each row of a window has it."""
    dropped, place = Counter(), 0
    while place < len(rows):
        dropped.update(rows[place]["window_dropped"])
        place += rows[place]["window_targets"]
    return dict(sorted(dropped.items()))


def costs(rows: list[dict]) -> dict[str, float]:
    """
    What compressing costs and saves, in token-passes: tokens that go through a model once, means over windows.

    S passes `summarizer_tokens` once for each context; each time it is used G then passes `generator_tokens` instead
    of `teacher_tokens`. From `break_even_uses` uses on, compressing has cost less than it saved; infinite where G's
    prompt is no shorter than the context.
    """
    summarizer, generator, teacher = (
        float(np.mean([row[f"{role}_tokens"] for row in rows])) for role in ("summarizer", "generator", "teacher")
    )
    saved = teacher - generator
    return {
        "summarizer_tokens": summarizer,
        "generator_tokens": generator,
        "teacher_tokens": teacher,
        "break_even_uses": summarizer / saved if saved > 0 else float("inf"),
    }


def by_position(rows: list[dict], readers: list[str]) -> dict:
    """
    NLL and KL by position in the target, means over equal stretches of it.

    Returns:
        `dict`: `edges`, where the stretches begin and end, in tokens; and for each reader `nll`, `nll_se`, `kl` and
        `kl_se`, a figure for each stretch. Windows with a shorter target count where they reach.
    """
    length = max(len(row["target_ids"]) for row in rows)
    bins = min(_POSITION_BINS, length)
    edges = [round(index * length / bins) for index in range(bins + 1)]
    documents = [row["document_id"] for row in rows]
    positions = {"edges": edges}
    for reader in readers:
        columns = {"nll": [], "nll_se": [], "kl": [], "kl_se": []}
        for start, stop in zip(edges, edges[1:], strict=False):
            for name, source, sign in (("nll", "log_probs", -1), ("kl", "kls", 1)):
                means = [sign * _mean(row[source].get(reader, [])[start:stop]) for row in rows]
                mean, error = mean_and_error(means, documents)
                columns[name].append(mean)
                columns[f"{name}_se"].append(error)
        positions[reader] = columns
    return positions


def _mean(values):
    return float(np.mean(values)) if values else float("nan")
