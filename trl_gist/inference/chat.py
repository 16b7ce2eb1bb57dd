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

A chat that has outgrown its room keeps its standing instructions, its tools and its newest turns as they are; the
oldest turns become one message, a gist of them:

    system      the system prompt                  as it was, and instructions that were given later
    user        Gist of the earlier conversation: …
    user        …                                  the newest turns, as they were
    assistant   …

A turn is a user's message and all that follows up to the next one. Of a last turn that is too long by itself, as an
agent's, the user's message stays, and the oldest steps become part of the gist. A step is an assistant's message and
the results of its calls: no call loses its result. The gist is a user's message: one that was a system prompt would
stay for good, where this is folded again, with the turns after it, when the chat is compacted once more. Where the
template wants users and assistants to alternate, it stands at the head of the next user's message, up to a blank line.
A chat that has one there is read in the same way in any template.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from ..pair import PairConfig
from .certify import expected_kl, full_context_reader, longest_certified
from .chat_template import ChatTemplate, said_once
from .facts import facts_of_text, find_facts, kept_and_dropped
from .gist import Gist
from .keep import carried, find_spans, kept_and_not, parse_keep
from .pair import GistWriter
from .windows import most_windows, stretch_length


INSTRUCTIONS = ("system", "developer")
ROLES = (*INSTRUCTIONS, "user", "assistant", "tool")
GIST_MESSAGE = "Gist of the earlier conversation: {gist}"
GIST_HEAD = GIST_MESSAGE.format(gist="").rstrip()  # of an empty gist, a client may strip the space
# None is in a gist: at the head of another message, it ends at the first of them
_BLANK_LINES = re.compile(r"\n\s*\n")


class ChatTooLong(ValueError):
    """What may not be compacted does not fit."""


@dataclass(frozen=True)
class CompactedChat:
    """
    A chat that fits.

    Attributes:
        messages (`list[dict]`):
            The chat, in the form in which the tokenizer's chat template shows all of it: see
            [`~inference.chat_template.ChatTemplate`].
        compacted (`list[dict]`):
            The messages that the gist stands for, the oldest ones but for standing instructions; empty if the chat
            fitted as it was.
        gist (`str`):
            What stands for them, without the words around it; empty if there is none.
        tokens, tokens_before (`int`):
            Tokens of the chat in its template, tools and the header of the next answer included, now and as it was.
        kept, not_kept (`list[str]`):
            As of [`Gist`], of the messages that were compacted.
        facts_kept, facts_dropped (`list[str]`):
            Names, numbers and dates of the messages that were compacted: those that the chat still has, in the gist or
            elsewhere, and those that it lacks; see [`trl_gist.inference.facts`].
        expected_kl, expected_kl_se, expected_kl_reader (`float`, `float` and `str`, *optional*):
            With `certify=True`, what the compaction is expected to cost, as of [`Gist`]: the reader reads the chat as it
            was, and the generator as it is.
    """

    messages: list[dict]
    compacted: list[dict]
    gist: str
    tokens: int
    tokens_before: int
    kept: list[str]
    not_kept: list[str]
    facts_kept: list[str] = field(default_factory=list)
    facts_dropped: list[str] = field(default_factory=list)
    expected_kl: float | None = None
    expected_kl_se: float | None = None
    expected_kl_reader: str | None = None


class ChatWriter(Protocol):
    """What writes a chat's gists: a [`~inference.pair.GistWriter`]; or, but for `certify`, a pair that is elsewhere, as its
    tokenizer is."""

    tokenizer: PreTrainedTokenizerBase | None
    pair: PairConfig  # or its lengths alone

    def count_tokens(self, text: str) -> int: ...

    def compress_windows(self, text: str, budget: int | None = None, *, keep=None) -> list[Gist]: ...


class ChatForm(Protocol):
    """What decides whether a chat fits its reader: a [`~inference.chat_template.ChatTemplate`], or a rule of a caller."""

    alternates: bool

    def count(self, messages: list[dict]) -> int: ...

    def fit(self, messages: list[dict]) -> list[dict]: ...

    def check(self, messages: list[dict]): ...


