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

python -m research.targets.continuation                   two pairs and their tables
python -m research.targets.continuation --seed 43
python -m research.targets.continuation --table           the tables of what has run

Two pairs with the demo's settings and steps: one is paid for the next 32 tokens alone, the other for these, two facts
and a sentence. Measured are 8 windows of each of the demo's 19 held-out articles, the same for both: the KL and NLL of
the next 32 tokens by each pair's G from S's greedy gist, from the last tokens and from an empty gist; and three facts
and a sentence of each context. Errors are over articles.
"""

import argparse
import json
from pathlib import Path

from trl_gist.common.statistics import ratio_and_error, with_error
from trl_gist.data.targets import TargetSpec
from trl_gist.data.windows import WindowSpec, prepare_windows

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer

from examples.demo import NEXT_TOKENS, make_trainer
from examples.demo_assets import smollm2_checkpoint, split_articles
from examples.short_run import quiet_console
from research.common.tables import markdown_table


PAIRS = {
    "alone": {},
    "mixed": {"target_kinds": {"continuation": 1, "fact": 2, "recall": 1}, "targets_per_context": 4},
}
ASKED = {"next tokens": None, "facts and sentences": TargetSpec((("fact", 3), ("recall", 1)), targets_per_context=4)}
COLUMNS = ("kind", "gist_length", "teacher_kl", "null_teacher_kl", "gist_log_prob", "nll_tail")


def held_out(asked: TargetSpec | None, per_article: int) -> Dataset:
    """Ready windows from all over each article, so that both pairs are asked for the same."""
    tokenizer = AutoTokenizer.from_pretrained(str(smollm2_checkpoint()))
    lengths = [NEXT_TOKENS[name] for name in ("context_length", "target_length", "last_k")]
    windows, _ = prepare_windows(split_articles()[1], tokenizer, WindowSpec(*lengths, None, None, targets=asked))
    of_article = {}
    for row in windows:
        of_article.setdefault(row["document_id"], []).append(row)
    rows = []
    for windows in of_article.values():
        for row in windows[:: max(1, len(windows) // per_article)][:per_article]:
            ready = {"context": row["context_ids"], "document_id": row["document_id"]}
            if asked is None:
                ready |= {"last_k": row["last_k_ids"], "target": row["target_ids"]}
            else:
                ready["targets"] = [
                    {"cue": target["cue_ids"], "target": target["target_ids"], "kind": target["kind"]}
                    for target in row["targets"]
                ]
            rows.append(ready)
    return Dataset.from_list(rows)


def run(folder: Path, name: str, seed: int, steps: int, per_article: int):
    asked = {which: held_out(spec, per_article) for which, spec in ASKED.items()}
    trainer = make_trainer(
        str(folder / name), eval_dataset=asked, seed=seed, max_steps=steps, target_floor=None, **PAIRS[name]
    )
    trainer.train()
    trainer.save_model()
    measured = {}
    for which in asked:
        trainer.evaluate(trainer.eval_dataset[which], metric_key_prefix=f"eval_{which}")
        measured[which] = [
            {column: row[column] for column in COLUMNS if column in row}
            | {"document_id": row["document_id"], "target": row["target_ids"]}
            for row in trainer.eval_rows
        ]
        (folder / f"{name}.json").write_text(json.dumps(measured), encoding="utf-8")


def table(pairs: dict[str, dict], which: str) -> list[str]:
    rows_of = {name: pair[which] for name, pair in pairs.items() if which in pair}
    if len({json.dumps([row["target"] for row in rows]) for rows in rows_of.values()}) > 1:
        raise ValueError("The pairs were measured on other targets: run both anew.")
    documents = [row["document_id"] for row in next(iter(rows_of.values()))]

    def mean(values):
        return with_error(*ratio_and_error(np.array(values, float), np.ones(len(values)), documents))

    kls = {name: np.array([row["teacher_kl"] for row in rows]) for name, rows in rows_of.items()}
    lines = [
        [
            name,
            f"{np.mean([row['gist_length'] for row in rows]):.1f}",
            mean(kls[name]),
            mean([row["null_teacher_kl"] for row in rows]),
            mean([-row["gist_log_prob"] for row in rows]),
            "" if name == "alone" or "alone" not in kls else mean(kls[name] - kls["alone"]),
        ]
        for name, rows in rows_of.items()
    ]
    return markdown_table([f"{which}, paid for", "tokens of gist", "KL", "empty gist's", "NLL", "KL higher by"], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("continuation"), help="where runs are kept (default: continuation)"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=NEXT_TOKENS["max_steps"], help="(default: %(default)s)")
    parser.add_argument("--per_article", type=int, default=8, help="windows of a held-out article (default: 8)")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    folder = args.folder / f"seed-{args.seed}"
    if not args.table:
        quiet_console()
        for name in PAIRS:
            if not (folder / f"{name}.json").is_file():
                run(folder, name, args.seed, args.steps, args.per_article)
    paths = {name: folder / f"{name}.json" for name in PAIRS}
    pairs = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.is_file()}
    for which in ASKED if pairs else ():
        print("\n".join([*table(pairs, which), ""]))


if __name__ == "__main__":
    main()
