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

"""`trl-gist serve` as a process, and the rooms that need no socket."""

import functools
import importlib.util
import os
import random
import re
import signal
import subprocess
import sys

import httpx
import openai
import pytest
from launching import ROOT, ending
from tiny_sessions import make_compactor

from trl_gist.cli import main
from trl_gist.common.tokens import decode
from trl_gist.scripts import serve as scripts_serve
from trl_gist.scripts.serve import bind, read_api_key
from trl_gist.serving.config import ServingConfig, check_host
from trl_gist.serving.text_stream import StopReached, TextStream


@pytest.fixture(scope="module")
def pair(compactor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "my-pair"
    compactor.summarizer.save_pretrained(folder)
    compactor.generator.save_pretrained(folder / "generator")
    compactor.tokenizer.save_pretrained(folder)
    compactor.pair.save(folder)
    return folder


def refusal(capsys, *argv):
    with pytest.raises(SystemExit) as error:
        main(["serve", *map(str, argv)])
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line


# ---- The command ----


def test_a_server_answers_finishes_what_it_began_at_sigterm_and_exits_with_0(pair):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trl_gist.cli", "serve", str(pair), "--port", "0", "--max_new_tokens", "300"]
    command += ["--device", "cpu", "--chat_window", "100"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process, ending(process):
        line = process.stdout.readline()
        url = re.fullmatch(r"Serving my-pair at (http://127\.0\.0\.1:\d+)/v1\n", line)[1]
        assert httpx.get(f"{url}/health").status_code == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model="my-pair", prompt="John Snow", max_tokens=300, temperature=0, stream=True
        )
        first = next(stream)
        process.send_signal(signal.SIGTERM)
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        log = process.stderr.read()
    assert process.returncode == 0, log
    assert "Traceback" not in log


THINKS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: " + (
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "kwargs", "tag"),
    [
        (THINKS, {}, "<think>"),
        (THINKS, {"enable_thinking": True}, "<think>"),
        (THINKS, {"enable_thinking": False}, None),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}[THINK]", {}, "[THINK]"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", {}, None),
        ("{{ raise_exception('no') }}<think>", {}, None),
        (None, {}, None),
    ],
)
def test_a_server_says_once_that_chats_are_answered_inside_a_thought(
    monkeypatch, caplog, capsys, template, kwargs, tag
):
    pair = make_compactor()
    # S is asked as it was trained, whatever the template says today
    pair.pair.rendered_prompt = {**pair.prompts.rendered, "of": [pair.pair.summarizer_prompt, kwargs]}
    pair.tokenizer.chat_template, pair.pair.chat_template_kwargs = template, kwargs
    monkeypatch.setattr(
        scripts_serve.uvicorn.Server, "run", lambda server, sockets: [each.close() for each in sockets]
    )
    monkeypatch.setattr(scripts_serve.signal, "signal", lambda *_: None)
    # Its configuration of logging closes whatever other tests have logged to
    config = functools.partial(scripts_serve.uvicorn.Config, log_config=None)
    monkeypatch.setattr(scripts_serve.uvicorn, "Config", config)
    scripts_serve.serve(lambda: pair, "my-pair", ServingConfig(max_new_tokens=24), "127.0.0.1", 0)
    assert "Serving my-pair at" in capsys.readouterr().out
    said = [record.getMessage() for record in caplog.records if "inside a thought" in record.getMessage()]
    assert len(said) == (tag is not None)
    if tag:
        assert f"opens {tag}." in said[0]
        assert "set `chat_template_kwargs` in the pair's gist_config.json" in said[0]


