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

"""What a server allows. Without torch, for the command line."""

import dataclasses
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..inference.compactor import GistCompactor


@dataclass(frozen=True)
class ServingConfig:
    """
    What a server allows and how it compacts.

    Attributes:
        max_body_bytes (`int`, defaults to 4 MiB):
            Of one request; 413 beyond.
        max_context_tokens (`int`, defaults to `131072`):
            Of a prompt, a chat or all texts of one `/v1/compress` together; 400 beyond.
        max_new_tokens (`int`, defaults to `512`):
            That a request may ask for, and what a chat gets that asks for none; 400 beyond.
        max_requests (`int`, defaults to `16`):
            That are answered or wait at one time; 429 beyond.
        max_batch_size (`int`, defaults to `16`):
            Most texts that are read and written in one forward, of one request or of several.
        max_batch_tokens (`int`, defaults to `16384`):
            Most tokens of these, padded to the longest, with what is to be written. A text that has more goes alone.
        request_seconds (`float`, defaults to `600`):
            That a request may take, waiting included; 504 after.
        window (`int`, *optional*):
            Most tokens of a text that the generator reads. Defaults to that of [`~inference.session.session.Session`].
        chat_window (`int`, *optional*):
            Most tokens of a chat that the generator reads, in the chat template. Defaults to all positions of the
            generator but `max_new_tokens`, as a chat is not compacted before it must be.
        gist_budget (`int`, *optional*):
            Of the sessions that continue texts.
    """

    max_body_bytes: int = 4 * 2**20
    max_context_tokens: int = 131072
    max_new_tokens: int = 512
    max_requests: int = 16
    max_batch_size: int = 16
    max_batch_tokens: int = 16384
    request_seconds: float = 600
    window: int | None = None
    chat_window: int | None = None
    gist_budget: int | None = None

    def resolve(self, compactor: "GistCompactor") -> "ServingConfig":
        """
        With the defaults of this pair.

        Raises:
            ValueError: if a limit is not positive, or a window does not fit the pair.
        """
        from ..common.arguments import finite_number, whole_number
        from ..models.positions import max_positions

        counts = ("max_body_bytes", "max_context_tokens", "max_new_tokens", "max_requests")
        for name in (*counts, "max_batch_size", "max_batch_tokens"):
            whole_number(name, getattr(self, name))
        if not finite_number("request_seconds", self.request_seconds) > 0:
            raise ValueError(f"`request_seconds` must be above 0, got {self.request_seconds!r}.")
        # A session knows what windows it can have
        window = compactor.session(window=self.window, gist_budget=self.gist_budget).settings.window
        positions = max_positions(compactor.generator)
        chat_window = whole_number("chat_window", self.chat_window, optional=True)
        if chat_window is None:
            chat_window = self.max_context_tokens if positions is None else positions - self.max_new_tokens
        if chat_window < 1 or (positions is not None and chat_window + self.max_new_tokens > positions):
            raise ValueError(
                f"`chat_window` ({chat_window}) and `max_new_tokens` ({self.max_new_tokens}) must fit the generator's "
                f"{positions} positions together, and `chat_window` be at least 1: lower one of the two."
            )
        return dataclasses.replace(self, window=window, chat_window=chat_window)


def check_host(host: str, api_key: str | None):
    """
    Raises:
        ValueError: if a server would be open to other machines and has no key.
    """
    if api_key is None and not is_loopback(host):
        raise ValueError(
            f"--host {host} can be reached from other machines, which needs an API key: set TRL_GIST_API_KEY or "
            "--api_key_file, or bind to 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than `localhost` may mean any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
