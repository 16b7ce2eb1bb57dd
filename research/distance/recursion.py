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
Does training on walks over several windows help where gists are rewritten, window after window?

Trains two pairs by the demo's recipe, on as many gists in as many steps, from the same seed: one on single windows,
one on walks over several (`windows_per_document`), each gist from one before it and the next chunk. What each keeps of
a long document is then measured by

trl-gist distance recursion/walks --pairs single_windows=recursion/single --dataset recursion/held_out.jsonl --windows 12

python -m research.distance.recursion                     both, one after the other; some 30 minutes on two cores
python -m research.distance.recursion --only walks        one of them, to run them apart
"""

import argparse
from pathlib import Path

from examples.demo import make_trainer
from examples.demo_assets import split_articles, spread_out
from examples.short_run import print_measures, quiet_console, train_and_evaluate


KINDS = ("single", "walks")
GISTS_A_STEP = 16
MEASURES = (
    {"teacher_kl": "KL(teacher ‖ generator), nats/token", "null_teacher_kl": "  the same with an empty gist"},
    {
        "gain_over_null": "gain of the gist over null",
        "gain_over_shuffled": "gain of the gist over shuffled",
        "gain_over_last_k": "gain of the gist over last_k",
    },
)


def train(kind: str, output_dir: Path, windows: int, max_steps: int):
    console = quiet_console()
    console.rule(f"[bold]{kind}")
    windows = windows if kind == "walks" else 1
    trainer = make_trainer(
        str(output_dir / kind),
        eval_dataset=spread_out(split_articles()[1], windows_per_article=1, characters=1000 * windows),
        windows_per_document=windows,
        per_device_train_batch_size=GISTS_A_STEP // windows,
        per_device_eval_batch_size=GISTS_A_STEP // windows,
        max_steps=max_steps,
        cold_start_steps=max_steps // 6,
    )
    before, after = train_and_evaluate(console, trainer, "held-out articles")
    print_measures(console, before, after, *MEASURES)
    trainer.save_model()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, help="train this pair alone")
    parser.add_argument("--windows", type=int, choices=(2, 4), default=4, help="of a walk (default: 4)")
    parser.add_argument("--max_steps", type=int, default=60, help="optimizer steps of each (default: 60)")
    parser.add_argument("--output_dir", type=Path, default=Path("recursion"), help="(default: recursion)")
    args = parser.parse_args()
    for kind in KINDS if args.only is None else (args.only,):
        train(kind, args.output_dir, args.windows, args.max_steps)
    articles = args.output_dir / "held_out.jsonl"
    split_articles()[1].rename_column("title", "document_id").to_json(articles)
    print(f"The pairs are in {args.output_dir}, the held-out articles in {articles}.")


if __name__ == "__main__":
    main()
