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

"""Documents as windows in token ids: context, last tokens, target; and which of them fit the models."""

import itertools
import json
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.formatting.formatting import LazyBatch
from transformers import PreTrainedTokenizerBase

from ..common.arguments import token_ids, whole_number
from ..common.geometry import Geometry, WindowedText
from ..common.pieces import PIECE, LongText, Piece
from ..common.tokens import (
    characters_of,
    following_ids,
    literal_ids,
    literal_pieces,
    written_ids,
    written_pieces,
)
from ..prompts import GistPrompts, targets_of, through_last_k
from .columns import (
    BROUGHT_TARGETS,
    DOCUMENT_TARGETS_COLUMN,
    TARGETS_COLUMN,
    WALK_COLUMN,
    WINDOW_COLUMNS,
    ColumnRules,
    check_dataset,
    check_kind_of,
    check_targets_of_a_context,
    columns_of,
)
from .targets import QUESTION, TargetSpec, make_targets, make_walk_targets


logger = get_logger(__name__)

# Why a row gave no window, until it is counted
_SKIPPED = "trl_gist: skipped"
_TOO_SHORT, _WITHOUT_TARGETS, _EMPTY_WINDOWS = "too short", "without targets", "windows without targets"
# What `targets` looks like, for who is told
_EXAMPLE = '[{"cue": "The men drank", "target": " beer"}]'
# A document is cut part by part, so that a whole book's windows are never in memory together: which row's it is, and
# what [`_Part`] says of it; about how many tokens windows of one part begin in, and how many parts are cut together
_ROW, _PART_COLUMNS = "trl_gist: row", {name: f"trl_gist: {name}" for name in ("ids", "first", "count", "targets")}
_PART_TOKENS, _PARTS_TOGETHER = 1 << 14, 16
# Bytes of text that become windows at once, in some 150 times the memory
_BYTES_TOGETHER = 1 << 21
# Documents of which the longest is looked for where all are too short
_SHORT_ONES = 1000
# Tokens on either side of a place that tell where a character or a sentence ends
_BESIDE = 32
_TARGET_FEATURES = {name: List(Value("int32")) for name in ("cue_ids", "target_ids", "after_ids")}
_TARGET_FEATURES |= {"kind": Value("string")}
_TARGETS_FEATURE = List(_TARGET_FEATURES)
_WALK_TARGETS_FEATURE = List(_TARGET_FEATURES | {"window": Value("int32"), "age": Value("int32")})


@dataclass
class SkippedRows:
    """Counts why rows of a dataset gave no window. A stream's counts grow while it is read."""

    counts: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        return f"{self.total} rows skipped" + (f" ({reasons})" if reasons else "")


