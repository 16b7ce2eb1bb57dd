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

"""Attention by matrix products against attention written out in float64, and against torch's fused kernel."""

import copy

import pytest
import torch
from tiny import make_model
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trl_gist.models import attention
from trl_gist.models.attention import ATTENTION_NAME, matmul_attention, use_matmul_attention


class Layer:
    is_causal = True
    num_key_value_groups = 3
    training = True


def written_out(query, key, value, visible):
    key, value = key.repeat_interleave(3, dim=1), value.repeat_interleave(3, dim=1)
    scores = (query @ key.transpose(2, 3)).masked_fill(~visible, -torch.inf) * 0.3
    return (scores.softmax(-1) @ value).transpose(1, 2)


def make_inputs(queries, keys, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, heads, length, 8, generator=generator).to(dtype).requires_grad_()
        for heads, length in ((6, queries), (2, keys), (2, keys))
    ]


CAUSAL = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, 1, -1, -1)
HOLES = (CAUSAL & (torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(1)) < 0.7)) | torch.eye(10).bool()
DECODING = torch.rand(2, 1, 3, 17, generator=torch.Generator().manual_seed(2)) < 0.7


@pytest.mark.parametrize("block", [4, 256])
@pytest.mark.parametrize(
    "queries, keys, mask, visible",
    [(10, 10, None, CAUSAL), (10, 10, HOLES, HOLES), (3, 17, DECODING, DECODING), (1, 17, None, torch.ones(1).bool())],
    ids=["causal", "mask", "decoding", "one query"],
)
def test_outputs_and_gradients_are_as_near_to_float64_as_the_fused_kernels(
    monkeypatch, block, queries, keys, mask, visible
):
    monkeypatch.setattr(attention, "_QUERIES_PER_BLOCK", block)
    inputs = make_inputs(queries, keys)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    weights = torch.randn(2, queries, 6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def errors(function):
        for tensor in inputs:
            tensor.grad = None
        output, _ = function(Layer(), *inputs, mask, scaling=0.3)
        (output.double() * weights).sum().backward()
        found = [output, *(tensor.grad for tensor in inputs)]
        return [(a.double() - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]

    output = written_out(*exact, visible)
    (output * weights).sum().backward()
    expected = [output.detach(), *(tensor.grad for tensor in exact)]
    for ours, fused in zip(errors(matmul_attention), errors(sdpa_attention_forward), strict=True):
        assert ours < max(1.5 * fused, 0.006)  # bfloat16 keeps 8 bits


def test_float32_takes_the_fused_kernel():
    inputs = make_inputs(10, 10, torch.float32)
    assert torch.equal(
        matmul_attention(Layer(), *inputs, HOLES, scaling=0.3)[0],
        sdpa_attention_forward(Layer(), *inputs, HOLES, scaling=0.3)[0],
    )


def test_a_model_is_as_near_to_float64_as_with_the_fused_kernel(tokenizer):
    model = make_model(tokenizer, dtype=torch.bfloat16)
    ids = torch.randint(5, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    exact = copy.deepcopy(model).double()(input_ids=ids, attention_mask=mask).logits
    errors = [(model(input_ids=ids, attention_mask=mask).logits - exact)[mask.bool()].norm()]
    use_matmul_attention(model)
    assert model.config._attn_implementation == ATTENTION_NAME
    errors.append((model(input_ids=ids, attention_mask=mask).logits - exact)[mask.bool()].norm())
    assert errors[1] < 1.5 * errors[0]


def test_an_attention_that_was_chosen_is_kept(tokenizer):
    model = make_model(tokenizer)
    model.set_attn_implementation("eager")
    use_matmul_attention(model)
    assert model.config._attn_implementation == "eager"


def test_a_saved_model_does_not_ask_for_it(make_trainer, tmp_path):
    trainer = make_trainer()
    assert trainer.model.config._attn_implementation == ATTENTION_NAME
    trainer.save_model(tmp_path / "pair")
    assert ATTENTION_NAME not in (tmp_path / "pair" / "config.json").read_text()


def test_a_softcap_is_refused():
    with pytest.raises(ValueError, match="eager"):
        matmul_attention(Layer(), *make_inputs(10, 10), None, softcap=30.0)
