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
Is it the writing or the reading that a pair lacks? Along articles its generator reads, beside the summarizer's gists, the
lists that the summarizer was to imitate: rolling, and of the newest chunk alone.

python -m research.memory.lists memory/articles --documents long.jsonl
"""

import argparse
import copy

from trl_gist import GistCompactor
from trl_gist.common.statistics import mean_and_error, with_error
from trl_gist.data.targets import TARGET_FLOOR, TargetSpec
from trl_gist.evaluation import load_teacher
from trl_gist.evaluation.distance.facts import facts_by_age
from trl_gist.evaluation.distance.recall import recall_by_age
from trl_gist.evaluation.distance.walk import SLIDING_WINDOW, DistanceReadings, long_documents
from trl_gist.evaluation.folder import EvaluationFolder
from trl_gist.scoring.extraction import recurring_facts

from datasets import load_dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from examples.short_run import quiet_console
from research.common.tables import markdown_table


AGES = 5
LISTS = ("list", "chunk_list")
LABELS = {
    "null": "empty gist",
    "zero_shot_g": "the teacher's rolling summary",
    "stale": "the first window's gist",
    "single": "gist of the chunk alone",
    "pair": "rolling gist",
    "chunk_list": "list of the chunk alone",
    "list": "rolling list",
}


class ListReadings(DistanceReadings):
    """Two of the pairs that walk beside are the pair itself, with lists in the place of what its summarizer writes."""

    def __init__(self, compactor: GistCompactor, teacher: PreTrainedModel, windows: int, batch_size: int):
        ages = (1.0,) * min(windows, AGES)
        targets = TargetSpec((("fact", 1), ("recall", 1)), targets_per_context=5, recall_age=ages)
        others = {name: copy.copy(compactor) for name in LISTS}
        super().__init__(compactor, teacher, others, batch_size, targets, TARGET_FLOOR)

    def fold(self, writer, previous, chunks, last_ks):
        if writer not in self.others.values():
            return super().fold(writer, previous, chunks, last_ks)
        prompts, length = writer.prompts, writer.pair.max_gist_length
        if writer is self.others["chunk_list"]:
            previous = [[] for _ in previous]
        contexts = self.contexts(writer, previous, chunks, last_ks)
        return [prompts.without_special(recurring_facts(writer.tokenizer, ids, length, ids)) for ids in contexts]


def tables(rows: list[dict]) -> list[str]:
    """KL on what was asked, by how many windows ago it was said; who is ahead there; and how many facts gists have."""
    recall, ages = recall_by_age(rows, ["pair", "list"], SLIDING_WINDOW), [(age, age) for age in range(AGES)]
    facts = facts_by_age(rows, ["zero_shot", "single", "pair", *LISTS], ages)["since_last"]

    def line(label, found, name):
        return [label, *map(with_error, found[name], found[f"{name}_se"])]

    lines = [["targets", *map(str, recall["of"])]]
    lines += [line(label, recall["arms"][arm], "kl") for arm, label in LABELS.items()]
    for walker, other in (("pair", "single"), ("pair", "zero_shot_g"), ("list", "chunk_list"), ("list", "pair")):
        lines.append(line(f"{LABELS[walker]}, ahead of {LABELS[other]}", recall["ahead"][walker][other], "kl"))
    for writer, found in facts.items():
        lines.append(line(f"facts: {LABELS.get(writer, LABELS['zero_shot_g'])}", found, "share"))
    return markdown_table(["windows ago", *map(str, recall["ages"])], lines)


def next_tokens(rows: list[dict]) -> list[str]:
    """From the second window on, what each gist is worth over none on what comes next, in nats per token."""
    rows, lines = [row for row in rows if row["window"]], []
    documents = [row["document_id"] for row in rows]

    def mean(row, arm):
        return sum(row["log_probs"][arm]) / len(row["log_probs"][arm])

    for arm, label in LABELS.items():
        over, ahead = ([mean(row, arm) - mean(row, other) for row in rows] for other in ("null", "single"))
        lines.append([label, *(with_error(*mean_and_error(values, documents)) for values in (over, ahead))])
    return markdown_table(["next tokens", "over an empty gist", "over the gist of the chunk alone"], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="a folder that `research.memory.articles` left")
    parser.add_argument("--documents", required=True, help="held-out articles, JSON lines with `text`")
    parser.add_argument("--windows", type=int, default=6, help="of each (default: 6)")
    parser.add_argument("--batch_size", type=int, default=4, help="articles that walk together (default: 4)")
    parser.add_argument("--output_dir", default="lists", help="where rows are kept (default: lists)")
    parser.add_argument("--overwrite", action="store_true", help="removes another run's there")
    args = parser.parse_args()
    quiet_console()
    compactor = GistCompactor.from_pretrained(args.pair)
    readings = ListReadings(compactor, load_teacher(compactor), args.windows, args.batch_size)
    dataset = load_dataset("json", data_files=args.documents, split="train")
    settings = {"pair": compactor.fingerprint, "documents": args.documents, "windows": args.windows}
    with EvaluationFolder(args.output_dir, settings, args.overwrite) as folder:
        rows = folder.rows(1)
        documents = list(long_documents(dataset, compactor, readings.geometry, args.windows))
        total = sum(min(args.windows, readings.geometry.windows(len(each["ids"]))) for each in documents)
        with tqdm(desc="Windows", initial=len(rows), total=total) as progress:
            for found in readings.walk(documents, args.windows, rows):
                folder.append(found)
                progress.update(len(found))
        rows = folder.rows(1)
    print(*tables(rows), "", *next_tokens(rows), sep="\n")


if __name__ == "__main__":
    main()
