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
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.utils import logging as hub_logging
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..common.files import replace_file
from ..common.run_files import finite
from ..common.statistics import ratio_and_error, with_error
from ..common.tokens import decode
from ..data.targets import TARGET_FLOOR
from ..data.windows import PositionLimits, WindowSpec, columns_of, prepare_windows
from ..models.loading import check_device, check_dtype_name, for_inference, machine_device, pair_directory
from ..models.roles import check_same_tokenizer, create_model_from_path, max_positions, naming
from ..pair import PairConfig
from ..prompts import SUMMARIZER_PROMPT_OF_FACTS, GistPrompts, bos_ids, targets_of
from ..scoring import GistScorer, TargetScorer
from ..version import __version__
from .arguments import DataArguments
from .resumable import progress_bar
from .windows import choose_windows, held_out_documents, target_spec


# Characters of a context that are shown: its beginning and its end
_SHOWN = 400


def show_data(args: DataArguments):
    """Prints windows, what is skipped and what contexts are worth, and writes them to `args.json` if that is given."""
    logging.basicConfig(format="%(message)s")
    hub_logging.disable_propagation()  # it has a handler of its own, and would say all twice
    if args.json is not None and not Path(args.json).parent.is_dir():
        raise ValueError(f"`--json` ({args.json}) names a file in a folder that is not there: make it first.")
    console = Console()
    targets = target_spec(args)
    documents = held_out_documents(args)
    tokenizer, checkpoint = _tokenizer_and_teacher(args)
    teacher = None if args.no_teacher else _load_teacher(args, tokenizer, checkpoint)
    spec = WindowSpec(
        args.context_length,
        args.target_length,
        args.last_k,
        args.window_stride,
        args.max_windows_per_document,
        targets=targets,
        parse_special_tokens=args.parse_special_tokens,
    )
    limits = None
    if teacher is not None and max_positions(teacher) is not None:
        limits = PositionLimits(teacher=max_positions(teacher) - len(bos_ids(tokenizer)))
    columns = columns_of(documents, "given")
    windows, skipped = prepare_windows(documents, tokenizer, spec, limits, name="given", columns=columns)
    some, _ = choose_windows(windows, args.max_windows)
    rows = list(islice(some, args.max_windows))
    report = {
        "dataset": args.dataset,
        "version": __version__,
        "model": args.model_name_or_path,
        "window": {"context_length": spec.context_length, "target_length": spec.target_length, "last_k": spec.last_k},
        "documents": len(documents) if isinstance(documents, Dataset) else None,
        "windows": len(windows) if isinstance(windows, Dataset) else None,
        "windows_read": len(rows),
        "documents_read": len({str(row["document_id"]) for row in rows}),
        "with_carriage_returns": sum("\r" in row["prompt"] for row in rows),
        "skipped": dict(skipped.counts),
    }
    ready, several = "text" not in columns, "targets" in rows[0]
    _print_counts(console, report, _window_in_words(spec, ready, several))
    shown = [_as_text(row, tokenizer) for row in rows]
    for place in range(min(args.show, len(shown))):
        _print_window(console, shown[place * len(shown) // min(args.show, len(shown))])
    if teacher is not None:
        floor = {None: TARGET_FLOOR, "none": None}.get(args.target_floor, args.target_floor)
        readings = _read(rows, teacher, tokenizer, args.batch_size)
        for window, own in zip(shown, readings, strict=True):
            for target, reading in zip(window["targets"], own, strict=True):
                target |= reading
        report |= {"teacher": checkpoint, "target_floor": floor, "worth": worth_by_kind(shown, floor)}
        _print_worth(console, report, ready, several)
    if args.json is not None:
        content = json.dumps(finite(report | {"examples": shown}), ensure_ascii=False, indent=2) + "\n"
        replace_file(Path(args.json), content.encode(errors="backslashreplace"))
        console.print(f"Written to {args.json}", markup=False, highlight=False, soft_wrap=True)


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


def _as_text(row, tokenizer: PreTrainedTokenizerBase):
    """A window as a reader sees it, with the target of each cue."""
    targets = [
        {
            "kind": target["kind"],
            "cue": decode(tokenizer, target["cue_ids"]),
            "target": decode(tokenizer, target["target_ids"]),
            "tokens": len(target["target_ids"]),
        }
        for target in targets_of(row)
    ]
    last_k = decode(tokenizer, row["last_k_ids"])
    return {"document_id": row["document_id"], "context": row["prompt"], "last_k": last_k, "targets": targets}


def _read(rows, teacher, tokenizer, batch_size) -> list[list[dict]]:
    """For each window what T makes of each of its targets, in nats per token, with a progress bar."""
    scorer = GistScorer(
        TargetScorer(teacher),
        TargetScorer(teacher),
        GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT_OF_FACTS),  # of which T reads only what begins a text
        batch_size,
    )
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
            mean, error = ratio_and_error(np.array(value, dtype=float), np.ones(len(value)), documents)
            worth[kind] |= {name: mean, f"{name}_se": error}
    return worth


def _kinds(targets):
    return sorted({target["kind"] for target in targets})


def _window_in_words(spec, ready, several):
    if ready:
        return "ready-made, of any length"
    if several:
        return (
            f"{spec.context_length} tokens of context, and targets of at most {spec.target_length}, each after a cue"
        )
    return (
        f"{spec.context_length} tokens of context, the last {spec.last_k} of them read verbatim, and "
        f"{spec.target_length} of target"
    )


def _print_counts(console, report, window):
    read = report["windows_read"]
    table = Table(title=escape(" ".join(report["dataset"])), box=box.SIMPLE, title_justify="left", show_header=False)
    documents, windows = report["documents"], report["windows"]
    table.add_row("documents", "a stream, whose end is not known" if documents is None else f"{documents:,}")
    table.add_row("windows", f"{read:,} read, the first" if windows is None else f"{windows:,}, {read:,} of them read")
    table.add_row("a window", window)
    total = sum(report["skipped"].values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report["skipped"].items()))
    table.add_row("skipped", escape(f"{total:,} rows: {reasons}") if total else "nothing")
    if report["with_carriage_returns"]:
        table.add_row("line ends", f"{report['with_carriage_returns']:,} of {read:,} contexts have carriage returns")
    console.print(table)


