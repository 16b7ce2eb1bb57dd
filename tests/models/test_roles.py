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

"""Where the three roles come from, and what they share in memory."""

import pytest
import torch
from checks import assert_equal_models, moved, snapshot, trainable
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from tiny import make_model
from transformers import AutoModelForCausalLM

from trl_gist.models.roles import storage_pointers


@pytest.fixture(scope="module")
def other_checkpoints(tokenizer, tmp_path_factory):
    paths = []
    for seed in (1, 2):
        paths.append(str(tmp_path_factory.mktemp(f"other-{seed}")))
        make_model(tokenizer, seed=seed, num_hidden_layers=1 + seed).save_pretrained(paths[-1])
        tokenizer.save_pretrained(paths[-1])
    return paths


def load(path):
    return AutoModelForCausalLM.from_pretrained(path)


def pointers(model, adapters):
    return {
        parameter.untyped_storage().data_ptr()
        for name, parameter in model.named_parameters()
        if ("lora_" in name) == adapters
    }


# ---- Memory ----


@pytest.mark.parametrize("loaded", [False, True], ids=["string", "loaded"])
def test_with_lora_one_base_is_in_memory_for_all_three(make_trainer, lora, checkpoint, loaded):
    model = load(checkpoint) if loaded else checkpoint
    trainer = make_trainer(model=model, peft_config=lora)
    trainer.train()
    base = pointers(trainer.model, adapters=False)
    assert len(base) == len(list(make_model(trainer.processing_class).parameters()))
    assert pointers(trainer.generator, adapters=False) == base
    assert storage_pointers(trainer.teacher) == base
    own = [pointers(model, adapters=True) for model in (trainer.model, trainer.generator)]
    assert own[0] and own[1] and not own[0] & own[1]


def test_with_full_fine_tuning_nothing_is_shared(make_trainer):
    trainer = make_trainer()
    roles = [storage_pointers(model) for model in (trainer.model, trainer.generator, trainer.teacher)]
    assert len(set.union(*roles)) == sum(map(len, roles))


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_all_three_start_as_the_models_own_checkpoint(make_trainer, lora, checkpoint, with_lora):
    trainer = make_trainer(peft_config=lora if with_lora else None)
    expected = load(checkpoint)
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        for model in (trainer.model, trainer.generator, trainer.teacher):
            torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits)


# ---- The same training, however the models are given ----


def train(trainer):
    torch.manual_seed(0)  # loading draws random numbers, too
    trainer.train()
    return trainer


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_strings_and_loaded_models_train_the_same(make_trainer, lora, checkpoint, tokenizer, with_lora):
    config = lora if with_lora else None
    by_name = train(make_trainer(peft_config=config))
    loaded = train(make_trainer(model=load(checkpoint), peft_config=config))
    all_named = train(make_trainer(generator=checkpoint, teacher=checkpoint, peft_config=config))
    own = {"model": load(checkpoint), "generator": load(checkpoint), "teacher": load(checkpoint)}
    all_loaded = train(make_trainer(**own, processing_class=tokenizer, peft_config=config))
    for other in (loaded, all_named, all_loaded):
        assert_equal_models(by_name.model, other.model)
        assert_equal_models(by_name.generator, other.generator)


def test_a_peft_model_trains_as_the_adapter_that_the_trainer_would_have_put_on(make_trainer, lora, checkpoint):
    by_config = make_trainer(peft_config=lora)
    adapted = make_trainer(model=get_peft_model(load(checkpoint), lora))
    assert isinstance(adapted.generator, PeftModel), "the generator gets an adapter of the same kind"
    assert trainable(adapted.generator) == trainable(by_config.generator)
    # The same adapters, however they were drawn
    adapted.model.load_state_dict(by_config.model.state_dict())
    adapted.generator.load_state_dict(by_config.generator.state_dict())
    assert pointers(adapted.generator, False) == pointers(adapted.model, False) == storage_pointers(adapted.teacher)
    train(by_config), train(adapted)
    assert_equal_models(by_config.model, adapted.model)
    assert_equal_models(by_config.generator, adapted.generator)


