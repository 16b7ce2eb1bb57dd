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
The teacher's hidden states on disk, for runs that see their windows more than once.

The teacher is frozen, so what it thinks of a window never changes: over several epochs it need not be asked again. Kept
are its hidden states at the target's positions, not its logits: 64 × 576 numbers a window for SmolLM2-135M instead of
64 × 49,152.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..common.files import replace_file
from ..models.attention import attention_of
from ..models.fingerprints import fingerprint
from ..prompts import GistPrompts, seen_ids, targets_of


class TeacherCache:
    """
    One file for each window, named by a digest of the teacher, its prompt and the target. An entry is used only if it
    is whole, of the right shape and carries its own name; any other is recomputed, never trusted.

    Args:
        directory (`str` or `os.PathLike`):
            Made if there is none. Several runs, and all ranks of one, may share it.
        teacher ([`~transformers.PreTrainedModel`]):
            Its configuration, attention, and all of its weights are part of the key, so that another checkpoint under
            the same name gets entries of its own.
        prompts ([`GistPrompts`]):
            Turn contexts into the teacher's prompts.
        mixed_precision (`str`, *optional*, defaults to `"no"`):
            What the teacher is run in, as of [`~accelerate.Accelerator`]; a part of the key.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        teacher: torch.nn.Module,
        prompts: GistPrompts,
        mixed_precision: str = "no",
    ):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.prompts = prompts
        self.hidden_size = teacher.config.get_text_config().hidden_size
        self.key = [fingerprint(teacher), mixed_precision, attention_of(teacher)]

    def get(self, row: dict) -> torch.Tensor | None:
        """Hidden states of shape `(target positions, hidden)`, or `None` where they must be computed."""
        name = self._name(row)
        try:
            content = self._path(name).read_bytes()
            digest, content = content[:64], content[64:]
            if digest != hashlib.sha256(name.encode() + content).hexdigest().encode():
                return None
            hidden_TH = load(content)["hidden"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        tokens = sum(len(target["target_ids"]) for target in targets_of(row))
        return hidden_TH if hidden_TH.shape == (tokens, self.hidden_size) else None

    def put(self, row: dict, hidden_TH: torch.Tensor):
        """Writes an entry, of which no reader sees half."""
        name = self._name(row)
        content = save({"hidden": hidden_TH.detach().cpu().contiguous()})
        digest = hashlib.sha256(name.encode() + content).hexdigest().encode()
        path = self._path(name)
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, digest + content)
        except OSError as error:
            # A full disk costs the cache, not the run
            warnings.warn(f"The teacher's hidden states could not be kept in {self.directory}: {error}")

    def _name(self, row):
        several = "targets" in row
        prompt = (
            self.prompts.plain(seen_ids(row)) if several else self.prompts.teacher(seen_ids(row), row["last_k_ids"])
        )
        read = [self.key, prompt, row["target_ids"]]
        if several:
            read.append([[target["after_ids"], target["target_ids"]] for target in row["targets"]])
        window = json.dumps(read)
        return hashlib.sha256(window.encode()).hexdigest()

    def _path(self, name):
        return self.directory / name[:2] / f"{name}.hidden"
