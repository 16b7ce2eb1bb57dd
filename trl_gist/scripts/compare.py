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

import dataclasses
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..common.arguments import named, named_pairs
from ..common.run_files import PLOTS_DIR
from ..evaluation import PairReadings, load_generator_only
from ..evaluation.comparison.compare import compare_compressors, summarize_comparison
from ..evaluation.comparison.pool import plot_pool
from ..evaluation.comparison.tables import comparison_tables, plot_comparison
from ..evaluation.compressors import TrainedSummarizer, write_contexts
from ..evaluation.compressors.registry import COMPRESSORS, compressor_name, standard_compressors
from ..evaluation.folder import COMPRESSORS_FILE, CONTEXTS_FILE, EvaluationFolder
from ..evaluation.held_out.readings import window_blocks
from ..scoring.extraction import IDF_CONTEXTS
from .arguments import EvaluateArguments


_CHUNK = 16


def compare(
    args: EvaluateArguments, readings: PairReadings, rows: list[dict], folder: EvaluationFolder
) -> dict[str, list[dict]]:
    """
    Compares at every budget, with the first number of last tokens; prints the tables and draws the plots.

    Returns:
        `dict[str, list[dict]]`: `compressors`, of [`summarize_comparison`], each with its `budget`; and, where there are
        several kinds of targets, `compressors_by_kind`, the same of each, with its `kind`.
    """
    settings = [setting for setting in readings.settings if setting[0] == readings.settings[0][0]]
    rows = [row for row in rows if tuple(row["setting"]) in settings]
    tokenizer, blocks = readings.compactor.tokenizer, window_blocks(rows, len(settings))
    gists = [row for start, _ in blocks for row in rows[start : start + len(settings)]]
    write_contexts(gists, [row["gist_length"] for row in gists], tokenizer, folder.path / CONTEXTS_FILE)
    compressors = standard_compressors(
        readings.compactor,
        readings.teacher,
        [row["context_ids"] for row in islice(gists, 0, IDF_CONTEXTS * len(settings), len(settings))],
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
    chunks = _chunks(rows, blocks)
    ends = [0, *(end * of_window for _, end in chunks)]
    results = folder.rows(
        lambda rows: max(end for end in ends if end <= len(rows)), COMPRESSORS_FILE, total=len(rows) * of_window
    )
    done = len({row["window"] for row in results})
    left = [chunk for chunk in chunks if chunk[0] >= done]
    for start, end in track(left, "Other compressors", console=Console(stderr=True)):
        readings.scorer.teacher_cache.clear()  # or it would grow to the hidden states of every window
        chunk = compare_compressors(
            readings.scorer, rows[start:end], compressors, tokenizer, own, batch_size=end - start
        )
        # One window after the other, so that a file that was cut off ends with whole windows
        chunk = sorted(({**row, "window": row["window"] + start} for row in chunk), key=lambda row: row["window"])
        folder.append(chunk, COMPRESSORS_FILE)
        results += chunk
    summaries, by_kind = [], []
    kinds = sorted({row["kind"] for row in results if "kind" in row})
    for index, (_, budget) in enumerate(settings):
        of_budget = [row for row in results if row["window"] % len(settings) == index]
        summary = summarize_comparison([*of_budget, *missing])
        for table in comparison_tables(summary):
            Console().print(table)
        plot_comparison(summary, folder.path / PLOTS_DIR / ("compressors" if index == 0 else f"compressors_{budget}"))
        summaries += [{"budget": budget, **row} for row in summary]
        for kind in kinds if len(kinds) > 1 else ():
            summary = summarize_comparison([row for row in of_budget if row["kind"] == kind])
            for table in comparison_tables(summary, kind):
                Console().print(table)
            by_kind += [{"budget": budget, "kind": kind, **row} for row in summary]
    pool = _of_contexts(results, blocks, len(settings)) if kinds else results
    plot_pool(pool, [len(row["context_ids"]) for row in gists], len(settings), folder.path / PLOTS_DIR / "pool")
    return {"compressors": summaries} | ({"compressors_by_kind": by_kind} if by_kind else {})


def _chunks(rows, blocks):
    """Rows that are compared together: `_CHUNK` of them or, where windows have several targets, of whole windows as many
    as make up so many, since all targets of a window are read with the same gists."""
    if not any("window_targets" in row for row in rows):
        return [(start, min(start + _CHUNK, len(rows))) for start in range(0, len(rows), _CHUNK)]
    chunks, first = [], 0
    for _, end in blocks:
        if end - first >= _CHUNK or end == len(rows):
            chunks.append((first, end))
            first = end
    return chunks


def _of_contexts(results, blocks, settings):
    """Results by context instead of by target: one gist serves all of them, so that its KL is the mean over them."""
    context_of = {
        row: number * settings + (row - start) % settings
        for number, (start, end) in enumerate(blocks)
        for row in range(start, end)
    }
    together = {}
    for row in results:
        together.setdefault((context_of[row["window"]], row["compressor"], row["reader"]), []).append(row)
    return [
        {**rows[0], "window": window, "kl": sum(row["kl"] for row in rows) / len(rows)}
        for (window, *_), rows in together.items()
    ]


def with_known_compressors(args: EvaluateArguments) -> EvaluateArguments:
    """
    The arguments with the compressors' names as tables have them. Raises `ValueError` if `--compressors` or
    `--own_generators` has unknown ones, or what is given for the comparison has no place in it: before hours of reading.
    """
    if args.compressors is None:
        for name in ("samples", "token_classifier", "gists", "own_generators"):
            if value := getattr(args, name):
                raise ValueError(f"`--{name}` ({value}) is of a comparison with compressors: add `--compressors`.")
        return args
    gists = named(args.gists, "--gists")
    known = [*COMPRESSORS, *gists]
    asked = [compressor_name(name, known) for name in args.compressors] or known
    own = [
        f"{compressor_name(name, asked)}={path}" for name, path in named_pairs(args.own_generators, "--own_generators")
    ]
    for flag, names, there in (
        ("--compressors", asked, known),
        ("--own_generators", named(own, "--own_generators"), asked),
    ):
        unknown = [name for name in names if name not in there]
        if unknown:
            raise ValueError(
                f"`{flag}` has {', '.join(map(repr, unknown))}. It takes names of {', '.join(map(repr, there))}."
            )
    for name, path in gists.items():
        if not Path(path).exists() or Path(path).is_dir():
            raise ValueError(f"`--gists` names {path} for {name!r}, which is no file.")
    for flag, names in (
        ("--gists", gists),
        ("--token_classifier", ["token classifier"] if args.token_classifier is not None else []),
    ):
        if left_out := [name for name in names if name not in asked]:
            raise ValueError(f"`{flag}` is given, and `--compressors` leaves {left_out[0]!r} out: name it there too.")
    return dataclasses.replace(args, compressors=asked if args.compressors else [], own_generators=own or None)
