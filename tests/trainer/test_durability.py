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

"""Nothing is lost to a signal, a kill in the middle of saving, or a full disk; `tests/chaos.py` kills at random."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checks import AtStep, assert_equal_models, assert_same, history
from datasets import Dataset
from launching import ROOT, ending, launch
from peft import LoraConfig
from tiny import make_documents, make_model, make_tokenizer
from tiny_recipes import tiny_args

from trl_gist import GistConfig, GistTrainer, SaveOnSignal
from trl_gist.cli.main import main
from trl_gist.common.folder_lock import LOCK_FILE
from trl_gist.pair import PairConfig
from trl_gist.scripts.train import train
from trl_gist.trainer.callbacks import SIGNALS
from trl_gist.trainer.checkpoints import pair_state as checkpoints
from trl_gist.trainer.checkpoints.manifest import MANIFEST_FILE, Manifest
from trl_gist.trainer.generator_trainer import GeneratorTrainer
from trl_gist.trainer.hub import PairHub


def sigterm():
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def not_ignored():
    """Whoever runs the tests in the background may have had signals ignored."""
    defaults = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {each: signal.signal(each, handler) for each, handler in defaults.items()}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def run_in(output_dir, checkpoint, at_step=None, with_lora=True, **args):
    """A trainer of one run: eight windows, two a step."""
    rows = Dataset.from_dict({"text": make_documents(4)})
    return GistTrainer(
        model=checkpoint,
        args=tiny_args(
            output_dir,
            **{"max_steps": 6, "max_windows_per_document": 2, "save_strategy": "steps", "save_steps": 2, **args},
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        if with_lora
        else None,
        callbacks=[AtStep(*at_step)] if at_step else [],
    )


@pytest.fixture
def make_run(checkpoint, tmp_path):
    def make(name="run", *args, **kwargs):
        return run_in(tmp_path / name, checkpoint, *args, **kwargs)

    return make


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """A run that nothing has stopped."""
    trainer = run_in(tmp_path_factory.mktemp("whole"), checkpoint)
    trainer.train()
    return trainer


def names(directory):
    return sorted(path.name for path in directory.glob("*checkpoint-*")) + [
        path.name for path in directory.glob("_saving")
    ]


def assert_complete(checkpoint):
    Manifest.load(checkpoint).check_files(checkpoint)


def assert_same_end(one, other):
    assert one.state.global_step == other.state.global_step
    assert_same(history(one), history(other))
    assert_equal_models(one.model, other.model)
    assert_equal_models(one.generator, other.generator)


# ---- Signals ----


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_run_with_a_checkpoint_from_which_it_goes_on_bit_for_bit(
    make_run, whole, tmp_path, capsys, number
):
    stopped = make_run("stopped", at_step=(3, lambda: signal.raise_signal(number)))
    before = signal.getsignal(number)
    train(stopped)
    assert signal.getsignal(number) is before
    assert stopped.state.global_step == 3 and names(tmp_path / "stopped") == ["checkpoint-2", "checkpoint-3"]
    assert_complete(tmp_path / "stopped" / "checkpoint-3")
    checkpoint = tmp_path / "stopped" / "checkpoint-3"
    message = [line for line in capsys.readouterr().out.splitlines() if "Stopped by" in line]
    assert len(message) == 1 and f"Stopped by {number.name} after step 3 of 6, saved as {checkpoint}. " in message[0]
    assert "--resume_from_checkpoint true" in message[0]
    assert not (tmp_path / "stopped" / "gist_config.json").exists(), "the pair is not done"
    resumed = make_run("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, whole)


def test_a_second_signal_ends_the_run_at_once(make_run, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was taken for the first")

    with pytest.raises(KeyboardInterrupt):
        train(make_run(at_step=(3, twice)))
    assert names(tmp_path / "run") == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert not (tmp_path / "run" / LOCK_FILE).exists()


@pytest.mark.parametrize("after", [0.0, 9.0], ids=["handed-on", "meant"])
def test_a_signal_that_a_launcher_hands_on_as_well_is_one_signal(make_run, tmp_path, monkeypatch, after):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    real = time.monotonic

    def twice():
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(time, "monotonic", lambda: real() + after)
        signal.raise_signal(signal.SIGINT)

    if after:
        with pytest.raises(KeyboardInterrupt):
            train(make_run(at_step=(3, twice)))
    else:
        train(make_run(at_step=(3, twice)))
    assert ("checkpoint-3" in names(tmp_path / "run")) == (not after)


def test_a_script_that_listens_to_nothing_is_interrupted_when_it_is_saved(make_run, whole, tmp_path):
    stopped = make_run("stopped", at_step=(3, lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert names(tmp_path / "stopped") == ["checkpoint-2", "checkpoint-3"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = make_run("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, whole)


def test_a_scripts_own_handler_is_called_when_the_run_is_saved(make_run, tmp_path):
    seen = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(names(tmp_path / "run")))
    trainer = make_run(at_step=(1, lambda: signal.raise_signal(signal.SIGUSR1)))
    trainer.train()
    assert seen == [["checkpoint-1"]] and trainer.state.global_step == 1
    assert not any(isinstance(each, SaveOnSignal) for each in trainer.callback_handler.callbacks)


def test_without_checkpoints_a_script_is_interrupted_at_once(make_run, tmp_path):
    trainer = make_run(at_step=(1, lambda: signal.raise_signal(signal.SIGINT)), save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not names(tmp_path / "run")


def test_a_signal_that_the_process_ignores_stays_ignored(make_run, tmp_path):
    """As SIGHUP under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    train(make_run(at_step=(1, lambda: signal.raise_signal(signal.SIGHUP)), save_strategy="no"))
    assert PairConfig.load(tmp_path / "run").step == 6
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_signal_inside_a_rollout_waits_for_its_end(make_run, tmp_path):
    args = {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4, "save_steps": 8}
    trainer = make_run(at_step=(1, sigterm), max_steps=8, **args)
    train(trainer)
    assert trainer.state.global_step == 4 and names(tmp_path / "run") == ["checkpoint-4"]


