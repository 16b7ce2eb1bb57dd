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
Gists sampled by vLLM in the process, for real. test_vllm.py asks with a stand-in what passes between the two; what the
stand-in says is asked here of the engine.
"""

import inspect
import os
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from checks import AtStep, assert_equal_models, draw_adapters, history, moved, snapshot
from datasets import Dataset
from engine_checkpoints import save_checkpoint
from launching import PYTHONPATH, finished
from tiny import make_documents


pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `make vllm-check` installs it")
EOS = 2
KINDS = pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny-llama"), tokenizer, tie_word_embeddings=False)


def watch_rollouts(trainer):
    """Prompts and completions of each rollout, and what TRL keeps of it."""
    rollouts, write, rollout = [], trainer.rollout.write, trainer._generate_and_score_completions

    def watch_write(rows, prompt_ids):
        completions, logprobs = write(rows, prompt_ids)
        rollouts.append(SimpleNamespace(rows=rows, prompts=prompt_ids, completions=completions))
        return completions, logprobs

    def watch_rollout(inputs):
        output = rollout(inputs)
        rollouts[-1].kept = output
        return output

    trainer.rollout.write, trainer._generate_and_score_completions = watch_write, watch_rollout
    return rollouts


def watch_engine(trainer):
    """What is asked of the engine from here on."""
    engine, requests = trainer.vllm_generation.llm, []
    generate = engine.generate

    def watch(prompts, sampling_params, **kwargs):
        outputs = generate(prompts, sampling_params=sampling_params, **kwargs)
        requests.append(SimpleNamespace(prompts=prompts, params=sampling_params, outputs=outputs))
        return outputs

    engine.generate = watch
    return requests


def ask(trainer, prompts, **settings):
    """The engine as vLLM has it, without TRL."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": ids} for ids in prompts]
    engine = trainer.vllm_generation.llm
    return type(engine).generate(engine, prompts, sampling_params=SamplingParams(**settings), use_tqdm=False)


