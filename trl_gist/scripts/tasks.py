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

"""What `trl-gist evaluate --tasks` runs: questions about what was said some windows ago."""

import dataclasses
from itertools import islice

from ..common.arguments import named
from ..common.tables import console_table
from ..data.tasks import TASKS, check_names, make_tasks
from ..data.windows import SkippedRows, why_unusable
from ..evaluation.compressors.registry import EXTRACTIVE_COMPRESSORS, compressor_name, extractive_compressors
from ..evaluation.folder import TABLES_FILE
from ..evaluation.tasks.measures import task_measures
from ..evaluation.tasks.page import write_tasks_page
from ..evaluation.tasks.plots import draw_tasks
from ..evaluation.tasks.readings import TaskReadings, check_arms
from ..evaluation.tasks.tables import markdown, task_sentences, task_tables
from .arguments import DEFAULT_COMPRESSORS, TasksArguments
from .resumable import finish, load_pairs, measure_rows, open_folder, plain_console, who_read_what
from .windows import held_out_documents


# The tail is asked anyway, on as many tokens
ALLOWED_COMPRESSORS = [name for name in EXTRACTIVE_COMPRESSORS if name != "tail"]
# Of a dataset, as many are enough to stand between facts
_FILLER_DOCUMENTS = 256


def measure_tasks(args: TasksArguments):
    """Asks for facts by age and length, and leaves rows, measures, tables, plots and a page."""
    args = dataclasses.replace(  # a folder of its own says what was measured
        args,
        tasks=list(TASKS) if args.tasks in ([], ["all"]) else args.tasks,
        lengths=sorted(set(args.lengths)),
        compressors=[compressor_name(name) for name in args.compressors or DEFAULT_COMPRESSORS],
    )
    paths = named(args.pairs, "--pairs")
    check_names(args.tasks)
    if unknown := [name for name in args.compressors if name not in ALLOWED_COMPRESSORS]:
        raise ValueError(
            f"With --tasks, --compressors takes some of {', '.join(ALLOWED_COMPRESSORS)}; got {unknown[0]!r}."
        )
    check_arms(paths, set(args.compressors))
    filler, skipped = (None, SkippedRows()) if args.dataset is None else _filler(args)
    compactor, teacher, others, models = load_pairs(args, paths)
    readings = TaskReadings(compactor, teacher, others, batch_size=args.batch_size)
    geometry = readings.geometry
    documents = [
        {"windows": windows, **row}
        for windows in args.lengths
        for row in make_tasks(
            compactor.tokenizer,
            args.tasks,
            documents=args.texts,
            windows=windows,
            window_length=geometry.chunk_length,
            last_k=geometry.last_k,
            # Also the longer tail, which reaches into the last window, is worthless
            tail_length=geometry.last_k + readings.gist_length,
            difficulty=args.difficulty,
            filler=filler,
            seed=args.seed,
        )
    ]
    contexts = (compactor.token_ids(row["context"], "The text") for row in documents)
    readings.add_compressors(
        extractive_compressors(compactor.tokenizer, teacher, contexts, args.batch_size, args.compressors)
    )
    with open_folder(args, "tasks", models) as folder:
        rows = measure_rows(folder, lambda rows: readings.read(documents, len(rows)), len(documents), what="Texts")
        report = {
            **who_read_what(args, compactor.pair),
            "pairs": paths,
            "geometry": vars(geometry),
            "gist_length": compactor.pair.max_gist_length,
            "difficulty": args.difficulty,
            "seed": args.seed,
            "compressors": list(readings.compressors),
            "arms": readings.arms,
            "tasks": task_measures(rows, readings.arms),
        }
        folder.write_measures(report)
        (folder.path / TABLES_FILE).write_text(markdown(report), encoding="utf-8")
        _print(report)
        if len(report["tasks"]) > 1:
            print(f"The tables of each task are in {folder.path / TABLES_FILE}.")
        if skipped.total:
            print(f"{skipped}.")
        finish(folder, draw_tasks, write_tasks_page)


def _filler(args):
    """Texts that can be read, and which could not."""
    texts, skipped = [], SkippedRows()
    for row in islice(held_out_documents(args), args.max_documents or _FILLER_DOCUMENTS):
        if "text" not in row:
            raise ValueError(f"--dataset has columns {sorted(row)}; what stands between facts is taken from `text`.")
        if reason := why_unusable(row["text"]):
            skipped.counts[reason] += 1
        else:
            texts.append(row["text"])
    if not texts:
        raise ValueError(f"--dataset has no text to stand between facts: {skipped}.")
    return texts, skipped


def _print(report):
    console = plain_console(160)
    # Of all tasks together, or of the only one, and how far the pair is ahead: a screen holds no more
    for title, headings, lines in task_tables(report)[-3:]:
        table = console_table(title, *headings)
        for label, cells, own in lines:
            table.add_row(label, *cells, style="bold" if own else None)
        console.print(table)
    for sentence in task_sentences(report):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print("± standard error over documents", highlight=False)