def compact_messages(
    compactor: GistWriter,
    messages: list[dict],
    max_tokens: int,
    keep=None,
    tools: list | None = None,
    certify: bool = False,
) -> CompactedChat:
    """See [`GistCompactor.compact_messages`]."""
    template = ChatTemplate(compactor.tokenizer, tools, compactor.pair.chat_template_kwargs)
    return compact_in_form(compactor, template, messages, max_tokens, keep, certify)


def compact_in_form(
    compactor: ChatWriter,
    template: ChatForm,
    messages: list[dict],
    max_tokens: int,
    keep=None,
    certify: bool = False,
    may_stay: Callable[[list[dict]], bool] = lambda newest: True,
) -> CompactedChat:
    """
    As [`GistCompactor.compact_messages`], for a reader that need not be the pair's own: `max_tokens` are as `template`
    counts them. Keys of messages beside those of a chat are left as they are.

    As many of the newest turns stay as leave room for a gist, as long as the pair was trained on, of each window of the
    older ones. If only the last turn does, gists are compressed again until they fit, and the last gist is cut to the room
    that there is. If not even that leaves room for one gist, the last turn's oldest steps are compressed with the older
    turns.
    """
    messages = gists_in_place(_checked(messages), template.alternates)
    template.check(messages)
    requests = parse_keep(keep)
    before = template.count(messages)
    if before <= max_tokens and may_stay(messages):
        return _as_it_was(template, messages, before)
    if certify and before > (longest := longest_certified(compactor)):
        raise ValueError(
            f"`certify` has the whole chat read, {before} tokens, and with {compactor.pair.target_length} after them the "
            f"models have positions for {longest}. Leave it out, or shorten the chat."
        )
    first = _first_of_talk(messages)
    split = _first_to_stay(compactor, template, _gists_apart(messages), max_tokens, may_stay)
    if split is None and before <= max_tokens:
        return _as_it_was(template, messages, before)
    head, old, new = split or (messages[:first], [], messages[first:])
    smallest = template.count(_with_gist(template, head, "", new))
    room = max_tokens - smallest
    while old and room > 0:
        # A newline at its end would be one of the blank line's
        gist = _BLANK_LINES.sub("\n", _fold(compactor, as_text(old), room, requests)).strip()
        compacted = _with_gist(template, head, gist, new)
        tokens = template.count(compacted)
        if tokens <= max_tokens:
            template.check(compacted)
            found = kept_and_not(find_spans(as_text(old), requests), gist)
            # Once, whether asked for by itself or as one of its kind, as what the gist before has kept
            kept, not_kept = (list(dict.fromkeys(found[name])) for name in ("kept", "not_kept"))
            report = _facts(compactor, old, f"{gist}\n{_spoken([*head, *new])}")
            if certify:
                reader = full_context_reader(compactor)
                report |= expected_kl(compactor, reader, template.ids(messages), template.ids(compacted))
            return CompactedChat(template.fit(compacted), old, gist, tokens, before, kept, not_kept, **report)
        # The gist's text is more tokens in the template than it was written in
        over = tokens - max_tokens
        room = room - over if room > over else room // 2
    stays = template.count(gists_in_place([*head, *new], template.alternates))
    raise ChatTooLong(
        f"`max_tokens` ({max_tokens}) is too small: the system prompt and other standing instructions, the tools, the "
        f"last user's message and the newest step after it take {stays} tokens in the chat template, and with a gist of "
        f"what came before at least {smallest + 1}. Allow more tokens, or shorten them."
    )


def as_text(messages: list[dict]) -> str:
    """The messages as the text that is compressed: a line for each, its role before it; calls of tools as JSON."""
    lines = []
    for message in messages:
        calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or []]
        lines.append(f"{message['role']}: {' '.join([message.get('content') or '', *calls]).strip()}\n")
    return "".join(lines)


