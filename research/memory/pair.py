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
Can a gist carry facts from window to window?

Trains SmolLM2-135M-Instruct on a task of `trl_gist.data.tasks`: on walks over several windows, each gist from one
before it and the next chunk; or, the control, on single windows. Both see as many gists in as many steps.

python -m research.memory.pair memory/walks
python -m research.memory.pair memory/single --windows 1
trl-gist evaluate memory/walks --tasks needles ledger --difficulty 2 --lengths 8 --texts 8 \\
    --pairs single_windows=memory/single
"""

import argparse

from trl_gist import GistConfig, GistTrainer
from trl_gist.data.tasks import TASKS, as_documents, make_tasks
from trl_gist.models.machine import fast_dtype
from trl_gist.rewards import length_penalty, log_prob_gain

from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from transformers import AutoTokenizer

from examples.demo_assets import smollm2_checkpoint
from examples.short_run import quiet_console


CHUNK, GIST, LAST_K, TARGET = 256, 32, 16, 16
CONTEXT = GIST + 1 + CHUNK + LAST_K  # a gist, the line break after it, a chunk and L
# Longer than L and the target, so that a text of whole sentences has all its windows
END = 80


def dataset(tasks: list[str], documents: int, windows: int, difficulties: list[int], seed: int):
    """Texts of tasks with each number of facts, to walk along; or with one window, contexts with targets."""
    tokenizer = AutoTokenizer.from_pretrained(str(smollm2_checkpoint()))
    size = {"documents": -(-documents // (len(tasks) * len(difficulties))), "seed": seed}
    if windows > 1:
        size |= {"windows": windows, "window_length": CHUNK, "last_k": END}
    else:
        size["window_length"] = CONTEXT
    rows = concatenate_datasets([make_tasks(tokenizer, tasks, difficulty=facts, **size) for facts in difficulties])
    return as_documents(rows) if windows > 1 else rows


def add_flags(parser: argparse.ArgumentParser, windows: int, contexts: int, num_generations: int):
    """What both trainings are told."""
    parser.add_argument("output_dir", help="where the pair goes")
    for name, value, meaning in (
        ("windows", windows, "of a walk; 1: single windows"),
        ("contexts", contexts, "in a step, of all walks"),
        ("num_generations", num_generations, "gists of a context"),
        ("max_steps", 42, "steps"),
        ("cold_start_steps", 42, "of them, which imitate"),
        ("seed", 1, "of texts and training; not 0, which is measured on"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{meaning} (default: {value})")
    parser.add_argument("--pair", help="goes on learning; by default one is made of SmolLM2-135M-Instruct")


def texts_of(args: argparse.Namespace) -> int:
    """How many a training reads: a text a walk."""
    return args.contexts // args.windows * args.max_steps


def make_trainer(args: argparse.Namespace, train_dataset: Dataset, **settings) -> GistTrainer:
    walks, group = args.contexts // args.windows, args.num_generations
    return GistTrainer(
        model=args.pair or str(smollm2_checkpoint()),
        args=GistConfig(
            args.output_dir,
            context_length=CONTEXT,
            target_length=TARGET,
            last_k=LAST_K,
            max_completion_length=GIST,
            windows_per_document=args.windows,
            num_generations=group,
            per_device_train_batch_size=walks * group,
            score_batch_size=args.contexts * group,
            distilled_gists=1,
            max_steps=args.max_steps,
            cold_start_steps=args.cold_start_steps,
            cold_start_learning_rate=5e-4,
            learning_rate=1e-4,
            generator_learning_rate=5e-4,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=3,
            length_penalty=0.0,
            temperature=0.8,
            seed=args.seed,
            save_steps=10,
            save_total_limit=1,
            logging_steps=1,
            model_init_kwargs={"dtype": fast_dtype()},
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **settings,
        ),
        reward_funcs=[log_prob_gain, length_penalty],
        train_dataset=train_dataset,
        peft_config=None if args.pair else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, windows=4, contexts=8, num_generations=2)
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=["needles", "ledger"], help="(default: needles ledger)"
    )
    parser.add_argument(
        "--difficulty", type=int, nargs="+", default=[1, 2], help="facts in a text, as many of each (default: 1 2)"
    )
    args = parser.parse_args()
    quiet_console()
    trainer = make_trainer(
        args,
        dataset(args.tasks, texts_of(args), args.windows, args.difficulty, args.seed),
        target_floor=None,
        cold_start_gists="answers",
        # The teacher itself mixes facts up that are some windows apart: learn from the answers
        distillation_loss="cross_entropy",
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
