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

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from ..common.arguments import token_ids
from ..models.lm_head import log_softmax, output_logits, target_scores
from ..models.positions import turn_each_row_alone, turned_alike
from ..models.roles import backbone_of, base_of, number_of_experts
from ..models.shared_prefix import attention_masks


_PROMPT, _PADDING = -1, -2  # beside the numbers of a row's targets


@dataclass
class TargetRows:
    """
    A batch of prompts, each followed by its targets: those of a context once for each gist.

    One target goes on where its prompt ends, and rows are padded on the right, so that no attention mask is needed:
    causal attention never looks right, and the hidden states of padding are never read. Several stand side by side in
    one row, each after its cue, and see the prompt and themselves; positions restart where the prompt ends:

        prompt | cue₁ target₁ | cue₂ target₂ | …

    A target may see the beginning of the prompt only, as the text up to its window of a walk, and then goes on from there.

    Attributes:
        input_ids_NS (`torch.LongTensor` of shape `(rows, sequence)`):
            Prompt, targets, padding.
        positions_NT (`torch.LongTensor` of shape `(rows, target positions)`):
            Where each target token is predicted: at the token before it.
        target_ids_NT (`torch.LongTensor` of shape `(rows, target positions)`):
            A row's targets one after the other, padded with 0.
        mask_NT (`torch.BoolTensor` of shape `(rows, target positions)`):
            True at real target tokens.
        real_U (`torch.LongTensor` of shape `(target tokens,)`):
            Where in `(contexts, target positions)`, flattened, they are. With it no shape depends on what a tensor holds.
        gists (`int`):
            Adjacent rows that have the same targets.
        real_NS (`torch.BoolTensor` of shape `(rows, sequence)`, *optional*):
            False at padding.
        position_ids_NS (`torch.LongTensor` of shape `(rows, sequence)`, *optional*):
            Where a row has several targets, the position of each token.
        visible_NSS (`torch.BoolTensor` of shape `(rows, sequence, sequence)`, *optional*):
            Where it does, which token (last axis) each token sees.
    """

    input_ids_NS: torch.Tensor
    positions_NT: torch.Tensor
    target_ids_NT: torch.Tensor
    mask_NT: torch.Tensor
    real_U: torch.Tensor
    gists: int
    real_NS: torch.Tensor | None = field(default=None, kw_only=True)
    position_ids_NS: torch.Tensor | None = field(default=None, kw_only=True)
    visible_NSS: torch.Tensor | None = field(default=None, kw_only=True)

    @classmethod
    def build(cls, prompts: list[list[int]], targets: list[list[int]], gists: int, device) -> "TargetRows":
        """Rows with one target each, right after its prompt; arguments as of [`~TargetRows.of_several`]."""
        return cls.of_several(prompts, [[([], target)] for target in targets], gists, device)

    @classmethod
    def of_several(cls, prompts: list[list[int]], targets: list[list[tuple]], gists: int, device) -> "TargetRows":
        """
        Args:
            prompts (`list[list[int]]`):
                Token ids.
            targets (`list[list[tuple]]`):
                For each prompt the targets after it: of each its cue, which may be empty, its token ids and, where it
                does not see all of the prompt, how many of its tokens it sees.
            gists (`int`):
                Adjacent prompts with the same targets.
            device:
                Where the tensors go.

        Raises:
            ValueError: if an id is none.
        """
        rows = len(prompts)
        prompts = [token_ids("A prompt", prompt) for prompt in prompts]
        targets = [
            [
                (token_ids("A cue", cue), token_ids("A target", target), seen[0] if seen else len(prompt))
                for cue, target, *seen in own
            ]
            for prompt, own in zip(prompts, targets, strict=True)
        ]
        prompts = [prompt[: max(seen for _, _, seen in own)] for prompt, own in zip(prompts, targets, strict=True)]
        sizes = [
            (
                len(prompt) + sum(len(cue) + len(target) for cue, target, _ in own),
                sum(len(target) for _, target, _ in own),
            )
            for prompt, own in zip(prompts, targets, strict=True)
        ]
        length, width = (max(size) for size in zip(*sizes, strict=True))
        input_ids_NS, position_ids_NS, seen_NS = torch.zeros(3, rows, length, dtype=torch.long)
        branch_NS = torch.full((rows, length), _PADDING)
        positions_NT, target_ids_NT = torch.zeros(2, rows, width, dtype=torch.long)
        mask_NT = torch.zeros(rows, width, dtype=torch.bool)
        for row, (prompt, own) in enumerate(zip(prompts, targets, strict=True)):
            ids, positions, branches, predicted_at = [*prompt], [*range(len(prompt))], [_PROMPT] * len(prompt), []
            sees = [len(prompt)] * len(prompt)
            for index, (cue, target, seen) in enumerate(own):
                start, added = len(ids), len(cue) + len(target)
                ids += [*cue, *target]
                positions += range(seen, seen + added)
                branches += [index] * added
                sees += [seen] * added
                first = start + len(cue)
                predicted_at += [first - 1 if cue else seen - 1, *range(first, len(ids) - 1)]
            for of_row, values in (
                *((input_ids_NS, ids), (position_ids_NS, positions)),
                *((branch_NS, branches), (seen_NS, sees)),
            ):
                of_row[row, : len(values)] = torch.tensor(values)
            positions_NT[row, : len(predicted_at)] = torch.tensor(predicted_at)
            target_ids_NT[row, : len(predicted_at)] = torch.tensor([token for _, target, _ in own for token in target])
            mask_NT[row, : len(predicted_at)] = True
        real_U = mask_NT[::gists].flatten().nonzero().squeeze(1)
        tensors = (input_ids_NS, positions_NT, target_ids_NT, mask_NT, real_U)
        several = {"real_NS": (branch_NS != _PADDING).to(device)}
        if any(len(own) > 1 for own in targets):
            visible_NSS = _visible(branch_NS, seen_NS)
            several |= {"position_ids_NS": position_ids_NS.to(device), "visible_NSS": visible_NSS.to(device)}
        return cls(*(tensor.to(device) for tensor in tensors), gists, **several)