def _spoken(messages):
    """As [`as_text`], but for what only pairs calls with results."""
    calls_N = [[call.get("function", call) for call in message.get("tool_calls") or []] for message in messages]
    return as_text([{**each, "tool_calls": calls} for each, calls in zip(messages, calls_N, strict=True)])


def _facts(compactor, old, text):
    """Which of the facts of messages a text has."""
    said = _spoken(old)
    if compactor.tokenizer is None:  # of a pair that is elsewhere
        return kept_and_dropped(facts_of_text(said), text)
    ids = compactor.token_ids(said, "The chat", may_be_empty=True)
    return kept_and_dropped(find_facts(compactor.tokenizer, ids), text)


def _checked(messages):
    """The messages, each with one text for its content."""
    if not messages:
        raise ValueError("`messages` is empty.")
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise ValueError(f"Message {index} has the role {role!r}; roles are {', '.join(ROLES)}.")
        calls = message.get("tool_calls") or []
        _check_calls(f"Message {index} ({message['role']})", calls, message.get("tool_call_id"))
        content = message.get("content")
        if content is None and calls:
            checked.append(message)
            continue
        if isinstance(content, list) and all(isinstance(_text_of(part), str) for part in content):
            content = "".join(map(_text_of, content))
        if not isinstance(content, str):
            raise ValueError(
                f"Message {index} ({message['role']}) has {type(content).__name__} content; only text is compacted."
            )
        try:
            content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"Message {index} ({message['role']}) is not valid text: {error}.") from error
        checked.append({**message, "content": content})
    return checked


def _check_calls(what, calls, answered):
    """Raises `ValueError` for calls that cannot be shown, or told apart by their ids."""
    if not isinstance(calls, (list, tuple)) or not all(
        isinstance(call, dict) and isinstance(call.get("function", call), dict) for call in calls
    ):
        raise ValueError(f"{what} has a tool call that is no mapping with a `function`: {calls!r:.200}.")
    for each in (answered, *(call.get("id") for call in calls)):
        if not isinstance(each, str | None):
            raise ValueError(f"{what} has {each!r} for the id of a tool call, which must be text.")
    try:
        json.dumps(calls, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} has a tool call that is no JSON: {error}.") from error


def _text_of(part):
    return part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None


def _as_it_was(template, messages, tokens):
    return CompactedChat(template.fit(messages), [], "", tokens, tokens, [], [])


def gists_in_place(messages: list[dict], alternates: bool) -> list[dict]:
    """A chat, whatever it was compacted for, with no gist between two messages of users if these must alternate."""
    return _gists_joined(_gists_apart(messages)) if alternates else messages


def _gists_apart(messages):
    """Users' messages at whose head a gist stands, as two: that gist is folded again, and the user's own words are not."""
    apart = []
    for message in messages:
        gist, blank, own = (message.get("content") or "").partition("\n\n")
        if message["role"] == "user" and blank and gist.startswith(GIST_HEAD):
            apart.append({"role": "user", "content": gist})
            message = {**message, "content": own}
        apart.append(message)
    return apart


def _gists_joined(messages):
    """The other way round: a gist by itself at the head of the user's message after it."""
    joined = []
    for message in messages:
        if joined and message["role"] == "user" and _is_gist_alone(joined[-1]):
            message = {**message, "content": f"{joined.pop()['content']}\n\n{message['content']}"}
        joined.append(message)
    return joined


def _with_gist(template, head, gist, new):
    content = GIST_MESSAGE.format(gist=gist)
    return gists_in_place([*head, {"role": "user", "content": content}, *new], template.alternates)


