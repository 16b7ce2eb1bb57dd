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
The trained summarizer against other compressors: the same windows, the same readers, the same number of tokens.

Every window gives each compressor a budget of as many tokens as the trained summarizer's gist has. A gist is read by

    teacher         the frozen T, as plain text before L: what the gist is worth to a model that never saw gists
    generator       the co-trained G, through its own prompt: what it is worth to the model that was taught to read S's
    own generator   where there is one, a G that was taught to read this compressor's gists for as long: the fair test

and beside them "no gist", L alone. The log-probs are held against T on the whole context, and, paired by window,
against the trained summarizer.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from ...common.statistics import ratio_and_error, standard_error
from ...common.tokens import decode
from ...prompts import stands_for
from ...scoring.controls import not_continued
from ...scoring.gist_scorer import GistScorer
from ...scoring.targets import TargetScorer
from ..compressors import Compressor
from ..compressors.base import compress_within


NO_GIST, TRAINED = "no gist", "trained summarizer"
TEACHER, GENERATOR, OWN_GENERATOR = READERS = ("teacher", "generator", "own generator")


def compare_compressors(
    scorer: GistScorer,
    rows: Iterable[dict],
    compressors: dict[str, Compressor | str],
    tokenizer: PreTrainedTokenizerBase,
    own_generators: dict[str, nn.Module] | None = None,
    batch_size: int = 32,
) -> list[dict]:
    """
    Has every reader read every compressor's gist of every window.

    Args:
        scorer ([`GistScorer`]):
            The co-trained generator, the teacher and the prompts.
        rows (`Iterable[dict]`):
            Windows with `context_ids`, `last_k_ids`, `target_ids`, `document_id` and the trained summarizer's
            `gist_ids`, as of [`evaluate_pair`]. A stream is read once.
        compressors (`dict[str, Compressor | str]`):
            By name; or why there is none, which goes into the result.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The pair's.
        own_generators (`dict[str, nn.Module]`, *optional*):
            By a compressor's name, a generator that was distilled on its gists.
        batch_size (`int`, *optional*, defaults to `32`):
            Windows in memory at once. Those in one forward are the scorer's to say.

    Returns:
        `list[dict]`: For each window, compressor and reader: `compressor`, `reader`, `window` (its number),
        `document_id`; in nats per target token `log_prob`, `teacher_log_prob` (on the whole context) and `kl` from the
        teacher; `budget` and `tokens` of the gist, `bytes` of its text, `gist_rate` = tokens / |X|, and the `gist`;
        of rows that are one of several targets ([`~prompts.one_row_each`]) also the `kind`, and `exact`, whether every
        token is the reader's likeliest. Those of one context are read with the same gist.
        For each missing compressor a row of `compressor` and `unavailable`, the reason.

    Raises:
        ValueError: if a generator is of no compressor, or a compressor breaks its budget.
    """
    own_generators = {name: TargetScorer(model) for name, model in (own_generators or {}).items()}
    unknown = [name for name in own_generators if isinstance(compressors.get(name, ""), str)]
    if unknown:
        raise ValueError(
            f"`own_generators` has {unknown}, which `compressors` does not; it has {sorted(compressors)}."
        )
    results = [
        {"compressor": name, "unavailable": value} for name, value in compressors.items() if isinstance(value, str)
    ]
    compressors = {name: value for name, value in compressors.items() if not isinstance(value, str)}
    rows, windows = iter(rows), 0
    while batch := list(itertools.islice(rows, batch_size)):
        teacher_hidden, teacher_log_probs = scorer.read_contexts(batch)
        for name, budgets, gists in _gists_of_all(scorer, batch, compressors):
            shared = [
                {
                    "compressor": name,
                    "window": windows + index,
                    "document_id": row["document_id"],
                    "teacher_log_prob": log_prob,
                    "budget": budget,
                    "tokens": len(gist),
                    "bytes": len(decode(tokenizer, gist).encode()),
                    "gist_rate": len(gist) / len(row["context_ids"]),
                    "gist": decode(tokenizer, gist),
                    **({"kind": row["kind"]} if "window_targets" in row else {}),
                }
                for index, (row, gist, budget, log_prob) in enumerate(
                    zip(batch, gists, budgets, teacher_log_probs, strict=True)
                )
            ]
            for reader, model, prompts in _readers_of(scorer, batch, gists, own_generators.get(name)):
                readings = scorer.read(model, batch, prompts, teacher_hidden)
                for values, (logps_T, kl_T, greedy_T) in zip(shared, readings, strict=True):
                    exact = {"exact": bool(greedy_T.all())} if "kind" in values else {}
                    means = {"log_prob": logps_T.mean().item(), "kl": kl_T.mean().item()}
                    results.append({**values, "reader": reader, **means, **exact})
        windows += len(batch)
    return results


