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

"""The log-prob that the summarizer gives to a gist, or to each of its tokens, at temperature 1, in nats."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ..models.lm_head import check_logits
from .targets import target_log_probs


def written_log_probs(logits_TNV: tuple[torch.Tensor, ...], gists: list[list[int]]) -> list[list[float]]:
    """
    The log-prob of each token of gists, from the logits that they were written from. Step by step, since all steps'
    logits at once would double their memory.

    Args:
        logits_TNV (`tuple[torch.Tensor]` of shape `(rows, vocabulary)`):
            For each step those of all rows.
        gists (`list[list[int]]`):
            Token ids, a gist a row.
    """
    log_probs = [[] for _ in gists]
    for position, logits_NV in enumerate(logits_TNV):
        rows = [row for row, gist in enumerate(gists) if position < len(gist)]
        tokens_N = torch.tensor([gists[row][position] for row in rows], device=logits_NV.device, dtype=torch.long)
        steps_N = logits_NV[rows].float().log_softmax(-1).gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)
        for row, log_prob in zip(rows, steps_N.tolist(), strict=True):
            log_probs[row].append(log_prob)
    return log_probs


def given_log_probs(
    summarizer: PreTrainedModel | PeftModel, prompts: list[list[int]], gists: list[list[int]]
) -> list[float]:
    """The log-prob of each gist that S did not write, or not so, summed over its tokens, in nats. Raises `ValueError`
    if S caps its logits in a way that scoring does not know."""
    check_logits(summarizer)
    return target_log_probs(summarizer, prompts, gists, batch_size=len(prompts))
