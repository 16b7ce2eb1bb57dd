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

"""What a session over the server recalls, also as before its last compaction: what one here does, field by field."""

import dataclasses

import httpx
import pytest
from serving_run import CONFIG, NAME, metrics_of, running, until
from tiny import PARAGRAPH
from tiny_sessions import LAST_K

from trl_gist.serving.config import ServingConfig
from trl_gist.serving.engine import REPORTED


CUE = "The pump stood in"
ONE = PARAGRAPH[:90]  # folded once
LONG = f"{PARAGRAPH} On 8 March 1901 box 4711 went to Lima. {PARAGRAPH[::-1]}"


def recalled(url, **body):
    return httpx.post(f"{url}/v1/recall", json=body, timeout=60)


def session_of(compactor, text, **settings):
    session = compactor.session(window=ServingConfig(**CONFIG).resolve(compactor).window, **settings)
    session.append(text)
    return session


def reported(compaction):
    return {name: getattr(compaction, name) for name in REPORTED}


def about(recall):
    """As JSON has it, floats by what they about are."""
    found = recall if isinstance(recall, dict) else dataclasses.asdict(recall)
    rest = ("text", "token_ids", "ended")
    own = {name: found[name] for name in rest} | {"token_probabilities": pytest.approx(found["token_probabilities"])}
    return own | {"probability": pytest.approx(found["probability"])}


