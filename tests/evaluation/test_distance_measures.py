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

"""A walk's facts and measures against sums by hand."""

import math

import numpy as np
import pytest
from scipy.stats import linregress
from tiny import make_tokenizer

from trl_gist.common.geometry import Geometry, WindowedText
from trl_gist.common.tokens import Spelled, characters_of
from trl_gist.evaluation.distance.facts import FactIndex, fact_gains_by_age, facts_by_age
from trl_gist.evaluation.distance.labels import recall_sentences, verdict_sentences
from trl_gist.evaluation.distance.measures import distance_measures, doubling
from trl_gist.evaluation.distance.recall import recall_by_age
from trl_gist.evaluation.distance.walk import ARMS


# ---- Facts ----


def test_facts_are_placed_by_token():
    tokenizer = make_tokenizer()
    text = "Now Snow saw 854 wells. " + "so it was and so it went on. " * 3 + "Then Snow counted 854 and 77."
    ids = tokenizer(text)["input_ids"]
    spelled = Spelled(tokenizer, ids)
    assert spelled.text == text and spelled.ends == [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
    count = len(tokenizer(text[: text.index("Then")])["input_ids"])
    geometry = Geometry(0, chunk_length=count - 3, last_k=3, target_length=len(ids) - count)
    index = FactIndex(WindowedText(ids, geometry, characters_of(tokenizer)), tokenizer)
    assert index.of_chunk(0) == ["854", "snow"]
    found = {fact["fact"]: fact for fact in index.of_target(0)}
    assert {name: fact["age"] for name, fact in found.items()} == {"snow": 0, "854": 0, "77": None}
    for name, fact in found.items():
        first, last = fact["tokens"]
        assert name in tokenizer.decode(ids[count + first : count + last + 1]).lower()
    # Of age 1 once there is a window between
    halves = WindowedText(ids, Geometry(0, (count - 3) // 2, 3, 99), characters_of(tokenizer))
    assert FactIndex(halves, tokenizer).of_target(1)[0]["age"] == 1


def fact_row(document, window, facts, gist, target_facts=(), gain=()):
    zeros = [0.0] * len(gain)
    return {
        "document_id": document,
        "window": window,
        "facts": facts,
        "gists": {"pair": gist},
        "target_facts": list(target_facts),
        "log_probs": {"pair": list(gain), "null": zeros},
    }


def test_facts_are_looked_for_by_the_age_of_their_first_and_last_mention():
    rows = [
        fact_row("a", 0, ["1854", "snow"], "Snow, 1854"),
        fact_row("a", 1, ["snow", "82"], "1854, 82"),
        fact_row("a", 2, [], "82 wells"),
        fact_row("b", 0, ["london"], "Paris"),
    ]
    found = facts_by_age(rows, ["pair"], [(0, 0), (1, 1), (2, 9)])
    # First mentions: age 0: 1854, snow, 82 of four; age 1: 1854 of 1854 and snow, then 82; age 2: neither of two
    assert found["since_first"]["pair"]["of"] == [4, 3, 2]
    assert found["since_first"]["pair"]["share"] == pytest.approx([3 / 4, 2 / 3, 0])
    # Last mentions: in window 1 snow is of age 0 again, and not kept; in window 2 of age 1
    assert found["since_last"]["pair"]["of"] == [5, 3, 1]
    assert found["since_last"]["pair"]["share"] == pytest.approx([3 / 5, 2 / 3, 0])


def test_fact_gains_are_of_the_tokens_that_spell_them():
    said = {"fact": "snow", "kind": "name", "tokens": [1, 2], "age": 1}
    new = {"fact": "paris", "kind": "name", "tokens": [0, 0], "age": None}
    rows = [
        fact_row("a", 3, [], "", [said, new], [0.5, 1.0, 3.0, 9.0]),
        fact_row("b", 3, [], "", [said], [0.0, 0.0, 0.0, 9.0]),
    ]
    found = fact_gains_by_age(rows, {"pair": "null"}, [(0, 0), (1, 2)])["pair"]
    assert found["of"] == [0, 2] and found["gain"][1] == pytest.approx(1.0) and found["gain_se"][1] == pytest.approx(1)
    assert found["new"]["gain"] == [0.5] and found["new"]["of"] == [1]


# ---- Targets of earlier chunks ----


def test_recall_is_a_mean_over_targets_of_an_age_with_errors_over_documents():
    def target(age, **kls):
        return {"kind": "fact", "age": age, "kls": {"full": 0.0, **kls}, "log_probs": {}}

    rows = [
        {"document_id": "a", "recall": [target(0, null=3.0, single=2.0, pair=1.0)]},
        {"document_id": "a", "recall": [target(2, null=2.0, single=2.0, pair=1.5)]},
        {"document_id": "b", "recall": [target(2, null=4.0, single=1.0, pair=3.0)] * 2},
        {"document_id": "b"},
    ]
    found = recall_by_age(rows, ["pair"], {"single": "null", "pair": "null"})
    assert (found["ages"], found["of"]) == ([0, 2], [1, 3])
    assert found["arms"]["pair"]["kl"] == pytest.approx([1.0, 2.5]) and "gain" not in found["arms"]["null"]
    assert found["arms"]["pair"]["gain"] == pytest.approx([2.0, (0.5 + 1 + 1) / 3])
    assert found["arms"]["single"]["gain"] == pytest.approx([1.0, 2.0])
    ahead = found["ahead"]["pair"]["single"]
    assert ahead["kl"] == pytest.approx([1.0, (0.5 - 2 - 2) / 3]) and math.isnan(ahead["kl_se"][0])
    # The ratio of sums over documents, linearised: sqrt(n / (n - 1) * sum of residuals squared) / count
    residuals = np.array([0.5 - ahead["kl"][1], -4 - 2 * ahead["kl"][1]])
    assert ahead["kl_se"][1] == pytest.approx(math.sqrt(2 * (residuals**2).sum()) / 3)
    assert recall_by_age(rows[3:], ["pair"], {}) is None


def test_sentences_say_for_which_ages_the_rolling_gist_is_ahead():
    columns = {"kl": [0.5, 0.4, 0.1, 0.3], "kl_se": [0.1, 0.1, 0.1, None]}  # as of a folder
    recall = {"ages": [0, 1, 2, 3], "of": [9] * 4, "ahead": {"pair": {"single": columns, "zero_shot_g": columns}}}
    report = {"geometry": {"last_k": 4, "context_length": 40}, "pairs": {}, "recall": recall}
    single, summary = recall_sentences(report, "pair")
    assert "on what was said 1, 2 and 3 windows ago +0.400 ± 0.100, +0.100 ± 0.100, +0.300" in single
    assert single.endswith("than G: gist of the chunk alone; beyond two standard errors for 1.")
    assert "T's rolling summary" in summary
    assert recall_sentences({**report, "recall": None}, "pair") == []
    recall |= {"ages": [0], "of": [9]}
    assert recall_sentences(report, "pair") == []


# ---- Measures ----


def rows_with(advantage, lengths):
    """Rows of documents whose pair gains `advantage(document, window)` over an arm at 2 nats."""
    arms = [arm for arm in ARMS if arm != "pair"]
    return [
        {
            "document_id": document,
            "window": window,
            "tokens": 100 * (window + 1),
            "gist_ids": {"pair": [1]},
            "gists": dict.fromkeys(("pair", "zero_shot", "single"), ""),
            "facts": [],
            "target_facts": [],
            "log_probs": {**{arm: [-2.0] for arm in arms}, "pair": [-2.0 + advantage(document, window)]},
            "kls": {arm: [0.1] for arm in ARMS},
        }
        for document, length in enumerate(lengths)
        for window in range(length)
    ]


def test_slope_is_the_regression_within_documents_and_its_error_is_over_them():
    rng = np.random.default_rng(0)
    lengths = [4, 6, 9, 1]
    gains = {(d, w): 0.3 + 0.2 * d - 0.01 * w * (d + 1) + 0.02 * rng.normal() for d in range(4) for w in range(9)}
    found = distance_measures(rows_with(lambda d, w: gains[d, w], lengths))["slopes"]["pair"]
    slopes = [linregress(range(n), [gains[d, w] for w in range(n)]).slope for d, n in enumerate(lengths[:3])]
    weights = np.array([((np.arange(n) - (n - 1) / 2) ** 2).sum() for n in lengths[:3]])
    mean = (weights * slopes).sum() / weights.sum()
    residuals = weights * (slopes - mean)
    assert found["slope"] == pytest.approx(mean) and found["documents"] == 3
    assert found["slope_se"] == pytest.approx(math.sqrt((residuals**2).sum() * 3 / 2) / weights.sum())


def test_slope_of_one_stream_has_the_error_of_a_regression():
    rng = np.random.default_rng(1)
    gains = 0.2 + 0.01 * np.arange(20) + 0.05 * rng.normal(size=20)
    measures = distance_measures(rows_with(lambda d, w: gains[w], [20]))
    plain = linregress(np.arange(20), gains)
    assert measures["errors_over"] == "windows"
    assert measures["slopes"]["pair"]["slope"] == pytest.approx(plain.slope)
    assert measures["slopes"]["pair"]["slope_se"] == pytest.approx(plain.stderr)


def report_of(measures):
    geometry = {"last_k": 5, "context_length": 32}
    return {"geometry": geometry, "pairs": {}, **measures}


def test_the_window_from_which_the_pair_is_not_below_is_said():
    # Clear at windows 1 and 3, not at 2; from 4 on never; 6 is reached by two documents only
    means = [0.0, 0.5, 0.0, 0.5, 0.0, -0.5, 0.5]
    measures = distance_measures(rows_with(lambda d, w: means[w] + 0.1 * (-1) ** d, [6, 6, 7, 7]))
    found = measures["verdicts"]["pair"]["null"]
    assert found == {"unclear": [2, 4, 5], "of": 5, "since": 4, "last": 5}
    sentence = verdict_sentences(report_of(measures), "pair")[0]
    assert "in 2 of 5 windows, not at window 3, 5-6: NOT BELOW IT from window 5 on." in sentence


def test_a_gain_that_stays_is_said_to_stay():
    measures = distance_measures(rows_with(lambda d, w: 0.5 + 0.01 * d + 0.001 * (-1) ** (d + w), [8, 8, 8, 8]))
    sentences = " ".join(verdict_sentences(report_of(measures), "pair"))
    assert measures["verdicts"]["pair"]["null"] == {"unclear": [], "of": 7, "since": None, "last": 7}
    assert "in 7 of 7 windows." in sentences and "NOT BELOW" not in sentences


def test_measures_are_paired_means_with_errors_over_documents():
    gains = {(0, 0): 0.1, (0, 1): 0.3, (1, 0): 0.5, (1, 1): 0.1}
    measures = distance_measures(rows_with(lambda d, w: gains[d, w], [2, 2]))
    window = measures["windows"][1]
    assert window["advantage_pair"] == pytest.approx(0.2) and window["advantage_pair_se"] == pytest.approx(0.1)
    assert window["nll_pair"] == pytest.approx(1.8) and window["over_last_k_pair"] == pytest.approx(0.2)
    assert measures["gains"]["pair"]["single"] == pytest.approx(0.2)
    assert doubling(8) == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 8)]
