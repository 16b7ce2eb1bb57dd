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
Runs against one another on the same held-out windows, each paired with the first. Reads what `trl-gist evaluate` left, and
prints a Markdown table.

python -m research.results.compare_runs base=runs/base/evaluation "LoRA rank 8=runs/rank8/evaluation"
"""

import argparse
from pathlib import Path

from trl_gist.common.statistics import standard_error, with_error
from trl_gist.scripts.compare import named

import numpy as np

from research.common.tables import markdown_table, rows_of_same_windows, window_of


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "evaluations", nargs="+", metavar="NAME=FOLDER", help="the first is what the others are held against"
    )
    args = parser.parse_args()
    folders = {name: Path(path) for name, path in named(args.evaluations, "the evaluations").items()}
    try:
        rows = rows_of_same_windows(list(folders.values()))
    except ValueError as error:
        parser.error(str(error))
    print(*table({name: rows[folder] for name, folder in folders.items()}), sep="\n")


def table(runs: dict[str, list[dict]]) -> list[str]:
    """Each run's KL and gain, nats per target token ± standard error over documents."""
    measures = {name: _by_window(rows) for name, rows in runs.items()}
    base, base_rows = next(iter(measures.values())), next(iter(runs.values()))
    documents = [row["document_id"] for row in sorted(base_rows, key=window_of)]
    head = ["", "KL(T‖G)", "lower by", "with an empty gist", "gist over empty", "more by", "over T, verbatim tail"]
    lines = []
    for name, of_run in measures.items():
        columns = (
            of_run["kl"],
            base["kl"] - of_run["kl"],
            of_run["null_kl"],
            of_run["gain"],
            of_run["gain"] - base["gain"],
            of_run["over_tail"],
        )
        shown = [with_error(np.mean(values_N), standard_error(values_N, documents)) for values_N in columns]
        if of_run is base:
            shown[1] = shown[4] = ""
        lines.append([name, *shown])
    return markdown_table(head, lines)


def _by_window(rows):
    rows = sorted(rows, key=window_of)

    def mean(key, reader):
        return np.array([np.mean(row[key][reader]) for row in rows])

    gist_N = mean("log_probs", "gist")
    return {
        "kl": mean("kls", "gist"),
        "null_kl": mean("kls", "null"),
        "gain": gist_N - mean("log_probs", "null"),
        "over_tail": gist_N - mean("log_probs", "tail"),
    }


if __name__ == "__main__":
    main()
