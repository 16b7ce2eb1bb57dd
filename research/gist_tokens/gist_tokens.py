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
The reference from the other school: gist tokens (Mu, Li and Goodman, 2023), on the demo's model and windows.

For each k, SmolLM2-135M-Instruct learns to compress a context into the keys and values of k positions, with the demo's
LoRA, learning rate, schedule, loss and steps; beside each its negative control, whose positions know nothing of the
context, and once the positive control, which sees all of it. What is finished is kept in the output folder and not
trained again, so that a run that was stopped goes on, and k can be added.

The demo's generator sees 4 contexts a step, each with 4 gists. A context has only one gist of gist tokens; `--rows 4`
is the same number of contexts, `--rows 16` of rows.

python -m research.gist_tokens.gist_tokens
python -m research.gist_tokens.gist_tokens --pair runs/demo-1
python -m research.gist_tokens.gist_tokens --k 1 10 --rows 16 --output_dir runs/gist-tokens-16
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from trl_gist import GistCompactor
from trl_gist.common.files import replace_file
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.models.attention import use_matmul_attention
from trl_gist.models.roles import clone_with_shared_parameters
from trl_gist.prompts import GistPrompts, before_last_k
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer
from trl_gist.scoring.teacher_cache import TeacherCache

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.demo_assets import smollm2_checkpoint, split_articles, spread_out
from examples.short_run import quiet_console
from research.gist_tokens.measures import (
    add_rouge_l,
    gist_tokens_tables,
    plot_gist_tokens,
    read_gist_tokens,
    read_prompts,
    summarize_reader,
)
from research.gist_tokens.model import WEIGHTS_FILE, GistTokenModel, train_gist_tokens


SPEC = WindowSpec(context_length=128, target_length=32, last_k=16, window_stride=None, max_windows_per_document=None)


@dataclass
class Experiment:
    """What every arm shares."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scorer: GistScorer
    train: list[dict]
    held_out: list[dict]
    references: list[str]
    output_dir: Path
    console: Console


def load_windows(tokenizer) -> tuple[list[dict], list[dict]]:
    """The demo's: for training, and held out."""
    train_articles, held_out_articles = split_articles()
    train, _ = prepare_windows(train_articles, tokenizer, SPEC)
    held_out, _ = prepare_windows(spread_out(held_out_articles), tokenizer, SPEC, name="evaluation")
    return list(train), list(held_out)


def prepare(checkpoint: str, windows: tuple[list[dict], list[dict]], output_dir: Path, batch_size: int, console):
    """The teacher, and what it makes of the held-out windows."""
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval().requires_grad_(False)
    use_matmul_attention(base)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompts = GistPrompts.from_tokenizer(tokenizer, "{context}")
    teacher = TargetScorer(clone_with_shared_parameters(base))
    cache = TeacherCache(output_dir / "teacher", teacher.model, prompts)
    scorer = GistScorer(teacher, teacher, prompts, batch_size, teacher_cache=cache)
    return Experiment(base, tokenizer, scorer, *windows, [], output_dir, console)


def finished(path: Path, make) -> list[dict]:
    """Rows that are there already, or made now and written at once."""
    if not path.is_file():
        rows = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(rows, ensure_ascii=False) + "\n").encode())
    return json.loads(path.read_text(encoding="utf-8"))


def read_teacher(experiment: Experiment) -> dict[str, list[dict]]:
    """The teacher on the whole context, and on L alone."""
    scorer, windows = experiment.scorer, experiment.held_out
    prompts = {
        "full": [scorer.prompts.teacher(row["context_ids"], row["last_k_ids"]) for row in windows],
        "last_k": [scorer.prompts.plain(row["last_k_ids"]) for row in windows],
    }
    kept = {
        "full": [before_last_k(row["context_ids"], row["last_k_ids"]) for row in windows],
        "last_k": [[] for _ in windows],
    }

    def read(name):
        return read_prompts(
            scorer.teacher, windows, prompts[name], scorer, experiment.tokenizer, kept[name], readable=name == "full"
        )

    return {
        name: finished(experiment.output_dir / name / "rows.json", lambda name=name: read(name)) for name in prompts
    }


def run_arm(experiment: Experiment, k: int, condition: str, steps: int, rows_per_step: int, seed: int) -> list[dict]:
    """Trains and reads one model of gist tokens."""
    directory = experiment.output_dir / f"{condition}-{k}"

    def make():
        started = time.time()
        torch.manual_seed(seed)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(clone_with_shared_parameters(experiment.base), lora)
        model = GistTokenModel(adapted, experiment.scorer.prompts, k, condition)
        if Path(directory, WEIGHTS_FILE).is_file():
            model.load(directory)
        else:
            losses = train_gist_tokens(
                model,
                experiment.scorer,
                experiment.train,
                steps,
                rows_per_step,
                seed=seed,
                track=lambda all_steps: track(all_steps, f"{condition}, k = {k}", console=experiment.console),
            )
            model.save(directory)
            Path(directory, "losses.json").write_text(json.dumps(losses))
        rows = read_gist_tokens(model, experiment.held_out, experiment.scorer, experiment.tokenizer)
        experiment.console.print(f"{condition}, k = {k}: {time.time() - started:.0f} s")
        return rows

    return finished(directory / "rows.json", make)


