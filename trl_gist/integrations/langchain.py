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
A middleware for agents of LangChain's `create_agent` that compacts their older messages by a pair.

    pip install "trl_gist[langchain]"
"""

import asyncio
import operator
import os
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NotRequired

from transformers import PreTrainedTokenizerBase

from ..common.extras import extra
from ..inference.chat import GIST_HEAD
from ..inference.chat import ROLES as CHAT_ROLES
from ..inference.chat_template import ChatTemplate
from ..inference.compactor import GistCompactor


with extra("langchain"):
    from langchain.agents.middleware import AgentMiddleware, AgentState
    from langchain.chat_models import BaseChatModel, init_chat_model
    from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
    from langchain_core.messages.utils import count_tokens_approximately
    from langchain_core.tools import BaseTool, tool
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from langgraph.graph.message import REMOVE_ALL_MESSAGES

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


__all__ = ["ChatTemplateCounter", "GistMiddleware", "ServedPair"]

# Of kinds of messages, and of roles that a `ChatMessage` names; whoever else speaks is a user
ROLES = {"human": "user", "ai": "assistant", "function": "tool", **dict(zip(CHAT_ROLES, CHAT_ROLES, strict=True))}
KEPT = "trl_gist_kept"  # of a message with a gist, the key of what the gist was to have and has


class ChatTemplateCounter:
    """
    A token counter for a model of which there is the tokenizer: messages are counted in its chat template, and where that
    wants users and assistants to alternate, gists stand at the head of users' messages.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's.
        tools (`list`, *optional*):
            The agent's: functions, tools of LangChain or JSON schemas that the template shows, and that are counted too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: list | None = None):
        # As `create_agent` makes them of functions
        tools = [each if isinstance(each, dict | BaseTool) else tool(each) for each in tools or []]
        self.template = ChatTemplate(tokenizer, [convert_to_openai_tool(each) for each in tools] or None)

    def __call__(self, messages: Iterable[AnyMessage]) -> int:
        return self.template.count(_as_dicts(messages))


class GistState(AgentState):
    """An agent's state, with what each compaction cost."""

    compactions: NotRequired[Annotated[list[dict[str, Any]], operator.add]]


class GistMiddleware(AgentMiddleware):
    """
    Compacts the older messages of an agent by a pair, as LangChain's `SummarizationMiddleware` does by a chat model.

    What is older becomes one gist, a user's message, into which the next compaction folds what has become older by then.
    Calls of tools keep their results, and system messages and what the user asked last stay as they are. A compaction that
    fails leaves the messages as they were, with a `RuntimeWarning`.

    After each compaction the state has one more row in `compactions`: `tokens_before` and `tokens_after` of the messages,
    how many `messages` became the gist, `seconds`, the spans that it has `kept` and `not_kept`, and the names, numbers and
    dates that the chat now lacks, `facts_dropped`.

    Example:

    ```python
    from langchain.agents import create_agent
    from trl_gist.integrations.langchain import GistMiddleware

    gists = GistMiddleware("my-pair", trigger=("tokens", 4000), keep=("tokens", 2000), keep_spans="numbers")
    agent = create_agent(model, tools, middleware=[gists])
    ```

    Args:
        pair ([`GistCompactor`], [`ServedPair`], `str` or `os.PathLike`):
            A pair in this process, on a server, or where to find it: a URL of `trl-gist serve`, a folder, or a repository
            on the Hub.
        trigger (`tuple`, `dict` or a list of them):
            As of `SummarizationMiddleware`: when messages are compacted, as `("tokens", 4000)`. After it they have fewer
            tokens than the fewest that it names. The system prompt and the tools of the agent are not among them.
        keep (`tuple`, *optional*, defaults to `("messages", 20)`):
            As there: the most of the newest messages that stay as they are. Fewer do where `trigger` leaves no room.
        token_counter (`Callable`, *optional*):
            As there, and with the same default, `count_tokens_approximately`; [`ChatTemplateCounter`] is exact.
        keep_spans (`str`, pattern or a list of them, *optional*):
            What gists must have: `"numbers"`, `"names"`, `"dates"`, `"regex:..."`, a compiled pattern or a literal
            string; `keep` of [`GistCompactor.compress`].
        model (`BaseChatModel` or `str`, *optional*):
            Whose `profile` fractions of `trigger` and `keep` are of.

    Raises:
        ValueError: if a threshold or a span is none, or the pair cannot be loaded or reached.
    """

    state_schema = GistState

    def __init__(
        self,
        pair: GistCompactor | ServedPair | str | os.PathLike,
        *,
        trigger: Trigger,
        keep: ContextSize = ("messages", 20),
        token_counter: Callable[[Iterable[AnyMessage]], int] = count_tokens_approximately,
        keep_spans=None,
        model: BaseChatModel | str | None = None,
    ):
        super().__init__()
        model = init_chat_model(model) if isinstance(model, str) else model
        window = None if model is None else (model.profile or {}).get("max_input_tokens")
        self.token_counter = token_counter
        self.compactor = HistoryCompactor(pair, Thresholds(trigger, keep, window), keep_spans)
        self.form = HistoryForm(
            lambda messages: token_counter([_as_message(each, []) for each in messages]),
            isinstance(token_counter, ChatTemplateCounter) and token_counter.template.alternates,
        )

    def before_model(self, state: GistState, runtime=None) -> dict[str, Any] | None:
        """The update of a state whose messages are compacted, if they are."""
        messages = state["messages"]
        carried = [message.additional_kwargs[KEPT] for message in messages if KEPT in message.additional_kwargs]
        chat, cost = self.compactor.compact(messages, _as_dicts, self.form, sum(carried, []))
        if chat is None:
            return None
        compacted = [_as_message(each, chat.kept) for each in chat.messages]
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *compacted], "compactions": [cost]}

    async def abefore_model(self, state: GistState, runtime=None) -> dict[str, Any] | None:
        """As `before_model`, beside the event loop."""
        return await asyncio.to_thread(self.before_model, state, runtime)


def _as_dicts(messages):
    return [_as_dict(message) for message in messages]


def _as_dict(message):
    """A message as a chat template takes it, and, beside that, itself."""
    kind = getattr(message, "role", message.type).removesuffix("MessageChunk").lower()
    row = {"role": ROLES.get(kind, "user"), "content": text_of(message.content), ORIGIN: message}
    if isinstance(message, AIMessage):
        calls = [*message.tool_calls, *message.invalid_tool_calls]
        if calls:  # some templates take an empty list for a call
            row["tool_calls"] = [call(each["id"], each["name"] or "", each["args"] or {}) for each in calls]
    elif isinstance(message, ToolMessage):
        row["tool_call_id"] = message.tool_call_id
    return row


def _as_message(row, kept):
    """The message that a row was made from, with a gist at its head or without, as the row has it; or a gist alone."""
    message, content = row.get(ORIGIN), row["content"]
    if message is not None and content == text_of(message.content):
        return message
    gist = content.partition("\n\n")[0] if content.startswith(GIST_HEAD) else None
    marks = {} if gist is None else {"lc_source": "trl_gist", KEPT: kept}
    if message is None:
        return HumanMessage(content, additional_kwargs=marks)
    if isinstance(message.content, list):  # images stay
        own = without_gist(message.content)
        content = own if gist is None else [{"type": "text", "text": f"{gist}\n"}, *own]
    rest = {name: value for name, value in message.additional_kwargs.items() if name not in ("lc_source", KEPT)}
    return message.model_copy(update={"content": content, "additional_kwargs": rest | marks})
