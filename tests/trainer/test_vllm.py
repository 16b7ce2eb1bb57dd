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
What passes between the trainer and vLLM: weights one way, prompts and gists the other. vLLM itself is stood in for, at
the two objects that TRL (1.16) talks to: the engine in the process and the client of a server. tests/engine asks the
engine itself, and holds its stand-in to it; no server has been asked.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checks import draw_adapters, moved, snapshot
from datasets import Dataset
from safetensors.torch import load_file
from tiny import make_documents, make_model
from transformers import AutoModelForCausalLM, Phi3Config
from trl.generation import vllm_generation

from trl_gist.common.tokens import characters_of
from trl_gist.models.deepspeed import whole_state_dict
from trl_gist.models.roles import storage_pointers
from trl_gist.trainer import gist_trainer
from trl_gist.trainer.vllm import engine_for


EOS = 2
MODES = ("colocate", "server")
DTYPES = {"float32": 1e-6, "bfloat16": 1e-2}


# ---- What stands in for vLLM ----


def gist_of(prompt, index, most):
    """What the stand-in writes: no two contexts or gists alike, every other gist too long for an end."""
    first, length = 5 + sum(prompt) % 150, 3 + index
    ids = [first + 30 * index + position for position in range(length)] + [EOS]
    return ids[:most]


def logprob_of(token):
    return -token / 100


class VLLM:
    """Records what it is given. Refuses what vLLM refuses."""

    def __init__(self):
        self.settings, self.requests, self.syncs, self.weights = {}, [], 0, {}

    def sample(self, prompts, n, temperature, max_tokens, logprobs, **settings):
        assert logprobs == 0 and (n == 1 or temperature > 0), "n must be 1 when using greedy sampling"
        self.requests.append(SimpleNamespace(prompts=prompts, n=n, temperature=temperature, **settings))
        return [[gist_of(prompt, index, max_tokens) for index in range(n)] for prompt in prompts]

    def take(self, named_tensors):
        for name, tensor in named_tensors:
            assert name not in self.weights
            self.weights[name] = tensor.clone()


class SamplingParams(SimpleNamespace):
    pass


class RequestOutput(SimpleNamespace):
    pass


class Engine:
    """`vllm.LLM`, as far as TRL uses it."""

    def __init__(self, vllm, **settings):
        self.vllm, self.asleep = vllm, False
        vllm.settings = settings
        model = torch.nn.Module()  # of a GPU: nothing in it is packed
        model.load_weights = self.load_weights
        runner = SimpleNamespace(model=model)
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        )
        self.started = True

    def load_weights(self, named_tensors):
        assert not self.asleep
        if self.started:
            self.vllm.weights, self.started = {}, False
        self.vllm.take(named_tensors)

    def reset_prefix_cache(self):
        self.started = True
        self.vllm.syncs += 1

    def sleep(self, level):
        self.asleep = True

    def wake_up(self, tags):
        self.asleep = False

    def generate(self, prompts, sampling_params, use_tqdm):
        assert not self.asleep
        ids = [prompt["prompt_token_ids"] for prompt in prompts]

        def completion(gist):
            logprobs = [{token: SimpleNamespace(rank=1, logprob=logprob_of(token))} for token in gist]
            return SimpleNamespace(token_ids=gist, logprobs=logprobs)

        return [
            RequestOutput(prompt_token_ids=prompt, outputs=[completion(gist) for gist in gists])
            for prompt, gists in zip(ids, self.vllm.sample(ids, **vars(sampling_params)), strict=True)
        ]


class Client:
    """`trl.generation.vllm_client.VLLMClient`, as far as the trainer uses it."""

    def __init__(self, vllm, **settings):
        self.vllm = vllm
        vllm.settings = settings

    def init_communicator(self, device):
        pass

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, named_params):
        packed = list(named_params)  # the broadcast holds several tensors before it sends them
        assert metadata == [
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in packed
        ]
        self.vllm.weights = {}
        self.vllm.take(packed)

    def reset_prefix_cache(self):
        self.vllm.syncs += 1

    def generate(self, prompts, features, generation_kwargs, structured_outputs_regex, **settings):
        assert features is None and structured_outputs_regex is None
        each = self.vllm.sample(prompts, **{**settings, **generation_kwargs})
        gists = [gist for gists in each for gist in gists]
        return {
            "prompt_ids": prompts,
            "completion_ids": gists,
            "logprobs": [[[logprob_of(token)] for token in gist] for gist in gists],
            "logprob_token_ids": [[[token] for token in gist] for gist in gists],
        }


