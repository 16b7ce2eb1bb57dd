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

"""What requests have written together: each gets what it gets alone, and nothing of its neighbours."""

import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import torch
from serving_run import batching, metrics_of, running, slowed, until
from tiny import PARAGRAPH
from tiny_mixtures import make_phi3
from tiny_sessions import CONTEXT, GIST, make_compactor
from transformers.generation.streamers import BaseStreamer

from trl_gist import GistCompactor
from trl_gist.serving import batcher as batcher_module
from trl_gist.serving.text_stream import StopReached


GREEDY = {"temperature": 0}
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 1.0}


@pytest.fixture
def batches(compactor, monkeypatch):
    """The role and the number of prompts of each call of the models."""
    seen, generate = [], GistCompactor.generate

    def record(self, role, prompts, **settings):
        seen.append((role, len(prompts)))
        return generate(self, role, prompts, **settings)

    monkeypatch.setattr(GistCompactor, "generate", record)
    return seen


@pytest.fixture(scope="module")
def prompts(compactor):
    """Of several lengths."""
    ids = compactor.token_ids(PARAGRAPH, "the text")
    return [ids[start : start + 3 + 2 * start] for start in range(8)]


def gathered(batcher, calls):
    """What calls that come while the models are busy return or raise, in their order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        with batcher.lock:
            results = []
            for call in calls:
                results.append(pool.submit(batcher.generate, *call[:-1], **call[-1]))
                until(lambda: batcher.waiting == len(results))
        return [result.exception() or result.result() for result in results]


def post(url, path, body):
    return httpx.post(f"{url}{path}", json=body, timeout=60)


def waiting(url):
    return gauge(url, "waiting")


def in_flight(url):
    return gauge(url, "in_flight")


def gauge(url, name):
    return metrics_of(httpx.get(f"{url}/metrics", timeout=60).text)[(f"trl_gist_requests_{name}",)]


@contextmanager
def asking(url, compactor, path, bodies):
    """Yields the futures of requests that come while the models are busy; afterwards these are free."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        with compactor.lock:
            answers = []
            for body in bodies:
                answers.append(pool.submit(post, url, path, body))
                until(lambda: in_flight(url) == len(answers))
                if len(answers) == 1:
                    time.sleep(0.3)  # until it has its turn, of which no gauge tells
                until(lambda: waiting(url) == len(answers) - 1)
            yield answers


class Tokens(BaseStreamer):
    def __init__(self, stop=None, error=StopReached):
        self.values, self.stop, self.error, self.ended = [], stop, error, False

    def put(self, value):
        self.values.append(value.tolist())
        if len(self.values) - 1 == self.stop:
            raise self.error

    def end(self):
        self.ended = True


# ---- The same as alone ----


def test_eight_clients_gists_in_float32_are_those_of_each_alone(batches):
    compactor = make_compactor(dtype=torch.float32)
    texts = [PARAGRAPH[start : start + 60 + start] for start in range(0, 80, 10)]
    alone = [compactor.compress_windows(text) for text in texts]
    batches.clear()
    with running(compactor) as url:
        with asking(url, compactor, "/v1/compress", [{"input": text} for text in texts]) as answers:
            pass
        for answer, gists in zip(answers, alone, strict=True):
            data = answer.result().json()["data"]
            assert [gist["token_ids"] for gist in data] == [gist.token_ids for gist in gists]
            assert [gist["log_prob"] for gist in data] == pytest.approx([gist.log_prob for gist in gists], abs=1e-4)
    rows = [len(gists) for gists in alone]
    assert batches == [("summarizer", rows[0]), *together(rows[1:])] and len(batches) < 5


def together(rows):
    """Calls of so many prompts in forwards of at most 16."""
    batches = []
    for each in rows:
        if batches and batches[-1] + each <= 16:
            batches[-1] += each
        else:
            batches.append(each)
    return [("summarizer", each) for each in batches]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_answers_of_several_lengths_share_forwards_and_are_those_of_each_alone(url, compactor, batches, stream):
    bodies = [
        {"prompt": PARAGRAPH[start : start + 9 + start], "max_tokens": 3 + start, "stream": stream, **GREEDY}
        for start in range(9)
    ]
    alone = [lines_of(post(url, "/v1/completions", body)) for body in bodies]
    assert batches == [("generator", 1)] * 9
    batches.clear()
    with asking(url, compactor, "/v1/completions", bodies) as answers:
        pass
    assert [lines_of(answer.result()) for answer in answers] == alone
    assert batches == [("generator", 1), ("generator", 8)]


