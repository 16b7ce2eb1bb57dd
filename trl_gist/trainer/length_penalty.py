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
λ, the price of a gist token: the weight of the reward [`trl_gist.length_penalty`], fixed or the multiplier of a
constraint.

The method is constrained: be useful, at a rate. A fixed λ names a price and takes the length that comes out; here the
user names the length, or the distance to the teacher that may be lost, and λ is found by dual ascent while the policy
learns.
"""

from typing import NamedTuple

import torch

from .gist_config import GistConfig


class _Gains(NamedTuple):
    """The controller's gains, in multiples of its integral's, and its memory."""

    decay: float  # of the moving average
    proportional: float
    derivative: float
    windup: float  # the integral takes no larger violation, so that a long way to the target does not wind it up


# A price moves the policy's logits, not the length, and the optimizer's momentum carries on for some 10 rollouts: pure
# ascent (the integral alone) drives gists to the limit, then to nothing, and back. The proportional part pulls; the
# derivative brakes, and must look about as far ahead (400 / 50 rollouts, and what the average lags) as momentum lasts.
# An average that forgot more slowly would see a fall too late to brake it.
_LENGTH = _Gains(decay=0.6, proportional=50.0, derivative=400.0, windup=0.1)
# The KL of a few contexts is noisier than the length of their gists, and a bound is not aimed at: it may be undercut
_KL = _Gains(decay=0.9, proportional=50.0, derivative=200.0, windup=0.25)
# Where proportional and derivative part end, in exchange rates. Advantages are relative: at six, length makes all but
# a sixth of their spread. A higher price pulls no harder and drowns what gists are worth; three do not brake in time.
_REACH = 6.0


def exchange_rate(rewards_N: torch.Tensor, lengths_N: torch.Tensor, num_generations: int) -> float | None:
    """
    The price at which length would count as much as all else, among the gists of a context: how far apart their other
    rewards are, over how far apart their lengths are.

    Args:
        rewards_N (`torch.Tensor` of shape `(rows,)`):
            The weighted sum of all rewards but the length penalty; the rows of a context are adjacent.
        lengths_N (`torch.Tensor` of shape `(rows,)`):
            Tokens of each gist.
        num_generations (`int`):
            Rows of a context.

    Returns:
        Reward per token, or `None` if in no context two gists differ in length.
    """
    rewards_var, lengths_var = (x_N.double().view(-1, num_generations).var(1).mean() for x_N in (rewards_N, lengths_N))
    return (rewards_var / lengths_var).sqrt().item() if lengths_var > 0 else None


class LengthPenalty:
    """
    λ in nats per target token for each gist token: fixed, or by dual ascent on `target_gist_length` or
    `max_teacher_kl`.

    The violation e is relative: (length − target) / target, or (bound − KL) / bound, as a distance that is still
    allowed is a reason to shorten; a moving average of either. λ = I + η (50 e + 400 Δe), I ← I + η e, with η =
    `length_penalty_learning_rate` and e cut at 0.1 where it is integrated: a PID controller (Stooke et al. 2020,
    https://huggingface.co/papers/2007.03964), whose integral alone is dual ascent. For the KL, whose gains are lower,
    it is 200 Δe and a cut at 0.25. For the length the part in brackets ends at six times the rollouts'
    [`exchange_rate`], a moving average: the gain of the policy's answer is measured, not assumed. The length
    constraint is an equality, so its λ may be negative and pay for tokens; the other is an inequality, and λ >= 0.

    Args:
        value (`float`):
            λ, or where it starts.
        args ([`GistConfig`]):
            The constraint, if there is one.
    """

    def __init__(self, value: float, args: GistConfig):
        self.target_length = args.target_gist_length
        self.max_teacher_kl = args.max_teacher_kl
        self.learning_rate = args.length_penalty_learning_rate
        self.integral = self.value = value
        self.average = None  # of the violation, moving
        self.rate = None  # the exchange rate's

    @property
    def is_fixed(self) -> bool:
        return self.target_length is None and self.max_teacher_kl is None

    def update(self, gist_length: float, teacher_kl: float, rate: float | None = None) -> float:
        """
        One step of dual ascent. Returns the new λ.

        Args:
            gist_length, teacher_kl (`float`):
                Means over the rollouts of all processes, in tokens and nats per target token.
            rate (`float`, *optional*):
                [`exchange_rate`] of the rollout; `None` if all its gists were of one length.
        """
        if self.is_fixed:
            return self.value
        if self.target_length is not None:
            gains, violation, lowest = _LENGTH, gist_length / self.target_length - 1, float("-inf")
        else:
            gains, violation, lowest = _KL, 1 - teacher_kl / self.max_teacher_kl, 0.0
        before = violation if self.average is None else self.average
        self.average = gains.decay * before + (1 - gains.decay) * violation
        step = gains.proportional * self.average + gains.derivative * (self.average - before)
        bounded = max(-gains.windup, min(gains.windup, self.average))
        self.integral = max(lowest, self.integral + self.learning_rate * bounded)
        pull = self.learning_rate * step
        if rate is not None:
            self.rate = rate if self.rate is None else gains.decay * self.rate + (1 - gains.decay) * rate
        if self.target_length is not None and self.rate is not None:
            pull = max(-_REACH * self.rate, min(_REACH * self.rate, pull))
        self.value = max(lowest, self.integral + pull)
        return self.value

    def state_dict(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in ("integral", "value", "average", "rate")}

    def load_state_dict(self, state: dict[str, float | None]):
        for name, value in state.items():
            setattr(self, name, value)
