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

"""What the tests of the trainers ask of parameters."""

import torch
from transformers import TrainerCallback


TIMING = ("runtime", "per_second", "step_time", "preparation_time", "train_loss", "total_flos")


def snapshot(model) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model) -> set[str]:
    """Names of the parameters that are not bit for bit what they were."""
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def without_gradients(model) -> bool:
    return all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def assert_equal_models(one, other):
    """Bit for bit."""
    assert not moved(snapshot(one), other)


def history(trainer):
    """What was logged, without timings."""
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in TIMING)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]


def rows_of(trainer):
    """The rows of each rollout, once they are scored."""
    rollouts, calculate = [], trainer._calculate_rewards

    def watch(inputs, *args):
        rewards = calculate(inputs, *args)
        rollouts.append([dict(row) for row in inputs])
        return rewards

    trainer._calculate_rewards = watch
    return rollouts


def logs_of(trainer):
    """What was logged of each rollout."""
    return [log for log in trainer.state.log_history if "gist_length" in log]


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


class AtStep(TrainerCallback):
    """Calls a function when a step is done, with the trainer's state still warm."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


@torch.no_grad()
def draw_adapters(trainer):
    """Adapters that change both models from the start."""
    torch.manual_seed(1)
    for role in (trainer.model, trainer.generator):
        for name, parameter in role.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
