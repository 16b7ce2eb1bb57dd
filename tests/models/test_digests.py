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

"""Digests of weights: what tells the models apart that caches, checkpoints and sessions stand on."""

import random

import pytest
import torch
from tiny import make_model
from tiny_pairs import make_adapter_pair, make_compactor

from trl_gist.models import fingerprints as digests
from trl_gist.models.fingerprints import (
    ALGORITHM,
    WeightDigests,
    digest_of,
    fingerprint,
    frozen_digests,
    pair_fingerprint,
)


def of_frozen(model):
    return frozen_digests({"teacher": model})["teacher"]


def changes(model, count):
    """Changes of one row each, and at last of one bit, each taken back before the next."""
    parameters = list(model.parameters())
    places = [(parameter, row) for parameter in parameters for row in range(len(parameter))]
    for parameter, row in random.Random(0).sample(places, count):
        before = parameter.data[row].clone()
        parameter.data[row] += 1
        yield
        parameter.data[row] = before
    weight = parameters[0].data.view(torch.int32)
    weight[-1, -1] ^= 1
    yield
    weight[-1, -1] ^= 1


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_change_of_any_row_is_seen_and_taken_back_is_not(tokenizer, family):
    model = make_model(tokenizer, family=family).requires_grad_(False)
    known = fingerprint(model), of_frozen(model)
    found = [(fingerprint(model), of_frozen(model)) for _ in changes(model, 50)]
    for one, other in found:
        assert one != known[0] and other != known[1]
    assert (fingerprint(model), of_frozen(model)) == known
    assert len({one for one, _ in found}) == len(found)


@pytest.mark.parametrize("make", [make_compactor, make_adapter_pair])
def test_a_pair_is_known_by_every_row_of_both_halves(tokenizer, make):
    compactor = make(tokenizer)
    known = pair_fingerprint(compactor)
    for model in (compactor.summarizer, compactor.generator):
        assert all(pair_fingerprint(compactor) != known for _ in zip(changes(model, 20), range(20), strict=False))
        assert pair_fingerprint(compactor) == known


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool]
)
def test_a_digest_is_of_dtype_shape_and_content_and_of_nothing_else(dtype):
    tensor = torch.arange(12).remainder(2).to(dtype).view(3, 4)
    assert digest_of(tensor) == digest_of(tensor.clone()) == digest_of(tensor.t().contiguous().t())
    assert digest_of(tensor) == digest_of(torch.nn.Parameter(tensor, requires_grad=False))
    others = [tensor.view(4, 3), tensor.flatten(), tensor.roll(1), tensor[:2], tensor.to(torch.int16), tensor[0, 0]]
    assert len({digest_of(tensor), *map(digest_of, others)}) == 7
    assert digest_of(tensor[:0]) != digest_of(tensor[:, :0])


def test_a_saved_buffer_is_part_of_a_model_and_a_trained_weight_is_not_of_what_is_frozen(tokenizer):
    model = make_model(tokenizer).requires_grad_(False)
    model.register_buffer("bias", torch.zeros(3))
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    known = fingerprint(model), of_frozen(model)
    model.scratch += 1
    assert (fingerprint(model), of_frozen(model)) == known
    model.bias += 1
    assert fingerprint(model) != known[0] and of_frozen(model) != known[1]
    norm = model.model.norm.weight.requires_grad_(True)
    known = fingerprint(model), of_frozen(model)
    norm.data += 1
    assert fingerprint(model) != known[0] and of_frozen(model) == known[1]


def test_what_roles_share_is_read_once(tokenizer, make_trainer, lora, monkeypatch):
    trainer = make_trainer(peft_config=lora)
    read = []
    monkeypatch.setattr(digests, "digest_of", lambda tensor: read.append(tensor) or digest_of(tensor))
    found = frozen_digests({"summarizer": trainer.model, "generator": trainer.generator, "teacher": trainer.teacher})
    assert len(set(found.values())) == 1 and found["teacher"].startswith(f"{ALGORITHM}:")
    assert len(read) == len(list(trainer.teacher.parameters()))


def test_in_another_dtype_digests_are_of_the_values_there(tokenizer):
    model = make_model(tokenizer)
    cast = [
        list(WeightDigests(torch.bfloat16).of(each)) for each in (model, make_model(tokenizer, dtype=torch.bfloat16))
    ]
    assert cast[0] == cast[1]
