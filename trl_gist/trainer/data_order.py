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
from datasets import Dataset, IterableDataset
from trl.trainer.utils import RepeatSampler

from ..data.windows import is_cut


class DataLoading:
    """
    The part of [`GistTrainer`] that says which rank reads what and when. `_get_train_sampler` is TRL's (1.16);
    `_get_dataloader` is [`~transformers.Trainer`]'s (5.23), which TRL hands a stream with each context repeated.
    """

    def get_eval_dataloader(self, eval_dataset: str | Dataset | IterableDataset | None = None):
        # `evaluate` may be given documents, as the constructor; a name stands for windows that it has cut
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        if not is_cut(eval_dataset, "eval"):
            eval_dataset = self.windows_of(eval_dataset, "eval")
        # With `dataloader_persistent_workers` it would be taken for the trainer's own, or that for it
        kept = self.__dict__.pop("_eval_dataloaders", {})
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self._eval_dataloaders = kept

    def get_test_dataloader(self, test_dataset: Dataset | IterableDataset):
        # `predict` samples, and measures, as `evaluate`; of streams TRL (1.16) repeats the contexts for that alone
        return self.get_eval_dataloader(test_dataset)

    def _get_train_sampler(self, dataset: Dataset | None = None):
        sampler = super()._get_train_sampler(dataset)
        return EpochRepeatSampler(
            data_source=sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
        )

    def _get_dataloader(self, dataset, *args, **kwargs):
        if isinstance(dataset, IterableDataset):
            dataset = OneStream(dataset)
            # As TRL (1.16) sets it for streams that it is constructed with: rows of text cannot be concatenated
            self.accelerator.dataloader_config.dispatch_batches = False
        return super()._get_dataloader(dataset, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if isinstance(self.train_dataset, IterableDataset) and self.model.training:
            logs["skipped_rows"] = self.skipped_rows["train"].total
        super().log(logs, start_time)


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

    def set_epoch(self, epoch: int):
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)
