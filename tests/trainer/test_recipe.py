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

"""A resumed run is of the recipe that it began with: other windows, prompts or targets are refused, other rates are
warned of and kept beside the first, and each setting of a run is in one of these groups or not compared."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
from checks import moved, snapshot

from trl_gist import GistConfig
from trl_gist.pair import PairConfig
from trl_gist.trainer.checkpoints.manifest import Manifest
from trl_gist.trainer.recipe import GROUPS, REFUSED, check_recipe, run_recipe


# Of every setting that a resume may not change another value than that of `make_args`
OTHERS = {
    "context_length": 32,
    "target_length": 9,
    "last_k": 5,
    "window_stride": 16,
    "max_windows_per_document": 2,
    "windows_per_document": 2,
    "summarizer_prompt": "Shorten: {context}\nGist:",
    "generator_prompt": "{gist}\n\n{last_k}",
    "chat_template_kwargs": {"enable_thinking": False},
    "max_completion_length": 7,
    "gist_length_range": [2, 6],
    "target_kinds": {"fact": 3, "continuation": 1},
    "targets_per_context": 4,
    "target_floor": None,
    "parse_special_tokens": True,
    "cue_length": 6,
    "far_offset": 64,
    "recall_age": [1, 1],
}
REFUSED_FIELDS = [name for group in REFUSED for name in GROUPS[group]]
WARNED_FIELDS = [name for group in ("rates", "method") for name in GROUPS[group]]
# Where a run runs, and what it logs, saves and pushes
NOT_COMPARED = """
output_dir resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint model_init_kwargs
trust_remote_code score_batch_size teacher_cache_dir stop_on_alarm gist_samples gist_samples_steps
num_generations_eval log_completions log_multimodal num_completions_to_print log_unique_prompts
log_completions_hub_repo logging_strategy logging_steps logging_first_step log_on_each_node
logging_nan_inf_filter log_level log_level_replica include_num_input_tokens_seen disable_tqdm report_to run_name
project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object
eval_accumulation_steps include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval save_only_model
save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint load_best_model_at_end
metric_for_best_model greater_is_better push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
hub_always_push hub_revision ds3_gather_for_generation cache_implementation pad_to_multiple_of
max_tool_calling_iterations use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url
vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization
vllm_max_model_length vllm_tensor_parallel_size use_transformers_continuous_batching
transformers_continuous_batching_config use_transformers_paged tf32 activation_checkpointing
activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache torch_empty_cache_steps
auto_find_batch_size full_determinism use_cpu accelerator_config parallelism_config dataloader_num_workers
dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
fsdp_config deepspeed debug skip_memory_metrics do_train do_eval do_predict local_rank
""".split()


def test_each_setting_is_in_one_group_or_not_compared():
    """A new one has to be put into one: may a resume change it?"""
    grouped = [*(name for names in GROUPS.values() for name in names), *NOT_COMPARED]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {field.name for field in fields(GistConfig)}
    assert set(OTHERS) == set(REFUSED_FIELDS)


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_other_windows_prompts_and_targets_are_refused_and_named(make_args, name, tmp_path):
    both = {"windows_per_document": 2} if name == "recall_age" else {}  # which is of walks alone
    was = run_recipe(make_args(**both))
    now = run_recipe(make_args(**both, **{name: OTHERS[name]}))
    with pytest.raises(ValueError, match="was trained with another recipe") as refusal:
        check_recipe(tmp_path / "checkpoint-4", was, now)
    assert f"`{name}` was {was[name]!r}, now {now[name]!r}" in str(refusal.value)
    assert str(tmp_path / "checkpoint-4") in str(refusal.value)


@pytest.mark.parametrize("name", WARNED_FIELDS)
def test_other_rates_are_warned_of_and_told(make_args, name, tmp_path, caplog):
    was = run_recipe(make_args())
    assert check_recipe(tmp_path, was, {**was, name: "another"}) == {name: [was[name], "another"]}
    assert f"`{name}` was {was[name]!r}, now 'another'" in caplog.text


def test_the_same_recipe_in_other_words_is_the_same(make_args, tmp_path, caplog):
    was = run_recipe(make_args())
    words = {"window_stride": 32, "target_kinds": {"continuation": 2 - 1}, "chat_template_kwargs": {}}
    now = run_recipe(make_args(**words, output_dir=str(tmp_path / "moved"), logging_steps=7, save_total_limit=3))
    assert json.loads(json.dumps(was)) == now
    assert check_recipe(tmp_path, was, now) == {} and not caplog.text


def test_a_gist_length_to_reach_is_a_rate_unless_the_prompt_shows_as_many_tokens(make_args, tmp_path):
    was, now = (run_recipe(make_args(target_gist_length=length)) for length in (3, 5))
    assert check_recipe(tmp_path, was, now) == {"target_gist_length": [3, 5]}
    prompt = "{before_last_k}{last_k} ... {tail}\nGist:"
    was, now = (run_recipe(make_args(target_gist_length=length, summarizer_prompt=prompt)) for length in (3, 5))
    with pytest.raises(ValueError, match="`tail_length` was 3, now 5"):
        check_recipe(tmp_path, was, now)


def test_a_setting_that_only_one_version_has_is_not_compared(make_args, tmp_path, caplog):
    recipe = run_recipe(make_args())
    without = {name: value for name, value in recipe.items() if name not in ("far_offset", "beta")}
    assert check_recipe(tmp_path, without, recipe) == check_recipe(tmp_path, recipe, without) == {}
    assert not caplog.text


# ---- Through training ----


@pytest.fixture
def make_run(make_trainer, lora, tmp_path):
    def make(name="run", **args):
        values = {"output_dir": str(tmp_path / name), "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        return make_trainer(peft_config=lora, args={**values, **args})

    return make


@pytest.mark.parametrize("source", ["newest", "named"])
def test_a_resume_with_other_windows_is_refused_and_moves_nothing(make_run, tmp_path, source):
    make_run().train()
    trainer = make_run(last_k=5, max_completion_length=5, learning_rate=1e-2, max_steps=6)
    before = snapshot(trainer.model), snapshot(trainer.generator)
    with pytest.raises(ValueError, match="`last_k` was 4, now 5; `max_completion_length` was 6, now 5") as refusal:
        trainer.train(resume_from_checkpoint=source == "newest" or str(tmp_path / "run" / "checkpoint-4"))
    assert f"{tmp_path / 'run' / 'checkpoint-4'} was trained with another recipe" in str(refusal.value)
    assert not moved(before[0], trainer.model) and not moved(before[1], trainer.generator)


def test_a_resume_with_other_rates_is_warned_of_and_the_pair_says_both(make_run, tmp_path, caplog):
    make_run(max_steps=2).train()
    resumed = make_run(max_steps=4, length_penalty=0.5)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert "`length_penalty` was 0.0001, now 0.5; `max_steps` was 2, now 4" in caplog.text
    last = make_run(max_steps=6, length_penalty=0.5, generator_learning_rate=1e-2)
    last.train(resume_from_checkpoint=True)
    last.save_model()
    changes = [
        {"step": 2, "length_penalty": [1e-4, 0.5], "max_steps": [2, 4]},
        {"step": 4, "max_steps": [4, 6], "generator_learning_rate": [1e-3, 1e-2]},
    ]
    assert PairConfig.load(tmp_path / "run").recipe["changed_on_resume"] == changes
    assert Manifest.load(tmp_path / "run" / "checkpoint-6").recipe_changes == changes
    assert "changed_on_resume" not in PairConfig.load(tmp_path / "run" / "checkpoint-2").recipe


def test_the_guide_names_what_a_resume_may_not_change():
    guide = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    missing = [name for name in (*REFUSED_FIELDS, *GROUPS["rates"]) if f"`{name}`" not in guide]
    assert not missing
