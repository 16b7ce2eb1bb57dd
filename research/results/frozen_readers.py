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
What gists are worth, by rate and by kind of target, to readers that never saw one in training: the teacher, and any
other causal language model in its own tokens. A code that only its generator can read gains them nothing.

python -m research.results.gemma gemma-3-270m
python -m research.results.imitate summarizer
python -m research.results.frozen_readers readings --readers gemma-3-270m --pairs "the summarizer"=summarizer
python -m research.results.frozen_readers readings --table --image docs/images/frozen_readers

Contexts are 128 tokens of the demo's held-out articles; gists of a sixteenth, an eighth and a quarter of them are read
as text, then the cue, then the target. Measured is the share of what the reader gains from the whole context, above
the cue alone, that it gains from the gist: ratios of sums ± standard error over articles. What has been read is not
read again.
"""

import argparse
import json
from pathlib import Path

from trl_gist import GistCompactor
from trl_gist.common.arguments import named
from trl_gist.common.statistics import ratio_and_error, with_error
from trl_gist.data.targets import TargetSpec
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.evaluation.compressors.registry import extractive_compressors
from trl_gist.evaluation.compressors.trained import TrainedSummarizer
from trl_gist.evaluation.compressors.zero_shot import ZeroShot
from trl_gist.evaluation.gists.transfer import as_text, read_as_text
from trl_gist.evaluation.pages.plots import GIST, GREEN, NEUTRAL, NULL, OCHRE, PLUM, save_figure
from trl_gist.models.machine import fast_dtype
from trl_gist.prompts import one_row_each

import numpy as np
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.demo_assets import smollm2_checkpoint, split_articles
from examples.short_run import quiet_console
from research.common.tables import markdown_table
from research.results.imitate import BUDGETS
from research.targets.codes import RULES, spread_over_articles


CONTEXT = 128
KINDS = {"fact": "facts", "recall": "sentences", "continuation": "next tokens", "far": "128 tokens on"}
TEACHER, WRITES = "teacher", "untrained summary"
COLORS = {"surprising facts": OCHRE, "facts": PLUM, "tf-idf": GREEN, "tail": NULL}


def held_out_rows(tokenizer, windows_per_article: int) -> tuple[list[list[int]], list[list[dict]]]:
    """Contexts, and of each its targets as rows of one."""
    kinds = (("fact", 2), ("recall", 1), ("continuation", 1), ("far", 1))
    spec = WindowSpec(CONTEXT, 16, 16, None, 40, targets=TargetSpec(kinds, targets_per_context=5))
    windows = spread_over_articles(prepare_windows(split_articles()[1], tokenizer, spec)[0], windows_per_article)
    return [row["context_ids"] for row in windows], [one_row_each(row) for row in windows]


def write_gists(args, tokenizer, contexts: list[list[int]]) -> dict[str, list[list[int]]]:
    """The gists of every hand at every rate, as `HAND at BUDGET`, as token ids."""
    teacher = AutoModelForCausalLM.from_pretrained(smollm2_checkpoint(), dtype=fast_dtype()).eval()
    articles = tokenizer(list(split_articles()[0]["text"]), verbose=False)["input_ids"]
    hands = extractive_compressors(tokenizer, teacher, articles, names=RULES)
    for name, pair in named(args.pairs, "--pairs").items():
        compactor = GistCompactor.from_pretrained(pair, dtype=fast_dtype())
        hands |= {name: TrainedSummarizer(compactor), WRITES: ZeroShot(compactor)}
    return {
        f"{name} at {budget}": hand.compress(contexts, [budget] * len(contexts))
        for name, hand in tqdm(hands.items(), desc="Writing gists")
        for budget in BUDGETS
    }


def read_gists(args):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_checkpoint())
    contexts, rows = held_out_rows(tokenizer, args.windows_per_article)
    gists_file = args.folder / "gists.json"
    if not gists_file.is_file():
        args.folder.mkdir(parents=True, exist_ok=True)
        gists_file.write_text(json.dumps(write_gists(args, tokenizer, contexts)), encoding="utf-8")
    gists = json.loads(gists_file.read_text("utf-8"))
    for name, checkpoint in ((TEACHER, smollm2_checkpoint()), *((Path(path).name, path) for path in args.readers)):
        folder = args.folder / name
        unread = {
            label: of_label
            for label, of_label in {"alone": [[]] * len(rows), **gists}.items()
            if not (folder / f"{label}.json").is_file()
        }
        if not unread:
            continue
        folder.mkdir(exist_ok=True)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=fast_dtype()).eval()
        own = AutoTokenizer.from_pretrained(checkpoint)
        for label, of_label in tqdm(unread.items(), desc=f"Reading, {name}"):
            flat = [one | {"gist_ids": gist} for row, gist in zip(rows, of_label, strict=True) for one in row]
            readings = ("none", "full") if label == "alone" else ("gist",)
            found = read_as_text(model, own, as_text(tokenizer, flat), 16, readings)
            found = [read | {"kind": one["kind"]} for read, one in zip(found, flat, strict=True)]
            (folder / f"{label}.json").write_text(json.dumps(found), encoding="utf-8")


def shares(folder: Path) -> dict[tuple[str, int, str], tuple[float, float]]:
    """By hand, budget and kind: the share of the context's gain, and its standard error."""
    alone, found = json.loads((folder / "alone.json").read_text("utf-8")), {}
    for file in sorted(folder.glob("* at *.json")):
        hand, budget = file.stem.rsplit(" at ", 1)
        pairs = list(zip(alone, json.loads(file.read_text("utf-8")), strict=True))
        for kind in KINDS:
            own = [(base, read) for base, read in pairs if base["kind"] == kind]
            gains = np.array([base["none_nats"] - read["gist_nats"] for base, read in own])
            most = np.array([base["none_nats"] - base["full_nats"] for base, _ in own])
            found[hand, int(budget), kind] = ratio_and_error(gains, most, [base["document_id"] for base, _ in own])
    return found


