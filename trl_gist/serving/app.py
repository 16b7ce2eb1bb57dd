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

"""The server as an ASGI application."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager

from ..common.extras import extra
from ..inference.compactor import GistCompactor
from ..models.vllm import EngineError, EngineModel
from .batcher import Batcher
from .compactor import ServedCompactor
from .config import ServingConfig
from .engine import Engine
from .errors import ApiError, EngineFailed
from .gate import Gate
from .metrics import Metrics
from .openapi import document
from .page import page
from .schemas import (
    ChatRequest,
    CompareRequest,
    CompletionRequest,
    CompressRequest,
    RecallRequest,
    Strict,
    parse,
)
from .vllm import EngineBackend
from .wire import ChatShape, CompletionShape, GistShape, Shape, event
from .worker import Disconnected, Job, Worker


with extra("serve"):
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route


MODEL_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/compress", "/v1/compare", "/v1/recall")
# A body that trickles in holds a place that another request could have
BODY_SECONDS = 30
OTHER_ROUTES = ("/", "/v1/models", "/health", "/metrics", "/openapi.json")
ONE_MODEL_ROUTE = "/v1/models/{name:path}"  # names may have slashes


def make_app(
    compactor: GistCompactor, name: str, config: ServingConfig | None = None, api_key: str | None = None
) -> Starlette:
    """
    A server of one pair.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        name (`str`):
            The model's, at the API.
        config ([`ServingConfig`], *optional*):
            Limits and windows.
        api_key (`str`, *optional*):
            That clients must send.

    Raises:
        ValueError: if the limits do not fit the pair.
    """
    server = Server(compactor, name, (config or ServingConfig()).resolve(compactor))
    engine = server.engine
    endpoints = (
        AnswerEndpoint(server, ChatRequest, engine.chat, ChatShape),
        AnswerEndpoint(server, CompletionRequest, engine.complete, CompletionShape),
        GistEndpoint(server, CompressRequest, engine.compress),
        GistEndpoint(server, CompareRequest, engine.compare),
        GistEndpoint(server, RecallRequest, engine.recall),
    )
    places = {"max_requests": server.config.max_requests, "model_routes": MODEL_ROUTES, "other_routes": OTHER_ROUTES}
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in zip(MODEL_ROUTES, endpoints, strict=True)),
            *(Route(path, endpoint) for path, endpoint in zip(OTHER_ROUTES, server.pages, strict=True)),
            Route(ONE_MODEL_ROUTE, server.model),
        ],
        middleware=[Middleware(Gate, api_key=api_key, metrics=server.metrics, **places)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _unforeseen},
        lifespan=server.lifespan,
    )
    app.router.redirect_slashes = False
    server.document = document(app.routes, name, server.config, api_key is not None)
    return app


class Server:
    """What the endpoints share."""

    def __init__(self, compactor: GistCompactor, name: str, config: ServingConfig):
        self.name = name
        self.config = config
        self.backend = (
            EngineBackend(compactor)
            if isinstance(compactor.generator, EngineModel)
            else Batcher(compactor, config.max_batch_size, config.max_batch_tokens)
        )
        self.engine = Engine(ServedCompactor(compactor, self.backend), config)
        self.worker = Worker(config.max_requests)
        self.metrics = Metrics(None if self.backend.waiting is None else lambda: self.backend.waiting)
        self.pages = (self.page, self.models, self.health, self.metrics_page, self.openapi)
        self.document: dict = {}  # of all routes, once they are there

    @asynccontextmanager
    async def lifespan(self, app):
        yield
        self.worker.close()
        self.backend.close()

    async def page(self, request: Request) -> Response:
        return Response(*page())

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._described())

    def _described(self):
        pair = self.engine.compactor.pair
        sizes = {name: getattr(pair, name) for name in ("context_length", "last_k", "max_gist_length")}
        sizes["max_new_tokens"] = self.config.max_new_tokens
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "trl_gist", "pair": sizes}

    def _check_name(self, name):
        if name != self.name:
            raise ApiError(
                404, f"The model {name[:200]!r} is not served here: {self.name!r} is.", "model_not_found", "model"
            )

    async def health(self, request: Request) -> Response:
        if self.backend.failure is not None:
            raise EngineFailed(self.backend.failure)
        return JSONResponse({"status": "ok"})

    async def metrics_page(self, request: Request) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self.document)

    async def read(self, request: Request, schema: type[Strict]) -> Strict:
        """The request in a body, which is read no further than it may be long."""
        # A web page of another origin cannot send this type without asking first, and there is nobody who would say yes
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The body must be JSON: send `Content-Type: application/json`.")
        length = request.headers.get("content-length", "0")
        body, most = bytearray(), self.config.max_body_bytes
        too_large = ApiError(
            413, f"The body has more than this server's {most} bytes.", headers={"Connection": "close"}
        )
        if int(length) > most:
            raise too_large
        try:
            async with asyncio.timeout(min(BODY_SECONDS, self.config.request_seconds)):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise too_large
        except TimeoutError as error:
            raise ApiError(408, "The body did not come in time.", headers={"Connection": "close"}) from error
        except ClientDisconnect as error:
            raise Disconnected from error
        parsed = parse(bytes(body), schema, self.config)
        if parsed.model is not None:
            self._check_name(parsed.model)
        return parsed


class Endpoint:
    """
    A route of the models.

    Args:
        server ([`Server`]):
            What it shares with the others.
        schema (`type`):
            Of its requests.
        work (`Callable`):
            A method of the engine.
    """

    def __init__(self, server: Server, schema: type[Strict], work: Callable):
        self.server, self.schema, self.work = server, schema, work

    async def __call__(self, scope, receive, send):
        try:
            body = await self.server.read(Request(scope, receive), self.schema)

            def work(emit):
                try:
                    answer = self.work(body, emit)
                except EngineError as error:
                    if (failure := self.server.backend.failure) is None:
                        raise
                    raise EngineFailed(failure) from error
                self.server.metrics.count(answer)
                return answer

            async with self.server.worker.start(work, receive, self.server.config.request_seconds) as job:
                await self.answer(body, job, scope, receive, send)
        except Disconnected:
            pass

    async def answer(self, body: Strict, job: Job, scope, receive, send):
        raise NotImplementedError

    async def stream(self, job: Job, shape: Shape | GistShape, send):
        # What goes wrong before the first token still has a status of its own
        said = await job.next()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(*events):
            try:
                async with asyncio.timeout_at(job.deadline + 1):
                    await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
            except TimeoutError as error:
                raise Disconnected from error  # as good as: it does not read

        await say(*shape.first())
        try:
            while isinstance(said, str | dict):
                await say(shape.piece(said))
                said = await job.next()
            await say(*shape.last(said))
        except ApiError as error:
            await say(event(error.body))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class GistEndpoint(Endpoint):
    """Gists, and answers from them."""

    async def answer(self, body, job, scope, receive, send):
        shape = GistShape(self.server.name)
        if body.stream:
            await self.stream(job, shape, send)
            return
        await JSONResponse(shape.whole(await job.next()))(scope, receive, send)


class AnswerEndpoint(Endpoint):
    """Chats and completions, of one [`~serving.wire.Shape`] each."""

    def __init__(self, server: Server, schema: type[Strict], work: Callable, shape: type[Shape]):
        super().__init__(server, schema, work)
        self.shape = shape

    async def answer(self, body, job, scope, receive, send):
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        shape = self.shape(self.server.name, include_usage)
        if body.stream:
            await self.stream(job, shape, send)
            return
        texts = []
        while isinstance(event := await job.next(), str):
            texts.append(event)
        await JSONResponse(shape.whole("".join(texts), event))(scope, receive, send)


async def _api_error(request, error):
    return error.response()


async def _http_error(request, error):
    """Starlette's own: no such route, no such method."""
    message = f"{error.detail}: {request.method} {request.url.path[:200]}."
    if error.status_code == 404:
        message += f" There are {', '.join((*MODEL_ROUTES, *OTHER_ROUTES))}."
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _unforeseen(request, error):
    return ApiError(500, "The server failed on this request; its log says why.", "internal_error").response()
