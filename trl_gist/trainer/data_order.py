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
Which rank reads which row, and when: of a stream as of a dataset, and of a run that resumes as of one that did not
stop.
"""

import torch
from datasets import IterableDataset
from trl.trainer.utils import RepeatSampler


class OneStream(torch.utils.data.IterableDataset):
    """
    A stream whose files are not to be dealt out to ranks: each reads all of it, and takes its slice of every batch.

    accelerate (1.15) gives each rank files of its own, where there are enough of them. But TRL's stream (1.16) repeats
    the contexts of a rollout of all ranks as often as the rollout is stepped on. A rank that reads it alone is out of
    step with that: with two ranks and two steps a rollout, it would sample half of its contexts twice and the others
    never. Nor would the order be that of one process, whatever the number of ranks.

    Args:
        dataset ([`~datasets.IterableDataset`]):
            The stream.
    """

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset)

    def set_epoch(self, epoch: int):
        self.dataset.set_epoch(epoch)


class EpochRepeatSampler(RepeatSampler):
    """`RepeatSampler` draws each epoch's order from where the last one left its generator, so a run resumed in a later
    epoch would see the first one's order again. This one draws it from seed and epoch."""

    @classmethod
    def of(cls, sampler: RepeatSampler) -> "EpochRepeatSampler":
        """The same rows as often."""
        return cls(
            data_source=sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
        )

    def set_epoch(self, epoch: int):
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)
