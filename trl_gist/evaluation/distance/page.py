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

"""The page of a walk along documents: one HTML file that needs nothing but itself."""

import os
from pathlib import Path

from ..folder import read_measures, read_rows
from ..pages.render import measure_of, spread, without_folders, write_page
from .labels import arm_labels, recall_lines, stretch_label, verdict_sentences


_GALLERY = 6
_CAPTIONS = {
    "distance_loss": "By tokens before the target, windows taken together as in the table; bands are standard errors "
    "(left, where nothing is paired, the pair's alone). T on all text so far is there as far as T has positions.",
    "distance_advantage": "Each gist against the same reader without it. Points are single windows.",
    "distance_facts": "Left: of all facts said so far, those that the newest gist still has. Right: their tokens in "
    "the target, where they are not among the last tokens too. Small counts say little.",
    "distance_recall": "Targets that stand in the text itself: a fact after the words before it, the rest of a sentence after "
    "its first. With 0 they are in the newest chunk, which every gist but the first window's has read.",
    "distance_costs": "On the longest document, one after the other. What the pair reads includes writing the gist. "
    "Other work on the machine shows as spikes.",
}


def write_distance_page(directory: str | os.PathLike) -> Path:
    """Writes the page of a walk's folder, from its measures, its rows and its plots; returns its path."""
    report, rows = read_measures(directory), read_rows(directory)
    return write_page(
        directory,
        "distance/distance.html.jinja",
        report,
        _CAPTIONS,
        status="what it keeps as windows pass",
        verdicts=[sentence for walker in report["verdicts"] for sentence in verdict_sentences(report, walker)],
        tables=_tables(report),
        gains=_gains(report),
        recall=recall_lines(report) if report["recall"] else [],
        gallery=_gallery(rows, report),
        facts=_facts(report, rows),
    )


def _tables(report):
    """Title, headings and lines of each."""
    labels = arm_labels(report)
    headings = [
        (stretch_label(stretch), f"{stretch['tokens']:,.0f} tokens", stretch["documents"])
        for stretch in report["stretches"]
    ]
    tables = []
    for name, title, arms in (
        ("nll", "NLL, nats per token", list(labels)),
        ("kl", "KL from T on all text so far", [arm for arm in labels if arm != "full"]),
        (
            "advantage",
            "Gain over the same reader's sliding window",
            [arm for arm in labels if arm in report["slopes"]],
        ),
    ):
        lines = [
            (
                labels[arm],
                [measure_of(stretch, f"{name}_{arm}") for stretch in report["stretches"]],
                arm in report["verdicts"],
            )
            for arm in arms
        ]
        tables.append((title, headings, lines))
    return tables


def _gains(report):
    """Each pair against every arm, from the second window on."""
    labels = arm_labels(report)
    return [
        (
            labels[walker],
            [(labels[arm], measure_of(gains, arm, "+")) for arm in labels if arm in gains],
        )
        for walker, gains in report["gains"].items()
    ]


def _gallery(rows, report):
    """Windows of the longest document, evenly spread."""
    labels, writers = arm_labels(report), ("pair", "zero_shot", *report["pairs"])
    longest = max(rows, key=lambda row: row["window"])["document_id"]
    own = [row for row in rows if row["document_id"] == longest]
    return [
        {
            "document": str(longest),
            "window": row["window"] + 1,
            "tokens": row["tokens"],
            "gists": [(labels[writer], row["gists"][writer]) for writer in writers],
            "chunk": row["chunk"],
            "target": row["target"],
        }
        for row in spread(own, _GALLERY)
    ]


def _facts(report, rows):
    geometry = report["geometry"]
    joined = ", joined in their order into streams" if report["joined"] else ""
    return [
        ("pair", without_folders(report["pair"])),
        *((name, without_folders(path)) for name, path in report["pairs"].items()),
        ("documents", ", ".join(without_folders(name) for name in report["dataset"]) + joined),
        ("teacher", without_folders(report["teacher"])),
        (
            "a window",
            f"{geometry['chunk_length']} tokens are folded into a gist of at most {report['gist_length']}; G sees it "
            f"and {geometry['last_k']} more, and predicts {geometry['target_length']}",
        ),
        ("measured", f"{len(rows)} windows of {len({str(row['document_id']) for row in rows})} documents"),
        ("made with", f"trl_gist {report['version']}"),
    ]
