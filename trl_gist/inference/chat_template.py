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
The form in which a tokenizer's chat template shows all of a chat.

Many templates drop what they do not know, a developer's message or a call of a tool, without a word. So a template is
tried out with marks: each role, a call as a string and as a mapping, a result. What it shows is left as it is; what it
shows in another form is put into that form; and a chat of which it would leave something out is refused.
"""

import json

from transformers import PreTrainedTokenizerBase

from ..common.chat_template import render, with_parts
from ..common.tokens import chat_ids


# What marks are made of: words that no template has, none of them a part of another
_A, _B, _C, _D, _E = (f"mark{letter}q" for letter in "abcde")
_KEY = "keyq"
_MAPPING = {_KEY: "argumentq"}


# Whose contents a template must show from beginning to end. An assistant's thoughts it may leave out
WHOLE = ("system", "developer", "user")


class ChatTemplate:
    """
    A chat template, tried out.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Whose template it is.
        tools (`list`, *optional*):
            As for `apply_chat_template`.
        variables (`dict`, *optional*):
            What else the template is given, as `{"enable_thinking": False}`.

    Attributes:
        parts (`bool`):
            Whether contents must be lists of parts.
        alternates (`bool`):
            Whether users and assistants must alternate.
        developer (`bool`):
            Whether a developer's message is shown; else it is said as a system's.
        one_system (`bool`):
            Whether only a system message at the head is shown; later ones are then joined to it.
        strings, mappings (`bool`):
            Whether a call's arguments are shown as a string of JSON, as OpenAI's API has them, and as a mapping.
        text_apart, calls_apart (`bool`):
            Whether an assistant's text must stand in another message than its calls, and each call in its own.
        empty_text (`bool`):
            Whether a message of calls alone needs an empty text for `None`.

    Raises:
        ValueError: if there is no template, or it shows no user's message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: list | None = None, variables: dict | None = None):
        if not tokenizer.chat_template:
            raise ValueError(
                "The pair's tokenizer has no chat template: set `compactor.tokenizer.chat_template`, or compress text "
                "with `compress_windows`."
            )
        self.tokenizer, self.tools, self.variables = tokenizer, tools, variables or {}
        # Messages as they are, until they turn out not to be shown
        self.parts = self.one_system = self.text_apart = self.calls_apart = self.empty_text = False
        self.strings = self.mappings = False
        self.developer = True
        self._try_messages()
        self._try_calls()

    def _try_messages(self):
        user = _message("user", _A)
        if not self._shows([user]):
            self.parts = True
            if not self._shows([user]):
                self.text([user])  # of a template that fails, why
                raise ValueError("The tokenizer's chat template shows no user's message. Set one that does.")
        self.alternates = not self._shows([user, _message("user", _B)])
        self.one_system = not self._shows_later("system")
        self.developer = self._shows([_message("developer", _A), user]) and self._shows_later("developer")

    def _shows_later(self, role):
        user, answer, again = _message("user", _A), _message("assistant", _B), _message("user", _C)
        first, later = _message("system", _D), _message(role, _E)
        chats = [first, later, user], [first, user, answer, later, again], [user, answer, later, again]
        return all(self._shows(chat) for chat in chats)

    def _try_calls(self):
        user, answer, again = _message("user", _A), _message("assistant", _B), _message("user", _C)
        string = json.dumps(_MAPPING)
        self.strings, self.mappings = (
            self._shows([user, _calls("", string)], wrong=f'\\"{_KEY}'),  # a string that is quoted once more
            self._shows([user, _calls("", _MAPPING)], wrong=f"'{_KEY}"),  # a mapping as Python writes it
        )
        results = [_message("tool", mark, tool_call_id=f"call0000{number}") for number, mark in enumerate((_D, _E))]
        self.empty_text = not self._shows([user, _calls(None, string), results[0]])
        self.text_apart = not self._shows([user, _calls(_E, string), results[0], answer, again])
        self.calls_apart = not self._shows([user, _calls("", string, json.dumps({_KEY: "secondq"})), *results])

    def _shows(self, messages, wrong=None):
        """Whether all marks of the messages are in their text, and what is `wrong` is not."""
        try:
            text = self.text(messages)
        except ValueError:
            return False
        return all(mark in text for mark in _marks(messages)) and (wrong is None or wrong not in text)

    def fit(self, messages: list[dict]) -> list[dict]:
        """
        The messages, whose contents are text, in the form that the template shows.

        Raises:
            ValueError: if a call's arguments must be a mapping, and are no JSON object.
        """
        if not self.developer:
            messages = [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]
        if self.one_system:
            messages = _one_system(messages)
        messages = _calls_apart(messages, self.text_apart, self.calls_apart)
        messages = [self._fit_calls(message) if message.get("tool_calls") else message for message in messages]
        return with_parts(messages) if self.parts else messages

    def _fit_calls(self, message):
        content = message.get("content")
        calls = [self._fit_arguments(call) for call in message["tool_calls"]]
        return {**message, "content": "" if content is None and self.empty_text else content, "tool_calls": calls}

    def _fit_arguments(self, call):
        function = call.get("function", call)
        arguments = function.get("arguments")
        if isinstance(arguments, str) and self.mappings:
            # Where both are shown, the mapping is what the template writes in its own way
            parsed = _parsed(arguments)
            if parsed is None and not self.strings:
                raise ValueError(
                    f"The call of {function.get('name')!r} has the arguments {arguments[:80]!r}, of which the "
                    "tokenizer's chat template reads JSON objects only. Write one, as '{}'."
                )
            arguments = arguments if parsed is None else parsed
        elif isinstance(arguments, dict) and self.strings and not self.mappings:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return _with(call, arguments=arguments)

    def text(self, messages: list[dict]) -> str:
        """The chat, with the header of the next answer. Raises `ValueError` if the template refuses it."""
        return render(self.tokenizer, self.fit(messages), self.tools, **self.variables)

    def ids(self, messages: list[dict]) -> list[int]:
        """Its tokens, of which only the template's are control tokens."""
        return chat_ids(self.tokenizer, self.fit(messages), self.tools, **self.variables)

    def count(self, messages: list[dict]) -> int:
        """How many tokens that is."""
        return len(self.ids(messages))

    def check(self, messages: list[dict]):
        """
        Raises:
            ValueError: if the template refuses the messages, or leaves something out: names the message and its role.
        """
        if self.tools and self.text(messages) == render(self.tokenizer, self.fit(messages), **self.variables):
            raise ValueError("`tools` are given, of which the tokenizer's chat template shows none. Leave them out.")
        self.text(messages)
        marked, marks = [], {}
        for index, message in enumerate(messages):
            what, message = f"message {index} ({message['role']})", dict(message)
            if content := (message.get("content") or "").strip():
                mark = message["content"] = f"mark{index}q"
                marks[mark] = what
                if message["role"] in WHOLE:
                    message["content"] = f"{mark} {content} end{index}q"
                    marks[f"end{index}q"] = f"the end of {what}"
            if message.get("tool_calls"):
                message["tool_calls"], calls = [], message["tool_calls"]
                for number, call in enumerate(calls):
                    name, mark = (f"{word}{index}q{number}q" for word in ("name", "call"))
                    marks |= {mark: f"a tool call of {what}", name: f"the name of a tool call of {what}"}
                    as_text = isinstance(call.get("function", call).get("arguments"), str)
                    arguments = json.dumps({_KEY: mark}) if as_text else {_KEY: mark}
                    message["tool_calls"].append(_with(call, name=name, arguments=arguments))
            marked.append(message)
        text = self.text(marked)
        for mark, what in marks.items():
            if mark not in text:
                raise ValueError(
                    f"The tokenizer's chat template leaves out {what}, which the model would never see. Leave it out, "
                    "or say it in a user's message."
                )


