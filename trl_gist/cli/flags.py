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

"""Flags that several commands have, and what they stand for: the pair, a text, held-out documents."""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import lzma
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterable

from ..common.backends import BACKENDS
from ..common.encodings import check_encoding, text_of
from ..common.files import open_to_read
from ..scripts.arguments import HeldOutArguments


_KINDS = """'{"fact": 3, "recall": 1}'"""


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A flag's type: a whole number within bounds."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            wanted = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {value}. Give a whole number")
        return number

    return parse


positive = whole(least=1)


def above_zero(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {value}")
    return number


def add_pair(parser: argparse.ArgumentParser):
    parser.add_argument("pair", metavar="PAIR", help="what training saved: a folder, or a repository on the Hub")
    parser.add_argument("--revision", help="of the repository on the Hub")
    add_loading(parser, "as stored, or float32 on a CPU that is slow in less")


def add_loading(parser: argparse.ArgumentParser, dtype: str):
    """How checkpoints are loaded; `dtype` says in words which is the default."""
    parser.add_argument("--device", help="as 'cpu' or 'cuda:1' (default: the machine's accelerator)")
    choices = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=choices, help=f"of the weights (default: {dtype})")
    parser.add_argument("--trust_remote_code", action="store_true", help="let checkpoints run their own code")


def add_backend(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--backend",
        choices=tuple(BACKENDS),
        default="transformers",
        help="what runs a pair of two adapters: vllm is for many windows or clients at a time (default: %(default)s)",
    )


def check_backend(args: argparse.Namespace, *flags: str):
    """Raises `ValueError` if vLLM is asked for and one of the flags, which need the models themselves."""
    for flag in flags:
        if args.backend == "vllm" and getattr(args, flag):
            raise ValueError(
                f"--{flag} reads the models' own logits, which vLLM does not give: leave it out, or use --backend "
                "transformers."
            )


def add_batch_size(parser: argparse.ArgumentParser, default: int):
    """It is `None` where it is not given; `default` is said in the help."""
    parser.add_argument("--batch_size", type=positive, metavar="N", help=f"rows in one forward (default: {default})")


def add_file(
    parser: argparse.ArgumentParser,
    last_k_help: str = "what the generator reads beside the gist, as a question (default: the text's end)",
):
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a text file, also compressed (.gz, .bz2, .xz, .zst) or a URL as s3://…, right after PAIR; '-', or a pipe "
        "and nothing, reads stdin",
    )
    parser.add_argument("--last_k", metavar="TEXT", help=last_k_help)
    add_encoding(parser)


def add_encoding(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--encoding",
        metavar="NAME",
        help="of texts that are no UTF-8 and have no byte order mark, as shift_jis (default: Windows-1252, said, where "
        "few letters are beyond ASCII)",
    )


def read_text(file: str | None, taken: Iterable[str] = (), encoding: str | None = None) -> str:
    """
    The text of [`add_file`], without a byte order mark; before any model is loaded. A flag that takes several values may
    have `taken` its name.
    """
    check_encoding(encoding)
    for value in taken if file is None else ():
        if os.path.isfile(value):
            raise ValueError(
                f"No FILE is left: the flag before it took {value!r} too. Write FILE right after PAIR, or '-' there if "
                "the text comes from stdin."
            )
    if file is None and sys.stdin.buffer.isatty():
        raise ValueError(
            "No FILE is given, and stdin is a terminal. Write a file's name after PAIR, pipe a text, or give '-' to type one."
        )
    from_stdin = file in (None, "-")
    name = "stdin" if from_stdin else file
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if from_stdin else open_to_read(file) as stream:
            content = stream.read()
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # no such file, and the like: it says which
            raise
        raise ValueError(f"{name} cannot be decompressed: {error}.") from error
    text = text_of(name, content, encoding)
    if not text:
        raise ValueError(f"{name} is empty.")
    return text


def text_file(file: str) -> str:
    """A flag's type: a file, or '-' for stdin, of which the value is the text. For scripts without `--encoding`."""
    try:
        return read_text(file)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} A script without that flag reads what is saved in UTF-8") from error


def add_window(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="most tokens of a text that the generator reads (default: as trained)",
    )
    parser.add_argument(
        "--gist_budget",
        type=positive,
        metavar="N",
        help="keep a gist of each chunk, of at most so many tokens together (default: one gist, written anew)",
    )


def add_documents(parser: argparse.ArgumentParser, required: bool = True):
    """Of [`HeldOutArguments`], but for the output. What is not given is `None`, or `False`."""
    parser.add_argument(
        "--dataset",
        required=required,
        nargs="+",
        metavar="NAME_OR_PATH",
        help="a dataset on the Hub, or text, JSON lines, CSV or parquet files, also compressed, folders of them, patterns, "
        "or URLs as s3://…",
    )
    add_reading(parser, HeldOutArguments.split)
    add_batch_size(parser, HeldOutArguments.batch_size)
    parser.add_argument("--teacher", metavar="NAME_OR_PATH", help="the frozen teacher (default: the pair's own)")


