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

"""Tiny models, tokenizers and documents, built here: nothing needs the Hub."""

import os
import random

import torch
from datasets import IterableDataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)


# Where tiny models live; `make gpu-check` sets it for the files that can be run on a GPU too
DEVICE = os.environ.get("TRL_GIST_TEST_DEVICE", "cpu")

PARAGRAPH = (
    "In 1854 the physician John Snow marked on a map of Soho the houses where people had died of cholera. Most of them "
    "lay around one pump in Broad Street. He had its handle taken off, and the outbreak, which had already begun to "
    "wane, came to an end. Few believed him then: disease was held to come from bad air, not from water. Years later "
    "the engineer Joseph Bazalgette built 82 miles of sewers below London, and cholera did not return to the city. "
)


def make_tokenizer(bos: bool = False, chat_template: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([PARAGRAPH], trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat_template:
        wrapped.chat_template = (
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    return wrapped


# A window of 5 is shorter than any prompt with its gist. Untied heads: a fresh tied one mostly repeats its last token
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8, "tie_word_embeddings": False}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 5,
            "tie_word_embeddings": False,
        },
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 5, "tie_word_embeddings": False}),
}


def make_model(
    tokenizer, seed: int = 0, dtype=torch.float32, family: str = "llama", attention: str = "sdpa", **overrides
) -> PreTrainedModel:
    """Both layers of Mistral have a sliding window, and the first of Gemma 3."""
    torch.manual_seed(seed)
    config_class, model_class, family_values = FAMILIES[family]
    config = config_class(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,  # a fresh model at 0.02 is uniform: nothing would depend on its input
            **family_values,
            **overrides,
        }
    )
    model = model_class(config).to(DEVICE, dtype)
    model.set_attn_implementation(attention)
    return model


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of shuffled sentences, each some 150 tokens long."""
    rng = random.Random(seed)
    sentences = PARAGRAPH.split(". ")
    return [f"{index}. " + ". ".join(rng.sample(sentences, len(sentences))) for index in range(count)]


def stream(rows) -> IterableDataset:
    """An unindexable dataset, as `load_dataset(streaming=True)` gives."""

    def generate():
        yield from rows

    return IterableDataset.from_generator(generate)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
