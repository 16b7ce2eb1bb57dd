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
Which code is worth most once it can be read, and whether a summarizer learns one that no rule writes.

python -m research.targets.codes            all stages, in order; one that is there is not run again
python -m research.targets.codes --table    the tables of what has run

Contexts have 128 tokens, gists at most 16, targets are three facts to one sentence. The stages:

1. One generator learns to read many hands: 64 steps of 6 contexts, each with the gists of 4 of `POOL`, drawn at random.
2. Every code through that generator; the best of a context's gists; and whether the best on half of a context's targets is
   the best on the other half.
3. A pair from there: the summarizer imitates surprising facts on 4,000 contexts, the generator reads the summarizer's
   gists in 25 steps of 12 contexts; then `--steps` of 4 contexts × 8 gists are paid, of which the generator learns from 2.
4. A reader of each rule's own, from the same start: the same 25 steps on the rule's gists.

Measured are 73 contexts of the demo's 19 held-out articles: KL(T‖G), NLL, and the share of facts of which every token is
the reader's likeliest, ± standard error over articles.
"""

import argparse
import dataclasses
import functools
import json
import math
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from trl_gist import GistTrainer
from trl_gist.common.statistics import mean_and_error, with_error
from trl_gist.common.tokens import decode as decode_ids
from trl_gist.data.targets import fact_spans
from trl_gist.data.windows import prepare_windows
from trl_gist.evaluation.compressors.registry import extractive_compressors
from trl_gist.models.generation import greedy_continuations
from trl_gist.prompts import bos_ids, stands_for, targets_of
from trl_gist.scoring.extraction import each_once, surprisals
from trl_gist.scoring.gist_scorer import target_means

import numpy as np
import torch
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import TrainerCallback

from examples.demo_assets import smollm2_checkpoint, split_articles
from examples.short_run import quiet_console, short_config
from research.common.tables import markdown_table


RULES = ("facts", "surprising facts", "tf-idf", "self-information", "stop-word drop", "head", "tail", "random drop")
CODES = (*RULES, "facts, no commas", "facts, first tokens", "surprising facts, no others", "surprising tokens")
POOL = tuple(code for code in CODES if code not in ("surprising facts", "tf-idf", "head", "random drop"))
OWN_READERS = ("facts", "stop-word drop", "tf-idf", "self-information", "tail", "zero-shot", "head", "random drop")
READ_STEPS = 25
TARGETS = {"target_kinds": {"fact": 3, "recall": 1}, "target_floor": 0.5}
GIST = 16


def make_trainer(folder: Path, seed: int = 0, targets_per_context: int = 6, **settings) -> GistTrainer:
    train, held_out = split_articles()
    window = {"context_length": 128, "target_length": 16, "last_k": 16, "max_completion_length": GIST}
    given = {"targets_per_context": targets_per_context, "max_windows_per_document": 40, "length_penalty": 0.0}
    given |= {"generator_learning_rate": 4e-4, "score_batch_size": 24, "disable_tqdm": True}
    return GistTrainer(
        model=str(smollm2_checkpoint()),
        args=short_config(str(folder), seed=seed, **window | TARGETS | given | settings),
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"),
    )


class FactCode:
    """Codes of a context's facts, each fact once: `how` is the name of one of `CODES`."""

    def __init__(self, trainer: GistTrainer, how: str):
        self.tokenizer, self.teacher, self.how = trainer.processing_class, trainer.teacher, how

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        return [self._gist(ids, budget) for ids, budget in zip(contexts, budgets, strict=True)]

    def _gist(self, ids, budget):
        facts = each_once(self.tokenizer, ids, fact_spans(self.tokenizer, ids))
        if self.how == "facts, no commas":
            value = {place: -place for fact in facts for place in fact}
        elif self.how == "facts, first tokens":
            value = {place: -1000 * nth - place for fact in facts for nth, place in enumerate(fact)}
        else:
            bos = bos_ids(self.tokenizer)
            read = [ids[max(0, fact.start - 12) : fact.stop] for fact in facts]
            surprise = surprisals(self.teacher, read, bos, batch_size=64)
            value = {
                p: v
                for fact, row in zip(facts, surprise, strict=True)
                for p, v in zip(fact, row[-len(fact) :], strict=True)
            }
            if self.how == "surprising tokens":  # of all the text, a fact's 2.5 times as much
                (of_text,) = surprisals(self.teacher, [ids], bos)
                first = {}
                for place, surprise in enumerate(of_text):
                    worth = value.get(place, 0.4 * min(surprise, 10))
                    if worth > first.get(ids[place], (-1, 0))[0]:
                        first[ids[place]] = worth, place
                value = {place: worth for worth, place in first.values()}
        return [ids[place] for place in sorted(sorted(value, key=lambda place: -value[place])[:budget])]


