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

"""The shared-prefix pass against the padded batch: same log-probs, same gradients; and which models may take it."""

from functools import wraps

import pytest
import torch
from tiny import DEVICE, FAMILIES, make_model
from torch.nn.utils.rnn import pad_sequence
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from trl_gist.models.shared_prefix import shared_prefix_log_probs, why_not_shared


PROMPTS = [[7, 8, 9, 10, 11, 12]] * 3 + [[20, 21, 22]] * 2 + [[30, 31, 32, 33, 34]]  # groups of three, two and one
LENGTHS = [4, 0, 6, 2, 5, 3]  # 0: a gist that TRL masks because it was cut off
EOS = 2


def make_rows():
    """TRL's padded rows: prompts padded on the left, completions, all but the longest ended by EOS, on the right."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.tensor(prompt) for prompt in PROMPTS]
    completions = [torch.randint(5, 300, (length,), generator=generator) for length in LENGTHS]
    for completion in completions:
        if 0 < len(completion) < max(LENGTHS):
            completion[-1] = EOS
    rows = (
        pad_sequence(prompts, batch_first=True, padding_side="left"),
        pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left"),
        pad_sequence(completions, batch_first=True),
        pad_sequence([torch.ones_like(completion) for completion in completions], batch_first=True),
    )
    return [tensor.to(DEVICE) for tensor in rows]


def padded_log_probs(model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature):
    ids, mask = torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, completion_mask], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits / temperature
    log_p = logits[:, prompt_ids.shape[1] - 1 : -1].log_softmax(-1)
    logps = log_p.gather(-1, completion_ids.unsqueeze(-1)).squeeze(-1)
    return logps * completion_mask, -(log_p.exp() * log_p).sum(-1) * completion_mask


# ---- The numbers ----


def test_log_probs_and_gradients_equal_the_padded_batch(each_model):
    rows = make_rows()
    weights = torch.rand(rows[2].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for score in (
        lambda: shared_prefix_log_probs(each_model, each_model, *rows, temperature=0.7),
        lambda: padded_log_probs(each_model, *rows, temperature=0.7),
    ):
        each_model.zero_grad()
        logps, entropies = score()
        (logps * weights).sum().backward()
        results.append((logps, entropies, {name: p.grad.clone() for name, p in each_model.named_parameters()}))
    (logps, entropies, grads), (expected_logps, expected_entropies, expected_grads) = results
    torch.testing.assert_close(logps, expected_logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-5, rtol=0)
    for name, expected in expected_grads.items():
        assert expected.norm() > 0, name
        assert (grads[name] - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_the_window_decides_log_probs(tokenizer, family):
    """Or the tests here would pass with windows ignored."""
    rows = make_rows()
    narrow, wide = (make_model(tokenizer, family=family, sliding_window=window) for window in (5, 100))
    changed = padded_log_probs(narrow, *rows, temperature=1.0)[0] - padded_log_probs(wide, *rows, temperature=1.0)[0]
    assert (changed.abs() > 0.1).sum() > 10


def test_a_trained_step_equals_that_of_the_padded_batch(make_trainer, lora):
    steps, gists = [], []
    for shares_prefix in (True, False):
        trainer = make_trainer(peft_config=lora, args={"max_steps": 1, "optim": "sgd", "learning_rate": 1.0})
        trainer.shares_prefix = shares_prefix
        sample = trainer.sample

        def sample_once(*args, sample=sample, **kwargs):
            if not gists:  # a seed gives other gists on the other path
                gists.append(sample(*args, **kwargs))
            return gists[0]

        trainer.sample = sample_once
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        steps.append({n: p.detach() - before[n] for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert any(step.abs().max() > 1e-3 for step in steps[1].values())
    for name, expected in steps[1].items():
        torch.testing.assert_close(steps[0][name], expected, rtol=1e-4, atol=1e-7, msg=name)


# ---- Which models may share ----


def replace_forward(model, change):
    """Gives a model a forward that calls its own after `change` to the keyword arguments."""
    forward = model.forward

    @wraps(forward)
    def changed(*args, **kwargs):
        change(kwargs)
        return forward(*args, **kwargs)

    model.forward = changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_family_may_share(each_model, dtype):
    assert why_not_shared(each_model.to(dtype)) is None


def test_attention_that_takes_no_4d_mask_is_refused(tokenizer):
    model = make_model(tokenizer)
    model.config._attn_implementation = "flash_attention_2"
    assert why_not_shared(model) == (
        "its attention (flash_attention_2) takes no 4D mask; load it with attn_implementation='sdpa'"
    )


@pytest.mark.parametrize("kind", ["linear_attention", "chunked_attention"])
def test_layers_of_other_kinds_are_refused(tokenizer, kind):
    model = make_model(tokenizer, family="qwen3")
    model.config.layer_types = [kind, "full_attention"]
    assert why_not_shared(model) == f"it has {kind} layers"


def test_gpt_neo_is_refused():
    """Its local layers count their window (256 in TinyStories-33M, longer than the probe) in keys, not in positions."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        **{
            "vocab_size": 400,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        attention_types=[[["global", "local"], 1]],
    )
    assert why_not_shared(GPTNeoForCausalLM(config)) == "it has global, local layers"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_forward_that_ignores_what_it_is_given_is_refused(tokenizer, family, ignored):
    model = make_model(tokenizer, family=family)
    replace_forward(model, lambda kwargs: kwargs.pop(ignored, None))
    assert why_not_shared(model) == "its probabilities come out different there"


def test_a_forward_that_raises_on_the_mask_is_refused(tokenizer):
    def wants_2d(kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise ValueError("attention_mask should be 2D")

    model = make_model(tokenizer)
    replace_forward(model, wants_2d)
    assert why_not_shared(model) == "its forward does not take the mask (ValueError: attention_mask should be 2D)"


def test_a_forward_without_logits_to_keep_is_refused(tokenizer):
    model = make_model(tokenizer)
    forward = model.forward
    model.forward = lambda input_ids, attention_mask=None, **kwargs: forward(input_ids, attention_mask, **kwargs)
    assert why_not_shared(model) == "its forward takes no logits_to_keep"
