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

"""An alarm goes off in a run that is rigged to trip it, and in no other; a run that it stops can go on."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from checks import assert_equal_models, assert_same, history
from datasets import Dataset
from tiny import make_documents, make_model
from transformers import TrainerCallback

from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer
from trl_gist.trainer.alarms import (
    ALARMS_FILE,
    LOG_PROB_CONTEXTS,
    SETTLED,
    WHAT_TO_DO,
    Alarms,
    RunningMean,
    is_degenerate,
)


# ---- The running means ----


def test_a_running_mean_is_that_of_the_newest_rollouts_with_its_error_over_documents():
    rng = np.random.default_rng(0)
    running, rollouts = RunningMean(40), []
    for _ in range(30):
        count = int(rng.integers(1, 9))
        values, documents = rng.normal(size=count), [str(rng.integers(20)) for _ in range(count)]
        values[rng.random(count) < 0.1] = math.nan
        running.add(values.tolist(), documents)
        rollouts.append([pair for pair in zip(values, documents, strict=True) if pair[0] == pair[0]])
        kept = []  # whole rollouts, from the newest back
        for rollout in reversed(rollouts):
            if len(kept) >= 40:
                break
            kept = rollout + kept
        mean, error = running.estimate()
        assert running.count == len(kept)
        if len(kept) < SETTLED:
            assert math.isnan(mean) and math.isnan(error)
            continue
        values = np.array([value for value, _ in kept])
        clusters = {document: 0.0 for _, document in kept}
        for value, document in kept:
            clusters[document] += value - values.mean()
        n = len(clusters)
        expected = math.sqrt(sum(total**2 for total in clusters.values()) * n / (n - 1)) / len(values)
        assert mean == pytest.approx(values.mean(), abs=1e-12) and error == pytest.approx(expected, abs=1e-12)
    assert running.count >= 40


def test_a_running_mean_of_one_document_is_no_figure():
    running = RunningMean(40)
    running.add([1.0] * 40, ["a"] * 40)
    assert math.isnan(running.estimate()[0])


# ---- What is degenerate ----


PROSE = "the outbreak, which had already begun to wane, came to an end; 82 miles of sewers lay below London"


@pytest.mark.parametrize(
    ("gist", "expected"),
    [
        ("1854 John Snow: cholera <- pump, Broad St. (not bad air)", False),
        ("霍乱源于布罗德街的水泵", False),
        ("(!;:,.?<>[]{}|/-+=*&^%", False),
        ("cholera", False),
        ("", False),
        ("pump pump pump pump pump pump pump pump pump", True),
        ("!!!!!!!!!!!!", True),
        ("<|im_start|><|im_end|>" * 3 + "Snow pump", True),
        ("<|im_start|><|im_end|>" * 3, False),
    ],
    ids=["keywords", "mandarin", "punctuation", "short", "empty", "one-word", "one-sign", "special", "few-special"],
)
def test_a_degenerate_gist_loops_or_is_no_text_and_a_code_is_neither(tokenizer, gist, expected):
    special = frozenset(tokenizer.all_special_ids)
    context = tokenizer(PROSE, add_special_tokens=False)["input_ids"]
    ids = tokenizer(gist, add_special_tokens=False)["input_ids"]
    assert is_degenerate(ids, tokenizer.decode(ids, skip_special_tokens=True), context, special) == expected


def test_a_gist_cut_inside_a_character_is_not_degenerate_and_one_of_loose_bytes_is(tokenizer):
    special = frozenset(tokenizer.all_special_ids)
    context = tokenizer(PROSE, add_special_tokens=False)["input_ids"]
    ids = tokenizer("霍乱水泵", add_special_tokens=False)["input_ids"]
    assert len(ids) == 12 and tokenizer.decode(ids[:8]).count("\ufffd") == 1
    assert not is_degenerate(ids[:8], tokenizer.decode(ids[:8]), context, special)
    loose = ids[2::3] + ids[1::3]
    assert is_degenerate(loose, tokenizer.decode(loose), context, special)


def test_a_gist_of_digits_is_held_against_its_own_context(tokenizer):
    special = frozenset(tokenizer.all_special_ids)
    digits = tokenizer("1" * 4 + "0" * 4, add_special_tokens=False)["input_ids"]
    table = tokenizer("1001" * 20, add_special_tokens=False)["input_ids"]
    prose = tokenizer(PROSE, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(digits)
    assert not is_degenerate(digits, text, table, special) and is_degenerate(digits, text, prose, special)


# ---- The figures, against a plain reference ----


def log_prob(model, prompt, target):
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return log_probs[range(len(target)), target].mean().item()


@pytest.fixture
def scorer(tokenizer):
    generator, teacher = (TargetScorer(make_model(tokenizer, seed, torch.float64).eval()) for seed in (1, 2))
    return GistScorer(generator, teacher, GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT), batch_size=3)


def scored_rows(scorer, contexts, num_generations, seed=0):
    """Rows as the trainer hands them over, every other gist with a piece of the instruction."""
    rng = random.Random(seed)
    rows = []
    for document in range(contexts):
        context = [rng.randrange(5, 300) for _ in range(20)]
        window = {
            **{"document_id": document, "context_ids": context, "last_k_ids": context[-4:]},
            "target_ids": [rng.randrange(5, 300) for _ in range(rng.randrange(1, 9))],
        }
        rows += [dict(window) for _ in range(num_generations)]
    gists = []
    for index, row in enumerate(rows):
        piece = list(scorer.prompts.instruction[0][-6:]) if index % 2 else row["context_ids"][3:8]
        gists.append([rng.randrange(5, 300) for _ in range(rng.randrange(4))] + piece)
    for row, score in zip(rows, scorer.score(rows, gists, num_generations), strict=True):
        row.update(score)
    return rows


def test_the_figures_are_what_they_are_called(scorer):
    rows, generator, teacher = scored_rows(scorer, 3, 4), scorer.generator.model, scorer.teacher.model
    figures = Alarms(scorer, 12, Accelerator()).watch(rows, [""] * 12, 4, step=1)
    firsts = rows[::4]

    def with_gist(row, gist):
        return log_prob(generator, scorer.prompts.generator(gist, row["last_k_ids"]), row["target_ids"])

    # Three documents: each borrows from the next, in the one order or the other
    around = [
        np.mean(
            [
                with_gist(row, row["gist_ids"]) - with_gist(row, firsts[(i + turn) % 3]["gist_ids"])
                for i, row in enumerate(firsts)
            ]
        )
        for turn in (1, 2)
    ]
    assert min(abs(figures["gain_over_shuffled"] - value) for value in around) < 1e-9
    last_k = [log_prob(teacher, row["last_k_ids"], row["target_ids"]) for row in firsts]
    excess = np.mean([value - with_gist(row, []) for row, value in zip(firsts, last_k, strict=True)])
    assert figures["last_k_excess"] == pytest.approx(excess, abs=1e-9)
    gain = np.mean([with_gist(row, row["gist_ids"]) - last_k[index // 4] for index, row in enumerate(rows)])
    assert figures["gain_over_last_k"] == pytest.approx(gain, abs=1e-9)
    before, after = scorer.prompts.instruction
    template = {part[start : start + 3] for part in (before, after) for start in range(len(part) - 2)}
    shares = []
    for row in rows:
        own = {tuple(row["context_ids"][start : start + 3]) for start in range(18)}
        ngrams = [tuple(row["gist_ids"][start : start + 3]) for start in range(len(row["gist_ids"]) - 2)]
        shares.append(np.mean([ngram in template and ngram not in own for ngram in ngrams]))
    assert figures["parroted_share"] == pytest.approx(np.mean(shares)) and 0.2 < np.mean(shares) < 0.8
    assert {name: value for name, value in figures.items() if name.startswith("alarm/")} == {
        f"alarm/{name}": 0.0 for name in WHAT_TO_DO if name != "no_signal"
    }


def test_a_context_that_quotes_the_prompt_may_be_quoted(scorer):
    alarms, rows = Alarms(scorer, 12, Accelerator()), scored_rows(scorer, 2, 1)
    piece = list(scorer.prompts.instruction[0][-6:])
    for row in rows:
        row["gist_ids"] = piece
    assert alarms.watch(rows, [""] * 2, 1, step=1)["parroted_share"] == 1.0
    for row in rows:
        row["context_ids"] = [*row["context_ids"], *piece]
    assert alarms.watch(rows, [""] * 2, 1, step=2)["parroted_share"] == 0.0


def test_they_cost_one_row_of_the_generator_and_one_of_the_teacher_per_context(scorer, monkeypatch):
    rows, seen = scored_rows(scorer, 3, 4), []
    for role in ("generator", "teacher"):
        module = getattr(scorer, role)
        monkeypatch.setattr(
            module,
            "hidden_states",
            lambda batch, role=role, forward=module.hidden_states: (
                seen.extend([role] * len(batch.input_ids_NS)),
                forward(batch),
            )[1],
        )
    figures = Alarms(scorer, 12, Accelerator()).watch(rows, [""] * 12, 4, step=1)
    assert sorted(seen) == ["generator"] * 3 + ["teacher"] * 3
    assert all(math.isfinite(value) for value in figures.values())


def test_a_rollout_of_one_context_borrows_from_the_one_before(scorer):
    rows = scored_rows(scorer, 2, 2)
    alarms = Alarms(scorer, 12, Accelerator())
    assert "gain_over_shuffled" not in alarms.watch(rows[:2], [""] * 2, 2, step=1)
    figures = alarms.watch(rows[2:], [""] * 2, 2, step=2)
    row, lent = rows[2], rows[0]["gist_ids"]
    other = log_prob(scorer.generator.model, scorer.prompts.generator(lent, row["last_k_ids"]), row["target_ids"])
    assert figures["gain_over_shuffled"] == pytest.approx(row["gist_log_prob"] - other, abs=1e-9)
    # The same document twice in a row has nobody to borrow from
    assert "gain_over_shuffled" not in alarms.watch(rows[2:], [""] * 2, 2, step=3)


# ---- When they go off: rollouts with the noise of real ones ----


class Rollouts:
    """Feeds alarms with rollouts of four contexts, whose log-probs are drawn."""

    def __init__(self, scorer, seed):
        self.rng = np.random.default_rng(seed)
        self.scorer = SimpleNamespace(
            prompts=scorer.prompts,
            generator_log_probs=lambda rows, gists: self.shuffled,
            cue_log_probs=lambda rows: self.last_k,
        )
        self.alarms, self.step = Alarms(self.scorer, 24, Accelerator()), 0

    def __call__(self, count, gain=0.25, gain_noise=0.3, excess=0.1, excess_noise=0.2):
        """The names of the alarms that were on after each rollout."""
        return [self._one(gain, gain_noise, excess, excess_noise) for _ in range(count)]

    def _one(self, gain, gain_noise, excess, excess_noise):
        self.step += 1
        self.shuffled = (-self.rng.normal(gain, gain_noise, 4)).tolist()
        self.last_k = self.rng.normal(excess, excess_noise, 4).tolist()
        rows = []
        for index in range(4):
            ids = self.rng.integers(5, 300, 60).tolist()
            rows.append(
                {
                    **{"document_id": f"{self.step}-{index}", "context_ids": ids, "last_k_ids": ids[-4:]},
                    **{"target_ids": ids[:8], "gist_ids": ids[20:40], "gist_log_prob": 0.0, "null_log_prob": 0.0},
                }
            )
        self.alarms.watch(rows, [""] * 4, 1, self.step)
        return set(self.alarms.on)


@pytest.mark.parametrize("seed", range(4))
def test_a_small_honest_effect_measured_noisily_never_fires(scorer, seed):
    """A whole run of 1,500 rollouts at a fifth of the demo's gain."""
    rollouts = Rollouts(scorer, seed)
    assert not any(rollouts(20, excess=0.4)) and not any(rollouts(1480, gain=0.05))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("rigged", "expected"),
    [
        ({"gain": 0.0, "gain_noise": 0.0}, "ignores_context"),
        ({"gain": 0.0, "gain_noise": 0.01}, "ignores_context"),
        ({"excess": 0.5}, "last_k_decay"),
    ],
    ids=["constant-gist", "unread-gist", "decay"],
)
def test_each_goes_off_soon_after_the_run_goes_wrong_and_again_off_when_it_recovers(
    scorer, caplog, rigged, expected, seed
):
    rollouts = Rollouts(scorer, seed)
    window = LOG_PROB_CONTEXTS // 4
    assert not any(rollouts(40))
    assert rollouts(2 * window, **rigged)[-window:] == [{expected}] * window
    assert not any(rollouts(2 * window)[-window:])
    assert rollouts(2 * window, **rigged)[-1] == {expected}
    warnings = [record.message for record in caplog.records if "Alarm `" in record.message]
    assert len(warnings) == 2, "one warning for each start, none while it is on"
    assert all(f"Alarm `{expected}`" in text and WHAT_TO_DO[expected] in text for text in warnings)


