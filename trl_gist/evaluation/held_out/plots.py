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


"""The plots of an evaluation: who loses how much, where in the target, and at what rate."""

import os
from pathlib import Path

import numpy as np

from ...common.extras import extra
from ..folder import read_measures
from ..pages.labels import reader_labels
from ..pages.plots import GIST, NEUTRAL, NULL, OCHRE, PLUM, plot_style, save_figures


with extra("eval"):
    from matplotlib.figure import Figure


_RATE_READERS = ("gist", "tail", "last_k", "null")
_COLORS = {"gist": GIST, "null": NULL, "tail": OCHRE, "generator_only": PLUM}


def draw_quality(directory: str | os.PathLike) -> list[Path]:
    """Draws the measures of an evaluation's folder into `plots/`, each as PNG and SVG; returns the PNGs."""
    settings = read_measures(directory)["measures"]
    figures = {"readers": plot_readers_by_k(settings), "positions": plot_positions(settings[0])}
    if len(settings) > 1:
        figures["rate"] = plot_rate(settings)
    return save_figures(directory, figures)


def plot_readers_by_k(settings: list[dict]) -> Figure:
    """KL from the teacher of each reader, a panel for each setting, the readers in the order of the first."""
    labels = _labels(settings[0])
    names = [name for name in labels if name != "teacher" and settings[0].get(f"kl_{name}") is not None]
    names.sort(key=lambda name: settings[0][f"kl_{name}"])
    figure = Figure(figsize=(3.4 + 2.9 * len(settings), 0.9 + 0.36 * len(names)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(settings), sharex=True, sharey=True))
    for axis, setting in zip(axes, settings, strict=True):
        for row, name in enumerate(names):
            mean, error = setting.get(f"kl_{name}"), setting.get(f"kl_{name}_se")
            if mean is None:
                continue
            color = GIST if name == "gist" else NEUTRAL
            axis.errorbar(mean, row, xerr=error, fmt="o", color=color, markersize=6, capsize=3)
            axis.annotate(
                f"{mean:.3f}", (mean, row), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=color
            )
        axis.set_yticks(range(len(names)), [labels[name] for name in names], fontsize=9)
        axis.set_ylim(len(names) - 0.5, -0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.2)
        axis.set_title(setting_label(setting), loc="left", fontsize=9)
    figure.supxlabel(
        "KL from the teacher that saw the whole context, nats per token (± SE over documents)", fontsize=9
    )
    return figure


def plot_positions(setting: dict) -> Figure:
    """KL from the teacher by position in the target: how long a gist helps."""
    positions = setting["positions"]
    edges = np.array(positions["edges"])
    middle = (edges[:-1] + edges[1:]) / 2
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axis = figure.subplots()
    drawn = [name for name in ("gist", "tail", "generator_only", "null", "last_k") if name in positions]
    for name in drawn:
        mean, error = (np.array(positions[name][column], dtype=float) for column in ("kl", "kl_se"))
        color = _COLORS.get(name, NEUTRAL)
        axis.plot(middle, mean, color=color, linewidth=2 if name == "gist" else 1.3)
        axis.fill_between(middle, mean - error, mean + error, color=color, alpha=0.12, linewidth=0)
    _label_ends(axis, middle[-1], {name: positions[name]["kl"][-1] for name in drawn}, _labels(setting))
    plot_style(axis, "How long the gist helps", "KL from the teacher, nats per token")
    axis.set_xlabel("position in the target, tokens", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, edges[-1] * 1.42)
    axis.set_xticks([edge for edge in edges if edge % max(1, edges[-1] // 4) == 0])
    return figure


def plot_rate(settings: list[dict]) -> Figure:
    """KL from the teacher against all that is read, for every K and budget measured."""
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for name in _RATE_READERS:
        color = _COLORS.get(name, NEUTRAL)
        for last_k in sorted({setting["last_k"] for setting in settings}):
            points = sorted(
                (
                    _tokens_read(setting, name) / setting["teacher_tokens"],
                    setting[f"kl_{name}"],
                    setting[f"kl_{name}_se"],
                )
                for setting in settings
                if setting["last_k"] == last_k
            )
            rate, kl, error = map(np.array, zip(*points, strict=True))
            axis.errorbar(
                rate, kl, yerr=error.astype(float), fmt="o-", color=color, markersize=5, capsize=2, linewidth=1
            )
            if name == "gist" and "contexts" not in settings[0]:
                axis.annotate(
                    f"K = {last_k}", (rate[0], kl[0]), (4, 8), textcoords="offset points", fontsize=8, color=color
                )
    labels = _labels(settings[0])
    handles = [axis.plot([], [], "o-", color=_COLORS.get(n, NEUTRAL), label=labels[n])[0] for n in _RATE_READERS]
    axis.legend(handles=handles, frameon=False, fontsize=8, loc="upper right")
    plot_style(axis, "Quality against rate", "KL from the teacher, nats per token")
    axis.set_xlabel("total rate: tokens read by the reader / tokens of the whole context", fontsize=9)
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # room for the legend
    return figure


def setting_label(setting: dict) -> str:
    """Which last tokens the readers see, or that each target has a cue, and the budget of gists."""
    budget = "" if setting["budget"] is None else f", at most {setting['budget']} tokens a gist"
    return ("each target after its cue" if "contexts" in setting else f"K = {setting['last_k']}") + budget


def _tokens_read(setting, reader):
    """All that the reader sees before the target."""
    if reader == "gist":
        return setting["generator_tokens"]
    if reader == "null":
        return setting["generator_tokens"] - setting["gist_length"]
    return setting.get("cue_tokens", setting["last_k"]) + (setting["gist_length"] if reader == "tail" else 0)


def _labels(setting):
    return reader_labels(cues="contexts" in setting)


def _label_ends(axis, x, values, labels):
    """A label at the end of each line, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    gap, at = 0.075 * (high - min(0, low)), float("-inf")
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        at = max(value, at + gap)
        axis.annotate(
            labels[name], (x, value), (x * 1.03, at), fontsize=8, va="center", color=_COLORS.get(name, NEUTRAL)
        )
