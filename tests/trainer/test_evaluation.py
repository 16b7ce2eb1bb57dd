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

"""Evaluation during training: what it logs, that it is greedy, and that it touches nothing."""

import json
import math

import pandas
import pytest
import torch
from checks import assert_equal_models, moved, snapshot, without_gradients
from datasets import Dataset, IterableDataset
from tiny import make_documents
from transformers import AutoModelForCausalLM

from trl_gist import GistCompactor, kl_gain, log_prob_gain
from trl_gist.common.run_files import read_entries
from trl_gist.common.tokens import characters_of
from trl_gist.evaluation import evaluate_pair
from trl_gist.prompts import before_last_k
from trl_gist.scoring.controls import CONTROLS


MEASURES = {
    *("teacher_kl", "null_teacher_kl", "nll_gist", "nll_teacher", "gist_length", "gist_rate", "total_rate"),
    *(f"{kind}_{control}" for kind in ("nll", "gain_over", "gap_closed") for control in CONTROLS),
}


@pytest.fixture
def held_out():
    return Dataset.from_dict({"text": make_documents(4, seed=9)})


def measures_of(entry, prefix="eval_"):
    return {name: entry[f"{prefix}{name}"] for name in MEASURES}


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_eval_strategy_logs_every_measure_with_its_standard_error(make_trainer, lora, held_out, with_lora):
    trainer = make_trainer(
        eval_dataset=held_out,
        peft_config=lora if with_lora else None,
        args={"eval_strategy": "steps", "eval_steps": 1},
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_teacher_kl" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]
    for entry in entries:
        assert (entry["eval_windows"], entry["eval_documents"]) == (20, 4)
        assert all(math.isfinite(entry[f"eval_{name}"]) for name in MEASURES)
        assert all(entry[f"eval_{name}_se"] >= 0 for name in MEASURES)
        assert entry["eval_teacher_kl_se"] > 0
    # The pair moved, the frozen controls did not
    first, second = map(measures_of, entries)
    assert first["nll_gist"] != second["nll_gist"] and first["teacher_kl"] != second["teacher_kl"]
    assert first["nll_teacher"] == second["nll_teacher"] and first["nll_last_k"] == second["nll_last_k"]


def test_logged_measures_follow_from_one_another(make_trainer, lora, held_out):
    gains = [log_prob_gain, kl_gain]
    entry = make_trainer(eval_dataset=held_out, peft_config=lora, reward_funcs=gains).evaluate()
    for control in CONTROLS:
        bought = entry[f"eval_nll_{control}"] - entry["eval_nll_gist"]
        prize = entry[f"eval_nll_{control}"] - entry["eval_nll_teacher"]
        assert entry[f"eval_gain_over_{control}"] == pytest.approx(bought)
        assert entry[f"eval_gap_closed_{control}"] == pytest.approx(bought / prize)
    assert entry["eval_rewards/log_prob_gain/mean"] == pytest.approx(entry["eval_gain_over_null"], abs=1e-6)
    lower_kl = entry["eval_null_teacher_kl"] - entry["eval_teacher_kl"]
    assert entry["eval_rewards/kl_gain/mean"] == pytest.approx(lower_kl, abs=1e-6)
    assert entry["eval_gist_rate"] == pytest.approx(entry["eval_gist_length"] / 24)


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_evaluation_moves_no_parameter_and_leaves_no_gradient(make_trainer, lora, held_out, with_lora):
    trainer = make_trainer(eval_dataset=held_out, peft_config=lora if with_lora else None)
    trainer.train()
    roles = (trainer.model, trainer.generator, trainer.teacher)
    before = [snapshot(model) for model in roles]
    optimizer = json.dumps(trainer.generator_trainer.optimizer.state_dict(), default=str)
    trainer.evaluate()
    assert not any(moved(old, model) for old, model in zip(before, roles, strict=True))
    assert all(map(without_gradients, roles))
    assert json.dumps(trainer.generator_trainer.optimizer.state_dict(), default=str) == optimizer


def test_evaluation_is_deterministic(make_trainer, lora, held_out):
    trainer = make_trainer(eval_dataset=held_out, peft_config=lora)
    first, first_gists = trainer.evaluate(), trainer.last_gists
    torch.manual_seed(12345)
    assert measures_of(trainer.evaluate()) == measures_of(first)
    assert trainer.last_gists == first_gists and len(first_gists) == 3


def test_evaluation_writes_the_greedy_gist_of_plain_generate(make_trainer, checkpoint, held_out, monkeypatch):
    trainer = make_trainer(eval_dataset=held_out, args={"temperature": 0.3})
    rows, calculate = [], trainer._calculate_rewards

    def watch(inputs, *args):
        result = calculate(inputs, *args)
        rows.extend(inputs)
        return result

    monkeypatch.setattr(trainer, "_calculate_rewards", watch)
    trainer.evaluate()
    assert len(rows) == 20
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    for row in rows:
        prompt = torch.tensor([trainer.prompts.summarizer(row["context_ids"])])
        written = plain.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
        whole = characters_of(trainer.processing_class).whole(written[: written.index(2)] if 2 in written else written)
        assert row["gist_ids"] == whole


def own_texts(tokenizer, targets=False):
    """Contexts within a gist's length, at it and beyond it, some with last tokens that are their own end."""
    ids = tokenizer("In 1854 the physician John Snow marked on a map of Soho the houses where people had died.")[
        "input_ids"
    ]
    rows = []
    for length, last_k in ((2, [40]), (6, [40, 41]), (7, [40, 41]), (10, ids[6:10]), (11, ids[7:11]), (20, [40])):
        row = {"context": ids[:length], "last_k": last_k, "target": [50, 51]}
        if targets:
            row = {"context": ids[:length], "targets": [{"cue": ids[length - 2 : length], "target": [50, 51]}] * 2}
        rows.append(row)
    special = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return Dataset.from_list([*rows, {**rows[1], "context": [special, *ids[:6]]}, {**rows[1], "context": [special]}])


@pytest.mark.parametrize("targets", [False, True], ids=["one target", "several targets"])
def test_evaluation_writes_the_gists_that_the_pair_writes_in_use(make_trainer, tokenizer, tmp_path, targets):
    """What is no longer than a gist is its own, and S is not asked, or what is measured is not what users get."""
    held_out = own_texts(tokenizer, targets)
    args = {"gist_samples": 8, "gist_samples_steps": 1, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer(train_dataset=held_out, eval_dataset=held_out, args={**args, "learning_rate": 1e-6})
    trainer.train()
    trainer.save_model(str(tmp_path / "pair"))
    pair = GistCompactor.from_pretrained(tmp_path / "pair", device="cpu")
    windows = {tuple(row["context_ids"]): row for row in trainer.eval_dataset}
    found = {tuple(row["context_ids"]): row["gist_ids"] for row in trainer.eval_rows}
    assert found.keys() == windows.keys() and len(found) == 8
    own = 0
    for context, row in windows.items():
        last_k = [] if targets else row["last_k_ids"]
        gist = pair.compress(list(context), last_k=last_k).token_ids
        assert found[context] == gist
        own += gist == readable(pair, context, last_k)
    assert own == (4 if targets else 5)
    sampled = read_entries(tmp_path / "run" / "run_log" / "gists.jsonl")[0]
    texts = {gist["gist"] for gist in sampled if "log_prob_gain" not in gist and gist["step"] == 1}
    assert texts == {pair.decode(gist) for gist in found.values()}
    teacher = AutoModelForCausalLM.from_pretrained(pair.pair.base_models["teacher"])
    for row in evaluate_pair(pair, list(windows.values()), teacher.eval()):
        assert row["gist_ids"] == found[tuple(row["context_ids"])]


def readable(pair, context, last_k):
    return pair.prompts.without_special(before_last_k(list(context), last_k))


def test_in_training_the_summarizer_is_asked_for_whatever_is_short(make_trainer, tokenizer):
    trainer = make_trainer(train_dataset=own_texts(tokenizer))
    rows = trainer.rollout.rows([row for row in trainer.train_dataset for _ in range(4)])
    trainer.model.train()
    written, _ = trainer.rollout.write(rows, trainer.rollout.prompt_ids(rows))
    trainer.model.eval()
    in_use, _ = trainer.rollout.write(rows, trainer.rollout.prompt_ids(rows))
    short = [n for n, row in enumerate(rows) if len(row["context_ids"]) in (2, 6)]
    assert all(in_use[n][: len(rows[n]["context_ids"])] == rows[n]["context_ids"] for n in short)
    assert any(written[n][: len(rows[n]["context_ids"])] != rows[n]["context_ids"] for n in short)


def test_training_samples_again_after_an_evaluation(make_trainer, lora, held_out, monkeypatch):
    trainer = make_trainer(
        eval_dataset=held_out,
        peft_config=lora,
        args={"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "max_steps": 2},
    )
    sampled, write = [], trainer.rollout.write

    def watch(*args):
        completions, logprobs = write(*args)
        sampled.append((trainer.model.training, completions))
        return completions, logprobs

    monkeypatch.setattr(trainer.rollout, "write", watch)
    trainer.train()
    training = [completions for is_training, completions in sampled if is_training]
    assert len(training) == 2 and len(sampled) == 2 + 3 * 5
    for completions in training:
        assert len(set(map(tuple, completions[:4]))) > 1, "the gists of one context must differ"


def test_what_generates_has_no_setting_that_transformers_would_warn_of(make_trainer, lora, held_out):
    trainer = make_trainer(eval_dataset=held_out, peft_config=lora, args={"temperature": 0.7})
    for mode, temperature in ((trainer.model.eval, None), (trainer.model.train, 0.7), (trainer.model.eval, None)):
        mode()
        trainer.sample([[7, 8, 9]] * trainer.gists_per_context)
        config = trainer.generation_config
        config.validate(strict=True)
        assert (config.temperature, config.do_sample) == (temperature, temperature is not None)


def test_an_evaluation_stays_one_where_sampling_leaves_the_model_training(make_trainer, lora, held_out, monkeypatch):
    """As TRL's continuous batching does: held-out windows are not distilled on, and the next batch is greedy too."""
    trainer = make_trainer(eval_dataset=held_out, peft_config=lora)
    trainer.shares_prefix = False
    generate, before = trainer._generate_single_turn, snapshot(trainer.generator)
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *args: (generate(*args), trainer.model.train())[0])
    trainer.evaluate()
    assert not moved(before, trainer.generator) and without_gradients(trainer.generator)
    assert len(trainer.eval_rows) == 20 and not trainer.generation_config.do_sample


def test_several_eval_sets_are_logged_under_their_names(make_trainer, lora, held_out):
    trainer = make_trainer(
        peft_config=lora,
        eval_dataset={"prose": held_out, "notes": held_out.select(range(2))},
        args={"eval_strategy": "steps", "eval_steps": 2},
    )
    trainer.train()
    merged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert (merged["eval_prose_documents"], merged["eval_notes_documents"]) == (4, 2)
    assert merged["eval_prose_teacher_kl"] != merged["eval_notes_teacher_kl"]


def test_a_streamed_eval_set_gives_the_same_measures(make_trainer, lora, held_out):
    stream = IterableDataset.from_generator(lambda: ({"text": text} for text in held_out["text"]))
    in_memory = make_trainer(eval_dataset=held_out, peft_config=lora).evaluate()
    streamed = make_trainer(eval_dataset=stream, peft_config=lora).evaluate()
    for name, value in measures_of(in_memory).items():
        if "shuffled" not in name:  # who lends a gist to whom depends on the order of rows
            assert streamed[f"eval_{name}"] == pytest.approx(value, rel=1e-4), name


def test_eval_batch_size_changes_no_measure(make_trainer, lora, held_out):
    """Twenty windows in batches of seven: a mean of batch means would weigh the last six windows too much."""
    one = make_trainer(eval_dataset=held_out, peft_config=lora, args={"per_device_eval_batch_size": 1}).evaluate()
    seven = make_trainer(
        eval_dataset=held_out, peft_config=lora, args={"per_device_eval_batch_size": 7, "score_batch_size": 3}
    ).evaluate()
    assert (one["eval_windows"], seven["eval_windows"]) == (20, 20)
    assert measures_of(seven) == pytest.approx(measures_of(one), rel=1e-4, abs=1e-6)


def test_logged_measures_are_those_that_are_saved_with_the_pair(make_trainer, lora, held_out):
    trainer = make_trainer(eval_dataset=held_out, peft_config=lora, args={"per_device_eval_batch_size": 7})
    trainer.evaluate()
    (logged,) = trainer.state.log_history
    assert {name: logged[f"eval_{name}"] for name in trainer.last_measures} == trainer.last_measures


def test_a_held_out_measure_can_choose_the_best_checkpoint(make_trainer, lora, held_out):
    trainer = make_trainer(
        eval_dataset=held_out,
        peft_config=lora,
        args={
            **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "max_steps": 3},
            **{"metric_for_best_model": "teacher_kl", "greater_is_better": False},
        },
    )
    trainer.train()
    scores = [entry["eval_teacher_kl"] for entry in trainer.state.log_history if "eval_teacher_kl" in entry]
    assert trainer.state.best_metric == min(scores)


# ---- Logs ----


@pytest.mark.parametrize("advantage", ["group", "reward"])
def test_log_completions_writes_gists_rewards_scores_and_advantages(make_trainer, lora, advantage, tmp_path):
    trainer = make_trainer(
        peft_config=lora, args={"log_completions": True, "advantage": advantage, "num_completions_to_print": 1}
    )
    trainer.train()
    for step in (1, 2):
        table = pandas.read_parquet(tmp_path / "run" / "completions" / f"completions_{step:05d}.parquet")
        assert len(table) == 8 and set(table["step"]) == {step}
        assert table["teacher_kl"].gt(0).all()
        reward = table["kl_gain"] + 1e-4 * table["length_penalty"]
        if advantage == "reward":
            assert table["advantage"].tolist() == pytest.approx(reward.tolist(), abs=1e-6)
        else:
            assert [table["advantage"][i : i + 4].sum() for i in (0, 4)] == pytest.approx([0, 0], abs=1e-4)
            for i in (0, 4):
                assert (table["advantage"][i : i + 4].rank() == reward[i : i + 4].rank()).all()
        assert all(text in "".join(make_documents(12)) for text in table["prompt"])


def test_training_logs_both_halves(make_trainer, lora):
    trainer = make_trainer(peft_config=lora, args={"max_steps": 2})
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        assert entry["teacher_kl"] > 0 and entry["generator/grad_norm"] > 0 and entry["grad_norm"] > 0
        assert 0 <= entry["gist_length"] <= 6
        assert entry["kl_gain"] == pytest.approx(entry["null_teacher_kl"] - entry["teacher_kl"], abs=1e-6)
        assert entry["kl_gain"] == pytest.approx(entry["rewards/kl_gain/mean"], abs=1e-6)
    assert [entry["generator/learning_rate"] for entry in trainer.state.log_history[:2]] == pytest.approx([1e-3, 5e-4])


def test_a_run_that_is_evaluated_on_the_way_is_the_run_that_is_not(make_trainer, lora, documents, tmp_path):
    def trained(strategy):
        args = {"output_dir": str(tmp_path / strategy), "max_steps": 4, "eval_strategy": strategy, "eval_steps": 1}
        trainer = make_trainer(peft_config=lora, eval_dataset=documents.select(range(4)), args=args)
        trainer.train()
        return trainer

    plain, evaluated = trained("no"), trained("steps")
    assert_equal_models(plain.model, evaluated.model)
    assert_equal_models(plain.generator, evaluated.generator)
