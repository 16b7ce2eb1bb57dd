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
The weights that a folder holds, under the names that a model has for them in memory: checked, and loaded into it.

The names on the disk may be others. transformers packs the experts of a mixture into one tensor a layer and saves each
by itself, so that a state dict of the files fits no model. `from_pretrained` undoes what `save_pretrained` did.
"""

import functools
import os
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .deepspeed import whole_on_each_rank, whole_shape
from .fingerprints import digest_of


def weights_in(
    directory: str | os.PathLike, model: PreTrainedModel | PeftModel, role: str, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """
    The weights that `save_pretrained` wrote to a folder, under the model's own names: all of them, or of a
    [`~peft.PeftModel`] those of its adapter.

    Args:
        directory (`str` or `os.PathLike`):
            A folder with weights as safetensors, in one file or several.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Whose they are. ZeRO-3 may have sharded it; nothing of it is read but names and shapes.
        role (`str`):
            What errors call it.
        device (`str`, *optional*, defaults to `"cpu"`):
            `"meta"` for names and shapes alone, at no cost of memory.

    Raises:
        ValueError: if a name or shape is another than the model's, or one is missing.
    """
    if isinstance(model, PeftModel):
        return _adapter_in(Path(directory), model, role)
    return _model_in(Path(directory), model, role, device)


def load_weights(directory: str | os.PathLike, model: PreTrainedModel | PeftModel, role: str):
    """
    Loads what [`weights_in`] finds into the model, in place.

    Raises:
        ValueError: if they do not fit, or any weight is another in the model afterwards.
    """
    weights = weights_in(directory, model, role)
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, weights)
        loaded = get_peft_model_state_dict(model)
    else:
        model.load_state_dict(weights)
        loaded = model.state_dict()
    other = [name for name in loaded if digest_of(loaded[name]) != digest_of(weights[name].to(loaded[name].dtype))]
    if other:
        raise ValueError(
            f"{len(other)} of {len(loaded)} weights of the {role} are not those in {directory} once they are loaded "
            f"({other[0]} first). Load the pair by `GistCompactor.from_pretrained` to see whether the folder is whole."
        )


def _adapter_in(directory, model, role):
    if not (directory / SAFETENSORS_WEIGHTS_NAME).is_file():  # PEFT would look for it on the Hub
        raise ValueError(
            f"{directory} does not fit the {role}: it holds no adapter. Was it trained without a `peft_config`?"
        )
    weights = load_peft_weights(str(directory), device="cpu")
    saved = {name: weight.shape for name, weight in weights.items()}
    expected = {name: weight.shape for name, weight in get_peft_model_state_dict(model).items()}
    if saved != expected:
        raise ValueError(
            f"The adapter in {directory} does not fit the {role}: {len(saved.items() ^ expected.items())} tensors "
            "differ in name or shape. Was it trained with another `peft_config` or `generator_peft_config`?"
        )
    return weights


def _model_in(directory, model, role, device):
    refusal = (
        f"The weights in {directory} do not fit the {role}: {{}}. Was it trained with another model, or with a "
        "`peft_config`?"
    )
    if not any((directory / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        raise ValueError(refusal.format(f"there is no {SAFE_WEIGHTS_NAME}"))
    expected = model.state_dict(keep_vars=True)
    # The widest that it has, so that no weight is rounded on its way
    dtypes = {weight.dtype for weight in expected.values() if weight.is_floating_point()}
    with whole_on_each_rank():
        read, found = type(model).from_pretrained(
            str(directory),
            config=model.config,
            dtype=functools.reduce(torch.promote_types, dtypes),
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed with the others
        )
    weights = dict(read.state_dict())
    shapes, own = ({name: whole_shape(weight) for name, weight in each.items()} for each in (weights, expected))
    different = {name for kind in ("missing_keys", "unexpected_keys") for name in found[kind]}
    different |= {name for name, *_ in found["mismatched_keys"]}
    different |= {name for name, _ in shapes.items() ^ own.items()}
    if different:
        raise ValueError(
            refusal.format(f"{len(different)} of {len(own)} tensors differ in name or shape ({min(different)} first)")
        )
    return weights
