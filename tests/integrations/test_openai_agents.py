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
A session of the OpenAI Agents SDK, run by the SDK's own runner on a scripted model: what is stored stays within its tokens,
calls keep their results and thoughts, and what fails changes nothing.
"""

import asyncio
import json

import pytest
from agents import Agent, ModelResponse, RunConfig, Runner, SQLiteSession, Usage, function_tool
from agents.models.interface import Model
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)
from test_chat_agents import ByRule
from tiny import make_tokenizer
from tiny_pairs import make_compactor, make_pair

from trl_gist.integrations.openai_agents import GistSession, count_items


PREFIX = "Gist of the earlier conversation: "
KEY = "The key is in drawer Q4711."
KEEP = r"regex:(?<=drawer )[A-Z]\d+"


@function_tool
def weigh(boat: str) -> str:
    """Weighs a boat."""
    return f"{boat} weighs a lot"


class Scripted(Model):
    """Thinks, calls `weigh` twice at once after each user's message, and then answers; remembers what it was shown."""

    def __init__(self):
        self.shown = []

    async def get_response(self, system_instructions, input, *args, **kwargs):
        self.shown.append(json.loads(json.dumps(input)))
        number = len(self.shown)
        if input[-1].get("role") == "user":
            output = [
                ResponseReasoningItem(id=f"rs_{number}", summary=[], type="reasoning"),
                *(
                    ResponseFunctionToolCall(
                        call_id=f"{boat}{number}",
                        name="weigh",
                        arguments=json.dumps({"boat": f"{boat}{number}"}),
                        type="function_call",
                    )
                    for boat in "bc"
                ),
            ]
        else:
            text = ResponseOutputText(text=f"answer {number}: that is done", type="output_text", annotations=[])
            output = [
                ResponseOutputMessage(
                    id=f"m{number}", content=[text], role="assistant", status="completed", type="message"
                )
            ]
        return ModelResponse(output=output, usage=Usage(), response_id=None)

    def stream_response(self, *args, **kwargs):
        raise NotImplementedError


def run(session, model, turns):
    """So many runs of one agent."""
    agent = Agent(name="weigher", instructions="You weigh boats.", model=model, tools=[weigh])

    async def talk():
        for said in turns:
            await Runner.run(agent, said, session=session, run_config=RunConfig(tracing_disabled=True))
        return await session.get_items()

    return asyncio.run(talk())


