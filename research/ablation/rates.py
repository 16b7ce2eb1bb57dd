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
Does a run keep the rate it is asked for? The demo's recipe, on its held-out articles.

python -m research.ablation.rates target       gists of up to 48 tokens, `target_gist_length=24`, 16 steps
python -m research.ablation.rates budgets      `gist_length_range=[8, 24]`, 9 steps
python -m research.ablation.rates divergence   `max_teacher_kl=0.42`, 60 steps

Prints length and λ at every step, then the held-out measures, and the mean length for each range of budgets.
"""

import argparse
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


from trl_gist import length_penalty, log_prob_gain
from trl_gist.prompts import ORIGINAL_GENERATOR_PROMPT

import numpy as np
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from examples.demo import make_trainer
from examples.short_run import quiet_console


COLD_START = {"cold_start_gists": "tail", "cold_start_steps": 5, "temperature": 0.7}
RUNS = {
    "target": {**COLD_START, "target_gist_length": 24, "max_completion_length": 48, "max_steps": 16},
    "budgets": {**COLD_START, "gist_length_range": [8, 24], "max_steps": 9},
    "divergence": {"max_teacher_kl": 0.42, "max_steps": 60},
}


class PrintRate(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "cold_start" in logs:
            shown = ("gist_length", "length_penalty", "teacher_kl", "cold_start")
            print(state.global_step, *(f"{name} {logs[name]:.4f}" for name in shown), flush=True)


def main(name: str, output_dir: str):
    quiet_console()
    # The prompt that the bound on the KL was chosen for, and that docs/ABLATION.md has figures of
    settings = {
        "generator_prompt": ORIGINAL_GENERATOR_PROMPT,
        "save_strategy": "no",
        "disable_tqdm": True,
        "reward_funcs": [log_prob_gain, length_penalty],
    }
    trainer = make_trainer(output_dir, **settings | RUNS[name])
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(PrintRate())
    trainer.train()
    trainer.evaluate()
    measures = trainer.last_measures
    for measure in ("teacher_kl", "gain_over_null", "gist_length"):
        print(f"held out: {measure} {measures[measure]:.3f} ± {measures[f'{measure}_se']:.3f}")
    if name == "budgets":
        lengths = np.array([(row["budget"], row["gist_length"]) for row in trainer.eval_rows])
        for least in range(5, 25, 4):
            budgets, written = lengths[(lengths[:, 0] >= least) & (lengths[:, 0] < least + 4)].T
            print(f"budgets of {budgets.mean():.1f} tokens on average: {written.mean():.1f} written")
        print(f"gists longer than their budget: {(lengths[:, 1] > lengths[:, 0]).sum()} of {len(lengths)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--output_dir", help="where the run goes (default: runs/rates-RUN)")
    arguments = parser.parse_args()
    main(arguments.run, arguments.output_dir or f"runs/rates-{arguments.run}")