def test_an_alarm_does_not_flicker_around_its_threshold(scorer):
    rollouts = Rollouts(scorer, 0)
    seen = rollouts(400, gain=0.0, gain_noise=0.04)
    assert any(seen) and sum(one != other for one, other in pairwise(seen)) <= 5


def test_nothing_is_judged_before_it_is_settled(scorer):
    rollouts = Rollouts(scorer, 0)
    seen = rollouts(SETTLED // 4, gain=-1.0, gain_noise=0.01)
    assert seen == [set()] * (SETTLED // 4 - 1) + [{"ignores_context"}]


# ---- Real runs ----


@pytest.fixture
def run(make_trainer, tokenizer):
    """Trains a tiny pair on eight contexts a rollout; `write` rigs what S writes, in place of sampling."""

    def run(write=None, rows=64, num_generations=8, resume=None, callback=None, **kwargs):
        trainer = make_trainer(
            model=make_model(tokenizer),
            processing_class=tokenizer,
            train_dataset=kwargs.pop("train_dataset", Dataset.from_dict({"text": make_documents(40)})),
            reward_funcs=kwargs.pop("reward_funcs", None),
            args={
                **{"max_completion_length": 10, "num_generations": num_generations},
                **{"per_device_train_batch_size": rows, "lr_scheduler_type": "constant", **kwargs},
            },
        )
        if write is not None:
            eos = tokenizer.eos_token_id

            def generate(rows, prompt_ids):
                before, after = trainer.prompts.instruction
                contexts = [prompt[len(before) : -len(after)] for prompt in prompt_ids]
                return [[*write(trainer.prompts, ids, row), eos] for row, ids in enumerate(contexts)], None

            trainer.rollout.write = generate
        if callback is not None:
            trainer.add_callback(callback)
            callback.trainer = trainer
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def extract(prompts, context, row):
    return context[row % 8 : row % 8 + 9]


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def alarms_of(trainer):
    """The names of the alarms that were on in each step."""
    steps = [entry for entry in trainer.state.log_history if "gist_length" in entry]
    return [{name for name in WHAT_TO_DO if entry[f"alarm/{name}"]} for entry in steps]


def test_an_ordinary_run_raises_no_alarm_and_logs_every_figure(run, caplog):
    trainer = run(rows=32, num_generations=4, max_steps=12)
    assert alarms_of(trainer) == [set()] * 12
    assert "Alarm" not in caplog.text
    for name in ("gain_over_shuffled", "gain_over_last_k", "last_k_excess", "parroted_share", "degenerate_share"):
        assert len(logged(trainer, name)) == 12 and len(set(logged(trainer, name))) > (name != "parroted_share")


def test_a_reward_for_short_gists_raises_length_collapse_and_the_run_stops_there(run, caplog):
    def short(gist_length, **kwargs):
        return [-float(length) for length in gist_length]

    trainer = run(
        reward_funcs=short, learning_rate=2e-2, max_steps=40, stop_on_alarm=True, save_strategy="steps", save_steps=50
    )
    step = trainer.state.global_step
    assert step < 40 and alarms_of(trainer) == [set()] * (step - 1) + [{"length_collapse"}]
    assert logged(trainer, "gist_length")[0] > 8 and logged(trainer, "gist_length")[-1] < 1.5
    assert f"Alarm `length_collapse` at step {step}: gists are " in caplog.text
    assert f"the run ends at step {step} (length_collapse)" in caplog.text


def test_a_reward_for_one_word_raises_degenerate_vocabulary_and_ignores_context(run):
    def likes_one_token(gist_ids, **kwargs):
        return [gist.count(40) / max(1, len(gist)) for gist in gist_ids]

    trainer = run(reward_funcs=likes_one_token, learning_rate=2e-2, max_steps=40)
    seen = alarms_of(trainer)
    assert seen[:8] == [set()] * 8 and seen[-1] == {"degenerate_vocabulary", "ignores_context"}
    # Loops are seen at once; that gists are the same for all contexts takes a window of them
    assert [name in step for step in seen for name in ["degenerate_vocabulary"]].index(True) < [
        "ignores_context" in step for step in seen
    ].index(True)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda prompts, context, row: prompts.instruction[0][-9:-2] + (context[0], 5 + row), {"parrots_prompt"}),
        (lambda prompts, context, row: [0, 1, 3, 4, 3, 3, context[2], context[9]], {"degenerate_vocabulary"}),
        (lambda prompts, context, row: [40, 77, 120, 200, 41], {"ignores_context"}),
        (lambda prompts, context, row: context[row % 8 : row % 8 + 1], {"length_collapse"}),
        (extract, set()),
    ],
    ids=["instruction", "special-tokens", "constant", "one-token", "extracts"],
)
def test_what_the_summarizer_writes_raises_its_own_alarm_only(run, write, expected):
    trainer = run(write, rows=16, num_generations=2, max_steps=4, generator_learning_rate=1e-4)
    assert alarms_of(trainer) == [set(), expected, expected, expected]


