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
What `trl-gist data`, `trl-gist evaluate` and `trl-gist distance` are told: a field for each flag, whose help says what it is. And the
pair that every command's arguments name, loaded. Nothing heavy is imported at the top, so that the command line takes
names and defaults from here.
"""

import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass

from ..common.arguments import several, truth, whole_number, whole_numbers


if typing.TYPE_CHECKING:
    from ..inference.compactor import GistCompactor


# Of `--tasks`
DEFAULT_COMPRESSORS = ("self-information",)
# Numbers that may be 0
_FROM_0 = ("samples", "seed", "show")


@dataclass(frozen=True, kw_only=True)
class DocumentArguments:
    """What all are told: the documents, and where models that read them are."""

    dataset: list[str]
    dataset_config: str | None = None
    split: str
    streaming: bool = False
    text_column: str = "text"
    encoding: str | None = None
    max_documents: int | None = None
    batch_size: int
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class HeldOutArguments(DocumentArguments):
    """What both evaluations are told: a pair, the held-out documents and where the evaluation goes."""

    pair: str
    revision: str | None = None
    split: str = "test"
    batch_size: int = 32
    teacher: str | None = None
    output_dir: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class TargetArguments:
    """What is told of several targets of a window, by training's names."""

    target_kinds: dict[str, float] | None = None
    targets_per_context: int | None = None
    target_floor: float | str | None = None
    cue_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(TargetArguments, HeldOutArguments):
    """Of `trl-gist evaluate`."""

    far_offset: int | None = None
    max_windows_per_document: int | None = None
    max_windows: int | None = None
    last_k: list[int] | None = None
    budgets: list[int] | None = None
    generator_only: str | None = None
    readers: list[str] | None = None
    compressors: list[str] | None = None
    samples: int = 0
    token_classifier: str | None = None
    gists: list[str] | None = None
    own_generators: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class DistanceArguments(TargetArguments, HeldOutArguments):
    """Of `trl-gist distance`."""

    windows: int
    recall_age: list[float] | None = None
    pairs: list[str] | None = None
    join_documents: bool = False


@dataclass(frozen=True, kw_only=True)
class TasksArguments(HeldOutArguments):
    """Of `trl-gist evaluate --tasks`; the documents, if any, are what stands between the facts."""

    dataset: list[str] | None = None
    tasks: list[str]
    lengths: Sequence[int] = (1, 2, 4, 8)
    texts: int = 32
    difficulty: int = 4
    seed: int = 0  # `data.tasks.EVALUATION_SEED`
    pairs: list[str] | None = None
    compressors: list[str] = DEFAULT_COMPRESSORS


@dataclass(frozen=True, kw_only=True)
class DataArguments(TargetArguments, DocumentArguments):
    """
    Of `trl-gist data`. What [`GistConfig`] has too has its name and its default. `recipe` says that the rest, as far as it
    is not given beside it, is [`~scripts.data.arguments_of_recipe`]; `only_files` that `dataset` is no name on the Hub.
    """

    recipe: str | None = None
    only_files: bool = False
    split: str = "train"
    remove_columns: list[str] | None = None
    eval_documents: int | None = None
    batch_size: int = 8
    model_name_or_path: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    teacher_name_or_path: str | None = None
    context_length: int = 512
    target_length: int = 64
    last_k: int = 64
    window_stride: int | None = None
    max_windows_per_document: int | None = None
    windows_per_document: int = 1
    max_completion_length: int = 48
    gist_length_range: list[int] | None = None
    parse_special_tokens: bool = False
    far_offset: int | None = None
    recall_age: list[float] | None = None
    max_windows: int = 64
    show: int = 3
    no_teacher: bool = False
    json: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.last_k > self.context_length:
            raise ValueError(
                f"`last_k` ({self.last_k}) must not exceed `context_length` ({self.context_length}): lower it."
            )


def _check_fields(arguments):
    """Numbers, lists and what is true or false, as they are declared."""
    for name, hint in typing.get_type_hints(type(arguments)).items():
        value = getattr(arguments, name)
        if hint == list[str] or (hint == list[str] | None and value is not None):
            object.__setattr__(arguments, name, several(name, value, "texts", "put it in a list"))
        elif hint is bool:
            object.__setattr__(arguments, name, truth(name, value))
        elif hint is int or hint == int | None:
            least = 0 if name in _FROM_0 else 1
            object.__setattr__(arguments, name, whole_number(name, value, least, optional=hint is not int))
        elif (hint == list[int] | None and value is not None) or hint == Sequence[int]:
            object.__setattr__(arguments, name, whole_numbers(name, value))


def load_pair(args, pair: str | None = None, backend: str = "transformers") -> "GistCompactor":
    """The pair of a command's arguments, or another one that is loaded as it is, but for the revision. Raises `ValueError` for
    a revision of a folder, which has none."""
    if args.revision is not None and os.path.isdir(args.pair):
        raise ValueError(
            f"--revision ({args.revision}) is of a repository on the Hub, and {args.pair} is a folder: leave it out."
        )
    from ..inference.compactor import GistCompactor

    return GistCompactor.from_pretrained(
        args.pair if pair is None else pair,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision if pair is None else None,
        trust_remote_code=args.trust_remote_code,
        backend=backend,
    )
