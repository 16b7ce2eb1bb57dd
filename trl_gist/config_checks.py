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

"""What [`GistConfig`] refuses: sizes, choices and settings of TRL that cannot be or do not go together. Every function raises
`ValueError` that names the field, its value and what to do."""

import re

from .prompts import PLACEHOLDERS


ADVANTAGES = ("group", "reward", "best")
EXTRACTIVE_RULES = ("tail", "tf_idf", "surprisal", "mixed", "passages")
DISTILLATION_LOSSES = ("forward_kl", "reverse_kl", "jsd", "cross_entropy")

# What TRL would name in the first rollout, or, as `vllm_importance_sampling_mode`, hours into a run
INHERITED_CHOICES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
# Settings that TRL and transformers take, and that the training of a pair would not follow: what they must be, and why
UNHEEDED = {
    "label_smoothing_factor": (0.0, "neither model's loss is against labels. Leave it out."),
    "average_tokens_across_devices": (True, "the losses are means over the tokens of all devices. Leave it out."),
    "data_seed": (None, "the order of the contexts follows `seed`, which to set in its place."),
    "train_sampling_strategy": (
        "random",
        "a sampler keeps the gists of a context together and draws the contexts. Leave it out; `shuffle_dataset=False` "
        "takes them in the dataset's order.",
    ),
    "length_column_name": ("length", "contexts are not grouped by length. Leave it out."),
    "label_names": (None, "no label is read from the rows. Leave it out."),
    "include_for_metrics": ([], "evaluation has measures of its own and takes no `compute_metrics`. Leave it out."),
    "batch_eval_metrics": (False, "evaluation has measures of its own and takes no `compute_metrics`. Leave it out."),
    "use_liger_kernel": (
        False,
        "it replaces layers of the summarizer alone, under a head that scales the logits by the temperature. Leave it out.",
    ),
    "liger_kernel_config": (None, "`use_liger_kernel`, which reads it, is refused. Leave it out."),
    "cache_implementation": (None, "all gists of a context are sampled from one cache that grows. Leave it out."),
    "max_tool_calling_iterations": (None, "the summarizer has no tools. Leave it out."),
}
# Optimizers of which transformers reads more settings than those of Adam. The plain ones would take them in silence.
OPTIMIZERS_WITHOUT_ARGS = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor")
OPTIMIZERS_WITH_TARGETS = ("galore", "apollo")


def check_config(args):
    """All of it; fills in what follows from the rate that is asked for."""
    check_sizes(args)
    check_choices(args)
    check_inherited(args)
    check_unheeded(args)
    check_aggregation(args)
    check_engine_settings(args)
    check_optimizer_settings(args)
    resolve_rate(args)
    check_prompts(args)
    check_rollouts(args)


def check_sizes(args):
    for name in (
        "context_length",
        "target_length",
        "last_k",
        "max_completion_length",
        "score_batch_size",
        "gist_samples",
        "windows_per_document",
    ):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}.")
    for name in ("window_stride", "max_windows_per_document", "gist_samples_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1 or None, got {getattr(args, name)}.")
    if args.last_k > args.context_length:
        raise ValueError(
            f"`last_k` ({args.last_k}) must not exceed `context_length` ({args.context_length}): the last tokens "
            "are taken from the context. Lower `last_k` or raise `context_length`."
        )


def check_choices(args):
    if args.cold_start_steps < 0:
        raise ValueError(f"`cold_start_steps` must be at least 0, got {args.cold_start_steps}.")
    for name, choices in (
        ("advantage", ADVANTAGES),
        ("cold_start_gists", EXTRACTIVE_RULES),
        ("distillation_loss", DISTILLATION_LOSSES),
    ):
        if getattr(args, name) not in choices:
            raise ValueError(f"`{name}` must be one of {choices}, got {getattr(args, name)!r}.")
    for name in ("gist_dropout", "gist_discount"):
        if not 0.0 <= getattr(args, name) <= 1.0:
            raise ValueError(f"`{name}` must be in [0, 1], got {getattr(args, name)}.")


def check_inherited(args):
    """What [`~trl.GRPOConfig`] allows and a pair cannot be trained with."""
    if not args.disable_dropout:
        raise ValueError(
            "`disable_dropout` must be True: gists are sampled and scored in train mode, so dropout would make "
            "the policy that samples differ from the policy that is trained."
        )
    if args.repetition_penalty != 1.0:
        raise ValueError(
            f"`repetition_penalty` must be 1.0, got {args.repetition_penalty}: the policy is trained on its plain "
            "log-probs, and a saved pair writes gists without a penalty."
        )
    for name in ("num_beams", "num_return_sequences", "n"):  # the last is vLLM's name for it
        if (args.generation_kwargs or {}).get(name, 1) != 1:
            raise ValueError(
                f"`generation_kwargs` must not set `{name}`: gists are sampled, `num_generations` of each context."
            )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "`enable_jit_checkpoint` saves in the middle of a step, when the generator is a step ahead of the "
            "summarizer. Leave it out: `trl-gist train` saves on SIGTERM by itself, and a script does with "
            "`trl_gist.SaveOnSignal`."
        )


