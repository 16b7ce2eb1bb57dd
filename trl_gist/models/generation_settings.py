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
Which settings of generation reach which model. Every call of `generate` in the library takes its configuration from here,
[`plain_generation_config`], and what is not said there is at its neutral value.

| who writes | the distribution | the length |
|---|---|---|
| S in training | softmax of its logits / `GistConfig.temperature` | `max_completion_length`, or the row's budget |
| S in evaluation and in the run's log, S in a pair | the likeliest token; `compress(do_sample=True)`: temperature 1 | the budget |
| the full-context reader (`certify`, `search`) | softmax of its logits | the pair's `target_length` |
| G (`continue_text`, a session, the server) | the likeliest token; `do_sample=True`: temperature 1; the caller's arguments | `max_new_tokens` |

Of a checkpoint's `generation_config` only the end-of-sequence tokens are taken, for every one of them. Its temperature,
truncations, penalties, forbidden or forced tokens, stop strings, caches and decoding methods reach nobody: S's policy is
trained on its plain log-probs, a certificate is an estimate under the reader's own distribution, and G was distilled into
a distribution, which is what a user gets who asks for nothing else. A saved pair keeps the file, for who loads a half alone.

The same with vLLM, which is asked by TRL (1.16) with these settings alone, and takes end-of-sequence tokens from the
checkpoint. So [`GistConfig`] refuses `top_p`, `top_k`, `min_p`, `repetition_penalty` and what `generation_kwargs` would
change of S's distribution or its lengths, and `cache_implementation`: a row that gists share has a cache of its own kind.
A pair in vLLM ([`trl_gist.models.vllm`]) is asked with the same end-of-sequence tokens, and with what of the caller's
arguments both have.
"""

from transformers import GenerationConfig, PreTrainedTokenizerBase


class PlainGenerationConfig(GenerationConfig):
    """One that the model's own `generation_config` does not complete."""

    def update(self, defaults_only=False, allow_custom_entries=False, **kwargs):
        # `generate` (transformers 5.23) fills what is None first from the checkpoint, whose custom entries it takes too,
        # then from its defaults. tests/models/test_generation_settings.py fails when it does otherwise
        if allow_custom_entries:
            return kwargs
        return super().update(defaults_only, **kwargs)


def plain_generation_config(
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: list[int],
    max_new_tokens: int,
    do_sample: bool = False,
    **settings,
) -> PlainGenerationConfig:
    """
    The model's own distribution, up to an end-of-sequence token or `max_new_tokens`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            For its special tokens.
        eos_token_ids (`list[int]`):
            Tokens that end a completion; see [`~models.generation.end_token_ids`].
        max_new_tokens (`int`):
            Longest completion.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether to sample at temperature 1 instead of taking the likeliest tokens.
        settings:
            For [`~transformers.GenerationConfig`], in place of these.
    """
    # Said in full where it samples, because `generate`'s own default of `top_k` is 50
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} if do_sample else {}
    pad_token_id = tokenizer.pad_token_id
    plain = {
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "repetition_penalty": 1.0,
        "pad_token_id": tokenizer.eos_token_id if pad_token_id is None else pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos_token_ids,
        "disable_compile": True,
        **sampling,
    }
    return PlainGenerationConfig(**plain | settings)
