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

"""An agent's history: when it is compacted, how much of it stays, and what it cost. Nothing of any framework."""

import copy
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from ..inference.chat import GIST_HEAD, CompactedChat, compact_in_form, gists_in_place
from ..inference.compactor import GistCompactor
from ..inference.keep import Span, parse_keep
from .served import ServedPair


ContextSize = tuple[str, int | float]
Trigger = ContextSize | dict[str, int | float] | list
ORIGIN = "origin"  # of a message, the key of what it was made from


class Thresholds:
    """
    `trigger` and `keep`, as LangChain's `SummarizationMiddleware` has them.

    Args:
        trigger (`tuple`, `dict` or a list of them):
            `("tokens", 4000)`, `("messages", 50)` or `("fraction", 0.8)`; a mapping of several, of which all must be
            reached; or a list, of which one must.
        keep (`tuple`):
            The most that stays as it is, as `("messages", 20)`, of the newest.
        window (`int`, *optional*):
            Tokens that fractions are of.

    Raises:
        ValueError: if there is none, or one is unknown, out of range, or a fraction of no window.
    """

    def __init__(self, trigger: Trigger, keep: ContextSize, window: int | None = None):
        listed = trigger if isinstance(trigger, list) else [trigger]
        self.clauses = [_clause("trigger", each, window) for each in listed]
        kept = _clause("keep", keep, window)
        if not self.clauses or not all(self.clauses) or len(kept) != 1:
            raise ValueError(
                f"`trigger` ({trigger!r}) takes one threshold or more, and `keep` ({keep!r}) takes one: write "
                "trigger=('tokens', 4000), keep=('tokens', 2000)."
            )
        ((self.keep_kind, self.keep_value),) = kept.items()

    def due(self, tokens: int, messages: int) -> bool:
        """Whether a history of so many is compacted."""
        size = {"tokens": tokens, "messages": messages}
        return any(all(size[kind] >= value for kind, value in clause.items()) for clause in self.clauses)

    def limit(self, tokens: int) -> int:
        """The most tokens that one of so many has after it: fewer than would have it compacted at once again."""
        return min([tokens, *(clause["tokens"] - 1 for clause in self.clauses if "tokens" in clause)])

    def may_stay(self, messages: list[dict], count: Callable[[list[dict]], int]) -> bool:
        """Whether so many of the newest may be left as they are."""
        return (len(messages) if self.keep_kind == "messages" else count(messages)) <= self.keep_value


def _clause(name, value, window):
    """Tokens and messages, of a pair or a mapping."""
    pairs = value.items() if isinstance(value, dict) else [value]
    sizes = {}
    for each in pairs:
        kind, most = each if isinstance(each, tuple) and len(each) == 2 else (each, None)
        number = isinstance(most, int | float) and not isinstance(most, bool)
        if kind == "fraction" and number and 0 < most <= 1:
            if window is None:
                raise ValueError(
                    f"`{name}` ({value!r}) is a fraction, of which tokens it does not say: give a number of tokens or, to "
                    "`GistMiddleware`, a `model` whose profile has `max_input_tokens`."
                )
            kind, most = "tokens", max(1, int(window * most))
        elif kind not in ("tokens", "messages") or not number or most != int(most) or most < 1:
            raise ValueError(
                f"`{name}` ({value!r}) is no threshold: write ('tokens', 4000), ('messages', 50) or, of a model's "
                "window, ('fraction', 0.8)."
            )
        sizes[kind] = max(most, sizes.get(kind, 0))
    return sizes


@dataclass(frozen=True)
class HistoryForm:
    """A [`~inference.chat.ChatForm`] of messages that another program renders."""

    count: Callable[[list[dict]], int]
    alternates: bool = False

    def fit(self, messages: list[dict]) -> list[dict]:
        return messages

    def check(self, messages: list[dict]):
        pass