def read_pair(experiment: Experiment, pair_dir: str) -> dict[str, list[dict]]:
    """A trained pair's generator with its greedy gists, and with the empty gist."""
    compactor = GistCompactor.from_pretrained(pair_dir)
    pair, windows = compactor.pair, experiment.held_out
    if (pair.context_length, pair.last_k) != (SPEC.context_length, SPEC.last_k):
        raise ValueError(
            f"`--pair` ({pair_dir}) was trained with context_length={pair.context_length} and last_k={pair.last_k}, the "
            f"windows here have {SPEC.context_length} and {SPEC.last_k}. Pass a pair of examples/demo.py."
        )
    for model in (compactor.summarizer, compactor.generator):
        use_matmul_attention(model)
    contexts, last_ks = ([row[name] for row in windows] for name in ("context_ids", "last_k_ids"))
    gists = [gist.token_ids for gist in compactor.compress_batch(contexts, last_k=last_ks, batch_size=16)]
    generator = TargetScorer(compactor.generator)

    def read(kept, readable):
        prompts = [compactor.prompts.generator(ids, last_k) for ids, last_k in zip(kept, last_ks, strict=True)]
        return read_prompts(generator, windows, prompts, experiment.scorer, experiment.tokenizer, kept, readable)

    return {"text": read(gists, True), "null": read([[] for _ in gists], False)}


def summarize(experiment, teacher, arms, pair):
    """Every reader's measures, in the order of the table."""
    for rows in (*teacher.values(), *arms.values(), *pair.values()):
        add_rouge_l(rows, [row["continuation"] for row in teacher["full"]])
    readers = [summarize_reader("T: all of X", "full", teacher["full"])]
    for (condition, k), rows in arms.items():
        if condition == "positive":
            readers.append(summarize_reader(f"positive, k = {k}", condition, rows))
    for (condition, k), rows in arms.items():
        if condition == "gist":
            readers.append(summarize_reader(f"gist, k = {k}", condition, rows, arms["negative", k]))
    for (condition, k), rows in arms.items():
        if condition == "negative":
            readers.append(summarize_reader(f"negative, k = {k}", condition, rows))
    if pair:
        readers.append(summarize_reader("text gist (pair)", "text", pair["text"], pair["null"]))
        readers.append(summarize_reader("empty gist (pair)", "null", pair["null"]))
    return [*readers, summarize_reader("T: nothing but L", "last_k", teacher["last_k"])]


def main(
    k: list[int],
    steps: int,
    rows: int,
    pair: str | None,
    output_dir: str,
    seed: int = 0,
    checkpoint: str | None = None,
    windows: tuple[list[dict], list[dict]] | None = None,
) -> list[dict]:
    console = quiet_console()
    checkpoint = str(checkpoint or smollm2_checkpoint())
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    recipe = {"steps": steps, "rows": rows, "seed": seed}
    if finished(directory / "recipe.json", lambda: recipe) != recipe:
        raise ValueError(
            f"`--output_dir` ({output_dir}) holds arms of another recipe than {recipe}; see recipe.json there. Pass "
            "another folder."
        )
    windows = windows or load_windows(AutoTokenizer.from_pretrained(checkpoint))
    experiment = prepare(checkpoint, windows, directory, batch_size=16, console=console)
    console.print(f"{len(experiment.train)} windows to train on, {len(experiment.held_out)} held out")
    teacher = read_teacher(experiment)
    arms = [*((condition, count) for count in k for condition in ("gist", "negative")), ("positive", 1)]
    arms = {arm: run_arm(experiment, arm[1], arm[0], steps, rows, seed) for arm in arms}
    readers = summarize(experiment, teacher, arms, read_pair(experiment, pair) if pair else {})

    (directory / "measures.json").write_text(json.dumps(recipe | {"readers": readers}, indent=2) + "\n")
    plot_gist_tokens(readers, directory / "gist_tokens")
    for table in gist_tokens_tables(readers):
        Console(highlight=False, width=max(100, console.width)).print(table)
    console.print(f"In {output_dir}: measures.json, gist_tokens.png, gist_tokens.svg and a folder for each reader.")
    return readers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 5, 10, 48], help="numbers of gist tokens")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of each arm (default: 24)")
    parser.add_argument("--rows", type=int, default=4, help="windows a step (default: 4)")
    parser.add_argument("--pair", help="folder of a trained pair, to read beside them")
    parser.add_argument("--output_dir", default="runs/gist-tokens", help="where it goes, and goes on")
    main(**vars(parser.parse_args()))
