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

"""Measures on held-out windows, of which ranks have sampled and scored a share each."""

import math
from collections import defaultdict

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from ..common.tokens import decode
from ..data.windows import window_key
from ..prompts import one_row_each
from ..scoring.controls import add_controls, summarize
from ..scoring.gist_scorer import GistScorer


_END = 16  # tokens of a context that are shown, where its targets have cues of their own


def measure(scorer: GistScorer, rows: list[dict], accelerator: Accelerator) -> tuple[list[dict], dict[str, float]]:
    """
    Adds the controls of [`trl_gist.evaluation`] to scored rows. All ranks call it, with their own.

    Args:
        scorer ([`GistScorer`]):
            Scores what the controls have in a gist's place.
        rows (`list[dict]`):
            What this rank has scored; each target of a context is measured as a row of its own. Data-parallel samplers
            repeat some windows to fill their last batch; each counts once.
        accelerator ([`~accelerate.Accelerator`]):
            Of the trainer.

    Returns:
        The rows of all ranks with their controls, and the measures, each with its standard error; where contexts have
        several targets `windows` counts these and `contexts` the contexts, and there are the same measures by their kind,
        as `fact/nll_gist`, and of walks by their age, as `age_2/nll_gist`.
    """
    rows = [
        {**one, **score} for row in rows for one, score in zip(one_row_each(row), row["target_scores"], strict=True)
    ]
    rows = list(
        {(str(row["document_id"]), row["kind"], *window_key(row)): row for row in gather_object(rows)}.values()
    )
    # Under ZeRO-3 each rank must run as many forwards as the others: the last ones score the first rows once more
    share = math.ceil(len(rows) / accelerator.num_processes)
    start = share * accelerator.process_index
    mine = [(start + index) % len(rows) for index in range(share)]
    add_controls(scorer, rows, mine)
    rows = gather_object([rows[index] for index in mine])[: len(rows)]
    measures, groups = summarize(rows), defaultdict(list)
    if any("window_targets" in row for row in rows):
        measures["contexts"] = len({(str(row["document_id"]), tuple(row["context_ids"])) for row in rows})
        for row in rows:
            groups[row["kind"]].append(row)
            if "target_age" in row:
                groups[f"age_{row['target_age']}"].append(row)
    for group, members in sorted(groups.items()):
        measures |= {f"{group}/{name}": value for name, value in summarize(members).items()}
    return rows, measures


def readable_gists(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """Three gists, spread over the rows, with the last tokens of their contexts."""
    if "window_targets" in rows[0]:  # the targets of a context have one gist
        rows = list({tuple(row["context_ids"]): row for row in rows}.values())
    step = max(1, len(rows) // 3)
    return [
        {"context_end": decode(tokenizer, _end(row), False), "gist": decode(tokenizer, row["gist_ids"])}
        for row in rows[::step][:3]
    ]


def _end(row):
    return row["context_ids"][-_END:] if "window_targets" in row else row["last_k_ids"]
