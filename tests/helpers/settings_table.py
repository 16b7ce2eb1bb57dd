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
What becomes of every setting that [`GistConfig`] has or inherits: it is honoured, it is irrelevant, or it is refused. Read by
tests/trainer/test_settings.py, which fails where an upgrade of TRL or transformers brings a field that is not named here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from settings_lab import EVALUATED, Lab, formula


@dataclass
class Honoured:
    """The setting has the effect that it says."""

    effect: str
    check: Callable[[Lab], bool]


@dataclass
class Reaches:
    """The value comes to stand in the object that the run uses, `where` in the trainer, and did not stand there before."""

    value: object
    where: str
    as_: object = None  # what it looks like there, where not as it was given


@dataclass
class Elsewhere:
    """The effect is asserted by a test of its own, in a file that sets the field, or `sets` what stands for it."""

    file: str
    test: str
    sets: str | None = None


@dataclass
class Irrelevant:
    """Nothing in a pair's training is what the setting is about. With `value` it may be set, and a run is bit for bit the
    same."""

    why: str
    value: object = None


@dataclass
class Refused:
    """Any of `values` is refused at construction, by a sentence that names the field."""

    values: list
    sentence: str = ""
    beside: dict = field(default_factory=dict)  # other settings that the refusal needs


NO_VLLM = "without `use_vllm` nothing reads it; see also test_vllm.py"
SCRIPTS = "for scripts that start a trainer; the trainer reads it nowhere"
PROCESSES = "of the process group, which transformers makes from it before there is a trainer"
TRACKERS = "read by the tracker that `report_to` names, from these args"


def loss(**values) -> Honoured:
    """The policy's loss on a batch that was sampled by another policy, in closed form."""
    name = next(iter(values))
    return Honoured(
        f"the loss is its formula's with {values}", lambda lab: lab.loss_is(formula(**values), name, **values)
    )


# ---- transformers.TrainingArguments ----

