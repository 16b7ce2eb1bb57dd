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

"""Gists as they are written, where what they keep stands in the text, and answers from them beside the whole text's."""

import json
import time
from contextlib import nullcontext

import httpx
import pytest
import torch
from peft import PeftModel
from serving_run import metrics_of, running, slowed, until
from tiny import PARAGRAPH, make_tokenizer
from tiny_pairs import make_adapter_pair
from tiny_sessions import LAST_K, make_compactor

from trl_gist.common.text_units import Units
from trl_gist.common.tokens import characters_of
from trl_gist.evaluation.gists.patterns import survival_pieces, text_survival
from trl_gist.inference.contrast import contrast
from trl_gist.prompts import before_last_k


TEXT = PARAGRAPH + "Ä 😀 was <b>not</b> 2 & 3."


def post(url, path, **body):
    return httpx.post(f"{url}{path}", json=body, timeout=60)


def events(response):
    return [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line[6:7] == "{"]


# ---- Streams of gists ----


@pytest.mark.parametrize("asked", [{}, {"budget": 3, "keep": ["numbers"], "certify": True, "highlights": True}])
def test_a_stream_of_gists_is_what_one_answer_has(url, asked):
    whole = post(url, "/v1/compress", input=[TEXT, "Soho."], **asked).json()
    response = post(url, "/v1/compress", input=[TEXT, "Soho."], stream=True, **asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    *gists, last = events(response)
    assert last == {**whole, "data": []} and len(gists) == len(whole["data"]) > 5
    for found, expected in zip(gists, whole["data"], strict=True):
        about = {name: found.pop(name) for name in ("log_prob", "expected_kl", "expected_kl_se")}
        assert about == pytest.approx({name: expected.pop(name) for name in about}, abs=1e-6, nan_ok=True)
        assert found == expected


def test_gists_come_as_they_are_written(url, compactor):
    times = []
    with slowed(compactor.summarizer, 0.02):
        body = {"input": TEXT[::-1], "stream": True}
        with httpx.stream("POST", f"{url}/v1/compress", json=body, timeout=60) as response:
            for line in response.iter_lines():
                if line:
                    times.append(time.monotonic())
    assert len(times) > 6 and times[-1] - times[0] > 0.3


def test_what_a_gist_costs_is_added_to_the_one_that_is_remembered(compactor):
    forwards = []
    hook = compactor.summarizer.lm_head.register_forward_hook(lambda *_: forwards.append(1))
    with running(compactor) as url:
        plain = post(url, "/v1/compress", input=TEXT).json()["data"]
        written = len(forwards)
        certified = post(url, "/v1/compress", input=TEXT, certify=True).json()["data"]
    hook.remove()
    assert written == len(forwards) > 0
    expected = compactor.compress_windows(TEXT, certify=True)
    assert [gist["text"] for gist in certified] == [gist["text"] for gist in plain]
    assert [gist["expected_kl"] for gist in certified] == pytest.approx([gist.expected_kl for gist in expected])
    assert all(gist["expected_kl"] is None for gist in plain)


def test_what_fails_before_the_first_gist_has_its_own_status(url):
    assert post(url, "/v1/compress", input=PARAGRAPH * 30, stream=True).status_code == 400


# ---- Where what is kept stands ----


def test_highlights_are_the_text_itself_and_mark_what_survives(url, compactor):
    gists = post(url, "/v1/compress", input=TEXT, highlights=True, keep=["names", "numbers"]).json()["data"]
    stretches = ["".join(piece for piece, _ in gist["highlights"]) for gist in gists]
    assert "".join(stretches) == TEXT
    ids = [compactor.token_ids(stretch, "a stretch") for stretch in stretches]
    assert sum(gist["stands_for"] for gist in gists) == len(compactor.token_ids(TEXT, "the text"))
    assert [gist["stands_for"] for gist in gists][:3] == [len(each) for each in ids][:3]
    for gist, stretch in zip(gists, stretches, strict=True):
        units = Units(stretch)
        expected = text_survival(units, Units(gist["text"]))
        shares = [share for piece, share in gist["highlights"] for _ in piece]
        assert [shares[start] for start, _ in units.spans] == expected
        marked = "".join(piece for piece, share in gist["highlights"] if share)
        assert all(span.split()[0] in marked for span in gist["kept"])
    assert any(share for gist in gists for _, share in gist["highlights"])
    assert "highlights" not in post(url, "/v1/compress", input=TEXT).json()["data"][0]


def test_pieces_are_the_context_and_blanks_between_what_is_kept_are_kept_too():
    pieces = survival_pieces("Soho, in 1854: Soho <b>", "in 1854 Soho")
    assert pieces == [("Soho", 0.5), (", ", 0), ("in 1854", 1), (": ", 0), ("Soho", 0.5), (" <b>", 0)]
    assert survival_pieces("", "Soho") == [] and survival_pieces("  a b ", "") == [("  a b ", 0.0)]


# ---- Answers from gists, beside the whole text's ----


@pytest.mark.parametrize("make", [make_compactor, lambda: make_adapter_pair(make_tokenizer())], ids=["two", "adapter"])
@pytest.mark.parametrize("cue", [None, "\nQuestion: Who?\nAnswer:"], ids=["on", "asked"])
def test_both_sides_are_greedy_and_each_token_is_scored_under_both(make, cue):
    loaded = make()
    ids = loaded.token_ids(PARAGRAPH, "the text")[:120]
    gist = loaded.token_ids("Snow; 1854", "the gist")
    cue_ids = None if cue is None else loaded.token_ids(cue, "the cue")
    sides = contrast(loaded, gist, ids, cue_ids, 9)
    last = characters_of(loaded.tokenizer).last(ids, loaded.pair.last_k) if cue is None else cue_ids
    whole = [*before_last_k(ids, last), *last]
    adapted = isinstance(loaded.generator, PeftModel)
    prompts = (
        loaded.prompts.generator(gist, last),
        loaded.prompts.plain(whole) if adapted else loaded.prompts.generator([], whole),
    )
    assert [side.reader for side in sides] == ["generator", "teacher" if adapted else "generator"]
    assert [side.prompt_tokens for side in sides] == [len(prompt) for prompt in prompts]

    def log_probs(place, answer):
        bare = loaded.generator.disable_adapter() if adapted and place == 1 else nullcontext()
        with bare, torch.no_grad():
            logits_TV = loaded.generator(torch.tensor([[*prompts[place], *answer]])).logits[0]
        steps_TV = logits_TV[len(prompts[place]) - 1 : -1].log_softmax(-1)
        assert place != own or steps_TV.argmax(-1).tolist() == answer
        return steps_TV.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1).tolist()

    for own, side in enumerate(sides):
        assert len(side.token_ids) == len(side.log_probs) == len(side.other_log_probs) > 0
        assert side.log_probs == pytest.approx(log_probs(own, side.token_ids), abs=1e-4)
        assert side.other_log_probs == pytest.approx(log_probs(1 - own, side.token_ids), abs=1e-4)


