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
All that a GPU has to show, in one command and 15 minutes of one card: `make gpu-check`.

python -m research.gpu.check                        # both parts
python -m research.gpu.check --part 1               # that it is right, and SmolLM2's step; 7.5 minutes
python -m research.gpu.check --part 2               # a 4B step, and the flagship for the minutes that are left
python -m research.gpu.check --cpu                  # all of it at tiny size, on a CPU

Each check is a process of its own with a time limit: one that hangs or crashes costs itself alone. What it found is in
JSON before the next begins. Run again, the command goes on where it ended: what is done is kept, the rest is tried
again, and the flagship goes on from its checkpoint. A folder is of one card. What the checks do is in `measures.py` and
in the scripts of other pages; this file starts them, `report.py` makes the tables.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trl_gist.common.files import replace_file

import yaml

from research.gpu.report import report


ROOT = Path(__file__).parents[2]
MINUTES_OF_A_PART = 7.5
GRACE = 40  # seconds that a process gets to end by itself: the flagship saves a checkpoint
LEAST = 15  # seconds under which nothing is begun
CPU_PATIENCE = 10  # times a limit, where a core is shared

TINY_STEP = "--context 24 --target 8 --last_k 4 --gist 6 --documents 2 --gists 4 --score_batch_size 4 --repeats 1"
TINY_MEMORY = "--context 64 --gists 2 --documents 1 --dtype float32"
TINY_RECIPE = {
    **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6, "eval_documents": 2},
    **{"num_generations": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4, "lora_r": 4},
    **{"max_steps": 2, "eval_steps": 2, "save_steps": 1, "cold_start_steps": 1, "warmup_steps": 0},
    **{"use_cpu": True, "bf16": False, "gist_samples": 1},
}


