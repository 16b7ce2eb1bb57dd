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

"""The server as clients see it: OpenAI's own, on a real socket. Malformed requests: test_serving_bad_requests.py."""

import asyncio
import itertools
import json
import logging
import time
import typing
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from openai.types import EmbeddingCreateParams, completion_create_params
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.shared import ReasoningEffort
from peft import LoraConfig, get_peft_model
from serving_run import CONFIG, NAME, batching, metrics_of, running, slowed, until
from tiny import PARAGRAPH, make_model, make_tokenizer

from trl_gist import GistCompactor
from trl_gist.inference.chat import ChatTooLong
from trl_gist.serving.compactor import ServedCompactor
from trl_gist.serving.config import ServingConfig
from trl_gist.serving.worker import Worker


SHORT = "In 1854 the physician John Snow marked on a map"
LONG = PARAGRAPH * 3
NEW = " ".join(reversed(PARAGRAPH.split()))[:200]  # after which no window is as one before
CHAT = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Who was John Snow?"}]
GREEDY = {"model": NAME, "temperature": 0}


@pytest.fixture(scope="module")
def client(url):
    with client_of(url) as client:
        yield client


def client_of(url, api_key="none", **settings):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=30, **settings)


def length(compactor, text):
    return len(compactor.tokenizer(text)["input_ids"])


def long_chat(turns):
    words = PARAGRAPH.split()
    roles = itertools.islice(itertools.cycle(("user", "assistant")), 2 * turns - 1)
    starts = itertools.cycle(range(0, 60, 10))
    said = [
        {"role": role, "content": " ".join(words[start : start + 10])}
        for role, start in zip(roles, starts, strict=False)
    ]
    return [CHAT[0], *said]


# ---- Answers ----


def test_a_completion_is_what_a_session_writes(client, compactor):
    session = compactor.session()
    session.append(SHORT)
    expected = session.generate(20)
    completion = client.completions.create(prompt=SHORT, max_tokens=20, **GREEDY)
    assert completion.choices[0].text == expected.text
    assert (completion.choices[0].finish_reason, completion.model, completion.object) == (
        "length",
        NAME,
        "text_completion",
    )
    prompt_tokens = length(compactor, SHORT)
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 20,
        "total_tokens": prompt_tokens + 20,
    }
    assert client.completions.create(prompt="John Snow", max_tokens=2, **GREEDY).gist is None
    ids = compactor.tokenizer(SHORT)["input_ids"]
    for prompt in (ids, [SHORT], [ids]):
        assert client.completions.create(prompt=prompt, max_tokens=20, **GREEDY).choices[0].text == expected.text


def test_a_long_prompt_is_compacted_as_in_a_session_and_the_answer_says_so(client, compactor, monkeypatch):
    session = compactor.session()
    session.append(LONG)
    read = len(session.token_ids)
    expected = session.generate(60)
    prompts = []
    generate = GistCompactor.generate

    def record(self, role, given, **kwargs):
        prompts.append((role, max(map(len, given))))
        return generate(self, role, given, **kwargs)

    monkeypatch.setattr(GistCompactor, "generate", record)
    completion = client.completions.create(prompt=LONG, max_tokens=60, **GREEDY)
    assert completion.choices[0].text == expected.text
    assert completion.gist == {
        "text": session.gist,
        "tokens_in": sum(row.tokens_in for row in session.history),
        "tokens_out": len(session.gist_ids),
        "compactions": len(session.history),
        "prompt_tokens": read,
    }
    assert len(session.history) > 3
    assert completion.usage.prompt_tokens == length(compactor, LONG)
    assert max(size for role, size in prompts if role == "generator") <= session.settings.window


