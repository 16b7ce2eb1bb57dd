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
What a gist is expected to cost, where no target is there to measure it on.

An evaluation knows what came next and measures KL(T(·|X) ‖ G(·|Z,L)) along it. At inference the reader of the whole
context says what it holds for likely: continuations are drawn from it, of up to `target_length` tokens, and along each the
KL from it to the generator on the gist is taken over the full vocabulary. Its mean estimates, without bias up to the ratio
of two means, the KL between the two distributions over continuations, per token.

The reader is the pair's teacher where the generator is an adapter of it, so that it is in memory already. Elsewhere it is
the generator on the whole context in the place of L, with an empty gist: prompts that it was not trained on, so that the
cost is then against what this generator would make of the context, no more.

It is not the cost on the text that really follows, which no model knows; nor a bound: its standard error counts the few
continuations, not a reader that is wrong. The two are only comparable between gists of the same pair and reader.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..common.arguments import token_ids
from ..common.statistics import ratio_and_error
from ..models.generation import generate
from ..models.lm_head import check_logits, log_softmax
from ..models.positions import becomes_long, max_positions, turn_each_row_alone
from ..models.roles import backbone_of, base_if_adapted, base_of
from ..prompts import through_last_k
from ..scoring.targets import TargetScorer
from .pair import LoadedPair


@dataclass(frozen=True)
class Reader:
    """
    Who reads the whole context.

    Attributes:
        name (`str`):
            `"teacher"` or `"generator"`.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        prompt (`Callable`):
            Its prompt of X and L, as token ids.
    """

    name: str
    model: PreTrainedModel | PeftModel
    prompt: Callable[[list[int], list[int]], list[int]]


def full_context_reader(loaded: LoadedPair) -> Reader:
    """The pair's teacher if it is the base of the generator's adapter, else the generator. Raises `ValueError` if vLLM has
    them."""
    loaded.check_models("Reading whole contexts (`certify`, `search`, comparing)")
    generator, prompts = loaded.generator, loaded.prompts
    teacher = base_if_adapted(generator, loaded.pair.base_models["teacher"])
    if teacher is not None:
        return Reader("teacher", teacher, prompts.teacher)
    return Reader("generator", generator, lambda *ids: prompts.generator([], through_last_k(*ids)))


def longest_certified(loaded: LoadedPair) -> float:
    """Most tokens of a prompt after which a continuation still fits the positions of the full context's reader and of the
    generator; `math.inf` if neither has a limit."""
    models = (full_context_reader(loaded).model, loaded.generator)
    return min(max_positions(model) or math.inf for model in models) - loaded.pair.target_length


def expected_kls(
    loaded: LoadedPair,
    contexts_ids: list[list[int]],
    last_k_ids: list[list[int]],
    gists: list[list[int]],
    samples: int = 8,
    seed: int = 0,
    target_length: int | None = None,
) -> list[dict[str, float | str]]:
    """
    The expected cost of gists, in nats per token.

    Args:
        loaded ([`~inference.pair.LoadedPair`]):
            The pair.
        contexts_ids, last_k_ids, gists (`list[list[int]]`):
            X, L and Z of each.
        samples (`int`, *optional*, defaults to `8`):
            Continuations of each context, at least 2; all are in one forward, unless a server takes fewer rows.
        seed (`int`, *optional*, defaults to `0`):
            Of the continuations of each context, which do not depend on the others of a batch. The random state outside
            is left as it is.
        target_length (`int`, *optional*):
            Most tokens of a continuation. Defaults to what the pair was trained on.

    Returns:
        `list[dict]`: `expected_kl`, the KL summed over the continuations / their tokens, an end-of-sequence token counted
        as one; `expected_kl_se`, its linearised standard error over the continuations; `expected_kl_reader`.

    Raises:
        ValueError: if ids are none, a context and its continuation do not fit the reader's positions, or the generator's
            logits are capped or scaled in a way that scoring does not know.
    """
    reader = full_context_reader(loaded)
    contexts_ids, last_k_ids = (
        [token_ids(what, ids) for ids in several] for what, several in (("A context", contexts_ids), ("L", last_k_ids))
    )
    return [
        expected_kl(
            loaded,
            reader,
            reader.prompt(context_ids, last_ids),
            loaded.prompts.generator(gist, last_ids),
            samples,
            seed,
            target_length,
        )
        for context_ids, last_ids, gist in zip(contexts_ids, last_k_ids, gists, strict=True)
    ]