class Plan:
    """Where things are, for the commands of the checks: `machine` is what `prepare` found in this call."""

    def __init__(self, folder: Path, cpu: bool = False, model: Path | None = None, corpus: Path | None = None):
        self.folder, self.cpu, self.given_model, self.corpus = folder, cpu, model, corpus
        self.machine = {}

    def result(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    @property
    def qwen3(self) -> Path:
        return self.folder / "models" / "qwen3-4b"

    def module(self, name: str, *arguments) -> list[str]:
        return [sys.executable, "-m", name, *map(str, arguments)]


class Check(NamedTuple):
    """
    Attributes:
        part (`int`):
            0 comes first in each call and is never kept: the machine may be another one.
        seconds (`float`):
            Its time limit.
        command (`Callable`):
            What to run, of a [`Plan`]. It writes `plan.result(name)`, as it goes if it can.
        why_not (`Callable`):
            Why it is left out on this machine, or `None`.
        found (`Callable`, *optional*):
            What it found, where it writes no such file. Then its time limit is no failure: it is a training, and goes on
            in a later call.
    """

    name: str
    part: int
    seconds: float
    command: Callable[[Plan], list[str]]
    why_not: Callable[[Plan], str | None] = lambda plan: None
    found: Callable[[Plan], dict | None] | None = None


def measure(name):
    def command(plan):
        given = ["--model", plan.given_model] if plan.given_model else []
        return plan.module("research.gpu.measures", name, "--folder", plan.folder, *given, *["--cpu"] * plan.cpu)

    return command


def step(name, model, sizes):
    def command(plan):
        files = ["--model", model(plan), "--text", plan.machine["text"], "--output", plan.result(name)]
        return plan.module("research.performance.step_vs_trl", *files, *sizes.split(), *TINY_STEP.split() * plan.cpu)

    return command


def memory(name, model):
    def command(plan):
        files = ["--model", model(plan), "--text", plan.machine["text"], "--output", plan.result(name)]
        sizes = ["--cases", "lora", "--dtype", "bfloat16", *TINY_MEMORY.split() * plan.cpu]
        return plan.module("research.scaling.memory", *files, *sizes)

    return command


def small_model(plan):
    return plan.machine["model"]


def why_no_4b(plan):
    """The composition on TRL holds three models of 8 GB and the activations of S's padded rows."""
    bytes_there = plan.machine["memory_bytes"]
    if not plan.cpu and bytes_there < 70e9:
        return f"three models of 4B and their activations take some 60 GB, and the card has {bytes_there / 1e9:.0f}"


def why_no_4b_weights(plan):
    free = shutil.disk_usage(plan.folder).free
    if not plan.cpu and free < 10e9:
        return f"the weights take 8 GB of disk, and {plan.folder} has {free / 1e9:.0f} left"
    return why_no_4b(plan)


def why_no_step_of_4b(plan):
    if not (plan.qwen3 / "config.json").exists():
        return "its weights are not there"
    return why_no_4b(plan)


def why_no_flagship(plan):
    if plan.machine["weights"] == "random":
        return (
            "there is no checkpoint, and one of random weights has nothing to learn from. `python -m "
            "examples.demo_assets` fetches it; TRL_GIST_CACHE names a folder where it lies"
        )


def flagship(plan):
    """The recipe as it stands, on the corpus if it is given and else on the demo's articles."""
    recipe = yaml.safe_load((ROOT / "configs" / "flagship_smollm2-135m.yaml").read_text("utf-8"))
    output_dir = plan.folder / "flagship"
    recipe |= {"model_name_or_path": plan.machine["model"], "output_dir": str(output_dir), "disable_tqdm": True}
    if plan.corpus is not None:
        recipe["dataset_name"] = str(plan.corpus)
    else:
        for name in ("dataset_name", "dataset_train_split", "dataset_test_split"):
            del recipe[name]
        recipe |= {"dataset_path": plan.machine["text"], "eval_documents": 16}
    recipe |= TINY_RECIPE if plan.cpu else {}
    file = plan.folder / "flagship.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    resume = ["--resume_from_checkpoint", "true"]
    if not any(output_dir.glob("checkpoint-*")):
        shutil.rmtree(output_dir, ignore_errors=True)  # of a run that ended before its first checkpoint
        resume = []
    return plan.module("trl_gist.cli", "train", "--config", file, *resume)


def flagship_found(plan):
    """The newest checkpoint's step, and what was logged on the way."""
    states = (plan.folder / "flagship").glob("checkpoint-*/trainer_state.json")
    states = [json.loads(path.read_text("utf-8")) for path in states]
    if not states:
        return None
    state = max(states, key=lambda state: state["global_step"])
    return {"step": state["global_step"], "of": state["max_steps"], "log": state["log_history"]}


CHECKS = (
    Check("prepare", 0, 90, measure("prepare")),
    Check("tests", 1, 150, measure("tests")),
    Check("shared_rows", 1, 60, measure("shared_rows")),
    Check("attention", 1, 120, measure("attention")),
    Check("step_smollm2", 1, 120, step("step_smollm2", small_model, "--repeats 3")),
    Check("memory_smollm2", 1, 45, memory("memory_smollm2", small_model)),
    Check("weights_qwen3_4b", 2, 60, measure("weights_qwen3_4b"), why_no_4b_weights),
    # Eight gists a context would take TRL's step beyond 80 GB
    Check(
        *("step_qwen3_4b", 2, 135),
        step("step_qwen3_4b", lambda plan: plan.qwen3, "--gists 4 --repeats 2 --no_memory"),
        why_no_step_of_4b,
    ),
    Check("memory_qwen3_4b", 2, 90, memory("memory_qwen3_4b", lambda plan: plan.qwen3), why_no_step_of_4b),
    Check("flagship", 2, 3600, flagship, why_no_flagship, flagship_found),
)


class Results:
    """What was found, in a file that is whole at any time."""

    def __init__(self, folder: Path):
        self.path = folder / "results.json"
        self.checks, self.machine = {}, None
        if self.path.exists():
            saved = json.loads(self.path.read_text("utf-8"))
            self.checks, self.machine = saved["checks"], saved["machine"]

    def put(self, name: str, **outcome):
        self.checks[name] = outcome
        text = json.dumps({"machine": self.machine, "checks": self.checks}, indent=2, default=str)
        replace_file(self.path, text.encode())

    def is_done(self, name: str) -> bool:
        return self.checks.get(name, {}).get("status") == "done"


def run_all(checks: tuple[Check, ...], plan: Plan, minutes: float | None = None) -> Results:
    """
    Runs what is not done, until the minutes are over.

    Raises:
        SystemExit: If the folder has another machine's results.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    results, end = Results(plan.folder), time.monotonic() + 60 * (minutes or 24 * 60)
    for check in checks:
        if check.part > 0 and results.is_done(check.name):
            print(f"{check.name}: done before", flush=True)
            continue
        left = end - time.monotonic() - GRACE
        limit = min(check.seconds * (CPU_PATIENCE if plan.cpu else 1), left)
        if check.part > 0 and not plan.machine:
            why_not = "the machine was not ready: see `prepare`"
        elif (why_not := check.why_not(plan)) is None and limit < LEAST:
            why_not = f"of the {minutes:g} minutes {max(left, 0):.0f} s were left. Run the command again"
        if why_not is not None:
            if "result" not in results.checks.get(check.name, {}):  # what an earlier call found stays
                results.put(check.name, status="skipped", reason=why_not)
            print(f"{check.name}: skipped: {why_not}", flush=True)
            continue
        print(f"{check.name}: up to {limit:.0f} s …", flush=True)
        if check.part > 0:
            results.put(check.name, status="running")
        outcome = run(check, plan, limit)
        if check.name == "prepare" and outcome["status"] == "done":
            plan.machine = outcome["result"]
            card = plan.machine["card"]
            if results.machine not in (None, card):
                raise SystemExit(
                    f"{results.path} has the results of '{results.machine}', and this is '{card}': figures of two "
                    "machines do not go into one table. Name another folder with --output."
                )
            results.machine = card
        results.put(check.name, **outcome)
        print(f"{check.name}: {outcome['status']} after {outcome['seconds']:.0f} s", flush=True)
        if outcome["status"] in ("failed", "out of time"):
            print(f"  {outcome['reason']}", flush=True)
    return results


def run(check: Check, plan: Plan, limit: float) -> dict:
    """One check in a process of its own, which with all that it has started ends at the limit."""
    plan.result(check.name).unlink(missing_ok=True)
    log, begun = plan.folder / f"{check.name}.log", time.monotonic()
    code = None
    with log.open("wb") as stream:
        process = subprocess.Popen(
            check.command(plan),
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(plan),
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(limit)
            if code is None:
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs holds it even then
                process.wait(GRACE)
    outcome = {"seconds": time.monotonic() - begun, "limit": limit}
    found = read(plan.result(check.name)) if check.found is None else check.found(plan)
    if found is not None:
        outcome["result"] = found
    if code == 0 and found is not None:
        return {"status": "done", **outcome}
    if code is None and check.found is not None and found is not None:
        return {"status": "stopped", "reason": "its minutes were over; it goes on when run again", **outcome}
    if code is None:
        return {
            "status": "out of time",
            "reason": f"no end after {limit:.0f} s; {log.name} ends: {tail(log)}",
            **outcome,
        }
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return {"status": "failed", "reason": f"{ended}; {log.name} ends: {tail(log)}", **outcome}


def environment(plan):
    """One card, or none; the tests' helpers, who make tiny models; and no long wait for a package index out of reach."""
    paths = [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    cards = "" if plan.cpu else os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {
        **{"PIP_DEFAULT_TIMEOUT": "8", "PIP_RETRIES": "1", **os.environ},
        **{"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": cards},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def read(path):
    """What a process wrote, unless it was cut off."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def tail(log, lines=3):
    text = log.read_bytes().decode(errors="replace").strip()
    return " / ".join(line.strip() for line in text.splitlines()[-lines:])[-400:] or "nothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2), help="only this part (default: both)")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS[1:]], help="only these checks")
    parser.add_argument("--minutes", type=float, help=f"of all (default: {MINUTES_OF_A_PART} for each part)")
    parser.add_argument("--cpu", action="store_true", help="all of it at tiny size on a CPU")
    parser.add_argument("--model", type=Path, help="SmolLM2's checkpoint (default: the demo's)")
    parser.add_argument("--corpus", type=Path, help="the flagship's corpus (default: the demo's articles)")
    parser.add_argument("--output", type=Path, help="folder for results (default: gpu-check, or gpu-check-cpu)")
    parser.add_argument("--report", action="store_true", help="only the tables of what lies there, and run nothing")
    args = parser.parse_args()
    folder = (args.output or Path("gpu-check-cpu" if args.cpu else "gpu-check")).resolve()
    if args.report:
        print(report(Results(folder).checks))
        return 0
    model, corpus = (path and path.resolve() for path in (args.model, args.corpus))
    checks = tuple(
        check
        for check in CHECKS
        if check.part == 0 or (args.part in (None, check.part) and (not args.only or check.name in args.only))
    )
    minutes = args.minutes or (None if args.cpu else MINUTES_OF_A_PART * (1 if args.part else 2))
    results = run_all(checks, Plan(folder, args.cpu, model, corpus), minutes)
    tables = report(results.checks)
    replace_file(folder / "report.md", tables.encode())
    print(f"\n{tables}")
    return int(any(outcome["status"] in ("failed", "out of time", "running") for outcome in results.checks.values()))


if __name__ == "__main__":
    sys.exit(main())