@dataclass(frozen=True)
class PositionLimits:
    """
    Tokens of a window that fit the models' positions beside prompt and gist: S reads X, and L if its prompt has it, T
    reads X, L and Y, G reads L and Y. Each of several targets follows X, or the gist, by itself. `None` means no limit.

    Of an X with so many tokens as are `turned`, if given, S may be turned otherwise by LongRoPE
    ([`~models.positions.turned_alike`]) while it writes: then gists are not sampled as they are trained.
    """

    summarizer: int | None = None
    teacher: int | None = None
    generator: int | None = None
    summarizer_sees_last_k: bool = False
    turned: range | None = None

    @classmethod
    def from_positions(
        cls,
        summarizer: int | None,
        generator: int | None,
        teacher: int | None,
        prompts: GistPrompts,
        max_gist_length: int,
        sampled_alike: int | None = None,
    ) -> "PositionLimits":
        """The limits of models by the positions that each has ([`~models.positions.max_positions`]), and, where S samples,
        by those that it turns alike."""

        def minus(limit, used):
            return None if limit is None else limit - used

        written = prompts.summarizer_overhead(max_gist_length) + max_gist_length
        return cls(
            summarizer=minus(summarizer, written),
            teacher=minus(teacher, len(prompts.bos)),
            generator=minus(generator, prompts.generator_overhead + max_gist_length),
            summarizer_sees_last_k=prompts.sees_last_k,
            turned=None if sampled_alike is None else range(sampled_alike - written + 1, sampled_alike + 1),
        )

    def check(self, window: dict[str, list[int]], what: str, longest_context: int = 0):
        """
        Raises `ValueError` if a window, with `context_ids`, `last_k_ids` and `target_ids`, or `targets`, does not fit; or
        a walk, with `walk_ids` too, whose contexts have at most `longest_context` tokens.
        """
        context, last_k, targets = len(window["context_ids"]), len(window["last_k_ids"]), targets_of(window)
        after = max(len(target["after_ids"]) + len(target["target_ids"]) for target in targets)
        shortest = context + last_k * self.summarizer_sees_last_k
        longest = shortest + max(longest_context - context, 0)
        if self.turned and longest >= self.turned.start and shortest < self.turned.stop:
            raise ValueError(
                f"{what} gives the summarizer {longest} tokens, and with prompt and gist it may pass its model's "
                f"`original_max_position_embeddings` ({self.turned.stop - 1}) while it writes: LongRoPE turns a text otherwise "
                "from there on, and gists would not be sampled as they are trained. Give at most "
                f"{self.turned.start - 1} tokens, by a lower `context_length` or `max_completion_length`, or at least "
                f"{self.turned.stop}."
            )
        for role, length, limit in (
            ("summarizer", longest, self.summarizer),
            ("teacher", _teacher_length(window, context + after), self.teacher),
            (
                "generator",
                max(len(target["cue_ids"]) + len(target["target_ids"]) for target in targets),
                self.generator,
            ),
        ):
            if limit is not None and length > limit:
                raise ValueError(
                    f"{what} does not fit the {role}: {length} tokens where its positions leave room for {limit} "
                    "beside prompt and gist. Lower `context_length`, `windows_per_document`, `target_length` or `last_k`, "
                    + ("bring its targets nearer or shorten them, " if window.get(TARGETS_COLUMN) else "")
                    + "or use a model with more positions."
                )


def _teacher_length(window, of_window):
    """What T reads: a window's own tokens, or a walk's, after which each target follows by itself."""
    asked = (target for target in window.get(TARGETS_COLUMN, ()) if target["kind"] != "continuation")
    after = max((len(target["after_ids"]) + len(target["target_ids"]) for target in asked), default=0)
    return len(window[WALK_COLUMN]) + after if WALK_COLUMN in window else of_window


@dataclass(frozen=True)
class WindowSpec:
    """
    How documents are cut, in tokens, always between two characters, so that a part may have some tokens fewer; with a
    `geometry`, into walks; with `targets` of more than the continuation, each window gets several. See [`GistConfig`],
    whose `window_spec` it is.
    """

    context_length: int
    target_length: int
    last_k: int
    window_stride: int | None
    max_windows_per_document: int | None
    windows_per_document: int = 1
    geometry: Geometry | None = None
    targets: TargetSpec = TargetSpec()
    parse_special_tokens: bool = False

    def __post_init__(self):
        for name in ("context_length", "target_length", "last_k", "windows_per_document"):
            whole_number(name, getattr(self, name))
        for name in ("window_stride", "max_windows_per_document"):
            whole_number(name, getattr(self, name), optional=True)

    @classmethod
    def of(cls, args, geometry: Geometry | None, targets: TargetSpec) -> "WindowSpec":
        """The spec of a [`GistConfig`], or of what has its names, as the arguments of `trl-gist data`."""
        names = {field.name for field in fields(cls)} - {"geometry", "targets"}
        return cls(**{name: getattr(args, name) for name in names}, geometry=geometry, targets=targets)

    @property
    def several(self) -> bool:
        """Whether each window gets a list of targets made by rule."""
        return not self.targets.is_continuation

    @property
    def walks(self) -> bool:
        return self.windows_per_document > 1

    @property
    def length(self) -> int:
        """Tokens of a document that a window, or a walk over several, takes."""
        if self.walks:
            return self.geometry.length(self.windows_per_document)
        return self.context_length + self.target_length

    @property
    def stride(self) -> int:
        """Tokens of a document from the start of one window, or walk, to that of the next."""
        return self.window_stride or self.length

    @property
    def reach(self) -> int:
        """Tokens after a start that a window, or walk, and its targets are made of."""
        return max(self.length, self.context_length + self.targets.far_offset + self.target_length) + _BESIDE


