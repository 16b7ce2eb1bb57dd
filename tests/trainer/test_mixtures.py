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
Mixtures of experts: what is trained, saved and loaded again is the same, whatever the names of experts are on the disk;
adapters leave the routers out; both halves have the experts' balance in their loss.
"""

import copy
import functools
import json

import pytest
import torch
from checks import assert_equal_models, assert_same, history, moved, snapshot
from datasets import Dataset
from peft import LoraConfig, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from tiny import make_documents
from tiny_mixtures import MIXTURES, make_mixture
from torch.nn.utils.rnn import pad_sequence
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from trl_gist.common.files import json_digest
from trl_gist.models.adapters import without_routers
from trl_gist.models.roles import name_experts, number_of_experts
from trl_gist.models.saved_weights import load_weights, weights_in
from trl_gist.scoring.targets import TargetRows, TargetScorer, router_loss
from trl_gist.trainer.checkpoints.manifest import MANIFEST_FORMAT


NOT_PACKED = ("gpt_oss",)  # its experts have the same names on the disk


class Snapshots(TrainerCallback):
    """Both halves as they were when each checkpoint was written."""

    def __init__(self):
        self.taken = {}

    def take(self, trainer):
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def on_save(self, args, state, control, **kwargs):
        self.taken[state.global_step] = [
            {name: tensor.clone() for name, tensor in half.state_dict().items()}
            for half in (self.trainer.model, self.trainer.generator)
        ]


@pytest.fixture
def in_several_files(monkeypatch):
    """Called, it has models saved so."""

    def split():
        save = functools.partialmethod(PreTrainedModel.save_pretrained, max_shard_size="30KB")
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)

    return split


@pytest.fixture
def make_run(make_trainer, tokenizer, tmp_path):
    def make(name, folder="run", **args):
        path = tmp_path / name
        if not path.exists():
            make_mixture(tokenizer, name).save_pretrained(path)
            tokenizer.save_pretrained(path)
        documents = Dataset.from_dict({"text": make_documents(1)})
        settings = {"output_dir": str(tmp_path / folder), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        sizes = {"context_length": 16, "num_generations": 2, "per_device_train_batch_size": 4}
        return make_trainer(str(path), documents, eval_dataset=documents, args={**settings, **sizes, **args})

    return make


def names_on_disk(directory):
    names = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


@pytest.mark.parametrize(("name", "files"), [("mixtral", 1), ("qwen3_moe", 2), ("deepseek_v3", 2), ("granitemoe", 1)])
def test_a_run_goes_on_from_its_checkpoint(make_run, in_several_files, tmp_path, name, files):
    if files > 1:
        in_several_files()
    straight = make_run(name, "straight")
    straight.train()
    checkpoint = tmp_path / "straight" / "checkpoint-1"
    assert (len(list(checkpoint.glob("*.safetensors"))) > 1) == (files > 1)
    assert not names_on_disk(checkpoint) <= straight.model.state_dict().keys()
    resumed = make_run(name, "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_equal_models(straight.model, resumed.model)
    assert_equal_models(straight.generator, resumed.generator)
    assert_same(history(straight), history(resumed))


@pytest.mark.parametrize(("name", "files"), [("mixtral", 2), ("olmoe", 1)])
def test_the_best_model_is_that_of_its_step(make_run, in_several_files, name, files):
    if files > 1:
        in_several_files()
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_run(name, **best)
    values, loop = iter([0.1, 0.2]), trainer.evaluation_loop

    def evaluation_loop(*args, **kwargs):
        output = loop(*args, **kwargs)
        output.metrics["eval_teacher_kl"] = next(values)
        return output

    trainer.evaluation_loop = evaluation_loop
    snapshots = Snapshots().take(trainer)
    trainer.train()
    for half, best, last in zip(
        (trainer.model, trainer.generator), snapshots.taken[1], snapshots.taken[2], strict=True
    ):
        assert_same(dict(half.state_dict()), best)
        assert any(not torch.equal(last[name], tensor) for name, tensor in best.items())


@pytest.mark.parametrize("size", ["1GB", "30KB"])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_weights_of_a_folder_have_the_models_names(tokenizer, tmp_path, name, size):
    """Whichever numbers they are, and at no cost of memory where names and shapes are enough."""
    model = make_mixture(tokenizer, name, seed=5)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "30KB")
    assert (names_on_disk(tmp_path) <= model.state_dict().keys()) == (name in NOT_PACKED)
    assert_same(dict(weights_in(tmp_path, model, "summarizer")), dict(model.state_dict()))
    shapes = weights_in(tmp_path, model, "summarizer", device="meta")
    assert all(weight.is_meta for weight in shapes.values())
    other = make_mixture(tokenizer, name, seed=6)
    load_weights(tmp_path, other, "summarizer")
    assert_equal_models(model, other)


def test_weights_that_are_not_those_that_were_trained_are_refused(make_run, tmp_path):
    """Whoever wrote or reads them: the manifest knows them from memory."""
    make_run("mixtral").train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"], manifest["format"]
    kept = dict(manifest["trained_weights"])
    for role in ("summarizer", "generator"):
        manifest["trained_weights"] = {**kept, role: "xxh3-128:of other weights"}
        write_manifest(checkpoint, manifest)
        with pytest.raises(ValueError, match=f"The {role}'s weights are not those that were trained"):
            make_run("mixtral", max_steps=3).train(resume_from_checkpoint=str(checkpoint))
    manifest["trained_weights"] = kept
    write_manifest(checkpoint, manifest)
    make_run("mixtral", max_steps=3).train(resume_from_checkpoint=str(checkpoint))


def write_manifest(checkpoint, values):
    content = {"format": MANIFEST_FORMAT, "sha256": json_digest(values), **values}
    (checkpoint / "manifest.json").write_text(json.dumps(content))


def test_a_load_that_leaves_a_weight_as_it_was_is_refused(tokenizer, tmp_path, monkeypatch):
    make_mixture(tokenizer, "mixtral", seed=5).save_pretrained(tmp_path)
    other = make_mixture(tokenizer, "mixtral", seed=6)
    load = torch.nn.Module.load_state_dict

    def forget(model, weights):
        return load(model, {name: weight for name, weight in weights.items() if "experts" not in name}, strict=False)

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", forget)
    with pytest.raises(ValueError, match=r"4 of 21 weights of the generator are not those in .*mlp.experts"):
        load_weights(tmp_path, other, "generator")


def test_weights_of_another_mixture_are_refused(tokenizer, tmp_path):
    make_mixture(tokenizer, "mixtral").save_pretrained(tmp_path)
    for changes in ({"num_local_experts": 3}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}):
        other = make_mixture(tokenizer, "mixtral", **changes)
        with pytest.raises(ValueError, match=r"do not fit the summarizer: \d+ of \d+ tensors differ in name or shape"):
            weights_in(tmp_path, other, "summarizer", device="meta")


# ---- Adapters leave the routers out ----

SMALL = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8},
    **{"num_key_value_heads": 2, "vocab_size": 64, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "moe_k": 2},
    **{"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    "first_k_dense_replace": 1,
}
ROUTERS = {
    "phimoe": ["mlp.router"],
    "qwen2_moe": ["mlp.shared_expert_gate"],  # PEFT leaves its router alone, a parameter
    "qwen3_next": ["mlp.gate", "mlp.shared_expert_gate"],
    "llama4_text": ["feed_forward.router"],
    "longcat_flash": ["mlp.router.classifier"],
    "jetmoe": ["mlp.router.layer", "self_attention.experts.router.layer"],
    "hunyuan_v1_moe": ["mlp.gate.wg", "mlp.gate"],
    "afmoe": ["mlp.router.gate"],
    "mixtral": ["mlp.gate"],  # a parameter that PEFT adapts
    "minimax": ["mlp.gate"],  # not `self_attn.output_gate`
    "deepseek_v3": ["mlp.gate"],  # of its second layer
    "llama": [],
}


def small(name):
    config_class = CONFIG_MAPPING[name]
    defaults = config_class()
    return AutoModelForCausalLM.from_config(config_class(**{k: v for k, v in SMALL.items() if hasattr(defaults, k)}))


def adapted(model, config):
    drawn = get_peft_model(model, config)
    return {n.removeprefix("base_model.model.") for n, m in drawn.named_modules() if isinstance(m, BaseTunerLayer)}


@pytest.mark.parametrize("name", ROUTERS)
def test_adapters_on_all_linear_layers_leave_the_routers_out(name, caplog):
    """And nothing else of what PEFT would adapt by itself, packed experts included."""
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    expected = adapted(small(name), copy.deepcopy(config))
    routers = {each for each in expected if any(each.endswith(router) for router in ROUTERS[name])}
    assert bool(routers) == bool(ROUTERS[name])
    assert not any(word in each for each in expected - routers for word in ("router", "mlp.gate.", "expert_gate"))
    model = small(name)
    assert adapted(model, without_routers("peft_config", config, model)) == expected - routers
    assert ("leaves out the routers of the experts" in caplog.text) == bool(routers)


def test_what_names_its_layers_is_left_as_it_is(tokenizer):
    """And one configuration draws two adapters: the user's is not changed."""
    model = make_mixture(tokenizer, "phimoe")
    for targets in (["q_proj", "router"], "all-linear"):
        config = LoraConfig(r=2, target_modules=targets)
        without_routers("peft_config", config, model)
        assert config.target_modules == (set(targets) if isinstance(targets, list) else targets)
    named = LoraConfig(r=2, target_modules=["q_proj", "router"])
    assert without_routers("peft_config", named, model) is named
    vera = VeraConfig(r=2, target_modules="all-linear")  # a kind that has no `exclude_modules`
    assert not any("router" in each for each in without_routers("peft_config", vera, model).target_modules)


