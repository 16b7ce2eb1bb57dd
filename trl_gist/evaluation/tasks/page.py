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

"""The page of tasks: one HTML file that needs nothing but itself."""

import os
from pathlib import Path

from ..folder import read_measures, read_rows
from ..pages.render import without_folders, write_page
from .tables import task_labels, task_sentences, task_tables


_QUESTIONS = 4
_CAPTIONS = {
    "tasks_age": "By how many windows ago the fact was said, in the longest texts. The teacher with all of the text is "
    "the ceiling: where it fails, nothing is said of memory. Gray is from the least to the most of those who have the "
    "text's end and no gist. Bands are standard errors over documents.",
    "tasks_length": "By windows of the text; as many facts in each.",
}


def write_tasks_page(directory: str | os.PathLike) -> Path:
    """Writes the page of a folder, from its measures, its rows and its plots; returns its path."""
    report, rows = read_measures(directory), read_rows(directory)
    *tables, ahead = task_tables(report)
    return write_page(
        directory,
        "tasks/tasks.html.jinja",
        report,
        _CAPTIONS,
        status="what it still knows of facts some windows later",
        verdicts=task_sentences(report),
        tables=[ahead, *tables],  # what most want to know first; a terminal has it where one looks, at the end
        gallery=_gallery(rows, report),
        facts=_facts(report, rows),
    )


def _gallery(rows, report):
    """Of each task the first of the longest texts."""
    labels, gallery = task_labels(report), []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        row = max(own, key=lambda row: row["windows"])
        gallery.append(
            {
                "document": row["document_id"],
                "tokens": row["tokens"],
                "gists": [(labels[name], text) for name, text in row["gists"].items() if name in labels],
                "questions": [
                    (
                        question["cue"].strip(),
                        question["answer"].strip(),
                        _said(question["age"]),
                        [
                            (labels[arm], question["written"].get(arm), question["right"].get(arm))
                            for arm in ("full", "zero_shot", "recall", "pair")
                        ],
                    )
                    for question in row["questions"][:_QUESTIONS]
                ],
            }
        )
    return gallery


def _said(age):
    if age == 0:
        return "said in the last window"
    return f"said {age} window{'' if age == 1 else 's'} before the last"


def _facts(report, rows):
    geometry = report["geometry"]
    filler = ", ".join(without_folders(name) for name in report["dataset"] or ()) or "sentences that are made up"
    return [
        ("pair", without_folders(report["pair"])),
        *((name, without_folders(path)) for name, path in report["pairs"].items()),
        ("teacher", without_folders(report["teacher"])),
        ("between facts", filler),
        ("facts", f"difficulty {report['difficulty']}, seed {report['seed']}"),
        (
            "a window",
            f"{geometry['chunk_length']} tokens are folded into a gist of at most {report['gist_length']}; L, of "
            f"{geometry['last_k']} tokens and the end of a sentence, is no fact's",
        ),
        ("measured", f"{sum(len(row['questions']) for row in rows)} questions about {len(rows)} texts"),
        ("made with", f"trl_gist {report['version']}"),
    ]
