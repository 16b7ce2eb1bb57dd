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

"""Accuracy by age and by length: a panel a task, a line an arm."""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...common.run_files import PLOTS_DIR
from ..distance.plots import arm_color, draw_band
from ..folder import read_measures
from ..pages.plots import GIST, GREEN, plot_style, save_figure
from .tables import age_label, task_labels


_COLUMNS = 3
# A talk's plot has few lines; the tables have the others
_LEFT_OUT = ("single",)


def draw_tasks(directory: str | os.PathLike) -> list[Path]:
    """Draws the measures of a folder into `plots/`, each as PNG and SVG; returns the PNGs."""
    report = read_measures(directory)
    for name, figure in (("tasks_age", plot_ages(report)), ("tasks_length", plot_lengths(report))):
        save_figure(figure, Path(directory, PLOTS_DIR, name))
    return [Path(directory, PLOTS_DIR, f"{name}.png") for name in ("tasks_age", "tasks_length")]


def plot_ages(report: dict) -> Figure:
    """Right answers by how many windows ago the fact was said, in the longest texts."""
    figure, axes = _panels(report, "ages")
    for axis, measures in axes:
        groups = measures["ages"]
        axis.set_xticks(range(len(groups)), [age_label(group) for group in groups], fontsize=8)
        axis.set_xlabel("age of the fact, in windows", fontsize=9)
    return figure


def plot_lengths(report: dict) -> Figure:
    """Right answers by windows of the text."""
    figure, axes = _panels(report, "lengths")
    for axis, measures in axes:
        groups = measures["lengths"]
        axis.set_xticks(
            range(len(groups)), [f"{group['windows']}\n{group['tokens']:,.0f}" for group in groups], fontsize=8
        )
        axis.set_xlabel("windows, and tokens, of the text", fontsize=9)
    return figure


def _panels(report, name):
    """A figure with everything but the axes below; and its axes with their measures."""
    tasks = report["tasks"]
    columns = min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(4.4 * columns, 6.4), 3.1 * rows + 1.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in grid[len(tasks) :]:
        axis.set_axis_off()
    for axis, (task, measures) in zip(grid, tasks.items(), strict=False):
        groups = measures[name]
        for arm, label in task_labels(report).items():
            if arm in _LEFT_OUT:
                continue
            mean, error = (
                100 * np.array([group[f"right_{arm}{end}"] for group in groups], dtype=float) for end in ("", "_se")
            )
            color = GREEN if arm in report["compressors"] else GIST if arm == "recall" else arm_color(arm, report)
            own = arm in ("pair", *report["pairs"])
            error = error if own else np.zeros_like(error)  # ten bands hide each other
            draw_band(axis, np.arange(len(groups)), mean, error, color, label, own)
            if arm == "recall":
                axis.lines[-1].set_linestyle("--")
        chance = [100 * group["chance"] for group in groups]
        axis.plot(range(len(groups)), chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        plot_style(axis, task, "right answers, %")
        axis.set_ylim(-3, 103)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure, list(zip(grid, tasks.values(), strict=False))
