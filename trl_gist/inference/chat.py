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
Chats, compacted by turns.

A chat that has outgrown its room keeps its system prompt, its tools and its newest turns as they are; the oldest turns
become one message, a gist of them:

    system      the system prompt                  as it was
    user        Gist of the earlier conversation: …
    user        …                                  the newest turns, as they were
    assistant   …

A turn is a user's message and all that follows up to the next one, calls of tools and their results among it, so that no
call loses its result. The gist is a user's message: templates know one system prompt only, and a gist that was one would
stay for good, where this is folded again, with the turns after it, when the chat is compacted once more. Where the
template wants users and assistants to alternate, it stands at the head of the next user's message.
"""

import json
from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from .keep import find_spans, kept_and_not, parse_keep
from .pair import GistWriter
from .windows import most_windows, stretch_length


ROLES = ("system", "developer", "user", "assistant", "tool")
GIST_MESSAGE = "Gist of the earlier conversation: {gist}"


class ChatTooLong(ValueError):
    """What may not be compacted does not fit."""


@dataclass(frozen=True)
class CompactedChat:
    """
    A chat that fits.

    Attributes:
        messages (`list[dict]`):
            The chat, for the tokenizer's chat template.
        compacted (`list[dict]`):
            The messages that the gist stands for, the oldest ones; empty if the chat fitted as it was.
        gist (`str`):
            What stands for them, without the words around it; empty if there is none.
        tokens, tokens_before (`int`):
            Tokens of the chat in its template, tools and the header of the next answer included, now and as it was.
        kept, not_kept (`list[str]`):
            As of [`Gist`], of the messages that were compacted.
    """

    messages: list[dict]
    compacted: list[dict]
    gist: str
    tokens: int
    tokens_before: int
    kept: list[str]
    not_kept: list[str]


def compact_messages(
    compactor: GistWriter, messages: list[dict], max_tokens: int, keep=None, tools: list | None = None
) -> CompactedChat:
    """
    See [`GistCompactor.compact_messages`].

    As many of the newest turns stay as leave room for a gist, as long as the pair was trained on, of each window of the
    older ones. If only the last turn does, gists are compressed again until they fit, and
    the last gist is cut to the room that there is.
    """
    template = _Template(compactor.tokenizer, tools)
    _check_messages(messages)
    requests = parse_keep(keep)
    before = template.tokens(messages)
    if before <= max_tokens:
        return CompactedChat(list(messages), [], "", before, before, [], [])
    head, turns = _turns(messages)
    split = _first_turn_to_stay(compactor, template, head, turns, max_tokens)
    old, new = [message for turn in turns[:split] for message in turn], [m for turn in turns[split:] for m in turn]
    smallest = template.tokens(template.with_gist(head, "", new))
    room = max_tokens - smallest
    while old and room > 0:
        gist = _fold(compactor, as_text(old), room, keep)
        compacted = template.with_gist(head, gist, new)
        tokens = template.tokens(compacted)
        if tokens <= max_tokens:
            found = kept_and_not(find_spans(as_text(old), requests), gist)
            return CompactedChat(compacted, old, gist, tokens, before, found["kept"], found["not_kept"])
        # The gist's text is more tokens in the template than it was written in
        room = min(room - 1, max(1, room * (max_tokens - smallest) // (tokens - smallest)))
    raise ChatTooLong(
        f"`max_tokens` ({max_tokens}) is too small: the system prompt, the tools and the last turn take "
        f"{template.tokens([*head, *turns[-1]])} tokens in the chat template, and with a gist of what came before at "
        f"least {smallest + 1}. Allow more tokens, or shorten the last turn."
    )


def as_text(messages: list[dict]) -> str:
    """The messages as the text that is compressed: a line for each, its role before it; calls of tools as JSON."""
    lines = []
    for message in messages:
        calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or []]
        lines.append(f"{message['role']}: {' '.join([message.get('content') or '', *calls]).strip()}\n")
    return "".join(lines)


class _Template:
    """Puts gists into chats, and counts their tokens, as the tokenizer's template wants it."""

    def __init__(self, tokenizer, tools):
        if not tokenizer.chat_template:
            raise ValueError(
                "The pair's tokenizer has no chat template: set `compactor.tokenizer.chat_template`, or compress text "
                "with `compress_windows`."
            )
        self.tokenizer, self.tools = tokenizer, tools
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}] * 2, tokenize=False)
            self.alternates = False
        except TemplateError:
            self.alternates = True

    def with_gist(self, head, gist, new):
        content = GIST_MESSAGE.format(gist=gist)
        if self.alternates and new:
            return [*head, {**new[0], "content": f"{content}\n\n{new[0]['content']}"}, *new[1:]]
        return [*head, {"role": "user", "content": content}, *new]

    def tokens(self, messages):
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=self.tools, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ValueError(
                f"The tokenizer's chat template refuses the messages {[message['role'] for message in messages]}: "
                f"{error}"
            ) from error
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _check_messages(messages):
    if not messages:
        raise ValueError("`messages` is empty.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise ValueError(f"Message {index} has the role {role!r}; roles are {', '.join(ROLES)}.")
        if message.get("content") is None and message.get("tool_calls"):
            continue
        if not isinstance(message.get("content"), str):
            raise ValueError(
                f"Message {index} ({message['role']}) has {type(message.get('content')).__name__} content; only text "
                "is compacted."
            )
        try:
            message["content"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"Message {index} ({message['role']}) is not valid text: {error}.") from error


def _turns(messages):
    """The system prompt, and the turns after it."""
    start = int(messages[0]["role"] in ("system", "developer"))
    turns = []
    for message in messages[start:]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return messages[:start], turns or [[]]


def _first_turn_to_stay(compactor, template, head, turns, max_tokens):
    """From the newest turn backwards: where the next older one would leave too little room for the gists of the rest."""
    lengths = [len(compactor.token_ids(as_text(turn), "The turn", may_be_empty=True)) for turn in turns]
    first = len(turns) - 1
    for split in range(len(turns) - 1, 0, -1):
        new = [message for turn in turns[split:] for message in turn]
        gists = _gists_tokens(compactor, sum(lengths[:split]))
        if template.tokens(template.with_gist(head, "", new)) + gists > max_tokens:
            break
        first = split
    return first


def _fold(compactor, text, room, keep):
    """A gist of at most `room` tokens of a text of any length: gists of its windows, and gists of these where needed."""
    pair = compactor.pair
    # A window of gists must hold more than one, or there would be no end
    longest = max(1, min(pair.max_gist_length, stretch_length(pair) // 2 - 1))
    tokens = len(compactor.token_ids(text, "The chat", may_be_empty=True))
    while tokens > pair.context_length and _gists_tokens(compactor, tokens) > room:
        gists = compactor.compress_windows(text, longest, keep=keep)
        text, before = "\n".join(gist.text for gist in gists), tokens
        tokens = len(compactor.token_ids(text, "The gists", may_be_empty=True))
        if tokens >= before:
            break
    gists = compactor.compress_windows(text, min(pair.max_gist_length, room), keep=keep) if tokens else []
    return "\n".join(gist.text for gist in gists)


def _gists_tokens(compactor, length):
    """Most tokens of the gists of a text of `length` tokens, with what separates them."""
    return most_windows(compactor.pair, length) * (compactor.pair.max_gist_length + 1)