def test_a_signal_saves_where_nothing_else_would(make_run, tmp_path):
    train(make_run(at_step=(1, sigterm), save_strategy="no"))
    assert names(tmp_path / "run") == ["checkpoint-1"]


def test_a_signal_in_the_last_step_leaves_the_run_its_own_end(make_run, tmp_path):
    train(make_run(at_step=(6, sigterm)))
    assert PairConfig.load(tmp_path / "run").step == 6


def test_an_error_gives_the_signal_back(make_run):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), SaveOnSignal() as save_on_signal:
        trainer = make_run(at_step=(1, lambda: 1 / 0))
        trainer.add_callback(save_on_signal)
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stopped_run_keeps_its_last_checkpoint_beside_its_best(make_run, tmp_path):
    """At its end `Trainer` with `save_total_limit=1` keeps the best alone."""
    args = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
    args |= {"load_best_model_at_end": True, "metric_for_best_model": "teacher_kl", "greater_is_better": True}
    trainer = make_run(at_step=(3, sigterm), learning_rate=1e-2, generator_learning_rate=1e-2, **args)
    train(trainer)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-1")
    assert names(tmp_path / "run") == ["checkpoint-1", "checkpoint-3"]
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "run" / "checkpoint-1"), "and not where it was written"


def test_transformers_own_saving_in_the_middle_of_a_step_is_refused(make_args):
    with pytest.raises(
        ValueError,
        match="`enable_jit_checkpoint` must be False, got True: it saves in the middle of a step.*SaveOnSignal",
    ):
        make_args(enable_jit_checkpoint=True)