TRAINING_ARGUMENTS = {
    "output_dir": Honoured("checkpoints are written there", lambda lab: lab.saved(".", "checkpoint-2")),
    "per_device_train_batch_size": Honoured(
        "as many gists are a forward of S's", lambda lab: lab.forwards(per_device_train_batch_size=4) == [4, 4]
    ),
    "num_train_epochs": Honoured(
        "without `max_steps` it is the run's length: 12 windows, 2 a rollout",
        lambda lab: lab.run(max_steps=-1, num_train_epochs=1).state.max_steps == lab.windows // 2,
    ),
    "max_steps": Honoured("the run ends there", lambda lab: lab.run(max_steps=1).state.global_step == 1),
    "learning_rate": Honoured(
        "S's, and not G's", lambda lab: lab.rates(learning_rate=0.002) == (0.002, lab.args().generator_learning_rate)
    ),
    "lr_scheduler_type": Honoured(
        "the second step's learning rate of S and of G",
        lambda lab: lab.second_rates(lr_scheduler_type="constant") == (1.0, 1.0) and lab.second_rates() == (0.5, 0.5),
    ),
    "lr_scheduler_kwargs": Honoured(
        "S's and G's schedule have the cosine's number of waves",
        lambda lab: (
            torch.tensor(lab.second_rates(lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycles": 1.0}))
            .isclose(torch.tensor(0.0), atol=1e-12)
            .all()
        ),
    ),
    "warmup_steps": Honoured(
        "the first steps of S and of G are taken at 0, 1/2, … of the learning rate",
        lambda lab: lab.second_rates(warmup_steps=2) == (0.5, 0.5),
    ),
    "optim": Honoured(
        "the class of S's optimizer and of G's", lambda lab: lab.optimizers(optim="sgd") == ["SGD", "SGD"]
    ),
    "optim_args": Honoured(
        "by optimizers that take any; with Adam's it is refused",
        lambda lab: (
            lab.groups(optim="sgd", optim_args="momentum=0.5", key="momentum") == {0.5}
            and lab.refuses("`optim_args` must be None", optim_args="momentum=0.5")
        ),
    ),
    "weight_decay": Honoured(
        "both optimizers decay by it, norms not",
        lambda lab: lab.groups(weight_decay=0.5, key="weight_decay") == {0.5, 0},
    ),
    "adam_beta1": Honoured(
        "both optimizers'", lambda lab: {b for b, _ in lab.groups(adam_beta1=0.5, key="betas")} == {0.5}
    ),
    "adam_beta2": Honoured(
        "both optimizers'", lambda lab: {b for _, b in lab.groups(adam_beta2=0.5, key="betas")} == {0.5}
    ),
    "adam_epsilon": Honoured("both optimizers'", lambda lab: lab.groups(adam_epsilon=0.1, key="eps") == {0.1}),
    "optim_target_modules": Refused(["all-linear"]),
    "gradient_accumulation_steps": Honoured(
        "two forwards of S, one step", lambda lab: lab.forwards(gradient_accumulation_steps=2, max_steps=1) == [8, 8]
    ),
    "average_tokens_across_devices": Refused([False]),
    "max_grad_norm": Honoured(
        "S's and G's gradients are cut to it before they step",
        lambda lab: all(math.isclose(norm, 0.01, rel_tol=1e-3) for norm in lab.gradient_norms(max_grad_norm=0.01)),
    ),
    "label_smoothing_factor": Refused([0.1]),
    "bf16": Honoured(
        "S, G and T are run under autocast",
        lambda lab: lab.autocast(bf16=True) == {torch.bfloat16} and lab.autocast() == {None},
    ),
    "fp16": Refused([True]),
    "bf16_full_eval": Refused([True]),
    "fp16_full_eval": Refused([True]),
    "tf32": Irrelevant("a switch of CUDA's, which transformers turns for all of torch", False),
    "activation_checkpointing": Honoured(
        "S and G are checkpointed; the result is the same",
        lambda lab: (
            lab.checkpointed(activation_checkpointing=True) and lab.same_as_base(activation_checkpointing=True)
        ),
    ),
    "activation_checkpointing_kwargs": Honoured(
        "S and G are checkpointed as it says",
        lambda lab: (
            lab.checkpointing(
                True, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}
            )
            and lab.refuses("`activation_checkpointing_kwargs`", activation_checkpointing_kwargs={"every_n_layers": 2})
        ),
    ),
    "gradient_checkpointing": Honoured(
        "the older name of `activation_checkpointing`", lambda lab: lab.checkpointed(gradient_checkpointing=True)
    ),
    "gradient_checkpointing_kwargs": Honoured(
        "the older name of `activation_checkpointing_kwargs`",
        lambda lab: lab.checkpointing(
            True, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}
        ),
    ),
    "torch_compile": Refused([True]),
    "torch_compile_backend": Refused(["inductor"]),
    "torch_compile_mode": Refused(["default"]),
    "use_liger_kernel": Refused([True]),
    "liger_kernel_config": Refused([{"rope": True}]),
    "use_cache": Irrelevant("no forward of a training reads a cache, and sampling always keeps one", True),
    "neftune_noise_alpha": Refused([5.0]),
    "torch_empty_cache_steps": Irrelevant(
        "about memory that the accelerator's allocator keeps; results are the same", 1
    ),
    "auto_find_batch_size": Refused([True], "auto_find_batch_size"),
    "logging_strategy": Honoured("no step is logged", lambda lab: lab.logged_steps(logging_strategy="no") == []),
    "logging_steps": Honoured("every second step is logged", lambda lab: lab.logged_steps(logging_steps=2) == [2]),
    "logging_first_step": Honoured(
        "and the first", lambda lab: lab.logged_steps(logging_steps=2, logging_first_step=True) == [1, 2]
    ),
    "log_on_each_node": Irrelevant("there is one node; transformers reads it in `args.should_log`", False),
    "logging_nan_inf_filter": Honoured(
        "without it a loss of NaN is logged",
        lambda lab: math.isnan(lab.nan_loss(False)) and not math.isnan(lab.nan_loss(True)),
    ),
    "include_num_input_tokens_seen": Honoured(
        "TRL's count of tokens is logged by this name too",
        lambda lab: all(
            a == b for a, b in lab.logged("num_input_tokens_seen", "num_tokens", include_num_input_tokens_seen=True)
        ),
    ),
    "log_level": Honoured("transformers' verbosity", lambda lab: lab.verbosity(log_level="error") == 40),
    "log_level_replica": Irrelevant(
        "of the other processes; transformers reads it in `args.get_process_log_level`", "error"
    ),
    "disable_tqdm": Honoured(
        "no bar", lambda lab: lab.bars(disable_tqdm=True) == 0 and lab.bars(disable_tqdm=False) == 1
    ),
    "report_to": Elsewhere("test_trackers.py", "test_tensorboard_gets_measures_and_gists"),
    "run_name": Irrelevant(TRACKERS, "a run"),
    "project": Irrelevant(TRACKERS, "a project"),
    "trackio_space_id": Irrelevant(TRACKERS, "user/space"),
    "trackio_bucket_id": Irrelevant(TRACKERS, "user/bucket"),
    "trackio_static_space_id": Irrelevant(TRACKERS, "user/static"),
    "eval_strategy": Honoured(
        "as often it is evaluated", lambda lab: lab.evaluated(eval_strategy="steps", eval_steps=1) == [1, 2]
    ),
    "eval_steps": Honoured(
        "after as many steps", lambda lab: lab.evaluated(eval_strategy="steps", eval_steps=2) == [2]
    ),
    "eval_delay": Honoured(
        "not before that step", lambda lab: lab.evaluated(eval_strategy="steps", eval_steps=1, eval_delay=2) == [2]
    ),
    "per_device_eval_batch_size": Elsewhere("test_evaluation.py", "test_eval_batch_size_changes_no_measure"),
    "prediction_loss_only": Irrelevant("evaluation gives its measures; there are no predictions to leave out", True),
    "eval_on_start": Honoured(
        "before the first step",
        lambda lab: lab.evaluated(eval_strategy="steps", eval_steps=2, eval_on_start=True) == [0, 2],
    ),
    "eval_do_concat_batches": Irrelevant("evaluation keeps no predictions", False),
    "eval_use_gather_object": Irrelevant("evaluation gathers its rows as objects in any case", True),
    "eval_accumulation_steps": Irrelevant("evaluation keeps no predictions on the device", 1),
    "include_for_metrics": Refused([["inputs"], ["loss"]]),
    "batch_eval_metrics": Refused([True]),
    "save_only_model": Honoured(
        "a checkpoint has both halves and no optimizer",
        lambda lab: (
            lab.saved("checkpoint-2", "model.safetensors", save_only_model=True)
            and lab.saved("checkpoint-2/generator", "model.safetensors", save_only_model=True)
            and not lab.saved("checkpoint-2", "optimizer.pt", save_only_model=True)
            and not lab.saved("checkpoint-2/generator", "optimizer.pt", save_only_model=True)
        ),
    ),
    "save_strategy": Honoured(
        "checkpoints or none", lambda lab: not lab.saved(".", "checkpoint-2", save_strategy="no")
    ),
    "save_steps": Honoured(
        "so often", lambda lab: lab.saved(".", "checkpoint-1", save_steps=1) and not lab.saved(".", "checkpoint-1")
    ),
    "save_on_each_node": Irrelevant("there is one node; transformers reads it in `args.should_save`", True),
    "save_total_limit": Elsewhere("test_saving.py", "test_old_checkpoints_are_rotated_with_their_generators"),
    "enable_jit_checkpoint": Refused([True]),
    "push_to_hub": Elsewhere("test_hub.py", "test_each_strategy_makes_its_commits"),
    "hub_token": Elsewhere("test_hub.py", "test_the_token_is_in_no_file_and_in_no_log"),
    "hub_private_repo": Irrelevant("transformers reads it where it makes the repository", True),
    "hub_model_id": Elsewhere("test_hub.py", "test_the_last_message_names_the_repository_where_the_hub_put_it"),
    "hub_strategy": Elsewhere("test_hub.py", "test_each_strategy_makes_its_commits"),
    "hub_always_push": Elsewhere("test_hub.py", "test_a_push_is_left_out_while_the_one_before_goes_on"),
    "hub_revision": Elsewhere("test_hub.py", "test_each_commit_holds_both_halves_of_one_step"),
    "load_best_model_at_end": Elsewhere("test_saving.py", "test_loading_the_best_model_at_the_end_loads_both_halves"),
    "metric_for_best_model": Elsewhere("test_evaluation.py", "test_a_held_out_measure_can_choose_the_best_checkpoint"),
    "greater_is_better": Elsewhere("test_evaluation.py", "test_a_held_out_measure_can_choose_the_best_checkpoint"),
    "ignore_data_skip": Honoured(
        "a resumed run begins with the first context again",
        lambda lab: lab.begins_anew(ignore_data_skip=True) and not lab.begins_anew(),
    ),
    "restore_callback_states_from_checkpoint": Honoured(
        "a callback's own state comes back",
        lambda lab: lab.steps_counted(restore_callback_states_from_checkpoint=True) == 2 and lab.steps_counted() == 1,
    ),
    "full_determinism": Honoured("torch's own switch is on in every step", lambda lab: lab.deterministic()),
    "seed": Honoured(
        "of the contexts' order and of the gists", lambda lab: lab.first_contexts(seed=8) != lab.first_contexts()
    ),
    "data_seed": Refused([3]),
    "use_cpu": Honoured("the run is on the CPU", lambda lab: lab.trainer().accelerator.device.type == "cpu"),
    "accelerator_config": Reaches({"even_batches": False}, "accelerator.even_batches", False),
    "parallelism_config": Refused(["ParallelismConfig()"]),
    "dataloader_drop_last": Honoured(
        "an evaluation leaves its last batch out if it is short, and a rollout is always whole",
        lambda lab: (
            lab.windows_evaluated(per_device_eval_batch_size=3, dataloader_drop_last=True) == 3
            and lab.windows_evaluated(per_device_eval_batch_size=3) > 3
        ),
    ),
    "dataloader_num_workers": Reaches(1, "loader.num_workers"),
    "dataloader_pin_memory": Irrelevant(
        "of loaders that feed an accelerator; transformers turns it off on a CPU", False
    ),
    "dataloader_persistent_workers": Reaches(True, "loader.persistent_workers"),
    "dataloader_prefetch_factor": Reaches(3, "loader.prefetch_factor"),
    "dataloader_multiprocessing_context": Reaches("fork", "loader.multiprocessing_context._name"),
    "dataloader_in_order": Reaches(False, "loader.in_order"),
    "remove_unused_columns": Refused([True]),
    "label_names": Refused([["labels"]]),
    "train_sampling_strategy": Refused(["sequential", "group_by_length", "batch_rebalance"]),
    "length_column_name": Refused(["tokens"]),
    "ddp_find_unused_parameters": Reaches(False, "accelerator.ddp_handler.find_unused_parameters"),
    "ddp_bucket_cap_mb": Reaches(3, "accelerator.ddp_handler.bucket_cap_mb"),
    "ddp_broadcast_buffers": Reaches(False, "accelerator.ddp_handler.broadcast_buffers"),
    "ddp_static_graph": Reaches(True, "accelerator.ddp_handler.static_graph"),
    "ddp_backend": Irrelevant(PROCESSES),
    "ddp_timeout": Irrelevant(PROCESSES, 60),
    "fsdp": Refused(["full_shard"], "FSDP"),
    "fsdp_config": Irrelevant("read beside `fsdp`, which is refused", {"min_num_params": 1}),
    "deepspeed": Elsewhere("test_engines.py", "test_two_processes_take_the_steps_of_one", sets="zero2"),
    "debug": Honoured("a layer of S that overflows is named", lambda lab: lab.overflow_is_named()),
    "skip_memory_metrics": Reaches(False, "_memory_tracker.skip_memory_metrics"),
    "do_train": Irrelevant(SCRIPTS, True),
    "do_eval": Irrelevant(SCRIPTS, True),
    "do_predict": Irrelevant(SCRIPTS, True),
    "resume_from_checkpoint": Irrelevant(SCRIPTS, "somewhere"),
    "local_rank": Irrelevant("transformers reads the launcher's LOCAL_RANK instead", 0),
}

