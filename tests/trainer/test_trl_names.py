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
GistTrainer overrides and calls private names of TRL and transformers. Each test here names one and what is relied on,
so that an upgrade which moves it fails here, with its name, and not in the middle of someone's run.
"""

import inspect
import re

import pytest
from accelerate.data_loader import IterableDatasetShard, prepare_data_loader, skip_first_batches
from huggingface_hub import HfApi
from transformers import Trainer
from transformers.utils.hub import PushInProgress, hf_api
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import unwrap_model_for_generation
from trl.trainer import grpo_trainer
from trl.trainer.utils import (
    RepeatSampler,
    create_model_from_path,
    get_config_model_id,
    split_tensor_dict,
)

from trl_gist import GistTrainer
from trl_gist.trainer.data_order import EpochRepeatSampler


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def source(function):
    return inspect.getsource(inspect.unwrap(function))


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "_generate_and_score_completions": ["inputs"],
        "_generate_single_turn": [
            "prompt_ids",
            "images",
            "multimodal_fields",
            "num_generations",
            "has_tool_images",
        ],
        "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
        "_log_metric": ["name", "value"],
        "_log_completion_extra": ["column", "values"],
        "_get_train_sampler": ["dataset"],
        "_prepare_inputs": ["generation_batch"],
        "_get_per_token_logps_and_entropies": [
            *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
            *("compute_entropy", "compute_aux_loss", "pixel_values", "image_grid_thw", "num_images"),
            *("pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids"),
            *("mm_token_type_ids", "image_position_ids"),
        ],
        "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
        "log": ["logs", "start_time"],
    }.items(),
)
def test_grpo_trainer_still_has(name, expected):
    assert name in vars(GRPOTrainer), f"TRL no longer defines GRPOTrainer.{name}"
    assert parameters(getattr(GRPOTrainer, name)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "create_scheduler": ["num_training_steps", "optimizer"],
        "evaluation_loop": [
            "dataloader",
            "description",
            "prediction_loss_only",
            "ignore_keys",
            "metric_key_prefix",
        ],
        "save_model": ["output_dir", "_internal_call"],
        "_save_optimizer_and_scheduler": ["output_dir"],
        "_load_optimizer_and_scheduler": ["checkpoint"],
        "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
        "_load_best_model": [],
        "_init_training_state": [
            *("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
        ],
        "get_optimizer_cls_and_kwargs": ["args", "model"],
        "init_hf_repo": ["token", "private"],
        "push_to_hub": ["commit_message", "blocking", "token", "revision", "private", "kwargs"],
        "_push_from_checkpoint": ["checkpoint_folder"],
        "_get_dataloader": [
            *("dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"),
        ],
        "_finish_current_push": [],
        "_get_output_dir": ["trial"],
        "_save_checkpoint": ["model", "trial"],
        "_finalize_training": ["trial", "num_train_samples", "start_time"],
        "_maybe_log_save_evaluate": [
            *("tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
            "learning_rate",
        ],
    }.items(),
)
def test_trainer_still_has(name, expected):
    assert name in vars(Trainer), f"transformers no longer defines Trainer.{name}"
    assert parameters(getattr(Trainer, name)) == expected


def test_every_private_method_overrides_something_or_is_called_by_us():
    """A hook that TRL renames would leave our method behind as dead code, and the run would go on without it."""
    private = {name for name, value in vars(GistTrainer).items() if inspect.isfunction(value) and name.startswith("_")}
    overrides = {name for name in private if hasattr(GRPOTrainer, name)}
    calls = inspect.getsource(inspect.getmodule(GistTrainer))
    assert overrides and {name for name in private - overrides if not re.search(rf"self\.{name}\b", calls)} == set()


def test_a_rollout_writes_rewards_and_then_takes_advantages():
    """The seats of the overrides, in the order that the method needs."""
    rollout = source(GRPOTrainer._generate_and_score_completions)
    for before, after in (
        ("self._generate(prompts)", "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)"),
        ("self._calculate_rewards(", "advantages = rewards - mean_grouped_rewards"),
    ):
        assert rollout.index(before) < rollout.index(after)


def test_a_rollout_func_writes_instead_of_trl_once_vllm_has_the_weights():
    """It may be set after construction, and a sync can be spared by the number of the step."""
    generate = source(GRPOTrainer._generate)
    order = [
        "if self.rollout_func is not None:",
        "if self.use_vllm and self.state.global_step != self._last_loaded_step:",
        "self.vllm_generation.sync_weights()",
        "output = self.rollout_func(prompts, self)",
        "self._generate_single_turn(",
    ]
    assert sorted(order, key=generate.index) == order
    assert 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}' in generate
    everything = inspect.getsource(inspect.getmodule(GRPOTrainer))
    assert everything.count("self.rollout_func") == 3, "where it is kept, asked for and called"


def test_a_rollout_returns_the_advantages_that_the_loss_reads():
    assert '"advantages": advantages' in source(GRPOTrainer._generate_and_score_completions)
    assert 'inputs["advantages"]' in source(GRPOTrainer._compute_loss)


def test_logged_advantages_are_a_bounded_queue_that_grows_by_a_rollout(make_trainer):
    """`advantage="reward"` replaces the last rollout's entries."""
    logged = make_trainer()._logs["advantages"]
    assert hasattr(logged, "pop") and hasattr(logged, "extend")
    assert 'self._logs["advantages"].extend(' in source(GRPOTrainer._generate_and_score_completions)