def test_answers_from_gists_are_said_in_whole_characters(url, compactor):
    gists = [gist["token_ids"] for gist in post(url, "/v1/compress", input=TEXT).json()["data"]]
    answer = post(url, "/v1/compare", input=TEXT, gists=gists, cue="\nQuestion: Who?\nAnswer:", max_tokens=12).json()
    separator = list(compactor.prompts.tokenize("\n"))
    joined = [token for gist in gists for token in [*separator, *gist]][len(separator) :]
    sides = contrast(
        compactor, joined, compactor.token_ids(TEXT, ""), compactor.token_ids("\nQuestion: Who?\nAnswer:", ""), 12
    )
    assert [row["from"] for row in answer["data"]] == ["gists", "input"]
    for row, side in zip(answer["data"], sides, strict=True):
        assert row["text"] == compactor.decode(side.token_ids) == "".join(piece["text"] for piece in row["pieces"])
        assert (row["prompt_tokens"], row["completion_tokens"]) == (side.prompt_tokens, len(side.token_ids))
        ids = side.token_ids
        # The last tokens may be half of a character
        said = max(
            end for end in range(len(ids) + 1) if compactor.decode(ids[:end]) != compactor.decode(ids[: end - 1])
        )
        for name in ("log_prob", "other_log_prob"):
            scores = getattr(side, f"{name}s")[:said]
            assert sum(piece[name] for piece in row["pieces"]) == pytest.approx(sum(scores), abs=1e-6)
        assert row["error"] is None
    assert answer["usage"]["completion_tokens"] == sum(len(side.token_ids) for side in sides)
    texts = post(url, "/v1/compare", input=TEXT, gists="Snow", max_tokens=2).json()["data"]
    assert texts[0]["prompt_tokens"] == len(compactor.prompts.generator(compactor.token_ids("Snow", ""), [0] * LAST_K))


def test_a_text_that_does_not_fit_is_said_beside_the_answer_from_its_gists(url):
    long = PARAGRAPH * 5
    first, second = post(url, "/v1/compare", input=long, gists="Snow; 1854", max_tokens=6).json()["data"]
    assert first["text"] and first["error"] is None and first["completion_tokens"] == 6
    assert second["text"] == "" and "The full-context reader would need" in second["error"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"gists": "a"}, "input"),
        ({"input": "a"}, "gists"),
        ({"input": "a", "gists": []}, "gists"),
        ({"input": "a", "gists": [[10**9]]}, "gists"),
        ({"input": "a", "gists": [["a"], [1]]}, "gists"),
        ({"input": "", "gists": "a"}, "input"),
        ({"input": ["a", "b"], "gists": "a"}, "input"),
        ({"input": "a", "gists": "a", "cue": ""}, "cue"),
        ({"input": "a", "gists": "a", "cue": PARAGRAPH * 30}, "cue"),
        ({"input": "a", "gists": [PARAGRAPH] * 30}, "gists"),
        ({"input": "a", "gists": "a", "max_tokens": 65}, "max_tokens"),
        ({"input": "a", "gists": "a", "stream": True}, "stream"),
        ({"input": "a", "gists": PARAGRAPH * 5}, None),
    ],
)
def test_a_wrong_comparison_is_a_400_that_names_the_field(url, body, param):
    response = post(url, "/v1/compare", **body)
    assert (response.status_code, (response.json()["error"]["param"] or "").split(".")[0] or None) == (400, param)


def test_comparisons_are_counted(compactor):
    with running(compactor) as url:
        post(url, "/v1/compare", input="Snow", gists="a", max_tokens=2)
        httpx.get(url)
        until(lambda: metrics_of(httpx.get(f"{url}/metrics").text)[("trl_gist_requests_in_flight",)] == 0)
        samples = metrics_of(httpx.get(f"{url}/metrics").text)
    assert samples[("trl_gist_requests_total", "/v1/compare", "200")] == 1
    assert samples[("trl_gist_requests_total", "/", "200")] == 1
    assert samples[("trl_gist_tokens_total", "out")] == 4
