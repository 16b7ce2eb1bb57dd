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

"""Answers in the shapes of OpenAI's API, with `gist` beside what it has."""

import json
import time
import uuid

from .engine import Answer, Compressed


def usage(answer) -> dict:
    """Of an [`~serving.engine.Answer`] or [`~serving.engine.Compressed`]."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


class Shape:
    """
    One answer's objects.

    Args:
        model (`str`):
            Its name.
        include_usage (`bool`, *optional*, defaults to `False`):
            Whether a stream ends with a chunk of the usage.
    """

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, include_usage: bool = False):
        self.include_usage = include_usage
        self.common = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, answer: Answer) -> dict:
        choice = {"index": 0, **self.content(text), "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self.common, "object": self.kind, "choices": [choice], "usage": usage(answer), "gist": answer.gist}

    def first(self) -> list[bytes]:
        """What a stream starts with."""
        return []

    def piece(self, text: str) -> bytes:
        return self._chunk(self.part(text))

    def last(self, answer: Answer) -> list[bytes]:
        """What a stream ends with."""
        chunks = [self._chunk(self.part(""), answer.finish_reason, {"gist": answer.gist})]
        if self.include_usage:
            chunks.append(event({**self.common, "object": self.chunk_kind, "choices": [], "usage": usage(answer)}))
        return [*chunks, b"data: [DONE]\n\n"]

    def _chunk(self, part, finish_reason=None, rest=None):
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}
        no_usage = {"usage": None} if self.include_usage else {}
        return event({**self.common, "object": self.chunk_kind, "choices": [choice], **no_usage, **(rest or {})})


class ChatShape(Shape):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def content(self, text):
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def part(self, text):
        return {"delta": {"content": text} if text else {}}

    def first(self):
        return [self._chunk({"delta": {"role": "assistant", "content": ""}})]


class CompletionShape(Shape):
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def content(self, text):
        return {"text": text}

    part = content


class GistShape:
    """
    Gists, or answers from them, in OpenAI's list.

    Args:
        model (`str`):
            Its name.
    """

    def __init__(self, model: str):
        self.model = model

    def whole(self, compressed: Compressed) -> dict:
        return {
            "object": "list",
            "data": compressed.data,
            "model": self.model,
            "usage": usage(compressed),
            **compressed.rest,
        }

    def first(self) -> list[bytes]:
        return []

    def piece(self, row: dict) -> bytes:
        return event(row)

    def last(self, compressed: Compressed) -> list[bytes]:
        """The list, whose gists were sent before."""
        return [event(self.whole(compressed)), b"data: [DONE]\n\n"]


def event(data: dict) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