def test_training_inputs_are_slices_of_one_rollout():
    """`_prepare_inputs` is TRL's without the shuffle; if TRL's does more one day, ours must too."""
    body = source(GRPOTrainer._prepare_inputs)
    steps = re.findall(r"(?:generation_batch|generation_batches|self\._buffered_inputs|inputs) = (.+)", body)
    assert steps == [
        "self._generate_and_score_completions(generation_batch)",
        "split_pixel_values_by_grid(generation_batch)",
        "shuffle_sequence_dict(generation_batch)",
        "split_tensor_dict(generation_batch, self.args.steps_per_generation)",
        "[unsplit_pixel_values_by_grid(batch) for batch in generation_batches]",
        "self._buffered_inputs[self._step % self.args.steps_per_generation]",
        "self._generate_and_score_completions(generation_batch)",
    ]


def test_a_rollout_happens_every_steps_per_generation_times_num_iterations():
    """The count of G's schedule steps, and where a checkpoint may fall."""
    prepare = source(GRPOTrainer._prepare_inputs)
    assert "generate_every = self.args.steps_per_generation * self.num_iterations" in prepare
    assert "if self._step % generate_every == 0 or self._buffered_inputs is None:" in prepare


def test_rewards_are_gathered_over_processes_before_they_are_returned():
    """`_check_rewards` and the reward advantage index all processes' rows."""
    assert re.search(
        r"rewards_per_func = gather\(rewards_per_func\)\s+return rewards_per_func",
        source(GRPOTrainer._calculate_rewards),
    )


def test_reward_functions_get_every_column_by_name():
    rewards = source(GRPOTrainer._calculate_rewards)
    assert 'key not in ["prompt", "completion", "completion_ids"]' in rewards
    assert "reward_kwargs = {key: [example[key] for example in inputs] for key in keys}" in rewards


def test_the_trainer_holds_the_attributes_that_we_read(make_trainer):
    trainer = make_trainer()
    for name in (
        "eos_token_ids",
        "generation_config",
        "temperature",
        "use_transformers_continuous_batching",
        "_buffered_inputs",
        "model_wrapped",
        "use_vllm",
        "num_generations",
        "num_generations_eval",
        "num_iterations",
        "reward_weights",
        "reward_func_names",
        "_logs",
        "_metrics",
        "_step",
    ):
        assert hasattr(trainer, name), f"TRL's trainer no longer has `{name}`"
    assert trainer.generation_config.do_sample is True


def test_repeat_sampler_takes_what_we_hand_on_and_draws_from_its_generator():
    expected = ["data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed"]
    assert parameters(RepeatSampler.__init__) == expected
    sampler = RepeatSampler(range(8), mini_repeat_count=2, batch_size=4, repeat_count=3, shuffle=True, seed=5)
    assert all(hasattr(sampler, name) for name in expected)
    first = list(sampler)
    sampler.generator.manual_seed(5)
    assert list(sampler) == first


