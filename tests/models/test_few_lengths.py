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

"""Where text is written in bfloat16 on a CPU, oneDNN makes a kernel for each new shape: few lengths have few shapes."""

import pytest
import torch
from tiny import FAMILIES, make_model
from torch.utils._python_dispatch import TorchDispatchMode

from trl_gist.models import attention
from trl_gist.models.attention import use_matmul_attention
from trl_gist.models.generation import generate


class Products(TorchDispatchMode):
    """The shapes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
            self.shapes.add((str(func), *(tuple(tensor.shape) for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def model_of(tokenizer, dtype=torch.bfloat16, **settings):
    model = make_model(tokenizer, dtype=dtype, tie_word_embeddings=False, **settings).eval()
    use_matmul_attention(model)
    return model


def write(model, tokenizer, lengths, **settings):
    prompts = [[20 + (7 * n + length) % 300 for n in range(length)] for length in lengths]
    return generate(model, tokenizer, prompts, max_new_tokens=6, output_logits=True, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_many_lengths_take_the_products_of_one(tokenizer, family):
    model, shapes = model_of(tokenizer, family=family), []
    for lengths in ([[64]], [[n] for n in range(33, 65, 3)]):
        with Products() as products:
            for each in lengths:
                write(model, tokenizer, each)
        shapes.append(products.shapes)
    assert shapes[0] == shapes[1] and len(shapes[0]) > 8


def test_lengths_as_they_come_take_many_more(tokenizer, monkeypatch):
    monkeypatch.setattr(attention, "_LENGTHS", 1)
    model = model_of(tokenizer)
    with Products() as one:
        write(model, tokenizer, [64])
    with Products() as many:
        for length in range(33, 65, 3):
            write(model, tokenizer, [length])
    assert len(many.shapes) > 3 * len(one.shapes)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_as_near_to_float64_as_without_rounding(tokenizer, family, monkeypatch):
    model, exact = (model_of(tokenizer, dtype, family=family) for dtype in (torch.bfloat16, torch.float64))
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    for lengths in ([37], [37, 5, 20]):
        (true,), errors = write(exact, tokenizer, lengths)[1][:1], []
        for multiple in (attention._LENGTHS, 1):
            monkeypatch.setattr(attention, "_LENGTHS", multiple)
            errors.append((write(model, tokenizer, lengths)[1][0].double() - true).norm() / true.norm())
        monkeypatch.undo()
        assert errors[0] < max(1.5 * errors[1], 0.02)


def test_a_step_of_decoding_is_what_it_is_on_all_keys(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, 8, generator=generator).bfloat16()
        for heads, length in ((6, 1), (3, 37), (3, 37))
    )
    layer = torch.nn.Module()
    layer.is_causal = True
    mask = torch.ones(2, 1, 1, 37, dtype=torch.bool)
    mask[0, ..., :9] = False
    for seen in (None, mask, attention.additive_mask(mask, torch.bfloat16)):
        with torch.no_grad():
            rounded = attention.matmul_attention(layer, query, key, value, seen)[0]
            monkeypatch.setattr(attention, "_LENGTHS", 1)
            plain = attention.matmul_attention(layer, query, key, value, seen)[0]
            monkeypatch.undo()
        assert torch.allclose(rounded.float(), plain.float(), atol=0.02)


@pytest.mark.parametrize("settings", [{"dtype": torch.float32}, {"max_position_embeddings": 43}], ids=str)
def test_prompts_stay_as_they_are_where_shapes_cost_nothing_or_positions_would_not_do(tokenizer, settings):
    model, widths = model_of(tokenizer, **settings), []
    model.register_forward_pre_hook(lambda *args: widths.append(args[2]["input_ids"].shape[1]), with_kwargs=True)
    write(model, tokenizer, [37])
    assert widths[0] == 37