@torch.no_grad()
def own_greedy(model, prompts, tokens):
    """What transformers writes greedily, prompt by prompt."""
    training = model.training
    model.eval()
    settings = {"max_new_tokens": tokens, "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    written = [model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in prompts]
    model.train(training)
    return written


@torch.no_grad()
def log_probs(model, prompt, completion, temperature=1.0):
    """Of every token at the completion's positions, by one plain forward."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


def ratios(rollout):
    return rollout.kept["importance_sampling_ratio"][rollout.kept["completion_mask"].bool()]


# ---- Weights ----


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@KINDS
def test_after_each_of_five_steps_the_engine_writes_what_s_writes(make_run, tokenizer, with_lora, tied, tmp_path):
    path = save_checkpoint(tmp_path / "tied", tokenizer, tie_word_embeddings=True) if tied else None
    trainer = make_run(with_lora, path, args={"max_steps": 5})
    draw_adapters(trainer)
    before, rollouts, seen = snapshot(trainer.model), watch_rollouts(trainer), []

    def compare():
        prompts = [*rollouts[-1].prompts[::4], [7, 8, 9], list(range(5, 60))]
        trainer.vllm_generation.sync_weights()
        own = own_greedy(trainer.model, prompts, 16)
        asked = ask(trainer, prompts, temperature=0.0, max_tokens=16)
        assert [list(output.outputs[0].token_ids) for output in asked] == own
        seen.append(str(own))

    for step in range(1, 6):
        trainer.add_callback(AtStep(step, compare))
    trainer.train()
    assert len(set(seen)) == 5, "each step wrote something else"
    assert moved(before, trainer.model) and len(rollouts) == 5
    for rollout in rollouts:
        torch.testing.assert_close(ratios(rollout), torch.ones_like(ratios(rollout)), rtol=0, atol=2e-3)


def test_a_sync_leaves_all_three_models_bit_for_bit(make_run):
    trainer = make_run()
    draw_adapters(trainer)
    roles = (trainer.model, trainer.generator, trainer.teacher)
    before = [snapshot(role) for role in roles]
    for _ in range(3):
        trainer.vllm_generation.sync_weights()
    assert not any(moved(copies, role) for copies, role in zip(before, roles, strict=True))


def test_the_engine_computes_in_what_s_is_trained_in(make_run):
    """A checkpoint of float32, which vLLM would sample in half of it by itself."""
    trainer = make_run(args={"bf16": True})
    config = trainer.vllm_generation.llm.llm_engine.model_config
    assert config.dtype == torch.bfloat16 and config.enforce_eager
    rollouts = watch_rollouts(trainer)
    trainer.train()
    assert (ratios(rollouts[0]).log().abs() < 0.5).all() and ratios(rollouts[0]).log().abs().mean() < 0.1


# ---- Random numbers ----


def test_the_engine_leaves_the_runs_random_numbers_alone(make_run):
    drawn = []
    for settings in ({"use_vllm": False}, {}, {"seed": 8}):
        trainer = make_run(args=settings)
        drawn.append((snapshot(trainer.generator), torch.rand(4)))
    (plain, after_plain), (with_engine, after_engine), (other, after_other) = drawn
    assert plain.keys() == with_engine.keys()
    assert all(torch.equal(value, with_engine[name]) for name, value in plain.items())
    assert torch.equal(after_plain, after_engine)
    assert not torch.equal(after_engine, after_other)
    assert any(not torch.equal(value, other[name]) for name, value in plain.items())


# ---- Gists ----


def test_each_context_goes_out_once_and_its_gists_come_back_with_their_log_probs(make_run):
    trainer = make_run(args={"temperature": 0.7})
    draw_adapters(trainer)
    rollouts, requests = watch_rollouts(trainer), watch_engine(trainer)
    trainer.rollout(trainer.rollout.rows([dict(row) for row in trainer.train_dataset.select([0] * 4 + [1] * 4)]))
    (rollout,), (request,) = rollouts, requests
    assert (request.params.n, request.params.temperature) == (4, 0.7)
    assert [output.prompt_token_ids for output in request.outputs] == rollout.prompts
    assert rollout.prompts[:4] == [rollout.prompts[0]] * 4 and rollout.prompts[0] != rollout.prompts[4]
    assert len({tuple(ids) for ids in rollout.completions}) > 4
    for prompt, output in zip(rollout.prompts, request.outputs, strict=True):
        (gist,) = output.outputs
        ids = list(gist.token_ids)
        assert EOS not in ids[:-1] and (ids[-1] == EOS or len(ids) == 12)
        expected = log_probs(trainer.model, prompt, ids, temperature=0.7)[range(len(ids)), ids]
        logprobs = [each[token].logprob for each, token in zip(gist.logprobs, ids, strict=True)]
        torch.testing.assert_close(torch.tensor(logprobs).double(), expected, rtol=0, atol=1e-3)


def test_gists_are_drawn_as_often_as_s_says(make_run):
    """Of one token, 2,000 times: the frequencies are within four standard deviations of S's probabilities."""
    trainer = make_run(with_lora=False)
    trainer.vllm_generation.sync_weights()
    prompt, draws = list(range(5, 30)), 2000
    (output,) = ask(trainer, [prompt], n=draws, max_tokens=1, temperature=1.0)
    counts = torch.zeros(trainer.model.config.vocab_size)
    for gist in output.outputs:
        counts[gist.token_ids[0]] += 1
    expected = log_probs(trainer.model, prompt, [0])[0].exp()
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() < 4 * deviation + 2 / draws).all()


