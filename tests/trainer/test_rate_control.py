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

"""λ by dual ascent, and budgets: the rate that is asked for is the rate that comes out."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny import make_documents

from trl_gist import GistCompactor, length_penalty, log_prob_gain
from trl_gist.prompts import SUMMARIZER_PROMPT_WITH_TAIL
from trl_gist.trainer import run_log
from trl_gist.trainer.checkpoints.pair_state import LENGTH_PENALTY_FILE
from trl_gist.trainer.length_penalty import LengthPenalty, exchange_rate


def make_penalty(value=0.0, target=None, max_kl=None, learning_rate=1e-3):
    return LengthPenalty(
        value,
        SimpleNamespace(target_gist_length=target, max_teacher_kl=max_kl, length_penalty_learning_rate=learning_rate),
    )


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


# ---- The controller ----


def test_a_fixed_price_stays():
    penalty = make_penalty(0.5)
    assert [penalty.update(length, 9.0) for length in (48, 1)] == [0.5, 0.5]


def test_a_step_is_the_integral_the_proportional_and_the_derivative_part():
    penalty = make_penalty(0.01, target=24)
    assert penalty.update(48, 1.0) == pytest.approx(0.01 + 1e-3 * (0.1 + 50 * 1))  # the integral takes a tenth at most
    # Averages of 48, 24 and 0.6 × 38.4 + 0.4 × 3
    assert penalty.update(24, 1.0) == pytest.approx(0.01 + 1e-3 * (0.2 + 50 * 0.6 + 400 * -0.4))
    error = (0.6 * 38.4 + 0.4 * 3) / 24 - 1
    assert penalty.update(3, 1.0) == pytest.approx(
        0.01 + 1e-3 * (0.2 + error + 50 * error + 400 * (error - 0.6))
    )  # an error of 0.01
    bounded = make_penalty(0.01, max_kl=1.0)
    assert bounded.update(9, 0.5) == pytest.approx(0.01 + 1e-3 * (0.25 + 50 * 0.5))
    assert bounded.update(9, 0.0) == pytest.approx(0.01 + 1e-3 * (0.5 + 50 * 0.55 + 200 * 0.05))


def test_a_length_below_its_target_is_paid_for_but_a_divergence_below_its_bound_is_not_pushed_up():
    lengthening, bounded = make_penalty(0.0, target=24), make_penalty(0.0, max_kl=0.2)
    assert lengthening.update(10, 0.1) < 0
    assert bounded.update(10, 0.4) == 0
    assert bounded.integral == 0


def test_a_divergence_within_its_bound_raises_the_price_and_one_beyond_lowers_it():
    penalty = make_penalty(0.05, max_kl=0.2)
    assert penalty.update(40, 0.1) > 0.05
    assert make_penalty(0.05, max_kl=0.2).update(40, 0.3) < 0.05


def simulated_lengths(
    target, longest, speed, momentum=0.9, noise=0.0, delay=0, drift=0.0, wander=0.0, start=-5.0, rollouts=200, seed=0
):
    """
    A policy that ends a gist with the same chance at every token, in float64. What S earns by a token (0.02, and
    `drift` more at the end) less what it costs moves the chance's logit, by at most `speed` in a rollout, with the
    optimizer's `momentum`; S's other gradients move it by `wander`. The controller reads the mean length with `noise`,
    relative to the target, and its price counts `delay` rollouts later.
    """
    penalty, random_state = make_penalty(1e-4, target=target, learning_rate=6e-3), random.Random(seed)
    logit, velocity, lengths, prices = start, 0.0, [], [penalty.value] * delay
    for rollout in range(rollouts):
        chance = 1 / (1 + math.exp(-logit))
        length = (1 - (1 - chance) ** longest) / chance
        lengths.append(length)
        prices.append(penalty.value)
        push = max(-1.0, min(1.0, (prices.pop(0) - 0.02 - drift * rollout / rollouts) / 0.05))
        velocity = momentum * velocity + (1 - momentum) * (push + random_state.gauss(0, wander))
        logit = max(-8.0, logit + speed * velocity)
        penalty.update(length + random_state.gauss(0, noise) * target, 0.5)
    return [length / target for length in lengths]


PLANTS = {
    "slow": {"speed": 0.05},
    "fast": {"speed": 0.3},
    "faster": {"speed": 0.6},
    "without-momentum": {"speed": 0.1, "momentum": 0.0},
    "long-momentum": {"speed": 0.1, "momentum": 0.95},
    "noise": {"speed": 0.1, "noise": 0.2},
    "noise-and-wander": {"speed": 0.1, "noise": 0.1, "wander": 0.5},
    "delay": {"speed": 0.1, "delay": 2},
    "delay-and-noise": {"speed": 0.1, "delay": 2, "noise": 0.1},
    "worth-rises": {"speed": 0.1, "drift": 0.04, "noise": 0.1},
    "worth-falls": {"speed": 0.1, "drift": -0.04, "noise": 0.1},
}


@pytest.mark.parametrize(("target", "longest"), [(4, 8), (24, 48)])
@pytest.mark.parametrize("plant", PLANTS)
def test_a_policy_that_starts_at_the_limit_settles_on_the_target_and_is_never_under_half_of_it(plant, target, longest):
    for seed in range(5):
        lengths = simulated_lengths(target, longest, **PLANTS[plant], seed=seed)
        assert min(lengths) > 0.5
        assert abs(sum(lengths[-50:]) / 50 - 1) < 0.2


@pytest.mark.parametrize("target", [4, 24])
def test_a_policy_that_a_cold_start_left_at_the_target_stays_there(target):
    for seed in range(5):
        lengths = simulated_lengths(target, 2 * target, speed=0.1, noise=0.1, start=-math.log(target - 1), seed=seed)
        assert min(lengths) > 0.5
        assert abs(sum(lengths[-50:]) / 50 - 1) < 0.2


def test_the_state_of_an_older_checkpoint_is_read():
    penalty = make_penalty(0.0, target=4)
    state = {"integral": 0.02, "value": 0.05, "average": 0.5}
    penalty.load_state_dict(state)
    assert penalty.state_dict() == state | {"rate": None}
    error = 0.6 * 0.5
    assert penalty.update(4, 1.0) == pytest.approx(0.02 + 1e-3 * (0.1 + 50 * error + 400 * (error - 0.5)))


def test_a_price_ends_where_length_is_six_times_the_rest():
    rewards_N, lengths_N = torch.tensor([0.1, 0.3, 2.0, 2.2]), torch.tensor([4.0, 8.0, 20.0, 24.0])
    rate = exchange_rate(rewards_N, lengths_N, num_generations=2)
    assert rate == pytest.approx(0.2 / 4)
    assert exchange_rate(rewards_N, torch.full((4,), 9.0), num_generations=2) is None  # no length to choose from
    penalty = make_penalty(0.0, target=24)
    assert penalty.update(240, 1.0, rate) == pytest.approx(1e-3 * 0.1 + 6 * rate)
    # An average of what was measured, and no measure leaves it
    assert penalty.update(1, 1.0, 0.1) == pytest.approx(1e-3 * 0.2 - 6 * (0.6 * rate + 0.4 * 0.1))
    assert penalty.update(1, 1.0, None) == pytest.approx(1e-3 * 0.3 - 6 * (0.6 * rate + 0.4 * 0.1), abs=2e-4)


# ---- In training ----


@pytest.mark.parametrize(
    "args", [{"target_gist_length": 4}, {"max_teacher_kl": 3.0}], ids=lambda args: next(iter(args))
)
def test_the_price_that_a_run_logs_is_the_controllers_on_the_lengths_and_kls_it_logs(make_trainer, args):
    """Where a run ends hangs on its path, which no test can know; that the price follows from what was seen does not."""
    args |= {"length_penalty": 0.01, "max_steps": 8, "learning_rate": 5e-3, "cold_start_steps": 2}
    trainer = make_trainer(args=args)
    rates, update = [], trainer.length_penalty.update
    trainer.length_penalty.update = lambda *means: rates.append(means[2]) or update(*means)
    trainer.train()
    penalty, rates = LengthPenalty(0.01, trainer.args), iter(rates)
    logs = [log for log in trainer.state.log_history if "length_penalty" in log]
    assert len(logs) == 8
    for log in logs:
        assert log["length_penalty"] == pytest.approx(penalty.value, rel=1e-6, abs=1e-9)
        if not log["cold_start"]:
            penalty.update(log["gist_length"], log["teacher_kl"], next(rates))
    for name, value in penalty.state_dict().items():
        assert trainer.length_penalty.state_dict()[name] == (None if value is None else pytest.approx(value, rel=1e-6))
    assert len(set(logged(trainer, "length_penalty"))) > 3


def test_the_price_that_is_logged_is_the_weight_of_the_reward(make_trainer):
    trainer = make_trainer(args={"target_gist_length": 3, "max_steps": 3})
    trainer.train()
    logs = [log for log in trainer.state.log_history if "length_penalty" in log]
    for log in logs:
        expected = log["kl_gain"] - log["length_penalty"] * log["gist_length"]
        assert log["reward"] == pytest.approx(expected, rel=1e-4)
    assert logs[1]["length_penalty"] != logs[0]["length_penalty"]


def test_a_rate_to_hold_needs_the_length_penalty(make_trainer):
    with pytest.raises(ValueError, match="add `trl_gist.length_penalty`"):
        make_trainer(args={"target_gist_length": 3}, reward_funcs=log_prob_gain)


def test_a_weight_of_ones_own_is_where_the_price_starts(make_trainer):
    args = {"target_gist_length": 3, "reward_weights": [0.3, 1.0], "max_steps": 1}
    trainer = make_trainer(args=args, reward_funcs=[length_penalty, log_prob_gain])
    trainer.train()
    assert logged(trainer, "length_penalty") == [pytest.approx(0.3)]
    assert trainer.reward_weights[1] == 1.0
    assert trainer.reward_weights[0] == pytest.approx(trainer.length_penalty.value)


def test_the_price_goes_on_after_a_resume(make_trainer, tmp_path):
    args = {"max_teacher_kl": 0.5, "length_penalty": 0.01, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(args={**args, "output_dir": str(tmp_path / "whole")})
    whole.train()
    state = json.loads((tmp_path / "whole" / "checkpoint-2" / LENGTH_PENALTY_FILE).read_text())
    assert state["average"] is not None
    resumed = make_trainer(args={**args, "output_dir": str(tmp_path / "resumed")})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.length_penalty.state_dict() == whole.length_penalty.state_dict()
    assert logged(resumed, "length_penalty")[-2:] == logged(whole, "length_penalty")[-2:]


# ---- Budgets ----


def test_no_gist_exceeds_its_budget_and_a_group_shares_one(make_trainer):
    seen = []

    def record(budget, gist_length, **kwargs):
        seen.append((budget, gist_length))
        return [float(length) for length in gist_length]

    args = {"gist_length_range": [2, 6], "max_steps": 4}
    trainer = make_trainer(
        args=args, reward_funcs=[record], eval_dataset=Dataset.from_dict({"text": make_documents(6)})
    )
    trainer.train()
    for budgets, lengths in seen:
        assert all(length <= budget for budget, length in zip(budgets, lengths, strict=True))
        assert budgets[:4] == [budgets[0]] * 4 and budgets[4:] == [budgets[4]] * 4
    assert len({budget for budgets, _ in seen for budget in budgets}) > 2
    assert all(2 <= budget <= 6 for budgets, _ in seen for budget in budgets)
    # An untrained model never stops by itself, so its gists are as long as they may be
    assert sum(length == budget for row in seen for budget, length in zip(*row, strict=True)) > 20


def test_evaluation_spreads_its_budgets_over_the_range_and_repeats_them(make_trainer):
    trainer = make_trainer(
        args={"gist_length_range": [1, 6]}, eval_dataset=Dataset.from_dict({"text": make_documents(12)})
    )
    budgets = []
    for _ in range(2):
        trainer.evaluate()
        budgets.append([row["budget"] for row in trainer.eval_rows])
        assert all(row["gist_length"] <= row["budget"] for row in trainer.eval_rows)
    assert budgets[0] == budgets[1]
    assert set(budgets[0]) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    "prompt", [None, "Shorten: {before_last_k}\n{tail}\nGist:", "{budget} of at most 5 tokens {context}"]
)
def test_the_prompt_states_the_budget(make_trainer, tokenizer, prompt):
    given = {} if prompt is None else {"summarizer_prompt": prompt}
    trainer = make_trainer(args={"gist_length_range": [2, 6], **given})
    assert trainer.args.summarizer_prompt.count("{budget}") == 1
    row = trainer.train_dataset[0]
    (prompt,) = trainer.rollout.prompt_ids([{**row, "budget": 5}])
    assert "at most 5 tokens" in tokenizer.decode(prompt)


@pytest.mark.parametrize("rule", ["tail", "mixed"])
def test_the_cold_start_keeps_to_the_budget(make_trainer, rule):
    seen = []

    def record(budget, gist_length, completion_ids, **kwargs):
        seen.extend(zip(budget, gist_length, map(len, completion_ids), strict=True))
        return [float(length) for length in gist_length]

    args = {"gist_length_range": [2, 6], "cold_start_steps": 3, "cold_start_gists": rule, "max_steps": 3}
    make_trainer(args=args, reward_funcs=[record]).train()
    assert all(gist == written == budget for budget, gist, written in seen)


def test_the_cold_start_shows_how_to_stop_at_the_target(make_trainer, tokenizer):
    completions = []

    def record(completion_ids, **kwargs):
        completions.extend(completion_ids)
        return [0.0] * len(completion_ids)

    args = {"target_gist_length": 3, "cold_start_steps": 1, "max_steps": 1}
    trainer = make_trainer(args=args, reward_funcs=[record, length_penalty])
    trainer.train()
    assert all(len(ids) == 4 and ids[-1] in trainer.eos_token_ids for ids in completions)


def test_compress_never_exceeds_its_budget(make_trainer, tmp_path, tokenizer):
    trainer = make_trainer(args={"gist_length_range": [2, 6], "max_steps": 1})
    trainer.train()
    trainer.save_model(str(tmp_path / "pair"))
    compactor = GistCompactor.from_pretrained(tmp_path / "pair")
    context = trainer.train_dataset[0]["context_ids"]
    for budget in (1, 2, 4, 6, 9):
        assert len(compactor.compress(context, budget=budget).token_ids) <= budget
    stated = compactor.prompts.summarizer(context, context[-4:], budget=4)
    assert "at most 4 tokens" in tokenizer.decode(stated)


def test_a_saved_pair_reads_the_prompt_that_training_and_its_log_showed(make_trainer, tmp_path, monkeypatch):
    """A target below the limit shortens the tail that S is shown, not the longest gist it may write."""
    held_out = Dataset.from_dict({"text": make_documents(3)})
    args = {"target_gist_length": 3, "summarizer_prompt": SUMMARIZER_PROMPT_WITH_TAIL, "max_steps": 1}
    trainer = make_trainer(args={**args, "gist_samples_steps": 1}, eval_dataset=held_out)
    row = trainer.train_dataset[0]
    (trained,) = trainer.rollout.prompt_ids([row])
    logged_prompts = []
    sample = run_log.sample_gists
    monkeypatch.setattr(run_log, "sample_gists", lambda *args: logged_prompts.extend(args[1]) or sample(*args))
    trainer.train()
    held = trainer.eval_dataset[0]
    assert trainer.prompts.summarizer(held["context_ids"], held["last_k_ids"]) in logged_prompts

    trainer.save_model(str(tmp_path / "pair"))
    compactor = GistCompactor.from_pretrained(tmp_path / "pair")
    read = []
    generate = compactor.generate
    monkeypatch.setattr(
        compactor,
        "generate",
        lambda role, prompts, **kwargs: read.extend(prompts) or generate(role, prompts, **kwargs),
    )
    compactor.compress(row["context_ids"])
    assert read == [trained]
    assert compactor.pair.max_gist_length == 6


# ---- What is refused ----


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"target_gist_length": 3, "max_teacher_kl": 0.1}, "one λ holds one constraint"),
        ({"target_gist_length": 6}, "`target_gist_length` .* must be below `max_completion_length`"),
        ({"target_gist_length": 0}, "`target_gist_length` must be above 0"),
        ({"max_teacher_kl": -1.0}, "`max_teacher_kl` must be above 0"),
        ({"length_penalty_learning_rate": 0.0}, "`length_penalty_learning_rate` must be above 0"),
        ({"gist_length_range": [4, 2]}, "must ascend"),
        ({"gist_length_range": [0, 6]}, "must ascend"),
        ({"gist_length_range": [2, 5]}, "must ascend from at least 1 to `max_completion_length`"),
        ({"gist_length_range": [2, 6], "target_gist_length": 3}, "both say how long gists are"),
        ({"gist_length_range": [2, 6], "summarizer_prompt": "Shorten {context}"}, "must contain '{budget}'"),
        ({"summarizer_prompt": "Shorten {context} to {budget}"}, "set `gist_length_range`"),
        ({"cold_start_steps": -1}, "`cold_start_steps` must be at least 0"),
        ({"cold_start_learning_rate": 0.0}, "`cold_start_learning_rate` must be above 0"),
        ({"cold_start_gists": "lead"}, "`cold_start_gists` must be one of"),
    ],
)
def test_settings_that_contradict_are_refused(make_args, args, message):
    with pytest.raises(ValueError, match=message):
        make_args(**args)


def test_under_a_bound_on_the_kl_the_cold_start_has_gists_of_every_length(make_trainer, lora):
    args = {"max_teacher_kl": 0.5, "cold_start_steps": 12, "max_steps": 12, "cold_start_gists": "tail"}
    trainer = make_trainer(peft_config=lora, args=args)
    assert trainer.args.length_penalty_learning_rate == 4e-4
    lengths, ended, score = [], [], trainer.generator_trainer.score

    def watched(rows, gists, *more, **kwargs):
        lengths.extend(len(gist) for gist in gists)
        return score(rows, gists, *more, **kwargs)

    write = trainer.rollout.write

    def completions(*more):
        output = write(*more)
        ended.extend(ids[-1] in trainer.eos_token_ids for ids in output[0])
        return output

    trainer.generator_trainer.score, trainer.rollout.write = watched, completions
    trainer.train()
    assert set(lengths) == {1, 2, 3, 4, 5, 6}
    # A tail is all that the gists of a context are, and read once
    assert ended == [
        length < 6 for length in lengths for _ in range(4)
    ]  # where the limit cuts, S need not learn to stop
