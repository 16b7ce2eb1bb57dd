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
The demo's pair against other compressors, on the demo's held-out articles: `make demo` first. docs/COMPRESSORS.md has
what it prints.

python examples/compare_compressors.py runs/demo-1
python examples/compare_compressors.py runs/demo-1 --token_classifier FOLDER --gists "another system=gists.jsonl"
"""

import argparse
from pathlib import Path

from demo import HELD_OUT_ARTICLES, spread_out
from demo_assets import wikipedia_articles
from rich.console import Console

from trl_gist import GistCompactor
from trl_gist.data import WindowSpec, prepare_windows
from trl_gist.evaluation import load_teacher
from trl_gist.evaluation.compare import compare_compressors, standard_compressors, summarize_comparison
from trl_gist.evaluation.compare_report import comparison_tables, plot_comparison
from trl_gist.evaluation.compressors import write_contexts
from trl_gist.scoring import GistScorer, TargetScorer


def main(pair: str, token_classifier: str | None, gists: list[str], batch_size: int = 16):
    console = Console(width=120)
    compactor = GistCompactor.from_pretrained(pair)
    teacher = load_teacher(compactor)
    articles = wikipedia_articles().shuffle(seed=0)
    config = compactor.pair
    spec = WindowSpec(config.context_length, config.target_length, config.last_k, None, 8)
    windows, _ = prepare_windows(spread_out(articles.select(range(HELD_OUT_ARTICLES))), compactor.tokenizer, spec)
    others, _ = prepare_windows(
        articles.select(range(HELD_OUT_ARTICLES, len(articles))), compactor.tokenizer, spec, name="train"
    )
    windows = list(windows)
    written = compactor.compress_batch(
        [row["context_ids"] for row in windows], batch_size=batch_size, last_k=[row["last_k_ids"] for row in windows]
    )
    rows = [row | {"gist_ids": gist.token_ids} for row, gist in zip(windows, written, strict=True)]
    contexts_file = Path(pair, "contexts.jsonl")
    write_contexts(rows, [len(row["gist_ids"]) for row in rows], compactor.tokenizer, contexts_file)
    compressors = standard_compressors(
        compactor,
        teacher,
        others["context_ids"],
        token_classifier,
        gist_files=dict(gist.split("=", 1) for gist in gists),
        batch_size=batch_size,
    )
    scorer = GistScorer(TargetScorer(compactor.generator), TargetScorer(teacher), compactor.prompts, batch_size)
    results = compare_compressors(scorer, rows, compressors, compactor.tokenizer)
    summary = summarize_comparison(results)
    for table in comparison_tables(summary):
        console.print(table)
    console.rule(f"One window of {windows[0]['document_id']}")
    for row in results:
        if row.get("window") == 0 and row["reader"] == "teacher":
            console.print(
                f"{row['compressor']:20} {row['tokens']:3} tokens  {row['gist']!r}", markup=False, soft_wrap=True
            )
    plot_comparison(summary, Path(pair, "plots", "compressors"))
    console.print(
        f"Plot: {pair}/plots/compressors.png. For an outside system to answer: {contexts_file}", markup=False
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="folder of the demo's run")
    parser.add_argument("--token_classifier", help="folder of a checkpoint of LLMLingua-2's")
    parser.add_argument("--gists", nargs="*", default=[], metavar="NAME=FILE", help="what outside systems answered")
    main(**vars(parser.parse_args()))
