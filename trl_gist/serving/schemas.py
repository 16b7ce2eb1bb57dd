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
What a request may say: fields of OpenAI's API that this server honours, and, at values that ask for nothing, those that it
does not, since clients send them unasked. Any other field is refused rather than ignored. `null` stands for absent, in
every object of a request: some clients send all their fields.
"""

import json
from typing import Annotated, Literal, TypeVar

from ..common.extras import extra
from .errors import ApiError


with extra("serve"):
    from pydantic import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        Discriminator,
        Field,
        Tag,
        ValidationError,
        model_validator,
    )


def _nothing(value):
    if value:
        raise ValueError("this server does not support it: leave it out")
    return value


def _temperature(value):
    if 0 < value < 0.01:
        raise ValueError("must be 0, which takes the likeliest tokens, or at least 0.01")
    return value


def _no_pattern(keep):
    # Matching can take exponential time, holds the interpreter's lock and cannot be interrupted
    if any(what.startswith("regex:") for what in ([keep] if isinstance(keep, str) else keep)):
        raise ValueError("patterns are not matched for clients: name what is to be kept")
    return keep


One = Annotated[int, Field(ge=1, le=1)]
Nothing = Annotated[bool | int | float | dict | list | str | None, AfterValidator(_nothing)]
# torch's seeds
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
NonEmpty = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1)]
Keep = Annotated[NonEmpty | list[NonEmpty], AfterValidator(_no_pattern)]
Stop = NonEmpty | Annotated[list[NonEmpty], Field(max_length=4)]


class Strict(BaseModel):
    # Strict: no "5" for 5 and no true for 1
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(Strict):
    type: Literal["text"]


class TextPart(Strict):
    type: Literal["text"]
    text: str


def _kind_of(content):
    return type(content).__name__


# Tagged by its type, an error names what is wrong with it alone, and not also why it is none of the others
Content = Annotated[Annotated[str, Tag("str")] | Annotated[list[TextPart], Tag("list")], Discriminator(_kind_of)]


class Function(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: Function


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None
    annotations: Nothing = None

    def as_dict(self) -> dict:
        """For the chat template and [`compact_messages`], which take text only."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        rest = self.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        return {"role": self.role, "content": text, **rest}


class Generation(Strict):
    """What chats and completions have in common."""

    model: str | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_temperature)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: One | None = None
    user: str | None = None
    frequency_penalty: Nothing = None
    presence_penalty: Nothing = None
    logit_bias: Nothing = None
    logprobs: Nothing = None
    # This server's own: what gists must have, and whether answers say what was lost and what that is expected to cost
    keep: Keep | None = None
    report: bool | None = None
    certify: bool | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def sampling(self) -> dict:
        """For [`~transformers.GenerationConfig`]; OpenAI's default is to sample at temperature 1."""
        temperature = 1.0 if self.temperature is None else float(self.temperature)
        if temperature == 0:
            return {"do_sample": False}
        top_p = 1.0 if self.top_p is None else float(self.top_p)
        return {"do_sample": True, "temperature": temperature, "top_p": top_p}


class ChatRequest(Generation):
    """Of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    response_format: ResponseFormat | None = None
    metadata: dict | None = None
    store: bool | None = None
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Nothing = None
    function_call: Literal["none", "auto"] | None = None
    top_logprobs: Nothing = None
    modalities: list[Literal["text"]] | None = None
    audio: Nothing = None
    prediction: Nothing = None
    web_search_options: Nothing = None
    moderation: Nothing = None
    # How long to think, at what price and for whom: G thinks no more than it was trained to, and there is one queue
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    # What was compacted is remembered without being asked
    prompt_cache_key: str | None = None
    prompt_cache_options: dict | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None  # as its clients have spelled it

    @model_validator(mode="after")
    def _one_length(self):
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("`max_tokens` and `max_completion_tokens` mean the same: leave one of the two out")
        return self

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Texts = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[str], Tag("list[str]")]
    | Annotated[list[int], Tag("list[int]")]
    # Of a list that is neither, the first element says what it was meant to be
    | Annotated[list[list[int]], Tag("list[list]")],
    Discriminator(
        lambda value: f"list[{type(value[0]).__name__}]" if isinstance(value, list) and value else type(value).__name__
    ),
]


def as_list(texts: str | list) -> list[str | list[int]]:
    """Texts, as text or token ids: several, or one by itself."""
    return [texts] if isinstance(texts, str) or isinstance(texts[0], int) else texts


class CompletionRequest(Generation):
    """Of `POST /v1/completions`."""

    prompt: Texts
    suffix: Nothing = None
    echo: Nothing = None
    best_of: One | None = None


class CompressRequest(Strict):
    """Of `POST /v1/compress`, which OpenAI's API has not; `input` is as in its embeddings."""

    input: Texts
    model: str | None = None
    user: str | None = None
    budget: Tokens | None = None
    keep: Keep | None = None
    certify: bool | None = None
    highlights: bool | None = None
    stream: bool | None = None


class CompareRequest(Strict):
    """Of `POST /v1/compare`, which OpenAI's API has not: `gists` are tokens or texts, those of `/v1/compress`."""

    input: Texts
    gists: Texts
    model: str | None = None
    user: str | None = None
    cue: NonEmpty | None = None
    max_tokens: Tokens | None = None
    stream: Nothing = None


Request = TypeVar("Request", bound=Strict)


def parse(body: bytes, schema: type[Request]) -> Request:
    """
    The request in a body.

    Raises:
        ApiError: 400 that names the first field that is wrong, if the body is no strict JSON: `NaN`, a number too large
            for a float, a key twice and half a surrogate pair are Python's JSON alone; or does not fit the schema.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ApiError(400, "The body holds half of a surrogate pair, which is no text.") from error
    except RecursionError as error:
        raise ApiError(400, "The body is nested too deeply.") from error
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON in UTF-8: {_short(error)}.") from error
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Tags of unions are no fields
        path = [str(part) for part in first["loc"] if isinstance(part, int) or part in _field_names(schema)]
        param = ".".join(path) or None
        if first["type"] == "extra_forbidden":
            name = _short(first["loc"][-1])
            raise ApiError(
                400, f"Unrecognized request argument supplied: {name}.", "unknown_parameter", name
            ) from error
        what = "The body" if param is None else f"`{param}`"
        raise ApiError(400, f"{what}: {_short(first['msg'])}.", param=param) from error


def _field_names(schema):
    nested = (Message, TextPart, ToolCall, Function, StreamOptions, ResponseFormat)
    return {name for model in (schema, *nested) for name in model.model_fields}


def _short(message):
    return str(message).removeprefix("Value error, ").rstrip(".")[:300]


def _refuse(constant):
    raise ValueError(f"{constant} is no number of JSON")


def _finite(digits):
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{_short(digits)[:40]} is too large")
    return value


def _unique(pairs):
    """An object without what is `null`."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return {name: each for name, each in value.items() if each is not None}
