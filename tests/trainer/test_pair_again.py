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


"""A saved pair goes on training as the pair that it is: both halves, and the teacher that they were trained with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checks import assert_equal_models, assert_same, moved, snapshot
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from tiny import make_model

from trl_gist import GistCompactor
from trl_gist.models import loading
from trl_gist.models.roles import storage_pointers


@pytest.fixture
def save_pair(make_trainer, lora, tmp_path):
    """A pair whose halves have both moved, from the teacher and from one another."""

    def save(with_lora, **args):
        trainer = make_trainer(
            peft_config=lora if with_lora else None, args={"output_dir": str(tmp_path / "first"), **args}
        )
        for role, seed in ((trainer.model, 1), (trainer.generator, 2)):
            torch.manual_seed(seed)
            for parameter in role.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.1)
        trainer.save_model(str(tmp_path / "my pair"))
        return trainer, str(tmp_path / "my pair")

    return save


def again(make_trainer, pair, tmp_path, **kwargs):
    args = {"output_dir": str(tmp_path / "second"), "max_steps": 1, **kwargs.pop("args", {})}
    return make_trainer(pair, args=args, **kwargs)


@pytest.fixture
def base(checkpoint):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def test_both_halves_and_the_teacher_of_a_pair_that_was_trained_whole(make_trainer, save_pair, base, tmp_path):
    first, pair = save_pair(False)
    trainer = again(make_trainer, pair, tmp_path)
    assert_equal_models(first.model, trainer.model)
    assert_equal_models(first.generator, trainer.generator)
    assert_equal_models(base, trainer.teacher)
    assert trainer.base_models["teacher"] == first.base_models["teacher"]
    trainer.train()
    assert moved(snapshot(first.model), trainer.model) and moved(snapshot(first.generator), trainer.generator)
    assert_equal_models(base, trainer.teacher)


def test_both_adapters_of_a_pair_over_one_base(make_trainer, save_pair, base, tmp_path):
    first, pair = save_pair(True)
    trainer = again(make_trainer, pair, tmp_path)
    for one, other in ((first.model, trainer.model), (first.generator, trainer.generator)):
        assert_same(dict(get_peft_model_state_dict(one)), dict(get_peft_model_state_dict(other)))
        assert storage_pointers(other) > storage_pointers(trainer.teacher), "the base is in memory once"
    assert_equal_models(base, trainer.teacher)
    before = snapshot(trainer.model), snapshot(trainer.generator)
    trainer.train()
    for was, role in zip(before, (trainer.model, trainer.generator), strict=True):
        assert moved(was, role) == {name for name, p in role.named_parameters() if p.requires_grad and "lora_" in name}
    assert_equal_models(base, trainer.teacher)
    trainer.save_model(str(tmp_path / "third"))
    compactor = GistCompactor.from_pretrained(tmp_path / "third", device="cpu")
    assert compactor.pair.base_models == first.base_models
    for role, half in ((trainer.model, compactor.summarizer), (trainer.generator, compactor.generator)):
        assert_same(dict(get_peft_model_state_dict(role)), dict(get_peft_model_state_dict(half)))


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_run_on_a_pair_goes_on_from_its_checkpoint(make_trainer, save_pair, tmp_path, with_lora):
    _, pair = save_pair(with_lora)
    args = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    straight = again(make_trainer, pair, tmp_path, args=args)
    straight.train()
    checkpoint = tmp_path / "second" / "checkpoint-1"
    resumed = again(make_trainer, pair, tmp_path, args={**args, "output_dir": str(tmp_path / "resumed")})
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_equal_models(straight.model, resumed.model)
    assert_equal_models(straight.generator, resumed.generator)
    # A checkpoint is a pair, too
    trainer = again(make_trainer, str(tmp_path / "second" / "checkpoint-2"), tmp_path)
    assert_equal_models(straight.model, trainer.model)
    assert_equal_models(straight.generator, trainer.generator)
    assert_equal_models(straight.teacher, trainer.teacher)


def test_new_adapters_on_a_pair_that_was_trained_whole_stand_on_its_halves(
    make_trainer, save_pair, base, lora, tmp_path
):
    first, pair = save_pair(False)
    trainer = again(make_trainer, pair, tmp_path, peft_config=lora)
    for one, other in ((first.model, trainer.model), (first.generator, trainer.generator)):
        assert_equal_models(one, loading.clone_with_shared_parameters(other))
    assert_equal_models(base, trainer.teacher)


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_roles_that_are_given_are_those(make_trainer, save_pair, tokenizer, tmp_path, with_lora):
    first, pair = save_pair(with_lora)
    generator, teacher = make_model(tokenizer, seed=7), make_model(tokenizer, seed=8)
    for model in (generator, teacher):
        path = str(tmp_path / f"other-{id(model)}")
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        model.path = path
    trainer = again(make_trainer, pair, tmp_path, generator=generator.path, teacher=teacher.path)
    own = trainer.generator
    assert_equal_models(generator, loading.clone_with_shared_parameters(own) if with_lora else own)
    assert_equal_models(teacher, trainer.teacher)
    assert_equal_models(first.model, trainer.model) if not with_lora else None


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_pair_as_the_generator_stands_for_its_generator(make_trainer, save_pair, checkpoint, tmp_path, with_lora):
    first, pair = save_pair(with_lora)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if with_lora else None
    trainer = again(make_trainer, checkpoint, tmp_path, generator=pair, peft_config=lora)
    if with_lora:
        assert_same(
            dict(get_peft_model_state_dict(first.generator)), dict(get_peft_model_state_dict(trainer.generator))
        )
    else:
        assert_equal_models(first.generator, trainer.generator)
    assert trainer.base_models["teacher"] == checkpoint


def test_what_a_pair_cannot_be_is_refused(make_trainer, save_pair, checkpoint, lora, tmp_path):
    _, pair = save_pair(True)
    with pytest.raises(ValueError, match=r"`teacher` \('.*my pair'\) is a saved pair.*its own teacher is '"):
        again(make_trainer, checkpoint, tmp_path, teacher=pair, peft_config=lora)
    with pytest.raises(
        ValueError, match="is a pair of adapters, which go on training.*Leave it out.*merge_and_unload"
    ):
        again(make_trainer, pair, tmp_path, peft_config=lora)
    with pytest.raises(ValueError, match="`generator_peft_config` asks for another"):
        again(make_trainer, pair, tmp_path, generator_peft_config=lora)


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_pair_without_a_half_or_its_teacher_is_named(make_trainer, save_pair, tokenizer, tmp_path, with_lora):
    _, pair = save_pair(with_lora)
    config = Path(pair, "gist_config.json")
    values = json.loads(config.read_text())
    moved_away = str(tmp_path / "gone")
    config.write_text(json.dumps({**values, "base_models": {**values["base_models"], "teacher": moved_away}}))
    with pytest.raises(ValueError, match=f"the teacher '{moved_away}', which could not be loaded. Pass `teacher`"):
        again(make_trainer, pair, tmp_path)
    shutil.rmtree(Path(pair, "generator"))
    with pytest.raises(ValueError, match="The pair lacks its generator"):
        again(make_trainer, pair, tmp_path)


def test_prompts_that_are_others_are_said(make_trainer, save_pair, tmp_path, caplog):
    _, pair = save_pair(True)
    again(make_trainer, pair, tmp_path)
    assert "goes on as it was not trained" not in caplog.text
    again(make_trainer, pair, tmp_path, args={"last_k": 3, "summarizer_prompt": "Shorten: {context}"})
    assert "`last_k` was 4 and is 3" in caplog.text
    assert "and is 'Shorten: {context}'" in caplog.text


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_pair_on_the_hub(make_trainer, save_pair, tmp_path, monkeypatch, with_lora):
    first, pair = save_pair(with_lora)
    asked = []

    def download(repo_id, filename, revision=None):
        asked.append((repo_id, filename, revision))
        if repo_id != "someone/pair":
            raise LocalEntryNotFoundError("no such file")

    monkeypatch.setattr(loading, "hf_hub_download", download)
    monkeypatch.setattr(loading, "snapshot_download", lambda repo_id, **kwargs: pair)
    trainer = again(
        make_trainer, "someone/pair", tmp_path, args={"model_init_kwargs": {"revision": "v2", "dtype": "float32"}}
    )
    assert isinstance(trainer.model, PeftModel) == with_lora
    if with_lora:
        for one, other in ((first.model, trainer.model), (first.generator, trainer.generator)):
            assert_same(dict(get_peft_model_state_dict(one)), dict(get_peft_model_state_dict(other)))
    else:
        assert_equal_models(first.model, trainer.model)
        assert_equal_models(first.generator, trainer.generator)
    assert_equal_models(first.teacher, trainer.teacher)
    assert ("someone/pair", "gist_config.json", "v2") in asked
    assert loading.pair_directory("someone/else") is None


def test_what_needs_no_model_is_refused_before_a_pair_is_loaded(make_trainer, save_pair, lora, tmp_path, monkeypatch):
    _, pair = save_pair(True)
    monkeypatch.setattr(loading.HalfLoader, "load_to_train", lambda *_: pytest.fail("a model is loaded"))
    monkeypatch.setattr("trl.generation.vllm_generation.is_vllm_available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="vllm is missing, with which `use_vllm` samples"):
        again(make_trainer, pair, tmp_path, args={"use_vllm": True})
    with pytest.raises(ValueError, match="`compressor` writes gists for a generator trained alone"):
        again(make_trainer, pair, tmp_path, compressor=object())
    with pytest.raises(ValueError, match="which TRL would take for a reward model"):
        again(make_trainer, pair, tmp_path, reward_funcs="kl_gain")
    for generator in (None, pair):
        with pytest.raises(ValueError, match="is a pair of adapters, which go on training"):
            again(make_trainer, pair, tmp_path, generator=generator, peft_config=lora)
