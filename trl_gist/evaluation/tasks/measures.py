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

"""Accuracy by length and by age of what was asked, of every arm, and how far the pair is ahead of it."""

import numpy as np

from ...common.statistics import mean_and_error


ALL_TASKS = "all tasks"
_SINGLE_AGES = 8


def task_measures(rows: list[dict], arms: list[str]) -> dict:
    """
    Args:
        rows (`list[dict]`):
            Of [`TaskReadings.read`].
        arms (`list[str]`):
            Those asked.

    Returns:
        `dict`: By task, and of several under `"all tasks"` too, `lengths`, for each number of `windows`, with the mean
        `tokens`; and `ages`, for the texts of the most windows, each from `first` to `last` (0: the last window), from 9
        on taken together. Each has the counts `questions` and `documents`; `chance`, the share that is right without any
        statement; and by arm, as shares from 0 to 1, `right_{arm}`, `exact_{arm}` and `ahead_of_{arm}` (the pair's
        `right` less that arm's, paired by question), with standard errors over documents under the same names with
        `_se`; and `read_{arm}`, the mean tokens of its prompt.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    measures = {task: _of_task([row for row in rows if row["task"] == task], arms) for task in tasks}
    return measures | ({ALL_TASKS: _of_task(rows, arms)} if len(tasks) > 1 else {})


def _of_task(rows, arms):
    lengths, longest = [], max(row["windows"] for row in rows)
    for windows in sorted({row["windows"] for row in rows}):
        chosen = [row for row in rows if row["windows"] == windows]
        tokens = float(np.mean([row["tokens"] for row in chosen]))
        lengths.append({"windows": windows, "tokens": tokens, **_accuracies(chosen, arms)})
    chosen, ages = [row for row in rows if row["windows"] == longest], []
    for first, last in age_groups(longest - 1):
        found = _accuracies(chosen, arms, first, last)
        if found["questions"]:
            ages.append({"first": first, "last": last, **found})
    return {"lengths": lengths, "ages": ages}


def age_groups(oldest: int) -> list[tuple[int, int]]:
    """First and last age of each group: each alone up to 8, then 9-16, 17-32, ..."""
    alone = [(age, age) for age in range(min(oldest, _SINGLE_AGES) + 1)]
    groups, first = [], _SINGLE_AGES + 1
    while first <= oldest:
        groups.append((first, min(2 * first - 2, oldest)))
        first = 2 * first - 1
    return alone + groups


def _accuracies(rows, arms, first=0, last=None):
    asked = [
        (row["document_id"], question)
        for row in rows
        for question in row["questions"]
        if first <= question["age"] and (last is None or question["age"] <= last)
    ]
    documents = [document for document, _ in asked]
    found = {
        "questions": len(asked),
        "documents": len(set(documents)),
        "chance": float(np.mean([1 / question["choices"] for _, question in asked])) if asked else float("nan"),
    }

    def shares(kind, arm):
        return np.array([question[kind].get(arm, np.nan) for _, question in asked], dtype=float)

    for arm in arms:
        right = shares("right", arm)
        for name, values in (
            ("right", right),
            ("exact", shares("exact", arm)),
            ("ahead_of", shares("right", "pair") - right),
        ):
            key = f"{name}_{arm}"
            found[key], found[f"{key}_se"] = mean_and_error(values, documents)
        read = [row["read"][arm] for row in rows if arm in row["read"]]
        found[f"read_{arm}"] = float(np.mean(read)) if read else float("nan")
    return found
