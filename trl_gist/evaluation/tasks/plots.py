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
Accuracy by age and by length, for a talk: all tasks together in one large panel, each below in a small one. Who has
nothing but the end of the text to go by is one gray band; the tables have each of them.
"""

import os
from pathlib import Path

import numpy as np

from ...common.extras import extra
from ..distance.labels import span
from ..distance.plots import arm_color
from ..folder import read_measures
from ..pages.plots import GIST, NEUTRAL, OCHRE, save_figures
from .tables import task_labels, windows_label


with extra("eval"):
    from matplotlib.figure import Figure


# Sliding windows, and a gist that knows the last window alone
_END_ALONE, _LEFT_OUT = ("last_k", "tail", "null"), ("single",)
_COMPRESSORS = (OCHRE, "#d98fb0", "#8f9b3a", "#5b4636")


def draw_tasks(directory: str | os.PathLike) -> list[Path]:
    """Draws the measures of a folder into `plots/`, each as PNG and SVG; returns the PNGs."""
    report = read_measures(directory)
    return save_figures(directory, {"tasks_age": plot_ages(report), "tasks_length": plot_lengths(report)})


def plot_ages(report: dict) -> Figure:
    """Right answers by how many windows ago the fact was said, in the longest texts."""
    longest = max(group["windows"] for measures in report["tasks"].values() for group in measures["lengths"])
    return _panels(
        report,
        "ages",
        lambda group: span(group["first"], group["last"]),
        "windows since the fact was said",
        f"What is still known of a fact, windows later, of texts of {windows_label(longest)}",
    )


def plot_lengths(report: dict) -> Figure:
    """Right answers by windows of the text."""
    return _panels(
        report,
        "lengths",
        lambda group: str(group["windows"]),
        "windows of the text",
        "What is still known of as many facts, as texts get longer",
    )


def _panels(report, name, tick, xlabel, title):
    """One large panel beside the legend, of all tasks or the only one; and below it one for each of several."""
    (*small, large) = report["tasks"]
    rows = [[large, large, "legend"]]
    if small:
        rows = [[place for place in rows[0] for _ in small], [task for task in small for _ in rows[0]]]
    figure = Figure(figsize=(12.8, 7.2 if small else 4.8), layout="constrained")
    axes = figure.subplot_mosaic(rows, height_ratios=[1.6, 1][: len(rows)])
    figure.suptitle(title, x=0.01, ha="left", fontsize=17, weight="bold")
    beside = axes.pop("legend")
    beside.set_axis_off()
    for task, axis in axes.items():
        groups = report["tasks"][task][name]
        _draw(axis, report, groups, task == large)
        size = 12 if task == large else 9
        axis.set_title(task, loc="left", fontsize=size + 1)
        axis.set_xticks(range(len(groups)), [tick(group) for group in groups])
        axis.set_ylim(-3, 103)
        axis.set_yticks(range(0, 101, 25), [f"{share}%" for share in range(0, 101, 25)])
        axis.tick_params(labelsize=size, labelleft=task in (large, *small[:1]))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.2)
    axes[large].set_xlabel(xlabel, fontsize=12)
    axes[large].set_ylabel("right answers", fontsize=12)
    handles, labels = axes[large].get_legend_handles_labels()
    # Out of the layout: a pair's long name may be wider than the place, and shall not press the panels
    beside.legend(handles, labels, loc="center left", frameon=False, fontsize=11, handlelength=3).set_in_layout(False)
    return figure


def _draw(axis, report, groups, large):
    x, own = np.arange(len(groups)), ("pair", "recall", *report["pairs"])
    shares = {
        arm: [100 * np.array([group[f"right_{arm}{end}"] for group in groups], dtype=float) for end in ("", "_se")]
        for arm in report["arms"]
    }
    for arm, label in task_labels(report, "generator", "teacher").items():
        if arm in (*_END_ALONE, *_LEFT_OUT):
            continue
        mean, error = shares[arm]
        color = _color(arm, report)
        axis.plot(
            x,
            mean,
            color=color,
            label=label,
            linestyle="--" if arm == "recall" else "-",
            linewidth=(2.8 if arm in own else 1.6) * (1 if large else 0.7),
            marker="o",
            markersize=5 if large else 3,
        )
        if large and arm in own:
            axis.fill_between(x, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
    ends = [shares[arm][0] for arm in _END_ALONE]
    axis.fill_between(
        x,
        np.min(ends, axis=0),
        np.max(ends, axis=0),
        color=NEUTRAL,
        alpha=0.25,
        linewidth=0,
        label="the text's end, without a gist",
    )
    chance = [100 * group["chance"] for group in groups]
    axis.plot(x, chance, color="black", linewidth=1, linestyle=":", label="chance")


def _color(arm, report):
    if arm in report["compressors"]:
        return _COMPRESSORS[report["compressors"].index(arm) % len(_COMPRESSORS)]
    return GIST if arm == "recall" else arm_color(arm, report)
