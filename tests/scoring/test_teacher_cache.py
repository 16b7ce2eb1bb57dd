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

import pytest
import torch
from tiny import make_model

from trl_gist.prompts import GistPrompts
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer
from trl_gist.scoring.teacher_cache import TeacherCache


@pytest.fixture
def prompts(tokenizer):
    return GistPrompts.from_tokenizer(tokenizer, "{context}")


@pytest.fixture
def scorer_for(tokenizer, prompts, tmp_path):
    def make(teacher, directory=tmp_path / "cache"):
        calls = []
        scorer = GistScorer(TargetScorer(make_model(tokenizer, seed=1)), TargetScorer(teacher), prompts)
        scorer.teacher_cache = TeacherCache(directory, teacher, prompts)
        teacher.base_model.register_forward_hook(lambda *_: calls.append(1))
        return scorer, calls

    return make


ROWS = [
    {"context_ids": [10, 11, 12, 13], "last_k_ids": [13], "target_ids": [20, 21, 22], "document_id": 0},
    {"context_ids": [30, 31], "last_k_ids": [31], "target_ids": [40, 41], "document_id": 1},
]


def test_a_second_look_asks_the_teacher_nothing_and_scores_the_same(tokenizer, scorer_for):
    scorer, calls = scorer_for(make_model(tokenizer))
    first = scorer.score(ROWS, [[50, 51], [52]])
    assert calls
    again, calls = scorer_for(make_model(tokenizer))
    assert again.score(ROWS, [[50, 51], [52]]) == first
    assert not calls


@pytest.mark.parametrize(
    "change",
    [
        lambda teacher: teacher.lm_head.weight.data.mul_(1.01),
        lambda teacher: setattr(teacher.config, "rope_parameters", {"rope_theta": 5.0, "rope_type": "default"}),
        lambda teacher: teacher.double(),
        lambda teacher: teacher.model.embed_tokens.weight.data[8].mul_(1.01),
        lambda teacher: teacher.set_attn_implementation("eager"),
    ],
    ids=["weights", "configuration", "dtype", "one row", "attention"],
)
def test_another_teacher_gets_entries_of_its_own(tokenizer, scorer_for, change):
    scorer_for(make_model(tokenizer))[0].score(ROWS, [[], []])
    teacher = make_model(tokenizer)
    change(teacher)
    scorer, calls = scorer_for(teacher)
    scorer.read_contexts(ROWS)
    assert calls


def test_another_precision_gets_entries_of_its_own(make_trainer, documents, tmp_path):
    trainers = [
        make_trainer(args={"teacher_cache_dir": str(tmp_path / "cache"), "bf16": bf16, "max_steps": 1})
        for bf16 in (False, True)
    ]
    in_float32, in_bfloat16 = (trainer.generator_trainer.scorer for trainer in trainers)
    rows = list(trainers[0].train_dataset.select(range(2)))
    assert in_float32.teacher_cache.key != in_bfloat16.teacher_cache.key
    in_bfloat16.read_contexts(rows)
    assert in_float32.teacher_cache.get(rows[0]) is None
    assert in_bfloat16.teacher_cache.get(rows[0]) is not None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another window's", "empty", "not safetensors"])
def test_a_damaged_entry_is_computed_again_and_mended(tokenizer, scorer_for, tmp_path, damage):
    scorer, _ = scorer_for(make_model(tokenizer))
    expected = scorer.score(ROWS, [[], []])
    entries = sorted((tmp_path / "cache").rglob("*.hidden"))
    content = entries[0].read_bytes()
    entries[0].write_bytes(
        {
            "truncated": content[:-3],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "another window's": entries[1].read_bytes(),
            "empty": b"",
            "not safetensors": b"x" * 200,
        }[damage]
    )
    scorer, calls = scorer_for(make_model(tokenizer))
    for row, expected_row in zip(scorer.score(ROWS, [[], []]), expected, strict=True):
        assert row["teacher_kl"] == pytest.approx(expected_row["teacher_kl"], abs=1e-6)
    assert len(calls) == 1
    assert entries[0].read_bytes() == content


def test_a_directory_that_cannot_be_written_costs_the_cache_not_the_run(tokenizer, scorer_for, monkeypatch):
    scorer, _ = scorer_for(make_model(tokenizer))
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.warns(UserWarning, match="No space left"):
        hidden_D, _ = scorer.read_contexts(ROWS)
    assert [tuple(hidden.shape) for hidden in hidden_D] == [(3, 32), (2, 32)]
    assert scorer.teacher_cache.get(ROWS[0]) is None


def test_training_over_two_epochs_is_the_same_with_the_cache(make_trainer, documents, lora, tmp_path):
    weights = []
    for cache in (None, str(tmp_path / "cache")):
        trainer = make_trainer(
            train_dataset=documents.select([0]),
            peft_config=lora,
            args={"max_steps": 4, "teacher_cache_dir": cache, "output_dir": str(tmp_path / str(bool(cache)))},
        )
        trainer.train()
        assert trainer.state.epoch > 1
        weights.append([p.detach() for m in (trainer.model, trainer.generator) for p in m.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
