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
What is made of a rollout's rewards beside TRL's advantages: how much of their spread within a group is signal, and
which gist of each group is imitated.

Is there signal in the reward? A group whose gists are all worth the same teaches nothing, however much their rewards
differ by which tokens happened to come.

A reward that is a mean over the target's tokens answers this by itself: split the target in halves, and what the
halves agree on about the gists of a context is signal, what they disagree on is noise.
"""

import numpy as np
import torch


def group_signal(token_gains_N: list[list[float]], num_generations: int) -> dict[str, float]:
    r"""
    Splits the spread of a reward within groups into signal and token noise, by split halves.

    If gist g is worth s_g, its mean gain over the T₁ tokens at even positions of the target is s_g + e_g and that over
    the T₂ at odd ones s_g + f_g, where e and f are the luck of the tokens, independent of each other and of s. Among
    the G gists of a context, each half less its mean over them (so that sums of products are divided by G − 1):

    - cov(s + e, s + f) = var(s), the signal;
    - var(e − f) = τ² (1/T₁ + 1/T₂) with τ² the noise of one token, so that the noise of the whole target's mean is
      τ²/T = var(e − f) T₁T₂/T²: a quarter of it where the halves are equal;
    - the reliability var(s) / (var(s) + τ²/T), the share of the reward's variance that is signal, is the halves'
      correlation r stepped up to the whole target, 2r/(1 + r) (Spearman, 1910; Brown, 1910), in the form of Rulon (A
      simplified procedure for determining the reliability of a test by split-halves, Harvard Educational Review 9,
      1939), which does not ask for halves of equal variance.

    Sums run over all groups before anything is divided, because a group alone says little; so does a rollout of a few
    groups: read the mean over many steps. A negative covariance is no signal and counts as 0. Luck that neighbouring
    tokens share passes for signal, so the estimate leans to the hopeful side.

    Args:
        token_gains_N (`list[list[float]]` of shape `(rows, target tokens)`):
            What each gist gained on each token of its target, as the columns `token_log_prob_gains` and
            `token_kl_gains`. The rows of one context are adjacent, and have the same target.
        num_generations (`int`):
            Rows per context.

    Returns:
        `dict[str, float]`: In the gains' unit, `signal_std`, the standard deviation of what the gists of a context are
        worth, and `noise_std`, that of the luck in their mean gain; and their `reliability` in [0, 1], 0 if the gists
        do not differ. All 0 where nothing can be compared: groups of one gist, or targets of one token.
    """
    covariance = noise = degrees = 0.0
    for start in range(0, len(token_gains_N), num_generations):
        gains_GT = np.array(token_gains_N[start : start + num_generations])
        gists, tokens = gains_GT.shape
        if tokens < 2:
            continue
        even_G, odd_G = (_centred(half_GT.mean(1)) for half_GT in (gains_GT[:, ::2], gains_GT[:, 1::2]))
        covariance += even_G @ odd_G
        noise += ((even_G - odd_G) ** 2).sum() * (tokens // 2) * (tokens - tokens // 2) / tokens**2
        degrees += gists - 1
    signal_variance, noise_variance = max(covariance, 0.0) / max(degrees, 1), noise / max(degrees, 1)
    reliability = signal_variance / (signal_variance + noise_variance) if signal_variance > 0 else 0.0
    return {
        "signal_std": float(np.sqrt(signal_variance)),
        "noise_std": float(np.sqrt(noise_variance)),
        "reliability": float(reliability),
    }


def _centred(values_G):
    values_G = values_G - values_G[0]  # so that equal values differ from their mean by 0, not by a rounding error
    return values_G - values_G.mean()


def best_of_group(rewards_N: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Which gist of each group is imitated: weights of 0 but for the best one's, with a mean of 1."""
    best_D = rewards_N.view(-1, num_generations).argmax(dim=1)
    return torch.nn.functional.one_hot(best_D, num_generations).flatten().to(rewards_N) * num_generations
