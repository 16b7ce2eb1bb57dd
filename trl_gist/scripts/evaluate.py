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

"""What `trl-gist evaluate` runs: a pair on held-out windows, what its gists look like, and who else can read them."""

import json
from itertools import islice

from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..common.run_files import PLOTS_DIR
from ..common.statistics import is_number, measured
from ..common.tables import console_table
from ..data.columns import (
    BROUGHT_TARGETS,
    check_dataset,
    check_targets_of_a_context,
    columns_of,
)
from ..data.windows import PositionLimits, WindowSpec, prepare_windows
from ..evaluation import PairReadings, load_generator_only, load_teacher
from ..evaluation.folder import EvaluationFolder
from ..evaluation.gists.pattern_plots import draw_survival
from ..evaluation.gists.patterns import PATTERNS, gist_patterns, summarize_patterns, survival
from ..evaluation.gists.transfer import as_text, read_as_text, read_by_pair, summarize_transfer, transfer_table
from ..evaluation.held_out.measures import quality, with_means
from ..evaluation.held_out.page import write_quality_page
from ..evaluation.held_out.plots import draw_quality
from ..evaluation.held_out.readings import check_no_last_k, check_several_targets, window_blocks
from ..evaluation.pages.labels import count_label, dropped_label, reader_labels
from ..evaluation.pages.plots import save_figure
from ..models.positions import max_positions
from ..models.roles import naming, weights_whole
from .arguments import EvaluateArguments, load_pair
from .compare import compare, with_known_compressors
from .resumable import finish, measure_rows, open_folder, plain_console, who_read_what
from .windows import choose_windows, held_out_documents, target_floor, target_spec


_ROWS = ("teacher", "full", "gist", "null", "generator_only", "shuffled", "random", "last_k", "tail")


def evaluate(args: EvaluateArguments):
    """Measures a pair on held-out documents, and leaves rows, measures, plots and a page."""
    args = with_known_compressors(args)
    documents = held_out_documents(args)
    check_dataset(documents, "evaluation")
    columns = columns_of(documents, "evaluation")
    check_targets_of_a_context(columns, "evaluation")
    targets, floor = target_spec(args, columns), target_floor(args)
    several = not targets.is_continuation or bool(columns & BROUGHT_TARGETS)
    if several:
        check_no_last_k(args.last_k)
    if args.max_windows_per_document is not None and "text" not in columns:
        raise ValueError(
            f"`--max_windows_per_document` ({args.max_windows_per_document}) is of texts that are cut into windows, and "
            "these windows are ready: give `--max_windows`, or leave it out."
        )
    compactor = load_pair(args)
    pair = compactor.pair
    if several:
        check_several_targets(compactor.prompts, args.last_k)
    teacher = load_teacher(compactor, args.teacher, args.trust_remote_code)
    generator_only = None
    if args.generator_only is not None:
        generator_only = load_generator_only(args.generator_only, compactor, args.trust_remote_code)
    windows, skipped = prepare_windows(
        documents,
        compactor.tokenizer,
        WindowSpec(
            pair.context_length,
            pair.target_length,
            pair.last_k,
            None,
            args.max_windows_per_document,
            targets=targets,
            parse_special_tokens=pair.recipe.get("parse_special_tokens", False),
        ),
        PositionLimits.from_positions(
            *map(max_positions, (compactor.summarizer, compactor.generator, teacher)),
            compactor.prompts,
            pair.max_gist_length,
        ),
        name="evaluation",
        columns=columns,
    )
    windows, count = choose_windows(windows, args.max_windows)
    readings = PairReadings(compactor, teacher, args.batch_size, args.last_k, args.budgets, generator_only, floor)
    models = {"summarizer": compactor.summarizer, "generator": compactor.generator, "teacher": teacher}
    if generator_only is not None:
        models["generator_only"] = generator_only
    settings = len(readings.settings)
    with open_folder(args, "evaluation", models) as folder:
        rows = measure_rows(
            folder,
            lambda rows: readings.read(islice(windows, len(window_blocks(rows, settings)), None), rows),
            count,
            settings,
        )

        measures = {}
        for setting in readings.settings:
            measures[setting] = quality([row for row in rows if tuple(row["setting"]) == setting])
            if "targets_dropped" in measures[setting]:
                measures[setting]["target_floor"] = floor
            _print(measures[setting], setting, pair, f"{args.pair} on {' '.join(args.dataset)}")
        if skipped.total:
            print(f"{skipped}.")
        paid_for = pair.recipe.get("target_kinds")
        if paid_for and "contexts" not in measures[readings.settings[0]]:
            print(
                f"The pair was paid for more than what comes next: --target_kinds '{json.dumps(paid_for)}' measures that."
            )
        more = {"patterns": describe_gists(rows, readings, folder)}
        if args.readers is not None:
            more["transfer"] = ask_other_readers(args, rows, readings)
        if args.compressors is not None:
            more |= compare(args, readings, rows, folder)
        folder.write_measures(
            {
                **who_read_what(args, pair),
                "measures": [
                    {"last_k": last_k or pair.last_k, "budget": budget, **measures[last_k, budget]}
                    for last_k, budget in readings.settings
                ],
                **more,
            }
        )
        finish(folder, draw_quality, write_quality_page)


