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

"""From a folder or a repository to the two models of a pair."""

import json
import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME as MODEL_CONFIG_NAME

from ..pair import PAIR_CONFIG_NAME
from .adapters import check_leaves_base
from .attention import use_matmul_attention
from .machine import is_slow
from .roles import clone_with_shared_parameters, create_model_from_path, weights_whole


class HalfLoader:
    """
    Loads the halves of a pair, plain or adapters; a base that both stand on is loaded once.

    Args:
        device (`str` or `torch.device`, *optional*):
            `None` leaves models where they are loaded, as a trainer wants them.
        dtype (`str` or `torch.dtype`):
            For `from_pretrained`.
        trust_remote_code (`bool`):
            Whether checkpoints may run their own code.
        init_kwargs:
            For `from_pretrained`, too.
    """

    def __init__(self, device, dtype, trust_remote_code, **init_kwargs):
        self.device = device
        # One device: spreading a model over several would copy what the halves share
        values = {"dtype": dtype, "trust_remote_code": trust_remote_code, "device_map": None}
        self.init_kwargs = {**values, **init_kwargs}
        self.bases = {}

    def load(self, directory: Path, role: str) -> PreTrainedModel | PeftModel:
        """The model in eval mode, frozen. Raises `ValueError` if it or its base is missing, or it cannot be read."""
        if check_half(directory, role):
            # PEFT would keep half-precision adapters in float32, for training; at inference that triples their cost
            model = self._adapter(directory, autocast_adapter_dtype=False)
        else:
            model = self._model(str(directory))
        return for_inference(model.to(self.device))

    def load_to_train(self, directory: Path, role: str) -> PeftModel | str:
        """An adapter that goes on training, over its base; of a model that was trained whole the folder, by which a
        trainer loads it. Raises `ValueError` as [`~HalfLoader.load`]."""
        if not check_half(directory, role):
            return str(directory)
        # Under ZeRO-3 in the base's dtype with it, as TRL (1.16) draws them
        return self._adapter(directory, is_trainable=True, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())

    def load_teacher(self, name: str) -> PreTrainedModel:
        """The model of a checkpoint, over the parameters of a base of that name if an adapter stands on one. Raises
        `OSError` or `ValueError` if there is none."""
        for (base_name, _), base in self.bases.items():
            if base_name == name:
                return clone_with_shared_parameters(base)
        return self._model(name)

    def _model(self, name, **kwargs):
        model = create_model_from_path(name, **{**self.init_kwargs, **kwargs})
        # As stored, which may be float16 on a CPU that is fast in bfloat16 alone
        as_stored = self.device is not None and self.init_kwargs["dtype"] == "auto"
        return model.float() if as_stored and is_slow(model.dtype, self.device) else model

    def _adapter(self, directory, **settings):
        adapter = PeftConfig.from_pretrained(str(directory))
        check_leaves_base(f"The adapter in {directory}", adapter)
        # PEFT replaces modules in the tree that it is given, so each half gets its own over the same parameters
        base = clone_with_shared_parameters(self._base(adapter, directory))
        with weights_whole(directory):
            return PeftModel.from_pretrained(base, str(directory), config=adapter, **settings)

    def _base(self, adapter, directory):
        key = (adapter.base_model_name_or_path, adapter.revision)
        if key not in self.bases:
            name, revision = key
            try:
                base = self._model(name, **({} if revision is None else {"revision": revision}))
            except OSError as error:
                raise base_error(name, directory, error) from error
            self.bases[key] = base if self.device is None else base.to(self.device)
        return self.bases[key]


def base_error(name: str, directory: Path, error: OSError) -> ValueError:
    """For a base that is not where an adapter says."""
    return ValueError(
        f"{name}, the base model of the adapter in {directory}, could not be loaded. If it has moved, edit "
        f"`base_model_name_or_path` in {ADAPTER_CONFIG_NAME}. ({error})"
    )


def is_adapter(directory: Path, role: str) -> bool:
    """Whether a half of a pair is an adapter. Raises `ValueError` that names the role if the folder holds no model."""
    adapts = Path(directory, ADAPTER_CONFIG_NAME).is_file()
    if not adapts and not Path(directory, MODEL_CONFIG_NAME).is_file():
        raise ValueError(
            f"The pair lacks its {role}: {directory} holds neither {MODEL_CONFIG_NAME} nor {ADAPTER_CONFIG_NAME}."
        )
    return adapts