def prepare_windows(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    spec: WindowSpec,
    limits: PositionLimits | None = None,
    name: str = "train",
    rules: ColumnRules | None = None,
    columns: set[str] | None = None,
) -> tuple[Dataset | IterableDataset, SkippedRows]:
    """
    Cuts documents into windows, or checks and tokenises ready-made ones.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Either a `text` column, cut by token ids into windows of `context_length + target_length`; or columns
            `context`, `target` and optionally `last_k` (by default the context's last tokens), each text or a list of
            token ids, of any length. A `last_k` that is not the context's end follows it: a question after its
            passage. In place of `target` a column `targets` may hold several, each a dictionary with `cue` and
            `target`, text or token ids too, and optionally `kind`, by default `"question"`. Beside `text` a column
            `document_targets` may hold what its windows, or those of a walk, are asked for in place of what rules make:
            such dictionaries which also have `at`, the characters of the text after which the answer is known, and
            optionally `until`, those after which it is another. Other columns are kept, for
            reward functions, but for the names of [`~data.columns.RESERVED_COLUMNS`]. With `gist_length_range` a column
            `budget` says the most tokens of each row's gists, `None` for one to be drawn.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The one tokenizer of all roles.
        spec ([`WindowSpec`]):
            Window lengths, stride and windows per document, and the targets of each.
        limits ([`PositionLimits`], *optional*):
            Windows that exceed them raise.
        name (`str`, *optional*, defaults to `"train"`):
            What the log calls the dataset.
        rules ([`ColumnRules`], *optional*):
            What columns may be called, kinds of targets too, and budgets be; any, if left out.
        columns (`set[str]`, *optional*):
            Of [`~data.columns.columns_of`], where they are known: of a stream, they take its first row.

    Returns:
        The windows, with columns `prompt` (the context as text, for logs), `context_ids`, `last_k_ids`, `target_ids`
        and `document_id`, and, of walks over several, `walk_ids`, the text of them all; with `spec.targets`, or of a
        column `targets`, also `targets`, as of [`make_targets`], whose first is `target_ids` in ready windows; and the
        count of rows that gave none: too short, null, not a string, undecodable, and of windows without targets.

    Raises:
        ValueError: if the dataset is none, as a `DatasetDict`, is empty, has neither set of columns, or both, or a
            column of a reserved name; if it gives no window at all, or one that does not fit a model; or if a `budget`
            is outside `gist_length_range`, or a target's `kind` one of [`~data.columns.RESERVED_KINDS`].
    """
    PartialState()  # the logger asks it for the rank
    check_dataset(dataset, name)
    dataset = dataset.with_format(None)  # as plain Python values, whatever tensors the user reads it as
    columns = columns_of(dataset, name) if columns is None else columns
    windows_of_row, consumed, several = _form_of_rows(columns, name, spec)
    if rules is not None:
        check_targets_of_a_context(columns, name)
        rules.check(columns - consumed, name)
    carried = sorted(columns - consumed - {*WINDOW_COLUMNS, TARGETS_COLUMN})
    carries_document_id = "document_id" in columns
    window_columns = (*WINDOW_COLUMNS, WALK_COLUMN) if spec.walks else WINDOW_COLUMNS
    id_columns = [column for column in window_columns if column.endswith("_ids")]
    list_columns = [*id_columns, *([TARGETS_COLUMN] if several else [])]
    longest_context = spec.context_length if spec.walks else 0
    # Only what shapes or refuses a window goes into the closures: `datasets` hashes them to find cached results
    check_budget = rules.check_budget if rules is not None and "budget" in columns else None
    brought = consumed & BROUGHT_TARGETS & columns
    check_kind = check_kind_of if rules is not None and brought else None
    beside = sorted(columns - consumed)

    def parts_of_batch(batch, indices):
        out = {column: [] for column in (*_PART_COLUMNS.values(), _ROW, _SKIPPED, *beside)}
        texts = _texts(batch, tokenizer)
        brought = batch[DOCUMENT_TARGETS_COLUMN] if DOCUMENT_TARGETS_COLUMN in batch else None
        for row, index in enumerate(indices):
            parts, reason = _parts(texts[row], () if brought is None else (brought[row],), tokenizer, spec)
            for part in parts:
                for name, column in _PART_COLUMNS.items():
                    out[column].append(getattr(part, name))
                out[_ROW].append(index)
                out[_SKIPPED].append(reason)
                for column in beside:
                    out[column].append(batch[column][row])
        return out

    def windows_of_batch(batch, indices):
        out = {column: [] for column in (*window_columns, *list_columns, _SKIPPED, *carried)}
        indices = batch[_ROW] if windows_of_row is _cut_part else indices
        for row, index in enumerate(indices):
            if check_budget is not None:
                check_budget(batch["budget"][row], f"Row {index} of the {name} dataset")
            windows, reason = windows_of_row({column: batch[column][row] for column in batch}, tokenizer, spec)
            for target in (target for window in windows if check_kind for target in window[TARGETS_COLUMN]):
                check_kind(target["kind"], f"Row {index} of the {name} dataset")
            # A skipped row stays one row until it is counted, so that cached and parallel maps count alike
            for window in windows or ([{column: [] for column in list_columns}] if reason else []):
                why = reason or (_EMPTY_WINDOWS if several and not window[TARGETS_COLUMN] else "")
                if limits is not None and not why:
                    limits.check(window, f"Row {index} of the {name} dataset", longest_context)
                out["prompt"].append(tokenizer.decode(characters_of(tokenizer).whole(window["context_ids"])))
                for column, ids in window.items():
                    out[column].append(ids)
                out["document_id"].append(batch["document_id"][row] if carries_document_id else index)
                out[_SKIPPED].append(why)
                for column in carried:
                    out[column].append(batch[column][row])
        return out

    is_stream = isinstance(dataset, IterableDataset)
    into_parts = parts_of_batch if windows_of_row is _cut_part else None
    if is_stream:
        windows, skipped = _windows_of_stream(dataset, into_parts, windows_of_batch, columns, consumed)
        is_empty = next(iter(windows), None) is None
    else:
        # Spelled out, because a first batch of skipped rows would be inferred as columns of nulls
        features = {
            "prompt": Value("string"),
            **{column: List(Value("int32")) for column in id_columns},
            **({TARGETS_COLUMN: _WALK_TARGETS_FEATURE if spec.walks else _TARGETS_FEATURE} if several else {}),
            "document_id": dataset.features["document_id"] if carries_document_id else Value("int64"),
            _SKIPPED: Value("string"),
            **{column: dataset.features[column] for column in carried},
        }
        windows, skipped = _windows_of_dataset(
            dataset, into_parts, windows_of_batch, Features(features), consumed, name
        )
        is_empty = len(windows) == 0
    if is_empty:
        hint = _hint(skipped, spec) + _longest(dataset, skipped, tokenizer, spec)
        raise ValueError(f"The {name} dataset gave no window: {skipped}. {hint}")
    if is_stream:
        skipped.counts.clear()  # they are read again
    else:
        logger.info(f"{name} dataset: {len(windows)} windows from {len(dataset)} rows, {skipped}.")
    return windows, skipped


