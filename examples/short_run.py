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

"""What the examples that train for minutes share: settings, quiet logs, and a pair before and after its training."""

import warnings
from pathlib import Path
from typing import NamedTuple

from trl_gist import GistCompactor, GistConfig, GistTrainer
from trl_gist.common.tokens import characters_of
from trl_gist.evaluation import standard_error
from trl_gist.evaluation.question_answering import answers_table
from trl_gist.models.machine import fast_dtype
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.trainer.callbacks import GistProgressCallback

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback
from transformers.utils import logging


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


class HeldOut(NamedTuple):
    """What an evaluation leaves, and the log so far, which the Trainer empties when it starts to train."""

    measures: dict
    rows: list[dict]
    gists: list[dict]
    log: list[dict]


def short_config(output_dir: str, **settings) -> GistConfig:
    """16 gists a step of at most 24 tokens, for two CPU cores. `settings` come on top: windows, steps and others."""
    defaults = {
        "max_completion_length": 24,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "score_batch_size": 16,
        # Ten times the defaults: a run this short has no time
        "learning_rate": 1e-4,
        "generator_learning_rate": 5e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        "model_init_kwargs": {"dtype": fast_dtype()},
        "bf16": False,  # the weights are; autocast would only add copies
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
    }
    return GistConfig(output_dir, **defaults | settings)


def quiet_console() -> Console:
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights; training and evaluation keep theirs
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own, about arguments TRL still passes
    return Console(highlight=False)


def next_run_dir(name: str) -> str:
    """A folder no run has used: nothing is overwritten when the example runs again."""
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return f"runs/{name}-{number}"


def train_and_evaluate(console: Console, trainer: GistTrainer, held_out: str) -> tuple[HeldOut, HeldOut]:
    """Before training, and after."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(GistProgressCallback())
    console.rule(f"[bold]Before training: {held_out}")
    before = _evaluate(trainer)
    console.rule(f"[bold]Training {trainer.args.max_steps} steps")
    trainer.train()
    console.rule(f"[bold]After training: the same {held_out}")
    return before, _evaluate(trainer)


def _evaluate(trainer):
    trainer.evaluate()
    return HeldOut(trainer.last_measures, trainer.eval_rows, trainer.last_gists, list(trainer.state.log_history))


def print_gists(console: Console, before: HeldOut, after: HeldOut):
    for old, new in zip(before.gists, after.gists, strict=True):
        console.print(f"[dim]context: … {escape(old['context_end'])}[/dim]")
        for label, example in (("before", old), ("after", new)):
            console.print(f"  gist {label}: [bold]{escape(example['gist'])}[/bold]")


def print_measures(console: Console, before: HeldOut, after: HeldOut, *sections: dict[str, str]):
    """Measures of [`trl_gist.evaluation.summarize`] with their standard errors: `{name: label}` in each section."""
    windows, articles = len(after.rows), after.measures["documents"]
    table = Table(
        title=f"{windows} windows of {articles} unseen articles, ± standard error over articles",
        box=box.SIMPLE,
        title_justify="left",
    )
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")
    for section in sections:
        for name, label in section.items():
            digits = 1 if name == "gist_length" else 3
            measures = before.measures, after.measures
            table.add_row(label, *(f"{m[name]:.{digits}f} ± {m[f'{name}_se']:.{digits}f}" for m in measures))
        table.add_section()
    console.print(table)


def print_verdicts(console: Console, before: HeldOut, after: HeldOut, scorer: GistScorer):
    """Paired over windows: each held-out window with itself."""
    start, rows = {_window(row): row for row in before.rows}, after.rows
    # The untrained summarizer's gists through the trained generator: what is left is what the summarizer learned
    untrained = scorer.generator_log_probs(rows, [start[_window(row)]["gist_ids"] for row in rows])
    documents = [row["document_id"] for row in rows]
    for label, values in {
        "KL fell by": [start[_window(row)]["teacher_kl"] - row["teacher_kl"] for row in rows],
        "the gist beats an empty gist by": [row["log_prob_gain"] for row in rows],
        "the gist beats another article's gist by": [row["gist_log_prob"] - row["shuffled_log_prob"] for row in rows],
        "through the same generator, the gist beats the untrained summarizer's by": [
            row["gist_log_prob"] - log_prob for row, log_prob in zip(rows, untrained, strict=True)
        ],
    }.items():
        mean, error = sum(values) / len(values), standard_error(values, documents)
        verdict = "more than two standard errors" if mean > 2 * error else "within two standard errors"
        console.print(f"{label} {mean:.3f} ± {error:.3f} nats/token: {verdict}")


def print_continuation(console: Console, pair_dir: str, article: dict[str, str]):
    """128 tokens from within an article, compressed by a saved pair and gone on with, beside what really follows."""
    compactor = GistCompactor.from_pretrained(pair_dir)
    ids = compactor.token_ids(article["text"], "The article")[1000:1160]
    cut = characters_of(compactor.tokenizer).cut(ids, 128)
    text, reference = compactor.decode(ids[:cut]), compactor.decode(ids[cut:])
    torch.manual_seed(0)
    continuation = compactor.continue_text(text, max_new_tokens=48)
    console.print(f"[bold]{article['title']}[/bold], context of {continuation.gist.context_tokens} tokens:")
    for label, value in {
        "context": text,
        "gist": f"{continuation.gist.text}   ({len(continuation.gist.token_ids)} tokens)",
        f"continued from the gist and the last {compactor.pair.last_k} tokens": continuation.text,
        "how the article goes on": reference,
    }.items():
        console.print(f"[dim]{label}:[/dim] {escape(value)}")


def print_answers(console: Console, rows: list[dict], answers: list[dict], tokenizer: PreTrainedTokenizerBase):
    """Of [`~trl_gist.evaluation.question_answering.answer_questions`]: three of them, and how good all are."""
    console.rule("[bold]Answered from gists alone")
    for row, answer in zip(rows[:3], answers[:3], strict=True):
        question = tokenizer.decode(row["last_k_ids"]).strip()
        console.print(f"[dim]{escape(row['document_id'])}:[/dim] {escape(question)}")
        console.print(f"  gist: {escape(answer['gist'])}")
        console.print(
            f"  answered: [bold]{escape(answer['generator_gist_answer'])}[/bold]; the teacher, from the passage: "
            f"{escape(answer['teacher_passage_answer'])}; it is {escape(answer['references'][0])}"
        )
    console.rule("[bold]How well, and from what")
    console.print(answers_table(answers))


def _window(row):
    return tuple(row["context_ids"]), tuple(row["last_k_ids"])
