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
Does the demo's pair write plain language? Its gists, as text, read by models that were never trained on them.

The gists of held-out articles are read by the frozen teacher and by any other causal language model, each in its own
tokens; what the readings mean is in trl_gist/evaluation/transfer.py. `--reader` is a checkpoint, a folder or a name on
the Hub, and may be given several times.

python examples/transfer.py runs/demo-1 --reader openai-community/gpt2
"""

import argparse

from demo import HELD_OUT_ARTICLES, spread_out
from demo_assets import wikipedia_articles
from short_run import quiet_console
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_gist import GistCompactor
from trl_gist.data import WindowSpec, prepare_windows
from trl_gist.evaluation import evaluate_pair, load_teacher
from trl_gist.evaluation.transfer import as_text, read_as_text, read_by_pair, summarize_transfer, transfer_table


def main(pair_dir: str, readers: list[str], max_windows: int | None):
    console = quiet_console()
    compactor = GistCompactor.from_pretrained(pair_dir)
    pair, teacher = compactor.pair, load_teacher(compactor)
    articles = spread_out(wikipedia_articles().shuffle(seed=0).select(range(HELD_OUT_ARTICLES)))
    spec = WindowSpec(pair.context_length, pair.target_length, pair.last_k, None, None)
    windows, _ = prepare_windows(articles, compactor.tokenizer, spec, name="held-out")
    rows = evaluate_pair(compactor, list(windows)[:max_windows], teacher)
    texts = as_text(compactor.tokenizer, rows)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair_dir", help="a saved pair, as of examples/demo.py")
    parser.add_argument("--reader", action="append", default=[], dest="readers", help="an unrelated causal LM")
    parser.add_argument("--max_windows", type=int, help="windows to read (default: all)")
    main(**vars(parser.parse_args()))