def _form_of_rows(columns: set[str], name: str, spec: WindowSpec) -> tuple[Callable, set[str], bool]:
    """
    What makes windows of a dataset's rows, [`_cut_part`] or [`_ready_window`]; the columns that it uses up; and whether
    a window has several targets. Raises `ValueError` for columns that are neither, or both.
    """
    if {"context", "target", TARGETS_COLUMN} <= columns:
        raise ValueError(
            f"The {name} dataset has both `target` and `targets`: a context's targets are all in `targets`, or there is one "
            "`target`. Remove the column that is not meant: `dataset.remove_columns('target')`."
        )
    if {"text", "context"} <= columns and columns & {"target", TARGETS_COLUMN}:
        raise ValueError(
            f"The {name} dataset has both `text`, which is cut into windows, and `context` and "
            f"`{'target' if 'target' in columns else TARGETS_COLUMN}`, which are windows. "
            "Remove those that are not meant, or rename them: `dataset.rename_column('text', ...)`."
        )
    if "text" in columns:
        if spec.several and DOCUMENT_TARGETS_COLUMN in columns:
            logger.warning(
                f"`target_kinds` makes no targets of the {name} dataset's windows: its `document_targets` are what they are "
                "asked for."
            )
        return _cut_part, {"text", DOCUMENT_TARGETS_COLUMN}, spec.several or DOCUMENT_TARGETS_COLUMN in columns
    several = TARGETS_COLUMN in columns
    target = TARGETS_COLUMN if several else "target"
    if not {"context", target} <= columns:
        remedy = "name the column that holds the text: `dataset.rename_column(..., 'text')`, or `--text_column`"
        if "messages" in columns:
            remedy = (
                "write each chat as a text: `tokenizer.apply_chat_template(messages, tokenize=False)`, with "
                "`parse_special_tokens`"
            )
        elif several:
            remedy = f"{remedy}; to train on these `targets`, call what they are about `context`"
        elif "context" in columns:
            remedy = (
                f"{remedy}; to train on what a context is asked, write questions and answers as `targets`: {_EXAMPLE}"
            )
        raise ValueError(
            f"The {name} dataset has columns {sorted(columns)}; it needs either `text`, or `context` and `target` or "
            f"`targets` (and optionally `last_k`). To train on texts, {remedy}."
        )
    if spec.walks:
        raise ValueError(
            f"The {name} dataset has ready windows, and `windows_per_document` ({spec.windows_per_document}) walks along "
            "documents: give a `text` column, or set it to 1."
        )
    if spec.several:
        logger.warning(
            f"`target_kinds` makes no targets of the {name} dataset's windows: it is of texts, and these are ready and bring "
            "what they are asked for."
        )
    for setting in ("window_stride", "max_windows_per_document"):
        if (
            getattr(spec, setting) is not None and name == "train"
        ):  # what is held out may be ready beside texts to train on
            logger.warning(
                f"`{setting}` ({getattr(spec, setting)}) cuts no windows of the {name} dataset: it is of texts, and these are "
                "ready."
            )
    return _ready_window, {"context", target, "last_k"}, several


