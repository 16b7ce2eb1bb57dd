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

"""Compressors compared, as tables for the terminal and as a plot."""

import math
import os

from rich.markup import escape
from rich.table import Table

from ...common.extras import extra
from ...common.statistics import measured
from ...common.tables import console_table
from ..pages.labels import COMPARISON_READERS
from ..pages.plots import GIST, NEUTRAL, NULL, save_figure
from .compare import GENERATOR, NO_GIST, OWN_GENERATOR, READERS, TRAINED, co_trained


with extra("eval"):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


def comparison_tables(summary: list[dict], kind: str | None = None) -> list[Table]:
    """
    A table for each reader, the best compressor first; those that are missing come last, with the reason.

    Args:
        summary (`list[dict]`):
            Of [`summarize_comparison`].
        kind (`str`, *optional*):
            Of the targets, if it is of one kind alone.
    """
    tables = []
    for reader in _readers(summary):
        rows = sorted((row for row in summary if row.get("reader") == reader), key=lambda row: row["lost"])
        title = COMPARISON_READERS[reader] + ("" if kind is None else f", targets of kind {escape(repr(kind))}")
        recalled = ("exact",) if "exact" in rows[0] else ()
        headings = ("tokens", "bytes", "NLL", "lost against T(X)", "KL from T(X)", "behind the trained")
        if recalled:  # in the place of what is least missed
            headings = ("tokens", *headings[2:], *recalled)
        table = console_table(title, "Compressor", *headings, wrap=True)
        table.columns[0].no_wrap = True
        for row in rows:
            table.add_row(
                escape(row["compressor"]),
                f"{row['tokens']:.1f}",
                *([] if recalled else [f"{row['bytes']:.0f}"]),
                f"{row['nll']:.3f}",
                *(measured(row, name) for name in ("lost", "kl")),
                "" if row["compressor"] == TRAINED else measured(row, "behind_trained", sign="+"),
                *(f"{row[name]:.2f}" for name in recalled),
                style="bold" if row["compressor"] == TRAINED else None,
            )
        if reader != OWN_GENERATOR:
            for row in _unavailable(summary):
                table.add_row(escape(row["compressor"]), *["–"] * len(headings), style="dim")
        count = rows[0]
        read = "targets" if recalled or kind is not None else "windows"
        table.caption = "\n".join(
            [
                f"nats per target token ± standard error over documents; {count['windows']} {read} of "
                f"{count['documents']} documents; above 0 the trained summarizer is better",
                *(
                    f"not run: {escape(row['compressor'])}, {escape(row['unavailable'])}"
                    for row in _unavailable(summary)
                ),
            ]
        )
        table.caption_justify = "left"
        tables.append(table)
    return tables


def plot_comparison(summary: list[dict], path: str | os.PathLike):
    """
    Draws what each reader loses with each compressor's gists against the teacher that saw the whole context.

    Args:
        summary (`list[dict]`):
            Of [`summarize_comparison`].
        path (`str` or `os.PathLike`):
            Where to write it, without a suffix: a PNG and an SVG.
    """
    readers = _readers(summary)
    lost = {(row["compressor"], row["reader"]): row for row in summary if "reader" in row}
    names = [name for name, reader in lost if reader == GENERATOR]
    names.sort(key=lambda name: lost[name, GENERATOR]["lost"])
    missing = _unavailable(summary)
    figure = Figure(figsize=(3.4 + 3.2 * len(readers), 1.3 + 0.33 * (len(names) + len(missing))), layout="constrained")
    axes = figure.subplots(1, len(readers), sharey=True, sharex=True, squeeze=False)[0]
    for axis, reader in zip(axes, readers, strict=True):
        axis.axvline(lost[TRAINED, co_trained(reader)]["lost"], color=GIST, linewidth=0.8, alpha=0.6, zorder=0)
        for place, name in enumerate(names):
            if (name, reader) in lost:
                _draw_row(axis, place, lost[name, reader], {TRAINED: GIST, NO_GIST: NULL}.get(name, NEUTRAL))
        axis.set_title(COMPARISON_READERS[reader], loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.2)
        axis.tick_params(axis="y", length=0)
        axis.margins(x=0.12)  # for the last label
        axis.xaxis.set_major_locator(MaxNLocator(5))
    for place in range(len(names), len(names) + len(missing)):
        axes[0].annotate(
            "not run", (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=NEUTRAL
        )
    labels = [*names, *(row["compressor"] for row in missing)]
    axes[0].set_yticks(range(len(labels)), labels, fontsize=9)
    axes[0].set_ylim(len(labels) - 0.5, -0.7)
    axes[0].set_xlim(left=min(0, *(row["lost"] - row["lost_se"] for row in lost.values() if row["lost_se"] >= 0)))
    figure.supxlabel(
        "nats per target token lost against the teacher on the whole context ± standard error", fontsize=9
    )
    figure.suptitle(
        "What is left of a context after compression to the same length", x=0.01, ha="left", fontsize=11, weight="bold"
    )
    save_figure(figure, path)


def _draw_row(axis, place, row, color):
    axis.errorbar(row["lost"], place, xerr=row["lost_se"], fmt="o", color=color, markersize=6, capsize=3)
    error = 0 if math.isnan(row["lost_se"]) else row["lost_se"]
    axis.annotate(
        f"{row['lost']:.3f}",
        (row["lost"] + error, place),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=color,
    )


def _readers(summary):
    present = {row.get("reader") for row in summary}
    return [reader for reader in READERS if reader in present]


def _unavailable(summary):
    return [row for row in summary if "unavailable" in row]