# ---- A run that teaches S nothing ----


def test_silence_is_said_once_it_is_long_and_again_after_a_word(scorer, caplog):
    alarms = Alarms(scorer, 12, Accelerator())

    def watch(alarms, *taught):
        return alarms.watch_signal(list(taught), ["a"] * len(taught), step=1)["alarm/no_signal"]

    assert watch(alarms, *[False] * (LOG_PROB_CONTEXTS - 1)) == 0.0 and not alarms.on
    assert watch(alarms, False) == 1.0 == watch(alarms, False) and alarms.on == alarms.started == {"no_signal"}
    assert watch(alarms, False, True) == 0.0 and not alarms.on
    assert watch(alarms, *[False] * (LOG_PROB_CONTEXTS - 1)) == 0.0
    assert watch(alarms, *[False] * LOG_PROB_CONTEXTS) == 1.0
    assert caplog.text.count("Alarm `no_signal` at step 1: of the last ") == 2
    assert caplog.text.count(WHAT_TO_DO["no_signal"]) == 2


def test_other_alarms_leave_it_on_and_a_checkpoint_keeps_it(scorer, tmp_path):
    alarms = Alarms(scorer, 12, Accelerator())
    alarms.watch_signal([False] * LOG_PROB_CONTEXTS, ["a"] * LOG_PROB_CONTEXTS, step=1)
    alarms.watch(scored_rows(scorer, 3, 4), [""] * 12, 4, step=2)
    assert alarms.on == {"no_signal"}
    alarms.save(tmp_path)
    loaded = Alarms(scorer, 12, Accelerator())
    loaded.load(tmp_path)
    assert loaded.state_dict() == alarms.state_dict()
    state = alarms.state_dict()
    del state["taught"]  # as checkpoints were
    (tmp_path / ALARMS_FILE).write_text(json.dumps(state))
    loaded.load(tmp_path)
    assert loaded.taught.rollouts == []


