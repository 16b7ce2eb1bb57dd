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
Are a pair's gists of memory prose? Has them read as plain text by models that never saw one: by age of what is asked, how
many answers are right, beside those of the pair's own generator.

trl-gist evaluate memory/walks --tasks needles ledger --difficulty 2 --lengths 8 --texts 8
python -m research.memory.readers memory/walks/tasks --readers gemma-3-270m
"""

import argparse
import itertools
from pathlib import Path

from trl_gist.evaluation.tasks.readings import begins_with
from trl_gist.models.generation import greedy_continuations
from trl_gist.models.machine import fast_dtype

from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.demo_assets import smollm2_checkpoint
from examples.short_run import quiet_console
from research.common.tables import markdown_table, read_rows


AGES = ((0, 1), (2, 3), (4, 7), (8, 15))


def answers(checkpoint: str | Path, rows: list[dict]) -> list[bool]:
    """Whether a reader that has the gist's text, a line end and the question goes on with the answer, one after the other."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=fast_dtype()).eval()
    asked = [(f"{row['gists']['pair']}\n{one['cue']}", one["answer"]) for row in rows for one in row["questions"]]
    prompts = tokenizer([text for text, _ in asked])["input_ids"]
    written = greedy_continuations(model, prompts, 12, tokenizer, 16)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip().partition("\n")[0] for ids in written]
    return [begins_with(text, answer) for text, (_, answer) in zip(texts, asked, strict=True)]


def counted(questions: list[dict], right: dict[str, list[bool]]) -> list[list[str]]:
    """A table's lines: right answers by how many windows ago what is asked was said, of the ages that are asked for."""
    groups = {ages: [ages[0] <= one["age"] <= ages[1] for one in questions] for ages in AGES}
    groups = {ages: group for ages, group in groups.items() if any(group)}
    lines = [["reader", *(f"said {first}-{last} windows ago" for first, last in groups), "all"]]
    for reader, own in {"questions": [True] * len(questions), **right}.items():
        counts = [sum(itertools.compress(own, group)) for group in groups.values()]
        lines.append([reader, *map(str, [*counts, sum(own)])])
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="what `trl-gist evaluate --tasks` left")
    parser.add_argument("--readers", nargs="*", default=[], help="checkpoints that read beside the teacher")
    args = parser.parse_args()
    quiet_console()
    rows = [row for folder in args.folders for row in read_rows(folder)]
    questions = [one for row in rows for one in row["questions"]]
    right = {
        "the teacher, all of the text": [one["right"].get("full", False) for one in questions],
        "the pair's generator": [one["right"]["recall"] for one in questions],
        "the frozen teacher": answers(smollm2_checkpoint(), rows),
        **{Path(reader).name: answers(reader, rows) for reader in args.readers},
    }
    head, *lines = counted(questions, right)
    print("\n".join(markdown_table(head, lines)))


if __name__ == "__main__":
    main()