def lines_of(response):
    """Without what says which answer it is, and when it was made."""
    assert response.status_code == 200
    return [line.partition('"choices"')[2] for line in response.text.splitlines()]


def test_each_call_has_the_logits_of_as_many_steps_as_alone(compactor, prompts):
    calls = [
        ("generator", prompts[start : start + 2], {"max_new_tokens": 4 + start, "output_logits": True})
        for start in range(3)
    ]
    alone = [compactor.generate(role, given, **settings) for role, given, settings in calls]
    with batching(compactor) as batcher:
        for (written, logits), (expected, expected_logits) in zip(gathered(batcher, calls), alone, strict=True):
            assert written == expected and len(logits) == len(expected_logits)
            for step, expected_step in zip(logits, expected_logits, strict=True):
                torch.testing.assert_close(step, expected_step, atol=1e-5, rtol=0)


def test_one_that_has_ended_does_not_wait_for_the_others(compactor, prompts):
    long, short = Tokens(), Tokens()
    expected = compactor.generate("generator", [prompts[1]], max_new_tokens=3)[0]
    with batching(compactor) as batcher, slowed(compactor.generator, 0.02), ThreadPoolExecutor(2) as pool:
        with batcher.lock:
            calls = [
                pool.submit(batcher.generate, "generator", [prompts[row]], max_new_tokens=tokens, streamer=streamer)
                for row, tokens, streamer in ((0, 60, long), (1, 3, short))
            ]
            until(lambda: batcher.waiting == 2)
        assert calls[1].result() == (expected, None)
        assert short.ended and not long.ended and not calls[0].done()
        assert short.values == [[prompts[1]], *([token] for token in calls[1].result()[0][0])]
        assert len(calls[0].result()[0][0]) == len(long.values) - 1 == 60


def test_an_end_of_sequence_token_ends_its_own_row(compactor, prompts, monkeypatch):
    written = [compactor.generate("generator", [prompt], max_new_tokens=12)[0][0] for prompt in prompts]
    end = next(token for token in written[0][2:] if any(token not in other for other in written[1:]))
    monkeypatch.setattr(compactor.generator.generation_config, "eos_token_id", end)
    streamers = [Tokens() for _ in prompts]
    with batching(compactor) as batcher:
        calls = [
            ("generator", [prompt], {"max_new_tokens": 12, "streamer": streamer})
            for prompt, streamer in zip(prompts, streamers, strict=True)
        ]
        found = [completions[0] for completions, _ in gathered(batcher, calls)]
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in written]
    assert found == expected and {len(ids) for ids in found} > {12}
    for streamer, ids in zip(streamers, found, strict=True):  # as transformers: the end is streamed as well
        assert [token for (token,) in streamer.values[1:]] == [*ids, end][:12] and streamer.ended


# ---- What goes together ----


@pytest.mark.parametrize(
    ("settings", "others", "expected"),
    [
        ({}, {}, [2]),
        ({}, {"max_new_tokens": 3}, [2]),
        ({}, {"output_logits": True}, [1, 1]),
        (SAMPLED, SAMPLED, [2]),
        (SAMPLED, {**SAMPLED, "temperature": 0.5}, [1, 1]),
        ({}, SAMPLED, [1, 1]),
        ({**SAMPLED, "rng": random.Random(1)}, {**SAMPLED, "rng": random.Random(1)}, [1, 1]),
        (SAMPLED, {**SAMPLED, "rng": random.Random(1)}, [1, 1]),
    ],
)
def test_calls_of_one_kind_go_together(compactor, prompts, batches, settings, others, expected):
    calls = [
        ("generator", [prompt], {"max_new_tokens": 2, **each})
        for prompt, each in zip(prompts, (settings, others), strict=False)
    ]
    with batching(compactor) as batcher:
        gathered(batcher, calls)
    assert [rows for _, rows in batches] == expected


def test_calls_of_the_other_model_come_after_in_their_order(compactor, prompts, batches):
    roles = ("generator", "summarizer", "generator", "summarizer", "generator")
    with batching(compactor) as batcher:
        gathered(batcher, [(role, prompts[:1], {"max_new_tokens": 2}) for role in roles])
    assert batches == [("generator", 3), ("summarizer", 2)]


