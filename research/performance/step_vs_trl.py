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
A training step of GistTrainer against the afternoon's composition: `trl.GRPOTrainer` with a reward function that holds
two more models, scores every gist row against both, and trains the generator on the same rows again.

Same checkpoint, same windows, same number of gists, all gists of full length, one process, run in turn. Prints seconds
by phase, token-passes, the ratios with their spread, and the machine's matmul rate beside the rate each reached; then
the peak memory of each in a process of its own. On a GPU the phases are timed by CUDA events.

python -m research.performance.step_vs_trl                       # SmolLM2-135M, X=512, 4 documents × 8 gists, LoRA
python -m research.performance.step_vs_trl --full --repeats 1    # full fine-tuning
python -m research.performance.step_vs_trl --profile             # only: which operators GistTrainer's step spends
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from trl_gist.common.tables import console_table

import torch
from rich.console import Console

from research.common.process import memory_status
from research.common.tables import TRAINERS, spread
from research.performance.workload import PHASES, SIZES, add_arguments, build, machine, matmul_rate


def main(args):
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        if args.measure_memory:
            build(args.measure_memory, args, directory).step()
            print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory_status("VmHWM"))
            return
        if args.profile:
            show_profile(build("gist", args, directory))
            return
        trainers = {kind: build(kind, args, directory) for kind in TRAINERS}
        runs = {kind: [] for kind in TRAINERS}
        for repeat in range(args.repeats + 1):
            for kind, timed in trainers.items():
                seconds = timed.step()
                print(
                    f"{TRAINERS[kind]}, {f'step {repeat}' if repeat else 'warm-up'}: {seconds['whole step']:.1f} s",
                    file=sys.stderr,
                )
                if repeat:
                    runs[kind].append(seconds)
        report = {"arguments": vars(args), "machine": machine(), "phases": phases(runs, trainers)}
        report["matmul_flops"] = matmul_rate(args.dtype)
        report["reached_flops"] = {
            kind: {phase: body_flops(trainers[kind], phase, runs[kind], args) for phase in PHASES} for kind in TRAINERS
        }
        trainers.clear()
    if not args.no_memory:
        report["peak_bytes"] = {kind: peak_memory(kind, args) for kind in TRAINERS}
    show(report, args)
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n")


def phases(runs, trainers):
    """Seconds of each counted step, their ratios, and token-passes, by phase."""
    found = {}
    for phase in PHASES:
        naive, ours = ([run[phase] for run in runs[kind]] for kind in TRAINERS)
        found[phase] = {
            "naive_s": naive,
            "gist_s": ours,
            "ratios": [a / b for a, b in zip(naive, ours, strict=True)],
            "token_passes": [
                sum(timed.tokens.values()) if phase == "whole step" else timed.tokens[phase]
                for timed in trainers.values()
            ],
        }
    return found


def body_flops(timed, phase, runs, args):
    """Floating-point operations a second of a phase in the body of the model: two for each weight and token-pass."""
    model = timed.trainer.accelerator.unwrap_model(timed.trainer.model)
    body = sum(p.numel() for name, p in model.named_parameters() if "lora" not in name and "embed" not in name)
    tokens = sum(timed.tokens.values()) if phase == "whole step" else timed.tokens[phase]
    return 2 * body * tokens * args.documents / statistics.median(run[phase] for run in runs)


def peak_memory(kind, args):
    """Peak bytes of one step, in a process of its own."""
    command = [sys.executable, "-m", "research.performance.step_vs_trl", "--measure_memory", kind]
    for name in (*SIZES, "dtype"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--full"] if args.full else []
    command += ["--model", args.model] if args.model else []
    command += ["--text", args.text] if args.text else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])


def show_profile(timed):
    """Time by operator, itself, without those it calls."""
    timed.step()
    with torch.profiler.profile() as profile:
        timed.step()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60))


def show(report, args):
    console = Console(highlight=False, width=120)
    table = console_table(
        f"One step, X={args.context} Y={args.target} |Z|={args.gist}, {args.documents} documents × {args.gists} "
        f"gists, {'full' if args.full else 'LoRA r=32'}, {args.dtype}, {report['machine']}",
        *("phase", *(f"{name}, s" for name in TRAINERS.values()), "ratio", "token-passes a document", "ratio"),
    )
    for phase, found in report["phases"].items():
        before, after = found["token_passes"]
        columns = [spread(found[name], 1) for name in ("naive_s", "gist_s", "ratios")]
        table.add_row(phase, *columns, f"{before:,} → {after:,}", f"{before / after:.1f}")
    console.print(table)
    limit = report["matmul_flops"]
    console.print(f"matmul: {limit / 1e9:.0f} GFLOP/s. In the body of the model, and of that:")
    for kind, of_phase in report["reached_flops"].items():
        parts = (f"{phase} {reached / 1e9:.0f}, {reached / limit:.0%}" for phase, reached in of_phase.items())
        console.print(f"{TRAINERS[kind]}: {'; '.join(parts)}")
    if "peak_bytes" in report:
        naive, ours = report["peak_bytes"].values()
        console.print(f"peak memory: {naive / 1e9:.1f} GB → {ours / 1e9:.1f} GB, {ours / naive:.2f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--no_memory", action="store_true", help="leave out the two runs for peak memory")
    parser.add_argument("--profile", action="store_true", help="profile a step of GistTrainer and nothing else")
    parser.add_argument("--measure_memory", choices=list(TRAINERS), help=argparse.SUPPRESS)
    main(parser.parse_args())
