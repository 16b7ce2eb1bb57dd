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
import importlib
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_reference import ReferenceModel, assert_close, assert_same_gradients, gradients
from tiny import make_model
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_gist import GistTrainer, length_penalty
from trl_gist.models.attention import ATTENTION_NAME
from trl_gist.trainer.config_checks import check_precision


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
    model, loading = checkpoint64, {"model_init_kwargs": {"dtype": torch.float64}}
    reference = AutoModelForCausalLM.from_pretrained(checkpoint64, dtype=torch.float64)
    if kind == "adapter":
        loading = {}
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
            **{"reward_weights": [1.0], **loading},
        },
    )
    if padded:
        trainer.shares_prefix = False
    perturb(trainer.model)
    summarizer = ReferenceModel(trainer.model)
    monkeypatch.setattr(trainer.rollout, "write", lambda *args: (GISTS, None))
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


def test_an_adapter_that_came_trained_goes_on_from_its_checkpoint_beside_its_reference(
    make_trainer, checkpoint, lora, tmp_path
):
    def make():
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), lora)
        perturb(model)
        args = {"beta": BETA, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
        return make_trainer(model=model, args=args)

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for (name, ours), (_, theirs) in zip(
        resumed.model.named_parameters(), whole.model.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    whole.save_model(str(tmp_path / "pair"))
    saved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), tmp_path / "pair")
    trained = dict(whole.model.named_parameters())
    for name, value in saved.named_parameters():
        assert torch.equal(value, trained[name]), name


# ---- Imitation ----


MICRO_BATCHES = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "per_device_train_batch_size": 2}
LOSS_SETTINGS = [
    {},
    *({"loss_type": name} for name in ("grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")),
    {"importance_sampling_level": "sequence"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    {"epsilon": 1e-6},
    {"epsilon_high": 1e-6},
    {"delta": 1.1},
    {"top_entropy_quantile": 0.2},
    {"off_policy_mask_threshold": 1e-6},
    {"num_iterations": 3},
    {"num_iterations": 3, "loss_type": "vespo"},
    {"num_iterations": 3, "off_policy_mask_threshold": 1e-6, "delta": 1.1},
    {"steps_per_generation": 2, "per_device_train_batch_size": 4},
    MICRO_BATCHES,
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "num_iterations": 2},
    {"scale_rewards": "none"},
    {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 1e-4]},
    {"advantage": "reward"},
]


def imitated(step_inputs):
    """Prompts and gists with a weight, of a step's micro-batches."""
    return [
        row
        for inputs in step_inputs
        for row, weight in zip(rows(inputs), inputs["advantages"].tolist(), strict=True)
        if weight > 0
    ]


@pytest.mark.parametrize(
    ("advantage", "settings"),
    [("cold start", settings) for settings in LOSS_SETTINGS]
    + [("best", settings) for settings in ({}, {"num_iterations": 3}, MICRO_BATCHES)],
    ids=str,
)
def test_imitation_is_the_mean_cross_entropy_whatever_shapes_the_policy_loss(
    make_trainer, checkpoint64, monkeypatch, settings, advantage
):
    """At every step on a rollout, also those that the policy loss would clip: over the tokens of the gists imitated."""
    summarizers = []

    class Watch(RecordGradients):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            summarizers.append(ReferenceModel(model))

    watch = Watch()
    trainer = make_trainer(
        model=checkpoint64,
        callbacks=[watch],
        args={
            **({"advantage": "best"} if advantage == "best" else {"cold_start_steps": 9}),
            **{"model_init_kwargs": {"dtype": torch.float64}, "temperature": TEMPERATURE, "max_grad_norm": 0.0},
            **{"max_steps": 3, "learning_rate": 1e-2, "lr_scheduler_type": "constant", **settings},
        },
    )
    completions = [GISTS]
    monkeypatch.setattr(trainer.rollout, "write", lambda rows, _: (completions[0][: len(rows)], None))
    seen = record_loss_inputs(trainer, monkeypatch)
    trainer.train()
    accumulated = trainer.args.gradient_accumulation_steps
    per_rollout = trainer.args.steps_per_generation
    assert len(seen) == 3 * accumulated and len(watch.steps) == 3
    for step, actual in enumerate(watch.steps):
        micro_batches = seen[step * accumulated : (step + 1) * accumulated]
        first = step * accumulated // per_rollout * per_rollout
        rollout = seen[first : first + max(per_rollout, accumulated)]  # whole where the run has not ended inside it
        tokens = micro_batches[0]["imitated_tokens"].item()
        if len(rollout) == per_rollout:
            assert tokens == sum(len(gist) for _, gist in imitated(rollout))
        loss = 0
        for prompt, gist in imitated(micro_batches):
            logps = summarizers[step].log_probs(prompt, gist, TEMPERATURE)
            loss -= logps[range(len(gist)), gist].sum() / (tokens * accumulated / per_rollout)
        if imitated(micro_batches):
            assert_same_gradients(actual, summarizers[step].gradients(loss))
            assert trainer.state.log_history[step]["loss"] == pytest.approx(loss.item(), rel=1e-3)


