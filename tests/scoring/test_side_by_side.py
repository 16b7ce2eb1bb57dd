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
Several targets of a context, scored side by side in one row and, for models that cannot, in a row each: against one plain
forward for each target, in float64.
"""

import copy

import pytest
import torch
from tiny import make_model, make_tokenizer

from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts
from trl_gist.scoring.gist_scorer import GistScorer, runs_within
from trl_gist.scoring.targets import TargetRows, TargetScorer
from trl_gist.scoring.teacher_cache import TeacherCache


TOLERANCE = 1e-9
CONTEXT = list(range(40, 70))
TARGETS = [
    {"kind": "continuation", "cue_ids": CONTEXT[-4:], "target_ids": [101, 102, 103, 104, 105], "after_ids": []},
    {"kind": "fact", "cue_ids": [52, 53, 54], "target_ids": [55], "after_ids": [52, 53, 54]},
    {"kind": "far", "cue_ids": [120, 121], "target_ids": [122, 123, 124], "after_ids": [118, 119, 120, 121]},
]
GISTS = [[200, 201, 202], [], [210], [220, 221, 222, 223, 224]]


def rows():
    first = {"document_id": "a", "prompt": "a", "context_ids": CONTEXT, "last_k_ids": CONTEXT[-4:]}
    first |= {"target_ids": TARGETS[0]["target_ids"], "targets": TARGETS}
    second = first | {"document_id": "b", "context_ids": CONTEXT[3:], "targets": TARGETS[:2]}
    return [first, first, second, second]


@pytest.fixture
def scorer():
    tokenizer = make_tokenizer()
    generator, teacher = (make_model(tokenizer, seed, torch.float64).eval() for seed in (1, 2))
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    return GistScorer(TargetScorer(generator), TargetScorer(teacher), prompts, batch_size=4)


def log_probs(model, prompt, target):
    logits = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


def by_hand(scorer, row, gist):
    """Each target's log-probs under G and T, and KL, one forward each; differentiable in G."""
    tokenizer_ids = scorer.prompts.tokenize
    for target in row["targets"]:
        of_teacher = log_probs(scorer.teacher.model, row["context_ids"] + target["after_ids"], target["target_ids"])
        prompt = [*tokenizer_ids("GIST:"), *gist, *tokenizer_ids("\nLAST K TOKENS:"), *target["cue_ids"]]
        of_generator = log_probs(scorer.generator.model, prompt, target["target_ids"])
        places = range(len(target["target_ids"])), target["target_ids"]
        kl = (of_teacher.exp() * (of_teacher - of_generator)).sum(-1)
        yield {
            "gist_log_prob": of_generator[places].mean(),
            "teacher_log_prob": of_teacher[places].mean(),
            "teacher_kl": kl.mean(),
            "exact": bool((of_generator.argmax(-1) == torch.tensor(target["target_ids"])).all()),
        }


@pytest.fixture(params=[(True, None), (True, 12), (False, None)], ids=["one row", "two rows", "a row each"])
def either_way(request, scorer):
    scorer.shares_rows, scorer.row_tokens = request.param
    return scorer


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_are_those_of_one_forward_for_each_target(either_way, batch_size):
    either_way.batch_size = batch_size
    scored = either_way.score(rows(), GISTS, num_generations=2)
    for row, gist, columns in zip(rows(), GISTS, scored, strict=True):
        with_gist, without = (list(by_hand(either_way, row, ids)) for ids in (gist, []))
        assert columns["targets"] == row["targets"] and len(columns["target_scores"]) == len(row["targets"])
        for target, score, expected, null in zip(
            row["targets"], columns["target_scores"], with_gist, without, strict=True
        ):
            assert score["kind"] == target["kind"] and score["exact"] == expected["exact"]
            for name in ("gist_log_prob", "teacher_log_prob", "teacher_kl"):
                assert score[name] == pytest.approx(expected[name].item(), abs=TOLERANCE), name
            assert score["null_log_prob"] == pytest.approx(null["gist_log_prob"].item(), abs=TOLERANCE)
            gain = (expected["gist_log_prob"] - null["gist_log_prob"]).item()
            assert score["log_prob_gain"] == pytest.approx(gain, abs=TOLERANCE)
            assert score["kl_gain"] == pytest.approx(
                (null["teacher_kl"] - expected["teacher_kl"]).item(), abs=TOLERANCE
            )
        # A gist is paid the mean over its targets, however long they are
        for name in ("log_prob_gain", "kl_gain", "teacher_kl", "teacher_log_prob"):
            mean = sum(score[name] for score in columns["target_scores"]) / len(row["targets"])
            assert columns[name] == pytest.approx(mean, abs=TOLERANCE)


