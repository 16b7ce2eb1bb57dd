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

"""The plots of a walk along documents: loss by distance, what the gist is worth, facts by age, and costs by length."""

import os
from pathlib import Path

import numpy as np

from ...common.extras import extra
from ...common.statistics import measured
from ..folder import read_measures
from ..pages.plots import GIST, NULL, OCHRE, PLUM, plot_style, save_figures
from .labels import arm_labels, span


with extra("eval"):
    from matplotlib.figure import Figure


_COLORS = {
    "full": "#111111",
    "window": OCHRE,
    "tail": "#d3a85c",
    "last_k": "#9a9a9a",
    "zero_shot": PLUM,
    "zero_shot_g": "#a693c9",
    "null": NULL,
    "stale": "#d98fb0",
    "single": "#6fb3c9",
    "pair": GIST,
}
_OTHERS = ("#2f8f4e", "#8a2be2", "#b8860b", "#00688b")
_LOSS_ARMS = ("full", "window", "tail", "last_k", "zero_shot", "null", "pair")


def draw_distance(directory: str | os.PathLike) -> list[Path]:
    """Draws the measures of a walk's folder into `plots/`, each as PNG and SVG; returns the PNGs."""
    report = read_measures(directory)
    figures = {
        "distance_loss": plot_loss(report),
        "distance_advantage": plot_advantage(report),
        "distance_facts": plot_facts(report),
    }
    if report["recall"]:
        figures["distance_recall"] = plot_recall(report)
    if report["costs"]:
        figures["distance_costs"] = plot_costs(report["costs"])
    return save_figures(directory, figures)


