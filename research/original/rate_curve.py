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
Quality against rate: pairs with a gist length each, and one pair for all of them, on the same held-out windows. Reads
what `trl-gist evaluate` left.

trl-gist train --config RECIPE.yaml --max_completion_length 96 --output_dir sweep/96           # and 48, 128, 160
trl-gist train --config RECIPE.yaml --max_completion_length 160 --gist_length_range 24 160 --output_dir sweep/single
trl-gist evaluate sweep/96 --dataset corpus --split test --max_windows 48                      # and 48, 128, 160
trl-gist evaluate sweep/single --dataset corpus --split test --max_windows 48 --budgets 48 96 128 160
python -m research.original.rate_curve sweep/{48,96,128,160}/evaluation --single sweep/single/evaluation --image rate
"""

import argparse
from pathlib import Path

from trl_gist.common.statistics import standard_error, with_error
from trl_gist.evaluation.folder import read_measures
from trl_gist.evaluation.pages.plots import GIST, NEUTRAL, NULL, OCHRE, plot_style, save_figure
from trl_gist.prompts import before_last_k

import numpy as np
from matplotlib.figure import Figure

from research.common.tables import markdown_table, rows_of_same_windows


_LAST = 8  # tokens that must be the same
_HEAD = (
    *("", "tokens a gist", "gist rate", "total rate", "KL(T‖·)"),
    *("lower than T's by", "NLL lower by", "gap closed", "ends where L begins"),  # of gists alone
)
# Whose KL, in which column, and how it is drawn
_CURVES = {
    "a pair for each length": ("gist", GIST, "o-"),
    "one pair for all lengths": ("gist", NULL, "s--"),
    "T on as many tokens, verbatim": ("tail", OCHRE, "^-"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "evaluations", nargs="+", type=Path, metavar="FOLDER", help="of a pair with one gist length each"
    )
    parser.add_argument("--single", type=Path, metavar="FOLDER", help="of the pair for all lengths, with `--budgets`")
    parser.add_argument(
        "--image", type=Path, default=Path("rate_curve"), help="without a suffix (default: rate_curve)"
    )
    args = parser.parse_args()
    folders = args.evaluations if args.single is None else [*args.evaluations, args.single]
    try:
        rows = rows_of_same_windows(folders)
    except ValueError as error:
        parser.error(str(error))
    each = settings_of({folder: rows[folder] for folder in args.evaluations})
    curves = {"a pair for each length": each, "T on as many tokens, verbatim": each}
    if args.single is not None:
        curves["one pair for all lengths"] = settings_of({args.single: rows[args.single]})
    lines = [[name, *row_of(row, _CURVES[name][0])] for name, settings in curves.items() for row in settings]
    print(*markdown_table(_HEAD, lines), sep="\n")
    save_figure(draw(curves), args.image)


def settings_of(rows: dict[Path, list[dict]]) -> list[dict]:
    """
    The measures of each budget, by length; with `kl_below_tail`, how much lower KL is than T's on as many tokens,
    verbatim, by window, and `ends_at_l`, the share of gists that end as the context does before L.
    """
    settings = []
    for folder, windows in rows.items():
        for setting in read_measures(folder)["measures"]:
            rows_N = [row for row in windows if row["budget"] == setting["budget"]]
            below_N = [np.mean(row["kls"]["tail"]) - np.mean(row["kls"]["gist"]) for row in rows_N]
            derived = {
                "kl_below_tail": np.mean(below_N),
                "kl_below_tail_se": standard_error(below_N, [row["document_id"] for row in rows_N]),
                "ends_at_l": np.mean([_ends_at_l(row) for row in rows_N]),
            }
            settings.append({**setting, **derived})
    return sorted(settings, key=lambda row: row["gist_length"])


def _ends_at_l(row):
    return row["gist_ids"][-_LAST:] == before_last_k(row["context_ids"], row["last_k_ids"])[-_LAST:]


def row_of(setting: dict, reader: str) -> list[str]:
    def shown(name):
        return with_error(setting[name], setting[f"{name}_se"])

    of_gists = [*map(shown, ("kl_below_tail", "gain_over_tail", "gap_closed_last_k")), f"{setting['ends_at_l']:.0%}"]
    return [
        f"{setting['gist_length']:.1f}",
        f"{setting['gist_rate']:.1%}",
        f"{setting['total_rate']:.1%}",
        shown(f"kl_{reader}"),
        *(of_gists if reader == "gist" else [""] * len(of_gists)),
    ]


def draw(curves: dict[str, list[dict]]) -> Figure:
    """KL from the teacher against the gist's share of the context."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for name, settings in curves.items():
        reader, color, style = _CURVES[name]
        rate, kl, error = (
            np.array([setting[key] for setting in settings])
            for key in ("gist_rate", f"kl_{reader}", f"kl_{reader}_se")
        )
        axis.errorbar(
            100 * rate, kl, yerr=error, fmt=style, color=color, markersize=5, capsize=3, linewidth=1.3, label=name
        )
    plot_style(axis, "Quality against rate", "KL from the teacher, nats per token")
    axis.axhline(0, color=NEUTRAL, linewidth=0.8)
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
    axis.set_xlabel("gist tokens, % of the context's")
    axis.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


if __name__ == "__main__":
    main()
