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
Attention by plain matrix products, for bfloat16 on CPUs.

torch's fused CPU kernel spends most of its time outside its matrix products in bfloat16; written out, attention takes
about half as long (`research/performance/cpu_attention.py`). Keys and values are not repeated for grouped
queries: the queries that share a head become rows of one product. Queries are taken in blocks, and a block in the
middle of a sequence only meets the keys before its end. On GPUs the fused kernels are the better choice.

Products of bfloat16 on CPUs are oneDNN's. It makes a kernel for each new shape, of some 0.7 MB, and never lets go of all of
them (`research/performance/kernels.py`). Where text is written every token would be a new shape, so lengths are rounded up:
those of prompts ([`rounded_length`]) and of the keys that a new token meets. For that each layer copies its keys and values
once more for each new token, as transformers' cache itself does when it appends one.
"""

import torch
from peft import PeftModel
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .roles import base_of


ATTENTION_NAME = "bfloat16_matmul"

# Queries of one product: enough for its rate, few enough that the scores stay in the cache
_QUERIES_PER_BLOCK = 256


# Tokens: lengths are multiples of it where text is written
_LENGTHS = 64
# Of layers that see no padding
_MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def rounded_length(model: PreTrainedModel | PeftModel, length: int, most: int | None) -> int:
    """
    How many tokens a prompt of so many is to have with padding before it, at most `most`: as many, unless each length would
    cost memory, in bfloat16 on a CPU.
    """
    base = base_of(model)
    layers = getattr(base.config.get_text_config(), "layer_types", None) or ()
    if base.device.type != "cpu" or base.dtype != torch.bfloat16 or not _MASKED_LAYERS.issuperset(layers):
        return length
    rounded = length + -length % _LENGTHS
    return rounded if most is None or rounded <= most else length


def attention_of(model: PreTrainedModel | PeftModel) -> str:
    """The name of a model's attention, for which transformers (5.23) has a public setter and no getter."""
    return model.config._attn_implementation


def use_matmul_attention(model: PreTrainedModel | PeftModel):
    """Switches a model that runs on a CPU from `"sdpa"`; one that was loaded with another attention keeps it."""
    base = base_of(model)
    if attention_of(base) == "sdpa":
        base.set_attn_implementation(ATTENTION_NAME)


def matmul_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    As transformers' attention functions: `query` of shape `(batch, heads, queries, head size)`, `key` and `value` of
    `(batch, key heads, keys, head size)`, a boolean or additive mask or none (causal). No dropout: the roles have none.

    Where there are as many queries as keys, the mask must be causal in their order, as all of the package's are. In
    float32, where it is the faster one, the fused kernel.
    """
    if query.dtype != torch.bfloat16:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if kwargs.get("softcap") is not None:
        raise ValueError("This attention has no softcap; load the model with attn_implementation='eager'.")
    batch, heads, queries, size = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    extra = -keys % _LENGTHS if queries == 1 and not torch.is_grad_enabled() else 0
    if extra:
        if attention_mask is None:
            attention_mask = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=query.device)
        hidden = False if attention_mask.dtype == torch.bool else torch.finfo(attention_mask.dtype).min
        attention_mask = pad(attention_mask[..., :keys], (0, extra), value=hidden)
        key, value, keys = pad(key, (0, 0, 0, extra)), pad(value, (0, 0, 0, extra)), keys + extra
    query = query * (size**-0.5 if scaling is None else scaling)
    causal = queries > 1 and (module.is_causal if is_causal is None else is_causal)
    outputs = []
    for start in range(0, queries, _QUERIES_PER_BLOCK):
        block = query[:, :, start : start + _QUERIES_PER_BLOCK]
        stop = start + block.shape[2]
        seen = stop if queries == keys and causal else keys
        scores = block.reshape(batch, key_heads, -1, size) @ key[:, :, :seen].transpose(2, 3)
        if attention_mask is not None:
            bias = attention_mask[:, :, start:stop, :seen]
        elif causal:
            bias = torch.ones(1, 1, stop - start, seen, dtype=torch.bool, device=query.device).tril(start)
        else:
            bias = None
        if bias is not None:
            if bias.dtype == torch.bool:
                bias = additive_mask(bias, query.dtype)
            # Of shape (batch, 1, query heads of a key head, queries, keys): the queries of a product come head by head
            scores.view(batch, key_heads, -1, stop - start, seen).add_(bias.unsqueeze(2))
        # torch's softmax computes in float32 inside
        attended = scores.softmax(-1) @ value[:, :, :seen]
        outputs.append(attended.view(batch, heads, stop - start, -1))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as one to add to scores."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )


AttentionInterface.register(ATTENTION_NAME, matmul_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
