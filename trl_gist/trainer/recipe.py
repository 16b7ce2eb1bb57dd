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
Which settings make a run the run that it is, in groups by what a resume with others is told. And which of them a saved
pair, its card and the run's log show.
"""

import json
import logging
from dataclasses import fields
from enum import Enum
from pathlib import Path

from .gist_config import GistConfig


logger = logging.getLogger(__name__)

# Fields of [`GistConfig`], its own, TRL's (1.16) and transformers' (5.23). Of the first three groups a resume with another
# value is refused, of the other two it is warned of. The rest, which is where a run runs and what it logs, saves and
# pushes, is not compared.
GROUPS = {
    "windows": (
        "context_length target_length last_k window_stride max_windows_per_document windows_per_document "
        "parse_special_tokens"
    ),
    "prompts": "summarizer_prompt generator_prompt chat_template_kwargs max_completion_length gist_length_range",
    "targets": "target_kinds targets_per_context target_floor cue_length far_offset recall_age",
    "rates": (
        "length_penalty length_penalty_learning_rate target_gist_length max_teacher_kl reward_weights learning_rate "
        "generator_learning_rate cold_start_learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps max_steps "
        "num_train_epochs weight_decay"
    ),
    "method": (
        "advantage cold_start_steps cold_start_gists gist_discount distillation_loss distillation_mean gist_dropout "
        "distilled_gists generator_only num_generations num_iterations generation_batch_size steps_per_generation "
        "per_device_train_batch_size gradient_accumulation_steps average_tokens_across_devices seed data_seed "
        "shuffle_dataset train_sampling_strategy length_column_name dataloader_drop_last temperature top_p top_k min_p "
        "repetition_penalty generation_kwargs vllm_structured_outputs_regex beta sync_ref_model ref_model_mixup_alpha "
        "ref_model_sync_steps use_bias_correction_kl loss_type epsilon epsilon_high delta sapo_temperature_neg "
        "sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level "
        "off_policy_mask_threshold vllm_importance_sampling_correction vllm_importance_sampling_mode "
        "vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_importance_sampling_cap "
        "multi_objective_aggregation scale_rewards mask_truncated_completions top_entropy_quantile entropy_coef "
        "use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target router_aux_loss_coef "
        "disable_dropout neftune_noise_alpha label_smoothing_factor cast_lm_head_to_fp32 bf16 fp16 optim optim_args "
        "optim_target_modules adam_beta1 adam_beta2 adam_epsilon max_grad_norm"
    ),
}
GROUPS = {group: tuple(names.split()) for group, names in GROUPS.items()}
REFUSED = ("windows", "prompts", "targets")
# Those that shape a result, as a pair and its card have them
_SHOWN = (
    "context_length target_length last_k max_completion_length num_generations per_device_train_batch_size "
    "gradient_accumulation_steps max_steps learning_rate generator_learning_rate lr_scheduler_type temperature "
    "advantage scale_rewards loss_type beta num_iterations distillation_loss gist_dropout length_penalty "
    "length_penalty_learning_rate target_gist_length max_teacher_kl gist_length_range cold_start_steps "
    "cold_start_learning_rate cold_start_gists generator_only windows_per_document gist_discount seed "
    "parse_special_tokens"
).split()
_TAIL = "tail_length"  # not a field: the default prompt shows as many tokens, which follow from others
_REFUSED_NAMES = {*(name for group in REFUSED for name in GROUPS[group]), _TAIL}


def recipe_of(args: GistConfig) -> dict:
    """The arguments that shape a result, as JSON holds them."""
    targets = () if args.target_spec.is_continuation else (*GROUPS["targets"], "distillation_mean")
    return {name: _as_json(getattr(args, name)) for name in (*_SHOWN, *targets)}


def run_recipe(args: GistConfig) -> dict:
    """What a run is told apart by, as JSON holds it: every field that is compared, with what stands for `None`."""
    names = {field.name for field in fields(args)}
    compared = [name for of_group in GROUPS.values() for name in of_group]
    recipe = {name: getattr(args, name) for name in compared if name in names}  # another TRL may lack one
    recipe["window_stride"] = args.window_stride or args.context_length + args.target_length
    recipe["target_kinds"] = args.target_kinds or {"continuation": 1}
    recipe["chat_template_kwargs"] = args.chat_template_kwargs or {}
    if "{tail}" in args.summarizer_prompt:
        recipe[_TAIL] = args.tail_length
    return json.loads(json.dumps(recipe, default=_plain))


def check_recipe(checkpoint: Path, was: dict, now: dict) -> dict[str, list]:
    """
    Compares the recipe of a checkpoint with a run's. Fields that only one of them has are not compared.

    Args:
        checkpoint (`Path`):
            Where it lies.
        was (`dict`):
            As its manifest says.
        now (`dict`):
            [`run_recipe`].

    Returns:
        `dict[str, list]`: of what differs the two values; each was warned of.

    Raises:
        ValueError: if windows, prompts or targets are others, with each of them.
    """
    differences = {name: [was[name], now[name]] for name in now if name in was and was[name] != now[name]}
    if refused := [name for name in differences if name in _REFUSED_NAMES]:
        raise ValueError(
            f"{checkpoint} was trained with another recipe: {_told(differences, refused)}. A pair has one for all of its "
            "steps. Resume with what it was trained with, or begin another run in another `output_dir`."
        )
    if differences:
        logger.warning(
            f"{checkpoint} was trained with other settings: {_told(differences, differences)}. Those of now hold from "
            "here on; `recipe` in the pair's config keeps both."
        )
    return differences


def _told(differences, names):
    return "; ".join(f"`{name}` was {differences[name][0]!r}, now {differences[name][1]!r}" for name in names)


def _plain(value):
    return value.value if isinstance(value, Enum) else str(value)


def _as_json(value):
    as_it_is = value is None or isinstance(value, (bool, int, float, str, list, dict)) and not isinstance(value, Enum)
    return value if as_it_is else _plain(value)
