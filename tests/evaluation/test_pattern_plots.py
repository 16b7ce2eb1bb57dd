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

"""The figures of patterns hold the summaries' numbers, a fragment marks what survives, and the report has them."""

import html
import json
import math
import re

import numpy as np
import pytest


pytest.importorskip("matplotlib")

from trl_gist.evaluation.gists.pattern_plots import (
    blank_patterns,
    draw_patterns,
    draw_survival,
    plot_gists,
    survival_html,
)
from trl_gist.evaluation.gists.patterns import gist_patterns, summarize_patterns, survival
from trl_gist.evaluation.pages.render import spread
from trl_gist.evaluation.run_report.report import render
from trl_gist.evaluation.run_report.run_folder import read_run


CONTEXTS = {
    "a": "On the map of Soho, John Snow marked 82 houses. Then the handle of the pump was taken off, and it ended.",
    "b": "Years later the engineer Joseph Bazalgette built 1,300 miles of sewers below London, and it ended.",
}
GISTS = {0: {"a": "map Soho Snow 82", "b": "Years later"}, 5: {"a": "taken off, and it", "b": "London, and it"}}


@pytest.fixture
def rows():
    return [
        {"step": step, "document_id": name, "context": CONTEXTS[name], "gist": gist}
        | gist_patterns(CONTEXTS[name], gist, " Soho 82.", 4, 4)
        for step, gists in GISTS.items()
        for name, gist in gists.items()
    ]


@pytest.fixture
def summaries(rows):
    return {step: summarize_patterns([row for row in rows if row["step"] == step]) for step in GISTS}


@pytest.fixture
def folder(tmp_path):
    def make(gists):
        log = tmp_path / "run" / "run_log"
        log.mkdir(parents=True)
        windows = {
            name: {"document_id": name, "context": text, "last_k": " it ended.", "target": " Soho 82."}
            for name, text in CONTEXTS.items()
        }
        run = {"started": "2026-01-02T03:04:05+0000", "resumed": [], "ended": None, "max_steps": 5, "windows": windows}
        empty = {"base_models": {}, "recipe": {"max_completion_length": 4}, "changed": {}, "rewards": {}}
        (log / "run.json").write_text(json.dumps({**run, **empty, "environment": {}}))
        entries = [
            {"step": step, "window": name, "gist": gist, "gist_length": 4}
            for step, of_step in gists.items()
            for name, gist in of_step.items()
        ]
        (log / "gists.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        (log / "metrics.jsonl").write_text('{"step": 5, "teacher_kl": 0.5}\n')
        return tmp_path / "run"

    return make


def panels_of(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_title(loc="left")}


def test_each_line_and_band_is_a_summary(summaries):
    panels = panels_of(draw_patterns(summaries))
    (names, numbers) = panels["The target's facts kept"].lines
    assert list(names.get_xdata()) == list(numbers.get_xdata()) == [0, 5]
    assert list(names.get_ydata()) == list(numbers.get_ydata()) == [1, 0]
    axis = panels["What survives, by kind"]
    names = [f"{kind}_survival" for kind in ("name", "number", "other", "function", "punctuation")]
    for line, band, name in zip(axis.lines, axis.collections, names, strict=True):
        values, errors = (np.array([summaries[step][f"{name}{end}"] for step in (0, 5)]) for end in ("", "_se"))
        defined = np.isfinite(values)
        np.testing.assert_allclose(line.get_ydata(), values[defined])
        edges = band.get_paths()[0].vertices
        for step, value, error in zip(
            np.array([0, 5])[defined], values[defined], np.nan_to_num(errors[defined]), strict=True
        ):
            at_step = edges[edges[:, 0] == step, 1]
            assert (at_step.min(), at_step.max()) == pytest.approx((max(value - error, 0), value + error))
    assert {text.get_text() for text in axis.texts} == {"names", "numbers", "content", "function", "signs"}


def test_labels_stay_apart_and_within_their_panel(summaries):
    panels = panels_of(draw_patterns(summaries)).values()
    assert max(len(axis.texts) for axis in panels) > 2
    for axis in panels:
        low, high = axis.get_ylim()
        heights = sorted(text.get_position()[1] for text in axis.texts)
        assert all(above - below >= 0.0999 * (high - low) for below, above in zip(heights, heights[1:], strict=False))
        assert not heights or heights[-1] <= high


def test_what_no_gist_has_is_named_and_not_drawn(summaries):
    panels = panels_of(draw_patterns(summaries))
    blank = ["CJK characters", "Acronyms coined", "Words cut short or said again"]
    assert blank_patterns(summaries) == blank
    assert not {*blank, "Information"} & set(panels)  # of the last nothing is known
    assert draw_patterns({0: dict.fromkeys(summaries[0], math.nan)}) is None


def test_the_map_shows_the_shares_of_each_step(rows):
    found = survival(rows, bins=5)
    figure = draw_survival(found, last_k_start=0.8)
    (mesh,) = [collection for collection in figure.axes[0].collections if collection.get_array() is not None]
    np.testing.assert_allclose(np.ma.getdata(mesh.get_array()).reshape(2, 5), found.share_LB)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "5"]


def test_figures_are_written_as_png_and_svg(rows, tmp_path):
    plot_gists(rows, tmp_path / "plots")
    written = {path.name for path in (tmp_path / "plots").iterdir() if path.stat().st_size > 5000}
    assert written == {f"{name}.{suffix}" for name in ("patterns", "survival") for suffix in ("png", "svg")}


def test_a_fragment_marks_what_survives_and_escapes_the_rest():
    context = "A <b> cat & dog\nsat on\x00 the mat, the cat left."
    fragment = survival_html(context, "DOG sat; cat </div>")
    marks = re.findall(
        r'<mark style="background: rgba\(31, 111, 139, ([\d.]+)\); color: inherit">(.*?)</mark>', fragment
    )
    assert marks == [("0.2", "cat"), ("0.4", "dog↵sat"), ("0.2", "cat")]
    text = html.unescape(re.sub(r"<[^>]*>", "", fragment))
    assert text == "contextA <b> cat & dog↵sat on␀ the mat, the cat left.gistDOG sat; cat </div>"


def test_the_report_has_a_section_with_the_figures_and_a_context_of_each_window(folder):
    page = render(read_run(folder(GISTS)))
    section = page[page.index("<h2>What the gists keep</h2>") :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 2 and "± standard error over 2 documents" in section
    assert "has any of: CJK characters, Acronyms coined, Words cut short or said again." in section
    assert section.count("<details") == 2 and "What the gists of step 5 took" in section
    assert re.findall(r"<mark [^>]*>(.*?)</mark>", section) == ["taken off, and it", "London, and it"]
    assert "from here on the generator sees it anyway" in section
    assert "#1f6f8b" not in section  # colors follow the page's scheme


def test_a_run_without_gists_has_no_such_section(folder):
    assert "What the gists keep" not in render(read_run(folder({})))


def test_of_many_steps_the_first_and_the_last_are_shown():
    assert spread(list(range(0, 400, 5)), 16)[::15] == [0, 395] and len(spread(list(range(99)), 16)) == 16
    assert spread([0, 4], 16) == [0, 4]
