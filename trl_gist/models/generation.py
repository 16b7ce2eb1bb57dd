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

"""Generation at inference, as it was in training."""

from collections.abc import Callable

import torch
from peft import PeftModel
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from ..common.arguments import finite_number, truth, whole_number
from ..prompts import gist_from_completion
from .attention import rounded_length
from .generation_settings import plain_generation_config
from .positions import max_positions, turn_each_row_alone, written_together


# Settings of `generate` that are the caller's, or one and the same for all
_SET_HERE = ("max_length", "num_return_sequences", "return_dict_in_generate")
# Settings that are numbers: whole ones with the least they may be, and others. transformers (5.23) takes some that are none
_WHOLE = {"top_k": 0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "num_beams": 1}
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    do_sample: bool = False,
    name: str = "model",
    past_key_values: Cache | None = None,
    streamer: BaseStreamer | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    **generation_kwargs,
) -> tuple[list[list[int]], tuple[torch.Tensor, ...] | None]:
    """
    What a model writes after each prompt, in one batch.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            In eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            For its special tokens.
        prompts (`list[list[int]]`):
            Token ids.
        max_new_tokens (`int`):
            Longest completion.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether to sample at temperature 1 instead of taking the likeliest tokens.
        name (`str`, *optional*, defaults to `"model"`):
            What errors call the model.
        past_key_values ([`~transformers.Cache`], *optional*):
            Of a start that all prompts have in common, repeated for each of them. The prompts are then equally long.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*):
            Gets the prompt, then the tokens as they are chosen; for one prompt only.
        stopping_criteria ([`~transformers.StoppingCriteriaList`], *optional*):
            See the tokens of all rows as they are chosen, and say which rows have ended.
        generation_kwargs:
            For [`~transformers.GenerationConfig`]. What is left out is not the checkpoint's; see
            [`trl_gist.models.generation_settings`].

    Returns:
        The completions, each up to its end-of-sequence token, and the raw logits of each step, if asked for with
        `output_logits=True`.

    Raises:
        ValueError: if no token is asked for, prompt and completion do not fit the model's positions, or a
            setting is none of [`~transformers.GenerationConfig`] or is not the caller's.
        FloatingPointError: if logits are not numbers.
    """
    max_new_tokens, do_sample = checked_request(model, prompts, max_new_tokens, do_sample, name, generation_kwargs)
    turn_each_row_alone(model)
    apart = written_together(model.config, [len(prompt) for prompt in prompts], max_new_tokens)
    if len(apart) > 1 and stopping_criteria is None:  # which sees all rows
        parts = [
            generate(
                model, tokenizer, [prompts[row] for row in rows], max_new_tokens, do_sample, name, **generation_kwargs
            )
            for rows in apart
        ]
        return in_one_batch(apart, parts)
    positions = max_positions(model)
    eos_token_ids = end_token_ids(model, tokenizer)
    config = plain_generation_config(
        tokenizer, eos_token_ids, max_new_tokens, do_sample, return_dict_in_generate=True, **generation_kwargs
    )
    width = max(len(prompt) for prompt in prompts)
    if past_key_values is None:
        width = rounded_length(model, width, None if positions is None else positions - max_new_tokens)
    padding = [width - len(prompt) for prompt in prompts]
    rows = [[*[config.pad_token_id] * n, *prompt] for n, prompt in zip(padding, prompts, strict=True)]
    masks = [[0] * n + [1] * len(prompt) for n, prompt in zip(padding, prompts, strict=True)]
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(masks, device=model.device),
            generation_config=config,
            tokenizer=tokenizer,  # which `stop_strings` need
            past_key_values=past_key_values,
            streamer=streamer,
            stopping_criteria=stopping_criteria,
            logits_processor=LogitsProcessorList([_CheckNumbers()]),
        )
    completions = output.sequences[:, width:].tolist()
    return [gist_from_completion(ids, eos_token_ids) for ids in completions], output.logits


def in_one_batch(
    rows_of_parts: list[list[int]], parts: list[tuple[list[list[int]], tuple[torch.Tensor, ...] | None]]
) -> tuple[list[list[int]], tuple[torch.Tensor, ...] | None]:
    """What [`generate`] returns, of the parts of a batch; logits are 0 where the others went on."""
    if len(parts) == 1:
        return parts[0]
    order = [row for rows in rows_of_parts for row in rows]
    written = [ids for part, _ in parts for ids in part]
    completions = [written[order.index(row)] for row in range(len(order))]
    if parts[0][1] is None:
        return completions, None
    steps = max(len(logits) for _, logits in parts)
    logits_TNV = tuple(parts[0][1][0].new_zeros(len(order), parts[0][1][0].shape[-1]) for _ in range(steps))
    for rows, (_, logits) in zip(rows_of_parts, parts, strict=True):
        for logits_NV, of_part in zip(logits_TNV, logits, strict=False):
            logits_NV[rows] = of_part
    return completions, logits_TNV


