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

"""Reward functions, the built-in ones and a user's own, against plain references and through the trainer."""

import re
from pathlib import Path

import pytest
import torch

from trl_gist import binary, kl_gain, length_penalty, log_prob_gain, number_recall
from trl_gist.scripts.train import REWARD_FUNCS, load_reward_funcs


ROOT = Path(__file__).parents[2]
BUILT_IN = [log_prob_gain, kl_gain, binary, number_recall, length_penalty]


def record(seen):
    def recorder(**columns):
        seen.update(columns)
        return [0.0] * len(columns["gist_ids"])

    return recorder


def mean(values):
    return sum(values) / len(values)


# ---- Built in ----


@pytest.mark.parametrize(
    ("context", "gist", "share"),
    [
        ("In 1854, 616 of 616 died.", "1854: 616 dead", 1.0),  # each number counts once
        ("In 1854, 616 died.", "616 616 616", 0.5),
        ("It cost 1,234.5 and 7.", "cost 1234.5", 0.5),
        ("It cost 1234567.", "1,234,567", 1.0),
        ("pages 1,2,3", "1 3", 2 / 3),  # no thousands
        ("a list: 10,2000", "2000", 0.5),
        ("It weighs 3.14.", "3.14", 1.0),
        ("It weighs 3.14.", "3", 0.0),
        ("In 1854.", "18540 185 854", 0.0),
        ("No figures here.", "1854", 0.0),
        ("In 1854.", "", 0.0),
    ],
)
def test_number_recall_is_the_share_of_different_numbers_kept(context, gist, share):
    assert number_recall(prompts=[context], completions=[gist], gist_ids=[[]]) == [pytest.approx(share)]


def test_each_row_is_rewarded_for_itself():
    assert number_recall(prompts=["a 1", "b 2", "c 1"], completions=["1", "1", "2"]) == [1.0, 0.0, 0.0]
    assert binary(log_prob_gain=[0.3, -0.3, 0.0, 1e-9], kl_gain=[-1.0] * 4) == [1.0, 0.0, 0.0, 1.0]
    assert kl_gain(kl_gain=[0.25, -0.5], later_kl_gain=[0.0, 0.25], log_prob_gain=[9.0, 9.0]) == [0.25, -0.25]


def test_every_built_in_reward_can_be_named_on_the_command_line():
    assert load_reward_funcs([func.__name__ for func in BUILT_IN]) == BUILT_IN
    assert list(REWARD_FUNCS.values()) == BUILT_IN


def test_built_in_rewards_train_with_their_weights(make_trainer, lora, tokenizer, monkeypatch):
    seen = {}
    trainer = make_trainer(
        peft_config=lora,
        reward_funcs=[*BUILT_IN, record(seen)],
        args={"max_steps": 1, "length_penalty": 0.02, "context_length": 60, "max_completion_length": 12},
    )
    assert trainer.initial_reward_weights == [1.0, 1.0, 1.0, 1.0, 0.02, 1.0]
    gists = ["1854", "cholera 1854 82", "pump", "", "82 miles", "99", "1854 1854", "Snow"]
    completions = [tokenizer.encode(gist) + [tokenizer.eos_token_id] for gist in gists]
    monkeypatch.setattr(trainer.rollout, "write", lambda *args: (completions, None))
    trainer.train()

    kls = zip(seen["null_teacher_kl"], seen["teacher_kl"], strict=True)
    log_probs = list(zip(seen["gist_log_prob"], seen["null_log_prob"], strict=True))
    numbers = [(set(re.findall(r"\d+", p)), set(g.split())) for p, g in zip(seen["prompts"], gists, strict=True)]
    expected = {
        "log_prob_gain": [gist - null for gist, null in log_probs],
        "kl_gain": [null - gist for null, gist in kls],
        "binary": [1.0 if gist > null else 0.0 for gist, null in log_probs],
        "number_recall": [len(given & kept) / len(given) if given else 0.0 for given, kept in numbers],
        "length_penalty": [-len(completion) + 1 for completion in completions],
    }
    entry = trainer.state.log_history[0]
    for name, values in expected.items():
        assert entry[f"rewards/{name}/mean"] == pytest.approx(mean(values), abs=1e-6)
    assert 0 < entry["rewards/number_recall/mean"] < 1 and 0 < entry["rewards/binary/mean"] < 1
    weighted = sum(mean(values) * (0.02 if name == "length_penalty" else 1) for name, values in expected.items())
    assert entry["reward"] == pytest.approx(weighted, abs=1e-6)


# ---- A user's own ----


def test_the_reward_function_of_the_readme_works_pasted_as_is(make_trainer, lora):
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "def " in block
    )
    seen, given = {}, {}

    def tiny_trainer(rest, args, reward_funcs):
        assert rest is ...
        given.update(weights=args.reward_weights, names=[func.__name__ for func in reward_funcs])
        return make_trainer(
            peft_config=lora,
            reward_funcs=[*reward_funcs, record(seen)],
            args={"max_steps": 1, "reward_weights": [*args.reward_weights, 0.0]},
        )

    pasted = {"GistTrainer": tiny_trainer}
    exec(block, pasted)
    before = [parameter.clone() for parameter in pasted["trainer"].model.parameters()]
    pasted["trainer"].train()
    assert given == {"weights": [1.0, 1e-4, 0.01], "names": ["kl_gain", "length_penalty", "beyond_last_k"]}
    expected = []
    for gist, last_k in zip(seen["gist_ids"], seen["last_k_ids"], strict=True):
        beyond = [token for token in gist if token not in last_k]
        expected.append(len(beyond) / len(gist) if gist else 0.0)
    entry = pasted["trainer"].state.log_history[0]
    assert 0 < entry["rewards/beyond_last_k/mean"] == pytest.approx(mean(expected), abs=1e-6)
    rewards = [entry[f"rewards/{name}/mean"] for name in given["names"]]
    weighted = sum(weight * reward for weight, reward in zip(given["weights"], rewards, strict=True))
    assert entry["reward"] == pytest.approx(weighted, abs=1e-6)
    after = pasted["trainer"].model.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
