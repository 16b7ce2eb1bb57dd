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
Does a tiny run keep to its target length? Not a test: a run's path differs from machine to machine.

PYTHONPATH=tests/helpers python -m research.ablation.rate_seeds

Takes two minutes: 60 rollouts of each of five seeds, towards gists of 4 tokens where 8 are the most. Prints, for each
seed, the shortest mean length of a rollout and the mean over the last quarter, as shares of the target.
"""

import argparse
import tempfile
from pathlib import Path

from trl_gist import GistConfig, GistTrainer
from trl_gist.prompts import SUMMARIZER_PROMPT

from datasets import Dataset, disable_progress_bars
from tiny import make_documents, make_model, make_tokenizer  # of tests/helpers
from transformers import PrinterCallback


TARGET = 4


def lengths(seed: int, checkpoint: str) -> list[float]:
    args = GistConfig(
        f"{checkpoint}-{seed}",
        context_length=24,
        target_length=8,
        last_k=4,
        max_completion_length=2 * TARGET,
        target_gist_length=TARGET,
        summarizer_prompt=SUMMARIZER_PROMPT,
        cold_start_steps=0,
        num_generations=8,
        per_device_train_batch_size=32,
        max_steps=60,
        learning_rate=5e-3,
        generator_learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = GistTrainer(checkpoint, args, train_dataset=Dataset.from_dict({"text": make_documents(24)}))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [log["gist_length"] for log in trainer.state.log_history if "gist_length" in log]


def main(seeds: list[int]):
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder, "tiny"))
        tokenizer = make_tokenizer()
        make_model(tokenizer).save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        for seed in seeds:
            path = [length / TARGET for length in lengths(seed, checkpoint)]
            late = path[-len(path) // 4 :]
            print(f"seed {seed}: shortest {min(path):.2f}, last quarter {sum(late) / len(late):.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 0, 1, 2, 3])
    main(**vars(parser.parse_args()))
