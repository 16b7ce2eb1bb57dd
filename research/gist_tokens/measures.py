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
Gist tokens held against text: how far each reader of a compressed context is from the teacher, and what it keeps.

A *reader* is whatever predicts Y from L and what is left of X: gist tokens, their controls, a text pair's generator,
the teacher on L alone. Each gives rows of the same columns, one for each window:

    teacher_kl          mean over Y of KL(teacher on the whole X ‖ reader), nats
    log_prob            mean log-prob of Y, nats
    continuation        greedy, as text; rouge_l is its ROUGE-L F1 against the teacher's own after the whole X
    kept_tokens         positions kept of X, beside L
    kv_bytes            of their keys and values, while they are read
    text_bytes          of the gist in UTF-8, which is all that must be stored or sent; None where there is no text

ROUGE-L is over word stems, as in [the paper](https://huggingface.co/papers/2304.08467), which reports it for answers
to instructions. Here it is between two models' continuations of running text, which part ways at the first word that
differs: its values are not to be compared with the paper's.
"""

import copy
import math
import os

from trl_gist.common.statistics import measured, standard_error
from trl_gist.common.tables import console_table
from trl_gist.evaluation.pages.plots import GIST, NEUTRAL, NULL, save_figure
from trl_gist.models.generation import greedy_continuations
from trl_gist.models.lm_head import target_scores
from trl_gist.models.roles import base_of
from trl_gist.scoring.gist_scorer import GistScorer

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from research.gist_tokens.model import GistTokenModel


_CLOSE = ("teacher_kl", "kl_gain_over_negative", "nll", "gain_over_negative", "rouge_l")


def read_gist_tokens(
    model: GistTokenModel, windows: list[dict], scorer: GistScorer, tokenizer: PreTrainedTokenizerBase, track=iter
) -> list[dict]:
    """
    Scores the targets under a model of gist tokens, and continues each window; both from its compressed context alone.

    Args:
        model ([`GistTokenModel`]):
            In any condition.
        windows (`list[dict]`):
            With `context_ids`, `last_k_ids` (not empty), `target_ids` and `document_id`.
        scorer ([`GistScorer`]):
            Of the teacher; its `batch_size` is the rows of one forward.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes continuations.
        track (`Callable`, *optional*):
            Wraps the list of batches to show progress, as [`~tqdm.tqdm`].

    Returns:
        `list[dict]`: A row for each window, without `rouge_l`; see [`add_rouge_l`].
    """
    rows = []
    for start in track(range(0, len(windows), scorer.batch_size)):
        batch = windows[start : start + scorer.batch_size]
        contexts, hidden_D = model.compress(batch), scorer.read_contexts(batch)[0]
        kept, nbytes = contexts.real_NC.sum(1).tolist(), contexts.nbytes / contexts.real_NC.numel()
        logps, kl = _score_evicted(model, copy.deepcopy(contexts), batch, torch.cat(hidden_D), scorer)
        lengths = [len(row["target_ids"]) for row in batch]
        written = model.continue_from(contexts, [row["last_k_ids"] for row in batch], max(lengths))
        for index, (row, length) in enumerate(zip(batch, lengths, strict=True)):
            continuation = tokenizer.decode(written[index][:length])
            of_row = (values[index].double().mean().item() for values in (kl, logps))
            rows.append(_row(row, *of_row, continuation, kept[index], round(kept[index] * nbytes)))
    return rows


def read_prompts(
    reader: torch.nn.Module,
    windows: list[dict],
    prompts: list[list[int]],
    scorer: GistScorer,
    tokenizer: PreTrainedTokenizerBase,
    kept_ids: list[list[int]],
    readable: bool = True,
) -> list[dict]:
    """
    The same rows for a reader of plain tokens.

    Args:
        reader ([`TargetScorer`]):
            The teacher, or a pair's generator.
        windows, scorer, tokenizer:
            As in [`read_gist_tokens`].
        prompts (`list[list[int]]`):
            What the reader reads before each target.
        kept_ids (`list[list[int]]`):
            The part of each prompt that stands for X, beside L: the gist.
        readable (`bool`, *optional*, defaults to `True`):
            Whether it is a text: false where nothing is kept.
    """
    hidden_D, _ = scorer.read_contexts(windows)
    readings = scorer.read(reader, windows, prompts, hidden_D)
    lengths = [len(row["target_ids"]) for row in windows]
    written = greedy_continuations(reader.model, prompts, max(lengths), tokenizer, scorer.batch_size)
    rows = []
    for row, (logps_T, kl_T, _), ids, length, kept in zip(windows, readings, written, lengths, kept_ids, strict=True):
        nbytes = kv_bytes(reader.model.config, len(kept), reader.model.dtype)
        text = len(tokenizer.decode(kept).encode()) if readable else None
        continuation = tokenizer.decode(ids[:length])
        rows.append(_row(row, kl_T.mean().item(), logps_T.mean().item(), continuation, len(kept), nbytes, text))
    return rows


def add_rouge_l(rows: list[dict], references: list[str]):
    """Adds `rouge_l` to rows in place: ROUGE-L F1 of each continuation against a reference, between 0 and 1."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for row, reference in zip(rows, references, strict=True):
        row["rouge_l"] = scorer.score(reference, row["continuation"])["rougeL"].fmeasure


def kv_bytes(config: PreTrainedConfig, positions: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of positions: positions × layers × 2 × key heads × head size × bytes a number."""
    config = config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return positions * config.num_hidden_layers * 2 * key_heads * head_size * dtype.itemsize


def summarize_reader(name: str, kind: str, rows: list[dict], negative: list[dict] | None = None) -> dict:
    """
    Means over windows, with standard errors over documents under the same name with `_se`.

    Args:
        name (`str`):
            What tables call the reader.
        kind (`str`):
            A condition of [`GistTokenModel`], or `"text"`, `"null"`, `"last_k"`, `"full"`.
        rows (`list[dict]`):
            Of [`read_gist_tokens`] or [`read_prompts`], after [`add_rouge_l`].
        negative (`list[dict]`, *optional*):
            Rows of its negative control on the same windows: adds `gain_over_negative`, NLL(negative) − NLL, and
            `kl_gain_over_negative`, KL(negative) − KL, both paired over windows.
    """
    documents = [row["document_id"] for row in rows]

    def column(rows, column):
        return np.array([row[column] for row in rows], dtype=float)

    values = {name: column(rows, name) for name in ("teacher_kl", "rouge_l", "kept_tokens", "kv_bytes")}
    values["nll"] = -column(rows, "log_prob")
    if rows[0]["text_bytes"] is not None:
        values["text_bytes"] = column(rows, "text_bytes")
    if negative is not None:
        if [row["document_id"] for row in negative] != documents:
            raise ValueError(f"{name} and its negative control were not read on the same windows; read both again.")
        values["gain_over_negative"] = column(rows, "log_prob") - column(negative, "log_prob")
        values["kl_gain_over_negative"] = column(negative, "teacher_kl") - column(rows, "teacher_kl")
    measures = {"name": name, "kind": kind, "windows": len(rows), "documents": len(set(documents))}
    for column_name, column_values in values.items():
        measures[column_name] = float(column_values.mean())
        measures[f"{column_name}_se"] = standard_error(column_values, documents)
    # Text moves to any model that reads it, and nothing kept needs no moving; keys and values fit their own model only
    return measures | {"readable": "text_bytes" in values, "movable": "text_bytes" in values}


def gist_tokens_tables(readers: list[dict]) -> tuple[Table, Table]:
    """Of readers, each of [`summarize_reader`]: how close they are to the teacher, and what they keep of X."""
    first = readers[0]
    lower, kept = "lower than\nnegative by", ("positions", "KV bytes", "bytes as text", "readable", "movable")
    close = console_table(
        f"{first['windows']} windows of {first['documents']} unseen documents, nats per target token\n"
        "± standard error over documents",
        *("L is read after", "KL(T‖·)", lower, "NLL", lower, "ROUGE-L"),
    )
    costs = console_table("What is kept of the context, beside L", "L is read after", *kept)
    for reader in readers:
        style = "bold" if reader["kind"] in ("gist", "text") else None
        close.add_row(reader["name"], *(measured(reader, name) for name in _CLOSE), style=style)
        costs.add_row(
            reader["name"],
            f"{reader['kept_tokens']:.1f}".removesuffix(".0"),
            f"{reader['kv_bytes']:,.0f}",
            f"{reader['text_bytes']:,.0f}" if "text_bytes" in reader else "–",
            *(
                "–" if not reader["kept_tokens"] else "yes" if reader[name] else "no"
                for name in ("readable", "movable")
            ),
            style=style,
        )
    return close, costs


def plot_gist_tokens(readers: list[dict], path: str | os.PathLike):
    """
    Draws KL against the positions kept, with the readers that keep none, or all, as lines; and how much lower it is
    than the negative control's (of a text gist: an empty gist's), paired over windows.

    Args:
        readers (`list[dict]`):
            Of [`summarize_reader`].
        path (`str` or `os.PathLike`):
            Where to write it, without a suffix: a PNG and an SVG.
    """
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    kl, gain = figure.subplots(1, 2)
    _draw(kl, readers, "gist", "teacher_kl", "gist tokens", GIST, 0.97)
    _draw(kl, readers, "negative", "teacher_kl", "negative control", NULL, 1.03)
    _draw(kl, readers, "text", "teacher_kl", "text gist", "black")
    _draw_lines(kl, [reader for reader in readers if reader["kind"] not in ("gist", "negative", "text")])
    _draw(gain, readers, "gist", "kl_gain_over_negative", "gist tokens, over their negative control", GIST)
    _draw(gain, readers, "text", "kl_gain_over_negative", "text gist, over an empty one", "black")
    gain.axhline(0, color="black", linewidth=0.8)
    kl.set_ylim(bottom=0)
    ticks = sorted({round(r["kept_tokens"]) for r in readers if r["kind"] in ("gist", "negative", "text")})
    for axis, title, ylabel in (
        (kl, "Distance to the teacher that saw all of X", "KL(teacher ‖ reader), nats per token"),
        (gain, "What it knows of X", "KL lower than the control's by, nats per token"),
    ):
        axis.set_xscale("log")
        axis.set_xlim(0.8 * ticks[0], 1.25 * ticks[-1])
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("positions kept of the context, tokens", fontsize=9)
        axis.set_ylabel(ylabel, fontsize=9)
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        # Not labels at the curves: they cross, and where depends on the run
        axis.legend(
            frameon=False, fontsize=8.5, loc="lower right" if axis is gain else "lower left", borderaxespad=1.5
        )
    figure.suptitle("± standard error over documents", fontsize=8.5, color=NEUTRAL, x=0.99, ha="right")
    save_figure(figure, path)


def _draw(axis, readers, kind, name, label, color, shift=1.0):
    """A curve; shifted sideways, so that error bars do not hide each other."""
    curve = sorted(
        (reader for reader in readers if reader["kind"] == kind and name in reader), key=lambda r: r["kept_tokens"]
    )
    if not curve:
        return
    x, y, error = ([r[column] for r in curve] for column in ("kept_tokens", name, f"{name}_se"))
    x = [shift * value for value in x]
    style = "s" if kind == "text" else "o-"
    axis.errorbar(x, y, error, fmt=style, color=color, capsize=3, markersize=5, linewidth=1.3, label=label)


def _draw_lines(axis, readers):
    """Readers that no number of positions belongs to, named at the right edge, each clear of the one below."""
    gap, lowest = 0.05 * max((reader["teacher_kl"] for reader in readers), default=0.0), -math.inf
    for reader in sorted(readers, key=lambda reader: reader["teacher_kl"]):
        axis.axhline(reader["teacher_kl"], color=NEUTRAL, linewidth=0.9, linestyle="--", zorder=0)
        lowest = max(reader["teacher_kl"], lowest + gap)
        axis.annotate(
            reader["name"], (1.0, lowest), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=8, color=NEUTRAL, annotation_clip=False,
        )  # fmt: skip


@torch.no_grad()
def _score_evicted(model, contexts, windows, teacher_hidden_UH, scorer):
    """Log-probs and KLs of each window's target tokens, from no more than what is kept of its X'."""
    rows = model.rows(windows)
    hidden_NSH = model.extend(contexts, rows.input_ids_NS, torch.ones_like(rows.input_ids_NS, dtype=torch.bool))
    hidden_UH = hidden_NSH.gather(1, rows.positions_NT.unsqueeze(-1).expand(-1, -1, hidden_NSH.shape[-1]))[
        rows.mask_NT
    ]
    logps_U1, kl_U1, *_ = target_scores(
        base_of(model.model),
        hidden_UH.unsqueeze(1),
        rows.target_ids_NT[rows.mask_NT],
        scorer.teacher.log_probs,
        teacher_hidden_UH,
    )
    lengths = rows.mask_NT.sum(1).tolist()
    return logps_U1.squeeze(1).split(lengths), kl_U1.squeeze(1).split(lengths)


def _row(window, kl, log_prob, continuation, kept_tokens, nbytes, text_bytes=None):
    return {
        "document_id": window["document_id"],
        "teacher_kl": kl,
        "log_prob": log_prob,
        "continuation": continuation,
        "kept_tokens": kept_tokens,
        "kv_bytes": nbytes,
        "text_bytes": text_bytes,
    }
