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
Every setting that a GistConfig has or inherits is in tests/helpers/settings_table.py, and does what stands there: no
setting may be taken and do something else than it says.
"""

import ast
import operator
import re
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.parallelism_config import ParallelismConfig
from settings_lab import EVALUATED, Lab
from settings_table import (
    GIST_CONFIG,
    GRPO_CONFIG,
    SETTINGS,
    TRAINING_ARGUMENTS,
    Elsewhere,
    Honoured,
    Irrelevant,
    Reaches,
    Refused,
)
from transformers import TrainingArguments
from trl import GRPOConfig
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer

from trl_gist import GistConfig
from trl_gist.trainer import gist_trainer


TESTS = Path(__file__).parents[1]


def of_kind(kind):
    return [name for name, entry in SETTINGS.items() if isinstance(entry, kind)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("settings"))


@pytest.mark.parametrize(
    ("config", "parent", "table"),
    [
        (TrainingArguments, None, TRAINING_ARGUMENTS),
        (GRPOConfig, TrainingArguments, GRPO_CONFIG),
        (GistConfig, GRPOConfig, GIST_CONFIG),
    ],
    ids=["TrainingArguments", "GRPOConfig", "GistConfig"],
)
def test_every_field_stands_in_the_table(config, parent, table):
    inherited = {field.name for field in fields(parent)} if parent else set()
    assert {field.name for field in fields(config)} - inherited == set(table)


@pytest.mark.parametrize("name", of_kind(Honoured))
def test_a_setting_has_its_effect(lab, name):
    assert SETTINGS[name].check(lab), SETTINGS[name].effect


def test_settings_of_loaders_and_wrappers_reach_them(lab):
    entries = {name: SETTINGS[name] for name in of_kind(Reaches)}
    usual, given = lab.trainer(), lab.trainer(**{name: entry.value for name, entry in entries.items()})
    for name, entry in entries.items():
        where = operator.attrgetter(entry.where)
        expected = entry.value if entry.as_ is None else entry.as_
        assert where(given) == expected, name
        if name != "dataloader_multiprocessing_context":  # there is none without workers
            assert where(usual) != expected, name


def test_irrelevant_settings_leave_a_run_bit_for_bit_as_it_is(lab):
    values = {name: SETTINGS[name].value for name in of_kind(Irrelevant) if SETTINGS[name].value is not None}
    defaults = {field.name: field.default for field in fields(GistConfig)}
    assert [name for name, value in values.items() if value == defaults[name]] == []
    usual, given = lab.outcome(lab.run(**EVALUATED)), lab.outcome(lab.run(**EVALUATED, **values))
    assert repr(usual[0]) == repr(given[0])  # NaN stands for the error of a single document
    assert all((ours == theirs).all() for ours, theirs in zip(usual[1], given[1], strict=True))


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in of_kind(Refused) for value in SETTINGS[name].values]
)
def test_a_setting_is_refused_at_construction_by_its_name(lab, name, value):
    entry = SETTINGS[name]
    if value == "ParallelismConfig()":
        value = ParallelismConfig()
    with pytest.raises(ValueError, match=entry.sentence or f"`{name}"):
        lab.trainer(**{name: value})


@pytest.mark.parametrize("name", of_kind(Elsewhere))
def test_a_setting_is_asserted_in_a_test_that_sets_it(name):
    source = next(TESTS.rglob(SETTINGS[name].file)).read_text(encoding="utf-8")
    assert SETTINGS[name].test in {
        node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)
    }
    assert re.search(rf"\b{SETTINGS[name].sets or name}\b", source)


# ---- With vLLM, what is irrelevant without it ----

# Under which name TRL hands each to what samples
GIVEN_TO_VLLM = {
    "vllm_mode": ("mode", "server"),
    "vllm_model_impl": ("model_impl", "transformers"),
    "vllm_enable_sleep_mode": ("enable_sleep_mode", True),
    "vllm_server_base_url": ("server_base_url", "http://localhost:1"),
    "vllm_server_host": ("server_host", "localhost"),
    "vllm_server_port": ("server_port", 1),
    "vllm_server_timeout": ("server_timeout", 1.0),
    "vllm_group_port": ("group_port", 2),
    "vllm_gpu_memory_utilization": ("gpu_memory_utilization", 0.1),
    "vllm_max_model_length": ("max_model_length", 64),
    "vllm_tensor_parallel_size": ("tensor_parallel_size", 2),
}
KEPT_FOR_VLLM = {
    "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": "token_mask",
    "vllm_importance_sampling_clip_max": 5.0,
    "vllm_importance_sampling_clip_min": 0.1,
}


def test_with_vllm_its_settings_reach_what_samples(lab, monkeypatch):
    given = {}
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", None, raising=False)
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", lambda **kwargs: given.update(kwargs))
    monkeypatch.setattr(gist_trainer, "prepare_vllm", lambda *args: None)
    values = {name: value for name, (_, value) in GIVEN_TO_VLLM.items()}
    trainer = lab.trainer(use_vllm=True, **values, **KEPT_FOR_VLLM)
    assert {name: given[theirs] for name, (theirs, _) in GIVEN_TO_VLLM.items()} == values
    assert {name: getattr(trainer, name) for name in KEPT_FOR_VLLM} == KEPT_FOR_VLLM
    with pytest.warns(FutureWarning, match="vllm_importance_sampling_cap"):
        trainer = lab.trainer(use_vllm=True, vllm_importance_sampling_cap=4.0)
    assert trainer.vllm_importance_sampling_clip_max == 4.0
    named = {name for name in SETTINGS if name.startswith("vllm_")} - set(of_kind(Refused))
    assert named == {*GIVEN_TO_VLLM, *KEPT_FOR_VLLM, "vllm_importance_sampling_cap"}
