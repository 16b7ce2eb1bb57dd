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

"""What a run's report says of its gists: from those of fixed held-out windows in the run's log."""

from ...common.extras import extra
from ...common.text_units import Units
from ..gists.pattern_plots import blank_patterns, draw_patterns, draw_survival, survival_html, visible
from ..gists.patterns import gist_patterns, summarize_patterns, survival
from ..pages.render import spread
from .plots import STYLE, Plot, page_svg


with extra("eval"):
    import matplotlib


_MAX_MAP_LINES = 16
_CURVES = (
    "Copied: the share of a gist's words, pairs and runs of four that stand in the context. Names are capitalised "
    "words that do not only start sentences; function words are articles, pronouns, prepositions, conjunctions and "
    "auxiliaries."
)
_MAP = (
    "A line for each step; from left to right the context. Copies are the longest runs of words that the gist and the "
    "context have in common; of a run that stands there several times, each place gets its part."
)


def draw_gists(windows: dict[str, dict], gists: dict[tuple[str, int], dict], max_gist_length: int | None) -> dict:
    """
    Draws the patterns of a run's logged gists.

    Args:
        windows (`dict[str, dict]`):
            The held-out windows of `run.json`, as text, by name.
        gists (`dict[tuple[str, int], dict]`):
            The entry of `gists.jsonl` for each window and step.
        max_gist_length (`int`, *optional*):
            The most tokens a gist could have.

    Returns:
        `dict`: For the page: `plots` ([`Plot`]); `fragments`, a document and its HTML for each window, at the last
        `step`; the titles of what is `blank`; and how many `windows` and `documents`. Empty without gists.
    """
    rows = pattern_rows(windows, gists, max_gist_length)
    if not rows:
        return {}
    steps = sorted({row["step"] for row in rows})
    summaries = {step: summarize_patterns([row for row in rows if row["step"] == step]) for step in steps}
    shown = spread(steps, _MAX_MAP_LINES)
    with matplotlib.rc_context(STYLE):
        figure = draw_patterns(summaries)
        plots = [] if figure is None else [Plot("Patterns over training", _CURVES, page_svg(figure, "patterns"))]
        figure = draw_survival(
            survival([row for row in rows if row["step"] in shown]), _last_k_start(windows.values())
        )
        plots.append(Plot("Which places of the context survive", _MAP, page_svg(figure, "survival")))
    last = [row for row in rows if row["step"] == steps[-1]]
    return {
        "plots": plots,
        "blank": blank_patterns(summaries),
        "step": steps[-1],
        "fragments": [(visible(row["document_id"]), survival_html(row["context"], row["gist"])) for row in last],
        "windows": len({name for name, _ in gists} & windows.keys()),
        "documents": len({row["document_id"] for row in rows}),
    }


def pattern_rows(
    windows: dict[str, dict], gists: dict[tuple[str, int], dict], max_gist_length: int | None
) -> list[dict]:
    """The [`gist_patterns`] of a run's logged gists, fit for [`~evaluation.gists.pattern_plots.plot_gists`]."""
    return [
        _row(windows[name], gist, step, max_gist_length) for (name, step), gist in gists.items() if name in windows
    ]


def _row(window, gist, step, max_gist_length):
    context = window["context"]
    patterns = gist_patterns(context, gist["gist"], window["target"], gist["gist_length"], max_gist_length)
    names = {"document_id": str(window["document_id"]), "step": step, "context": context, "gist": gist["gist"]}
    return names | patterns


def _last_k_start(windows):
    """Where L begins in X, as a share of its units, on average; `None` where L is not the end of X."""
    pairs = [(window["context"], window["last_k"]) for window in windows]
    if not all(last_k and context.endswith(last_k) for context, last_k in pairs):
        return None
    total = sum(len(Units(context).words) for context, _ in pairs)
    return sum(len(Units(context[: -len(last_k)]).words) for context, last_k in pairs) / total
