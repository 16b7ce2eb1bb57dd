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

from collections import Counter
from dataclasses import dataclass, field

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from .generation import max_positions
from .gist_config import GistConfig
from .prompts import GistPrompts, through_last_k
from .recursion import SEPARATOR, Geometry
from .walks import walk_geometry


logger = get_logger(__name__)

WINDOW_COLUMNS = ("prompt", "context_ids", "last_k_ids", "target_ids", "document_id")
# The text of a walk over several windows; the other columns are then its first window
WALK_COLUMN = "walk_ids"


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
    reads X, L and Y, G reads L and Y. `None` means no limit.
    """

    summarizer: int | None = None
    teacher: int | None = None
    generator: int | None = None
    summarizer_sees_last_k: bool = False

    @classmethod
    def from_models(cls, summarizer, generator, teacher, prompts: GistPrompts, max_gist_length: int):
        def minus(limit, used):
            return None if limit is None else limit - used

        return cls(
            summarizer=minus(
                max_positions(summarizer), prompts.summarizer_overhead(max_gist_length) + max_gist_length
            ),
            teacher=minus(max_positions(teacher), len(prompts.bos)),
            generator=minus(max_positions(generator), prompts.generator_overhead + max_gist_length),
            summarizer_sees_last_k=prompts.sees_last_k,
        )

    def check(self, window: dict[str, list[int]], what: str, longest_context: int = 0):
        """
        Raises `ValueError` if a window, with `context_ids`, `last_k_ids` and `target_ids`, does not fit; or a walk, with
        `walk_ids` too, whose contexts have at most `longest_context` tokens.
        """
        context_ids, last_k_ids = window["context_ids"], window["last_k_ids"]
        last_k, target = len(last_k_ids), len(window["target_ids"])
        seen = window.get(WALK_COLUMN) or [*through_last_k(context_ids, last_k_ids), *window["target_ids"]]
        read = max(len(context_ids), longest_context)
        for role, length, limit in (
            ("summarizer", read + last_k * self.summarizer_sees_last_k, self.summarizer),
            ("teacher", len(seen), self.teacher),
            ("generator", last_k + target, self.generator),
        ):
            if limit is not None and length > limit:
                raise ValueError(
                    f"{what} does not fit the {role}: {length} tokens where its positions leave room for {limit} "
                    "beside prompt and gist. Lower `context_length`, `windows_per_document`, `target_length` or `last_k`, "
                    "or use a model with more positions."
                )


@dataclass(frozen=True)
class WindowSpec:
    """How documents are cut, in tokens. See [`GistConfig`]."""

    context_length: int
    target_length: int
    last_k: int
    window_stride: int | None
    max_windows_per_document: int | None
    windows_per_document: int = 1
    geometry: Geometry | None = None

    @property
    def walks(self) -> bool:
        return self.windows_per_document > 1

    @property
    def length(self) -> int:
        """Tokens of a document that a window, or a walk over several, takes."""
        if self.walks:
            return self.geometry.length(self.windows_per_document)
        return self.context_length + self.target_length


def prepare_windows(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    args: GistConfig | WindowSpec,
    limits: PositionLimits | None = None,
    name: str = "train",
) -> tuple[Dataset | IterableDataset, SkippedRows]:
    """
    Cuts documents into windows, or checks and tokenises ready-made ones.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Either a `text` column, cut by token ids into windows of `context_length + target_length`; or columns
            `context`, `target` and optionally `last_k` (by default the context's last tokens), each text or a list of
            token ids, of any length. A `last_k` that is not the context's end follows it: a question after its
            passage. Other columns are kept, for reward functions.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The one tokenizer of all roles.
        args ([`GistConfig`] or [`WindowSpec`]):
            Window lengths, stride and windows per document.
        limits ([`PositionLimits`], *optional*):
            Windows that exceed them raise.
        name (`str`, *optional*, defaults to `"train"`):
            What the log calls the dataset.

    Returns:
        The windows, with columns `prompt` (the context as text, for logs), `context_ids`, `last_k_ids`, `target_ids`
        and `document_id`, and, of walks over several, `walk_ids`, the text of them all; and the count of rows that gave
        none: too short, null, not a string, undecodable.

    Raises:
        ValueError: if the dataset is empty, has neither set of columns, gives no window at all, or has a window that
            does not fit a model.
    """
    PartialState()  # the logger asks it for the rank
    columns = columns_of(dataset, name)
    if "text" in columns:
        to_windows, consumed = _cut_document, {"text"}
    elif {"context", "target"} <= columns:
        to_windows, consumed = _ready_window, {"context", "target", "last_k"}
    else:
        raise ValueError(
            f"The {name} dataset has columns {sorted(columns)}; it needs either `text`, or `context` and `target` "
            "(and optionally `last_k`)."
        )
    carried = sorted(columns - consumed - set(WINDOW_COLUMNS) - {"skipped"})
    carries_document_id = "document_id" in columns
    # Only what shapes a window goes into the closure: `datasets` hashes it to find cached results
    spec = args if isinstance(args, WindowSpec) else _window_spec(args, tokenizer)
    if spec.walks and to_windows is _ready_window:
        raise ValueError(
            f"The {name} dataset has ready windows, and `windows_per_document` ({spec.windows_per_document}) walks along "
            "documents: give a `text` column, or set it to 1."
        )
    window_columns = (*WINDOW_COLUMNS, WALK_COLUMN) if spec.walks else WINDOW_COLUMNS
    id_columns = [column for column in window_columns if column.endswith("_ids")]
    longest_context = spec.context_length if spec.walks else 0
    vocab_size = len(tokenizer)

    def windows_of_batch(batch, indices):
        out = {column: [] for column in (*window_columns, "skipped", *carried)}
        for row, index in enumerate(indices):
            windows, reason = to_windows({column: batch[column][row] for column in batch}, tokenizer, spec)
            if any(not 0 <= token < vocab_size for window in windows for ids in window.values() for token in ids):
                windows, reason = [], "with ids outside the vocabulary"
            # A skipped row stays one row until it is counted, so that cached and parallel maps count alike
            for window in windows or [{column: [] for column in id_columns}]:
                if limits is not None and windows:
                    limits.check(window, f"Row {index} of the {name} dataset", longest_context)
                out["prompt"].append(tokenizer.decode(window["context_ids"]))
                for column, ids in window.items():
                    out[column].append(ids)
                out["document_id"].append(batch["document_id"][row] if carries_document_id else index)
                out["skipped"].append(reason or "")
                for column in carried:
                    out[column].append(batch[column][row])
        return out

    skipped = SkippedRows()
    if isinstance(dataset, IterableDataset):

        def counted(row):
            if row["skipped"]:
                skipped.counts[row["skipped"]] += 1
            return not row["skipped"]

        windows = dataset.map(
            windows_of_batch, batched=True, batch_size=16, with_indices=True, remove_columns=sorted(columns)
        )
        windows = windows.filter(counted).remove_columns("skipped")
        if next(iter(windows), None) is None:
            raise ValueError(f"The {name} dataset gave no window: {skipped}. {_length_hint(spec)}")
        skipped.counts.clear()
        return windows, skipped

    # Spelled out, because a first batch of skipped rows would be inferred as columns of nulls
    features = Features(
        {
            "prompt": Value("string"),
            **{column: List(Value("int32")) for column in id_columns},
            "document_id": dataset.features["document_id"] if carries_document_id else Value("int64"),
            "skipped": Value("string"),
            **{column: dataset.features[column] for column in carried},
        }
    )
    windows = dataset.map(
        windows_of_batch,
        batched=True,
        with_indices=True,
        remove_columns=sorted(columns),
        features=features,
        desc=f"Cutting the {name} dataset into windows",
    )
    skipped.counts.update(reason for reason in windows["skipped"] if reason)
    if skipped.total == len(windows):
        raise ValueError(f"The {name} dataset gave no window: {skipped}. {_length_hint(spec)}")
    keep = [row for row, reason in enumerate(windows["skipped"]) if not reason]
    windows = windows.select(keep).remove_columns("skipped")
    logger.info(f"{name} dataset: {len(windows)} windows from {len(dataset)} rows, {skipped}.")
    return windows, skipped


def columns_of(dataset: Dataset | IterableDataset, name: str) -> set[str]:
    """Names of a dataset's columns, also where a stream does not say. Raises `ValueError` if it is empty."""
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"The {name} dataset is empty.")
    return set(first)