def _first_to_stay(compactor, template, messages, max_tokens, may_stay):
    """
    From the newest turn backwards: where the next older one would leave too little room for the gists of the rest, or may
    not stay. If the last turn leaves no room for a single gist, or may not stay, the same of its steps. `None` if there is
    nothing that may be cut off.
    """
    lengths = {id(each): compactor.count_tokens(as_text([each])) for each in messages}
    one_gist = compactor.pair.max_gist_length + 1

    def fits(split, gists):
        head, _, new = split
        smallest = template.count(_with_gist(template, head, "", new))
        return smallest + gists <= max_tokens and may_stay(gists_in_place(new, template.alternates))

    turns, steps = _cuts(messages)
    if not (turns and fits(_split(messages, turns[0]), one_gist)):
        turns = [*steps, *turns]

    def is_tight(cut):
        split = _split(messages, cut)
        return not fits(split, _gists_tokens(compactor, sum(lengths[id(message)] for message in split[1])))

    # By halves: each of thousands of cuts would have the whole chat counted
    roomy = bisect_left(turns, True, key=is_tight)
    return _split(messages, turns[max(roomy - 1, 0)]) if turns else None


def _cuts(messages):
    """Where turns begin, and where steps of the last one do, the newest first; but not between a call and its result."""
    turns = [n for n, message in enumerate(messages) if message["role"] == "user" and not _is_gist_alone(message)]
    first = _first_of_talk(messages)
    steps = [n for n in range(*(_asked(messages) or [first]), len(messages)) if messages[n]["role"] == "assistant"]
    pairs = _calls_and_results(messages)

    def whole(cuts):
        return [cut for cut in reversed(cuts) if not any(call < cut <= result for call, result in pairs)]

    return whole([turn for turn in turns if turn > first]), whole(steps[1:])


def _split(messages, cut):
    """What of a chat is instructions, what is folded, and what stays: the last user's message too, for its steps."""
    first = _first_of_talk(messages)
    asked = _asked(messages)
    before = [messages[n] for n in range(first, cut) if n not in asked]
    told = [message for message in before if message["role"] in INSTRUCTIONS]
    old = [message for message in before if message["role"] not in INSTRUCTIONS]
    return said_once([*messages[:first], *told]), old, [*(messages[n] for n in asked if n < cut), *messages[cut:]]


def _asked(messages):
    """The place of the last user's message, if there is one: a gist is none, and would else stay for good."""
    own = [n for n, each in enumerate(messages) if each["role"] == "user" and not _is_gist_alone(each)]
    return own[-1:]


def _is_gist_alone(message):
    """Of a message of a chat whose gists are apart."""
    return message["role"] == "user" and (message.get("content") or "").startswith(GIST_HEAD)


def _first_of_talk(messages):
    return next((n for n, message in enumerate(messages) if message["role"] not in INSTRUCTIONS), len(messages))


def _calls_and_results(messages):
    """Places of messages with calls, and of their results: by the calls' ids, else those of the calls before them."""
    callers, pairs, last = {}, [], None
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            last = place
            callers.update((call["id"], place) for call in message["tool_calls"] if call.get("id") is not None)
        elif message["role"] == "tool" and last is not None:
            pairs.append((callers.get(message.get("tool_call_id"), last), place))
    return pairs


def _fold(compactor, text, room, requests):
    """A gist of at most `room` tokens of a text of any length: gists of its windows, and gists of these where needed."""
    pair = compactor.pair
    # A window of gists must hold more than one, or there would be no end
    longest = max(1, min(pair.max_gist_length, stretch_length(pair) // 2 - 1))
    tokens = compactor.count_tokens(text)
    while tokens > pair.context_length and _gists_tokens(compactor, tokens) > room:
        gists = compactor.compress_windows(text, longest, keep=requests)
        spans, before = find_spans(text, requests), tokens
        text = "\n".join(gist.text for gist in gists)
        requests = carried(spans, text)  # and nothing that the summarizer has invented
        tokens = compactor.count_tokens(text)
        if tokens >= before:
            break
    gists = compactor.compress_windows(text, min(pair.max_gist_length, room), keep=requests) if tokens else []
    return "\n".join(gist.text for gist in gists)


def _gists_tokens(compactor, length):
    """Most tokens of the gists of a text of `length` tokens, with what separates them."""
    return most_windows(compactor.pair, length) * (compactor.pair.max_gist_length + 1)
