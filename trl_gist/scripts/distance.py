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

"""What `trl-gist distance` runs: what a pair keeps as windows pass."""

from itertools import islice

from rich.console import Console

from ..common.arguments import named
from ..common.statistics import measured, with_error
from ..common.tables import console_table
from ..data.windows import SkippedRows
from ..evaluation.distance.costs import measure_costs
from ..evaluation.distance.labels import arm_labels, recall_lines, span, stretch_label, verdict_sentences
from ..evaluation.distance.measures import distance_measures
from ..evaluation.distance.page import write_distance_page
from ..evaluation.distance.plots import draw_distance
from ..evaluation.distance.walk import DistanceReadings, check_pair_names, long_documents
from ..evaluation.folder import COSTS_FILE
from ..evaluation.pages.render import spread
from .arguments import DistanceArguments
from .resumable import finish, load_pairs, measure_rows, open_folder, plain_console, who_read_what
from .windows import held_out_documents, recall_spec, target_floor


def measure_distance(args: DistanceArguments):
    """Walks along held-out documents, and leaves rows, measures, plots and a page."""
    paths, targets = named(args.pairs, "--pairs"), recall_spec(args)
    check_pair_names(paths)
    compactor, teacher, others, models = load_pairs(args, paths)
    readings = DistanceReadings(compactor, teacher, others, args.batch_size, targets, target_floor(args))
    dataset = held_out_documents(args)

    def documents(skipped=None):
        return long_documents(dataset, compactor, readings.geometry, args.windows, args.join_documents, skipped)

    skipped = SkippedRows()
    with open_folder(args, "distance", models) as folder:
        # Tokenising them is little beside reading them
        total = None if args.streaming else sum(readings.geometry.windows(len(text["ids"])) for text in documents())
        rows = measure_rows(folder, lambda rows: readings.walk(documents(skipped), args.windows, rows), total)
        if not rows:
            raise ValueError(
                f"No document has one window of {readings.geometry.length(1)} tokens: {skipped}. Use longer "
                "documents, or --join_documents."
            )
        costs = _costs(readings, documents(), rows, folder)
        measures = distance_measures(rows, list(paths))
        report = {
            **who_read_what(args, compactor.pair),
            "pairs": paths,
            "joined": args.join_documents,
            "geometry": vars(readings.geometry),
            "gist_length": compactor.pair.max_gist_length,
            **measures,
            "costs": costs,
        }
        folder.write_measures(report)
        _print(report)
        if skipped.total:
            print(f"{skipped}.")
        finish(folder, draw_distance, write_distance_page)


def _costs(readings, documents, rows, folder):
    """Of the first of the longest documents."""
    costs = folder.rows(1, COSTS_FILE)
    if not costs:
        longest = max(rows, key=lambda row: row["window"])
        place = list(dict.fromkeys(row["document_id"] for row in rows)).index(longest["document_id"])
        document = next(islice(documents, place, None))
        Console(stderr=True).print("Timing the pair, and T with the whole text, on the longest document")
        costs = measure_costs(readings, document["ids"], longest["window"] + 1)
        folder.append(costs, COSTS_FILE)
    return costs


def _print(report):
    console = plain_console(160)
    labels = arm_labels(report)
    for name, title, arms in (
        ("nll", "NLL, nats per token", list(labels)),
        ("kl", "KL from T on all text so far", [arm for arm in labels if arm != "full"]),
        ("advantage", "gain over its own sliding window", [arm for arm in labels if arm in report["slopes"]]),
    ):
        console.print(_table(report, name, title, {arm: labels[arm] for arm in arms}))
    for walker in report["verdicts"]:
        for sentence in verdict_sentences(report, walker):
            console.print(sentence, highlight=False, soft_wrap=True)
    console.print(_facts_table(report))
    if report["recall"]:
        console.print(_recall_table(report))
    if report["costs"]:
        console.print(_costs_table(report["costs"]))
    whose = "documents" if report["errors_over"] == "documents" else "windows of the one document"
    console.print(f"± standard error over {whose}", highlight=False)


def _table(report, name, title, labels):
    """An arm a line, a stretch of windows a column."""
    slopes = name == "advantage"
    stretches = map(stretch_label, report["stretches"])
    table = console_table(title, "windows", *stretches, *(["10⁻³ a window"] if slopes else ()))
    table.add_row("tokens before the target", *(f"{stretch['tokens']:,.0f}" for stretch in report["stretches"]))
    table.add_row("documents", *(str(stretch["documents"]) for stretch in report["stretches"]))
    for arm, label in labels.items():
        cells = [
            with_error(stretch[f"{name}_{arm}"], stretch[f"{name}_{arm}_se"] if slopes else None)
            for stretch in report["stretches"]
        ]
        if slopes:
            slope = report["slopes"][arm]
            cells.append(measured(slope, "slope", 2, "+", 1e3))
        table.add_row(label, *cells, style="bold" if arm in report["verdicts"] else None)
    return table


def _facts_table(report):
    facts, gains, labels = report["facts"], report["fact_gains"], arm_labels(report)
    table = console_table(
        "Numbers and names, by how many windows ago they were said last: share that the newest gist has, and "
        "nats per token gained where they come again",
        *("", *(span(*ages) for ages in facts["ages"]), "never"),
    )
    for writer, found in facts["since_last"].items():
        table.add_row(f"share, {labels[writer]}", *map(with_error, found["share"], found["share_se"]))
    for arm in report["verdicts"]:
        found = gains[arm]
        cells = [with_error(*cell, sign="+") for cell in zip(found["gain"], found["gain_se"], strict=True)]
        new = with_error(found["new"]["gain"][0], found["new"]["gain_se"][0], sign="+")
        table.add_row(f"gain, {labels[arm]}", *cells, new)
    found = gains["pair"]
    table.add_row("… how many", *map(str, found["of"]), str(found["new"]["of"][0]))
    return table


def _recall_table(report):
    table = console_table(
        "Facts and sentences of earlier chunks, by how many windows ago: KL from T on all text so far, nats per token",
        *("", *map(str, report["recall"]["ages"])),
    )
    for label, cells, own in recall_lines(report):
        table.add_row(label, *cells, style="bold" if own else None)
    return table


def _costs_table(costs):
    figures = ("read", "written", "cache", "memory")
    table = console_table("Cost of the next token, by length", "tokens", *figures, "T: read", *figures[1:])
    table.columns[0].justify = "right"
    for row in spread(costs, 8):
        cells = [f"{row['tokens']:,}"]
        for who in ("pair", "full"):
            known = f"read_{who}" in row
            cells += [f"{1e3 * row[f'{name}_{who}']:.1f} ms" if known else "–" for name in ("read", "written")]
            cells += [f"{row[f'{name}_{who}'] / 1e6:,.1f} MB" if known else "–" for name in ("cache", "memory")]
        table.add_row(*cells)
    return table
