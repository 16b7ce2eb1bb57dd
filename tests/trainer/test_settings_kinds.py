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

"""Every number and list among the settings of a run, TRL's and transformers' too: what is none is refused by name."""

import dataclasses
import json
import math
import types
import typing

import numpy as np
import pytest
from trl import TrlParser

from trl_gist import GistConfig
from trl_gist.scripts.train import GistScriptArguments
from trl_gist.trainer.config_checks import LEAST, check_kinds
from trl_gist.trainer.recipe import recipe_of


def fields_of(*kinds):
    """Names of the fields that are of one of these kinds, or of it and `None`."""
    names, hints = [], typing.get_type_hints(GistConfig)  # which no parser changes
    for field in dataclasses.fields(GistConfig):
        hint = hints[field.name]
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        found = set(typing.get_args(hint)) if union else {hint}
        if found - {type(None)} in [{kind} for kind in kinds]:
            names.append(field.name)
    return names


SWITCHES, TEXTS = fields_of(bool), fields_of(str)
WHOLE, FLOATS, LISTS = fields_of(int), fields_of(float), fields_of(list[int], list[float], list[str])


def test_the_sweep_goes_over_all_of_them():
    assert len(WHOLE) > 40 and len(FLOATS) > 30 and len(LISTS) > 2
    assert {"context_length", "num_generations", "seed", "max_steps"} <= set(WHOLE) and LEAST.keys() <= set(WHOLE)
    assert {"learning_rate", "gist_dropout", "temperature", "target_floor"} <= set(FLOATS)
    assert {"reward_weights", "gist_length_range", "recall_age"} <= set(LISTS)
    assert {"generator_only", "stop_on_alarm", "push_to_hub", "trust_remote_code"} <= set(SWITCHES)
    assert {"summarizer_prompt", "generator_prompt", "output_dir"} <= set(TEXTS)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_whole_number_is_refused_by_name(name):
    least = LEAST.get(name)
    for value in (
        2.5,
        2.0,
        "8",
        "x",
        True,
        np.True_,
        np.float64(2),
        math.nan,
        [8],
        {},
        *([] if least is None else [least - 1]),
    ):
        with pytest.raises(ValueError, match=rf"^`{name}` must be .*, got .*\. Give a whole number\.$"):
            GistConfig("run", **{name: value})


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_finite_number_is_refused_by_name(name):
    for value in ("0.5", "x", True, math.nan, -math.inf, [0.5], {}, 1j):
        with pytest.raises(ValueError, match=f"^`{name}` must be a finite number, got "):
            GistConfig("run", **{name: value})


@pytest.mark.parametrize("name", SWITCHES)
def test_what_is_neither_true_nor_false_is_refused_by_name(name):
    for value in ("false", "no", "True", "", 0, 1, 2.5, [], math.nan):
        with pytest.raises(ValueError, match=f"^`{name}` must be True or False, got "):
            GistConfig("run", **{name: value})


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_text_is_refused_by_name(name):
    for value in (5, 2.5, ["a"], {}, math.nan):
        with pytest.raises(ValueError, match=f"^`{name}` must be text, got "):
            GistConfig(**{"output_dir": "run", name: value})


@pytest.mark.parametrize("name", LISTS)
def test_what_is_no_list_is_refused_by_name(name):
    for value in ("tail", "8", 8, 2.5, True):
        with pytest.raises(ValueError, match=f"^`{name}` takes a list, got .*: put it in one"):
            GistConfig("run", **{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_weights": [1.0, "2"]}, "`reward_weights` must be a finite number, got '2'"),
        ({"gist_length_range": [1, 2.5]}, "`gist_length_range` must be whole, got 2.5"),
        ({"gist_length_range": [8]}, r"`gist_length_range` \(8\) must ascend"),
        ({"gist_length_range": [8, 16, 48]}, r"`gist_length_range` \(8, 16, 48\) must ascend"),
        ({"num_generations": None}, "`num_generations` must be at least 1, got None"),
        ({"length_penalty": None}, "`length_penalty` must be a finite number, got None"),
        ({"context_length": None}, "`context_length` must be at least 1, got None"),
        ({"learning_rate": -1e-5}, "`learning_rate` must not be below 0, got -1e-05"),
        ({"generator_learning_rate": -1.0}, "`generator_learning_rate` must not be below 0"),
        ({"weight_decay": -0.1}, "`weight_decay` must not be below 0"),
        ({"gradient_accumulation_steps": -1}, "`gradient_accumulation_steps` must be at least 1, got -1"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(make_args, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(**settings)


@pytest.mark.parametrize(
    ("setting", "of"),
    [
        ({"gist_discount": 0.9}, {"windows_per_document": 2}),
        ({"recall_age": [1, 1]}, {"windows_per_document": 2}),
        ({"length_penalty_learning_rate": 0.1}, {"target_gist_length": 4}),
    ],
)
def test_what_is_about_a_setting_that_is_off_is_refused(make_args, setting, of):
    (name,), (switch,) = setting, of
    with pytest.raises(ValueError, match=rf"`{name}`.*`{switch}`"):
        make_args(**setting)
    assert getattr(make_args(**setting, **of), name) == setting[name]


def test_numpys_numbers_are_pythons(make_args):
    settings = {
        "context_length": 24,
        "max_steps": 2,
        "seed": 7,
        "learning_rate": 0.5,
        "gist_dropout": 0.25,
        "last_k": 4,
    }
    kinds = {int: np.int64, float: np.float32}
    args = make_args(**{name: kinds[type(value)](value) for name, value in settings.items()})
    assert json.loads(json.dumps(recipe_of(args))) == recipe_of(make_args(**settings))
    for name, value in settings.items():
        assert getattr(args, name) == value and type(getattr(args, name)) is type(value)
    args = make_args(gist_length_range=(np.int16(2), np.int64(6)), reward_weights=np.array([1.0, 0.1]))
    assert args.gist_length_range == [2, 6] and args.reward_weights == [1.0, 0.1]


def test_none_stays_allowed_once_a_command_line_was_parsed(make_args):
    """transformers' parser (5.23) takes the None out of the types of a dataclass's fields, for all of the process."""
    hints = typing.get_type_hints(GistConfig)
    optional = [name for name in (*WHOLE, *FLOATS, *LISTS) if type(None) in typing.get_args(hints[name])]
    optional.remove("num_generations")  # which TRL's type alone lets be None
    assert {"target_floor", "window_stride", "gist_length_range"} <= set(optional)
    TrlParser(GistConfig)
    assert float in {field.type for field in dataclasses.fields(GistConfig) if field.name == "target_floor"}
    args = make_args()
    for name in optional:
        setattr(args, name, None)
    check_kinds(args)


@pytest.mark.parametrize("name", ["eval_documents", "world_size"])
def test_the_scripts_own_numbers_too(name):
    for value in (2.5, "8", True, 0, -1):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1 or None, got "):
            GistScriptArguments(dataset_path=["a.jsonl"], dry_run=True, **{name: value})


@pytest.mark.parametrize("name", ["dataset_streaming", "dry_run"])
def test_the_scripts_own_switches_too(name):
    for value in ("false", 1, None):
        with pytest.raises(ValueError, match=f"`{name}` must be True or False, got "):
            GistScriptArguments(dataset_path=["a.jsonl"], **{name: value})
    with pytest.raises(ValueError, match="`zero_stage` must be .*, got True"):
        GistScriptArguments(dataset_path=["a.jsonl"], dry_run=True, zero_stage=True)
