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

"""From what [`GistTrainer`] is given to what it trains: arguments refused early, roles loaded and drawn, rewards
priced."""

import copy
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import rewards
from ..models.adapters import check_adapter, check_drawn
from ..models.checks import check_bare, check_dtype, check_embeddings, check_same_tokenizer
from ..models.deepspeed import check_distributed_settings, is_sharded
from ..models.fingerprints import frozen_digests
from ..models.loading import HalfLoader, is_adapter, pair_directory
from ..models.machine import warn_if_slow
from ..models.roles import Roles, load_roles
from ..pair import GENERATOR_DIR, PairConfig
from ..rewards import kl_gain, length_penalty
from .config_checks import check_best_model_of, check_head_dtype, is_default, warn_of_given, warn_of_unread
from .gist_config import GistConfig
from .vllm import check_vllm_settings


logger = logging.getLogger(__name__)

RewardFunc = Callable[..., list[float]]


class Given(NamedTuple):
    """What [`GistTrainer`] is given as its roles; of a saved pair its halves, its teacher and its tokenizer's folder."""

    model: str | PreTrainedModel | PeftModel
    generator: str | PreTrainedModel | PeftModel | None
    teacher: str | PreTrainedModel | PeftModel | None
    tokenizer: str | None = None


def roles_given(model, generator, teacher) -> Given:
    """Those arguments, a path as its text. Raises `ValueError` for what is neither a checkpoint's name nor a model."""
    given = {"model": model, "generator": generator, "teacher": teacher}
    for role, source in given.items():
        if isinstance(source, os.PathLike):
            given[role] = os.fspath(source)
        elif not isinstance(source, (str, torch.nn.Module)) and (source is not None or role == "model"):
            raise ValueError(
                f"`{role}` must be a checkpoint, by its folder or its name on the Hub, or a model, got {source!r}."
            )
    return Given(**given)


def open_pair(given: Given, args: GistConfig, peft_config: PeftConfig | None) -> Given:
    """
    Takes a saved pair apart, where one is named: as `model` it stands for all roles that are not given, as `generator`
    for its generator. Both halves go on from what was trained, and the teacher is the one that they were trained with.

    Raises:
        ValueError: if a pair is named as the teacher, lacks a half or its teacher, or is of adapters and `peft_config`
            asks for new ones.
    """
    model, generator, teacher, _ = given
    init_kwargs = {
        "trust_remote_code": args.trust_remote_code,
        "dtype": torch.float32,
        **(args.model_init_kwargs or {}),
    }
    revision = init_kwargs.pop("revision", None)  # of what is named, not of the base that it stands on

    def directory_of(source):
        return pair_directory(source, revision) if isinstance(source, str) else None

    check_is_no_pair(teacher, directory_of(teacher))
    of_generator, directory = directory_of(generator), directory_of(model)
    if directory is not None and is_adapter(directory, "summarizer"):
        check_has_its_adapters(model, peft_config)
    loader = HalfLoader(None, **init_kwargs)
    if of_generator is not None:
        generator = loader.load_to_train(of_generator / GENERATOR_DIR, "generator")
    if directory is None:
        return Given(model, generator, teacher)
    pair = PairConfig.load(directory)
    _say_what_differs(model, pair, args)
    # vLLM's weight sync merges S's adapter into its base, which the others must not share
    summarizer = (HalfLoader(None, **init_kwargs) if args.use_vllm else loader).load_to_train(directory, "summarizer")
    if generator is None:
        generator = loader.load_to_train(directory / GENERATOR_DIR, "generator")
    if teacher is None:
        name = pair.base_models["teacher"]
        try:
            teacher = loader.load_teacher(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The pair in {directory} was trained with the teacher {name!r}, which could not be loaded. Pass `teacher`, "
                f"the checkpoint that it was. ({error})"
            ) from error
    return Given(summarizer, generator, teacher, str(directory))


def check_is_no_pair(teacher: str | PreTrainedModel | PeftModel | None, directory: Path | None):
    """Raises `ValueError` for a teacher that is a saved pair, which lies in a directory."""
    if directory is not None:
        raise ValueError(
            f"`teacher` ({teacher!r}) is a saved pair, which has two models and neither is its teacher. Name a checkpoint: "
            f"its own teacher is {PairConfig.load(directory).base_models['teacher']!r}."
        )


def check_has_its_adapters(model: str, peft_config: PeftConfig | None):
    """Raises `ValueError` where a saved pair of adapters is to get new ones."""
    if peft_config is not None:
        raise ValueError(
            f"`model` ({model!r}) is a pair of adapters, which go on training, and `peft_config` asks for new ones. Leave "
            "it out (`--use_peft false`); to draw new ones on what was trained, save the result of `merge_and_unload()` "
            "with its tokenizer and pass that folder."
        )