def describe_gists(rows: list[dict], readings: PairReadings, folder: EvaluationFolder) -> dict[str, float]:
    """Prints and returns the patterns of the first setting's gists, and draws which places survive."""
    labelled, patterns, settings = [], [], len(readings.settings)
    for start, end in window_blocks(rows, settings):
        # One row for each gist, whatever number of targets it was read for
        target = "\n".join(row["target"] for row in rows[start:end:settings])
        for row in rows[start : start + settings]:
            last_k, budget = row["setting"]
            most = readings.compactor.pair.max_gist_length if budget is None else budget
            label = f"K = {row['last_k']}, ≤ {most} tokens" if "window_targets" not in row else f"≤ {most} tokens"
            labelled.append({"context": row["context"], "gist": row["gist"], "label": label})
            if (last_k, budget) == readings.settings[0]:
                found = gist_patterns(
                    row["context"], row["gist"], target, row["gist_length"], most, row["summarizer_log_prob"]
                )
                patterns.append({"document_id": row["document_id"], **found})
    save_figure(draw_survival(survival(labelled, by="label"), ylabel=""), folder.path / PLOTS_DIR / "survival")
    summary = summarize_patterns(patterns)
    table = console_table("What the gists look like")
    for name, label in PATTERNS.items():
        if is_number(summary[name]):
            table.add_row(label, measured(summary, name))
    Console().print(table)
    return summary


def ask_other_readers(args: EvaluateArguments, rows: list[dict], readings: PairReadings) -> dict[str, dict]:
    """Prints and returns what the gists, as text, gain the teacher and every one of `--readers`."""
    rows = [with_means(row) for row in rows if tuple(row["setting"]) == readings.settings[0]]
    gists = [start for start, _ in window_blocks(rows)]
    tokenizer = readings.compactor.tokenizer
    texts = as_text(tokenizer, rows)
    summaries = {
        "G, its own prompt": summarize_transfer(read_by_pair(rows, texts)),
        "T, as text": summarize_transfer(read_as_text(readings.teacher, tokenizer, texts, args.batch_size)),
    }
    for name in args.readers:
        with weights_whole(name), naming(name):
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=args.trust_remote_code).eval()
            reader = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        model = model.to(readings.teacher.device)
        summaries[f"{name}, as text"] = summarize_transfer(read_as_text(model, reader, texts, args.batch_size))
    console = Console()
    console.print(transfer_table(summaries))
    same = sum(texts[place]["same_tokens"] for place in gists)
    console.print(f"{same} of {len(gists)} gists give the same tokens back when their text is tokenised again.")
    return summaries


def _print(measures, setting, pair, title):
    def value(name, digits=4):
        return measured(measures, name, digits)

    last_k, budget = setting[0] or pair.last_k, setting[1]
    several = "contexts" in measures
    labels = reader_labels(last_k=last_k, cues=several)
    table = console_table(title, "Target read after", "NLL", "the gist gains", "KL from T")
    for name in _ROWS:
        if f"nll_{name}" in measures:
            cells = value(f"nll_{name}"), value(f"gain_over_{name}") if f"gain_over_{name}" in measures else ""
            kl = "" if name == "teacher" else value(f"kl_{name}", 3)
            table.add_row(labels[name], *cells, kl, style="bold" if name == "gist" else None)
    console = plain_console()
    console.print(table)
    for table in _kinds_tables(measures, labels) if several else ():
        console.print(table)
    uses = measures["break_even_uses"]
    alone = "cue alone" if several else f"last {last_k}"
    for line in (
        f"gap closed against T's {alone}: {value('gap_closed_last_k', 3)}; against G's empty gist: "
        f"{value('gap_closed_null', 3)}",
        f"{value('gist_length', 1)} tokens a gist{'' if budget is None else f' (at most {budget} asked)'}, gist rate "
        f"{value('gist_rate')}, total rate {value('total_rate')}",
        f"{value('gist_bytes', 1)} bytes a gist; bits per byte {value('bits_per_byte_gist', 3)} with the gist, "
        f"{value('bits_per_byte_teacher', 3)} with the whole context",
        f"S passes {measures['summarizer_tokens']:.0f} tokens once; G then passes {measures['generator_tokens']:.0f} "
        f"instead of {measures['teacher_tokens']:.0f}"
        + (f": compressing pays from {uses:.1f} uses on" if uses < float("inf") else ", so compressing never pays"),
        f"{count_label(measures)}; nats per target token ± standard error over documents",
        dropped_label(measures),
    ):
        if line is not None:
            console.print(line, highlight=False, soft_wrap=True)


def _kinds_tables(measures, labels):
    """What the gist does for each kind of target, and what of them is recalled."""
    kinds = measures.get("kinds", {})

    if kinds:
        headings = ("Kind", "targets", "NLL", "KL from T", "gap closed")
        table = console_table("The gist by kind of target", *headings)
        for kind, of_kind in kinds.items():
            cells = (measured(of_kind, name) for name in ("nll_gist", "kl_gist", "gap_closed_last_k"))
            table.add_row(kind, str(of_kind["windows"]), *cells)
        yield table
    if "exact_gist" in measures:
        recalled = {kind: of_kind for kind, of_kind in kinds.items() if "exact_gist" in of_kind}
        recalled = recalled if len(recalled) > 1 else {}
        title = "Exact: the share recalled token for token"
        table = console_table(title, "Target read after", *recalled, "all")
        for name in _ROWS:
            if f"exact_{name}" in measures:
                columns = [*recalled.values(), measures]
                cells = (measured(of_kind, f"exact_{name}", 2) for of_kind in columns)
                table.add_row(labels[name], *cells, style="bold" if name == "gist" else None)
        yield table
