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

"""Summarizer, generator and teacher: loaded, or copied over shared parameters. What they must have is in `checks.py`."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from accelerate import PartialState
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from .adapters import check_folder, check_given, check_teacher
from .deepspeed import is_sharded
from .positions import turn_each_row_alone


@dataclass
class Roles:
    """The three models before any adapter is put on them."""

    summarizer: PreTrainedModel | PeftModel
    generator: PreTrainedModel | PeftModel
    teacher: PreTrainedModel | PeftModel


def load_roles(
    model: str | PreTrainedModel | PeftModel,
    generator: str | PreTrainedModel | PeftModel | None,
    teacher: str | PreTrainedModel | PeftModel | None,
    share_base: bool,
    summarizer_owns_base: bool = False,
    model_init_kwargs: dict | None = None,
    trust_remote_code: bool = False,
) -> Roles:
    """
    Loads the summarizer, the generator and the teacher, each once.

    Args:
        model, generator, teacher (`str` or model):
            A checkpoint, or a loaded model. The generator and the teacher default to the model's own checkpoint.
        share_base (`bool`):
            Whether roles of the same checkpoint share its parameters. True for LoRA, where they stay frozen: three
            module trees stand on one base in memory. False gives each role a copy, for full fine-tuning.
        summarizer_owns_base (`bool`, *optional*, defaults to `False`):
            Whether the summarizer keeps a base of its own although `share_base` is set. vLLM needs it: weight sync
            merges the adapter into the base in place, which would reach the generator and the teacher.
        model_init_kwargs (`dict`, *optional*):
            For `from_pretrained`, where a role is given as a checkpoint.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether checkpoints may run their own code.

    Raises:
        ValueError: if a model that is given carries adapters that a role cannot, or the teacher any.
    """
    check_teacher(teacher)
    if isinstance(model, PeftModel) and generator is model:
        raise ValueError(
            "`generator` and `model` are the same `PeftModel`, and each trains an adapter of its own. Load it twice, each "
            "on a base of its own; or leave out `generator`, which then gets a new adapter of the same kind."
        )
    model_init_kwargs = {"trust_remote_code": trust_remote_code, **(model_init_kwargs or {})}
    loaded = {}

    def load(role, source):
        if isinstance(source, str):
            check_folder(role, source)
            if source not in loaded:
                loaded[source] = create_model_from_path(source, **model_init_kwargs)
            source = loaded[source]
        check_given(role, source)
        turn_each_row_alone(source)
        return source

    summarizer = load("summarizer", model)
    generator = summarizer if generator is None else load("generator", generator)
    teacher = summarizer if teacher is None else load("teacher", teacher)
    for role, loaded_model in (("summarizer", summarizer), ("generator", generator), ("teacher", teacher)):
        if loaded_model.config.is_encoder_decoder:
            raise ValueError(
                f"The {role} is a {type(base_of(loaded_model)).__name__}, an encoder with a decoder: a pair reads and "
                "writes one sequence of tokens. Use a causal language model, of AutoModelForCausalLM."
            )
    # Clones are taken before any adapter is added: PEFT replaces modules in the tree that it is given
    copy_of = partial(copy_without_adapter, **model_init_kwargs)
    clone = clone_with_shared_parameters if share_base else copy_of
    generator_is_other = generator is not summarizer
    if not generator_is_other:
        generator = copy_of(summarizer) if summarizer_owns_base else clone(summarizer)
    if teacher is summarizer:
        if summarizer_owns_base and generator_is_other:
            teacher = copy_of(summarizer)
        else:
            teacher = clone(generator if summarizer_owns_base else summarizer)
    elif teacher is generator:
        teacher = clone(generator)
    teacher.requires_grad_(False)
    return Roles(summarizer, generator, teacher)


def number_of_experts(config: PreTrainedConfig) -> int | None:
    """Experts of each layer, as the configuration says, if it does; 0 too, as in GraniteMoeHybrid."""
    config = config.get_text_config()
    name = _experts_name(config)
    return None if name is None else getattr(config, name)


def name_experts(config: PreTrainedConfig):
    """
    Has a class of configurations say under `num_experts` too how many experts there are, for TRL (1.16) looks there:
    transformers (5.23) gives Mixtral's that name, and not GraniteMoe's, Phimoe's or DeepSeek-V4's.
    """
    config = config.get_text_config()
    name = _experts_name(config)
    if name not in (None, "num_experts"):
        # Of the class: a field of its own would be saved
        theirs = config.attribute_map
        type(config).attribute_map = {**theirs, "num_experts": theirs.get(name, name)}


def _experts_name(config):
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((name for name in names if hasattr(config, name)), None)


@contextmanager
def naming(checkpoint: str) -> Iterator[None]:
    """Inside it an `OSError` says which checkpoint could not be loaded: offline, the Hub's client (2.4) does not."""
    try:
        yield
    except OSError as error:
        if str(checkpoint) in str(error):
            raise
        raise OSError(f"{checkpoint} is no folder here, and cannot be loaded from the Hub. {error}") from error