def check_items(items):
    """Calls and results, each with the other; thoughts before what they led to."""
    calls = [item["call_id"] for item in items if item.get("type") == "function_call"]
    assert calls == [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    for n, item in enumerate(items):
        if item.get("type") == "reasoning":
            assert [each["type"] for each in items[n + 1 : n + 3]] == ["function_call"] * 2
    assert sum(item.get("type") == "reasoning" for item in items) * 2 == len(calls)


def test_a_session_of_40_runs_stays_within_its_tokens_and_has_what_is_to_be_kept(tmp_path):
    model, store = Scripted(), SQLiteSession("me", tmp_path / "items.db")
    pair = make_compactor(make_tokenizer(chat_template=False))
    session = GistSession(store, pair, trigger=("tokens", 700), keep=("tokens", 400), keep_spans=KEEP)
    items = run(session, model, (f"Turn {turn}: {KEY if turn == 3 else 'weigh the next'}" for turn in range(1, 41)))
    assert len(model.shown) == 80
    # A run sends what is stored, and by itself what it adds: the user's message, and then a step of this agent
    for shown in model.shown[::2]:
        assert count_items(shown[:-1]) < 700
        check_items(shown)
        assert json.dumps(shown).count(PREFIX) <= 1
    check_items(items)
    assert len(session.compactions) >= 3
    for cost in session.compactions:
        assert cost["tokens_before"] >= 700 > cost["tokens_after"]
    assert "Q4711" in json.dumps(model.shown[-1]) and "Turn 40" in json.dumps(model.shown[-1])
    assert items[0]["role"] == "user" and items[0]["content"].startswith(PREFIX)
    assert {*items[0]} == {"role", "content"}  # all that the API takes
    assert items == asyncio.run(store.get_items())


def by_rule():
    return ByRule(None, None, make_tokenizer(chat_template=False), make_pair())


TALK = ["Weigh one.", "Weigh two.", "Weigh three.", "Weigh four."]


def test_a_compaction_that_fails_leaves_what_is_stored_and_warns():
    pair = by_rule()
    session = GistSession(SQLiteSession("me"), pair, trigger=("messages", 9), keep=("messages", 4))
    session.compactor.pair._write_gists = lambda *_: 1 // 0
    with pytest.warns(RuntimeWarning, match="not compacted, and stays as it is.*division"):
        items = run(session, Scripted(), TALK)
    assert items == run(SQLiteSession("me"), Scripted(), TALK)
    assert session.compactions == []


def test_a_store_that_fails_to_take_what_is_compacted_has_what_it_had():
    class Full(SQLiteSession):
        async def add_items(self, items):
            if PREFIX in json.dumps(items):
                raise OSError("the disk is full")
            await super().add_items(items)

    store, before = Full("me"), SQLiteSession("me")
    items = run(before, Scripted(), TALK)
    session = GistSession(store, by_rule(), trigger=("messages", 20), keep=("messages", 4))

    async def fill():
        await session.add_items(items[:-1])
        with pytest.raises(OSError, match="full"):
            await session.add_items(items[-1:])
        return await session.get_items()

    assert asyncio.run(fill()) == items


IMAGE = "data:image/png;base64,AAAA"
ITEMS = {
    "a screen": (
        [
            {"type": "computer_call", "call_id": "c", "action": {"type": "click", "x": 4711}},
            {"type": "computer_call_output", "call_id": "c", "output": {"type": "screenshot", "image_url": IMAGE}},
        ],
        "4711",
        "[screenshot]",
    ),
    "a shell": (
        [
            {"type": "shell_call", "call_id": "s", "action": {"commands": ["ls harbour"]}},
            {"type": "shell_call_output", "call_id": "s", "output": [{"stdout": "boats.txt", "stderr": "no such"}]},
        ],
        "ls harbour",
        "boats.txt\nno such",
    ),
    "a patch": (
        [
            {"type": "apply_patch_call", "call_id": "p", "operation": {"type": "create_file", "path": "boats.py"}},
            {"type": "apply_patch_call_output", "call_id": "p", "output": None},
        ],
        "boats.py",
        "tool:",
    ),
    "a program": (
        [
            {"type": "program", "call_id": "g", "code": "weigh()"},
            {"type": "program_output", "call_id": "g", "result": "a lot"},
        ],
        "weigh()",
        "tool: a lot",
    ),
    "a server's tool": (
        [{"type": "mcp_call", "id": "m", "name": "weigh", "arguments": '{"boat": "b1"}', "output": "b1 is heavy"}],
        "weigh",
        "b1 is heavy",
    ),
    "an interpreter": (
        [{"type": "code_interpreter_call", "id": "i", "code": "1 + 1", "outputs": [{"type": "logs", "logs": "two"}]}],
        "1 + 1",
        "two",
    ),
    "a search": (
        [{"type": "file_search_call", "id": "f", "queries": ["boats"], "results": [{"text": "b1 is heavy"}]}],
        "boats",
        "b1 is heavy",
    ),
    "an image that was made": (
        [{"type": "image_generation_call", "id": "i", "result": "AAAA", "status": "completed"}],
        "image_generation_call",
        "fine",
    ),
    "half a letter": (
        [
            {"type": "function_call", "call_id": "f", "name": "weigh", "arguments": '{"boat": "Zoë \ud83d"}'},
            {"type": "function_call_output", "call_id": "f", "output": [{"type": "input_image", "image_url": IMAGE}]},
        ],
        "Zoë",
        "[input_image]",
    ),
    "a refusal": (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "I weigh no boats."}]}],
        "assistant: I weigh no boats.\n",
        "\nfine",
    ),
    "no kind": ([{"type": None, "id": "x"}], "user: one", "fine"),
}


