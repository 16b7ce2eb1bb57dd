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

import copy
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import create_model_from_path, disable_dropout_in_model, get_config_model_id

from .engines import is_sharded, whole_shape


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
    """
    model_init_kwargs = {"trust_remote_code": trust_remote_code, **(model_init_kwargs or {})}
    loaded = {}

    def load(role):
        if not isinstance(role, str):
            return role
        if role not in loaded:
            loaded[role] = create_model_from_path(role, **model_init_kwargs)
        return loaded[role]

    summarizer = load(model)
    generator = summarizer if generator is None else load(generator)
    teacher = summarizer if teacher is None else load(teacher)
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
        return create_model_from_path(get_config_model_id(model.config), **model_init_kwargs)
    return _without_adapter(copy.deepcopy(model))


def _without_adapter(model):
    return model.unload() if isinstance(model, PeftModel) else model


def check_same_tokenizer(tokenizer: PreTrainedTokenizerBase, role: str, model, trust_remote_code: bool = False):
    """
    Raises `ValueError` if `model` (a checkpoint or a loaded model) was not trained on `tokenizer`'s vocabulary: a
    gist is written, read and scored as token ids, so all roles must mean the same by them.
    """
    loaded = not isinstance(model, str)
    if loaded:
        check_embeddings(tokenizer, role, model)
    checkpoint = get_config_model_id(model.config) if loaded else model
    try:
        other = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code, local_files_only=loaded)
    except (OSError, ValueError):
        if not loaded:
            raise
        return  # built in memory, or saved without its tokenizer: nothing to compare
    if other.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"The {role}'s tokenizer ({checkpoint}) differs from the summarizer's: {len(other)} against "
            f"{len(tokenizer)} tokens, {_difference(tokenizer, other)}. All roles must share one tokenizer; use "
            "checkpoints of one family."
        )


def check_embeddings(tokenizer: PreTrainedTokenizerBase, role: str, model: PreTrainedModel | PeftModel):
    """Raises `ValueError` if the model has no embedding for some of the tokens."""
    rows = whole_shape(model.get_input_embeddings().weight)[0]
    if rows < len(tokenizer):
        raise ValueError(
            f"The {role} has {rows} token embeddings but the tokenizer has {len(tokenizer)} tokens. All roles must "
            "share one tokenizer; use checkpoints of one family."
        )


def check_dtype(role: str, model: PreTrainedModel | PeftModel):
    """Raises `ValueError` if the model is in float16: its loss is not scaled, so small gradients would be lost."""
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ValueError(
            f"The {role} is in float16, in which it cannot be trained: losses are not scaled. Load it with "
            '`model_init_kwargs={"dtype": "bfloat16"}`, or "float32".'
        )


def _difference(tokenizer, other):
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index:
            return f"first at id {index} ({token!r})"
    return "and it has tokens the summarizer's lacks"


def disable_dropout(model: torch.nn.Module):
    """All dropout: also attention's, which is a number of the module in transformers, where TRL looks for layers."""
    disable_dropout_in_model(model)
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The causal language model under its adapter, if it has one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def sample_of(parameter: torch.Tensor) -> torch.Tensor:
    """Some 256 of a parameter's elements, evenly spread: for digests that tell one model from another."""
    return parameter.detach().flatten()[:: max(1, parameter.numel() // 256)]


def base_if_adapted(model: PreTrainedModel | PeftModel, checkpoint: str) -> PreTrainedModel | None:
    """The checkpoint, over the parameters that are in memory already, if the model is an adapter of it; else `None`."""
    if isinstance(model, PeftModel) and model.active_peft_config.base_model_name_or_path == checkpoint:
        return clone_with_shared_parameters(model)
    return None


def storage_pointers(model: torch.nn.Module) -> set[int]:
    """Where the model's parameters lie in memory; two roles share what is in both sets."""
    return {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
