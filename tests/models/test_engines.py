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
Two processes under DDP and under each ZeRO stage take the very steps that one process takes on the whole batch, in both
halves; what they save is the pair, and they go on from it.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from distributed_run import WAYS, make_trainer, result, run, save_checkpoint
from launching import HELPERS, ROOT, ending, finished, launch
from safetensors.torch import load_file
from tiny import make_documents
from tiny_mixtures import make_mixture

from trl_gist import GistCompactor
from trl_gist.scripts.launch import config_names, config_path, split_launch_flags


# Four steps are an epoch: a run resumes inside the second
SETTINGS = {
    **{"dtype": "float32", "max_steps": 7, "gradient_accumulation_steps": 2, "save_steps": 5, "eval_steps": 7},
    # A larger epsilon than its own: of a gradient that is rounding alone, Adam would make a whole step
    **{"optim": "adamw_torch", "adam_epsilon": 1e-6},
}
LOGGED = ("reward", "teacher_kl", "null_teacher_kl", "kl_gain", "loss", "grad_norm", "generator/grad_norm")
LOGGED += ("learning_rate", "generator/learning_rate", "gain_over_shuffled", "gain_over_last_k", "last_k_excess")
LOGGED += ("gist_length", "parroted_share", "degenerate_share")
MEASURES = ("windows", "teacher_kl", "teacher_kl_se", "gain_over_shuffled", "nll_tail", "gap_closed_null_se")
ZERO = ("zero1", "zero2", "zero3")
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
SHORT = {**SETTINGS, "max_windows_per_document": 1, "max_steps": 2, "eval_steps": 2, "ways": ["lora"]}
WALKS = {**SHORT, "windows_per_document": 2}
# The contexts, and so the ranks, have different numbers of targets, also of a kind
TARGETS = {
    **{**SHORT, "context_length": 60, "target_floor": 0.0},
    **{"target_kinds": {"fact": 2, "recall": 1, "far": 1}, "far_offset": 20, "targets_per_context": 5},
}
# Of both windows: what was said in each is asked for there and, of the first, a window later
RECALLED = {
    **{**WALKS, "context_length": 40, "target_floor": None, "last_k": 2, "cue_length": 2, "recall_age": [1, 1]},
    **{"target_kinds": {"fact": 2, "recall": 1}, "targets_per_context": 4},
}
MIXTURE = {**SETTINGS, "max_steps": 3, "save_steps": 2, "eval_strategy": "no", "ways": ["full"]}
# On from a saved pair
AGAIN = {**SETTINGS, "max_steps": 3, "save_steps": 2, "eval_steps": 3}