def _windows_of_stream(dataset, into_parts, into_windows, columns, consumed):
    """The windows and the count of rows without; `into_parts` is `None` where these are ready."""
    skipped = SkippedRows()

    def counted(row):
        if row[_SKIPPED]:
            skipped.counts[row[_SKIPPED]] += 1
        return not row[_SKIPPED]

    if into_parts is not None:
        dataset = _mapped(dataset, into_parts, batch_size=1, remove_columns=sorted(consumed & columns))
        columns = {*(columns - consumed), *_PART_COLUMNS.values(), _ROW, _SKIPPED}
    windows = _mapped(dataset, into_windows, batch_size=_PARTS_TOGETHER, remove_columns=sorted(columns))
    return windows.filter(counted).remove_columns(_SKIPPED), skipped


def _windows_of_dataset(dataset, into_parts, into_windows, features, consumed, name):
    """As [`_windows_of_stream`]."""
    rows, cut, together = dataset, into_windows, 1000
    if into_parts is not None:
        together, has_long = _sizes(dataset)
        if has_long:
            part_features = {
                **{column: Value("int64") for column in (*_PART_COLUMNS.values(), _ROW)},
                _PART_COLUMNS["ids"]: List(Value("int32")),
                _PART_COLUMNS["targets"]: Value("string"),
                _SKIPPED: Value("string"),
                **{column: dataset.features[column] for column in sorted(set(dataset.column_names) - consumed)},
            }
            rows = _mapped(
                dataset,
                into_parts,
                batch_size=together,
                remove_columns=sorted(consumed & set(dataset.column_names)),
                features=Features(part_features),
                desc=f"Tokenising the {name} dataset",
            )
            together = _PARTS_TOGETHER
        else:  # which is quicker, but holds all windows of a batch of documents

            def cut(batch, indices):
                return into_windows(into_parts(batch, indices), indices)

    windows = _mapped(
        rows,
        cut,
        batch_size=together,
        remove_columns=rows.column_names,
        features=features,
        desc=f"Cutting the {name} dataset into windows",
    )
    skipped = SkippedRows(Counter(reason for reason in windows[_SKIPPED] if reason))
    keep = [row for row, reason in enumerate(windows[_SKIPPED]) if not reason]
    return windows.select(keep).remove_columns(_SKIPPED), skipped


