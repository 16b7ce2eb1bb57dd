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
Kills a run with `kill -9` at random moments, while it saves too, and resumes it each time: `make chaos`.

    export PYTHONPATH=tests/helpers
    python tests/chaos.py
    python tests/chaos.py --kills 40 --seed 1 --full
    python tests/chaos.py --zero2

What must come out of it is, bit for bit, what a run that nobody disturbed comes to: the parameters of both halves, both
optimizers and schedules, λ and every logged figure. A resume must also start from the newest checkpoint that was
complete when its run was killed. Prints the kills, how many of them fell into saving, and what was lost; exits with 1 if
anything was. With `--zero2` two processes train under DeepSpeed and are killed together; the shards of their optimizers
show in the steps that follow.

Each attempt is forked off a parent that has imported everything, so that it costs a second and not ten.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")  # the parent must have no threads when it forks
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import torch
from checks import TIMING, assert_same, history
from datasets import Dataset
from peft import LoraConfig
from tiny import make_documents, make_model, make_tokenizer
from transformers import TrainerCallback

from trl_gist import GistConfig, GistTrainer
from trl_gist.trainer.checkpoints.manifest import MANIFEST_FILE, Manifest
from trl_gist.trainer.checkpoints.staging import SAVING_DIR


STEPS = 12
SETTINGS = {
    **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6, "cold_start_steps": 2},
    **{"num_generations": 4, "per_device_train_batch_size": 8, "max_steps": STEPS, "max_windows_per_document": 2},
    **{"learning_rate": 1e-2, "generator_learning_rate": 1e-2, "target_gist_length": 3, "logging_steps": 1},
    **{"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 3},
    **{"per_device_eval_batch_size": 4, "report_to": "none", "bf16": False, "use_cpu": True, "disable_tqdm": True},
    **{"gradient_checkpointing": False, "seed": 7},
}


