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
Gist tokens: the reference from the other school, where a gist is not text but what a model's layers hold.

After [Learning to Compress Prompts with Gist Tokens](https://huggingface.co/papers/2304.08467) (Mu, Li and Goodman,
2023). A row is

    X' ⟨g1⟩ … ⟨gk⟩ L Y

where X' is what of X the generator does not see by itself ([`~prompts.before_last_k`], after the tokenizer's bos) and
the g are new embeddings. The gist mask hides X' from everything after the gist tokens, so what is needed of it must go
through their keys and values, and those are all that is kept: a gist of k positions in every layer. The loss is not
the paper's cross-entropy but that of [`TargetScorer`], KL(teacher on the whole X ‖ model) over Y: the very same code,
and so the same number, as the generator's distillation from text.

What was taken from the paper and from its authors' code:

- the mask, and positions that continue counting over X' although it is gone;
- gist embeddings that start at the mean of the vocabulary's. The authors repeat one token k times; here each position
  learns an embedding of its own;
- the *positive control*: no mask; what follows sees all of X' and the gist tokens.

The paper's *negative control* hides X' and the gist tokens from what follows; where attention sees only distances it
is one model for every k. Here the gist tokens stay and X' is hidden from them too, so that they become a learned
prefix of the same k, the same for every context: still nothing beyond L, but as many parameters and positions. It is
the stricter control. A gain over it is what was compressed.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trl_gist.models.checks import disable_dropout
from trl_gist.models.lm_head import check_logits, output_logits
from trl_gist.models.roles import backbone_of, base_of
from trl_gist.models.shared_prefix import attention_masks, why_not_shared
from trl_gist.prompts import GistPrompts, before_last_k, gist_from_completion
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetRows, TargetScorer

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache, PreTrainedModel, get_scheduler


CONDITIONS = ("gist", "positive", "negative")
WEIGHTS_FILE = "gist_tokens.safetensors"


@dataclass
class GistTokenRows(TargetRows):
    """
    Rows of X', gist tokens, L and Y. The fields of [`TargetRows`] are about L and Y alone.

    Attributes:
        prefix_ids_NP (`torch.LongTensor` of shape `(rows, prefix)`):
            X', padded on the left, so that the gist tokens stand in the same columns of every row. Empty in the
            negative control, where nothing that is scored depends on it.
        position_ids_NR (`torch.LongTensor` of shape `(rows, prefix + gist tokens + sequence)`):
            They count X' in every condition.
        visible_NRR (`torch.BoolTensor` of shape `(rows, prefix + gist tokens + sequence, the same)`):
            Which position (last axis) each position sees.
    """

    prefix_ids_NP: torch.Tensor
    position_ids_NR: torch.Tensor
    visible_NRR: torch.Tensor

    @classmethod
    def build(cls, prefixes, last_ks, targets, num_gist_tokens: int, condition: str, device) -> "GistTokenRows":
        after = TargetRows.build(last_ks, targets, 1, device)
        length = after.input_ids_NS.shape[1]
        return cls(**vars(after), **_layout(prefixes, num_gist_tokens, length, condition, device))


@dataclass
class CompressedContexts:
    """
    Contexts of which only the keys and values of their gist tokens are left (in the positive control: everything).

    Attributes:
        cache ([`~transformers.DynamicCache`]):
            Keys and values of shape `(rows, key heads, cached, head size)` in each layer.
        position_ids_NC (`torch.LongTensor` of shape `(rows, cached)`):
            Where they stood.
        real_NC (`torch.BoolTensor` of shape `(rows, cached)`):
            False at padding.
    """

    cache: DynamicCache
    position_ids_NC: torch.Tensor
    real_NC: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all rows' keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


