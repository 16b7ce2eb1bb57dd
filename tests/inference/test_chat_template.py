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

"""The chat templates that TRL ships: what a model is sent of a chat is all of it, or the chat is refused."""

import json
from pathlib import Path

import pytest
from tiny import make_tokenizer

from research.chat_templates import sweep
from trl_gist.inference.chat_template import ChatTemplate
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts


PAGE = Path(__file__).parents[2] / "docs" / "CHAT_TEMPLATES.md"
TEMPLATES = sweep.templates()
# With no mark in it that the tryout uses; arguments of several kinds
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": '{"what": "łódź", "times": 3}'}},
    {"id": "c2", "type": "function", "function": {"name": "weigh", "arguments": '{"what": "баржа", "times": 41}'}},
]
AGENT = [
    {"role": "system", "content": "You weigh boats."},
    {"role": "user", "content": "Weigh both."},
    {"role": "assistant", "content": "Both at once, then.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c2", "content": "77 tonnes"},
    {"role": "tool", "tool_call_id": "c1", "content": "12 tonnes"},
    {"role": "assistant", "content": "The barge is heavier."},
    {"role": "developer", "content": "Round to tens."},
    {"role": "user", "content": "By how much?"},
]


def test_all_of_them_are_here():
    assert len(TEMPLATES) >= 41


def texts_of(chat):
    for message in chat:
        yield message["content"]
        for call in message.get("tool_calls", []):
            yield from (str(value) for value in json.loads(call["function"]["arguments"]).values())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_shown_in_whole_or_refused_in_every_template(name):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    template = ChatTemplate(tokenizer)
    shown = []
    for chat in (AGENT[1:2], AGENT[:2], AGENT[1:3], AGENT[:4], AGENT, [AGENT[6], AGENT[1]], AGENT[1:2] + AGENT[5:]):
        try:
            template.check(chat)
        except ValueError as error:
            assert "chat template refuses the messages [" in str(error) or "leaves out" in str(error)
            continue
        text = tokenizer.apply_chat_template(template.fit(chat), tokenize=False, add_generation_prompt=True)
        assert [said for said in texts_of(chat) if said not in text] == []
        assert '\\"' not in text, "arguments are quoted once, not twice"
        if template.calls_apart and "77 tonnes" in text and "12 tonnes" in text:
            places = [text.index(each) for each in ("łódź", "12 tonnes", "баржа", "77 tonnes")]
            assert places == sorted(places), "each call with its result"
        shown.append(chat)
    assert AGENT[1:2] in shown and len(shown) > 1 or name == "gemma"


# What templates look for in what was said, to leave out a part of it
SIGNS = (
    *("</think>", "<think>", "[/THINK]", "</thought>", "<|channel|>final<|message|>", "<channel|>", "<tool_response>"),
    *("</tool_call>", "[TOOL_CALLS]", "\n\n", "/no_think", "<|im_end|>", "{{ 1 }}", "---"),
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_user_or_a_system_says_is_shown_from_beginning_to_end_or_refused(name):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    template = ChatTemplate(tokenizer)
    for sign in SIGNS:
        said, told = f"Before it {sign} after it.", f"Always {sign} end so."
        for chat in (
            [{"role": "user", "content": said}],
            [{"role": "system", "content": told}, {"role": "user", "content": said}],
            [
                {"role": "user", "content": said},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "a"},
            ],
        ):
            try:
                template.check(chat)
            except ValueError as error:
                assert "chat template refuses the messages [" in str(error) or "leaves out" in str(error)
                continue
            text = tokenizer.apply_chat_template(template.fit(chat), tokenize=False, add_generation_prompt=True)
            assert all(message["content"] in text for message in chat)


@pytest.mark.parametrize(
    ("cut", "content", "left_out"),
    [
        ("split('</think>')[-1]", "Say </think> now", "message 0"),
        ("split('\n\n')[0]", "One.\n\nTwo.", "the end of message 0"),
    ],
)
def test_a_part_of_a_message_that_a_template_leaves_out_is_refused(cut, content, left_out):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content.CUT }}\n{% endfor %}".replace(
        "CUT", cut
    )
    template = ChatTemplate(tokenizer)
    with pytest.raises(ValueError, match=rf"leaves out {left_out} \(user\), which the model would never see"):
        template.check([{"role": "user", "content": content}])
    # Thoughts are the assistant's own
    template.check([{"role": "user", "content": "a"}, {"role": "assistant", "content": content}])


@pytest.mark.parametrize(
    "text", ["{% for m in messages %}", "{{ messages[0]['nothing'].x }}", "{{ raise_exception('no') }}"]
)
def test_a_template_that_fails_says_why(text):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = text
    with pytest.raises(ValueError, match=r"chat template refuses the messages \['user'\]: "):
        ChatTemplate(tokenizer)


def test_the_page_has_the_tables_of_the_sweep():
    page = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert page == [line for line in sweep.tables(*sweep.sweep()) if line]


# ---- The summarizer's own prompt ----


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_summarizers_prompt_is_in_every_template(name):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    text = tokenizer.decode(prompts.summarizer([]))
    assert "Compress the text below into a short gist" in text and "Gist:" in text
    assert prompts.summarizer([7, 7, 7]).count(7) == 3 + prompts.summarizer([]).count(7)
    assert bool(prompts.opened_thought) == (prompts.summarizer_parts[-1].rstrip().endswith("<think>"))


def test_a_template_that_shows_no_user_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}a:"
    )
    with pytest.raises(ValueError, match="shows no user's message, so S would see no context"):
        GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    with pytest.raises(ValueError, match="shows no user's message"):
        ChatTemplate(tokenizer)


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6", "qwen3_8", "nemotron_3_nano", "nemotron_3_5_lightning"])
def test_a_thought_that_a_header_opens_can_be_closed(name):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    assert GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT).opened_thought == "<think>"
    closed = {"chat_template_kwargs": {"enable_thinking": False}}
    assert GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT, **closed).opened_thought == ""


# A day in the header, a budget inside a part, a plain prompt of a tokenizer with a bos, and contents in parts
DATED = "{{ strftime_now('%H:%M:%S.%f') }} {% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>"
PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}<|im_end|>"


@pytest.mark.parametrize("chat_template", [DATED, PARTS, None])
@pytest.mark.parametrize("prompt", ["{context} Gist:", "In {budget}: {before_last_k}{tail} {{x}} Gist of {last_k}"])
@pytest.mark.parametrize("bos", [False, True])
def test_a_rendered_prompt_is_used_for_ever(chat_template, prompt, bos):
    tokenizer = make_tokenizer(bos=bos)
    tokenizer.chat_template = chat_template
    first = GistPrompts.from_tokenizer(tokenizer, prompt)
    rendered = json.loads(json.dumps(first.rendered))
    read = first.summarizer([40, 41, 42, 43], [43], 9)
    for later in (chat_template, "{{ messages[0].content }} another", None):
        tokenizer.chat_template = later
        again = GistPrompts.from_tokenizer(tokenizer, prompt, rendered=rendered)
        assert again.summarizer([40, 41, 42, 43], [43], 9) == read
        assert again.rendered == first.rendered and again.states_budget == first.states_budget
    if chat_template == DATED:
        tokenizer.chat_template = DATED
        assert GistPrompts.from_tokenizer(tokenizer, prompt).summarizer([40, 41, 42, 43], [43], 9) != read