def test_a_trainer_draws_both_adapters_without_routers(make_run, lora, tokenizer, documents, make_trainer, caplog):
    trainer = make_trainer(
        make_mixture(tokenizer, "qwen2_moe"), documents, processing_class=tokenizer, peft_config=lora
    )
    for role in (trainer.model, trainer.generator):
        trained = [name for name, parameter in role.named_parameters() if parameter.requires_grad]
        assert trained and not any("expert_gate" in name or "mlp.gate." in name for name in trained)
    assert caplog.text.count("leaves out the routers of the experts (mlp.shared_expert_gate)") == 1
    assert lora.target_modules == "all-linear"


# ---- The generator's routers ----

WITH_A_LOSS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe", "ernie4_5_moe")
PROMPTS, TARGETS = [[7, 8, 9, 10, 11], [12, 13], [14, 15, 16]], [[20, 21, 22], [23], [24, 25, 26, 27]]


@pytest.mark.parametrize("name", WITH_A_LOSS)
def test_the_generators_loss_has_the_balance_of_its_experts(tokenizer, name):
    """Of transformers' own forward over the same tokens, padding left out."""
    model = make_mixture(tokenizer, name).eval()
    rows = TargetRows.build(PROMPTS, TARGETS, 1, "cpu")
    ids = [torch.tensor(prompt + target) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    mask = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
    ids = pad_sequence(ids, batch_first=True)
    expected = model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)

    plain, balanced = (TargetScorer(model, coef)(rows, loss="cross_entropy") for coef in (0.0, 0.5))
    for one, other in zip(plain[:2], balanced[:2], strict=True):
        assert torch.equal(one, other)
    added = balanced[2] - plain[2]
    torch.testing.assert_close(added, 0.5 * expected * rows.mask_NT, atol=1e-5, rtol=0)
    found = torch.autograd.grad(added.sum() / (0.5 * rows.mask_NT.sum()), list(trained.values()), allow_unused=True)
    routers = [n for n in trained if "router" in n or ".gate.weight" in n]
    assert routers
    for n, gradient, reference in zip(trained, found, gradients, strict=True):
        if n in routers:
            assert reference.abs().max() > 0
            torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3, msg=n)
    with torch.no_grad():
        assert torch.equal(TargetScorer(model, 0.5)(rows, loss="cross_entropy")[2], plain[2].detach())


