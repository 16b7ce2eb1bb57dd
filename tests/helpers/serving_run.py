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

"""A server on a real loopback socket, in a thread of the test's process."""

import threading
import time
from contextlib import contextmanager

import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from trl_gist.serving.app import make_app
from trl_gist.serving.batcher import Batcher
from trl_gist.serving.compactor import ServedCompactor
from trl_gist.serving.config import ServingConfig
from trl_gist.serving.engine import Engine


NAME = "tiny-pair"
CONFIG = {"max_new_tokens": 64, "max_context_tokens": 2000, "max_body_bytes": 50_000, "chat_window": 150}


@contextmanager
def running(compactor, api_key=None, shutdown_seconds=5, **config):
    """Yields the server's URL."""
    app = make_app(compactor, NAME, ServingConfig(**{**CONFIG, **config}), api_key)
    settings = {"port": 0, "http": "h11", "log_level": "error", "timeout_graceful_shutdown": shutdown_seconds}
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def batching(compactor, max_rows=16, max_tokens=16384):
    """Yields the backend of a server."""
    batcher = Batcher(compactor, max_rows, max_tokens)
    try:
        yield batcher
    finally:
        batcher.close()


@contextmanager
def engine_of(compactor, **config):
    """Yields what answers the requests of a server."""
    with batching(compactor) as batcher:
        yield Engine(ServedCompactor(compactor, batcher), ServingConfig(**config).resolve(compactor))


@contextmanager
def slowed(model, seconds):
    """Each forward of a model takes so much longer."""
    hook = model.register_forward_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()


def until(condition, seconds=20):
    """Waits for it, or fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


def metrics_of(text):
    """Each sample's value by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
