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
The main job, end to end, on two CPU cores and without the Hugging Face Hub: `make demo`.

Co-trains SmolLM2-135M-Instruct as summarizer and generator on Wikipedia articles, and measures the pair on articles it
never saw. Everything is the real thing but smaller than the defaults: 128 tokens of context instead of 512, 32 of
target instead of 64, gists of at most 24 instead of 48, 16 gists a step, 24 steps instead of 1,500, 6 of them the cold
start. What each setting bought is in docs/ABLATION.md.

python -m examples.demo                                       after the downloads, 7 to 9 minutes on two CPU cores with
                                                              AVX-512 BF16; on older ones three times as long
python -m examples.demo --max_steps 100                       not run yet
python -m examples.demo --generator_only                      the control: G trained as long on empty gists
python -m examples.demo --generator_only --compressor tail    or on another compressor's: docs/COMPRESSORS.md
python -m examples.demo --facts                               paid for facts and sentences of the context: 25 minutes of
                                                              one core, too few to beat a list of facts

The first printed, in nats per token ± standard error over 19 unseen articles (README.md; one seed):

    KL(teacher ‖ generator)          0.357 ± 0.030 before    0.195 ± 0.013 after
    gain of the gist over null       0.086 ± 0.022 before    0.172 ± 0.029 after
    gain of the gist over tail      -0.149 ± 0.027 before    0.047 ± 0.012 after
"""

import argparse
import json
import time
from pathlib import Path

from trl_gist import GistCompactor, GistTrainer
from trl_gist.evaluation import standard_error
from trl_gist.evaluation.compressors.registry import EXTRACTIVE_COMPRESSORS, compressor_name
from trl_gist.evaluation.pages.plots import plot_readers, plot_training
from trl_gist.evaluation.run_report.report import write_report
from trl_gist.prompts import stands_for
from trl_gist.scripts.train import load_compressor

import numpy as np
from peft import LoraConfig
from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo_assets import smollm2_checkpoint, split_articles, spread_out
from examples.recall import first_windows, print_recalled, recalled
from examples.short_run import (
    MEASURES,
    HeldOut,
    next_run_dir,
    print_continuation,
    print_gists,
    print_measures,
    print_verdicts,
    quiet_console,
    short_config,
    train_and_evaluate,
)


# 24 tokens of gist for the next 32; what each setting bought is in docs/ABLATION.md
NEXT_TOKENS = {
    "context_length": 128,
    "target_length": 32,
    "last_k": 16,
    "max_steps": 24,
    "cold_start_steps": 6,
    "cold_start_learning_rate": 5e-4,
    "save_steps": 12,
    "gist_samples_steps": 4,
}
# 16 tokens of gist for facts and sentences of the context. The cold start is long, since each of its gists is read once
FACTS = {
    **NEXT_TOKENS,
    "target_length": 16,
    "max_completion_length": 16,
    "target_kinds": {"fact": 3, "recall": 1},
    "targets_per_context": 6,
    "target_floor": 0.5,
    "cold_start_steps": 18,
    "cold_start_gists": "surprising facts",
    "per_device_train_batch_size": 32,
    "distilled_gists": 1,
    "length_penalty": 0.0,
}
RULES = ("head", "tail", "tf-idf", "stop-word drop", "self-information", "facts")
KINDS = {
    "fact/teacher_kl": "KL(teacher ‖ generator) on facts, nats/token",
    "fact/null_teacher_kl": "  the same with an empty gist",
    "fact/exact": "facts recalled token for token",
    "recall/teacher_kl": "KL(teacher ‖ generator) on sentences",
    "recall/null_teacher_kl": "  the same with an empty gist",
}


def make_trainer(
    output_dir: str,
    reward_funcs: list | None = None,
    eval_dataset=None,
    lora_rank: int = 16,
    recipe: dict = NEXT_TOKENS,
    **overrides,
) -> GistTrainer:
    """A recipe; `overrides` are fields of [`GistConfig`]."""
    train_articles, held_out_articles = split_articles()
    return GistTrainer(
        model=str(smollm2_checkpoint()),
        args=short_config(output_dir, **recipe | overrides),
        train_dataset=train_articles,
        eval_dataset=eval_dataset or spread_out(held_out_articles),
        reward_funcs=reward_funcs,
        peft_config=LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear"),
    )


def main(max_steps: int, output_dir: str | None, generator_only: bool, compressor: str | None, facts: bool = False):
    console = quiet_console()
    started = time.time()
    output_dir = output_dir or next_run_dir("demo")
    recipe = FACTS if facts else NEXT_TOKENS
    trainer = make_trainer(output_dir, recipe=recipe, max_steps=max_steps, generator_only=generator_only)
    if compressor is not None:
        trainer.compressor = load_compressor(compressor, trainer)
    _, held_out_articles = split_articles()
    shown = RecallBeforeAndAfter(console, trainer, held_out_articles[0]["text"]) if facts else None
    before, after = train_and_evaluate(console, trainer, "held-out articles")
    print_gists(console, before, after)
    kinds = {name: label for name, label in KINDS.items() if name in after.measures}
    print_measures(console, before, after, *((kinds, *MEASURES[1:]) if facts else MEASURES))
    print_verdicts(console, before, after, trainer.generator_trainer.scorer)
    if facts:
        print_rules(console, trainer, after)

    trainer.save_model()
    spread_out(held_out_articles).to_json(Path(output_dir, "held_out.jsonl"))
    plot_training(before.log + after.log, Path(output_dir, "plots", "training"))
    plot_readers(before.rows, after.rows, Path(output_dir, "plots", "readers"))
    report = write_report(output_dir)

    if facts:
        console.rule("[bold]What the generator recalls of an unseen article, from the gist alone")
        shown.print(output_dir)
    else:
        console.rule("[bold]One unseen article, compressed and continued")
        print_continuation(console, output_dir, held_out_articles[0])
    console.rule()
    asked = f" --target_kinds '{json.dumps(recipe['target_kinds'])}'" if facts else ""
    console.print(
        f"""Done in {(time.time() - started) / 60:.1f} minutes.
