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


"""What the trainer computes of tensors, schedules and samplers alone."""

from contextlib import contextmanager
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR
from trl.trainer.utils import RepeatSampler


def best_of_group(rewards_N: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Which gist of each group is imitated: weights of 0 but for the best one's, with a mean of 1."""
    best_D = rewards_N.view(-1, num_generations).argmax(dim=1)
    return torch.nn.functional.one_hot(best_D, num_generations).flatten().to(rewards_N) * num_generations


def first_steps_times(factor: float, steps: int, scheduler: LambdaLR) -> LambdaLR:
    """A fresh schedule with the learning rate of its first steps multiplied."""
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"`cold_start_learning_rate` needs a schedule that is a function of the step, got {type(scheduler).__name__}. "
            "Pass another one in `optimizers`, or leave it out."
        )

    def times(schedule, step):
        return schedule(step) * (factor if step < steps else 1.0)

    return LambdaLR(scheduler.optimizer, [partial(times, schedule) for schedule in scheduler.lr_lambdas])


@contextmanager
def fields_set(args, **values):
    """Fields of `args` that hold other values inside, and their own afterwards."""
    own = {name: getattr(args, name) for name in values}
    for name, value in values.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(args, name, value)


class EpochRepeatSampler(RepeatSampler):
    """`RepeatSampler` draws each epoch's order from where the last one left its generator, so a run resumed in a later
    epoch would see the first one's order again. This one draws it from seed and epoch."""

    def set_epoch(self, epoch: int):
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)
