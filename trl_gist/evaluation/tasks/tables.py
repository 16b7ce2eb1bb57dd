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

"""What the measures of tasks are called, and their tables: for the terminal, in Markdown and on the page alike."""

from ...common.statistics import is_number, measured, with_error
from ...common.tables import cell
from ..distance.labels import arm_labels, span


Table = tuple[str, list[str], list[tuple[str, list[str], bool]]]


def task_labels(report: dict, generator: str = "G", teacher: str = "T") -> dict[str, str]:
    """Those asked, in the order in which tables show them: T with everything first; see [`~pages.labels.reader_labels`]."""
    labels = arm_labels(report, generator, teacher) | {"recall": f"{generator}: rolling gist alone"}
    labels["full"] = f"{teacher}: all of the text"
    labels["tail"] = f"{teacher}: longer tail, last |L|+|Z|"
    labels |= {name: f"{teacher}: {name}, rolling" for name in report["compressors"]}
    return {arm: labels[arm] for arm in report["arms"]}


def task_tables(report: dict) -> list[Table]:
    """
    Two tables for each task, and one of how far the pair is ahead in all of them: title, headings, and lines of a
    label, cells, and whether they are the pair's own.
    """
    tables = []
    for task, measures in report["tasks"].items():
        longest = windows_label(measures["lengths"][-1]["windows"])
        for title, groups, names in (
            (
                f"{task}: right answers in %, by windows of the text",
                measures["lengths"],
                [f"{group['windows']} ({group['tokens']:,.0f} tokens)" for group in measures["lengths"]],
            ),
            (
                f"{task}: right answers in %, by age in windows, of texts of {longest} (0: the last)",
                measures["ages"],
                [span(group["first"], group["last"]) for group in measures["ages"]],
            ),
        ):
            lines = [("questions", [str(group["questions"]) for group in groups], False)]
            lines += [
                (label, [_percent(group, f"right_{arm}") for group in groups], arm in _own(report))
                for arm, label in task_labels(report).items()
            ]
            lines.insert(2, ("chance", [with_error(group["chance"], digits=1, scale=100) for group in groups], False))
            tables.append((title, ["answered from", *names], lines))
    return [*tables, _ahead(report)]


def _ahead(report):
    longest = {task: measures["lengths"][-1] for task, measures in report["tasks"].items()}
    (windows,) = {windows_label(found["windows"]) for found in longest.values()}
    lines = [
        (label, [_percent(found, f"ahead_of_{arm}", "+") for found in longest.values()], False)
        for arm, label in task_labels(report).items()
        if arm not in ("full", "pair", "recall")
    ]
    title = f"points by which the pair's rolling gist is ahead, paired by question, of texts of {windows}"
    return title, ["ahead of", *longest], lines


def task_sentences(report: dict) -> list[str]:
    """How the pair stands on the longest texts of each task: against T with everything, and chance."""
    sentences = []
    for task, measures in report["tasks"].items():
        found = measures["lengths"][-1]
        windows, ceiling = windows_label(found["windows"]), "T has too few positions for all of the text"
        if is_number(found["right_full"]):
            ceiling = f"T with all of the text {_percent(found, 'right_full')}%"
        sentences.append(
            f"{task[0].upper()}{task[1:]}, {windows}: the pair answers {_percent(found, 'right_pair')}% right, {ceiling}, "
            f"chance {100 * found['chance']:.1f}%."
        )
    return sentences


def markdown(report: dict) -> str:
    """All tables as Markdown."""
    parts = ["± standard error over documents."]
    for title, headings, lines in task_tables(report):
        rows = [headings, ["---", *["---:"] * (len(headings) - 1)]]
        rows += [[f"**{label}**" if own else label, *cells] for label, cells, own in lines]
        cells = (" | ".join(map(cell, row)) for row in rows)
        parts.append(f"## {title}\n\n" + "\n".join(f"| {row} |" for row in cells))
    return "\n\n".join(parts) + "\n"


def windows_label(count: int) -> str:
    return "1 window" if count == 1 else f"{count} windows"


def _own(report):
    return {"pair", "recall", *report["pairs"]}


def _percent(group, name, sign=""):
    return measured(group, name, 1, sign, 100)
