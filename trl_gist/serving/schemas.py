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

The server's own document, [`openapi`], is made from these. So what a check of ours refuses stands beside it in the words of
JSON Schema; where those are names of limits, the document has this server's.
"""

import json
from typing import Annotated, Literal, TypeVar

from ..common.extras import extra
from .config import ServingConfig
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
        ValidationInfo,
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


def _no_pattern(what):
    # Matching can take exponential time, holds the interpreter's lock and cannot be interrupted
    if what.startswith("regex:"):
        raise ValueError("patterns are not matched for clients: name what is to be kept")
    return what


def _few_tokens(tokens, info: ValidationInfo):
    most = None if info.context is None else info.context.max_new_tokens
    if most is not None and tokens > most:
        raise ValueError(f"{_short(tokens)[:40]} is more than this server's {most}")
    return tokens


def _not_empty(text):
    if not text:
        raise ValueError("it is empty")
    return text


def _one_alone(texts):
    if len(texts) > 1:
        raise ValueError(f"it has {len(texts)} texts: this route takes one a request")
    return texts


def _checked(check, **said):
    """A check of ours, and what it is in the document."""
    return AfterValidator(check), Field(json_schema_extra=said)


def _by_kind(kind, what):
    """Of a union: tagged, an error names what is wrong with the one that is meant, and not also why it is no other."""
    return Discriminator(kind, custom_error_type="kind", custom_error_message=f"it should be {what}")


def _kind_of(value):
    return type(value).__name__


ABSENT = {"type": "null"}
NOTHING = [
    {"enum": [None, False, 0, ""]},
    {"type": "array", "maxItems": 0},
    {"type": "object", "additionalProperties": ABSENT},
]

One = Annotated[int, Field(ge=1, le=1)]
No = Annotated[bool, *_checked(_nothing, const=False)]  # of which `Literal[False]` would take 0 for one
Nothing = Annotated[bool | int | float | dict | list | str | None, *_checked(_nothing, anyOf=NOTHING)]
# torch's seeds
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
NonEmpty = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1), *_checked(_few_tokens, maximum="max_new_tokens")]
Temperature = Annotated[float, Field(ge=0, le=2), *_checked(_temperature, anyOf=[{"const": 0}, {"minimum": 0.01}])]
Span = Annotated[str, Field(min_length=1), *_checked(_no_pattern, pattern="^(?!regex:)")]
Keep = Annotated[
    Annotated[Span, Tag("str")] | Annotated[list[Span], Tag("list")], _by_kind(_kind_of, "text or a list of texts")
]
Stop = Annotated[
    Annotated[NonEmpty, Tag("str")] | Annotated[list[NonEmpty], Field(max_length=4), Tag("list")],
    _by_kind(_kind_of, "text or a list of texts"),
]
Model = Annotated[str, Field(json_schema_extra={"enum": "name"})]


class Strict(BaseModel):
    # Strict: no "5" for 5 and no true for 1
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra={"additionalProperties": ABSENT}
    )


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: No | None = None


class ResponseFormat(Strict):
    type: Literal["text"]


class TextPart(Strict):
    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[TextPart], Tag("list")], _by_kind(_kind_of, "text or a list of parts")
]


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

    model: Model | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
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

    model_config = ConfigDict(
        json_schema_extra={
            "additionalProperties": ABSENT,
            "not": {
                "properties": {name: {"type": "integer"} for name in ("max_tokens", "max_completion_tokens")},
                "required": ["max_tokens", "max_completion_tokens"],
            },
        }
    )

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


def _kind_of_texts(value):
    if not isinstance(value, list) or not value:
        return type(value).__name__
    # Of a list that is neither, the first element says what it was meant to be: 2.0 is meant to be a token's id
    return f"list[{'int' if isinstance(value[0], float) else type(value[0]).__name__}]"


Some = Annotated[str, *_checked(_not_empty, minLength=1)]
TokenId = Annotated[int, Field(ge=0)]
SomeIds = Annotated[list[TokenId], *_checked(_not_empty, minItems=1)]
BY_KIND = _by_kind(_kind_of_texts, "text or token ids, or a list of either")
Alone = _checked(_one_alone, minItems=1, maxItems=1)

OneText = Annotated[
    Annotated[Some, Tag("str")]
    | Annotated[list[Some], *Alone, Tag("list[str]")]
    | Annotated[SomeIds, Tag("list[int]")]
    | Annotated[list[SomeIds], *Alone, Tag("list[list]")],
    BY_KIND,
]
Texts = Annotated[
    Annotated[Some, Tag("str")]
    | Annotated[list[Some], Field(min_length=1), Tag("list[str]")]
    | Annotated[SomeIds, Tag("list[int]")]
    | Annotated[list[SomeIds], Field(min_length=1), Tag("list[list]")],
    BY_KIND,
]
# Of which each may be empty
Gists = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[str], Field(min_length=1), Tag("list[str]")]
    | Annotated[list[TokenId], Field(min_length=1), Tag("list[int]")]
    | Annotated[list[list[TokenId]], Field(min_length=1), Tag("list[list]")],
    BY_KIND,
]


def as_list(texts: str | list) -> list[str | list[int]]:
    """Texts, as text or token ids: several, or one by itself."""
    return [texts] if isinstance(texts, str) or isinstance(texts[0], int) else texts


class CompletionRequest(Generation):
    """Of `POST /v1/completions`."""

    prompt: OneText
    suffix: Nothing = None
    echo: Nothing = None
    best_of: One | None = None


class CompressRequest(Strict):
    """Of `POST /v1/compress`, which OpenAI's API has not; `input` is as in its embeddings."""

    input: Texts
    model: Model | None = None
    user: str | None = None
    budget: Tokens | None = None
    keep: Keep | None = None
    certify: bool | None = None
    highlights: bool | None = None
    stream: bool | None = None


class CompareRequest(Strict):
    """Of `POST /v1/compare`, which OpenAI's API has not: `gists` are tokens or texts, those of `/v1/compress`."""

    input: OneText
    gists: Gists
    model: Model | None = None
    user: str | None = None
    cue: NonEmpty | None = None
    max_tokens: Tokens | None = None
    stream: Nothing = None


class RecallRequest(Strict):
    """Of `POST /v1/recall`, which OpenAI's API has not: a text is read in a session, which is asked."""

    input: OneText
    cue: NonEmpty
    model: Model | None = None
    user: str | None = None
    max_tokens: Tokens | None = None
    # Each takes a row of a batch
    alternatives: Annotated[int, Field(ge=0, le=16)] | None = None
    live: bool | None = None
    undo: bool | None = None
    keep: Keep | None = None
    report: bool | None = None
    certify: bool | None = None
    stream: Nothing = None


Request = TypeVar("Request", bound=Strict)


def parse(body: bytes, schema: type[Request], limits: ServingConfig | None = None) -> Request:
    """
    The request in a body, within the server's limits.

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
        return schema.model_validate(value, context=limits)
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
