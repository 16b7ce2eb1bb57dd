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
An agent's one long turn, compacted again and again in the chat templates of Qwen 3, Llama 3 and Gemma, and in others that
the installed TRL ships. The summarizer is a rule here: what is compacted, and how it is said, does not depend on what a
model writes.
"""

import copy
import json

import chat_templates
import pytest
from tiny import make_tokenizer
from tiny_pairs import make_pair

from research.chat_templates import sweep
from trl_gist import Gist, GistCompactor
from trl_gist.inference.chat import ChatTooLong
from trl_gist.inference.chat_template import ChatTemplate
from trl_gist.inference.keep import keep_in_gists


SHIPPED = sweep.templates()
TEMPLATES = {**SHIPPED, **chat_templates.TEMPLATES}
_OTHERS = [name for name in ("qwen3_5_think", "gemma4_v5", "gptoss", "deepseekv3", "glm4moe") if name in SHIPPED]
NAMED = ("qwen3", "llama3_1", "alternating_calls", *_OTHERS)
TALKING = ("qwen3", "llama3", "gemma", "gemma3", "alternating_calls")
ALTERNATING = ("gemma", "gemma3", "alternating_calls")
PREFIX = "Gist of the earlier conversation: "
SYSTEM = {"role": "system", "content": "You weigh boats."}
DEVELOPER = {"role": "developer", "content": "Round to tens."}
TASK = {"role": "user", "content": "Weigh every boat in the harbour."}


class ByRule(GistCompactor):
    """Its gists say `says`, and what is to be kept."""

    shows_progress = False
    says = "boats were weighed"

    def _write_gists(self, windows, request):
        budget = self.pair.max_gist_length if request.budget is None else request.budget
        gists = [self.token_ids(self.says, "The gist", may_be_empty=True)[:budget] for _ in windows]
        gists, found = keep_in_gists(gists, [window.spans for window in windows], budget, self.tokenizer)
        return [
            Gist(self.decode(ids), ids, 0.0, len(window.context_ids), 1.0, 1.0, **kept)
            for ids, window, kept in zip(gists, windows, found, strict=True)
        ]


def compactor_with(name, **pair):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    return ByRule(None, None, tokenizer, make_pair(**{"context_length": 64, "max_gist_length": 12, **pair}))


def step(number, boats=2):
    """Calls, two at once, and their results, the last first."""
    names = [f"call{number:03}{boat:02}" for boat in range(boats)]
    calls = [
        {"id": name, "type": "function", "function": {"name": "weigh", "arguments": json.dumps({"boat": f"b{name}"})}}
        for name in names
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": f"{name} weighs a lot"} for name in reversed(names)]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def steps(first, count):
    return [message for number in range(first, first + count) for message in step(number)]


def contents(messages):
    """Texts of messages, in whatever form."""
    for message in messages:
        content = message.get("content") or ""
        yield content if isinstance(content, str) else "".join(part["text"] for part in content)


def check(compactor, result, said, folded_before=()):
    """What holds of every compacted chat."""
    tokenizer, messages = compactor.tokenizer, result.messages
    assert result.compacted and result.gist
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert len(ChatTemplate(tokenizer).ids(messages)) == result.tokens < result.tokens_before
    for each in said:
        assert text.count(each["content"].strip()) == 1, each  # templates strip
    assert text.count(PREFIX) == 1
    calls = [call["id"] for message in messages for call in message.get("tool_calls") or []]
    answers = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert sorted(calls) == sorted(answers) and len(set(calls)) == len(calls)
    first = next((n for n, message in enumerate(messages) if message["role"] == "tool"), None)
    assert first is None or messages[first - 1].get("tool_calls") or messages[first - 1]["role"] == "tool"
    gone = [call["id"] for message in result.compacted for call in message.get("tool_calls") or []]
    returned = [message["tool_call_id"] for message in result.compacted if message["role"] == "tool"]
    assert sorted(gone) == sorted(returned) and not set(gone) & set(calls)
    # All that a template shows it has
    for name in calls:
        assert f"b{name}" in text and f"{name} weighs" in text


def with_system(compactor, *messages):
    """Where the template knows no system's messages, none."""
    try:
        ChatTemplate(compactor.tokenizer).check([*messages, TASK])
    except ValueError:
        return []
    return list(messages)


