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
What a rolling gist still knows of earlier windows: each window also asks for facts and sentences of the chunks before it,
by cues that stand in the text, and each gist is read for the same ones.

What is asked is as hard with every gist, and a target of one age is told apart from that of another. The mean over the next
tokens has few that need what was said windows ago.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ...common.geometry import WindowedText
from ...data.targets import TargetSpec, make_walk_targets
from ...models.positions import max_positions
from ...models.roles import base_of
from ...prompts import GistPrompts
from ...scoring.gist_scorer import GistScorer, target_means
from .facts import by_stretch


@dataclass
class Asked:
    """
    What one window is asked.

    Attributes:
        row (`dict`):
            The window, with its `targets`.
        hidden_TH (`torch.Tensor`):
            The teacher's hidden states at them, after all text so far.
        log_probs_T (`torch.Tensor`):
            The teacher's log-prob of each token of them, in nats.
    """

    row: dict
    hidden_TH: torch.Tensor
    log_probs_T: torch.Tensor


def check_recalled(kinds: Iterable[str], setting: str = "target_kinds"):
    """Raises `ValueError` for a kind of target that does not stand in a chunk."""
    for kind in kinds:
        if kind not in ("fact", "recall"):
            raise ValueError(
                f"`{setting}` has {kind!r}, which is in no earlier chunk: a walk asks for 'fact' and 'recall', and "
                "measures what comes next anyway."
            )


class RecallReadings:
    """
    Asks each window of a walk for what was said up to it.

    Args:
        scorers (`dict[str, GistScorer]`):
            Who reads gists, by name; all have the same teacher.
        prompts ([`~prompts.GistPrompts`]):
            Of the teacher's text.
        targets ([`~data.targets.TargetSpec`]):
            What is asked: kinds that stand in a chunk, as `fact` and `recall`.

    Raises:
        ValueError: for a kind that does not stand in a chunk.
    """

    def __init__(self, scorers: dict[str, GistScorer], prompts: GistPrompts, targets: TargetSpec):
        check_recalled(kind for kind, _ in targets.kinds)
        self.scorers, self.prompts, self.targets = scorers, prompts, targets

    def ask(self, text: WindowedText, windows: int) -> list[Asked | None]:
        """
        Args:
            text ([`~common.geometry.WindowedText`]):
                A document.
            windows (`int`):
                How many of its windows.

        Returns:
            `list[Asked | None]`: What each is asked; `None` where that is nothing, or the text does not fit T's positions.
        """
        scorer = self.scorers["pair"]
        drawn = make_walk_targets(self.prompts.tokenizer, text.ids, text.geometry, windows, self.targets)
        most, rows = max_positions(base_of(scorer.teacher.model)), []
        for window in range(windows):
            seen = text.ids[: text.before(window)]
            read = len(self.prompts.bos) + len(seen)
            own = [
                target
                for target in drawn
                if target["window"] == window
                and target["kind"] != "continuation"  # where nothing else is there to ask
                and (most is None or read + len(target["after_ids"]) + len(target["target_ids"]) <= most)
            ]
            rows.append({"walk_ids": text.ids, "window": window, "seen_ids": seen, "targets": own})
        asked = [row for row in rows if row["targets"]]
        read = scorer.read_targets(asked)
        if scorer.target_floor is not None and asked:
            asked, *read = scorer.worth_asking(asked, *read)
        found = {row["window"]: Asked(row, *both) for row, *both in zip(asked, *read, strict=True)}
        return [found.get(window) for window in range(windows)]

    def read(self, asked: list[Asked | None], arms: dict[str, tuple[str, list[list[int]]]]) -> list[list[dict]]:
        """
        Args:
            asked (`list[Asked | None]`):
                What a window of each document is asked.
            arms (`dict[str, tuple[str, list[list[int]]]]`):
                Who reads which gists, by arm: the scorer's name, and a gist for each document.

        Returns:
            `list[list[dict]]`: For each document its targets, with `kind`, `age`, and by arm under `log_probs` and `kls`
            the means over a target's tokens, in nats; `full` is the teacher with all text so far.
        """
        present = [place for place, one in enumerate(asked) if one is not None]
        rows, hidden = [asked[place].row for place in present], [asked[place].hidden_TH for place in present]
        found = [[] for _ in asked]
        for place, row in zip(present, rows, strict=True):
            means_K = target_means(asked[place].log_probs_T, row["targets"]).tolist()
            found[place] = [
                {
                    "kind": target["kind"],
                    "age": target["age"],
                    "log_probs": {"full": round(mean, 5)},
                    "kls": {"full": 0.0},
                }
                for target, mean in zip(row["targets"], means_K, strict=True)
            ]
        for arm, (reader, gists) in arms.items():
            gists = [gists[place] for place in present]
            scores = self.scorers[reader].score_gists(rows, gists, 1, hidden) if rows else []
            for place, row, score in zip(present, rows, scores, strict=True):
                logps_K, kls_K = (target_means(values_T, row["targets"]).tolist() for values_T in score[:2])
                for target, logp, kl in zip(found[place], logps_K, kls_K, strict=True):
                    target["log_probs"][arm], target["kls"][arm] = round(logp, 5), round(kl, 5)
        return found


def recall_by_age(rows: list[dict], walkers: list[str], sliding: dict[str, str]) -> dict | None:
    """
    What gists are worth on targets of earlier chunks, by how many windows ago these were the newest.

    Args:
        rows (`list[dict]`):
            Of [`DistanceReadings.walk`].
        walkers (`list[str]`):
            The pair and the other pairs.
        sliding (`dict[str, str]`):
            Of each arm, the one that it is held against.

    Returns:
        `dict` or `None`: `ages`, `of` (targets of each), and by arm a list over ages of each of `kl`, KL from T on all text
        so far; `gain` = KL(its reader with no gist) − KL(arm); and under `ahead`, for each walker, of KL(arm) − KL(walker).
        Means over targets in nats per token, standard errors over documents under the same names with `_se`. `None` where
        nothing was asked.
    """
    targets = [(str(row["document_id"]), target) for row in rows for target in row.get("recall", ())]
    if not targets:
        return None
    ages = [(age, age) for age in sorted({target["age"] for _, target in targets})]
    arms = [arm for arm in targets[0][1]["kls"] if arm != "full"]

    counts = [sum(target["age"] == age for _, target in targets) for age, _ in ages]

    def by_age(name, value):
        columns = by_stretch([(document, one["age"], value(one["kls"])) for document, one in targets], ages, name)
        del columns["of"]  # the same of all
        return columns

    return {
        "ages": [age for age, _ in ages],
        "of": counts,
        "arms": {
            arm: by_age("kl", lambda kls, arm=arm: kls[arm])
            | (by_age("gain", lambda kls, arm=arm: kls[sliding[arm]] - kls[arm]) if sliding.get(arm) in arms else {})
            for arm in arms
        },
        "ahead": {
            walker: {
                arm: by_age("kl", lambda kls, arm=arm, walker=walker: kls[arm] - kls[walker])
                for arm in arms
                if arm != walker
            }
            for walker in walkers
        },
    }
