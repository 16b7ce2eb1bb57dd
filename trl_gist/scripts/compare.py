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


"""`trl-gist evaluate --compressors`: other compressors on the windows that were read, and the table of them all."""

from itertools import islice

from rich.console import Console
from rich.progress import track

from ..common.run_files import PLOTS_DIR
from ..evaluation import PairReadings, load_generator_only
from ..evaluation.comparison.compare import compare_compressors, summarize_comparison
from ..evaluation.comparison.pool import plot_pool
from ..evaluation.comparison.tables import comparison_tables, plot_comparison
from ..evaluation.compressors import TrainedSummarizer, write_contexts
from ..evaluation.compressors.registry import COMPRESSORS, standard_compressors
from ..evaluation.folder import COMPRESSORS_FILE, CONTEXTS_FILE, EvaluationFolder
from ..scoring.extraction import IDF_CONTEXTS
from .arguments import EvaluateArguments


_CHUNK = 16


def compare(args: EvaluateArguments, readings: PairReadings, rows: list[dict], folder: EvaluationFolder) -> list[dict]:
    """
    Compares at every budget, with the first number of last tokens; prints the tables and draws the plots.

    Returns:
        `list[dict]`: Of [`summarize_comparison`], each with its `budget`.
    """
    settings = [setting for setting in readings.settings if setting[0] == readings.settings[0][0]]
    rows = [row for row in rows if tuple(row["setting"]) in settings]
    tokenizer = readings.compactor.tokenizer
    write_contexts(rows, [row["gist_length"] for row in rows], tokenizer, folder.path / CONTEXTS_FILE)
    compressors = standard_compressors(
        readings.compactor,
        readings.teacher,
        [row["context_ids"] for row in islice(rows, 0, IDF_CONTEXTS * len(settings), len(settings))],
        args.token_classifier,
        named(args.gists, "--gists"),
        args.batch_size,
    )
    if args.compressors:  # else all of them
        compressors = {name: compressors[name] for name in args.compressors}
    for number in range(1, args.samples + 1):
        compressors[f"sampled gist {number}"] = TrainedSummarizer(readings.compactor, args.batch_size, seed=number)
    own = {
        name: load_generator_only(path, readings.compactor, args.trust_remote_code)
        for name, path in named(args.own_generators, "--own_generators").items()
    }
    missing = [{"compressor": name, "unavailable": why} for name, why in compressors.items() if isinstance(why, str)]
    compressors = {name: compressor for name, compressor in compressors.items() if not isinstance(compressor, str)}
    of_window = 2 * (len(compressors) + 2) + len(own)
    results = folder.rows(_CHUNK * of_window, COMPRESSORS_FILE, total=len(rows) * of_window)
    done = len({row["window"] for row in results})
    starts = range(done, len(rows), _CHUNK)
    for start in track(starts, "Other compressors", console=Console(stderr=True)):
        readings.scorer.teacher_cache.clear()  # or it would grow to the hidden states of every window
        chunk = compare_compressors(readings.scorer, rows[start : start + _CHUNK], compressors, tokenizer, own)
        # One window after the other, so that a file that was cut off ends with whole windows
        chunk = sorted(({**row, "window": row["window"] + start} for row in chunk), key=lambda row: row["window"])
        folder.append(chunk, COMPRESSORS_FILE)
        results += chunk
    summaries = []
    for index, (_, budget) in enumerate(settings):
        of_budget = [row for row in results if row["window"] % len(settings) == index]
        summary = summarize_comparison([*of_budget, *missing])
        for table in comparison_tables(summary):
            Console().print(table)
        plot_comparison(summary, folder.path / PLOTS_DIR / ("compressors" if index == 0 else f"compressors_{budget}"))
        summaries += [{"budget": budget, **row} for row in summary]
    plot_pool(results, [len(row["context_ids"]) for row in rows], len(settings), folder.path / PLOTS_DIR / "pool")
    return summaries


def check_compressors(args: EvaluateArguments):
    """Raises `ValueError` if `--compressors` or `--own_generators` has unknown names: before hours of reading."""
    known = [*COMPRESSORS, *named(args.gists, "--gists")]
    asked = args.compressors or known
    for flag, names, there in (
        ("--compressors", asked, known),
        ("--own_generators", named(args.own_generators, "--own_generators"), asked),
    ):
        unknown = [name for name in names if name not in there]
        if unknown:
            raise ValueError(
                f"`{flag}` has {', '.join(map(repr, unknown))}. It takes names of {', '.join(map(repr, there))}."
            )


def named(values: list[str] | None, flag: str) -> dict[str, str]:
    """Paths by name; see [`named_pairs`]."""
    return dict(named_pairs(values, flag))


def named_pairs(values: list[str] | None, flag: str) -> list[tuple[str, str]]:
    """`NAME=PATH` arguments. Raises `ValueError` if one has no name."""
    pairs = [value.partition("=") for value in values or []]
    for name, _, path in pairs:
        if not name or not path:
            raise ValueError(f"`{flag}` takes NAME=PATH, got {name!r}.")
    return [(name, path) for name, _, path in pairs]
