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

"""From the name of a checkpoint to its model."""

import torch
import transformers
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def create_model_from_path(checkpoint: str, **init_kwargs) -> PreTrainedModel:
    """
    The model of a checkpoint, of the class that it names. As TRL's function of this name (1.16), so that a pair is
    loaded without TRL as it was in training.

    Args:
        checkpoint (`str`):
            A folder, or a repository on the Hub.
        init_kwargs:
            For `from_pretrained`. `dtype` defaults to float32; `device_map` to `"auto"` on a GPU, elsewhere to `None`.
    """
    init_kwargs.setdefault("dtype", torch.float32)
    if "device_map" not in init_kwargs:
        init_kwargs["device_map"] = None if PartialState().device.type in ("cpu", "mps") else "auto"
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=init_kwargs.get("trust_remote_code", False))
    # A class that is the checkpoint's own is not in transformers
    architecture = getattr(transformers, config.architectures[0], AutoModelForCausalLM)
    return architecture.from_pretrained(checkpoint, **init_kwargs)