def _say_what_differs(name, pair, args):
    """A pair that is prompted otherwise than it was is no longer what was trained."""
    names = ("summarizer_prompt", "generator_prompt", "tail_length", "last_k")
    now = {each: getattr(args, each) for each in names} | {"chat_template_kwargs": args.chat_template_kwargs or {}}
    different = [each for each in now if getattr(pair, each) != now[each]]
    if different:
        told = "; ".join(f"`{each}` was {getattr(pair, each)!r} and is {now[each]!r}" for each in different)
        logger.warning(f"The pair {name} goes on as it was not trained: {told}.")


def check_arguments(
    args: GistConfig,
    model: str | PreTrainedModel | PeftModel,
    train_dataset: Dataset | IterableDataset | None,
    eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None,
    peft_config: PeftConfig | None,
    generator_peft_config: PeftConfig | None,
    compressor,
):
    """Raises `ValueError` for arguments of [`GistTrainer`] that do not go together, whatever a checkpoint that is named
    turns out to be; `ModuleNotFoundError` for a package that they need."""
    check_distributed_settings(args)
    if args.use_vllm:
        check_vllm_settings(args, model)
    if train_dataset is None:
        raise ValueError("`train_dataset` is required.")
    check_best_model_of(args, eval_dataset)
    warn_of_unread(args)
    if eval_dataset in (None, {}) and not args.generator_only:
        warn_of_given(args, ["gist_samples_steps"], "There is no `eval_dataset`")
    if compressor is not None and not args.generator_only:
        raise ValueError("`compressor` writes gists for a generator trained alone: set `generator_only=True`.")
    for name, config in (("peft_config", peft_config), ("generator_peft_config", generator_peft_config)):
        if config is not None:
            check_adapter(f"`{name}`", config, drawn_here=True)


def check_adapters(
    args: GistConfig,
    model: str | PreTrainedModel | PeftModel,
    model_id: str | None,
    generator: str | PreTrainedModel | PeftModel | None,
    peft_config: PeftConfig | None,
    generator_peft_config: PeftConfig | None,
):
    """Raises `ValueError` for arguments that do not go with a role that is an adapter, or is none, as of [`open_pair`];
    `model_id` is the model's checkpoint."""
    if generator_peft_config is not None and isinstance(generator, PeftModel):
        raise ValueError(
            "`generator` is a PeftModel, which has its adapter, and `generator_peft_config` asks for another. Leave "
            "one of them out."
        )
    lora = peft_config is not None or isinstance(model, PeftModel)
    check_head_dtype(args, lora)
    if args.beta != 0 and not lora and not model_id:
        raise ValueError(
            f"`beta` ({args.beta}) needs a reference, which is loaded from the checkpoint that the model came from, "
            "and this model does not say which. Save it and pass the folder, or train it with a `peft_config`."
        )