def test_set_epoch_reaches_the_sampler_through_skipped_batches(make_trainer):
    """Resuming in a later epoch depends on it: transformers 5.23 and accelerate 1.15 pass the epoch on."""
    trainer = make_trainer()
    loader = trainer.get_train_dataloader()
    sampler = loader.batch_sampler.sampler
    assert isinstance(sampler, EpochRepeatSampler)
    for wrapped in (loader, skip_first_batches(loader, 1)):
        seen = []
        for epoch in (0, 1):
            wrapped.set_epoch(epoch)
            seen.append(sampler.generator.initial_seed())
        assert seen == [trainer.args.seed, trainer.args.seed + 1]


def test_trainer_calls_the_hooks_of_the_second_trainer():
    inner = source(Trainer._prepare_for_training)
    assert inner.index("self.create_scheduler(num_training_steps=max_steps)") < inner.index(
        "self._load_optimizer_and_scheduler(resume_from_checkpoint)"
    ), "G's optimizer must exist before its state is loaded"
    saving = source(Trainer._save_checkpoint)
    assert saving.index("self.save_model(output_dir, _internal_call=True)") < saving.index(
        "self._save_optimizer_and_scheduler(output_dir)"
    ), "G's folder is made by save_model"
    assert saving.index("self._save_optimizer_and_scheduler(output_dir)") < saving.index("rotate_checkpoints(")
    assert "self._load_best_model()" in source(Trainer._finalize_training)


def test_the_generators_schedule_is_advanced_with_the_summarizers_and_loaded_at_its_step():
    epoch = source(Trainer._run_epoch)
    assert epoch.count("self.callback_handler.on_optimizer_step(") == epoch.count("self.lr_scheduler.step()") == 1
    inner = source(Trainer._inner_training_loop)
    assert inner.index("self._init_training_state(") < inner.index("self._prepare_for_training("), (
        "the step must be known when G's schedule is loaded"
    )


def test_checkpoints_are_asked_for_in_one_place():
    """The one where they wait for the end of a rollout."""
    everything = inspect.getsource(inspect.getmodule(Trainer)) + inspect.getsource(inspect.getmodule(GRPOTrainer))
    assert everything.count("self._save_checkpoint(") == source(Trainer._maybe_log_save_evaluate).count(
        "self._save_checkpoint("
    )
    assert "steps_trained_in_current_epoch=steps_trained_in_current_epoch" in source(Trainer._inner_training_loop)


def test_a_checkpoint_is_pushed_when_it_is_whole_and_before_it_may_be_rotated_away():
    saving = source(Trainer._save_checkpoint)
    order = ["self.state.save_to_json(", "self._push_from_checkpoint(output_dir)", "rotate_checkpoints("]
    assert sorted(order, key=saving.index) == order
    assert "self._finish_current_push()" in source(Trainer._finalize_training)


def test_pushes_in_the_background_are_made_one_after_the_other():
    """One client for all, with one worker: a pair of an earlier step never overwrites a later one."""
    assert hf_api() is hf_api()
    hf_api().run_as_future(int).result()
    assert hf_api()._thread_pool._max_workers == 1
    push = PushInProgress([])
    assert push.jobs == [] and push.is_done()


def test_a_push_is_one_commit_on_the_head_that_was_looked_at():
    """`upload_folder` may make several with Xet (huggingface_hub 2.4), which is why it is not used."""
    assert {"operations", "commit_message", "token", "revision", "parent_commit"} <= set(
        parameters(HfApi.create_commit)
    )
    assert source(HfApi.create_commit).count("_send_commit(") == 1


def test_a_checkpoint_is_written_where_get_output_dir_says_and_pushed_by_us():
    """It is written beside its place, and renamed, pushed and rotated after."""
    saving = source(Trainer._save_checkpoint)
    assert 'checkpoint_folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"' in saving
    assert re.search(
        r"run_dir = self\._get_output_dir\(trial=trial\)\s+output_dir = os\.path\.join\(run_dir, checkpoint_folder\)",
        saving,
    )
    assert saving.count("run_dir") == 4, "beside these, the best checkpoint's folder and the rotation"
    assert re.search(r"if self\.args\.push_to_hub:\s+self\._push_from_checkpoint\(output_dir\)", saving)
    assert "self._get_output_dir(trial=trial)" in source(GRPOTrainer._save_checkpoint)


