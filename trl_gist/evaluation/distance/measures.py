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
What a walk along documents comes to, by distance into the document.

Differences between arms are paired over windows, and each gist is held against its own reader's sliding window: the
same model on the same last tokens without it. Standard errors are over documents; where there is one document, as one
long stream, over its windows, which are not quite independent.
"""

import numpy as np

from ...common.statistics import mean_and_error, ratio_and_error
from .facts import fact_gains_by_age, facts_by_age
from .recall import recall_by_age
from .walk import ARMS, SLIDING_WINDOW


_LEAST_DOCUMENTS = 3  # below, a standard error says little


def distance_measures(rows: list[dict], others: list[str] = ()) -> dict:
    """
    Args:
        rows (`list[dict]`):
            Of [`DistanceReadings.walk`].
        others (`list[str]`, *optional*):
            Names of the other pairs.

    Returns:
        `dict`: In nats per target token, standard errors under the same names with `_se`.

        - `windows` and `stretches` (1, 2, 3-4, 5-8, ... windows): for each `first`, `last` (from 0), `tokens` before
          the target (mean), `rows`, `documents`, `gist_length`, and by arm `nll_{arm}`, `kl_{arm}` (from the full
          context), `advantage_{arm}` = NLL(its sliding window) − NLL(arm), `over_last_k_{arm}` = NLL(T's sliding
          window) − NLL(arm).
        - `slopes`: by arm, of the advantage in nats per token and window: the regression within documents, Σ Sxy / Σ
          Sxx, which weighs the slope of each document by how far it reaches.
        - `gains`: for the pair and each other pair, what it gains over every arm from the second window on.
        - `verdicts`: for the same, [`verdict`] against the sliding windows of its own generator and of T.
        - `facts`, `fact_gains`, `recall`: of [`facts_by_age`], [`fact_gains_by_age`] and [`recall_by_age`].
        - `errors_over`: `"documents"` or `"windows"`.
    """
    others = list(others)
    sliding = SLIDING_WINDOW | {name: f"{name}_null" for name in others}
    arms = [*ARMS, *others, *(f"{name}_null" for name in others)]
    last = max(row["window"] for row in rows)
    walkers = ["pair", *others]
    windows = [_stretch(rows, window, window, arms, sliding) for window in range(last + 1)]
    stretches = [_stretch(rows, first, stop, arms, sliding) for first, stop in doubling(last)]
    ages = [(0, 0), *((first + 1, stop + 1) for first, stop in doubling(last - 1))] if last else [(0, 0)]
    return {
        "windows": windows,
        "stretches": stretches,
        "slopes": {arm: _slope(rows, arm, control) for arm, control in sliding.items() if arm != "full"},
        "gains": {walker: _gains(rows, walker, arms) for walker in walkers},
        "verdicts": {
            walker: {control: verdict(rows, windows, walker, control) for control in (sliding[walker], "last_k")}
            for walker in walkers
        },
        "facts": facts_by_age(rows, ["pair", "zero_shot", "single", *others], ages),
        "fact_gains": fact_gains_by_age(rows, sliding, ages),
        "recall": recall_by_age(rows, walkers, sliding),
        "errors_over": "windows" if _one_document(rows) else "documents",
    }


def doubling(last: int) -> list[tuple[int, int]]:
    """0, 1, 2-3, 4-7, ... up to `last`: first and last of each stretch."""
    stretches, first, length = [], 0, 1
    while first <= last:
        stretches.append((first, min(first + length - 1, last)))
        length, first = max(1, first + length), first + length
    return stretches


def advantages(rows: list[dict], arm: str, control: str) -> np.ndarray:
    """NLL(control) − NLL(arm) of each row, in nats per token; NaN where one of the two was not read."""
    return _nll(rows, control) - _nll(rows, arm)


def verdict(rows: list[dict], windows: list[dict], arm: str, control: str) -> dict:
    """
    Whether an arm stays below its sliding window from the second window on, by two standard errors.

    Returns:
        `dict`: `unclear`, the windows (from 0) at which it does not, of `of` that at least 3 documents reach; `since`,
        the first of those at the end, from which on it never does, or `None` if it does at the last window; and
        `last`, the last one looked at. With one document a window has no error, and the stretches stand for them.
    """
    if _one_document(rows):
        last = max(row["window"] for row in rows)
        windows = [_stretch(rows, *stretch, [arm], {arm: control}) for stretch in doubling(last)]
        later = [window for window in windows if window["first"] >= 1 and window["rows"] > 1]
    else:
        later = [window for window in windows if window["first"] >= 1 and window["documents"] >= _LEAST_DOCUMENTS]
    name = f"over_last_k_{arm}" if control == "last_k" else f"advantage_{arm}"
    clear = [window[name] > 2 * window[f"{name}_se"] for window in later]
    unclear = [window["first"] for window, is_clear in zip(later, clear, strict=True) if not is_clear]
    trailing = len(clear) - next((index for index, is_clear in enumerate(reversed(clear)) if is_clear), len(clear))
    return {
        "unclear": unclear,
        "of": len(later),
        "since": later[trailing]["first"] if trailing < len(later) else None,
        "last": later[-1]["last"] if later else None,
    }


def _stretch(rows, first, last, arms, sliding):
    chosen = [row for row in rows if first <= row["window"] <= last]
    measures = {
        "first": first,
        "last": last,
        "tokens": float(np.mean([row["tokens"] for row in chosen])),
        "rows": len(chosen),
        "documents": len({str(row["document_id"]) for row in chosen}),
    }
    clusters = _clusters(rows, chosen)

    def add(name, values):
        measures[name], measures[f"{name}_se"] = mean_and_error(values, clusters)

    add("gist_length", [len(row["gist_ids"]["pair"]) for row in chosen])
    for arm in arms:
        add(f"nll_{arm}", _nll(chosen, arm))
        add(f"kl_{arm}", [np.mean(row["kls"][arm]) if arm in row["kls"] else np.nan for row in chosen])
        if arm in sliding:
            add(f"advantage_{arm}", advantages(chosen, arm, sliding[arm]))
        if arm != "last_k":
            add(f"over_last_k_{arm}", advantages(chosen, arm, "last_k"))
    return measures


def _slope(rows, arm, control):
    """Nats per token and window, its error, and how many documents have a slope."""
    values, windows = advantages(rows, arm, control), np.array([row["window"] for row in rows], dtype=float)
    documents = np.array([str(row["document_id"]) for row in rows])
    valid = ~np.isnan(values)
    values, windows, documents = values[valid], windows[valid], documents[valid]
    sums = []
    for document in dict.fromkeys(documents):
        x, y = windows[documents == document], values[documents == document]
        if len(x) > 1:
            sums.append((document, ((x - x.mean()) * (y - y.mean())).sum(), ((x - x.mean()) ** 2).sum()))
    if not sums:
        return {"slope": float("nan"), "slope_se": float("nan"), "documents": 0}
    names, xy, xx = zip(*sums, strict=True)
    slope, error = ratio_and_error(np.array(xy), np.array(xx), list(names))
    if len(sums) == 1 and len(values) > 2:
        x, y = (column[documents == names[0]] for column in (windows, values))
        residuals = y - y.mean() - slope * (x - x.mean())
        error = float(np.sqrt((residuals**2).sum() / (len(x) - 2) / xx[0]))
    return {"slope": slope, "slope_se": error, "documents": len(sums)}


def _gains(rows, walker, arms):
    later = [row for row in rows if row["window"] >= 1]
    clusters, gains = _clusters(rows, later), {}
    for arm in arms:
        if arm != walker:
            gains[arm], gains[f"{arm}_se"] = mean_and_error(advantages(later, walker, arm), clusters)
    return gains


def _nll(rows, arm):
    return np.array([-np.mean(row["log_probs"][arm]) if arm in row["log_probs"] else np.nan for row in rows])


def _one_document(rows):
    return len({str(row["document_id"]) for row in rows}) == 1


def _clusters(rows, chosen):
    return [str(row["window"] if _one_document(rows) else row["document_id"]) for row in chosen]
