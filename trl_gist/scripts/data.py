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

"""What `trl-gist data` runs: windows of documents as training cuts them, what is skipped, and what contexts are worth to T."""

import json
import logging
from dataclasses import asdict, fields
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.utils import logging as hub_logging
from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..common.files import replace_file
from ..common.run_files import finite
from ..common.statistics import mean_and_error, measured
from ..common.tables import console_table
from ..common.tokens import decode
from ..data.columns import BROUGHT_TARGETS, WALK_COLUMN, ColumnRules, columns_of
from ..data.windows import PositionLimits, WindowSpec, prepare_windows
from ..models.checks import check_same_tokenizer
from ..models.loading import check_device, check_dtype_name, for_inference, pair_directory
from ..models.machine import machine_device
from ..models.positions import max_positions
from ..models.roles import create_model_from_path, naming
from ..pair import PairConfig
from ..prompts import SUMMARIZER_PROMPT_OF_FACTS, GistPrompts, bos_ids, targets_of
from ..scoring import GistScorer, TargetScorer
from ..trainer.walks import Walk
from ..version import __version__
from .arguments import DataArguments
from .resumable import plain_console, progress_bar
from .windows import all_documents, choose_windows, first_documents, target_floor, target_spec, without_held_out


# Characters of a context that are shown: its beginning and its end
_SHOWN = 400