def check_half(directory: Path, role: str) -> bool:
    """As [`is_adapter`]. Raises `ValueError` too if the half has no weights that are read."""
    adapts = is_adapter(directory, role)
    if not any(directory.glob("*.safetensors")):
        raise ValueError(
            f"The pair's {role} has no weights: {directory} holds no *.safetensors. Weights in another format, as "
            "*.bin, are pickles, which can run code, and are not read; `GistTrainer.save_model` writes safetensors."
        )
    return adapts


def code_references(half: Path) -> list[str]:
    """What the configs of a half name as code beside transformers', as `module.Class`; that of another repository as
    `user/repo--module.Class`."""
    references = []
    for name in (MODEL_CONFIG_NAME, TOKENIZER_CONFIG_FILE):
        if Path(half, name).is_file():
            named = json.loads(Path(half, name).read_text(encoding="utf-8")).get("auto_map") or {}
            for value in named.values() if isinstance(named, dict) else [named]:  # a list is a tokenizer's of old
                references += [value] if isinstance(value, str) else value
    return [reference for reference in references if reference]


def check_device(device: str | torch.device):
    """Raises `ValueError` if this machine cannot put a tensor there, where torch has as many errors as kinds of devices."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = [str(torch.accelerator.current_accelerator())] if torch.accelerator.is_available() else []
        raise ValueError(
            f"`device` ({device}) cannot be used on this machine: {str(error).splitlines()[0].rstrip('.')}. Leave it out, "
            f"or give {' or '.join([*there, 'cpu'])}."
        ) from error
    if torch.device(device).type == "meta":
        raise ValueError("`device` (meta) holds no weights. Leave it out, or give 'cpu'.")


def check_dtype_name(dtype: str | torch.dtype | None):
    """Raises `ValueError` for what is no dtype of floats, of torch or by its name."""
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype in (None, "auto") or (isinstance(named, torch.dtype) and named.is_floating_point):
        return
    raise ValueError(f"`dtype` must be 'float32', 'bfloat16' or 'float16', got {dtype!r}. Or leave it out.")


def for_inference(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """In eval mode, frozen, and with the attention that its device computes fastest."""
    if model.device.type == "cpu":
        use_matmul_attention(model)
    return model.eval().requires_grad_(False)


def local_directory(pretrained_pair: str | os.PathLike, revision: str | None, weights: bool = True) -> Path:
    """The folder of a pair, downloaded, with its weights or without, if it is a repository on the Hub. Raises `ValueError`
    if it is neither."""
    if not isinstance(pretrained_pair, (str, os.PathLike)):
        raise ValueError(f"A pair is named by its folder or its repository on the Hub, got {pretrained_pair!r}.")
    if Path(pretrained_pair).is_dir():
        return Path(pretrained_pair)
    repo_id = str(pretrained_pair)
    try:
        # First, so that a repository that is no pair costs no download of its weights
        hf_hub_download(repo_id, PAIR_CONFIG_NAME, revision=revision)
        unread = ["*checkpoint*/*", "*.pt", "*.bin", *([] if weights else ["*.safetensors"])]
        return Path(snapshot_download(repo_id, revision=revision, ignore_patterns=unread))
    except RemoteEntryNotFoundError as error:
        raise ValueError(f"{repo_id} on the Hub holds no gist pair: {PAIR_CONFIG_NAME} is missing.") from error
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{repo_id} is neither a folder nor a repository on the Hub in reach. ({error})") from error


def pair_directory(name: str, revision: str | None = None, weights: bool = True) -> Path | None:
    """The folder of a pair, as of [`local_directory`]; `None` if the name is that of something else."""
    if Path(name).is_dir():
        return Path(name) if Path(name, PAIR_CONFIG_NAME).is_file() else None
    try:
        hf_hub_download(name, PAIR_CONFIG_NAME, revision=revision)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None  # what it is instead, or why it is out of reach, says whoever loads it
    return local_directory(name, revision, weights)
