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

"""A killed run goes on as if nothing had happened, and both halves of the pair come back or none."""

from contextlib import nullcontext

import pytest
import torch
from checks import assert_equal_models, assert_same, history, moved, snapshot
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from tiny import make_documents
from transformers import TrainerCallback


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


class OnBegin(TrainerCallback):
    def __init__(self, seen):
        self.seen = seen

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append(state.global_step)


@pytest.fixture
def make_run(make_trainer, lora, tmp_path):
    """Builds a trainer of one run: eight windows, two a step, so that an epoch is four steps."""

    def make(name, with_lora, streaming=False, kill_at=None, **args):
        rows = [{"text": text} for text in make_documents(4)]
        return make_trainer(
            train_dataset=(
                IterableDataset.from_generator(lambda: iter(rows)) if streaming else Dataset.from_list(rows)
            ),
            peft_config=lora if with_lora else None,
            callbacks=[Kill(kill_at)] if kill_at else [],
            eval_dataset=Dataset.from_list(rows[:2]),
            args={
                **{"output_dir": str(tmp_path / name), "max_steps": 8, "max_windows_per_document": 2},
                **{"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, **args},
            },
        )

    return make


def assert_same_run(one, other):
    assert_same(history(one), history(other))
    assert_equal_models(one.model, other.model)
    assert_equal_models(one.generator, other.generator)
    assert_same(one.optimizer.state_dict(), other.optimizer.state_dict())
    assert_same(one.lr_scheduler.state_dict(), other.lr_scheduler.state_dict())
    mine, theirs = one.generator_trainer, other.generator_trainer
    assert_same(mine.optimizer.state_dict(), theirs.optimizer.state_dict())
    assert_same(mine.lr_scheduler.state_dict(), theirs.lr_scheduler.state_dict())


def kill_and_resume(make_run, kill_at, *args, **kwargs):
    with pytest.raises(Killed):
        make_run("killed", *args, kill_at=kill_at, **kwargs).train()
    torch.manual_seed(99)  # a new process knows nothing of the old one's randomness
    resumed = make_run("killed", *args, **kwargs)
    resumed.train(resume_from_checkpoint=True)
    return resumed


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_resume_after_kill_is_bit_identical(make_run, tmp_path, with_lora, streaming):
    whole = make_run("whole", with_lora, streaming)
    whole.train()
    assert whole.state.global_step == 8

    def run(resume_from_checkpoint=None, **args):
        torch.manual_seed(99)  # a new process knows nothing of the old one's randomness
        trainer, started = make_run("killed", with_lora, streaming, **args), []
        trainer.add_callback(OnBegin(started))
        with pytest.raises(Killed) if args else nullcontext():
            trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        return trainer, started

    run(kill_at=3)
    run(True, kill_at=7)  # over the end of the first epoch
    for source, expected in ((True, 6), (str(tmp_path / "killed" / "checkpoint-4"), 4)):
        resumed, started = run(source)  # in the second epoch, and between the two
        assert started == [expected] and resumed.state.global_step == 8
        assert_same_run(whole, resumed)


def test_resume_with_evaluations_in_between_is_bit_identical(make_run):
    args = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 4}
    whole = make_run("whole", True, **args)
    whole.train()
    resumed = kill_and_resume(make_run, 3, True, **args)
    assert sum("eval_teacher_kl" in entry for entry in history(resumed)) == 4
    assert_same_run(whole, resumed)


def test_resume_between_rollouts_of_several_steps_is_bit_identical(make_run):
    args = {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4, "save_steps": 4}
    whole = make_run("whole", True, **args)
    whole.train()
    assert_same_run(whole, kill_and_resume(make_run, 7, True, **args))


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_resume_with_gradient_accumulation_is_bit_identical(make_run, streaming):
    args = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole = make_run("whole", True, streaming, **args)
    whole.train()
    assert_same_run(whole, kill_and_resume(make_run, 7, True, streaming, **args))


def test_a_streams_position_survives_a_longer_schedule(make_run):
    """The saved position must not be read in units of the new run's length."""
    with pytest.raises(Killed):
        make_run("killed", True, True, kill_at=7).train()
    longer = make_run("killed", True, True, max_steps=12)
    seen = documents_of_each_step(longer)
    longer.train(resume_from_checkpoint=True)
    whole = make_run("whole", True, True, max_steps=12)
    expected = documents_of_each_step(whole)
    whole.train()
    assert seen == expected[6:]


def documents_of_each_step(trainer):
    seen, rollout = [], trainer._generate_and_score_completions

    def watch(inputs):
        seen.append([row["prompt"] for row in inputs])
        return rollout(inputs)

    trainer._generate_and_score_completions = watch
    return seen


def test_each_epoch_has_an_order_of_its_own(make_run):
    trainer = make_run("whole", True, save_strategy="no")
    seen = documents_of_each_step(trainer)
    trainer.train()
    first, second = sum(seen[:4], []), sum(seen[4:], [])
    assert sorted(first) == sorted(second) and first != second


# ---- Half a pair ----


WEIGHTS = {True: "adapter_model.safetensors", False: "model.safetensors"}


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_checkpoint_without_one_half_is_named_and_changes_nothing(make_run, tmp_path, with_lora):
    make_run("run", with_lora, max_steps=2).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    trainer = make_run("run", with_lora)
    before = snapshot(trainer.model), snapshot(trainer.generator)
    for half, directory in (("generator", checkpoint / "generator"), ("summarizer", checkpoint)):
        for lost in (WEIGHTS[with_lora], "optimizer.pt", "scheduler.pt"):
            missing = (directory / lost).rename(tmp_path / "missing")
            with pytest.raises(ValueError, match=f"lacks the {half}'s half: {directory / lost}"):
                trainer.train(resume_from_checkpoint=True)
            missing.rename(directory / lost)
    assert not moved(before[0], trainer.model) and not moved(before[1], trainer.generator)


@pytest.mark.parametrize("role", ["summarizer", "generator"])
@pytest.mark.parametrize("other", [{"r": 2}, {"target_modules": ["q_proj"]}], ids=["rank", "modules"])
def test_a_checkpoint_of_another_adapter_is_refused(make_trainer, make_run, lora, tmp_path, role, other):
    make_run("run", True, max_steps=2).train()
    other = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **other})
    configs = (other, lora) if role == "summarizer" else (lora, other)
    trainer = make_trainer(
        peft_config=configs[0], generator_peft_config=configs[1], args={"output_dir": str(tmp_path)}
    )
    before = snapshot(trainer.model), snapshot(trainer.generator)
    with pytest.raises(ValueError, match=f"does not fit the {role}.*another `peft_config`"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert not moved(before[0], trainer.model) and not moved(before[1], trainer.generator)


# ---- Another run's directory ----


def test_an_output_dir_that_holds_another_run_is_refused(make_run, tmp_path):
    make_run("run", True, max_steps=2).train()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds another run, up to checkpoint-2.*resume_from_checkpoint=True"):
        make_run("run", True).train()
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_dir_that_holds_a_saved_pair_is_refused(make_run):
    make_run("run", True, save_strategy="no").save_model()
    with pytest.raises(ValueError, match="holds the pair that another run saved"):
        make_run("run", True).train()


def test_nothing_to_resume_is_an_error(make_run):
    with pytest.raises(ValueError, match="No valid checkpoint"):
        make_run("run", True).train(resume_from_checkpoint=True)