def expected_kl(
    loaded: LoadedPair,
    reader: Reader,
    whole: list[int],
    compacted: list[int],
    samples: int = 8,
    seed: int = 0,
    target_length: int | None = None,
) -> dict[str, float | str]:
    """As [`expected_kls`], of one: `whole` is what the reader reads, and `compacted` what the generator does instead."""
    scorer = TargetScorer(loaded.generator)
    length = loaded.pair.target_length if target_length is None else target_length
    together, kls, tokens = loaded.rows_together(max(len(whole), len(compacted)) + length), [], []
    with loaded.lock:
        check_logits(loaded.generator)
        for first in range(0, samples, together):
            targets, logits_TSV = draw_continuations(
                reader.model, loaded.tokenizer, whole, min(together, samples - first), length, seed + first
            )
            (kl_ST,) = continuation_kls(logits_TSV, scorer, [compacted], targets)
            kls.append(kl_ST.sum(-1).numpy())
            tokens += [len(target) for target in targets]
    mean, error = ratio_and_error(np.concatenate(kls), np.array(tokens), range(samples))
    return {"expected_kl": mean, "expected_kl_se": error, "expected_kl_reader": reader.name}


def draw_continuations(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    samples: int,
    length: int,
    seed: int,
) -> tuple[list[list[int]], tuple[torch.Tensor, ...]]:
    """
    Continuations at temperature 1, those that end before `length` with their end-of-sequence token, and the logits of
    each step, `(samples, vocabulary)`. The prompt is read once; the random state outside is left as it is, and is
    meanwhile another: where other threads sample, they wait for the pair's lock.
    """
    cache = _read_once(model, [prompt], samples)
    on_cpu = model.device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [model.device], device_type="cuda" if on_cpu else model.device.type):
        torch.manual_seed(seed)
        continuations, logits_TSV = generate(
            model,
            tokenizer,
            [prompt] * samples,
            length,
            do_sample=True,
            name="full-context reader",
            past_key_values=cache,
            output_logits=True,
        )
    targets = [ids if len(ids) == length else [*ids, tokenizer.eos_token_id] for ids in continuations]
    return targets, logits_TSV


@torch.no_grad()
def continuation_kls(
    logits_TSV: tuple[torch.Tensor, ...], scorer: TargetScorer, prompts: list[list[int]], targets: list[list[int]]
) -> torch.Tensor:
    """
    KL(reader ‖ generator on a prompt) at each token of each continuation, 0 where there is none: `(prompts, samples,
    tokens)`, float64. The prompts are of one length, and each is read once.
    """
    hidden_NTH = hidden_states(scorer.model, prompts, targets)
    lengths_S = torch.tensor([len(target) for target in targets])
    kl_NT = torch.zeros(hidden_NTH.shape[:2], dtype=torch.float64)
    for position in range(hidden_NTH.shape[1]):  # all positions at once would multiply the logits' memory
        mask_S = lengths_S > position
        mask_N = mask_S.repeat(len(prompts))
        reader_NV = log_softmax(logits_TSV[position][mask_S]).repeat(len(prompts), 1)
        generator_NV = scorer.log_probs(hidden_NTH[mask_N, position])
        kl_NT[mask_N, position] = (
            kl_div(generator_NV, reader_NV, reduction="none", log_target=True).sum(-1).double().cpu()
        )
    return kl_NT.unflatten(0, (len(prompts), -1))


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel | PeftModel, prompts: list[list[int]], targets: list[list[int]]
) -> torch.Tensor:
    """
    From which each target is predicted after each prompt: `(prompts × targets, tokens, hidden)`. The prompts are of one
    length, and each is read once.
    """
    texts, start = [[*prompt, *target[:-1]] for prompt in prompts for target in targets], len(prompts[0]) - 1
    lengths, positions = torch.tensor(list(map(len, texts))), {}
    if becomes_long(model.config, start, max(lengths).item()):  # each text anew, and turned by its own length
        turn_each_row_alone(model)
        cache = None
        positions_NS = torch.arange(max(lengths).item()).minimum(lengths.unsqueeze(1) - 1)
        positions = {"position_ids": positions_NS.to(model.device)}
    else:
        cache, texts = _read_once(model, prompts, len(targets)), [text[start:] for text in texts]
    input_ids = pad_sequence(list(map(torch.tensor, texts)), batch_first=True).to(model.device)
    backbone = backbone_of(base_of(model))
    output = backbone(input_ids=input_ids, past_key_values=cache, use_cache=cache is not None, **positions)
    return output.last_hidden_state[:, -max(map(len, targets)) :]


@torch.no_grad()
def _read_once(model, prompts, times):
    """The keys and values of all but each prompt's last token, `times` times in a row; `None` if there are none."""
    if len(prompts[0]) == 1:
        return None
    cache = DynamicCache(config=model.config.get_text_config())
    starts = torch.tensor([prompt[:-1] for prompt in prompts], device=model.device)
    model(input_ids=starts, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(times)
    return cache