def test_top_p_bends_the_log_probs_by_the_mass_that_it_leaves(make_run):
    """What a run with `top_p` would be corrected by, and why it is refused: every ratio is that mass."""
    trainer = make_run(with_lora=False)
    trainer.vllm_generation.sync_weights()
    prompt = list(range(5, 30))
    (output,) = ask(trainer, [prompt], n=8, max_tokens=6, temperature=1.0, top_p=0.6, logprobs=0)
    masses = []
    for gist in output.outputs:
        ids = list(gist.token_ids)
        own = log_probs(trainer.model, prompt, ids)
        for position, token in enumerate(ids):
            sorted_probs = own[position].exp().sort(descending=True).values
            nucleus = sorted_probs[: int((sorted_probs.cumsum(0) < 0.6).sum()) + 1].sum()
            assert own[position, token].exp() >= sorted_probs[int((sorted_probs.cumsum(0) < 0.6).sum())] - 1e-9
            ratio = (own[position, token] - gist.logprobs[position][token].logprob).exp()
            torch.testing.assert_close(ratio, nucleus, rtol=1e-3, atol=1e-3)
            masses.append(float(ratio))
    assert max(masses) < 1 - 1e-3
    with pytest.raises(ValueError, match="`top_p` must be 1.0, got 0.6"):
        make_run(args={"top_p": 0.6})


def test_gists_and_their_log_probs_end_at_their_budgets(make_run):
    trainer = make_run(args={"gist_length_range": [2, 8], "max_steps": 3, "max_completion_length": 8})
    draw_adapters(trainer)
    rollouts = watch_rollouts(trainer)
    trainer.train()
    budgets = [row["budget"] for rollout in rollouts for row in rollout.rows]
    lengths = [int(length) for rollout in rollouts for length in rollout.kept["completion_mask"].sum(1)]
    assert all(length <= budget for length, budget in zip(lengths, budgets, strict=True))
    assert len(set(budgets)) > 1 and any(length == budget < 8 for length, budget in zip(lengths, budgets, strict=True))
    for rollout in rollouts:
        torch.testing.assert_close(ratios(rollout), torch.ones_like(ratios(rollout)), rtol=0, atol=2e-3)


def test_the_cold_start_does_without_the_engine(make_run):
    trainer = make_run(args={"cold_start_steps": 2, "max_steps": 3})
    rollouts, requests = watch_rollouts(trainer), watch_engine(trainer)
    trainer.train()
    assert len(rollouts) == 3 and len(requests) == 1
    for rollout in rollouts[:2]:
        assert (rollout.kept["importance_sampling_ratio"] == 1).all()
    torch.testing.assert_close(ratios(rollouts[2]), torch.ones_like(ratios(rollouts[2])), rtol=0, atol=2e-3)


@pytest.mark.parametrize("gists", [1, 2])
def test_evaluation_is_what_s_writes_greedily(make_run, gists):
    rows = Dataset.from_dict({"text": make_documents(3)})
    trainer = make_run(eval_dataset=rows, args={"num_generations_eval": gists})
    draw_adapters(trainer)
    rollouts, requests = watch_rollouts(trainer), watch_engine(trainer)
    measures = trainer.evaluate()
    assert measures["eval_teacher_kl"] > 0 and len(requests) == len(rollouts) > 0
    for rollout, request in zip(rollouts, requests, strict=True):
        assert (request.params.n, request.params.temperature) == (1, 0.0)
        assert rollout.completions == own_greedy(trainer.model, rollout.prompts, 12)
    trainer.train()
    assert (requests[-1].params.n, requests[-1].params.temperature) == (4, 1.0), "and training samples again"


# ---- A run ----


@KINDS
def test_a_resumed_run_is_the_run_that_was_not_stopped(make_run, with_lora, tmp_path):
    def run(name, steps, **kwargs):
        saving = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / name)}
        trainer = make_run(with_lora, args={**saving, "max_steps": steps, "lr_scheduler_type": "constant"})
        rollouts = watch_rollouts(trainer)
        trainer.train(**kwargs)
        return trainer, rollouts

    whole, _ = run("whole", 4)
    run("stopped", 2)
    torch.manual_seed(99)
    resumed, rollouts = run("stopped", 4, resume_from_checkpoint=True)
    assert len(rollouts) == 2
    assert_equal_models(whole.model, resumed.model)
    assert_equal_models(whole.generator, resumed.generator)
    assert history(whole) == history(resumed)