def stand_in_for_vllm(monkeypatch) -> VLLM:
    stand_in = VLLM()
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setattr(vllm_generation, "LLM", lambda **settings: Engine(stand_in, **settings), raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", lambda **settings: Client(stand_in, **settings))
    monkeypatch.setattr(vllm_generation, "empty_cache", lambda: None)
    return stand_in


@pytest.fixture
def vllm(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # TRL sets them for vLLM; so they are gone again after the test
        monkeypatch.delenv(name)
    return stand_in_for_vllm(monkeypatch)


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def make_run(vllm, make_trainer, lora):
    """A trainer whose gists come from the stand-in; with LoRA, adapters that change the model from the start."""

    def make(mode, with_lora=True, **kwargs):
        # What the stand-in calls its log-probs is not S's: uncut, the correction would leave next to no gradient
        correction = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": 0.5}
        args = {"use_vllm": True, "vllm_mode": mode, **correction, **kwargs.pop("args", {})}
        trainer = make_trainer(peft_config=lora if with_lora else None, args=args, **kwargs)
        draw_adapters(trainer)
        return trainer

    return make


def watch_rollouts(trainer):
    """Filled while it trains or evaluates: prompts, rows and gists of each rollout, and what TRL keeps of it."""
    rollouts, score, rollout = [], trainer.generator_trainer.score, trainer._generate_and_score_completions

    def watch_score(rows, gists, *args, **kwargs):
        rollouts.append(SimpleNamespace(prompts=trainer.rollout.prompt_ids(rows), rows=rows, gists=gists))
        return score(rows, gists, *args, **kwargs)

    def watch_rollout(inputs):
        output = rollout(inputs)
        rollouts[-1].kept = output
        return output

    trainer.generator_trainer.score, trainer._generate_and_score_completions = watch_score, watch_rollout
    return rollouts


def without_eos(ids):
    return ids[:-1] if ids[-1] == EOS else ids


# ---- Weights ----


def merged_weights(model, checkpoint):
    """S's weights by the names of a plain model, in float64: base + scaling · B · A. All ranks call it."""
    weights = load_file(Path(checkpoint, "model.safetensors"))  # a tied head is there once, as it is handed over
    state = whole_state_dict(model)
    for name in weights:
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.default.weight" in state:
            scaling = model.peft_config["default"].lora_alpha / model.peft_config["default"].r
            a, b = (state[f"{prefix}.lora_{factor}.default.weight"].double() for factor in "AB")
            weights[name] = weights[name].double() + scaling * b @ a
        elif not hasattr(model, "peft_config"):
            weights[name] = state[name]
    return {name: weight.double() for name, weight in weights.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_the_weights_handed_over_are_the_merged_weights_under_a_plain_models_names(
    make_run, vllm, mode, checkpoint, with_lora, dtype
):
    trainer = make_run(mode, with_lora, args={"model_init_kwargs": {"dtype": dtype}})
    before = snapshot(trainer.model)
    trainer.train()
    assert moved(before, trainer.model)
    trainer.vllm_generation.sync_weights()
    expected = merged_weights(trainer.model, checkpoint)
    assert vllm.weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(vllm.weights[name].double(), weight, rtol=DTYPES[dtype], atol=DTYPES[dtype])
        assert str(vllm.weights[name].dtype) == f"torch.{dtype}"
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    if with_lora:
        adapted = [name for name, weight in plain.named_parameters() if not torch.equal(weight, vllm.weights[name])]
        assert len(adapted) == 2 * 7, "every linear layer of both blocks, and nothing else"
    if dtype == "float32":
        plain.load_state_dict(vllm.weights, strict=False)  # a tied head comes once
        ids = torch.arange(5, 25).unsqueeze(0)
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, trainer.model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_sync_leaves_all_three_models_bit_for_bit(make_run, vllm, mode, with_lora, dtype):
    trainer = make_run(mode, with_lora, args={"model_init_kwargs": {"dtype": dtype}})
    roles = (trainer.model, trainer.generator, trainer.teacher)
    before, pointers = [snapshot(role) for role in roles], [storage_pointers(role) for role in roles]
    for _ in range(3):
        trainer.vllm_generation.sync_weights()
    assert vllm.syncs == 3
    for role, copies, where in zip(roles, before, pointers, strict=True):
        assert not moved(copies, role)
        assert storage_pointers(role) == where


@pytest.mark.parametrize(("dtype", "least", "most"), [("bfloat16", 3e-3, 3e-2), ("float32", 3e-8, 3e-7)])
def test_merging_in_place_would_move_the_base(make_run, dtype, least, most):
    """What the copy is for: how far, of its norm, 100 syncs of an adapter that trains would move the base."""
    model = make_run("colocate", args={"model_init_kwargs": {"dtype": dtype}}).model
    before = {name: value for name, value in snapshot(model).items() if "base_layer" in name}
    torch.manual_seed(0)
    for _ in range(100):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter) * 1e-3)
        model.merge_adapter()
        model.unmerge_adapter()
    after = dict(model.named_parameters())
    moved_by = sum((after[name] - value).double().square().sum() for name, value in before.items()).sqrt()
    drift = moved_by / sum(value.double().square().sum() for value in before.values()).sqrt()
    print(f"{dtype}: {drift:.1e}")
    assert least < drift < most


def test_the_summarizer_has_a_base_of_its_own_and_the_others_share_one(make_run, mode):
    trainer = make_run(mode)
    own, generator, teacher = map(storage_pointers, (trainer.model, trainer.generator, trainer.teacher))
    assert not own & generator and teacher < generator


def test_the_teacher_is_the_models_checkpoint_though_the_generator_is_another(
    make_run, mode, checkpoint, tokenizer, tmp_path
):
    make_model(tokenizer, seed=5).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    trainer = make_run(mode, generator=str(tmp_path / "other"))
    expected = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not moved(snapshot(expected), trainer.teacher)
    assert not storage_pointers(trainer.teacher) & storage_pointers(trainer.model)


def test_a_run_trains_with_the_teacher_bit_for_bit_and_syncs_once_a_step(make_run, vllm, mode):
    trainer = make_run(mode, args={"max_steps": 3, "gradient_accumulation_steps": 2, "num_iterations": 2})
    teacher, base = snapshot(trainer.teacher), snapshot(trainer.model)
    rollouts = watch_rollouts(trainer)
    trainer.train()
    assert not moved(teacher, trainer.teacher)
    assert all("lora_" in name for name in moved(base, trainer.model))
    assert len(rollouts) == len(vllm.requests) == vllm.syncs == 2, "a rollout serves two steps"


def test_an_engine_that_sleeps_is_woken_with_weights(make_run, vllm):
    trainer = make_run("colocate", args={"vllm_enable_sleep_mode": True})
    teacher, base = snapshot(trainer.teacher), snapshot(trainer.model)
    trainer.train()
    assert len(vllm.requests) == 2 and vllm.syncs == 2
    assert not moved(teacher, trainer.teacher)
    assert all("lora_" in name for name in moved(base, trainer.model))


def test_the_best_models_weights_are_handed_over_when_it_is_loaded(make_run, vllm, mode, checkpoint):
    rows = Dataset.from_dict({"text": make_documents(2)})
    best = {"load_best_model_at_end": True, "metric_for_best_model": "teacher_kl", "greater_is_better": True}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = make_run(mode, eval_dataset=rows, args={**best, **steps, "max_steps": 2})
    measured = iter((2.0, 1.0))  # the first step's pair is the better one
    evaluate = trainer.evaluation_loop

    def measure(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        output.metrics["eval_teacher_kl"] = next(measured, 0.0)
        return output

    trainer.evaluation_loop = measure
    trainer.train()
    assert trainer.state.best_global_step == 1
    trainer.evaluate()
    for name, weight in merged_weights(trainer.model, checkpoint).items():
        torch.testing.assert_close(vllm.weights[name].double(), weight, rtol=1e-6, atol=1e-6)


# ---- Gists ----


def test_each_context_goes_out_once_and_its_gists_come_back_to_its_rows(make_run, vllm, mode):
    trainer = make_run(mode, args={"max_steps": 2, "max_completion_length": 5})
    rollouts = watch_rollouts(trainer)
    trainer.train()
    assert len(vllm.requests) == len(rollouts) == 2
    for request, rollout in zip(vllm.requests, rollouts, strict=True):
        assert (request.n, request.temperature, len(request.prompts)) == (4, 1.0, 2)
        assert request.prompts == rollout.prompts[::4] and request.prompts[0] != request.prompts[1]
        assert rollout.prompts == [prompt for prompt in request.prompts for _ in range(4)]
        for row, (prompt, gist) in enumerate(zip(rollout.prompts, rollout.gists, strict=True)):
            assert gist == without_eos(gist_of(prompt, row % 4, 5))
        assert len({tuple(gist) for gist in rollout.gists}) == 8


def test_an_engine_answers_with_a_row_for_every_gist(make_run, vllm):
    """Ranks that share an engine count their rows in it, by TRL's reckoning of one output a row."""
    trainer = make_run("colocate")
    prompts = [{"prompt_token_ids": ids} for ids in ([7, 8], [9, 10], [11]) for _ in range(4)]
    params = SamplingParams(n=1, temperature=1.0, max_tokens=6, logprobs=0)
    outputs = trainer.vllm_generation.llm.generate(prompts, sampling_params=params, use_tqdm=False)
    assert vllm.requests[-1].prompts == [[7, 8], [9, 10], [11]]
    assert [output.prompt_token_ids for output in outputs] == [prompt["prompt_token_ids"] for prompt in prompts]
    assert [[gist.token_ids for gist in output.outputs] for output in outputs] == [
        [gist_of(prompt["prompt_token_ids"], row % 4, 6)] for row, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("is_level", ["token_truncate", "sequence_truncate"])
def test_log_probs_come_along_for_importance_sampling(make_run, mode, is_level):
    trainer = make_run(
        mode,
        args={
            **{"vllm_importance_sampling_mode": is_level, "vllm_importance_sampling_clip_max": 1e9},
            **{"vllm_importance_sampling_clip_min": None},
        },
    )
    rollouts = watch_rollouts(trainer)
    trainer.train()
    for rollout in rollouts:
        kept, mask = rollout.kept, rollout.kept["completion_mask"].bool()
        sampled = kept["sampling_per_token_logps"]
        expected = logprob_of(kept["completion_ids"])
        torch.testing.assert_close(sampled[mask], expected[mask])
        difference = (kept["old_per_token_logps"] - expected) * mask
        if is_level == "sequence_truncate":
            difference = difference.sum(1, keepdim=True)
        torch.testing.assert_close(kept["importance_sampling_ratio"], difference.exp())
        assert difference.abs().max() > 0.1


def test_gists_and_their_log_probs_end_at_their_budgets(make_run, mode):
    trainer = make_run(mode, args={"gist_length_range": [2, 6], "max_steps": 3})
    rollouts = watch_rollouts(trainer)
    trainer.train()
    budgets = set()
    for rollout in rollouts:
        lengths = rollout.kept["completion_mask"].sum(1).tolist()
        for row, (fields, prompt) in enumerate(zip(rollout.rows, rollout.prompts, strict=True)):
            expected = gist_of(prompt, row % 4, 6)[: fields["budget"]]
            assert rollout.gists[row] == without_eos(expected) and lengths[row] == len(expected)
            budgets.add(fields["budget"])
        mask = rollout.kept["completion_mask"].bool()
        torch.testing.assert_close(
            rollout.kept["sampling_per_token_logps"][mask], logprob_of(rollout.kept["completion_ids"][mask])
        )
    assert len(budgets) > 1 and min(budgets) < 6


def test_the_cold_start_does_without_vllm(make_run, vllm, mode):
    trainer = make_run(mode, args={"cold_start_steps": 2, "max_steps": 3})
    rollouts = watch_rollouts(trainer)
    trainer.train()
    assert len(rollouts) == 3 and len(vllm.requests) == vllm.syncs == 1
    for rollout in rollouts[:2]:
        assert (rollout.kept["importance_sampling_ratio"] == 1).all(), "what no policy sampled is not corrected"
    assert vllm.requests[0].prompts == rollouts[2].prompts[::4]


@pytest.mark.parametrize("gists", [1, 2])
def test_evaluation_is_greedy_and_asks_for_one_gist(make_run, vllm, mode, gists):
    rows = Dataset.from_dict({"text": make_documents(3)})
    trainer = make_run(mode, eval_dataset=rows, args={"num_generations_eval": gists, "max_completion_length": 5})
    rollouts = watch_rollouts(trainer)
    trainer.evaluate()
    whole = characters_of(trainer.processing_class).whole
    assert rollouts and len(vllm.requests) == len(rollouts) and vllm.syncs == 1
    for request, rollout in zip(vllm.requests, rollouts, strict=True):
        assert (request.n, request.temperature) == (1, 0.0)
        assert request.prompts == rollout.prompts[::gists]
        assert rollout.gists == [whole(without_eos(gist_of(prompt, 0, 5))) for prompt in rollout.prompts]
    trainer.train()
    assert (vllm.requests[-1].n, vllm.requests[-1].temperature) == (4, 1.0), "and training samples again"


# ---- Settings ----


def test_settings_reach_the_engine(make_run, vllm, checkpoint):
    settings = {
        **{"vllm_gpu_memory_utilization": 0.4, "vllm_max_model_length": 300, "vllm_model_impl": "transformers"},
        **{"temperature": 0.7, "generation_kwargs": {"seed": 3}},
    }
    trainer = make_run("colocate", args={**settings, "max_steps": 1})
    for name, value in {
        **{"model": checkpoint, "gpu_memory_utilization": 0.4, "max_model_len": 300, "model_impl": "transformers"},
        **{"tensor_parallel_size": 1, "max_num_seqs": 8, "logprobs_mode": "processed_logprobs"},
        **{"dtype": torch.float32, "enforce_eager": True},
    }.items():
        assert vllm.settings[name] == value
    trainer.train()
    request = vllm.requests[0]
    assert (request.temperature, request.top_p, request.top_k, request.min_p, request.seed) == (0.7, 1.0, 0, 0.0, 3)


@pytest.mark.parametrize(
    ("args", "dtype"),
    [
        ({"bf16": True}, torch.bfloat16),
        ({"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}, torch.bfloat16),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, torch.bfloat16),
    ],
    ids=["autocast", "both", "weights"],
)
def test_the_engine_computes_in_what_s_is_trained_in(make_run, vllm, args, dtype):
    make_run("colocate", args=args)
    assert vllm.settings["dtype"] == dtype


@pytest.mark.parametrize(
    ("context", "given", "expected"), [(3000, None, 4096), (5000, None, None), (3000, 8192, 8192)]
)
def test_the_engine_turns_texts_of_longrope_as_they_are_in_training(context, given, expected, vllm, monkeypatch):
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 4096}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(**{"hidden_size": 32, "num_attention_heads": 4, "rope_parameters": rope})
    args = {"use_vllm": True, "vllm_mode": "colocate", "bf16": True, "device": torch.device("cpu")}
    args |= {"context_length": context, "max_completion_length": 48}
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "")
    with engine_for(SimpleNamespace(**args), SimpleNamespace(config=config)):
        vllm_generation.LLM(max_model_len=given)
    assert vllm.settings["max_model_len"] == expected


def test_settings_reach_the_server(make_run, vllm):
    make_run(
        "server", args={"vllm_server_base_url": "http://gpu:9000", "vllm_group_port": 5, "vllm_server_timeout": 1}
    )
    assert vllm.settings == {"base_url": "http://gpu:9000", "group_port": 5, "connection_timeout": 1}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"generator_only": True}, "`generator_only` samples no gists: leave out `use_vllm`"),
        ({"vllm_max_model_length": 29}, r"`vllm_max_model_length` \(29\) must hold .* = 24 \+ 6 tokens. Raise it"),
        ({"generation_kwargs": {"n": 2}}, "`generation_kwargs` must not set `n`"),
        ({"vllm_tensor_parallel_size": 2}, "must divide world size"),
        ({"vllm_mode": "serve"}, "vllm_mode must be either 'server' or 'colocate', got 'serve'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_vllm_cannot_do_is_refused(make_run, args, message):
    with pytest.raises(ValueError, match=message):
        make_run("colocate", args=args)


def test_a_model_without_a_checkpoint_is_refused(make_run, tokenizer):
    with pytest.raises(ValueError, match="by the name of its checkpoint, and this model has none. Save it"):
        make_run("colocate", model=make_model(tokenizer), processing_class=tokenizer)


def test_without_vllm_the_run_says_what_to_install_before_it_loads(make_trainer, monkeypatch):
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: False)
    monkeypatch.setattr(gist_trainer, "load_given", None)
    with pytest.raises(ModuleNotFoundError, match=r'with which `use_vllm` samples: pip install "trl_gist\[vllm\]"'):
        make_trainer(args={"use_vllm": True})