def test_what_went_together_goes_together_the_next_time(compactor, prompts, batches, monkeypatch):
    monkeypatch.setattr(batcher_module, "GATHERING", 1e6)

    def thrice(batcher, row):
        for _ in range(3):
            batcher.generate("generator", [prompts[row]], max_new_tokens=2)
            time.sleep(0.05 * row)  # so that the first comes alone

    with batching(compactor) as batcher, ThreadPoolExecutor(4) as pool:
        with batcher.lock:
            clients = [pool.submit(thrice, batcher, row) for row in range(4)]
            until(lambda: batcher.waiting == 4)
        for client in clients:
            client.result()
    assert batches == [("generator", 4)] * 3


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_rows": 3}, [3, 2]),
        ({"max_rows": 1}, [1, 1, 1, 2]),  # one that is larger by itself goes alone
        ({"max_tokens": 2 * (9 + 4)}, [2, 1, 2]),
    ],
)
def test_a_forward_has_so_many_rows_and_tokens(compactor, prompts, batches, limits, expected):
    calls = [("generator", prompts[row : row + 1], {"max_new_tokens": 4}) for row in (3, 3, 3)]
    with batching(compactor, **limits) as batcher:
        gathered(batcher, [*calls, ("generator", [prompts[3]] * 2, {"max_new_tokens": 4})])
    assert [rows for _, rows in batches] == expected


@pytest.fixture(scope="module")
def longrope():
    """Texts of 20 tokens or fewer are turned otherwise than longer ones, by S without its prompt's own."""
    pair = make_compactor()
    lengths = (20 + pair.prompts.summarizer_overhead(GIST), 20)
    models = (make_phi3(pair.tokenizer, length=length).double().eval() for length in lengths)
    return GistCompactor(*models, pair.tokenizer, pair.pair)


@pytest.mark.parametrize("calls", [1, 6])
def test_by_longrope_each_prompt_is_turned_as_alone(longrope, prompts, batches, calls):
    """Of one call, and of several: short ones, one that becomes long on the way, which goes alone, and long ones."""
    given = [prompts[1], prompts[0], [*prompts[7], *prompts[6]], prompts[6], prompts[2], [*prompts[5], *prompts[4]]]
    assert [len(prompt) for prompt in given] == [5, 3, 32, 15, 7, 24]
    settings = {"max_new_tokens": 6, "output_logits": True}
    alone = [longrope.generate("generator", [ids], **settings) for ids in given]
    batches.clear()
    with batching(longrope) as batcher:
        if calls == 1:
            written, logits_TNV = batcher.generate("generator", given, **settings)
            found = [
                ([ids], [logits_NV[row : row + 1] for logits_NV in logits_TNV]) for row, ids in enumerate(written)
            ]
        else:
            found = gathered(batcher, [("generator", [ids], settings) for ids in given])
    for (ids, logits_TNV), (ids_alone, logits_alone_TNV) in zip(found, alone, strict=True):
        assert ids == ids_alone
        for logits_NV, logits_alone_NV in zip(logits_TNV, logits_alone_TNV, strict=False):
            torch.testing.assert_close(logits_NV, logits_alone_NV, atol=1e-9, rtol=0)
    assert [rows for _, rows in batches] == [5, 1]


@pytest.mark.parametrize("path", ["/v1/compress", "/v1/completions", "/v1/recall"])
def test_by_longrope_what_a_server_answers_is_what_it_answers_alone(longrope, path):
    texts = [PARAGRAPH[start : start + 12 + 8 * start] for start in range(9)]
    bodies = {
        "/v1/compress": [{"input": texts}],
        "/v1/completions": [{"prompt": text, "max_tokens": 6, **GREEDY} for text in texts],
        "/v1/recall": [{"input": text, "cue": "Snow", "max_tokens": 6} for text in texts],
    }[path]

    def said(data):
        return [{name: value for name, value in each.items() if name in ("token_ids", "text")} for each in data]

    with running(longrope) as url:
        alone = []
        for body in [{"input": text} for text in texts] if len(bodies) == 1 else bodies:
            answer = post(url, path, body).json()
            alone += said(answer.get("data") or answer["choices"])
    with running(longrope) as url:  # which remembers no gist
        with asking(url, longrope, path, bodies) as answers:
            pass
        found = [answer.result().json() for answer in answers]
    assert [each for answer in found for each in said(answer.get("data") or answer["choices"])] == alone