def summarize_comparison(rows: list[dict]) -> list[dict]:
    """
    Means over windows, with standard errors over documents under the same name with `_se`.

    Args:
        rows (`list[dict]`):
            Of [`compare_compressors`].

    Returns:
        `list[dict]`: For each compressor and reader, in nats per target token: `nll`, `lost` = NLL − NLL of the
        teacher on the whole context, `kl`, and `behind_trained` = NLL − NLL of the trained summarizer's gist with the
        same reader, paired by window, which is above 0 where the trained summarizer is better (an own generator's
        against the co-trained one's); `tokens`, `bytes` and `gist_rate`, means alone; `windows` and `documents`; and
        `exact`, of targets of other kinds than the continuation, where there are any.
        Missing compressors come last, as they are.
    """
    groups = {}
    for row in rows:
        if "unavailable" not in row:
            groups.setdefault((row["compressor"], row["reader"]), {})[row["window"]] = row
    summary = []
    for (compressor, reader), by_window in groups.items():
        trained = groups[TRAINED, co_trained(reader)]
        documents = [row["document_id"] for row in by_window.values()]
        columns = {
            "nll": [-row["log_prob"] for row in by_window.values()],
            "lost": [row["teacher_log_prob"] - row["log_prob"] for row in by_window.values()],
            "kl": [row["kl"] for row in by_window.values()],
            "behind_trained": [trained[window]["log_prob"] - row["log_prob"] for window, row in by_window.items()],
        }
        measures = {"compressor": compressor, "reader": reader}
        for name, values in columns.items():
            measures |= {name: float(np.mean(values)), f"{name}_se": standard_error(values, documents)}
        others = not_continued(list(by_window.values()))
        if others.any():
            exact = np.array([row["exact"] for row in by_window.values()], dtype=float)
            measures["exact"], measures["exact_se"] = ratio_and_error(exact * others, others, documents)
        for name in ("tokens", "bytes", "gist_rate"):
            measures[name] = float(np.mean([row[name] for row in by_window.values()]))
        summary.append(measures | {"windows": len(documents), "documents": len(set(documents))})
    return summary + [row for row in rows if "unavailable" in row]


def co_trained(reader: str) -> str:
    """Who reads the trained summarizer's gists where a reader reads a compressor's."""
    return GENERATOR if reader == OWN_GENERATOR else reader


def _gists_of_all(scorer, batch, compressors) -> Iterator[tuple[str, list[int], list[list[int]]]]:
    """Name, budgets and gists of each compressor on a batch of windows."""
    trained = [scorer.prompts.without_special(row["gist_ids"]) for row in batch]
    budgets = [len(gist) for gist in trained]  # special tokens never reach a reader, and buy nothing
    yield NO_GIST, [0] * len(batch), [[] for _ in batch]
    yield TRAINED, budgets, trained
    contexts = [stands_for(row) for row in batch]
    once = any("window_targets" in row for row in batch)  # several targets of a context have one gist
    for name, compressor in compressors.items():
        yield name, budgets, compress_within(name, compressor, contexts, budgets, scorer.prompts.special_ids, once)


def _readers_of(scorer, batch, gists, own_generator):
    """Name, model and prompts of everyone who reads these gists."""
    last_k = [row["last_k_ids"] for row in batch]
    plain = [scorer.prompts.plain([*gist, *ids]) for gist, ids in zip(gists, last_k, strict=True)]
    prompted = [scorer.prompts.generator(gist, ids) for gist, ids in zip(gists, last_k, strict=True)]
    yield TEACHER, scorer.teacher, plain
    yield GENERATOR, scorer.generator, prompted
    if own_generator is not None:
        yield OWN_GENERATOR, own_generator, prompted
