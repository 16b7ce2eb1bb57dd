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

"""What goes wrong in the middle of a run stops it before the step, says where, and leaves both halves as they were."""

import pytest
import torch
from checks import AtStep, moved, snapshot, without_gradients
from peft import LoraConfig, get_peft_model
from tiny import make_model
from transformers import TrainerCallback

from trl_gist.trainer.config_checks import DISTILLATION_LOSSES


both_ways = pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])


def states(trainer):
    optimizer = trainer.generator_trainer.optimizer.state_dict()["state"]
    return {
        "S": snapshot(trainer.model),
        "G": snapshot(trainer.generator),
        "T": snapshot(trainer.teacher),
        "steps": [int(state["step"]) for state in optimizer.values()],
        "schedule": trainer.generator_trainer.lr_scheduler.last_epoch,
    }


def fail(trainer, error, match, after_step=1):
    """Trains into the error; asserts that nothing has moved since `after_step`."""
    kept = {}
    trainer.add_callback(AtStep(after_step, lambda: kept.update(states(trainer))))
    with pytest.raises(error, match=match) as caught:
        trainer.train()
    assert trainer.state.global_step == after_step
    assert not moved(kept["S"], trainer.model)
    assert not moved(kept["G"], trainer.generator)
    assert not moved(kept["T"], trainer.teacher)
    now = states(trainer)
    assert (now["steps"], now["schedule"]) == (kept["steps"], kept["schedule"])
    assert kept["schedule"] == after_step and set(kept["steps"]) == {after_step}
    return str(caught.value)


# ---- Reward functions ----


def broken(answer):
    """A reward function that is well for one rollout, then gives `answer`."""
    calls = []

    def user_reward(gist_length, **kwargs):
        calls.append(1)
        return [0.0] * len(gist_length) if len(calls) == 1 else answer(gist_length)

    return user_reward


@both_ways
@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (
            lambda rows: [0.0] * 5 + [float("nan")] + [0.0] * 2,
            ValueError,
            "'user_reward' returned None or NaN for gist 5",
        ),
        (lambda rows: [0.0] * 7 + [None], ValueError, "'user_reward' returned None or NaN for gist 7"),
        (lambda rows: [None] * 8, ValueError, "'user_reward' returned None or NaN for gist 0"),
        (lambda rows: [0.0] * 7, ValueError, "'user_reward' returned 7 rewards, but 8 were expected"),
        (lambda rows: [0.0] * 7 + [float("inf")], ValueError, "'user_reward' returned inf for gist 7"),
        (lambda rows: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
    ids=["nan", "one-none", "all-none", "wrong-count", "infinite", "raises"],
)
def test_a_broken_reward_function_is_named_and_neither_half_is_stepped(
    make_trainer, lora, with_lora, answer, error, match
):
    trainer = make_trainer(
        peft_config=lora if with_lora else None, reward_funcs=[broken(answer)], args={"max_steps": 3}
    )
    fail(trainer, error, match)


def test_a_run_that_a_reward_function_broke_resumes_from_its_checkpoint(make_trainer, lora):
    args = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(peft_config=lora, reward_funcs=[broken(lambda rows: [0.0] * 8)], args=args)
    whole.train()
    whole_halves = snapshot(whole.model), snapshot(whole.generator)
    broken_run = {**args, "output_dir": whole.args.output_dir + "-broken"}
    trainer = make_trainer(peft_config=lora, reward_funcs=[broken(lambda rows: [None] * 8)], args=broken_run)
    with pytest.raises(ValueError, match="None or NaN"):
        trainer.train()
    mended = make_trainer(peft_config=lora, reward_funcs=[broken(lambda rows: [0.0] * 8)], args=broken_run)
    mended.train(resume_from_checkpoint=True)
    assert not moved(whole_halves[0], mended.model) and not moved(whole_halves[1], mended.generator)


# ---- The generator ----


