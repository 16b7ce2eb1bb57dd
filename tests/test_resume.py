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

import pytest
import torch
from checks import assert_equal_models, moved, snapshot
from datasets import Dataset, IterableDataset
from tiny import make_documents
from transformers import TrainerCallback


TIMING = ("runtime", "per_second", "step_time", "preparation_time", "train_loss", "total_flos")


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


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


def history(trainer):
    """What was logged, without timings."""
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in TIMING)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]


def assert_same(one, other):
    """Nested states, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


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


@pytest.mark.parametrize("kill_at", [3, 5, 7], ids=["first-epoch", "between-epochs", "second-epoch"])
@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_resume_after_kill_is_bit_identical(make_run, with_lora, streaming, kill_at):
    whole = make_run("whole", with_lora, streaming)
    whole.train()
    assert whole.state.global_step == 8
    resumed = kill_and_resume(make_run, kill_at, with_lora, streaming)
    assert resumed.state.global_step == 8
    assert_same_run(whole, resumed)
