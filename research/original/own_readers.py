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
Compressors at one rate, each read by a generator that was distilled on its gists (`trl-gist train --generator_only
true --compressor NAME`), on one window of each held-out document. The first is what the others are held against.
Readers of one and the same compressor go by their folders' names: recipes for a reader against one another.

OMP_NUM_THREADS=2 python -m research.original.own_readers tail=runs/tail "stop-word drop=runs/stop" \
    --dataset corpus --split test

With `--searched FILE`, the first is what `search_gists.py` found there, as its pair's generator read it, and only the
file's documents are read.
"""

import argparse
from collections import Counter
from pathlib import Path

from trl_gist import GistCompactor
from trl_gist.common.arguments import named_pairs
from trl_gist.common.statistics import standard_error, with_error
from trl_gist.evaluation import load_generator_only, load_teacher
from trl_gist.evaluation.compressors.registry import EXTRACTIVE_COMPRESSORS, compressor_name, extractive_compressors
from trl_gist.prompts import before_last_k
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer

import numpy as np

from research.common.tables import markdown_table
from research.original.reading import GENERATOR_ROWS, one_window_each, read
from research.original.search_gists import found_in


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="+", metavar="COMPRESSOR=FOLDER")
    parser.add_argument("--dataset", required=True, help="a folder, files or a dataset of the Hub")
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument("--documents", type=int, default=200, help="one window of each (default: 200)")
    parser.add_argument("--searched", type=Path, nargs="+", default=[], help="files of `search_gists.py`")
    args = parser.parse_args()
    pairs = [(compressor_name(name), folder) for name, folder in named_pairs(args.readers, "the readers")]
    unknown = sorted({compressor for compressor, _ in pairs if compressor not in EXTRACTIVE_COMPRESSORS})
    if unknown:
        parser.error(f"no compressor is called {', '.join(unknown)}; there are {', '.join(EXTRACTIVE_COMPRESSORS)}.")
    folders = dict(zip(labels(pairs), pairs, strict=True))
    if len(folders) < len(pairs):
        parser.error("two readers of one compressor need folders of different names.")
    compactor = GistCompactor.from_pretrained(pairs[0][1])
    rows = one_window_each(compactor, args.dataset, args.split, args.documents)
    searched = {search["document_id"]: (search["kl"][-1], search["nll"][-1]) for search in found_in(args.searched)}
    if searched:
        rows = [row for row in rows if row["document_id"] in searched]
        if len(rows) < len(searched):
            parser.error(f"only {len(rows)} of {len(searched)} documents that were searched are among these.")
    documents = [row["document_id"] for row in rows]
    measured = {"searched": np.transpose([searched[document] for document in documents])} if searched else {}
    measured |= read_by_their_own(folders, compactor, rows)
    print(*table(measured, documents), sep="\n")


def read_by_their_own(folders: dict, compactor: GistCompactor, rows: list[dict]) -> dict[str, tuple]:
    """KL and NLL at each window, by label; `folders` has the compressor and the reader's folder of each."""
    teacher = load_teacher(compactor)
    contexts = [before_last_k(row["context_ids"], row["last_k_ids"]) for row in rows]
    compressors = extractive_compressors(compactor.tokenizer, teacher, (row["context_ids"] for row in rows))
    budgets = [compactor.pair.tail_length] * len(rows)
    by_compressor = {name: compressors[name].compress(contexts, budgets) for name, _ in folders.values()}
    gists = {label: by_compressor[compressor] for label, (compressor, _) in folders.items()}
    readers = {label: TargetScorer(load_generator_only(folder, compactor)) for label, (_, folder) in folders.items()}
    scorer = GistScorer(TargetScorer(compactor.generator), TargetScorer(teacher), compactor.prompts, GENERATOR_ROWS)
    return dict(zip(folders, zip(*read(scorer, rows, gists, readers), strict=True), strict=True))


def labels(pairs: list[tuple[str, str]]) -> list[str]:
    """What to call each reader: its compressor, and its folder too if the compressor has several."""
    counts = Counter(compressor for compressor, _ in pairs)
    return [name if counts[name] == 1 else f"{name}, {Path(folder).name}" for name, folder in pairs]


def table(measured: dict[str, tuple], documents: list) -> list[str]:
    (first_kl_N, first_nll_N), *_ = measured.values()
    lines = []
    for name, (kl_N, nll_N) in measured.items():
        columns = (kl_N, np.subtract(kl_N, first_kl_N), np.subtract(nll_N, first_nll_N))
        shown = [with_error(np.mean(values_N), standard_error(values_N, documents), digits=4) for values_N in columns]
        lines.append([name, shown[0], *(shown[1:] if lines else ["", ""])])
    return markdown_table(["", "KL(T‖G)", "higher by", "NLL higher by"], lines)


if __name__ == "__main__":
    main()