def _mapped(dataset, function, **settings):
    """The dataset mapped by batches with their indices. To hash a function takes longer than to cut a small dataset,
    and of what is in memory nothing can be found again by it."""
    if isinstance(dataset, Dataset) and not dataset.cache_files:
        settings["new_fingerprint"] = secrets.token_hex(8)
    return dataset.map(function, batched=True, with_indices=True, **settings)


def window_key(row: dict) -> tuple[tuple[int, ...], ...]:
    """What tells a window from another: its context, last tokens and target."""
    return tuple(row["context_ids"]), tuple(row["last_k_ids"]), tuple(row["target_ids"])


def _hint(skipped, spec):
    """What to do where no row gave a window."""
    if _lacks_targets(skipped):
        return (
            "A ready window needs at least one entry in `targets`; a document's contexts must have what the kinds of "
            "target are made of: add `continuation`, which every window has, or raise `context_length`."
        )
    if any("targets are" in reason or "with a target" in reason for reason in skipped.counts):
        return (
            f"Targets are a list of dictionaries, as {_EXAMPLE}, each of texts or token ids; in `document_targets` each also "
            "has `at`, the characters of the text after which it is known. CSV has no lists: write JSON lines or parquet."
        )
    if not skipped.counts[_TOO_SHORT]:
        return "Each row needs text, or token ids of the vocabulary, in everything that its windows are made of."
    if spec.walks:
        return (
            f"A document needs at least {spec.length} tokens for a walk over {spec.windows_per_document} windows. Lower "
            "`windows_per_document` or `context_length`, or use longer documents."
        )
    return (
        f"A document needs at least context_length + target_length = {spec.context_length} + {spec.target_length} "
        "tokens. Lower them, or use longer documents."
    )


def _lacks_targets(skipped):
    return skipped.counts[_WITHOUT_TARGETS] or skipped.counts[_EMPTY_WINDOWS]


def _longest(documents, skipped, tokenizer, spec):
    """How long the longest document is, of which all are too short."""
    if not skipped.counts[_TOO_SHORT] or _lacks_targets(skipped):
        return ""
    texts = [row["text"] for row in itertools.islice(documents, _SHORT_ONES)]
    longest = max((len(_tokenize(tokenizer, text, spec)) for text in texts if why_unusable(text) is None), default=0)
    of_first = f" of the first {_SHORT_ONES:,}" if len(texts) == _SHORT_ONES else ""
    return f" The longest{of_first} has {longest}."


def why_unusable(text) -> str | None:
    """Why a value cannot be tokenised, or `None`."""
    if text is None:
        return "null"
    if isinstance(text, LongText):
        return None
    if not isinstance(text, str):
        return "not a string"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates, as from a bad JSON escape; the Rust tokenizers refuse them
        return "undecodable"
    return None


def _tokenize(tokenizer, text, spec):
    return _encoder(spec)(tokenizer, text)


def _encoder(spec):
    return written_ids if spec.parse_special_tokens else literal_ids


def _sizes(dataset) -> tuple[int, bool]:
    """How many documents are about `_BYTES_TOGETHER`, and whether one of them alone is longer."""
    texts = dataset.data.column("text")
    if not _is_text(texts.type):
        return 1000, False
    lengths = pc.binary_length(texts)
    mean, longest = pc.mean(lengths).as_py() or 1.0, pc.max(lengths).as_py() or 0
    return max(1, min(1000, int(_BYTES_TOGETHER / mean))), longest > _BYTES_TOGETHER


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


class _Part(NamedTuple):
    """
    Ids of a document from which its next windows are cut: `count` of them at most, the first from place `first` on.
    The next part begins with what its own windows share with these, and each has beside its windows what else they
    depend on. `targets` are the document's own, as JSON, with places that are counted from the part's first id.
    """

    ids: np.ndarray
    first: int
    count: int
    targets: str | None = None


