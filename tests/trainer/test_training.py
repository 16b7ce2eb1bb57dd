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

"""Training moves exactly what should move, once per rollout, and reads exactly the windows."""

import random

import pytest
import torch
from checks import assert_equal_models, moved, snapshot, trainable, without_gradients
from datasets import Dataset, IterableDataset
from tiny import make_documents, make_model
from transformers import TrainerCallback

from trl_gist import length_penalty, log_prob_gain, rewards


both_ways = pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])


@pytest.fixture
def train(make_trainer, lora):
    """Trains; returns the trainer and, per role, the names of the parameters that moved."""

    def train(with_lora, **kwargs):
        trainer = make_trainer(peft_config=lora if with_lora else None, **kwargs)
        roles = {"S": trainer.model, "G": trainer.generator, "T": trainer.teacher}
        before = {role: snapshot(model) for role, model in roles.items()}
        trainer.train()
        return trainer, {role: moved(before[role], model) for role, model in roles.items()}

    return train


# ---- Who moves ----


@both_ways
def test_everything_trainable_moves_and_nothing_else(train, with_lora):
    trainer, moves = train(with_lora)
    for role, model in (("S", trainer.model), ("G", trainer.generator)):
        assert moves[role] == trainable(model) != set()
        assert all("lora_" in name for name in moves[role]) == with_lora
        assert (moves[role] == {name for name, _ in model.named_parameters()}) != with_lora
    assert moves["T"] == set() == trainable(trainer.teacher)


@both_ways
def test_only_the_summarizer_moves_by_the_policy_loss(train, with_lora):
    trainer, moves = train(with_lora, args={"generator_learning_rate": 0.0})
    assert moves == {"S": trainable(trainer.model), "G": set(), "T": set()}


@both_ways
def test_only_the_generator_moves_by_distillation(train, with_lora):
    trainer, moves = train(with_lora, args={"learning_rate": 0.0})
    assert moves == {"S": set(), "G": trainable(trainer.generator), "T": set()}


@both_ways
def test_each_backward_leaves_gradients_on_its_own_role_only(make_trainer, lora, with_lora, monkeypatch):
    """A learning rate of zero would hide a gradient that leaks; this looks at the gradients themselves."""

    class LookAtGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen.append("S")
            assert not without_gradients(trainer.model)
            assert without_gradients(trainer.generator) and without_gradients(trainer.teacher)

    def step():
        seen.append("G")
        assert not without_gradients(trainer.generator)
        assert without_gradients(trainer.model) and without_gradients(trainer.teacher)
        return original()

    seen = []
    trainer = make_trainer(peft_config=lora if with_lora else None, callbacks=[LookAtGradients()])
    original = trainer.generator_trainer.step
    monkeypatch.setattr(trainer.generator_trainer, "step", step)
    trainer.train()
    assert seen == ["G", "S"] * 2


def test_a_full_summarizer_and_a_lora_generator_train_side_by_side(train, lora):
    trainer, moves = train(False, generator_peft_config=lora)
    assert moves["S"] == {name for name, _ in trainer.model.named_parameters()}
    assert moves["G"] == {name for name, _ in trainer.generator.named_parameters() if "lora_" in name}
    assert moves["T"] == set()


def test_gist_dropout_of_one_still_trains_the_generator_on_the_empty_gist(train):
    trainer, moves = train(True, args={"gist_dropout": 1.0})
    assert moves["G"] == trainable(trainer.generator)


# ---- Rollouts ----


@pytest.mark.parametrize(
    ("args", "max_steps", "starts"),  # the summarizer's step at which each rollout starts
    [
        ({}, 3, [0, 1, 2]),
        ({"num_iterations": 2}, 4, [0, 2]),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 1}, 4, [0, 2]),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 2}, 3, [0, 1, 2]),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 2, "num_iterations": 2}, 4, [0, 2]),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, 4, [0, 2]),
        ({"steps_per_generation": 1, "gradient_accumulation_steps": 2}, 2, [0, 0, 1, 1]),
        ({"num_iterations": 2}, 3, [0, 2]),  # the run ends inside its last rollout
    ],
)
def test_the_generator_takes_one_step_a_rollout_over_the_summarizers_schedule(
    make_trainer, lora, monkeypatch, args, max_steps, starts
):
    trainer = make_trainer(
        peft_config=lora,
        args={"per_device_train_batch_size": 4, "max_steps": max_steps, "lr_scheduler_type": "linear", **args},
    )
    generations, steps = [], []
    write, step = trainer.rollout.write, trainer.generator_trainer.step
    monkeypatch.setattr(
        trainer.rollout,
        "write",
        lambda *args: (generations.append(trainer.state.global_step), write(*args))[1],
    )
    monkeypatch.setattr(trainer.generator_trainer, "step", lambda: (steps.append(step()), steps[-1])[1])
    trainer.train()
    assert generations == starts
    # Linear decay from the whole rate to zero, one notch a step of the summarizer
    expected = [1e-3 * (max_steps - step) / max_steps for step in starts]
    assert [step["learning_rate"] for step in steps] == pytest.approx(expected)
    assert trainer.generator_trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0)
    assert trainer.state.global_step == max_steps


