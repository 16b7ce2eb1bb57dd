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
Below the floor of a frozen decoder: rate-distortion of prompt compression (Nagle et al. 2024,
https://huggingface.co/papers/2407.15504) on their synthetic task, with a decoder that is trained with its encoder.

1. A small Llama is trained from scratch to answer seven queries about binary strings of 2-32 bits, and frozen.
2. The distortion-rate function D*(R) of that frozen reader is computed exactly, over all binary strings as candidates:
   no encoder, however clever, goes below it.
3. `GistTrainer` co-trains a summarizer, which can write bits only, and a generator, both of which start as the frozen
   reader. The gist's alphabet and lengths are those of the candidates, but the generator may learn another meaning of
   the bits. That is the point: the frozen reader takes a shorter string for what it says, and is confidently wrong.

Every figure is an exact expectation over all strings of 4-10 bits under the chain; errors are over seeds. A finished
reader or run in the output folder is not trained again.

Three controls are decoded by the exact posterior, and none is trained: no gist at all and the bits that the cold
start's rule takes say what of it is not the summarizer's; a code by Lloyd's algorithm says how much a code can be
worth.

python -m research.rate_distortion.run
python -m research.rate_distortion.run --query_aware   # the summarizer also sees the query
"""

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the models are too small for more threads

from trl_gist.common.tables import console_table

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM
from transformers.utils import logging

from research.rate_distortion.curves import (
    DISTORTIONS,
    Problem,
    largest_difference_from_linprog,
    lloyd_gists,
    measure_gists,
    plot,
    reader_curves,
)
from research.rate_distortion.pair import PairSizes, budget, co_train, evenly_spaced, write_gists
from research.rate_distortion.reader import train_reader
from research.rate_distortion.task import EVALUATED_LENGTHS, MAX_LENGTH, QUERIES, make_tokenizer


@dataclass(frozen=True)
class Sizes:
    """What the whole command costs."""

    lengths: range = EVALUATED_LENGTHS
    # Of the brute-force linear program, whose variables are all pairs of string and candidate
    checked_lengths: range = range(4, 7)
    reader_lengths: range = range(2, MAX_LENGTH + 1)
    reader_steps: int = 1200
    reader_batch: int = 24
    reader_prefixes: int = 6
    rates: tuple[float, ...] = (0.3, 0.4, 0.5, 0.7)
    seeds: tuple[int, ...] = (0, 1, 2)
    pair: PairSizes = field(default_factory=PairSizes)


def main(output_dir: str, query_aware: bool, sizes: Sizes | None = None) -> dict:
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    console, started, directory = Console(highlight=False), time.time(), Path(output_dir)
    sizes = sizes or Sizes()
    tokenizer, problem = make_tokenizer(), Problem(sizes.lengths)
    held_out_X = held_out_strings(problem)
    excluded = {bits for bits, held_out in zip(problem.strings, held_out_X, strict=True) if held_out}
    reader = frozen_reader(directory / "reader", tokenizer, excluded, sizes)
    whole = measure_gists(
        reader, tokenizer, problem, np.array([[bits] * len(QUERIES) for bits in problem.strings]), held_out_X
    )
    console.rule("[bold]The frozen reader on whole strings")
    print_reader(console, whole)
    curves = reader_curves(reader, tokenizer, problem, sizes.lengths[-1])
    difference = largest_difference_from_linprog(reader, tokenizer, Problem(sizes.checked_lengths))
    console.print(f"D*(R) differs from a brute-force linear program by at most {difference:.1e}")
    kinds = ["agnostic", "aware"] if query_aware else ["agnostic"]
    runs = {kind: [] for kind in kinds}
    for kind in kinds:
        for seed in sizes.seeds:
            for rate in sizes.rates:
                path = directory / f"{kind}-rate{rate}-seed{seed}.json"
                if not path.is_file():
                    console.rule(f"[bold]Co-training at rate {rate}, seed {seed}, query-{kind}")
                    run = co_train_and_measure(
                        reader, tokenizer, problem, held_out_X, excluded, rate, seed, kind, sizes, path
                    )
                    path.write_text(json.dumps(run, indent=1))
                runs[kind].append(json.loads(path.read_text()) | {"asked": rate})
    points = {kind: [summarize_rate(runs[kind], rate, curves, kind) for rate in sizes.rates] for kind in kinds}
    controls = perfect_decoders(problem, sizes.rates)
    results = {
        "reader": whole,
        "linprog_difference": difference,
        "points": points,
        "controls": controls,
        "curves": sampled(curves),
    }
    (directory / "results.json").write_text(json.dumps(results, indent=1))
    plot(curves, points, controls, directory / "rate_distortion")
    for kind in kinds:
        print_verdict(console, kind, points[kind], controls)
    console.print(f"Done in {(time.time() - started) / 60:.1f} minutes. Plot and figures are in {directory}.")
    return results


def held_out_strings(problem: Problem) -> np.ndarray:
    """A tenth of the strings of six bits or more that change: no training sees them."""
    changes_X = np.array([len(bits) > 5 and len(set(bits)) > 1 for bits in problem.strings])
    return changes_X & (np.random.default_rng(0).random(len(changes_X)) < 0.1)


def frozen_reader(directory: Path, tokenizer, excluded, sizes) -> LlamaForCausalLM:
    if not (directory / "config.json").is_file():
        reader = train_reader(
            tokenizer,
            sizes.reader_lengths,
            excluded,
            sizes.reader_steps,
            sizes.reader_batch,
            sizes.reader_prefixes,
            learning_rate=3e-3,
            seed=0,
        )
        reader.save_pretrained(directory)
    return LlamaForCausalLM.from_pretrained(directory).eval()


def co_train_and_measure(reader, tokenizer, problem, held_out_X, excluded, rate, seed, kind, sizes, path) -> dict:
    started = time.time()
    query_aware = kind == "aware"
    trainer = co_train(
        reader, tokenizer, sizes.lengths, rate, excluded, sizes.pair, seed, query_aware, path.with_suffix("")
    )
    shown = [f"?{query}" for query in QUERIES] if query_aware else [""]
    gists = [write_gists(trainer.model.eval(), tokenizer, problem.strings, rate, query) for query in shown]
    gists_XQ = np.array(gists if query_aware else gists * len(QUERIES)).T
    return {
        **measure_gists(trainer.generator.eval(), tokenizer, problem, gists_XQ, held_out_X),
        "minutes": (time.time() - started) / 60,
        "gist_of": dict(zip(problem.strings, gists_XQ[:, : len(shown)].tolist(), strict=True)),
        "log": [
            {name: log[name] for name in ("step", "teacher_kl", "reward", "entropy")}
            for log in trainer.state.log_history
            if "teacher_kl" in log
        ],
    }


def summarize_rate(runs, asked, curves, kind) -> dict:
    """Means and standard errors over seeds, and how far below D* at each run's own rate."""
    runs = [run for run in runs if run["asked"] == asked]
    point = {"asked": asked, "rate": float(np.mean([run["rate"] for run in runs]))}
    for name in DISTORTIONS:
        curve = getattr(curves[name], kind)
        below = [curve(run["rate"]) - run[name] for run in runs]
        point["d_star_" + name] = curve(point["rate"])
        for suffix in ("", "_best_encoder", "_best_decoder", "_held_out"):
            point[name + suffix], point[f"{name}{suffix}_se"] = mean_and_error([run[name + suffix] for run in runs])
        point[f"{name}_below"], point[f"{name}_below_se"] = mean_and_error(below)
    return point


def perfect_decoders(problem, rates) -> dict[str, list[dict]]:
    """What an exact posterior makes of no gist, and at each rate of the cold start's rule and of Lloyd's code."""

    def point(gists):
        gists_XQ = np.array([gists] * len(QUERIES)).T
        rates_X = np.array([len(gist) for gist in gists]) / problem.lengths_X
        return {"rate": float(problem.weights_XQ.sum(1) @ rates_X), **problem.best_decoding(gists_XQ)}

    budgets = [np.array([budget(len(bits), rate) for bits in problem.strings]) for rate in rates]
    return {
        "no gist": [point([""] * len(problem.strings))],
        "even bits": [
            point([evenly_spaced(bits, most) for bits, most in zip(problem.strings, budgets_X, strict=True)])
            for budgets_X in budgets
        ],
        "Lloyd's code": [point(lloyd_gists(problem, budgets_X)) for budgets_X in budgets],
    }


def mean_and_error(values) -> tuple[float, float]:
    """The standard error is NaN of a single value."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(error)


def sampled(curves) -> dict:
    """The curves at rates from 0 to 1, for the JSON."""
    rates = np.linspace(0, 1, 41)
    return {"rates": rates.tolist()} | {
        name: {
            "agnostic": of.agnostic(rates).tolist(),
            "aware": of.aware(rates).tolist(),
            **{query: curve(rates).tolist() for query, curve in zip(QUERIES, of.per_query, strict=True)},
        }
        for name, of in curves.items()
    }


def print_reader(console, whole):
    table = console_table(None, "", *DISTORTIONS.values())
    for index, query in enumerate(QUERIES):
        table.add_row(query, *(f"{whole[f'{name}_per_query'][index]:.3f}" for name in DISTORTIONS))
    table.add_section()
    table.add_row("all", *(f"{whole[name]:.3f}" for name in DISTORTIONS))
    table.add_row("all, on held-out strings", *(f"{whole[f'{name}_held_out']:.3f}" for name in DISTORTIONS))
    console.print(table)


def print_verdict(console, kind, points, controls):
    console.rule(f"[bold]Query-{kind} pairs against D*(R), ± standard error over seeds")
    columns = ("rate", "D*(R)", "pair", "below by", "", "its code,\nperfect decoder", "its decoder,\nperfect encoder")
    columns += ("even bits,\nperfect decoder", "Lloyd's code,\nperfect decoder")
    for name, label in DISTORTIONS.items():
        table, below = Table(box=box.SIMPLE, title=label, title_justify="left"), []
        for heading in columns:
            table.add_column(heading, justify="right")
        for index, point in enumerate(points):
            gap, error = point[f"{name}_below"], point[f"{name}_below_se"]
            beyond = gap > 2 * error
            below += [round(point["rate"], 3)] * beyond
            table.add_row(
                f"{point['rate']:.3f}",
                f"{point['d_star_' + name]:.3f}",
                f"{point[name]:.3f} ± {point[f'{name}_se']:.3f}",
                f"{gap:.3f} ± {error:.3f}",
                "[bold]below[/bold]" if beyond else "not below",
                f"{point[f'{name}_best_decoder']:.3f}",
                f"{point[f'{name}_best_encoder']:.3f}",
                *(f"{controls[control][index][name]:.3f}" for control in ("even bits", "Lloyd's code")),
            )
        console.print(table)
        console.print(f"{label}: without a gist, a perfect decoder has {controls['no gist'][0][name]:.3f}")
        console.print(f"{label}: below D*(R) by more than two standard errors at {below or 'no rate'}", style="bold")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--query_aware", action="store_true", help="also co-train pairs whose summarizer sees the query"
    )
    parser.add_argument("--output_dir", default="runs/rate-distortion", help="default: runs/rate-distortion")
    main(**vars(parser.parse_args()))