def test_the_terms_beside_the_policys_are_those_of_trl_while_gists_are_imitated(
    make_trainer, checkpoint64, monkeypatch
):
    """The KL to the reference and the entropy bonus: with and without them the losses differ by TRL's own."""
    losses = {}
    for name, settings in {"plain": {}, "both": {"beta": BETA, "entropy_coef": 0.1}}.items():
        args = {"cold_start_steps": 1, "max_steps": 1, "model_init_kwargs": {"dtype": torch.float64}, **settings}
        trainer = make_trainer(model=checkpoint64, args=args)
        perturb(trainer.model)
        trainer.train()
        losses[name] = trainer.state.log_history[0]
    both = losses["both"]
    assert both["kl"] > 0.01
    expected = losses["plain"]["loss"] + BETA * both["kl"] - 0.1 * both["entropy"]
    assert both["loss"] == pytest.approx(expected, abs=2e-3)  # the log is rounded


def test_imitation_goes_on_after_an_evaluation_inside_a_rollout(make_trainer, monkeypatch, documents):
    trainer = make_trainer(
        eval_dataset=documents.select(range(2)),
        args={"num_iterations": 4, "cold_start_steps": 4, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 1},
    )
    seen = record_loss_inputs(trainer, monkeypatch)
    trainer.train()
    training = [inputs for inputs in seen if len(inputs["advantages"]) == 8]
    assert len(training) == 4 and all("imitated_tokens" in inputs for inputs in training)


@pytest.mark.parametrize(
    ("advantage", "setting", "sentence"),
    [
        *(
            ("best", setting, rf"`{name}` .* would have no effect. Leave it out")
            for setting in LOSS_SETTINGS[1:15]
            for name in list(setting)[:1]
            if name != "num_iterations"
        ),
        ("best", {"scale_rewards": "batch"}, "weighted sum of the rewards as it is: leave out"),
        ("reward", {"scale_rewards": "batch"}, "weighted sum of the rewards as it is: leave out"),
        ("best", {"multi_objective_aggregation": "normalize_then_sum"}, "leave out `multi_objective_aggregation`"),
        ("reward", {"multi_objective_aggregation": "normalize_then_sum"}, "leave out `multi_objective_aggregation`"),
    ],
    ids=str,
)
def test_what_an_advantage_would_not_heed_is_refused(make_args, advantage, setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_args(advantage=advantage, **setting)


# ---- Refused ----


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"fp16": True}, "`fp16=True` asks for float16, .* Use `bf16=True`"),
        ({"fp16_full_eval": True}, "`fp16_full_eval=True` would cast the summarizer for good"),
        ({"bf16_full_eval": True}, "`bf16_full_eval=True` would cast the summarizer for good"),
        ({"mask_truncated_completions": True}, "`mask_truncated_completions` must be False"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` must be None, got 5.0"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` must be False"),
        ({"max_completion_length": None}, "`max_completion_length` must be at least 1, got None"),
    ],
    ids=str,
)
def test_a_setting_that_a_pair_cannot_be_trained_with_is_refused(make_args, setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_args(**setting)


def test_float16_from_outside_the_arguments_is_refused(make_args, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(
        ValueError, match="`ACCELERATE_MIXED_PRECISION` .fp16. asks for float16, .* Unset it, or launch"
    ):
        make_args()


def test_float16_of_a_deepspeed_config_is_refused(make_args):
    args = make_args()
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={"fp16": {"enabled": True}})
    with pytest.raises(ValueError, match="The DeepSpeed config's `fp16` section asks for float16"):
        check_precision(args)
    args.deepspeed_plugin.deepspeed_config["fp16"]["enabled"] = False
    check_precision(args)


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_trained_role_in_float16_is_refused_and_a_teacher_is_not(make_trainer, checkpoint, lora, with_lora):
    half = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float16)
    peft_config = lora if with_lora else None
    for role, given in {
        "summarizer": {"args": {"model_init_kwargs": {"dtype": "float16"}}},
        "generator": {"generator": half},
    }.items():
        with pytest.raises(ValueError, match=f"The {role} is in float16, .* Load it with"):
            make_trainer(peft_config=peft_config, **given)
    make_trainer(peft_config=peft_config, teacher=half)


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 1e-4, 0.5]], ids=len)
def test_reward_weights_of_another_number_than_the_reward_functions_are_refused(make_trainer, weights):
    with pytest.raises(ValueError, match=rf"`reward_weights` has {len(weights)} weights for 2 reward functions"):
        make_trainer(args={"reward_weights": weights})


# ---- Whose the arguments are ----


