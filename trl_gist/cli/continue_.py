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

"""`trl-gist continue`: a text of any length goes on."""

import argparse
import contextlib
import dataclasses
import functools
import json
import sys

from ..scripts.arguments import load_pair
from .flags import above_zero, add_file, add_pair, add_window, positive, read_text, whole


def add_parser(commands):
    parser = commands.add_parser(
        "continue", help="continue a text of any length, compacting whenever the window is full", allow_abbrev=False
    )
    add_pair(parser)
    add_file(parser, "instead of a session: a gist of the text's last context_length tokens, and this beside it")
    parser.add_argument(
        "--tokens",
        "--max_new_tokens",
        dest="tokens",
        type=positive,
        default=64,
        metavar="N",
        help="longest continuation (default: %(default)s)",
    )
    parser.add_argument("--do_sample", action="store_true", help="sample instead of taking the likeliest tokens")
    parser.add_argument("--temperature", type=above_zero, metavar="T", help="of --do_sample (default: 1.0)")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), metavar="N", help="of --do_sample")
    add_window(parser)
    parser.add_argument("--verbose", action="store_true", help="print each compaction on stderr")
    parser.add_argument("--json", action="store_true", help="one JSON object: text, ids, the gist and the compactions")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    text = read_text(args.file, encoding=args.encoding)
    if args.last_k is not None and (args.window is not None or args.gist_budget is not None or args.verbose):
        raise ValueError(
            "--last_k goes on from one gist of the text's end, and --window, --gist_budget and --verbose are a "
            "session's: leave one of the two out."
        )
    for name in ("temperature", "seed"):
        if getattr(args, name) is not None and not args.do_sample:
            raise ValueError(f"--{name} is of sampling, and the likeliest tokens are taken: add --do_sample.")
    compactor = load_pair(args)
    sampling = _sampling(args)  # after loading: whatever that draws, a seed gives the same text
    if args.last_k is not None:
        _from_gist(compactor, args, text, sampling)
    else:
        _from_session(compactor, args, text, sampling)


def _from_gist(compactor, args, text, sampling):
    continuation = compactor.continue_text(text, args.tokens, args.do_sample, args.last_k, **sampling)
    print(json.dumps(dataclasses.asdict(continuation), ensure_ascii=False) if args.json else continuation.text)


def _from_session(compactor, args, text, sampling):
    """Token by token; with `--json`, one object at the end."""
    from rich.console import Console

    from ..serving.text_stream import TextStream

    status = Console(stderr=True).status("Reading")  # nothing, where that is no terminal

    def show(session, compaction):
        status.update(f"Reading: {compaction.spans[-1][1]:,} tokens are folded")

    report = _report if args.verbose else show
    session = compactor.session(window=args.window, gist_budget=args.gist_budget, after_compaction=report)
    with contextlib.nullcontext() if args.verbose else status:
        session.append(text)
    streamer = None if args.json else TextStream(compactor.tokenizer, functools.partial(print, end="", flush=True), [])
    continuation = session.generate(args.tokens, args.do_sample, streamer, **sampling)
    if streamer is not None:
        streamer.finish()
        print()
    if args.json:
        compactions = [dataclasses.asdict(compaction) for compaction in session.history]
        print(json.dumps({**dataclasses.asdict(continuation), "compactions": compactions}, ensure_ascii=False))


def _sampling(args):
    from transformers import set_seed

    if args.seed is not None:
        set_seed(args.seed)
    return {"temperature": args.temperature or 1.0} if args.do_sample else {}


def _report(session, compaction):
    print(
        f"compaction {compaction.index}: {compaction.tokens_in} tokens up to {compaction.spans[-1][1]} -> "
        f"{compaction.gist_tokens}: {compaction.gist!r}",
        file=sys.stderr,
    )
