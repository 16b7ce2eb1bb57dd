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

"""A server whose pair is in an engine, as of vLLM: here a stand-in. The engine itself is in tests/engine."""

import httpx
import pytest
from engine_stand_in import StandInEngine, make_engine_pair, put_in_place_of_vllm
from serving_run import metrics_of, running
from tiny import PARAGRAPH


@pytest.fixture
def engine(monkeypatch):
    put_in_place_of_vllm(monkeypatch)
    return StandInEngine()


@pytest.fixture
def url(engine):
    pair = make_engine_pair(engine)
    with running(pair) as url:
        yield url
    pair.generator.engine.close()


ROUTES = {
    "completions": lambda text: {"prompt": text, "max_tokens": 4},
    "chat/completions": lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": 4},
    "compress": lambda text: {"input": text},
}


def asked(url, route, text):
    return httpx.post(f"{url}/v1/{route}", json=ROUTES[route](text), timeout=60)


@pytest.mark.parametrize("route", ROUTES)
def test_after_the_engines_process_is_gone_the_server_is_unhealthy_and_answers_503(url, engine, route):
    assert asked(url, route, PARAGRAPH[:300]).status_code == httpx.get(f"{url}/health").status_code == 200
    engine.dead = True
    health = httpx.get(f"{url}/health")
    assert health.status_code == 503
    error = health.json()["error"]
    assert error["code"] == "engine_failed" and "RuntimeError: The process is gone." in error["message"]
    answer = asked(url, route, PARAGRAPH[50:350])  # what was compressed is remembered
    assert answer.status_code == 503 and answer.json()["error"] == error


def test_how_many_requests_an_engine_has_not_begun_is_not_said(url):
    found = metrics_of(httpx.get(f"{url}/metrics").text)
    assert ("trl_gist_requests_in_flight",) in found and ("trl_gist_requests_waiting",) not in found