@pytest.mark.parametrize("mean", ["targets", "tokens"])
def test_the_generator_learns_from_each_target_or_from_each_token_alike(either_way, mean):
    generator, either_way.mean = either_way.generator.model, mean
    either_way.score(rows(), GISTS, num_generations=2, backward=lambda loss_NT, _: loss_NT.sum().backward())
    actual = {name: p.grad.clone() for name, p in generator.named_parameters()}
    generator.zero_grad()
    loss = 0.0
    for row, gist in zip(rows(), GISTS, strict=True):
        means = torch.stack([target["teacher_kl"] for target in by_hand(either_way, row, gist)])
        sizes = torch.tensor([len(target["target_ids"]) for target in row["targets"]])
        loss = loss + (means.mean() if mean == "targets" else (means * sizes).sum() / sizes.sum())
    loss.backward()
    expected = {name: p.grad for name, p in generator.named_parameters()}
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():  # Llama's norms are in float32, whatever the model is
        assert (actual[name] - gradient).norm() / norm < 1e-6, name


def test_log_probs_of_other_gists_and_of_cues_alone(either_way):
    of_gists = either_way.generator_log_probs(rows(), GISTS)
    alone = either_way.cue_log_probs(rows())
    for row, gist, of_gist, of_cue in zip(rows(), GISTS, of_gists, alone, strict=True):
        expected = torch.stack([target["gist_log_prob"] for target in by_hand(either_way, row, gist)]).mean()
        assert of_gist == pytest.approx(expected.item(), abs=TOLERANCE)
        teacher, means = either_way.teacher.model, []
        for target in row["targets"]:
            log_p = log_probs(teacher, target["cue_ids"], target["target_ids"])
            means.append(log_p[range(len(target["target_ids"])), target["target_ids"]].mean().item())
        assert of_cue == pytest.approx(sum(means) / len(means), abs=TOLERANCE)


def test_after_nothing_at_all_a_text_begins_where_another_ended(either_way):
    cueless = {"kind": "fact", "cue_ids": [], "target_ids": [55, 56], "after_ids": []}
    (alone,) = either_way.cue_log_probs([{**rows()[0], "targets": [cueless, TARGETS[1]]}])
    expected = 0.0
    for before, target in (([2], [55, 56]), (TARGETS[1]["cue_ids"], TARGETS[1]["target_ids"])):
        log_p = log_probs(either_way.teacher.model, before, target)
        expected += log_p[range(len(target)), target].mean().item() / 2
    assert alone == pytest.approx(expected, abs=TOLERANCE)


def test_a_target_that_needs_no_context_is_not_asked_but_the_best_always_is(scorer):
    gains = []
    for row in rows()[::2]:
        context = [target["teacher_log_prob"].item() for target in by_hand(scorer, row, [])]
        alone = [scorer.cue_log_probs([row | {"targets": [target]}])[0] for target in row["targets"]]
        gains.append([with_context - without for with_context, without in zip(context, alone, strict=True)])
    scorer.target_floor = sorted(gains[0])[1]
    kept = [
        [target for target, gain in zip(row["targets"], of_row, strict=True) if gain >= scorer.target_floor]
        or [row["targets"][of_row.index(max(of_row))]]
        for row, of_row in zip(rows()[::2], gains, strict=True)
    ]
    assert len(kept[0]) == 2
    scored = scorer.score(rows(), GISTS, num_generations=2)
    asked = [
        row | {"targets": targets} for row, targets in zip(rows(), (kept[0], kept[0], kept[1], kept[1]), strict=True)
    ]
    scorer.target_floor = None
    for columns, expected, row in zip(scored, scorer.score(asked, GISTS, num_generations=2), asked, strict=True):
        assert columns["targets"] == row["targets"]
        assert columns["kl_gain"] == pytest.approx(expected["kl_gain"], abs=TOLERANCE)
    scorer.target_floor = 1e6
    assert [len(columns["targets"]) for columns in scorer.score(rows(), GISTS, num_generations=2)] == [1] * 4


