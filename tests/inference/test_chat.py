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
    twice = compactor.compact_messages(chat, room, keep=["4711", "numbers", "0815", "0815"])
    assert twice.kept.count("4711") == 1 and twice.not_kept.count("0815") == 1
    assert result.tokens <= room


def test_a_compacted_chat_is_compacted_again_with_its_gist(compactor):
    first = compactor.compact_messages(make_chat(8), 300)
    longer = first.messages + make_chat(6, seed=1)[1:]
    second = compactor.compact_messages(longer, 300)
    assert second.compacted[0] == first.messages[1]
    assert sum("Gist of the earlier" in message["content"] for message in second.messages) == 1


CALLING = (  # a template with tools, calls and results
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Finds a street."}}]


def with_template(compactor, template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return GistCompactor(compactor.summarizer, compactor.generator, tokenizer, compactor.pair)


@pytest.fixture(scope="module")
def calling(compactor):
    return with_template(compactor, CALLING)


def step(number, call_id=None, **arguments):
    """A call and its result."""
    named = {} if call_id is None else {"tool_call_id": call_id}
    call = {"type": "function", "function": {"name": "look_up", "arguments": arguments or {"house": number}}}
    call |= {} if call_id is None else {"id": call_id}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": f"House {number} is in Soho, near the pump in Broad Street.", **named},
    ]


def test_calls_of_tools_stay_with_their_results(calling):
    call, result = step(0, street="Broad Street")
    last = [{"role": "user", "content": "Where is the pump?"}, call, result, {"role": "assistant", "content": "Soho."}]
    compacted = calling.compact_messages([*make_chat(6), *last], 360, tools=TOOLS)
    assert compacted.messages[-4:] == last and compacted.compacted
    text = f"assistant: {json.dumps(call['tool_calls'][0])}\ntool: {result['content']}\n"
    assert as_text(last[1:3]) == text


@pytest.mark.parametrize("ids", [None, "unique", "one"], ids=str)
@pytest.mark.parametrize("older_turns", [0, 3])
def test_the_oldest_steps_of_one_long_turn_are_compacted(calling, ids, older_turns):
    task = {"role": "user", "content": "Ask at each house where its water comes from."}
    names = {None: [None] * 20, "unique": [f"c{n}" for n in range(20)], "one": ["c"] * 20}[ids]
    steps = [message for number, name in enumerate(names) for message in step(number, name)]
    chat = [*make_chat(older_turns), task, *steps]
    whole = tokens_of(calling, chat)
    for max_tokens in (320, 500, 700):
        result = calling.compact_messages(chat, max_tokens)
        assert tokens_of(calling, result.messages) == result.tokens <= max_tokens < whole == result.tokens_before
        system, gist, asked, *stays = result.messages
        assert (system, asked) == (SYSTEM, task) and gist["content"].endswith(result.gist) and result.gist
        assert stays == steps[-len(stays) :] and stays[0]["role"] == "assistant" and len(stays) % 2 == 0
        assert [*result.compacted, task, *stays] == [*make_chat(older_turns)[1:], *steps[: -len(stays)], task, *stays]


def test_a_result_that_comes_late_stays_with_its_call(calling):
    first, late = step(1, "slow")
    chat = [
        SYSTEM,
        {"role": "user", "content": "Ask at the first house."},
        first,
        {"role": "user", "content": "And meanwhile at the others."},
        *(message for number in range(2, 9) for message in step(number, f"c{number}")),
        late,
        *step(9, "c9"),
    ]
    for max_tokens in range(250, tokens_of(calling, chat), 40):
        kept = calling.compact_messages(chat, max_tokens).messages
        assert (first in kept) == (late in kept)


def test_standing_instructions_are_kept_verbatim_wherever_they_were_given(compactor):
    chat = make_chat(10)
    developer = {"role": "developer", "content": "From now on, name no street."}
    later = {"role": "system", "content": "The user may not be told of the sewers."}
    chat[3:3], chat[8:8] = [developer], [later]
    result = compactor.compact_messages(chat, 250)
    assert result.messages[:3] == [SYSTEM, developer, later] and len(result.compacted) > 8
    assert all(message["role"] in ("user", "assistant") for message in result.compacted)
    again = compactor.compact_messages([*result.messages, *make_chat(5)[1:]], 250)
    assert again.messages[:3] == [SYSTEM, developer, later] and again.compacted[0] == result.messages[3]


def test_where_one_system_prompt_is_shown_later_instructions_are_joined_to_it(compactor):
    strict = with_template(
        compactor,
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('System first') }}"
        "{% elif m.role in ('system', 'user', 'assistant') %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}",
    )
    chat = make_chat(6)
    chat[4:4] = [{"role": "developer", "content": "Name no street."}]
    for max_tokens in (10_000, 220):
        result = strict.compact_messages(chat, max_tokens)
        assert result.messages[0] == {"role": "system", "content": f"{SYSTEM['content']}\n\nName no street."}
        assert all(message["role"] in ("user", "assistant") for message in result.messages[1:])
    assert result.compacted