def _texts(batch, tokenizer):
    """The texts of a batch, a long one only as it is tokenised; a tokenizer without offsets takes each as a whole."""
    if not (isinstance(batch, LazyBatch) and tokenizer.is_fast):
        return batch["text"]
    texts = batch.pa_table["text"]
    if not _is_text(texts.type):
        return batch["text"]
    return [
        LongText(memoryview(text.as_buffer()), length) if (length or 0) > PIECE else text.as_py()
        for text, length in zip(texts, pc.utf8_length(texts).to_pylist(), strict=True)
    ]


def _parts(text, brought, tokenizer, spec) -> tuple[list[_Part], str]:
    """All parts of a document, in a few bytes a token; or why it has no window, beside a part that is empty."""
    reason, targets = why_unusable(text), None
    if reason is None and brought:
        targets, reason = _document_targets(text, *brought, tokenizer, spec)
    if reason is None:
        pieces = (written_pieces if spec.parse_special_tokens else literal_pieces)(tokenizer, text)
        if targets is not None:
            pieces = _count_tokens(pieces, targets, lambda place: len(_tokenize(tokenizer, text[:place], spec)))
        parts = list(_iter_parts(pieces, spec, targets))
        if parts:
            return parts, ""
    return [_Part(np.empty(0, np.int32), 0, 0)], reason or _TOO_SHORT