def create_model_from_path(checkpoint: str, **init_kwargs) -> PreTrainedModel:
    """
    The model of a checkpoint, of the class that it names. As TRL's function of this name (1.16), so that a pair is
    loaded without TRL as it was in training.

    Args:
        checkpoint (`str`):
            A folder, or a repository on the Hub.
        init_kwargs:
            For `from_pretrained`. `dtype` defaults to float32; `device_map` to `"auto"` on a GPU, elsewhere to `None`.

    Raises:
        OSError, ValueError: if it is no checkpoint, or its weights cannot be read.
    """
    init_kwargs.setdefault("dtype", torch.float32)
    if "device_map" not in init_kwargs:
        init_kwargs["device_map"] = None if PartialState().device.type in ("cpu", "mps") else "auto"
    with naming(checkpoint):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=init_kwargs.get("trust_remote_code", False))
    # A class that is the checkpoint's own is not in transformers
    architecture = getattr(transformers, config.architectures[0], AutoModelForCausalLM)
    with weights_whole(checkpoint):
        return architecture.from_pretrained(checkpoint, **init_kwargs)


@contextmanager
def weights_whole(checkpoint) -> Iterator[None]:
    """Raises `ValueError` that names the checkpoint if weights that are read are no whole safetensors."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {checkpoint} cannot be read: {error}. Copy or download them again; in a folder that git has "
            "cloned, `git lfs pull` brings what its pointers stand for."
        ) from error


def clone_with_shared_parameters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """
    A second module tree over the same `Parameter` objects, without the adapters the first may carry.

    One model with adapters switched per role is a trap instead: a backward after a switch gives zero gradients, and
    gradient checkpointing recomputes under whichever adapter is active by then, both silently.
    """
    memo = {id(parameter): parameter for parameter in model.parameters()}
    return _without_adapter(copy.deepcopy(model, memo=memo))


def copy_without_adapter(model: PreTrainedModel | PeftModel, **model_init_kwargs) -> PreTrainedModel:
    """
    A copy with parameters of its own, for full fine-tuning. Where ZeRO-3 has sharded the model, its checkpoint is loaded
    again, with `model_init_kwargs`.
    """
    if is_sharded(model):
        return create_model_from_path(model.config.name_or_path, **model_init_kwargs)
    return _without_adapter(copy.deepcopy(model))


def _without_adapter(copied):
    """The base of a copy, which it alters. What is trained of it may be shared with the original, and stays trainable."""
    # A trainer (TRL 1.16) gives its model a forward that calls the one it had: the original's, in a copy
    vars(base_of(copied)).pop("forward", None)
    if not isinstance(copied, PeftModel):
        return copied
    for name, module in list(copied.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # of which PEFT (0.21) would keep the trained copy
            copied.set_submodule(name, module.original_module)
    return copied.unload()


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The causal language model under its adapter, if it has one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone_of(base: PreTrainedModel) -> torch.nn.Module:
    """
    The module inside a causal language model that gives the hidden states which its head reads. Not `base_model`: OPT's
    forward does not run it, and Llama 4's is the language model itself (transformers 5.23).
    """
    decoder = base.get_decoder()
    return base.model if decoder is base else decoder


def base_if_adapted(model: PreTrainedModel | PeftModel, checkpoint: str) -> PreTrainedModel | None:
    """The checkpoint, over the parameters that are in memory already, if the model is an adapter of it; else `None`."""
    if isinstance(model, PeftModel) and model.active_peft_config.base_model_name_or_path == checkpoint:
        return clone_with_shared_parameters(model)
    return None


def storage_pointers(model: torch.nn.Module) -> set[int]:
    """Where the model's parameters lie in memory; two roles share what is in both sets."""
    return {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
