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
What the demo's gists look like, and who can read them: on the articles that it held out.

First their patterns (trl_gist/evaluation/patterns.py): what they copy, keep and drop, and their bits per token. Then
whether they travel (trl_gist/evaluation/transfer.py): each gist as text, read by the frozen teacher and by any other
causal language model, in its own tokens. `--reader` is a checkpoint, a folder or a name on the Hub, and may be given
several times.

python examples/read_gists.py runs/demo-1
python examples/read_gists.py runs/demo-1 --reader openai-community/gpt2
"""

import argparse

from demo import HELD_OUT_ARTICLES, spread_out
from demo_assets import wikipedia_articles
from rich import box
from rich.table import Table
from short_run import quiet_console
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_gist import GistCompactor
from trl_gist.data import WindowSpec, prepare_windows
from trl_gist.evaluation import evaluate_pair, load_teacher
from trl_gist.evaluation.patterns import gist_patterns, summarize_patterns
from trl_gist.evaluation.transfer import (
    as_text,
    read_as_text,
    read_by_pair,
    summarize_transfer,
    target_log_probs,
    transfer_table,
)


def main(pair_dir: str, readers: list[str], max_windows: int | None):
    console = quiet_console()
    compactor = GistCompactor.from_pretrained(pair_dir)
    pair, teacher = compactor.pair, load_teacher(compactor)
    articles = spread_out(wikipedia_articles().shuffle(seed=0).select(range(HELD_OUT_ARTICLES)))
    spec = WindowSpec(pair.context_length, pair.target_length, pair.last_k, None, None)
    windows, _ = prepare_windows(articles, compactor.tokenizer, spec, name="held-out")
    count = min(max_windows or len(windows), len(windows))
    # Evenly spread: windows of one article are not independent
    rows = evaluate_pair(compactor, [windows[index * len(windows) // count] for index in range(count)], teacher)
    texts = as_text(compactor.tokenizer, rows)
    print_patterns(console, summarize_patterns(patterns_of(compactor, rows, texts)))

    summaries = {
        "G, gist's tokens in its prompt": summarize_transfer(read_by_pair(rows, texts)),
        "T, gist as text": summarize_transfer(read_as_text(teacher, compactor.tokenizer, texts)),
    }
    for reader in readers:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(reader), AutoTokenizer.from_pretrained(reader)
        name = f"{model.config.model_type}, gist as text"
        summaries[name] = summarize_transfer(read_as_text(model.eval(), tokenizer, texts))
    console.print(transfer_table(summaries))
    same = sum(text["same_tokens"] for text in texts)
    console.print(f"{same} of {len(texts)} gists give the same tokens back when their text is tokenised again.")


def patterns_of(compactor, rows, texts):
    pair, gists = compactor.pair, [row["gist_ids"] for row in rows]
    prompts = [compactor.prompts.summarizer(row["context_ids"], row["last_k_ids"], pair.tail_length) for row in rows]
    log_probs = target_log_probs(compactor.summarizer, prompts, gists)
    return [
        {"document_id": row["document_id"]}
        # What the generator sees anyway is not there to be kept
        | gist_patterns(
            text["before"], text["gist"], text["target"], row["gist_length"], pair.max_gist_length, log_prob
        )
        for row, text, log_prob in zip(rows, texts, log_probs, strict=True)
    ]


def print_patterns(console, summary):
    console.print(f"{summary['gists']} gists of {summary['documents']} articles, ± standard error over articles:")
    table = Table("pattern", "", box=box.SIMPLE)
    for name in [name.removesuffix("_se") for name in summary if name.endswith("_se")]:
        table.add_row(name, f"{summary[name]:.3f} ± {summary[f'{name}_se']:.3f}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair_dir", help="a saved pair, as of examples/demo.py")
    parser.add_argument("--reader", action="append", default=[], dest="readers", help="an unrelated causal LM")
    parser.add_argument("--max_windows", type=int, help="windows to read (default: all)")
    main(**vars(parser.parse_args()))