def show_data(args: DataArguments):
    """Prints windows, what is skipped and what contexts are worth, and writes them to `args.json` if that is given."""
    logging.basicConfig(format="%(message)s")
    hub_logging.disable_propagation()  # it has a handler of its own, and would say all twice
    if args.json is not None and not Path(args.json).parent.is_dir():
        raise ValueError(f"`--json` ({args.json}) names a file in a folder that is not there: make it first.")
    console = plain_console()
    documents = _documents(args)
    columns = columns_of(documents, "given")
    targets, floor = _target_spec(args, columns), target_floor(args)
    several = not targets.is_continuation or bool(columns & BROUGHT_TARGETS)
    tokenizer, checkpoint = _tokenizer_and_teacher(args)
    # Of the prompts, T reads only what begins a text
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT_OF_FACTS)
    walk = Walk(prompts, args, partial(decode, tokenizer)) if args.windows_per_document > 1 else None
    teacher = None if args.no_teacher else _load_teacher(args, tokenizer, checkpoint)
    spec = WindowSpec.of(args, None if walk is None else walk.geometry, targets)
    rules = ColumnRules(spec.walks, args.gist_length_range)
    limits = None
    if teacher is not None and max_positions(teacher) is not None:
        limits = PositionLimits(teacher=max_positions(teacher) - len(bos_ids(tokenizer)))
    windows, skipped = prepare_windows(documents, tokenizer, spec, limits, "given", rules, columns=columns)
    some, _ = choose_windows(windows, args.max_windows)
    rows = list(islice(some, args.max_windows))
    report = _counts(args, spec, documents, windows, rows, tokenizer) | {"skipped": dict(skipped.counts)}
    ready = walk is None and "text" not in columns
    read = [[row] if walk is None else walk.rows([row], 1) for row in rows]
    shown = [_as_text(own[0], tokenizer) if walk is None else _walk_as_text(own, tokenizer) for own in read]
    if ready:
        report["joined_words"] = [words for window in shown for words in _joined_words(window)]
    _print_counts(console, report, _window_in_words(spec, ready, several))
    for place in range(min(args.show, len(shown))):
        _print_window(console, shown[place * len(shown) // min(args.show, len(shown))])
    if teacher is not None:
        readings = _read([each for own in read for each in own], teacher, prompts, args.batch_size)
        report |= {"teacher": checkpoint, "target_floor": floor, "worth": _worth(shown, readings, floor)}
        _print_worth(console, report, ready, several)
    if args.json is not None:
        content = json.dumps(finite(report | {"examples": shown}), ensure_ascii=False, indent=2) + "\n"
        replace_file(Path(args.json), content.encode(errors="backslashreplace"))
        console.print(f"Written to {args.json}", highlight=False, soft_wrap=True)


def arguments_of_recipe(file: str) -> dict:
    """What [`DataArguments`] has of a recipe for `trl-gist train`. Raises `ValueError` as that does for a wrong one."""
    from .train import make_parser  # imports TRL, which nothing else here needs

    script, training, _ = parsed = make_parser("trl-gist data").parse_args_and_config(["--config", file])
    told = {name: value for arguments in reversed(parsed) for name, value in vars(arguments).items()}
    names = {field.name for field in fields(DataArguments)} - {"dtype"}  # which is faster as it is here
    return {
        **{name: told[name] for name in names & told.keys()},
        "recipe": file,
        "dataset": script.dataset_path or [script.dataset_name],
        "only_files": script.dataset_path is not None,
        "split": script.dataset_train_split,
        "streaming": script.dataset_streaming,
        "target_floor": "none" if training.target_floor is None else training.target_floor,
    }


def _target_spec(args, columns):
    if args.recall_age is not None and args.windows_per_document == 1:
        raise ValueError(f"`--recall_age` ({args.recall_age}) is of walks: raise `--windows_per_document`.")
    targets = target_spec(args, columns, of_recipe=args.recipe is not None)
    targets.check_ages(args.windows_per_document)
    return targets


def _documents(args):
    """Those that training reads: all but the held-out ones."""
    documents = all_documents(args, args.only_files, args.remove_columns)
    if args.eval_documents is not None:
        documents = without_held_out(documents, args.eval_documents)
    return first_documents(documents, args.max_documents)


def _tokenizer_and_teacher(args):
    """The tokenizer, and the teacher's checkpoint: of a saved pair, that which it was trained with."""
    pair = pair_directory(args.model_name_or_path, weights=False)
    own = args.model_name_or_path if pair is None else PairConfig.load(pair).base_models["teacher"]
    with naming(args.model_name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(
            args.model_name_or_path if pair is None else pair, trust_remote_code=args.trust_remote_code
        )
    return tokenizer, args.teacher_name_or_path or own


def _load_teacher(args, tokenizer, checkpoint) -> PreTrainedModel:
    device = args.device or machine_device()
    check_device(device)
    check_dtype_name(args.dtype)
    check_same_tokenizer(tokenizer, "teacher", checkpoint, args.trust_remote_code)
    # bfloat16 is slow on many CPUs
    dtype = args.dtype or ("float32" if torch.device(device).type == "cpu" else "auto")
    teacher = create_model_from_path(
        checkpoint, dtype=dtype, device_map=None, trust_remote_code=args.trust_remote_code
    )
    return for_inference(teacher.to(device))


def _counts(args, spec, documents, windows, rows, tokenizer):
    """What was asked for, and what there is of it."""
    texts = [decode(tokenizer, row[WALK_COLUMN]) if spec.walks else row["prompt"] for row in rows]
    return {
        "dataset": args.dataset,
        "version": __version__,
        "model": args.model_name_or_path,
        "window": {"context_length": spec.context_length, "target_length": spec.target_length, "last_k": spec.last_k},
        "walk": {"windows": spec.windows_per_document, **asdict(spec.geometry)} if spec.walks else None,
        "held_out": args.eval_documents or 0,
        "documents": len(documents) if isinstance(documents, Dataset) else None,
        "windows": len(windows) if isinstance(windows, Dataset) else None,
        "windows_read": len(rows),
        "documents_read": len({str(row["document_id"]) for row in rows}),
        "with_carriage_returns": sum("\r" in text for text in texts),
    }


def _as_text(row, tokenizer: PreTrainedTokenizerBase):
    """A window as a reader sees it, with the target of each cue; of a walk, with the chunk that is new in it."""
    targets = [
        {
            "kind": target["kind"],
            **({"age": target["age"]} if "age" in target else {}),
            "cue": decode(tokenizer, target["cue_ids"]),
            "target": decode(tokenizer, target["target_ids"]),
            "tokens": len(target["target_ids"]),
        }
        for target in targets_of(row)
    ]
    last_k = decode(tokenizer, row["last_k_ids"])
    context = {"chunk": decode(tokenizer, row["chunk_ids"])} if "chunk_ids" in row else {"context": row["prompt"]}
    return {"document_id": row["document_id"], **context, "last_k": last_k, "targets": targets}


def _joined_words(window):
    """Where a target begins inside the word that its cue ends with, as by a space that is missing; of scripts with capitals,
    whose words have spaces between them."""

    def in_word(sign):
        return sign.isupper() or sign.islower() or sign.isdigit()

    for target in window["targets"]:
        if in_word(target["cue"][-1:]) and in_word(target["target"][:1]):
            yield f"{target['cue'].split()[-1]}|{target['target'].split()[0]}"


def _walk_as_text(rows, tokenizer):
    return {"document_id": rows[0]["document_id"], "walk": [_as_text(row, tokenizer) for row in rows]}


def _read(rows, teacher, prompts, batch_size) -> list[list[dict]]:
    """For each window what T makes of each of its targets, in nats per token, with a progress bar; windows of a walk after
    all of its text so far."""
    scorer = GistScorer(TargetScorer(teacher), TargetScorer(teacher), prompts, batch_size)
    readings = []
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("Windows", total=len(rows))
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            _, logps_D = scorer.read_targets(batch)
            readings += [
                [
                    {"nll_context": -read, "nll_cue": -alone, "gain": read - alone}
                    for read, alone in zip(read_K.tolist(), alone_K.tolist(), strict=True)
                ]
                for read_K, alone_K in scorer.context_readings(batch, logps_D)
            ]
            progress.advance(task, len(batch))
    return readings


def _worth(shown, readings, floor):
    """What contexts are worth, of each kind and, of walks, of each window, as training logs them; what was read of each
    target is added to it."""
    each_window = [window for example in shown for window in example.get("walk", [example])]
    for window, own in zip(each_window, readings, strict=True):
        for target, reading in zip(window["targets"], own, strict=True):
            target |= reading
    worth = worth_by_kind(each_window, floor)
    for number, of_number in enumerate(zip(*(example.get("walk", ()) for example in shown), strict=True)):
        worth |= worth_by_kind([_as_one_kind(window, f"window_{number}") for window in of_number], floor)
    return worth


def _as_one_kind(window, kind):
    return window | {"targets": [target | {"kind": kind} for target in window["targets"]]}


def worth_by_kind(windows: list[dict], floor: float | None) -> dict[str, dict[str, float]]:
    """
    What contexts are worth to T: how much better it predicts what follows for having read them.

    Args:
        windows (`list[dict]`):
            With `document_id` and `targets`, each with its `kind`, `nll_context`, `nll_cue` and `gain`, in nats per token.
        floor (`float`, *optional*):
            The gain from which training counts one of several targets.

    Returns:
        `dict[str, dict[str, float]]`: For each kind of target, and for `"all"` where there are several, means over
        targets, each of which counts alike, with standard errors over documents under the same name with `_se`; the share
        `above_floor` that gains at least `floor`; and the counts `targets` and `documents`.
    """
    targets = [target | {"document_id": row["document_id"]} for row in windows for target in row["targets"]]
    kinds = {kind: [target for target in targets if target["kind"] == kind] for kind in _kinds(targets)}
    worth = {}
    for kind, of_kind in (kinds if len(kinds) < 2 else {**kinds, "all": targets}).items():
        documents = [target["document_id"] for target in of_kind]
        values = {name: [target[name] for target in of_kind] for name in ("nll_cue", "nll_context", "gain")}
        if floor is not None:
            values["above_floor"] = [target["gain"] >= floor for target in of_kind]
        worth[kind] = {"targets": len(of_kind), "documents": len(set(map(str, documents)))}
        for name, value in values.items():
            worth[kind][name], worth[kind][f"{name}_se"] = mean_and_error(value, documents)
    return worth


def _kinds(targets):
    return sorted({target["kind"] for target in targets})


def _window_in_words(spec, ready, several):
    if ready:
        return "ready-made, of any length"
    if not spec.walks:
        read = f"{spec.context_length} tokens of context"
        verbatim = f", the last {spec.last_k} of them read verbatim"
    else:
        read = f"{spec.windows_per_document} windows, each with a chunk of {spec.geometry.chunk_length} tokens"
        verbatim = f", the {spec.last_k} after it read verbatim"
    if several:
        return f"{read}, and targets of at most {spec.target_length}, each after a cue"
    return f"{read}{verbatim}, and {spec.target_length} of target"


def _print_counts(console, report, window):
    read = report["windows_read"]
    table = console_table(" ".join(report["dataset"]))
    documents, windows = report["documents"], report["windows"]
    walk, held_out = report["walk"], report["held_out"]
    more = f", after {held_out:,} that are held out" if held_out else ""
    table.add_row("documents", ("a stream, whose end is not known" if documents is None else f"{documents:,}") + more)
    table.add_row(
        "windows" if walk is None else "walks",
        f"{read:,} read, the first" if windows is None else f"{windows:,}, {read:,} of them read",
    )
    table.add_row("a window" if walk is None else "a walk", window)
    total = sum(report["skipped"].values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report["skipped"].items()))
    table.add_row("skipped", f"{total:,} rows: {reasons}" if total else "nothing")
    if report["with_carriage_returns"]:
        table.add_row("line ends", f"{report['with_carriage_returns']:,} of {read:,} contexts have carriage returns")
    if joined := report.get("joined_words"):
        table.add_row(
            "joined words",
            f"{len(joined):,} targets go on inside the word that their cue ends with, as {joined[0]}: one that begins a word "
            "begins with a space",
        )
    console.print(table)


def _print_window(console, example):
    """Or a walk, window after window."""
    walk = example.get("walk")
    what = "window" if walk is None else f"walk over {len(walk)} windows"
    table = console_table(f"A {what} of document {example['document_id']}")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for number, window in enumerate(walk or [example]):
        name, text = ("context", window["context"]) if walk is None else (f"chunk {number}", window["chunk"])
        if len(text) > 2 * _SHOWN:
            text = f"{text[:_SHOWN]} […] {text[-_SHOWN:]}"
        table.add_row(name, Text(text))
        _add_targets(table, window)
    console.print(table)


def _add_targets(table, window):
    if len(window["targets"]) == 1 and window["targets"][0]["cue"] == window["last_k"]:
        table.add_row("last K", Text(window["last_k"]))
        table.add_row("target", Text(window["targets"][0]["target"]))
    else:
        for target in window["targets"]:
            age = f", {target['age']} ago" if target.get("age") else ""
            table.add_row(
                f"{target['kind']}{age}",
                Text.assemble((target["cue"], "dim"), " → ", (target["target"], "bold")),
            )


def _print_worth(console, report, ready, several):
    worth, floor = report["worth"], report["target_floor"]
    title = "What a context is worth to the teacher: NLL of what follows"
    cue = "cue" if several else f"last {report['window']['last_k']}"
    headings = ["Target", "count", f"after its {cue}", "after all", "gain"]
    if several and floor is not None:
        headings.append(f"≥ {floor:g}")
    table = console_table(title, *headings)
    for kind, values in worth.items():
        cells = [f"{values['nll_cue']:.4f}", f"{values['nll_context']:.4f}"]
        cells.append(measured(values, "gain", 4))
        if len(headings) > 5:
            cells.append(f"{values['above_floor']:.0%}")
        table.add_row(kind, f"{values['targets']:,}", *cells, style="bold" if kind == "all" else None)
    console.print(table)
    total = worth.get("all") or next(iter(worth.values()))
    console.print(
        f"{report['teacher']} on {total['documents']:,} documents; nats per target token ± standard error over them.",
        highlight=False,
        soft_wrap=True,
    )
    if not total["gain"] > 2 * total["gain_se"]:
        other = "ask for what the contexts alone tell"
        if not ready:
            other = "give a shorter --last_k, a longer --context_length or other --target_kinds"
        console.print(
            "No gain beyond its error: there is next to nothing that a gist could win here. Read more windows "
            f"(--max_windows), or {other}.",
            soft_wrap=True,
        )
