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
from itertools import islice
from pathlib import Path

from datasets import Dataset, IterableDataset
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..common.statistics import with_error
from ..data.documents import load_documents
from ..data.windows import PositionLimits, WindowSpec, prepare_windows
from ..evaluation import PairReadings, load_generator_only, load_teacher
from ..evaluation.folder import EvaluationFolder
from ..evaluation.quality.measures import quality
from ..evaluation.quality.page import write_page
from ..evaluation.quality.plots import draw_quality
from ..inference.compactor import GistCompactor
from ..models.fingerprints import fingerprint
from ..version import __version__
from .compare import check_compressors, compare
from .describe import ask_other_readers, describe_gists


_READERS = {
    "teacher": "T: the whole context",
    "full": "G: the whole context",
    "gist": "G: gist",
    "null": "G: empty gist",
    "generator_only": "G alone: empty",
    "shuffled": "G: another's gist",
    "random": "G: random tokens",
    "last_k": "T: last {last_k}",
    "tail": "T: last {last_k} + |Z|",
}


def evaluate(args: argparse.Namespace):
    """`trl-gist evaluate`: measures a pair on held-out documents, and leaves rows, measures, plots and a page."""
    if args.compressors is not None:
        check_compressors(args)
    documents = held_out_documents(args)
    compactor = GistCompactor.from_pretrained(
        args.pair, args.device, args.dtype, args.revision, args.trust_remote_code
    )
    pair = compactor.pair
    teacher = load_teacher(compactor, args.teacher, args.trust_remote_code)
    generator_only = None
    if args.generator_only is not None:
        generator_only = load_generator_only(args.generator_only, compactor, args.trust_remote_code)
    windows, skipped = prepare_windows(
        documents,
        compactor.tokenizer,
        WindowSpec(pair.context_length, pair.target_length, pair.last_k, None, args.max_windows_per_document),
        PositionLimits.from_models(
            compactor.summarizer, compactor.generator, teacher, compactor.prompts, pair.max_gist_length
        ),
        name="evaluation",
    )
    windows, count = _choose_windows(windows, args.max_windows)
    readings = PairReadings(compactor, teacher, args.batch_size, args.last_k, args.budgets, generator_only)
    folder = EvaluationFolder(
        args.output_dir or _default_folder(args.pair), _settings(args, readings), overwrite=args.overwrite
    )
    rows = _read(readings, windows, count, folder)

    measures = {}
    for setting in readings.settings:
        measures[setting] = quality([row for row in rows if tuple(row["setting"]) == setting])
        _print(measures[setting], setting, pair, f"{args.pair} on {' '.join(args.dataset)}")
    if skipped.total:
        print(f"{skipped}.")
    more = {"patterns": describe_gists(rows, readings, folder)}
    if args.readers is not None:
        more["transfer"] = ask_other_readers(args, rows, readings)
    if args.compressors is not None:
        more["compressors"] = compare(args, readings, rows, folder)
    folder.write_measures(
        {
            "pair": args.pair,
            "dataset": args.dataset,
            "teacher": args.teacher or pair.base_models["teacher"],
            "version": __version__,
            "measures": [
                {"last_k": last_k or pair.last_k, "budget": budget, **measures[last_k, budget]}
                for last_k, budget in readings.settings
            ],
            **more,
        }
    )
    draw_quality(folder.path)
    print(f"Rows, measures and plots are in {folder.path}; on one page: {write_page(folder.path)}")


def held_out_documents(args: argparse.Namespace) -> Dataset | IterableDataset:
    """Those that the command line names."""
    source = args.dataset[0] if len(args.dataset) == 1 else args.dataset
    documents = load_documents(source, args.dataset_config, args.split, args.streaming, args.text_column)
    if args.max_documents is not None:
        documents = documents.take(
            min(args.max_documents, len(documents)) if isinstance(documents, Dataset) else args.max_documents
        )
    return documents


def _default_folder(pair):
    return Path(pair, "evaluation") if Path(pair).is_dir() else Path(f"{pair.split('/')[-1]}-evaluation")


def _settings(args, readings):
    """What decides the rows, for a resumed evaluation to be the same one."""
    models = {"summarizer": readings.compactor.summarizer, "generator": readings.compactor.generator}
    models |= {"teacher": readings.teacher}
    if readings.generator_only is not None:
        models["generator_only"] = readings.generator_only
    names = (
        "pair dataset dataset_config split text_column max_documents max_windows_per_document max_windows batch_size last_k "
        "budgets generator_only teacher compressors samples token_classifier gists own_generators"
    )
    return {
        **{name: getattr(args, name) for name in names.split()},
        "fingerprints": {role: fingerprint(model) for role, model in models.items()},
        "version": __version__,
    }


def _choose_windows(windows, count):
    """The windows to read, and how many there will be, if that is known."""
    if not isinstance(windows, Dataset):
        return (windows if count is None else windows.take(count)), count
    if count is None or count >= len(windows):
        return windows, len(windows)
    # Evenly spread: the first ones would be of one or two documents, and windows of a document are not independent
    return windows.select([index * len(windows) // count for index in range(count)]), count


def _read(readings, windows, count, folder):
    rows = folder.rows(len(readings.settings))
    done = len(rows) // len(readings.settings)
    console = Console(stderr=True)
    if done:
        console.print(f"{done} windows were measured before; going on from there")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Windows", total=count, completed=done)
        for batch in readings.read(islice(windows, done, None), rows):
            folder.append(batch)
            rows += batch
            progress.advance(task, len(batch) // len(readings.settings))
    return rows


def _print(measures, setting, pair, title):
    def value(name, digits=4):
        return with_error(measures.get(name), measures.get(f"{name}_se"), digits)

    last_k, budget = setting[0] or pair.last_k, setting[1]
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("Target read after", no_wrap=True)
    for heading in ("NLL", "the gist gains", "KL from T"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, label in _READERS.items():
        if f"nll_{name}" in measures:
            cells = value(f"nll_{name}"), value(f"gain_over_{name}") if f"gain_over_{name}" in measures else ""
            kl = "" if name == "teacher" else value(f"kl_{name}", 3)
            table.add_row(label.format(last_k=last_k), *cells, kl, style="bold" if name == "gist" else None)
    console = Console()
    console.print(table)
    uses = measures["break_even_uses"]
    for line in (
        f"gap closed against T's last {last_k}: {value('gap_closed_last_k', 3)}; against G's empty gist: "
        f"{value('gap_closed_null', 3)}",
        f"{value('gist_length', 1)} tokens a gist{'' if budget is None else f' (at most {budget} asked)'}, gist rate "
        f"{value('gist_rate')}, total rate {value('total_rate')}",
        f"{value('gist_bytes', 1)} bytes a gist; bits per byte {value('bits_per_byte_gist', 3)} with the gist, "
        f"{value('bits_per_byte_teacher', 3)} with the whole context",
        f"S passes {measures['summarizer_tokens']:.0f} tokens once; G then passes {measures['generator_tokens']:.0f} "
        f"instead of {measures['teacher_tokens']:.0f}"
        + (f": compressing pays from {uses:.1f} uses on" if uses < float("inf") else ", so compressing never pays"),
        f"{measures['windows']} windows of {measures['documents']} documents; nats per target token ± standard error "
        "over documents",
    ):
        console.print(line, highlight=False, soft_wrap=True)
