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
LangChain's own agents on a scripted model: what the model is shown stays within its tokens, in each chat template that TRL
ships; calls keep their results; what is to be kept is there at the end; and what fails changes nothing.
"""

import importlib
import json
import random
import re
import sys
from pathlib import Path

import httpx
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
    ToolMessageChunk,
)
from langchain_core.messages.utils import convert_to_openai_messages, count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from serving_run import running
from test_chat_agents import NAMED, TALKING, TEMPLATES, ByRule
from tiny import make_tokenizer
from tiny_pairs import make_compactor, make_pair

from trl_gist import GistCompactor
from trl_gist.common.extras import MissingExtra
from trl_gist.inference.chat_template import ChatTemplate
from trl_gist.integrations.history import Thresholds
from trl_gist.integrations.langchain import ChatTemplateCounter, GistMiddleware, ServedPair
from trl_gist.pair import GENERATOR_DIR


PREFIX = "Gist of the earlier conversation: "
KEEP = [r"regex:(?<=drawer )[A-Z]\d+", "Joseph Bazalgette"]
KEY = "The key is in drawer Q4711, says Joseph Bazalgette."


def weigh(boat: str) -> str:
    """Weighs a boat.

    Args:
        boat: Its name.
    """
    return KEY if boat == "b3" else f"{boat} weighs a lot"


class Scripted(BaseChatModel):
    """Calls `weigh` so often after each user's message, twice at once, and then answers; remembers what it was shown."""

    calls: int = 1
    todo: int = 0
    shown: list = []

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.shown.append(list(messages))
        number = len(self.shown)
        if isinstance(messages[-1], HumanMessage):
            self.todo = self.calls
        if self.todo:
            self.todo -= 1
            boats = (f"b{number}", f"c{number}")
            calls = [{"name": "weigh", "args": {"boat": boat}, "id": f"call0{boat[0]}{number:03}"} for boat in boats]
            answer = AIMessage("", tool_calls=calls)
        else:
            answer = AIMessage(f"answer {number}: that is done")
        return ChatResult(generations=[ChatGeneration(message=answer)])


@pytest.fixture(scope="module")
def models():
    return make_compactor(make_tokenizer())


def pair_with(models, template, kind=GistCompactor):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return kind(models.summarizer, models.generator, tokenizer, models.pair)


