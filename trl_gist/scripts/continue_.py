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

"""What `trl-gist continue` runs."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

from transformers import TextStreamer, set_seed

from ..inference.compactor import GistCompactor


def continue_text(args: argparse.Namespace, text: str, load: Callable[[argparse.Namespace], GistCompactor]):
    """Prints what follows a text, token by token; with `--json`, one object at the end."""
    if args.last_k is not None and (args.window is not None or args.recursion != "rolling" or args.verbose):
        raise ValueError(
            "--last_k goes on from one gist of the text's end, and --window, --recursion and --verbose are a session's: "
            "leave one of the two out."
        )
    compactor = load(args)
    if args.seed is not None:
        set_seed(args.seed)
    sampling = {"temperature": args.temperature} if args.do_sample else {}
    if args.last_k is not None:
        continuation = compactor.continue_text(text, args.tokens, args.do_sample, args.last_k, **sampling)
        print(json.dumps(dataclasses.asdict(continuation), ensure_ascii=False) if args.json else continuation.text)
        return
    session = compactor.session(
        window=args.window, recursion=args.recursion, after_compaction=_report if args.verbose else None
    )
    session.append(text)
    streamer = None if args.json else TextStreamer(compactor.tokenizer, skip_special_tokens=True)
    continuation = session.generate(args.tokens, args.do_sample, streamer, **sampling)
    if args.json:
        compactions = [dataclasses.asdict(compaction) for compaction in session.history]
        print(json.dumps({**dataclasses.asdict(continuation), "compactions": compactions}, ensure_ascii=False))


def _report(session, compaction):
    print(
        f"compaction {compaction.index}: {compaction.tokens_in} tokens up to {compaction.spans[-1][1]} -> "
        f"{compaction.gist_tokens}: {compaction.gist!r}",
        file=sys.stderr,
    )
