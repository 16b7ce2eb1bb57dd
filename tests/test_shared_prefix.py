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

"""The shared-prefix paths against the padded batch: same log-probs, same gradients, same greedy gists."""

import pytest
import torch
from tiny import make_model
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from trl_gist.shared_prefix import sample_with_shared_prefill, shared_prefix_log_probs, why_not_shared


def make_qwen3(tokenizer):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.2,
        )
    )


def make_rows(lengths, prompts, seed=0):
    """TRL's padded rows: prompts padded on the left, completions on the right."""
    generator = torch.Generator().manual_seed(seed)
    width_p, width_c = max(len(prompt) for prompt in prompts), max(lengths)
    prompt_ids, prompt_mask = torch.zeros(len(prompts), width_p).long(), torch.zeros(len(prompts), width_p).long()
    completion_ids, completion_mask = (
        torch.zeros(len(prompts), width_c).long(),
        torch.zeros(len(prompts), width_c).long(),
    )
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        prompt_ids[row, width_p - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, width_p - len(prompt) :] = 1
        completion_ids[row, :length] = torch.randint(5, 300, (length,), generator=generator)
        completion_mask[row, :length] = 1
    return prompt_ids, prompt_mask, completion_ids, completion_mask


def padded_log_probs(model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature):
    ids, mask = torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, completion_mask], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits / temperature
    log_p = logits[:, prompt_ids.shape[1] - 1 : -1].log_softmax(-1)
    logps = log_p.gather(-1, completion_ids.unsqueeze(-1)).squeeze(-1)
    return logps * completion_mask, -(log_p.exp() * log_p).sum(-1) * completion_mask


PROMPTS = [[7, 8, 9, 10, 11, 12]] * 3 + [[20, 21, 22]] * 2 + [[30, 31, 32, 33, 34]]  # groups of three, two and one
LENGTHS = [4, 1, 6, 2, 5, 3]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_log_probs_and_gradients_equal_the_padded_batch(tokenizer, family, attention):
    model = make_model(tokenizer) if family == "llama" else make_qwen3(tokenizer)
    model.set_attn_implementation(attention)
    rows = make_rows(LENGTHS, PROMPTS)
    weights = torch.rand(rows[2].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for score in (
        lambda: shared_prefix_log_probs(model, model, *rows, temperature=0.7),
        lambda: padded_log_probs(model, *rows, temperature=0.7),
    ):
        model.zero_grad()
        logps, entropies = score()
        (logps * weights).sum().backward()
        results.append((logps, entropies, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (logps, entropies, grads), (expected_logps, expected_entropies, expected_grads) = results
    assert torch.allclose(logps, expected_logps, atol=1e-5)
    assert torch.allclose(entropies, expected_entropies, atol=1e-5)
    for name, expected in expected_grads.items():
        assert (grads[name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_greedy_gists_equal_those_of_the_padded_batch(tokenizer):
    model = make_model(tokenizer)
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
    rows = make_rows([1] * len(PROMPTS), PROMPTS)
    padded = model.generate(input_ids=rows[0], attention_mask=rows[1], generation_config=config)[:, rows[0].shape[1] :]
    assert torch.equal(sample_with_shared_prefill(model, PROMPTS, config, pad_token_id=0), padded)


def test_sampled_distribution_is_that_of_the_padded_batch(tokenizer):
    model = make_model(tokenizer)
    config = GenerationConfig(max_new_tokens=5, do_sample=True, top_k=0, eos_token_id=2, pad_token_id=0)
    rows = make_rows([1] * len(PROMPTS), PROMPTS)
    torch.manual_seed(3)
    padded = model.generate(input_ids=rows[0], attention_mask=rows[1], generation_config=config)[:, rows[0].shape[1] :]
    torch.manual_seed(3)
    assert torch.equal(sample_with_shared_prefill(model, PROMPTS, config, pad_token_id=0), padded)


def test_a_trained_step_equals_that_of_the_padded_batch(make_trainer, lora):
    steps = []
    for shares_prefix in (True, False):
        trainer = make_trainer(peft_config=lora, args={"max_steps": 1, "optim": "sgd", "learning_rate": 1.0})
        trainer.shares_prefix = shares_prefix
        trainer.train()
        steps.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    for name, expected in steps[1].items():
        assert torch.allclose(steps[0][name], expected, rtol=1e-4, atol=1e-7), name


def test_models_whose_attention_takes_no_4d_mask_are_told_apart(tokenizer):
    assert why_not_shared(make_model(tokenizer)) is None
    assert why_not_shared(make_qwen3(tokenizer)) is None
    sliding = make_qwen3(tokenizer)
    sliding.config.layer_types = ["sliding_attention", "full_attention"]
    assert "sliding-window" in why_not_shared(sliding)
    flash = make_model(tokenizer)
    flash.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in why_not_shared(flash)
