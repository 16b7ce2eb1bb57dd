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

"""Held-out measures: their definitions, their controls and their standard errors."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import make_model

from trl_gist.common.statistics import ratio_and_error
from trl_gist.evaluation import add_controls, standard_error, summarize
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts, one_row_each
from trl_gist.scoring.controls import CONTROLS, other_documents, tail_ids
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer


def scored_rows(documents, seed=0):
    """Rows as after `add_controls`, with made-up numbers."""
    rng = random.Random(seed)
    rows = []
    for document in documents:
        teacher = rng.uniform(-3, -2)
        rows.append(
            {
                "document_id": document,
                "teacher_log_prob": teacher,
                "gist_log_prob": teacher - rng.uniform(0.1, 0.3),
                **{f"{control}_log_prob": teacher - rng.uniform(0.2, 0.6) for control in CONTROLS},
                "teacher_kl": rng.uniform(0, 1),
                "null_teacher_kl": rng.uniform(0, 1),
                "gist_length": rng.randrange(8),
                "gist_rate": rng.uniform(0, 1),
                "total_rate": rng.uniform(0, 2),
            }
        )
    return rows


# ---- Standard errors ----


def test_one_window_a_document_gives_the_textbook_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    assert standard_error(values, range(50)) == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_equal_documents_give_the_standard_error_of_the_documents_means():
    values = np.random.default_rng(1).normal(size=(12, 5))
    documents = np.repeat(range(12), 5)
    expected = values.mean(1).std(ddof=1) / math.sqrt(12)
    assert standard_error(values.ravel(), documents) == pytest.approx(expected, rel=1e-12)


def test_copies_of_a_window_add_no_certainty():
    """The reason for clusters: the naive error would fall by the square root of three."""
    values = np.random.default_rng(2).normal(size=20)
    once = standard_error(values, range(20))
    thrice = standard_error(np.repeat(values, 3), np.repeat(range(20), 3))
    assert thrice == pytest.approx(once, rel=1e-12)


def test_uneven_documents_follow_the_cluster_formula_spelled_out():
    rng = np.random.default_rng(3)
    documents = rng.integers(0, 9, size=60)
    numerator, denominator = rng.normal(size=60), rng.uniform(0.5, 1.5, size=60)
    ratio, error = ratio_and_error(numerator, denominator, documents)
    names = set(documents.tolist())
    squares = 0.0
    for name in names:
        rows = [row for row in range(60) if documents[row] == name]
        squares += sum(numerator[row] - ratio * denominator[row] for row in rows) ** 2
    assert ratio == pytest.approx(numerator.sum() / denominator.sum(), rel=1e-12)
    assert error == pytest.approx(math.sqrt(squares * len(names) / (len(names) - 1)) / denominator.sum(), rel=1e-12)


def test_error_of_a_ratio_agrees_with_leaving_documents_out():
    """A jackknife needs no formula for the ratio; with many documents both must come out alike."""
    rng = np.random.default_rng(4)
    documents = np.repeat(range(80), rng.integers(1, 6, size=80))
    effect = rng.normal(0.3, 0.2, size=80)[documents]
    denominator = rng.uniform(0.5, 1.5, size=len(documents))
    numerator = effect * denominator + rng.normal(0, 0.05, size=len(documents))
    _, error = ratio_and_error(numerator, denominator, documents)
    left_out = np.array(
        [numerator[documents != d].sum() / denominator[documents != d].sum() for d in range(80)], dtype=float
    )
    jackknife = math.sqrt(79 / 80 * ((left_out - left_out.mean()) ** 2).sum())
    assert error == pytest.approx(jackknife, rel=0.05)


def test_error_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    documents = np.repeat(range(40), 3)
    covered = 0
    for _ in range(400):
        values = rng.normal(size=40)[documents] + rng.normal(size=120)
        covered += abs(values.mean()) < 1.96 * standard_error(values, documents)
    assert 0.91 < covered / 400 < 0.98


def test_one_document_alone_has_no_standard_error():
    ratio, error = ratio_and_error(np.array([1.0, 2.0]), np.ones(2), ["a", "a"])
    assert ratio == 1.5 and math.isnan(error)


def test_rows_without_a_value_are_left_out_of_it():
    ratio, error = ratio_and_error(np.array([1.0, math.nan, 3.0]), np.ones(3), ["a", "b", "c"])
    assert (ratio, error) == (2.0, pytest.approx(1.0))


def test_no_value_at_all_gives_nan_and_not_an_exception():
    assert all(math.isnan(value) for value in ratio_and_error(np.array([math.nan]), np.ones(1), ["a"]))


@pytest.mark.parametrize("documents", [["a", "b", "b"], [1, "1b", "1b"], [None, 1, 1], [(1, 2), 3, 3]])
def test_document_ids_may_be_of_any_type(documents):
    assert standard_error([0.0, 1.0, 1.0], documents) > 0


# ---- Another document's gist ----


def test_a_partner_is_always_of_another_document_when_none_holds_over_half():
    rng = random.Random(6)
    for _ in range(200):
        documents = [rng.randrange(8) for _ in range(rng.randrange(2, 30))]
        if 2 * max(Counter(documents).values()) > len(documents):
            continue
        partners = other_documents(_windows_of(documents))
        assert sorted(partners) == list(range(len(documents))), "each gist is lent once"
        assert all(documents[row] != documents[partner] for row, partner in enumerate(partners))


def test_partners_do_not_depend_on_the_order_of_the_windows():
    windows = _windows_of([0, 0, 1, 1, 2, 2, 2])
    lent = dict(enumerate(other_documents(windows)))
    order = [4, 0, 6, 2, 1, 5, 3]
    for row, partner in enumerate(other_documents([windows[index] for index in order])):
        assert order[partner] == lent[order[row]]


def _windows_of(documents):
    return [{"document_id": document, "context_ids": [index]} for index, document in enumerate(documents)]


def test_where_one_document_holds_over_half_only_its_surplus_finds_no_partner():
    documents = ["a"] * 5 + ["b", "c"]
    partners = other_documents(_windows_of(documents))
    same = [row for row in range(7) if documents[row] == documents[partners[row]]]
    assert len(same) == 3 and all(documents[row] == "a" for row in same)


# ---- The measures ----


def test_gap_closed_is_a_ratio_of_sums_over_windows():
    rows = scored_rows([0, 0, 1, 2, 2, 2])
    measures = summarize(rows)
    for control in CONTROLS:
        bought = sum(row["gist_log_prob"] - row[f"{control}_log_prob"] for row in rows)
        prize = sum(row["teacher_log_prob"] - row[f"{control}_log_prob"] for row in rows)
        assert measures[f"gap_closed_{control}"] == pytest.approx(bought / prize, rel=1e-12)


def test_gap_closed_is_one_for_a_gist_as_good_as_the_context_and_zero_for_one_as_good_as_the_control():
    rows = scored_rows(range(6))
    perfect = summarize([{**row, "gist_log_prob": row["teacher_log_prob"]} for row in rows])
    useless = summarize([{**row, "gist_log_prob": row["null_log_prob"]} for row in rows])
    assert all(perfect[f"gap_closed_{control}"] == pytest.approx(1) for control in CONTROLS)
    assert useless["gap_closed_null"] == pytest.approx(0)
    assert useless["gain_over_null"] == useless["gain_over_null_se"] == 0


def test_gains_are_paired_over_windows():
    """The difference has its own standard error: windows differ much more than gists do."""
    rows = scored_rows(range(8))
    for index, row in enumerate(rows):
        row["gist_log_prob"], row["null_log_prob"] = -10.0 * index, -10.0 * index - 0.5
    measures = summarize(rows)
    assert measures["nll_gist_se"] > 5
    assert measures["gain_over_null"] == pytest.approx(0.5)
    assert measures["gain_over_null_se"] == pytest.approx(0, abs=1e-12)


def test_every_measure_has_a_standard_error_and_windows_and_documents_are_counted():
    measures = summarize(scored_rows([0, 0, 1, 2, 2, 2]))
    assert (measures.pop("windows"), measures.pop("documents")) == (6, 3)
    names = {name for name in measures if not name.endswith("_se")}
    assert names == {
        *("teacher_kl", "null_teacher_kl", "nll_gist", "nll_teacher", "gist_length", "gist_rate", "total_rate"),
        *(f"{kind}_{control}" for kind in ("nll", "gain_over", "gap_closed") for control in CONTROLS),
    }
    assert {f"{name}_se" for name in names} == set(measures) - names


# ---- The controls ----


@pytest.fixture
def scorer(tokenizer):
    generator, teacher = (TargetScorer(make_model(tokenizer, seed, torch.float64).eval()) for seed in (1, 2))
    return GistScorer(generator, teacher, GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT), batch_size=3)


def log_prob(model, prompt, target):
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return log_probs[range(len(target)), target].mean().item()


def test_controls_are_what_they_are_called(scorer):
    rng = random.Random(7)

    def ids(length):
        return [rng.randrange(5, 300) for _ in range(length)]

    rows = []
    for document, context, gist in ((0, 20, 3), (0, 24, 0), (1, 18, 5), (2, 12, 2)):
        context_ids = ids(context)
        rows.append(
            {
                "document_id": document,
                "context_ids": context_ids,
                "last_k_ids": context_ids[-4:],
                "target_ids": ids(rng.randrange(1, 9)),
                "gist_ids": ids(gist),
                "gist_length": gist,
            }
        )
    add_controls(scorer, rows)
    generator, teacher, prompts = scorer.generator.model, scorer.teacher.model, scorer.prompts
    lent = []
    for row in rows:
        target = row["target_ids"]
        last_k = log_prob(teacher, row["context_ids"][-4:], target)
        tail = log_prob(teacher, row["context_ids"][-(4 + row["gist_length"]) :], target)
        assert row["last_k_log_prob"] == pytest.approx(last_k, abs=1e-6)
        assert row["tail_log_prob"] == pytest.approx(tail, abs=1e-6)
        assert row["gist_rate"] == row["gist_length"] / len(row["context_ids"])
        template = len(prompts.generator([], []))
        assert row["total_rate"] == (row["gist_length"] + 4 + template) / len(row["context_ids"])
        # The one gist of another document that explains the shuffled log-prob
        fits = [
            other
            for other in range(4)
            if abs(
                row["shuffled_log_prob"]
                - log_prob(generator, prompts.generator(rows[other]["gist_ids"], row["last_k_ids"]), target)
            )
            < 1e-6
        ]
        assert len(fits) == 1 and rows[fits[0]]["document_id"] != row["document_id"]
        lent += fits
    assert sorted(lent) == [0, 1, 2, 3]


def test_a_tail_is_as_long_as_last_tokens_and_gist_also_where_both_are_empty():
    row = {"context_ids": [5, 6, 7, 8], "last_k_ids": [8], "gist_length": 2}
    assert tail_ids(row) == [6, 7, 8] and tail_ids({**row, "gist_length": 9}) == [5, 6, 7, 8]
    assert tail_ids({**row, "last_k_ids": [], "gist_length": 1}) == [8]
    assert tail_ids({**row, "last_k_ids": [], "gist_length": 0}) == []


def test_rates_in_a_walk_are_of_all_text_so_far_whatever_a_window_is_asked(scorer):
    walk = {"document_id": 0, "context_ids": [9, 5, 6, 7], "seen_ids": [*range(10, 30)], "gist_ids": [8, 8]}
    walk |= {"gist_length": 2, "last_k_ids": [7], "target_ids": [40]}
    asked = [([7], []), ([12, 13], [12, 13]), ([34, 35], [30, 31, 32, 33, 34, 35])]
    targets = [{"kind": "fact", "cue_ids": cue, "target_ids": [40], "after_ids": after} for cue, after in asked]
    rows = [*one_row_each({**walk, "targets": targets}), *one_row_each(walk)]
    add_controls(scorer, rows)
    assert [row["gist_rate"] for row in rows] == [0.1] * 4
    assert rows[0]["total_rate"] == rows[-1]["total_rate"]


def test_a_lone_document_has_no_shuffled_gist_but_all_other_measures(scorer):
    rows = [
        {
            **row,
            "context_ids": [5, 6, 7, 8, 9],
            "last_k_ids": [9],
            "target_ids": [10, 11],
            "gist_ids": [12],
            "gist_length": 1,
        }
        for row in scored_rows(["a", "a"])
    ]
    add_controls(scorer, rows)
    assert all(math.isnan(row["shuffled_log_prob"]) for row in rows)
    measures = summarize(rows)
    assert math.isnan(measures["nll_shuffled"]) and math.isnan(measures["gap_closed_shuffled"])
    assert not math.isnan(measures["nll_tail"])
