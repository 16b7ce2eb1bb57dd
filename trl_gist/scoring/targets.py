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

"""The tokens to predict, packed into rows, and a model's hidden states turned into their log-probs."""

from dataclasses import dataclass

import torch
from torch import nn

from ..models.lm_head import log_softmax, output_logits, target_scores
from ..models.roles import backbone_of, base_of


@dataclass
class TargetRows:
    """
    A batch of prompts, each followed by its target: every target once for each gist.

    Rows are padded on the right, so that no attention mask is needed: causal attention never looks right, and the
    hidden states of padding are never read.

    Attributes:
        input_ids_NS (`torch.LongTensor` of shape `(rows, sequence)`):
            Prompt, target, padding.
        positions_NT (`torch.LongTensor` of shape `(rows, target positions)`):
            Where each target token is predicted: the position before it.
        target_ids_NT (`torch.LongTensor` of shape `(rows, target positions)`):
            The targets, padded with 0.
        mask_NT (`torch.BoolTensor` of shape `(rows, target positions)`):
            True at real target tokens.
        real_U (`torch.LongTensor` of shape `(target tokens,)`):
            Where in `(targets, target positions)`, flattened, they are. With it no shape depends on what a tensor holds.
        gists (`int`):
            Adjacent rows that have the same target.
    """

    input_ids_NS: torch.Tensor
    positions_NT: torch.Tensor
    target_ids_NT: torch.Tensor
    mask_NT: torch.Tensor
    real_U: torch.Tensor
    gists: int

    @classmethod
    def build(cls, prompts: list[list[int]], targets: list[list[int]], gists: int, device) -> "TargetRows":
        rows, length = len(prompts), max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
        width = max(len(target) for target in targets)
        input_ids_NS = torch.zeros(rows, length, dtype=torch.long)
        positions_NT = torch.zeros(rows, width, dtype=torch.long)
        target_ids_NT = torch.zeros(rows, width, dtype=torch.long)
        mask_NT = torch.zeros(rows, width, dtype=torch.bool)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            input_ids_NS[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
            positions_NT[row, : len(target)] = torch.arange(len(prompt) - 1, len(prompt) + len(target) - 1)
            target_ids_NT[row, : len(target)] = torch.tensor(target)
            mask_NT[row, : len(target)] = True
        real_U = mask_NT[::gists].flatten().nonzero().squeeze(1)
        tensors = (input_ids_NS, positions_NT, target_ids_NT, mask_NT, real_U)
        return cls(*(tensor.to(device) for tensor in tensors), gists)


class TargetScorer(nn.Module):
    """
    Scores targets under a model; only the hidden states at the target's positions ever reach the LM head.

    It is a module around the model, so that data-parallel wrappers see one forward with all of the loss inside.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self,
        rows: TargetRows,
        teacher_hidden_UH: torch.Tensor | None = None,
        teacher: "TargetScorer | None" = None,
        loss: str = "forward_kl",
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            rows ([`TargetRows`]):
                Prompts and targets.
            teacher_hidden_UH (`torch.Tensor` of shape `(target tokens, teacher hidden)`, *optional*):
                The teacher's hidden states at the tokens of the different targets, one after the other.
            teacher ([`TargetScorer`], *optional*):
                Whose LM head turns them into the teacher's distribution.
            loss (`str`, *optional*, defaults to `"forward_kl"`):
                `"forward_kl"`, `"reverse_kl"`, `"jsd"` or `"cross_entropy"`; see [`~models.lm_head.target_scores`].

        Returns:
            `logps_NT`, log p(Y_t | ·), and `kl_NT`, KL(teacher ‖ model) over the full vocabulary (0 without a
            teacher), whatever the loss is; and `loss_NT`, which alone carries a gradient. All in nats, 0 where
            `rows.mask_NT` is False.
        """
        hidden_NTH = self.hidden_states(rows)
        hidden_UGH = hidden_NTH.unflatten(0, (-1, rows.gists)).transpose(1, 2).flatten(0, 1)[rows.real_U]
        target_ids_U = rows.target_ids_NT[:: rows.gists].flatten()[rows.real_U]
        teacher_log_probs = None if teacher is None else teacher.log_probs
        scores = target_scores(
            base_of(self.model), hidden_UGH, target_ids_U, teacher_log_probs, teacher_hidden_UH, loss
        )
        return tuple(_to_rows(score_UG, rows) for score_UG in scores)

    def hidden_states(self, rows: TargetRows) -> torch.Tensor:
        """Hidden states of shape `(rows, target positions, hidden)` from which the targets are predicted."""
        backbone = backbone_of(base_of(self.model))
        hidden_NSH = backbone(input_ids=rows.input_ids_NS, use_cache=False).last_hidden_state
        index = rows.positions_NT.unsqueeze(-1).expand(-1, -1, hidden_NSH.shape[-1])
        return hidden_NSH.gather(1, index)

    def log_probs(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of shape `(positions, vocabulary)`, in float32 or better, without a gradient."""
        with torch.no_grad():
            return log_softmax(output_logits(base_of(self.model), hidden_PH))


def _to_rows(score_UG, rows):
    """Scores of target tokens as `(rows, target positions)`, 0 where there is no token."""
    score_PG = score_UG.new_zeros(rows.mask_NT.numel() // rows.gists, rows.gists)
    score_DTG = score_PG.index_copy(0, rows.real_U, score_UG).unflatten(0, (-1, rows.mask_NT.shape[1]))
    return score_DTG.transpose(1, 2).flatten(0, 1)