@pytest.mark.parametrize("limit", ["max_batch_size", "max_batch_tokens"])
@pytest.mark.parametrize("path", ["/v1/compress", "/v1/chat/completions"])
def test_one_requests_windows_are_no_more_at_once_either(compactor, batches, path, limit):
    pair = compactor.pair
    longest = pair.context_length + pair.max_gist_length
    longest += compactor.prompts.summarizer_overhead(pair.max_gist_length)
    most = {"max_batch_size": 2, "max_batch_tokens": 3 * longest - 1}[limit]
    said = [{"role": "user", "content": PARAGRAPH[:200]}, {"role": "assistant", "content": PARAGRAPH[:200]}]
    body = {"input": PARAGRAPH} if path == "/v1/compress" else {"messages": [*said, said[0]], "max_tokens": 1}
    with running(compactor, **{limit: most}) as url:
        assert post(url, path, body).status_code == 200
    rows = [rows for role, rows in batches if role == "summarizer"]
    assert len(rows) > 1 and max(rows) == 2


def test_random_numbers_of_requests_with_a_seed_do_not_mix(url, compactor, batches):
    bodies = [{"prompt": PARAGRAPH[:10], "max_tokens": 20, "seed": seed} for seed in (1, 2, 1, 3)]
    alone = [post(url, "/v1/completions", body).json()["choices"] for body in bodies]
    with asking(url, compactor, "/v1/completions", [*bodies, {"prompt": PARAGRAPH[:10], "max_tokens": 20}]) as answers:
        pass
    assert [answer.result().json()["choices"] for answer in answers[:-1]] == alone
    assert alone[0] == alone[2] != alone[1]
    assert batches == [("generator", 1)] * 9


def test_a_context_that_two_ask_for_at_once_is_written_once(compactor, batches):
    with running(compactor) as url, ThreadPoolExecutor(2) as pool:
        with compactor.lock:
            answers = [pool.submit(post, url, "/v1/compress", {"input": PARAGRAPH[:60]}) for _ in range(2)]
            until(lambda: in_flight(url) == 2)
        first, second = (answer.result().json()["data"] for answer in answers)
    assert first == second and batches == [("summarizer", len(first))]


# ---- Neighbours ----


@pytest.mark.parametrize("tokens, value", [(7, torch.nan), (7, torch.inf), (slice(None), -torch.inf)])
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_logits_that_are_not_numbers_are_an_error_of_their_own_row(compactor, prompts, sampling, tokens, value):
    def break_row(module, inputs, logits_NTV):
        if len(logits_NTV) == 4:
            logits_NTV[2, ..., tokens] = value

    calls = [
        ("generator", given, {"max_new_tokens": 6, **sampling}) for given in (prompts[:1], prompts[1:3], prompts[3:4])
    ]
    hook = compactor.generator.lm_head.register_forward_hook(break_row)
    try:
        with batching(compactor) as batcher:
            first, broken, last = gathered(batcher, calls)
    finally:
        hook.remove()
    assert isinstance(broken, FloatingPointError)
    if not sampling:
        for (written, _), row in ((first, 0), (last, 3)):
            assert written == compactor.generate("generator", [prompts[row]], max_new_tokens=6)[0]


def test_a_prompt_that_does_not_fit_is_an_error_of_its_own_call(compactor, prompts):
    calls = [("generator", [prompt], {"max_new_tokens": 6}) for prompt in (prompts[0], [5] * 600, prompts[1])]
    with batching(compactor) as batcher:
        first, long, last = gathered(batcher, calls)
    assert isinstance(long, ValueError) and "The generator would need 606 positions" in str(long)
    for (written, _), row in ((first, 0), (last, 1)):
        assert written == compactor.generate("generator", [prompts[row]], max_new_tokens=6)[0]