class ZeroShot:
    """What the summarizer writes untrained, greedily."""

    def __init__(self, trainer: GistTrainer):
        self.trainer = trainer

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        with self.trainer.model.disable_adapter():
            return greedy_gists(self.trainer, contexts)


def greedy_gists(trainer: GistTrainer, contexts: list[list[int]]) -> list[list[int]]:
    prompts = [trainer.prompts.summarizer(ids) for ids in contexts]
    gists = greedy_continuations(trainer.model, prompts, GIST, trainer.processing_class, batch_size=24)
    return [trainer.prompts.without_special(gist) for gist in gists]


def hands_of(trainer: GistTrainer) -> dict:
    contexts = [row["context_ids"] for row in trainer.train_dataset]
    hands = extractive_compressors(trainer.processing_class, trainer.teacher, contexts, names=RULES)
    hands = {name: hands[name] for name in RULES}
    return hands | {how: FactCode(trainer, how) for how in CODES[len(RULES) :]} | {"zero-shot": ZeroShot(trainer)}


def held_out_windows(trainer: GistTrainer, targets_per_context: int):
    """Of the trainer's sizes and kinds of targets, whatever the number of these that it is trained on."""
    spec = trainer.args.window_spec(trainer.processing_class)
    targets = dataclasses.replace(spec.targets, targets_per_context=targets_per_context)
    spec = dataclasses.replace(spec, targets=targets)
    return prepare_windows(split_articles()[1], trainer.processing_class, spec)[0]