def test_warmup_counts_the_summarizers_steps(make_trainer, lora, monkeypatch):
    trainer = make_trainer(peft_config=lora, args={"max_steps": 4, "num_iterations": 2, "warmup_steps": 0.5})
    rates, step = [], trainer.generator_trainer.step
    monkeypatch.setattr(trainer.generator_trainer, "step", lambda: (rates.append(step()), rates[-1])[1])
    trainer.train()
    assert [rate["learning_rate"] for rate in rates] == pytest.approx([0.0, 1e-3])


def test_inner_iterations_move_the_summarizer_again_on_the_same_gists(make_trainer, lora):
    weights = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            weights.append((snapshot(model), snapshot(trainer.generator)))

    trainer = make_trainer(peft_config=lora, callbacks=[Watch()], args={"num_iterations": 2})
    trainer.train()
    (first_s, first_g), (second_s, second_g) = weights
    assert any(not torch.equal(first_s[name], second_s[name]) for name in first_s)
    assert all(torch.equal(first_g[name], second_g[name]) for name in first_g)


# ---- What is read ----


def ready_rows(count, seed=0):
    rng = random.Random(seed)

    def ids(low, high):
        return [rng.randrange(5, 300) for _ in range(rng.randrange(low, high))]

    return [{"context": ids(3, 40), "last_k": ids(1, 9), "target": ids(1, 12)} for _ in range(count)]


@both_ways
def test_the_summarizer_reads_exactly_the_contexts_tokens(make_trainer, lora, tokenizer, monkeypatch, with_lora):
    windows = ready_rows(12)
    trainer = make_trainer(peft_config=lora if with_lora else None, train_dataset=Dataset.from_list(windows))
    fed, loss_prompts = [], []
    generate, compute_loss = trainer.model.generate, trainer._compute_loss

    def rows(ids, mask):
        return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]

    def watch_generate(*args, **kwargs):
        fed.extend(rows(kwargs["input_ids"], kwargs["attention_mask"]))
        return generate(*args, **kwargs)

    def watch_loss(model, inputs):
        loss_prompts.extend(rows(inputs["prompt_ids"], inputs["prompt_mask"]))
        return compute_loss(model, inputs)

    monkeypatch.setattr(trainer.model, "generate", watch_generate)
    monkeypatch.setattr(trainer, "_compute_loss", watch_loss)
    trainer.train()

    mark = len(tokenizer) - 1
    template = trainer.prompts.summarizer([mark])
    assert template.count(mark) == 1
    before, after = template[: template.index(mark)], template[template.index(mark) + 1 :]
    contexts = [prompt[len(before) : -len(after)] for prompt in fed]
    assert all(context in [window["context"] for window in windows] for context in contexts)
    assert all(prompt == [*before, *context, *after] for prompt, context in zip(fed, contexts, strict=True))
    # Each context is read for its four gists, two contexts a rollout, two rollouts
    assert len(fed) == 16 and len({tuple(context) for context in contexts}) == 4
    assert sorted(loss_prompts) == sorted(fed), "the policy loss is taken on the very prompts that were sampled from"
    retokenised = [tokenizer.encode(tokenizer.decode(prompt), add_special_tokens=False) for prompt in fed]
    assert retokenised != fed, "contexts that survive re-tokenisation would prove nothing"


@both_ways
def test_ready_windows_of_any_lengths_train(train, with_lora):
    trainer, moves = train(with_lora, train_dataset=Dataset.from_list(ready_rows(12)))
    assert moves == {"S": trainable(trainer.model), "G": trainable(trainer.generator), "T": set()}


def test_a_stream_trains_bit_for_bit_as_the_same_rows_in_memory(train):
    rows = [{"text": text} for text in make_documents(12)]
    args = {"shuffle_dataset": False, "max_steps": 3}
    stream = IterableDataset.from_generator(lambda: iter(rows))
    streamed, moves = train(True, train_dataset=stream, args=args)
    in_memory, _ = train(True, train_dataset=Dataset.from_list(rows), args=args)
    assert moves == {"S": trainable(streamed.model), "G": trainable(streamed.generator), "T": set()}
    assert_equal_models(streamed.model, in_memory.model)
    assert_equal_models(streamed.generator, in_memory.generator)