def test_a_chat_is_answered_in_the_chat_template(client, compactor):
    text = compactor.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ids = compactor.tokenizer(text)["input_ids"]
    (written,), _ = compactor.generate("generator", [ids], max_new_tokens=12)
    answer = client.chat.completions.create(messages=CHAT, max_completion_tokens=12, **GREEDY)
    assert answer.choices[0].message.content == compactor.decode(written)
    assert (answer.choices[0].message.role, answer.choices[0].finish_reason) == ("assistant", "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 12)
    assert answer.gist is None
    parts = [
        CHAT[0],
        {"role": "user", "content": [{"type": "text", "text": "Who was "}, {"type": "text", "text": "John Snow?"}]},
    ]
    again = client.chat.completions.create(messages=parts, max_tokens=12, **GREEDY)
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_a_long_chat_is_compacted_by_turns_and_the_answer_says_so(client, compactor):
    messages = long_chat(12)
    chat = compactor.compact_messages(messages, 150)
    answer = client.chat.completions.create(messages=messages, max_tokens=8, **GREEDY)
    assert chat.compacted and answer.gist["text"] == chat.gist
    assert answer.gist["prompt_tokens"] == chat.tokens <= 150 < answer.usage.prompt_tokens == chat.tokens_before
    assert answer.gist["tokens_out"] == length(compactor, chat.gist) < answer.gist["tokens_in"]
    same = client.chat.completions.create(messages=chat.messages, max_tokens=8, **GREEDY)
    assert same.choices[0].message.content == answer.choices[0].message.content and same.gist is None


AGENT = [
    {"role": "developer", "content": "Name no years."},
    {"role": "user", "content": "Where?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"what": "pump"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "In Soho."},
]
SAID = (
    "{% for m in messages %}"
    "{% if m.role in ('system', 'user', 'assistant') %}{{ m.role }}: {{ m.content }}\n{% endif %}"
)
ITEMS = (
    "{% for call in m.tool_calls or [] %}{{ call.function.name }} "
    "{% for k, v in call.function.arguments | items %}{{ k }}={{ v }} {% endfor %}"
)
RESULTS = "{% if m.role == 'tool' %}{{ m.content }}\n{% endif %}"


def with_template(compactor, template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return GistCompactor(compactor.summarizer, compactor.generator, tokenizer, compactor.pair)


def test_a_chat_with_calls_is_answered_in_the_form_that_the_template_shows(compactor):
    other = with_template(compactor, f"{SAID}{ITEMS}{{% endfor %}}{RESULTS}{{% endfor %}}assistant:")
    text = "system: Name no years.\nuser: Where?\nassistant: \nfind what=pump In Soho.\nassistant:"
    ids = other.tokenizer(text, add_special_tokens=False)["input_ids"]
    (written,), _ = other.generate("generator", [ids], max_new_tokens=6)
    with running(other) as url, client_of(url) as client:
        answer = client.chat.completions.create(messages=AGENT, max_tokens=6, **GREEDY)
    assert answer.choices[0].message.content == other.decode(written)
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (f"{SAID}{RESULTS}{{% endfor %}}", r"leaves out a tool call of message 2 \(assistant\)"),
        (f"{SAID}{ITEMS}{{% endfor %}}{{% endfor %}}", r"leaves out message 3 \(tool\)"),
        (
            f"{SAID}{ITEMS}{{% endfor %}}{{{{ 1 // (m.role != 'tool') | int }}}}{{% endfor %}}",
            "refuses the messages .*zero",
        ),
        (f"{SAID.replace('system', 'none')}{{% endfor %}}", r"leaves out message 0 \(developer\)"),
    ],
    ids=["calls", "results", "exception", "developer"],
)
def test_what_a_chat_template_does_not_show_is_a_400_that_names_it(compactor, template, message):
    with running(with_template(compactor, template)) as url, client_of(url) as client:
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            client.chat.completions.create(messages=AGENT, max_tokens=6, **GREEDY)
        assert caught.value.body["param"] == "messages"
        plain = client.chat.completions.create(messages=AGENT[1:2], max_tokens=2, **GREEDY)
        assert plain.usage.completion_tokens == 2


def test_a_chat_keeps_what_it_is_asked_to_keep(client, compactor):
    messages = long_chat(12)
    chat = compactor.compact_messages(messages, 150, keep=["Soho"])
    answer = client.chat.completions.create(messages=messages, max_tokens=1, extra_body={"keep": ["Soho"]}, **GREEDY)
    plain = client.chat.completions.create(messages=messages, max_tokens=1, **GREEDY)
    assert answer.gist["text"] == chat.gist != plain.gist["text"]
    assert "Soho" in chat.gist and chat.kept == ["Soho"]


REPORTED = ("facts_kept", "facts_dropped", "kept", "not_kept", "expected_kl", "expected_kl_se", "expected_kl_reader")


@pytest.mark.parametrize("certify", [False, True])
def test_an_answer_says_what_was_lost_if_it_is_asked_to(client, url, compactor, certify):
    window = ServingConfig(**CONFIG).resolve(compactor).window
    asked = {"certify": True} if certify else {"report": True}
    session = compactor.session(window=window, keep=["82"], certify=certify)
    session.append(SHORT + LONG[:400])
    answer = client.completions.create(
        prompt=SHORT + LONG[:400], max_tokens=1, extra_body={"keep": ["82"], **asked}, **GREEDY
    )
    assert answer.gist["report"] == [{name: getattr(row, name) for name in REPORTED} for row in session.history]
    assert any(row["facts_dropped"] for row in answer.gist["report"])
    messages = long_chat(6)
    chat = compactor.compact_messages(messages, 150, certify=certify)
    answer = client.chat.completions.create(messages=messages, max_tokens=1, extra_body=asked, **GREEDY)
    assert answer.gist["report"] == [{name: getattr(chat, name) for name in REPORTED}]
    assert (chat.expected_kl is None) != certify and chat.facts_dropped
    plain = client.chat.completions.create(messages=messages, max_tokens=1, **GREEDY)
    assert "report" not in plain.gist


def test_only_what_is_too_long_is_said_to_be(client, compactor, monkeypatch):
    messages, refusals = long_chat(12), []
    messages[1]["content"] = f"Afresh: {NEW}"  # no gist is remembered
    for error in (
        ValueError("The summarizer would need 9 positions."),
        ChatTooLong("`max_tokens` (150) is too small"),
    ):
        # Of the models, not of the chat's length, and the other way round
        monkeypatch.setattr(GistCompactor, "_write_gists", lambda *args, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                messages=[*messages[:-1], {"role": "user", "content": f"{error}?"}], **GREEDY
            )
        refusals.append((caught.value.code, caught.value.body["message"]))
    assert refusals[0] == (None, "The summarizer would need 9 positions.")
    assert refusals[1][0] == "context_length_exceeded"


def test_a_history_that_grew_is_compacted_from_where_it_was(compactor):
    written = []
    hook = compactor.summarizer.lm_head.register_forward_hook(
        lambda head, inputs, logits_NTV: written.append(logits_NTV.shape[0])
    )

    def tokens_for(ask):
        written.clear()
        ask()
        return sum(written)

    def complete(text):
        return lambda: client.completions.create(prompt=text, max_tokens=1, **GREEDY)

    def chat(turns):
        return lambda: client.chat.completions.create(messages=long_chat(turns), max_tokens=1, **GREEDY)

    with running(compactor) as url, client_of(url) as client:
        first, again, grown = (tokens_for(complete(text)) for text in (LONG, LONG, LONG + NEW))
        assert again == 0 < grown < first / 3
        first, again, grown = (tokens_for(chat(turns)) for turns in (14, 14, 15))
        assert again == 0 < grown < first / 2
    hook.remove()


def test_streams_say_the_same_piece_by_piece(client):
    whole = client.completions.create(prompt=LONG, max_tokens=40, **GREEDY)
    chunks = list(client.completions.create(prompt=LONG, max_tokens=40, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(chunks) > 20
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1].gist == whole.gist and len({chunk.id for chunk in chunks}) == 1

    whole = client.chat.completions.create(messages=long_chat(12), max_tokens=20, **GREEDY)
    stream = client.chat.completions.create(
        messages=long_chat(12), max_tokens=20, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert (last.choices, last.usage.model_dump()) == ([], whole.usage.model_dump())
    assert chunks[-1].gist == whole.gist and all(chunk.usage is None for chunk in chunks)


def test_pieces_come_as_they_are_written(url, compactor):
    with slowed(compactor.generator, 0.02), client_of(url) as client:
        times = []
        for _ in client.completions.create(prompt=SHORT, max_tokens=30, stream=True, **GREEDY):
            times.append(time.monotonic())
    assert times[-1] - times[0] > 0.3


def test_a_stop_string_ends_the_text_before_it(client):
    whole = client.completions.create(prompt=SHORT, max_tokens=40, **GREEDY)
    text = whole.choices[0].text
    stop = text[15:19]
    before = text[: text.index(stop)]
    for stops in (stop, ["never to be seen", stop]):
        for stream in (False, True):
            answer = client.completions.create(prompt=SHORT, max_tokens=40, stop=stops, stream=stream, **GREEDY)
            chunks = list(answer) if stream else [answer]
            assert "".join(chunk.choices[0].text for chunk in chunks) == before
            assert chunks[-1].choices[0].finish_reason == "stop"


def test_sampling_follows_the_seed(client):
    def sample(seed, **settings):
        return (
            client.completions.create(model=NAME, prompt=SHORT, max_tokens=30, seed=seed, **settings).choices[0].text
        )

    greedy = client.completions.create(prompt=SHORT, max_tokens=30, **GREEDY).choices[0].text
    assert sample(1) == sample(1) != sample(2)
    assert sample(None) != sample(None) != greedy
    assert sample(1, top_p=1e-6) == greedy == sample(3, temperature=0)


def test_compress_gives_the_gists_of_several_texts(url, compactor):
    texts = [SHORT[:30], PARAGRAPH[:200]]
    answer = httpx.post(
        f"{url}/v1/compress", json={"input": texts, "budget": 4, "keep": "numbers", "certify": True}
    ).json()
    gists = [gist for text in texts for gist in compactor.compress_windows(text, 4, keep="numbers", certify=True)]
    assert len(gists) > 2
    for found, gist in zip(answer["data"], gists, strict=True):
        assert found["token_ids"] == gist.token_ids and found["text"] == gist.text and found["kept"] == gist.kept
        assert found["expected_kl"] == pytest.approx(gist.expected_kl)
        assert found["log_prob"] == pytest.approx(gist.log_prob, abs=1e-4)
    assert [row["index"] for row in answer["data"]] == [0] * (len(gists) - answer["data"][-1]["window"] - 1) + [1] * (
        answer["data"][-1]["window"] + 1
    )
    assert answer["usage"]["prompt_tokens"] == sum(length(compactor, text) for text in texts)
    assert answer["usage"]["completion_tokens"] == sum(len(gist.token_ids) for gist in gists)
    alone = httpx.post(f"{url}/v1/compress", json={"input": compactor.tokenizer(texts[0])["input_ids"]}).json()
    assert alone["data"][0]["text"] == compactor.compress_windows(texts[0])[0].text


def test_the_model_is_listed_and_another_is_not_found(client):
    assert [model.id for model in client.models.list()] == [NAME]
    with pytest.raises(openai.NotFoundError, match=NAME) as caught:
        client.completions.create(model="other", prompt=SHORT)
    assert caught.value.code == "model_not_found"


def test_one_model_is_described_by_its_name(client):
    assert client.models.retrieve(NAME) == next(iter(client.models.list()))
    for name in ("other", f"{NAME}/", f"org/{NAME}", NAME.upper(), "é"):
        with pytest.raises(openai.NotFoundError, match=f"{name}.* is not served here: {NAME!r} is") as caught:
            client.models.retrieve(name)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# ---- What clients send unasked ----


BODIES = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
    "/v1/completions": {"prompt": SHORT, "max_tokens": 2},
    "/v1/compress": {"input": SHORT},
    "/v1/compare": {"input": SHORT, "gists": "Snow", "max_tokens": 2},
}
PARAMS = {
    "/v1/chat/completions": CompletionCreateParamsStreaming,
    "/v1/completions": completion_create_params.CompletionCreateParamsStreaming,
    "/v1/compress": EmbeddingCreateParams,  # whose `input` they have
    "/v1/compare": EmbeddingCreateParams,
}
UNASKED = {
    **{"n": 1, "logprobs": False, "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0, "stop": []},
    **{"stream": False, "user": "someone", "seed": 0, "top_p": 1, "temperature": 1},
}
UNASKED_OF_CHATS = {
    **{"top_logprobs": 0, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "functions": []},
    **{"function_call": "none", "response_format": {"type": "text"}, "modalities": ["text"], "verbosity": "medium"},
    **{"service_tier": "auto", "store": False, "metadata": {}, "safety_identifier": "someone"},
    **{"prompt_cache_key": "a", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
}


@pytest.mark.parametrize("path", BODIES)
def test_null_stands_for_absent_in_every_field_of_openais(url, path):
    body, fields = BODIES[path], typing.get_type_hints(PARAMS[path])
    assert len(fields) > 4
    optional = {name: None for name in fields if name not in body}
    sent = {**optional, **body}
    if "messages" in body:
        nulls = dict.fromkeys(ChatCompletionMessage.model_fields)
        sent["messages"] = [{**nulls, **message} for message in body["messages"]]
        sent["messages"][1]["content"] = [{"type": "text", "text": "Who?", "prompt_cache_breakpoint": None}]
    assert httpx.post(f"{url}{path}", json=sent).status_code == 200
    for name in optional:
        assert httpx.post(f"{url}{path}", json={**body, name: None}).status_code == 200, name
    required = next(name for name in body if name != "max_tokens")
    response = httpx.post(f"{url}{path}", json={**body, required: None})
    assert (response.status_code, response.json()["error"]["param"]) == (400, required)


@pytest.mark.parametrize("spelled", ["in_memory", "in-memory", "24h"])
def test_how_long_to_remember_is_taken_as_clients_have_spelled_it(url, spelled):
    path = "/v1/chat/completions"
    sent = {**BODIES[path], "prompt_cache_retention": spelled}
    assert httpx.post(f"{url}{path}", json=sent).status_code == 200


def test_values_that_ask_for_nothing_are_taken(url):
    for path, unasked in (
        ("/v1/completions", {**UNASKED, "best_of": 1, "echo": False, "suffix": ""}),
        ("/v1/chat/completions", {**UNASKED, **UNASKED_OF_CHATS}),
    ):
        for sent in ({name: value} for name, value in unasked.items()):
            response = httpx.post(f"{url}{path}", json={**BODIES[path], **sent})
            assert response.status_code == 200, (sent, response.text)
        assert httpx.post(f"{url}{path}", json={**BODIES[path], **unasked}).status_code == 200
    for effort in typing.get_args(typing.get_args(ReasoningEffort)[0]):
        sent = {**BODIES["/v1/chat/completions"], "reasoning_effort": effort}
        assert httpx.post(f"{url}/v1/chat/completions", json=sent).status_code == 200, effort


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("service_tier", "priority"), ("service_tier", ""), ("reasoning_effort", "huge"), ("reasoning_effort", 1)),
        *(("verbosity", "low"), ("modalities", ["text", "audio"]), ("modalities", "text"), ("audio", {"voice": "a"})),
        *(
            ("prediction", {"type": "content", "content": "a"}),
            ("web_search_options", {"a": 1}),
            ("function_call", {}),
        ),
    ],
)
def test_values_that_ask_for_something_else_are_refused(url, name, value):
    response = httpx.post(f"{url}/v1/chat/completions", json={**BODIES["/v1/chat/completions"], name: value})
    assert response.status_code == 400 and response.json()["error"]["param"].split(".")[0] == name


# ---- Several at a time ----


def test_concurrent_requests_get_what_they_get_alone(client):
    prompts = [LONG[start : start + 40 * (start % 7 + 1)] for start in range(0, 120, 10)]

    def ask(prompt):
        return client.completions.create(prompt=prompt, max_tokens=20, **GREEDY).model_dump(exclude={"id", "created"})

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, prompts)) == alone


