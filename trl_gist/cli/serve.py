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

"""`trl-gist serve`: a pair over HTTP."""

import argparse
import os
from functools import partial

from ..scripts.arguments import load_pair
from ..serving.config import ServingConfig
from .flags import add_backend, add_pair, add_window, as_dataclass, check_installed, positive, whole


def add_parser(commands):
    parser = commands.add_parser(
        "serve",
        help="answer chats and completions over HTTP, as OpenAI's API does, and show a page to try the pair in",
        allow_abbrev=False,
    )
    add_pair(parser)
    add_backend(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to bind to; any but loopback needs an API key (default: %(default)s)",
    )
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="(default: %(default)s)")
    parser.add_argument(
        "--api_key_file",
        metavar="FILE",
        help="the key that clients must send (default: TRL_GIST_API_KEY, if it is set)",
    )
    parser.add_argument(
        "--served_name", metavar="NAME", help="the model's at the API (default: the last part of PAIR)"
    )
    add_window(parser)
    for name, text in (
        ("chat_window", "most tokens that the generator reads of a chat (default: all it can)"),
        ("max_new_tokens", "that a request may ask for"),
        ("max_context_tokens", "of a prompt, a chat or the texts to compress"),
        ("max_body_bytes", "of a request"),
        ("max_requests", "answered or waiting at one time"),
        ("max_batch_size", "texts that go through the models together; vLLM decides by itself"),
        ("max_batch_tokens", "of these, padding and what is written included; likewise"),
        ("request_seconds", "that a request may take, waiting included"),
    ):
        default = getattr(ServingConfig, name)
        more = "" if default is None else f" (default: {default})"
        parser.add_argument(f"--{name}", type=positive, metavar="N", help=text + more)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    packages = ("starlette", "pydantic", "uvicorn", "prometheus_client")
    check_installed(*packages, purpose="which the server needs", extra="serve")
    for flag in ("max_batch_size", "max_batch_tokens"):
        if args.backend == "vllm" and getattr(args, flag) is not None:
            raise ValueError(f"--{flag} is of --backend transformers, and vLLM decides by itself: leave it out.")
    from ..scripts.serve import serve

    name = args.served_name or os.path.basename(os.path.abspath(args.pair))  # of "." too
    load = partial(load_pair, args, backend=args.backend)
    serve(load, name, as_dataclass(ServingConfig, args), args.host, args.port, args.api_key_file)
