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

"""What is saved loads with plain transformers and peft, and is the pair that was trained."""

import json
import os

import pytest
import torch
from checks import assert_equal_models, moved, snapshot
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_gist import GistCompactor
from trl_gist.pair import PairConfig


both_ways = pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])


@pytest.fixture
def train(make_trainer, lora, documents):
    def train(with_lora, **args):
        trainer = make_trainer(
            peft_config=lora if with_lora else None, eval_dataset=documents.select(range(4)), args=args
        )
        trainer.train()
        return trainer

    return train


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45).view(2, 20)).logits


@both_ways
def test_saved_halves_load_with_plain_transformers_and_give_the_same_logits(train, tmp_path, with_lora):
    trainer = train(with_lora, learning_rate=1e-2, generator_learning_rate=1e-2)
    trainer.save_model(str(tmp_path / "pair"))
    trained = {"": trainer.model, "generator": trainer.generator}
    assert not torch.allclose(logits(trainer.model), logits(trainer.generator))
    for directory, model in trained.items():
        path = str(tmp_path / "pair" / directory)
        loaded = AutoModelForCausalLM.from_pretrained(path)
        assert torch.equal(logits(loaded), logits(model))
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert tokenizer.get_vocab() == trainer.processing_class.get_vocab()
        assert tokenizer.chat_template == trainer.processing_class.chat_template
        if with_lora:
            assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(path)), logits(model))


@pytest.mark.parametrize("lora_first", [True, False])
def test_a_pair_that_is_saved_over_one_of_another_kind_is_the_new_one(make_trainer, lora, tmp_path, lora_first):
    folder = tmp_path / "pair"
    for with_lora in (lora_first, not lora_first):
        trainer = make_trainer(peft_config=lora if with_lora else None)
        trainer.save_model(str(folder))
        loaded = GistCompactor.from_pretrained(folder, device="cpu")
        assert isinstance(loaded.generator, PeftModel) == isinstance(loaded.summarizer, PeftModel) == with_lora
        # As of a larger model, saved in parts; and what somebody keeps there
        for half in (folder, folder / "generator"):
            for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "mine.safetensors"):
                (half / name).write_bytes(b"x")
    trainer.save_model(str(folder))
    for half in (folder, folder / "generator"):
        weights = {path.name for path in half.glob("*model*.*") if "safetensors" in path.name}
        assert weights == {"adapter_model.safetensors" if with_lora else "model.safetensors"}
        assert (half / "mine.safetensors").exists() and (half / "adapter_config.json").exists() == with_lora


@both_ways
@pytest.mark.parametrize("stage", [1, 2])
def test_tied_weights_are_saved_once_under_deepspeed_too(make_trainer, lora, tmp_path, monkeypatch, with_lora, stage):
    """As tests/models/test_engines.py asks of two processes, without them: under these stages every rank has all weights."""
    trainer = make_trainer(peft_config=lora if with_lora else None)
    trainer.save_model(str(tmp_path / "plain"))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr("trl_gist.trainer.gist_trainer.zero_stage", lambda accelerator: stage)
    trainer.save_model(str(tmp_path / "zero"))
    file = "adapter_model.safetensors" if with_lora else "model.safetensors"
    for half in ("", "generator"):
        plain, zero = (load_file(tmp_path / name / half / file) for name in ("plain", "zero"))
        assert plain.keys() == zero.keys() and "lm_head.weight" not in zero
        assert all(torch.equal(value, zero[name]) for name, value in plain.items())


@both_ways
def test_a_checkpoint_loads_as_a_saved_pair_does(train, tmp_path, with_lora):
    trainer = train(with_lora, save_strategy="steps", save_steps=2)
    for directory, model in (("", trainer.model), ("generator", trainer.generator)):
        loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "run" / "checkpoint-2" / directory))
        assert torch.equal(logits(loaded), logits(model))


@both_ways
def test_a_saved_pair_holds_no_pickle(train, tmp_path, with_lora):
    train(with_lora).save_model(str(tmp_path / "pair"))
    weights = "adapter_model.safetensors" if with_lora else "model.safetensors"
    for directory in (tmp_path / "pair", tmp_path / "pair" / "generator"):
        files = {path.name for path in directory.iterdir() if path.is_file()}
        assert weights in files
        assert {os.path.splitext(name)[1] for name in files} <= {".safetensors", ".json", ".md", ".jinja", ".txt"}
    with safe_open(tmp_path / "pair" / weights, framework="pt") as file:
        assert any("lora_" in name for name in file.keys()) == with_lora  # noqa: SIM118


def test_with_lora_only_adapters_are_saved(train, tmp_path):
    train(True).save_model(str(tmp_path / "pair"))
    for directory in (tmp_path / "pair", tmp_path / "pair" / "generator"):
        with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
            assert all("lora_" in name for name in file.keys())  # noqa: SIM118


