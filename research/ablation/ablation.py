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
What each piece of the method bought, on the demo's recipe and its held-out articles.

python -m research.ablation.ablation                           all arms, one seed: some nine minutes each on one core
python -m research.ablation.ablation --arms base tail_cold --seeds 42 43 44
python -m research.ablation.ablation --arms open_end rank_4 rank_64 --base open_end
python -m research.ablation.ablation --table                   the table of what has run, without running more

A run is one process with one thread, kept as a JSON file in `--folder` (default: ablation); one that is there is not
run again. Beside the real gist the trained generator reads the tokens just before L, as many of them: the rule to
beat.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


from trl_gist import length_penalty, log_prob_gain
from trl_gist.common.statistics import standard_error, with_error
from trl_gist.prompts import ORIGINAL_GENERATOR_PROMPT, SUMMARIZER_PROMPT
from trl_gist.trainer.cold_start import ExtractiveSummarizer

import numpy as np

from examples.demo import make_trainer
from examples.short_run import quiet_console
from research.common.tables import markdown_table


WITHOUT_L = SUMMARIZER_PROMPT.replace("{context}", "{before_last_k}")
LOG_PROB = {"reward_funcs": [log_prob_gain, length_penalty]}
ORIGINAL = {"generator_prompt": ORIGINAL_GENERATOR_PROMPT}
PLAIN = {"summarizer_prompt": SUMMARIZER_PROMPT, "cold_start_steps": 0, "temperature": 0.7, **LOG_PROB}
TAIL = {"cold_start_gists": "tail", "cold_start_steps": 5, "temperature": 0.7}
REWARDS = ("log_prob_gain", "kl_gain")
# Each is what it changes in the demo's recipe, which is the last
ARMS = {
    "base": PLAIN,
    "without_l": {**PLAIN, "summarizer_prompt": WITHOUT_L},
    "tail_prompt": {"cold_start_steps": 0, "temperature": 0.7, **LOG_PROB},
    "tail_cold": {**TAIL, **LOG_PROB},
    "tail_cold_kl": TAIL,
    "mixed_log_prob": LOG_PROB,
    "mixed_best": {"advantage": "best"},
    "mixed_groups_of_8": {"num_generations": 8},
    "mixed_kl": {},
}
ARMS = {name: ORIGINAL | changes for name, changes in ARMS.items()}
# The demo as it is, and what each setting of it is worth; always 16 gists a step
ARMS |= {
    "open_end": {},
    "no_cold_start": {"cold_start_steps": 0},
    "log_prob": LOG_PROB,
    "groups_of_2": {"num_generations": 2},
    "groups_of_8": {"num_generations": 8},
    "no_length_penalty": {"length_penalty": 0.0},
    "length_penalty_x10": {"length_penalty": 1e-3},
    "summarizer_rate_x3": {"learning_rate": 3e-4},
    "summarizer_rate_by_3": {"learning_rate": 3.3e-5},
    "generator_rate_x3": {"generator_learning_rate": 1.5e-3},
    "generator_rate_by_3": {"generator_learning_rate": 1.67e-4},
    "distil_1": {"distilled_gists": 1},
    "distil_2": {"distilled_gists": 2},
    "rank_4": {"lora_rank": 4},
    "rank_64": {"lora_rank": 64},
}


def run(arm: str, seed: int, folder: Path):
    """Trains and measures one arm in this process."""
    quiet_console()
    out = folder / f"{arm}-{seed}"
    settings = {"save_strategy": "no", "disable_tqdm": True, "seed": seed, "output_dir": str(out)}
    trainer = make_trainer(**settings | ARMS[arm])
    trainer.train()
    trainer.evaluate()
    rows = trainer.eval_rows
    tail = ExtractiveSummarizer("tail")
    tails = [tail.gists(row, [max(1, row["gist_length"])])[0] for row in rows]
    rule = trainer.generator_trainer.scorer.generator_log_probs(rows, tails)
    columns = ("document_id", "gist_ids", "last_k_ids", "gist_log_prob", "null_log_prob", "teacher_kl")
    result = {
        "rows": [
            {name: row[name] for name in columns} | {"rule_log_prob": r} for row, r in zip(rows, rule, strict=True)
        ],
        "log": trainer.state.log_history,
    }
    out.with_suffix(".json").write_text(json.dumps(result))


def print_table(folder: Path, base_arm: str = "base"):
    """
    Means over seeds, in nats per token, each with its standard error over the held-out articles, paired where two arms
    are compared: lower and better by means than `base_arm`. A gain's reliability is the share of its spread within
    groups, in training, that is signal.
    """
    results = {
        arm: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{arm}-[0-9]*.json"))] for arm in ARMS
    }
    base = _mean_rows([result["rows"] for result in results[base_arm]])
    lines = []
    for arm, seeds in results.items():
        if not seeds:
            continue
        rows = _mean_rows([result["rows"] for result in seeds])
        logs = [log for result in seeds for log in result["log"] if "reliability/kl_gain" in log]

        def cell(values, rows=rows):
            return with_error(np.mean(values), standard_error(values, [document for document, _ in rows]))

        lines.append(
            [
                arm,
                str(len(seeds)),
                cell([row["teacher_kl"] for row in rows.values()]),
                cell([base[key]["teacher_kl"] - row["teacher_kl"] for key, row in rows.items()]) if base else "",
                cell([row["gist_log_prob"] - row["null_log_prob"] for row in rows.values()]),
                cell([row["gist_log_prob"] - row["rule_log_prob"] for row in rows.values()]),
                cell([row["gist_log_prob"] - base[key]["gist_log_prob"] for key, row in rows.items()]) if base else "",
                *(f"{np.mean([log[f'reliability/{name}'] for log in logs]):.2f}" for name in REWARDS),
            ]
        )
    head = ["arm", "seeds", "KL(T‖G)", "lower by", "gist over empty", "gist over rule", "better by"]
    print(*markdown_table([*head, *(f"reliability of {name}" for name in REWARDS)], lines), sep="\n")


def _mean_rows(seeds):
    """Each held-out window's figures, means over the seeds."""
    out = {}
    for rows in seeds:
        for row in rows:
            out.setdefault((row["document_id"], tuple(row["last_k_ids"])), []).append(row)
    names = ("gist_log_prob", "null_log_prob", "rule_log_prob", "teacher_kl")
    return {key: {name: np.mean([row[name] for row in same]) for name in names} for key, same in out.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument(
        "--base", choices=ARMS, default="base", help="what the others are held against (default: base)"
    )
    parser.add_argument("--folder", type=Path, default=Path("ablation"))
    parser.add_argument("--table", action="store_true", help="only print what has run")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.child:
        return run(args.arms[0], args.seeds[0], args.folder)
    runs = [] if args.table else [(seed, arm) for seed in args.seeds for arm in args.arms]
    for seed, arm in runs:
        if not (args.folder / f"{arm}-{seed}.json").is_file():
            print(f"{arm}, seed {seed}", flush=True)
            command = [sys.executable, "-m", "research.ablation.ablation", "--child", "--arms", arm]
            subprocess.run([*command, "--seeds", str(seed), "--folder", args.folder], check=True)
    print_table(args.folder, args.base)


if __name__ == "__main__":
    main()