@pytest.mark.parametrize(
    ("through", "number"),
    [([], signal.SIGINT), (["--accelerate_config", "single"], signal.SIGTERM)],
    ids=["SIGINT", "SIGTERM to a launcher"],
)
def test_trl_gist_train_exits_with_0_on_a_signal_and_resumes(checkpoint, tmp_path, capsys, through, number):
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents(8)))
    flags = {
        **{"model_name_or_path": checkpoint, "dataset_path": tmp_path / "documents.jsonl"},
        **{"output_dir": tmp_path / "run", "context_length": 24, "target_length": 8, "last_k": 4},
        **{"max_completion_length": 6, "num_generations": 4, "per_device_train_batch_size": 8, "bf16": False},
        **{"use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "save_steps": 1000},
        **{"logging_steps": 1, "use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"},
    }
    argv = ["train", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]
    metrics = tmp_path / "run" / "run_log" / "metrics.jsonl"
    command = [sys.executable, "-m", "trl_gist.cli", *argv, *through, "--max_steps", "100000"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["env"] = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    with subprocess.Popen(command, **options) as process, ending(process):
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert process.poll() is None, process.stderr.read()[-2000:]
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err[-2000:]
    (saved,) = names(tmp_path / "run")
    step = int(saved.removeprefix("checkpoint-"))
    assert f"Stopped by {number.name} after step {step} of 100000, saved as {tmp_path / 'run' / saved}." in out
    assert_complete(tmp_path / "run" / saved)
    assert main([*argv, "--max_steps", str(step + 2), "--resume_from_checkpoint", "true"]) == 0
    assert PairConfig.load(tmp_path / "run").step == step + 2
    last = tmp_path / "run" / f"checkpoint-{step + 2}"
    (last / "generator" / "optimizer.pt").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as refusal:
        main([*argv, "--max_steps", str(step + 3), "--resume_from_checkpoint", str(last)])
    assert refusal.value.code == 2
    assert f"error: {last} lacks the generator's half: {last}/generator/optimizer.pt" in capsys.readouterr().err


# ---- A full disk ----


def test_a_full_disk_ends_with_the_folder_and_its_free_bytes_and_leaves_the_checkpoint_before(
    make_run, whole, tmp_path, monkeypatch
):
    def disk_is_full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = make_run(at_step=(4, lambda: monkeypatch.setattr(GeneratorTrainer, "save_checkpoint", disk_is_full)))
    with pytest.raises(OSError, match="checkpoint of step 4 could not be written") as error:
        trainer.train()
    message = str(error.value)
    assert f"to {tmp_path / 'run'}, where " in message and "No space left on device" in message
    free = int(message.split(" bytes were free")[0].split()[-1])
    assert 0 <= free <= shutil.disk_usage(tmp_path).total
    assert "checkpoint-2 and those before it are whole" in message
    assert names(tmp_path / "run") == ["checkpoint-2"]
    monkeypatch.undo()
    resumed = make_run()
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, whole)


def test_an_error_that_is_not_the_disks_is_told_as_it_is_and_leaves_the_checkpoint_before(
    make_run, tmp_path, monkeypatch
):
    def is_wrong(*args):
        raise TypeError("a state that cannot be saved")

    trainer = make_run(at_step=(4, lambda: monkeypatch.setattr(GeneratorTrainer, "save_checkpoint", is_wrong)))
    with pytest.raises(TypeError, match="^a state that cannot be saved$"):
        trainer.train()
    assert names(tmp_path / "run") == ["checkpoint-2"]


def test_writes_that_the_system_cuts_off_leave_the_checkpoint_before(make_run, tmp_path):
    """The system's own refusal, through safetensors and torch: no file may grow beyond a limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        weights = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
        resource.setrlimit(resource.RLIMIT_FSIZE, (weights.stat().st_size // 2, hard))

    trainer = make_run(at_step=(3, limit), with_lora=False)
    try:
        with pytest.raises(OSError, match="checkpoint of step 4 could not be written.*File too large"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "run") == ["checkpoint-2"]
    resumed = make_run(with_lora=False)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KiB, on which one checkpoint of the tiny pair and half of another fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system takes rights that this user lacks")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_keeps_the_checkpoint_before_and_the_run_goes_on_where_there_is_room(
    make_run, whole, small_disk, tmp_path
):
    with pytest.raises(OSError, match=f"step 4 could not be written to {small_disk}.*checkpoint-2 .* whole"):
        make_run("disk").train()
    assert names(small_disk) == ["checkpoint-2"]
    shutil.copytree(small_disk / "checkpoint-2", tmp_path / "roomy" / "checkpoint-2")
    resumed = make_run("roomy")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, whole)


def test_a_pair_that_cannot_be_written_leaves_the_one_that_was_there(make_run, tmp_path, monkeypatch):
    pair = tmp_path / "pair"
    trainer = make_run(save_strategy="no")
    trainer.save_model(pair)

    def read():
        return {path: path.read_bytes() for path in pair.rglob("*") if path.is_file()}

    before = read()
    trainer.train()

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_model_card", fail)
        with pytest.raises(OSError, match=f"The pair could not be written to {pair}, where .* No space left"):
            trainer.save_model(pair, _internal_call=True)  # as `push_to_hub` does
    assert read() == before
    trainer.save_model(pair)
    assert {path for path, content in read().items() if content != before[path]} > {
        pair / "adapter_model.safetensors",
        pair / "generator" / "adapter_model.safetensors",
    }
    assert not (pair / "_saving").exists()


# ---- What a killed run leaves ----


STAGING = "_saving/0a1b2c3d"


def test_half_a_checkpoint_is_removed_and_said_so(make_run, tmp_path, caplog):
    make_run(max_steps=2).train()
    shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "run" / STAGING / "checkpoint-4")
    (tmp_path / "run" / STAGING / "checkpoint-4" / MANIFEST_FILE).unlink()
    make_run(max_steps=2).train(resume_from_checkpoint=True)
    assert names(tmp_path / "run") == ["checkpoint-2"]
    assert f"Removed {tmp_path / 'run' / STAGING / 'checkpoint-4'}, which a killed run had not" in caplog.text


def test_a_checkpoint_that_lacked_only_its_renaming_gets_it(make_run, tmp_path, caplog):
    make_run(max_steps=4).train()
    (tmp_path / "run" / STAGING).mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-4").rename(tmp_path / "run" / STAGING / "checkpoint-4")
    trainer = make_run(max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4 and names(tmp_path / "run") == ["checkpoint-2", "checkpoint-4"]
    assert "checkpoint-4 was complete when its run was killed" in caplog.text


def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(make_run, whole, tmp_path):
    """`Trainer` (5.23) would take one more from the middle of an epoch."""
    shutil.copytree(whole.args.output_dir, tmp_path / "run")
    resumed = make_run()
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, whole)


def test_rotation_never_takes_a_damaged_checkpoint_for_the_last(make_run, tmp_path):
    """`Trainer`'s own goes by the step where folders are of one second."""
    make_run(max_steps=3, save_steps=1).train()
    (tmp_path / "run" / "checkpoint-3").rename(tmp_path / "run" / "checkpoint-9")
    (tmp_path / "run" / "checkpoint-9" / MANIFEST_FILE).unlink()
    make_run(max_steps=3, save_steps=1, save_total_limit=1).train(resume_from_checkpoint=True)
    assert names(tmp_path / "run") == ["checkpoint-3"]
    assert_complete(tmp_path / "run" / "checkpoint-3")


def test_the_newest_checkpoint_is_the_last_that_was_saved_not_the_one_of_the_latest_step(make_run, tmp_path):
    """Who goes back to an earlier checkpoint and is killed wants to go on from there."""
    make_run().train()
    again = make_run(max_steps=4, seed=8)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert names(tmp_path / "run") == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert again.run_directory.newest_complete()[0] == tmp_path / "run" / "checkpoint-4"


def test_what_is_pushed_to_the_hub_is_the_complete_checkpoint(make_run, tmp_path, monkeypatch):
    pushed = []

    def push(hub, folder):
        assert_complete(Path(folder))
        pushed.append((folder, names(tmp_path / "run")))

    monkeypatch.setattr(PairHub, "push_checkpoint", push)
    trainer = make_run(max_steps=4, save_total_limit=1)
    trainer.args.push_to_hub = True
    trainer.train()
    assert trainer.args.push_to_hub
    assert pushed == [
        (str(tmp_path / "run" / "checkpoint-2"), ["checkpoint-2"]),
        (str(tmp_path / "run" / "checkpoint-4"), ["checkpoint-2", "checkpoint-4"]),
    ]


# ---- Several processes ----


def test_all_processes_stop_at_the_step_of_the_one_that_was_told_to(tmp_path):
    done = launch(__file__, str(tmp_path / "run"))
    assert done.stdout.count("Stopped by SIGUSR1 after step 1 of 6") == 1
    assert done.stdout.count("went on from step 1 to 6") == 2
    assert names(tmp_path / "run") == ["checkpoint-1", "checkpoint-6"]
    manifest = Manifest.load(tmp_path / "run" / "checkpoint-6")
    manifest.check_files(tmp_path / "run" / "checkpoint-6")
    assert manifest.world_size == 2 and {"rng_state_0.pth", "rng_state_1.pth"} <= manifest.files.keys()


def one_of_two(output_dir):
    tokenizer = make_tokenizer()
    values = {
        **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6, "cold_start_steps": 0},
        **{"num_generations": 4, "per_device_train_batch_size": 4, "max_steps": 6, "save_steps": 10},
        **{"report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False},
        **{"disable_tqdm": True, "ddp_find_unused_parameters": False},
    }

    def make(**args):
        return GistTrainer(
            model=make_model(tokenizer),
            args=GistConfig(output_dir=output_dir, **values, **args),
            train_dataset=Dataset.from_dict({"text": make_documents(6)}),
            processing_class=tokenizer,
        )

    trainer = make()
    if trainer.args.process_index == 1:
        trainer.add_callback(AtStep(1, lambda: signal.raise_signal(signal.SIGUSR1)))
    end, trainer.end = trainer.end, lambda: None  # the processes go on to resume
    train(trainer)
    trainer.end = end
    resumed = make()
    resumed.train(resume_from_checkpoint=True)
    print(f"went on from step {resumed._initial_global_step} to {resumed.state.global_step}", flush=True)


if __name__ == "__main__":
    one_of_two(sys.argv[1])
