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
What becomes of each kind of message in the chat templates that TRL ships, left to themselves and by
[`~inference.chat_template.ChatTemplate`].

    python -m research.chat_templates.sweep
"""

import json
from collections import Counter
from importlib.resources import files

from trl_gist.common.chat_template import opened_thought, render
from trl_gist.inference.chat_template import ChatTemplate

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from research.common.tables import markdown_table


def _said(role, content, **rest):
    return {"role": role, "content": content, **rest}


def _call(number, street):
    arguments = json.dumps({"street": street})
    return {"id": f"call0000{number}", "type": "function", "function": {"name": "look_up", "arguments": arguments}}


USER, ANSWER, AGAIN = _said("user", "Where is it?"), _said("assistant", "In Soho."), _said("user", "Since when?")
SYSTEM, LATER = _said("system", "Answer in one sentence."), _said("system", "Name no years.")
CALL = _said("assistant", "", tool_calls=[_call(1, "Broad Street")])
RESULT = _said("tool", "A pump and a brewery.", tool_call_id="call00001")
OTHER = _said("tool", "A church.", tool_call_id="call00002")
CHATS = {
    "system": [SYSTEM, USER],
    "later system": [SYSTEM, USER, ANSWER, LATER, AGAIN],
    "developer": [{**SYSTEM, "role": "developer"}, USER],
    "later developer": [SYSTEM, USER, ANSWER, {**LATER, "role": "developer"}, AGAIN],
    "call": [USER, CALL],
    "text beside a call": [USER, {**CALL, "content": "I look it up."}, RESULT, ANSWER, AGAIN],
    "two calls": [USER, {**CALL, "tool_calls": [_call(1, "Broad Street"), _call(2, "Poland Street")]}, RESULT, OTHER],
    "result": [USER, CALL, RESULT],
}


def templates() -> dict[str, str]:
    """TRL's chat templates but for the variants that mark what is trained on, by name."""
    folder = files("trl").joinpath("chat_templates")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".jinja"))
    names = [name for name in names if not name.endswith("_training.jinja")]
    return {name.removesuffix(".jinja"): folder.joinpath(name).read_text(encoding="utf-8") for name in names}


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one word: only its template matters here."""
    model = models.WordLevel({"a": 0}, unk_token="a")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def texts_of(chat: list[dict]) -> list[str]:
    """What a reader of the chat must find in it, arguments of calls as the words in them."""
    texts = []
    for message in chat:
        texts += [message["content"]] if message["content"] else []
        for call in message.get("tool_calls", []):
            texts += ["look_up", *json.loads(call["function"]["arguments"]).values()]
    return texts


def left_to_itself(tokenizer: PreTrainedTokenizerFast, chat: list[dict]) -> str:
    """What the template does with a chat as OpenAI's clients send it."""
    try:
        text = render(tokenizer, chat)
    except ValueError:
        return "error"
    if any(said not in text for said in texts_of(chat)):
        return "dropped"
    return "quoted twice" if '\\"street' in text else "shown"


def tried_out(template: ChatTemplate) -> dict[str, str]:
    """What becomes of each of `CHATS`, and what the header of an answer opens."""
    forms = {
        "later system": "at the head" if template.one_system else "",
        "developer": "" if template.developer else "as system",
        "later developer": "" if template.developer else "as system" + ", at the head" * template.one_system,
        "call": "as mapping" if template.mappings else "as string",
        "text beside a call": "apart" if template.text_apart else "",
        "two calls": "apart" if template.calls_apart else "",
    }
    cells = {}
    for name, chat in CHATS.items():
        try:
            template.check(chat)
            cells[name] = forms.get(name) or "as it is"
        except ValueError:
            cells[name] = "**refused**"
    opened = opened_thought(template.text([USER]))
    return {**cells, "header opens": f"`{opened}`" if opened else ""}


def sweep() -> tuple[dict[str, Counter], dict[str, dict[str, str]]]:
    """How often what becomes of each kind of chat when the template is left to itself, and each template's row."""
    alone, rows = {name: Counter() for name in CHATS}, {}
    for name, source in templates().items():
        tokenizer = tokenizer_with(source)
        for kind, chat in CHATS.items():
            alone[kind][left_to_itself(tokenizer, chat)] += 1
        rows[name] = tried_out(ChatTemplate(tokenizer))
    return alone, rows


def tables(alone: dict[str, Counter], rows: dict[str, dict[str, str]]) -> list[str]:
    """The lines of both tables, a blank one between them."""
    outcomes = ["shown", "dropped", "quoted twice", "error"]
    counts = []
    for kind, found in alone.items():
        refused = sum(row[kind] == "**refused**" for row in rows.values())
        counts.append([kind, *(str(found[outcome]) for outcome in outcomes), str(len(rows) - refused), str(refused)])
    first = markdown_table(["chat with a", *outcomes, "now shown", "now refused"], counts)
    head = ["template", *CHATS, "header opens"]
    return [*first, "", *markdown_table(head, [[f"`{name}`", *row.values()] for name, row in rows.items()])]


if __name__ == "__main__":
    print("\n".join(tables(*sweep())))