def same(gist_ids, **kwargs):
    return [0.7] * len(gist_ids)


def nothing(gist_ids, **kwargs):
    return [0.0] * len(gist_ids)


def by_chance(gist_ids, **kwargs):
    rng = random.Random(str(gist_ids[:3]))
    return [rng.random() for _ in gist_ids]


@pytest.mark.parametrize(
    ("reward", "args", "silent"),
    [
        (same, {}, True),
        (same, {"advantage": "best"}, True),
        (same, {"advantage": "reward"}, False),
        (same, {"scale_rewards": "none"}, True),
        (nothing, {"advantage": "reward"}, True),
        (by_chance, {}, False),
        (by_chance, {"advantage": "best"}, False),
    ],
)
def test_a_run_whose_gists_are_all_paid_the_same_raises_no_signal(run, reward, args, silent):
    trainer = run(reward_funcs=reward, rows=32, num_generations=2, max_steps=4, **args)
    assert logged(trainer, "alarm/no_signal") == [0.0, 0.0, 0.0, float(silent)]


def test_gists_that_are_all_alike_are_no_signal_whatever_they_are_paid(run):
    trainer = run(lambda prompts, context, row: [40, 77, 120, 200, 41], rows=32, num_generations=2, max_steps=4)
    assert logged(trainer, "alarm/no_signal") == [0.0, 0.0, 0.0, 1.0]
    trainer = run(lambda *_: [40, 77], reward_funcs=by_chance, rows=32, num_generations=2, max_steps=4)
    assert logged(trainer, "alarm/no_signal") == [0.0, 0.0, 0.0, 1.0]


