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
What pairs of memory know by age, for docs/MEMORY.md: right answers of a folder that `trl-gist evaluate --tasks` left, the
ages taken together so that few questions are enough; and whether their gists are prose: the same questions put to models
that never saw a gist, which read it as plain text.

trl-gist evaluate memory/walks --tasks needles ledger --difficulty 2 --lengths 8 --texts 8 --output_dir memory/facts-2 \\
    --pairs seed_6=memory/walks-6 single_windows=memory/single
python -m research.memory.readers memory/facts-2 --readers gemma-3-270m --image docs/images/memory_age
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from trl_gist.common.statistics import mean_and_error, with_error
from trl_gist.evaluation.folder import read_measures, read_rows
from trl_gist.evaluation.pages.plots import GIST, GREEN, NEUTRAL, NULL, OCHRE, PLUM, save_figure
from trl_gist.evaluation.tasks.readings import begins_with
from trl_gist.models.generation import greedy_continuations
from trl_gist.models.machine import fast_dtype

import numpy as np
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.demo_assets import smollm2_checkpoint
from examples.short_run import quiet_console
from research.common.tables import markdown_table


AGES = ((0, 1), *((2**power, 2 ** (power + 1) - 1) for power in range(1, 16)))
ARMS = {
    "full": "the teacher: all of the text",
    "zero_shot": "the teacher: its own rolling summary",
    "self-information": "the teacher: self-information, rolling",
    "single": "gist of the last chunk alone",
    "pair": "rolling gist",
}
COLORS = {"full": NEUTRAL, "zero_shot": PLUM, "single": OCHRE, "pair": GIST}


def rows_of(folders: list[Path]) -> list[dict]:
    """The rows of all; a text of one is another text than that of the same name in another."""
    return [
        {**row, "document_id": f"{place}/{row['document_id']}"}
        for place, folder in enumerate(folders)
        for row in read_rows(folder)
    ]


def right_answers(rows: list[dict], arms: Iterable[str]) -> dict[str, list[bool]]:
    """Whether each question was answered rightly, of those who were asked any. Raises `ValueError` for who was not asked all:
    the others are compared with it question by question."""
    questions = [one["right"] for row in rows for one in row["questions"]]
    right = {arm: [one[arm] for one in questions if arm in one] for arm in arms}
    for arm, own in right.items():
        if 0 < len(own) < len(questions):
            raise ValueError(
                f"{arm!r} was asked {len(own)} of {len(questions)} questions: give folders of the same pairs, and of texts "
                "that the teacher has positions for."
            )
    return {arm: own for arm, own in right.items() if own}


def load_reader(checkpoint: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=fast_dtype()).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], writer: str | None
) -> list[bool]:
    """Whether a reader that has a gist's text, a line end and the question goes on with the answer, in the questions' order;
    without a writer it has the question alone."""
    gists = [f"{row['gists'][writer]}\n" if writer else "" for row in rows]
    asked = [
        (gist + one["cue"], one["answer"]) for row, gist in zip(rows, gists, strict=True) for one in row["questions"]
    ]
    prompts = tokenizer([text for text, _ in asked])["input_ids"]
    written = greedy_continuations(model, prompts, 12, tokenizer, 16)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip().partition("\n")[0] for ids in written]
    return [begins_with(text, answer) for text, (_, answer) in zip(texts, asked, strict=True)]


def age_groups(rows: list[dict]) -> dict[tuple[int, int], np.ndarray]:
    """Which questions are of which ages, of those that are asked for."""
    ages = np.array([one["age"] for row in rows for one in row["questions"]])
    groups = {(first, last): (first <= ages) & (ages <= last) for first, last in AGES}
    return {group: asked for group, asked in groups.items() if asked.any()}


def of_groups(rows: list[dict], right: list[bool]) -> list[tuple[float, float]]:
    """The share that is right, of each group of ages and of all, and its standard error over texts."""
    documents = np.array([row["document_id"] for row in rows for _ in row["questions"]], dtype=object)
    right, groups = np.array(right, dtype=float), [*age_groups(rows).values(), np.ones(len(right), dtype=bool)]
    return [mean_and_error(right[asked], list(documents[asked])) for asked in groups]


def table(rows: list[dict], right: dict[str, list[bool]]) -> list[str]:
    groups = age_groups(rows)
    head = ["answered from", *(f"said {first}-{last} windows ago" for first, last in groups), "all"]
    counts = [int(asked.sum()) for asked in groups.values()]
    lines = [["questions", *map(str, [*counts, sum(counts)])]]
    for label, own in right.items():
        shares = of_groups(rows, own)
        cells = [
            f"{share * count:.0f}, {with_error(share, error, 0, scale=100)}%"
            for (share, error), count in zip(shares, [*counts, sum(counts)], strict=True)
        ]
        lines.append([label, *cells])
    return markdown_table(head, lines)