# ---- trl.GRPOConfig ----

GRPO_CONFIG = {
    "model_init_kwargs": Honoured(
        "S, G and T are loaded by it",
        lambda lab: lab.dtypes(model_init_kwargs={"dtype": "bfloat16"}) == {torch.bfloat16} != lab.dtypes(),
    ),
    "trust_remote_code": Elsewhere(
        "test_safe_loading.py", "test_a_role_with_code_of_its_own_does_not_run_it_unless_trusted"
    ),
    "router_aux_loss_coef": Honoured(
        "S's loss has it times the auxiliary loss of its experts", lambda lab: lab.router_loss_is_added()
    ),
    "disable_dropout": Refused([False]),
    "cast_lm_head_to_fp32": Honoured("S's head multiplies in float32", lambda lab: lab.head_in_float32()),
    "num_generations": Honoured("gists of a context", lambda lab: lab.group_sizes(num_generations=2) == {2}),
    "num_generations_eval": Honoured(
        "gists of a context in an evaluation",
        lambda lab: lab.group_sizes("evaluations", num_generations_eval=2, **EVALUATED) == {2},
    ),
    "max_completion_length": Honoured("no gist is longer", lambda lab: lab.longest_gist(max_completion_length=3) == 3),
    "ds3_gather_for_generation": Honoured(
        "TRL is told", lambda lab: lab.gathers(ds3_gather_for_generation=False) == {False}
    ),
    "shuffle_dataset": Honoured(
        "without it contexts come in the dataset's order",
        lambda lab: lab.first_contexts(shuffle_dataset=False) == [0, 1] != lab.first_contexts(),
    ),
    "pad_to_multiple_of": Honoured(
        "S's rows have such a length", lambda lab: {width % 16 for width in lab.widths(pad_to_multiple_of=16)} == {0}
    ),
    "generation_batch_size": Honoured(
        "gists of a rollout",
        lambda lab: lab.args(generation_batch_size=16, gradient_accumulation_steps=2).steps_per_generation == 2,
    ),
    "steps_per_generation": Honoured(
        "steps of a rollout", lambda lab: lab.rollouts(steps_per_generation=2, max_steps=4) == 2
    ),
    "temperature": Honoured(
        "gists are sampled from logits / temperature, and S's log-probs are of those",
        lambda lab: lab.temperature_is_in_both(),
    ),
    "top_p": Refused([0.9]),
    "top_k": Refused([50]),
    "min_p": Refused([0.1]),
    "generation_kwargs": Refused([{"repetition_penalty": 1.2}, {"temperature": 0.5}, {"max_new_tokens": 3}]),
    "chat_template_kwargs": Honoured("S's prompt is rendered by it", lambda lab: lab.template_is_told()),
    "repetition_penalty": Refused([1.2]),
    "cache_implementation": Refused(["static", "quantized"]),
    "use_vllm": Elsewhere("test_vllm.py", "test_a_run_trains_with_the_teacher_bit_for_bit_and_syncs_once_a_step"),
    "vllm_mode": Irrelevant(NO_VLLM, "server"),
    "vllm_model_impl": Irrelevant(NO_VLLM, "transformers"),
    "vllm_enable_sleep_mode": Irrelevant(NO_VLLM, True),
    "vllm_structured_outputs_regex": Refused(["a*"]),
    "vllm_server_base_url": Irrelevant(NO_VLLM, "http://localhost:1"),
    "vllm_server_host": Irrelevant(NO_VLLM, "localhost"),
    "vllm_server_port": Irrelevant(NO_VLLM, 1),
    "vllm_server_timeout": Irrelevant(NO_VLLM, 1.0),
    "vllm_group_port": Irrelevant(NO_VLLM, 2),
    "vllm_gpu_memory_utilization": Irrelevant(NO_VLLM, 0.1),
    "vllm_max_model_length": Irrelevant(NO_VLLM, 64),
    "vllm_tensor_parallel_size": Irrelevant(NO_VLLM, 2),
    "beta": loss(beta=0.5),
    "num_iterations": Honoured("steps on each part of a rollout", lambda lab: lab.rollouts(num_iterations=2) == 1),
    "epsilon": loss(epsilon=0.05),
    "delta": loss(delta=1.1),
    "epsilon_high": loss(epsilon_high=0.05),
    "sapo_temperature_neg": loss(sapo_temperature_neg=3.0, loss_type="sapo"),
    "sapo_temperature_pos": loss(sapo_temperature_pos=3.0, loss_type="sapo"),
    "vespo_k_pos": loss(vespo_k_pos=1.0, loss_type="vespo"),
    "vespo_lambda_pos": loss(vespo_lambda_pos=1.0, loss_type="vespo"),
    "vespo_k_neg": loss(vespo_k_neg=1.0, loss_type="vespo"),
    "vespo_lambda_neg": loss(vespo_lambda_neg=1.0, loss_type="vespo"),
    "importance_sampling_level": loss(importance_sampling_level="sequence"),
    "reward_weights": Honoured(
        "the weights of the rewards",
        lambda lab: lab.trainer(reward_weights=[0.5, 2.0]).reward_weights.tolist() == [0.5, 2.0],
    ),
    "multi_objective_aggregation": Honoured(
        "rewards are normalized before they are summed", lambda lab: lab.advantages_are_normalized_first()
    ),
    "scale_rewards": Honoured("what advantages are divided by", lambda lab: lab.advantages_are_scaled()),
    "loss_type": Honoured(
        "the loss is its formula's",
        lambda lab: all(
            lab.loss_is(formula(loss_type=kind), "loss_type", loss_type=kind)
            for kind in ("grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")
        ),
    ),
    "mask_truncated_completions": Refused([True]),
    "sync_ref_model": Honoured("S's reference follows it", lambda lab: lab.reference_follows(sync_ref_model=True)),
    "ref_model_mixup_alpha": Honoured("by that share", lambda lab: lab.reference_follows(ref_model_mixup_alpha=0.25)),
    "ref_model_sync_steps": Honoured("every so many steps", lambda lab: lab.reference_follows(ref_model_sync_steps=2)),
    "top_entropy_quantile": loss(top_entropy_quantile=0.5),
    "entropy_coef": loss(entropy_coef=0.3),
    "use_adaptive_entropy": Honoured("the coefficient moves", lambda lab: lab.entropy_coefs() == [0.005, 0.01]),
    "entropy_coef_min": Honoured(
        "not below",
        lambda lab: lab.entropy_coefs(entropy_target=0.0, entropy_coef=0.1, entropy_coef_min=0.097) == [0.097] * 2,
    ),
    "entropy_coef_max": Honoured("not above", lambda lab: lab.entropy_coefs(entropy_coef_max=0.007) == [0.005, 0.007]),
    "entropy_coef_delta": Honoured(
        "by so much a step", lambda lab: lab.entropy_coefs(entropy_coef_delta=0.1) == [0.1, 0.2]
    ),
    "entropy_target": Honoured(
        "up below it, down above", lambda lab: lab.entropy_coefs(entropy_target=0.0, entropy_coef=0.1) == [0.095, 0.09]
    ),
    "max_tool_calling_iterations": Refused([1]),
    "vllm_importance_sampling_correction": Irrelevant(NO_VLLM, False),
    "vllm_importance_sampling_mode": Irrelevant(NO_VLLM, "token_mask"),
    "vllm_importance_sampling_clip_max": Irrelevant(NO_VLLM, 5.0),
    "vllm_importance_sampling_clip_min": Irrelevant(NO_VLLM, 0.1),
    "off_policy_mask_threshold": loss(off_policy_mask_threshold=0.0),
    "use_bias_correction_kl": loss(use_bias_correction_kl=False, beta=0.5),
    "log_completions": Elsewhere(
        "test_evaluation.py", "test_log_completions_writes_gists_rewards_scores_and_advantages"
    ),
    "log_multimodal": Irrelevant("there are no images", False),
    "num_completions_to_print": Honoured(
        "rows of the printed table", lambda lab: lab.rows_printed(num_completions_to_print=1) == {1}
    ),
    "log_unique_prompts": Irrelevant("of the table that goes to a tracker: one row a context", True),
    "log_completions_hub_repo": Honoured(
        "the completions' folder is what TRL sends there", lambda lab: lab.completions_repo("user/completions")
    ),
    "use_transformers_continuous_batching": Refused([True]),
    "transformers_continuous_batching_config": Irrelevant(
        "read beside `use_transformers_continuous_batching`", {"max_memory_percent": 0.5}
    ),
    "use_transformers_paged": Refused([True], "use_transformers_continuous_batching"),
    "vllm_importance_sampling_cap": Irrelevant(NO_VLLM, 5.0),
}