@both_ways
def test_nan_in_the_generators_loss_names_the_document_before_the_step(make_trainer, lora, monkeypatch, with_lora):
    trainer = make_trainer(peft_config=lora if with_lora else None, args={"max_steps": 3, "score_batch_size": 3})
    score, rollouts, poisoned = trainer.generator_trainer.scorer.score_gists, [], []

    def poison(documents, gists, num_generations, hidden, backward, *greedy):
        """From the second rollout on, one document's teacher turns NaN."""
        if any(gists):
            rollouts.append(1)
        if len(rollouts) == 2 and any(gists):
            poisoned.append(documents[1])
            hidden = [hidden[0], torch.full_like(hidden[1], float("nan")), *hidden[2:]]
        return score(documents, gists, num_generations, hidden, backward, *greedy)

    monkeypatch.setattr(trainer.generator_trainer.scorer, "score_gists", poison)
    message = fail(trainer, FloatingPointError, "The generator's loss is nan on document .*no step was taken")
    (row,) = poisoned
    assert f"on document {row['document_id']} " in message and repr(row["prompt"][:80]) in message
    assert without_gradients(trainer.generator), "the gradient of the document before the poisoned one is dropped"


@both_ways
@pytest.mark.parametrize("loss", DISTILLATION_LOSSES)
def test_a_nan_weight_in_the_generator_stops_the_run_at_once(make_trainer, lora, with_lora, loss):
    trainer = make_trainer(peft_config=lora if with_lora else None, args={"max_steps": 3, "distillation_loss": loss})
    parameter = next(parameter for parameter in trainer.generator.parameters() if parameter.requires_grad)

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            with torch.no_grad():
                parameter.view(-1)[0] = float("nan")

    trainer.add_callback(Poison())
    before_s = []
    trainer.add_callback(AtStep(1, lambda: before_s.append(snapshot(trainer.model))))
    with pytest.raises(FloatingPointError, match="The generator's loss is nan on document"):
        trainer.train()
    assert trainer.state.global_step == 1 and not moved(before_s[0], trainer.model)


def test_an_infinite_gradient_of_a_finite_loss_stops_the_generators_step(make_trainer, lora):
    trainer = make_trainer(peft_config=lora, args={"max_steps": 3})
    parameter = next(parameter for parameter in trainer.generator.parameters() if parameter.requires_grad)
    steps = []

    def overflow(gradient):
        return gradient if len(steps) == 0 else torch.full_like(gradient, float("inf"))

    parameter.register_hook(overflow)
    trainer.add_callback(AtStep(1, lambda: steps.append(1)))
    fail(trainer, FloatingPointError, "gradient norm is (inf|nan); no step was taken")


def test_a_failed_run_leaves_its_last_checkpoint_whole(make_trainer, lora, tmp_path):
    """A failure between two checkpoints touches neither half of the one on disk."""
    trainer = make_trainer(
        peft_config=lora,
        reward_funcs=[broken(lambda rows: [None] * 8)],
        args={"max_steps": 3, "save_strategy": "steps", "save_steps": 1},
    )
    kept = {}

    def read():
        return {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoint-1").rglob("*") if path.is_file()}

    class Read(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            kept.update(read())

    trainer.add_callback(Read())
    with pytest.raises(ValueError, match="None or NaN"):
        trainer.train()
    assert len(kept) > 10 and read() == kept


# ---- Dropout ----


def test_dropout_is_off_in_every_role_though_adapters_and_config_ask_for_it(make_trainer, tokenizer, monkeypatch):
    """Sampling and scoring run in train mode, where dropout would make them disagree."""
    trainer = make_trainer(
        model=get_peft_model(
            make_model(tokenizer, attention_dropout=0.5),
            LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear"),
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    ids = torch.arange(5, 25).unsqueeze(0)
    for model in (trainer.model, trainer.generator):
        model.train()
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
            in_train_mode = model(input_ids=ids).logits
            assert torch.equal(in_train_mode, model.eval()(input_ids=ids).logits)
