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

"""
The server's own document in OpenAPI 3.1, `GET /openapi.json`.

What a request may be is what checks it: the schemas of the routes' endpoints. What answers are is in [`answers`], and held
to what is sent by tests/serving/test_openapi.py.
"""

import json
from dataclasses import dataclass, field

from ..common.extras import extra
from ..version import __version__
from . import answers
from .config import ServingConfig
from .gate import OPEN_ROUTES


with extra("serve"):
    from pydantic import TypeAdapter
    from starlette.routing import Route


ABOUT = """\
A trained pair behind an HTTP API as OpenAI's is: chats and completions, and the pair's own gists. `null` stands for absent,
in every object of a request; whole numbers are written without a point. A route or model that does not exist is a 404,
a method that a route does not have a 405 with `Allow`, and whatever goes wrong has the schema `Error`."""


REFUSED_BY_MODELS = (400, 404, 408, 413, 415, 429, 500, 503, 504)


@dataclass(frozen=True)
class Operation:
    """
    What a route does.

    Attributes:
        summary (`str`):
            In a line.
        answer (`type` or `str`):
            Of [`answers`], or a media type that is no JSON.
        event (`type`, *optional*):
            That a stream has beside its answer.
        example (`dict`, *optional*):
            A request.
        refused (`tuple[int, ...]`):
            Statuses beside that of an answer and 401.
    """

    summary: str
    answer: type | str
    event: type | None = None
    example: dict = field(default_factory=dict)
    refused: tuple[int, ...] = REFUSED_BY_MODELS


TEXT = "In 1854 the physician John Snow marked on a map of Soho the houses where people had died."
OPERATIONS = {
    "/v1/chat/completions": Operation(
        "Answers a chat, whose oldest turns become a gist once it is too long.",
        answers.Chat,
        answers.ChatChunk,
        {"messages": [{"role": "user", "content": "Who was John Snow?"}]},
    ),
    "/v1/completions": Operation(
        "Goes on with a text of any length, of which the oldest part becomes a gist.",
        answers.Completion,
        answers.CompletionChunk,
        {"prompt": TEXT, "stop": ["\n"], "report": True},
    ),
    "/v1/compress": Operation(
        "The gists of a text, or of several.",
        answers.Gists,
        answers.GistRow | answers.Gists,
        {"input": TEXT, "keep": ["names", "numbers"], "highlights": True},
    ),
    "/v1/compare": Operation(
        "The generator's answer from gists beside that of a reader of the whole text.",
        answers.Sides,
        example={"input": TEXT, "gists": ["Snow; 1854"], "cue": "\nQuestion: Where?\nAnswer:"},
        refused=(*REFUSED_BY_MODELS, 501),
    ),
    "/v1/recall": Operation(
        "What a session that has read a text recalls after a cue, and how sure it is.",
        answers.Recalls,
        example={"input": TEXT, "cue": "The houses stood in"},
        refused=(*REFUSED_BY_MODELS, 501),
    ),
    "/": Operation("A page to try the pair in.", "text/html", refused=()),
    "/v1/models": Operation("The model that is served.", answers.Models, refused=()),
    "/v1/models/{name}": Operation("The same by its name.", answers.Model, refused=(404,)),
    "/health": Operation("Whether the server answers.", answers.Health, refused=(503,)),
    "/metrics": Operation("Metrics in Prometheus' text format.", "text/plain", refused=()),
    "/openapi.json": Operation("This document.", "application/json", refused=()),
}
REFUSED = {
    400: "Malformed, beyond a limit, or not shown by the chat template; `error.param` names the field.",
    401: "The API key is missing or wrong.",
    404: "There is no such model here.",
    408: "The body did not come in time.",
    413: "The body is too long.",
    415: "The body is not said to be JSON.",
    429: "All places for requests are taken.",
    500: "The server failed; its log says why.",
    501: "The route reads the models' own logits, which vLLM does not give.",
    503: "The server is being stopped; of `/health`: vLLM's engine has failed and cannot go on.",
    504: "It took too long. After the first event of a stream this, a 500 and a 503 are an event, the last one.",
}
HEADERS = {401: "WWW-Authenticate", 429: "Retry-After"}