The pair is in {output_dir}, its plots in {output_dir}/plots.
The run on one page, to open in a browser: {report}

What to run next:
  .venv/bin/trl-gist evaluate {output_dir} --dataset {output_dir}/held_out.jsonl{asked} --compressors    against others
  .venv/bin/trl-gist compress {output_dir} FILE --json          a gist for every {trainer.args.context_length} tokens
  .venv/bin/python -m examples.recall {output_dir} FILE         what it recalls of a text of yours
  .venv/bin/trl-gist continue {output_dir} FILE                 go on from the gist
  .venv/bin/python -m examples.demo --max_steps 200            train longer
  .venv/bin/python -m examples.demo --facts                    paid for facts of the context
  .venv/bin/trl-gist train --config configs/smollm2-135m_fineweb-edu.yaml    the original's window, with Hub access
  less examples/minimal_loop.py                                the whole method in a hundred lines""",
        soft_wrap=True,
    )


class RecallBeforeAndAfter:
    """One context with its targets: the gist, and what the generator recalls from it, untrained and trained."""

    def __init__(self, console: Console, trainer: GistTrainer, text: str):
        self.console, folder = console, Path(trainer.args.output_dir, "before")
        trainer.save_model(folder)
        self.before = GistCompactor.from_pretrained(folder)
        *_, self.window = first_windows(self.before, text, 3)
        self.untrained = self._recalled(self.before)

    def _recalled(self, compactor):
        (gist,) = compactor.compress_batch([self.window["context_ids"]])
        return gist, recalled(compactor, self.window, gist.token_ids)

    def print(self, output_dir: str):
        columns = {"before": self.untrained, "after": self._recalled(GistCompactor.from_pretrained(output_dir))}
        print_recalled(self.console, self.before, self.window, columns)


def print_rules(console: Console, trainer: GistTrainer, after: HeldOut):
    """How much more log-probability the trained generator gives the targets with S's gist than with rules' as long."""
    scorer, rows = trainer.generator_trainer.scorer, after.rows
    documents = [row["document_id"] for row in rows]
    contexts = list({tuple(stands_for(row)): None for row in rows})
    console.rule("[bold]Through the same generator, at equal tokens")
    table = Table("", "the summarizer's gist is ahead by, nats/token", box=box.SIMPLE)
    for name in RULES:
        gists = load_compressor(name, trainer).compress(
            list(map(list, contexts)), [trainer.args.tail_length] * len(contexts)
        )
        gist_of = dict(zip(contexts, gists, strict=True))
        log_probs = scorer.generator_log_probs(rows, [gist_of[tuple(stands_for(row))] for row in rows])
        ahead = [row["gist_log_prob"] - value for row, value in zip(rows, log_probs, strict=True)]
        table.add_row(name, f"{np.mean(ahead):.3f} ± {standard_error(ahead, documents):.3f}")
    console.print(table)
    console.print("Readers trained on each rule's gists are not run here: docs/TARGETS.md has them.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=24, help="optimizer steps (default: 24)")
    parser.add_argument("--facts", action="store_true", help="pay gists for facts and sentences of their contexts")
    parser.add_argument("--generator_only", action="store_true", help="train the generator alone, S stays as it is")
    parser.add_argument(
        "--compressor",
        type=compressor_name,
        choices=EXTRACTIVE_COMPRESSORS,
        help="whose gists it reads then (default: empty ones)",
    )
    parser.add_argument("--output_dir", help="where the run goes (default: the next free runs/demo-N)")
    main(**vars(parser.parse_args()))