def call(name):
    return {"id": name, "type": "function", "function": {"name": "weigh", "arguments": json.dumps({"boat": name})}}


def result(name, said):
    return {"role": "tool", "content": said} | ({} if name is None else {"tool_call_id": name})


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([("call00002", "two")], [[], ["two"], []]),
        ([("call00003", "three"), ("call00001", "one")], [["one"], [], ["three"]]),
        ([(None, "one"), (None, "two"), (None, "three")], [["one"], ["two"], ["three"]]),
        ([(None, "one")], [["one"], [], []]),
        ([("call00001", "one"), ("call00001", "two"), ("call00001", "three")], [["one"], ["two"], ["three"]]),
        ([("call00009", "one"), ("call00002", "two")], [["one"], ["two"], []]),
        ([(None, "one"), (None, "two"), (None, "three"), (None, "more")], [["one"], ["two"], ["three", "more"]]),
    ],
)
@pytest.mark.parametrize("ids", [("call00001", "call00002", "call00003"), (None, None, None)])
def test_calls_that_must_stand_apart_have_each_its_own_results_and_none_twice(ids, results, expected):
    template = ChatTemplate(compactor_with("llama3_1").tokenizer)
    assert template.calls_apart
    if ids[0] is None:  # then the order tells all there is
        said = [said for _, said in results]
        expected = [said[:1], said[1:2], said[2:]]
    calls = [call(f"boat{n}") | {"id": name} for n, name in enumerate(ids)]
    fitted = template.fit(
        [TASK, {"role": "assistant", "content": "", "tool_calls": calls}, *(result(*r) for r in results)]
    )
    apart = []
    for message in fitted[1:]:
        if message["role"] == "assistant":
            apart.append([])
        else:
            apart[-1].append(message["content"])
    assert apart == expected


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "deepseekv3"])
def test_a_chat_without_a_users_message_has_one_gist_however_often_it_is_compacted(name):
    compactor = compactor_with(name)
    told = with_system(compactor, SYSTEM)
    chat, gists = [*told, *steps(0, 8)], []
    room = len(ChatTemplate(compactor.tokenizer).ids([*told, *steps(0, 4)])) + 60
    for turn in range(3):
        compacted = compactor.compact_messages(chat, room)
        check(compactor, compacted, told)
        if gists:
            assert next(contents(compacted.compacted)) == f"{PREFIX}{gists[-1]}"
        gists.append(compacted.gist)
        chat = [*compacted.messages, *steps(8 * (turn + 1), 6)]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("older", [0, 2])
def test_a_long_turn_is_compacted_again_and_again(name, older):
    compactor = compactor_with(name)
    told = with_system(compactor, SYSTEM, DEVELOPER)
    assert told or name == "none of them"
    talk = [{"role": role, "content": f"{role} said {n}"} for n in range(older) for role in ("user", "assistant")]
    chat, compacted = [*told, *talk, TASK, *steps(0, 8)], []
    room = len(ChatTemplate(compactor.tokenizer).ids([*told, TASK, *steps(0, 4)])) + 60
    for turn in range(4):
        before = copy.deepcopy(chat)
        result = compactor.compact_messages(chat, room)
        assert chat == before
        check(compactor, result, [*told, TASK])
        if compacted:
            # The gist before is folded, and with it nothing twice
            texts = [*contents(result.compacted)]
            assert texts[0] == f"{PREFIX}{compacted[-1].gist}"
            assert not any(TASK["content"] in each for each in texts)
        assert not any(message["role"] in ("system", "developer") for message in result.compacted)
        compacted.append(result)
        # An agent that says its instruction again with each turn does not say it twice
        chat = [*result.messages, *steps(8 * (turn + 1), 6)]
    assert len({id(each) for each in compacted}) == 4


@pytest.mark.parametrize("name", NAMED)
def test_instructions_that_are_said_again_are_kept_once(name):
    compactor = compactor_with(name)
    chat = [SYSTEM, TASK, *steps(0, 5)]
    room = len(ChatTemplate(compactor.tokenizer).ids([SYSTEM, DEVELOPER, TASK, *steps(0, 3)])) + 60
    for turn in range(3):
        result = compactor.compact_messages([*chat, DEVELOPER, *steps(5 * turn + 5, 4)], room)
        check(compactor, result, [SYSTEM, DEVELOPER, TASK])
        chat = [SYSTEM, *result.messages]


