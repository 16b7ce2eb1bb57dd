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

"""What a role must have, or is refused for: a vocabulary in common, a base that is the teacher's, logits that follow a text."""

import re

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .deepspeed import is_sharded, whole_shape
from .roles import base_of, clone_with_shared_parameters, naming, storage_pointers


def check_bare(role: str, model: PreTrainedModel | PeftModel, teacher: PreTrainedModel):
    """Raises `ValueError` if a role that shares parameters with the teacher is not the teacher without its adapter."""
    if (
        not isinstance(model, PeftModel)
        or is_sharded(model)
        or not storage_pointers(model) & storage_pointers(teacher)
    ):
        return
    bare, expected = (
        {name: id(parameter) for name, parameter in base.named_parameters(remove_duplicate=False)}
        for base in (clone_with_shared_parameters(model), teacher)
    )
    if bare != expected:
        different = sorted(name for name, _ in bare.items() ^ expected.items())
        raise ValueError(
            f"The {role} without its adapter is not the base that it shares with the teacher: {different[0]} is another. "
            "Use `LoraConfig`, or give the roles checkpoints of their own."
        )


def check_same_tokenizer(tokenizer: PreTrainedTokenizerBase, role: str, model, trust_remote_code: bool = False):
    """
    Raises `ValueError` if `model` (a checkpoint or a loaded model) was not trained on `tokenizer`'s vocabulary: a
    gist is written, read and scored as token ids, so all roles must mean the same by them.
    """
    loaded = not isinstance(model, str)
    if loaded:
        check_embeddings(tokenizer, role, model)
    checkpoint = model.config.name_or_path if loaded else model
    try:
        with naming(checkpoint):
            other = AutoTokenizer.from_pretrained(
                checkpoint, trust_remote_code=trust_remote_code, local_files_only=loaded
            )
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
    """
    All that makes a model's forward random in train mode: dropout, also that of attention or whole layers, and the
    jitter of a mixture of experts' routers. Some are layers; in transformers most are numbers of other modules.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and re.search("drop|jitter", name):
                setattr(module, name, 0.0)


def check_not_random(model: PreTrainedModel | PeftModel):
    """Raises `ValueError` if train mode still changes the model's logits after [`disable_dropout`]."""
    base, was_training = base_of(model), model.training
    ids_1S = probe_ids(base)
    with torch.no_grad():
        trained, evaluated = (base.train(mode)(input_ids=ids_1S, use_cache=False).logits for mode in (True, False))
    model.train(was_training)
    if not same_logits(evaluated, trained, 1e-2):  # one shape and the same kernels, so not `rounding_of`
        raise ValueError(
            f"{type(base).__name__} gives other logits in train mode than in eval mode, though its dropout and router "
            "jitter are 0: gists are sampled and scored in train mode, so the policy that samples would differ from "
            "the policy that is trained. The noise is in its own code; use another architecture."
        )


def check_causal(model: PreTrainedModel | PeftModel):
    """Raises `ValueError` if what follows a token changes the model's logits there: it would see what it predicts."""
    base = base_of(model)
    ids_1S = probe_ids(base)
    half = ids_1S.shape[1] // 2
    with torch.no_grad():
        whole, start = (base(input_ids=ids, use_cache=False).logits[:, :half] for ids in (ids_1S, ids_1S[:, :half]))
    if not same_logits(start, whole, rounding_of(base)):
        raise ValueError(
            f"{type(base).__name__} is not causal as it is configured: a token's logits change with the tokens after it, "
            "which are what it should predict. Use a causal language model."
        )


def check_adapted_layers(model: PreTrainedModel | PeftModel):
    """Raises `ValueError` if an adapter is on a router that is a linear layer but gives more than a product."""
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or not isinstance(layer.get_base_layer(), torch.nn.Linear):
            continue
        router = layer.get_base_layer()
        # PEFT 0.21 takes a subclass for the layer itself; those of transformers' models are routers of experts
        if type(router).__module__.startswith("transformers.models.") and not is_sharded(router):
            with torch.no_grad():
                output = router(router.weight[:1])
            if not isinstance(output, torch.Tensor):
                short = name.rsplit(".", 1)[-1]
                raise ValueError(
                    f"The adapter's `target_modules` reach {name}, a {type(router).__name__}, which PEFT cannot adapt: it "
                    f"gives a {type(output).__name__}, not a tensor. Leave it out with `exclude_modules=[{short!r}]` in "
                    "the `LoraConfig`."
                )


def probe_ids(base: PreTrainedModel) -> torch.Tensor:
    """A short text to try a model on, of shape `(1, tokens)`; without the first ids, for padding's embedding is 0."""
    return torch.arange(5, 13, device=base.get_input_embeddings().weight.device).unsqueeze(0)


def rounding_of(base: PreTrainedModel) -> float:
    """How far logits of one text that are computed in two ways may lie apart, as a share of their spread."""
    return 1e-3 if base.dtype in (torch.float32, torch.float64) else 0.2


def same_logits(logits: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Whether a model's logits of a text agree within a share of their spread."""
    logits, other = logits.float(), other.float()
    return bool((logits - other).square().mean().sqrt() <= tolerance * logits.std())
