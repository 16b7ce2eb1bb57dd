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
Architectures of transformers, one tiny model each: it works, with rows shared or padded for a reason, or it is refused.

*Works* means that the log-probs of S, of G and of T, and what S writes, are those of a plain forward on the text alone,
with prompts of several lengths in the batch, and that a step moves both adapters.
"""

import copy
import logging
import re

import pytest
import torch
from datasets import Dataset
from tiny import make_documents
from torch.nn.utils.rnn import pad_sequence
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BartForConditionalGeneration, T5ForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trl_gist.models.checks import check_not_random, disable_dropout
from trl_gist.models.positions import max_positions
from trl_gist.scoring.targets import TargetScorer


WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
SIZES = {**WIDTHS, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
OPT = {**WIDTHS, "ffn_dim": 48, "word_embed_proj_dim": 32}
WINDOW = {"sliding_window": 5, "head_dim": 8}
BOTH_KINDS = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED_EXPERT = {**EXPERTS, "shared_expert_intermediate_size": 16}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16},
    **{"first_k_dense_replace": 1, "num_key_value_heads": 4},
}
LINEAR = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"layer_types": ["linear_attention", "full_attention"], "head_dim": 8},
}
CHUNKED = {
    **{"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 16, "head_dim": 8},
    **{"intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_layers": [1]},
}
STATES = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}

SHARED_ROWS = {
    "llama": ("llama", SIZES),
    "mistral": ("mistral", {**SIZES, **WINDOW}),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 8}),
    "gemma2": ("gemma2", {**SIZES, **BOTH_KINDS, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5}),
    "gemma3": ("gemma3_text", {**SIZES, **BOTH_KINDS, "query_pre_attn_scalar": 8}),
    "phi3": ("phi3", SIZES),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neox": ("gpt_neox", WIDTHS),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "opt": ("opt", OPT),
    "opt with projections and layers dropped": ("opt", {**OPT, "word_embed_proj_dim": 16, "layerdrop": 0.5}),
    "biogpt": ("biogpt", WIDTHS),
    "falcon": ("falcon", {**WIDTHS, "new_decoder_architecture": False}),
    "olmo2": ("olmo2", SIZES),
    "cohere": ("cohere", {**SIZES, "logit_scale": 0.3}),
    "stablelm": ("stablelm", SIZES),
    "granite": ("granite", {**SIZES, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "smollm3": ("smollm3", {**SIZES, "no_rope_layers": [1, 0], "use_sliding_window": False}),
    "gpt_oss": ("gpt_oss", {**SIZES, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": ("deepseek_v3", {**SIZES, **LATENT}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 4}),
    "mixtral with jitter": ("mixtral", {**SIZES, "num_local_experts": 4, "router_jitter_noise": 0.3}),
    "qwen2_moe": ("qwen2_moe", {**SIZES, **SHARED_EXPERT}),
    "qwen3_moe": ("qwen3_moe", {**SIZES, **EXPERTS, "head_dim": 8}),
    "phimoe": ("phimoe", {**SIZES, "num_local_experts": 4, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3}),
    "granitemoe": ("granitemoe", {**SIZES, "num_local_experts": 4, "logits_scaling": 4.0}),
}

PADDED_ROWS = {
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "its forward does not take the mask"),
    "mpt": (
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
        "its probabilities come out different there",
    ),
    "mamba": ("mamba", STATES, "its forward does not take the mask"),
    "jamba": (
        "jamba",
        {
            **{**SIZES, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1},
            **{"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False},
        },
        "its probabilities come out different there",
    ),
    "qwen3_next": ("qwen3_next", {**SIZES, **LINEAR, **SHARED_EXPERT}, "it has linear_attention layers"),
    "lfm2": (
        "lfm2",
        {**SIZES, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "it has conv layers",
    ),
}

PADDING = "padded on the left, as TRL scores it, other log-probs"
REFUSED = {
    "gpt_neo": ("gpt_neo", {**GPT, "hidden_size": 32, "num_layers": 2, "attention_types": [[["local"], 2]]}, PADDING),
    "rwkv": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 512}, PADDING),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**SIZES, "num_key_value_heads": 1, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
        PADDING,
    ),
    "bart's decoder": (
        "bart",
        {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48, "decoder_attention_heads": 4},
        PADDING,
    ),
    "llama4": (
        "llama4_text",
        {**SIZES, **CHUNKED},
        "Llama4ForCausalLM cannot be the summarizer: TRL's forward over padded rows fails in it (AttributeError",
    ),
    "xlnet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "XLNetLMHeadModel is not causal"),
    "xlm_roberta": ("xlm-roberta", WIDTHS, "XLMRobertaForCausalLM is not causal as it is configured"),
    "bert as a decoder": ("bert", {**WIDTHS, "is_decoder": True}, PADDING),
}

EXPERTS_WITH_A_LOSS = ("mixtral", "mixtral with jitter", "qwen2_moe", "qwen3_moe", "gpt_oss", "phimoe", "granitemoe")
WORKS = {**SHARED_ROWS, **PADDED_ROWS}
ALL = {**WORKS, **REFUSED}


def build(name, tokenizer, **overrides):
    torch.manual_seed(0)
    model_type, values, *_ = ALL[name]
    std = "init_std" if model_type in ("opt", "bart") else "initializer_range"
    config = CONFIG_MAPPING[model_type](
        **{"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, std: 0.1},
        **{**values, **overrides},
    )
    return AutoModelForCausalLM.from_config(config)


def in_turn(gist_ids, **columns):
    return [float(row % 2) for row in range(len(gist_ids))]


@pytest.fixture
def make_architecture(make_trainer, tokenizer, lora):
    def make(name, train_dataset=None, **args):
        model = build(name, tokenizer)
        model_type = ALL[name][0]
        if model_type == "mamba":
            lora.target_modules = ["in_proj", "x_proj"]
        settings = {"num_generations": 2, "per_device_train_batch_size": 4, "max_steps": 1, "context_length": 16}
        return make_trainer(
            model=model,
            processing_class=tokenizer,
            peft_config=lora,
            train_dataset=train_dataset or Dataset.from_dict({"text": make_documents(4)}),
            reward_funcs=[in_turn],  # so that no group's rewards are equal
            args={**settings, **args},
        )

    return make


def plain_log_probs(model, prompt, text):
    """Of the tokens of one text after a prompt: no padding, mask, positions or cache; and the likeliest tokens'."""
    logits = model(input_ids=torch.tensor([prompt + text]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    log_p = logits.double().log_softmax(-1)
    return log_p[range(len(text)), text], log_p.max(-1).values


def check_scores(trainer):
    """S, G and T against plain forwards of theirs, on prompts of different lengths."""
    prompts = [list(range(20, 29))] * 2 + [list(range(40, 44))] * 2
    gists = [[50, 51, 52], [60], [70, 71, 72, 73], [80, 81]]
    for model in (trainer.model, trainer.generator):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, so that the three would be one
                torch.nn.init.normal_(parameter, std=0.1)
    summarizer, generator, teacher = (
        copy.deepcopy(model).eval() for model in (trainer.model, trainer.generator, trainer.teacher)
    )

    def padded(rows, side):
        tensors = [torch.tensor(row) for row in rows]
        masks = [torch.ones_like(tensor) for tensor in tensors]
        return (pad_sequence(some, batch_first=True, padding_side=side) for some in (tensors, masks))

    ids, mask = (torch.cat(both, 1) for both in zip(padded(prompts, "left"), padded(gists, "right"), strict=True))
    trainer.model.train()
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, 4, compute_aux_loss=trainer.aux_loss_enabled
        )
        for row, (prompt, gist) in enumerate(zip(prompts, gists, strict=True)):
            expected, _ = plain_log_probs(summarizer, prompt, gist)
            torch.testing.assert_close(logps[row, : len(gist)].double(), expected, atol=1e-5, rtol=0)

        rows = [
            {"context_ids": prompt, "last_k_ids": prompt[-4:], "target_ids": gist}
            for prompt, gist in zip(prompts, gists, strict=True)
        ]
        scorer = trainer.generator_trainer.scorer
        for scored, reference in ((TargetScorer(trainer.generator), generator), (scorer.teacher, teacher)):
            hidden, _ = scorer.read_contexts(rows)
            for (found, *_), prompt, gist in zip(
                scorer.read(scored, rows, prompts, hidden), prompts, gists, strict=True
            ):
                torch.testing.assert_close(found, plain_log_probs(reference, prompt, gist)[0], atol=1e-5, rtol=0)

        # Greedy, as in evaluation: what S writes is the likeliest, up to rounding
        trainer.model.eval()
        written, _ = trainer.sample(prompts)
        for prompt, completion in zip(prompts, written, strict=True):
            chosen, likeliest = plain_log_probs(summarizer, prompt, completion)
            torch.testing.assert_close(chosen, likeliest, atol=1e-4, rtol=0)
        trainer.model.train()


@pytest.mark.parametrize("name", WORKS)
def test_an_architecture_works(make_architecture, caplog, name):
    with caplog.at_level(logging.WARNING):
        trainer = make_architecture(name)
    said = [record.getMessage() for record in caplog.records if "padded into a row each" in record.getMessage()]
    if name in SHARED_ROWS:
        assert trainer.shares_prefix and not said
    else:
        assert not trainer.shares_prefix and ALL[name][2] in said[0]
    said = [record.getMessage() for record in caplog.records if "The policy's loss pads" in record.getMessage()]
    assert bool(said) == (name in EXPERTS_WITH_A_LOSS)
    check_scores(trainer)
    before = {
        role: {n: p.clone() for n, p in getattr(trainer, role).named_parameters()} for role in ("model", "generator")
    }
    trainer.train()
    for role, values in before.items():
        moved = [n for n, p in getattr(trainer, role).named_parameters() if not torch.equal(p, values[n])]
        assert moved and all("lora_" in name for name in moved), role


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_is_refused_for_its_own_reason(make_architecture, name):
    with pytest.raises(ValueError, match=re.escape(REFUSED[name][2])):
        make_architecture(name)


@pytest.mark.parametrize("model_class", [T5ForConditionalGeneration, BartForConditionalGeneration])
def test_encoders_with_decoders_are_refused(make_trainer, tokenizer, model_class):
    model = model_class(model_class.config_class(vocab_size=len(tokenizer), d_model=32, num_layers=1))
    with pytest.raises(ValueError, match=f"The summarizer is a {model_class.__name__}, an encoder with a decoder"):
        make_trainer(model=model, processing_class=tokenizer)


@pytest.mark.parametrize("name", ["phimoe", "llama4"])
def test_an_adapter_on_a_router_of_experts_is_refused(make_trainer, tokenizer, lora, name):
    """PEFT takes it for the linear layer that it inherits from, and fails on the tuple that it gives. "all-linear" leaves it
    out."""
    lora.target_modules = ["q_proj", "router"]
    with pytest.raises(ValueError, match=r"router, a \w+, which PEFT cannot adapt.*exclude_modules=\['router'\]"):
        make_trainer(model=build(name, tokenizer), processing_class=tokenizer, peft_config=lora)


def test_llama4_may_generate_and_teach(make_trainer, tokenizer, lora):
    llama4 = build("llama4", tokenizer)
    trainer = make_trainer(
        model=build("llama", tokenizer), generator=llama4, processing_class=tokenizer, peft_config=lora
    )
    check_scores(trainer)


def test_the_balance_of_experts_may_be_left_out(make_architecture, caplog):
    with caplog.at_level(logging.WARNING):
        make_architecture("mixtral", router_aux_loss_coef=0.0)
    assert "pads the gists" not in caplog.text


# ---- Train mode ----


@pytest.mark.parametrize("name", WORKS)
def test_train_mode_is_not_random(tokenizer, name):
    """Sampling and scoring both run in it, and would differ."""
    model = build(name, tokenizer).train()
    disable_dropout(model)
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        first, *others = (model(input_ids=ids, use_cache=False).logits for _ in range(4))
        others.append(model.eval()(input_ids=ids, use_cache=False).logits)
    for other in others:
        assert torch.equal(first, other)


def test_noise_that_no_setting_stops_is_refused(tokenizer):
    model = build("llama", tokenizer)
    model.model.norm.register_forward_hook(
        lambda module, args, output: output * (1 + torch.rand(1)) if module.training else output
    )
    model.eval()
    with pytest.raises(ValueError, match="gives other logits in train mode than in eval mode"):
        check_not_random(model)
    assert not any(module.training for module in model.modules())


# ---- Positions ----

# Sequences of text in another sense: of a vision or speech part, of a patch, of a table of frequencies
OTHER_LENGTHS = ("max_length", "original_max_position_embeddings", "max_patch_length", "max_source_positions")


@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_max_positions_knows_every_name(model_type):
    """A configuration of transformers that names its limit is understood, whatever the name."""
    if model_type in ("musicgen", "musicgen_melody", "whisper", "gemma4_assistant"):
        pytest.skip("audio, or a drafter: no language model of its own")
    config = CONFIG_MAPPING[model_type]()
    model = torch.nn.Module()
    model.config = config
    named = {
        name: value
        for name, value in config.get_text_config().to_dict().items()
        if re.search("n_positions|n_ctx|(max|model).*(seq_len|position|length)|context_length|^seq_length", name)
        and name not in OTHER_LENGTHS
        and isinstance(value, int)
    }
    assert set(named.values()) == ({max_positions(model)} if named else set()), named


@pytest.mark.parametrize("name", ["gpt2", "gptj", "opt", "biogpt", "mpt", "llama"])
def test_a_window_beyond_the_positions_is_refused_with_numbers(make_architecture, name):
    rows = Dataset.from_dict({"context": [[7] * 600] * 4, "target": [[8]] * 4})
    message = r"does not fit the summarizer: 600 tokens where its positions leave room for \d+ beside"
    with pytest.raises(ValueError, match=message):
        make_architecture(name, rows, summarizer_prompt="Shorten: {context}")


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode", "gptj", "opt", "biogpt", "mpt", "falcon", "bloom", "llama"])
def test_the_last_position_can_be_read(tokenizer, name):
    model = build(name, tokenizer)
    length = max_positions(model) or 600
    with torch.no_grad():
        logits = model(input_ids=torch.full((1, length), 7), use_cache=False).logits
    assert logits.isfinite().all()
