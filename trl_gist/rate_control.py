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

from .gist_config import GistConfig


# How fast old rollouts are forgotten: one of 4 contexts × 4 gists is off by 5 tokens, of which the brake below would make
# more than of the trend
_DECAY = 0.8
_KL_DECAY = 0.9  # the KL of a few contexts is noisier than the length of their gists
# Gains of the controller, in multiples of its integral's. A price moves the policy's logits, not the length, so length
# answers with momentum: pure ascent (the integral alone) drives gists to the limit, then to nothing, and back. The
# proportional part pulls, the derivative brakes.
_PROPORTIONAL, _DERIVATIVE = 50.0, 200.0
# Violations beyond it are cut for the integral, so that a long way to the target does not wind it up
_WINDUP = 0.25


class LengthPenalty:
    """
    λ in nats per target token for each gist token: fixed, or by dual ascent on `target_gist_length` or `max_teacher_kl`.

    The violation e is relative: (length − target) / target, or (bound − KL) / bound, as a distance that is still allowed
    is a reason to shorten; a moving average of either. λ = I + η (50 e + 200 Δe), I ← I + η e, with η =
    `length_penalty_learning_rate`: a PID controller (Stooke et al. 2020, https://huggingface.co/papers/2007.03964),
    whose integral alone is dual ascent. The length constraint is an equality, so its λ may be negative and pay for
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
            violation, lowest = gist_length / self.target_length - 1, float("-inf")
        else:
            violation, lowest = 1 - teacher_kl / self.max_teacher_kl, 0.0
        decay = _DECAY if self.target_length is not None else _KL_DECAY
        before = violation if self.average is None else self.average
        self.average = decay * before + (1 - decay) * violation
        step = _PROPORTIONAL * self.average + _DERIVATIVE * (self.average - before)
        bounded = max(-_WINDUP, min(_WINDUP, self.average))
        self.integral = max(lowest, self.integral + self.learning_rate * bounded)
        self.value = max(lowest, self.integral + self.learning_rate * step)
        return self.value

    def state_dict(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in ("integral", "value", "average")}

    def load_state_dict(self, state: dict[str, float | None]):
        for name, value in state.items():
            setattr(self, name, value)