@pytest.mark.parametrize("kind", ["full", "lora", "beta", "streamed", "cold start"])
def test_two_trainers_of_one_args_are_the_same_and_leave_it_as_it_was(
    make_args, checkpoint, documents, lora, tmp_path, kind
):
    """Every field. A trainer's `args` is the one that it was given."""
    overrides = {"beta": {"beta": BETA}, "cold start": {"cold_start_steps": 2}}.get(kind, {})
    args = make_args(model_init_kwargs={"dtype": "bfloat16", "revision": "main"}, **overrides)
    before = {field.name: copy.deepcopy(getattr(args, field.name)) for field in fields(args)}
    dataset = documents.to_iterable_dataset() if kind == "streamed" else documents
    for _ in range(2):
        trainer = GistTrainer(checkpoint, args, train_dataset=dataset, peft_config=lora if kind == "lora" else None)
        assert trainer.args is args
        trainer.train()
        roles = [trainer.model, trainer.generator, trainer.teacher]
        roles += [trainer.ref_model] if kind == "beta" else []
        assert {role.get_input_embeddings().weight.dtype for role in roles} == {torch.bfloat16}
        assert trainer.initial_reward_weights == [1.0, 1e-4]
        assert trainer.reward_weights.tolist() == pytest.approx([1.0, 1e-4])
        after = {field.name: getattr(args, field.name) for field in fields(args)}
        if kind == "streamed":  # TRL's own, which it goes on reading
            after["accelerator_config"] = before["accelerator_config"]
        assert after == before


def test_the_reference_is_loaded_as_the_summarizer_is(make_trainer, monkeypatch):
    """`revision` and all: both loads of the checkpoint are asked for the same."""
    asked = []
    for module in ("trl_gist.models.roles", "trl.trainer.grpo_trainer"):
        create = importlib.import_module(module).create_model_from_path
        monkeypatch.setattr(
            f"{module}.create_model_from_path",
            lambda path, create=create, **kwargs: asked.append(kwargs) or create(path, **kwargs),
        )
    make_trainer(args={"beta": BETA, "model_init_kwargs": {"revision": "main", "dtype": "bfloat16"}})
    of_roles, of_reference = asked
    assert {name: of_reference[name] for name in of_roles} == of_roles
    assert of_roles["revision"] == "main"


def test_a_trainer_that_cannot_be_built_leaves_the_arguments_too(make_args, checkpoint, documents):
    args = make_args(model_init_kwargs={"dtype": "float32"}, sync_ref_model=True)  # TRL refuses it without beta
    with pytest.raises(ValueError, match="sync_ref_model"):
        GistTrainer(checkpoint, args, train_dataset=documents)
    assert args.model_init_kwargs == {"dtype": "float32"} and args.reward_weights is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"length_penalty": float("nan")}, "`length_penalty` must be a finite number"),
        ({"temperature": float("inf")}, "`temperature` must be a finite number"),
        ({"beta": float("nan")}, "`beta` must be a finite number"),
        ({"beta": -1.0}, "`beta` must not be below 0"),
        ({"max_grad_norm": -1.0}, "`max_grad_norm` must not be below 0"),
        ({"reward_weights": [float("nan"), 1.0]}, "`reward_weights` must be a finite number, got nan"),
        ({"generator_only": True, "target_gist_length": 3}, "`target_gist_length` .* acts on the summarizer"),
        ({"generator_only": True, "beta": 0.1}, "`beta` .* acts on the summarizer"),
        ({"max_teacher_kl": 1.0, "length_penalty": -1.0}, "`length_penalty` must not be below 0"),
        ({"learning_rate": 0.0, "cold_start_learning_rate": 1e-3}, "is a multiple of `learning_rate`, which is 0"),
        ({"num_iterations": 0}, "`num_iterations` must be at least 1"),
        ({"context_length": 24.5}, "`context_length` must be at least 1, got 24.5. Give a whole number"),
        ({"model_init_kwargs": {"torch_dtype": "bfloat16"}}, "write `dtype`"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(make_args, args, message):
    with pytest.raises(ValueError, match=message):
        make_args(**args)


def test_dropout_that_would_be_switched_off_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`peft_config` has `lora_dropout=0.1`"):
        make_trainer(peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear"))


def test_an_adapter_and_a_configuration_of_another_are_refused(make_trainer, lora, tokenizer):
    generator = get_peft_model(make_model(tokenizer), lora)
    with pytest.raises(ValueError, match="`generator` is a PeftModel"):
        make_trainer(peft_config=lora, generator=generator, generator_peft_config=lora)


def test_the_best_checkpoint_needs_an_eval_dataset(make_trainer, lora):
    with pytest.raises(ValueError, match="pass an `eval_dataset`"):
        make_trainer(
            peft_config=lora,
            eval_dataset={},
            args={"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1},
        )
