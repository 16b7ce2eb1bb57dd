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

import torch
from datasets import IterableDataset


class StreamsByRank:
    """
    The part of [`GistTrainer`] that reads streaming datasets. `_get_dataloader` is
    [`~transformers.Trainer`]'s (5.23), which TRL hands the stream with each context repeated.
    """

    def _get_dataloader(self, dataset, *args, **kwargs):
        if isinstance(dataset, IterableDataset):
            dataset = OneStream(dataset)
        return super()._get_dataloader(dataset, *args, **kwargs)


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
