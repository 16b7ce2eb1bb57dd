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
never saw. Everything is the real thing but smaller than the defaults, so that it ends in under 15 minutes: 128 tokens
of context instead of 512, 32 of target instead of 64, gists of at most 24 instead of 48, 16 gists a step, 24 steps
instead of 1,500, 6 of them the cold start. It takes learning rates ten times the defaults, because a run this short has
no time. What each setting bought is in docs/ABLATION.md.

python -m examples.demo
python -m examples.demo --max_steps 100
python -m examples.demo --generator_only                      the control: G trained as long on empty gists
python -m examples.demo --generator_only --compressor tail    or on another compressor's
"""

import argparse
import time
from pathlib import Path

from trl_gist import GistCompactor, GistConfig, GistTrainer
from trl_gist.evaluation.compressors.registry import EXTRACTIVE_COMPRESSORS
from trl_gist.evaluation.pages.plots import plot_readers, plot_training
from trl_gist.evaluation.run_report.report import write_report
from trl_gist.scripts.train import load_compressor

import torch
from peft import LoraConfig
from rich.markup import escape

from examples.demo_assets import smollm2_checkpoint, wikipedia_articles
from examples.short_run import (
    next_run_dir,
    print_gists,
    print_measures,
    print_verdicts,
    quiet_console,
    train_and_evaluate,
)


HELD_OUT_ARTICLES = 19
MEASURES = (
    {"teacher_kl": "KL(teacher ‖ generator), nats/token", "null_teacher_kl": "  the same with an empty gist"},
    {
        "nll_teacher": "NLL, teacher, whole context",
        "nll_tail": "NLL, teacher, last K+|Z| tokens",
        "nll_last_k": "NLL, teacher, last K tokens",
        "nll_gist": "NLL, generator, gist + last K",
        "nll_null": "NLL, generator, last K, empty gist",
        "nll_shuffled": "NLL, generator, last K, another article's gist",
    },
    {
        "gain_over_null": "gain of the gist over null",
        "gain_over_shuffled": "gain of the gist over shuffled",
        "gain_over_last_k": "gain of the gist over last_k",
        "gain_over_tail": "gain of the gist over tail",
        "gap_closed_last_k": "gap closed against last_k",
    },
    {
        "gist_length": "tokens a gist",
        "gist_rate": "gist rate, |Z|/|X|",
        "total_rate": "total rate, all that G reads / |X|",
    },
)


def make_trainer(
    output_dir: str, reward_funcs: list | None = None, eval_dataset=None, lora_rank: int = 16, **overrides
) -> GistTrainer:
    """The recipe; `overrides` are fields of [`GistConfig`]."""
    articles = wikipedia_articles().shuffle(seed=0)
    recipe = {
        "output_dir": output_dir,
        "context_length": 128,
        "target_length": 32,
        "last_k": 16,
        "max_completion_length": 24,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "score_batch_size": 16,
        "max_steps": 24,
        "cold_start_steps": 6,
        "cold_start_learning_rate": 5e-4,
        "learning_rate": 1e-4,
        "generator_learning_rate": 5e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        "model_init_kwargs": {"dtype": "bfloat16"},
        "bf16": False,  # the weights are; autocast would only add copies
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 12,
        "gist_samples_steps": 4,
        "report_to": "none",
    }
    return GistTrainer(
        model=str(smollm2_checkpoint()),
        args=GistConfig(**recipe | overrides),
        train_dataset=articles.select(range(HELD_OUT_ARTICLES, len(articles))),
        eval_dataset=eval_dataset or held_out_pieces(),
        reward_funcs=reward_funcs,
        peft_config=LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear"),
    )


def main(max_steps: int, output_dir: str | None, generator_only: bool, compressor: str | None):
    console = quiet_console()
    started = time.time()
    output_dir = output_dir or next_run_dir("demo")
    trainer = make_trainer(output_dir, max_steps=max_steps, generator_only=generator_only)
    if compressor is not None:
        trainer.compressor = load_compressor(compressor, trainer)
    before, after = train_and_evaluate(console, trainer, "held-out articles")
    print_gists(console, before, after)
    print_measures(console, before, after, *MEASURES)
    print_verdicts(console, before, after, trainer.generator_trainer.scorer)

    trainer.save_model()
    held_out_pieces().to_json(Path(output_dir, "held_out.jsonl"))
    plot_training(before.log + after.log, Path(output_dir, "plots", "training"))
    plot_readers(before.rows, after.rows, Path(output_dir, "plots", "readers"))
    report = write_report(output_dir)

    console.rule("[bold]One unseen article, compressed and continued")
    continue_article(console, output_dir, wikipedia_articles().shuffle(seed=0)[0])
    console.rule()
    console.print(
        f"""Done in {(time.time() - started) / 60:.1f} minutes. The pair is in {output_dir}, its plots in {output_dir}/plots.
The run on one page, to open in a browser: {report}

What to run next:
  .venv/bin/trl-gist evaluate {output_dir} --dataset {output_dir}/held_out.jsonl --compressors    against other compressors
  .venv/bin/trl-gist compress {output_dir} FILE --json          a gist for every {trainer.args.context_length} tokens of a text
  .venv/bin/trl-gist continue {output_dir} FILE                 go on from the gist
  .venv/bin/python -m examples.demo --max_steps 200            train longer
  .venv/bin/trl-gist train --config configs/smollm2-135m_fineweb-edu.yaml    the original's window, with Hub access
  less examples/minimal_loop.py                                the whole method in a hundred lines""",
        soft_wrap=True,
    )


def held_out_pieces():
    """What no run of the demo trains on."""
    return spread_out(wikipedia_articles().shuffle(seed=0).select(range(HELD_OUT_ARTICLES)))


def spread_out(articles, windows_per_article=3, characters=1200):
    """Pieces from all over each article: neighbouring windows say much the same."""

    def pieces(batch):
        out = {"text": [], "document_id": []}
        for title, text in zip(batch["title"], batch["text"], strict=True):
            for index in range(windows_per_article):
                start = text.find(" ", index * len(text) // windows_per_article)
                out["text"].append(text[start : start + characters])
                out["document_id"].append(title)
        return out

    return articles.map(pieces, batched=True, remove_columns=["title"])


def continue_article(console, pair_dir, article):
    compactor = GistCompactor.from_pretrained(pair_dir)
    ids = compactor.tokenizer(article["text"], add_special_tokens=False)["input_ids"][1000:1160]
    text, reference = compactor.tokenizer.decode(ids[:128]), compactor.tokenizer.decode(ids[128:])
    torch.manual_seed(0)
    continuation = compactor.continue_text(text, max_new_tokens=48)
    console.print(f"[bold]{article['title']}[/bold], context of {continuation.gist.context_tokens} tokens:")
    for label, value in (
        ("context", text),
        ("gist", f"{continuation.gist.text}   ({len(continuation.gist.token_ids)} tokens)"),
        ("continued from the gist and the last 16 tokens", continuation.text),
        ("how the article goes on", reference),
    ):
        console.print(f"[dim]{label}:[/dim] {escape(value)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=24, help="optimizer steps (default: 24)")
    parser.add_argument("--generator_only", action="store_true", help="train the generator alone, S stays as it is")
    parser.add_argument(
        "--compressor", choices=EXTRACTIVE_COMPRESSORS, help="whose gists it reads then (default: empty ones)"
    )
    parser.add_argument("--output_dir", help="where the run goes (default: the next free runs/demo-N)")
    main(**vars(parser.parse_args()))
