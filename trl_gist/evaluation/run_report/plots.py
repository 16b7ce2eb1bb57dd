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
The figures of a run's report, as SVG to be put into a page: text stays text, colors are the page's CSS variables (so
that they follow its light or dark scheme), and ids do not meet those of another figure.

A figure whose scalars the run did not log is left out.
"""

import io
import re
from dataclasses import dataclass, replace

import numpy as np

from ...common.extras import extra
from ...common.statistics import is_number
from ..pages.labels import CONTROLS
from ..pages.plots import GIST, GREEN, NEUTRAL, NULL, OCHRE, PLUM
from ..pages.render import own_ids


with extra("eval"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


INK, _GRID, _PAPER = "#1b1f24", "#d9dde2", "#fefefe"
_CSS = {
    **{GIST: "gist", NULL: "null", NEUTRAL: "neutral", INK: "ink", _GRID: "grid", _PAPER: "paper"},
    **{OCHRE: "ochre", PLUM: "plum", GREEN: "green"},
}
_CYCLE = (GIST, NULL, OCHRE, PLUM, GREEN, NEUTRAL)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trl_gist",
    "text.parse_math": False,  # a user's metric may have a $ in its name
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "grid.color": _GRID,
}
_MAX_POINTS = 250


@dataclass(frozen=True)
class Plot:
    """A figure of the page: its title, what a reader has to know, and the SVG."""

    title: str
    caption: str
    svg: str


def series(logs: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a scalar, without NaNs; of several logs at a step the last counts."""
    values = {log["step"]: log[name] for log in logs if is_number(log.get(name))}
    steps = sorted(values)
    return np.array(steps, dtype=float), np.array([values[step] for step in steps], dtype=float)


def draw_run(train: list[dict], held_out: list[dict], prefix: str, config: dict) -> list[Plot]:
    """
    Draws what a run logged.

    Args:
        train, held_out (`list[dict]`):
            The logs of training and of evaluations, each with its `step`.
        prefix (`str`):
            What the names of the held-out measures begin with, as `"eval_"`.
        config (`dict`):
            The run's recipe; of it `max_completion_length`, `target_gist_length` and `gist_length_range` are drawn.
    """
    page = _Page(train, held_out, prefix, config)
    with matplotlib.rc_context(STYLE):
        plots = [
            page.distance(),
            page.gain(),
            page.controls(),
            page.length(),
            page.price(),
            page.reward(),
            page.spread("Reward spread: signal and noise", "nats per token", ("signal/", "noise/")),
            page.spread("Reliability of the reward", "share", ("reliability/",)),
            page.flat_groups(),
            page.curves("Entropy of the summarizer", "nats per gist token", ["entropy"]),
            page.curves(
                "Gradient norms", "before clipping", {"grad_norm": "summarizer", "generator/grad_norm": "generator"}
            ),
            page.curves(
                "Learning rates",
                "learning rate",
                {"learning_rate": "summarizer", "generator/learning_rate": "generator"},
                smooth=False,
            ),
            page.alarms(),
        ]
    drawn = [plot for plot in plots if plot is not None]
    return [replace(plot, svg=own_ids(plot.svg, f"plot{number}-")) for number, plot in enumerate(drawn)]


def page_svg(figure: Figure, name: str) -> str:
    """A figure drawn in `STYLE` as SVG for the page, in its colors; `name` tells its ids from those of others."""
    return own_ids(_svg(figure), f"{name}-")