def test_another_machine_needs_a_key_and_the_pair_is_not_loaded_for_it(capsys, monkeypatch):
    monkeypatch.delenv("TRL_GIST_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        assert "needs an API key: set TRL_GIST_API_KEY" in refusal(capsys, "no-pair", "--host", host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_none(host):
    check_host(host, None)
    check_host("0.0.0.0", "key")
    with pytest.raises(ValueError, match="needs an API key"):
        check_host(f"1{host}", None)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("TRL_GIST_API_KEY", raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv("TRL_GIST_API_KEY", "from-the-environment")
    assert read_api_key(None) == "from-the-environment"
    (tmp_path / "key").write_text("from-a-file\n")
    assert read_api_key(str(tmp_path / "key")) == "from-a-file"
    for content in ("", "\n", "two\nlines", "with space", "schlüssel", "schl\udcfcssel"):  # the last is Latin-1
        (tmp_path / "key").write_text(content, errors="surrogateescape")
        with pytest.raises(ValueError, match="key holds no API key"):
            read_api_key(str(tmp_path / "key"))


def test_without_its_packages_it_says_what_to_install(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert 'uvicorn is missing, which the server needs: pip install "trl_gist[serve]"' in refusal(capsys, "no-pair")


def test_an_address_that_is_taken_is_said_before_the_pair_is_loaded(capsys, monkeypatch):
    monkeypatch.delenv("TRL_GIST_API_KEY", raising=False)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Cannot bind to 127.0.0.1 port {port}" in refusal(capsys, "no-pair", "--port", port)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_requests": 0}, "`max_requests` must be at least 1, got 0"),
        ({"request_seconds": float("nan")}, "`request_seconds` must be a finite number, got nan"),
        ({"window": 9}, r"`window` \(9\) is too small"),
        ({"gist_budget": 1}, r"`gist_budget` \(1\) must hold at least one gist"),
        ({"max_new_tokens": 512}, r"`chat_window` \(0\) and `max_new_tokens` \(512\)"),
        ({"max_new_tokens": 100, "chat_window": 413}, r"`chat_window` \(413\) .* 512 positions"),
    ],
)
def test_limits_that_do_not_fit_are_refused_by_name(compactor, settings, message):
    with pytest.raises(ValueError, match=message):
        ServingConfig(**settings).resolve(compactor)


def test_windows_have_the_pairs_defaults(compactor):
    config = ServingConfig(max_new_tokens=100).resolve(compactor)
    assert (config.window, config.chat_window) == (compactor.session().settings.window, 412)


# ---- Text, piece by piece ----


def pieces_of(tokenizer, ids, stops=()):
    pieces = []
    stream = TextStream(tokenizer, pieces.append, list(stops))
    try:
        for token in ids:
            stream.add(token)
        stream.finish()
    except StopReached:
        pieces.append(None)
    return pieces


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_together_what_all_tokens_decode_to(compactor, seed):
    tokenizer = compactor.tokenizer
    rng = random.Random(seed)
    texts = ["Zürich 東京 😀 ", "a\n\n  b", "John Snow ", "é"]
    ids = [token for _ in range(8) for token in tokenizer(rng.choice(texts))["input_ids"]]
    if seed % 2:  # tokens that are no text, as models write them: half characters, special tokens
        ids = [rng.randrange(len(tokenizer)) for _ in range(60)]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == decode(tokenizer, ids)
    if not seed % 2:
        assert "".join(pieces) == tokenizer.decode(ids)
        assert all(pieces) and not any("�" in piece for piece in pieces) and len(pieces) > 8


@pytest.mark.parametrize(
    "stops", [["b"], ["ab", "bc"], ["Snow m"], ["cholera.", "of ch"], ["zz", "map of Soho the houses"]]
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(compactor, stops):
    text = "In ab abc the physician John Snow marked on a map of Soho the houses where people died of cholera."
    first = min(text.index(stop) for stop in stops if stop in text)
    for ids in (compactor.tokenizer(text)["input_ids"], [compactor.tokenizer(c)["input_ids"][0] for c in text]):
        pieces = pieces_of(compactor.tokenizer, ids, stops)
        assert pieces[-1] is None and "".join(pieces[:-1]) == text[:first]


def test_what_may_be_a_stop_string_and_is_none_comes_after_all(compactor):
    ids = compactor.tokenizer("the pump in Broad Str")["input_ids"]
    assert "".join(pieces_of(compactor.tokenizer, ids, ["Street", "pumpkin"])) == "the pump in Broad Str"
