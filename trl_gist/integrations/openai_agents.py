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
A session of the OpenAI Agents SDK whose older items are compacted by a pair.

    pip install "trl_gist[agents]"
"""

import asyncio
import json
import os
from collections.abc import Callable

from ..common.extras import extra
from ..inference.compactor import GistCompactor


with extra("agents"):
    from agents import SessionABC, TResponseInputItem

    from .history import (
        ORIGIN,
        ContextSize,
        HistoryCompactor,
        HistoryForm,
        Thresholds,
        Trigger,
        call,
        text_of,
        without_gist,
    )
    from .served import ServedPair


__all__ = ["GistSession", "ServedPair", "count_items"]


def count_items(items: list[TResponseInputItem]) -> int:
    """About how many tokens items have: four characters of their JSON for each."""
    return sum(-(-len(json.dumps(item, ensure_ascii=False, default=str)) // 4) for item in items)


class GistSession(SessionABC):
    """
    A session whose older items become one gist, a user's message, once it holds too much. Calls of tools keep their results
    and thoughts, and what the user asked last stays as it is. A compaction that fails leaves the items as they were, with a
    `RuntimeWarning`. A run reads its session once, when it begins.

    Example:

    ```python
    from agents import Runner, SQLiteSession
    from trl_gist.integrations.openai_agents import GistSession

    session = GistSession(SQLiteSession("me"), "my-pair", trigger=("tokens", 4000), keep=("tokens", 2000))
    result = await Runner.run(agent, "Where were we?", session=session)
    ```

    Args:
        session (`Session`):
            Where the items are stored.
        pair ([`GistCompactor`], [`ServedPair`], `str` or `os.PathLike`):
            A pair in this process, on a server, or where to find it: a URL of `trl-gist serve`, a folder, or a repository
            on the Hub.
        trigger (`tuple`, `dict` or a list of them), keep (`tuple`, *optional*, defaults to `("messages", 20)`):
            As of [`GistMiddleware`], but no fractions: when items are compacted, and the most that stays. A message is
            one, and all that an agent says and calls before its results.
        token_counter (`Callable`, *optional*):
            Of a list of items. Defaults to [`count_items`].
        keep_spans (`str`, pattern or a list of them, *optional*):
            What gists must have, as of [`GistMiddleware`].

    Attributes:
        compactions (`list[dict]`):
            What each cost: the rows of [`GistMiddleware`].
    """

    def __init__(
        self,
        session: SessionABC,
        pair: GistCompactor | ServedPair | str | os.PathLike,
        *,
        trigger: Trigger,
        keep: ContextSize = ("messages", 20),
        token_counter: Callable[[list[TResponseInputItem]], int] = count_items,
        keep_spans=None,
    ):
        self.session, self.session_id = session, session.session_id
        self.session_settings = getattr(session, "session_settings", None)  # which some stores lack
        self.compactor = HistoryCompactor(pair, Thresholds(trigger, keep), keep_spans)
        self.form = HistoryForm(lambda messages: token_counter(_as_items(messages)))
        self.compactions: list[dict] = []
        self._kept: list[str] = []
        self._lock = asyncio.Lock()

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        async with self._lock:  # not while the store is empty for a moment
            return await self.session.get_items(limit)

    async def pop_item(self) -> TResponseInputItem | None:
        async with self._lock:
            return await self.session.pop_item()

    async def clear_session(self) -> None:
        async with self._lock:
            self._kept = []
            await self.session.clear_session()

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Adds items, and compacts what is stored where that is due."""
        async with self._lock:
            await self.session.add_items(items)
            stored = await self.session.get_items(2**31 - 1)  # all, whatever limit the settings have
            chat, cost = await asyncio.to_thread(self.compactor.compact, stored, _as_messages, self.form, self._kept)
            if chat is None:
                return
            try:
                await self.session.clear_session()
                await self.session.add_items(_as_items(chat.messages))
            except BaseException:  # cancelled, too: nothing is lost
                await self.session.clear_session()
                await self.session.add_items(stored)
                raise
            self._kept = chat.kept
            self.compactions.append(cost)


# What calls and results of the many kinds are made of; of an image that was made, nothing
_ARGUMENTS = ("arguments", "input", "action", "operation", "code", "queries")
_RESULTS = ("output", "result", "outputs", "results", "error")


def _as_messages(items):
    """Items as a chat; what an agent thinks, says and calls in a row is one message."""
    messages = []
    for item in items:
        role, kind = item.get("role"), item.get("type") or "message"
        if role in ("user", "system", "developer"):
            messages.append({"role": role, "content": text_of(item.get("content")), ORIGIN: [item]})
        elif kind.endswith("_output"):
            said = {"content": text_of(_first(item, _RESULTS)), "tool_call_id": item.get("call_id")}
            messages.append({"role": "tool", **said, ORIGIN: [item]})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": "", "tool_calls": [], ORIGIN: []})
            last = messages[-1]
            last[ORIGIN].append(item)
            if role == "assistant":
                last["content"] = "\n".join(filter(None, [last["content"], text_of(item.get("content"))]))
            elif "call_id" in item or kind.endswith("_call"):
                called = call(item.get("call_id", item.get("id")), item.get("name", kind), _first(item, _ARGUMENTS))
                # Of a tool of the API, the results are in the call
                if "call_id" not in item and kind != "image_generation_call":
                    called["output"] = text_of(_first(item, _RESULTS))
                last["tool_calls"].append(called)
    return messages


def _first(item, names):
    return next((item[name] for name in names if item.get(name) is not None), "")


def _as_items(messages):
    return [item for row in messages for item in _items_of(row)]


def _items_of(row):
    """The items that a row was made from, without a gist that the row no longer has; or a gist."""
    if ORIGIN not in row:
        return [{name: row[name] for name in ("role", "content")}]
    items = row[ORIGIN]
    if row["role"] == "user" and row["content"] != text_of(items[0].get("content")):
        return [{**items[0], "content": without_gist(items[0]["content"])}]
    return items
