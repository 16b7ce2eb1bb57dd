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
Does a session still know, 64k tokens on, what it was told in its first 2k, and in how much memory?

python -m research.memory.long memory/after

Each text is read as a `rolling` session reads it. On the way, at each of some lengths, the generator answers from the gist
alone. A run that was cut off goes on with the next text.
"""

import argparse
import itertools

from trl_gist import GistCompactor
from trl_gist.common.statistics import mean_and_error, with_error
from trl_gist.data.tasks import make_tasks
from trl_gist.evaluation.folder import EvaluationFolder

from tqdm.auto import tqdm

from examples.short_run import quiet_console
from research.common.process import memory_status
from research.common.tables import markdown_table
from research.memory.sessions import right_from_gists


TOLD = 8  # windows, in which everything is said that is asked for


def texts_of(compactor: GistCompactor, tasks: list[str], documents: int, difficulty: int, windows: int):
    """Texts of so many windows, of which all but the first are filler."""
    settings = compactor.session().settings
    return make_tasks(
        compactor.tokenizer,
        tasks,
        documents=documents,
        windows=TOLD,
        window_length=settings.chunk_length,
        last_k=(windows - TOLD) * settings.chunk_length + settings.last_k,
        difficulty=difficulty,
        seed=0,
    )


def read_on(compactor: GistCompactor, text: dict, lengths: list[int]) -> list[dict]:
    """At each length, in windows: the gist, which questions are answered right from it, and the process's memory."""
    session, rows = compactor.session(), []
    chunk = session.settings.chunk_length
    ids = compactor.tokenizer(text["context"], add_special_tokens=False, verbose=False)["input_ids"]
    for start, windows in itertools.pairwise([0, *lengths]):
        session.append(ids[start * chunk : windows * chunk])
        rows.append(
            {
                "document_id": text["document_id"],
                "task": text["task"],
                "windows": windows,
                "tokens": windows * chunk,
                "gist": session.gist,
                "right": right_from_gists(session, text["targets"]),
                "memory": memory_status("VmRSS"),
            }
        )
    return rows


def table(rows: list[dict]) -> list[str]:
    """By length: right answers, by task and of all, their share with its error over texts, and memory."""
    tasks, lines = sorted({row["task"] for row in rows}), []
    for windows in sorted({row["windows"] for row in rows}):
        there = [row for row in rows if row["windows"] == windows]
        right, documents = zip(*((each, row["document_id"]) for row in there for each in row["right"]), strict=True)
        of_task = [[each for row in there if row["task"] == task for each in row["right"]] for task in tasks]
        lines.append(
            [
                f"{there[0]['tokens']:,}",
                *(f"{sum(answers)} of {len(answers)}" for answers in (*of_task, right)),
                with_error(*mean_and_error(right, documents), 2),
                f"{sum(row['memory'] for row in there) / len(there) / 2**20:,.0f} MiB",
            ]
        )
    return markdown_table(["tokens read", *tasks, "all", "share", "process"], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="a folder that `research.memory.pair` left")
    parser.add_argument("--tasks", nargs="+", default=["needles", "ledger"], help="(default: needles ledger)")
    parser.add_argument("--texts", type=int, default=3, help="of each task (default: 3)")
    parser.add_argument("--difficulty", type=int, default=2, help="facts of a text (default: 2)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="windows (default: 16 32 64 128 256)"
    )
    parser.add_argument("--output_dir", default="long", help="where rows are kept (default: long)")
    parser.add_argument("--overwrite", action="store_true", help="removes another run's there")
    args = parser.parse_args()
    quiet_console()
    compactor, lengths = GistCompactor.from_pretrained(args.pair), sorted(set(args.lengths))
    texts = texts_of(compactor, args.tasks, args.texts, args.difficulty, lengths[-1])
    settings = {"pair": compactor.fingerprint, "tasks": args.tasks, "difficulty": args.difficulty, "lengths": lengths}
    with EvaluationFolder(args.output_dir, settings, args.overwrite) as folder:
        rows = folder.rows(len(lengths))
        read = len(rows) // len(lengths)
        for text in tqdm(list(texts)[read:], desc="Reading texts", initial=read, total=len(texts)):
            folder.append(read_on(compactor, text, lengths))
        print(*table(folder.rows(len(lengths))), sep="\n")


if __name__ == "__main__":
    main()