class _Page:
    def __init__(self, train, held_out, prefix, config):
        self.train, self.held_out, self.prefix, self.config = train, held_out, prefix, config
        steps = [log["step"] for log in (*train, *held_out)]
        self.span = (min(steps), max(steps)) if steps else (0, 1)
        self.cold_start = _ranges(*series(train, "cold_start"))

    def distance(self):
        axis = self._axis("KL(teacher ‖ generator), nats")
        labels = {"teacher_kl": (GIST, "with the gist"), "null_teacher_kl": (NULL, "empty gist")}
        drawn = [
            self._curve(axis, name, color, label) | self._points(axis, name, color, label)
            for name, (color, label) in labels.items()
        ]
        axis.set_ylim(bottom=0)
        return self._done(
            axis,
            drawn,
            "Distance to the teacher",
            "How far the generator is from a model that saw all of the context.",
        )

    def gain(self):
        axis = self._axis("gain in log-prob, nats per token")
        axis.axhline(0, color=INK, linewidth=0.8)
        drawn = [
            self._curve(axis, "log_prob_gain", GIST, f"over {CONTROLS['null']}"),
            self._points(axis, "gain_over_null", GIST, f"over {CONTROLS['null']}"),
            self._points(axis, "gain_over_shuffled", OCHRE, f"over {CONTROLS['shuffled']}"),
        ]
        return self._done(axis, drawn, "What the gist buys", "Zero would mean that the generator makes no use of it.")

    def price(self):
        _, values = series(self.train, "length_penalty")
        if len(set(values)) < 2:  # a fixed one is in the recipe
            return None
        return self.curves("The price of a token, λ", "nats per target token, each gist token", ["length_penalty"])

    def controls(self):
        """What the gist gains over each control, before and after."""
        logs = [log for log in self.held_out if is_number(log.get(f"{self.prefix}gain_over_null"))]
        if not logs:
            return None
        axis = Figure(figsize=(5.4, 3.0), layout="constrained").subplots()
        axis.axvline(0, color=INK, linewidth=0.8)
        names = ("null", "shuffled", "last_k", "tail")
        rows = [name for name in names if is_number(logs[-1].get(f"{self.prefix}gain_over_{name}"))]
        shown = [(logs[0], False), (logs[-1], True)] if len(logs) > 1 else [(logs[-1], True)]
        for row, name in enumerate(rows):
            for log, filled in shown:
                value, error = log.get(f"{self.prefix}gain_over_{name}"), log.get(f"{self.prefix}gain_over_{name}_se")
                if not is_number(value):
                    continue
                color = GIST if filled else NEUTRAL
                axis.errorbar(
                    value,
                    row + (0.12 if filled else -0.12) * (len(logs) > 1),
                    xerr=error if is_number(error) else None,
                    fmt="o",
                    color=color,
                    mfc=color if filled else _PAPER,
                    capsize=3,
                    label=f"step {log['step']}" if row == 0 else None,
                )
        axis.set_yticks(range(len(rows)), [CONTROLS[name] for name in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.figure.supxlabel("the gist's gain, nats per token ± standard error", fontsize=9)
        axis.grid(axis="x", linewidth=0.6)
        if len(logs) > 1:
            axis.figure.legend(loc="outside upper right", ncols=2)
        caption = "Held-out documents. Right of zero the gist is the better note to leave, left of it the control is."
        return Plot("Against each control", caption, _svg(axis.figure))

    def length(self):
        axis = self._axis("tokens a gist")
        steps, low = series(self.train, "completions/min_length")
        high_steps, high = series(self.train, "completions/max_length")
        if len(steps) and np.array_equal(steps, high_steps):
            bins = _bins(len(steps))
            axis.fill_between(
                *(_means(values, bins) for values in (steps, low, high)), color=GIST, alpha=0.12, linewidth=0
            )
        drawn = [
            self._curve(axis, "gist_length", GIST, "rollouts, mean", band=False),
            self._points(axis, "gist_length", GIST, "held out"),
        ]
        limits = {"max_completion_length": ("longest allowed", ":"), "target_gist_length": ("target", "--")}
        for name, (label, line) in limits.items():
            if is_number(self.config.get(name)):
                axis.axhline(self.config[name], color=NULL, linewidth=1, linestyle=line, label=label)
        if isinstance(self.config.get("gist_length_range"), list):
            axis.axhspan(*self.config["gist_length_range"], color=OCHRE, alpha=0.12, linewidth=0, label="budgets")
        axis.set_ylim(bottom=0)
        return self._done(axis, drawn, "Gist length", "Shaded: the shortest and the longest gist of a rollout.")

    def reward(self):
        axis = self._axis("reward, nats per token")
        steps, mean = series(self.train, "reward")
        std_steps, std = series(self.train, "reward_std")
        if len(steps) and np.array_equal(steps, std_steps):
            bins = _bins(len(steps))
            steps, mean, std = (_means(values, bins) for values in (steps, mean, std))
            axis.fill_between(steps, mean - std, mean + std, color=GIST, alpha=0.12, linewidth=0)
        drawn = [self._curve(axis, "reward", GIST, None, band=False)]
        return self._done(axis, drawn, "Reward", "Shaded: ± standard deviation over a rollout's gists.")

    def spread(self, title, ylabel, prefixes):
        names = sorted({name for log in self.train for name in log if name.startswith(prefixes)})
        return self.curves(title, ylabel, names)

    def flat_groups(self):
        name = "frac_reward_zero_std"
        if not series(self.train, name)[1].any():
            return None
        return self.curves("Groups whose gists all earn the same", "share of contexts", [name])

    def curves(self, title, ylabel, names, smooth=True):
        """`names`: scalars of training, or a dict with their labels."""
        axis = self._axis(ylabel)
        labels = names if isinstance(names, dict) else {name: name if len(names) > 1 else None for name in names}
        drawn = [
            self._curve(axis, name, _CYCLE[number % len(_CYCLE)], label, band=smooth, smooth=smooth)
            for number, (name, label) in enumerate(labels.items())
        ]
        low = [series(self.train, name)[1].min() for name in labels if len(series(self.train, name)[1])]
        if low and min(low) >= 0:
            axis.set_ylim(bottom=0)
        return self._done(axis, drawn, title, "")

    def alarms(self):
        names = sorted({name for log in self.train for name in log if name.startswith("alarm/")})
        if not names:
            return None
        axis = self._axis("", height=0.9 + 0.32 * len(names))
        for row, name in enumerate(names):
            steps, values = series(self.train, name)
            axis.axhline(row, color=_GRID, linewidth=1)
            axis.plot(steps[values > 0], np.full((values > 0).sum(), row), "s", color=NULL, markersize=5)
        axis.set_yticks(range(len(names)), [name.removeprefix("alarm/") for name in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(False)
        return self._done(axis, [True], "Alarms", "A mark at each log at which the alarm was on.")

    # ---- Parts ----

    def _axis(self, ylabel, height=3.0):
        axis = Figure(figsize=(5.4, height), layout="constrained").subplots()
        axis.set_xlabel("step")
        axis.set_ylabel(ylabel)
        axis.grid(axis="y", linewidth=0.6)
        low, high = self.span
        margin = 0.02 * max(high - low, 1)
        axis.set_xlim(low - margin, high + margin)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for start, end in self.cold_start:
            axis.axvspan(start - 0.5, end + 0.5, color=NEUTRAL, alpha=0.12, linewidth=0)
            axis.text(
                start, 1, " cold start", transform=axis.get_xaxis_transform(), va="top", fontsize=7, color=NEUTRAL
            )
        return axis

    def _curve(self, axis, name, color, label, band=True, smooth=True):
        steps, values = series(self.train, name)
        if not len(steps):
            return False
        mean, error = _rolling(values) if smooth else (values, None)
        bins = _bins(len(steps))
        if smooth:
            axis.plot(*(_means(column, bins) for column in (steps, values)), color=color, alpha=0.3, linewidth=0.7)
        steps, mean = _means(steps, bins), _means(mean, bins)
        if band and smooth:
            error = _means(error, bins)
            axis.fill_between(steps, mean - error, mean + error, color=color, alpha=0.18, linewidth=0)
        marker = "o" if len(steps) == 1 else None
        axis.plot(steps, mean, color=color, linewidth=1.5, marker=marker, markersize=3, label=label)
        return True

    def _points(self, axis, name, color, label):
        steps, values = series(self.held_out, f"{self.prefix}{name}")
        if not len(steps):
            return False
        error_of = dict(zip(*series(self.held_out, f"{self.prefix}{name}_se"), strict=True))
        errors = [error_of.get(step, 0) for step in steps]
        labels = axis.get_legend_handles_labels()[1]
        axis.errorbar(
            steps,
            values,
            yerr=errors,
            fmt="o",
            color=color,
            capsize=3,
            markersize=5,
            label=None if label in labels else label,
        )
        return True

    def _done(self, axis, drawn, title, caption):
        if not any(drawn):
            return None
        if axis.get_legend_handles_labels()[0]:
            axis.figure.legend(loc="outside upper left", ncols=3)
        return Plot(title, caption, _svg(axis.figure))


def smoothing_window(count: int) -> int:
    """Logs that a smoothed curve of `count` logs averages at each point."""
    return max(5, count // 20)


def _rolling(values):
    """Means over a window about each log, and their standard errors."""
    half = smoothing_window(len(values)) // 2
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    errors = [window.std(ddof=1) / len(window) ** 0.5 if len(window) > 1 else 0.0 for window in windows]
    return np.array([window.mean() for window in windows]), np.array(errors)


def _bins(count):
    return np.array_split(np.arange(count), min(count, _MAX_POINTS))


def _means(values, bins):
    """Keeps the page small: no curve has more points than a screen shows."""
    return np.array([values[indices].mean() for indices in bins])


def _ranges(steps, values):
    """Stretches of steps at which a 0/1 scalar was on."""
    ranges, last = [], None
    for step, value in zip(steps, values, strict=True):
        if value > 0 and last:
            ranges[-1] = (ranges[-1][0], step)
        elif value > 0:
            ranges.append((step, step))
        last = value > 0
    return ranges


def _svg(figure):
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # Of a path's coordinates, in points, two digits are enough
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = re.sub("#[0-9a-f]{6}", lambda color: f"var(--{_CSS[color[0]]})" if color[0] in _CSS else color[0], svg)
    return svg
