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

import dataclasses
import json
import random

import pytest
from tiny import PARAGRAPH, make_model, make_tokenizer
from tiny_pairs import in_eval, make_pair

from trl_gist import GistCompactor
from trl_gist.inference.chat import as_text


SYSTEM = {"role": "system", "content": "Answer in one sentence."}


@pytest.fixture(scope="module")
def compactor(tokenizer):
    models = [in_eval(make_model(tokenizer, seed)) for seed in (0, 1)]
    return GistCompactor(*models, tokenizer, make_pair(context_length=64, max_gist_length=12, tail_length=12))


def make_chat(turns, seed=0):
    words = PARAGRAPH.split()
    rng = random.Random(seed)

    def say(role, count):
        return {"role": role, "content": " ".join(rng.choices(words, k=count))}

    return [SYSTEM] + [message for _ in range(turns) for message in (say("user", 8), say("assistant", 12))]


def tokens_of(compactor, messages, tools=None):
    text = compactor.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    return len(compactor.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_chat_that_fits_is_left_as_it_is(compactor):
    chat = make_chat(3)
    tokens = tokens_of(compactor, chat)
    result = compactor.compact_messages(chat, tokens)
    assert (result.messages, result.compacted, result.gist) == (chat, [], "")
    assert result.tokens == result.tokens_before == tokens


@pytest.mark.parametrize("turns", [2, 5, 12])
def test_the_result_is_system_gist_and_newest_turns_within_max_tokens(compactor, turns):
    chat = make_chat(turns)
    whole = tokens_of(compactor, chat)
    smallest = tokens_of(compactor, [SYSTEM, *chat[-2:]]) + 40
    for max_tokens in range(smallest, whole, max(1, (whole - smallest) // 9)):
        result = compactor.compact_messages(chat, max_tokens)
        assert tokens_of(compactor, result.messages) == result.tokens <= max_tokens
        assert result.tokens_before == whole
        system, gist, *newest = result.messages
        assert system == SYSTEM
        assert gist == {"role": "user", "content": f"Gist of the earlier conversation: {result.gist}"}
        assert newest == chat[-len(newest) :] and newest[0]["role"] == "user"
        assert [SYSTEM, *result.compacted, *newest] == chat


def test_more_room_keeps_more_turns(compactor):
    chat = make_chat(12)
    kept = [len(compactor.compact_messages(chat, tokens).messages) for tokens in (200, 400, 600)]
    assert kept == sorted(kept) and kept[0] < kept[-1]


def test_what_is_to_be_kept_outlives_gists_of_gists(compactor):
    chat = make_chat(12)
    chat[3]["content"] = "My number is 4711."
    room = tokens_of(compactor, [SYSTEM, *chat[-2:]]) + 45
    without = compactor.compact_messages(chat, room)
    assert len(without.compacted) == 22 and "4711" not in without.gist
    result = compactor.compact_messages(chat, room, keep=["4711", "0815"])
    assert "4711" in result.gist and result.kept == ["4711"] and result.not_kept == ["0815"]
    assert result.tokens <= room


def test_a_compacted_chat_is_compacted_again_with_its_gist(compactor):
    first = compactor.compact_messages(make_chat(8), 300)
    longer = first.messages + make_chat(6, seed=1)[1:]
    second = compactor.compact_messages(longer, 300)
    assert second.compacted[0] == first.messages[1]
    assert sum("Gist of the earlier" in message["content"] for message in second.messages) == 1


def test_calls_of_tools_stay_with_their_results(compactor):
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"street": "Broad Street"}}}
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Finds a street."}}]
    chat = [
        *make_chat(6),
        {"role": "user", "content": "Where is the pump?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "In Soho."},
        {"role": "assistant", "content": "In Soho."},
    ]
    result = compactor.compact_messages(chat, 260, tools=tools)
    assert result.messages[-4:] == chat[-4:] and result.compacted
    assert as_text(chat[-3:-1]) == f"assistant: {json.dumps(call)}\ntool: In Soho.\n"


def test_tools_count(tokenizer, compactor):
    with_tools = make_tokenizer()
    with_tools.chat_template = "{% for tool in tools or [] %}{{ tool }}{% endfor %}" + with_tools.chat_template
    other = GistCompactor(compactor.summarizer, compactor.generator, with_tools, compactor.pair)
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Finds a street."}}]
    chat = make_chat(10)
    result = other.compact_messages(chat, 400, tools=tools)
    assert tokens_of(other, result.messages, tools) == result.tokens <= 400
    assert len(result.messages) < len(other.compact_messages(chat, 400).messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "`messages` is empty"),
        (
            [{"role": "narrator", "content": "x"}],
            "Message 0 has the role 'narrator'; roles are system, developer, user",
        ),
        ([SYSTEM, {"content": "x"}], "Message 1 has the role None"),
        ([SYSTEM, "hello"], "Message 1 has the role 'hello'"),
        ([SYSTEM, {"role": "user", "content": [{"type": "text"}]}], r"Message 1 \(user\) has list content"),
        ([{"role": "user"}], r"Message 0 \(user\) has NoneType content"),
        ([{"role": "user", "content": "\ud800"}], r"Message 0 \(user\) is not valid text: .*surrogates"),
    ],
)
def test_what_is_no_chat_is_refused(compactor, messages, message):
    with pytest.raises(ValueError, match=message):
        compactor.compact_messages(messages, 10)


def test_too_little_room_says_what_is_needed(compactor):
    chat = make_chat(4)
    needed = tokens_of(compactor, [SYSTEM, *chat[-2:]])
    for max_tokens in (-1, 0, needed - 1):
        with pytest.raises(ValueError, match=rf"`max_tokens` \({max_tokens}\) is too small: .* take {needed} tokens"):
            compactor.compact_messages(chat, max_tokens)
    with pytest.raises(ValueError, match="is too small"):
        compactor.compact_messages(chat[:3], 20)


def test_no_template_or_one_that_refuses_is_said(compactor):
    plain = dataclasses.replace(compactor.pair, summarizer_prompt="{context} Gist:")
    bare = GistCompactor(compactor.summarizer, compactor.generator, make_tokenizer(chat_template=False), plain)
    with pytest.raises(ValueError, match="tokenizer has no chat template: set `compactor.tokenizer.chat_template`"):
        bare.compact_messages(make_chat(2), 100)
    no_system = make_tokenizer()
    no_system.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    refusing = GistCompactor(compactor.summarizer, compactor.generator, no_system, compactor.pair)
    with pytest.raises(ValueError, match=r"template refuses the messages \['system', 'user', .*not supported"):
        refusing.compact_messages(make_chat(8), 150)


def test_where_roles_must_alternate_the_gist_stands_in_the_next_users_message(compactor):
    strict = make_tokenizer()
    strict.chat_template = (
        "{% for m in messages %}{% if not loop.first and m.role == loop.previtem.role %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}<|im_start|>{{ m.content }}{% endfor %}"
    )
    alternating = GistCompactor(compactor.summarizer, compactor.generator, strict, compactor.pair)
    chat = make_chat(8)
    result = alternating.compact_messages(chat, 150)
    assert tokens_of(alternating, result.messages) == result.tokens <= 150
    newest = chat[-len(result.messages) + 1 :]
    first = {"role": "user", "content": f"Gist of the earlier conversation: {result.gist}\n\n{newest[0]['content']}"}
    assert result.messages == [SYSTEM, first, *newest[1:]]
    assert [SYSTEM, *result.compacted, *newest] == chat