ZERO2 = {
    "per_device_train_batch_size": 4,
    "deepspeed": {
        "zero_optimization": {"stage": 2},
        **{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"},
    },
}


class SayWhere(TrainerCallback):
    """Tells the parent from which step this attempt goes on."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        path = Path(args.output_dir, "started")
        if state.is_world_process_zero and not path.exists():
            draft = path.with_name("started.tmp")
            draft.write_text(str(state.global_step))
            draft.rename(path)


def train(output_dir: Path, with_lora: bool, resume: bool, ranks: int):
    """One attempt at the run, in the process that is killed."""
    settings = SETTINGS if ranks == 1 else {**SETTINGS, **ZERO2}
    tokenizer = make_tokenizer()
    rows = Dataset.from_list([{"text": text} for text in make_documents(5)])
    trainer = GistTrainer(
        model=make_model(tokenizer),
        args=GistConfig(output_dir=str(output_dir), **settings),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if with_lora else None,
    )
    trainer.add_callback(SayWhere())
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        torch.save(result(trainer), output_dir / "result.pt")


def result(trainer) -> dict:
    halves = {"summarizer": trainer, "generator": trainer.generator_trainer}
    return {
        "parameters": {role: dict(half.model.state_dict()) for role, half in halves.items()},
        "optimizers": {
            role: half.optimizer.state_dict() for role, half in halves.items() if not trainer.is_deepspeed_enabled
        },
        "schedules": {role: half.lr_scheduler.state_dict() for role, half in halves.items()},
        "length_penalty": trainer.length_penalty.state_dict(),
        "history": history(trainer),
    }


def fork(output_dir: Path, with_lora: bool, resume: bool, ranks: int) -> int:
    """Trains in a child and, for more ranks, in children of its own; returns its process id, which is its group's."""
    port = free_port()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        rank = next((rank for rank in range(1, ranks) if os.fork() == 0), 0)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = 1
        try:
            with open(output_dir.with_suffix(".log"), "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                train(output_dir, with_lora, resume, ranks)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ended(child: int) -> int | None:
    """Its exit code, or `None` while it runs."""
    process, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if process else None


def complete_steps(output_dir: Path) -> list[int]:
    """Steps of the checkpoints that are there or lack nothing but their name."""
    found = [*output_dir.glob("checkpoint-*"), *Path(output_dir, SAVING_DIR).glob("*/checkpoint-*")]
    return sorted(Manifest.load(path).step for path in found if (path / MANIFEST_FILE).is_file())


def kill_once(output_dir: Path, child: int, rng: random.Random, duration: float) -> bool:
    """Kills the child at a random moment, in every second case one while it saves. Returns whether it still ran."""
    staging = output_dir / SAVING_DIR
    while not (output_dir / "started").exists():
        if (code := ended(child)) is not None:
            raise RuntimeError(f"An attempt ended with {code} before its first step.")
        time.sleep(0.001)
    moment = time.monotonic() + rng.uniform(0, duration)
    while time.monotonic() < moment:
        if ended(child) is not None:
            return False
        time.sleep(0.001)
    if rng.random() < 0.6:
        while not staging.exists():
            if ended(child) is not None:
                return False
        time.sleep(rng.uniform(0, 0.06))
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def read_metrics(output_dir: Path) -> list[dict]:
    """The run's log without timings: every figure of every step, once."""
    entries = [json.loads(line) for line in (output_dir / "run_log" / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if name != "time" and not any(word in name for word in TIMING)}
        for entry in entries
        if "train_runtime" not in entry
    ]


def differences(output_dir: Path, reference: Path) -> list[str]:
    """What of a finished run is not bit for bit the reference's."""
    mine, theirs = (torch.load(path / "result.pt", weights_only=True) for path in (output_dir, reference))
    mine["run_log"], theirs["run_log"] = read_metrics(output_dir), read_metrics(reference)
    different = []
    for part in theirs:
        try:
            assert_same(mine[part], theirs[part])
        except AssertionError:
            different.append(part)
    return different


def chaos(directory: Path, kills: int, seed: int, with_lora: bool, ranks: int) -> list[str]:
    """Prints what happened; returns what was lost."""
    rng, losses = random.Random(seed), []
    reference = directory / "reference"
    if (code := os.waitstatus_to_exitcode(os.waitpid(fork(reference, with_lora, False, ranks), 0)[1])) != 0:
        raise RuntimeError(f"The reference ended with {code}:\n{reference.with_suffix('.log').read_text()[-2000:]}")
    metrics = [json.loads(line) for line in (reference / "run_log" / "metrics.jsonl").read_text().splitlines()]
    duration = metrics[-1]["time"] - metrics[0]["time"]
    print(f"The reference took {STEPS} steps in {duration:.1f} s.", flush=True)
    killed = in_saving = runs = resumed = 0
    while killed < kills:
        runs += 1
        output_dir, done = directory / f"run-{runs}", False
        while not done:
            kept = complete_steps(output_dir)
            with contextlib.suppress(FileNotFoundError):
                (output_dir / "started").unlink()
            child = fork(output_dir, with_lora, bool(kept), ranks)
            if killed < kills and kill_once(output_dir, child, rng, duration / 2):
                killed += 1
                in_saving += (output_dir / SAVING_DIR).exists()
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child, 0)
                done = True
            started = int((output_dir / "started").read_text())
            resumed += bool(kept)
            if started != (kept[-1] if kept else 0):
                losses.append(f"run {runs} went on from step {started}, but step {kept[-1]} was saved")
        if not (output_dir / "result.pt").exists():
            log = output_dir.with_suffix(".log").read_text()
            losses.append(f"run {runs} ended with an error:\n{log[-3000:]}")
        else:
            losses += [f"run {runs} has other {part}" for part in differences(output_dir, reference)]
        print(f"run {runs} done; {killed} kills so far, {in_saving} of them while saving.", flush=True)
    print(f"{killed} kills, {in_saving} of them while saving; {resumed} resumes in {runs} runs; {len(losses)} losses.")
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="full fine-tuning in place of LoRA")
    parser.add_argument("--zero2", action="store_true", help="two processes under DeepSpeed ZeRO-2")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    datasets.config.HF_DATASETS_CACHE = directory / "datasets"
    losses = chaos(directory, args.kills, args.seed, not args.full, 2 if args.zero2 else 1)
    print("\n".join(losses))
    if losses:
        print(f"The runs and their logs are in {directory}.")
        sys.exit(1)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
