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

"""Settings of the summarizer's step: the reference of `beta`, what imitation is, precision, and whose `args` are."""

import copy
from dataclasses import fields

import pytest
import torch
from peft import PeftModel, get_peft_model
from test_reference import ReferenceModel, assert_close, assert_same_gradients, gradients
from tiny import make_model
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_gist import length_penalty
from trl_gist.attention import ATTENTION_NAME


TEMPERATURE, BETA = 0.8, 0.3
# Uneven, one is empty, one is at the limit of 6 tokens; 2 is the end-of-sequence token
GISTS = [[40, 41, 42, 2], [2], [50, 51, 2], [60, 61, 62, 63, 64, 65], [70, 2], [71, 72, 73, 2], [80, 81, 2], [82, 2]]


@pytest.fixture(scope="session")
def checkpoint64(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-float64")
    make_model(tokenizer, dtype=torch.float64).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


class RecordGradients(TrainerCallback):
    """Of the summarizer, at each of its optimizer steps."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(gradients(model))


def record_loss_inputs(trainer, monkeypatch):
    """What each call of the policy loss is given."""

    def record(model, inputs):
        seen.append(inputs)
        return compute_loss(model, inputs)

    seen, compute_loss = [], trainer._compute_loss
    monkeypatch.setattr(trainer, "_compute_loss", record)
    return seen


def rows(inputs):
    """Prompt and completion of each row without padding."""
    names = ("prompt", "completion")
    columns = [(inputs[f"{name}_ids"], inputs[f"{name}_mask"]) for name in names]
    for values in zip(*(column for pair in columns for column in pair), strict=True):
        yield tuple(ids[keep.bool()].tolist() for ids, keep in (values[:2], values[2:]))


def plain_log_probs(model, inputs):
    """Each row's completion under a model that reads the row by itself."""
    for prompt, completion in rows(inputs):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        yield (logits / TEMPERATURE).log_softmax(-1)[range(len(completion)), completion]


def perturb(model, std=0.05):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn_like(parameter))


# ---- The reference of beta ----


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
@pytest.mark.parametrize("padded", [False, True], ids=["shared", "padded"])
def test_the_kl_to_the_reference_and_its_gradient_equal_a_plain_reference(
    make_trainer, checkpoint64, lora, monkeypatch, kind, padded
):
    """Of a fresh adapter the reference is the base, of one that came trained a copy of it, else the checkpoint."""
    model, reference = checkpoint64, AutoModelForCausalLM.from_pretrained(checkpoint64, dtype=torch.float64)
    if kind == "adapter":
        model = get_peft_model(copy.deepcopy(reference), lora)
        perturb(model)
        reference = copy.deepcopy(model)
    recorded = RecordGradients()
    trainer = make_trainer(
        model=model,
        peft_config=lora if kind == "lora" else None,
        reward_funcs=length_penalty,
        callbacks=[recorded],
        args={
            **{"beta": BETA, "temperature": TEMPERATURE, "max_grad_norm": 0.0, "max_steps": 1},
            **{"model_init_kwargs": {"dtype": torch.float64}, "reward_weights": [1.0]},
        },
    )
    if padded:
        trainer.shares_prefix = False
    perturb(trainer.model)
    summarizer = ReferenceModel(trainer.model)
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *args, **kwargs: (GISTS, None))
    seen = record_loss_inputs(trainer, monkeypatch)
    trainer.train()
    (inputs,) = seen
    loss, kl, tokens = 0, 0, sum(map(len, GISTS))
    with torch.no_grad():
        reference_logps = list(plain_log_probs(reference, inputs))
    for index, ((prompt, gist), reference_T) in enumerate(zip(rows(inputs), reference_logps, strict=True)):
        assert_close(inputs["ref_per_token_logps"][index, : len(gist)], reference_T)
        logps_T = summarizer.log_probs(prompt, gist, TEMPERATURE)[range(len(gist)), gist]
        kl_T = (reference_T - logps_T).exp() - (reference_T - logps_T) - 1
        kl += kl_T.sum().item() / tokens
        ratio_T = (logps_T - logps_T.detach()).exp()  # TRL's `use_bias_correction_kl`, its default
        loss += (BETA * ratio_T * kl_T - inputs["advantages"][index] * logps_T).sum() / tokens
    assert kl > 0.01
    assert trainer.state.log_history[0]["kl"] == pytest.approx(kl, abs=1e-6)
    expected = summarizer.gradients(loss)
    actual = {name: grad for name, grad in recorded.steps[0].items() if name in expected}
    assert_same_gradients(actual, expected)
    assert len(recorded.steps[0]) == len(expected), "the reference is not trained"