def test_memory_that_does_not_do_for_all_may_do_for_each(compactor, prompts, batches):
    of_all, still_there = [], []

    def run_out(module, inputs, hidden_NTH):
        if len(hidden_NTH) > 1:
            of_all.append(weakref.ref(hidden_NTH))
            raise torch.OutOfMemoryError
        still_there.append(of_all[0]() is not None)

    calls = [("generator", [prompt], {"max_new_tokens": 3}) for prompt in prompts[:3]]
    hook = compactor.generator.model.norm.register_forward_hook(run_out)
    try:
        with batching(compactor) as batcher:
            found = gathered(batcher, calls)
    finally:
        hook.remove()
    assert [rows for _, rows in batches] == [3, 1, 1, 1]
    assert len(still_there) == 3 * 3 and not any(still_there), "what did not do for all is needed for each"
    assert [written for written, _ in found] == [
        compactor.generate("generator", [prompt], max_new_tokens=3)[0] for prompt in prompts[:3]
    ]


@pytest.mark.parametrize("bad", [([], {"max_new_tokens": 4}), ([[5]], {"max_new_tokens": "4"})])
def test_what_is_no_call_is_an_error_of_its_own_and_the_next_goes_on(compactor, prompts, bad):
    with batching(compactor) as batcher, ThreadPoolExecutor(2) as pool:
        with batcher.lock:
            good = pool.submit(batcher.generate, "generator", prompts[:1], max_new_tokens=4)
            until(lambda: batcher.waiting == 1)
            failed = pool.submit(batcher.generate, "generator", bad[0], **bad[1])
            assert isinstance(failed.exception(60), ValueError)
        assert len(good.result()[0][0]) == 4


def test_a_failure_on_the_way_is_every_calls_and_the_next_goes_on(compactor, prompts):
    steps = []

    def fail(*_):
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("broken")

    calls = [("generator", [prompt], {"max_new_tokens": 6}) for prompt in prompts[:2]]
    hook = compactor.generator.register_forward_hook(fail)
    try:
        with batching(compactor) as batcher:
            assert [str(error) for error in gathered(batcher, calls)] == ["broken"] * 2
            assert len(batcher.generate("generator", prompts[:1], max_new_tokens=6)[0][0]) == 6
    finally:
        hook.remove()


@pytest.mark.parametrize("error", [StopReached, RuntimeError])
def test_a_streamer_that_raises_ends_its_own_row(compactor, prompts, error):
    streamers = [Tokens(), Tokens(stop=2, error=error)]
    with batching(compactor) as batcher:
        calls = [
            ("generator", [prompt], {"max_new_tokens": 8, "streamer": streamer})
            for prompt, streamer in zip(prompts, streamers, strict=False)
        ]
        whole, stopped = gathered(batcher, calls)
    assert isinstance(stopped, error) and len(streamers[1].values) == 3 and not streamers[1].ended
    assert whole[0] == compactor.generate("generator", [prompts[0]], max_new_tokens=8)[0]


def test_a_streamer_may_use_the_models(compactor, prompts):
    class Reader(Tokens):
        def put(self, value):
            with batcher.lock:
                super().put(value)

    streamer = Reader()
    with batching(compactor) as batcher:
        written, _ = batcher.generate("generator", prompts[:1], max_new_tokens=4, streamer=streamer)
        assert [token for (token,) in streamer.values[1:]] == written[0]
        with batcher.lock:
            assert batcher.generate("generator", prompts[:1], max_new_tokens=4)[0] == written


# ---- Who leaves ----


def test_who_comes_when_it_is_closed_is_told(compactor, prompts):
    with batching(compactor) as batcher:
        pass
    with pytest.raises(RuntimeError, match="has been closed"):
        batcher.generate("generator", prompts[:1], max_new_tokens=4)
    with pytest.raises(RuntimeError, match="has been closed"), batcher.lock:
        pass


def test_a_client_that_left_before_its_turn_is_not_read(compactor, batches):
    bodies = [{"prompt": PARAGRAPH[:length], "max_tokens": 2, **GREEDY} for length in (1, 9, 14)]
    with running(compactor) as url:
        with asking(url, compactor, "/v1/completions", bodies[:2]) as stay, pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=bodies[2], timeout=httpx.Timeout(60, read=0.3))
        assert [answer.result().status_code for answer in stay] == [200, 200]
        until(lambda: in_flight(url) == 0)
    assert batches == [("generator", 1), ("generator", 1)]


