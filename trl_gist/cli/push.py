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

"""`trl-gist push`: a pair goes to the Hub."""

import argparse


def add_parser(commands):
    parser = commands.add_parser(
        "push", help="upload a pair to the Hub, in one commit, private unless said otherwise", allow_abbrev=False
    )
    parser.add_argument("pair", metavar="PAIR", help="the folder that training saved, or a checkpoint of a run")
    parser.add_argument("repo", metavar="USER/NAME", help="the repository, which is made if there is none")
    parser.add_argument(
        "--public", action="store_true", help="for all to see, held-out texts and gists in the card too"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="list what would be sent and what is left out, and send nothing"
    )
    parser.add_argument(
        "--base_model",
        metavar="USER/BASE",
        help="name on the Hub of what the pair was trained from, where that was a folder",
    )
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="on the Hub, that it was trained on; for the card"
    )
    parser.add_argument("--license", metavar="ID", help="as the Hub spells it (default: the base models' own)")
    parser.add_argument("--card", metavar="FILE", help="your own README.md, in place of the one that is written")
    parser.add_argument(
        "--evaluation",
        metavar="DIR",
        help="what `trl-gist evaluate` wrote of the pair, for the card (default: the last measures in training)",
    )
    parser.add_argument(
        "--space", action="store_true", help="also make a Gradio Space of that name, to try the pair in"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    from ..scripts.push import PushArguments, push
    from .flags import as_dataclass

    push(as_dataclass(PushArguments, args))