@pytest.mark.parametrize("undo", [False, True], ids=["as it is", "undone"])
@pytest.mark.parametrize("live", [None, False], ids=["live", "gists alone"])
@pytest.mark.parametrize("text", [ONE, LONG], ids=["once", "often"])
def test_what_is_recalled_is_what_a_session_recalls(url, compactor, text, live, undo):
    session = session_of(compactor, text, keep=["4711"])
    assert (len(session.history) == 1) == (text == ONE) and session.history
    undone = session.undo() if undo else None
    asked = {"max_tokens": 6, "alternatives": 2, "keep": ["4711"], "report": True, "undo": undo}
    answer = recalled(url, input=text, cue=CUE, live=live, **asked).json()
    expected = session.recall(CUE, 6, 2, live is not False)
    (row,) = answer["data"]
    others = row.pop("alternatives")
    assert row.pop("object") == "recall"
    assert row == about(expected) and len(others) == 2
    assert [about(other) for other in expected.alternatives] == [
        {name: other[name] for name in about(other)} for other in others
    ]
    assert (answer["object"], answer["model"]) == ("list", NAME)
    read = len(compactor.token_ids(text, "")) + len(compactor.token_ids(CUE, ""))
    written = len(row["token_ids"]) + sum(len(other["token_ids"]) for other in others)
    assert answer["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
    if session.history:
        assert answer["gist"]["text"] == session.gist
        assert answer["gist"]["compactions"] == len(session.history)
        assert answer["gist"]["report"] == [reported(row) for row in session.history]
    else:
        assert answer["gist"] is None
    if undo:
        known = {"text": undone.gist, "tokens_in": undone.tokens_in}
        assert answer["undone"] == {**known, **reported(undone)}
    else:
        assert answer["undone"] is None


def test_what_the_generator_reads_is_counted(url, compactor, monkeypatch):
    prompts = []
    generate = type(compactor).generate

    def record(self, role, given, **settings):
        if role == "generator":
            prompts.append(len(given[0]))
        return generate(self, role, given, **settings)

    monkeypatch.setattr(type(compactor), "generate", record)
    for asked in ({}, {"live": False}, {"undo": True}):
        prompts.clear()
        answer = recalled(url, input=LONG, cue=CUE, alternatives=0, **asked).json()
        assert answer["gist"]["prompt_tokens"] == prompts[0]


def test_a_cost_is_expected_of_each_compaction_also_of_the_one_that_is_undone(url, compactor):
    session = session_of(compactor, ONE[:70] + " Lima", certify=True)
    answer = recalled(url, input=ONE[:70] + " Lima", cue="a", certify=True).json()
    assert answer["gist"]["report"][0]["expected_kl"] == pytest.approx(session.history[0].expected_kl)
    undone = recalled(url, input=ONE[:70] + " Lima", cue="a", certify=True, undo=True).json()["undone"]
    assert undone["expected_kl"] == pytest.approx(session.history[0].expected_kl)
    assert "report" not in recalled(url, input=LONG, cue="a").json()["gist"]


def test_a_text_that_is_asked_again_is_not_compacted_again(compactor):
    written = []
    hook = compactor.summarizer.register_forward_hook(lambda *_: written.append(1))
    with running(compactor) as url:
        recalled(url, input=LONG, cue="Snow")
        first = len(written)
        for asked in ({"cue": CUE}, {"cue": "a", "undo": True}, {"cue": "a", "live": False}):
            assert recalled(url, input=LONG, **asked).status_code == 200
        until(lambda: metrics_of(httpx.get(f"{url}/metrics").text)[("trl_gist_requests_in_flight",)] == 0)
        samples = metrics_of(httpx.get(f"{url}/metrics").text)
    hook.remove()
    assert first and len(written) == first
    assert samples[("trl_gist_requests_total", "/v1/recall", "200")] == 4
    assert samples[("trl_gist_compactions_total",)] > 4


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": "Snow", "undo": True}, "undo", "this text had none"),
        ({"input": "Snow", "cue": ""}, "cue", "at least 1 character"),
        ({"input": "Snow", "cue": None}, "cue", "required"),
        ({"input": ["Snow", "Lima"]}, "input", "one a request"),
        ({"input": [[5], [6]]}, "input", "one a request"),
        ({"input": ""}, "input", "is empty"),
        ({"input": "Snow", "alternatives": 17}, "alternatives", "less than or equal to 16"),
        ({"input": "Snow", "alternatives": -1}, "alternatives", "greater than or equal to 0"),
        ({"input": "Snow", "max_tokens": 65}, "max_tokens", "65 is more than this server's 64"),
        ({"input": "Snow", "max_tokens": 10**400}, "max_tokens", "is more than this server's 64"),
        ({"input": "Snow", "keep": 5}, "keep", "text or a list of texts"),
        ({"input": {"a": 1}}, "input", "text or token ids, or a list of either"),
        ({"input": []}, "input", "text or token ids, or a list of either"),
        ({"input": "Snow", "live": 0}, "live", "valid boolean"),
        ({"input": "Snow", "stream": True}, "stream", "does not support it"),
        ({"input": "Snow", "cue": PARAGRAPH * 30}, "cue", "this server takes 2000"),
        ({"input": "Snow", "cue": PARAGRAPH * 3}, None, "positions"),
        ({"input": "Snow", "keep": ["names", "regex:a+"]}, "keep.1", "patterns are not matched"),
    ],
)
def test_what_is_wrong_is_named(url, body, param, message):
    response = recalled(url, **{"cue": "a", **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


def test_the_pieces_of_the_last_tokens_stay_live(compactor):
    """What the cases above rest on: that there is something live beside the gists."""
    assert len(session_of(compactor, LONG).live.token_ids) >= LAST_K


@pytest.fixture
def rows_read(compactor):
    """Filled with the rows of each forward."""
    rows = []

    def count(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))

    backbones = (compactor.summarizer.base_model, compactor.generator.base_model)
    hooks = [backbone.register_forward_pre_hook(count, with_kwargs=True) for backbone in backbones]
    yield rows
    for hook in hooks:
        hook.remove()


def test_alternatives_share_a_forward_with_no_more_than_the_server_takes(compactor, rows_read):
    expected = session_of(compactor, ONE).recall(CUE, 6, 5)
    assert max(rows_read) == 5
    rows_read.clear()
    with running(compactor, max_batch_size=2) as url:
        (row,) = recalled(url, input=ONE, cue=CUE, max_tokens=6, alternatives=5).json()["data"]
    assert max(rows_read) == 2
    assert [about(other) for other in expected.alternatives] == [
        {name: other[name] for name in about(other)} for other in row["alternatives"]
    ]


@pytest.mark.parametrize("config", [{"max_batch_size": 3}, {"max_batch_tokens": 200}], ids=lambda config: [*config][0])
def test_certifying_draws_no_more_continuations_at_a_time_than_the_server_takes(compactor, rows_read, config):
    (expected,) = compactor.compress_windows(ONE[:60], certify=True)
    assert max(rows_read) == 8
    for settings, most in (({}, 8), (config, 3)):
        rows_read.clear()
        with running(compactor, **settings) as url:
            body = {"input": ONE[:60], "certify": True}
            (row,) = httpx.post(f"{url}/v1/compress", json=body, timeout=60).json()["data"]
        assert max(rows_read) == most, rows_read
        if settings:
            assert row["expected_kl"] > 0 and row["expected_kl"] != pytest.approx(expected.expected_kl)
            assert abs(row["expected_kl"] - expected.expected_kl) < 4 * expected.expected_kl_se
        else:
            assert row["expected_kl"] == pytest.approx(expected.expected_kl)