class HistoryCompactor:
    """
    A pair that compacts histories, which stay as they are if it fails.

    Args:
        pair ([`GistCompactor`], [`ServedPair`], `str` or `os.PathLike`):
            A pair in this process, on a server, or where to find it: a URL of `trl-gist serve`, a folder, or a repository
            on the Hub.
        thresholds ([`Thresholds`]):
            When, and how much stays.
        keep_spans (`str`, pattern or a list of them, *optional*):
            What gists must have: `keep` of [`GistCompactor.compress`].
    """

    def __init__(self, pair: GistCompactor | ServedPair | str | os.PathLike, thresholds: Thresholds, keep_spans=None):
        if isinstance(pair, str) and pair.startswith(("http://", "https://")):
            pair = ServedPair(pair)
        elif isinstance(pair, str | os.PathLike):
            pair = GistCompactor.from_pretrained(pair)
        if isinstance(pair, GistCompactor):
            pair = copy.copy(pair)
            pair.shows_progress = False  # a bar is no part of an agent's output
        self.pair, self.thresholds = pair, thresholds
        keep_spans = () if keep_spans is None else keep_spans
        self.keep = [*keep_spans] if isinstance(keep_spans, list | tuple) else [keep_spans]
        parse_keep(self.keep)

    def compact(
        self, history: list, as_messages: Callable[[list], list[dict]], form: HistoryForm, kept: list[str]
    ) -> tuple[CompactedChat, dict] | tuple[None, None]:
        """
        The chat and what it cost; `None` where nothing is due, or nothing may be compacted, or where it fails: then with
        a warning, and never with anything in the place of the history.

        Args:
            history (`list`):
                What the framework has for messages.
            as_messages (`Callable`):
                Makes them messages as [`GistCompactor.compact_messages`] takes them; other keys are left as they are.
            form ([`HistoryForm`]):
                How they are counted.
            kept (`list[str]`):
                What the gist among them was to have, and has.
        """
        start = time.perf_counter()
        try:
            messages = gists_in_place(as_messages(history), form.alternates)
            before = form.count(messages)
            if not self.thresholds.due(before, len(messages)):
                return None, None
            chat = compact_in_form(
                self.pair,
                form,
                messages,
                self.thresholds.limit(before),
                [*(Span(text, None) for text in dict.fromkeys(kept)), *self.keep],
                may_stay=lambda newest: self.thresholds.may_stay(newest, form.count),
            )
        except Exception as error:  # whatever it is: the agent can go on with the history that it has
            warnings.warn(
                f"The history was not compacted, and stays as it is, {len(history)} messages: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None, None
        if not chat.compacted:
            return None, None
        cost = {
            "tokens_before": chat.tokens_before,
            "tokens_after": chat.tokens,
            "messages": len(chat.compacted),
            "seconds": time.perf_counter() - start,
            "kept": chat.kept,
            "not_kept": chat.not_kept,
            "facts_dropped": chat.facts_dropped,
        }
        return chat, cost


def clean(text: str) -> str:
    """Text without halves of surrogate pairs, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def call(id: str | None, name: str, arguments: dict | str) -> dict:
    """A call of a tool, as OpenAI's API has it; letters beyond ASCII as they are, for a gist and its spans."""
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": clean(arguments)}}


# Of a block of a content: what has its text, in the words of several APIs, and kinds that are no part of what is said
_TEXTS = ("text", "refusal", "stdout", "stderr", "logs")
_SILENT = ("reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "function_call", "input_json_delta")


def text_of(content: str | list | dict | None) -> str:
    """The text of a message's content; of images and files, that they are there; of thoughts and calls, nothing."""
    if not isinstance(content, list | dict):
        return clean(content or "")
    shown = []
    for block in content if isinstance(content, list) else [content]:
        if not isinstance(block, dict):
            shown.append(str(block))
        elif block.get("type") not in _SILENT:
            texts = [block[name] for name in _TEXTS if isinstance(block.get(name), str)]
            shown += filter(None, texts) if texts else [f"[{block.get('type', 'data')}]"]
    return clean("\n".join(shown))


def without_gist(content: str | list) -> str | list:
    """A user's content without the gist that stands at its head, up to a blank line; images stay."""
    if isinstance(content, str):
        return content.partition("\n\n")[2] if content.startswith(GIST_HEAD) else content
    own = []
    for block in content:
        rest = without_gist(text_of([block]))
        if rest == text_of([block]):
            own.append(block)
        elif rest:
            own.append({"type": "text"} | (block if isinstance(block, dict) else {}) | {"text": rest})
    return own