def test_targets_side_by_side_are_balanced_too(tokenizer):
    model = make_mixture(tokenizer, "mixtral")
    rows = TargetRows.of_several([[7, 8, 9]], [[([10], [11, 12]), ([], [13])]], 1, "cpu")
    (added,) = (
        TargetScorer(model, 0.5)(rows, loss="cross_entropy")[2] - TargetScorer(model)(rows, loss="cross_entropy")[2]
    )
    assert added.shape == (3,) and added.min() > 0.1 and torch.allclose(added, added[0])


@pytest.mark.parametrize(
    ("name", "args", "coef"),
    [("mixtral", {}, 0.001), ("mixtral", {"router_aux_loss_coef": 0.3}, 0.3), ("deepseek_v3", {}, 0.0)],
)
def test_the_generator_has_the_summarizers_coefficient(make_trainer, documents, tokenizer, name, args, coef):
    trainer = make_trainer(make_mixture(tokenizer, name), documents, processing_class=tokenizer, args=args)
    assert trainer.generator_trainer.scorer.generator.router_loss_coef == trainer.router_aux_loss_coef == coef
    assert trainer.generator_trainer.scorer.teacher.router_loss_coef == 0


@pytest.mark.parametrize("name", ["granitemoe", "phimoe"])
def test_experts_that_a_configuration_names_otherwise_are_found_by_trl(tokenizer, name):
    """Under the name it asks for, and in no field of their own, which would be saved."""
    config = make_mixture(tokenizer, name).config
    saved = config.to_dict()
    names = type(config).attribute_map
    assert number_of_experts(config) == 4 and type(config).attribute_map is names
    name_experts(config)
    assert number_of_experts(config) == config.num_experts == 4
    assert config.to_dict() == saved and "num_experts" not in saved
    assert type(config).from_dict(saved).num_experts == 4


