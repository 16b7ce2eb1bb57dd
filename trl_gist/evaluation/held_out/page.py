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
The page of an evaluation: one HTML file that needs nothing but itself, made from what the folder holds.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ..folder import SETTINGS_FILE, read_measures, read_rows
from ..gists.pattern_plots import survival_html
from ..gists.patterns import PATTERNS
from ..gists.transfer import GAINS
from ..pages.labels import count_label, dropped_label, reader_labels
from ..pages.render import headline, measure_of, spread, without_folders, write_page
from .plots import setting_label


_GALLERY = 6
_CAPTIONS = {
    "readers": "How far each reader is from the teacher that saw the whole context. G is the pair's generator, T the "
    "frozen teacher, K the number of last tokens that both see.",
    "positions": "The same by position in the target; bands are standard errors over documents.",
    "rate": "Every number of last tokens and every budget measured: what is read against what is lost.",
    "compressors": "Other compressors with as many tokens, read by the same readers.",
    "pool": "Each point one compressor, read by the generator that was trained on the pair's gists. The line takes "
    "for every window the gist that turned out best of all of them, with its target known: what choosing could still "
    "bring, not what a compressor reached.",
    "survival": "Which of the context's tokens are found again in the gist, by their place in the context.",
}


def write_quality_page(directory: str | os.PathLike) -> Path:
    """Writes the page of an evaluation's folder, from its measures, its rows and its plots; returns its path."""
    report = read_measures(directory)
    settings = json.loads(Path(directory, SETTINGS_FILE).read_text(encoding="utf-8"))
    return write_page(
        directory,
        "held_out/evaluation.html.jinja",
        report,
        _CAPTIONS,
        status="held-out evaluation",
        verdict=_verdict(report["measures"][0]),
        tables=[_table(setting) for setting in report["measures"]],
        gallery=_gallery(read_rows(directory)),
        patterns=[(label, measure_of(report["patterns"], name)) for name, label in PATTERNS.items()],
        transfer=[
            (reader, [measure_of(gains, name, "+", 1, 1e3) for name in GAINS])
            for reader, gains in report.get("transfer", {}).items()
        ],
        transfer_headings=list(GAINS.values()),
        facts=_facts(report, settings),
    )


def _verdict(measures):
    """The result in a sentence and in tiles."""
    words, tiles = headline(measures)
    tiles.append(("KL from the teacher", measure_of(measures, "teacher_kl"), "plain"))
    rate = f"{100 * measures['gist_rate']:.1f}% · {100 * measures['total_rate']:.1f}%"
    tiles.append(("of the context's tokens: the gist · all that G reads", rate, "plain"))
    sentence = (
        f"On {count_label(measures)} the gist {words}. "
        "In nats per target token, ± standard error over documents; clear differences exceed two of them."
    )
    return {"sentence": sentence, "tiles": tiles}


def _table(measures):
    rows = []
    for name, label in reader_labels(cues="contexts" in measures).items():
        if measures.get(f"nll_{name}") is None:
            continue
        figures = [measure_of(measures, f"{kind}_{name}") for kind in ("nll", "bits_per_byte", "kl", "gain_over")]
        gap = name in ("last_k", "null")  # the others leave no gap to close, or are not what a user has without a gist
        figures.append(measure_of(measures, f"gap_closed_{name}") if gap else "")
        if "exact_gist" in measures:
            figures.append(measure_of(measures, f"exact_{name}"))
        rows.append((label, figures, name == "gist"))
    kinds = [_kind_row(kind, of_kind) for kind, of_kind in measures.get("kinds", {}).items()]
    dropped = dropped_label(measures)
    return {"label": setting_label(measures), "rows": rows, "measures": measures, "kinds": kinds, "dropped": dropped}


def _kind_row(kind, measures):
    """What the gist does for one kind of target."""
    figures = [
        measure_of(measures, name)
        for name in (
            *("nll_gist", "nll_teacher", "kl_gist", "kl_null", "gap_closed_last_k", "gap_closed_null"),
            *("exact_gist", "exact_null", "exact_teacher"),
        )
    ]
    return kind, measures["windows"], figures


def _gallery(rows):
    """Windows of the first setting from the most gained to the least, each from another document where it can be."""
    first = [row for row in rows if row["setting"] == rows[0]["setting"]]
    by_document = {}
    for row in first:
        gain = float(np.mean(row["log_probs"]["gist"]) - np.mean(row["log_probs"]["null"]))
        by_document.setdefault(row["document_id"], (gain, row))
    ranked = sorted(by_document.values(), key=lambda item: -item[0])
    return [
        {
            "document": str(row["document_id"]),
            "gain": gain,
            "length": row["gist_length"],
            "last_k": row["last_k_text"],
            "cue": "window_targets" in row,
            "target": row["target"],
            "context_and_gist": survival_html(row["context"], row["gist"]),
        }
        for gain, row in spread(ranked, _GALLERY)
    ]


def _facts(report, settings):
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return [
        ("pair", without_folders(report["pair"])),
        ("documents", ", ".join(without_folders(name) for name in report["dataset"])),
        ("teacher", without_folders(report["teacher"])),
        ("windows", f"{settings['max_windows'] or 'all'}, in batches of {settings['batch_size']}"),
        ("made with", f"trl_gist {report['version']}, {packages}, Python {platform.python_version()} on {device}"),
    ]
