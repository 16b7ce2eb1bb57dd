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
What choosing among a summarizer's samples could gain: whether exploration, or telling good from bad, is the wall.

python -m research.targets.bound         some fifteen minutes on one core; asks for the pair of `research.targets.codes`

The summarizer samples many gists of each of some held-out contexts with many targets, which its generator reads. The best of
n on all targets is what a reward without noise would find. The best by one half of the targets, measured on the other half,
is what that many targets do find. KL(T‖G) in nats per token, ± standard error over articles.
"""

import argparse
from pathlib import Path

from trl_gist.prompts import stands_for, targets_of
from trl_gist.scoring.gist_scorer import target_means

import numpy as np

from examples.short_run import quiet_console
from research.common.tables import markdown_table
from research.targets.codes import GIST, greedy_gists, hands_of, held_out_windows, mean_of
from research.targets.credit import FEWEST_TARGETS, MOST_TARGETS, sampled, shuffled, trainer_of_pair, with_targets


def held_out(trainer, count: int):
    rows = [row for row in held_out_windows(trainer, MOST_TARGETS) if len(row["targets"]) > FEWEST_TARGETS]
    return with_targets(trainer, rows[:: max(1, len(rows) // count)][:count])


def kls(scorer, document, hidden_TH, gists: list[list[int]]) -> np.ndarray:
    """Shape (gists, targets), the targets in an order that has nothing to do with where they stand."""
    scored = scorer.score_gists([document], gists, len(gists), [hidden_TH])
    return np.array([shuffled(target_means(kl_T, targets_of(document)), document) for _, kl_T in scored])


def of_best(kls_GK: np.ndarray, n: int) -> tuple[float, float]:
    """KL of the best of n on all targets; and of the best by a half, on the other half. Means over groups of n, and halves."""
    on_all, on_others = [], []
    for group_nK in np.split(kls_GK, len(kls_GK) // n):
        on_all.append(group_nK.mean(1).min())
        for chosen_by, other in ((0, 1), (1, 0)):
            on_others.append(group_nK[group_nK[:, chosen_by::2].mean(1).argmin(), other::2].mean())
    return float(np.mean(on_all)), float(np.mean(on_others))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("targets"), help="of codes (default: targets)")
    parser.add_argument("--contexts", type=int, default=38)
    parser.add_argument("--gists", type=int, default=64, help="samples of a context, a power of two (default: 64)")
    args = parser.parse_args()
    quiet_console()
    trainer = trainer_of_pair(args.folder, "bound")
    scorer, rule = trainer.generator_trainer.scorer, hands_of(trainer)["surprising facts"]
    documents, hidden = held_out(trainer, args.contexts)
    contexts = [stands_for(document) for document in documents]
    alone = zip(greedy_gists(trainer, contexts), rule.compress(contexts, [GIST] * len(contexts)), strict=True)
    sizes = [n for n in (4, 8, 16, 64) if n <= args.gists]
    found = {}
    for document, hidden_TH, pair_of_gists in zip(documents, hidden, alone, strict=True):
        greedy, of_rule = kls(scorer, document, hidden_TH, list(pair_of_gists)).mean(1)
        samples_GK = kls(scorer, document, hidden_TH, sampled(trainer, [document], args.gists))
        row = {"surprising facts": of_rule, "the summarizer's, greedy": greedy, "a sample": samples_GK.mean()}
        for n in sizes:
            row[f"best of {n} on all targets"], row[f"best of {n} by half of them, on the others"] = of_best(
                samples_GK, n
            )
        for name, value in row.items():
            found.setdefault(name, []).append({"kl": value, "document_id": str(document["document_id"])})
        print(f"{len(found['a sample'])} of {len(documents)} contexts", flush=True)
    lines = []
    for name, rows in found.items():
        against = [row | {"kl": row["kl"] - other["kl"]} for row, other in zip(rows, found["a sample"], strict=True)]
        lines.append([name, mean_of(rows, "kl"), mean_of(against, "kl")])
    print("\n".join(markdown_table(["gist", "KL", "higher than a sample's by"], lines)))


if __name__ == "__main__":
    main()