@pytest.mark.parametrize("name", ITEMS)
def test_items_of_every_kind_are_compacted(name, recwarn):
    items, called, came = ITEMS[name]
    session = GistSession(SQLiteSession("me"), by_rule(), trigger=("messages", 5), keep=("messages", 2))
    given, write = [], session.compactor.pair.compress_windows
    session.compactor.pair.compress_windows = lambda text, *rest, **more: (
        given.append(text) or write(text, *rest, **more)
    )

    async def fill():
        await session.add_items([{"role": "user", "content": "one"}, *items, {"role": "assistant", "content": "fine"}])
        await session.add_items([{"role": "user", "content": "two"}, {"role": "assistant", "content": "fine"}])
        await session.add_items([{"role": "user", "content": "three"}])
        return await session.get_items()

    assert asyncio.run(fill())[-1]["content"] == "three"
    assert not [each for each in recwarn if each.category is RuntimeWarning]
    assert called in given[0] and came in given[0] and "AAAA" not in given[0]


def test_a_store_need_have_no_settings_and_items_that_cannot_be_read_end_no_run():
    class Mine:
        session_id = "me"

        def __init__(self):
            self.items = []

        async def get_items(self, limit=None):
            return self.items[-limit:] if limit else [*self.items]

        async def add_items(self, items):
            self.items += items

        async def clear_session(self):
            self.items = []

    session = GistSession(Mine(), by_rule(), trigger=("messages", 9), keep=("messages", 4))
    check_items(run(session, Scripted(), TALK))
    assert session.compactions
    with pytest.warns(RuntimeWarning, match="not compacted, and stays as it is"):
        asyncio.run(session.add_items([{"role": "assistant", "content": 5}]))
    assert session.session.items[-1]["content"] == 5


def test_whoever_reads_or_clears_a_session_waits_until_it_is_compacted():
    class Slow(SQLiteSession):
        async def clear_session(self):
            await super().clear_session()
            await asyncio.sleep(0.05)

    session = GistSession(Slow("me"), by_rule(), trigger=("messages", 5), keep=("messages", 2))
    said = "that the boat is heavy, and more of that. " * 9
    items = [{"role": role, "content": f"{n}: {said}"} for n in range(3) for role in ("user", "assistant")]

    async def talk():
        adding = asyncio.create_task(session.add_items(items))
        await asyncio.sleep(0)
        while not adding.done():
            assert await session.get_items(), "read when it was empty"
        adding = asyncio.create_task(session.add_items(items))
        await asyncio.sleep(0)
        await session.clear_session()
        await adding
        return await session.get_items()

    assert asyncio.run(talk()) == []
    assert len(session.compactions) == 2


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_gist_at_the_head_of_the_question_is_folded_and_the_question_stays(pieces):
    """As in a chat that was compacted for a model whose template has users and assistants alternate."""
    image = {"type": "input_image", "image_url": "https://a.example/1.png"}
    parts = [f"{PREFIX}boats\n\nWeigh one.", ""] if pieces == 1 else [f"{PREFIX}boats\n", "Weigh one."]
    blocks = [{"type": "input_text", "text": part} for part in parts if part]
    for content, own in (
        (f"{PREFIX}boats\n\nWeigh one.", "Weigh one."),
        ([*blocks, image], [{"type": "input_text", "text": "Weigh one."}, image]),
    ):
        store, pair = SQLiteSession("me"), by_rule()
        session = GistSession(store, pair, trigger=("messages", 4), keep=("messages", 3))
        said = [{"role": "assistant", "content": f"Step {n}."} for n in range(3)]
        asyncio.run(session.add_items([{"role": "user", "content": content}, *said[:2]]))
        calls = [{"type": "function_call", "call_id": f"c{n}", "name": "weigh", "arguments": "{}"} for n in range(3)]
        steps = [[each, {"type": "function_call_output", "call_id": each["call_id"], "output": "9"}] for each in calls]
        asyncio.run(session.add_items([item for step in steps for item in step]))
        gist, question, *newest = asyncio.run(store.get_items())
        assert len(session.compactions) == 1
        assert gist["content"].startswith(PREFIX) and "Weigh one." not in gist["content"]
        assert question == {"role": "user", "content": own} and newest == steps[-1]


def test_a_session_is_what_it_stores():
    store = SQLiteSession("me")
    session = GistSession(store, by_rule(), trigger=("messages", 6), keep=("messages", 4))
    items = run(session, Scripted(), TALK)
    assert session.session_id == "me" and asyncio.run(session.get_items(2)) == items[-2:]
    assert asyncio.run(session.pop_item()) == items[-1]
    asyncio.run(session.clear_session())
    assert asyncio.run(store.get_items()) == []