def test_a_configuration_that_speaks_of_experts_and_has_none_is_a_dense_model(make_trainer, documents, tokenizer):
    sizes = {"num_local_experts": 0, "shared_intermediate_size": 48, "layer_types": ["attention", "attention"]}
    sizes |= {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2}
    dense = functools.partial(make_mixture, tokenizer, "granitemoehybrid", **sizes)
    trainer = make_trainer(dense(), documents, processing_class=tokenizer, args={"max_steps": 1})
    assert not trainer.aux_loss_enabled and trainer.generator_trainer.scorer.generator.router_loss_coef == 0
    before = snapshot(trainer.model), snapshot(trainer.generator)
    trainer.train()
    assert moved(before[0], trainer.model) and moved(before[1], trainer.generator)
    with pytest.raises(
        ValueError, match=r"`router_aux_loss_coef` \(0.1\) weighs .* configured to have none. Leave it"
    ):
        make_trainer(dense(), documents, processing_class=tokenizer, args={"router_aux_loss_coef": 0.1})


def test_a_dense_generator_has_no_routers(make_trainer, documents, tokenizer, checkpoint):
    trainer = make_trainer(
        make_mixture(tokenizer, "mixtral"), documents, generator=checkpoint, processing_class=tokenizer
    )
    assert trainer.generator_trainer.scorer.generator.router_loss_coef == 0
    with pytest.raises(ValueError, match="gives no router logits.*`router_aux_loss_coef=0.0`"):
        router_loss(trainer.generator, None, None)