FAILS = """
import sys
from datasets import Dataset
from engine_checkpoints import save_checkpoint
from tiny import make_documents
from trl_gist import GistConfig, GistTrainer

def main():
    args = GistConfig(
        output_dir=sys.argv[2], use_vllm=True, vllm_mode="colocate", use_cpu=True, bf16=False, report_to="none",
        context_length=24, target_length=8, last_k=4, max_completion_length=6, cold_start_steps=0, num_generations=4,
        per_device_train_batch_size=8, max_steps=3, save_strategy="no",
    )
    trainer = GistTrainer(sys.argv[1], args, train_dataset=Dataset.from_dict({"text": make_documents(12)}))
    runner = trainer.vllm_generation.llm.llm_engine.model_executor.driver_worker.model_runner
    execute, calls = runner.execute_model, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > 8:
            raise RuntimeError("the engine broke at its ninth step")
        return execute(*args, **kwargs)

    runner.execute_model = fail
    print("begins", flush=True)
    trainer.train()

if __name__ == "__main__":
    main()
"""


def test_an_engine_that_fails_ends_the_run_with_its_cause(checkpoint, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    command = [sys.executable, str(script), checkpoint, str(tmp_path / "run")]
    done = finished(command, 600, env={**os.environ, "PYTHONPATH": PYTHONPATH})
    assert "begins" in done.stdout, done.stderr[-3000:]
    assert done.returncode == 1 and "the engine broke at its ninth step" in done.stderr


def test_after_an_engine_that_failed_the_same_process_trains_on(make_run):
    trainer = make_run(args={"max_steps": 2})
    rollouts = watch_rollouts(trainer)
    engine = trainer.vllm_generation.llm.llm_engine
    runner = engine.model_executor.driver_worker.model_runner
    execute, calls = runner.execute_model, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the engine broke at its fifth step")
        return execute(*args, **kwargs)

    runner.execute_model = fail
    with pytest.raises(RuntimeError, match="the engine broke at its fifth step"):
        trainer.train()
    assert not engine.has_unfinished_requests(), "for which the next call would wait"
    trainer.train()
    assert trainer.state.global_step == 2 and len(rollouts) == 2
    for rollout in rollouts:
        torch.testing.assert_close(ratios(rollout), torch.ones_like(ratios(rollout)), rtol=0, atol=2e-3)


# ---- What the stand-in says ----


def test_the_engine_refuses_and_returns_what_the_stand_in_does(make_run):
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="n must be 1 when using greedy sampling"):
        SamplingParams(n=2, temperature=0.0)
    assert {"prompts", "sampling_params", "use_tqdm"} <= set(inspect.signature(LLM.generate).parameters)
    trainer = make_run()
    trainer.vllm_generation.sync_weights()
    prompts = [[7, 8], [9, 10, 11]]
    outputs = ask(trainer, prompts, n=3, max_tokens=40, temperature=1.0, logprobs=0)
    assert [output.prompt_token_ids for output in outputs] == prompts
    for output in outputs:
        assert [gist.index for gist in output.outputs] == [0, 1, 2]
        for gist in output.outputs:
            assert len(gist.logprobs) == len(gist.token_ids) <= 40
            assert [list(each) for each in gist.logprobs] == [[token] for token in gist.token_ids]
            assert (gist.finish_reason == "stop") == (gist.token_ids[-1] == EOS)
    assert {gist.finish_reason for output in outputs for gist in output.outputs} <= {"stop", "length"}


def test_a_server_is_handed_no_weights_without_cuda(monkeypatch):
    """Where `vllm_mode="server"` ends on a CPU: TRL's client, as the trainer makes it."""
    from trl.generation.vllm_client import VLLMClient

    client = VLLMClient.__new__(VLLMClient)
    client.base_url, client.group_port = "http://localhost:1", 1
    monkeypatch.setattr(client, "get_server_info", lambda: {"weight_transfer_config": {"backend": "nccl"}})
    monkeypatch.setattr(client, "get_world_size", lambda: 1)
    with pytest.raises(NotImplementedError, match="needs a CUDA device, got 'cpu'"):
        client.init_communicator(device="cpu")
