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

"""Counters of a server, in Prometheus' text format."""

from collections.abc import Callable

from ..common.extras import extra


with extra("serve"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


# From a short completion on an accelerator to a long document on a CPU
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """
    What `/metrics` shows, in a registry of its own: several servers may live in one process.

    Args:
        waiting (`Callable[[], int]`, *optional*):
            Says how many requests wait for the models. Left out, there is no such figure.
    """

    def __init__(self, waiting: Callable[[], int] | None = None):
        self.registry = CollectorRegistry()
        here = {"registry": self.registry, "namespace": "trl_gist"}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **here)
        self.seconds = Histogram("request_seconds", "To the end of the answer.", ["route"], buckets=SECONDS, **here)
        self.tokens = Counter("tokens", "Tokens of prompts and texts, and tokens written.", ["direction"], **here)
        self.compactions = Counter("compactions", "Compactions of prompts and chats.", **here)
        self.compacted_tokens = Counter("compacted_tokens", "Tokens that compactions folded.", **here)
        self.in_flight = Gauge("requests_in_flight", "Requests for the models, with those that wait.", **here)
        if waiting is not None:
            Gauge("requests_waiting", "Requests that wait for the models.", **here).set_function(waiting)
        for direction in ("in", "out"):
            self.tokens.labels(direction)

    def count(self, answer):
        """An [`~serving.engine.Answer`] or [`~serving.engine.Compressed`]."""
        self.tokens.labels("in").inc(answer.prompt_tokens)
        self.tokens.labels("out").inc(answer.completion_tokens)
        if answer.gist is not None:
            self.compactions.inc(answer.gist["compactions"])
            self.compacted_tokens.inc(answer.gist["tokens_in"])

    def page(self) -> bytes:
        return generate_latest(self.registry)
