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
What a run came to, for docs/ORIGINAL.md: figures of its training and its gists' patterns, and, as Markdown, how it
went, the original experiment's claims beside it, the verdicts, and a gallery. Reads what `trl-gist train` and
`trl-gist evaluate --compressors` left, and computes nothing anew.

python -m research.original.results flagship --images docs/images/original \
    --evaluation test=flagship/evaluation "other genres=flagship-other-genres"
"""

import argparse
from pathlib import Path

from trl_gist.common.arguments import named
from trl_gist.common.statistics import with_error
from trl_gist.evaluation.comparison.compare import GENERATOR, OWN_GENERATOR, TEACHER, TRAINED
from trl_gist.evaluation.folder import read_measures, read_rows
from trl_gist.evaluation.gists.pattern_plots import plot_gists
from trl_gist.evaluation.pages.plots import GIST, NEUTRAL, NULL, plot_style, save_figure
from trl_gist.evaluation.run_report.patterns import pattern_rows
from trl_gist.evaluation.run_report.plots import series
from trl_gist.evaluation.run_report.run_folder import Run, read_run

import numpy as np
from matplotlib.figure import Figure

from research.common.tables import markdown_table


ORIGINAL_KL = 0.125
_WINDOW = 9  # steps of the moving average in the figures
_CHARACTERS = 420  # of a context in the gallery


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's `output_dir`")
    parser.add_argument(
        "--evaluation", nargs="+", required=True, metavar="NAME=FOLDER", help="the first counts as in-domain"
    )
    parser.add_argument("--images", type=Path, default=Path("images"), help="where figures go (default: images)")
    parser.add_argument("--gists", type=int, default=6, help="gists in the gallery (default: 6)")
    args = parser.parse_args()
    run = read_run(args.run)
    if not run.held_out:
        parser.error(
            f"{args.run} has no evaluation on held-out documents: train with --eval_on_start and --eval_steps."
        )
    evaluations = {name: Path(path) for name, path in named(args.evaluation, "--evaluation").items()}
    measures = {name: read_measures(path) for name, path in evaluations.items()}

    save_figure(draw_training(run), args.images / "training")
    gists = {(gist["window"], gist["step"]): gist for gist in run.gists}
    of_gists = pattern_rows(run.info["windows"], gists, run.info["recipe"]["max_completion_length"])
    plot_gists(of_gists, args.images)
    sections = {
        "Over training": training_table(run),
        "Held out": held_out_table(measures),
        "Other compressors": compressors_table(measures),
        "Patterns": patterns_table(measures),
        "Verdicts": verdicts(run, measures),
        "Gallery": gallery(next(iter(evaluations.values())), args.gists),
    }
    for title, lines in sections.items():
        print(f"\n## {title}\n", *lines, sep="\n")


def draw_training(run: Run) -> Figure:
    """KL, reward, and how much of the reward's spread within groups is signal, over the steps."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    kl, reward, spread = figure.subplots(1, 3)
    highest = []
    for name, color, label in (("teacher_kl", GIST, "with the gist"), ("null_teacher_kl", NULL, "empty gist")):
        means = _draw_smoothed(kl, run.train, name, color)
        steps, values = series(run.held_out, f"eval_{name}")
        errors = series(run.held_out, f"eval_{name}_se")[1]
        highest += [*means, *(values + errors)]
        kl.errorbar(steps, values, yerr=errors, fmt="o", color=color, capsize=3, markersize=5, label=label)
    kl.axhline(ORIGINAL_KL, color=NEUTRAL, linewidth=0.8, linestyle=":", label="the original's end")
    kl.set_ylim(0, 1.5 * max(highest))  # not of the faint lines: a single hard context would flatten all else
    kl.legend(frameon=False, fontsize=8, title="held out ± standard error", title_fontsize=8, loc="upper right")
    means = _draw_smoothed(reward, run.train, "reward", GIST)
    reward.set_ylim(min(0, *means) - 0.01, 1.5 * max(means))
    reward.axhline(0, color="black", linewidth=0.8)
    _draw_smoothed(spread, run.train, "reliability/kl_gain", GIST)
    spread.set_ylim(0, 1)
    plot_style(kl, "Distance to the teacher", "KL(teacher ‖ generator), nats per token")
    plot_style(reward, "Reward", "kl_gain − λ|Z|, nats per token")
    plot_style(spread, "Signal in the reward", "share of its spread within groups")
    cold, _ = next(((s, v) for s, v in zip(*series(run.train, "cold_start"), strict=True) if v == 0), (None, None))
    for axis in (kl, reward, spread):
        axis.set_xlabel("step")
        if cold is not None:
            axis.axvspan(0, cold, color=NEUTRAL, alpha=0.08, linewidth=0)
    figure.suptitle(
        f"Lines: training rollouts, mean of {_WINDOW} steps. Points: held-out documents. Grey: cold start.",
        fontsize=9,
        color=NEUTRAL,
    )
    return figure


