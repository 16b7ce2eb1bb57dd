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

"""`trl-gist compress`: gists of a text, one for each window."""

import argparse
import dataclasses
import json

from ..common.backends import BACKENDS
from ..scripts.arguments import load_pair
from .flags import add_backend, add_file, add_pair, check_backend, positive, read_text


def add_parser(commands):
    parser = commands.add_parser("compress", help="write the gists of a text, one for each window", allow_abbrev=False)
    add_pair(parser)
    add_file(parser)
    parser.add_argument(
        "--budget", type=positive, metavar="N", help="the most tokens a gist may have (default: as trained)"
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        metavar="WHAT",
        help="what a gist must have of its context, within its budget: numbers, names, dates, regex:PATTERN or a "
        "literal string",
    )
    parser.add_argument(
        "--certify",
        action="store_true",
        help="with --json: also measure what each gist is expected to cost against its whole context",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="exchange pieces of each gist for others of its context, where that is expected to cost less: some 300 "
        "readings by the generator a context",
    )
    add_backend(parser)
    parser.add_argument(
        "--batch_size",
        type=positive,
        metavar="N",
        help=f"windows in one forward (default: {BACKENDS['transformers']}); with --backend vllm, which batches them by "
        f"itself, windows that it is handed at a time (default: {BACKENDS['vllm']})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per gist: text, ids, log-prob and rates")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    text = read_text(args.file, args.keep or (), args.encoding)
    if args.certify and not args.json:
        raise ValueError("--certify measures what only --json prints: add --json.")
    check_backend(args, "certify", "search")
    from ..inference.keep import parse_keep

    parse_keep(args.keep)
    batch_size = args.batch_size or BACKENDS[args.backend]
    settings = {"last_k": args.last_k, "keep": args.keep, "certify": args.certify, "search": args.search}
    pair = load_pair(args, backend=args.backend)
    for gist in pair.iter_windows(text, args.budget, batch_size=batch_size, **settings):
        print(json.dumps(dataclasses.asdict(gist), ensure_ascii=False) if args.json else gist.text, flush=True)
