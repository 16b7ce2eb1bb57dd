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
How many positions a model has, and LongRoPE, as of Phi-3, which turns a text otherwise from some length on: transformers
(5.23) turns all rows of a forward as the longest one needs it. Here each is turned as if it were alone.
"""

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel


_XLNET_HAS_NO_LIMIT = -1


def max_positions(model: PreTrainedModel | PeftModel) -> int | None:
    """The longest sequence that the model has positions for, if its configuration knows of one, by whatever name."""
    config = model.config.get_text_config()
    # An attribute, for configurations map it to their own name (`n_positions` in GPT-2); MPT's does not
    positions = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    return None if positions == _XLNET_HAS_NO_LIMIT else positions


def turned_alike(config: PreTrainedConfig) -> int | None:
    """
    Up to how many positions a text's rotary embeddings are the same in transformers (5.23) whatever it shares a forward
    with, and in vLLM (0.31), if there is such a length: LongRoPE, as of Phi-3, turns all rows as the longest one needs it,
    and in vLLM as the longest that there may be.
    """
    named = getattr(config.get_text_config(), "rope_parameters", None) or {}
    of_layers = [named, *(value for value in named.values() if isinstance(value, dict))]
    lengths = [each["original_max_position_embeddings"] for each in of_layers if each.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def becomes_long(config: PreTrainedConfig, read: int, length: int) -> bool:
    """Whether a text turns otherwise by LongRoPE when it grows to `length`: a cache of its first `read` tokens is then of
    no use."""
    alike = turned_alike(config)
    return alike is not None and 0 < read <= alike < length


def turn_each_row_alone(model: PreTrainedModel | PeftModel):
    """
    Has a model with LongRoPE read each row of a batch as it reads it alone, by the rows' `position_ids`, or else by a mask
    of their padding; of any other model nothing changes. Copies of the model, made later, do the same.
    """
    if turned_alike(model.config) is None:
        return
    for backbone in model.modules():
        for module in backbone.children():
            if "longrope" in str(getattr(module, "rope_type", "")) and not hasattr(module, "turns_each_row_alone"):
                backbone.register_forward_pre_hook(_count_from_mask, with_kwargs=True)
                module.register_forward_hook(_turn_each_row_alone, with_kwargs=True)
                module.turns_each_row_alone = True


def _count_from_mask(module, args, kwargs):
    mask_NS = kwargs.get("attention_mask")
    unread = kwargs.get("position_ids") is None and kwargs.get("past_key_values") is None
    if unread and isinstance(mask_NS, torch.Tensor) and mask_NS.ndim == 2:
        return args, {**kwargs, "position_ids": (mask_NS.long().cumsum(-1) - 1).clamp(min=0)}
    return None


def _turn_each_row_alone(module, args, kwargs, output):
    positions_NS = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    if positions_NS.ndim != 2 or len(positions_NS) == 1:
        return output
    most = turned_alike(module.config)

    def turned(positions_NS):
        if "position_ids" in kwargs:
            return module.forward(*args, **{**kwargs, "position_ids": positions_NS})
        return module.forward(args[0], positions_NS, *args[2:], **kwargs)

    # All short, where a row that is not is not taken; and all long, by one more row that is
    as_short = turned(positions_NS.clamp(max=most - 1))
    as_long = turned(torch.cat([positions_NS, torch.full_like(positions_NS[:1], most)]))
    is_long_N11 = (positions_NS.amax(-1) >= most)[:, None, None]
    return tuple(torch.where(is_long_N11, long[:-1], short) for long, short in zip(as_long, as_short, strict=True))


def written_together(config: PreTrainedConfig, lengths: list[int], new_tokens: int) -> list[list[int]]:
    """
    Which prompts, by their lengths, are written on in one batch with LongRoPE: all, but for those that become long on the
    way, whose keys transformers then computes anew, if the batch's longest row does so at the same token.
    """
    alike = turned_alike(config)
    rows = list(range(len(lengths)))
    if alike is None or len(set(lengths)) == 1:
        return [rows]
    crossing = [row for row in rows if lengths[row] <= alike < lengths[row] + new_tokens]
    return [each for each in ([row for row in rows if row not in crossing], *([row] for row in crossing)) if each]