def test_a_stream_logs_the_rows_it_has_skipped(train):
    rows = [row for text in make_documents(12) for row in ({"text": "too short"}, {"text": text})]
    trainer, _ = train(True, train_dataset=IterableDataset.from_generator(lambda: iter(rows)))
    counts = [entry["skipped_rows"] for entry in trainer.state.log_history if "skipped_rows" in entry]
    assert counts and counts[-1] > 0


# ---- Rewards ----


def test_a_users_reward_function_gets_the_scores_and_the_users_own_columns(make_trainer, lora):
    calls = []

    def prefers_pumps(completions, teacher_kl, kl_gain, gist_ids, gist_length, document_id, theme, **kwargs):
        calls.append((completions, teacher_kl, kl_gain, gist_ids, gist_length, document_id, theme, kwargs))
        return [1.0 if "pump" in completion else 0.0 for completion in completions]

    rows = [{"text": text, "theme": f"theme-{index}"} for index, text in enumerate(make_documents(12))]
    trainer = make_trainer(
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
        reward_funcs=[log_prob_gain, length_penalty, prefers_pumps],
    )
    trainer.train()
    assert len(calls) == 2
    for completions, teacher_kl, kl_gain, gist_ids, gist_length, document_id, theme, kwargs in calls:
        assert theme == [f"theme-{document}" for document in document_id]
        assert gist_length == [len(gist) for gist in gist_ids]
        assert completions == trainer.processing_class.batch_decode(gist_ids, skip_special_tokens=True)
        assert kl_gain == pytest.approx(
            [null - kl for null, kl in zip(kwargs["null_teacher_kl"], teacher_kl, strict=True)]
        )
        assert all(kl > 0 for kl in teacher_kl)
        # Groups stay together: the baseline is the context's own
        for group in range(0, 8, 4):
            assert len({tuple(ids) for ids in kwargs["context_ids"][group : group + 4]}) == 1
            assert len(set(kwargs["null_log_prob"][group : group + 4])) == 1
    (entry, *_) = trainer.state.log_history
    assert {f"rewards/{name}/mean" for name in ("log_prob_gain", "length_penalty", "prefers_pumps")} <= entry.keys()
    total = (
        entry["rewards/log_prob_gain/mean"]
        + 1e-4 * entry["rewards/length_penalty/mean"]
        + entry["rewards/prefers_pumps/mean"]
    )
    assert entry["reward"] == pytest.approx(total, abs=1e-6)


def test_rewards_may_be_a_tuple_and_a_name_is_not_looked_up_on_the_hub(make_trainer, lora):
    trainer = make_trainer(peft_config=lora, reward_funcs=(rewards.kl_gain, length_penalty))
    assert trainer.reward_funcs == [rewards.kl_gain, length_penalty]
    with pytest.raises(ValueError, match="`reward_funcs` has the string 'kl_gain', .* `trl_gist.rewards.kl_gain`"):
        make_trainer(peft_config=lora, reward_funcs=["kl_gain", length_penalty])


def test_a_rollout_func_of_the_users_own_is_refused_and_says_what_to_override(make_trainer, lora):
    trainer = make_trainer(peft_config=lora)
    trainer.rollout_func = lambda prompts, trainer: {}
    with pytest.raises(ValueError, match="`rollout_func` is how this trainer writes gists.* override `sample`"):
        trainer.train()


def test_a_reward_that_tokens_earn_teaches_the_summarizer_to_write_them(make_trainer, tokenizer, lora):
    """A reward that needs no generator: sampling, advantages and the policy loss must agree on what was written."""
    # Half of the vocabulary, and a half that so small a model can learn to tell: one side of its embedding space
    liked = make_model(tokenizer).get_input_embeddings().weight[:, 0] > 0

    def likes_one_side(gist_ids, **kwargs):
        return [liked[gist].float().mean().item() if gist else 0.0 for gist in gist_ids]

    trainer = make_trainer(
        peft_config=lora,
        reward_funcs=likes_one_side,
        args={
            **{"max_steps": 25, "learning_rate": 2e-2, "lr_scheduler_type": "constant"},
            **{"num_generations": 8, "per_device_train_batch_size": 16},
        },
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    # On other seeds the mean rose from 0.53 and 0.56 to 0.87 and 0.89
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15


@both_ways
def test_distillation_brings_the_generator_to_the_teacher(make_trainer, lora, documents, with_lora):
    windows = documents.select(range(4))
    trainer = make_trainer(
        peft_config=lora if with_lora else None,
        train_dataset=windows,
        eval_dataset=windows,
        args={"max_steps": 60, "generator_learning_rate": 1e-2, "max_windows_per_document": 2, "logging_steps": 60},
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_teacher_kl"] < 0.5 * before["eval_teacher_kl"]
    assert after["eval_null_teacher_kl"] < before["eval_null_teacher_kl"]
