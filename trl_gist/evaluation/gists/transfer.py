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
Does a gist travel? Its text, read by a model that never saw it in training.

Any causal language model reads plain text, in its own tokens: the gist, a line end, and the last tokens L; then the
target is scored, in nats per byte of its text, so that vocabularies compare. Beside the gist it reads

    none        L alone
    shuffled    another document's gist, and L
    tail        the text just before L, as many bytes of it as the gist has, and L
    full        all of the context

What a reader makes of a gist says what kind of text it is. The teacher T and an unrelated model U are the two to ask:

    T and U gain from it, over `none` and over `shuffled`       plain language
    T gains and U does not, though U gains from `full`          a code of this vocabulary or this family of models
    only the pair's own generator gains                         a private code
    T gains from the gist's tokens but not from its text        one that is spelled in tokens no tokenizer would choose

The last shows as a low share of gists whose text gives the same tokens back. A private code is no failure in itself,
it may be a short one; but it can be read, audited and passed on only with its generator. A reader that does not gain
from `full` either cannot tell, as it is too weak.
"""

import numpy as np
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.statistics import measured, ratio_and_error
from ...common.tables import console_table
from ...common.tokens import decode, literal_ids
from ...models.positions import max_positions
from ...prompts import GistPrompts, before_last_k, seen_ids
from ...scoring.controls import other_documents
from ...scoring.targets import target_log_probs


READINGS = ("none", "gist", "shuffled", "tail", "full")
GAINS = {
    "gain_over_none": "gist over none",
    "gain_over_shuffled": "… over another document's",
    "gain_over_tail": "… over as many bytes verbatim",
    "gain_of_full": "whole context over none",
}


def as_text(tokenizer: PreTrainedTokenizerBase, rows: list[dict]) -> list[dict]:
    """
    Windows and their gists as text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The pair's.
        rows (`list[dict]`):
            Windows with `context_ids`, `last_k_ids`, `target_ids`, `document_id` and `gist_ids`, as of
            [`~evaluation.evaluate_pair`].

    Returns:
        `list[dict]`: With `before` (X up to L), `last_k`, `target`, `gist` and `gist_shuffled` as text; `document_id`;
        and `same_tokens`, whether the gist's text gives its tokens back.
    """
    lenders = [rows[partner] for partner in other_documents(rows)]
    texts = []
    for row, lender in zip(rows, lenders, strict=True):
        gist, shuffled = (decode(tokenizer, each["gist_ids"]) for each in (row, lender))
        before = before_last_k(seen_ids(row), row["last_k_ids"])
        texts.append(
            {
                "document_id": row["document_id"],
                "before": decode(tokenizer, before, False),
                "last_k": decode(tokenizer, row["last_k_ids"], False),
                "target": decode(tokenizer, row["target_ids"], False),
                "gist": gist,
                "gist_shuffled": shuffled if lender["document_id"] != row["document_id"] else None,
                "same_tokens": literal_ids(tokenizer, gist) == list(row["gist_ids"]),
            }
        )
    return texts


def read_as_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[dict],
    batch_size: int = 8,
    readings: tuple[str, ...] = READINGS,
) -> list[dict]:
    """
    What a reader makes of each target.

    L and the target are tokenised together, once, and what comes before them apart, so that every reading scores the
    same tokens of the target. A token across the seam of L and the target counts as the target's.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its own, a fast one.
        texts (`list[dict]`):
            Of [`as_text`].
        batch_size (`int`, *optional*, defaults to `8`):
            Rows in one forward.
        readings (`tuple[str, ...]`, *optional*, defaults to `READINGS`):
            Which of them.

    Returns:
        `list[dict]`: For each window its `document_id`, `target_bytes`, and for each reading the `{name}_nats`
        of the target, summed over it; `shuffled_nats` is NaN where no other document lends its gist.

    Raises:
        ValueError: if the tokenizer is not a fast one, L is empty and the tokenizer starts a text with no token of its
            own, or a reading has more tokens than the model has positions.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is no fast tokenizer, and does not say where in the text its tokens lie. "
            "Load the reader's with `AutoTokenizer.from_pretrained`, which gives a fast one where there is one."
        )
    bos = GistPrompts.from_tokenizer(tokenizer, "{context}").bos
    found = [{"document_id": text["document_id"], "target_bytes": len(text["target"].encode())} for text in texts]
    for name in readings:
        prompts, targets = zip(*(_tokens(tokenizer, bos, text, _prefix(text, name)) for text in texts), strict=True)
        _check_positions(model, max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True)), name)
        for row, text, log_prob in zip(
            found, texts, target_log_probs(model, prompts, targets, batch_size), strict=True
        ):
            known = name != "shuffled" or text["gist_shuffled"] is not None
            row[f"{name}_nats"] = -log_prob if known else float("nan")
    return found


