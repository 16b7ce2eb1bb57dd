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

"""The files of a run's log: their names, how they are read back, and where plots lie."""

import json
import math
import os
from pathlib import Path


RUN_LOG_DIR = "run_log"
PLOTS_DIR = "plots"  # of an evaluation, and of a pair on the Hub
RUN_FILE, METRICS_FILE, GISTS_FILE = "run.json", "metrics.jsonl", "gists.jsonl"


def read_entries(path: str | os.PathLike) -> tuple[list[dict], int]:
    """
    Reads `metrics.jsonl` or `gists.jsonl`.

    Returns:
        `tuple[list[dict], int]`: the entries, and how many lines were none: a run killed while it wrote leaves half a
        line.
    """
    entries, broken = [], 0
    for line in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
        else:
            broken += 1
    return entries, broken


def finite(value):
    """JSON has no NaN; null stands for it."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
