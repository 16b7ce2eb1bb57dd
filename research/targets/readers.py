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
What a gist is worth when it is asked for facts and sentences of its context, each kind of gist read by a reader of its own.

python -m research.targets.readers                        a pair, then a reader of each rule's gists: see README.md
python -m research.targets.readers --hands facts tail     only these readers
python -m research.targets.readers --seed 43
python -m research.targets.readers --table                the tables of what has run, without running more

The pair is trained on contexts of 128 tokens with gists of at most 16, 6 targets each; a reader as many steps on the same
contexts, the rule's gists in the place of the summarizer's. A run is a JSON file in `--folder`; one that is there is not run
again. Measured are windows of the demo's 19 held-out articles: KL(T‖G) and the share of facts of which every token is
the reader's likeliest, ± standard error over articles.
"""

import argparse
import functools
import json
from pathlib import Path

from trl_gist import GistTrainer
from trl_gist.common.statistics import mean_and_error, with_error
from trl_gist.common.tokens import decode as decode_ids
from trl_gist.scripts.train import load_compressor

import numpy as np

from examples.short_run import quiet_console
from research.common.tables import markdown_table
from research.targets.codes import make_trainer


HANDS = ("facts", "tail", "self-information", "head", "stop-word drop", "tf-idf", "null")
SETTINGS = {
    **{"max_windows_per_document": 4, "max_steps": 100, "num_generations": 6},
    **{"per_device_train_batch_size": 24, "per_device_eval_batch_size": 12},
    **{"learning_rate": 1e-4, "temperature": 0.8, "save_strategy": "no"},
    **{"cold_start_steps": 24, "cold_start_learning_rate": 4e-4, "cold_start_gists": "facts"},
}
COLUMNS = ("kind", "gist_length", "gist_log_prob", "teacher_kl", "exact")


def measure(trainer: GistTrainer, path: Path):
    trainer.evaluate()
    decode = functools.partial(decode_ids, trainer.processing_class)
    rows = [
        {name: row[name] for name in COLUMNS}
        | {"document_id": str(row["document_id"])}
        | {"context": decode(row["context_ids"]), "gist": decode(row["gist_ids"])}
        | {"cue": decode(row["last_k_ids"]), "target": decode(row["target_ids"])}
        for row in trainer.eval_rows
    ]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def train_pair(folder: Path, seed: int):
    """The pair; then through its G what S writes untrained, and what the rules do."""
    trainer = make_trainer(folder, seed, **SETTINGS)
    trainer.train()
    trainer.save_model()
    with trainer.model.disable_adapter():
        measure(trainer, folder / "zero-shot.json")
    trainer.args.generator_only = True
    for hand in HANDS:
        trainer.compressor = None if hand == "null" else load_compressor(hand, trainer)
        measure(trainer, folder / f"{hand}.json")
    trainer.args.generator_only = False
    measure(trainer, folder / "summarizer.json")


def train_reader(folder: Path, seed: int, hand: str):
    trainer = make_trainer(folder, seed, generator_only=True, **SETTINGS)
    if hand != "null":
        trainer.compressor = load_compressor(hand, trainer)
    trainer.train()
    measure(trainer, folder / f"{hand}.json")


def table(pair: Path, readers: Path, kinds: tuple[str, ...]) -> list[str]:
    """On targets of some kinds, KL and facts exact of each hand, read by its own reader and by the pair's, and how much
    higher than S's its KL is."""
    ours = json.loads((pair / "summarizer.json").read_text("utf-8"))
    lines = []
    for label, folder in (("its own reader", readers), ("the pair's G", pair)):
        for hand in ("summarizer", "zero-shot", *HANDS):
            path = (pair if hand == "summarizer" else folder) / f"{hand}.json"
            if not path.is_file() or (hand == "summarizer" and folder != pair):
                continue
            rows = json.loads(path.read_text("utf-8"))
            chosen = [(row, own) for row, own in zip(rows, ours, strict=True) if row["kind"] in kinds]
            if any(row["cue"] != own["cue"] for row, own in chosen):
                raise ValueError(f"{path} has other targets than the pair's: run both on the same data.")
            documents = [row["document_id"] for row, _ in chosen]

            def mean(values, documents=documents):
                return with_error(*mean_and_error(values, documents))

            lines.append(
                [
                    f"{hand}, read by {label}",
                    f"{np.mean([row['gist_length'] for row, _ in chosen]):.1f}",
                    mean([row["teacher_kl"] for row, _ in chosen]),
                    mean([-row["gist_log_prob"] for row, _ in chosen]),
                    mean([row["exact"] for row, _ in chosen]),
                    ""
                    if hand == "summarizer"
                    else mean([row["teacher_kl"] - own["teacher_kl"] for row, own in chosen]),
                ]
            )
    head = [f"{' and '.join(kinds)}: gist of", "tokens", "KL(T‖G)", "NLL", "exact", "KL higher than S's by"]
    return markdown_table(head, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("targets"), help="where runs are kept (default: targets)")
    parser.add_argument("--hands", nargs="*", choices=HANDS, default=HANDS, help="rules to train readers of")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    pair, readers = args.folder / f"pair-{args.seed}", args.folder / f"readers-{args.seed}"
    if not args.table:
        quiet_console()
        if not (pair / "summarizer.json").is_file():
            train_pair(pair, args.seed)
        for hand in args.hands:
            if not (readers / f"{hand}.json").is_file():
                readers.mkdir(parents=True, exist_ok=True)
                train_reader(readers, args.seed, hand)
    for kinds in (("fact",), ("recall",), ("fact", "recall")):
        print("\n".join([*table(pair, readers, kinds), ""]))


if __name__ == "__main__":
    main()