def are_broken(logits_XV: torch.Tensor) -> torch.Tensor:
    """Of each position, whether no token can be drawn: a logit is not a number, or infinite, as where float16 runs over; or
    all are -inf. The likeliest token would be token 0 without a word."""
    return ~logits_XV.amax(-1).isfinite()


def not_numbers() -> FloatingPointError:
    return FloatingPointError(
        "The model's logits are not numbers. In float16 they may run over: load it in float32 or bfloat16 (`dtype`). "
        "Otherwise its weights are damaged."
    )


class _CheckNumbers(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if are_broken(scores).any():
            raise not_numbers()
        return scores


def checked_request(
    model, prompts: list[list[int]], max_new_tokens: int, do_sample: bool, name: str, generation_kwargs: dict
) -> tuple[int, bool]:
    """`max_new_tokens` and `do_sample`; numbers in `generation_kwargs` become plain ones. Raises as [`generate`]."""
    max_new_tokens, do_sample = whole_number("max_new_tokens", max_new_tokens), truth("do_sample", do_sample)
    positions = max_positions(model)
    needed = max(len(prompt) for prompt in prompts) + max_new_tokens
    if positions is not None and needed > positions:
        raise ValueError(
            f"The {name} would need {needed} positions for its prompt and {max_new_tokens} new tokens; it has "
            f"{positions}. Give it less text, or ask for fewer tokens."
        )
    for setting in generation_kwargs:
        if setting in _SET_HERE or setting not in vars(GenerationConfig()):
            raise ValueError(
                f"`{setting}` is no setting of how the {name} writes. Give settings of `transformers.GenerationConfig`, as "
                f"`temperature`, but none of {', '.join(_SET_HERE)}: there is one text, of at most `max_new_tokens`."
            )
        if generation_kwargs[setting] is None:
            continue
        if setting in _WHOLE:
            generation_kwargs[setting] = whole_number(setting, generation_kwargs[setting], _WHOLE[setting])
        elif setting in _NUMBERS:
            generation_kwargs[setting] = finite_number(setting, generation_kwargs[setting])
        if setting == "top_p" and not 0 < generation_kwargs[setting] <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {generation_kwargs[setting]}.")
    return max_new_tokens, do_sample


def greedy_continuations(
    model: PreTrainedModel | PeftModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 8,
) -> list[list[int]]:
    """Token ids that a model goes on with after each of many prompts; see [`generate`]."""
    written = []
    for start in range(0, len(prompts), batch_size):
        written += generate(model, tokenizer, prompts[start : start + batch_size], max_new_tokens)[0]
    return written


def end_token_ids(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As GRPOTrainer (TRL 1.16): every end-of-sequence token that the model declares ends a completion."""
    eos_token_ids = model.generation_config.eos_token_id
    eos_token_ids = [eos_token_ids] if isinstance(eos_token_ids, int) else list(eos_token_ids or [])
    if tokenizer.eos_token_id not in eos_token_ids:
        eos_token_ids = [tokenizer.eos_token_id, *eos_token_ids]
    return eos_token_ids


class TokenTee(BaseStreamer):
    """
    For [`generate`]: hands each new token to `add` as soon as it is there, and passes it on to another streamer; not the
    prompt, and not an end-of-sequence token. One tee may be given to several calls, of which each goes on where the one
    before ended; the other streamer is then one stream, whose `end` is the caller's to call.
    """

    def __init__(self, add: Callable[[int], None], streamer: BaseStreamer | None, end_token_ids: list[int]):
        self.add = add
        self.streamer = streamer
        self.end_token_ids = end_token_ids
        self.prompt_comes_next = True

    def put(self, value: torch.Tensor):
        if self.prompt_comes_next:
            self.prompt_comes_next = False
            return
        (token,) = value.tolist()
        if token in self.end_token_ids:
            return
        self.add(token)
        if self.streamer is not None:
            self.streamer.put(value)

    def end(self):
        self.prompt_comes_next = True