def test_a_cue_that_begins_within_the_context_is_read_alone_as_a_whole(scorer):
    """As that of a far target that is nearer than the last tokens are many."""
    fact, cue, after = TARGETS[1], [*CONTEXT[-3:], 118], [118]

    def gains(target):
        (whole,) = (each["teacher_log_prob"] for each in by_hand(scorer, {**rows()[0], "targets": [target]}, []))
        return [
            whole.item() - scorer.cue_log_probs([{**rows()[0], "targets": [{**target, "cue_ids": alone}]}])[0]
            for alone in (target["cue_ids"], target["after_ids"])
        ]

    far = {"kind": "far", "cue_ids": cue, "after_ids": after}
    far, over_cue, over_after = next(
        (target, *found)
        for token in range(100, 200)
        if (found := gains(target := {**far, "target_ids": [token]}))[0] < min(found[1], gains(fact)[0])
    )
    scorer.target_floor = (over_cue + over_after) / 2
    row = {**rows()[0], "targets": [fact, far]}
    assert scorer.score([row], [[200]])[0]["targets"] == [fact]


def test_the_cache_tells_targets_apart(tmp_path, scorer):
    first, second = rows()[0], copy.deepcopy(rows()[0])
    second["targets"][1]["target_ids"] = [77]
    plain = [scorer.score([row], [[200]])[0] for row in (first, second)]
    scorer.teacher_cache = TeacherCache(tmp_path, scorer.teacher.model, scorer.prompts)
    for _ in range(2):  # written, then read
        for row, expected in zip((first, second), plain, strict=True):
            assert scorer.score([row], [[200]])[0] == expected
    assert len(list(tmp_path.rglob("*.hidden"))) == 2


def test_many_targets_take_several_rows_with_the_same_scores(scorer, monkeypatch):
    facts = [{**TARGETS[1], "target_ids": [60 + place]} for place in range(120)]
    row = {**rows()[0], "targets": facts}
    few, scorer.row_tokens = [0, 24, 25, 60, 119], 100
    expected = scorer.score([{**row, "targets": [facts[place] for place in few]}] * 2, GISTS[:2], num_generations=2)
    build, lengths = TargetRows.of_several, []

    def watched(*args):
        batch = build(*args)
        lengths.append(batch.input_ids_NS.shape[1])
        return batch

    monkeypatch.setattr(TargetRows, "of_several", watched)
    scored = scorer.score([row] * 2, GISTS[:2], num_generations=2)
    assert 100 < max(lengths) <= 100 + len(CONTEXT)
    for columns, of_few in zip(scored, expected, strict=True):
        for name in ("gist_log_prob", "null_log_prob", "teacher_log_prob", "teacher_kl"):
            found = [columns["target_scores"][place][name] for place in few]
            assert found == pytest.approx([score[name] for score in of_few["target_scores"]], abs=TOLERANCE)


def test_runs_are_as_long_as_they_may_be():
    def sizes(*of_each, most):
        return [[*of_each[run]] for run in runs_within(of_each, most)]

    assert sizes(2, 2, 3, 9, 1, 1, most=5) == [[2, 2], [3], [9], [1, 1]]
    assert sizes(1, 1, most=1) == [[1], [1]] and sizes(7, 7, most=None) == [[7, 7]]