def test_health_answers_while_the_models_are_busy(url, compactor):
    with slowed(compactor.generator, 0.05), ThreadPoolExecutor(1) as pool, client_of(url) as client:
        busy = pool.submit(client.completions.create, prompt=SHORT, max_tokens=60, **GREEDY)
        until(lambda: in_flight(url) == 1)
        assert httpx.get(f"{url}/health").json() == {"status": "ok"} and not busy.done()


def test_what_is_more_than_the_places_is_told_to_come_again(compactor):
    with running(compactor, max_requests=2) as url, client_of(url) as client, slowed(compactor.generator, 0.05):
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(client.completions.create, prompt=SHORT, max_tokens=30, **GREEDY)
            until(lambda: in_flight(url) == 2)
            until(lambda: metrics_of(httpx.get(f"{url}/metrics").text)[("trl_gist_requests_waiting",)] == 1)
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(prompt=SHORT, **GREEDY)
            assert caught.value.response.headers["retry-after"] == "1"
        assert client.completions.create(prompt=SHORT, max_tokens=2, **GREEDY).usage.completion_tokens == 2


def in_flight(url):
    return metrics_of(httpx.get(f"{url}/metrics").text)[("trl_gist_requests_in_flight",)]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_the_models(compactor, stream):
    forwards = []
    with running(compactor) as url, slowed(compactor.generator, 0.05):
        hook = compactor.generator.register_forward_hook(lambda *_: forwards.append(1))
        body = {"prompt": SHORT, "max_tokens": 64, "stream": stream, "temperature": 0}
        with httpx.Client() as client, pytest.raises((httpx.ReadTimeout, StopIteration)):
            with client.stream("POST", f"{url}/v1/completions", json=body, timeout=0.5) as response:
                next(response.iter_lines())
                raise StopIteration
        until(lambda: in_flight(url) == 0)
        time.sleep(0.2)  # for the token that was being written
        seen = len(forwards)
        assert seen < 40
        time.sleep(0.3)
        assert len(forwards) == seen
        hook.remove()


