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
Does a gist of an article carry anything from window to window, if it is paid for what was said in earlier ones?

Trains SmolLM2-135M-Instruct on walks over articles. Each window asks for facts and ends of sentences of all windows so far,
and for what comes next. The summarizer imitates a list of the names, numbers and dates that its context says most often, of
which an earlier gist is a part.

python -m research.corpus.prepare_corpus corpus
python -m research.memory.articles memory/articles --corpus corpus
trl-gist distance memory/articles --dataset corpus --windows 6 --target_kinds '{"fact": 1, "recall": 1}'
"""

import argparse

from trl_gist import GistTrainer

from datasets import Dataset, load_dataset

from examples.short_run import quiet_console
from research.memory.pair import CHUNK, LAST_K, TARGET, add_flags, make_trainer, texts_of


def long_articles(corpus: str, windows: int, count: int, seed: int) -> Dataset:
    """Some of those that have so many windows, by their characters: English has four and more to a token."""
    least = 5 * (windows * CHUNK + LAST_K + TARGET)
    articles = load_dataset(corpus, split="train").filter(lambda row: len(row["text"]) >= least).shuffle(seed=seed)
    return articles.select(range(min(count, len(articles))))


def trainer_of_flags(description: str, windows: int, contexts: int) -> GistTrainer:
    """With so many windows of a walk, and contexts of a step, unless the command line says others."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, windows, contexts, num_generations=2)
    parser.add_argument("--corpus", default="corpus", help="of `research.corpus.prepare_corpus` (default: corpus)")
    args = parser.parse_args()
    quiet_console()
    return make_trainer(
        args,
        long_articles(args.corpus, args.windows, texts_of(args), args.seed),
        max_windows_per_document=1,
        target_kinds={"fact": 1, "recall": 1, "continuation": 1},
        targets_per_context=4,
        cold_start_gists="recurring_facts",
    )


def main():
    trainer = trainer_of_flags(__doc__, windows=3, contexts=6)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
