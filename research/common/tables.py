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

"""What scripts that print tables of several evaluations share."""

import statistics
from pathlib import Path


# What a training step is compared with, and itself, by the names that `workload.build` knows them by
TRAINERS = {"naive": "TRL + reward function", "gist": "GistTrainer"}


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table's lines."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def spread(values: list[float], digits: int) -> str:
    """The median, and from the lowest to the highest of several."""
    middle, low, high = (f"{of(values):.{digits}f}" for of in (statistics.median, min, max))
    return middle + (f" ({low}–{high})" if len(values) > 1 else "")


def window_of(row: dict) -> tuple:
    """What tells a window from others."""
    return row["document_id"], tuple(row["target_ids"])


def rows_of_same_windows(folders: list[Path]) -> dict[Path, list[dict]]:
    """
    The windows of each evaluation.

    Raises:
        ValueError: If they read different ones.
    """
    from trl_gist.evaluation.folder import read_rows  # which loads torch: not for who only writes tables

    rows = {folder: read_rows(folder) for folder in folders}
    first = {window_of(row) for row in rows[folders[0]]}
    for folder in folders:
        if {window_of(row) for row in rows[folder]} != first:
            raise ValueError(f"{folder} has other windows than {folders[0]}: evaluate all on the same data.")
    return rows
