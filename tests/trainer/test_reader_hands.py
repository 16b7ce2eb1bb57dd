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

"""The reader of many hands: a share of what the generator learns to read is not the summarizer's."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from checks import snapshot

from trl_gist import GistTrainer
from trl_gist.evaluation.compressors.registry import extractive_compressors
from trl_gist.scripts.arguments import EvaluateArguments
from trl_gist.scripts.compare import with_known_compressors
from trl_gist.scripts.train import GistScriptArguments, load_compressor
from trl_gist.trainer.config_checks import check_asks_no_teacher
from trl_gist.trainer.generator_trainer import GeneratorTrainer
from trl_gist.trainer.rollout import GistRollout


def trained(make_trainer, lora, **args):
    """One step, without a cold start, and the weights after it; the same rollout each time."""
    compressor = args.pop("compressor", None)
    args = {"max_steps": 1, "cold_start_steps": 0, "gist_dropout": 0.0, "max_grad_norm": 0.0, **args}
    trainer = make_trainer(peft_config=lora, args=args)
    trainer.compressor = compressor
    trainer.train()
    return trainer


def gradient_norm(trainer):
    return next(log["generator/grad_norm"] for log in trainer.state.log_history if "generator/grad_norm" in log)


def test_all_the_share_is_the_generator_on_that_hand_alone(make_trainer, lora):
    other = trained(make_trainer, lora, reader_hands=["head"], reader_share=1.0)
    head = extractive_compressors(other.processing_class, other.teacher, [])["head"]
    alone = trained(make_trainer, lora, generator_only=True, compressor=head)
    assert gradient_norm(other) == pytest.approx(gradient_norm(alone), rel=1e-5)
    weights = snapshot(alone.generator)
    for name, weight in snapshot(other.generator).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-5)


def test_no_share_is_the_generator_without_other_hands(make_trainer, lora):
    none, plain = trained(make_trainer, lora, reader_hands=["head"], reader_share=0.0), trained(make_trainer, lora)
    half = trained(make_trainer, lora, reader_hands=["head"], reader_share=0.5)
    assert gradient_norm(none) == pytest.approx(gradient_norm(plain), rel=1e-6) != gradient_norm(half)
    # The reward is of S's gists alone
    logged = [next(log for log in trainer.state.log_history if "kl_gain" in log) for trainer in (half, plain)]
    assert logged[0]["kl_gain"] == logged[1]["kl_gain"]


def test_gists_of_contexts_that_are_read_leave_their_mean_gradient(make_trainer, lora):
    """As the gists of a rollout, of which it is a mean over target tokens."""
    whole = make_trainer(peft_config=lora, args={"gist_dropout": 0.0})
    trainer, gists = whole.generator_trainer, [[9, 10], [11], [12, 13, 14], []]
    rows = [whole.train_dataset[n] for n in (0, 0, 3, 3)]
    hidden_D, _ = trainer.scorer.read_targets(rows[::2])

    def gradient():
        found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.model.zero_grad()
        return found

    trainer.distill(rows[::2], gists, 2, hidden_D)
    of_gists = gradient()
    trainer.score(rows, gists, 2, distill=True)
    of_tokens, length = gradient(), len(rows[0]["target_ids"])
    assert any(value.abs().max() > 0 for value in of_gists.values())
    for name, value in of_gists.items():
        torch.testing.assert_close(value, length * of_tokens[name], atol=1e-6, rtol=1e-4)
    scored = trainer.scorer.score_gists(rows[::2], gists, 2, hidden_D, greedy=True)
    expected = trainer.score(rows, gists, 2, distill=False)
    for (logps_T, kl_T, greedy_T), row in zip(scored, expected, strict=True):
        assert logps_T.mean().item() == pytest.approx(row["gist_log_prob"], abs=1e-6)
        assert kl_T.mean().item() == pytest.approx(row["teacher_kl"], abs=1e-6) and set(greedy_T.tolist()) <= {0, 1}


@pytest.mark.parametrize("score_batch_size", [1, 3, 8])
def test_some_gists_of_each_context_stand_for_all(make_trainer, lora, monkeypatch, score_batch_size):
    """G's gradient is that of a rollout with these gists alone; scores are of all."""
    rollouts, calculate, score = [], GistTrainer._calculate_rewards, GeneratorTrainer.score

    def kept(self, inputs, *rest):
        rewards = calculate(self, inputs, *rest)
        rollouts.append([(row["gist_ids"], row["kl_gain"]) for row in inputs])
        return rewards

    def two_of_each(self, rows, gists, size, *rest):
        two = [row for row in range(len(rows)) if row % size < 2]
        scores = score(self, [rows[row] for row in two], [gists[row] for row in two], 2, *rest)
        return [scores[row // size * 2 + min(row % size, 1)] for row in range(len(rows))]

    monkeypatch.setattr(GistTrainer, "_calculate_rewards", kept)
    every = trained(make_trainer, lora, score_batch_size=score_batch_size)
    some = trained(make_trainer, lora, score_batch_size=score_batch_size, distilled_gists=2)
    for (gist, gain), (other, other_gain) in zip(*rollouts, strict=True):
        assert gist == other and gain == pytest.approx(other_gain, abs=1e-6)
    assert every.num_generations > 2 and gradient_norm(some) != pytest.approx(gradient_norm(every), rel=1e-3)
    monkeypatch.setattr(GeneratorTrainer, "score", two_of_each)
    alone = trained(make_trainer, lora, score_batch_size=score_batch_size)
    assert gradient_norm(alone) == pytest.approx(gradient_norm(some), rel=1e-5)


@pytest.mark.parametrize("rule", ["mixed", "passages"])
def test_those_learned_from_are_no_kind_of_their_own_in_the_cold_start(make_trainer, lora, rule):
    args = {"cold_start_gists": rule, "cold_start_steps": 1}
    every, some = (
        make_trainer(peft_config=lora, args={**args, **more}).rollout for more in ({}, {"distilled_gists": 1})
    )
    size = every.trainer.num_generations
    rows = [row for row in every.trainer.train_dataset for _ in range(size)]
    slots = set()
    for start, gists in enumerate(zip(*[iter(every._by_rule(rows))] * size, strict=True)):
        turned = some._by_rule(rows[size * start : size * (start + 1)])
        assert sorted(turned) == sorted(gists)
        slots |= {slot for slot, gist in enumerate(gists) if gist == turned[0] and gists.count(gist) == 1}
    assert len(slots) > 1


def test_the_hands_take_turns(make_trainer, lora, monkeypatch):
    trainer = make_trainer(peft_config=lora, args={"reader_hands": ["head", "tail"], "cold_start_steps": 0})
    seen, by_other_hands = [], trainer.rollout.by_other_hands
    monkeypatch.setattr(
        trainer.rollout, "by_other_hands", lambda rows: seen.append((rows, by_other_hands(rows))) or seen[-1][1]
    )
    trainer.train()
    size = trainer.num_generations
    for turn, (rows, gists) in enumerate(seen):
        assert len(gists) == len(rows) // size
        for row, gist in zip(rows[::size], gists, strict=True):
            context = row["context_ids"][: -len(row["last_k_ids"])]
            assert len(gist) == trainer.args.max_completion_length
            assert gist == (context[-len(gist) :] if turn % 2 else context[: len(gist)])
    assert len(seen) == 2


def test_contexts_are_read_for_their_rarity_only_where_a_hand_asks_for_it(make_trainer, lora, monkeypatch):
    read = []

    def first_contexts(rollout):
        read.append(rollout)
        yield from ([1, 2, 3], [4, 5])

    monkeypatch.setattr(GistRollout, "first_contexts", first_contexts)
    args = {"cold_start_steps": 0}
    trainer = make_trainer(peft_config=lora, args={**args, "reader_hands": ["facts", "self-information", "head"]})
    for name in ("tail", "perplexity pruning"):
        load_compressor(name, trainer)
    assert not read and len(trainer.rollout.hands) == 3
    load_compressor("tf-idf, then tail", trainer)
    make_trainer(peft_config=lora, args={**args, "reader_hands": ["tail", "tf-idf"]})
    assert len(read) == 2


@pytest.mark.parametrize("hand", ["perplexity pruning", "self-information"])
def test_a_hand_that_asks_the_teacher_is_refused_where_ranks_hold_shards_of_it(checkpoint, make_args, documents, hand):
    args = make_args(reader_hands=["tail", hand])
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={}, zero_stage=3)
    with pytest.raises(ValueError, match=f"`reader_hands` has '{hand}', which runs the teacher .* launch with ZeRO-2"):
        GistTrainer(checkpoint, args, train_dataset=documents)
    with pytest.raises(ValueError, match=f"`compressor` has '{hand}'"):
        load_compressor(hand.replace(" ", "_"), SimpleNamespace(args=args))
    args.deepspeed_plugin.zero_stage = 2
    check_asks_no_teacher(args, "reader_hands", [hand])


@pytest.mark.parametrize("name", ["surprising facts", "surprising_facts", "surprising-facts"])
def test_a_rule_has_one_name_however_it_is_spelled(make_args, name):
    """A compressor's name has a space, the cold start's rule of that name has none."""
    args = make_args(reader_hands=["tail", name], cold_start_gists=name)
    assert (args.reader_hands, args.cold_start_gists) == (["tail", "surprising facts"], "surprising_facts")
    script = GistScriptArguments(dataset_path="text", compressor=name)
    assert script.compressor == "surprising facts"
    asked = with_known_compressors(
        EvaluateArguments(
            pair="pair", dataset=["text"], output_dir="out", compressors=[name], own_generators=[f"{name}=a=b"]
        )
    )
    twice = dataclasses.replace(asked, own_generators=["surprising facts=a", f"{name}=b"])
    with pytest.raises(ValueError, match="`--own_generators` names two 'surprising facts'"):
        with_known_compressors(twice)
    assert (asked.compressors, asked.own_generators) == (["surprising facts"], ["surprising facts=a=b"])


def test_what_no_rule_is_called_is_refused(make_args):
    with pytest.raises(ValueError, match="`reader_hands` must be some of .*'tail'.*, got \\['hand', 'neck'\\]"):
        make_args(reader_hands=["neck", "tail", "hand"])
    with pytest.raises(ValueError, match="`reader_hands` .* Leave one of the two out"):
        make_args(reader_hands=["tail"], generator_only=True)
    with pytest.raises(ValueError, match=r"`reader_share` must be in \[0, 1\]"):
        make_args(reader_share=1.5)
