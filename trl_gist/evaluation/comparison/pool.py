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
Best in pool: how much better the gists of natural text could be, as far as a pool of candidates tells.

The distortion-rate function of [`rate_distortion`] needs all candidates, which natural text has too many of. With the
gists of every compressor at every budget as each window's candidates, the same linear program gives the best mixture
of them: each window takes, with its target known, the gist that turned out best. No compressor knows the target, so
the curve is what choosing could bring; and the pool is not all there is, so it bounds nothing from below.
"""

import os

import numpy as np

from ...common.extras import extra
from ..pages.plots import GIST, NEUTRAL, NULL, plot_style, save_figure
from ..rate_distortion import DistortionRateCurve, best_in_pool_curve
from .compare import GENERATOR, NO_GIST, TRAINED


with extra("eval"):
    from matplotlib.figure import Figure


def pool_curve(results: list[dict], context_lengths: list[int], budgets: int) -> DistortionRateCurve:
    """
    KL from the teacher against the gist rate, of the best mixture, as the generator reads it.

    Args:
        results (`list[dict]`):
            Of [`compare_compressors`], on rows that hold every window `budgets` times, one after the other.
        context_lengths (`list[int]`):
            |X| of each row.
        budgets (`int`):
            Rows of a window.
    """
    pools = [[] for _ in range(len(context_lengths) // budgets)]
    for row in results:
        if row["reader"] == GENERATOR:
            pools[row["window"] // budgets].append((row["tokens"], row["kl"]))
    return best_in_pool_curve(context_lengths[::budgets], pools)


def plot_pool(results: list[dict], context_lengths: list[int], budgets: int, path: str | os.PathLike):
    """Draws the curve, and each compressor's own rate and KL, as PNG and SVG; arguments as of [`pool_curve`]."""
    curve = pool_curve(results, context_lengths, budgets)
    figure = Figure(figsize=(6.2, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(curve.rates_B, curve.distortions_B, color=NULL, linewidth=1.5)
    middle = len(curve.rates_B) // 2
    axis.annotate(
        "best of the pool,\ntarget known",
        (curve.rates_B[middle], curve.distortions_B[middle]),
        (-4, -6),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=NULL,
    )
    names = list(dict.fromkeys(row["compressor"] for row in results))
    ends = {}
    for name in names:
        rates, kls = zip(
            *(_point(results, context_lengths, name, index, budgets) for index in range(budgets)), strict=True
        )
        color = GIST if name == TRAINED else NEUTRAL
        axis.plot(
            rates, kls, "o-", color=color, markersize=5, linewidth=1, alpha=1 if name in (TRAINED, NO_GIST) else 0.6
        )
        ends[name] = rates[-1], kls[-1]
    _label(axis, ends)
    plot_style(axis, "Quality against rate, and what choosing could bring", "KL from the teacher, nats per token")
    axis.set_xlabel("gist rate, tokens of the gist / tokens of the context", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.set_xlim(-0.01, max(rate for rate, _ in ends.values()) * 1.4)
    save_figure(figure, path)


def _point(results, context_lengths, name, index, budgets):
    """Mean rate and KL of one compressor at one budget, with the generator as the reader."""
    rows = [
        row
        for row in results
        if row["compressor"] == name and row["reader"] == GENERATOR and row["window"] % budgets == index
    ]
    rates = [row["tokens"] / context_lengths[row["window"]] for row in rows]
    return float(np.mean(rates)), float(np.mean([row["kl"] for row in rows]))


def _label(axis, ends):
    """Names beside the last points, moved apart where they would overlap."""
    high = max(kl for _, kl in ends.values())
    at = float("-inf")
    for name, (rate, kl) in sorted(ends.items(), key=lambda item: item[1][1]):
        if name == NO_GIST:
            axis.annotate(name, (rate, kl), (6, 4), textcoords="offset points", fontsize=8, color=NEUTRAL)
            continue
        at = max(kl, at + 0.045 * high)
        axis.annotate(
            name, (rate, kl), (rate + 0.008, at), fontsize=8, va="center", color=GIST if name == TRAINED else NEUTRAL
        )