def check_unheeded(args):
    """A setting that is taken and then not followed is worse than one that is refused."""
    for name, choices in INHERITED_CHOICES.items():
        if getattr(args, name) not in choices:
            raise ValueError(f"`{name}` must be one of {choices}, got {getattr(args, name)!r}.")
    for name, (followed, reason) in UNHEEDED.items():
        if getattr(args, name) != followed:
            raise ValueError(f"`{name}` must be {followed!r}, got {getattr(args, name)!r}: {reason}")
    for option in args.debug:
        if option == "tpu_metrics_debug":
            raise ValueError("`debug` must not have 'tpu_metrics_debug': nothing here runs on a TPU. Leave it out.")


def check_aggregation(args):
    """Rewards that are normalized before they are summed are not in nats, so neither is a price beside them."""
    if args.multi_objective_aggregation != "normalize_then_sum":
        return
    for name in ("target_gist_length", "max_teacher_kl"):
        if getattr(args, name) is not None:
            raise ValueError(
                f'`multi_objective_aggregation="normalize_then_sum"` does not go with `{name}` ({getattr(args, name)}), '
                "whose λ is a price in nats: rewards normalized one by one have no unit. Leave one of them out."
            )
    if args.reward_weights is None:
        raise ValueError(
            '`multi_objective_aggregation="normalize_then_sum"` weighs rewards that have no unit any more, and '
            f"`length_penalty` ({args.length_penalty}) is a price in nats. Set `reward_weights`, one for each reward "
            "function."
        )
    if args.scale_rewards != "group":
        raise ValueError(
            f"`scale_rewards` must be 'group', got {args.scale_rewards!r}: under "
            '`multi_objective_aggregation="normalize_then_sum"` each reward is scaled by its group already. Leave it out.'
        )


def check_engine_settings(args):
    """How models are run and data reaches them: what reaches the summarizer's engine alone, or not every forward."""
    if args.torch_compile:
        raise ValueError(
            "`torch_compile` must be False (which `torch_compile_backend` and `torch_compile_mode` set as well), got "
            f"{args.torch_compile_backend!r}: each rollout has rows of another length, for which all three models would be "
            "compiled anew, and sampling is not compiled. Leave it out."
        )
    for name in ("every_n_layers", "offload"):
        if name in (args.activation_checkpointing_kwargs or {}):
            raise ValueError(
                f"`activation_checkpointing_kwargs` (or `gradient_checkpointing_kwargs`) must not set `{name}`: TRL switches "
                "checkpointing off and on around each rollout, without it. Leave it out."
            )
    if args.parallelism_config is not None:
        raise ValueError(
            "`parallelism_config` must be None: it shards the summarizer alone. Launch with DeepSpeed "
            "(`trl-gist train --accelerate_config zero3` shards all three models), or with DDP (`multi_gpu`)."
        )
    config = args.accelerator_config
    if config.split_batches or config.dispatch_batches:
        raise ValueError(
            f"`accelerator_config` must leave `split_batches` ({config.split_batches}) and `dispatch_batches` "
            f"({config.dispatch_batches}) at False: each process takes the rows of whole contexts from the batch."
        )
    if "num_steps" in (config.gradient_accumulation_kwargs or {}):
        raise ValueError(
            "`accelerator_config` must not set `num_steps` in `gradient_accumulation_kwargs`: rollouts are planned with "
            "`gradient_accumulation_steps`, which to set in its place."
        )


def check_optimizer_settings(args):
    if args.optim_args is not None and args.optim in OPTIMIZERS_WITHOUT_ARGS:
        raise ValueError(
            f"`optim_args` must be None, got {args.optim_args!r}: `optim` '{args.optim.value}' reads none of them. Set "
            "`adam_beta1`, `adam_beta2`, `adam_epsilon` or `weight_decay`, or choose another `optim`."
        )
    if args.optim_target_modules is not None and not args.optim.startswith(OPTIMIZERS_WITH_TARGETS):
        raise ValueError(
            f"`optim_target_modules` must be None, got {args.optim_target_modules!r}: `optim` '{args.optim.value}' has none. "
            "It is read by GaLore and APOLLO; what LoRA trains is said by `target_modules` of the `peft_config`."
        )


def check_shared_head(args, lora: bool):
    """For the trainer, which knows whether the three roles stand on one base."""
    if args.cast_lm_head_to_fp32 and lora:
        raise ValueError(
            "`cast_lm_head_to_fp32` must be False with LoRA: the head belongs to the base that the summarizer shares with "
            "the generator and the teacher. Log-probs are taken in float32 anyway; for a head that multiplies in float32 "
            'load the models so, `model_init_kwargs={"dtype": "float32"}`.'
        )


