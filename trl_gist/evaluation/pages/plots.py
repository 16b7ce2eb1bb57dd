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
What all plots share, and two of a run: `plot_training` for the demo and the pair's card on the Hub, `plot_readers` for
the demo. The others are in `run_report`, `held_out`, `comparison`, `distance` and `gists`. Matplotlib's object
interface only: nothing here touches a user's own figures or backend.
"""

import os
from pathlib import Path

from ...common.extras import extra
from ...common.run_files import PLOTS_DIR
from ...common.statistics import standard_error
from .labels import CONTROLS, reader_labels


with extra("eval"):
    from matplotlib.figure import Figure


GIST, NULL, NEUTRAL = "#1f6f8b", "#c8553d", "#555555"
OCHRE, PLUM, GREEN = "#a5731b", "#6b4f9e", "#3d7a4a"
_READERS = ("gist", "tail", "last_k", "null", "shuffled")


def plot_training(log_history: list[dict], path: str | os.PathLike):
    """
    Draws the generator's distance to the teacher and what the gist buys, over the steps of a run.

    Args:
        log_history (`list[dict]`):
            `trainer.state.log_history`.
        path (`str` or `os.PathLike`):
            Where to write it, without a suffix: a PNG and an SVG.
    """
    train = [log for log in log_history if "teacher_kl" in log]
    held_out = [log for log in log_history if "eval_teacher_kl" in log]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    kl, gain = figure.subplots(1, 2)
    for axis, names in ((kl, ("teacher_kl", "null_teacher_kl")), (gain, ("log_prob_gain",))):
        for name, color in zip(names, (GIST, NULL), strict=False):
            _draw_smoothed(axis, [log["step"] for log in train], [log[name] for log in train], color)
    for name, color, label in (("teacher_kl", GIST, "with the gist"), ("null_teacher_kl", NULL, "empty gist")):
        _draw_held_out(kl, held_out, f"eval_{name}", color, label)
    _draw_held_out(gain, held_out, "eval_gain_over_null", GIST, f"over {CONTROLS['null']}")
    _draw_held_out(gain, held_out, "eval_gain_over_shuffled", NEUTRAL, f"over {CONTROLS['shuffled']}")
    plot_style(kl, "Distance to the teacher", "KL(teacher ‖ generator), nats per token")
    plot_style(gain, "What the gist buys", "gain in log-prob, nats per token")
    gain.axhline(0, color="black", linewidth=0.8)
    for axis in (kl, gain):
        axis.set_xlabel("step")
        low, high = axis.get_ylim()
        axis.set_ylim(min(0, low), high + 0.25 * (high - low))  # room for the legend
        axis.legend(frameon=False, fontsize=8, title="held out ± standard error", title_fontsize=8, loc="upper right")
    figure.suptitle("Lines: training rollouts, smoothed. Points: held-out documents.", fontsize=9, color=NEUTRAL)
    save_figure(figure, path)


def plot_readers(before: list[dict] | None, after: list[dict], path: str | os.PathLike):
    """
    Draws what each reader loses against the teacher that saw the whole context, before and after training. The loss is
    paired over windows: documents differ far more in difficulty than readers do.

    Args:
        before, after (`list[dict]`):
            Held-out windows after [`add_controls`]. `before` may be `None`.
        path (`str` or `os.PathLike`):
            Where to write it, without a suffix: a PNG and an SVG.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    lost = {name: _lost(after, name) for name in _READERS}
    names = sorted(_READERS, key=lambda name: lost[name][0])
    for row, name in enumerate(names):
        color = GIST if name == "gist" else NEUTRAL
        mean, error = lost[name]
        axis.errorbar(mean, row, xerr=error, fmt="o", color=color, markersize=7, capsize=3)
        axis.annotate(
            f"{mean:.3f}", (mean, row), (0, 8), textcoords="offset points", ha="center", fontsize=8, color=color
        )
        if before is not None and name in ("gist", "null", "shuffled"):  # the frozen teacher's readers do not change
            mean, error = _lost(before, name)
            axis.errorbar(mean, row, xerr=error, fmt="o", mfc="white", color=color, markersize=6, capsize=3)
    labels = reader_labels("generator", "teacher")
    axis.set_yticks(range(len(names)), [labels[name] for name in names], fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.7)
    axis.set_xlim(left=0)
    figure.supxlabel(
        "nats per token lost against the teacher that saw the whole context ± standard error over documents",
        fontsize=9,
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.2)
    title = "Predicting the next tokens of unseen documents"
    figure.suptitle(
        title + ("" if before is None else " (open: before training)"), x=0.01, ha="left", fontsize=10, weight="bold"
    )
    save_figure(figure, path)


def _lost(rows, name):
    lost = [row["teacher_log_prob"] - row[f"{name}_log_prob"] for row in rows]
    return sum(lost) / len(lost), standard_error(lost, [row["document_id"] for row in rows])


def _draw_smoothed(axis, steps, values, color, window=5):
    means = [
        sum(values[max(0, i - window + 1) : i + 1]) / (i - max(0, i - window + 1) + 1) for i in range(len(values))
    ]
    axis.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
    axis.plot(steps, means, color=color, alpha=0.7, linewidth=1.2)


def _draw_held_out(axis, logs, name, color, label):
    steps, values = [log["step"] for log in logs], [log[name] for log in logs]
    axis.errorbar(
        steps,
        values,
        yerr=[log[f"{name}_se"] for log in logs],
        fmt="o",
        color=color,
        capsize=3,
        markersize=5,
        label=label,
    )


def plot_style(axis, title, ylabel):
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axis.set_ylabel(ylabel, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.2)


def save_figures(directory: str | os.PathLike, figures: dict[str, Figure]) -> list[Path]:
    """Saves the figures of an evaluation's folder by their names in `plots/`; returns the PNGs."""
    for name, figure in figures.items():
        save_figure(figure, Path(directory, PLOTS_DIR, name))
    return [Path(directory, PLOTS_DIR, f"{name}.png") for name in figures]


def save_figure(figure: Figure, path: str | os.PathLike):
    """Writes a PNG and an SVG beside each other; `path` is without a suffix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(Path(path).with_suffix(suffix), dpi=160)
