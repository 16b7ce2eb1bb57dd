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

"""Two runs into one folder: one of them has it, and the other is told who, waits or is refused; nothing of either is
lost. Launched, this file starts several runs into a folder at once: `test_run_lock.py FOLDER WAY RUNS`."""

import contextlib
import logging
import os
import socket
import sys
import threading
import time

import pytest
from checks import AtStep
from datasets import Dataset
from filelock import MarkerSoftFileLock
from launching import forked, held_by_another
from tiny import make_documents, make_model, make_tokenizer

from trl_gist import GistCompactor, GistConfig, GistTrainer
from trl_gist.common.folder_lock import LOCK_FILE
from trl_gist.pair import PairConfig
from trl_gist.scripts.train import train
from trl_gist.trainer.checkpoints.manifest import Manifest
from trl_gist.trainer.checkpoints.run_lock import held_by_main


@pytest.fixture
def another():
    """Another process that holds a folder, until its input ends."""
    with contextlib.ExitStack() as stack:
        yield lambda directory: stack.enter_context(held_by_another(directory))


def write_marker(directory, pid, host=None, start=1):
    """As filelock writes it; the host is as it names this one."""
    if host is None:
        lock = MarkerSoftFileLock(directory / "other.lock")
        with lock:
            host = lock.owner.hostname
    marker = f"filelock/2\npid={pid}\nhost={host}\nmode=exclusive\nstart={start}\n"
    (directory / LOCK_FILE).write_text(marker)


# ---- The lock alone ----


def test_the_holder_is_named(another, tmp_path):
    holder = another(tmp_path / "run")
    said = f"process {holder.pid} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d ')}"
    with pytest.raises(ValueError, match="is in use by another run") as refusal, held_by_main(tmp_path / "run", True):
        pass
    assert said in str(refusal.value) and str(tmp_path / "run" / LOCK_FILE) in str(refusal.value)
    with held_by_main(tmp_path / "elsewhere", True):
        pass


def test_who_waits_says_for_whom_and_goes_on_at_its_end(another, tmp_path, caplog):
    holder = another(tmp_path / "run")
    ended = []
    threading.Timer(1.0, lambda: (ended.append(1), holder.stdin.close())).start()
    with held_by_main(tmp_path / "run", True, patience=60):
        assert ended
    assert f"process {holder.pid} on" in caplog.text and "Waiting for its end" in caplog.text


def test_patience_ends(another, tmp_path):
    another(tmp_path / "run")
    with pytest.raises(ValueError, match="in use by another run"), held_by_main(tmp_path / "run", True, patience=0.3):
        pass


def test_a_killed_holder_holds_nothing(another, tmp_path):
    holder = another(tmp_path / "run")
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with held_by_main(tmp_path / "run", True):
        pass


def test_a_process_that_got_the_number_of_a_dead_one_is_not_the_holder(tmp_path):
    write_marker(tmp_path, os.getppid())
    with held_by_main(tmp_path, True):
        assert f"pid={os.getpid()}" in (tmp_path / LOCK_FILE).read_text()


def test_a_holder_on_another_host_is_named_and_never_taken_for_dead(tmp_path):
    write_marker(tmp_path, 2**22 + 1, "node-17?pidns-f0000001")
    with pytest.raises(ValueError, match=f"process {2**22 + 1} on node-17, since .* remove {tmp_path}/{LOCK_FILE}"):
        with held_by_main(tmp_path, True):
            pass
    (tmp_path / LOCK_FILE).unlink()
    with held_by_main(tmp_path, True):
        pass


def test_half_a_lock_is_taken_over(tmp_path):
    (tmp_path / LOCK_FILE).write_text("filelock/2\npid=7")
    with held_by_main(tmp_path, True):
        assert f"pid={os.getpid()}" in (tmp_path / LOCK_FILE).read_text()


def test_a_process_may_hold_a_folder_several_times_and_lets_go_with_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with held_by_main("run", True):
        with held_by_main(tmp_path / "run", True):
            pass
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_where_nothing_can_be_written_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(MarkerSoftFileLock, "acquire", refuse)
    with held_by_main(tmp_path, True):
        pass
    assert "is not held against other runs: [Errno 30] Read-only file system" in caplog.text


def test_ranks_beside_the_main_one_take_nothing(tmp_path):
    with held_by_main(tmp_path, main=False):
        assert not (tmp_path / LOCK_FILE).exists()


# ---- A trainer ----


