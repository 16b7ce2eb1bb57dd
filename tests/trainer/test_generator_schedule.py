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

"""The generator's learning rate is the summarizer's, in proportion, and every optimizer and schedule serves both or is
refused in a sentence."""

import pytest
import torch
from checks import moved, snapshot
from datasets import Dataset
from tiny import make_documents
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames


RATES = {"learning_rate": 3e-3, "generator_learning_rate": 7e-4}

# Every schedule with counts, shares and floors of its own; None where it is refused
SCHEDULES = {
    "linear": {},
    "cosine": {"num_cycles": 1.5},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"lr_end": 1e-3, "power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": 3},
    "cosine_with_min_lr": {"min_lr": 1e-3},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-3, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_stable_steps": 2, "num_decay_steps": 4, "min_lr_ratio": 0.1},
    "reduce_lr_on_plateau": None,
    "greedy": None,
}

# Steps of the summarizer at which the generator takes its own
CLOCKS = {
    "1 step a rollout": ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
    "2 steps a rollout": ({"num_iterations": 2}, [0, 2, 4, 6]),
    "4 steps a rollout": ({"num_iterations": 2, "steps_per_generation": 2}, [0, 4]),
    "2 rollouts an accumulation": (
        {"steps_per_generation": 1, "gradient_accumulation_steps": 2, "max_steps": 3},
        [0, 0, 1, 1, 2, 2],
    ),
}


def of_summarizer(args, max_steps, warmup):
    """What transformers gives an optimizer at `learning_rate`, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    kwargs = {"num_warmup_steps": warmup, "num_training_steps": max_steps}
    scheduler = get_scheduler(
        args.lr_scheduler_type, optimizer, **kwargs, scheduler_specific_kwargs=args.lr_scheduler_kwargs
    )
    rates = []
    for _ in range(max_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_every_schedule_of_transformers_is_in_the_table():
    assert set(SCHEDULES) == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("kind", [kind for kind, kwargs in SCHEDULES.items() if kwargs is not None])
def test_the_generators_rate_is_the_summarizers_in_proportion_at_every_step(make_trainer, lora, kind):
    """The cold start multiplies the summarizer's alone."""
    args = {**RATES, "lr_scheduler_type": kind, "lr_scheduler_kwargs": SCHEDULES[kind], "warmup_steps": 3}
    trainer = make_trainer(peft_config=lora, args={**args, "cold_start_steps": 2, "cold_start_learning_rate": 6e-3})
    trainer.create_optimizer()
    trainer.create_scheduler(10)
    rates = []
    for _ in range(10):
        groups = trainer.optimizer.param_groups + trainer.generator_trainer.optimizer.param_groups
        rates.append([groups[0]["lr"], groups[-1]["lr"]])
        for half in (trainer, trainer.generator_trainer):
            half.optimizer.step()
            half.lr_scheduler.step()
    expected = of_summarizer(trainer.args, 10, warmup=3)
    assert [rate for rate, _ in rates] == pytest.approx([2 * rate for rate in expected[:2]] + expected[2:], rel=1e-12)
    assert [rate for _, rate in rates] == pytest.approx([rate * 7e-4 / 3e-3 for rate in expected], rel=1e-12)


def record_steps(trainer, monkeypatch):
    """The summarizer's step and the generator's learning rate at each step of the generator."""
    steps, step = [], trainer.generator_trainer.step

    def recorded():
        measures = step()
        steps.append((trainer.state.global_step, measures["learning_rate"]))
        return measures

    monkeypatch.setattr(trainer.generator_trainer, "step", recorded)
    return steps


@pytest.mark.parametrize(("args", "starts"), CLOCKS.values(), ids=CLOCKS)
def test_a_rollout_takes_the_rate_of_its_first_step(make_trainer, lora, monkeypatch, args, starts):
    args = {"max_steps": 8, "per_device_train_batch_size": 4, "warmup_steps": 2, **RATES, **args}
    trainer = make_trainer(peft_config=lora, args={**args, "lr_scheduler_type": "linear"})
    steps = record_steps(trainer, monkeypatch)
    trainer.train()
    expected = of_summarizer(trainer.args, args["max_steps"], warmup=2)
    assert [step for step, _ in steps] == starts
    assert [rate for _, rate in steps] == pytest.approx([expected[step] * 7e-4 / 3e-3 for step in starts], rel=1e-12)
    assert trainer.generator_trainer.lr_scheduler.last_epoch == trainer.lr_scheduler.last_epoch == args["max_steps"]