@pytest.mark.parametrize("says", [ByRule.says, "boats\n", "\nboat\n \nb \n\n"])
@pytest.mark.parametrize("name", TALKING)
def test_a_talk_is_compacted_again_and_again(name, says):
    compactor = compactor_with(name)
    compactor.says = says
    told = with_system(compactor, SYSTEM)
    words = "we went to the harbour and looked at what lay there "
    chat, question = [*told], {"role": "user", "content": f"question 0 {words}"}
    asked = {f"question {turn} {words}" for turn in range(9)}
    room = len(ChatTemplate(compactor.tokenizer).ids([*told, question])) + 90
    for turn in range(9):
        chat.append({"role": "user", "content": f"question {turn} {words}"})
        result = compactor.compact_messages(chat, room)
        if result.compacted:
            check(compactor, result, [*told, chat[-1]])
            assert f"question {turn} " in [*contents(result.messages)][-1]
            users = [message for message in result.compacted if message["role"] == "user"]
            assert all(text in asked or text.startswith(PREFIX) for text in contents(users))
        chat = [*result.messages, {"role": "assistant", "content": f"answer {turn} {words}"}]
    assert result.compacted


@pytest.mark.parametrize("says", [ByRule.says, "boats\n\nwere weighed", ""])
@pytest.mark.parametrize("then", ["qwen3", "llama3_1", "alternating_calls"])
@pytest.mark.parametrize("first", ["qwen3", *ALTERNATING])
def test_a_long_turn_goes_on_in_another_template_than_the_chat_before(first, then, says):
    compactor = compactor_with(first)
    compactor.says = says
    words = "we went to the harbour and looked at what lay there " * 3
    talk = [{"role": role, "content": f"{words}{n}"} for n in range(3) for role in ("user", "assistant")]
    told = with_system(compactor, SYSTEM) and with_system(compactor_with(then), SYSTEM)
    room = len(ChatTemplate(compactor.tokenizer).ids([*told, TASK])) + 60
    result = compactor.compact_messages([*told, *talk, TASK], room)
    chat = result.messages
    assert len([each for each in chat if each["role"] == "user"]) == (1 if first in ALTERNATING else 2)

    compactor = compactor_with(then)
    compactor.says = "boats\n\nwere weighed"
    for turn in range(3):
        chat, gist = [*chat, *steps(8 * turn, 8)], f"{PREFIX}{result.gist}"
        # In whatever template it was compacted, a chat that fits is one that the template takes
        roomy = compactor.compact_messages(chat, 100_000)
        assert not roomy.compacted and "".join(contents(roomy.messages)).count(TASK["content"]) == 1
        room = len(ChatTemplate(compactor.tokenizer).ids([*told, TASK, *steps(0, 4)])) + 60
        result = compactor.compact_messages(chat, room)
        check(compactor, result, [*told, TASK])
        folded = [*contents(result.compacted)]
        assert folded[0] == gist and not any(TASK["content"] in each for each in folded)
        chat = result.messages