def test_what_a_template_leaves_out_is_refused_by_role(compactor):
    chat = [{"role": "user", "content": "Where?"}, *step(3, "c3")]
    with pytest.raises(ValueError, match=r"chat template leaves out a tool call of message 1 \(assistant\)"):
        compactor.compact_messages(chat, 1000)
    with pytest.raises(ValueError, match="`tools` are given, of which .* shows none"):
        compactor.compact_messages(make_chat(2), 1000, tools=TOOLS)
    no_results = with_template(
        compactor, CALLING.replace("{% for m in messages", "{% for m in messages if m.role != 'tool'")
    )
    with pytest.raises(ValueError, match=r"leaves out message 2 \(tool\)"):
        no_results.compact_messages(chat, 1000)


def test_a_template_that_reads_parts_gets_them_and_the_chat_can_be_compacted_again(compactor):
    in_parts = (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}\n{% endfor %}"
    )
    parts = with_template(compactor, in_parts)
    first = parts.compact_messages(make_chat(8), 200)
    assert first.messages[0] == {"role": "system", "content": [{"type": "text", "text": SYSTEM["content"]}]}
    second = parts.compact_messages([*first.messages, *make_chat(6, seed=1)[1:]], 200)
    assert second.messages[0] == first.messages[0]
    assert second.compacted[0] == {"role": "user", "content": f"Gist of the earlier conversation: {first.gist}"}


def test_the_pairs_chat_template_kwargs_reach_its_chats(compactor):
    tokenizer = make_tokenizer()
    tokenizer.chat_template += "{% if quiet %}quiet quiet{% endif %}"
    tokens = [
        GistCompactor(
            compactor.summarizer,
            compactor.generator,
            tokenizer,
            dataclasses.replace(compactor.pair, chat_template_kwargs=variables),
        )
        .compact_messages(make_chat(2), 999)
        .tokens
        for variables in ({}, {"quiet": False}, {"quiet": True})
    ]
    assert tokens[0] == tokens[1] < tokens[2]


def test_arguments_that_are_no_object_are_refused_where_a_mapping_is_read(calling):
    call, result = step(4, "c4")
    function = {"name": "look_up", "arguments": '{"house": 4}'}
    parsed = calling.compact_messages(
        [
            SYSTEM,
            {"role": "user", "content": "?"},
            {**call, "tool_calls": [{"id": "c4", "function": function}]},
            result,
        ],
        999,
    )
    assert parsed.messages[2]["tool_calls"][0]["function"]["arguments"] == {"house": 4}
    for arguments in ("[4]", "4", '{"house": ', ""):
        bad = {**call, "tool_calls": [{"id": "c4", "function": {"name": "look_up", "arguments": arguments}}]}
        with pytest.raises(ValueError, match="The call of 'look_up' has the arguments .* JSON objects only"):
            calling.compact_messages([SYSTEM, {"role": "user", "content": "?"}, bad, result], 999)


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
        (
            [SYSTEM, {"role": "assistant", "content": "a", "tool_calls": ["f"]}],
            r"Message 1 \(assistant\) has a tool call that is no mapping",
        ),
        ([SYSTEM, {"role": "assistant", "tool_calls": 5}], "has a tool call that is no mapping with a `function`: 5"),
        (
            [SYSTEM, {"role": "assistant", "tool_calls": [{"id": [1], "function": {"name": "f"}}]}],
            r"Message 1 \(assistant\) has \[1\] for the id of a tool call, which must be text",
        ),
        ([SYSTEM, {"role": "tool", "tool_call_id": {}, "content": "x"}], r"Message 1 \(tool\) has {} for the id"),
        (
            [SYSTEM, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1}}}}]}],
            "has a tool call that is no JSON: Object of type set",
        ),
        (
            [SYSTEM, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "\ud800"}}]}],
            "has a tool call that is no JSON: .*surrogates",
        ),
        ([{"role": "user"}], r"Message 0 \(user\) has NoneType content"),
        ([{"role": "user", "content": "\ud800"}], r"Message 0 \(user\) is not valid text: .*surrogates"),
    ],
)
def test_what_is_no_chat_is_refused(compactor, messages, message):
    with pytest.raises(ValueError, match=message):
        compactor.compact_messages(messages, 10)


@pytest.mark.parametrize("tool", ["f", None, 2.5])
def test_what_is_no_tool_is_refused(compactor, tool):
    with pytest.raises(ValueError, match="`tools` holds .*, which is neither a JSON schema nor a function"):
        compactor.compact_messages([SYSTEM], 10, tools=[{"type": "function"}, tool])


def test_too_little_room_says_what_is_needed(compactor):
    chat = make_chat(4)
    needed = tokens_of(compactor, [SYSTEM, *chat[-2:]])
    for max_tokens in (1, needed // 2, needed - 1):
        with pytest.raises(ValueError, match=rf"`max_tokens` \({max_tokens}\) is too small: .* take {needed} tokens"):
            compactor.compact_messages(chat, max_tokens)
    with pytest.raises(ValueError, match="is too small"):
        compactor.compact_messages(chat[:3], 20)
    for max_tokens in (-1, 0):
        with pytest.raises(ValueError, match=rf"`max_tokens` must be at least 1, got {max_tokens}"):
            compactor.compact_messages(chat, max_tokens)


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