def _iter_parts(pieces: Iterable[Piece], spec, targets: list[dict] | None) -> Iterator[_Part]:
    stride, left = spec.stride, spec.max_windows_per_document
    count = max(1, _PART_TOKENS // stride)
    enough = max(count * stride, (count - 1) * stride + spec.reach)
    ids, first, before = [], 0, 0
    for more in itertools.chain((ids for ids, _ in pieces), [None]):  # after the last of them
        ids += more or []
        while len(ids) - first >= (spec.length if more is None else enough):
            count = count if left is None else min(count, left)
            of_part, own = ids[: first + (count - 1) * stride + spec.reach], None
            if targets is not None:
                own = json.dumps([each for each in _after(targets, before) if 0 < each["at"] <= len(of_part)])
            yield _Part(np.array(of_part, np.int32), first, count, own)
            if left is not None:
                left -= count
                if left == 0:
                    return
            before += first + count * stride - _BESIDE
            ids, first = ids[first + count * stride - _BESIDE :], _BESIDE


def _cut_part(row, tokenizer, spec):
    if row[_SKIPPED]:
        return [], row[_SKIPPED]
    ids, first, count, brought = (row[column] for column in _PART_COLUMNS.values())
    ids, characters = np.asarray(ids).tolist(), characters_of(tokenizer)
    brought = None if brought is None else json.loads(brought)
    windows = []
    for start in range(first, len(ids) - spec.length + 1, spec.stride)[:count]:
        start = characters.cut(ids, start)
        cut = ids[start : characters.cut(ids, start + spec.length)]
        if spec.walks:  # the first window by itself, whose context is all text so far
            text = WindowedText(cut, spec.geometry, characters)
            last, end = text.chunk_start(1), text.before(0)
            if not text.target(spec.windows_per_document - 1):
                continue  # what is left of it makes no character
        else:
            end = characters.cut(cut, spec.context_length)
            last = characters.next_cut(cut, max(0, end - spec.last_k))
        window = {
            "context_ids": cut[:end],
            "last_k_ids": cut[last:end],
            "target_ids": cut[end : characters.cut(cut, end + spec.target_length)],
        }
        if not window["context_ids"] or not window["target_ids"]:
            continue  # no character is so short
        if spec.walks:
            window[WALK_COLUMN] = cut
        if brought is not None or spec.several:
            targets, own = spec.targets, None if brought is None else _after(brought, start)
            if spec.walks:
                read, geometry, walked = ids[: start + len(cut)], spec.geometry, spec.windows_per_document
                window[TARGETS_COLUMN] = make_walk_targets(tokenizer, read, geometry, walked, targets, own, start)
            else:
                window[TARGETS_COLUMN] = make_targets(tokenizer, ids, start, spec, targets, own)
        windows.append(window)
    # Of a document, its first part says so
    return windows, _TOO_SHORT if not windows and first == 0 else None


def _document_targets(text, entries, tokenizer, spec):
    """The targets that come with a document, by its characters; or why they cannot be used."""
    targets, reason = _ready_targets(entries, [], tokenizer, spec)
    if reason:
        return None, reason
    for target, entry in zip(targets, entries, strict=True):
        for name in ("at", "until"):
            place = entry.get(name)
            if place is None and name == "until":
                target[name] = None
                continue
            if type(place) is not int or not 0 <= place <= len(text):
                return None, f"with a target whose `{name}` is no place in the text"
            target[name] = max(place, 1) if name == "at" else place  # nothing is known before the first character
        if target["until"] is not None and target["until"] < target["at"]:
            return None, "with a target whose `until` is before its `at`"
    return targets, None


def _count_tokens(pieces, targets, count) -> list[Piece]:
    """Places of targets in tokens instead of characters: so many begin before each. A tokenizer that does not say where
    they begin counts those of the text up to there. The pieces, whose ids are kept in four bytes each."""
    named = [(target, name) for target in targets for name in ("at", "until") if target[name] is not None]
    places = np.array([target[name] for target, name in named], np.int64)
    before, kept = np.zeros_like(places), []
    for ids, starts in pieces:
        before += [count(place) for place in places.tolist()] if starts is None else np.searchsorted(starts, places)
        kept.append((array("i", ids), None))
    for (target, name), number in zip(named, before.tolist(), strict=True):
        target[name] = number
    return kept


def _after(targets, start):
    """A document's targets with places counted from one of its tokens."""
    moved = []
    for target in targets:
        until = None if target["until"] is None else target["until"] - start
        moved.append(target | {"at": target["at"] - start, "until": until})
    return moved


def _ready_window(row, tokenizer, spec):
    window = {}
    for column in ("context", "last_k", "target"):
        if column == "last_k" and "last_k" not in row:
            window["last_k_ids"] = characters_of(tokenizer).last(window["context_ids"], spec.last_k)
            continue
        if column == "target" and TARGETS_COLUMN in row:
            window[TARGETS_COLUMN], reason = _ready_targets(
                row[TARGETS_COLUMN], window["context_ids"], tokenizer, spec
            )
            window["target_ids"] = [] if reason else window[TARGETS_COLUMN][0]["target_ids"]
        else:
            window[f"{column}_ids"], reason = _ids_of(row[column], tokenizer, spec, follows=column == "target")
            reason = reason and f"whose `{column}` is {reason}"
        if reason:
            return [], reason
    return [window], None


def _ready_targets(entries, context_ids, tokenizer, spec):
    """The targets that a user has given, or why they cannot be used."""
    if entries is None:
        return None, "whose targets are null"
    if not isinstance(entries, (list, tuple)):
        return None, "whose targets are not a list"
    targets = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"cue", "target"} <= entry.keys():
            return None, "with a target that lacks `cue` or `target`"
        kind = QUESTION if entry.get("kind") in (None, "") else entry["kind"]
        cue_ids, why_cue = _ids_of(entry["cue"], tokenizer, spec)
        target_ids, why_target = _ids_of(entry["target"], tokenizer, spec, follows=True)
        for name, reason in (("kind", why_unusable(kind)), ("cue", why_cue), ("target", why_target)):
            if reason:
                return None, f"with a target whose `{name}` is {reason}"
        after_ids = through_last_k(context_ids, cue_ids)[len(context_ids) :]
        targets.append({"kind": kind, "cue_ids": cue_ids, "target_ids": target_ids, "after_ids": after_ids})
    return (targets, None) if targets else (None, _WITHOUT_TARGETS)


def _ids_of(value, tokenizer, spec, follows=False):
    """Token ids of what is text, which may follow other text, or ids already, or why it is neither."""
    reason = why_unusable(value)
    if reason is None:
        encode = _encoder(spec)
        ids = following_ids(tokenizer, value, encode) if follows else encode(tokenizer, value)
    elif isinstance(value, (list, tuple)) or getattr(value, "ndim", None) == 1:
        try:
            ids = token_ids("It", value, len(tokenizer))
        except ValueError:
            return None, "of ids outside the vocabulary"
    else:
        return None, reason
    return (ids, None) if ids else (None, "empty")
