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

"""Who is let in, how many at a time, and the count of all requests."""

import hmac
import time

from ..common.extras import extra
from .errors import ApiError
from .metrics import Metrics


with extra("serve"):
    from starlette.datastructures import Headers


OPEN_ROUTES = ("/", "/health")  # the page itself asks for the key


class Gate:
    """
    ASGI middleware around all routes: who may come in, how many at one time, and what is counted. A request holds its
    place to the end of its answer, streams as well.

    Args:
        app:
            What is behind it.
        api_key (`str` or `None`):
            Asked for everywhere but at `OPEN_ROUTES`.
        max_requests (`int`):
            For the models, at one time.
        metrics ([`~serving.metrics.Metrics`]):
            Counts all requests.
        model_routes, other_routes (`tuple[str, ...]`):
            Paths, as the metrics' labels; any other path is `other` there.
    """

    def __init__(
        self,
        app,
        api_key: str | None,
        max_requests: int,
        metrics: Metrics,
        model_routes: tuple[str, ...],
        other_routes: tuple[str, ...],
    ):
        self.app = app
        self.api_key = api_key
        self.max_requests = max_requests
        self.metrics = metrics
        self.model_routes, self.other_routes = model_routes, other_routes
        self.in_flight = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in self.model_routes + self.other_routes else "other"
        # As nginx has it, for a client that left before there was an answer
        status, started = 499, time.perf_counter()

        async def send_and_see(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check_key(scope, path)
                await self._hold_a_place(path, scope, receive, send_and_see)
            except ApiError as error:
                await error.response()(scope, receive, send_and_see)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _check_key(self, scope, path):
        if self.api_key is None or path in OPEN_ROUTES:
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        # Headers are latin-1
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1"), self.api_key.encode()):
            raise ApiError(
                401,
                "The API key is missing or wrong: send `Authorization: Bearer KEY`.",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _hold_a_place(self, path, scope, receive, send):
        if path not in self.model_routes:
            await self.app(scope, receive, send)
            return
        if self.in_flight >= self.max_requests:
            raise ApiError(
                429,
                f"All {self.max_requests} places for requests are taken. Try again later.",
                "rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        self._count(1)
        try:
            await self.app(scope, receive, send)
        finally:
            self._count(-1)

    def _count(self, change):
        self.in_flight += change
        self.metrics.in_flight.set(self.in_flight)
