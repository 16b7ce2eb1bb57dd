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

"""What [`GistConfig`] refuses: sizes, choices and settings of TRL that cannot be or do not go together. A function raises
`ValueError` that names the field, its value and what to do; two warn of what another setting leaves unread."""

import dataclasses
import functools
import inspect
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable

from accelerate.logging import get_logger
from transformers import PreTrainedTokenizerBase

from ..common.arguments import finite_number, truth, whole_number
from ..common.statistics import is_number
from ..data.columns import TARGETS_COLUMN, check_said, said_of_targets
from ..prompts import PLACEHOLDERS, SUMMARIZER_PROMPT_OF_FACTS, SUMMARIZER_PROMPT_WITH_TAIL
from ..scoring.controls import GREATER_IS_BETTER


logger = get_logger(__name__)

ADVANTAGES = ("group", "reward", "best")
EXTRACTIVE_RULES = ("tail", "mixed", "passages", "facts", "surprising_facts", "recurring_facts", "answers")
# They shape the part of TRL's loss that imitation does not have
POLICY_LOSS_SETTINGS = (
    *("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "off_policy_mask_threshold"),
    "top_entropy_quantile",
)
# What `generator_only` leaves unread
SUMMARIZER_SETTINGS = (
    *("cold_start_steps", "cold_start_learning_rate", "cold_start_gists", "distilled_gists", "stop_on_alarm"),
    *("gist_samples_steps", "entropy_coef", "use_adaptive_entropy", *POLICY_LOSS_SETTINGS),
)
DISTILLATION_LOSSES = ("forward_kl", "cross_entropy")
DISTILLATION_MEANS = ("targets", "tokens")

# Settings of TRL that would bend S's distribution, and the values that do not, the one to say first
NEUTRAL_SAMPLING = {
    "top_p": (1.0,),
    "top_k": (0,),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "vllm_structured_outputs_regex": (None,),
}
# vLLM's `SamplingParams` that leave the tokens' distribution as it is
VLLM_KWARGS = ("detokenize", "seed", "skip_special_tokens", "spaces_between_special_tokens")
# Where a config has a field of its own for a setting of `generate` or of vLLM
OWN_FIELDS = {
    "max_new_tokens": "max_completion_length",
    "max_length": "max_completion_length",
    "max_tokens": "max_completion_length",
    "num_return_sequences": "num_generations",
    "n": "num_generations",
    "temperature": "temperature",
}
# What TRL would name in the first rollout, or, as `vllm_importance_sampling_mode`, hours into a run
INHERITED_CHOICES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
# Settings that TRL and transformers take, and that a pair cannot be trained with, or would not follow: what they must be,
# and why
UNHEEDED = {
    "disable_dropout": (
        True,
        "gists are sampled and scored in train mode, so dropout would make the policy that samples differ from the "
        "policy that is trained.",
    ),
    "mask_truncated_completions": (
        False,
        "a gist that `max_completion_length` or its budget cuts is whole, the generator reads it as it is, and most "
        "gists of the cold start end so. To have them end by themselves, raise `max_completion_length` and set a "
        "`length_penalty`.",
    ),
    "neftune_noise_alpha": (
        None,
        "gists are sampled and scored in train mode, so noise would make the policy that samples differ from the "
        "policy that is trained.",
    ),
    "remove_unused_columns": (
        False,
        "it would remove the windows' tokens, which no model takes by name, and the columns of reward functions. Remove "
        "a column from the dataset yourself where it is in the way.",
    ),
    "enable_jit_checkpoint": (
        False,
        "it saves in the middle of a step, when the generator is a step ahead of the summarizer. Leave it out: `trl-gist "
        "train` saves on a signal by itself, and a script does with `trl_gist.SaveOnSignal`.",
    ),
    "parallelism_config": (
        None,
        "it shards the summarizer alone. Launch with DeepSpeed (`trl-gist train --accelerate_config zero3` shards all "
        "three models), or with DDP (`multi_gpu`).",
    ),
    "label_smoothing_factor": (0.0, "neither model's loss is against labels. Leave it out."),
    "average_tokens_across_devices": (True, "the losses are means over the tokens of all devices. Leave it out."),
    "data_seed": (None, "the order of the contexts follows `seed`, which to set in its place."),
    "train_sampling_strategy": (
        "random",
        "a sampler keeps the gists of a context together and draws the contexts. Leave it out; "
        "`shuffle_dataset=False` takes them in the dataset's order.",
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
# Of whole numbers; of others any is taken here
LEAST = {
    **dict.fromkeys(("cold_start_steps", "seed", "dataloader_num_workers"), 0),
    **dict.fromkeys(
        (
            *("context_length", "target_length", "last_k", "max_completion_length", "windows_per_document"),
            *("window_stride", "max_windows_per_document", "score_batch_size", "gist_samples", "gist_samples_steps"),
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("generation_batch_size", "steps_per_generation", "num_generations", "num_generations_eval"),
            *("num_iterations", "targets_per_context", "far_offset"),
        ),
        1,
    ),
}
# Optimizers of which transformers reads more settings than those of Adam. The plain ones would take them in silence.
OPTIMIZERS_WITHOUT_ARGS = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor")
OPTIMIZERS_WITH_TARGETS = ("galore", "apollo")


def check_config(args):
    """All of it; fills in what follows from the rate that is asked for."""
    check_sizes(args)
    check_choices(args)
    check_sampling(args)
    check_continuous_batching(args)
    check_chat_template_kwargs(args)
    check_precision(args)
    check_aggregation(args)
    check_policy_loss(args)
    check_unheeded(args)
    check_engine_settings(args)
    check_generator_only(args)
    resolve_length_penalty(args)
    resolve_budgets(args)
    check_prompts(args)
    check_rollouts(args)
    check_optimizer(args)
    check_schedule(args)


def check_kinds(args):
    """Numbers are numbers and lists are lists, before TRL and transformers compute with them; numpy's numbers become
    Python's, which JSON holds."""
    hints = _type_hints(type(args))
    for field in dataclasses.fields(args):
        name, value, hint = field.name, getattr(args, field.name), hints[field.name]
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        kinds = set(typing.get_args(hint)) if union else {hint}
        if value is field.default or (value is None and type(None) in kinds):
            continue
        optional, kinds = type(None) in kinds, kinds - {type(None)}
        if kinds == {int}:
            setattr(args, name, whole_number(name, value, LEAST.get(name), optional))
        elif kinds == {float}:
            setattr(args, name, finite_number(name, value))
        elif kinds == {bool}:
            setattr(args, name, truth(name, value))
        elif kinds == {str} and not isinstance(value, (str, bool, os.PathLike)):  # TRL takes True for some
            raise ValueError(f"`{name}` must be text, got {value!r}.")
        elif kinds in ({list[int]}, {list[float]}, {list[str]}):
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise ValueError(f"`{name}` takes a list, got {value!r}: put it in one.")
            setattr(args, name, list(value))
            if kinds == {list[int]}:
                setattr(args, name, [whole_number(name, each, least=None) for each in value])
            elif kinds == {list[float]}:
                setattr(args, name, [finite_number(name, each) for each in value])
    whole_number("num_generations", args.num_generations)  # which TRL's type lets be None


def check_json(args):
    """What the command line takes as JSON can be read: transformers (5.23) does not say of which setting it could not."""
    for name in args._VALID_DICT_FIELDS:
        value = getattr(args, name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`{name}` must be JSON, its names in double quotes as in '{{\"name\": 1}}', got {value!r}: {error}."
                ) from error


# From the classes: transformers' parser (5.23) takes the None out of the types of a dataclass's fields
_type_hints = functools.cache(typing.get_type_hints)


def check_sizes(args):
    whole_number("max_completion_length", args.max_completion_length)  # which TRL takes without
    for name in ("beta", "max_grad_norm", "learning_rate", "generator_learning_rate", "weight_decay"):
        if getattr(args, name) < 0:
            raise ValueError(f"`{name}` must not be below 0, got {getattr(args, name)}. Set it to 0 to leave it out.")
    for name in ("target_gist_length", "max_teacher_kl", "length_penalty_learning_rate", "cold_start_learning_rate"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(args, name)}.")
    if args.cold_start_learning_rate is not None and args.learning_rate == 0:
        raise ValueError(
            f"`cold_start_learning_rate` ({args.cold_start_learning_rate}) is a multiple of `learning_rate`, which is "
            "0: raise it, or leave the former out."
        )
    if "torch_dtype" in (args.model_init_kwargs or {}):
        raise ValueError(
            "`model_init_kwargs` has `torch_dtype`, which `dtype` has taken the place of, float32 by default: write "
            f"`dtype` ({args.model_init_kwargs['torch_dtype']})."
        )
    if args.last_k > args.context_length:
        raise ValueError(
            f"`last_k` ({args.last_k}) must not exceed `context_length` ({args.context_length}): the last tokens "
            "are taken from the context. Lower `last_k` or raise `context_length`."
        )


def check_targets(args):
    if args.target_kinds is not None and not (isinstance(args.target_kinds, dict) and args.target_kinds):
        raise ValueError(
            f'`target_kinds` must name kinds with their weights, as {{"fact": 3, "continuation": 1}}, got '
            f"{args.target_kinds!r}."
        )
    if args.target_floor is not None and not (is_number(args.target_floor) and math.isfinite(args.target_floor)):
        raise ValueError(f"`target_floor` must be a number or None, got {args.target_floor!r}.")
    spec = args.target_spec  # which refuses what is wrong with them
    if args.recall_age is not None and args.windows_per_document == 1:
        raise ValueError(
            f"`recall_age` ({args.recall_age}) is of windows of a walk, and `windows_per_document` is 1: raise that, or leave "
            "`recall_age` out."
        )
    spec.check_ages(args.windows_per_document)


def show_whole_context(args):
    """S must see all of X where targets are asked of all of it: the default prompt gives way to one that shows it."""
    if args.summarizer_prompt == SUMMARIZER_PROMPT_WITH_TAIL:
        args.summarizer_prompt = SUMMARIZER_PROMPT_OF_FACTS
    for placeholder in ("{before_last_k}", "{tail}", "{last_k}"):
        if placeholder in args.summarizer_prompt:
            raise ValueError(
                "`target_kinds`, or the dataset's column `targets`, asks for the whole context, and `summarizer_prompt` "
                f"shows the summarizer '{placeholder}', which hangs on where its last tokens begin. Write '{{context}}' in "
                "its place."
            )


def check_shows_whole_context(prompts, name: str):
    """Raises `ValueError` if a dataset brings targets and the prompt, which is chosen by then, hides a part of X."""
    if prompts.needs_last_k:
        raise ValueError(
            f"The {name} dataset brings targets, which ask for the whole context, and `summarizer_prompt` shows the "
            "summarizer a part of it that hangs on where its last tokens begin. Set `summarizer_prompt` to one with "
            "'{context}' instead, as `trl_gist.prompts.SUMMARIZER_PROMPT_OF_FACTS`."
        )


def check_said_of_targets(args, columns: set[str]):
    """Raises `ValueError` for settings of targets that no window has: of kinds that are not asked for, nor brought by datasets
    with such columns."""
    given = {name: value for name, value in said_of_targets(args).items() if not is_default(args, name)}
    check_said(given, args.target_spec.names, columns)


def check_only_continuation(args):
    """Raises `ValueError` for a cold start on answers where there is only the continuation, which nothing answers."""
    if args.cold_start_gists == "answers" and args.cold_start_steps > 0 and not args.generator_only:
        raise ValueError(
            "`cold_start_gists` is 'answers', sentences that answer a context's targets, and the continuation is the only "
            "target: set `target_kinds` for texts or bring `targets`, or choose another rule, as 'facts'."
        )


def check_choices(args):
    own = {
        "advantage": ADVANTAGES,
        "cold_start_gists": EXTRACTIVE_RULES,
        "distillation_loss": DISTILLATION_LOSSES,
        "distillation_mean": DISTILLATION_MEANS,
    }
    for name, choices in (own | INHERITED_CHOICES).items():
        if getattr(args, name) not in choices:
            raise ValueError(f"`{name}` must be one of {choices}, got {getattr(args, name)!r}.")
    if args.distilled_gists is not None and not 0 < args.distilled_gists <= args.num_generations:
        raise ValueError(
            f"`distilled_gists` must be from 1 to `num_generations` ({args.num_generations}), got {args.distilled_gists}. "
            "Leave it out to distil on all gists."
        )
    for name in ("gist_dropout", "gist_discount"):
        if not 0.0 <= getattr(args, name) <= 1.0:
            raise ValueError(f"`{name}` must be in [0, 1], got {getattr(args, name)}.")
    if not is_default(args, "gist_discount") and args.windows_per_document == 1:
        raise ValueError(
            f"`gist_discount` ({args.gist_discount}) would not be followed: `windows_per_document`, which it is about, is 1. "
            "Set `windows_per_document`, or leave `gist_discount` out."
        )


def check_sampling(args):
    """Gists are sampled from the distribution that S is trained on; see [`trl_gist.models.generation_settings`]."""
    if not args.temperature > 0:
        raise ValueError(
            f"`temperature` must be above 0, got {args.temperature}: gists of a context that are all the same teach "
            "nothing. Evaluation is greedy by itself."
        )
    for name, neutral in NEUTRAL_SAMPLING.items():
        value = getattr(args, name)
        if value not in neutral:
            raise ValueError(
                f"`{name}` must be {neutral[0]}, got {value!r}: the policy is trained on its plain log-probs, and a "
                "saved pair writes gists without it. Leave it out; `temperature` below 1 makes unlikely tokens rarer, "
                "in the log-probs as well."
            )
    for name, value in (args.generation_kwargs or {}).items():
        if args.use_vllm and name in VLLM_KWARGS:
            continue
        own = OWN_FIELDS.get(name)
        raise ValueError(
            f"`generation_kwargs` must not set `{name}`, got {value!r}: gists are sampled from the plain distribution "
            "that the policy is trained on, up to their end-of-sequence token or `max_completion_length`. "
            + (f"Set `{own}` in its place." if own else "Leave it out.")
        )


def check_continuous_batching(args):
    if args.use_transformers_continuous_batching and args.device.type == "cpu":
        raise ValueError(
            "`use_transformers_continuous_batching` (or `use_transformers_paged`) is True, but transformers batches "
            "continuously on an accelerator only, and this run is on the CPU. Leave it out: all gists of a context "
            "are sampled in one row anyway."
        )


def check_chat_template_kwargs(args):
    """What the template itself must know is checked where there is one, in [`~prompts.GistPrompts`]."""
    kwargs = args.chat_template_kwargs or {}
    taken = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
    for name in kwargs:
        if name in taken:
            raise ValueError(
                f"`chat_template_kwargs` must not set `{name}`, which `apply_chat_template` sets: give variables of "
                "the template alone, as `enable_thinking`."
            )
    try:
        same = json.loads(json.dumps(kwargs)) == kwargs
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"`chat_template_kwargs` are saved with the pair as JSON, which cannot hold {kwargs!r}. Use strings, "
            "numbers, booleans, lists and dictionaries with strings for keys."
        )


def check_precision(args):
    """Neither loss is scaled, so that small gradients would be lost in float16."""
    in_config = (args.deepspeed_plugin.deepspeed_config if args.deepspeed_plugin is not None else {}).get("fp16", {})
    for name, chosen, way_out in (
        ("`fp16=True`", args.fp16, "Use `bf16=True`, or `bf16=False` for float32."),
        (
            "The environment variable `ACCELERATE_MIXED_PRECISION` (fp16)",
            args.mixed_precision == "fp16",
            "Unset it, or launch with `accelerate launch --mixed_precision bf16`, or `no` for float32.",
        ),
        (
            "The DeepSpeed config's `fp16` section",
            in_config.get("enabled") is True,
            'Use `"bf16": {"enabled": true}`, or neither for float32.',
        ),
    ):
        if chosen:
            raise ValueError(
                f"{name} asks for float16, in which most of the generator's gradient would be 0: its loss is a mean "
                f"over a whole rollout's tokens, and is not scaled. {way_out}"
            )
    for name in ("fp16_full_eval", "bf16_full_eval"):
        if getattr(args, name):
            raise ValueError(
                f"`{name}=True` would cast the summarizer for good, with the base that it may share with the generator and "
                'the teacher. Load the models in that precision, `model_init_kwargs={"dtype": "bfloat16"}`, or use '
                "`bf16=True`."
            )


def check_policy_loss(args):
    """Settings of the summarizer's step that imitation does not heed."""
    if args.advantage != "best":
        return
    for name in POLICY_LOSS_SETTINGS:
        if not is_default(args, name):
            raise ValueError(
                f'`advantage="best"` imitates gists, by their cross-entropy, so `{name}` ({getattr(args, name)!r}) would '
                f'have no effect. Leave it out, or use `advantage="group"`.'
            )


def check_unheeded(args):
    """A setting that is taken and then not followed is worse than one that is refused."""
    for name, (followed, reason) in UNHEEDED.items():
        if getattr(args, name) != followed:
            raise ValueError(f"`{name}` must be {followed!r}, got {getattr(args, name)!r}: {reason}")
    if "tpu_metrics_debug" in args.debug:
        raise ValueError("`debug` must not have 'tpu_metrics_debug': nothing here runs on a TPU. Leave it out.")


def check_aggregation(args):
    """How rewards become one: those that are normalized before they are summed are not in nats, nor is a price beside
    them."""
    if args.advantage != "group" and (
        args.multi_objective_aggregation != "sum_then_normalize" or args.scale_rewards == "batch"
    ):
        raise ValueError(
            f'`advantage="{args.advantage}"` takes the weighted sum of the rewards as it is: leave out '
            f"`multi_objective_aggregation` ({args.multi_objective_aggregation!r}) and `scale_rewards` "
            f'({args.scale_rewards!r}), or use `advantage="group"`.'
        )
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
            f"{args.torch_compile_backend!r}: each rollout has rows of another length, for which all three models "
            "would be compiled anew, and sampling is not compiled. Leave it out."
        )
    for name in ("every_n_layers", "offload"):
        if name in (args.gradient_checkpointing_kwargs or {}):  # the one name that transformers 5.17 has as well
            raise ValueError(
                f"`activation_checkpointing_kwargs` (or `gradient_checkpointing_kwargs`) must not set `{name}`: TRL "
                "switches checkpointing off and on around each rollout, without it. Leave it out."
            )
    config = args.accelerator_config
    if config.split_batches or config.dispatch_batches:
        raise ValueError(
            f"`accelerator_config` must leave `split_batches` ({config.split_batches}) and `dispatch_batches` "
            f"({config.dispatch_batches}) at False: each process takes the rows of whole contexts from the batch."
        )
    if "num_steps" in (config.gradient_accumulation_kwargs or {}):
        raise ValueError(
            "`accelerator_config` must not set `num_steps` in `gradient_accumulation_kwargs`: rollouts are planned "
            "with `gradient_accumulation_steps`, which to set in its place."
        )


def check_generator_only(args):
    if not args.generator_only:
        return
    neutral = {"target_gist_length": None, "max_teacher_kl": None, "beta": 0.0, "advantage": "group"}
    for name, value in neutral.items():
        if getattr(args, name) != value:
            raise ValueError(
                f"`{name}` ({getattr(args, name)}) acts on the summarizer, which `generator_only=True` does not "
                "train. Leave one of them out."
            )


def warn_of_unread(args):
    """Warns of settings that another one leaves unread, in a recipe that is run all the same: a control is a run's own recipe
    with `generator_only`."""
    cold_start = ("cold_start_learning_rate", "cold_start_gists")
    of_entropy = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
    of_sapo = ("sapo_temperature_neg", "sapo_temperature_pos")
    of_vespo = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
    loss = None if args.generator_only else args.loss_type
    for off, why, names in (
        (args.generator_only, "`generator_only` trains no summarizer, on one gist a context", SUMMARIZER_SETTINGS),
        (args.cold_start_steps == 0 and not args.generator_only, "`cold_start_steps` is 0", cold_start),
        (args.gist_dropout == 1, "`gist_dropout` is 1, for empty gists alone", ("distilled_gists",)),
        # TRL's (1.16)
        (not args.sync_ref_model, "`sync_ref_model` is False", ("ref_model_mixup_alpha", "ref_model_sync_steps")),
        (not args.use_adaptive_entropy, "`use_adaptive_entropy` is False", of_entropy),
        (loss not in (None, "sapo"), f"`loss_type` is {loss!r}", of_sapo),
        (loss not in (None, "vespo"), f"`loss_type` is {loss!r}", of_vespo),
        (loss in ("sapo", "vespo"), f"`loss_type` is {loss!r}", ("epsilon", "epsilon_high", "delta")),
        (loss == "cispo", "`loss_type` is 'cispo'", ("delta",)),
        (loss == "cispo" and args.epsilon_high is not None, "`epsilon_high` clips 'cispo'", ("epsilon",)),
        (not args.use_vllm, "`use_vllm` is False", [name for name in vars(args) if name.startswith("vllm_")]),
    ):
        if off:
            warn_of_given(args, names, why)


def warn_of_given(settings, names: Iterable[str], why: str):
    """Warns of those fields of a dataclass that are set to something, which is not their default."""
    unread = [name for name in names if getattr(settings, name) and not is_default(settings, name)]
    if unread:
        told = ", ".join(f"`{name}` ({getattr(settings, name)!r})" for name in unread)
        logger.warning(f"{why}: {told} {'has' if len(unread) == 1 else 'have'} no effect.")


def is_default(args, name):
    return getattr(args, name) == type(args).__dataclass_fields__[name].default


def resolve_length_penalty(args):
    """λ is a price, or what one constraint makes of it, at a rate of its own."""
    targets = ("target_gist_length", "max_teacher_kl")
    if args.max_teacher_kl is not None and args.length_penalty < 0:
        raise ValueError(
            f"`length_penalty` must not be below 0 with `max_teacher_kl`, got {args.length_penalty}: that bound is a "
            "reason to shorten, and λ starts there."
        )
    if all(getattr(args, name) is None for name in targets) and args.length_penalty_learning_rate is not None:
        raise ValueError(
            f"`length_penalty_learning_rate` ({args.length_penalty_learning_rate}) moves λ towards "
            "`target_gist_length` or `max_teacher_kl`: set one of them, or leave it out; λ is then `length_penalty` throughout."
        )
    if args.length_penalty_learning_rate is None:
        args.length_penalty_learning_rate = 6e-3 if args.max_teacher_kl is None else 4e-4
    if all(getattr(args, name) is not None for name in targets):
        raise ValueError("Set one of `target_gist_length` and `max_teacher_kl`: one λ holds one constraint.")
    if args.target_gist_length is not None and args.target_gist_length >= args.max_completion_length:
        raise ValueError(
            f"`target_gist_length` ({args.target_gist_length}) must be below `max_completion_length` "
            f"({args.max_completion_length}): no price is needed to stay within it."
        )


def resolve_budgets(args):
    """The prompt states the budget, if there is a range to draw it from, and only then."""
    if args.gist_length_range is None:
        if "{budget}" in args.summarizer_prompt:
            raise ValueError("`summarizer_prompt` states a '{budget}': set `gist_length_range`, to draw it from.")
        return
    if args.target_gist_length is not None:
        raise ValueError("Set one of `gist_length_range` and `target_gist_length`: both say how long gists are.")
    least, greatest = args.gist_length_range if len(args.gist_length_range) == 2 else (0, 0)
    if not 1 <= least <= greatest or greatest != args.max_completion_length:
        given = ", ".join(map(str, args.gist_length_range))
        raise ValueError(
            f"`gist_length_range` ({given}) must ascend from at least 1 to `max_completion_length` "
            f"({args.max_completion_length})."
        )
    if "{budget}" not in args.summarizer_prompt and args.summarizer_prompt.endswith(("Gist:", "Facts:")):
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
    if is_default(args, "max_steps") and not is_default(args, "num_train_epochs"):
        raise ValueError(
            f"`num_train_epochs` ({args.num_train_epochs}) would not be followed: `max_steps` ({args.max_steps}) comes before "
            "it. Set `max_steps` to -1."
        )
    if args.max_steps > 0:
        check_end_of_run(args, args.max_steps)


def check_end_of_run(args, max_steps):
    """A run that saves must not end inside a rollout: its last checkpoint could not be gone on from."""
    if args.save_strategy == "no" or max_steps % args.steps_per_rollout == 0:
        return
    setting = f"`max_steps` ({max_steps})"
    if args.max_steps <= 0:
        setting = f"The {max_steps} optimizer steps that `num_train_epochs` ({args.num_train_epochs}) comes to"
    raise ValueError(
        f"{setting} must be a multiple of the {args.steps_per_rollout} optimizer steps of one rollout "
        "(`steps_per_generation` × `num_iterations` / `gradient_accumulation_steps`), so that no checkpoint falls "
        f"inside a rollout. Set `max_steps` to {max_steps - max_steps % args.steps_per_rollout or args.steps_per_rollout}"
        ', or `save_strategy="no"`.'
    )


def check_optimizer(args):
    """The generator's gradient is gathered over many backward passes, for one step at the end of a rollout's scoring."""
    reasons = {
        "lomo": "takes its steps within a backward pass",
        "layerwise": "takes its steps within a backward pass",
        "schedule_free": "keeps two sets of weights, to be switched when evaluation begins and ends",
    }
    for name, reason in reasons.items():
        if name in args.optim:
            raise ValueError(
                f"`optim` must not be '{args.optim.value}': it {reason}, and the generator, whose rewards and "
                "gradient come out of the same passes, is stepped once after all of them. Choose another, as "
                "'adamw_torch'."
            )
    if args.optim_args is not None and args.optim in OPTIMIZERS_WITHOUT_ARGS:
        raise ValueError(
            f"`optim_args` must be None, got {args.optim_args!r}: `optim` '{args.optim.value}' reads none of them. "
            "Set `adam_beta1`, `adam_beta2`, `adam_epsilon` or `weight_decay`, or choose another `optim`."
        )
    if args.optim_target_modules is not None and not args.optim.startswith(OPTIMIZERS_WITH_TARGETS):
        raise ValueError(
            f"`optim_target_modules` must be None, got {args.optim_target_modules!r}: `optim` '{args.optim.value}' "
            "has none. It is read by GaLore and APOLLO; what LoRA trains is said by `target_modules` of the `peft_config`."
        )


def check_schedule(args):
    if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        raise ValueError(
            f"`lr_scheduler_type` must not be '{args.lr_scheduler_type.value}': it follows one figure, and two models "
            "are trained here, each of which moves it. Choose a schedule that is a function of the step, as 'linear' "
            "or 'cosine'."
        )


def resolve_best_model(args):
    """Names the measure of the best checkpoint where one is needed, and says which way it is better: transformers
    takes the greater value of every measure whose name does not end with `loss`."""
    if args.metric_for_best_model is None:
        if not args.load_best_model_at_end and args.save_strategy != "best":
            return
        args.metric_for_best_model = "eval_teacher_kl"
    if args.save_strategy == "best" and args.eval_strategy == "no":
        raise ValueError(
            "`save_strategy` is 'best', and no evaluation would say which is: set `eval_strategy` to 'steps' or 'epoch'."
        )
    metric = args.metric_for_best_model.removeprefix("eval_")
    # Where there are several eval datasets, the name of one comes first; then, if it is one kind's, that of the kind
    kind, _, measure = metric.rpartition("/")
    if kind:
        measures = [measure] if measure in GREATER_IS_BETTER else []
    else:
        measures = [name for name in GREATER_IS_BETTER if f"_{metric}".endswith(f"_{name}")]
    if not measures:
        raise ValueError(
            f"`metric_for_best_model` ('{args.metric_for_best_model}') is no measure of an evaluation. Choose one of "
            f"{', '.join(GREATER_IS_BETTER)}; or, of one kind of several targets, as 'fact/teacher_kl'."
        )
    if args.greater_is_better is None:
        args.greater_is_better = GREATER_IS_BETTER[max(measures, key=len)]
    if args.greater_is_better is None:
        raise ValueError(
            f"`metric_for_best_model` ('{args.metric_for_best_model}') is not better either way: it says nothing of "
            "the gists. Set `greater_is_better`, or choose another measure, as 'teacher_kl'."
        )


def check_best_model_of(args, eval_dataset):
    """Raises `ValueError` if no dataset is measured by the name that the best checkpoint is chosen by."""
    if args.metric_for_best_model is None:
        return
    if eval_dataset is None or eval_dataset == {}:
        raise ValueError(
            f"`metric_for_best_model` ('{args.metric_for_best_model}') chooses the best checkpoint by an evaluation: "
            "pass an `eval_dataset`."
        )
    several = isinstance(eval_dataset, dict)
    prefixes = [f"{name}_" for name in eval_dataset] if several else [""]
    if not any(_best_measure(args, prefix) for prefix in prefixes):
        example = f"{prefixes[0]}teacher_kl" if several else "teacher_kl"
        raise ValueError(
            f"`metric_for_best_model` ('{args.metric_for_best_model}') is measured on no eval dataset"
            + (f": each of {list(eval_dataset)} has measures of its own. " if several else ". ")
            + f"Set it to '{example}', say."
        )


def check_best_kind_of(args, eval_windows):
    """Raises `ValueError` if the best checkpoint is chosen by targets of which the eval dataset's windows lack."""
    if args.metric_for_best_model is None:
        return
    by_prefix = {"": eval_windows}
    if isinstance(eval_windows, dict):
        by_prefix = {f"{name}_": windows for name, windows in eval_windows.items()}
    for prefix, windows in by_prefix.items():
        kind, measure = _best_measure(args, prefix) or ("", "")
        if not kind and measure != "exact":
            continue
        # Read up to the first; what is continued is not measured for being exact
        if any(each == (kind or each) and (measure, each) != ("exact", "continuation") for each in _kinds_in(windows)):
            return
        there = sorted(set(_kinds_in(windows)))
        raise ValueError(
            f"`metric_for_best_model` ('{args.metric_for_best_model}') is of targets of which the eval dataset has "
            + (f"none: it has {', '.join(there)}. " if there else "none: it has the continuation alone. ")
            + f"Choose another, as '{prefix}teacher_kl', or add the kind to `target_kinds` or to the column `targets`."
        )


def _best_measure(args, prefix):
    """Kind of targets, "" for all, and name of the measure that the best checkpoint is chosen by, if it is one of the
    eval dataset whose measures have that prefix."""
    metric = args.metric_for_best_model.removeprefix("eval_")
    if not metric.startswith(prefix):
        return None
    kind, slash, measure = metric.removeprefix(prefix).rpartition("/")
    return (kind, measure) if measure in GREATER_IS_BETTER and bool(kind) == bool(slash) else None


def _kinds_in(windows):
    return (target["kind"] for row in windows for target in row.get(TARGETS_COLUMN) or ())


def check_head_dtype(args, lora: bool):
    """What [`~trl.GRPOConfig`] allows of the LM head and roles that share a base do not."""
    if args.cast_lm_head_to_fp32 and lora:
        raise ValueError(
            "`cast_lm_head_to_fp32=True` casts the summarizer's LM head, which under LoRA the generator and the "
            "teacher share and read in their own dtype. Leave it out: log-probs are taken from the logits in float32 "
            "anyway; for a float32 head load the models in float32."
        )
