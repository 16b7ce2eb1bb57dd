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

"""What `trl-gist serve` runs."""

import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from ..common.chat_template import opened_thought, render
from ..common.extras import extra
from ..inference.compactor import GistCompactor
from ..pair import PAIR_CONFIG_NAME
from ..serving.app import make_app
from ..serving.config import ServingConfig, check_host


with extra("serve"):
    import uvicorn


logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "TRL_GIST_API_KEY"
# Orchestrators give a process some 30 s after SIGTERM
SHUTDOWN_SECONDS = 25


def serve(
    load: Callable[[], GistCompactor],
    name: str,
    config: ServingConfig,
    host: str,
    port: int,
    api_key_file: str | None = None,
):
    """
    Serves a pair until SIGTERM or SIGINT: requests that are being answered then have 25 seconds left.

    Args:
        load (`Callable`):
            Loads the pair; called when all else is known to be well.
        name (`str`):
            The model's at the API.
        config ([`ServingConfig`]):
            The limits.
        host (`str`), port (`int`):
            The address to bind to.
        api_key_file (`str`, *optional*):
            See [`read_api_key`].

    Raises:
        ValueError: if the host needs a key and there is none, or the limits do not fit the pair.
        OSError: if the address is taken.
    """
    api_key = read_api_key(api_key_file)
    check_host(host, api_key)
    address = bind(host, port)  # before the minutes that a pair may take to load
    compactor = load()
    app = make_app(compactor, name, config, api_key)
    warn_of_thoughts(compactor)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",  # httptools, where it is installed, would answer what is no HTTP in plain text
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            server_header=False,
            # Between two requests of one connection, and so between two of a client's
            timeout_keep_alive=60,
        )
    )
    # uvicorn (0.54) raises the signal that ended it once more, and to have ended as asked is no failure
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    address.listen(server.config.backlog)
    # uvicorn (0.54) says where it is only of a socket of its own
    host, port = address.getsockname()[:2]
    root = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Serving {name} at {root}/v1", flush=True)
    print(f"A page to try it in: {root}/", flush=True)
    server.run(sockets=[address])


def warn_of_thoughts(compactor: GistCompactor):
    """Says in the log if the header of an answer in the pair's chat template opens a thought, in which answers to chats
    then begin."""
    tokenizer, kwargs = compactor.tokenizer, compactor.pair.chat_template_kwargs
    if not tokenizer.chat_template:
        return
    try:
        tag = opened_thought(render(tokenizer, [{"role": "user", "content": "Hello"}], **kwargs))
    except ValueError:  # of which each chat is told
        return
    if tag:
        logger.warning(
            f"Answers to chats begin inside a thought: the chat template opens {tag}. To have it closed, set "
            f'`chat_template_kwargs` in the pair\'s {PAIR_CONFIG_NAME}, as {{"enable_thinking": false}} where the template '
            "knows that, or give its tokenizer another `chat_template`."
        )


def read_api_key(file: str | None) -> str | None:
    """From a file or the environment. Raises `ValueError` if it is none that a header can carry."""
    source = API_KEY_VARIABLE if file is None else file
    key = os.environ.get(API_KEY_VARIABLE) if file is None else Path(file).read_text("utf-8", "replace").strip()
    if key is None:
        return None
    if not key or not all(33 <= ord(character) < 127 for character in key):
        raise ValueError(f"{source} holds no API key: it must be one line of printable ASCII without spaces.")
    return key


def bind(host: str, port: int) -> socket.socket:
    """
    The address, held but not yet listening, so that a client is refused rather than kept waiting while the pair loads.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        raise OSError(f"Cannot bind to {host} port {port}: {error.strerror}.") from error
    return bound
