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
How far a gist that is searched for gets beyond the tail, and how much of that can be known without the target. The
tail is cut into pieces, and each in turn, the one farthest from L first, is exchanged for the piece of the context
that lowers KL(T‖G) most on targets that the teacher makes up. The target that really came is read only to judge.

OMP_NUM_THREADS=2 python -m research.original.search_gists found.jsonl --pair PAIR --dataset corpus --split test \
    --documents 48 --compile
python -m research.original.search_gists found.jsonl more.jsonl                     the tables of what has been found

A minute of a core each context. A line of the file is a context; a file that is there is added to.
"""

import argparse
import copy
import itertools
import json
from pathlib import Path

from trl_gist import GistCompactor
from trl_gist.common.statistics import standard_error, with_error
from trl_gist.evaluation import load_teacher
from trl_gist.inference.search import exchange_pieces
from trl_gist.prompts import before_last_k
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer

import numpy as np
from peft import PeftModel
from rich.progress import track
from transformers import PreTrainedModel, set_seed

from research.common.tables import markdown_table
from research.original.reading import imagine, one_window_each


GENERATOR_ROWS = 13  # in one forward: half of the 26 pieces that 448 tokens leave to choose from
SEED = 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="where what is found is kept, or was")
    parser.add_argument("--pair", help="whose generator reads; without it nothing is searched for")
    parser.add_argument("--dataset", help="a folder, files or a dataset of the Hub")
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument("--documents", type=int, default=48, help="one window of each (default: 48)")
    parser.add_argument("--skip", type=int, default=0, help="documents before the first (default: 0)")
    parser.add_argument("--futures", type=int, default=4, help="targets made up for each context (default: 4)")
    parser.add_argument("--piece", type=int, default=16, help="tokens exchanged together (default: 16)")
    parser.add_argument("--exchanges", type=int, help="at most (default: all pieces of the tail)")
    parser.add_argument("--compile", action="store_true", help="the generator, which needs a C++ compiler on a CPU")
    args = parser.parse_args()
    if args.pair is not None:
        if args.dataset is None or len(args.files) > 1:
            parser.error("a search needs --dataset, and one file to keep what it finds.")
        find(args, parser)
    found = found_in(args.files)
    print(*table_of_gists(found), "", *table_of_knowledge(found), sep="\n")


def found_in(files: list[Path]) -> list[dict]:
    """What was found, a context each."""
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def find(args: argparse.Namespace, parser: argparse.ArgumentParser):
    """Searches the gists of the documents whose lines the file lacks, and adds them to it."""
    compactor = GistCompactor.from_pretrained(args.pair)
    length = compactor.pair.tail_length
    if not 1 <= args.piece <= length:
        parser.error(f"--piece must be 1 to {length}, the pair's gist, got {args.piece}.")
    teacher = load_teacher(compactor)
    reader = GistScorer(TargetScorer(compactor.generator), TargetScorer(teacher), compactor.prompts, GENERATOR_ROWS)
    fast = fast_copy(compactor.generator, args.compile)
    searcher = GistScorer(fast, reader.teacher, compactor.prompts, GENERATOR_ROWS)
    rows = one_window_each(compactor, args.dataset, args.split, args.skip + args.documents)[args.skip :]
    done = len(args.files[0].read_text("utf-8").splitlines()) if args.files[0].exists() else 0
    set_seed(SEED + args.skip + done)
    with args.files[0].open("a", encoding="utf-8") as file:
        for row in track(rows[done:], "Searching"):
            futures = imagine(teacher, row, args.futures)
            search = exchanged(searcher, futures, row, length, args.piece, args.exchanges)
            scores = reader.score([row] * len(search["gists"]), search["gists"], len(search["gists"]))
            search["kl"] = [score["teacher_kl"] for score in scores]
            search["nll"] = [-score["gist_log_prob"] for score in scores]
            file.write(json.dumps({"document_id": row["document_id"], **search}) + "\n")
            file.flush()


def fast_copy(generator: PreTrainedModel | PeftModel, compiled: bool) -> TargetScorer:
    """The generator with its adapter merged, to search with: rounded to the base's precision, and faster by half."""
    model = copy.deepcopy(generator)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    if compiled:
        model.base_model.compile(dynamic=False)
    return TargetScorer(model.eval())


def exchanged(
    scorer: GistScorer, futures: list[dict], row: dict, length: int, piece: int, exchanges: int | None = None
) -> dict[str, list]:
    """
    The tail, and what it becomes by one exchange after the other, each the best for the mean KL over one window's
    futures.

    Returns:
        `dict[str, list]`: `gists`, as token ids, the tail first; and `first_kl`, the KL with each gist that the first
        exchange chooses from, the tail last, for each of the futures and then for the true target.
    """
    context_ids = before_last_k(row["context_ids"], row["last_k_ids"])
    found = {}

    def costs(gists):
        # The first exchange is judged by the true target too; none is chosen by it
        targets = futures if found else [*futures, row]
        scores = scorer.score([target for target in targets for _ in gists], gists * len(targets), len(gists))
        kl_TM = np.reshape([score["teacher_kl"] for score in scores], (len(targets), -1))
        found.setdefault("first_kl", kl_TM.tolist())
        return kl_TM[: len(futures)].mean(axis=0)

    return {"gists": exchange_pieces(context_ids[-length:], context_ids, piece, costs, exchanges)} | found


def table_of_gists(found: list[dict]) -> list[str]:
    """KL and NLL of the true target after each exchange, against the tail."""
    documents = [search["document_id"] for search in found]
    kl_NM, nll_NM = (np.array([search[name] for search in found]) for name in ("kl", "nll"))
    lines = []
    for exchanges, (kl_N, nll_N) in enumerate(zip(kl_NM.T, nll_NM.T, strict=True)):
        columns = (kl_N, kl_NM[:, 0] - kl_N, nll_NM[:, 0] - nll_N)
        shown = [with_error(values_N.mean(), standard_error(values_N, documents), digits=4) for values_N in columns]
        lines.append([f"{exchanges} exchanged" if exchanges else "tail", *shown, f"{np.median(columns[1]):.4f}"])
    return markdown_table(["gist", "KL(T‖G)", "lower than the tail's by", "NLL lower by", "KL's median"], lines)


def table_of_knowledge(found: list[dict]) -> list[str]:
    """How much the first exchange lowers KL on targets that it was not chosen by, by the number of those it was."""
    documents = [search["document_id"] for search in found]
    gain_NTM = np.array([search["first_kl"] for search in found])
    gain_NTM = gain_NTM[..., -1:] - gain_NTM
    targets = gain_NTM.shape[1]
    lines = []
    for seen in range(1, targets):
        gains = []
        for subset in itertools.combinations(range(targets), seen):
            best_N = gain_NTM[:, subset].mean(axis=1).argmax(axis=1)
            others_NM = np.delete(gain_NTM, subset, axis=1).mean(axis=1)
            gains.append(np.take_along_axis(others_NM, best_N[:, None], axis=1)[:, 0])
        lines.append([f"{seen} other targets", np.mean(gains, axis=0)])
    lines.append(["the target itself", gain_NTM.max(axis=2).mean(axis=1)])
    lines.append(["nothing: any piece", gain_NTM[..., :-1].mean(axis=(1, 2))])
    return markdown_table(
        ["the first piece is chosen by", "KL lower than the tail's by"],
        [[name, with_error(gain_N.mean(), standard_error(gain_N, documents), digits=4)] for name, gain_N in lines],
    )


if __name__ == "__main__":
    main()