def _draw_smoothed(axis, logs, name, color):
    """Returns the moving average; of a short run the values."""
    steps, values = series(logs, name)
    axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
    if len(values) < _WINDOW:
        return values
    means = np.convolve(values, np.ones(_WINDOW) / _WINDOW, mode="valid")
    axis.plot(steps[_WINDOW // 2 :][: len(means)], means, color=color, linewidth=1.5)
    return means


def training_table(run: Run) -> list[str]:
    """The held-out measures at every evaluation of the run."""
    columns = {
        "KL(T‖G)": "teacher_kl",
        "with an empty gist": "null_teacher_kl",
        "gist over empty": "gain_over_null",
        "over another document's": "gain_over_shuffled",
        "over T on as many tokens, verbatim": "gain_over_tail",
    }
    rows = [
        [str(log["step"]), *(_with_error(log, f"eval_{name}") for name in columns.values())] for log in run.held_out
    ]
    return markdown_table(["step", *columns], rows)


def held_out_table(measures: dict[str, dict]) -> list[str]:
    rows = {
        "windows, documents": lambda m: f"{m['windows']}, {m['documents']}",
        "tokens a gist": lambda m: _with_error(m, "gist_length", 1),
        "gist rate, total rate": lambda m: f"{m['gist_rate']:.1%}, {m['total_rate']:.1%}",
        "NLL, T on X": lambda m: _with_error(m, "nll_teacher"),
        "KL, G on the gist": lambda m: _with_error(m, "kl_gist"),
        "KL, G on an empty gist": lambda m: _with_error(m, "kl_null"),
        "KL, G on another document's gist": lambda m: _with_error(m, "kl_shuffled"),
        "KL, T on as many tokens, verbatim": lambda m: _with_error(m, "kl_tail"),
        "KL, T on L": lambda m: _with_error(m, "kl_last_k"),
        "KL, G trained alone, on L": lambda m: _with_error(m, "kl_generator_only"),
        "gap closed, against T on L": lambda m: _with_error(m, "gap_closed_last_k"),
        "gist over empty": lambda m: _with_error(m, "gain_over_null"),
        "gist over another document's": lambda m: _with_error(m, "gain_over_shuffled"),
        "gist over T on as many tokens, verbatim": lambda m: _with_error(m, "gain_over_tail"),
        "gist over G trained alone": lambda m: _with_error(m, "gain_over_generator_only"),
    }
    of_all = [evaluation["measures"][0] for evaluation in measures.values()]
    return markdown_table(["", *measures], [[name, *(show(m) for m in of_all)] for name, show in rows.items()])


def compressors_table(measures: dict[str, dict]) -> list[str]:
    """How far each compressor's gists are behind the trained summarizer's, by who reads them."""
    lines = []
    for name, evaluation in measures.items():
        rows = {(row["compressor"], row.get("reader")): row for row in evaluation.get("compressors", [])}
        read = sorted((row["kl"], compressor) for (compressor, reader), row in rows.items() if reader == GENERATOR)
        columns = (TEACHER, GENERATOR, OWN_GENERATOR)
        table = [
            [
                compressor,
                f"{rows[compressor, GENERATOR]['tokens']:.1f}",
                _with_error(rows[compressor, GENERATOR], "kl"),
                *(_with_error(rows.get((compressor, reader), {}), "behind_trained") for reader in columns),
            ]
            for _, compressor in read
        ]
        head = [name, "tokens", "KL(T‖G)", "behind, read by T", "behind, read by G", "behind, by its own reader"]
        lines += [*markdown_table(head, table), ""] if table else []
    return lines


def patterns_table(measures: dict[str, dict]) -> list[str]:
    names = {
        "copy_rate_1": "words that stand in the context",
        "copy_rate_4": "runs of four words that stand there",
        "number_recall": "numbers kept",
        "name_recall": "names kept",
        "function_words_dropped": "function words dropped",
        "punctuation_share": "punctuation",
        "context_punctuation_share": "… in contexts",
        "cjk_share": "CJK characters",
        "acronyms_coined": "acronyms coined a gist",
        "cut_mid_sentence": "cut mid-sentence",
        "bits_per_token": "bits a token",
    }
    of_all = [evaluation["patterns"] for evaluation in measures.values()]
    return markdown_table(
        ["", *measures], [[label, *(_with_error(m, name) for m in of_all)] for name, label in names.items()]
    )


def verdicts(run: Run, measures: dict[str, dict]) -> list[str]:
    """The three sentences that the run is judged by, each held against two standard errors."""
    start, end = run.held_out[0], run.held_out[-1]
    ratio = start["eval_teacher_kl"] / end["eval_teacher_kl"]
    lines = [
        f"- KL from step {start['step']} to {end['step']}: {_with_error(start, 'eval_teacher_kl')} → "
        f"{_with_error(end, 'eval_teacher_kl')}, {ratio:.1f} times lower."
    ]
    for name, evaluation in measures.items():
        m = evaluation["measures"][0]
        below = _verdict(ORIGINAL_KL - m["kl_gist"], m["kl_gist_se"])
        lines.append(f"- {name}: KL ≤ {ORIGINAL_KL}: {_with_error(m, 'kl_gist')}: {below}.")
        over = _verdict(m["gain_over_tail"], m["gain_over_tail_se"])
        lines.append(
            f"- {name}: more of the gap than the verbatim tail: by {_with_error(m, 'gain_over_tail')}: {over}."
        )
        for row in evaluation.get("compressors", []):
            if row.get("reader") == OWN_GENERATOR and row["compressor"] != TRAINED:
                ahead = _verdict(row["behind_trained"], row["behind_trained_se"])
                value = _with_error(row, "behind_trained")
                lines.append(f"- {name}: ahead of {row['compressor']} with its own reader: by {value}: {ahead}.")
    return lines


def _verdict(difference, error):
    if difference > 2 * error:
        return "**holds** beyond two standard errors"
    if difference > 0:
        return "holds, within two standard errors"
    return "**does not hold**" + ("" if difference < -2 * error else ", within two standard errors")


def gallery(folder: Path, count: int) -> list[str]:
    """Gists from the most useful to the least, evenly spaced in rank, one a document."""
    rows = read_rows(folder)
    for row in rows:
        row["gain"] = float(np.mean(row["log_probs"]["gist"]) - np.mean(row["log_probs"]["null"]))
    ranked = sorted({row["document_id"]: row for row in rows}.values(), key=lambda row: -row["gain"])
    lines = []
    for index in np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int):
        row = ranked[index]
        lines += [
            f"**{row['document_id']}**, rank {index + 1} of {len(ranked)}: {row['gain']:+.3f} nats per token",
            "",
        ]
        for label, text in (
            ("context, its end", "…" + row["context"][-_CHARACTERS:]),
            ("gist", row["gist"]),
            ("L, its end", "…" + row["last_k_text"][-_CHARACTERS // 4 :]),
            ("target", row["target"][: _CHARACTERS // 2] + "…"),
        ):
            lines.append(f"- *{label}*: {' '.join(text.split())}")
        lines.append("")
    return lines


def _with_error(measures, name, digits=3):
    return with_error(measures.get(name), measures.get(f"{name}_se"), digits)


if __name__ == "__main__":
    main()
