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

"""A CPU is asked for no precision that it has no instructions for, unless the user says so."""

import logging

import pytest
import torch
from tiny import make_model
from tiny_pairs import make_pair, save_half
from transformers import AutoConfig

from examples.short_run import short_config
from trl_gist import GistCompactor, GistConfig
from trl_gist.models import machine
from trl_gist.models.roles import Roles
from trl_gist.models.vllm import _dtype
from trl_gist.trainer.constructor import load_given


WITH = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
WITHOUT = {**WITH, "avx512_f": False, "avx512_bf16": False}
BOTH = {**WITH, "avx512_fp16": True}
ARM = {"architecture": "arm64", "neon": True, "bf16": True}


@pytest.fixture
def cpu(monkeypatch):
    """Makes this one with some instructions, and without an accelerator."""

    def has(capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        for cached in (machine.cpu_multiplies, machine._warn_once):
            cached.cache_clear()

    yield has
    monkeypatch.undo()
    for cached in (machine.cpu_multiplies, machine._warn_once):
        cached.cache_clear()


@pytest.mark.parametrize("capabilities, dtype", [(WITH, "bfloat16"), (ARM, "bfloat16"), (WITHOUT, "float32")])
def test_bfloat16_only_where_the_cpu_multiplies_it(capabilities, dtype, cpu, tmp_path):
    cpu(capabilities)
    assert machine.fast_dtype() == machine.fast_dtype("cpu") == dtype
    assert machine.fast_dtype("cuda") == "bfloat16"
    assert short_config(str(tmp_path)).model_init_kwargs == {"dtype": dtype}
    assert GistConfig(str(tmp_path)).bf16 == (dtype == "bfloat16")
    assert GistConfig(str(tmp_path), bf16=True).bf16


def test_a_torch_that_lists_no_instructions_keeps_what_is_stored(cpu, monkeypatch):
    cpu(WITHOUT)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert machine.stored_or_fast_dtype("cpu") == "auto"


@pytest.fixture
def stored_in_half(tokenizer, tmp_path):
    return saved_in(torch.bfloat16, tokenizer, tmp_path)


def saved_in(dtype, tokenizer, directory, lora=True):
    """The folder of a pair of adapters over a base in a dtype, or of two models in it."""
    base, folder = directory / "base", directory / "pair"
    make_model(tokenizer, 0).to(dtype).save_pretrained(base)
    for seed, half in enumerate((folder, folder / "generator")):
        if lora:
            save_half(str(base), tokenizer, half, seed, lora=True)
        else:
            make_model(tokenizer, seed).to(dtype).save_pretrained(half)
    tokenizer.save_pretrained(folder)
    make_pair().save(folder)
    return folder


@pytest.mark.parametrize("capabilities, dtype", [(WITH, torch.bfloat16), (WITHOUT, torch.float32)])
def test_a_pair_is_loaded_as_stored_where_that_is_fast(capabilities, dtype, cpu, stored_in_half, caplog):
    cpu(capabilities)
    compactor = GistCompactor.from_pretrained(stored_in_half, device="cpu")
    assert {half.dtype for half in (compactor.summarizer, compactor.generator)} == {dtype}
    assert not caplog.records


@pytest.mark.parametrize("lora", [False, True], ids=["models", "adapters"])
@pytest.mark.parametrize(
    "capabilities, dtype", [(BOTH, torch.float16), ({**ARM, "fp16_arith": True}, torch.float16), (WITH, torch.float32)]
)
def test_float16_is_kept_only_where_the_cpu_multiplies_that(
    capabilities, dtype, lora, cpu, tokenizer, tmp_path, caplog
):
    cpu(capabilities)
    folder = saved_in(torch.float16, tokenizer, tmp_path, lora)
    compactor = GistCompactor.from_pretrained(folder, device="cpu")
    assert {weight.dtype for half in (compactor.summarizer, compactor.generator) for weight in half.parameters()} == {
        dtype
    }
    assert _dtype(None, "cpu", AutoConfig.from_pretrained(tmp_path / "base"), "base") == dtype
    assert not caplog.records
    assert GistCompactor.from_pretrained(folder, device="cpu", dtype="float16").generator.dtype == torch.float16
    assert ["no instructions for float16" in record.message for record in caplog.records] == [True] * (
        dtype != torch.float16
    )


def test_who_asks_for_the_slow_one_is_told_once(cpu, stored_in_half, caplog):
    cpu(WITHOUT)
    with caplog.at_level(logging.WARNING, "trl_gist"):
        for _ in range(2):
            compactor = GistCompactor.from_pretrained(stored_in_half, device="cpu", dtype="bfloat16")
    assert compactor.generator.dtype == torch.bfloat16
    (record,) = caplog.records
    assert "no instructions for bfloat16" in record.message and "Leave out `dtype`" in record.message


@pytest.mark.parametrize("settings, told", [({"bf16": True}, 1), ({"bf16": False}, 0), ({}, 0)])
def test_training_in_the_slow_one_says_so(settings, told, cpu, tokenizer, tmp_path, caplog):
    cpu(WITHOUT)
    args = GistConfig(str(tmp_path), **settings)
    with caplog.at_level(logging.WARNING, "trl_gist"):
        roles = load_given(make_model(tokenizer, 0), None, None, tokenizer, args, lora=True)
    assert isinstance(roles, Roles)
    assert ["Set `bf16` to False" in record.message for record in caplog.records] == [True] * told