def plot_loss(report: dict) -> Figure:
    """NLL, NLL saved over T's sliding window, and KL from the full context, by tokens before the target."""
    figure = Figure(figsize=(12.6, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    labels = arm_labels(report)
    for axis, name, arms in (
        (axes[0], "nll", [*_LOSS_ARMS, *report["pairs"]]),
        (axes[1], "over_last_k", [*_LOSS_ARMS, *report["pairs"]]),
        (axes[2], "kl", [*_LOSS_ARMS[1:], *report["pairs"]]),
    ):
        for arm in arms:
            if name == "over_last_k" and arm == "last_k":
                continue
            x, mean, error = _by_distance(report["stretches"], f"{name}_{arm}")
            own = arm in report["verdicts"]
            # Documents differ far more than readers do: of what is not paired, one band says how much
            error = error if own or name != "nll" else np.zeros_like(error)
            draw_band(axis, x, mean, error, arm_color(arm, report), labels[arm], own)
        _distance_axis(axis, report)
    plot_style(axes[0], "Loss", "NLL, nats per token")
    plot_style(axes[1], "Saved over T's sliding window, paired", "nats per token")
    axes[1].axhline(0, color=_COLORS["last_k"], linewidth=1)
    plot_style(axes[2], "Distance to T on all text so far", "KL, nats per token")
    axes[2].set_ylim(bottom=0)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def plot_advantage(report: dict) -> Figure:
    """What each gist gains over its own reader's sliding window: windows as points, stretches with bands."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    axis, labels = figure.subplots(), arm_labels(report)
    for arm in ("pair", "single", "stale", "zero_shot", *report["pairs"]):
        color, own = arm_color(arm, report), arm in report["verdicts"]
        if own:
            x, mean, _ = _by_distance(report["windows"], f"advantage_{arm}")
            axis.plot(x, mean, ".", color=color, alpha=0.35, markersize=4)
        x, mean, error = _by_distance(report["stretches"], f"advantage_{arm}")
        slope = report["slopes"][arm]
        label = labels[arm]
        if own and slope["slope"] is not None:
            label += f" ({measured(slope, 'slope', 2, '+', 1e3)} · 10⁻³ a window)"
        draw_band(axis, x, mean, error, color, label, own)
    axis.axhline(0, color="black", linewidth=0.8)
    plot_style(axis, "What the gist is worth as windows pass", "gain over its own sliding window, nats per token")
    _distance_axis(axis, report)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_facts(report: dict) -> Figure:
    """Facts in the gist, and what they gain where they come again, by windows since they were said last."""
    ages, gains = report["facts"]["ages"], report["fact_gains"]
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    (left, right), x, labels = figure.subplots(1, 2), np.arange(len(ages)), arm_labels(report)
    for writer, found in report["facts"]["since_last"].items():
        mean, error = (np.array(found[name], dtype=float) for name in ("share", "share_se"))
        draw_band(left, x, mean, error, arm_color(writer, report), labels[writer], writer in report["verdicts"])
    arms = ("window", "zero_shot", "stale", "pair", *report["pairs"])
    for offset, arm in enumerate(arms):
        mean, error = (np.array(gains[arm][k] + gains[arm]["new"][k], dtype=float) for k in ("gain", "gain_se"))
        place = np.arange(len(ages) + 1) + 0.14 * (offset - (len(arms) - 1) / 2)
        right.errorbar(
            place, mean, yerr=error, fmt="o", color=arm_color(arm, report), capsize=2, markersize=5, label=labels[arm]
        )
    right.axhline(0, color="black", linewidth=0.8)
    left.set_ylim(bottom=0)
    spans = [span(*stretch) for stretch in ages]
    for axis, names, counts in (
        (left, spans, report["facts"]["since_last"]["pair"]["of"]),
        (right, [*spans, "never"], gains["pair"]["of"] + gains["pair"]["new"]["of"]),
    ):
        axis.set_xticks(
            np.arange(len(names)),
            [f"{name}\n({count:,})" for name, count in zip(names, counts, strict=True)],
            fontsize=8,
        )
        axis.set_xlabel("windows since it was said last (how many facts)", fontsize=9)
    plot_style(left, "Numbers and names still in the gist", "share")
    plot_style(right, "Where they come again", "gain over the sliding window, nats per token")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=7.5, ncols=2, loc="upper right")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    return figure


def plot_recall(report: dict) -> Figure:
    """What each gist is worth on facts and sentences of earlier chunks, by how many windows ago they were read."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    axis, recall, labels = figure.subplots(), report["recall"], arm_labels(report)
    for arm in ("pair", "single", "stale", "zero_shot_g", *report["pairs"]):
        mean, error = (np.array(recall["arms"][arm][name], dtype=float) for name in ("gain", "gain_se"))
        draw_band(axis, recall["ages"], mean, error, arm_color(arm, report), labels[arm], arm in report["verdicts"])
    axis.axhline(0, color="black", linewidth=0.8)
    plot_style(axis, "What the gist still knows of earlier windows", "KL lower than with no gist, nats per token")
    counts = [f"{age}\n({count:,})" for age, count in zip(recall["ages"], recall["of"], strict=True)]
    axis.set_xticks(recall["ages"], counts, fontsize=8)
    axis.set_xlabel("windows since it was read (how many targets)", fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_costs(costs: list[dict]) -> Figure:
    """Seconds for the next token, read and written, and the bytes that are kept, by length."""
    figure = Figure(figsize=(12.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 4)
    for who, color, label in (
        ("pair", GIST, "pair, in its window"),
        ("full", _COLORS["full"], "T, all text in its cache"),
    ):
        known = [row for row in costs if f"read_{who}" in row]
        x = [row["tokens"] for row in known]
        for axis, name, scale in zip(
            axes, ("read", "written", "cache", "memory"), (1e3, 1e3, 1e-6, 1e-6), strict=True
        ):
            axis.plot(x, [scale * row[f"{name}_{who}"] for row in known], color=color, label=label, linewidth=1.5)
    for axis, title, label in zip(
        axes,
        ("Reading on", "Writing on", "Keys and values", "Memory of the process"),
        ("ms per token", "ms per token", "MB", "MB"),
        strict=True,
    ):
        plot_style(axis, title, label)
        axis.set_xlabel("tokens so far", fontsize=9)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _by_distance(stretches, name):
    columns = ([stretch[key] for stretch in stretches] for key in ("tokens", name, f"{name}_se"))
    return tuple(np.array(column, dtype=float) for column in columns)


def draw_band(axis, x, mean, error, color, label, own):
    """A line with its standard error; thicker, if it is the pair's `own`."""
    axis.plot(
        x, mean, color=color, label=label, linewidth=2.2 if own else 1.2, marker="o", markersize=3.5 if own else 2.5
    )
    axis.fill_between(x, mean - error, mean + error, color=color, alpha=0.15 if own else 0.08, linewidth=0)


def _distance_axis(axis, report):
    axis.set_xscale("log", base=2)
    ticks = [stretch["tokens"] for stretch in report["stretches"]]
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], fontsize=7.5)
    axis.minorticks_off()
    axis.set_xlabel("tokens before the target", fontsize=9)


def arm_color(arm: str, report: dict) -> str:
    """One color an arm on all pages; other pairs' go round."""
    return _COLORS[arm] if arm in _COLORS else _OTHERS[list(report["pairs"]).index(arm) % len(_OTHERS)]