def test_a_loop_asks_whether_the_run_is_over_only_after_a_step():
    """If it asks before one day, `_run_epoch` need not."""
    epoch = source(Trainer._run_epoch)
    assert epoch.index("self.training_step(") < epoch.index("self.control.should_training_stop")
    assert "self.control.should_training_stop" in source(Trainer._inner_training_loop)


def test_the_end_of_a_run_removes_all_but_the_best_checkpoint_only_with_a_limit_of_one():
    assert "self.args.save_total_limit == 1" in source(Trainer._finalize_training)


def test_a_streams_saved_epoch_counts_passes_in_fractions_of_the_runs_batches():
    """How a stream finds its position again when a run resumes in a later pass over it."""
    assert "self.state.epoch = epoch + (step + 1) / steps_in_epoch" in source(Trainer._run_epoch)
    assert (
        "steps_in_epoch = len_dataloader if len_dataloader is not None else max_steps * args.gradient_accumulation_steps"
        in source(Trainer.set_initial_training_values)
    )
    assert "steps_trained_in_current_epoch *= self.args.gradient_accumulation_steps" in source(
        Trainer._init_training_state
    )


def test_a_stream_that_is_not_of_datasets_is_sliced_by_batches_and_told_its_epoch():
    """What `OneStream` relies on (accelerate 1.15), and what it keeps accelerate from doing."""
    prepare = source(prepare_data_loader)
    by_files = prepare.index("new_dataset = new_dataset.shard(num_shards=num_processes, index=process_index)")
    assert prepare.rindex("isinstance(new_dataset, DatasetsIterableDataset)", 0, by_files) < by_files
    assert by_files < prepare.index("new_dataset = IterableDatasetShard(")
    shard = IterableDatasetShard(range(8), batch_size=2, num_processes=2, process_index=1)
    assert list(shard) == [2, 3, 6, 7]
    assert "self.dataset.set_epoch(epoch)" in source(IterableDatasetShard.set_epoch)
    for get_dataloader in (GRPOTrainer.get_train_dataloader, GRPOTrainer.get_eval_dataloader):
        assert "self._get_dataloader(" in source(get_dataloader)


def test_vllm_is_reached_where_we_reach_in():
    sync, generate = source(VLLMGeneration.sync_weights), source(VLLMGeneration.generate)
    assert parameters(VLLMGeneration._iter_named_params) == []
    assert sync.count("self._iter_named_params()") == 4, "every weight that is handed over comes through it"
    assert "temperature = self.temperature" in generate, "read at every request"
    assert "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)" in generate
    assert "output.token_ids for outputs in all_outputs for output in outputs.outputs" in generate
    assert "slice(local_rank_in_group * orig_size, (local_rank_in_group + 1) * orig_size)" in generate
    assert "all_prompts[::num_generations]" in generate, "a server is asked once a context"
    turn = source(GRPOTrainer._generate_single_turn)
    assert "if self.state.global_step != self._last_loaded_step:" in turn
    assert "num_generations=num_generations," in turn


def test_trl_writes_its_card_through_create_model_card():
    assert "self.create_model_card(model_name=model_name)" in source(GRPOTrainer._save_checkpoint)


def test_utilities_that_we_import_still_take_our_arguments():
    assert parameters(create_model_from_path)[0] == "model_id"
    assert any(p.kind is p.VAR_KEYWORD for p in inspect.signature(create_model_from_path).parameters.values())
    assert parameters(get_config_model_id) == ["config"]
    assert parameters(split_tensor_dict) == ["tensor_dict", "num_chunks"]
    assert {"model", "accelerator", "gradient_checkpointing_kwargs"} <= set(parameters(unwrap_model_for_generation))


def test_the_fused_head_is_put_on_the_summarizer_alone(make_trainer, lora):
    """TRL bakes the sampling temperature into it: T and G must never be scored through it."""
    assert hasattr(grpo_trainer, "add_fused_lm_head")
    trainer = make_trainer(peft_config=lora)
    patched = {
        name: "forward" in vars(model.get_base_model() if hasattr(model, "get_base_model") else model)
        for name, model in (("S", trainer.model), ("G", trainer.generator), ("T", trainer.teacher))
    }
    assert patched == {"S": True, "G": False, "T": False}