def document(routes: list[Route], name: str, config: ServingConfig, has_key: bool) -> dict:
    """
    The document of a server.

    Args:
        routes (`list[Route]`):
            Of the app. An endpoint that takes a body has the `schema` by which it is checked.
        name (`str`):
            The model's.
        config ([`ServingConfig`]):
            Whose limits requests have.
        has_key (`bool`):
            Whether clients must send one.

    Raises:
        KeyError: if a route is not described here.
    """
    operations = [(route, OPERATIONS[route.path_format]) for route in routes]
    types = {type_ for _, operation in operations for type_ in (operation.answer, operation.event)}
    types |= {answers.Error, *(route.endpoint.schema for route, _ in operations if hasattr(route.endpoint, "schema"))}
    adapters = [(type_, "validation", TypeAdapter(type_)) for type_ in types if not isinstance(type_, str | None)]
    references, defined = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    schemas = {type_: reference for (type_, _), reference in references.items()}

    def operation(route, about):
        refused = (*about.refused, *((401,) if has_key and route.path not in OPEN_ROUTES else ()))
        responses = {"200": _answer(about, schemas)}
        responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(refused)}
        said = {"summary": about.summary, "operationId": _id(route.path_format), "responses": responses}
        if hasattr(route.endpoint, "schema"):
            content = {"schema": schemas[route.endpoint.schema], "example": about.example}
            said["requestBody"] = {"required": True, "content": {"application/json": content}}
        if route.param_convertors:
            schema = {"type": "string", "enum": "name"}
            said["parameters"] = [
                {"name": each, "in": "path", "required": True, "schema": schema} for each in route.param_convertors
            ]
        if has_key and route.path in OPEN_ROUTES:
            said["security"] = []
        return {"post" if "POST" in route.methods else "get": said}

    made = {
        "openapi": "3.1.0",
        "info": {"title": "trl_gist", "version": __version__, "description": ABOUT},
        "paths": {route.path_format: operation(route, about) for route, about in operations},
        "components": {
            "schemas": defined["$defs"],
            "responses": {str(status): _refusal(status, schemas[answers.Error]) for status in REFUSED},
        },
    }
    if has_key:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    return json.loads(json.dumps(made), object_hook=lambda each: _with_limits(each, name, config))


def _id(path):
    return "_".join(part.strip("{}").partition(".")[0] for part in path.split("/") if part not in ("", "v1")) or "page"


def _answer(about, schemas):
    if isinstance(about.answer, str):
        return {"description": about.summary, "content": {about.answer: {}}}
    content = {"application/json": {"schema": schemas[about.answer]}}
    if about.event is not None:
        said = {"anyOf": [schemas[about.event], schemas[answers.Error]]}
        json_of = {"type": "string", "contentMediaType": "application/json", "contentSchema": said}
        data = {"anyOf": [{"const": "[DONE]", "description": "The last, where nothing went wrong."}, json_of]}
        event = {"description": "Of each event.", "type": "object", "required": ["data"], "properties": {"data": data}}
        content["text/event-stream"] = {"schema": event}
    return {"description": about.summary, "content": content}


def _refusal(status, schema):
    said = {"description": REFUSED[status], "content": {"application/json": {"schema": schema}}}
    if status in HEADERS:
        said["headers"] = {HEADERS[status]: {"required": True, "schema": {"type": "string"}}}
    return said


def _with_limits(each, name, config):
    """This server's limits in the place of their names."""
    if isinstance(each.get("maximum"), str):
        return {**each, "maximum": getattr(config, each["maximum"])}
    return {**each, "enum": [name]} if each.get("enum") == "name" else each
