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

"""Which windows a command reads, by its arguments: the documents, the kinds of targets, and how many of all windows."""

from dataclasses import replace

from datasets import Dataset, IterableDataset

from ..data.columns import check_said, said_of_targets
from ..data.documents import load_documents
from ..data.targets import TARGET_FLOOR, TargetSpec
from ..evaluation.distance.recall import check_recalled
from .arguments import DistanceArguments, DocumentArguments, HeldOutArguments, TargetArguments


_AGES = 5  # of a walk's chunks, where it is not said


def all_documents(
    args: DocumentArguments, only_files: bool = False, remove_columns: list[str] | None = None
) -> Dataset | IterableDataset:
    """What [`load_documents`] finds of them; `only_files`: also where one name might be the Hub's."""
    return load_documents(
        args.dataset if only_files or len(args.dataset) > 1 else args.dataset[0],
        args.dataset_config,
        args.split,
        args.streaming,
        args.text_column,
        remove_columns,
        args.encoding,
    )


def held_out_documents(args: HeldOutArguments) -> Dataset | IterableDataset:
    return first_documents(all_documents(args), args.max_documents)


def without_held_out(documents: Dataset | IterableDataset, count: int) -> Dataset | IterableDataset:
    """All but the first ones. Raises `ValueError` if there are no more."""
    if isinstance(documents, Dataset) and count >= len(documents):
        raise ValueError(
            f"`eval_documents` ({count}) leaves nothing to train on: there are {len(documents)} documents."
        )
    return documents.skip(count)


def first_documents(documents: Dataset | IterableDataset, count: int | None) -> Dataset | IterableDataset:
    """As many as there are, at most."""
    if count is None:
        return documents
    return documents.take(min(count, len(documents)) if isinstance(documents, Dataset) else count)


def target_spec(args: TargetArguments, columns: set[str] = frozenset(), of_recipe: bool = False) -> TargetSpec:
    """Which targets a window gets, of documents with such columns. Raises `ValueError` for kinds that no rule makes, and for
    what is said of targets that no window has, but in a recipe, which says all."""
    given = {name: value for name, value in said_of_targets(args).items() if value is not None}
    kinds = args.target_kinds or {"continuation": 1}
    if not of_recipe:
        check_said(given, kinds, columns, "--")
    given = {name: value for name, value in given.items() if name in TargetSpec.__dataclass_fields__}
    if "recall_age" in given:
        given["recall_age"] = tuple(given["recall_age"])
    return TargetSpec(tuple(kinds.items()), **given)


def recall_spec(args: DistanceArguments) -> TargetSpec | None:
    """
    What a walk's windows are asked of earlier chunks: by default of the window's own and of the four before it, alike;
    `None` if nothing is. Raises `ValueError` as [`target_spec`], for kinds that are in no chunk, and for ages beyond the
    walk.
    """
    check_recalled(args.target_kinds or (), "--target_kinds")
    targets = target_spec(args)
    if targets.is_continuation:
        return None
    if targets.recall_age is None:
        targets = replace(targets, recall_age=(1.0,) * min(args.windows, _AGES))
    targets.check_ages(args.windows, "windows")
    return targets


def target_floor(args: TargetArguments) -> float | None:
    """The gain from which one of several targets counts; `None` if all do."""
    return {None: TARGET_FLOOR, "none": None}.get(args.target_floor, args.target_floor)


def choose_windows(
    windows: Dataset | IterableDataset, count: int | None
) -> tuple[Dataset | IterableDataset, int | None]:
    """The windows to read, and how many there will be, if that is known."""
    if not isinstance(windows, Dataset):
        return (windows if count is None else windows.take(count)), count
    if count is None or count >= len(windows):
        return windows, len(windows)
    # Evenly spread: the first ones would be of one or two documents, and windows of a document are not independent
    return windows.select([index * len(windows) // count for index in range(count)]), count
