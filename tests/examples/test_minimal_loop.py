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

"""examples/minimal_loop.py is the method in a hundred lines; it and the trainer must be the same method."""

import pytest
import torch
from tiny import make_model
from transformers import TrainerCallback

from trl_gist.prompts import gist_from_completion


@pytest.fixture
def minimal_loop(monkeypatch):
    from examples import minimal_loop

    # The rewards of the trainer's first step are held against it, so both take the tests' settings
    monkeypatch.setattr(minimal_loop, "GIST_DROPOUT", 0.1)
    monkeypatch.setattr(minimal_loop, "LAMBDA", 0.01)
    monkeypatch.setattr(minimal_loop, "TEMPERATURE", 1.0)
    return minimal_loop


class CaptureGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_trainer_and_minimal_loop_agree_on_the_first_step(make_trainer, tokenizer, minimal_loop, monkeypatch):
    model = make_model(tokenizer)
    captured = CaptureGradients()
    trainer = make_trainer(
        model=model,
        processing_class=tokenizer,
        callbacks=[captured],
        args={"max_steps": 1, "length_penalty": 0.01, "max_grad_norm": 0.0, "learning_rate": 0.0},
    )
    rollout, generator_gradients = {}, {}
    calculate_rewards, step = trainer._calculate_rewards, trainer.generator_trainer.step

    def keep_rollout(inputs, prompts, completions, completion_ids):
        rollout.update(rows=inputs, completion_ids=completion_ids)
        rollout["rewards"] = calculate_rewards(inputs, prompts, completions, completion_ids)
        return rollout["rewards"]

    def keep_gradients():
        generator_gradients.update({name: p.grad.clone() for name, p in trainer.generator.named_parameters()})
        return step()

    monkeypatch.setattr(trainer, "_calculate_rewards", keep_rollout)
    monkeypatch.setattr(trainer.generator_trainer, "step", keep_gradients)
    trainer.train()

    summarizer, generator, teacher = (make_model(tokenizer) for _ in range(3))
    rows, completions = rollout["rows"], rollout["completion_ids"]
    tokens = sum(len(ids) for ids in completions)
    expected = []
    for start in range(0, len(rows), 4):
        window, group = rows[start], completions[start : start + 4]
        gists = [gist_from_completion(ids, trainer.eos_token_ids) for ids in group]
        rewards, kls = minimal_loop.score_and_distill(
            generator, teacher, trainer.prompts, window, gists, weight=4 / len(rows)
        )
        assert kls == pytest.approx([row["teacher_kl"] for row in rows[start : start + 4]], abs=1e-5)
        expected += rewards
        rewards = torch.tensor(rewards)
        prompt = trainer.prompts.summarizer(window["context_ids"])
        for ids, advantage in zip(group, (rewards - rewards.mean()) / (rewards.std() + 1e-4), strict=True):
            minimal_loop.policy_loss(summarizer, prompt, ids, advantage, tokens).backward()

    trainer_rewards = (rollout["rewards"] * torch.tensor(trainer.initial_reward_weights)).sum(1)
    assert trainer_rewards.tolist() == pytest.approx(expected, abs=1e-5)
    for model, gradients in ((summarizer, captured.gradients), (generator, generator_gradients)):
        for name, parameter in model.named_parameters():
            assert (gradients[name] - parameter.grad).norm() <= 1e-3 * parameter.grad.norm() + 1e-6, name


def test_the_minimal_loop_trains_both_models(tokenizer, minimal_loop, monkeypatch):
    for name, value in {"MAX_GIST": 6, "GISTS": 3}.items():
        monkeypatch.setattr(minimal_loop, name, value)
    from trl_gist.prompts import GistPrompts

    summarizer, generator, teacher = (make_model(tokenizer) for _ in range(3))
    prompts = GistPrompts.from_tokenizer(tokenizer, "{context}\nGist:")
    ids = list(range(20, 60))
    windows = [{"context_ids": ids[:24], "last_k_ids": ids[20:24], "target_ids": ids[24:32]}]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (summarizer, generator)]
    before = [p.clone() for model in (summarizer, generator) for p in model.parameters()]
    kls = [
        minimal_loop.train_step(summarizer, generator, teacher, prompts, tokenizer, windows, optimizers)[1]
        for _ in range(8)
    ]
    after = [p for model in (summarizer, generator) for p in model.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert kls[-1] < kls[0]


def test_the_minimal_loop_runs_on_a_model_and_texts_of_ones_own(
    tokenizer, minimal_loop, monkeypatch, tmp_path, capsys
):
    for name, value in {"X": 24, "Y": 8, "K": 4, "MAX_GIST": 6, "GISTS": 2, "DOCUMENTS": 2}.items():
        monkeypatch.setattr(minimal_loop, name, value)
    make_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    minimal_loop.main(tmp_path, [tokenizer.decode(list(range(20, 90)))], steps=2)
    assert [line[:7] for line in capsys.readouterr().out.splitlines()] == ["step 1:", "step 2:"]
    with pytest.raises(SystemExit, match="No text has the 33 tokens of a window: give longer files in --texts"):
        minimal_loop.main(tmp_path, [tokenizer.decode(list(range(20, 30)))], steps=2)