def _window_spec(args, tokenizer):
    geometry = None
    if args.windows_per_document > 1:
        geometry = walk_geometry(args, len(_tokenize(tokenizer, SEPARATOR)))
    return WindowSpec(
        args.context_length,
        args.target_length,
        args.last_k,
        args.window_stride,
        args.max_windows_per_document,
        args.windows_per_document,
        geometry,
    )


def _length_hint(spec):
    if spec.walks:
        return (
            f"A document needs at least {spec.length} tokens for a walk over {spec.windows_per_document} windows. Lower "
            "`windows_per_document` or `context_length`, or use longer documents."
        )
    return (
        f"A document needs at least context_length + target_length = {spec.context_length} + {spec.target_length} "
        "tokens. Lower them, or use longer documents."
    )


def why_unusable(text) -> str | None:
    """Why a value cannot be tokenised, or `None`."""
    if text is None:
        return "null"
    if not isinstance(text, str):
        return "not a string"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates, as from a bad JSON escape; the Rust tokenizers refuse them
        return "undecodable"
    return None


def _tokenize(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _cut_document(row, tokenizer, spec):
    reason = why_unusable(row["text"])
    if reason:
        return [], reason
    ids = _tokenize(tokenizer, row["text"])
    starts = range(0, len(ids) - spec.length + 1, spec.window_stride or spec.length)
    windows = []
    for start in starts[: spec.max_windows_per_document]:
        cut = ids[start : start + spec.length]
        # Of a walk, the first window by itself, whose context is all text so far
        context_ids = cut[: spec.geometry.before(0) if spec.walks else spec.context_length]
        windows.append(
            {
                "context_ids": context_ids,
                "last_k_ids": context_ids[-spec.last_k :],
                "target_ids": cut[len(context_ids) :][: spec.target_length],
                **({WALK_COLUMN: cut} if spec.walks else {}),
            }
        )
    return windows, None if windows else "too short"


def _ready_window(row, tokenizer, spec):
    window = {}
    for column in ("context", "last_k", "target"):
        if column == "last_k" and "last_k" not in row:
            window["last_k_ids"] = window["context_ids"][-spec.last_k :]
            continue
        value = row[column]
        if isinstance(value, (list, tuple)) and all(isinstance(token, int) for token in value):
            ids = list(value)
        else:
            reason = why_unusable(value)
            if reason:
                return [], reason
            ids = _tokenize(tokenizer, value)
        if not ids:
            return [], "empty"
        window[f"{column}_ids"] = ids
    return [window], None