def test_saving_changes_neither_half(train, tmp_path):
    trainer = train(True)
    before = snapshot(trainer.model), snapshot(trainer.generator)
    trainer.save_model(str(tmp_path / "pair"))
    assert not moved(before[0], trainer.model) and not moved(before[1], trainer.generator)


# ---- What is said about the pair ----


def test_gist_config_holds_what_the_pair_needs_and_how_it_was_made(train, checkpoint, tmp_path):
    trainer = train(True, eval_strategy="steps", eval_steps=1)
    trainer.save_model(str(tmp_path / "pair"))
    pair = PairConfig.load(tmp_path / "pair")
    assert (pair.context_length, pair.target_length, pair.last_k, pair.max_gist_length) == (24, 8, 4, 6)
    assert pair.summarizer_prompt == trainer.args.summarizer_prompt
    assert pair.base_models == dict.fromkeys(("summarizer", "generator", "teacher"), checkpoint)
    assert pair.step == 2
    assert pair.recipe["generator_learning_rate"] == 1e-3 and pair.recipe["gist_dropout"] == 0.1
    last = [entry for entry in trainer.state.log_history if "eval_teacher_kl" in entry][-1]
    assert pair.measures["teacher_kl"] == last["eval_teacher_kl"]
    assert pair.measures["gap_closed_shuffled_se"] == last["eval_gap_closed_shuffled_se"]
    assert len(pair.gists) == 3


def test_model_card_has_recipe_measures_and_three_gists(train, tmp_path):
    trainer = train(True, eval_strategy="steps", eval_steps=2)
    trainer.save_model(str(tmp_path / "my-pair"))
    card = ModelCard.load(tmp_path / "my-pair" / "README.md")
    assert card.data.library_name == "transformers"
    assert {"trl", "trl_gist"} <= set(card.data.tags)
    assert "GistCompactor.from_pretrained" in card.text
    # Measures with their standard errors
    kl, error = trainer.last_measures["teacher_kl"], trainer.last_measures["teacher_kl_se"]
    assert f"| teacher_kl | {kl:.4f} ± {error:.4f} |" in card.text
    for control in ("null", "shuffled", "last_k", "tail"):
        assert f"| gap_closed_{control} | " in card.text
    assert "20 held-out windows of 4 documents" in card.text
    # Three gists, as the model wrote them
    assert len(trainer.last_gists) == 3
    for example in trainer.last_gists:
        assert example["gist"] in card.text and example["context_end"].strip() in card.text
    assert "| `generator_learning_rate` | `0.001` |" in card.text
    assert "| `distillation_loss` | `forward_kl` |" in card.text


def test_model_card_says_so_where_nothing_was_evaluated(make_trainer, lora, tmp_path):
    make_trainer(peft_config=lora).save_model(str(tmp_path / "pair"))
    assert (tmp_path / "pair" / "README.md").read_text().count("None: the run had no `eval_dataset`.") == 2
    assert PairConfig.load(tmp_path / "pair").measures == {}


def test_a_directory_without_a_pair_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no gist pair"):
        PairConfig.load(tmp_path)


def test_a_pair_of_another_version_is_named(train, tmp_path):
    train(True).save_model(str(tmp_path / "pair"))
    path = tmp_path / "pair" / "gist_config.json"
    values = json.loads(path.read_text())
    values["soft_tokens"] = values.pop("last_k")
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="missing \\['last_k'\\], unknown \\['soft_tokens'\\]"):
        PairConfig.load(tmp_path / "pair")


# ---- The best of several ----


@both_ways
def test_loading_the_best_model_at_the_end_loads_both_halves(train, tmp_path, with_lora):
    trainer = train(
        with_lora,
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3},
        # The first checkpoint is the best: a larger KL is asked for, and distillation lowers it
        **{"load_best_model_at_end": True, "metric_for_best_model": "teacher_kl", "greater_is_better": True},
        **{"learning_rate": 1e-2, "generator_learning_rate": 1e-2},
    )
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / "run" / "checkpoint-1")
    for directory, model in (("", trainer.model), ("generator", trainer.generator)):
        loaded = AutoModelForCausalLM.from_pretrained(os.path.join(best, directory))
        last = AutoModelForCausalLM.from_pretrained(str(tmp_path / "run" / "checkpoint-3" / directory))
        assert torch.equal(logits(loaded), logits(model)) and not torch.equal(logits(last), logits(model))


def test_old_checkpoints_are_rotated_with_their_generators(train, tmp_path):
    train(True, save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=3)
    left = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-3"]
    assert all((tmp_path / "run" / name / "generator" / "optimizer.pt").is_file() for name in left)


def test_two_saves_of_one_pair_are_the_same(train, tmp_path):
    trainer = train(False)
    for name in ("one", "two"):
        trainer.save_model(str(tmp_path / name))
    for half in ("", "generator"):
        one, two = (AutoModelForCausalLM.from_pretrained(str(tmp_path / name / half)) for name in ("one", "two"))
        assert_equal_models(one, two)
