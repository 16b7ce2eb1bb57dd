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

"""Figures of what gists look like, and a context with the words marked that live on in its gist."""

import itertools
import os
import re
from pathlib import Path

import jinja2
import numpy as np

from ...common.extras import extra
from ..pages.plots import GIST, GREEN, NEUTRAL, NULL, OCHRE, PLUM, save_figure
from .patterns import Survival, summarize_patterns, survival, survival_pieces


with extra("eval"):
    from matplotlib.colors import LinearSegmentedColormap, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter


# Title, what the numbers are, whether they are shares of a whole, and each line's label and color
_PANELS = (
    (
        "Copied from the context",
        "share of the gist's n-grams",
        True,
        {"copy_rate_1": ("words", GIST), "copy_rate_2": ("pairs", OCHRE), "copy_rate_4": ("fours", NULL)},
    ),
    (
        "What survives, by kind",
        "share of the context's units",
        True,
        {
            "name_survival": ("names", GIST),
            "number_survival": ("numbers", NULL),
            "other_survival": ("content", GREEN),
            "function_survival": ("function", PLUM),
            "punctuation_survival": ("signs", NEUTRAL),
        },
    ),
    (
        "Facts kept",
        "share of those in the context",
        True,
        {"name_recall": ("names", GIST), "number_recall": ("numbers", NULL), "date_recall": ("dates", OCHRE)},
    ),
    (
        "The target's facts kept",
        "share of those in both",
        True,
        {
            "name_recall_in_target": ("names", GIST),
            "number_recall_in_target": ("numbers", NULL),
            "date_recall_in_target": ("dates", OCHRE),
        },
    ),
    (
        "Function words",
        "share of units",
        True,
        {"function_share": ("gists", GIST), "context_function_share": ("contexts", NEUTRAL)},
    ),
    (
        "Punctuation",
        "share of units",
        True,
        {"punctuation_share": ("gists", GIST), "context_punctuation_share": ("contexts", NEUTRAL)},
    ),
    ("Cut mid-sentence", "share of gists", True, {"cut_mid_sentence": ("", GIST)}),
    ("CJK characters", "share of units", True, {"cjk_share": ("", GIST)}),
    ("Acronyms coined", "a gist", False, {"acronyms_coined": ("", GIST)}),
    (
        "Words cut short or said again",
        "share",
        True,
        {"shortened_share": ("cut short", GIST), "repeated_share": ("said again", NULL)},
    ),
    ("Information", "bits per gist token", False, {"bits_per_token": ("", GIST)}),
)
_COLUMNS = 4
# How much of a unit's mark shows: all of it would hide the word
_FAINT = 0.4

_FRAGMENT = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
    '<div style="display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); gap: .3rem 2rem">'
    "<div><small>context</small>"
    '<div style="white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate">'
    "{% for text, opacity in pieces %}"
    '{% if opacity %}<mark style="background: rgba({{ color }}, {{ opacity }}); color: inherit">{{ text }}</mark>'
    "{% else %}{{ text }}{% endif %}{% endfor %}</div></div>"
    "<div><small>gist</small>"
    '<div style="white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; font-weight: 600">{{ gist }}'
    "</div></div></div>"
)


def plot_gists(rows: list[dict], directory: str | os.PathLike):
    """
    Writes `patterns` and `survival`, each as PNG and SVG, into a folder.

    Args:
        rows (`list[dict]`):
            [`~evaluation.gists.patterns.gist_patterns`] of gists, with their `step`, `document_id`, and `context` and
            `gist` as text.
        directory (`str` or `os.PathLike`):
            Where to write them.
    """
    steps = sorted({row["step"] for row in rows})
    figure = draw_patterns({step: summarize_patterns([row for row in rows if row["step"] == step]) for step in steps})
    if figure is not None:
        save_figure(figure, Path(directory, "patterns"))
    save_figure(draw_survival(survival(rows)), Path(directory, "survival"))


