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

"""What the benchmarks share that read one gist of each kind at every window."""

from trl_gist import GistCompactor
from trl_gist.data.documents import load_documents
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer

import numpy as np
import torch
from rich.progress import track
from transformers import PreTrainedModel


GENERATOR_ROWS = 16  # in one forward


def one_window_each(compactor: GistCompactor, dataset: str, split: str, documents: int) -> list[dict]:
    """The first window of each of the first documents, cut as the pair's were."""
    pair = compactor.pair
    spec = WindowSpec(pair.context_length, pair.target_length, pair.last_k, None, max_windows_per_document=1)
    texts = load_documents(dataset, split=split)
    windows, _ = prepare_windows(texts.take(min(documents, len(texts))), compactor.tokenizer, spec)
    return list(windows)


def read(
    scorer: GistScorer, rows: list[dict], gists: dict[str, list], readers: dict[str, TargetScorer] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        scorer ([`GistScorer`]):
            The teacher, the prompts, and the generator that reads what has no reader.
        rows (`list[dict]`):
            Windows.
        gists (`dict[str, list]`):
            By kind, a gist of each window.
        readers (`dict[str, TargetScorer]`, *optional*):
            By kind, who reads its gists.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: KL from the teacher and NLL of the target, of shape `(kinds, windows)`, in
        nats per token.
    """
    kl_MN, nll_MN = np.empty((2, len(gists), len(rows)))
    for start in track(range(0, len(rows), GENERATOR_ROWS), "Reading"):
        chunk = slice(start, start + GENERATOR_ROWS)
        teacher_hidden, _ = scorer.read_contexts(rows[chunk])
        for kind, (name, of_kind) in enumerate(gists.items()):
            prompts = [
                scorer.prompts.generator(gist, row["last_k_ids"])
                for gist, row in zip(of_kind[chunk], rows[chunk], strict=True)
            ]
            model = (readers or {}).get(name, scorer.generator)
            for offset, (logps_T, kl_T, _) in enumerate(scorer.read(model, rows[chunk], prompts, teacher_hidden)):
                kl_MN[kind, start + offset] = kl_T.mean().item()
                nll_MN[kind, start + offset] = -logps_T.mean().item()
    return kl_MN, nll_MN


def imagine(teacher: PreTrainedModel, row: dict, count: int) -> list[dict]:
    """The window with targets that the teacher samples."""
    length = len(row["target_ids"])
    ids_1X = torch.tensor([row["context_ids"]], device=teacher.device)
    ids_NS = teacher.generate(
        ids_1X,
        attention_mask=torch.ones_like(ids_1X),
        do_sample=True,
        top_k=0,
        num_return_sequences=count,
        min_new_tokens=length,
        max_new_tokens=length,
    )
    return [{**row, "target_ids": ids} for ids in ids_NS[:, -length:].tolist()]