class GistTokenModel(TargetScorer):
    """
    A causal language model that compresses contexts into `num_gist_tokens` positions, and reads them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A decoder whose attention takes 4D masks. What of it requires a gradient is trained beside the embeddings.
        prompts ([`GistPrompts`]):
            For the tokenizer's bos. Nothing else of the generator's prompt is used: gist tokens have no template.
        num_gist_tokens (`int`):
            k.
        condition (`str`, *optional*, defaults to `"gist"`):
            `"gist"`, or a control: `"positive"` or `"negative"`.

    Raises:
        ValueError: if a setting is out of range, or the model does not take the mask.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: GistPrompts,
        num_gist_tokens: int,
        condition: str = "gist",
    ):
        super().__init__(model)
        if condition not in CONDITIONS:
            raise ValueError(f"`condition` ({condition!r}) must be one of {', '.join(CONDITIONS)}.")
        if num_gist_tokens < 1:
            raise ValueError(f"`num_gist_tokens` ({num_gist_tokens}) must be at least 1.")
        if why := why_not_shared(base_of(model)):
            raise ValueError(f"The model cannot be trained with the gist mask: {why}.")
        check_logits(model)
        disable_dropout(model)
        self.prompts = prompts
        self.num_gist_tokens = num_gist_tokens
        self.condition = condition
        with torch.no_grad():
            embed = base_of(model).get_input_embeddings()
            # Through the module, which in some families scales: gist tokens must look like tokens to the first layer
            vocabulary_VH = embed(torch.arange(embed.num_embeddings, device=embed.weight.device)).float()
        # In float32 beside a model in half precision, as PEFT keeps its adapters: small steps would round to none
        self.gist_embeddings_KH = nn.Parameter(vocabulary_VH.mean(0).repeat(num_gist_tokens, 1))

    def rows(self, windows: list[dict]) -> GistTokenRows:
        """Windows with `context_ids`, `last_k_ids` and `target_ids`, for [`~TargetScorer.forward`]."""
        last_ks, targets = ([row[name] for row in windows] for name in ("last_k_ids", "target_ids"))
        return GistTokenRows.build(
            self._prefixes(windows), last_ks, targets, self.num_gist_tokens, self.condition, self._device()
        )

    def hidden_states(self, rows: GistTokenRows) -> torch.Tensor:
        """As [`TargetScorer.hidden_states`], from one forward under the mask."""
        embeds_NRH = self._embed(rows.prefix_ids_NP, rows.input_ids_NS)
        hidden_NRH = self._run(embeds_NRH, rows.visible_NRR, rows.position_ids_NR, rows.position_ids_NR)
        predicted_at_NT = rows.positions_NT + rows.prefix_ids_NP.shape[1] + self.num_gist_tokens
        return hidden_NRH.gather(1, predicted_at_NT.unsqueeze(-1).expand(-1, -1, hidden_NRH.shape[-1]))

    @torch.no_grad()
    def compress(self, windows: list[dict]) -> CompressedContexts:
        """Reads each window's X' once and keeps only the gist tokens' keys and values."""
        layout = _layout(self._prefixes(windows), self.num_gist_tokens, 0, self.condition, self._device())
        prefix_ids_NP, position_ids_NR, visible_NRR = layout.values()
        cache = DynamicCache()
        embeds_NRH = self._embed(prefix_ids_NP, prefix_ids_NP[:, :0])
        self._run(embeds_NRH, visible_NRR, position_ids_NR, position_ids_NR, cache)
        kept = 0 if self.condition == "positive" else prefix_ids_NP.shape[1]
        for layer in cache.layers:
            # Copies: a view would keep X' in memory
            layer.keys, layer.values = layer.keys[:, :, kept:].clone(), layer.values[:, :, kept:].clone()
        # What the last gist token sees without a mask is what there is without padding
        real_NR = visible_NRR[:, -1] if self.condition == "positive" else torch.ones_like(visible_NRR[:, -1])
        return CompressedContexts(cache, position_ids_NR[:, kept:], real_NR[:, kept:])

    @torch.no_grad()
    def extend(self, contexts: CompressedContexts, ids_NS: torch.Tensor, real_NS: torch.Tensor) -> torch.Tensor:
        """
        Reads on from compressed contexts, which grow in place.

        Args:
            contexts ([`CompressedContexts`]):
                Of [`compress`].
            ids_NS (`torch.LongTensor` of shape `(rows, sequence)`):
                What comes next.
            real_NS (`torch.BoolTensor` of shape `(rows, sequence)`):
                False at padding, which may stand anywhere.

        Returns:
            Last hidden states of shape `(rows, sequence, hidden)`.
        """
        length = ids_NS.shape[1]
        position_ids_NS = contexts.position_ids_NC.max(1, keepdim=True).values + real_NS.cumsum(1)
        contexts.position_ids_NC = torch.cat([contexts.position_ids_NC, position_ids_NS], dim=1)
        contexts.real_NC = torch.cat([contexts.real_NC, real_NS], dim=1)
        cached = contexts.real_NC.shape[1]
        causal_SC = torch.ones(length, cached, dtype=torch.bool, device=ids_NS.device).tril(cached - length)
        visible_NSC = causal_SC & contexts.real_NC[:, None, :]
        embeds_NSH = base_of(self.model).get_input_embeddings()(ids_NS)
        return self._run(embeds_NSH, visible_NSC, position_ids_NS, contexts.position_ids_NC, contexts.cache)

    @torch.no_grad()
    def continue_from(self, contexts: CompressedContexts, last_ks: list[list[int]], max_new_tokens: int):
        """
        Greedy continuations after compressed contexts, which grow in place, and L, which must not be empty.

        Returns:
            `list[list[int]]`: Of each row the token ids up to, not including, its first end of sequence.
        """
        ids_NS, real_NS = _pad_left(last_ks, self._device())
        eos = base_of(self.model).generation_config.eos_token_id
        eos = eos if isinstance(eos, list) else [eos]
        written = []
        for _ in range(max_new_tokens):
            hidden_NH = self.extend(contexts, ids_NS, real_NS)[:, -1]
            ids_NS = output_logits(base_of(self.model), hidden_NH).argmax(-1, keepdim=True)
            real_NS = torch.ones_like(ids_NS, dtype=torch.bool)
            written.append(ids_NS)
        return [gist_from_completion(ids, eos) for ids in torch.cat(written, dim=1).tolist()]

    def save(self, directory: str | os.PathLike):
        """Writes what is trained: the embeddings, and the adapter or the model."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        weights = {name: parameter.detach().contiguous() for name, parameter in self._trained()}
        save_file(weights, Path(directory, WEIGHTS_FILE))

    def load(self, directory: str | os.PathLike):
        """Loads what [`save`] wrote. Raises `ValueError` if it does not fit."""
        weights = load_file(Path(directory, WEIGHTS_FILE))
        trained = dict(self._trained())
        saved, expected = ({n: w.shape for n, w in of.items()} for of in (weights, trained))
        if saved != expected:
            raise ValueError(
                f"The gist tokens in {directory} do not fit: {len(saved.items() ^ expected.items())} tensors differ "
                "in name or shape. Were they trained with another `num_gist_tokens` or another adapter?"
            )
        with torch.no_grad():
            for name, weight in weights.items():
                trained[name].copy_(weight)

    def _trained(self):
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def _prefixes(self, windows):
        return [self.prompts.plain(before_last_k(row["context_ids"], row["last_k_ids"])) for row in windows]

    def _embed(self, prefix_ids_NP, after_ids_NS):
        embed = base_of(self.model).get_input_embeddings()
        gist_NKH = self.gist_embeddings_KH.to(embed.weight.dtype).expand(len(prefix_ids_NP), -1, -1)
        return torch.cat([embed(prefix_ids_NP), gist_NKH, embed(after_ids_NS)], dim=1)

    def _run(self, embeds_NQH, visible_NQK, query_positions_NQ, key_positions_NK, cache=None):
        base = base_of(self.model)
        return backbone_of(base)(
            inputs_embeds=embeds_NQH,
            attention_mask=attention_masks(base, visible_NQK, query_positions_NQ, key_positions_NK),
            position_ids=query_positions_NQ,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def _device(self):
        return self.gist_embeddings_KH.device


def train_gist_tokens(
    model: GistTokenModel,
    scorer: GistScorer,
    windows: list[dict],
    steps: int,
    rows_per_step: int = 16,
    learning_rate: float = 5e-4,
    warmup_steps: int = 3,
    seed: int = 0,
    track: Callable = iter,
) -> list[float]:
    """
    Distils the teacher's reading of whole contexts into gist tokens, with AdamW, constant learning rate after a warmup
    and gradients clipped to a norm of 1, which are the generator's defaults.

    Args:
        model ([`GistTokenModel`]):
            Trained in place.
        scorer ([`GistScorer`]):
            Its `read_contexts` gives the teacher's hidden states, from its cache where it has one; its `batch_size` is
            the rows of one forward.
        windows (`list[dict]`):
            With `context_ids`, `last_k_ids` and `target_ids`; as many of them as a step has rows, or more.
        steps, rows_per_step, warmup_steps (`int`):
            Optimizer steps, windows in each, and steps until the learning rate is reached.
        learning_rate (`float`, *optional*, defaults to `5e-4`):
            Of the embeddings and the adapter.
        seed (`int`, *optional*, defaults to `0`):
            Of the order of windows: each once, then all in another order.
        track (`Callable`, *optional*):
            Wraps the list of steps to show progress, as [`~tqdm.tqdm`].

    Returns:
        `list[float]`: The loss of each step, in nats per target token.

    Raises:
        ValueError: if there are fewer windows than rows in a step.
        FloatingPointError: if a loss is not finite.
    """
    if len(windows) < rows_per_step:
        raise ValueError(f"`rows_per_step` ({rows_per_step}) must not exceed the windows there are ({len(windows)}).")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=warmup_steps)
    generator = torch.Generator().manual_seed(seed)
    order, losses = [], []
    for step in track(range(steps)):
        if len(order) < rows_per_step:
            order += torch.randperm(len(windows), generator=generator).tolist()
        chosen, order = [windows[index] for index in order[:rows_per_step]], order[rows_per_step:]
        losses.append(_leave_gradient(model, scorer, chosen))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"The loss is {losses[-1]} at step {step}. Lower `learning_rate`.")
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses


def _leave_gradient(model, scorer, windows):
    """Leaves the gradient of the mean KL over all the windows' target tokens, which it returns."""
    hidden_D, _ = scorer.read_contexts(windows)
    tokens, total = sum(len(row["target_ids"]) for row in windows), 0.0
    for start in range(0, len(windows), scorer.batch_size):
        chunk = slice(start, start + scorer.batch_size)
        loss_NT = model(model.rows(windows[chunk]), torch.cat(hidden_D[chunk]), scorer.teacher)[2]
        loss = loss_NT.sum() / tokens
        loss.backward()
        total += loss.item()
    return total


