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

"""What a dataset's columns may be called: what windows are made of, and what a trainer's own would write over. And what may
be said of targets, by the kinds that rules make and the columns that bring others."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from datasets import Dataset, IterableDataset

from .targets import RULE_KINDS


WINDOW_COLUMNS = ("prompt", "context_ids", "last_k_ids", "target_ids", "document_id")
# The text of a walk over several windows; the other columns are then its first window
WALK_COLUMN = "walk_ids"
# What a gist is paid for, where that is more than the one target that the other columns are
TARGETS_COLUMN = "targets"
# The same of a document that is cut: each also says from where in its text, and up to where, it may be asked for
DOCUMENT_TARGETS_COLUMN = "document_targets"
# A dataset that has one of these brings its targets
BROUGHT_TARGETS = frozenset((TARGETS_COLUMN, DOCUMENT_TARGETS_COLUMN))
# What is said of targets: of which kinds that rules make, and of which a dataset brings
_SAID_OF = {
    "targets_per_context": ("fact", "recall", "far", DOCUMENT_TARGETS_COLUMN),
    "target_floor": ("fact", "recall", "far", *BROUGHT_TARGETS),
    "distillation_mean": ("fact", "recall", "far", *BROUGHT_TARGETS),
    "cue_length": ("fact", "recall"),
    "far_offset": ("far",),
    "recall_age": ("fact", "recall", DOCUMENT_TARGETS_COLUMN),
}

# Names that a dataset's columns cannot have where a trainer reads them: it would write over them, or be led by them.
# `text`, `context`, `last_k`, `target`, `document_id` and, with `gist_length_range`, `budget` are inputs, and so are
# `targets` beside `context` and `document_targets` beside `text`
RESERVED_COLUMNS = {
    **dict.fromkeys(
        (
            *(*WINDOW_COLUMNS[:-1], WALK_COLUMN, "seen_ids", TARGETS_COLUMN),
            *("kind", "window_targets", "window_length", "target_age"),
        ),
        "what a window is made of",
    ),
    **dict.fromkeys(
        (
            *("gist_ids", "gist_length", "gist_log_prob", "null_log_prob", "teacher_log_prob"),
            *("log_prob_gain", "token_log_prob_gains", "later_log_prob_gain", "teacher_kl", "null_teacher_kl"),
            *("kl_gain", "token_kl_gains", "later_kl_gain"),
            "target_scores",
        ),
        "what a gist is scored with",
    ),
    **dict.fromkeys(
        (
            *("prompts", "completion", "completions", "completion_ids"),
            *("trainer_state", "log_extra", "log_metric"),
        ),
        "what TRL hands to reward functions by itself",
    ),
    **dict.fromkeys(("image", "images"), "what TRL would show to the models, which read text alone"),
}
RESERVED_WALK_COLUMNS = dict.fromkeys(("window", "chunk_ids"), "what a walk's windows are made of")
# Groups that a trainer logs figures under, where each kind of targets has a group too
RESERVED_KINDS = (
    *("alarm", "clip_ratio", "completions", "generator", "noise", "reliability", "rewards", "sampling", "signal"),
    *("tools", "vespo"),
)


@dataclass(frozen=True)
class ColumnRules:
    """
    What a trainer asks of a dataset's columns, which it hands on to reward functions.

    Attributes:
        walks (`bool`):
            Whether names of what a walk's windows are made of are taken too.
        budgets (`tuple[int, int]` or `None`):
            The `gist_length_range` that a column `budget` must be within.
    """

    walks: bool
    budgets: tuple[int, int] | None

    def check(self, columns: set[str], name: str):
        """Raises `ValueError` that names the column that cannot be handed on, and what to do."""
        reserved = RESERVED_COLUMNS | (RESERVED_WALK_COLUMNS if self.walks else {})
        for column in sorted(columns & reserved.keys()):
            raise ValueError(
                f"The {name} dataset has a column `{column}`, a name that is taken: it is {reserved[column]}. Rename it, "
                f"as by `dataset.rename_column({column!r}, 'my_{column}')`, and reward functions get it under that name; "
                "or remove it (`trl-gist train --remove_columns`)."
            )
        if "budget" in columns and self.budgets is None:
            raise ValueError(
                f"The {name} dataset has a column `budget`, which says the most tokens of each gist where "
                "`gist_length_range` is set; it is None. Set it, or rename the column, as by "
                "`dataset.rename_column('budget', 'my_budget')`."
            )

    def check_budget(self, budget, where: str):
        """Raises `ValueError` for one that no gist may have."""
        least, greatest = self.budgets
        if budget is not None and (type(budget) is not int or not least <= budget <= greatest):
            raise ValueError(
                f"{where} has `budget` {budget!r}, which is no whole number within `gist_length_range` ({least}, "
                f"{greatest}). Widen the range, or change the column, as by `dataset.cast_column('budget', "
                "Value('int64'))`; None stands for a budget to be drawn."
            )


def said_of_targets(settings) -> dict:
    """What settings, an object with [`GistConfig`]'s names, say of targets, but for their kinds; a setting that it has not
    is `None`."""
    return {name: getattr(settings, name, None) for name in _SAID_OF}


def check_said(given: dict, kinds: Iterable[str], columns: set[str] = frozenset(), flag: str = ""):
    """
    Raises `ValueError` for what is said of targets that no window has, so that nothing reads it.

    Args:
        given (`dict`):
            Of [`said_of_targets`], without what is not said.
        kinds (`Iterable[str]`):
            Those that rules make.
        columns (`set[str]`, *optional*):
            Of the datasets, which may bring others.
        flag (`str`, *optional*):
            What stands before a setting's name, as `"--"`.
    """
    for name, value in given.items():
        if columns.union(kinds).isdisjoint(_SAID_OF[name]):
            of = [repr(kind) for kind in RULE_KINDS if kind in _SAID_OF[name]]
            raise ValueError(
                f"`{flag}{name}` ({value}) is of targets of the kind {' or '.join(of)}: name it in `{flag}target_kinds`, or "
                "leave it out."
            )


def check_kind_of(kind: str, where: str):
    """Raises `ValueError` for a kind of targets whose measures would be logged among others."""
    if kind in RESERVED_KINDS or re.fullmatch(r"(age|window)_\d+", kind):
        raise ValueError(
            f"{where} has a target of kind {kind!r}, a name that is taken: other figures are logged under it, as "
            f"'{kind}/…'. Rename the kind, as 'my_{kind}'."
        )


def check_targets_of_a_context(columns: set[str], name: str):
    """Raises `ValueError` for `targets` beside texts that are cut: they would be nobody's."""
    if {"text", TARGETS_COLUMN} <= columns:
        raise ValueError(
            f"The {name} dataset has a column `targets`, which are of one `context`, beside `text`, which is cut into "
            "several. If each text is a context, call it one: `dataset.rename_column('text', 'context')`. If not, give "
            "`document_targets`, where each also has `at`, the characters of the text after which it is known. If "
            "the column is something else, rename it: `dataset.rename_column('targets', 'my_targets')`."
        )


