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

import argparse
import json
import math
from pathlib import Path

from datasets import Dataset
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..compaction import GistCompactor
from ..data import PositionLimits, WindowSpec, prepare_windows
from ..evaluation import evaluate_pair, load_teacher, summarize
from .documents import load_documents


def evaluate(args: argparse.Namespace):
    """`trl-gist evaluate`: measures a pair on held-out documents, prints them and writes them to `args.output`."""
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise ValueError(f"`--output` ({args.output}): there is no such folder.")
    source = args.dataset[0] if len(args.dataset) == 1 else args.dataset
    documents = load_documents(source, args.dataset_config, args.split, args.streaming, args.text_column)
    if args.max_documents is not None:
        documents = documents.take(
            min(args.max_documents, len(documents)) if isinstance(documents, Dataset) else args.max_documents
        )
    compactor = GistCompactor.from_pretrained(
        args.pair, args.device, args.dtype, args.revision, args.trust_remote_code
    )
    pair = compactor.pair
    teacher = load_teacher(compactor, args.teacher, args.trust_remote_code)
    windows, skipped = prepare_windows(
        documents,
        compactor.tokenizer,
        WindowSpec(pair.context_length, pair.target_length, pair.last_k, None, args.max_windows_per_document),
        PositionLimits.from_models(
            compactor.summarizer, compactor.generator, teacher, compactor.prompts, pair.max_gist_length
        ),
        name="evaluation",
    )
    windows = _choose_windows(windows, args.max_windows)

    def show_progress(batches):
        console = Console(stderr=True)
        yield from track(batches, "Compressing and scoring", console=console)
        console.print("Scoring the controls")

    rows = evaluate_pair(compactor, windows, teacher, args.batch_size, track=show_progress)
    measures = summarize(rows)
    _print(measures, pair, f"{args.pair} on {' '.join(args.dataset)}")
    if skipped.total:
        print(f"{skipped}.")
    if args.output:
        report = {
            "pair": args.pair,
            "dataset": args.dataset,
            "teacher": args.teacher or pair.base_models["teacher"],
            "measures": {name: None if math.isnan(value) else value for name, value in measures.items()},
        }
        Path(args.output).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _choose_windows(windows, count):
    if count is None:
        return list(windows)
    if not isinstance(windows, Dataset):
        return list(windows.take(count))
    count = min(count, len(windows))
    # Evenly spread: the first ones would be of one or two documents, and windows of a document are not independent
    return list(windows.select([index * len(windows) // count for index in range(count)]))


def _print(measures, pair, title):
    def value(name, digits=4):
        if math.isnan(measures[name]):
            return "–"
        error = measures[f"{name}_se"]
        return f"{measures[name]:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")

    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("Target read after", no_wrap=True)
    for heading in ("NLL", "the gist gains", "gap closed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("T: the whole context", value("nll_teacher"))
    table.add_row("G: gist", value("nll_gist"), style="bold")
    for name, label in {
        "null": "G: empty gist",
        "shuffled": "G: another's gist",
        "last_k": f"T: last {pair.last_k}",
        "tail": f"T: last {pair.last_k} + |Z|",
    }.items():
        table.add_row(label, value(f"nll_{name}"), value(f"gain_over_{name}"), value(f"gap_closed_{name}", 3))
    console = Console()
    console.print(table)
    for line in (
        f"KL(T‖G) {value('teacher_kl')} with the gist, {value('null_teacher_kl')} with an empty one",
        f"{value('gist_length', 1)} tokens a gist, gist rate {value('gist_rate')}, total rate {value('total_rate')}",
        f"{measures['windows']} windows of {measures['documents']} documents; nats per target token ± standard error "
        "over documents",
    ):
        console.print(line, highlight=False, soft_wrap=True)
