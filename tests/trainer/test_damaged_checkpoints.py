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

"""Every damaged or foreign checkpoint is refused by name, nothing of it is loaded, and a resume takes the one before."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from checks import moved, snapshot
from datasets import Dataset
from peft import LoraConfig
from tiny import make_documents, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, Trainer

from trl_gist import GistConfig, GistTrainer
from trl_gist.trainer.checkpoints.manifest import MANIFEST_FILE, Manifest


def build(output_dir, model, lora_rank=4, **kwargs):
    args = kwargs.pop("args", {})
    values = {
        **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6, "cold_start_steps": 0},
        **{"num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 3, "save_steps": 1},
        **{"report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False},
        **{"disable_tqdm": True, "logging_steps": 1, "seed": 7, **args},
    }
    return GistTrainer(
        model=model,
        args=GistConfig(output_dir=str(output_dir), **values),
        train_dataset=Dataset.from_dict({"text": make_documents(6)}),
        peft_config=LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM") if lora_rank else None,
        **kwargs,
    )


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """A run of three steps, each saved."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    build(directory, checkpoint).train()
    return directory


@pytest.fixture(scope="module")
def trainer_of_the_run(checkpoint, tmp_path_factory):
    return build(tmp_path_factory.mktemp("other") / "run", checkpoint)


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the run, to damage."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def resumes_from(monkeypatch):
    """What `resume_from_checkpoint=True` takes in a folder: what is handed to `Trainer.train`, which then loads it."""

    def resumed(trainer, run):
        taken = []
        monkeypatch.setattr(
            Trainer, "train", lambda self, resume_from_checkpoint: taken.append(resume_from_checkpoint)
        )
        monkeypatch.setattr(trainer.args, "output_dir", str(run))
        trainer.train(resume_from_checkpoint=True)
        monkeypatch.undo()
        return Path(taken[0])

    return resumed


def cut(name, left=0.5):
    def damage(checkpoint):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[: int(len(content) * left)])

    return damage


def flip(name):
    def damage(checkpoint):
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) * 2 // 3] ^= 1
        (checkpoint / name).write_bytes(content)

    return damage


def remove(name):
    def damage(checkpoint):
        path = checkpoint / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def edit_manifest(**changes):
    def damage(checkpoint):
        path = checkpoint / MANIFEST_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def add_half_an_index(checkpoint):
    (checkpoint / "generator" / "adapter_model.safetensors.index.json").write_text('{"weight_map": {"la')


def save_without(*names):
    """A checkpoint that was completed without some of its files."""

    def damage(checkpoint):
        manifest = Manifest.load(checkpoint)
        for name in (*names, MANIFEST_FILE):
            remove(name)(checkpoint)
        manifest.complete(checkpoint)

    return damage


