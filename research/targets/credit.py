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
How much of a gist's reward is signal, and whether other credit has more of it: before anything is trained with it.

python -m research.targets.credit        some ten minutes on one core; asks for the pair of `research.targets.codes`

The summarizer samples eight gists for each of some training contexts with many targets, and the generator reads them. What
the halves of a context's targets agree on about its gists is signal. Beside the mean over targets stand token weights by what
the teacher gains from the context, and, for each piece of four tokens, what the gist is worth more with it than without.
"""

import argparse
import random
from pathlib import Path

from trl_gist.prompts import targets_of
from trl_gist.scoring.gist_scorer import target_means, target_sizes
from trl_gist.trainer.advantages import group_signal

import numpy as np
import torch

from examples.short_run import quiet_console
from research.common.tables import markdown_table
from research.targets.codes import load_pair, make_trainer, read


GISTS, PIECE, FEWEST_TARGETS, MOST_TARGETS = 8, 4, 6, 12


def trainer_of_pair(folder: Path, name: str):
    """Of contexts with many targets, with the pair of `research.targets.codes`."""
    sizes = {"num_generations": GISTS, "per_device_train_batch_size": GISTS, "temperature": 0.8}
    trainer = make_trainer(folder / name, targets_per_context=MOST_TARGETS, **sizes)
    load_pair(trainer, folder / "pair-0")
    return trainer


def contexts_with_targets(trainer, count: int):
    rows = [row for row in trainer.train_dataset if len(row["targets"]) > FEWEST_TARGETS]
    random.Random(5).shuffle(rows)
    return with_targets(trainer, rows[:count])


def with_targets(trainer, rows):
    """The documents that have targets enough, once they are read, and the teacher's hidden states."""
    documents, hidden = read(trainer.generator_trainer.scorer, rows)
    kept = [place for place, document in enumerate(documents) if len(document["targets"]) >= FEWEST_TARGETS]
    return [documents[place] for place in kept], [hidden[place] for place in kept]


def sampled(trainer, documents, count: int = GISTS) -> list[list[int]]:
    trainer.model.train()  # where it samples
    prompts = [trainer.prompts.summarizer(row["context_ids"]) for row in documents for _ in range(count)]
    gists = []
    for start in range(0, len(prompts), 6 * GISTS):
        gists += trainer.sample(prompts[start : start + 6 * GISTS])[0]
    ends = set(trainer.eos_token_ids)
    return [trainer.prompts.without_special([token for token in gist if token not in ends]) for gist in gists]


def token_weights(scorer, document, hidden_TH) -> torch.Tensor:
    """What the teacher gains from the context at each token, floored at 0.05 nats."""
    (with_context_T,) = scorer.teacher_readings([document], [hidden_TH])
    alone = []
    for target in targets_of(document):
        ids = [*scorer.prompts.bos, *target["cue_ids"], *target["target_ids"]]
        with torch.no_grad():
            logits_TV = scorer.teacher.model(input_ids=torch.tensor([ids])).logits[0].float()
        wanted = torch.tensor(target["target_ids"])
        alone.append(logits_TV[-len(wanted) - 1 : -1].log_softmax(-1).gather(-1, wanted[:, None]).squeeze(-1))
    return (with_context_T.cpu() - torch.cat(alone)).clamp(min=0) + 0.05


def weighted_means(values_T, weights_T, document):
    sizes = target_sizes(targets_of(document))
    pairs = zip(values_T.split(sizes), weights_T.double().split(sizes), strict=True)
    return torch.stack([(values * weights).sum() / weights.sum() for values, weights in pairs])


def shuffled(values_K, document) -> list[float]:
    """Of each target, in an order that has nothing to do with where it stands."""
    order = np.random.RandomState(len(document["context_ids"]) + len(values_K)).permutation(len(values_K))
    return np.asarray(values_K)[order].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("targets"), help="of codes (default: targets)")
    parser.add_argument("--contexts", type=int, default=20)
    args = parser.parse_args()
    quiet_console()
    trainer = trainer_of_pair(args.folder, "credit")
    scorer = trainer.generator_trainer.scorer
    documents, hidden = contexts_with_targets(trainer, args.contexts)
    gists = sampled(trainer, documents)
    whole = scorer.score_gists(documents, gists, GISTS, hidden)
    null = scorer.score_gists(documents, [[]] * len(documents), 1, hidden)
    gains = {
        name: [] for name in ("KL", "log p", "KL, tokens by the teacher's gain", "log p, tokens by the teacher's gain")
    }
    pieces, advantages = [], []
    for place, (document, hidden_TH) in enumerate(zip(documents, hidden, strict=True)):
        weights_T, targets = token_weights(scorer, document, hidden_TH), targets_of(document)
        of_context = range(place * GISTS, place * GISTS + GISTS)
        for row in of_context:
            for name, gain_T in (("KL", null[place][1] - whole[row][1]), ("log p", whole[row][0] - null[place][0])):
                gains[name].append(shuffled(target_means(gain_T, targets), document))
                weighted = weighted_means(gain_T, weights_T, document)
                gains[f"{name}, tokens by the teacher's gain"].append(shuffled(weighted, document))
        cuts = [(row, start) for row in of_context for start in range(0, len(gists[row]), PIECE)]
        without = [gists[row][:start] + gists[row][start + PIECE :] for row, start in cuts]
        read_without = scorer.score_gists([document], without, len(without), [hidden_TH])
        means = [
            target_means(kl_T - whole[row][1], targets) for (row, _), (_, kl_T) in zip(cuts, read_without, strict=True)
        ]
        pieces.append(halves([shuffled(each, document) for each in means]))
        advantages.append(halves([gains["KL"][row] for row, _ in cuts]))
    lines = [
        [name, *(f"{value:.3f}" for value in group_signal(values, GISTS).values())] for name, values in gains.items()
    ]
    print("\n".join(markdown_table(["gain", "signal", "noise", "reliability"], lines)))
    (first, second), (whole_first, _) = (np.concatenate(each, axis=1) for each in (pieces, advantages))
    print("\nA piece's worth on half of the targets, correlated within contexts with the other half's:")
    print(
        f"its own {np.corrcoef(first, second)[0, 1]:.3f}, its whole gist's {np.corrcoef(whole_first, second)[0, 1]:.3f}"
    )


def halves(values_GK) -> np.ndarray:
    """Means over each half of the targets, less those of the context."""
    halves_2G = np.array([[np.mean(values[::2]), np.mean(values[1::2])] for values in values_GK]).T
    return halves_2G - halves_2G.mean(1, keepdims=True)


if __name__ == "__main__":
    main()
