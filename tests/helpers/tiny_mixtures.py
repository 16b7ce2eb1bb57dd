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


"""Tiny mixtures of experts, of every kind of names that transformers gives experts on the disk and in memory; and LongRoPE."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel


SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16},
    **{"first_k_dense_replace": 1, "num_key_value_heads": 4},
}
MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 8, "tie_word_embeddings": True},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": LATENT,
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 5},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0},
}


def make_mixture(tokenizer, name: str, seed: int = 0, **overrides) -> PreTrainedModel:
    torch.manual_seed(seed)
    ids = {kind: getattr(tokenizer, kind) for kind in ("bos_token_id", "eos_token_id", "pad_token_id")}
    values = {"vocab_size": len(tokenizer), **ids, **SIZES, **MIXTURES.get(name, {}), **overrides}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**values))


def make_phi3(tokenizer, seed: int = 0, length: int = 20) -> PreTrainedModel:
    """With LongRoPE, which turns texts of more than `length` tokens otherwise."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": length}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
    return make_mixture(tokenizer, "phi3", seed, rope_parameters=rope, original_max_position_embeddings=length)
