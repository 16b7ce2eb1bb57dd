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

"""research/results: the shares and counts that docs/RESULTS.md prints."""

import json

import pytest

from research.memory.readers import ahead_table, right_answers, rows_of, table
from research.memory.readers import plot as plot_ages
from research.results.frozen_readers import KINDS, plot, print_tables, shares
from research.results.gallery import gallery


def write(folder, label, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{label}.json").write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture
def readings(tmp_path):
    """Of a reader: two articles with a target of each kind; `tail` gains nothing, `tf-idf` half of what the text does."""
    base = [{"document_id": name, "kind": kind} for name in "ab" for kind in KINDS]
    none, full = 10.0, 4.0
    write(tmp_path / "teacher", "alone", [row | {"none_nats": none, "full_nats": full} for row in base])
    for budget in (8, 16, 32):
        write(tmp_path / "teacher", f"tail at {budget}", [row | {"gist_nats": none} for row in base])
        nats = {"a": 6.0, "b": 8.0}  # 4 and 2 of 6
        own = [row | {"gist_nats": nats[row["document_id"]]} for row in base]
        write(tmp_path / "teacher", f"tf-idf at {budget}", own)
    return tmp_path


def test_a_share_is_of_the_sums_and_its_error_is_over_articles(readings):
    found = shares(readings / "teacher")
    assert found["tail", 16, "fact"] == (0, 0)
    share, error = found["tf-idf", 16, "fact"]
    assert share == pytest.approx((4 + 2) / (6 + 6))
    # Residuals 1 and -1 of 12, two articles: sqrt(2 * 2/1) / 12
    assert error == pytest.approx(2 / 12)


def test_tables_and_curves_have_every_hand_and_kind(readings, capsys):
    print_tables(readings)
    said = capsys.readouterr().out
    assert "2 facts, 2 sentences, 2 next tokens, 2 128 tokens on of 2 articles" in said
    assert said.index("| tf-idf | 0.50 ± 0.17") < said.index("| tail | 0.00 ± 0.00")
    panels = plot(readings).axes
    assert [panel.get_title(loc="left") for panel in panels] == list(KINDS.values())
    assert all(len(panel.lines) >= 2 for panel in panels)


def test_right_answers_are_counted_by_age_with_errors_over_texts():
    rows = [
        {"document_id": "a", "questions": [{"age": 0}, {"age": 4}]},
        {"document_id": "b", "questions": [{"age": 1}, {"age": 7}]},
    ]
    right = {"walks": [True, True, False, True]}
    head, _, asked, walks = table(rows, right)
    assert head == "| answered from | said 0-1 windows ago | said 4-7 windows ago | all |"
    assert asked == "| questions | 2 | 2 | 4 |"
    # Half of the first two, one each text: 0.5; of all, residuals 0.5 and -0.5 of 4: sqrt(2 * 0.5) / 4
    assert walks == "| walks | 1, 50 ± 50% | 2, 100 ± 0% | 3, 75 ± 25% |"
    (axis,) = plot_ages(rows, right, {"walks": "black"}).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0-1", "4-7"]


def test_who_was_not_asked_all_questions_is_no_wrong_answer():
    asked = {"pair": [True, False], "full": [True]}
    rows = [
        {"questions": [{"right": {arm: own[place] for arm, own in asked.items() if place < len(own)}}]}
        for place in (0, 1)
    ]
    assert right_answers(rows, ["pair", "other"]) == {"pair": [True, False]}
    assert right_answers(rows[:1], ["full"]) == {"full": [True]}
    with pytest.raises(ValueError, match="'full' was asked 1 of 2 questions: give folders of the same pairs"):
        right_answers(rows, ["pair", "full"])


def test_pairs_are_held_against_others_by_question(tmp_path):
    rows = [
        {"document_id": "a", "task": "needles", "questions": [{"age": 0}, {"age": 4}]},
        {"document_id": "a", "task": "ledger", "questions": [{"age": 5}]},
    ]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = rows_of([tmp_path / "one", tmp_path / "two"])
    assert [row["document_id"] for row in rows] == ["0/a", "0/a", "1/a", "1/a"]
    right = {"A": [1, 1, 1] * 2, "B": [1, 0, 1] * 2, "single": [0, 0, 0, 0, 0, 1]}
    head, _, line = ahead_table(rows, right, ["A", "B"])
    assert head == "| A and B, ahead of | said 4 windows ago and more | all | all of needles | all of ledger |"
    # Of 0.5, 1 | 0.5, 0, over texts: residuals of the sums 0.5 and -0.5, sqrt(2 * 0.5) / 4; of all 2.5 and 1.5 of 6
    assert line == "| single | 50 ± 25 | 67 ± 17 | 75 ± 0 | 50 ± 50 |"


def test_the_gallery_has_every_gist_and_no_markdown_of_theirs(tmp_path):
    windows, tasks = tmp_path / "windows", tmp_path / "tasks"
    asked = [{"cue": "Rome is", "answer": " old"}, {"cue": "Oslo is", "answer": " cold"}]
    rows = {
        windows: [
            {"document_id": "a", "context": "one\ntwo", "gist": "a|b"},
            {"document_id": "a", "context": "", "gist": ""},
        ],
        tasks: [
            {"document_id": "t", "questions": asked, "gists": {"pair": "*c*", "zero_shot": "unread", "other": "x_y"}}
        ],
    }
    for folder, own in rows.items():
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
        pairs = {"pairs": {"other": "OTHER"}} if folder == tasks else {}
        (folder / "measures.json").write_text(json.dumps(pairs), encoding="utf-8")
    lines = gallery({"Windows": windows, "Tasks": tasks})
    assert lines[:6] == ["## Windows", "", "**a, 1**", "", "- *context, its end*: …one two", r"- *gist*: a\|b"]
    assert "- *gist*: (nothing)" in lines
    assert "- *asked for*: Rome is old; Oslo is cold" in lines
    assert r"- *gist*: \*c\*" in lines and r"- *other*: x\_y" in lines and "unread" not in " ".join(lines)
