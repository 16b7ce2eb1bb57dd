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

"""Pairs of tiny models, in memory."""

import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model
from transformers import AutoModelForCausalLM

from trl_gist import GistCompactor
from trl_gist.pair import PairConfig
from trl_gist.prompts import GENERATOR_PROMPT, SUMMARIZER_PROMPT


LAST_K = 8


def make_pair(**overrides):
    values = {
        "context_length": 180,
        "target_length": 6,
        "last_k": LAST_K,
        "max_gist_length": 24,
        "tail_length": 24,
        "summarizer_prompt": SUMMARIZER_PROMPT,
        "generator_prompt": GENERATOR_PROMPT,
        "base_models": {"summarizer": "base", "generator": "base", "teacher": "base"},
        "recipe": {},
        "measures": {},
        "gists": [],
        "step": 0,
        "version": "0",
    }
    return PairConfig(**{**values, **overrides})


def save_half(checkpoint, tokenizer, directory, seed, lora, base=None):
    """An adapter, with weights of its own, of a checkpoint, which it may call by another name; or a model."""
    if not lora:
        make_model(tokenizer, seed).save_pretrained(directory)
        return
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config)
    if base is not None:
        model.active_peft_config.base_model_name_or_path = base
    model.save_pretrained(directory)


def in_eval(model):
    return model.eval().requires_grad_(False)


def make_compactor(tokenizer):
    """A pair of two models, neither of them its teacher."""
    return GistCompactor(in_eval(make_model(tokenizer, 0)), in_eval(make_model(tokenizer, 1)), tokenizer, make_pair())


def make_adapter_pair(tokenizer):
    """A pair whose generator is an adapter, with weights of its own, of the teacher."""
    base = make_model(tokenizer, 2)
    base.config._name_or_path = base.name_or_path = "base"
    torch.manual_seed(5)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, base_model_name_or_path="base")
    generator = get_peft_model(base, lora)
    generator.active_peft_config.base_model_name_or_path = "base"
    return GistCompactor(in_eval(make_model(tokenizer, 0)), in_eval(generator), tokenizer, make_pair())