def test_a_client_that_leaves_stops_its_own_answer_and_all_stop_the_forwards(compactor):
    rows = []
    bodies = [
        {"messages": [{"role": "user", "content": word}], "max_tokens": 60, "stream": True, **GREEDY}
        for word in ("a", "Soho", "sewers")
    ]
    bodies[0]["max_tokens"] = 1

    def leave(url, body):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
            next(response.iter_lines())

    def ask(url, works):
        """Of a model that is busy at first."""
        rows.clear()
        with ThreadPoolExecutor(3) as pool:
            with compactor.lock:
                answers = []
                for work, body in zip(works, bodies, strict=True):
                    answers.append(pool.submit(work, url, body))
                    until(lambda: in_flight(url) == len(answers) and waiting(url) == len(answers) - 1)
        until(lambda: in_flight(url) == 0)
        return [answer.result() for answer in answers]

    with running(compactor) as url, slowed(compactor.generator, 0.05):
        expected = lines_of(post(url, "/v1/chat/completions", bodies[1]))
        hook = compactor.generator.lm_head.register_forward_hook(lambda _, __, logits: rows.append(len(logits)))
        _, stayed, _ = ask(url, (leave, lambda url, body: lines_of(post(url, "/v1/chat/completions", body)), leave))
        assert stayed == expected and rows == [1] + [2] * 60
        ask(url, (leave, leave, leave))
        threading.Event().wait(0.2)  # for the token that was being written
        seen = len(rows)
        assert rows == [1] + [2] * (seen - 1) and 1 < seen < 61
        threading.Event().wait(0.3)
        assert len(rows) == seen
        hook.remove()


def test_who_waits_for_a_gist_of_one_that_leaves_has_it_written(compactor):
    body = {"input": PARAGRAPH[:60]}
    with running(compactor) as url, ThreadPoolExecutor(1) as pool, slowed(compactor.summarizer, 0.1):
        with compactor.lock:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/compress", json=body, timeout=httpx.Timeout(60, read=1))
            stays = pool.submit(post, url, "/v1/compress", body)
            until(lambda: in_flight(url) == 1)
        expected = [gist.token_ids for gist in compactor.compress_windows(PARAGRAPH[:60])]
        assert [gist["token_ids"] for gist in stays.result().json()["data"]] == expected


# ---- What runs the models itself ----


def test_what_certifies_has_its_turn_among_calls_and_runs_alone(url, compactor, batches):
    texts = [PARAGRAPH[start : start + CONTEXT] for start in (3, 5, 7, 9)]
    bodies = [{"input": text, "certify": index == 1} for index, text in enumerate(texts)]
    with asking(url, compactor, "/v1/compress", bodies) as answers:
        pass
    data = [answer.result().json()["data"] for answer in answers]
    expected = compactor.compress_windows(texts[1], certify=True)
    assert [gist["expected_kl"] for gist in data[1]] == pytest.approx([gist.expected_kl for gist in expected])
    assert [gist["expected_kl"] for rows in data[2:] for gist in rows] == [None] * sum(map(len, data[2:]))


def test_the_lock_is_reentrant_and_calls_within_it_need_not_wait(compactor, prompts):
    with batching(compactor) as batcher, ThreadPoolExecutor(1) as pool:
        with batcher.lock, batcher.lock:
            within, _ = batcher.generate("generator", prompts[:1], max_new_tokens=3)
            other = pool.submit(batcher.generate, "generator", prompts[:1], max_new_tokens=3)
            until(lambda: batcher.waiting == 1)
            assert not other.done()
        assert other.result()[0] == within


def test_streams_that_come_while_another_is_written_go_on_together(url, compactor):
    with slowed(compactor.generator, 0.01):
        bodies = [{"prompt": PARAGRAPH[:length], "max_tokens": 20, "stream": True, **GREEDY} for length in (1, 9, 14)]
        pieces, lock = [], threading.Lock()

        def read(body):
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    if line:
                        with lock:
                            pieces.append(bodies.index(body))

        with ThreadPoolExecutor(3) as pool:
            with compactor.lock:
                for count, body in enumerate(bodies):
                    pool.submit(read, body)
                    until(lambda: waiting(url) == count)  # noqa: B023
                    until(lambda: in_flight(url) == count + 1)  # noqa: B023
    last_of_first = len(pieces) - pieces[::-1].index(0)
    both = pieces[last_of_first:]
    turns = sum(before != after for before, after in zip(both, both[1:], strict=False))
    assert {*both} == {1, 2} and turns > 10
