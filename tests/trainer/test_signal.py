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

"""Signal and noise of a reward, drawn with known variances: the estimates find them."""

import numpy as np
import pytest

from trl_gist.trainer.advantages import group_signal


def draw(groups, gists, tokens, signal, noise, seed=0):
    """Token gains of gists of known worth; documents differ in difficulty far more than gists do."""
    random = np.random.default_rng(seed)
    rows = []
    for difficulty in random.normal(0, 3, groups):
        by_position_T = difficulty + random.normal(0, 2, tokens)  # some tokens gain from any gist
        worth_G1 = random.normal(0, signal, (gists, 1))
        rows += (by_position_T + worth_G1 + random.normal(0, noise, (gists, tokens))).tolist()
    return rows


# (gists, tokens, signal, noise of a token). Of three tokens one half has two
SETTINGS = [(4, 32, 0.1, 0.3), (2, 8, 0.1, 0.3), (3, 7, 0.2, 0.4), (4, 3, 0.1, 0.4), (8, 2, 0.3, 0.1)]


@pytest.mark.parametrize(("gists", "tokens", "signal", "noise"), SETTINGS)
def test_known_signal_and_noise_are_found(gists, tokens, signal, noise):
    found = group_signal(draw(10_000, gists, tokens, signal, noise), gists)
    noise_of_mean = noise / tokens**0.5
    assert found["signal_std"] == pytest.approx(signal, rel=0.05)
    assert found["noise_std"] == pytest.approx(noise_of_mean, rel=0.02)
    assert found["reliability"] == pytest.approx(signal**2 / (signal**2 + noise_of_mean**2), abs=0.03)


def test_signal_and_noise_add_up_to_the_spread_that_the_policy_sees():
    """For halves of one size: within-group variance of the reward, the mean gain of the whole target."""
    rows = draw(50, 6, 10, 0.1, 0.3)
    found = group_signal(rows, 6)
    rewards = np.array(rows).mean(1).reshape(50, 6)
    assert found["signal_std"] ** 2 + found["noise_std"] ** 2 == pytest.approx(rewards.var(1, ddof=1).mean())


def test_the_reliability_is_the_correlation_of_the_reward_with_what_gists_are_worth():
    """Squared, and within groups: what reliability means, seen from data that tell the truth."""
    random = np.random.default_rng(1)
    worth = random.normal(0, 0.1, (10_000, 4, 1))
    gains = random.normal(0, 5, (10_000, 1, 1)) + worth + random.normal(0, 0.4, (10_000, 4, 16))
    found = group_signal(gains.reshape(-1, 16).tolist(), 4)
    truth, reward = (values - values.mean(1, keepdims=True) for values in (worth[..., 0], gains.mean(-1)))
    correlation = np.corrcoef(truth.ravel(), reward.ravel())[0, 1]
    assert found["reliability"] == pytest.approx(correlation**2, abs=0.02)


def test_no_signal_is_found_in_noise():
    found = group_signal(draw(10_000, 4, 16, 0.0, 0.5), 4)
    assert found["reliability"] < 0.02
    assert found["noise_std"] == pytest.approx(0.5 / 4, rel=0.02)


def test_halves_that_contradict_each_other_are_no_signal():
    assert group_signal([[1.0, -1.0], [-1.0, 1.0]], 2) == {"signal_std": 0.0, "noise_std": 2**0.5, "reliability": 0.0}


def test_halves_that_agree_are_nothing_but_signal():
    found = group_signal([[1.0, 1.0], [-1.0, -1.0]], 2)
    assert found == {"signal_std": pytest.approx(2**0.5), "noise_std": 0.0, "reliability": 1.0}


NOTHING = {"signal_std": 0.0, "noise_std": 0.0, "reliability": 0.0}


@pytest.mark.parametrize(
    ("rows", "gists"),
    [
        ([[0.1, 0.2, 0.7]] * 3 + [[0.3, 0.3, 0.9]] * 3, 3),  # 0.1 + 0.1 + 0.1 is not 0.3
        ([[0.1, 0.2], [0.5, 0.9]], 1),
        ([[0.1], [0.5]], 2),
        ([], 4),
    ],
    ids=["equal gists", "groups of one gist", "targets of one token", "no rows"],
)
def test_where_nothing_can_be_compared_there_is_no_signal(rows, gists):
    assert group_signal(rows, gists) == NOTHING


def test_groups_that_say_nothing_do_not_dilute_the_others():
    rows = draw(10, 4, 6, 0.2, 0.2)
    assert group_signal(rows + [[1.0]] * 4, 4) == group_signal(rows, 4)


def test_groups_may_have_targets_of_different_lengths():
    rows = draw(10_000, 4, 6, 0.2, 0.5) + draw(10_000, 4, 25, 0.2, 0.5, seed=1)
    found = group_signal(rows, 4)
    assert found["signal_std"] == pytest.approx(0.2, rel=0.05)
    assert found["noise_std"] ** 2 == pytest.approx((0.25 / 6 + 0.25 / 25) / 2, rel=0.05)


def test_training_logs_both_of_each_rollout(make_trainer, lora):
    columns = []

    def keep(token_log_prob_gains, token_kl_gains, log_prob_gain, kl_gain, **kwargs):
        columns.append({"log_prob_gain": token_log_prob_gains, "kl_gain": token_kl_gains})
        for tokens, means in ((token_log_prob_gains, log_prob_gain), (token_kl_gains, kl_gain)):
            assert [np.mean(row) for row in tokens] == pytest.approx(means, abs=1e-12)
        return log_prob_gain

    trainer = make_trainer(peft_config=lora, reward_funcs=keep)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(entries) == len(columns) == 2
    for entry, rollout in zip(entries, columns, strict=True):
        for name, rows in rollout.items():
            found = group_signal(rows, 4)
            assert found["noise_std"] > 0
            for measure in ("signal", "noise"):
                assert entry[f"{measure}/{name}"] == pytest.approx(found[f"{measure}_std"], rel=1e-4)
            assert entry[f"reliability/{name}"] == pytest.approx(found["reliability"], rel=1e-4)