def _message(role, content, **rest):
    return {"role": role, "content": content, **rest}


def _calls(content, *arguments):
    calls = [
        {"id": f"call0000{number}", "type": "function", "function": {"name": "functionq", "arguments": each}}
        for number, each in enumerate(arguments)
    ]
    return _message("assistant", content, tool_calls=calls)


def _marks(messages):
    for message in messages:
        yield message["content"] or ""
        for call in message.get("tool_calls", []):
            arguments = call["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            yield from ("functionq", _KEY, *arguments.values())


def _with(call, **fields):
    return {**call, "function": {**call["function"], **fields}} if "function" in call else {**call, **fields}


def _parsed(arguments):
    try:
        value = json.loads(arguments)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def said_once(instructions: list[dict]) -> list[dict]:
    """Instructions without those that another says word for word, by itself or as a part that was joined to it."""

    def says(one, other):
        return f"\n\n{other['content']}\n\n" in f"\n\n{one['content']}\n\n"

    return [
        each
        for n, each in enumerate(instructions)
        if not any(says(one, each) for one in instructions[:n])
        and not any(says(one, each) and not says(each, one) for one in instructions[n + 1 :])
    ]


def _one_system(messages):
    """The messages with all that are the system's in one, at the head."""
    system = said_once([message for message in messages if message["role"] == "system"])
    if not system or (system == messages[:1] and all(message["role"] != "system" for message in messages[1:])):
        return messages
    content = "\n\n".join(message["content"] for message in system)
    return [{**system[0], "content": content}, *(message for message in messages if message["role"] != "system")]


def _calls_apart(messages, from_text, from_each_other):
    """Assistants' texts in messages of their own, or calls, each with its results, or both."""
    apart, left = [], list(messages)
    while left:
        message, calls = left[0], left[0].get("tool_calls") or []
        left = left[1:]
        if calls and from_text and (message.get("content") or "").strip():
            apart.append({name: value for name, value in message.items() if name != "tool_calls"})
            message = {"role": message["role"], "content": "", "tool_calls": calls}
        if len(calls) < 2 or not from_each_other:
            apart.append(message)
            continue
        count = next((n for n, each in enumerate(left) if each["role"] != "tool"), len(left))
        results, left = left[:count], left[count:]
        for number, (call, own) in enumerate(zip(calls, _results_of(calls, results), strict=True)):
            apart.append({**message, "content": "" if number else message["content"], "tool_calls": [call]})
            apart += own
    return apart


def _results_of(calls, results):
    """Of each call its results: by their ids, or in the order of the calls where these do not tell one from another."""
    ids, named = [call.get("id") for call in calls], [result.get("tool_call_id") for result in results]
    if len({*ids}) == len(ids) and len({*named}) == len(named) and {*named} <= {*ids}:
        return [[result for result in results if result.get("tool_call_id") == each] for each in ids]
    last = len(calls) - 1
    return [results[place : place + 1] if place < last else results[place:] for place in range(len(calls))]
