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

"""What a tokenizer's chat template makes of messages: text, or a refusal. In which form it shows all of them is
[`~inference.chat_template.ChatTemplate`]'s."""

import re


# A header that ends with one of these has the answer begin inside a thought
_OPENS_THOUGHT = re.compile(r"(<(?!/)[\w|]*think[\w|]*>|\[think\]|<\|channel\|?>\s*thought)\s*$", re.IGNORECASE)


def render(tokenizer, messages: list[dict], tools: list | None = None, **variables) -> str:
    """
    The text of a chat, with the header of the next answer.

    Raises:
        ValueError: if the template refuses the messages, whatever it raises.
    """
    settings = {"tools": tools, "add_generation_prompt": True, "tokenize": False}
    try:
        return tokenizer.apply_chat_template(messages, **settings, **variables)
    # A template is a program of its own: of a field that is not as it expects, most raise no TemplateError
    except Exception as error:
        roles = [message["role"] for message in messages]
        raise ValueError(f"The tokenizer's chat template refuses the messages {roles}: {error}") from error


def with_parts(messages: list[dict]) -> list[dict]:
    """The messages as templates of models that see images read them: each content a list of parts."""
    return [{**message, "content": [{"type": "text", "text": message["content"] or ""}]} for message in messages]


def opened_thought(text: str) -> str:
    """The tag by which a text that ends with the header of an answer opens a thought, or nothing."""
    match = _OPENS_THOUGHT.search(text)
    return match[1] if match else ""