def add_reading(parser: argparse.ArgumentParser, split: str):
    """How documents are read. What is not given is `None`, or `False`."""
    parser.add_argument("--dataset_config", metavar="NAME", help="configuration of the dataset on the Hub")
    parser.add_argument(
        "--split",
        help=f"split of the dataset on the Hub, or of a folder laid out as one (default: {split})",
    )
    parser.add_argument("--streaming", action="store_true", help="read documents as they are needed")
    parser.add_argument(
        "--text_column",
        metavar="NAME",
        help=f"column that holds the text (default: {HeldOutArguments.text_column})",
    )
    add_encoding(parser)
    parser.add_argument(
        "--max_documents",
        type=positive,
        metavar="N",
        help="read the first N documents; after training with `eval_documents: N`, those that were held out",
    )


def check_reading(args: argparse.Namespace, dataset: list[str], only_files: bool = False):
    """Raises `ValueError` for flags of [`add_reading`] that nothing reads."""
    from ..data.documents import check_given

    split = None if args.split == "train" else args.split  # as which `datasets` takes files
    check_given(
        dataset if only_files or len(dataset) > 1 else dataset[0],
        of_splits={"--dataset_config": args.dataset_config, "--split": split},
        of_files={"--encoding": args.encoding},
    )


def add_targets(parser: argparse.ArgumentParser, of_earlier: bool = False):
    """Of several targets of a window, by training's names; `of_earlier`: of a walk's earlier chunks alone."""
    kinds, default = (
        ("fact, recall", "none") if of_earlier else ("continuation, fact, recall, far", "the continuation alone")
    )
    parser.add_argument(
        "--target_kinds",
        type=kinds_of_targets,
        metavar="JSON",
        help=f"kinds of targets that every window is asked for ({kinds}), with their weights, as of training: {_KINDS} "
        f"(default: {default})",
    )
    parser.add_argument(
        "--targets_per_context",
        type=positive,
        metavar="N",
        help="with --target_kinds: targets of a window, of all kinds together (default: 8)",
    )
    parser.add_argument(
        "--target_floor",
        type=floor_of_targets,
        metavar="NATS",
        help="where a window has several targets: what the teacher must gain from the context over the cue alone for "
        "one of them to be read, in nats per token, or 'none' (default: 0.1)",
    )
    parser.add_argument(
        "--cue_length",
        type=positive,
        metavar="N",
        help="with --target_kinds: tokens before a fact that are read, at most, and half as many of a sentence "
        "(default: 12)",
    )
    if of_earlier:
        return
    parser.add_argument(
        "--far_offset",
        type=positive,
        metavar="N",
        help="with --target_kinds: tokens between the context and a far target (default: 128)",
    )


def add_recall_age(parser: argparse.ArgumentParser, default: str):
    parser.add_argument(
        "--recall_age",
        type=float,
        nargs="+",
        metavar="WEIGHT",
        help="in a walk: weights of targets of the window's own chunk, of the one before it, and so on "
        f"(default: {default})",
    )


def kinds_of_targets(value: str) -> dict[str, float]:
    try:
        kinds = json.loads(value)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"must be JSON, as {_KINDS}, got {value!r}: {error}") from error
    if not isinstance(kinds, dict) or not kinds or not all(type(weight) in (int, float) for weight in kinds.values()):
        raise argparse.ArgumentTypeError(f"must name kinds with their weights, as {_KINDS}, got {value!r}")
    return kinds


def floor_of_targets(value: str) -> float | str:
    try:
        floor = value if value == "none" else float(value)
    except ValueError:
        floor = math.nan
    if floor != "none" and not math.isfinite(floor):
        raise argparse.ArgumentTypeError(f"must be a number or 'none', got {value}")
    return floor


def add_output(parser: argparse.ArgumentParser, default: str):
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        help="where rows, measures, plots and the page go; an evaluation that was cut off goes on from there "
        f"(default: {default})",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove an evaluation with other settings there")


def as_dataclass(kind: type, args: argparse.Namespace):
    """What was parsed, of which a dataclass takes the flags of its fields' names; its own default where one is `None`."""
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None})


def check_installed(*modules: str, purpose: str, extra: str):
    """Raises `ValueError` for those that are missing, with the extra that brings them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(f'{", ".join(missing)} {verb} missing, {purpose}: pip install "trl_gist[{extra}]"')


def exit_with(prog: str, error: Exception | str):
    """One line on stderr, and exit code 2."""
    message = " ".join(str(error).split())  # the Hub's messages run over several lines
    print(f"{prog}: error: {message}", file=sys.stderr)
    raise SystemExit(2)
