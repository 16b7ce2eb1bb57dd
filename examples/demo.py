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
instead of 1,500. It takes learning rates ten times the defaults, because a run this short has no time.

python examples/demo.py
python examples/demo.py --max_steps 100
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
from demo_assets import smollm2_checkpoint, wikipedia_articles
from peft import LoraConfig
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PrinterCallback, ProgressCallback
from transformers.utils import logging

from trl_gist import GistCompactor, GistConfig, GistTrainer
from trl_gist.callbacks import GistProgressCallback
from trl_gist.evaluation import standard_error
from trl_gist.evaluation.plots import plot_readers, plot_training


HELD_OUT_ARTICLES = 19
READERS = {
    "nll_teacher": "teacher, whole context",
    "nll_tail": "teacher, last K+|Z| tokens",
    "nll_last_k": "teacher, last K tokens",
    "nll_gist": "generator, gist + last K",
    "nll_null": "generator, last K, empty gist",
    "nll_shuffled": "generator, last K, another article's gist",
}


def main(max_steps: int, output_dir: str | None):
    console = Console(highlight=False)
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights; training and evaluation keep theirs
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own, about arguments TRL still passes
    started = time.time()
    checkpoint, articles = str(smollm2_checkpoint()), wikipedia_articles().shuffle(seed=0)
    held_out = articles.select(range(HELD_OUT_ARTICLES))
    output_dir = output_dir or next_run_dir()
    args = GistConfig(
        output_dir=output_dir,
        context_length=128,
        target_length=32,
        last_k=16,
        max_completion_length=24,
        num_generations=4,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        score_batch_size=16,
        max_steps=max_steps,
        learning_rate=1e-4,
        generator_learning_rate=5e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        temperature=0.7,  # at 1.0 a model of this size writes noise, and a group of noise has no signal
        model_init_kwargs={"dtype": "bfloat16"},
        bf16=False,  # the weights are; autocast would only add copies
        gradient_checkpointing=False,
        logging_steps=1,
        save_steps=12,
        report_to="none",
    )
    trainer = GistTrainer(
        model=checkpoint,
        args=args,
        train_dataset=articles.select(range(HELD_OUT_ARTICLES, len(articles))),
        eval_dataset=spread_out(held_out),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(GistProgressCallback())

    console.rule("[bold]Before training: held-out articles")
    before, rows_before, gists_before = evaluate(trainer)
    history = list(trainer.state.log_history)
    console.rule(f"[bold]Training {max_steps} steps")
    trainer.train()
    console.rule("[bold]After training: the same held-out articles")
    after, rows_after, gists_after = evaluate(trainer)
    print_gists(console, gists_before, gists_after)
    print_measures(console, before, after)
    print_verdicts(console, rows_before, rows_after, trainer.generator_trainer.scorer)

    trainer.save_model()
    plot_training(history + trainer.state.log_history, Path(output_dir, "plots", "training"))
    plot_readers(rows_before, rows_after, Path(output_dir, "plots", "readers"))

    console.rule("[bold]One unseen article, compressed and continued")
    continue_article(console, output_dir, held_out[0])
    console.rule()
    console.print(
        f"""Done in {(time.time() - started) / 60:.1f} minutes. The pair is in {output_dir}, its plots in {output_dir}/plots.

What to run next:
  .venv/bin/trl-gist compress {output_dir} FILE --json          a gist for every {args.context_length} tokens of a text
  .venv/bin/trl-gist continue {output_dir} FILE                 go on from the gist
  .venv/bin/python examples/demo.py --max_steps 200            train longer
  .venv/bin/trl-gist train --config configs/smollm2-135m_fineweb-edu.yaml    the original's window, with Hub access
  less examples/minimal_loop.py                                the whole method in a hundred lines""",
        soft_wrap=True,
    )


def next_run_dir():
    """A folder no run has used: nothing is overwritten when the demo runs again."""
    number = 1
    while Path("runs", f"demo-{number}").exists():
        number += 1
    return f"runs/demo-{number}"


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


def evaluate(trainer):
    trainer.evaluate()
    return trainer.last_measures, trainer.eval_rows, trainer.last_gists


def print_gists(console, before, after):
    for old, new in zip(before, after, strict=True):
        console.print(f"[dim]context: … {escape(old['context_end'])}[/dim]")
        for label, example in (("before", old), ("after", new)):
            console.print(f"  gist {label}: [bold]{escape(example['gist'])}[/bold]")


def print_measures(console, before, after):
    table = Table(
        title=f"{after['windows']} windows of {after['documents']} unseen articles, ± standard error over articles",
        box=box.SIMPLE,
        title_justify="left",
    )
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(label, name, digits=3):
        table.add_row(label, *(f"{m[name]:.{digits}f} ± {m[f'{name}_se']:.{digits}f}" for m in (before, after)))

    row("KL(teacher ‖ generator), nats/token", "teacher_kl")
    row("  the same with an empty gist", "null_teacher_kl")
    table.add_section()
    for name, label in READERS.items():
        row(f"NLL, {label}", name)
    table.add_section()
    for control in ("null", "shuffled", "last_k", "tail"):
        row(f"gain of the gist over {control}", f"gain_over_{control}")
    row("gap closed against last_k", "gap_closed_last_k")
    table.add_section()
    row("tokens a gist", "gist_length", 1)
    row("gist rate, |Z|/|X|", "gist_rate")
    row("total rate, all that G reads / |X|", "total_rate")
    console.print(table)


def print_verdicts(console, rows_before, rows_after, scorer):
    """Paired over windows: each held-out window with itself."""
    start = {key(row): row for row in rows_before}
    # The untrained summarizer's gists through the trained generator: what is left is what the summarizer learned
    untrained = scorer.generator_log_probs(rows_after, [start[key(row)]["gist_ids"] for row in rows_after])
    documents = [row["document_id"] for row in rows_after]
    for label, values in {
        "KL fell by": [start[key(row)]["teacher_kl"] - row["teacher_kl"] for row in rows_after],
        "the gist beats an empty gist by": [row["log_prob_gain"] for row in rows_after],
        "the gist beats another article's gist by": [
            row["gist_log_prob"] - row["shuffled_log_prob"] for row in rows_after
        ],
        "through the same generator, the gist beats the untrained summarizer's by": [
            row["gist_log_prob"] - log_prob for row, log_prob in zip(rows_after, untrained, strict=True)
        ],
    }.items():
        mean, error = sum(values) / len(values), standard_error(values, documents)
        verdict = "more than two standard errors" if mean > 2 * error else "within two standard errors"
        console.print(f"{label} {mean:.3f} ± {error:.3f} nats/token: {verdict}")


def key(row):
    return tuple(row["context_ids"])


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
    parser.add_argument("--output_dir", help="where the run goes (default: the next free runs/demo-N)")
    main(**vars(parser.parse_args()))