def read_by_pair(rows: list[dict], texts: list[dict]) -> list[dict]:
    """
    The same of the pair's own generator, which reads the gist's tokens in its own prompt; its `tail` and its `full`
    are those of the frozen teacher, on as many verbatim *tokens* and on all of X.

    Args:
        rows (`list[dict]`):
            Of [`~evaluation.evaluate_pair`].
        texts (`list[dict]`):
            The same windows, of [`as_text`].
    """
    columns = {"none": "null", "gist": "gist", "shuffled": "shuffled", "tail": "tail", "full": "teacher"}
    return [
        {"document_id": row["document_id"], "target_bytes": len(text["target"].encode())}
        | {f"{name}_nats": -row[f"{column}_log_prob"] * len(row["target_ids"]) for name, column in columns.items()}
        for row, text in zip(rows, texts, strict=True)
    ]


def summarize_transfer(readings: list[dict]) -> dict[str, float]:
    """
    Ratios of sums over windows, in nats per byte of the target, with linearised standard errors over documents under
    the same name with `_se`.

    Args:
        readings (`list[dict]`):
            Of [`read_as_text`] or [`read_by_pair`].

    Returns:
        `dict[str, float]`: `{name}` for each of `READINGS`; `gain_over_{name}` of the gist over `none`, `shuffled` and
        `tail`, and `gain_of_full` over `none`, paired over windows; and the counts `windows` and `documents`.
    """
    values = {name: np.array([row[f"{name}_nats"] for row in readings]) for name in READINGS}
    values |= {f"gain_over_{name}": values[name] - values["gist"] for name in ("none", "shuffled", "tail")}
    values["gain_of_full"] = values["none"] - values["full"]
    size = np.array([row["target_bytes"] for row in readings], dtype=float)
    summary, documents = {}, [row["document_id"] for row in readings]
    for name, value in values.items():
        summary[name], summary[f"{name}_se"] = ratio_and_error(value, size, documents)
    return summary | {"windows": len(readings), "documents": len({str(row["document_id"]) for row in readings})}


def transfer_table(summaries: dict[str, dict[str, float]]) -> Table:
    """
    What the gist gains each reader.

    Args:
        summaries (`dict[str, dict[str, float]]`):
            [`summarize_transfer`] of each reader, by its name.
    """
    first = next(iter(summaries.values()))
    title = f"Gain in millinats per byte of the target ± standard error over {first['documents']} documents"
    table = console_table(title, "reader", *GAINS.values(), wrap=True)
    for reader, summary in summaries.items():
        table.add_row(Text(reader), *(measured(summary, name, 1, "+", 1e3) for name in GAINS))
    return table


def _prefix(text, name):
    """What is read before L."""
    if name in ("gist", "shuffled"):
        gist = text["gist" if name == "gist" else "gist_shuffled"]
        return f"{gist}\n" if gist else ""
    if name == "tail":
        count = len(text["gist"].encode())
        # A character cut by the first byte is left out
        return text["before"].encode()[-count:].decode(errors="ignore") if count else ""
    return text["before"] if name == "full" else ""


def _tokens(tokenizer, bos, text, prefix):
    """The prompt's tokens and the target's."""
    encoding = tokenizer(
        text["last_k"] + text["target"],
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    ids, ends = encoding["input_ids"], [end for _, end in encoding["offset_mapping"]]
    first = next(index for index, end in enumerate(ends) if end > len(text["last_k"]))
    prompt = [*bos, *literal_ids(tokenizer, prefix), *ids[:first]]
    if not prompt:
        raise ValueError(
            "A window has an empty `last_k`, and the reader's tokenizer has no token that starts a text: there is "
            "nothing to predict the target's first token from. Leave such windows out."
        )
    return prompt, ids[first:]


def _check_positions(model, length, name):
    positions = max_positions(model)
    if positions is not None and length > positions:
        raise ValueError(
            f"Reading {name!r} takes {length} tokens; the reader has {positions} positions. Cut shorter windows, or "
            "choose another reader."
        )