def _visible(branch_NS, seen_NS):
    """Which tokens each sees: up to itself its own branch's and so many of the prompt's. Padding sees padding, so that no
    row of the softmax is empty."""
    query_NS1, key_N1S = branch_NS[:, :, None], branch_NS[:, None, :]
    before_NSS = torch.arange(branch_NS.shape[1]) < seen_NS[:, :, None]
    visible_NSS = (query_NS1 == key_N1S) | ((key_N1S == _PROMPT) & (query_NS1 != _PADDING) & before_NSS)
    return visible_NSS.tril()


class TargetScorer(nn.Module):
    """
    Scores targets under a model; only the hidden states at the target's positions ever reach the LM head.

    It is a module around the model, so that data-parallel wrappers see one forward with all of the loss inside.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model.
        router_loss_coef (`float`, *optional*, defaults to `0.0`):
            What the load-balancing loss of a mixture of experts counts in the loss of each target token.
    """

    def __init__(self, model: nn.Module, router_loss_coef: float = 0.0):
        super().__init__()
        turn_each_row_alone(model)
        self.model = model
        self.router_loss_coef = router_loss_coef

    def forward(
        self,
        rows: TargetRows,
        teacher_hidden_UH: torch.Tensor | None = None,
        teacher: "TargetScorer | None" = None,
        loss: str = "forward_kl",
        greedy: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            rows ([`TargetRows`]):
                Prompts and targets.
            teacher_hidden_UH (`torch.Tensor` of shape `(target tokens, teacher hidden)`, *optional*):
                The teacher's hidden states at the tokens of the different targets, one after the other.
            teacher ([`TargetScorer`], *optional*):
                Whose LM head turns them into the teacher's distribution.
            loss (`str`, *optional*, defaults to `"forward_kl"`):
                `"forward_kl"` or `"cross_entropy"`; see [`~models.lm_head.target_scores`].
            greedy (`bool`, *optional*, defaults to `False`):
                Whether the last of the scores is wanted.

        Returns:
            `logps_NT`, log p(Y_t | ·), and `kl_NT`, KL(teacher ‖ model) over the full vocabulary (0 without a
            teacher), whatever the loss is; `loss_NT`, which alone carries a gradient and, where it does, has the experts'
            load-balancing loss of all these rows added at each target token; all in nats. And, if `greedy`,
            `greedy_NT`, 1.0 where the token that came is the model's likeliest. Each is 0 where `rows.mask_NT` is
            False.
        """
        balanced = self.router_loss_coef != 0 and torch.is_grad_enabled()
        hidden_NTH, router_loss = self._read(rows, balanced=True) if balanced else (self.hidden_states(rows), None)
        hidden_UGH = hidden_NTH.unflatten(0, (-1, rows.gists)).transpose(1, 2).flatten(0, 1)[rows.real_U]
        target_ids_U = rows.target_ids_NT[:: rows.gists].flatten()[rows.real_U]
        teacher_log_probs = None if teacher is None else teacher.log_probs
        scores = target_scores(
            base_of(self.model), hidden_UGH, target_ids_U, teacher_log_probs, teacher_hidden_UH, loss, greedy
        )
        logps_NT, kl_NT, loss_NT, *greedy = (_to_rows(score_UG, rows) for score_UG in scores)
        if balanced:
            loss_NT = loss_NT + self.router_loss_coef * router_loss * rows.mask_NT
        return logps_NT, kl_NT, loss_NT, *greedy

    def hidden_states(self, rows: TargetRows) -> torch.Tensor:
        """Hidden states of shape `(rows, target positions, hidden)` from which the targets are predicted."""
        return self._read(rows, balanced=False)[0]

    def _read(self, rows, balanced):
        """Hidden states at the targets and, if asked, the load-balancing loss over all tokens but padding."""
        base, branched = base_of(self.model), {"output_router_logits": True} if balanced else {}
        if rows.visible_NSS is not None:
            positions_NS = rows.position_ids_NS
            mask = attention_masks(base, rows.visible_NSS, positions_NS, positions_NS)
            branched |= {"attention_mask": mask, "position_ids": positions_NS}
        elif rows.real_NS is not None and turned_alike(base.config) is not None:
            branched["position_ids"] = rows.real_NS.cumsum(1) - 1  # of padding the last one again
        output = backbone_of(base)(input_ids=rows.input_ids_NS, use_cache=False, **branched)
        hidden_NSH = output.last_hidden_state
        index = rows.positions_NT.unsqueeze(-1).expand(-1, -1, hidden_NSH.shape[-1])
        loss = router_loss(base, output.get("router_logits"), rows.real_NS) if balanced else None
        return hidden_NSH.gather(1, index), loss

    def log_probs(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of shape `(positions, vocabulary)`, in float32 or better, without a gradient."""
        with torch.no_grad():
            return log_softmax(output_logits(base_of(self.model), hidden_PH))


def target_log_probs(
    model: nn.Module, prompts: list[list[int]], targets: list[list[int]], batch_size: int = 8
) -> list[float]:
    """Log-prob of each target after its prompt, both as token ids, summed over the target, in nats."""
    scorer, device, sums = TargetScorer(model), model.get_input_embeddings().weight.device, []
    with torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            chunk = slice(start, start + batch_size)
            rows = TargetRows.build(prompts[chunk], targets[chunk], 1, device)
            sums += scorer(rows)[0].double().sum(-1).tolist()
    return sums


def router_loss(
    base: nn.Module, router_logits: tuple[torch.Tensor, ...] | None, real_NS: torch.Tensor
) -> torch.Tensor:
    """
    The load-balancing loss that transformers gives a mixture of experts: experts × Σ over them of the share of choices by
    their mean probability, over the tokens of all layers. It is `num_experts_per_tok` where all are chosen alike.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            Whose routers they are.
        router_logits (`tuple[torch.Tensor]` or `None`):
            Of each layer's router, of shape `(rows × sequence, experts)`.
        real_NS (`torch.BoolTensor` of shape `(rows, sequence)`):
            False at padding, which is not counted.

    Raises:
        ValueError: if there are no router logits.
    """
    if not router_logits:
        raise ValueError(
            f"{type(base).__name__} gives no router logits, of which the load-balancing loss of its experts is made. Set "
            "`router_aux_loss_coef=0.0`, which leaves it out."
        )
    logits = tuple(layer.flatten(0, -2) for layer in router_logits)
    return load_balancing_loss_func(logits, logits[0].shape[-1], base.config.num_experts_per_tok, real_NS)


def router_loss_coef(model: nn.Module, coef: float | None) -> float:
    """What TRL (1.16) takes for the policy: `coef`, or else what the model's configuration says; 0 if it has no routers, as
    GraniteMoeHybrid may have none."""
    config = base_of(model).config.get_text_config()
    if not hasattr(config, "output_router_logits") or number_of_experts(config) == 0:
        return 0.0
    return getattr(config, "router_aux_loss_coef", 0.0) if coef is None else coef


def _to_rows(score_UG, rows):
    """Scores of target tokens as `(rows, target positions)`, 0 where there is no token."""
    score_PG = score_UG.new_zeros(rows.mask_NT.numel() // rows.gists, rows.gists)
    score_DTG = score_PG.index_copy(0, rows.real_U, score_UG).unflatten(0, (-1, rows.mask_NT.shape[1]))
    return score_DTG.transpose(1, 2).flatten(0, 1)