def save_pair(directory, way):
    """A pair that one process has trained for a step, where [`trained_by_two`] looks for it."""
    save_checkpoint(directory)
    settings = {**SETTINGS, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    trainer = make_trainer(str(directory / "first"), 1, way == "lora", **settings)
    trainer.train()
    trainer.save_model(str(directory / "pair"))


# What two processes train: how, of what, and whether from a checkpoint again too
RUNS = {
    "both ways": (SETTINGS, save_checkpoint, ["straight", "resumed"]),
    "walks": (WALKS, save_checkpoint, ["straight"]),
    "targets": (TARGETS, save_checkpoint, ["straight"]),
    "recalled": (RECALLED, save_checkpoint, ["straight"]),
    "mixture": (
        MIXTURE,
        partial(save_checkpoint, make=partial(make_mixture, name="qwen3_moe")),
        ["straight", "resumed"],
    ),
    **{
        f"{way} pair": ({**AGAIN, "ways": [way]}, partial(save_pair, way=way), ["straight", "resumed"]) for way in WAYS
    },
}
# In one launch, since most of the time goes by until processes have started
TOGETHER = {
    "ddp": ("both ways", "walks", "targets", "recalled"),
    "zero3": ("both ways", "walks", "mixture", "lora pair", "full pair"),
}
each_setting = pytest.mark.parametrize("setting", ["ddp", *ZERO])
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    save_checkpoint(directory)
    results = {}
    for way in WAYS:
        trainer = make_trainer(str(directory / way), 1, way == "lora", **SETTINGS)
        trainer.train()
        results[way] = result(trainer)
    return results


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """Where two processes have trained one of `RUNS` under a setting: once for all tests."""

    @functools.cache
    def launched(setting):
        directory, runs = tmp_path_factory.mktemp(setting), []
        for name in TOGETHER.get(setting, ("both ways",)):
            settings, prepare, names = RUNS[name]
            (directory / name).mkdir()
            prepare(directory / name)
            if name.endswith("pair"):
                settings = {**settings, "pair": str(directory / name / "pair")}
            runs.append({"directory": str(directory / name), "names": names, **settings})
        try:
            train(setting, 2, *runs)
        except Exception as failure:  # for all that ask, without another launch
            return directory, failure
        return directory, None

    def trained(setting, name="both ways"):
        directory, failure = launched(setting)
        if failure is not None:
            raise failure
        return directory / name

    return trained


def train(setting, processes, *runs):
    arguments = [json.dumps({"processes": processes, **each}) for each in runs]
    config = setting if setting in ZERO else None
    launch(HELPERS / "distributed_run.py", *arguments, processes=processes, config=config)


def of_one_process(directory, settings):
    """What one process trains of the same."""
    save_checkpoint(directory)
    settings = {name: value for name, value in settings.items() if name != "ways"}
    trainer = make_trainer(str(directory / "one"), 1, True, **settings)
    trainer.train()
    return result(trainer)


def ranks_of(directory, way, name="straight"):
    return [torch.load(directory / f"{way}-{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_parameters(found, expected, tolerance):
    for role in ("S", "G"):
        for name, parameter in expected[role].items():
            torch.testing.assert_close(
                found[role][name], parameter, rtol=0, atol=tolerance, msg=f"{role}: {name}", check_dtype=False
            )


@each_setting
@each_way
def test_two_processes_take_the_steps_of_one(trained_by_two, one_process, setting, way):
    directory = trained_by_two(setting)
    ranks, one = ranks_of(directory, way), one_process[way]
    assert len(one["logged"]) == 7
    for step, (found, expected) in enumerate(zip(ranks[0]["logged"], one["logged"], strict=True), start=1):
        for name in LOGGED:
            assert found[name] == pytest.approx(expected[name], abs=1e-4), f"{name} at step {step}"
    for name in MEASURES:
        assert ranks[0]["measures"][-1][f"eval_{name}"] == pytest.approx(one["measures"][-1][f"eval_{name}"], abs=1e-4)
    assert one["measures"][-1]["eval_windows"] == 15, "an odd number, which two processes cannot share evenly"
    for role in ("S", "G"):
        for name, parameter in ranks[0][role].items():
            assert torch.equal(ranks[1][role][name], parameter), f"the ranks disagree on {role}'s {name}"
    for rank in ranks:
        assert_same_parameters(rank, one, 1e-4)
        for name, parameter in one["T"].items():
            assert torch.equal(rank["T"][name], parameter), f"the teacher's {name} has changed"
    if setting == "zero3":  # all but the output head, where it has not been released since
        assert all(rank["sharded"][role] >= 19 for rank in ranks for role in "SGT")


@pytest.mark.parametrize("setting", ["ddp", "zero3"])
def test_two_processes_walk_as_one_does(trained_by_two, setting, tmp_path):
    one = of_one_process(tmp_path, WALKS)
    ranks = ranks_of(trained_by_two(setting, "walks"), "lora")
    for step, (found, expected) in enumerate(zip(ranks[0]["logged"], one["logged"], strict=True), start=1):
        for name in (*LOGGED, "later_log_prob_gain", "window_0/log_prob_gain", "window_1/teacher_kl"):
            assert found[name] == pytest.approx(expected[name], abs=1e-4), f"{name} at step {step}"
    assert one["measures"][-1]["eval_windows"] == 6
    for name in MEASURES:
        assert ranks[0]["measures"][-1][f"eval_{name}"] == pytest.approx(one["measures"][-1][f"eval_{name}"], abs=1e-4)
    for rank in ranks:
        assert_same_parameters(rank, one, 1e-4)


def test_two_processes_are_paid_for_several_targets_as_one_is(trained_by_two, tmp_path):
    one = of_one_process(tmp_path, TARGETS)
    ranks = ranks_of(trained_by_two("ddp", "targets"), "lora")
    assert any(log["targets"] % 1 for log in one["logged"])
    of_targets = ("targets", *(f"{kind}/{name}" for kind in ("fact", "recall") for name in ("kl_gain", "exact")))
    for step, (found, expected) in enumerate(zip(ranks[0]["logged"], one["logged"], strict=True), start=1):
        for name in (*LOGGED, *of_targets):
            assert found[name] == pytest.approx(expected[name], abs=1e-4), f"{name} at step {step}"
    for name in (*MEASURES, "exact", "fact/teacher_kl", "recall/nll_gist"):
        assert ranks[0]["measures"][-1][f"eval_{name}"] == pytest.approx(one["measures"][-1][f"eval_{name}"], abs=1e-4)
    for rank in ranks:
        assert_same_parameters(rank, one, 1e-4)


def test_two_processes_ask_for_what_was_said_a_window_ago_as_one_does(trained_by_two, tmp_path):
    one = of_one_process(tmp_path, RECALLED)
    ranks = ranks_of(trained_by_two("ddp", "recalled"), "lora")
    assert any(log["targets"] % 1 for log in one["logged"])
    asked = [f"{of}/{name}" for of in ("age_0", "age_1", "fact") for name in ("kl_gain", "teacher_kl", "exact")]
    for step, (found, expected) in enumerate(zip(ranks[0]["logged"], one["logged"], strict=True), start=1):
        assert found.keys() == expected.keys()
        for name in (*LOGGED, *asked, "targets", "later_log_prob_gain", "window_1/teacher_kl"):
            assert found[name] == pytest.approx(expected[name], abs=1e-4), f"{name} at step {step}"
    for name in ("windows", "teacher_kl_se", "nll_tail", "age_0/teacher_kl", "age_1/teacher_kl", "age_1/nll_gist"):
        assert ranks[0]["measures"][-1][f"eval_{name}"] == pytest.approx(one["measures"][-1][f"eval_{name}"], abs=1e-4)
    for rank in ranks:
        assert_same_parameters(rank, one, 1e-4)


@each_setting
@each_way
def test_what_two_processes_saved_goes_on_as_if_never_stopped(trained_by_two, setting, way):
    directory = trained_by_two(setting)
    for resumed, straight in zip(ranks_of(directory, way, "resumed"), ranks_of(directory, way), strict=True):
        assert_same_parameters(resumed, straight, 1e-6)
        last, expected = resumed["logged"][-1], straight["logged"][-1]
        assert {name: last[name] for name in LOGGED} == pytest.approx(
            {name: expected[name] for name in LOGGED}, abs=1e-6
        )


@each_setting
@each_way
def test_what_two_processes_saved_is_the_pair(trained_by_two, setting, way):
    directory = trained_by_two(setting)
    trained = ranks_of(directory, way)[0]
    compactor = GistCompactor.from_pretrained(directory / way / "checkpoint-7", device="cpu")
    files = [directory / way / "checkpoint-7" / half / WEIGHTS[way] for half in ("", "generator")]
    assert load_file(files[0]).keys() == load_file(files[1]).keys()  # tied weights are there once
    for role, model in (("S", compactor.summarizer), ("G", compactor.generator)):
        saved = model.state_dict()
        assert saved.keys() == trained[role].keys()
        for name, parameter in trained[role].items():
            assert torch.equal(saved[name], parameter), f"{role}: {name}"


def test_a_mixture_of_experts_goes_on_under_zero3(trained_by_two):
    """Its experts are packed in memory and one by one on the disk; the run goes on from what is saved, which is the pair."""
    directory = trained_by_two("zero3", "mixture")
    straight = ranks_of(directory, "full")
    for resumed, expected in zip(ranks_of(directory, "full", "resumed"), straight, strict=True):
        assert expected["sharded"]["S"] > 15
        assert_same_parameters(resumed, expected, 1e-6)
    compactor = GistCompactor.from_pretrained(directory / "full" / "checkpoint-3", device="cpu")
    for role, model in (("S", compactor.summarizer), ("G", compactor.generator)):
        for name, parameter in straight[0][role].items():
            assert torch.equal(model.state_dict()[name], parameter), f"{role}: {name}"


@each_way
def test_a_saved_pair_goes_on_training_under_zero3(trained_by_two, tmp_path, way):
    """Both halves from what was saved, and the teacher that they were trained with; and so from a checkpoint."""
    directory = trained_by_two("zero3", f"{way} pair")
    trainer = make_trainer(str(tmp_path / "one"), 1, way == "lora", **AGAIN, pair=str(directory / "pair"))
    trainer.train()
    one = result(trainer)
    straight = ranks_of(directory, way)
    for step, (found, expected) in enumerate(zip(straight[0]["logged"], one["logged"], strict=True), start=1):
        for name in LOGGED:
            assert found[name] == pytest.approx(expected[name], abs=1e-4), f"{name} at step {step}"
    for rank, resumed in zip(straight, ranks_of(directory, way, "resumed"), strict=True):
        assert all(rank["sharded"][role] > 15 for role in "SGT")
        assert_same_parameters(rank, one, 1e-4)
        assert_same_parameters(resumed, rank, 1e-6)
        for name, parameter in one["T"].items():
            assert torch.equal(rank["T"][name], parameter), f"the teacher's {name} has changed"
    assert any(not torch.equal(one["S"][name], parameter) for name, parameter in one["G"].items())
    saved = GistCompactor.from_pretrained(directory / way / "checkpoint-3", device="cpu")
    assert saved.pair.base_models["teacher"] == str(directory / "checkpoint")
    for role, model in (("S", saved.summarizer), ("G", saved.generator)):
        for name, parameter in straight[0][role].items():
            assert torch.equal(model.state_dict()[name], parameter), f"{role}: {name}"


@pytest.mark.parametrize("setting", ["ddp", "zero2", "zero3"])  # ZeRO-1's checkpoints are converted as ZeRO-2's are
def test_one_process_goes_on_where_two_stopped(trained_by_two, setting):
    """By DeepSpeed's universal checkpoint, which leaves out some of what ZeRO-3 keeps of a whole model: refused."""
    directory = trained_by_two(setting)
    alone = {"directory": str(directory), "names": ["alone"], **SETTINGS}
    if setting == "ddp":
        run(processes=1, **alone)
    else:
        train(setting, 1, alone)
    for way in WAYS:
        if setting == "zero3" and way == "full":
            refusal = (directory / "full-alone.txt").read_text()
            assert "saved by 2 processes" in refusal and "`--num_processes 2`" in refusal
        else:
            alone = torch.load(directory / f"{way}-alone-0.pt", weights_only=True)
            assert_same_parameters(alone, ranks_of(directory, way)[0], 1e-5)
        assert not (directory / way / "_resharding").exists()


def test_the_command_line_launches_by_name_stops_on_a_signal_and_goes_on(checkpoint, tmp_path):
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents(6)))
    settings = {
        **{"model_name_or_path": checkpoint, "dataset_path": "documents.jsonl", "output_dir": "pair", "max_steps": 16},
        **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6, "num_generations": 2},
        **{"per_device_train_batch_size": 2, "bf16": "false", "report_to": "none", "cold_start_steps": 0},
        **{"logging_steps": 1, "save_steps": 100},
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [
        sys.executable,
        "-m",
        "trl_gist.cli",
        "train",
        "--accelerate_config",
        "zero2",
        "--num_processes",
        "2",
    ]
    compiled = tmp_path / "compiled"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(compiled),
    }
    options = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    log = tmp_path / "pair" / "run_log" / "metrics.jsonl"
    with subprocess.Popen([*command, *flags], **options) as started, ending(started):
        while started.poll() is None and not (log.is_file() and log.read_text()):
            time.sleep(0.05)
        started.send_signal(signal.SIGUSR1)  # the launcher alone; torchrun would not hand this one on
        stdout, stderr = started.communicate(timeout=300)
    assert started.returncode == 0, stderr[-6000:]
    assert stdout.count("Stopped by SIGUSR1 after step") == 1 and "Pair saved" not in stdout

    done = finished([*command, *flags, "--resume_from_checkpoint", "true"], 300, **options)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("Pair saved to pair.") == 1
    assert not compiled.exists(), "DeepSpeed compiles nothing, which would take a minute"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(steps) and set(steps) == set(range(1, 17))
    assert json.loads((log.parent / "run.json").read_text())["environment"]["processes"] == 2
    assert GistCompactor.from_pretrained(tmp_path / "pair", device="cpu").compress("The pump in Broad Street").text


def test_launch_flags_are_told_from_settings():
    flags, rest = split_launch_flags(["--max_steps", "2", "--num_processes=2", "--accelerate_config", "zero1"])
    assert (flags.accelerate_config, flags.num_processes, rest) == ("zero1", "2", ["--max_steps", "2"])
    with pytest.raises(ValueError, match="`--num_processes` launches processes: .* `--accelerate_config` .* zero3"):
        split_launch_flags(["--num_processes", "2"])


def test_a_launch_takes_a_name_or_a_path(tmp_path):
    assert config_names() == ["multi_gpu", "single", "zero1", "zero2", "zero3"]
    assert config_path("zero2").name == "zero2.yaml"
    (tmp_path / "mine.yaml").write_text("distributed_type: 'NO'\n")
    assert config_path(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(ValueError, match="multi_gpu, single, zero1, zero2, zero3 or the path of a file, got 'zero4'"):
        config_path("zero4")
