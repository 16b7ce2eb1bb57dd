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

"""What answers are: the shapes of the JSON that is sent, each of exactly these fields, as the server's document has them."""

from typing import Literal, NotRequired, get_type_hints

from ..common.extras import extra
from ..inference.gist import Gist, Recall
from ..inference.session.state import Compaction
from .engine import REPORTED


with extra("serve"):
    from pydantic import ConfigDict
    from typing_extensions import TypedDict


def _shape(name, **fields):
    shape = TypedDict(name, fields)
    shape.__pydantic_config__ = ConfigDict(extra="forbid")
    return shape


def _list_of(name, row, **rest):
    return _shape(name, object=Literal["list"], data=list[row], model=str, usage=Usage, **rest)


# ---- What several have ----


Usage = _shape("Usage", prompt_tokens=int, completion_tokens=int, total_tokens=int)
_REPORT = {name: get_type_hints(Compaction)[name] for name in REPORTED}
Report = _shape("Report", **_REPORT)
Compacted = _shape(
    "Compacted",
    text=str,
    tokens_in=int,
    tokens_out=int,
    compactions=int,
    prompt_tokens=int,
    report=NotRequired[list[Report]],
)
ErrorBody = _shape(
    "ErrorBody",
    message=str,
    type=Literal["invalid_request_error", "server_error"],
    param=str | None,
    code=str | None,
)
Error = _shape("Error", error=ErrorBody)


# ---- Chats and completions ----


_ANSWER = {"id": str, "created": int, "model": str}
_WHOLE = {"usage": Usage, "gist": Compacted | None}
_CHUNK = {"usage": NotRequired[Usage | None], "gist": NotRequired[Compacted | None]}
_CHOICE = {"index": int, "logprobs": None}
Reason = Literal["stop", "length"]

ChatMessage = _shape("ChatMessage", role=Literal["assistant"], content=str, refusal=None)
ChatChoice = _shape("ChatChoice", message=ChatMessage, finish_reason=Reason, **_CHOICE)
Chat = _shape("Chat", object=Literal["chat.completion"], choices=list[ChatChoice], **_ANSWER, **_WHOLE)

ChatDelta = _shape("ChatDelta", role=NotRequired[Literal["assistant"]], content=NotRequired[str])
ChatChunkChoice = _shape("ChatChunkChoice", delta=ChatDelta, finish_reason=Reason | None, **_CHOICE)
ChatChunk = _shape(
    "ChatChunk", object=Literal["chat.completion.chunk"], choices=list[ChatChunkChoice], **_ANSWER, **_CHUNK
)

CompletionChoice = _shape("CompletionChoice", text=str, finish_reason=Reason, **_CHOICE)
Completion = _shape(
    "Completion", object=Literal["text_completion"], choices=list[CompletionChoice], **_ANSWER, **_WHOLE
)
CompletionChunkChoice = _shape("CompletionChunkChoice", text=str, finish_reason=Reason | None, **_CHOICE)
CompletionChunk = _shape(
    "CompletionChunk", object=Literal["text_completion"], choices=list[CompletionChunkChoice], **_ANSWER, **_CHUNK
)


# ---- Gists, and answers from them ----


GistRow = _shape(
    "GistRow",
    object=Literal["gist"],
    index=int,
    window=int,
    stands_for=int,
    highlights=NotRequired[list[tuple[str, float]]],
    **get_type_hints(Gist),
)
Gists = _list_of("Gists", GistRow)

Piece = _shape("Piece", text=str, log_prob=float, other_log_prob=float)
Side = _shape(
    "Side",
    object=Literal["answer"],
    reader=Literal["generator", "teacher"],
    text=str,
    prompt_tokens=int,
    completion_tokens=int,
    finish_reason=Reason,
    pieces=list[Piece],
    error=str | None,
    **{"from": Literal["gists", "input"]},
)
Sides = _list_of("Sides", Side)

Recalled = _shape("Recalled", object=Literal["recall"], **get_type_hints(Recall))
Undone = _shape("Undone", text=str, tokens_in=int, **_REPORT)
Recalls = _list_of("Recalls", Recalled, gist=Compacted | None, undone=Undone | None)


# ---- The server ----


Sizes = _shape("Sizes", context_length=int, last_k=int, max_gist_length=int, max_new_tokens=int)
Model = _shape("Model", id=str, object=Literal["model"], created=int, owned_by=str, pair=Sizes)
Models = _shape("Models", object=Literal["list"], data=list[Model])
Health = _shape("Health", status=Literal["ok"])