def ahead_table(rows: list[dict], right: dict[str, list[bool]], walks: list[str]) -> list[str]:
    """By how many points the mean of some pairs is ahead of the others, paired over questions: of what was said four windows
    ago and longer, of all that was asked, and of each task's."""
    asked = [(row["document_id"], row["task"], one["age"]) for row in rows for one in row["questions"]]
    documents, tasks, ages = (np.array(column) for column in zip(*asked, strict=True))
    chosen = {"said 4 windows ago and more": ages >= 4, "all": ages >= 0}
    chosen |= {f"all of {task}": tasks == task for task in dict.fromkeys(tasks)}
    mean = np.mean([right[name] for name in walks], axis=0)
    lines = []
    for label, own in right.items():
        if label in walks:
            continue
        values = mean - np.array(own, dtype=float)
        cells = (mean_and_error(values[some], list(documents[some])) for some in chosen.values())
        lines.append([label, *(with_error(*cell, 0, scale=100) for cell in cells)])
    return markdown_table([f"{' and '.join(walks)}, ahead of", *chosen], lines)


def plot(rows: list[dict], right: dict[str, list[bool]], colors: dict[str, str]) -> Figure:
    """Right answers by how long ago the fact was said, one line for each that was asked."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    axis, groups = figure.subplots(), age_groups(rows)
    for place, (label, own) in enumerate(right.items()):
        shares = 100 * np.array(of_groups(rows, own)[:-1])
        thick, color = label.startswith(("walks", "single")), colors[label]
        aside = 0.03 * (place - len(right) / 2)  # so that errors stand side by side
        axis.errorbar(
            aside + np.arange(len(groups)),
            shares[:, 0],
            shares[:, 1],
            color=color,
            lw=3 if thick else 1.8,
            marker="o",
            capsize=3,
        )
        axis.annotate(
            label,
            (len(groups) - 0.85, shares[-1, 0]),
            xytext=(0, 0),
            textcoords="offset points",
            color=color,
            va="center",
        )
    axis.set_xticks(range(len(groups)), [f"{first}-{last}" for first, last in groups], fontsize=12)
    axis.set_xlim(-0.2, len(groups) - 0.1)
    axis.set_ylim(-4, 104)
    axis.yaxis.set_major_formatter("{x:.0f}%")
    axis.set_ylabel("right answers", fontsize=12)
    axis.set_xlabel("windows of 256 tokens since the fact was said", fontsize=12)
    axis.set_title(
        "A rolling gist of 32 tokens keeps what it was taught to keep", loc="left", fontsize=16, weight="bold"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.2)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", type=Path, nargs="+", help="what `trl-gist evaluate --tasks` left, of the same pairs"
    )
    parser.add_argument("--readers", nargs="*", default=[], help="checkpoints that read gists, beside the teacher")
    parser.add_argument(
        "--walks", nargs="+", default=["pair"], help="the pairs whose mean is held against the others (default: pair)"
    )
    parser.add_argument("--image", type=Path, help="draw the ages there, without a suffix")
    args = parser.parse_args()
    quiet_console()
    rows, others = rows_of(args.folders), list(read_measures(args.folders[0])["pairs"])
    arms = ARMS | {name: f"{name.replace('_', ' ')}: rolling gist" for name in others}
    right = right_answers(rows, arms)
    labelled = {arms[arm]: own for arm, own in right.items()}
    print(*table(rows, labelled), "", *ahead_table(rows, labelled, [arms[arm] for arm in args.walks]), sep="\n")
    if args.readers:
        checkpoints = {"the teacher": smollm2_checkpoint(), **{Path(one).name: one for one in args.readers}}
        readers = {name: load_reader(checkpoint) for name, checkpoint in checkpoints.items()}
        alone = {f"{name}, no gist": answers(*reader, rows, None) for name, reader in readers.items()}
        print("", *table(rows, alone), sep="\n")
        for writer in ("pair", *others):
            own = {
                f"the same gist, read by {name}": answers(*reader, rows, writer) for name, reader in readers.items()
            }
            print("", *table(rows, {arms[writer]: right[writer]} | own), sep="\n")
    if args.image:
        labels = {"pair": "walks", "full": "teacher, all of the text", "single": "last chunk's gist alone"}
        labels |= {"zero_shot": "teacher's own summary"} | {name: name.replace("_", " ") for name in others}
        labels |= {name: f"walks, {labels[name]}" for name in others if name.startswith("seed")}
        drawn = {labels[arm]: own for arm, own in right.items() if arm in labels}
        spare = iter((GREEN, NULL, "black"))
        colors = {labels[arm]: COLORS.get(arm) or next(spare) for arm in right if arm in labels}
        save_figure(plot(rows, drawn, colors), args.image)


if __name__ == "__main__":
    main()