def print_tables(folder: Path):
    for reader in sorted(path.parent.name for path in folder.glob("*/alone.json")):
        found = shares(folder / reader)
        alone = json.loads((folder / reader / "alone.json").read_text("utf-8"))
        counts = {kind: sum(row["kind"] == kind for row in alone) for kind in KINDS}
        head = ["gist", *(f"{label}, {budget} tokens" for label in KINDS.values() for budget in BUDGETS)]
        hands = sorted({hand for hand, _, _ in found}, key=lambda hand: -found[hand, BUDGETS[1], "fact"][0])
        lines = [
            [hand, *(with_error(*found[hand, budget, kind], 2) for kind in KINDS for budget in BUDGETS)]
            for hand in hands
        ]
        asked = ", ".join(f"{counts[kind]} {label}" for kind, label in KINDS.items())
        print(f"{reader}: {asked} of {len({row['document_id'] for row in alone})} articles\n")
        print("\n".join([*markdown_table(head, lines), ""]))


def plot(folder: Path) -> Figure:
    """A panel for each reader and kind of target, curves over the rate."""
    readers = sorted((path.parent.name for path in folder.glob("*/alone.json")), key=lambda name: name != TEACHER)
    figure = Figure(figsize=(12.8, 3.4 * len(readers) + 0.6), layout="constrained")
    figure.suptitle(
        "How much of what the whole text tells a frozen reader its gist tells, too",
        x=0.01,
        ha="left",
        fontsize=17,
        weight="bold",
    )
    panels = figure.subplots(len(readers), len(KINDS), sharex=True, sharey="row", squeeze=False)
    for reader, row in zip(readers, panels, strict=True):
        found = shares(folder / reader)
        hands = sorted({hand for hand, _, _ in found}, key=lambda hand: -found[hand, BUDGETS[-1], "fact"][0])
        for (kind, label), axis in zip(KINDS.items(), row, strict=True):
            for hand in hands:
                rule = hand in RULES or hand == WRITES
                color = COLORS.get(hand, NEUTRAL if rule else GIST)
                mean, error = (
                    100 * np.array(part) for part in zip(*(found[hand, b, kind] for b in BUDGETS), strict=True)
                )
                named_line = hand in COLORS or not rule
                style = {"lw": 3 if not rule else 1.6, "alpha": 1 if named_line else 0.35, "marker": "o", "ms": 4}
                axis.plot(range(len(BUDGETS)), mean, color=color, label=hand if named_line else "_", **style)
                if not rule:
                    axis.fill_between(range(len(BUDGETS)), mean - error, mean + error, color=color, alpha=0.15, lw=0)
            axis.axhline(0, color=NEUTRAL, lw=0.8)
            axis.set_xticks(range(len(BUDGETS)), [f"1/{CONTEXT // budget}" for budget in BUDGETS])
            axis.yaxis.set_major_formatter("{x:.0f}%")
            axis.set_title(label, loc="left", fontsize=13)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.2)
            axis.tick_params(labelsize=11)
        row[0].set_ylabel(f"read by {reader}", fontsize=12)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=11)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where gists and readings are kept")
    parser.add_argument("--pairs", nargs="*", default=[], metavar="NAME=PAIR", help="whose summarizers write, too")
    parser.add_argument("--readers", nargs="*", default=[], help="checkpoints that read beside the teacher")
    parser.add_argument("--windows_per_article", type=int, default=2, help="(default: 2)")
    parser.add_argument("--table", action="store_true", help="read nothing; print what has been read")
    parser.add_argument("--image", type=Path, help="draw the curves there, without a suffix")
    args = parser.parse_args()
    if not args.table:
        quiet_console()
        read_gists(args)
    print_tables(args.folder)
    if args.image:
        save_figure(plot(args.folder), args.image)


if __name__ == "__main__":
    main()