def test_an_accumulation_that_an_epoch_leaves_short_leaves_the_schedule_whole(make_trainer, lora, monkeypatch):
    args = {"per_device_train_batch_size": 4, "steps_per_generation": 1, "gradient_accumulation_steps": 2}
    trainer = make_trainer(
        train_dataset=Dataset.from_dict({"text": make_documents(3)}),
        peft_config=lora,
        args={**args, "max_steps": 4, "max_windows_per_document": 1, "lr_scheduler_type": "linear"},
    )
    steps = record_steps(trainer, monkeypatch)
    trainer.train()
    assert [step for step, _ in steps] == [0, 0, 1, 2, 2, 3]
    assert [rate for _, rate in steps] == pytest.approx([1e-3 * rate for rate in (1, 1, 0.75, 0.5, 0.5, 0.25)])
    assert trainer.generator_trainer.lr_scheduler.get_last_lr()[0] == 0


# ---- Every optimizer and every schedule ----

# They step within a backward pass, or have to be told when evaluation begins
REFUSED = [name for name in OptimizerNames if any(kind in name for kind in ("lomo", "layerwise", "schedule_free"))]


@pytest.mark.parametrize("optim", [name.value for name in OptimizerNames if name not in REFUSED])
def test_an_optimizer_steps_both_halves_or_its_package_is_named_before_training(make_trainer, lora, optim):
    low_rank = {"optim_target_modules": "all-linear"} if optim.startswith(("galore", "apollo")) else {}
    try:
        trainer = make_trainer(peft_config=lora, args={"optim": optim, "max_steps": 1, **low_rank})
    except (ImportError, ValueError) as error:
        assert any(word in str(error) for word in ("install", "import", "torchdistx")), error
        return
    before = snapshot(trainer.model), snapshot(trainer.generator)
    trainer.train()
    assert moved(before[0], trainer.model) and moved(before[1], trainer.generator)


def test_an_optimizer_with_parameter_groups_of_its_own_gives_them_to_both(make_trainer, lora, monkeypatch):
    """As GaLore and APOLLO, whose packages are not installed here."""
    from transformers import trainer_optimizer

    def own_groups(ctx):
        trained = [parameter for parameter in ctx.model.parameters() if parameter.requires_grad]
        groups = [{"params": trained[:1]}, {"params": trained[1:], "momentum": 0.5}]
        return torch.optim.SGD, {**ctx.optimizer_kwargs, "params": groups}

    monkeypatch.setitem(trainer_optimizer._OPTIMIZER_HANDLERS, OptimizerNames.GALORE_ADAMW, own_groups)
    trainer = make_trainer(peft_config=lora, args={"optim": "galore_adamw", "max_steps": 1})
    before = snapshot(trainer.generator)
    trainer.train()
    for half in (trainer, trainer.generator_trainer):
        assert [group["momentum"] for group in half.optimizer.param_groups] == [0, 0.5]
    assert moved(before, trainer.generator)


@pytest.mark.parametrize("optim", [name.value for name in REFUSED])
def test_an_optimizer_that_needs_more_than_steps_is_refused(make_args, optim):
    with pytest.raises(ValueError, match=f"`optim` must not be '{optim}'.*Choose another"):
        make_args(optim=optim)


@pytest.mark.parametrize("kind", [kind for kind, kwargs in SCHEDULES.items() if kwargs is None])
def test_a_schedule_that_follows_a_figure_is_refused(make_args, kind):
    with pytest.raises(ValueError, match=f"`lr_scheduler_type` must not be '{kind}'.*as 'linear'"):
        make_args(lr_scheduler_type=kind, eval_strategy="steps", eval_steps=1)


def test_no_clipping_is_written_as_0(make_args):
    with pytest.raises(ValueError, match="`max_grad_norm` must be a finite number, got None"):
        make_args(max_grad_norm=None)
