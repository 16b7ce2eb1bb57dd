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
Lets the summarizer of `research.memory.articles` imitate more lists, alone: without what a generator and a teacher take, a
step costs half as much. The walks, the lists and the summarizer's own gists on the way are the trainer's.

python -m research.memory.imitate memory/imitated --pair memory/articles
"""

from collections.abc import Iterator

from trl_gist import GistTrainer

from research.memory.articles import trainer_of_flags
from research.targets.codes import fit_summarizer


def batches(trainer: GistTrainer) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """What the summarizer reads, and the lists that it is to write: of as many walks as the trainer takes a step."""
    same = trainer.gists_per_context
    walks = trainer.args.per_device_train_batch_size // same
    for start in range(0, len(trainer.train_dataset) - walks + 1, walks):
        inputs = [trainer.train_dataset[start + walk] for walk in range(walks) for _ in range(same)]
        written = trainer.rollout(trainer.rollout.rows(inputs))
        yield written["prompt_ids"][::same], written["completion_ids"][::same]


def main():
    trainer = trainer_of_flags(__doc__, windows=5, contexts=10)
    trainer.model.train()
    fit_summarizer(trainer, batches(trainer), trainer.args.max_steps, learning_rate=5e-4)
    trainer.save_model()


if __name__ == "__main__":
    main()
