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

"""Errors as OpenAI's API has them, so that its clients raise what they raise there."""

from ..common.extras import extra


with extra("serve"):
    from starlette.responses import JSONResponse


class ApiError(Exception):
    """
    What a client gets instead of an answer.

    Args:
        status (`int`):
            HTTP's.
        message (`str`):
            Names the field, the value and what to do.
        code (`str`, *optional*):
            For programs, as `"context_length_exceeded"`.
        param (`str`, *optional*):
            The field of the request.
        headers (`dict[str, str]`, *optional*):
            Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def body(self) -> dict:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


class EngineFailed(ApiError):
    """What writes cannot go on, for a reason that is given."""

    def __init__(self, cause: Exception):
        message = (
            f"vLLM's engine has failed and cannot go on ({type(cause).__name__}: {cause}): start the server again."
        )
        super().__init__(503, message, "engine_failed")


class ContextTooLong(ApiError):
    """The prompt has more tokens than this server or this pair can take."""

    def __init__(self, message: str, param: str):
        super().__init__(400, message, "context_length_exceeded", param)