def shows_calls(tokenizer):
    call = {"id": "call00001", "type": "function", "function": {"name": "weigh", "arguments": '{"boat": "b1"}'}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        ChatTemplate(tokenizer).check(
            [
                {"role": "user", "content": "Weigh it."},
                calls,
                {"role": "tool", "content": "a lot", "tool_call_id": "call00001"},
            ]
        )
    except ValueError:
        return False
    return True


def check_pairs(messages):
    """Calls and results stand together, each with the other."""
    open_calls = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in open_calls
            open_calls.remove(message.tool_call_id)
        else:
            assert not open_calls
            open_calls = {call["id"] for call in getattr(message, "tool_calls", [])}
    assert not open_calls


def text_of(messages):
    return json.dumps(convert_to_openai_messages(messages), ensure_ascii=False)


# Of these a model writes the gists, of the others a rule, which takes no time
BY_MODEL = ("qwen3", "gemma")


@pytest.mark.parametrize(
    ("name", "long_turn"), [*((name, False) for name in sorted({*NAMED, *TALKING})), *((name, True) for name in NAMED)]
)
def test_an_agent_of_40_turns_stays_within_its_tokens_and_has_what_is_to_be_kept(models, name, long_turn):
    """In 40 turns of the user with two calls each, or in one of 80 calls; of templates that show no calls, in a talk."""
    pair = pair_with(models, TEMPLATES[name], GistCompactor if name in BY_MODEL else ByRule)
    counter = ChatTemplateCounter(pair.tokenizer)
    tools = shows_calls(pair.tokenizer)
    assert tools or name not in NAMED
    model = Scripted(calls=40 if long_turn else int(tools), shown=[])
    ask = HumanMessage("Weigh the boats of the harbour.")
    called, said = history(1)[1:3], AIMessage("answer 100: that is done")
    turn_tokens = counter([ask, *(2 * called if tools else []), said, ask]) - counter([ask])
    limit = counter([ask]) + 6 * turn_tokens
    gists = GistMiddleware(
        pair,
        trigger=("tokens", limit),
        keep=("tokens", limit - 4 * turn_tokens),
        token_counter=counter,
        keep_spans=KEEP,
    )
    agent = create_agent(model, [weigh], middleware=[gists], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": name}, "recursion_limit": 1000}
    for turn in range(1, 2 if long_turn else 41):
        said = ask.content if long_turn else f"Turn {turn}: {KEY if turn == 3 else ask.content}"
        state = agent.invoke({"messages": [HumanMessage(said)]}, config)
        assert said in text_of(model.shown[-1])
    assert len(model.shown) >= 40
    for messages in model.shown:
        assert counter(messages) < limit
        check_pairs(messages)
        assert text_of(messages).count(PREFIX) <= 1
    last = text_of(model.shown[-1])
    assert "Q4711" in last and "Joseph Bazalgette" in last
    assert len(model.shown[-1]) < 30 and PREFIX in last
    costs = state["compactions"]
    assert 2 <= len(costs) <= 20
    for cost in costs:
        assert cost["tokens_before"] >= limit > cost["tokens_after"] > 0
        assert cost["messages"] > 0 and cost["seconds"] >= 0
    assert {"Q4711", "Joseph Bazalgette"} <= {*costs[-1]["kept"]}


def by_rule(**pair):
    return ByRule(None, None, make_tokenizer(chat_template=False), make_pair(**pair))


def history(turns, start=0):
    messages = []
    for n in range(start, start + turns):
        call = {"name": "weigh", "args": {"boat": f"b{n}"}, "id": f"call{n}"}
        messages += [
            HumanMessage(f"Weigh boat {n}.", id=f"h{n}"),
            AIMessage("", tool_calls=[call], id=f"c{n}"),
            ToolMessage(f"b{n} weighs a lot", tool_call_id=f"call{n}", id=f"t{n}"),
            AIMessage(f"Boat {n} is heavy.", id=f"a{n}"),
        ]
    return messages


@pytest.mark.parametrize("template", [None, TEMPLATES["gemma"]], ids=["none", "gemma"])
def test_an_agent_of_another_model_does_not_ask_for_the_pairs_chat_template(template):
    compactor = by_rule()
    compactor.tokenizer.chat_template = template
    model = Scripted(shown=[])
    gists = GistMiddleware(compactor, trigger=("tokens", 400), keep=("tokens", 150), keep_spans=KEEP)
    agent = create_agent(model, [weigh], middleware=[gists], system_prompt="You weigh boats.")
    state = {"messages": []}
    for turn in range(40):
        state = agent.invoke({**state, "messages": [*state["messages"], HumanMessage(f"{turn}: {KEY * (turn == 3)}")]})
    for messages in model.shown:
        assert isinstance(messages[0], SystemMessage)
        assert count_tokens_approximately(messages[1:]) < 400
        check_pairs(messages[1:])
    assert "Q4711" in text_of(model.shown[-1])


@pytest.mark.parametrize(
    ("keep", "stay"),
    [(("messages", 4), 4), (("messages", 11), 8), (("messages", 3), 2), (("messages", 1), 2), (("messages", 40), 36)],
)
def test_keep_is_the_most_that_stays_as_it_is_and_calls_stay_with_their_results(keep, stay):
    """Of 3 and of 1 the last turn is too long: what was asked stays, and its newest steps."""
    messages = history(10)
    update = GistMiddleware(by_rule(), trigger=("messages", 40), keep=keep).before_model({"messages": messages})
    if stay == 36:
        assert update is None  # all may stay, and nothing is too long
        return
    _, gist, *newest = update["messages"]
    assert gist.content.startswith(PREFIX)
    assert len(newest) == stay and all(any(each is other for other in messages) for each in newest)
    assert newest[0] is (messages[-4] if stay < 4 else messages[-stay])
    check_pairs(newest)


def test_a_long_history_is_not_counted_for_each_of_its_messages():
    """Of a window of 200,000 tokens they are thousands: counted from each on, a compaction took a minute."""
    counted = []

    def counter(messages):
        counted.append(len(messages))
        return count_tokens_approximately(messages)

    messages = history(250)
    total = counter(messages)
    middleware = GistMiddleware(
        by_rule(), trigger=("tokens", total - 5), keep=("tokens", total // 2), token_counter=counter
    )
    _, _, *newest = middleware.before_model({"messages": messages})["messages"]
    assert newest == messages[-len(newest) :] and isinstance(newest[0], HumanMessage)
    longer = messages[-len(newest) - 4 :]
    assert counter(newest) <= total // 2 < counter(longer)
    assert len(counted) < 50


def test_system_messages_and_images_stay_and_odd_text_is_no_obstacle():
    odd = [
        SystemMessage("Answer briefly.", id="s"),
        HumanMessage([{"type": "text", "text": "Look."}, {"type": "image", "url": "https://a.example/1.png"}]),
        AIMessage([{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "A boat."}]),
        HumanMessage("half \ud83d of a pair"),
        AIMessage("", tool_calls=[{"name": "weigh", "args": {"boat": "\ud83d"}, "id": "1"}]),
        ToolMessage("", tool_call_id="1"),
        SystemMessage("In kilograms.", id="later"),
        *history(3),
        HumanMessage([{"type": "text", "text": "And this?"}, {"type": "image", "url": "https://a.example/2.png"}]),
    ]
    middleware = GistMiddleware(by_rule(), trigger=("messages", 5), keep=("messages", 2))
    update = middleware.before_model({"messages": odd})
    _, system, later, gist, last = update["messages"]
    assert (system, later, last) == (odd[0], odd[6], odd[-1])
    assert gist.content.startswith(PREFIX)
    assert update["compactions"][0]["messages"] == len(odd) - 3


def compactions_of(compactor):
    """What a pair is given to compress, as it is."""
    given, write = [], compactor.compress_windows
    compactor.compress_windows = lambda text, *args, **kwargs: given.append(text) or write(text, *args, **kwargs)
    return given


def test_whoever_speaks_and_in_whatever_pieces_is_in_the_gist():
    """Roles that a message names itself, results of functions as they once were, and what a stream is made of."""
    call = {"name": "weigh", "args": '{"boat": "b1"}', "id": "1", "index": 0}
    messages = [
        ChatMessage("Good day.", role="user"),
        AIMessageChunk("Good day to you."),
        ChatMessage("Order, please.", role="chairman"),
        FunctionMessage("a lot", name="weigh"),
        HumanMessageChunk("Weigh it."),
        AIMessageChunk("", tool_call_chunks=[call]),
        ToolMessageChunk("too much", tool_call_id="1"),
        ChatMessage("It is heavy.", role="Assistant"),
        ChatMessage("Be brief.", role="system"),
        *history(2),
        HumanMessage("And now?"),
    ]
    middleware = GistMiddleware(by_rule(), trigger=("messages", 5), keep=("messages", 2))
    given = compactions_of(middleware.compactor.pair)
    _, system, gist, last = middleware.before_model({"messages": messages})["messages"]
    assert (system, last) == (messages[8], messages[-1]) and gist.content.startswith(PREFIX)
    said = [line.partition(": ") for line in given[0].splitlines()]
    assert [role for role, _, _ in said[:7]] == ["user", "assistant", "user", "tool", "user", "assistant", "tool"]
    assert [text for _, _, text in said[:5]] == [str(message.content) for message in messages[:5]]
    assert '"name": "weigh"' in said[5][2] and said[6][2] == "too much" and said[7][2] == "It is heavy."


def test_arguments_of_calls_are_read_as_they_are_written():
    call = {"name": "weigh", "args": {"boat": "Zoë 漁船", "note": "\ud83d"}, "id": "1"}
    messages = [HumanMessage("Weigh."), AIMessage("", tool_calls=[call]), ToolMessage("a lot", tool_call_id="1")]
    middleware = GistMiddleware(by_rule(), trigger=("messages", 5), keep=("messages", 2), keep_spans="Zoë 漁船")
    (cost,) = middleware.before_model({"messages": [*messages, *history(2)]})["compactions"]
    assert (cost["kept"], cost["not_kept"]) == (["Zoë 漁船"], [])


def test_what_was_kept_is_kept_again_as_the_words_that_it_is():
    """Also where these words would be a request."""
    middleware = GistMiddleware(
        by_rule(max_gist_length=40), trigger=("messages", 5), keep=("messages", 2), keep_spans=r"regex:(?<=field )\S+"
    )
    messages = [HumanMessage("The field regex:( is wrong, and the field names too.")]
    for turn in range(3):
        messages = [*messages, AIMessage("Yes."), *history(2, turn), HumanMessage("So says Joseph Bazalgette.")]
        update = middleware.before_model({"messages": messages})
        (cost,) = update["compactions"]
        assert {*cost["kept"]} == {"regex:(", "names"} and cost["not_kept"] == []
        messages = update["messages"][1:]


def test_a_history_that_cannot_be_read_is_no_end_of_the_agent():
    messages = [HumanMessage("Hello."), AIMessage("Hello."), *history(3)]
    messages[1].tool_calls = [{"name": "weigh", "args": {("a", "key"): 1}, "id": "1"}]  # which no JSON has
    middleware = GistMiddleware(by_rule(), trigger=("messages", 5), keep=("messages", 2))
    with pytest.warns(RuntimeWarning, match="not compacted, and stays as it is, 14 messages"):
        assert middleware.before_model({"messages": messages}) is None


def test_a_counter_takes_the_tools_that_the_agent_takes(models):
    pair = pair_with(models, TEMPLATES["qwen3"])
    counts = [
        ChatTemplateCounter(pair.tokenizer, [each])([HumanMessage("Weigh it.")])
        for each in (weigh, tool(weigh), convert_to_openai_tool(tool(weigh)))
    ]
    assert len({*counts}) == 1 and counts[0] > ChatTemplateCounter(pair.tokenizer)([HumanMessage("Weigh it.")])


def test_of_templates_that_alternate_the_image_of_a_message_stays_beside_its_gist():
    compactor = by_rule()
    compactor.tokenizer.chat_template = TEMPLATES["gemma"]
    counter = ChatTemplateCounter(compactor.tokenizer)
    image = {"type": "image", "url": "https://a.example/2.png"}
    middleware = GistMiddleware(compactor, trigger=("messages", 4), keep=("messages", 1), token_counter=counter)
    messages = [HumanMessage("Hello."), AIMessage("Hello."), HumanMessage("How?"), AIMessage("So."), HumanMessage(
        [{"type": "text", "text": "And this?"}, image], id="q"
    )]  # fmt: skip
    for turn in range(3):
        _, asked = middleware.before_model({"messages": messages})["messages"]
        assert asked.content[1:] == [{"type": "text", "text": "And this?"}, image] and asked.id == "q"
        assert asked.content[0]["text"].startswith(PREFIX) and len(asked.content) == 3
        messages = [asked, AIMessage("A boat."), HumanMessage("Sure?"), AIMessage("Yes."), messages[-1]]
        if turn == 0:
            again = [asked, AIMessage("A boat."), HumanMessage("Sure?"), AIMessage("Yes."), HumanMessage("Well.")]
            _, well = middleware.before_model({"messages": again})["messages"]
            assert well.content.startswith(PREFIX) and well.content.endswith("\n\nWell.")
        messages[-1] = HumanMessage([{"type": "text", "text": "And this?"}, image], id="q")


@pytest.mark.parametrize("one_block", [False, True])
def test_an_agent_that_changes_its_model_keeps_its_question_and_one_gist(one_block):
    """From a template in which users and assistants alternate to one in which they need not, and back."""
    compactor = by_rule()
    compactor.tokenizer.chat_template = TEMPLATES["alternating_calls"]
    counter = ChatTemplateCounter(compactor.tokenizer)
    settings = {"trigger": ("messages", 6), "keep": ("messages", 3)}
    alternating, other = (
        GistMiddleware(compactor, token_counter=counter, **settings),
        GistMiddleware(by_rule(), **settings),
    )
    blocks = [{"type": "text", "text": "And this?"}, {"type": "image", "url": "https://a.example/2.png"}]
    step, asked = history(3), HumanMessage(blocks, id="q")
    _, first, *rest = alternating.before_model({"messages": [*history(1), asked, *step[1:3]]})["messages"]
    assert first.content[0]["text"].startswith(PREFIX) and first.content[1:] == blocks
    if one_block:
        joined = {"type": "text", "text": f"{first.content[0]['text']}\n{blocks[0]['text']}"}
        first = first.model_copy(update={"content": [joined, blocks[1]]})
    _, gist, asked, *rest = other.before_model({"messages": [first, *rest, *step[5:7], *step[9:11]]})["messages"]
    assert gist.content.startswith(PREFIX) and asked.content == blocks and asked.id == "q"
    assert "lc_source" not in asked.additional_kwargs
    update = alternating.before_model({"messages": [gist, asked, *rest, *step[5:7], *step[9:11]]})
    _, again, *_ = update["messages"]
    assert again.content[1:] == blocks and text_of(update["messages"][1:]).count(PREFIX) == 1


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("odd"), OSError("gone")])
def test_a_compaction_that_fails_leaves_the_history_and_warns(error):
    compactor = by_rule()
    model = Scripted(shown=[])
    gists = GistMiddleware(compactor, trigger=("messages", 9), keep=("messages", 4))

    def fail(*args):
        raise error

    compactor_write, gists.compactor.pair._write_gists = compactor._write_gists, fail
    agent = create_agent(model, [weigh], middleware=[gists])
    messages = [*history(3), HumanMessage("And now?", id="q")]
    with pytest.warns(RuntimeWarning, match=f"not compacted, and stays as it is.*{error}"):
        state = agent.invoke({"messages": messages})
    assert state["messages"][: len(messages)] == messages
    assert str(error) not in text_of(model.shown[-1]) and PREFIX not in text_of(model.shown[-1])
    assert state.get("compactions", []) == []
    gists.compactor.pair._write_gists = compactor_write
    assert PREFIX in text_of(agent.invoke({"messages": messages})["messages"])


def test_what_cannot_be_made_short_enough_stays_and_warns():
    messages = [HumanMessage("Hello."), AIMessage("Hello."), HumanMessage("words " * 200)]
    middleware = GistMiddleware(by_rule(), trigger=("tokens", 100))
    with pytest.warns(RuntimeWarning, match="too small"):
        assert middleware.before_model({"messages": messages}) is None
    middleware = GistMiddleware(by_rule(), trigger=("tokens", 100), token_counter=lambda messages: 1 // 0)
    with pytest.warns(RuntimeWarning, match="division"):
        assert middleware.before_model({"messages": messages}) is None


def test_triggers_are_due_when_langchains_are():
    rng = random.Random(0)
    model = Scripted(shown=[], profile={"max_input_tokens": 1000})

    def clause():
        kinds = {"tokens": rng.randint(1, 900), "messages": rng.randint(1, 30), "fraction": rng.randint(1, 100) / 100}
        chosen = rng.sample([*kinds.items()], rng.randint(1, 3))
        return chosen[0] if len(chosen) == 1 and rng.random() < 0.5 else dict(chosen)

    for _ in range(300):
        trigger = [clause() for _ in range(rng.randint(1, 3))]
        trigger = trigger[0] if len(trigger) == 1 else trigger
        theirs = SummarizationMiddleware(model, trigger=trigger)
        ours = GistMiddleware(by_rule(), trigger=trigger, model=model).compactor.thresholds
        for _ in range(5):
            tokens, count = rng.randint(1, 1000), rng.randint(1, 40)
            assert ours.due(tokens, count) == theirs._should_summarize([HumanMessage("a")] * count, tokens)
            assert not ours.due(ours.limit(tokens), 0)


@pytest.mark.parametrize(
    "trigger",
    [None, [], {}, ("tokens", 0), ("words", 5), ("tokens", "5"), ("fraction", 2), ("messages", True), ("tokens",)],
)
def test_thresholds_that_are_none_are_refused_by_name(trigger):
    with pytest.raises(ValueError, match="trigger"):
        Thresholds(trigger, ("messages", 20), 100)
    with pytest.raises(ValueError, match="keep"):
        Thresholds(("tokens", 5), trigger or ("words", 5), 100)


def test_a_fraction_needs_a_window_and_spans_must_be_some():
    with pytest.raises(ValueError, match="`trigger`.*max_input_tokens"):
        GistMiddleware(by_rule(), trigger=("fraction", 0.5))
    with pytest.raises(ValueError, match="`keep` holds"):
        GistMiddleware(by_rule(), trigger=("tokens", 5), keep_spans="regex:(")


@pytest.mark.parametrize("keep", [KEEP, "numbers", ["names"]], ids=str)
@pytest.mark.anyio
async def test_a_pair_on_a_server_compacts_as_one_here(models, keep, monkeypatch):
    monkeypatch.setenv("TRL_GIST_API_KEY", "secret")
    with running(pair_with(models, None), "secret", max_context_tokens=20_000) as url:
        model = Scripted(shown=[])
        gists = GistMiddleware(url, trigger=("tokens", 300), keep=("tokens", 100), keep_spans=keep)
        agent = create_agent(model, [weigh], middleware=[gists])
        state = {"messages": []}
        for turn in range(12):
            said = f"{turn}: {'It is 4711 for Q4711, drawer Q4711, says Joseph Bazalgette.' if turn == 3 else ''}"
            state = await agent.ainvoke({**state, "messages": [*state["messages"], HumanMessage(said)]})
        with pytest.raises(ValueError, match="401"):
            ServedPair(f"{url}/v1", api_key="another")
    for messages in model.shown:
        assert count_tokens_approximately(messages) < 300
        check_pairs(messages)
    last = text_of(model.shown[-1])
    assert PREFIX in last and len(state["compactions"]) >= 2
    lost = [fact for row in state["compactions"] for fact in row["facts_dropped"]]
    assert lost and not any(re.search(rf"\b{re.escape(fact)}\b", last) for fact in lost if not fact.isdecimal())
    assert ("Bazalgette" if keep == ["names"] else "4711") in last
    before = state["messages"]
    with pytest.warns(RuntimeWarning, match="gave no answer.*trl-gist serve"):
        state = agent.invoke({"messages": [*before, *history(5)]})
    assert state["messages"][: len(before)] == before


CARGO = {"Oslo": 1037, "New York": 1074, "Łódź": 1111, "Cape Town": 1148, "Lima": 1185, "São Paulo": 1222}


@pytest.mark.parametrize("keep_spans", [None, ["1111", "Lima"]], ids=["nothing", "kept"])
def test_a_pair_on_a_server_says_which_facts_its_gist_dropped(models, keep_spans):
    """By words that we know; of a pair in the process it is test_chat_agents.py that says so."""
    told = [f"Then box {number} went to {city} by cart." for city, number in CARGO.items()]
    messages = [each for said in told for each in (HumanMessage(said), AIMessage("So it did."))]
    with running(pair_with(models, None), max_context_tokens=20_000) as url:
        middleware = GistMiddleware(url, trigger=("messages", 8), keep=("messages", 3), keep_spans=keep_spans)
        update = middleware.before_model({"messages": messages})
    _, gist, *newest = update["messages"]
    (cost,) = update["compactions"]
    left = " ".join(message.content for message in (gist, *newest))
    facts = [fact for city, number in CARGO.items() for fact in (str(number), city)]
    expected = [fact for fact in facts if not all(re.search(rf"\b{word}\b", left) for word in fact.split())]
    assert cost["facts_dropped"] == expected and len(expected) >= 6
    assert not {"1111", "Lima"} & {*cost["facts_dropped"]} or keep_spans is None


def test_no_server_is_said_at_once():
    with pytest.raises(ValueError, match="gave no answer.*trl-gist serve"):
        GistMiddleware("http://127.0.0.1:9", trigger=("tokens", 5))


@pytest.mark.parametrize(
    ("status", "content", "why"),
    [
        (200, b'{"data": [{"id": "a"}, {"id": "b"}]}', "says nothing of a pair"),
        (200, b'{"data": []}', "says nothing of a pair"),
        (200, b"[]", "says nothing of a pair"),
        (200, b"null", "says nothing of a pair"),
        (200, b'{"data": [{"pair": {"context_length": 3}}]}', "says nothing of a pair"),
        (200, b"<html>", "gave no answer"),
        (502, b"<html>Bad Gateway", "answered 502: <html>Bad Gateway"),
        (404, b"", "answered 404"),
    ],
)
def test_another_server_is_said_to_be_one(status, content, why, monkeypatch):
    monkeypatch.setattr(httpx, "request", lambda *args, **kwargs: httpx.Response(status, content=content))
    with pytest.raises(ValueError, match=f"http://127.0.0.1:9 {why}"):
        ServedPair("http://127.0.0.1:9")


@pytest.mark.parametrize("key", ["geheim\n", "schlüssel", " two words "])
def test_a_key_that_is_none_is_not_taken_for_a_server_that_is_down(key, monkeypatch):
    monkeypatch.setenv("TRL_GIST_API_KEY", key)
    with pytest.raises(ValueError, match="API key.*one word of ASCII") as error:
        ServedPair("http://127.0.0.1:9")
    assert key.strip() not in str(error.value)


def test_the_lines_of_the_documentation_run(models, tmp_path, monkeypatch, capsys):
    models.summarizer.save_pretrained(tmp_path / "my-pair")
    models.generator.save_pretrained(tmp_path / "my-pair" / GENERATOR_DIR)
    models.tokenizer.save_pretrained(tmp_path / "my-pair")
    models.pair.save(tmp_path / "my-pair")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
    exec(page.partition("```python\n")[2].partition("```")[0], {})  # noqa: S102
    said = capsys.readouterr().out
    assert PREFIX in said and "4711" in said and "'tokens_before': 4" in said


@pytest.mark.parametrize("blocked", ["langchain", "langgraph"])
def test_a_missing_extra_is_named(blocked, monkeypatch):
    ours = "trl_gist.integrations.langchain"
    for name in [*sys.modules]:  # all is imported anew
        if name == ours or name.partition(".")[0] in ("langchain", "langgraph"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(MissingExtra, match=rf'^{blocked} is missing: pip install "trl_gist\[langchain\]"$'):
        importlib.import_module(ours)


@pytest.fixture
def anyio_backend():
    return "asyncio"