def _print_window(console, window):
    table = Table(box=box.SIMPLE, show_header=False, title_justify="left")
    table.title = escape(f"A window of document {window['document_id']}")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    context = window["context"]
    if len(context) > 2 * _SHOWN:
        context = f"{context[:_SHOWN]} […] {context[-_SHOWN:]}"
    table.add_row("context", Text(context))
    if len(window["targets"]) == 1 and window["targets"][0]["cue"] == window["last_k"]:
        table.add_row("last K", Text(window["last_k"]))
        table.add_row("target", Text(window["targets"][0]["target"]))
    else:
        for target in window["targets"]:
            table.add_row(
                escape(target["kind"]), Text.assemble((target["cue"], "dim"), " → ", (target["target"], "bold"))
            )
    console.print(table)


def _print_worth(console, report, ready, several):
    worth, floor = report["worth"], report["target_floor"]
    title = "What a context is worth to the teacher: NLL of what follows"
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    cue = "cue" if several else f"last {report['window']['last_k']}"
    headings = ["Target", "count", f"after its {cue}", "after all", "gain"]
    if several and floor is not None:
        headings.append(f"≥ {floor:g}")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right", no_wrap=True)
    for kind, values in worth.items():
        cells = [f"{values['nll_cue']:.4f}", f"{values['nll_context']:.4f}"]
        cells.append(with_error(values["gain"], values["gain_se"], 4))
        if len(headings) > 5:
            cells.append(f"{values['above_floor']:.0%}")
        table.add_row(escape(kind), f"{values['targets']:,}", *cells, style="bold" if kind == "all" else None)
    console.print(table)
    total = worth.get("all") or next(iter(worth.values()))
    console.print(
        f"{report['teacher']} on {total['documents']:,} documents; nats per target token ± standard error over them.",
        markup=False,
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