def check_dataset(dataset, name: str):
    """Raises `ValueError` for what is no dataset; says of a dictionary of splits that one is to be picked."""
    if isinstance(dataset, dict):
        raise ValueError(
            f"The {name} dataset is a {type(dataset).__name__} of {list(dataset)}, where one dataset is expected: pick a "
            f"split, as `dataset[{next(iter(dataset), 'train')!r}]`."
        )
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise ValueError(
            f"The {name} dataset is a {type(dataset).__name__}; it must be a `datasets.Dataset` or `IterableDataset`, as of "
            "`Dataset.from_list(rows)` or `Dataset.from_dict(columns)`."
        )


def is_cut(columns: set[str]) -> bool:
    """Whether a dataset is what [`prepare_windows`] returned, or a part of it: its columns cannot be a user's."""
    return set(WINDOW_COLUMNS) <= columns


def columns_of(dataset: Dataset | IterableDataset, name: str) -> set[str]:
    """Names of a dataset's columns, also where a stream does not say. Raises `ValueError` if it is empty."""
    # Of a file the first row may be a whole book, and is not asked for
    first = dataset.column_names if isinstance(dataset, Dataset) and len(dataset) else next(iter(dataset), None)
    if first is None:
        held_out = "" if isinstance(dataset, Dataset) else ", or its documents are all held out (`eval_documents`)"
        raise ValueError(f"The {name} dataset is empty{held_out}.")
    return set(first)