S, G = "adapter_model.safetensors", "generator/adapter_model.safetensors"
DAMAGES = {
    "S cut off": (cut(S), f"/{S} is damaged: it has .* bytes, but .* were written"),
    "S a byte short": (cut(S, 0.9999), f"/{S} is damaged: it has"),
    "S flipped": (flip(S), f"checkpoint-3/{S} is damaged: its checksum"),
    "G flipped": (flip(G), f"{G} is damaged: its checksum"),
    "S's optimizer flipped": (flip("optimizer.pt"), "checkpoint-3/optimizer.pt is damaged: its checksum"),
    "G's optimizer flipped": (flip("generator/optimizer.pt"), "generator/optimizer.pt is damaged: its checksum"),
    "G gone": (remove("generator"), "lacks the generator's half: .*generator/.* is missing"),
    "G's weights gone": (remove(G), f"lacks the generator's half: .*{G} is missing"),
    "S's optimizer gone": (remove("optimizer.pt"), "lacks the summarizer's half: .*/optimizer.pt is missing"),
    "S's schedule gone": (remove("scheduler.pt"), "lacks the summarizer's half: .*/scheduler.pt is missing"),
    "random state gone": (remove("rng_state.pth"), "rng_state.pth is missing"),
    "trainer's state cut off": (cut("trainer_state.json"), "trainer_state.json is damaged"),
    "λ gone": (remove("length_penalty.json"), "length_penalty.json is missing"),
    "alarms gone": (remove("alarms.json"), "alarms.json is missing"),
    "gist_config empty": (cut("gist_config.json", 0), "gist_config.json is damaged: it has 0 bytes"),
    "half an index added": (add_half_an_index, r"index\.json is not of the checkpoint"),
    "no manifest": (remove(MANIFEST_FILE), f"no complete checkpoint: .*{MANIFEST_FILE} is missing"),
    "manifest cut off": (cut(MANIFEST_FILE), f"{MANIFEST_FILE} is damaged: it cannot be read"),
    "manifest of binary": (lambda c: (c / MANIFEST_FILE).write_bytes(b"\xff\x00"), f"{MANIFEST_FILE} is damaged"),
    "manifest of no manifest": (lambda c: (c / MANIFEST_FILE).write_text("[]"), f"{MANIFEST_FILE} is damaged"),
    "manifest's step edited": (edit_manifest(step=2), f"{MANIFEST_FILE} is damaged: it is not what was written"),
    "newer format": (
        edit_manifest(format=2, version="9.9"),
        "has format 2, written by trl_gist 9.9; this .* format 1",
    ),
    "older format": (edit_manifest(format=0, version="0.0"), "has format 0, written by trl_gist 0.0"),
    "model only": (save_without("optimizer.pt"), "saved without optimizer.pt, as with `save_only_model=True`"),
    "no λ was saved": (save_without("length_penalty.json"), "saved without length_penalty.json"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_taken(
    run, trainer_of_the_run, resumes_from, caplog, damage, message
):
    trainer, damaged = trainer_of_the_run, run / "checkpoint-3"
    assert resumes_from(trainer, run) == damaged, "whole, it is the one to take"
    damage(damaged)
    before = snapshot(trainer.model), snapshot(trainer.generator)
    with pytest.raises(ValueError, match=message) as refusal:
        trainer.train(resume_from_checkpoint=str(damaged))
    assert str(damaged) in str(refusal.value)
    with caplog.at_level(logging.WARNING):
        assert resumes_from(trainer, run) == run / "checkpoint-2"
    assert f"Skipped checkpoint-3: {refusal.value}" in caplog.text
    assert not moved(before[0], trainer.model) and not moved(before[1], trainer.generator)


def test_where_every_checkpoint_is_damaged_each_is_named(run, trainer_of_the_run, monkeypatch):
    for step, name in enumerate(("optimizer.pt", G, "generator"), start=1):
        remove(name)(run / f"checkpoint-{step}")
    monkeypatch.setattr(trainer_of_the_run.args, "output_dir", str(run))
    with pytest.raises(ValueError, match="No valid checkpoint found") as refusal:
        trainer_of_the_run.train(resume_from_checkpoint=True)
    assert all(str(run / f"checkpoint-{step}") in str(refusal.value) for step in (1, 2, 3))


def test_a_resume_that_skips_a_damaged_checkpoint_ends_where_the_whole_run_did(run, checkpoint):
    before = (run / "checkpoint-3" / S).read_bytes(), (run / "checkpoint-3" / G).read_bytes()
    flip(G)(run / "checkpoint-3")
    trainer = build(run, checkpoint)
    trainer.train(resume_from_checkpoint=True)
    assert ((run / "checkpoint-3" / S).read_bytes(), (run / "checkpoint-3" / G).read_bytes()) == before
    Manifest.load(run / "checkpoint-3").check_files(run / "checkpoint-3")


def test_a_folder_that_is_not_there_is_named(trainer_of_the_run, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}/checkpoint-9 is no checkpoint: there is no such folder"):
        trainer_of_the_run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_an_evaluation_or_a_hidden_file_beside_a_checkpoints_files_does_not_damage_it(
    run, trainer_of_the_run, resumes_from
):
    (run / "checkpoint-3" / "evaluation").mkdir()
    (run / "checkpoint-3" / "evaluation" / "rows.jsonl").write_text("{}\n")
    (run / "checkpoint-3" / ".cache").mkdir()
    (run / "checkpoint-3" / ".cache" / "lock").write_text("")
    assert resumes_from(trainer_of_the_run, run) == run / "checkpoint-3"


# ---- Another run's checkpoint ----


@pytest.fixture
def other_base(tokenizer, tmp_path):
    path = tmp_path / "other-base"
    make_model(tokenizer, seed=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def refused(trainer, run, message):
    before = snapshot(trainer.model), snapshot(trainer.generator)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    with pytest.raises(ValueError, match=f"No valid checkpoint found(.|\n)*{message}"):
        trainer.args.output_dir = str(run)
        trainer.train(resume_from_checkpoint=True)
    assert not moved(before[0], trainer.model) and not moved(before[1], trainer.generator)


def test_a_checkpoint_of_another_base_model_is_refused(run, other_base, checkpoint, tmp_path):
    message = f"does not fit the summarizer: .* base model '{checkpoint}', and those of '{other_base}' are others"
    refused(build(tmp_path / "new", other_base), run, message)


def test_a_checkpoint_of_another_teacher_is_refused(run, other_base, checkpoint, tmp_path):
    message = f"does not fit the teacher: .* base model '{checkpoint}', and those of '{other_base}' are others"
    refused(build(tmp_path / "new", checkpoint, teacher=other_base), run, message)


def test_a_base_model_that_has_moved_is_the_same(run, checkpoint, tmp_path, resumes_from):
    moved_to = shutil.copytree(checkpoint, tmp_path / "moved")
    assert resumes_from(build(tmp_path / "new", str(moved_to)), run) == run / "checkpoint-3"


@pytest.fixture
def one_row_changed(checkpoint, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.lm_head.weight.data[8] *= 1.5
    path = tmp_path / "one-row-changed"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_a_checkpoint_of_a_base_with_another_row_is_refused(run, one_row_changed, tmp_path):
    refused(
        build(tmp_path / "new", one_row_changed), run, "does not fit the summarizer: .* frozen weights of base model"
    )


def test_a_checkpoint_of_another_vocabulary_is_refused(run, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["cholera"])
    trainer = build(tmp_path / "new", make_model(tokenizer), processing_class=tokenizer)
    refused(trainer, run, f"another vocabulary, of {len(tokenizer) - 1} tokens; this run's has {len(tokenizer)}")


def test_a_checkpoint_of_another_adapter_rank_is_refused(run, checkpoint, tmp_path):
    refused(
        build(tmp_path / "new", checkpoint, lora_rank=2), run, "does not fit the summarizer.*another `peft_config`"
    )


def test_a_checkpoint_of_adapters_is_no_checkpoint_of_a_full_fine_tuning(run, checkpoint, tmp_path):
    refused(build(tmp_path / "new", checkpoint, lora_rank=0), run, "do not fit the summarizer: .* `peft_config`")


def test_a_checkpoint_of_a_full_fine_tuning_is_no_checkpoint_of_adapters(checkpoint, tmp_path):
    build(tmp_path / "run", checkpoint, lora_rank=0, args={"save_steps": 3}).train()
    refused(build(tmp_path / "new", checkpoint), tmp_path / "run", "does not fit the summarizer: it holds no adapter")


def test_full_weights_of_another_size_are_refused(checkpoint, tokenizer, tmp_path):
    build(tmp_path / "run", checkpoint, lora_rank=0, args={"save_steps": 3}).train()
    wider = build(
        tmp_path / "new", make_model(tokenizer, intermediate_size=64), lora_rank=0, processing_class=tokenizer
    )
    refused(wider, tmp_path / "run", "do not fit the summarizer: 6 of")