def load_given(
    model: str | PreTrainedModel | PeftModel,
    generator: str | PreTrainedModel | PeftModel | None,
    teacher: str | PreTrainedModel | PeftModel | None,
    tokenizer: PreTrainedTokenizerBase,
    args: GistConfig,
    lora: bool,
    from_pair: bool = False,
) -> Roles:
    """The three roles, loaded, as far as they are given by name; the generator has no adapter yet but one that it came
    with. Raises `ValueError` where they do not go together with the tokenizer or the settings of loading."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-sequence token, with which a gist ends. Set `eos_token` of the `processing_class`."
        )
    for role, source in (("generator", generator), ("teacher", teacher)):
        if source is not None:
            check_same_tokenizer(tokenizer, role, source, args.trust_remote_code)
    roles = load_roles(
        model,
        generator,
        teacher,
        share_base=lora,
        summarizer_owns_base=args.use_vllm,
        model_init_kwargs=args.model_init_kwargs,
        trust_remote_code=args.trust_remote_code,
    )
    check_embeddings(tokenizer, "summarizer", roles.summarizer)
    sharded = is_sharded(roles.summarizer)
    if args.beta != 0 and not lora and not isinstance(model, str) and sharded:
        raise ValueError(
            f"`beta` ({args.beta}) needs a reference, and under ZeRO-3 it is loaded from a checkpoint: pass `model` "
            "as the checkpoint's name."
        )
    loads_any = from_pair or sharded or any(isinstance(source, str) for source in (model, generator, teacher))
    if args.model_init_kwargs and not loads_any:
        raise ValueError(
            f"`model_init_kwargs` ({args.model_init_kwargs}) say how a checkpoint is loaded, and every model is "
            "loaded already. Leave them out, or pass the checkpoint's name."
        )
    for role, trained in (("summarizer", roles.summarizer), ("generator", roles.generator)):
        check_dtype(role, trained)
    computed_in = torch.bfloat16 if args.bf16 else roles.summarizer.dtype
    remedy = 'Set `bf16` to False and `dtype` to "float32", in Python that of `model_init_kwargs`.'
    warn_if_slow(computed_in, args.device, remedy)
    return roles


def draw_generator(
    summarizer: PreTrainedModel | PeftModel, roles: Roles, peft_config: PeftConfig | None, teacher_digest: str
) -> PreTrainedModel | PeftModel:
    """
    The generator with its adapter.

    Args:
        summarizer ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            With its own adapter drawn, so that a run with S alone draws the same one.
        roles ([`Roles`]):
            As they were loaded.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Defaults to the summarizer's.
        teacher_digest (`str`):
            Of the teacher's parameters before any adapter was drawn.

    Raises:
        ValueError: if either role has nothing to train, or training it would change the teacher.
    """
    generator = roles.generator
    if peft_config is None and isinstance(summarizer, PeftModel):
        peft_config = summarizer.active_peft_config
    if peft_config is not None and not isinstance(generator, PeftModel):
        # A copy, because PEFT writes the base's name into it: S may stand on another base
        peft_config = copy.deepcopy(peft_config)
        peft_config.base_model_name_or_path = None
        generator = get_peft_model(generator, peft_config)
    for role, trained in (("summarizer", summarizer), ("generator", generator)):
        if not any(parameter.requires_grad for parameter in trained.parameters()):
            raise ValueError(
                f"The {role} has no trainable parameters. Load its adapter with `is_trainable=True`, or pass a "
                "`peft_config`."
            )
        check_bare(role, trained, roles.teacher)
    teacher_now = frozen_digests({"teacher": roles.teacher})["teacher"]
    check_drawn(summarizer, generator, roles.teacher, teacher_digest, teacher_now)
    return generator


def rewards_and_weights(
    reward_funcs: RewardFunc | list[RewardFunc] | None, args: GistConfig
) -> tuple[list[RewardFunc], list[float]]:
    """
    The reward functions, in a list of its own because TRL writes into it, and what each counts.

    Raises:
        ValueError: for a function that is given by its name, for weights that are too few or too many, and where
            `args` set the weight of the length penalty, which is not among the functions.
    """
    if reward_funcs is None:
        reward_funcs = [kl_gain, length_penalty]  # less noise than log_prob_gain: docs/ABLATION.md
    else:
        reward_funcs = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    for func in reward_funcs:
        if isinstance(func, str) and callable(getattr(rewards, func, None)):
            raise ValueError(
                f"`reward_funcs` has the string {func!r}, which TRL would take for a reward model on the Hub. Pass "
                f"the function: `trl_gist.rewards.{func}`."
            )
    weights = args.reward_weights
    if weights is None:
        weights = [args.length_penalty if func is length_penalty else 1.0 for func in reward_funcs]
    if len(weights) != len(reward_funcs):
        raise ValueError(
            f"`reward_weights` has {len(weights)} weights for {len(reward_funcs)} reward functions. Give each its "
            "own, or leave it out: each then counts 1.0, and `length_penalty` λ."
        )
    if length_penalty in reward_funcs and args.reward_weights is not None and not is_default(args, "length_penalty"):
        raise ValueError(
            f"`length_penalty` ({args.length_penalty}) would not be followed: it is the weight of that reward, and "
            "`reward_weights` has one for each. Leave one of the two out."
        )
    if length_penalty not in reward_funcs and args.length_penalty and not is_default(args, "length_penalty"):
        raise ValueError(
            f"`length_penalty` ({args.length_penalty}) would not be followed: it is the weight of the reward of that name. Add "
            "`trl_gist.length_penalty` to `reward_funcs`, or leave it out."
        )
    constrained = args.target_gist_length is not None or args.max_teacher_kl is not None
    if constrained and length_penalty not in reward_funcs:
        raise ValueError(
            "`target_gist_length` and `max_teacher_kl` set the weight of the `length_penalty` reward: add "
            "`trl_gist.length_penalty` to `reward_funcs`."
        )
    return reward_funcs, weights


def check_rewards(rewards_per_func: torch.Tensor, names: list[str]):
    """Raises `ValueError` that names the reward function which returned no finite number for a gist."""
    bad = ~torch.isfinite(rewards_per_func)
    if bad.any():
        row, func = bad.nonzero()[0].tolist()
        value = rewards_per_func[row, func].item()
        raise ValueError(
            f"The reward function '{names[func]}' returned {'None or NaN' if math.isnan(value) else value} for gist "
            f"{row} of the rollout. Return a finite number for every gist; the pair was not stepped."
        )
