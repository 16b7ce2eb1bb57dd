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
λ, the price of a gist token, as the multiplier of a constraint.

The method is constrained: be useful, at a rate. A fixed λ names a price and takes the length that comes out; here the
user names the length, or the distance to the teacher that may be lost, and λ is found by dual ascent while the policy
learns.
"""

from typing import NamedTuple

from .gist_config import GistConfig


class _Gains(NamedTuple):
    """Of the controller, in multiples of its integral's, and its memory."""

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


class LengthPenalty:
    """
    λ in nats per target token for each gist token: fixed, or by dual ascent on `target_gist_length` or `max_teacher_kl`.

    The violation e is relative: (length − target) / target, or (bound − KL) / bound, as a distance that is still allowed
    is a reason to shorten; a moving average of either. λ = I + η (50 e + 400 Δe), I ← I + η e, with η =
    `length_penalty_learning_rate` and e cut at 0.1 where it is integrated: a PID controller (Stooke et al. 2020,
    https://huggingface.co/papers/2007.03964), whose integral alone is dual ascent. For the KL, whose gains are lower,
    it is 200 Δe and a cut at 0.25. The length constraint is an equality, so its λ may be negative and pay for
    tokens; the other is an inequality, and λ >= 0.

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

    @property
    def is_fixed(self) -> bool:
        return self.target_length is None and self.max_teacher_kl is None

    def update(self, gist_length: float, teacher_kl: float) -> float:
        """
        One step of dual ascent. Args are means over the rollouts of all processes, in tokens and nats per target token.
        Returns the new λ.
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
        self.value = max(lowest, self.integral + self.learning_rate * step)
        return self.value

    def state_dict(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in ("integral", "value", "average")}

    def load_state_dict(self, state: dict[str, float | None]):
        for name, value in state.items():
            setattr(self, name, value)