def draw_patterns(summaries: dict[int, dict[str, float]]) -> Figure | None:
    """
    Draws the patterns over training as small multiples, each with a band of ± its standard error over documents. A
    panel without a number, or of nothing but zeros, is left out; `None` if all of them are.

    Args:
        summaries (`dict[int, dict[str, float]]`):
            For each step [`~evaluation.gists.patterns.summarize_patterns`] of its gists.
    """
    panels = [panel for panel in _PANELS if not _is_blank(summaries, panel[3])]
    if not panels:
        return None
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(12, 2.5 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True).flat
    for axis, (title, ylabel, is_share, lines) in itertools.zip_longest(axes, panels, fillvalue=(None,) * 4):
        if title is None:
            axis.set_axis_off()
            continue
        axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
        axis.set_ylabel(ylabel, fontsize=8)
        ends = [_draw_line(axis, summaries, name, color) for name, (_, color) in lines.items()]
        axis.set_ylim(bottom=0)
        if is_share:
            _, high = axis.get_ylim()
            axis.set_ylim(0, 1.04 if high > 0.6 else max(high, 0.05))
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _label_ends(axis, [(end, *line) for end, line in zip(ends, lines.values(), strict=True) if end is not None])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.6, alpha=0.4)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.set_xlabel("step", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def blank_patterns(summaries: dict[int, dict[str, float]]) -> list[str]:
    """Titles of the panels that [`draw_patterns`] leaves out because all gists have zero of it."""
    return [
        title
        for title, _, _, lines in _PANELS
        if _is_blank(summaries, lines)
        and any(np.isfinite(summary[name]) for name in lines for summary in summaries.values())
    ]


def draw_survival(found: Survival, last_k_start: float | None = None, ylabel: str = "step") -> Figure:
    """
    Draws which places of the contexts survive: a line for each step, a column for each stretch of the context.

    Args:
        found ([`~evaluation.gists.patterns.Survival`]):
            The map.
        last_k_start (`float`, *optional*):
            Where in the context, from 0 to 1, the last tokens begin that the generator sees anyway.
        ylabel (`str`, *optional*, defaults to `"step"`):
            What a line is.
    """
    lines, bins = found.share_LB.shape
    figure = Figure(figsize=(12, 1.3 + 0.26 * max(lines, 2)), layout="constrained")
    axis = figure.subplots()
    # Of one color, from clear to full, so that zero is the page, be it light or dark
    colors = LinearSegmentedColormap.from_list("gist", [(*to_rgb(GIST), 0.0), (*to_rgb(GIST), 1.0)], N=32)
    edges_B, edges_L = np.linspace(0, 1, bins + 1), np.arange(lines + 1) - 0.5
    mesh = axis.pcolormesh(
        edges_B, edges_L, np.ma.masked_invalid(found.share_LB), cmap=colors, vmin=0, vmax=1, linewidth=0
    )
    axis.set_yticks(range(lines), [str(label) for label in found.labels], fontsize=8)
    axis.set_ylim(lines - 0.5, -0.5)
    axis.set_xlim(0, 1)
    ticks = axis.set_xticks(np.linspace(0, 1, 5), ["start of the context", "25%", "50%", "75%", "its end"], fontsize=8)
    ticks[0].label1.set_horizontalalignment("left")
    ticks[-1].label1.set_horizontalalignment("right")
    for line in range(1, lines):
        axis.axhline(line - 0.5, color=NEUTRAL, alpha=0.25, linewidth=0.6)
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_ylabel(ylabel, fontsize=9)
    if last_k_start is not None:
        axis.axvline(last_k_start, color=NULL, linewidth=1.2)
        axis.annotate(
            "from here on the generator sees it anyway ",
            (last_k_start, 1),
            (-4, 3),
            xycoords=axis.get_xaxis_transform(),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=NULL,
        )
    bar = figure.colorbar(mesh, ax=axis, pad=0.01, aspect=12, format=PercentFormatter(1, decimals=0))
    bar.set_label("of the words and signs\nthere, kept", fontsize=8)
    bar.set_ticks([0, 0.5, 1])
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def survival_html(context: str, gist: str) -> str:
    """
    A fragment of HTML: the context beside its gist, with what of it survives marked, the fainter the more places a
    copy may come from; see [`~evaluation.gists.patterns.text_survival`]. It brings its own style and has no ids.
    """
    pieces = [(visible(text), round(_FAINT * share, 2)) for text, share in survival_pieces(context, gist)]
    color = ", ".join(str(round(255 * part)) for part in to_rgb(GIST))
    return _FRAGMENT.render(pieces=pieces, gist=visible(gist), color=color)


def visible(text: str) -> str:
    """Line ends and control characters as signs: a model may write anything."""
    return re.sub(
        r"[\x00-\x1f\x7f]", lambda char: "↵" if char[0] == "\n" else chr(0x2400 + min(ord(char[0]), 0x21)), text
    )


def _is_blank(summaries, lines):
    """The context's own level is no finding."""
    names = [name for name in lines if not name.startswith("context_")]
    return not any(np.nan_to_num(summary[name]) != 0 for name in names for summary in summaries.values())


def _draw_line(axis, summaries, name, color):
    """The last value, or `None` if there is none."""
    steps = [step for step in sorted(summaries) if np.isfinite(summaries[step][name])]
    if not steps:
        return None
    values, errors = (np.array([summaries[step][f"{name}{end}"] for step in steps]) for end in ("", "_se"))
    errors = np.nan_to_num(errors)
    is_context = name.startswith("context_")
    if not is_context:
        axis.fill_between(steps, np.maximum(values - errors, 0), values + errors, color=color, alpha=0.15, linewidth=0)
    axis.plot(
        steps,
        values,
        color=color,
        linewidth=1 if is_context else 1.5,
        linestyle="--" if is_context else "-",
        marker=None if is_context and len(steps) > 1 else "o",
        markersize=3,
    )
    return values[-1]


def _label_ends(axis, ends):
    """Each line's name at its right end, moved apart where they would meet."""
    low, high = axis.get_ylim()
    gap = 0.1 * (high - low)
    ends = sorted(ends)
    heights = [value for value, _, _ in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    ceiling = high
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - gap
    for height, (_, label, color) in zip(heights, ends, strict=True):
        axis.text(
            1.02,
            height,
            label,
            color=color,
            fontsize=8,
            va="center",
            transform=axis.get_yaxis_transform(),
            clip_on=False,
        )
