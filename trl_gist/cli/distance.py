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

"""`trl-gist distance`: what a pair keeps as windows pass."""

import argparse

from ..scripts.arguments import DistanceArguments
from .flags import (
    add_documents,
    add_output,
    add_pair,
    add_recall_age,
    add_targets,
    as_dataclass,
    check_installed,
    check_reading,
    positive,
)


def add_parser(commands):
    parser = commands.add_parser(
        "distance", help="walk along documents as a session does, and measure what is kept", allow_abbrev=False
    )
    add_pair(parser)
    add_documents(parser)
    parser.add_argument(
        "--windows",
        type=positive,
        required=True,
        metavar="N",
        help="walk along documents for N windows as a session does, and measure what is kept with distance",
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        metavar="NAME=PAIR",
        help="other pairs of the same window to walk beside it, as one trained on several windows",
    )
    parser.add_argument(
        "--join_documents",
        action="store_true",
        help="join documents, in their order, into streams of N windows, for lengths beyond every document",
    )
    targets = parser.add_argument_group("also ask every window for what was said in earlier ones")
    add_targets(targets, of_earlier=True)
    add_recall_age(targets, "the window's own chunk and the four before it, alike")
    add_output(parser, "PAIR/distance")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    check_installed("matplotlib", purpose="which draws the curves", extra="eval")
    check_reading(args, args.dataset)
    from ..scripts.distance import measure_distance

    measure_distance(as_dataclass(DistanceArguments, args))
