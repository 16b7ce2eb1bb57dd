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

"""`trl-gist data`: what a data set holds, before anything is trained on it."""

import argparse

from ..scripts.arguments import DataArguments
from .flags import (
    add_batch_size,
    add_loading,
    add_reading,
    add_recall_age,
    add_targets,
    check_reading,
    positive,
    whole,
)


_OF_THE_TEACHER = ("teacher_name_or_path", "device", "dtype", "batch_size", "target_floor")


def add_parser(commands):
    parser = commands.add_parser(
        "data",
        help="look at documents before training: their windows, what is skipped, and what their contexts are worth",
        usage="%(prog)s [-h] [FILE ...] [--config RECIPE.yaml] [--FLAG VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "dataset",
        nargs="*",
        metavar="FILE",
        help="text, JSON lines, CSV or parquet files, also compressed, folders of them, patterns, or URLs as s3://…; or a "
        "dataset on the Hub",
    )
    parser.add_argument(
        "--config",
        metavar="RECIPE.yaml",
        help="of `trl-gist train`: look at what that will train on; FILE and flags override it",
    )
    documents = parser.add_argument_group("documents")
    add_reading(documents, DataArguments.split)
    documents.add_argument("--remove_columns", nargs="+", metavar="NAME", help="columns to leave out, as of training")
    documents.add_argument(
        "--eval_documents",
        type=positive,
        metavar="N",
        help="leave out the first N documents, as training holds them out",
    )
    models = parser.add_argument_group("who cuts and reads them")
    models.add_argument(
        "--model_name_or_path",
        metavar="NAME",
        help=f"whose tokenizer cuts windows, and the teacher; or a saved pair (default: {DataArguments.model_name_or_path})",
    )
    models.add_argument("--teacher_name_or_path", metavar="NAME", help="another checkpoint for the teacher")
    add_loading(models, "as stored; on a CPU float32")
    add_batch_size(models, DataArguments.batch_size)
    windows = parser.add_argument_group("windows, as of training")
    for name, text in (
        ("context_length", "tokens of context in a window"),
        ("target_length", "tokens of target, which follow the context"),
        ("last_k", "tokens at the end of the context that the generator sees verbatim"),
        ("window_stride", "tokens between the starts of two windows (default: windows side by side)"),
        ("max_windows_per_document", "cut at most N windows, or walks, from a document"),
        ("windows_per_document", "windows that a walk along a document has"),
        ("max_completion_length", "tokens of the longest gist, for which a walk's context has room"),
    ):
        default = getattr(DataArguments, name)
        more = "" if default is None else f" (default: {default})"
        windows.add_argument(f"--{name}", type=positive, metavar="N", help=text + more)
    windows.add_argument(
        "--parse_special_tokens", action="store_true", help="let control tokens that texts spell be these tokens"
    )
    targets = parser.add_argument_group("several targets of a window, as of training")
    add_targets(targets)
    add_recall_age(targets, "all alike")
    output = parser.add_argument_group("what is shown")
    output.add_argument(
        "--max_windows",
        type=positive,
        metavar="N",
        help="have the teacher read N windows, or walks, spread evenly over the documents; of a stream, the first N "
        f"(default: {DataArguments.max_windows})",
    )
    output.add_argument(
        "--show", type=whole(least=0), metavar="N", help=f"of these, print N (default: {DataArguments.show})"
    )
    output.add_argument(
        "--no_teacher", action="store_true", help="load no teacher: what contexts are worth is left out"
    )
    output.add_argument("--json", metavar="FILE", help="write all of it there, with every window that was read")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    import dataclasses

    from ..scripts.data import arguments_of_recipe, show_data

    if not args.dataset and args.config is None:
        raise ValueError("Say what to look at: give FILE …, or --config RECIPE.yaml, as for `trl-gist train`.")
    values = {} if args.config is None else arguments_of_recipe(args.config)
    # Flags that are not given are None, False or empty
    names = {field.name for field in dataclasses.fields(DataArguments)}
    given = {name: value for name, value in vars(args).items() if name in names}
    given = {name: value for name, value in given.items() if not (value is None or value is False or value == [])}
    if args.dataset:
        values["only_files"] = False
    arguments = DataArguments(**{**values, **given})
    for name in _OF_THE_TEACHER if args.no_teacher else ():
        if name in given:
            raise ValueError(f"--{name} is of the teacher, and --no_teacher loads none: leave one of the two out.")
    if "max_completion_length" in given and arguments.windows_per_document == 1:
        raise ValueError(
            "--max_completion_length is of walks, whose contexts hold a gist: raise --windows_per_document."
        )
    check_reading(args, arguments.dataset, arguments.only_files)
    show_data(arguments)
