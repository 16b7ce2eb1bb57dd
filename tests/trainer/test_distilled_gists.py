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

"""Which gists of a context the generator learns from: all of a rollout's, the first ones, or some of no rollout."""

import pytest
import torch

from trl_gist import GistTrainer
from trl_gist.trainer.generator_trainer import GeneratorTrainer


def trained(make_trainer, lora, **args):
    """One step, without a cold start, and the weights after it; the same rollout each time."""
    args = {"max_steps": 1, "cold_start_steps": 0, "gist_dropout": 0.0, "max_grad_norm": 0.0, **args}
    trainer = make_trainer(peft_config=lora, args=args)
    trainer.train()
    return trainer


def gradient_norm(trainer):
    return next(log["generator/grad_norm"] for log in trainer.state.log_history if "generator/grad_norm" in log)


def test_gists_of_contexts_that_are_read_leave_their_mean_gradient(make_trainer, lora):
    """As the gists of a rollout, of which it is a mean over target tokens."""
    whole = make_trainer(peft_config=lora, args={"gist_dropout": 0.0})
    trainer, gists = whole.generator_trainer, [[9, 10], [11], [12, 13, 14], []]
    rows = [whole.train_dataset[n] for n in (0, 0, 3, 3)]
    hidden_D, _ = trainer.scorer.read_targets(rows[::2])

    def gradient():
        found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.model.zero_grad()
        return found

    trainer.distill(rows[::2], gists, 2, hidden_D)
    of_gists = gradient()
    trainer.score(rows, gists, 2, distill=True)
    of_tokens, length = gradient(), len(rows[0]["target_ids"])
    assert any(value.abs().max() > 0 for value in of_gists.values())
    for name, value in of_gists.items():
        torch.testing.assert_close(value, length * of_tokens[name], atol=1e-6, rtol=1e-4)
    scored = trainer.scorer.score_gists(rows[::2], gists, 2, hidden_D, greedy=True)
    expected = trainer.score(rows, gists, 2, distill=False)
    for (logps_T, kl_T, greedy_T), row in zip(scored, expected, strict=True):
        assert logps_T.mean().item() == pytest.approx(row["gist_log_prob"], abs=1e-6)
        assert kl_T.mean().item() == pytest.approx(row["teacher_kl"], abs=1e-6) and set(greedy_T.tolist()) <= {0, 1}


@pytest.mark.parametrize("score_batch_size", [1, 3, 8])
def test_some_gists_of_each_context_stand_for_all(make_trainer, lora, monkeypatch, score_batch_size):
    """G's gradient is that of a rollout with these gists alone; scores are of all."""
    rollouts, calculate, score = [], GistTrainer._calculate_rewards, GeneratorTrainer.score

    def kept(self, inputs, *rest):
        rewards = calculate(self, inputs, *rest)
        rollouts.append([(row["gist_ids"], row["kl_gain"]) for row in inputs])
        return rewards

    def two_of_each(self, rows, gists, size, *rest):
        two = [row for row in range(len(rows)) if row % size < 2]
        scores = score(self, [rows[row] for row in two], [gists[row] for row in two], 2, *rest)
        return [scores[row // size * 2 + min(row % size, 1)] for row in range(len(rows))]

    monkeypatch.setattr(GistTrainer, "_calculate_rewards", kept)
    every = trained(make_trainer, lora, score_batch_size=score_batch_size)
    some = trained(make_trainer, lora, score_batch_size=score_batch_size, distilled_gists=2)
    for (gist, gain), (other, other_gain) in zip(*rollouts, strict=True):
        assert gist == other and gain == pytest.approx(other_gain, abs=1e-6)
    assert every.num_generations > 2 and gradient_norm(some) != pytest.approx(gradient_norm(every), rel=1e-3)
    monkeypatch.setattr(GeneratorTrainer, "score", two_of_each)
    alone = trained(make_trainer, lora, score_batch_size=score_batch_size)
    assert gradient_norm(alone) == pytest.approx(gradient_norm(some), rel=1e-5)


@pytest.mark.parametrize("rule", ["mixed", "passages"])
def test_those_learned_from_are_no_kind_of_their_own_in_the_cold_start(make_trainer, lora, rule):
    args = {"cold_start_gists": rule, "cold_start_steps": 1}
    every, some = (
        make_trainer(peft_config=lora, args={**args, **more}).rollout for more in ({}, {"distilled_gists": 1})
    )
    size = every.trainer.num_generations
    rows = [row for row in every.trainer.train_dataset for _ in range(size)]
    slots = set()
    for start, gists in enumerate(zip(*[iter(every._by_rule(rows))] * size, strict=True)):
        turned = some._by_rule(rows[size * start : size * (start + 1)])
        assert sorted(turned) == sorted(gists)
        slots |= {slot for slot, gist in enumerate(gists) if gist == turned[0] and gists.count(gist) == 1}
    assert len(slots) > 1
