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

"""
The command line: `trl-gist data | train | evaluate | distance | compress | continue | serve | report | push`. Each
command has a file here, with its flags and what it runs.

Nothing heavy is imported before a command runs, so that help and usage errors come at once. What a user got wrong (a
path, a file, a setting) ends in one line on stderr and exit code 2; a run that fails after training began keeps its
traceback.
"""

import argparse
import os
import sys

from ..common.arguments import no_setting, several
from ..common.extras import MissingExtra
from ..version import __version__
from . import compress, continue_, data, distance, evaluate, push, report, serve, train
from .flags import exit_with


_EPILOG = """\
examples:
  trl-gist data my-texts/ --context_length 512 --last_k 64
  trl-gist train --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --use_peft --dataset_path my-texts/
  trl-gist train --config configs/smollm2-135m_fineweb-edu.yaml --output_dir my-pair
  trl-gist train --accelerate_config zero2 --config configs/qwen3-4b_fineweb-edu.yaml --output_dir my-pair
  trl-gist evaluate my-pair --dataset held_out.jsonl --last_k 64 128 256
  trl-gist evaluate my-pair --tasks
  trl-gist distance my-pair --dataset held_out.jsonl --windows 20 --pairs recursive=my-recursive-pair
  trl-gist compress my-pair article.txt --json
  cat article.txt | trl-gist continue my-pair --tokens 100
  trl-gist serve my-pair --port 8000
  trl-gist report my-pair
  trl-gist push my-pair user/my-pair --dry_run
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, or raises `SystemExit` with it."""
    argv = sys.argv[1:] if argv is None else several("argv", argv, "arguments", "split it, as `shlex.split` does")
    if argv[:1] == ["train"]:
        try:
            return train.run(argv[1:])  # its flags are those of three dataclasses, which import torch
        except KeyboardInterrupt:
            return 130
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # As in `… | head`: nobody reads on. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MissingExtra) as error:
        exit_with(f"trl-gist {args.command}", error)
    except KeyboardInterrupt:
        return 130
    return 0


class _CommandParser(argparse.ArgumentParser):
    """Of one command, by whose name it says what it does not know; argparse would say it by `trl-gist`."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            exit_with(self.prog, no_setting(unknown, [action.dest for action in self._actions]))
        return namespace, unknown


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trl-gist",
        description="Learned context compaction in plain tokens: a summarizer writes a gist of a context, a generator "
        "continues from the gist.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_CommandParser)
    for command in (data, train, evaluate, distance, compress, continue_, serve, report, push):
        command.add_parser(commands)
    return parser
