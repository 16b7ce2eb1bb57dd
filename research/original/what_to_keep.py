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
Which tokens of a context are worth keeping beside its tail, and how much it would be worth to know that for each
context: the gists of the cold start's rule `passages`, read by a pair's generator on held-out documents. One more line
takes the best of each context's gists in hindsight: what a summarizer that knew the target could gain by choosing
among them. With `--futures N` another takes the best on N targets that the teacher made up: what can be gained without
knowing it. `search_gists.py` goes beyond those kinds.

OMP_NUM_THREADS=2 python -m research.original.what_to_keep PAIR --dataset corpus --split validation \
    --documents 60 --futures 4
"""

import argparse

from trl_gist import GistCompactor
from trl_gist.common.statistics import standard_error, with_error
from trl_gist.evaluation import load_teacher
from trl_gist.scoring.extraction import BESIDE_TAIL
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer
from trl_gist.trainer.cold_start import ExtractiveSummarizer

import numpy as np
from rich.progress import track
from transformers import set_seed

from research.common.tables import markdown_table
from research.original.reading import GENERATOR_ROWS, imagine, one_window_each, read


SHARES = (1 / 6, 1 / 3, 1 / 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="whose generator reads, trained on such gists")
    parser.add_argument("--dataset", required=True, help="a folder, files or a dataset of the Hub")
    parser.add_argument("--split", default="validation", help="(default: validation)")
    parser.add_argument("--documents", type=int, default=60, help="one window of each (default: 60)")
    parser.add_argument("--futures", type=int, default=0, help="made up for each context (default: none)")
    args = parser.parse_args()
    set_seed(42)
    compactor = GistCompactor.from_pretrained(args.pair)
    teacher = load_teacher(compactor)
    length = compactor.pair.tail_length
    rows = one_window_each(compactor, args.dataset, args.split, args.documents)
    contexts = (row["context_ids"] for row in rows)
    summarizer = ExtractiveSummarizer("passages", contexts, tokenizer=compactor.tokenizer)
    gists = {"tail": [summarizer.gist(row, length, "keywords", 0) for row in rows]}
    gists |= {
        f"{kind}, {round(share * length)} of {length} tokens": [
            summarizer.gist(row, length, kind, share) for row in rows
        ]
        for kind in BESIDE_TAIL
        for share in SHARES
    }
    scorer = GistScorer(TargetScorer(compactor.generator), TargetScorer(teacher), compactor.prompts, GENERATOR_ROWS)
    kl_MN, nll_MN = read(scorer, rows, gists)
    windows = np.arange(len(rows))

    def chosen(kind_N):
        return kl_MN[kind_N, windows], nll_MN[kind_N, windows]

    lines = dict(zip(gists, zip(kl_MN, nll_MN, strict=True), strict=True))
    lines["the best, in hindsight"] = chosen(kl_MN.argmin(axis=0))
    if args.futures:
        futures = [imagine(teacher, row, args.futures) for row in track(rows, "Imagining")]
        repeated = {name: [gist for gist in of_name for _ in range(args.futures)] for name, of_name in gists.items()}
        expected_MN = read(scorer, sum(futures, []), repeated)[0].reshape(len(gists), len(rows), -1).mean(axis=2)
        lines[f"the best on {args.futures} made-up targets"] = chosen(expected_MN.argmin(axis=0))
    print_table(lines, kl_MN.min(axis=0), [row["document_id"] for row in rows])


def print_table(lines: dict[str, tuple[np.ndarray, np.ndarray]], best_N: np.ndarray, documents: list):
    """KL and NLL of each way to write gists against the tail, the first, paired by window, and how often its KL is the
    best that a kind has."""
    tail_kl_N, tail_nll_N = next(iter(lines.values()))
    rows = [
        [
            name,
            *(
                with_error(values_N.mean(), standard_error(values_N, documents), digits=4)
                for values_N in (kl_N, tail_kl_N - kl_N, tail_nll_N - nll_N)
            ),
            f"{np.mean(kl_N <= best_N):.0%}",
        ]
        for name, (kl_N, nll_N) in lines.items()
    ]
    head = ["gist", "KL(T‖G)", "lower than the tail's by", "NLL lower by", "the best of its context"]
    print(*markdown_table(head, rows), sep="\n")


if __name__ == "__main__":
    main()