@pytest.fixture
def make_run(make_trainer, lora, tmp_path):
    def make(**args):
        return make_trainer(peft_config=lora, args={"output_dir": str(tmp_path / "run"), **args})

    return make


SAVING = {"save_strategy": "steps", "save_steps": 1}


def test_training_into_the_folder_of_another_run_is_refused_and_changes_nothing(make_run, another, tmp_path):
    staged = tmp_path / "run" / "_saving" / "0a1b2c3d" / "checkpoint-9"
    staged.mkdir(parents=True)
    (tmp_path / "run" / "_hub" / "pair").mkdir(parents=True)
    trainer = make_run(**SAVING)
    holder = another(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"in use by another run: process {holder.pid} on"):
        trainer.train()
    with pytest.raises(ValueError, match=f"in use by another run: process {holder.pid} on"):
        trainer.save_model()
    assert sorted(tmp_path.rglob("*")) == before
    trainer.save_model(str(tmp_path / "pair"))
    assert PairConfig.load(tmp_path / "pair").step == 0


def test_a_run_that_goes_on_waits_for_the_one_before_it(make_run, another, tmp_path, caplog):
    make_run(**SAVING).train()
    resumed = make_run(**SAVING, max_steps=3)
    holder = another(tmp_path / "run")
    threading.Timer(3.0, holder.stdin.close).start()
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3 and f"process {holder.pid} on" in caplog.text


def test_the_folder_is_held_until_what_was_trained_is_saved(make_run, tmp_path):
    lock = tmp_path / "run" / LOCK_FILE
    trainer = make_run()
    trainer.train()
    assert lock.exists(), "it is in memory alone, and another run would take its place"
    trainer.save_model()
    assert not lock.exists()


def test_the_folder_is_free_when_the_last_step_is_in_a_checkpoint_or_the_run_has_failed(make_run, tmp_path):
    lock = tmp_path / "run" / LOCK_FILE
    trainer = make_run(**SAVING)
    during = []
    trainer.add_callback(AtStep(1, lambda: during.append(lock.exists())))
    trainer.train()
    assert during == [True] and not lock.exists()
    with pytest.raises(ValueError, match="holds another run"):
        trainer.train()
    assert not lock.exists()


# ---- Runs that start at once ----


def launched(directory, way, runs):
    done = forked([__file__, str(directory), way, str(runs)], 300)
    return [line for line in done.stdout.splitlines() if line.startswith("run ")], done.stderr[-4000:]


@pytest.mark.parametrize("way", ["script", "command"])
def test_of_runs_that_start_at_once_one_has_the_folder_and_the_others_are_told_so(tmp_path, way):
    told, errors = launched(tmp_path / "run", way, 3)
    refused = [line for line in told if "is in use by another run: process" in line or "holds" in line]
    assert len(told) == 3 and len(refused) == 2, f"{told}\n{errors}"
    (saved,) = {line for line in told if line not in refused}
    assert saved.endswith("saved")
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        Manifest.load(checkpoint).check_files(checkpoint)
    # Both halves are of the one run: each run was of another seed, which its recipe says
    pair = PairConfig.load(tmp_path / "run")
    assert f"run {pair.recipe['seed']} saved" == saved
    assert GistCompactor.from_pretrained(tmp_path / "run", device="cpu").compress("The pump in Broad Street").text
    assert not list((tmp_path / "run").glob("_*lock")) and not (tmp_path / "run" / "_saving").exists()


def one_of_several(directory, way, seed):
    tokenizer = make_tokenizer()
    values = {
        **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6, "cold_start_steps": 0},
        **{"num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 4, "save_steps": 2},
        **{"report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False},
        **{"disable_tqdm": True, "seed": seed, "save_strategy": "no" if way == "script" else "steps"},
    }
    try:
        trainer = GistTrainer(
            model=make_model(tokenizer),
            args=GistConfig(output_dir=directory, **values),
            train_dataset=Dataset.from_dict({"text": make_documents(6)}),
            processing_class=tokenizer,
        )
        if way == "script":
            trainer.train()
            time.sleep(0.2)
            trainer.save_model()
        else:
            train(trainer)
        said = "saved"
    except ValueError as error:
        said = str(error).replace("\n", " ")
    os.write(1, f"run {seed} {said}\n".encode())


def main(directory, way, runs):
    for seed in range(int(runs)):
        if os.fork() == 0:
            one_of_several(directory, way, seed)
            os._exit(0)
    for _ in range(int(runs)):
        os.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
