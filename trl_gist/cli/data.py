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
from .flags import add_batch_size, add_reading, add_targets, as_dataclass, positive, whole


def add_parser(commands):
    parser = commands.add_parser(
        "data",
        help="look at documents before training: their windows, what is skipped, and what their contexts are worth",
        usage="%(prog)s [-h] FILE ... [--FLAG VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "dataset",
        nargs="+",
        metavar="FILE",
        help="text, JSON lines, CSV or parquet files, also compressed, folders of them, patterns, or URLs as s3://…; or a "
        "dataset on the Hub",
    )
    documents = parser.add_argument_group("documents")
    add_reading(documents, DataArguments.split)
    models = parser.add_argument_group("who cuts and reads them")
    models.add_argument(
        "--model_name_or_path",
        metavar="NAME",
        help=f"whose tokenizer cuts windows, and the teacher; or a saved pair (default: {DataArguments.model_name_or_path})",
    )
    models.add_argument("--teacher_name_or_path", metavar="NAME", help="another checkpoint for the teacher")
    models.add_argument("--device", help="as 'cpu' or 'cuda:1' (default: the machine's accelerator)")
    models.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: as stored; on a CPU float32)",
    )
    models.add_argument("--trust_remote_code", action="store_true", help="let checkpoints run their own code")
    add_batch_size(models, DataArguments.batch_size)
    windows = parser.add_argument_group("windows, as of training")
    for name, text in (
        ("context_length", "tokens of context in a window"),
        ("target_length", "tokens of target, which follow the context"),
        ("last_k", "tokens at the end of the context that the generator sees verbatim"),
        ("window_stride", "tokens between the starts of two windows (default: windows side by side)"),
        ("max_windows_per_document", "cut at most N windows from a document"),
    ):
        default = getattr(DataArguments, name)
        more = "" if default is None else f" (default: {default})"
        windows.add_argument(f"--{name}", type=positive, metavar="N", help=text + more)
    windows.add_argument(
        "--parse_special_tokens", action="store_true", help="let control tokens that texts spell be these tokens"
    )
    add_targets(parser.add_argument_group("several targets of a window, as of training"))
    output = parser.add_argument_group("what is shown")
    output.add_argument(
        "--max_windows",
        type=positive,
        metavar="N",
        help="have the teacher read N windows, spread evenly over the documents; of a stream, the first N "
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
    from ..scripts.data import show_data

    show_data(as_dataclass(DataArguments, args))