# ---- trl_gist.GistConfig ----

GIST_CONFIG = {
    "context_length": Honoured("of the windows", lambda lab: lab.lengths("context_ids", context_length=20) == {20}),
    "target_length": Honoured("of the windows", lambda lab: lab.lengths("target_ids", target_length=5) == {5}),
    "last_k": Honoured("of the windows", lambda lab: lab.lengths("last_k_ids", last_k=3) == {3}),
    "window_stride": Honoured(
        "between the starts of windows", lambda lab: lab.window_starts(window_stride=10)[:3] == [0, 10, 20]
    ),
    "max_windows_per_document": Honoured(
        "a document's windows", lambda lab: len(lab.window_starts(max_windows_per_document=2)) == 2
    ),
    "parse_special_tokens": Honoured(
        "whether control tokens that documents spell are meant",
        lambda lab: lab.controls() == set() and len(lab.controls(parse_special_tokens=True)) == 2,
    ),
    "target_kinds": Honoured(
        "the kinds of targets that S is paid for; without it, the continuation alone",
        lambda lab: (
            lab.kinds_paid_for() == {"fact", "continuation"}
            and lab.kinds_paid_for(target_kinds={"far": 1}, far_offset=10) == {"far"}
            and all(targets is None for _, targets, _ in lab.run().seen["paid_for"][0])
        ),
    ),
    "targets_per_context": Honoured(
        "at most so many of a context",
        lambda lab: max(map(len, lab.paid_for(targets_per_context=2))) == 2 < max(map(len, lab.paid_for())),
    ),
    "target_floor": Honoured(
        "of targets that T gains less on, the one that it gains most on",
        lambda lab: set(map(len, lab.paid_for(target_floor=1e6))) == {1} and max(map(len, lab.paid_for())) > 1,
    ),
    "cue_length": Honoured(
        "of the text before a fact",
        lambda lab: all(
            max(len(each["cue_ids"]) for targets in paid for each in targets if each["kind"] == "fact") == length
            for paid, length in ((lab.paid_for(cue_length=5), 5), (lab.paid_for(), 12))
        ),
    ),
    "far_offset": Honoured(
        "between the context and a far target",
        lambda lab: all(
            {len(each["after_ids"]) for targets in paid for each in targets} == {length}
            for paid, length in (
                (lab.paid_for(target_kinds={"far": 1}, far_offset=length), length) for length in (7, 9)
            )
        ),
    ),
    "recall_age": Elsewhere("test_walk_memory.py", "test_ages_are_those_that_are_asked_for"),
    "windows_per_document": Elsewhere(
        "test_walks.py", "test_each_gist_is_written_from_one_gist_of_the_window_before_and_the_next_chunk"
    ),
    "gist_discount": Elsewhere(
        "test_walks.py", "test_a_gist_is_paid_for_its_own_window_and_for_what_it_still_buys_in_later_ones"
    ),
    "summarizer_prompt": Honoured(
        "what S reads",
        lambda lab: "Short, please:" in lab.reads("summarizer", summarizer_prompt="{context} Short, please:"),
    ),
    "advantage": Honoured(
        "what S is stepped by", lambda lab: lab.advantages_are("reward") and lab.advantages_are("best")
    ),
    "cold_start_steps": Honoured(
        "so many steps imitate", lambda lab: lab.logged("cold_start", cold_start_steps=1) == [(1.0,), (0.0,)]
    ),
    "cold_start_learning_rate": Honoured(
        "S's in the cold start",
        lambda lab: (
            lab.logged("learning_rate", cold_start_steps=1, cold_start_learning_rate=0.01) == [(0.01,), (0.0005,)]
        ),
    ),
    "cold_start_gists": Honoured("what S imitates", lambda lab: lab.tails(cold_start_gists="tail")),
    "length_penalty": Honoured(
        "the reward's weight", lambda lab: math.isclose(lab.trainer(length_penalty=0.5).reward_weights[1], 0.5)
    ),
    "target_gist_length": Honoured(
        "λ rises where gists are longer",
        lambda lab: lab.price_moves(target_gist_length=3.0) > lab.args().length_penalty,
    ),
    "max_teacher_kl": Honoured(
        "λ rises while the distance is allowed",
        lambda lab: lab.price_moves(max_teacher_kl=99.0) > lab.args().length_penalty,
    ),
    "length_penalty_learning_rate": Honoured(
        "λ moves by so much",
        lambda lab: (
            lab.price_moves(target_gist_length=3.0, length_penalty_learning_rate=0.1)
            > lab.price_moves(target_gist_length=3.0)
        ),
    ),
    "gist_length_range": Elsewhere("test_rate_control.py", "test_no_gist_exceeds_its_budget_and_a_group_shares_one"),
    "generator_prompt": Honoured(
        "what G reads", lambda lab: lab.reads("generator", generator_prompt="G {gist} L {last_k}").startswith("G ")
    ),
    "generator_learning_rate": Honoured(
        "G's, and not S's", lambda lab: lab.rates(generator_learning_rate=0.002) == (0.001, 0.002)
    ),
    "distillation_loss": Elsewhere("test_reference.py", "test_distillation_gradient_equals_the_reference"),
    "gist_dropout": Honoured(
        "G's gradient is that with gists and that without, in this share", lambda lab: lab.dropout_mixes(0.25)
    ),
    "distillation_mean": Honoured(
        "G's gradient on targets of several lengths; `test_side_by_side.py` has which it is",
        lambda lab: (
            len(
                {
                    lab.logged(
                        "generator/grad_norm",
                        **{"target_kinds": {"fact": 1, "continuation": 1}, "target_floor": None, "context_length": 60},
                        **{"max_steps": 1, "distillation_mean": mean},
                    )[0]
                    for mean in ("targets", "tokens")
                }
            )
            == 2
        ),
    ),
    "distilled_gists": Elsewhere("test_distilled_gists.py", "test_some_gists_of_each_context_stand_for_all"),
    "score_batch_size": Honoured(
        "bounds the rows that G reads at once, not the result",
        lambda lab: (
            lab.rows_of_a_forward(score_batch_size=1) == 1 < lab.rows_of_a_forward()
            and lab.scores_alike(score_batch_size=3)
        ),
    ),
    "generator_only": Elsewhere("test_generator_only.py", "test_only_the_generator_moves_and_reads_empty_gists"),
    "teacher_cache_dir": Elsewhere(
        "test_teacher_cache.py", "test_training_over_two_epochs_is_the_same_with_the_cache"
    ),
    "stop_on_alarm": Elsewhere(
        "test_alarms.py", "test_a_run_stops_with_its_checkpoint_at_the_end_of_the_rollout_and_goes_on_when_resumed"
    ),
    "gist_samples": Elsewhere("test_run_log.py", "test_windows_are_spread_over_documents"),
    "gist_samples_steps": Elsewhere(
        "test_run_log.py", "test_samples_are_taken_as_training_begins_and_ends_and_every_so_often"
    ),
}

SETTINGS = {**TRAINING_ARGUMENTS, **GRPO_CONFIG, **GIST_CONFIG}
