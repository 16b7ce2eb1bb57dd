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

"""The full-context reference of a walk: the frozen teacher on all text so far, read once, with a cache that grows."""

import torch
from transformers import DynamicCache

from ...common.geometry import WindowedText
from ...models.positions import becomes_long, max_positions
from ...models.roles import backbone_of, base_of
from ...prompts import GistPrompts
from ...scoring.targets import TargetScorer


def full_context_hidden(
    teacher: TargetScorer, prompts: GistPrompts, document: WindowedText, windows: int
) -> list[torch.Tensor]:
    """
    The teacher's hidden states at each window's target, after all text before it.

    The document passes through the teacher once, a chunk at a time; of what it reads only the states at targets are
    kept, and the cache is dropped at the end.

    Args:
        teacher ([`~scoring.targets.TargetScorer`]):
            The frozen T.
        prompts ([`~prompts.GistPrompts`]):
            For what stands before a plain text.
        document ([`~common.geometry.WindowedText`]):
            A document.
        windows (`int`):
            How many windows.

    Returns:
        `list[torch.Tensor]`: Of shape `(target positions, hidden)`, for as many windows as fit T's positions.
    """
    base = base_of(teacher.model)
    positions, cache = max_positions(base), DynamicCache(config=base.config)
    text, geometry = prompts.plain(document.ids), document.geometry
    read, hidden, newest_TH = 0, [], None
    for window in range(windows):
        # At most, so that all documents have as many
        if positions is not None and len(prompts.bos) + geometry.length(window + 1) > positions:
            break
        # The last token of the target predicts nothing that is asked for
        stop = len(prompts.bos) + document.end(window) - 1
        if becomes_long(base.config, read, stop):
            read, cache = 0, DynamicCache(config=base.config)
        piece_1S = torch.tensor([text[read:stop]], device=base.device)
        with torch.no_grad():
            output = backbone_of(base)(input_ids=piece_1S, past_key_values=cache, use_cache=True)
        states_SH = output.last_hidden_state[0]
        # Where targets are longer than chunks, a target began in an earlier piece
        states_SH = states_SH if newest_TH is None else torch.cat((newest_TH, states_SH))
        newest_TH = states_SH[-geometry.target_length :].clone()
        hidden.append(newest_TH[-len(document.target(window)) :])
        read = stop
    return hidden


def teacher_log_probs(
    teacher: TargetScorer, hidden: list[torch.Tensor], targets: list[list[int]]
) -> list[torch.Tensor]:
    """Log-prob of each target's tokens, in nats, from what [`full_context_hidden`] gave; float64, on the CPU."""
    logps = []
    for hidden_TH, target in zip(hidden, targets, strict=True):
        target_T1 = torch.tensor(target, device=hidden_TH.device).unsqueeze(-1)
        logps.append(teacher.log_probs(hidden_TH).gather(-1, target_T1).squeeze(-1).double().cpu())
    return logps