def test_chats_of_alternating_templates_are_put_after_one_another():
    """Each with its gist: both are folded, and the newer one's question stays where there is room for it."""
    compactor, chat = compactor_with("gemma"), []
    for part in ("boats", "docks"):
        chat.append({"role": "user", "content": f"{PREFIX}{part}\n\nWhat of the {part}?"})
        chat.append({"role": "assistant", "content": f"The {part} are fine. " * 6})
    chat.append(TASK)
    whole, stays = len(ChatTemplate(compactor.tokenizer).ids(chat)), set()
    for room in range(len(ChatTemplate(compactor.tokenizer).ids([TASK])) + 40, whole, 8):
        result = compactor.compact_messages(chat, room)
        text, folded = "".join(contents(result.messages)), [*contents(result.compacted)]
        assert text.endswith(TASK["content"]) and text.count(PREFIX) == 1
        assert {f"{PREFIX}boats", f"{PREFIX}docks", "What of the boats?"} <= {*folded}
        assert ("What of the docks?" in folded) != ("What of the docks?" in text)
        stays.add("What of the docks?" in text)
    assert stays == {False, True}


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("The summarizer would need 9 positions")])
@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma4_v5"])
def test_a_compaction_that_fails_changes_nothing_and_says_why(name, error):
    compactor = compactor_with(name)
    chat = [SYSTEM, TASK, *steps(0, 8)]
    before, calls, write = copy.deepcopy(chat), [], compactor._write_gists

    def fail(*args):
        calls.append(args)
        if len(calls) == 2:
            raise error
        return write(*args)

    compactor._write_gists = fail
    with pytest.raises(type(error), match=str(error)) as caught:
        compactor.compact_messages(chat, len(ChatTemplate(compactor.tokenizer).ids([SYSTEM, TASK, *steps(0, 2)])) + 40)
    assert not isinstance(caught.value, ChatTooLong)
    assert chat == before
    compactor._write_gists = write
    with pytest.raises(ChatTooLong, match="is too small"):
        compactor.compact_messages(chat, 30)
    assert chat == before


@pytest.mark.parametrize("name", sorted({*NAMED, *TALKING}))
def test_what_cannot_be_cut_and_is_too_long_is_said_to_be(name):
    compactor = compactor_with(name)
    told = with_system(compactor, SYSTEM)
    for chat in ([*told, TASK], [*told, TASK, {"role": "assistant", "content": "I weigh them one by one."}]):
        needed = len(ChatTemplate(compactor.tokenizer).ids(chat))
        with pytest.raises(ChatTooLong, match=rf"`max_tokens` \({needed - 1}\) is too small: .* take {needed} tokens"):
            compactor.compact_messages(chat, needed - 1)
        assert compactor.compact_messages(chat, needed).messages == ChatTemplate(compactor.tokenizer).fit(chat)


@pytest.mark.parametrize("says", ["", "boats were weighed"])
@pytest.mark.parametrize(
    ("keep", "said", "span"),
    [
        ("names", "It was done for Joseph Bazalgette there.", "Joseph Bazalgette"),
        (["4711"], "Berth 4711 is the widest.", "4711"),
        (r"regex:(?<=berth )\d+", "We lie at berth 4711 today.", "4711"),
        (["dates", "numbers"], "It came on 3 May 1813 from afar.", "3 May 1813"),
    ],
    ids=str,
)
def test_what_is_to_be_kept_survives_gists_of_gists_and_chats_of_chats(says, keep, said, span):
    compactor = compactor_with("qwen3", context_length=40, max_gist_length=18)
    compactor.says = says
    words = "then on and on they went along the shore without a word about the boats that lay there "
    kept, levels = [], []
    chat = [SYSTEM, {"role": "user", "content": said}, {"role": "assistant", "content": words * 12}]
    compress = compactor.compress_windows
    compactor.compress_windows = lambda *args, **settings: levels.append(1) or compress(*args, **settings)
    for turn in range(3):
        chat.append({"role": "user", "content": f"and then, the {turn} time?"})
        result = compactor.compact_messages(chat, 160, keep=[*kept, *([keep] if isinstance(keep, str) else keep)])
        assert span in result.kept and span in result.gist
        kept = result.kept  # without which a chat does not know of the one before
        chat = [*result.messages, {"role": "assistant", "content": words * 12}]
    assert len(levels) > 5


def test_a_chat_says_which_facts_it_lost():
    compactor = compactor_with("qwen3")
    chat = [
        SYSTEM,
        {"role": "user", "content": "I am in berth 4711 with a boat from Oslo."},
        {"role": "assistant", "content": "It weighs 77 tonnes, and the one from Turin 12."},
        {"role": "user", "content": "What of the boat from Oslo, and 12?"},
    ]
    result = compactor.compact_messages(chat, len(ChatTemplate(compactor.tokenizer).ids([SYSTEM, chat[-1]])) + 70)
    assert (result.facts_kept, result.facts_dropped) == (["Oslo", "12"], ["4711", "77", "Turin"])
    assert compactor.compact_messages(chat, 10_000).facts_dropped == []
