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

"""A resumed run is of the recipe that it began with: other windows, prompts or targets are refused, other rates are
warned of and kept beside the first, and each setting of a run is in one of these groups."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
from checks import assert_equal_models, moved, snapshot

from trl_gist import GistConfig
from trl_gist.common.files import json_digest
from trl_gist.pair import PairConfig
from trl_gist.trainer.checkpoints.manifest import MANIFEST_FILE, Manifest
from trl_gist.trainer.recipe import GROUPS, REFUSED, check_recipe, run_recipe


# Of every setting that a resume may not change another value than that of `make_args`
OTHERS = {
    "context_length": 32,
    "target_length": 9,
    "last_k": 5,
    "window_stride": 16,
    "max_windows_per_document": 2,
    "windows_per_document": 2,
    "summarizer_prompt": "Shorten: {context}\nGist:",
    "generator_prompt": "{gist}\n\n{last_k}",
    "chat_template_kwargs": {"enable_thinking": False},
    "max_completion_length": 7,
    "gist_length_range": [2, 6],
    "target_kinds": {"fact": 3, "continuation": 1},
    "targets_per_context": 4,
    "target_floor": None,
    "parse_special_tokens": True,
    "cue_length": 6,
    "far_offset": 64,
    "recall_age": [1, 1],
}
REFUSED_FIELDS = [name for group in REFUSED for name in GROUPS[group]]
WARNED_FIELDS = [name for group in ("rates", "method") for name in GROUPS[group]]


def test_each_setting_is_in_one_group():
    """A new one has to be put into one: may a resume change it?"""
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {field.name for field in fields(GistConfig)}
    assert set(OTHERS) == set(REFUSED_FIELDS)


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_other_windows_prompts_and_targets_are_refused_and_named(make_args, name, tmp_path):
    both = {"windows_per_document": 2} if name == "recall_age" else {}  # which is of walks alone
    was = run_recipe(make_args(**both))
    now = run_recipe(make_args(**both, **{name: OTHERS[name]}))
    with pytest.raises(ValueError, match="was trained with another recipe") as refusal:
        check_recipe(tmp_path / "checkpoint-4", was, now)
    assert f"`{name}` was {was[name]!r}, now {now[name]!r}" in str(refusal.value)
    assert str(tmp_path / "checkpoint-4") in str(refusal.value)


@pytest.mark.parametrize("name", WARNED_FIELDS)
def test_other_rates_are_warned_of_and_told(make_args, name, tmp_path, caplog):
    was = run_recipe(make_args())
    assert check_recipe(tmp_path, was, {**was, name: "another"}) == {name: [was[name], "another"]}
    assert f"`{name}` was {was[name]!r}, now 'another'" in caplog.text


def test_the_same_recipe_in_other_words_is_the_same(make_args, tmp_path, caplog):
    was = run_recipe(make_args())
    words = {"window_stride": 32, "target_kinds": {"continuation": 2 - 1}, "chat_template_kwargs": {}}
    now = run_recipe(make_args(**words, output_dir=str(tmp_path / "moved"), logging_steps=7, save_total_limit=3))
    assert json.loads(json.dumps(was)) == now
    assert check_recipe(tmp_path, was, now) == {} and not caplog.text


def test_a_gist_length_to_reach_is_a_rate_unless_the_prompt_shows_as_many_tokens(make_args, tmp_path):
    was, now = (run_recipe(make_args(target_gist_length=length)) for length in (3, 5))
    assert check_recipe(tmp_path, was, now) == {"target_gist_length": [3, 5]}
    prompt = "{before_last_k}{last_k} ... {tail}\nGist:"
    was, now = (run_recipe(make_args(target_gist_length=length, summarizer_prompt=prompt)) for length in (3, 5))
    with pytest.raises(ValueError, match="`tail_length` was 3, now 5"):
        check_recipe(tmp_path, was, now)


def test_a_setting_that_only_one_version_has_is_not_compared(make_args, tmp_path, caplog):
    recipe = run_recipe(make_args())
    without = {name: value for name, value in recipe.items() if name not in ("far_offset", "beta")}
    assert check_recipe(tmp_path, without, recipe) == check_recipe(tmp_path, recipe, without) == {}
    assert not caplog.text


# ---- Through training ----


@pytest.fixture
def make_run(make_trainer, lora, tmp_path):
    def make(name="run", **args):
        values = {"output_dir": str(tmp_path / name), "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        return make_trainer(peft_config=lora, args={**values, **args})

    return make


def before_recipes(checkpoint: Path):
    """Makes a checkpoint one of a trl_gist whose manifests did not say the recipe."""
    values = json.loads((checkpoint / MANIFEST_FILE).read_text())
    del values["recipe"], values["recipe_changes"]
    format = values.pop("format")
    del values["sha256"]
    content = {"format": format, "sha256": json_digest(values), **values}
    (checkpoint / MANIFEST_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize("source", ["newest", "named"])
def test_a_resume_with_other_windows_is_refused_and_moves_nothing(make_run, tmp_path, source):
    make_run().train()
    before_recipes(tmp_path / "run" / "checkpoint-2")  # which nobody asked to go back to
    trainer = make_run(last_k=5, max_completion_length=5, learning_rate=1e-2, max_steps=6)
    before = snapshot(trainer.model), snapshot(trainer.generator)
    with pytest.raises(ValueError, match="`last_k` was 4, now 5; `max_completion_length` was 6, now 5") as refusal:
        trainer.train(resume_from_checkpoint=source == "newest" or str(tmp_path / "run" / "checkpoint-4"))
    assert f"{tmp_path / 'run' / 'checkpoint-4'} was trained with another recipe" in str(refusal.value)
    assert not moved(before[0], trainer.model) and not moved(before[1], trainer.generator)


def test_a_resume_with_other_rates_is_warned_of_and_the_pair_says_both(make_run, tmp_path, caplog):
    make_run(max_steps=2).train()
    resumed = make_run(max_steps=4, length_penalty=0.5)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert "`length_penalty` was 0.0001, now 0.5; `max_steps` was 2, now 4" in caplog.text
    last = make_run(max_steps=6, length_penalty=0.5, generator_learning_rate=1e-2)
    last.train(resume_from_checkpoint=True)
    last.save_model()
    changes = [
        {"step": 2, "length_penalty": [1e-4, 0.5], "max_steps": [2, 4]},
        {"step": 4, "max_steps": [4, 6], "generator_learning_rate": [1e-3, 1e-2]},
    ]
    assert PairConfig.load(tmp_path / "run").recipe["changed_on_resume"] == changes
    assert Manifest.load(tmp_path / "run" / "checkpoint-6").recipe_changes == changes
    assert "changed_on_resume" not in PairConfig.load(tmp_path / "run" / "checkpoint-2").recipe


def test_a_checkpoint_from_before_recipes_goes_on_and_other_settings_are_warned_of(make_run, tmp_path, caplog):
    whole = make_run("whole")
    whole.train()
    make_run(max_steps=2, lr_scheduler_type="linear").train()
    before_recipes(tmp_path / "run" / "checkpoint-2")
    resumed = make_run(max_steps=4)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert "`max_steps` was 2, now 4" in caplog.text
    before_recipes(tmp_path / "run" / "checkpoint-4")
    caplog.clear()
    again = make_run(max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert "was trained with" not in caplog.text
    assert_equal_models(again.model, resumed.model)
    before_recipes(tmp_path / "whole" / "checkpoint-4")
    other = make_run("whole", last_k=5, max_steps=6)
    other.train(resume_from_checkpoint=True)
    assert "`last_k` was 4, now 5" in caplog.text


def test_the_guide_names_what_a_resume_may_not_change():
    guide = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    missing = [name for name in (*REFUSED_FIELDS, *GROUPS["rates"]) if f"`{name}`" not in guide]
    assert not missing
