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

"""The log of a run holds what was logged, at once, and nothing else: it never touches the run."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from checks import assert_equal_models
from datasets import Dataset, IterableDataset
from tiny import make_documents
from transformers import TrainerCallback, TrainerControl, TrainerState

from trl_gist.common.run_files import read_entries
from trl_gist.trainer import run_log
from trl_gist.trainer.held_out import readable_gists
from trl_gist.trainer.run_log import RunLog


class Killed(Exception):
    pass


class AtStepBegin(TrainerCallback):
    """Calls a function before each step: what is on disk then is what a kill would leave."""

    def __init__(self, action):
        self.action = action

    def on_step_begin(self, args, state, control, **kwargs):
        self.action(state)


@pytest.fixture
def make_run(make_trainer, lora, tmp_path):
    def make(name="run", at_step_begin=None, eval_dataset="held out", **args):
        if eval_dataset == "held out":
            eval_dataset = Dataset.from_dict({"text": make_documents(5, seed=1)})
        return make_trainer(
            train_dataset=Dataset.from_dict({"text": make_documents(4)}),
            eval_dataset=eval_dataset,
            peft_config=lora,
            callbacks=[AtStepBegin(at_step_begin)] if at_step_begin else [],
            args={
                **{"output_dir": str(tmp_path / name), "max_steps": 6, "max_windows_per_document": 2},
                **{"save_strategy": "steps", "save_steps": 2, "gist_samples_steps": 1, **args},
            },
        )

    return make


def entries(trainer, name):
    path = Path(trainer.args.output_dir, "run_log", name)
    return read_entries(path)[0] if path.is_file() else []


def untimed(logs):
    timings = ("time", "runtime", "per_second", "step_time", "preparation", "total_flos")
    return [
        {name: value for name, value in log.items() if not any(word in name for word in timings)}
        for log in logs
        if "train_runtime" not in log
    ]


def kill_at(step):
    def kill(state):
        if state.global_step == step:
            raise Killed

    return kill


# ---- What it holds ----


def test_each_log_is_on_disk_before_the_next_step(make_run):
    seen = []

    def look(state):
        seen.append((entries(trainer, "metrics.jsonl"), list(trainer.state.log_history)))

    trainer = make_run(at_step_begin=look)
    trainer.train()
    assert [len(on_disk) for on_disk, _ in seen] == [0, 1, 2, 3, 4, 5]
    for on_disk, history in (*seen, (entries(trainer, "metrics.jsonl"), trainer.state.log_history)):
        for log, expected in zip(on_disk, history, strict=True):
            expected.pop("total_flos", None)  # the Trainer's own callbacks take it out of the last log
            assert {name: value for name, value in log.items() if name != "time"} == expected


def test_evaluations_before_and_after_training_are_in_one_log(make_run):
    trainer = make_run()
    before, _, after = trainer.evaluate(), trainer.train(), trainer.evaluate()
    logs = [log for log in entries(trainer, "metrics.jsonl") if "eval_gain_over_null" in log]
    assert [(log["step"], log["eval_teacher_kl"]) for log in logs] == [
        (0, before["eval_teacher_kl"]),
        (6, after["eval_teacher_kl"]),
    ]
    assert not list(Path(trainer.args.output_dir).glob("run_log-*"))


def test_run_json_says_what_was_run(make_run, checkpoint):
    trainer = make_run(hub_token="hf_secret", learning_rate=3e-3)
    trainer.train()
    text = Path(trainer.args.output_dir, "run_log", "run.json").read_text()
    run = json.loads(text)
    assert "hf_secret" not in text
    assert run["base_models"] == {"summarizer": checkpoint, "generator": checkpoint, "teacher": checkpoint}
    assert run["changed"]["learning_rate"] == 3e-3 and run["changed"]["context_length"] == 24
    assert "temperature" not in run["changed"] and run["recipe"]["temperature"] == 1.0
    assert run["rewards"] == {"kl_gain": 1.0, "length_penalty": 1e-4}
    assert run["environment"]["torch"] == torch.__version__ and run["environment"]["device"] == "cpu"
    assert run["max_steps"] == 6 and run["ended"]["step"] == 6 and run["resumed"] == []


def test_texts_are_of_whole_characters_whatever_ids_are_given(make_run, tokenizer):
    ids = tokenizer("霍乱水泵🦠콜레라" * 3)["input_ids"]
    held_out = [{"context": ids[cut : cut + 20], "last_k": ids[cut : cut + 7], "target": ids[:4]} for cut in range(4)]
    trainer = make_run(eval_dataset=Dataset.from_list(held_out), gist_samples=4, max_steps=1)
    trainer.train()
    trainer.evaluate()
    for name in ("run.json", "gists.jsonl"):
        assert "\ufffd" not in Path(trainer.args.output_dir, "run_log", name).read_text(encoding="utf-8"), name
    assert {gist["context_end"] for gist in trainer.last_gists} <= {"霍乱", "乱", "乱水"}
    several = [{**row, "window_targets": 2, "gist_ids": [9]} for row in trainer.eval_rows]
    assert not any("\ufffd" in gist["context_end"] for gist in readable_gists(several, tokenizer))


def test_nan_is_null_and_every_line_is_strict_json(make_run):
    trainer = make_run()
    trainer.log({"strange": float("nan"), "unbounded": float("-inf"), "list": [1.0, float("nan")]})
    line = Path(trainer.args.output_dir, "run_log", "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(constant)

    entry = json.loads(line, parse_constant=refuse)
    assert (entry["strange"], entry["unbounded"], entry["list"]) == (None, None, [1.0, None])


def test_other_processes_write_nothing(make_run):
    trainer = make_run()
    callback, state = RunLog(trainer), TrainerState(is_world_process_zero=False)
    trainer.evaluate()
    before = {path: path.read_bytes() for path in Path(trainer.args.output_dir, "run_log").iterdir()}
    for event in ("on_train_begin", "on_step_end", "on_log", "on_evaluate", "on_train_end"):
        getattr(callback, event)(trainer.args, state, TrainerControl(), logs={"loss": 1.0})
    assert {path: path.read_bytes() for path in Path(trainer.args.output_dir, "run_log").iterdir()} == before


# ---- Gists of fixed windows ----


@pytest.mark.parametrize("shared", [True, False], ids=["shared-prefix", "padded-rows"])
def test_training_is_bit_identical_with_and_without_gist_samples(make_run, shared):
    runs = []
    for name, every in (("with", 1), ("without", None)):
        trainer = make_run(name, gist_samples_steps=every, eval_strategy="steps", eval_steps=3)
        trainer.shares_prefix = shared
        trainer.train()
        runs.append((trainer, torch.get_rng_state()))
    (one, one_rng), (other, other_rng) = runs
    assert len(entries(one, "gists.jsonl")) > len(entries(other, "gists.jsonl")) > 0
    assert untimed(one.state.log_history) == untimed(other.state.log_history)
    assert torch.equal(one_rng, other_rng)
    assert_equal_models(one.model, other.model)
    assert_equal_models(one.generator, other.generator)


@pytest.mark.parametrize("shared", [True, False], ids=["shared-prefix", "padded-rows"])
def test_sampled_gists_are_those_of_the_evaluation_at_the_same_step(make_run, shared):
    trainer = make_run(gist_samples_steps=2, eval_strategy="steps", eval_steps=2, learning_rate=1e-2)
    trainer.shares_prefix = shared
    trainer.train()
    evaluated, sampled = {}, {}
    for gist in entries(trainer, "gists.jsonl"):
        (evaluated if "log_prob_gain" in gist else sampled)[gist["step"], gist["window"]] = gist
    assert {step for step, _ in sampled} == {0, 2, 4, 6} and {step for step, _ in evaluated} == {2, 4, 6}
    for place, gist in evaluated.items():
        assert (sampled[place]["gist"], sampled[place]["gist_length"]) == (gist["gist"], gist["gist_length"])
    assert len({gist["gist"] for gist in sampled.values()}) > 4  # the policy moved, and its gists with it


def test_samples_are_taken_as_training_begins_and_ends_and_every_so_often(make_run):
    trainer = make_run(gist_samples_steps=4, gist_samples=2)
    trainer.train()
    assert [gist["step"] for gist in entries(trainer, "gists.jsonl")] == [0, 0, 4, 4, 6, 6]


def test_windows_are_spread_over_documents(make_run):
    names = ["a", "a", "a", "b", "c", "c", "d", "e"]
    assert [names[index] for index in run_log._spread(names, 3)] == ["a", "b", "d"]
    assert run_log._spread(names, 7) == [0, 3, 4, 6, 7, 1, 5]  # a second window only once each document has one
    assert run_log._spread(names, 99) == [0, 3, 4, 6, 7, 1, 5, 2]


@pytest.mark.parametrize("kind", ["map-style", "streaming", "several", "none"])
def test_each_kind_of_eval_dataset_gives_its_windows(make_run, kind):
    rows = [{"text": text, "document_id": f"d{index}"} for index, text in enumerate(make_documents(5, seed=1))]
    held_out = {
        "map-style": Dataset.from_list(rows),
        "streaming": IterableDataset.from_generator(lambda: iter(rows)),
        "several": {"first": Dataset.from_list(rows), "second": Dataset.from_list(rows[:1])},
        "none": None,
    }[kind]
    trainer = make_run(eval_dataset=held_out)
    trainer.train()
    run = json.loads(Path(trainer.args.output_dir, "run_log", "run.json").read_text())
    expected = [] if kind == "none" else ["d0", "d1", "d2", "d3"]
    assert [window["document_id"] for window in run["windows"].values()] == expected
    for name, window in run["windows"].items():
        gists = [gist for gist in entries(trainer, "gists.jsonl") if gist["window"] == name]
        assert [gist["step"] for gist in gists] == list(range(7))
        assert {gist["context_end"] for gist in gists} == {window["last_k"]}
        text = rows[int(window["document_id"][1:])]["text"]
        assert text.startswith(window["context"] + window["target"]) or window["context"] + window["target"] in text


# ---- Several runs and one folder ----


def test_a_resumed_run_leaves_the_log_of_a_run_that_was_never_killed(make_run):
    whole = make_run("whole")
    whole.evaluate()
    whole.train()
    killed = make_run("killed", at_step_begin=kill_at(5))
    killed.evaluate()
    with pytest.raises(Killed):
        killed.train()
    assert [log["step"] for log in entries(killed, "metrics.jsonl")] == [0, 1, 2, 3, 4, 5]  # 5 is beyond checkpoint-4
    resumed = make_run("killed")
    resumed.train(resume_from_checkpoint=True)
    assert untimed(entries(resumed, "metrics.jsonl")) == untimed(entries(whole, "metrics.jsonl"))
    gists = [
        {(gist["step"], gist["window"]): gist["gist"] for gist in entries(run, "gists.jsonl")}
        for run in (whole, resumed)
    ]
    assert gists[0] == gists[1]
    run = json.loads(Path(resumed.args.output_dir, "run_log", "run.json").read_text())
    assert [resume["step"] for resume in run["resumed"]] == [4] and run["ended"]["step"] == 6


def test_a_run_resumed_elsewhere_takes_the_checkpoints_history(make_run):
    first = make_run("first", max_steps=4)
    first.train()
    checkpoint = str(Path(first.args.output_dir, "checkpoint-2"))
    elsewhere = make_run("elsewhere", max_steps=4)
    elsewhere.train(resume_from_checkpoint=checkpoint)
    assert untimed(entries(elsewhere, "metrics.jsonl")) == untimed(entries(first, "metrics.jsonl"))


def test_a_run_from_the_start_sets_another_runs_log_aside(make_run, caplog):
    with pytest.raises(Killed):
        make_run(at_step_begin=kill_at(1)).train()  # before its first checkpoint: the folder is free for another run
    again = make_run()
    folder = Path(again.args.output_dir)
    first = {path.name: path.read_bytes() for path in (folder / "run_log").iterdir()}
    with caplog.at_level(logging.WARNING):
        measured = again.evaluate()
    assert {path.name: path.read_bytes() for path in (folder / "run_log").iterdir()} == first
    again.train()
    assert {path.name: path.read_bytes() for path in (folder / "run_log-1").iterdir()} == first
    logs = entries(again, "metrics.jsonl")
    assert [log["step"] for log in logs] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert logs[0]["eval_teacher_kl"] == measured["eval_teacher_kl"]
    assert "holds the log of another run" in caplog.text and "run_log-1" in caplog.text


def test_evaluating_in_a_finished_runs_folder_leaves_its_log_alone(make_run):
    trainer = make_run()
    trainer.train()
    folder = Path(trainer.args.output_dir, "run_log")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    make_run().evaluate()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- When it cannot be written ----


def test_a_full_disk_costs_the_log_and_one_warning(make_run, caplog):
    whole = make_run("whole")
    whole.train()

    def fill(state):
        log = Path(full.args.output_dir, "run_log", "metrics.jsonl")
        if state.global_step == 2:
            log.rename(log.with_name("kept"))
            os.symlink("/dev/full", log)
        elif state.global_step == 4:  # somebody made room
            log.unlink()
            log.with_name("kept").rename(log)
            with open(log, "a") as file:
                file.write('{"step": 4, "half a li')

    full = make_run("full", at_step_begin=fill)
    with caplog.at_level(logging.WARNING):
        full.train()
    assert [log["step"] for log in entries(full, "metrics.jsonl")] == [1, 2, 5, 6, 6]
    assert caplog.text.count("No space left on device") == 1
    assert_equal_models(whole.model, full.model)


def test_a_folder_that_cannot_be_made_costs_the_log_alone(make_run, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_log, "replace_file", fail)
    trainer = make_run()
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 6 and caplog.text.count("Training goes on") == 1


def test_half_a_line_is_left_out_and_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 0.5}\n\n{"step": 2, "a": 0.\n{"step": 3, "a": 0.7}\n[1]\n{"a": 1}\n{"st')
    assert read_entries(path) == ([{"step": 1, "a": 0.5}, {"step": 3, "a": 0.7}], 4)


@pytest.mark.parametrize("name", ["gist_samples", "gist_samples_steps"])
def test_nonsense_is_refused(make_args, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1.*got 0"):
        make_args(**{name: 0})