def test_a_client_that_leaves_stops_the_summarizer_as_well(compactor):
    forwards = []
    with running(compactor) as url, slowed(compactor.summarizer, 0.05):
        hook = compactor.summarizer.register_forward_hook(lambda *_: forwards.append(1))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={"prompt": LONG}, timeout=0.3)
        until(lambda: in_flight(url) == 0)
        time.sleep(0.2)
        seen = len(forwards)
        time.sleep(0.3)
        assert 0 < seen == len(forwards)
        hook.remove()


# ---- Limits and keys ----


def test_a_request_may_take_so_long_and_no_longer(compactor):
    with running(compactor, request_seconds=1) as url, client_of(url) as client, slowed(compactor.generator, 0.05):
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(prompt=SHORT, max_tokens=60, **GREEDY)
        assert caught.value.status_code == 504
        with pytest.raises(openai.APIError, match="longer than this server allows"):
            list(client.completions.create(prompt=SHORT, max_tokens=60, stream=True, **GREEDY))
        assert client.completions.create(prompt=SHORT, max_tokens=1, **GREEDY).usage.completion_tokens == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_who_waits_when_a_stopped_server_waits_no_longer_is_told(compactor, stream):
    status, lines = [], []

    def ask(url):
        body = {"prompt": SHORT, "stream": stream, **GREEDY}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            status.append(response.status_code)
            for line in response.iter_lines():
                lines.append(line)

    with slowed(compactor.generator, 0.3), ThreadPoolExecutor(1) as pool:
        with running(compactor, shutdown_seconds=1) as url:
            asked = pool.submit(ask, url)
            until(lambda: lines if stream else in_flight(url))
        asked.result()
    assert status == [200 if stream else 503]
    error = json.loads([line for line in lines if line][-1].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("stopped", "server_error")


def test_context_and_new_tokens_have_limits(client, compactor):
    for call in (
        lambda: client.completions.create(model=NAME, prompt=PARAGRAPH * 30),
        lambda: client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": PARAGRAPH * 30}]),
        # One turn is not compacted
        lambda: client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": PARAGRAPH * 2}]),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            call()
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="`max_tokens`: 65 is more than this server's 64"):
        client.completions.create(model=NAME, prompt=SHORT, max_tokens=65)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_is_read_no_further_than_it_may_be_long(url, chunked):
    body = b'{"prompt": "' + b"a" * 100_000 + b'"}'
    content = iter([body[start : start + 10_000] for start in range(0, len(body), 10_000)]) if chunked else body
    response = httpx.post(f"{url}/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413 and "50000 bytes" in response.json()["error"]["message"]


def test_a_key_is_asked_for_everywhere_but_at_health_and_by_the_page_itself(compactor):
    with running(compactor, api_key="s3cret") as url:
        with client_of(url, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.completions.create(prompt=SHORT, **GREEDY)
        with client_of(url, "s3cret") as client:
            assert client.completions.create(prompt=SHORT, max_tokens=2, **GREEDY).usage.completion_tokens == 2
        for path in ("/metrics", "/v1/models", "/nowhere", "//", "/index.html"):
            assert httpx.get(url + path).status_code == 401
            assert httpx.get(url + path, headers={"Authorization": "Bearer s3cre"}).status_code == 401
        assert httpx.get(f"{url}/health").status_code == httpx.get(url).status_code == 200
        assert httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer s3cret"}).status_code == 200


# ---- Failures and metrics ----


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_model_that_fails_is_a_500_without_a_trace_and_the_server_goes_on(client, compactor, stream, caplog):
    weight = compactor.generator.model.norm.weight
    before = weight.data.clone()
    weight.data.fill_(float("nan"))
    try:
        with caplog.at_level(logging.ERROR), pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(prompt=SHORT, stream=stream, **GREEDY)
    finally:
        weight.data.copy_(before)
    assert caught.value.status_code == 500 and caught.value.body["type"] == "server_error"
    assert "Traceback" not in str(caught.value.body) and "numbers" not in caught.value.body["message"]
    assert "logits are not numbers" in caplog.text and "Traceback" in caplog.text
    assert client.completions.create(prompt=SHORT, max_tokens=3, **GREEDY).usage.completion_tokens == 3


def test_adapters_are_watched_as_well(compactor):
    tokenizer = compactor.tokenizer
    halves = [
        get_peft_model(make_model(tokenizer, seed), LoraConfig(r=2, target_modules="all-linear")).eval()
        for seed in (1, 2)
    ]
    with running(GistCompactor(*halves, tokenizer, compactor.pair)) as url, client_of(url) as client:
        assert client.completions.create(prompt=LONG, max_tokens=3, **GREEDY).gist["compactions"] > 3
        for half, prompt in zip(halves, (LONG[1:], "a"), strict=True):
            next(half.parameters()).data.fill_(float("nan"))
            with pytest.raises(openai.InternalServerError):
                client.completions.create(prompt=prompt, max_tokens=3, **GREEDY)


def test_one_servers_clients_do_not_stop_anothers(compactor):
    with running(compactor) as one, running(compactor) as other, slowed(compactor.generator, 0.01):
        with client_of(other) as client, ThreadPoolExecutor(1) as pool:
            answers = pool.submit(
                lambda: [client.completions.create(prompt=SHORT, max_tokens=10, **GREEDY) for _ in range(10)]
            )
            while not answers.done():
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{one}/v1/completions", json={"prompt": SHORT, "max_tokens": 60}, timeout=0.1)
            assert len({answer.choices[0].text for answer in answers.result()}) == 1


def test_a_failure_in_mid_stream_ends_it_with_an_error(client, compactor):
    steps = itertools.count()

    def fail(*_):
        if next(steps) == 10:
            raise RuntimeError("secret of the server")

    hook = compactor.generator.register_forward_hook(fail)
    pieces = []
    try:
        with pytest.raises(openai.APIError, match="its log says why"):
            for chunk in client.completions.create(prompt=SHORT, max_tokens=30, stream=True, **GREEDY):
                pieces.append(chunk)
    finally:
        hook.remove()
    assert 0 < len(pieces) <= 10


def test_metrics_count_requests_tokens_and_compactions(compactor):
    with running(compactor) as url, client_of(url) as client:
        answers = [client.completions.create(prompt=text, max_tokens=5, **GREEDY) for text in (SHORT, LONG)]
        client.chat.completions.create(messages=CHAT, max_tokens=5, stream=True, **GREEDY).close()
        httpx.post(f"{url}/v1/completions", json={})
        assert "There are /v1/chat/completions, " in httpx.get(f"{url}/nowhere").json()["error"]["message"]
        until(lambda: in_flight(url) == 0)
        samples = metrics_of(httpx.get(f"{url}/metrics").text)
    assert samples[("trl_gist_requests_total", "/v1/completions", "200")] == 2
    assert samples[("trl_gist_requests_total", "/v1/completions", "400")] == 1
    assert samples[("trl_gist_requests_total", "/v1/chat/completions", "200")] == 1
    assert samples[("trl_gist_requests_total", "other", "404")] == 1
    assert samples[("trl_gist_request_seconds_count", "/v1/completions")] == 3
    assert samples[("trl_gist_tokens_total", "in")] >= sum(answer.usage.prompt_tokens for answer in answers)
    assert samples[("trl_gist_tokens_total", "out")] >= 10
    assert samples[("trl_gist_compactions_total",)] == answers[1].gist["compactions"] > 0
    assert samples[("trl_gist_compacted_tokens_total",)] == answers[1].gist["tokens_in"]


def test_closing_the_server_ends_what_runs_and_leaves_the_models_as_they_were(compactor):
    async def close_while_busy():
        with batching(compactor) as batcher:
            worker, served, forever = Worker(2), ServedCompactor(compactor, batcher), asyncio.Event()
            works = [lambda emit: served.continue_text(LONG, 200), lambda emit: served.continue_text(NEW, 200)]
            async with (
                worker.start(works[0], forever.wait, 30),
                worker.start(works[1], forever.wait, 30),
            ):
                until(lambda: batcher.waiting == 1)
                started = time.monotonic()
                worker.close()
                return time.monotonic() - started

    hooks = len(compactor.generator.lm_head._forward_hooks)
    with slowed(compactor.generator, 0.05):
        assert asyncio.run(close_while_busy()) < 5
    assert len(compactor.generator.lm_head._forward_hooks) == hooks