def _layout(prefixes, num_gist_tokens, length, condition, device):
    """The part of [`GistTokenRows`] that depends on X', for `length` positions after the gist tokens."""
    prefix_ids_NP, real_NP = _pad_left(prefixes, device)
    prefix_length_N1 = real_NP.sum(1, keepdim=True)
    if condition == "negative":
        prefix_ids_NP, real_NP = prefix_ids_NP[:, :0], real_NP[:, :0]
    rows, width = prefix_ids_NP.shape
    after_R = torch.arange(num_gist_tokens + length, device=device)
    position_ids_NR = torch.cat([(real_NP.cumsum(1) - 1).clamp(min=0), prefix_length_N1 + after_R], dim=1)
    total = position_ids_NR.shape[1]
    visible_RR = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    if condition == "gist":
        visible_RR[width + num_gist_tokens :, :width] = False
    real_NR = torch.cat([real_NP, real_NP.new_ones(rows, len(after_R))], dim=1)
    # Padding sees itself, so that no row of the softmax is empty
    visible_NRR = (visible_RR & real_NR[:, None, :]) | torch.eye(total, dtype=torch.bool, device=device)
    return {"prefix_ids_NP": prefix_ids_NP, "position_ids_NR": position_ids_NR, "visible_NRR": visible_NRR}


def _pad_left(ids_N, device):
    width = max(len(ids) for ids in ids_N)
    ids_NP = torch.zeros(len(ids_N), width, dtype=torch.long)
    real_NP = torch.zeros(len(ids_N), width, dtype=torch.bool)
    for row, ids in enumerate(ids_N):
        ids_NP[row, width - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        real_NP[row, width - len(ids) :] = True
    return ids_NP.to(device), real_NP.to(device)
