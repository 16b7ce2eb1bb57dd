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
Is the continuation forgotten by a pair that is paid for facts and sentences too?

python -m research.targets.continuation                   the pairs and their table
python -m research.targets.continuation --seed 43
python -m research.targets.continuation --table           the table of what has run
python -m research.targets.continuation --folder later --start continuation/seed-42/alone --steps 12
                                                          they go on from a pair that has learned the next tokens

Pairs with the demo's settings and steps: `alone` is paid for the next 32 tokens, `mixed` for these, two facts and a
sentence, `half` for these and one fact, whatever the teacher gains on them; of `half_tokens` the generator's loss is a mean
over tokens instead. Measured are 6 windows of each of the demo's 19 held-out articles, the same for all: the next 32
tokens by each pair's G from S's greedy gist, and from an empty one. Errors are over articles.
"""

import argparse
import json
from pathlib import Path

from trl_gist import GistTrainer
from trl_gist.common.statistics import mean_and_error, with_error
from trl_gist.data.windows import WindowSpec, prepare_windows

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer

from examples.demo import NEXT_TOKENS, make_trainer
from examples.demo_assets import smollm2_checkpoint, split_articles
from examples.short_run import quiet_console, short_config
from research.common.tables import markdown_table
from research.targets.codes import spread_over_articles


HALF = {"target_kinds": {"continuation": 1, "fact": 1}, "targets_per_context": 2, "target_floor": None}
PAIRS = {
    "alone": {},
    "mixed": {**HALF, "target_kinds": {"continuation": 1, "fact": 2, "recall": 1}, "targets_per_context": 4},
    "half": HALF,
    "half_tokens": {**HALF, "distillation_mean": "tokens"},
}
COLUMNS = ("target_ids", "gist_length", "teacher_kl", "null_teacher_kl", "gist_log_prob")


def held_out(per_article: int) -> Dataset:
    """Ready windows from all over each article, so that all pairs are asked for the same."""
    tokenizer = AutoTokenizer.from_pretrained(str(smollm2_checkpoint()))
    lengths = [NEXT_TOKENS[name] for name in ("context_length", "target_length", "last_k")]
    windows, _ = prepare_windows(split_articles()[1], tokenizer, WindowSpec(*lengths, None, None))
    rows = [
        {"context": row["context_ids"], "last_k": row["last_k_ids"], "target": row["target_ids"]}
        | {"document_id": row["document_id"]}
        for row in spread_over_articles(windows, per_article)
    ]
    return Dataset.from_list(rows)


def run(folder: Path, name: str, seed: int, steps: int, per_article: int, start: str | None):
    settings = {"seed": seed, "max_steps": steps, **PAIRS[name]}
    if start is None:
        trainer = make_trainer(str(folder / name), eval_dataset=held_out(per_article), **settings)
    else:
        args = short_config(str(folder / name), **NEXT_TOKENS | {"cold_start_steps": 0} | settings)
        data = {"train_dataset": split_articles()[0], "eval_dataset": held_out(per_article)}
        trainer = GistTrainer(model=start, args=args, **data)
    trainer.train()
    trainer.save_model()
    trainer.evaluate()
    measured = [
        {column: row[column] for column in COLUMNS} | {"document_id": str(row["document_id"])}
        for row in trainer.eval_rows
    ]
    (folder / f"{name}.json").write_text(json.dumps(measured), encoding="utf-8")


def table(pairs: dict[str, list[dict]]) -> list[str]:
    """Of the pairs that have run, in the order of `PAIRS`."""
    if len({json.dumps([row["target_ids"] for row in rows]) for rows in pairs.values()}) > 1:
        raise ValueError("The pairs were measured on other windows: run them anew.")
    alone = next(iter(pairs.values()))
    lines = []
    for name, rows in pairs.items():

        def mean(column, rows=rows, less=0):
            values = np.array([row[column] for row in rows]) - less
            return with_error(*mean_and_error(values, [row["document_id"] for row in rows]))

        higher = mean("teacher_kl", less=np.array([row["teacher_kl"] for row in alone])) if rows is not alone else ""
        lines.append(
            [name, mean("gist_length"), mean("teacher_kl"), mean("null_teacher_kl"), mean("gist_log_prob"), higher]
        )
    return markdown_table(["paid for", "tokens of gist", "KL", "empty gist's", "log p", "KL higher by"], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("continuation"), help="where runs are kept (default: continuation)"
    )
    parser.add_argument("--start", metavar="PAIR", help="a trained pair to start from (default: the checkpoint)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=NEXT_TOKENS["max_steps"], help="(default: %(default)s)")
    parser.add_argument("--per_article", type=int, default=6, help="windows of a held-out article (default: 6)")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    folder = args.folder / f"seed-{args.seed}"
    if not args.table:
        quiet_console()
        for name in PAIRS:
            if not (folder / f"{name}.json").is_file():
                run(folder, name, args.seed, args.steps, args.per_article, args.start)
    paths = {name: folder / f"{name}.json" for name in PAIRS}
    pairs = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.is_file()}
    if pairs:
        print("\n".join(table(pairs)))


if __name__ == "__main__":
    main()
