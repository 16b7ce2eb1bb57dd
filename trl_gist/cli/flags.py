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

"""Flags of `trl-gist continue` and `serve`, apart from their scripts, which import torch."""

import argparse

from ..serving.config import ServingConfig


def add_continue_flags(parser: argparse.ArgumentParser):
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
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampling (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the sampling")
    _add_window(parser)
    parser.add_argument("--verbose", action="store_true", help="print each compaction on stderr")
    parser.add_argument("--json", action="store_true", help="one JSON object: text, ids, the gist and the compactions")


def add_serve_flags(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to bind to; any but loopback needs an API key (default: %(default)s)",
    )
    parser.add_argument("--port", type=_port, default=8000, help="(default: %(default)s)")
    parser.add_argument(
        "--api_key_file",
        metavar="FILE",
        help="the key that clients must send (default: TRL_GIST_API_KEY, if it is set)",
    )
    parser.add_argument(
        "--served_name", metavar="NAME", help="the model's at the API (default: the last part of PAIR)"
    )
    _add_window(parser)
    for name, text in (
        ("chat_window", "most tokens that the generator reads of a chat (default: all it can)"),
        ("max_new_tokens", "that a request may ask for (default: %(default)s)"),
        ("max_context_tokens", "of a prompt, a chat or the texts to compress (default: %(default)s)"),
        ("max_body_bytes", "of a request (default: %(default)s)"),
        ("max_requests", "answered or waiting at one time (default: %(default)s)"),
        ("request_seconds", "that a request may take, waiting included (default: %(default)s)"),
    ):
        default = getattr(ServingConfig, name)
        parser.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=text)


def _add_window(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="most tokens of a text that the generator reads (default: as trained)",
    )
    parser.add_argument(
        "--recursion",
        default="rolling",
        choices=("rolling", "chain", "tree"),
        help="how gists follow from what scrolls off (default: %(default)s)",
    )


def positive(value):
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _port(value):
    number = int(value)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {number}")
    return number
