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
How the cost of a step grows with the gists of a context, and with the context's length: seconds a document, of
GistTrainer and (unless `--gist_only`) of the afternoon's composition, each at the other axis's default.

python -m research.performance.growth --plot growth.png
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import matplotlib
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from research.performance.workload import PHASES, add_arguments, build, machine


matplotlib.use("Agg")
import matplotlib.pyplot as plt


AXES = {"gists": "gists of a context", "context": "tokens of a context"}
COLORS = {"sample": "#8fb8de", "score + distil": "#3d7ebf", "policy": "#1b3a5c"}
NAIVE_COLOR = "#c1440e"


def main(args):
    for path in filter(None, (args.output, args.plot)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=120)
    kinds = ["gist"] if args.gist_only else ["gist", "naive"]
    points = [(axis, value, kind) for axis in AXES for value in getattr(args, f"{axis}_axis") for kind in kinds]
    points = [p for p in points if p[2] == "gist" or p[1] <= getattr(args, f"naive_{p[0]}")]
    found = {axis: {kind: {} for kind in kinds} for axis in AXES}
    measured = {}  # the axes cross
    for axis, value, kind in track(points, description="steps", console=Console(stderr=True)):
        sizes = {"gists": args.gists, "context": args.context, axis: value}
        key = (kind, *sizes.values())
        measured[key] = measured.get(key) or measure(kind, args, sizes)
        found[axis][kind][value] = measured[key]
        if args.output:
            report = {"arguments": vars(args), "machine": machine(), "seconds_a_document": found}
            Path(args.output).write_text(json.dumps(report, indent=2) + "\n")
    for axis, by_kind in found.items():
        console.print(table(axis, by_kind, args))
    if args.plot:
        plot(found, args)


def measure(kind, args, sizes):
    """Median seconds a document, by phase."""
    args = argparse.Namespace(**{**vars(args), **sizes})
    with tempfile.TemporaryDirectory() as directory:
        timed = build(kind, args, directory)
        steps = [timed.step() for _ in range(args.repeats + 1)][1:]  # the first is a warm-up
    return {phase: statistics.median(step[phase] for step in steps) / args.documents for phase in PHASES}


def table(axis, by_kind, args):
    found = Table(title=f"Seconds a document, by {AXES[axis]} ({machine()})", box=box.SIMPLE, title_justify="left")
    for heading in (AXES[axis], *PHASES, "by the doubling", "TRL + reward function", "ratio"):
        found.add_column(heading, justify="right")
    before = None
    for value, seconds in by_kind["gist"].items():
        step = seconds["whole step"]
        naive = by_kind.get("naive", {}).get(value, {}).get("whole step")
        found.add_row(
            str(value),
            *(f"{seconds[phase]:.2f}" for phase in PHASES),
            "" if before is None else f"{step / before:.2f}x",
            "" if naive is None else f"{naive:.1f}",
            "" if naive is None else f"{naive / step:.1f}",
        )
        before = step
    return found


def plot(found, args):
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for panel, (axis, by_kind) in zip(panels, found.items(), strict=True):
        values = list(by_kind["gist"])
        phases = [[by_kind["gist"][value][phase] for value in values] for phase in PHASES[:-1]]
        panel.stackplot(values, phases, colors=[COLORS[phase] for phase in PHASES[:-1]], labels=PHASES[:-1])
        if "naive" in by_kind:
            naive = by_kind["naive"]
            panel.plot(list(naive), [s["whole step"] for s in naive.values()], "o-", color=NAIVE_COLOR, markersize=4)
        panel.set_xlabel(AXES[axis])
        panel.set_xticks(values)
        panel.set_xlim(min(values), max(values))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds a document")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    handles, labels = handles[::-1], [f"GistTrainer: {label}" for label in labels[::-1]]
    if "naive" in found["gists"]:
        handles.insert(0, panels[0].lines[0])
        labels.insert(0, "TRL + reward function")
    panels[1].legend(handles, labels, frameon=False, loc="upper right")
    panels[0].set_title(f"contexts of {args.context} tokens", fontsize=10, loc="left")
    panels[1].set_title(f"{args.gists} gists a context", fontsize=10, loc="left")
    figure.savefig(args.plot, dpi=160)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, documents=1, repeats=1)
    parser.add_argument("--gists_axis", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--context_axis", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--gist_only", action="store_true", help="leave out the afternoon's composition")
    parser.add_argument("--naive_gists", type=int, default=8, help="most gists that it is measured with")
    parser.add_argument("--naive_context", type=int, default=512, help="longest context that it is measured with")
    parser.add_argument("--plot", help="PNG or SVG file for the plot")
    main(parser.parse_args())
