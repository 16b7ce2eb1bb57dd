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
Every type of adapter that PEFT has, and what LoRA can be set to: it works, or is refused in a sentence.

It works where the teacher is exactly the base, before and after a step; the summarizer and the generator train tensors of
their own, by the gradients that autograd takes of the models' own logits; either without its adapter is the base; and the
saved pair reads as the trained one.
"""

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.tuners.lora.config import ArrowConfig, BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from test_shared_prefix import make_rows, padded_log_probs
from tiny import make_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from trl_gist import GistCompactor
from trl_gist.evaluation.readers import load_teacher
from trl_gist.inference.certify import full_context_reader
from trl_gist.models.adapters import SUPPORTED_TYPES, check_drawn
from trl_gist.models.checks import check_bare
from trl_gist.models.fingerprints import frozen_digests
from trl_gist.models.loading import HalfLoader
from trl_gist.models.roles import base_of, clone_with_shared_parameters
from trl_gist.models.shared_prefix import shared_prefix_log_probs
from trl_gist.scoring.targets import TargetRows, TargetScorer


ATTENTION = ["q_proj", "v_proj"]
IDS = torch.arange(5, 25).unsqueeze(0)


def on_attention(name, **values):
    return getattr(peft, name)(target_modules=ATTENTION, task_type="CAUSAL_LM", **values)


def lora(**values):
    return LoraConfig(**{"r": 4, "target_modules": ATTENTION, "task_type": "CAUSAL_LM", **values})


def prompt(name, **values):
    return getattr(peft, name)(task_type="CAUSAL_LM", **values)


WORKING_TYPES = {
    "LORA": lora,
    "BEFT": lambda: on_attention("BeftConfig"),
    "BOFT": lambda: on_attention("BOFTConfig", boft_block_size=4),
    "C3A": lambda: on_attention("C3AConfig", block_size=16),
    "DEFT": lambda: on_attention("DeftConfig", r=4),
    "DELORA": lambda: on_attention("DeloraConfig", r=4),
    "FOURIERFT": lambda: on_attention("FourierFTConfig", n_frequency=20),
    "FROD": lambda: on_attention("FrodConfig", progressbar=False),
    "GLORA": lambda: on_attention("GloraConfig", r=4),
    "GRALORA": lambda: on_attention("GraloraConfig", r=4, gralora_k=2),
    "HIRA": lambda: on_attention("HiraConfig", r=4),
    "HRA": lambda: on_attention("HRAConfig", r=4),
    "IA3": lambda: on_attention("IA3Config", feedforward_modules=[]),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"], task_type="CAUSAL_LM"),
    "LOHA": lambda: on_attention("LoHaConfig", r=4),
    "LOKR": lambda: on_attention("LoKrConfig", r=4),
    "MISS": lambda: on_attention("MissConfig", r=4),
    "OFT": lambda: on_attention("OFTConfig", oft_block_size=8),
    "OSF": lambda: on_attention("OSFConfig"),
    "PEANUT": lambda: on_attention("PeanutConfig", r=4),
    "PSOFT": lambda: on_attention("PsoftConfig", r=4),
    "RANDLORA": lambda: on_attention("RandLoraConfig", r=4),
    "ROAD": lambda: on_attention("RoadConfig", group_size=8),
    "SHIRA": lambda: on_attention("ShiraConfig", r=4),
    "SUPERTUNING": lambda: on_attention("SupertuningConfig"),
    "TINYLORA": lambda: on_attention("TinyLoraConfig"),
    "TRAINABLE_TOKENS": lambda: peft.TrainableTokensConfig(token_indices=list(range(5, 300)), task_type="CAUSAL_LM"),
    "UNILORA": lambda: on_attention("UniLoraConfig", r=4),
    "VBLORA": lambda: on_attention("VBLoRAConfig", r=4, num_vectors=8, vector_length=8),
    "VERA": lambda: on_attention("VeraConfig", r=4),
    "WAVEFT": lambda: on_attention("WaveFTConfig", n_frequency=20),
}

REFUSED_TYPES = {
    "PROMPT_TUNING": (
        lambda: prompt("PromptTuningConfig", num_virtual_tokens=4),
        "learned positions before the prompt",
    ),
    "MULTITASK_PROMPT_TUNING": (
        lambda: prompt("MultitaskPromptTuningConfig", num_virtual_tokens=4),
        "learned positions before the prompt",
    ),
    "P_TUNING": (lambda: prompt("PromptEncoderConfig", num_virtual_tokens=4), "learned positions before the prompt"),
    "PREFIX_TUNING": (
        lambda: prompt("PrefixTuningConfig", num_virtual_tokens=4),
        "learned positions before the prompt",
    ),
    "CPT": (
        lambda: prompt("CPTConfig", cpt_token_ids=[5, 6], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]),
        "learned positions before the prompt",
    ),
    "CARTRIDGE": (lambda: prompt("CartridgeConfig", num_virtual_tokens=4), "learned positions before the prompt"),
    "ADAPTION_PROMPT": (
        lambda: prompt("AdaptionPromptConfig", adapter_len=4, adapter_layers=1),
        "cannot be taken off a copy",
    ),
    "ADALORA": (lambda: on_attention("AdaLoraConfig", total_step=10), "update_and_allocate"),
    "LILY": (lambda: on_attention("LilyConfig", r=4), "mean over all tokens of a batch"),
    "POLY": (lambda: on_attention("PolyConfig", r=4), "task id"),
    "XLORA": (lambda: prompt("XLoraConfig", hidden_size=32, adapters={}), "trained already"),
    "SHADOW": (lambda: prompt("ShadowConfig"), "second model"),
    "PVERA": (lambda: on_attention("PveraConfig", r=4), "draws noise"),
    "ADAMSS": (lambda: with_type("ADAMSS"), "has not been tried"),  # its configuration asks for scikit-learn
}


def with_type(name):
    config = lora()
    config.peft_type = PeftType[name]
    return config


# With LoRA: values, and whether the base's head is its embeddings
WORKING_LORA = {
    "gaussian": ({"init_lora_weights": "gaussian"}, True),
    "random": ({"init_lora_weights": False}, True),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, True),
    "mica": ({"init_lora_weights": "mica"}, True),
    "dora": ({"use_dora": True}, True),
    "rslora": ({"use_rslora": True}, True),
    "lora_bias": ({"lora_bias": True}, True),
    "bdlora": ({"use_bdlora": BdLoraConfig(ATTENTION, [], nblocks=2, match_strict=False)}, True),
    "velora": ({"velora_config": VeloraConfig(num_groups=2)}, True),
    "parameters": ({"target_parameters": ["gate_proj.weight"]}, True),
    "embeddings": ({"target_modules": ["embed_tokens"]}, False),
    "trained head": ({"modules_to_save": ["lm_head"]}, False),
    "trained head of a tied model": ({"modules_to_save": ["lm_head"]}, True),
    "trained embeddings": ({"modules_to_save": ["embed_tokens"]}, False),
    "trained embeddings of a tied model": ({"modules_to_save": ["embed_tokens"]}, True),
    "trained and tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "trained norm": ({"modules_to_save": ["norm"]}, True),
    "tokens": ({"trainable_token_indices": list(range(5, 300))}, False),
    "tokens of a tied model": ({"trainable_token_indices": list(range(5, 300))}, True),
}

REFUSED_LORA = {
    "pissa": ({"init_lora_weights": "pissa"}, "'pissa'`, which writes into the base"),
    "pissa in 4": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'`, which writes into the base"),
    "olora": ({"init_lora_weights": "olora"}, "'olora'`, which writes into the base"),
    "corda": ({"init_lora_weights": "corda"}, "'corda'`, which writes into the base"),
    "loftq": (
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        "'loftq'`, which writes into the base",
    ),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "'lora_ga'`, which writes into the base"),
    "kasa": ({"kasa_config": KasaConfig()}, "`kasa_config`, which writes into the base"),
    "eva": ({"init_lora_weights": "eva"}, "batches that no trainer gives it"),
    "all biases": ({"bias": "all"}, "bias='all'`, which trains biases of the base.*lora_bias=True"),
    "biases": ({"bias": "lora_only"}, "bias='lora_only'`, which trains biases of the base.*lora_bias=True"),
    "alora": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    "arrow": ({"arrow_config": ArrowConfig()}, "arrow_config"),
    "monteclora": ({"monteclora_config": MontecloraConfig()}, "draws noise"),
    "more layers": ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
    "qalora": ({"use_qalora": True}, "use_qalora"),
}


@pytest.fixture(scope="module")
def untied(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("untied")
    make_model(tokenizer, tie_word_embeddings=False).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def make_small(make_trainer, documents):
    def make(model, **kwargs):
        args = {"max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2, **kwargs.pop("args", {})}
        return make_trainer(model, documents.select(range(2)), args=args, **kwargs)

    return make


def load(path):
    return AutoModelForCausalLM.from_pretrained(path)


@torch.no_grad()
def logits(model):
    return copy.deepcopy(model).eval()(input_ids=IDS).logits if model.training else model(input_ids=IDS).logits


def ids_of_trainable(model):
    return {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def gradients(model, score):
    model.zero_grad()
    score().sum().backward()
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters() if p.requires_grad
    }


def assert_close_gradients(model, score, expected):
    expected = gradients(model, expected)
    ours = gradients(model, score)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected.values())
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def check_works(make_small, path, config, output_dir):
    base = load(path).eval()
    expected = logits(base)
    trainer = make_small(path, peft_config=config)
    roles = {"summarizer": trainer.model, "generator": trainer.generator}
    assert torch.equal(logits(trainer.teacher), expected)
    trainer.train()

    assert torch.equal(logits(trainer.teacher), expected)
    own = [ids_of_trainable(model) for model in roles.values()]
    assert own[0] and own[1] and not own[0] & own[1]
    assert not (own[0] | own[1]) & {id(parameter) for parameter in trainer.teacher.parameters()}
    trained = {}
    for role, model in roles.items():
        trained[role] = model.eval()(input_ids=IDS).logits.detach()
        assert not torch.equal(trained[role], expected), f"{role} learnt nothing"
        assert torch.equal(logits(clone_with_shared_parameters(model)), expected)
        assert ids_of_trainable(model), "what is trained stays so when a base is taken"

    # The paths that training takes, against the models' own logits
    rows = make_rows()
    assert trainer.shares_prefix
    assert_close_gradients(
        trainer.model,
        lambda: shared_prefix_log_probs(trainer.model, base_of(trainer.model), *rows, temperature=1.0)[0],
        lambda: padded_log_probs(trainer.model, *rows, temperature=1.0)[0],
    )
    target_rows = TargetRows.build([IDS[0, :12].tolist()], [IDS[0, 12:].tolist()], 1, "cpu")
    assert_close_gradients(
        trainer.generator,
        lambda: TargetScorer(trainer.generator)(target_rows)[2],
        lambda: torch.nn.functional.cross_entropy(
            trainer.generator(input_ids=IDS).logits[0, 11:-1], IDS[0, 12:], reduction="sum"
        ),
    )

    trainer.save_model(output_dir)
    loader = HalfLoader("cpu", torch.float32, False)
    for role, folder in (("summarizer", ""), ("generator", "generator")):
        half = loader.load(Path(output_dir, folder), role)
        torch.testing.assert_close(logits(half), trained[role], rtol=1e-5, atol=1e-5)
        assert torch.equal(logits(clone_with_shared_parameters(half)), expected)


# ---- The tables ----


def test_every_type_of_adapter_is_in_a_table():
    assert WORKING_TYPES.keys() | REFUSED_TYPES.keys() == {kind.name for kind in PeftType}
    assert not WORKING_TYPES.keys() & REFUSED_TYPES.keys()
    assert {kind.name for kind in SUPPORTED_TYPES} == WORKING_TYPES.keys()
    for name, config in WORKING_TYPES.items():
        assert config().peft_type.name == name


@pytest.mark.parametrize("name", WORKING_TYPES)
def test_a_type_works(make_small, checkpoint, untied, tmp_path, name):
    path = untied if name == "TRAINABLE_TOKENS" else checkpoint  # it adapts the head with tied embeddings
    check_works(make_small, path, WORKING_TYPES[name](), str(tmp_path / "pair"))


@pytest.mark.parametrize("name", REFUSED_TYPES)
def test_a_type_is_refused(make_small, checkpoint, name):
    config, sentence = REFUSED_TYPES[name]
    with pytest.raises(ValueError, match=f"`peft_config` is of type {name}, which .*{sentence}.*Use `LoraConfig`"):
        make_small(checkpoint, peft_config=config())
    with pytest.raises(ValueError, match=f"`generator_peft_config` is of type {name}"):
        make_small(checkpoint, peft_config=lora(), generator_peft_config=config())


@pytest.mark.parametrize("name", WORKING_LORA)
def test_a_setting_of_lora_works(make_small, checkpoint, untied, tmp_path, name):
    values, tied = WORKING_LORA[name]
    check_works(make_small, checkpoint if tied else untied, lora(**values), str(tmp_path / "pair"))


@pytest.mark.parametrize("name", REFUSED_LORA)
def test_a_setting_of_lora_is_refused(make_small, checkpoint, name):
    values, sentence = REFUSED_LORA[name]
    with pytest.raises(ValueError, match=f"`peft_config` has .*{sentence}"):
        make_small(checkpoint, peft_config=lora(**values))
    with pytest.raises(ValueError, match=f"`generator_peft_config` has .*{sentence}"):
        make_small(checkpoint, generator_peft_config=lora(**values))


@pytest.mark.parametrize("name", ["rank_dropout", "module_dropout"])
def test_dropout_that_the_trainer_cannot_switch_off_is_refused(make_small, checkpoint, name):
    with pytest.raises(ValueError, match=f"`peft_config` has `{name}=0.1`.*Set it to 0"):
        make_small(checkpoint, peft_config=on_attention("LoHaConfig", r=4, **{name: 0.1}))


def test_tying_a_head_that_the_base_does_not_tie_is_refused(make_small, untied):
    config = lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(ValueError, match="`ensure_weight_tying=True`, and its base has a head of its own"):
        make_small(untied, peft_config=config)


def test_a_float32_head_over_a_shared_base_is_refused(make_small, checkpoint):
    args = {"cast_lm_head_to_fp32": True, "model_init_kwargs": {"dtype": "bfloat16"}}
    with pytest.raises(ValueError, match="`cast_lm_head_to_fp32=True`.*under LoRA.*Leave it out"):
        make_small(checkpoint, peft_config=lora(), args=args)
    make_small(checkpoint, args=args).train()


# ---- The kind: what must hold once both adapters are drawn ----


def with_biases(tokenizer, family):
    torch.manual_seed(0)
    if family == "qwen2":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)), "q_proj"
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4)), "c_attn"


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_are_trained_are_seen_in_the_teacher(tokenizer, family, bias):
    """Were the setting not refused, the check of the drawn adapters would be the net under it."""
    teacher, target = with_biases(tokenizer, family)
    bases = [clone_with_shared_parameters(teacher) for _ in range(2)]
    config = LoraConfig(r=4, target_modules=[target], bias=bias)
    drawn = [get_peft_model(base, copy.deepcopy(config)) for base in bases]
    with pytest.raises(ValueError, match=r"summarizer would train \d+ tensors that are in the teacher, too"):
        check_drawn(*drawn, teacher, "same", "same")


def test_a_tensor_that_two_roles_train_is_seen(checkpoint):
    model = load(checkpoint)
    with pytest.raises(ValueError, match=r"summarizer would train \d+ tensors that are in what the generator trains"):
        check_drawn(model, clone_with_shared_parameters(model), load(checkpoint), "same", "same")


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_an_adapter_that_writes_into_the_base_is_seen(checkpoint, initialisation):
    teacher = load(checkpoint).requires_grad_(False)
    before = frozen_digests({"teacher": teacher})["teacher"]
    drawn = [
        get_peft_model(clone_with_shared_parameters(teacher), lora(init_lora_weights=initialisation)) for _ in range(2)
    ]
    with pytest.raises(ValueError, match="Drawing the adapters has changed the base that the teacher stands on"):
        check_drawn(*drawn, teacher, before, frozen_digests({"teacher": teacher})["teacher"])


def test_a_base_that_an_adapter_has_rebuilt_is_seen(checkpoint):
    teacher = load(checkpoint).requires_grad_(False)
    check_bare("summarizer", get_peft_model(clone_with_shared_parameters(teacher), lora()), teacher)
    rebuilt = get_peft_model(clone_with_shared_parameters(teacher), lora(layer_replication=[(0, 2), (1, 2)]))
    with pytest.raises(ValueError, match="The summarizer without its adapter is not the base"):
        check_bare("summarizer", rebuilt, teacher)


# ---- Models that come with adapters ----


@pytest.mark.parametrize("role", ["model", "generator"])
def test_a_peft_model_that_has_written_into_its_base_is_refused(make_small, checkpoint, role):
    written = get_peft_model(load(checkpoint), lora(init_lora_weights="pissa"))
    roles = {"model": checkpoint, "peft_config": lora()} if role == "generator" else {}
    with pytest.raises(ValueError, match="adapter has `init_lora_weights='pissa'`.*merge_and_unload"):
        make_small(**{**roles, role: written})


def test_going_on_with_a_trained_head_leaves_the_teacher_its_own(make_small, checkpoint):
    model = get_peft_model(load(checkpoint), lora(modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.get_parameter("base_model.model.lm_head.modules_to_save.default.weight").normal_()
    trainable = ids_of_trainable(model)
    trainer = make_small(model)
    assert torch.equal(logits(trainer.teacher), logits(load(checkpoint).eval()))
    assert ids_of_trainable(trainer.model) == trainable


def test_going_on_with_a_trainers_model_leaves_the_teacher_the_base(make_small, checkpoint, tmp_path):
    first = make_small(checkpoint, peft_config=lora())
    first.train()
    again = make_small(first.model, generator=first.generator, args={"output_dir": str(tmp_path / "again")})
    expected = logits(load(checkpoint).eval())
    assert torch.equal(logits(again.teacher), expected)
    again.train()
    assert torch.equal(logits(again.teacher), expected)


def test_a_saved_pair_with_a_trained_head_is_measured_against_its_teacher(make_small, checkpoint, tmp_path):
    trainer = make_small(checkpoint, peft_config=lora(modules_to_save=["lm_head"]))
    with torch.no_grad():
        trainer.generator.get_parameter("base_model.model.lm_head.modules_to_save.default.weight").normal_()
    trainer.save_model(str(tmp_path / "pair"))
    compactor = GistCompactor.from_pretrained(tmp_path / "pair", device="cpu", dtype=torch.float32)
    reader = full_context_reader(compactor)
    assert reader.name == "teacher"
    for teacher in (reader.model, load_teacher(compactor)):
        torch.testing.assert_close(logits(teacher), logits(load(checkpoint).eval()), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits(compactor.generator), logits(teacher), atol=0.1)


def test_a_generator_with_an_adapter_comes_back_from_a_saved_pair(make_small, checkpoint, tmp_path):
    generator = get_peft_model(load(checkpoint), lora(init_lora_weights=False))
    trainer = make_small(checkpoint, generator=generator, peft_config=lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "pair"))
    compactor = GistCompactor.from_pretrained(tmp_path / "pair", device="cpu", dtype=torch.float32)
    torch.testing.assert_close(logits(compactor.generator), logits(trainer.generator), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(load_teacher(compactor)), logits(trainer.teacher), rtol=1e-5, atol=1e-5)


def test_a_peft_model_as_teacher_is_refused(make_small, checkpoint):
    teacher = get_peft_model(load(checkpoint), lora())
    with pytest.raises(ValueError, match="`teacher` is a `PeftModel`.*merge_and_unload.*pass that folder"):
        make_small(checkpoint, teacher=teacher, peft_config=lora())


@pytest.mark.parametrize("role", ["model", "generator", "teacher"])
def test_the_folder_of_an_adapter_is_refused(make_small, checkpoint, tokenizer, tmp_path, role):
    get_peft_model(load(checkpoint), lora()).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    named = {"model": "summarizer"}.get(role, role)
    with pytest.raises(
        ValueError, match=f"The {named}, .*adapter, is the folder of an adapter.*PeftModel.from_pretrained"
    ):
        make_small(**{"model": checkpoint, role: str(tmp_path / "adapter")})


def test_a_base_that_an_adapter_was_put_on_is_refused(make_small, checkpoint):
    base = load(checkpoint)
    generator = get_peft_model(base, lora())
    with pytest.raises(ValueError, match="The summarizer holds adapters but is no `PeftModel`"):
        make_small(base, generator=generator)


def test_one_peft_model_for_two_roles_is_refused(make_small, checkpoint):
    model = get_peft_model(load(checkpoint), lora())
    with pytest.raises(ValueError, match="`generator` and `model` are the same `PeftModel`"):
        make_small(model, generator=model)


def test_adapters_that_a_pair_cannot_hold_are_refused(make_small, checkpoint):
    two = get_peft_model(load(checkpoint), lora())
    two.add_adapter("other", lora())
    with pytest.raises(ValueError, match=r"holds the adapters \['default', 'other'\]"):
        make_small(two)
    with pytest.raises(ValueError, match=r"holds the adapters \['mine'\]"):
        make_small(get_peft_model(load(checkpoint), lora(), adapter_name="mine"))
    merged = get_peft_model(load(checkpoint), lora(init_lora_weights=False))
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged into its base.*unmerge_adapter"):
        make_small(merged)


def test_a_saved_adapter_that_would_write_into_a_shared_base_is_refused(checkpoint, tmp_path):
    get_peft_model(load(checkpoint), lora()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": "pissa"}))
    with pytest.raises(ValueError, match="The adapter in .* has `init_lora_weights='pissa'`"):
        HalfLoader("cpu", torch.float32, False).load(tmp_path, "generator")
