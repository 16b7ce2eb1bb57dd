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

"""The plots of tasks: who is drawn, in which color, and where."""

import warnings

import numpy as np
import pytest

from trl_gist.evaluation.tasks.page import _said
from trl_gist.evaluation.tasks.plots import plot_ages, plot_lengths


ARMS = ("full", "last_k", "tail", "zero_shot", "null", "single", "recall", "pair")
SHARES = {"last_k": 0.1, "tail": 0.3, "null": 0.2}


def make_report(tasks, pairs=(), compressors=("self-information",)):
    arms = [*ARMS, *compressors, *pairs]

    def group(**where):
        found = {"questions": 9, "documents": 3, "chance": 1 / 16, **where}
        for arm in arms:
            found |= {f"right_{arm}": SHARES.get(arm, 0.6), f"right_{arm}_se": 0.05}
        return found

    measures = {
        "lengths": [group(windows=windows, tokens=90.0 * windows) for windows in (1, 4)],
        "ages": [group(first=0, last=0), group(first=1, last=1), group(first=2, last=3)],
    }
    names = [*tasks, *(["all tasks"] if len(tasks) > 1 else [])]
    return {
        "tasks": dict.fromkeys(names, measures),
        "arms": arms,
        "pairs": {name: name for name in pairs},
        "compressors": list(compressors),
        "geometry": {"last_k": 8, "context_length": 64},
    }


def drawn(figure):
    """Axes by title; and without those that hold nothing."""
    return {axis.get_title(loc="left"): axis for axis in figure.axes if axis.axison}


@pytest.mark.parametrize(
    "tasks", [("needles",), ("ledger", "story"), ("ledger", "needles", "variables", "story", "dialogue")]
)
@pytest.mark.parametrize(("plot", "ticks"), [(plot_ages, ["0", "1", "2-3"]), (plot_lengths, ["1", "4"])])
def test_a_panel_for_each_task_and_a_large_one_for_all_of_several(tasks, plot, ticks):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of a layout that has no room
        figure = plot(make_report(tasks, ["a pair with quite a long name, as of its folder, and of its recipe too"]))
        figure.canvas.draw()
    axes = drawn(figure)
    assert set(axes) == {*tasks, *(["all tasks"] if len(tasks) > 1 else [])}
    for axis in axes.values():
        assert [label.get_text() for label in axis.get_xticklabels()] == ticks
    boxes = {title: axis.get_position() for title, axis in axes.items()}
    large = boxes.pop(list(axes)[0] if len(tasks) == 1 else "all tasks")
    assert all(box.width < 0.8 * large.width and box.y1 < large.y0 for box in boxes.values())


def test_a_text_of_one_window_is_called_so():
    report = make_report(["needles"])
    assert "of texts of 4 windows" in plot_ages(report).get_suptitle()
    report["tasks"]["needles"]["lengths"] = report["tasks"]["needles"]["lengths"][:1]
    assert plot_ages(report).get_suptitle().endswith("of texts of 1 window")


def test_who_has_the_end_alone_is_one_band_and_nobody_shares_a_color_and_a_line():
    figure = plot_ages(make_report(["needles", "story"], ["b", "c"], ["self-information", "head", "tf-idf"]))
    for axis in drawn(figure).values():
        lines = {line.get_label(): line for line in axis.lines}
        assert set(lines) == {
            *("teacher: all of the text", "teacher: its own rolling summary", "generator: rolling gist"),
            *("generator: rolling gist alone", "b: rolling gist", "c: rolling gist", "chance"),
            *(f"teacher: {name}, rolling" for name in ("self-information", "head", "tf-idf")),
        }
        looks = [(line.get_color(), line.get_linestyle()) for line in lines.values()]
        assert len(set(looks)) == len(looks)
        (band,) = [each for each in axis.collections if each.get_label() == "the text's end, without a gist"]
        low, high = np.array(band.get_datalim(axis.transData).intervaly)
        assert (low, high) == pytest.approx((10, 30))


def test_ages_are_said_in_words():
    assert [_said(age) for age in (0, 1, 2)] == [
        *("said in the last window", "said 1 window before the last", "said 2 windows before the last"),
    ]