def spread_over_articles(windows, count: int) -> list[dict]:
    """So many windows from all over each article."""
    of_article = {}
    for row in windows:
        of_article.setdefault(str(row["document_id"]), []).append(row)
    return [row for rows in of_article.values() for row in rows[:: max(1, len(rows) // count)][:count]]


class HeldOut:
    """Contexts with their targets, which the teacher has read once."""

    def __init__(self, trainer: GistTrainer):
        self.rows = spread_over_articles(held_out_windows(trainer, 6), 4)
        self.trainer, self.scorer = trainer, trainer.generator_trainer.scorer
        self.documents, self.hidden = read(self.scorer, self.rows)

    def contexts(self) -> list[list[int]]:
        return [stands_for(row) for row in self.rows]

    def measure(self, gists: list[list[int]], path: Path):
        decode, rows = functools.partial(decode_ids, self.trainer.processing_class), []
        scored = self.scorer.score_gists(self.documents, gists, 1, self.hidden, greedy=True)
        for row, document, gist, scores in zip(self.rows, self.documents, gists, scored, strict=True):
            targets = targets_of(document)
            means = (target_means(values_T, targets).tolist() for values_T in scores)
            rows += [
                {"context": decode(row["context_ids"]), "gist": decode(gist), "tokens": len(gist)}
                | {"document_id": str(row["document_id"]), "kind": target["kind"]}
                | {"cue": decode(target["cue_ids"]), "target": decode(target["target_ids"])}
                | {"nll": -log_prob, "kl": kl, "exact": float(greedy == 1)}
                for target, log_prob, kl, greedy in zip(targets, *means, strict=True)
            ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def read(scorer, rows):
    """What is worth asking of each context, and the teacher's hidden states there."""
    documents, hidden = [], []
    for start in range(0, len(rows), 12):
        of_batch = rows[start : start + 12]
        kept, hidden_D, _ = scorer.worth_asking(of_batch, *scorer.read_targets(of_batch))
        documents += kept
        hidden += hidden_D
    return documents, hidden


class Distillation:
    """Steps of the generator on given gists."""

    def __init__(self, trainer: GistTrainer, learning_rate: float):
        self.trainer, self.scorer = trainer.generator_trainer, trainer.generator_trainer.scorer
        self.learning_rate, self.steps = learning_rate, 0
        self.parameters = [p for p in trainer.generator.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)

    def step(self, documents, hidden, gists, each: int = 1):
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(1, self.steps / 3)
        self.trainer.distill(documents, gists, each, hidden)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def load_generator(trainer: GistTrainer, folder: Path):
    set_peft_model_state_dict(trainer.generator, load_file(folder / "generator" / "adapter_model.safetensors"))


def load_pair(trainer: GistTrainer, folder: Path):
    load_generator(trainer, folder)
    set_peft_model_state_dict(trainer.model, load_file(folder / "adapter_model.safetensors"))


def training_rows(trainer: GistTrainer, seed: int) -> list[dict]:
    rows = list(trainer.train_dataset)
    random.Random(seed).shuffle(rows)
    return rows


def train_reader_of_many(folder: Path):
    trainer = make_trainer(folder / "reader")
    hands, rows, rng = hands_of(trainer), training_rows(trainer, 0), random.Random(0)
    distillation = Distillation(trainer, 4e-4)
    for step in range(64):
        of_step = rows[step * 6 : step * 6 + 6]
        gists = []
        for row in of_step:
            gists += [hands[name].compress([stands_for(row)], [GIST])[0] for name in rng.sample(POOL, 4)]
        distillation.step(*read(distillation.scorer, of_step), gists, each=4)
    trainer.save_model(folder / "reader")


def measure_codes(folder: Path):
    trainer = make_trainer(folder / "codes")
    load_generator(trainer, folder / "reader")
    held_out, hands = HeldOut(trainer), hands_of(trainer)
    for code in CODES:
        held_out.measure(
            hands[code].compress(held_out.contexts(), [GIST] * len(held_out.rows)), folder / "codes" / f"{code}.json"
        )
    held_out.measure([[]] * len(held_out.rows), folder / "codes" / "empty.json")


def train_pair(folder: Path, seed: int, steps: int):
    pair = folder / f"pair-{seed}"
    settings = {"num_generations": 8, "per_device_train_batch_size": 32, "score_batch_size": 32, "distilled_gists": 2}
    settings |= {"learning_rate": 1e-4, "generator_learning_rate": 1e-4, "temperature": 0.8, "cold_start_steps": 0}
    trainer = make_trainer(pair, seed, 10, max_steps=steps or 1, save_strategy="no", **settings)
    load_generator(trainer, folder / "reader")
    held_out, rule = HeldOut(trainer), hands_of(trainer)["surprising facts"]
    imitate(trainer, rule, training_contexts(trainer, seed))
    rows, distillation = training_rows(trainer, seed + 1000), Distillation(trainer, 3e-4)
    for step in range(READ_STEPS):
        of_step = rows[step * 12 : step * 12 + 12]
        gists = greedy_gists(trainer, [stands_for(row) for row in of_step])
        distillation.step(*read(distillation.scorer, of_step), gists)

    def measure(label):
        held_out.measure(greedy_gists(trainer, held_out.contexts()), pair / f"summarizer-{label}.json")
        gists = rule.compress(held_out.contexts(), [GIST] * len(held_out.rows))
        held_out.measure(gists, pair / f"surprising facts-{label}.json")

    class Measure(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 20 == 0:
                measure(state.global_step)

    measure(0)
    if steps:
        trainer.add_callback(Measure())
        trainer.train()
    trainer.save_model()


def training_contexts(trainer: GistTrainer, seed: int) -> list[list[int]]:
    """All of the training articles, 128 tokens after the other, more than have targets; then the same from 64 tokens on."""
    texts = [trainer.processing_class(text, verbose=False)["input_ids"] for text in split_articles()[0]["text"]]
    contexts = []
    for first in (0, 64):
        pass_over = [ids[start : start + 128] for ids in texts for start in range(first, len(ids) - 127, 128)]
        random.Random(seed).shuffle(pass_over)
        contexts += pass_over
    return contexts


def imitate(
    trainer: GistTrainer,
    rule,
    contexts: list[list[int]],
    steps=500,
    learning_rate=6e-4,
    budgets: tuple[int, ...] = (GIST,),
):
    """
    The summarizer's cross-entropy on the rule's gists, without a generator, in steps of eight contexts, each of which has
    the next of the budgets.
    """
    end, size = trainer.processing_class.eos_token_id, 8

    def of_step(step):
        read = contexts[step * size : step * size + size]
        own = [budgets[(step * size + index) % len(budgets)] for index in range(size)]
        gists = rule.compress(read, own)
        gists = [gist if len(gist) == budget else [*gist, end] for gist, budget in zip(gists, own, strict=True)]
        return [trainer.prompts.summarizer(*given) for given in zip(read, [None] * size, own, strict=True)], gists

    fit_summarizer(trainer, map(of_step, range(steps)), steps, learning_rate)


def fit_summarizer(
    trainer: GistTrainer, batches: Iterable[tuple[list[list[int]], list[list[int]]]], steps: int, learning_rate: float
):
    """The summarizer's cross-entropy on gists after prompts, a batch a step."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    base, end = trainer.model.get_base_model(), trainer.processing_class.eos_token_id
    progress = tqdm(islice(batches, steps), desc="Imitating", total=steps)
    for step, (prompts, gists) in enumerate(progress):
        width = max(len(prompt) + len(gist) for prompt, gist in zip(prompts, gists, strict=True))
        ids, labels = torch.full((len(prompts), width), end), torch.full((len(prompts), width), -100)
        for index, (prompt, gist) in enumerate(zip(prompts, gists, strict=True)):
            ids[index, : len(prompt) + len(gist)] = torch.tensor(prompt + gist)
            labels[index, len(prompt) : len(prompt) + len(gist)] = torch.tensor(gist)
        hidden = base.model(input_ids=ids).last_hidden_state[:, :-1]
        kept = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(base.lm_head(hidden[kept]).float(), labels[:, 1:][kept])
        for group in optimizer.param_groups:
            decay = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = learning_rate * min(1, (step + 1) / 10) * decay
        loss.backward()
        progress.set_postfix(cross_entropy=f"{loss.item():.3f}")
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def train_own_readers(folder: Path, seed: int, names: list[str]):
    trainer = make_trainer(folder / f"own-{seed}", seed, 10)
    held_out, hands, rows = HeldOut(trainer), hands_of(trainer), training_rows(trainer, seed + 1000)
    batches = []
    for name in names:
        load_generator(trainer, folder / "reader")
        distillation = Distillation(trainer, 3e-4)
        for step in range(READ_STEPS):
            if step == len(batches):
                batches.append(read(distillation.scorer, rows[step * 12 : step * 12 + 12]))
            documents, hidden = batches[step]
            gists = hands[name].compress([stands_for(row) for row in documents], [GIST] * 12)
            distillation.step(documents, hidden, gists)
        gists = hands[name].compress(held_out.contexts(), [GIST] * len(held_out.rows))
        held_out.measure(gists, folder / f"own-{seed}" / f"{name}.json")


# ---- Tables ----


def line(label: str, rows: list[dict], against: list[dict] | None) -> list[str]:
    cells = [label, f"{np.mean([row['tokens'] for row in rows]):.1f}"]
    for kind, name in (("fact", "kl"), ("fact", "nll"), ("fact", "exact"), ("recall", "kl"), (None, "kl")):
        cells.append(mean_of([row for row in rows if kind in (None, row["kind"])], name))
    if against is None:
        return [*cells, ""]
    differences = [row | {"kl": row["kl"] - other["kl"]} for row, other in zip(rows, against, strict=True)]
    return [*cells, mean_of(differences, "kl")]


def mean_of(rows: list[dict], name: str) -> str:
    return with_error(*mean_and_error([row[name] for row in rows], [row["document_id"] for row in rows]))


def best_of_pool(codes: dict[str, list[dict]]) -> tuple[list[dict], list[dict]]:
    """The targets with each context's best gist; and the second half of each context's with the best on the first, and
    the other way round, less the surprising facts' KL there."""
    pools = {}
    for index, row in enumerate(codes["facts"]):
        pools.setdefault(row["context"], []).append(index)
    best, honest = [], []
    for places in pools.values():
        of_code = {code: [rows[place] for place in places] for code, rows in codes.items()}
        best += min(of_code.values(), key=lambda rows: np.mean([row["kl"] for row in rows]))
        if len(places) == 1:
            continue
        for half in (0, 1):
            chosen = min(of_code, key=lambda code: np.mean([row["kl"] for row in of_code[code][half::2]]))
            pairs = zip(of_code[chosen][1 - half :: 2], of_code["surprising facts"][1 - half :: 2], strict=True)
            honest += [row | {"kl": row["kl"] - rule["kl"]} for row, rule in pairs]
    return best, honest


def print_tables(folder: Path, seed: int):
    head = ["gist", "tokens", "facts: KL", "NLL", "exact", "sentences: KL", "all: KL", "higher by"]
    codes = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((folder / "codes").glob("*.json"))}
    if codes:
        print("Through one reader of many hands; higher than surprising facts by:\n")
        print(
            "\n".join(
                markdown_table(head, [line(code, rows, codes["surprising facts"]) for code, rows in codes.items()])
            )
        )
        best, honest = best_of_pool({code: rows for code, rows in codes.items() if code != "empty"})
        print("\nbest of each context's:", mean_of(best, "kl"))
        print("best on half of the targets, on the others, less surprising facts:", mean_of(honest, "kl"), "\n")
    for path in sorted(
        (folder / f"pair-{seed}").glob("summarizer-*.json"), key=lambda path: int(path.stem.split("-")[1])
    ):
        ours, step = json.loads(path.read_text("utf-8")), path.stem.split("-")[1]
        rule = json.loads(path.with_name(f"surprising facts-{step}.json").read_text("utf-8"))
        lines = [line("the summarizer's, its G", ours, None), line("surprising facts, the same G", rule, ours)]
        for own in sorted((folder / f"own-{seed}").glob("*.json")):
            lines.append(line(f"{own.stem}, its own reader", json.loads(own.read_text("utf-8")), ours))
        print(f"After {step} steps of reward; higher than the summarizer's by:\n")
        print("\n".join([*markdown_table(head, lines), ""]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("targets"), help="where runs are kept (default: targets)")
    parser.add_argument(
        "--hands", nargs="*", choices=OWN_READERS, default=OWN_READERS, help="rules to train readers of"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60, help="steps in which the summarizer is paid (default: 60)")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    folder = args.folder
    if not args.table:
        quiet_console()
        if not (folder / "reader" / "generator").is_dir():
            train_reader_of_many(folder)
        if not (folder / "codes" / "empty.json").is_file():
            measure_codes(folder)
        if not (folder / f"pair-{args.seed}" / "generator").is_dir():
            train_pair(folder, args.seed, args.steps)
        left = [name for name in args.hands if not (folder / f"own-{args.seed}" / f"{name}.json").is_file()]
        if left:
            train_own_readers(folder, args.seed, left)
    print_tables(folder, args.seed)


if __name__ == "__main__":
    main()
