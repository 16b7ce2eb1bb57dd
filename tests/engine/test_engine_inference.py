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
A pair of two adapters in vLLM's engine, for real: what it writes beside what transformers does, what is refused, what happens
when a step fails, and the server on top.
"""

import asyncio
import json
import queue
import threading
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
import pytest
import torch
from engine_checkpoints import save_checkpoint
from serving_run import NAME, running, until
from tiny import PARAGRAPH, make_documents
from tiny_pairs import make_pair, save_half
from transformers.generation.streamers import BaseStreamer

from trl_gist import GistCompactor
from trl_gist.cli.main import main
from trl_gist.inference.contrast import contrast
from trl_gist.models.vllm import EngineError, NoModels
from trl_gist.scoring.gist_log_probs import given_log_probs


pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `make vllm-check` installs it")
TEXT = PARAGRAPH * 5
MESSAGES = [
    {"role": role, "content": content} for content in make_documents(4, seed=3) for role in ("user", "assistant")
]


@pytest.fixture(scope="module", params=[False, True], ids=["head", "tied"])
def folder(request, tokenizer, tmp_path_factory):
    """A pair of two adapters, whose base has a head of its own or not."""
    root = tmp_path_factory.mktemp("engine-pair")
    base = save_checkpoint(root / "base", tokenizer, tie_word_embeddings=request.param, max_position_embeddings=1024)
    for seed, half in enumerate((root / "pair", root / "pair" / "generator"), 1):
        save_half(base, tokenizer, half, seed, lora=True)
    tokenizer.save_pretrained(root / "pair")
    make_pair().save(root / "pair")
    return root / "pair"


@pytest.fixture(scope="module")
def plain(folder):
    return GistCompactor.from_pretrained(folder)


@pytest.fixture(scope="module")
def fast(folder):
    """The same in an engine."""
    state = torch.random.get_rng_state()
    compactor = GistCompactor.from_pretrained(folder, backend="vllm")
    assert torch.equal(torch.random.get_rng_state(), state), "vLLM seeds the process"
    yield compactor
    compactor.generator.engine.close()
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def contexts(compactor):
    """Of several lengths, the longest as long as the pair takes."""
    ids = compactor.token_ids(TEXT, "The text")
    return [ids[start : start + length] for start, length in enumerate((30, 61, 90, 150, 180, 180, 120))]


def assert_same_gists(found, expected):
    for gist, other in zip(found, expected, strict=True):
        assert gist.token_ids == other.token_ids
        assert gist.log_prob == pytest.approx(other.log_prob, abs=1e-3)
        names = vars(gist).keys() - {"log_prob"}
        assert {name: getattr(gist, name) for name in names} == {name: getattr(other, name) for name in names}


def said(continuation):
    return continuation.token_ids, continuation.gist.token_ids


# ---- Gists ----


def test_gists_are_those_of_transformers(fast, plain):
    expected = plain.compress_batch(contexts(plain), batch_size=1)
    assert len({tuple(gist.token_ids) for gist in expected}) == len(expected)
    assert_same_gists(fast.compress_batch(contexts(fast), batch_size=64), expected)
    assert_same_gists(fast.compress_batch(contexts(fast), batch_size=2), expected)  # from its prefix cache


@pytest.mark.parametrize("settings", [{"budget": 7}, {"keep": ["numbers", "Soho"]}, {"last_k": "Who was it?"}])
def test_budgets_what_is_kept_and_questions(fast, plain, settings):
    expected = plain.compress_windows(TEXT, **settings)
    assert len(expected) > 3
    if "keep" in settings:
        assert any(gist.kept for gist in expected), "so that gists are scored that were not written"
    assert_same_gists(fast.compress_windows(TEXT, **settings), expected)


def test_sampled_gists_follow_the_seed_and_have_the_log_probs_of_the_model(fast, plain):
    def sampled(seed):
        torch.manual_seed(seed)
        return fast.compress_batch([TEXT[:400]] * 4, do_sample=True)

    gists = sampled(3)
    assert sampled(3) == gists != sampled(4)
    assert len({tuple(gist.token_ids) for gist in gists}) == 4
    ids = fast.token_ids(TEXT[:400], "The text")
    prompt = fast.prompts.summarizer(ids, ids[-fast.pair.last_k :], fast.pair.tail_length)
    expected = given_log_probs(plain.summarizer, [prompt] * 4, [gist.token_ids for gist in gists])
    assert [gist.log_prob for gist in gists] == pytest.approx(expected, abs=2e-3)


def test_a_text_as_long_as_the_model_has_positions_is_scored(fast, plain):
    prompt, gist = (torch.randint(10, 300, (size,)).tolist() for size in (1000, 24))
    assert len(prompt) + len(gist) == fast.summarizer.config.max_position_embeddings
    (found,) = fast.log_probs([prompt], [gist])
    assert found == pytest.approx(*plain.log_probs([prompt], [gist]), abs=2e-3)


# ---- What the generator writes ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.7},
        {"min_new_tokens": 20},
        {"stop_strings": ["a"]},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_p": 1e-6, "temperature": 0.5},
        {"do_sample": True, "min_p": 1.0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_continuations_are_those_of_transformers(fast, plain, settings):
    for start in (0, 37, 80):
        text = TEXT[start : start + 300]
        assert said(fast.continue_text(text, 24, **settings)) == said(plain.continue_text(text, 24, **settings))


def test_every_end_of_sequence_token_ends_a_text(fast, plain, monkeypatch):
    (ids,), _ = plain.generate("generator", [[7, 8, 9]], max_new_tokens=12)
    assert len(ids) == 12
    for compactor in (fast, plain):
        monkeypatch.setattr(compactor.generator.generation_config, "eos_token_id", [2, ids[5]])
        assert compactor.generate("generator", [[7, 8, 9]], max_new_tokens=12)[0] == [ids[: ids.index(ids[5])]]


class Tokens(BaseStreamer):
    def __init__(self):
        self.given, self.ended = [], 0

    def put(self, value):
        self.given.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


def test_a_session_streams_what_it_writes(fast, plain):
    written = []
    for compactor in (fast, plain):
        session, tokens = compactor.session(window=120), Tokens()
        session.append(TEXT)
        continuation = session.generate(60, streamer=tokens)
        assert [token for put in tokens.given for token in put] == continuation.token_ids and tokens.ended == 1
        written.append((continuation.token_ids, session.gist, [row.tokens_in for row in session.history]))
    assert written[0] == written[1] and len(written[0][2]) > 1


def test_a_chat_is_compacted_as_by_transformers(fast, plain):
    expected = plain.compact_messages(MESSAGES, 800, keep="numbers")
    assert expected.compacted and fast.compact_messages(MESSAGES, 800, keep="numbers") == expected


def test_threads_share_the_engine(fast, plain):
    texts = [TEXT[start : start + 350] for start in range(0, 320, 20)]
    found = [None] * len(texts)

    def work(place):
        found[place] = said(fast.continue_text(texts[place], 16))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [said(plain.continue_text(text, 16)) for text in texts]


# ---- Refused ----


def test_what_vllm_does_not_have_is_refused_by_name(fast):
    for name, value in {"num_beams": 2, "no_repeat_ngram_size": 2, "typical_p": 0.9, "output_logits": True}.items():
        with pytest.raises(ValueError, match=rf"`{name}` is no setting that vLLM and transformers have in common"):
            fast.continue_text(TEXT[:300], 4, **{name: value})
    with pytest.raises(ValueError, match=r"`temperature` must be above 0 with `do_sample`, got 0"):
        fast.continue_text(TEXT[:300], 4, do_sample=True, temperature=0.0)
    with pytest.raises(ValueError, match="would need .* positions"):
        fast.generate("generator", [[7] * 1020], max_new_tokens=5)
    with pytest.raises(ValueError, match="is no setting of how the generator writes"):
        fast.continue_text(TEXT[:300], 4, max_length=3)


def test_what_reads_the_models_is_refused(fast, tmp_path):
    ids, session = fast.token_ids(TEXT, "The text")[:60], fast.session(window=120)
    session.append(TEXT)
    for call in (
        lambda: fast.compress(ids, certify=True),
        lambda: fast.compress_windows(TEXT, search=True),
        lambda: fast.compact_messages(MESSAGES, 300, certify=True),
        lambda: fast.session(window=120, measure=True),
        lambda: fast.session(window=120, certify=True),
        lambda: session.recall("The pump"),
        lambda: session.save(tmp_path / "session.json"),
        lambda: contrast(fast, [5, 6], ids),
    ):
        with pytest.raises(NoModels, match=r'which vLLM does not give\. Leave it out, or .*backend="transformers"'):
            call()


# ---- Failures ----


@contextmanager
def failing(engine, at=1):
    """In it the step of this number fails."""
    runner, calls = engine.engine.model_executor.driver_worker.model_runner, []
    execute = runner.execute_model

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise RuntimeError("the engine broke")
        return execute(*args, **kwargs)

    runner.execute_model = fail
    try:
        yield
    finally:
        runner.execute_model = execute


@pytest.mark.parametrize("at", [1, 5], ids=["while it reads", "while it writes"])
def test_after_a_step_that_fails_the_engine_goes_on(fast, plain, at):
    expected = plain.compress_batch(contexts(plain))
    fast.generator.engine.engine.reset_prefix_cache()  # so that what failed would be found in it
    with failing(fast.generator.engine, at), pytest.raises(EngineError, match="RuntimeError: the engine broke"):
        fast.compress_batch(contexts(fast))
    until(lambda: not fast.generator.engine.open)  # what came after the step was given up
    assert_same_gists(fast.compress_batch(contexts(fast)), expected)


def test_an_engine_that_cannot_go_on_says_so_to_all_who_ask(fast, monkeypatch):
    shared = fast.generator.engine
    with monkeypatch.context() as patch, failing(shared):
        patch.setattr(shared.engine, "reset_prefix_cache", lambda: False)
        with pytest.raises(EngineError, match="the engine broke"):
            fast.continue_text(TEXT[:300], 4)
    with pytest.raises(EngineError, match="the engine broke"):
        fast.continue_text(TEXT[:300], 4)
    shared._failure = None
    assert shared.engine.reset_prefix_cache()
    assert fast.continue_text(TEXT[:300], 4).token_ids


def test_logits_that_are_not_numbers_are_an_error(fast):
    runner = fast.generator.engine.engine.model_executor.driver_worker.model_runner
    hook = runner.model.lm_head.register_forward_hook(lambda *_: None)
    compute = runner.model.compute_logits
    runner.model.compute_logits = lambda *args, **kwargs: compute(*args, **kwargs) * float("nan")
    try:
        with pytest.raises(FloatingPointError, match="logits are not numbers"):
            fast.continue_text(TEXT[:300], 4)
    finally:
        hook.remove()
        del runner.model.compute_logits


def test_what_a_streamer_raises_aborts_the_request(fast):
    class Stops(Tokens):
        def put(self, value):
            super().put(value)
            if len(self.given) == 3:
                raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        fast.generate("generator", [[7, 8, 9]], max_new_tokens=500, streamer=Stops())
    until(lambda: not fast.generator.engine.open)
    assert not fast.generator.engine.engine.has_unfinished_requests()


def test_an_engine_that_is_closed_says_so(fast, monkeypatch):
    done = threading.Thread(target=lambda: None)
    done.start()
    done.join()
    with monkeypatch.context() as patch, pytest.raises(EngineError, match="has been closed"):
        patch.setattr(fast.generator.engine, "thread", done)
        patch.setattr(fast.generator.engine, "arrived", queue.SimpleQueue())
        fast.continue_text(TEXT[:300], 4)
    assert fast.continue_text(TEXT[:300], 4).token_ids


# ---- The command line ----


def test_compress_prints_what_transformers_does(fast, plain, folder, tmp_path, capsys, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    printed = []
    for backend, compactor in (("vllm", fast), ("transformers", plain)):
        monkeypatch.setattr("trl_gist.cli.compress.load_pair", lambda args, backend, it=compactor: it)
        assert main(["compress", str(folder), str(file), "--backend", backend, "--keep", "numbers"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""
    with pytest.raises(SystemExit):
        main(["compress", str(folder), str(file), "--backend", "vllm", "--search"])
    assert "--search reads the models' own logits, which vLLM does not give" in capsys.readouterr().err


# ---- The server ----


@pytest.fixture(scope="module")
def url(fast):
    with running(fast, max_requests=40) as url:
        yield url


def asked(url, route, **body):
    return httpx.post(f"{url}/v1/{route}", json=body, timeout=300)


def test_eight_clients_at_once_get_what_each_gets_alone(url, fast, plain):
    texts = [TEXT[start : start + 700] for start in range(0, 400, 50)]

    async def all_at_once():
        async with httpx.AsyncClient(timeout=300) as client:
            bodies = [{"prompt": text, "max_tokens": 20, "temperature": 0} for text in texts]
            bodies += [{"input": text} for text in texts]
            routes = ["completions"] * 8 + ["compress"] * 8
            posts = [client.post(f"{url}/v1/{route}", json=body) for route, body in zip(routes, bodies, strict=True)]
            return await asyncio.gather(*posts)

    answers = asyncio.run(all_at_once())
    assert {answer.status_code for answer in answers} == {200}
    for text, answer, gists in zip(texts, answers[:8], answers[8:], strict=True):
        session = plain.session()
        session.append(text)
        continuation = session.generate(20)
        assert answer.json()["choices"][0]["text"] == continuation.text
        assert [row["token_ids"] for row in gists.json()["data"]] == [
            gist.token_ids for gist in plain.compress_windows(text)
        ]


def test_the_same_seed_gives_the_same_answer(url):
    body = {
        "messages": [{"role": "user", "content": "Who was Snow?"}],
        "max_tokens": 12,
        "temperature": 0.9,
        "top_p": 0.95,
    }
    first, again, other, none = (
        asked(url, "chat/completions", **body, **seed).json()["choices"][0]["message"]["content"]
        for seed in ({"seed": 5}, {"seed": 5}, {"seed": 6}, {})
    )
    assert first == again and len({first, other, none}) == 3


def test_a_stream_is_what_comes_at_once_and_a_client_that_leaves_frees_the_engine(url, fast):
    body = {"prompt": TEXT[:300], "max_tokens": 30, "temperature": 0}
    whole = asked(url, "completions", **body).json()["choices"][0]["text"]
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}, timeout=300) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    pieces = [json.loads(event)["choices"][0]["text"] for event in events]
    assert "".join(pieces) == whole and len(pieces) > 3
    long = {"prompt": TEXT[:300], "max_tokens": 64, "temperature": 0, "stream": True}
    for _ in range(3):
        with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=300) as answer:
            next(answer.iter_lines())
    until(lambda: not fast.generator.engine.open)
    until(lambda: "requests_in_flight 0.0" in httpx.get(f"{url}/metrics").text)
    assert asked(url, "completions", **body).json()["choices"][0]["text"] == whole


def test_a_step_that_fails_is_a_500_and_the_server_goes_on(url, fast):
    body = {"prompt": TEXT[50:340], "max_tokens": 8, "temperature": 0}
    with failing(fast.generator.engine):
        answer = asked(url, "completions", **body)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert asked(url, "completions", **body).status_code == 200
    assert httpx.get(f"{url}/health").status_code == 200


def test_health_says_that_the_engine_cannot_go_on(url, fast):
    fast.generator.engine._failure = RuntimeError("gone")
    health, answer = httpx.get(f"{url}/health"), asked(url, "completions", prompt=TEXT[:200], max_tokens=2)
    fast.generator.engine._failure = None
    assert health.status_code == answer.status_code == 503
    assert health.json() == answer.json() and "RuntimeError: gone" in health.json()["error"]["message"]


def test_what_reads_the_models_is_refused_in_the_form_of_the_api(url):
    for route, body in (
        ("compare", {"input": TEXT[:300], "gists": "Snow"}),
        ("recall", {"input": TEXT[:300], "cue": "The pump"}),
    ):
        answer = asked(url, route, **body)
        error = answer.json()["error"]
        assert answer.status_code == 501 and error["code"] == "not_supported"
        assert f"`/v1/{route}` reads the models' own logits" in error["message"]
    for route, body in (
        ("compress", {"input": TEXT[:300]}),
        ("completions", {"prompt": TEXT[:300], "max_tokens": 2}),
        ("chat/completions", {"messages": MESSAGES[:1], "max_tokens": 2, "model": NAME}),
    ):
        answer = asked(url, route, **body, certify=True)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "certify"
        assert "--backend transformers" in answer.json()["error"]["message"]