def test_the_reference_of_a_summarizer_with_a_trained_head_beside_its_adapter_is_the_base(
    make_trainer, checkpoint, lora, monkeypatch
):
    lora.modules_to_save = ["norm"]
    trainer = make_trainer(peft_config=lora, args={"beta": BETA, "temperature": TEMPERATURE, "max_steps": 1})
    perturb(trainer.model)
    seen = record_loss_inputs(trainer, monkeypatch)
    trainer.train()
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = torch.cat(list(plain_log_probs(base, seen[0])))
    actual = seen[0]["ref_per_token_logps"][seen[0]["completion_mask"].bool()]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_the_reference_reads_walks_too(make_trainer, checkpoint, monkeypatch):
    trainer = make_trainer(
        args={
            **{"beta": BETA, "temperature": TEMPERATURE, "max_steps": 1},
            **{"windows_per_document": 2, "context_length": 40, "target_length": 4},
        }
    )
    perturb(trainer.model)
    seen = record_loss_inputs(trainer, monkeypatch)
    trainer.train()
    reference = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = torch.cat(list(plain_log_probs(reference, seen[0])))
    actual = seen[0]["ref_per_token_logps"][seen[0]["completion_mask"].bool()]
    assert len(seen[0]["advantages"]) == 16
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_the_reference_is_the_summarizer_as_it_was_given_and_reads_as_it_does(make_trainer, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    perturb(model)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    trainer = make_trainer(model=model, args={"beta": BETA})
    for (name, of_s), (_, of_reference) in zip(
        trainer.model.named_parameters(), trainer.ref_model.named_parameters(), strict=True
    ):
        assert torch.equal(of_s, of_reference), name
    for policy in (trainer.model, trainer.ref_model):
        assert policy.config._attn_implementation == ATTENTION_NAME
        assert {layer.self_attn.attention_dropout for layer in policy.model.layers} == {0.0}
    assert not trainer.ref_model.training


def test_a_reference_without_a_checkpoint_is_refused(make_trainer, tokenizer):
    with pytest.raises(ValueError, match=r"`beta` \(0.3\) needs a reference, .* train it with a `peft_config`"):
        make_trainer(model=make_model(tokenizer), processing_class=tokenizer, args={"beta": BETA})


def test_a_reference_that_is_synced_moves_as_trl_says_and_a_resumed_run_has_it(make_trainer, tmp_path):
    """`ref_model_mixup_alpha` of S and the rest of itself, every `ref_model_sync_steps`."""

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append((copy.deepcopy(model.state_dict()), copy.deepcopy(trainer.ref_model.state_dict())))

    args = {
        **{"beta": BETA, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.75},
        **{"max_steps": 4, "save_strategy": "steps", "save_steps": 3},
    }
    seen = []
    trainer = make_trainer(args=args)
    trainer.add_callback(Watch())  # after TRL's own
    before = copy.deepcopy(trainer.ref_model.state_dict())
    trainer.train()
    for name, value in before.items():
        assert torch.equal(seen[0][1][name], value)
        expected = 0.25 * value + 0.75 * seen[1][0][name]
        torch.testing.assert_close(seen[1][1][name], expected)
        assert torch.equal(seen[2][1][name], seen[1][1][name])
    whole = seen
    seen = []
    trainer = make_trainer(args=args)
    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    (resumed,) = seen
    for ours, theirs in zip(resumed, whole[3], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