def resolve_rate(args):
    targets = ("target_gist_length", "max_teacher_kl")
    for name in (*targets, "length_penalty_learning_rate", "cold_start_learning_rate"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(args, name)}.")
    if args.length_penalty_learning_rate is None:
        args.length_penalty_learning_rate = 2e-3 if args.max_teacher_kl is None else 4e-4
    if all(getattr(args, name) is not None for name in targets):
        raise ValueError("Set one of `target_gist_length` and `max_teacher_kl`: one λ holds one constraint.")
    if args.target_gist_length is not None and args.target_gist_length >= args.max_completion_length:
        raise ValueError(
            f"`target_gist_length` ({args.target_gist_length}) must be below `max_completion_length` "
            f"({args.max_completion_length}): no price is needed to stay within it."
        )
    if args.gist_length_range is None:
        if "{budget}" in args.summarizer_prompt:
            raise ValueError("`summarizer_prompt` states a '{budget}': set `gist_length_range`, to draw it from.")
        return
    if args.target_gist_length is not None:
        raise ValueError("Set one of `gist_length_range` and `target_gist_length`: both say how long gists are.")
    least, greatest = args.gist_length_range
    if not 1 <= least <= greatest or greatest != args.max_completion_length:
        raise ValueError(
            f"`gist_length_range` ({least}, {greatest}) must ascend from at least 1 to `max_completion_length` "
            f"({args.max_completion_length})."
        )
    if "{budget}" not in args.summarizer_prompt and args.summarizer_prompt.endswith("Gist:"):
        args.summarizer_prompt = args.summarizer_prompt.removesuffix(":") + " of at most {budget} tokens:"
    if "{budget}" not in args.summarizer_prompt:
        raise ValueError("`gist_length_range` is set: `summarizer_prompt` must contain '{budget}', for S to see it.")


def check_prompts(args):
    if ("{context}" in args.summarizer_prompt) + ("{before_last_k}" in args.summarizer_prompt) != 1:
        raise ValueError(
            "`summarizer_prompt` must contain '{context}', where the context's tokens go, or '{before_last_k}', for "
            "those that the generator does not see by itself."
        )
    if re.findall("{gist}|{last_k}", args.generator_prompt) != ["{gist}", "{last_k}"]:
        raise ValueError(
            "`generator_prompt` must contain '{gist}' once and, after it, '{last_k}' once, where their tokens go; got "
            f"{args.generator_prompt!r}."
        )
    for name in PLACEHOLDERS:
        if args.summarizer_prompt.count(f"{{{name}}}") > 1:
            raise ValueError(f"`summarizer_prompt` must contain '{{{name}}}' once at most.")
    # A bare name in single braces was meant to be replaced; JSON and doubled braces were not
    for name in re.findall(r"{([A-Za-z_]\w*)}(?!})", args.summarizer_prompt):
        if name not in PLACEHOLDERS:
            raise ValueError(
                f"`summarizer_prompt` has '{{{name}}}', which stands for nothing: only '{{context}}', "
                f"'{{before_last_k}}', '{{tail}}', '{{last_k}}' and '{{budget}}' are replaced. If the braces are "
                f"meant as text, write '{{ {name} }}'."
            )


def check_rollouts(args):
    per_device = args.per_device_train_batch_size * args.steps_per_generation
    if per_device % args.num_generations != 0:
        raise ValueError(
            f"`per_device_train_batch_size` × `steps_per_generation` ({args.per_device_train_batch_size} × "
            f"{args.steps_per_generation} = {per_device}) must be divisible by `num_generations` "
            f"({args.num_generations}), so that all gists of a context are scored on one device."
        )
    # One rollout is `micro_steps` forward-backward passes, and the generator steps once per rollout. A checkpoint
    # holds no half-used rollout, so it must fall between two.
    micro_steps = args.steps_per_generation * args.num_iterations
    if micro_steps % args.gradient_accumulation_steps != 0 and args.gradient_accumulation_steps % micro_steps != 0:
        raise ValueError(
            f"`steps_per_generation` × `num_iterations` ({micro_steps}) and `gradient_accumulation_steps` "
            f"({args.gradient_accumulation_steps}) must divide one another, so that a rollout ends with an "
            "optimizer step."
        )
    steps_per_rollout = args.steps_per_rollout
    saving = {"steps": ("save_steps", "max_steps"), "best": ("eval_steps",)}.get(args.save_strategy, ())
    for name in saving if steps_per_rollout > 1 else ():
        value = getattr(args, name)
        if value is not None and value > 0 and value % steps_per_rollout != 0:
            raise ValueError(
                f"`{name}` ({value}) must be a multiple of the {steps_per_rollout} optimizer steps of one rollout "
                "(`steps_per_generation` × `num_iterations` / `gradient_accumulation_steps`), so that no "
                "checkpoint falls inside a rollout."
            )
