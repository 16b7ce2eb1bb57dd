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

"""A pair on a server, `trl-gist serve`, as far as chats are compacted by it. It needs httpx, and no model here."""

import dataclasses
import os
import re
from dataclasses import dataclass

from ..common.extras import extra
from ..inference.gist import Gist
from ..inference.keep import FINDERS, find_spans


with extra("langchain"):  # or "agents"
    import httpx


# Of UTF-8 for a token, where there is no tokenizer: fewer than most texts have
_BYTES = 3


def _asks(text):
    """Whether a server would take words for a request."""
    return text in FINDERS or text.startswith("regex:")


@dataclass(frozen=True)
class PairLengths:
    """Of a [`~pair.PairConfig`], what a server tells."""

    context_length: int
    last_k: int
    max_gist_length: int


class ServedPair:
    """
    A pair on a server.

    Args:
        url (`str`):
            Where it listens, as `"http://127.0.0.1:8000"`.
        api_key (`str`, *optional*):
            Defaults to `TRL_GIST_API_KEY`.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds that one answer may take.

    Raises:
        ValueError: if there is no such server, or it refuses the key.
    """

    tokenizer = None

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0):
        self.url = url.rstrip("/").removesuffix("/v1")
        key = api_key or os.environ.get("TRL_GIST_API_KEY")
        if key and not re.fullmatch("[!-~]+", key):
            raise ValueError("The API key is to be one word of ASCII: see `api_key`, or TRL_GIST_API_KEY.")
        self.headers, self.timeout = {"Authorization": f"Bearer {key}"} if key else {}, timeout
        answered = self._ask("GET", "/v1/models")
        try:
            (described,) = answered["data"]
            self.pair = PairLengths(*(described["pair"][field.name] for field in dataclasses.fields(PairLengths)))
        except (KeyError, TypeError, ValueError) as error:  # another server's answer
            raise ValueError(
                f"{self.url} says nothing of a pair: start it with `trl-gist serve PAIR`, of this version."
            ) from error

    def count_tokens(self, text: str) -> int:
        """About how many tokens a text has: rather more, as the tokenizer is elsewhere."""
        return -(-len(text.encode("utf-8", "replace")) // _BYTES)

    def compress_windows(self, text: str, budget: int | None = None, keep=None) -> list[Gist]:
        """As [`GistCompactor.compress_windows`]. Patterns are matched here, as the server takes none."""
        spans = [span.text for span in find_spans(text, keep or []) if span.start is not None and not _asks(span.text)]
        body = {"input": text, **({"keep": spans} if spans else {}), **({} if budget is None else {"budget": budget})}
        names = [field.name for field in dataclasses.fields(Gist)]
        rows = self._ask("POST", "/v1/compress", json=body)["data"]
        return [Gist(**{name: row[name] for name in names if name in row}) for row in rows]

    def _ask(self, method, path, **body):
        try:
            answer = httpx.request(method, f"{self.url}{path}", headers=self.headers, timeout=self.timeout, **body)
            answered = None if answer.is_error else answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ValueError(
                f"{self.url} gave no answer ({type(error).__name__}: {error}): is `trl-gist serve` running there?"
            ) from error
        if answer.is_error:
            raise ValueError(f"{self.url} answered {answer.status_code}: {answer.text[:500]}")
        return answered