def test_a_peft_model_keeps_the_adapter_it_came_with(make_trainer, lora, checkpoint):
    model = get_peft_model(load(checkpoint), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = snapshot(model)
    trainer = make_trainer(model=model)
    assert not moved(before, trainer.model)
    with torch.no_grad():
        ids = torch.arange(5, 25).unsqueeze(0)
        adapted, plain = trainer.model(input_ids=ids).logits, load(checkpoint)(input_ids=ids).logits
        assert not torch.allclose(adapted, plain)
        torch.testing.assert_close(trainer.teacher(input_ids=ids).logits, plain)
    train(trainer)
    assert moved(before, trainer.model) == {name for name in before if "lora_" in name}


def test_the_generator_may_have_an_adapter_of_its_own_shape(make_trainer, lora):
    other = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = train(make_trainer(peft_config=lora, generator_peft_config=other))
    assert len(trainable(trainer.generator)) == 8 and len(trainable(trainer.model)) == 28
    assert pointers(trainer.generator, False) == pointers(trainer.model, False)


def test_a_saved_pair_goes_on_training_as_peft_models(make_trainer, lora, checkpoint, tmp_path):
    first = train(make_trainer(peft_config=lora))
    first.save_model(str(tmp_path / "pair"))

    def reload(path):
        return PeftModel.from_pretrained(load(checkpoint), str(path), is_trainable=True)

    again = make_trainer(
        model=reload(tmp_path / "pair"),
        generator=reload(tmp_path / "pair" / "generator"),
        teacher=checkpoint,
        args={"output_dir": str(tmp_path / "again")},
    )
    assert_equal_models(first.model, again.model)
    assert_equal_models(first.generator, again.generator)
    train(again)
    assert moved(snapshot(first.model), again.model) == trainable(again.model)
    assert moved(snapshot(first.generator), again.generator) == trainable(again.generator)


# ---- Separate checkpoints ----


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_generator_and_teacher_may_be_checkpoints_of_their_own(make_trainer, lora, other_checkpoints, with_lora):
    generator, teacher = other_checkpoints
    trainer = make_trainer(generator=generator, teacher=teacher, peft_config=lora if with_lora else None)
    before = [snapshot(model) for model in (trainer.model, trainer.generator, trainer.teacher)]
    assert [model.config.num_hidden_layers for model in (trainer.model, trainer.generator, trainer.teacher)] == [
        2,
        2,
        3,
    ]
    assert not moved(snapshot(load(teacher)), trainer.teacher)
    roles = [storage_pointers(model) for model in (trainer.model, trainer.generator, trainer.teacher)]
    assert len(set.union(*roles)) == sum(map(len, roles))
    train(trainer)
    assert moved(before[0], trainer.model) == trainable(trainer.model)
    assert moved(before[1], trainer.generator) == trainable(trainer.generator)
    assert not moved(before[2], trainer.teacher)


def test_with_lora_a_generator_and_teacher_of_one_checkpoint_share_it(make_trainer, lora, other_checkpoints):
    other, _ = other_checkpoints
    trainer = make_trainer(generator=other, teacher=other, peft_config=lora)
    assert pointers(trainer.generator, False) == storage_pointers(trainer.teacher)
    assert not storage_pointers(trainer.model) & storage_pointers(trainer.teacher)


def test_each_adapter_is_saved_with_the_name_of_its_own_base(
    make_trainer, lora, checkpoint, other_checkpoints, tmp_path
):
    other, _ = other_checkpoints
    make_trainer(generator=other, peft_config=lora).save_model(str(tmp_path))
    for directory, base in ((tmp_path, checkpoint), (tmp_path / "generator", other)):
        assert PeftConfig.from_pretrained(str(directory)).base_model_name_or_path == base


def test_an_adapter_loaded_for_inference_is_refused(make_trainer, lora, checkpoint, tmp_path):
    get_peft_model(load(checkpoint), lora).save_pretrained(tmp_path)

    def reload():
        return PeftModel.from_pretrained(load(checkpoint), str(tmp_path))

    with pytest.raises(ValueError, match="summarizer has no trainable parameters.*is_trainable=True"):
        make_trainer(model=reload())
    with pytest.raises(ValueError, match="generator has no trainable parameters.*is_trainable=True"):
        make_trainer(generator=reload(), peft_config=lora)