def test_gists_that_the_loss_does_not_count_are_no_signal(run, monkeypatch):
    trainer = run(reward_funcs=by_chance, rows=8, num_generations=2, max_steps=1)
    seen = []
    monkeypatch.setattr(trainer.alarms, "watch_signal", lambda taught, *_: seen.append(taught) or {})
    trainer._rewards_per_func = torch.tensor([[0.1], [0.2], [0.3], [0.3], [0.5], [0.6]])
    rows = [{"gist_ids": [index], "document_id": 0} for index in range(6)]
    mask = torch.ones(6, 4, dtype=torch.int64)
    for empty, ratio in ((slice(0, 0), None), (slice(0, 2), None), (slice(0, 2), torch.ones(6, 1))):
        mask[empty] = 0
        output = {"completion_mask": mask} | ({} if ratio is None else {"importance_sampling_ratio": ratio})
        trainer._watch_signal(rows, output)
    trainer._watch_signal(rows, {"completion_mask": mask + 1, "importance_sampling_ratio": torch.zeros(6, 4)})
    assert seen == [[True, False, True], [False, False, True], [False, False, True], [False] * 3]


class Forget(TrainerCallback):
    """After some steps the generator's weights are no longer what they were."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                for parameter in self.trainer.generator.parameters():
                    parameter.mul_(2)


def test_a_generator_that_forgets_raises_last_k_decay(run):
    trainer = run(extract, rows=16, num_generations=2, max_steps=16, callback=Forget(8), generator_learning_rate=1e-4)
    seen = alarms_of(trainer)
    assert seen[:8] == [set()] * 8 and seen[-1] == {"last_k_decay"}
    excess = logged(trainer, "last_k_excess")
    assert sum(excess[8:]) / 8 > sum(excess[:8]) / 8 + 0.3


def test_a_single_document_trains_without_a_figure_to_judge(run):
    text = make_documents(1)[0]
    rows = Dataset.from_list([{"text": text, "document_id": "the one"}] * 16)
    trainer = run(lambda prompts, context, row: [40], 16, 2, train_dataset=rows, max_steps=3)
    assert alarms_of(trainer) == [set()] * 3 and not logged(trainer, "gain_over_shuffled")


# ---- Stopping and resuming ----


def saved(trainer):
    checkpoints = Path(trainer.args.output_dir).glob("checkpoint-*")
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]))


# Not the same one for all gists of a context, which would be no signal
ONE_TOKEN = {"write": lambda prompts, context, row: context[row % 8 : row % 8 + 1], "rows": 16, "num_generations": 2}


@pytest.mark.parametrize(
    ("args", "stops_at"),
    [
        ({}, 2),
        ({"num_iterations": 3}, 6),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 1, "rows": 8}, 4),
        ({"steps_per_generation": 1, "gradient_accumulation_steps": 2}, 1),
    ],
    ids=["a-step-a-rollout", "iterations", "steps-per-generation", "accumulation"],
)
def test_a_run_stops_with_its_checkpoint_at_the_end_of_the_rollout_and_goes_on_when_resumed(
    run, tmp_path, args, stops_at
):
    settings = {**ONE_TOKEN, "max_steps": 12, "save_strategy": "steps", "save_steps": 12, **args}
    whole = run(**settings, output_dir=str(tmp_path / "whole"))
    stopped = run(**settings, stop_on_alarm=True, output_dir=str(tmp_path / "stopped"))
    assert stopped.state.global_step == stops_at and whole.state.global_step == 12
    assert [path.name for path in saved(stopped)] == [f"checkpoint-{stops_at}"]
    resumed = run(**settings, stop_on_alarm=True, output_dir=stopped.args.output_dir, resume=True)
    assert resumed.state.global_step == 12, "who resumes has seen the alarm"
    assert_same(history(whole), history(resumed))
    assert_equal_models(whole.model, resumed.model)
    assert_equal_models(whole.generator, resumed.generator)
    assert whole.alarms.state_dict() == resumed.alarms.state_dict()


def test_without_stop_on_alarm_a_run_goes_on_and_without_checkpoints_it_stops_without_one(run):
    assert run(**ONE_TOKEN, max_steps=4).state.global_step == 4
    stopped = run(**ONE_TOKEN, max_steps=4, stop_on_alarm=True)
    assert stopped.state.global_step == 2 and not saved(stopped)
    stopped.train()
    assert stopped.state.global_step == 4, "one start ends one run"


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("rows", [16, 2], ids=["eight-contexts", "one-context"])
def test_the_windows_survive_a_kill_bit_for_bit(run, tmp_path, rows):
    """At the kill the windows are half full, the lowest excess is known and, with one context, a gist waits to be
    lent; afterwards the alarms start at the very steps they would have."""
    settings = {"write": extract, "rows": rows, "num_generations": 2, "max_steps": 18, "save_strategy": "steps"}
    settings |= {"save_steps": 2, "learning_rate": 1e-3}
    whole = run(**settings, output_dir=str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(**settings, output_dir=str(tmp_path / "killed"), callback=Kill())
    resumed = run(**settings, output_dir=str(tmp_path / "killed"), resume=True)
    assert_same(history(whole), history(resumed))
    state = json.loads((saved(resumed)[-1] / "alarms.json").read_text())
    assert state == json.loads(json.dumps(whole.alarms.state_dict()))
    kept = [len(rollout) for rollout in state["means"]["gain_over_shuffled"]]
    assert sum(kept) == (64 if rows == 16 else 17) and state["lowest_excess"] and len(state["previous"]) == 1
