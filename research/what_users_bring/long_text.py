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
How much memory a document of 100 MB takes, by every route that reads one: its peak above what there was when the command
began, with all of its libraries loaded.

    PYTHONPATH=tests/helpers python -m research.what_users_bring.long_text

The models are tiny, their tokenizer is SmolLM2's. The text is that of the demo's articles over and over; it has letters
for which Python's `str` takes four bytes each. Only Linux says what a process had at most.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

# What the commands import when they run is no part of what they take
import trl_gist.scripts.evaluate
import trl_gist.scripts.train  # noqa: F401
from trl_gist.cli.flags import read_text
from trl_gist.cli.main import main as run_command
from trl_gist.inference.compactor import GistCompactor

import datasets
from tiny import make_model  # of tests/helpers
from transformers import AutoTokenizer

from examples.demo_assets import smollm2_checkpoint, wikipedia_articles
from research.common.process import memory_status
from research.common.tables import markdown_table


SETTINGS = {
    **{"context_length": 256, "target_length": 32, "last_k": 16, "max_completion_length": 8},
    **{"num_generations": 2, "per_device_train_batch_size": 2, "max_steps": 1, "cold_start_steps": 0},
    **{"report_to": "none", "bf16": False, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True},
}
KINDS = '{"continuation": 1, "fact": 2, "recall": 1}'


def train(folder: Path, file: Path, *more: str, output: str = "run"):
    flags = {"model_name_or_path": folder / "tiny", "dataset_path": file, "output_dir": folder / output, **SETTINGS}
    run_command(["train", *(str(part) for name, value in flags.items() for part in (f"--{name}", value)), *more])


def evaluate(folder: Path, file: Path, *more: str):
    flags = ["--max_windows", "2", "--batch_size", "2", "--output_dir", str(folder / "evaluation")]
    run_command(["evaluate", str(folder / "pair"), "--dataset", str(file), *flags, *more])


def compress(folder: Path, file: Path):
    compactor = GistCompactor.from_pretrained(folder / "pair")
    for gist in islice(compactor.iter_windows(read_text(str(file)), batch_size=2), 8):
        print(gist.text)


ROUTES = {
    "`train` on `.txt`": lambda folder, most: train(folder, folder / "long.txt", *most),
    "… streamed": lambda folder, most: train(folder, folder / "long.txt", "--dataset_streaming", "true", *most),
    "… with `target_kinds`": lambda folder, most: train(folder, folder / "long.txt", "--target_kinds", KINDS, *most),
    "`train` on `.jsonl`": lambda folder, most: train(folder, folder / "long.jsonl", *most),
    "… `.jsonl` streamed": lambda folder, most: train(
        folder, folder / "long.jsonl", "--dataset_streaming", "true", *most
    ),
    "`evaluate` on `.txt`": lambda folder, most: evaluate(folder, folder / "long.txt", *most),
    "`evaluate` on `.jsonl`": lambda folder, most: evaluate(folder, folder / "long.jsonl", *most),
    "`compress`, eight gists": lambda folder, _: compress(folder, folder / "long.txt"),
}


def prepare(folder: Path, size: int):
    """A text of so many bytes, as `.txt` and `.jsonl`, tiny models and a pair of them."""
    articles, rng, parts = list(wikipedia_articles()["text"]), random.Random(0), []
    while sum(len(part) for part in parts) < size:
        rng.shuffle(articles)
        parts.append("\n\n".join(articles))
    text = "\n\n".join(parts).encode()[:size].decode(errors="ignore")
    (folder / "long.txt").write_text(text, encoding="utf-8")
    (folder / "long.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    (folder / "short.txt").write_text("\n\n".join(articles[:1]), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_checkpoint())
    tokenizer.save_pretrained(folder / "tiny")
    make_model(tokenizer, hidden_size=16, max_position_embeddings=1024).save_pretrained(folder / "tiny")
    train(folder, folder / "short.txt", output="pair")


def measured(folder: Path, route: str, windows: int | None) -> dict[str, float]:
    """In this process, with a cache and a run of its own: the peak above the start, in MB, and the seconds it took."""
    for name in ("cache", "run", "evaluation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before, began = memory_status("VmHWM"), time.monotonic()
    ROUTES[route](folder, () if windows is None else ("--max_windows_per_document", str(windows)))
    return {"peak": (memory_status("VmHWM") - before) / 1e6, "seconds": time.monotonic() - began}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--routes", nargs="+", default=list(ROUTES), choices=list(ROUTES))
    parser.add_argument("--windows", type=int, help="cut no more of the text; it is read all the same")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "ROUTE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        result = measured(Path(args.measure[0]), args.measure[1], args.windows)
        Path(args.measure[0], "result.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        prepare(folder, args.megabytes * 10**6)
        for route in args.routes:
            command = [sys.executable, "-m", "research.what_users_bring.long_text", "--measure", name, route]
            command += [] if args.windows is None else ["--windows", str(args.windows)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            result = json.loads((folder / "result.json").read_text())
            rows.append([route, f"{result['peak']:.0f}"])
            print(f"{route}: {result['peak']:.0f} MB, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(markdown_table(["route", f"MB above its start, of a text of {args.megabytes} MB"], rows)))


if __name__ == "__main__":
    main()
