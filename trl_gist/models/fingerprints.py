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
Digests of every element of every weight, by which one model is told from another.

A sample of each weight would miss most changes of a single row. XXH3 reads memory about as fast as the processor can,
135M parameters in float32 in some 0.03 s where SHA-256 takes 0.4 s; it is no protection against forgery, and need not be.
"""

import hashlib
import json
from collections.abc import Iterator

import torch
import xxhash
from transformers import PreTrainedTokenizerBase

from ..common.files import json_digest
from .deepspeed import gathered


ALGORITHM = "xxh3-128"


def digest_of(tensor: torch.Tensor) -> bytes:
    """The digest of a tensor's dtype, shape and every byte, wherever it lies."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = xxhash.xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(content)
    return digest.digest()


class WeightDigests:
    """
    Digests of the weights of several models, each weight read once however many of them share it.

    Args:
        dtype (`torch.dtype`, *optional*):
            What weights are cast to first, for digests that do not depend on the dtype a model was loaded in.
    """

    def __init__(self, dtype: torch.dtype | None = None):
        self.dtype = dtype
        self._read = {}

    def of(
        self, model: torch.nn.Module, frozen_only: bool = False, trained_only: bool = False
    ) -> Iterator[tuple[str, bytes]]:
        """
        Name and digest of each parameter, and of each buffer that is saved with them, in the model's order. Where ZeRO-3
        has sharded them all ranks call it.
        """
        for name, tensor in model.state_dict(keep_vars=True).items():
            if (frozen_only and tensor.requires_grad) or (trained_only and not tensor.requires_grad):
                continue
            if id(tensor) not in self._read:
                with gathered([tensor]):
                    # With the tensor itself, so that no other gets its id
                    self._read[id(tensor)] = tensor, digest_of(tensor if self.dtype is None else tensor.to(self.dtype))
            yield name, self._read[id(tensor)][1]


def fingerprint(model: torch.nn.Module) -> str:
    """A digest of a model's configuration and all its weights."""
    digest = xxhash.xxh3_128(model.config.to_json_string().encode())
    for name, content in sorted(WeightDigests().of(model)):
        digest.update(name.encode() + content)
    return digest.hexdigest()


# ---- What a checkpoint stands on ----


def frozen_digests(models: dict[str, torch.nn.Module]) -> dict[str, str]:
    """
    For each model a digest of all its frozen weights, after the algorithm's name: what a checkpoint stands on and does
    not hold. Where ZeRO-3 has sharded them all ranks call it, and what models share is gathered once.
    """
    return _role_digests(models, frozen_only=True)


def trained_digests(models: dict[str, torch.nn.Module]) -> dict[str, str]:
    """
    For each model a digest of all that is trained of it, after the algorithm's name: what a checkpoint holds, taken of
    the weights in memory, so that what is loaded can be told from what was trained. All ranks call it under ZeRO-3.
    """
    return _role_digests(models, trained_only=True)


def _role_digests(models, **which):
    weights, digests = WeightDigests(), {}
    for role, model in models.items():
        digest = hashlib.sha256()
        for _, content in weights.of(model, **which):  # PEFT writes into names which modules have an adapter
            digest.update(content)
        digests[role] = f"{ALGORITHM}:{digest.hexdigest()}"
    return digests


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> dict:
    """`{"size": tokens, "sha256": digest of every token and its id}`."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return {"size": len(vocabulary), "sha256": json_digest(vocabulary)}


# ---- By what a saved session knows its pair ----


def pair_fingerprint(loaded) -> str:
    """
    A digest of a [`~inference.pair.LoadedPair`]: its sizes, prompts, vocabulary, and all weights in bfloat16, so that it
    is one and the same in float32 and in bfloat16.
    """
    digest, weights = _digest_of_settings(loaded), WeightDigests(torch.bfloat16)
    for model in (loaded.summarizer, loaded.generator):
        for name, content in sorted(weights.of(model)):
            digest.update(name.encode() + content)
    return digest.hexdigest()


def _digest_of_settings(loaded):
    names = ("context_length", "last_k", "max_gist_length", "tail_length", "summarizer_prompt", "generator_prompt")
    described = [{name: getattr(loaded.pair, name) for name in names}, vocabulary_of(loaded.tokenizer)]
    described += [each for each in (loaded.pair.chat_template_kwargs, loaded.pair.rendered) if each]
    return hashlib.sha256(json.dumps(described).encode())
