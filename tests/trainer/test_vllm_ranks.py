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
vLLM under two processes and ZeRO-3, where S's weights are gathered to be merged: what tests/trainer/test_vllm.py says
of one process. Launched, it trains and leaves what each rank has seen: `test_vllm_ranks.py DIRECTORY`.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from distributed_run import make_trainer, save_checkpoint
from launching import launch
from test_vllm import MODES, gist_of, merged_weights, stand_in_for_vllm, watch_rollouts, without_eos

from trl_gist.models.deepspeed import whole_state_dict


def run(directory, mode) -> dict:
    with pytest.MonkeyPatch.context() as monkeypatch:
        vllm = stand_in_for_vllm(monkeypatch)
        trainer = make_trainer(
            f"{directory}/{mode}",
            processes=2,
            with_lora=True,
            **{"dtype": "float32", "max_steps": 1, "save_strategy": "no", "eval_strategy": "no"},
            **{"use_vllm": True, "vllm_mode": mode, "vllm_importance_sampling_mode": "token_truncate"},
            vllm_importance_sampling_clip_min=0.5,
        )
        del trainer.rollout.write  # the stand-in for sampling of distributed_run.py
        rollouts = watch_rollouts(trainer)
        trainer.train()
        roles = (trainer.model, trainer.generator, trainer.teacher)
        before = [whole_state_dict(role) for role in roles]
        trainer.vllm_generation.sync_weights()
        changed = [
            name
            for role, state in zip(roles, before, strict=True)
            for name, value in whole_state_dict(role).items()
            if not torch.equal(value, state[name])
        ]
        expected = merged_weights(trainer.model, f"{directory}/checkpoint")
        seen = {
            "changed": changed,
            "adapted": sum(bool(value.any()) for name, value in before[0].items() if "lora_B" in name),
            "requests": [[request.prompts, request.n] for request in vllm.requests],
            "prompts": [rollout.prompts for rollout in rollouts],
            "gists": [rollout.gists for rollout in rollouts],
            "handed_over": sorted(vllm.weights),
            "expected": sorted(expected),
            "error": max(
                ((vllm.weights[name].double() - expected[name]).abs().max().item() for name in vllm.weights),
                default=0.0,
            ),
        }
        trainer.accelerator.free_memory()
        return seen


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("zero3")
    save_checkpoint(directory)
    launch(__file__, str(directory), config="zero3")
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("mode", MODES)
def test_sharded_weights_are_handed_over_whole_and_merged_and_stay_what_they_are(two_ranks, mode):
    for rank, seen in enumerate(ranks := [each[mode] for each in two_ranks]):
        assert seen["changed"] == [] and seen["adapted"] == 14
        if mode == "colocate" or rank == 0:  # the main process alone talks to a server
            assert seen["handed_over"] == seen["expected"]
            assert seen["error"] < 1e-6
    assert ranks[0]["expected"]


@pytest.mark.parametrize("mode", MODES)
def test_each_rank_gets_the_gists_of_its_own_contexts(two_ranks, mode):
    ranks = [each[mode] for each in two_ranks]
    contexts = [seen["prompts"][0][0] for seen in ranks]
    assert contexts[0] != contexts[1]
    for seen, context in zip(ranks, contexts, strict=True):
        assert seen["prompts"][0] == [context] * 4
        assert seen["gists"][0] == [without_eos(gist_of(context, index, 6)) for index in range(4)]
    if mode == "server":
        assert ranks[0]["requests"][0] == [contexts, 4], "the contexts of all ranks, each once"
    else:
        assert [seen["requests"][0] for seen in ranks] == [[[context], 4] for context in contexts]
    assert mode == "colocate" or not ranks[1]["requests"]


if __name__ == "__main__":
    directory, rank = sys.argv[1], os.environ["RANK"]
    Path(directory, f"{rank}.json").write_text(json.dumps({mode: run(directory, mode) for mode in MODES}))
