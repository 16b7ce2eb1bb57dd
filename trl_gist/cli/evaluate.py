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

"""`trl-gist evaluate`: a pair against its controls on held-out windows."""

import argparse
import dataclasses

from ..scripts.arguments import DEFAULT_COMPRESSORS, EvaluateArguments, TasksArguments
from .flags import (
    add_documents,
    add_output,
    add_pair,
    add_targets,
    as_dataclass,
    check_installed,
    check_reading,
    positive,
    whole,
)


_OF_DOCUMENTS = ("dataset_config", "split", "streaming", "text_column", "encoding", "max_documents")
_MOST_FACTS = 16  # `data.tasks.base.MOST_FACTS`, which imports datasets


def add_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        help="measure a pair against its controls on held-out documents",
        # It would list forty flags; they follow, by what they are for
        usage="%(prog)s [-h] PAIR (--dataset NAME_OR_PATH ... | --tasks [NAME ...]) [--FLAG VALUE ...]",
        allow_abbrev=False,
    )
    add_pair(parser)
    documents = parser.add_argument_group("documents, and who reads them")
    add_documents(documents, required=False)
    documents.add_argument(
        "--max_windows_per_document", type=positive, metavar="N", help="cut at most N windows from a document"
    )
    documents.add_argument(
        "--max_windows",
        type=positive,
        metavar="N",
        help="measure N windows, spread evenly over the documents (of a stream: the first N)",
    )
    tasks = parser.add_argument_group("facts, windows later: --tasks in place of documents")
    tasks.add_argument(
        "--tasks",
        nargs="*",
        metavar="NAME",
        help="instead, ask a session for facts that were said some windows ago, in texts made from code, whose end is "
        "worthless: ledger, needles, variables, story, dialogue, or all (default: all). --dataset, if given, stands "
        "between the facts",
    )
    tasks.add_argument(
        "--lengths",
        type=positive,
        nargs="+",
        metavar="N",
        help=f"with --tasks: windows of the texts (default: {' '.join(map(str, TasksArguments.lengths))})",
    )
    for name, kind, text in (
        ("texts", positive, "texts of each task and length"),
        ("difficulty", whole(1, _MOST_FACTS), f"facts in a text, 1 to {_MOST_FACTS}"),
        ("seed", whole(least=0), "of the texts"),
    ):
        default = getattr(TasksArguments, name)
        tasks.add_argument(f"--{name}", type=kind, metavar="N", help=f"with --tasks: {text} (default: {default})")
    tasks.add_argument(
        "--pairs",
        nargs="+",
        metavar="NAME=PAIR",
        help="with --tasks: other pairs of the same window that are asked too",
    )
    targets = parser.add_argument_group("several targets of a window")
    add_targets(targets)
    sizes = parser.add_argument_group("sizes other than those of training")
    sizes.add_argument(
        "--last_k",
        type=positive,
        nargs="+",
        metavar="K",
        help="numbers of last tokens to measure with, as 64 128 256 (default: as trained)",
    )
    sizes.add_argument(
        "--budgets",
        type=positive,
        nargs="+",
        metavar="N",
        help="most tokens of a gist to measure with (default: as trained)",
    )
    rivals = parser.add_argument_group("others to compare with")
    rivals.add_argument(
        "--generator_only", metavar="PAIR", help="a pair trained as long with `--generator_only`, as a control"
    )
    rivals.add_argument(
        "--readers",
        nargs="*",
        metavar="NAME_OR_PATH",
        help="also have the gists read as plain text by the teacher, and by these unrelated language models",
    )
    rivals.add_argument(
        "--compressors",
        nargs="*",
        metavar="NAME",
        help="also compare with other compressors at the same number of tokens: with those named, as tail; if none is "
        f"named, with all (with --tasks: {' '.join(DEFAULT_COMPRESSORS)})",
    )
    rivals.add_argument(
        "--samples",
        type=whole(least=0),
        metavar="N",
        help=f"with --compressors: also N gists that S samples (default: {EvaluateArguments.samples})",
    )
    rivals.add_argument("--token_classifier", metavar="PATH", help="a checkpoint of LLMLingua-2's, as one more")
    rivals.add_argument(
        "--gists",
        nargs="+",
        metavar="NAME=FILE",
        help="gists that other systems wrote of contexts.jsonl in the output folder, as JSON lines with "
        "`context_hash` and `gist`",
    )
    rivals.add_argument(
        "--own_generators",
        nargs="+",
        metavar="NAME=PAIR",
        help="for a compressor, a pair trained as long with `--generator_only --compressor NAME`",
    )
    output = parser.add_argument_group("output")
    add_output(output, "PAIR/evaluation, with --tasks PAIR/tasks")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    if args.tasks is not None:
        if others := _given(args, EvaluateArguments, TasksArguments):
            raise ValueError(f"--{others[0]} does not go with --tasks, which asks for facts in texts of its own.")
        if args.dataset is None and (of_documents := [name for name in _OF_DOCUMENTS if _is_given(args, name)]):
            raise ValueError(f"--{of_documents[0]} is of documents that stand between the facts: add --dataset.")
        if args.dataset is not None:
            check_reading(args, args.dataset)
        check_installed("matplotlib", purpose="which draws the curves", extra="eval")
        from ..scripts.tasks import measure_tasks

        measure_tasks(as_dataclass(TasksArguments, args))
        return
    if args.dataset is None:
        raise ValueError("--dataset is missing: give documents to measure on, or --tasks, which makes its own.")
    check_installed("matplotlib", purpose="which draws the curves", extra="eval")
    if others := _given(args, TasksArguments, EvaluateArguments):
        raise ValueError(f"--{others[0]} is for facts that a session is asked for: add --tasks.")
    check_reading(args, args.dataset)
    from ..scripts.evaluate import evaluate

    evaluate(as_dataclass(EvaluateArguments, args))


def _given(args, other, own):
    """Flags of the other evaluation that this one has not, and that were given."""
    names, taken = ([field.name for field in dataclasses.fields(kind)] for kind in (other, own))
    return [name for name in names if name not in taken and _is_given(args, name)]


def _is_given(args, name):
    return getattr(args, name) is not None and getattr(args, name) is not False
