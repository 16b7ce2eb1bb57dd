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

"""Walks that are paid for memory: targets of a window that ask about earlier chunks, made by rule or brought by the
documents, read by the teacher up to that window alone, scored, trained on and measured by age."""

from collections import Counter

import pytest
import torch
from checks import logs_of, rows_of
from datasets import Dataset, IterableDataset
from tiny import make_documents, make_tokenizer

from trl_gist.common.geometry import Geometry, WindowedText
from trl_gist.common.tokens import characters_of
from trl_gist.data import windows as windows_module
from trl_gist.data.targets import TargetSpec, make_walk_targets
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.trainer import rollout


CHUNK, LAST_K, TARGET, WINDOWS = 40, 4, 8, 4
GEOMETRY = Geometry(60, CHUNK, LAST_K, TARGET)
LENGTH = GEOMETRY.length(WINDOWS)
WALKS = {"context_length": 64, "windows_per_document": 3, "max_completion_length": 6, "target_floor": None}
WALKS |= {"target_kinds": {"fact": 2, "recall": 1}, "targets_per_context": 6}


@pytest.fixture(scope="module")
def ids():
    return make_tokenizer().encode(" ".join(make_documents(3)), add_special_tokens=False)[:LENGTH]


def targets_of_walk(ids, count=8, kinds=(("fact", 1.0),), **more):
    return make_walk_targets(make_tokenizer(), ids, GEOMETRY, WINDOWS, TargetSpec(kinds, count, **more))


# ---- What a window asks for ----


def test_a_target_stands_in_the_chunk_of_its_age_after_its_cue(ids):
    targets = targets_of_walk(ids, kinds=(("fact", 2.0), ("recall", 1.0)))
    assert {target["window"] for target in targets} == set(range(WINDOWS))
    assert {(target["window"], target["age"]) for target in targets if target["age"]} > {(2, 1), (3, 2), (3, 3)}
    for target in targets:
        chunk = target["window"] - target["age"]
        of_chunk = ids[chunk * CHUNK : (chunk + 1) * CHUNK]
        wanted = target["cue_ids"] + target["target_ids"]
        assert any(of_chunk[start : start + len(wanted)] == wanted for start in range(CHUNK))
        assert target["after_ids"] == target["cue_ids"]


@pytest.mark.parametrize("ages, asked", [((1,), {0}), ((0, 1), {1}), ((1, 0, 1), {0, 2}), (None, {0, 1, 2, 3})])
def test_ages_are_those_that_are_asked_for(ids, ages, asked):
    counts = Counter(
        target["age"] for target in targets_of_walk(ids, 100, recall_age=ages) if target["kind"] == "fact"
    )
    assert set(counts) == asked


def test_ages_have_the_shares_of_their_weights():
    """Where a chunk has as many facts as are asked for; of the tiny documents only a few do."""
    counts = Counter()
    for number in range(60):
        text = " ".join(f"It came to {number + 7 * n} and {number + 5 * n} and {number + 3 * n}." for n in range(60))
        ids = make_tokenizer().encode(text, add_special_tokens=False)[:LENGTH]
        counts.update(target["age"] for target in targets_of_walk(ids, 2, recall_age=(1, 3)) if target["window"] == 3)
    assert counts.total() == 120
    assert 0.7 < counts[1] / counts.total() < 0.8


def test_ages_have_their_shares_however_many_kinds_of_target_documents_bring(ids):
    brought = [
        {"kind": kind, "cue_ids": [7], "target_ids": [8, number], "at": at, "until": None}
        for kind, at in (("place", CHUNK + 5), ("place", 5), ("person", 5))
        for number in range(8)
    ]
    spec = TargetSpec(targets_per_context=8, recall_age=(1, 1))
    targets = make_walk_targets(make_tokenizer(), ids, GEOMETRY, WINDOWS, spec, brought)
    counts = Counter((target["kind"], target["age"]) for target in targets if target["window"] == 1)
    assert counts == {("place", 0): 4, ("place", 1): 2, ("person", 1): 2}


def test_a_window_that_offers_nothing_has_its_continuation():
    words = make_tokenizer().encode("water came from the river and was bad " * 40, add_special_tokens=False)[:LENGTH]
    for window, target in enumerate(targets_of_walk(words)):
        before = GEOMETRY.before(window)
        assert (target["kind"], target["window"], target["age"]) == ("continuation", window, 0)
        assert target["cue_ids"] == words[before - LAST_K : before]
        assert target["target_ids"] == words[before : before + TARGET]


@pytest.mark.parametrize("target_length", [TARGET, 2])
@pytest.mark.parametrize("kind", ["fact", "continuation"])
def test_every_window_is_asked_for_something_also_where_a_character_shortens_the_walk(kind, target_length):
    """Characters of two to four tokens: a walk's last target may lack some of its length."""
    tokenizer, geometry = make_tokenizer(), Geometry(60, CHUNK, LAST_K, target_length)
    text = "كان معظم المنازل حول مضخة واحدة في شارع. 当时几乎没有人相信他。" * 8
    targets = TargetSpec(((kind, 1.0), ("far", 1.0)), far_offset=1000)  # beyond the text's end
    spec = WindowSpec(60, target_length, LAST_K, 7, None, 3, geometry, targets)
    walks, _ = prepare_windows(Dataset.from_dict({"text": [text]}), tokenizer, spec)
    assert {len(walk["walk_ids"]) for walk in walks} > {spec.length}
    for walk in walks:
        cut = WindowedText(walk["walk_ids"], geometry, characters_of(tokenizer))
        for window in range(3):
            (target,) = (target for target in walk["targets"] if target["window"] == window)
            assert target["target_ids"] == cut.target(window) != []
            assert target["cue_ids"] == cut.last(window)


@pytest.mark.parametrize("ages", [(), (0, 0), (-1, 2), ("a",), (float("inf"),)])
def test_ages_without_a_share_are_refused(ages):
    with pytest.raises(ValueError, match="`recall_age` must be weights"):
        TargetSpec((("fact", 1.0),), 4, recall_age=ages)


def test_a_walk_that_begins_inside_a_sentence_does_not_ask_for_the_rest_of_it():
    tokenizer = make_tokenizer()
    text = " ".join(f"He saw the water of the river come from a pump {number} times." for number in range(60))
    spec = WindowSpec(60, TARGET, LAST_K, 61, None, 2, GEOMETRY, TargetSpec((("recall", 1.0),), 100))
    walks, _ = prepare_windows(Dataset.from_dict({"text": [text]}), tokenizer, spec)
    begun, inside = [], 0
    for number, walk in enumerate(walks):
        before = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][: 61 * number]).rstrip()
        if number and before.endswith((".", "!", "?")):
            continue
        inside += number > 0
        ids = walk["walk_ids"]
        heads = [target for target in walk["targets"] if target["cue_ids"] == ids[: len(target["cue_ids"])]]
        begun += [number] * any(target["kind"] == "recall" for target in heads)
    assert inside > 5 and begun == [0]


# ---- Documents that bring their own ----


def ledger(overwritten):
    """Two entries in the first of three chunks; the second is written over in the last one, or is not."""
    tokenizer = make_tokenizer()
    filler = tokenizer.decode(tokenizer.encode("water came from the river " * 40, add_special_tokens=False)[:25])
    text = f"The price of barrels is 82. The price of houses is 12. {filler}"
    at = [text.index(f" {number}.") + 3 for number in (82, 12)]
    text += filler * 3
    until = len(text)
    text += f" The price of houses is {45 if overwritten else 12}. {filler * 9}"
    targets = [
        {"cue": "The price of barrels is", "target": " 82", "at": at[0], "until": None},
        {"cue": "The price of houses is", "target": " 12", "at": at[1], "until": until if overwritten else None},
    ]
    return {"text": text, "document_targets": targets}


@pytest.mark.parametrize("make", [Dataset.from_list, lambda rows: IterableDataset.from_generator(lambda: iter(rows))])
def test_an_entry_is_asked_for_from_its_chunk_on_until_it_is_written_over(make):
    tokenizer, spec = make_tokenizer(), WindowSpec(60, TARGET, LAST_K, None, 1, 4, GEOMETRY)
    asked = {}
    for overwritten in (False, True):
        row = ledger(overwritten)
        (walk,) = prepare_windows(make([row]), tokenizer, spec)[0]
        asked[overwritten] = {
            (tokenizer.decode(target["target_ids"]).strip(), target["window"], target["age"])
            for target in walk["targets"]
            if target["kind"] == "question"
        }
        read = len(
            tokenizer(row["text"][: row["document_targets"][1]["until"]], add_special_tokens=False)["input_ids"]
        )
    whole = {(number, window, window) for number in ("82", "12") for window in range(4)}
    assert asked[False] == whole
    late = {
        (number, window, age) for number, window, age in whole if number == "12" and GEOMETRY.before(window) >= read
    }
    assert late and asked[True] == whole - late


def test_a_single_window_asks_for_what_stands_in_it():
    tokenizer, row = make_tokenizer(), ledger(False)
    windows, _ = prepare_windows(Dataset.from_list([row]), tokenizer, WindowSpec(24, TARGET, LAST_K, None, None))
    assert [len(window["targets"]) for window in windows] == [1, 1]
    for window in windows:
        (target,) = window["targets"]
        assert tokenizer.decode(target["target_ids"]) in tokenizer.decode(window["context_ids"])
        assert target["after_ids"] == target["cue_ids"]


@pytest.mark.parametrize("windows", [1, 3])
def test_what_is_known_from_the_texts_beginning_is_asked_from_the_first_window_on(windows):
    row, geometry = ledger(False), GEOMETRY if windows > 1 else None
    row["document_targets"] = [{**row["document_targets"][0], "at": 0}]
    spec = WindowSpec(60, TARGET, LAST_K, None, 1, windows, geometry)
    (cut,) = prepare_windows(Dataset.from_list([row]), make_tokenizer(), spec)[0]
    assert [target["kind"] for target in cut["targets"]] == ["question"] * windows


@pytest.mark.parametrize("until", [0, 3, -1, 10_000, "30", False])
def test_a_target_that_ends_before_it_begins_skips_the_row_by_name(until):
    bad = ledger(False)
    bad["document_targets"] = [{**bad["document_targets"][0], "at": 30, "until": until}]
    with pytest.raises(ValueError, match="1 with a target whose `until` is"):
        prepare_windows(
            IterableDataset.from_generator(lambda: iter([bad])), make_tokenizer(), WindowSpec(24, 8, 4, None, None)
        )


@pytest.mark.parametrize("at", [None, -1, 10_000, "3", True])
def test_a_place_outside_the_text_skips_the_row_by_name(at):
    row = ledger(False)
    bad = {"text": row["text"], "document_targets": [{**row["document_targets"][0], "at": at}]}
    with pytest.raises(ValueError, match="1 with a target whose `at` is no place in the text"):
        prepare_windows(
            IterableDataset.from_generator(lambda: iter([bad])), make_tokenizer(), WindowSpec(24, 8, 4, None, None)
        )


@pytest.mark.parametrize("kind", ["age_1", "window_0", "reliability"])
def test_a_kind_is_not_called_as_an_age_or_a_window_is(make_trainer, lora, kind):
    row = ledger(False)
    row["document_targets"] = [{**target, "kind": kind} for target in row["document_targets"]]
    with pytest.raises(ValueError, match=f"kind '{kind}', a name that is taken"):
        make_trainer(peft_config=lora, args={**WALKS, "target_kinds": None}, train_dataset=Dataset.from_list([row]))


def test_a_long_document_asks_in_each_part_for_what_stands_there(monkeypatch):
    tokenizer, filler = make_tokenizer(), "water came from the river and was bad. " * 20
    text, targets = "", []
    for number in range(30):
        text += f"{filler} The price of number {number} is {number + 100}."
        cue = f"The price of number {number} is"
        targets.append({"cue": cue, "target": f" {number + 100}", "at": len(text) - 1, "until": None})
    rows = Dataset.from_list([{"text": text, "document_targets": targets}])
    whole, _ = prepare_windows(rows, tokenizer, WindowSpec(60, TARGET, LAST_K, None, None))
    monkeypatch.setattr(windows_module, "_PART_TOKENS", 200)
    monkeypatch.setattr(windows_module, "PIECE", 500)
    real = windows_module.literal_pieces
    monkeypatch.setattr(windows_module, "literal_pieces", lambda tokenizer, text: real(tokenizer, text, 500))
    parts, _ = prepare_windows(rows, tokenizer, WindowSpec(60, TARGET, LAST_K, None, None))
    assert list(parts) == list(whole)
    answers = {tokenizer.decode(target["target_ids"]) for window in whole for target in window["targets"]}
    assert len(answers) > 20
    for window in whole:
        for target in window["targets"]:
            assert tokenizer.decode(target["target_ids"]).strip()[-2:] in window["prompt"]


def gists_written(trainer):
    """Trains, and returns the rows of each window with the gists that were written of them."""
    gists, write = [], trainer.rollout.write

    def watched(rows, prompt_ids):
        completions = write(rows, prompt_ids)
        gists.append((rows, completions))
        return completions

    trainer.rollout.write = watched
    trainer.train()
    return gists


def test_a_cold_start_by_answers_carries_them_from_window_to_window(make_trainer, lora, monkeypatch):
    """Of each window what is asked by then, from the gist before or from the chunk, where a gist of the rule's is carried on."""
    settings = {"target_kinds": None, "cold_start_gists": "answers", "cold_start_steps": 1, "max_steps": 1}
    settings |= {"context_length": 110, "max_completion_length": 48}
    trainer = make_trainer(
        peft_config=lora, args=WALKS | settings, train_dataset=Dataset.from_list([ledger(False)] * 8)
    )
    monkeypatch.setattr(rollout, "_draw", lambda count: 0)
    decode, carried = trainer.processing_class.decode, 0
    for rows, (completions, _) in gists_written(trainer):
        for row, completion in zip(rows, completions, strict=True):
            gist = decode(completion, skip_special_tokens=True)
            for target in (target for target in row["targets"] if target["kind"] == "question"):
                assert decode(target["target_ids"]).strip() in gist
                carried += target["age"] > 0
    assert carried


def test_a_cold_start_by_answers_keeps_what_only_later_windows_ask_for(make_trainer, lora, monkeypatch):
    monkeypatch.setattr(rollout, "_draw", lambda count: 0)  # goes on from the rule's gists
    settings = {"target_kinds": {"fact": 1}, "recall_age": [0, 1], "cold_start_gists": "answers"}
    settings |= {"cold_start_steps": 1, "max_steps": 1, "context_length": 110, "max_completion_length": 48}
    texts = Dataset.from_dict({"text": [" ".join(make_documents(3, seed=seed)) for seed in range(6)]})
    trainer = make_trainer(peft_config=lora, args=WALKS | settings, train_dataset=texts)
    decode, kept = trainer.processing_class.decode, 0
    rows_of_windows = [
        pair for rows, (completions, _) in gists_written(trainer) for pair in zip(rows, completions, strict=True)
    ]
    walks = {tuple(row["walk_ids"]): row["targets"] for row in trainer.train_dataset}
    for row, completion in rows_of_windows:
        if row["window"] == WALKS["windows_per_document"] - 1 or len(completion) >= 48:
            continue
        gist = decode(completion, skip_special_tokens=True)
        for target in walks[tuple(row["walk_ids"])]:
            if target["kind"] == "fact" and target["window"] - target["age"] == row["window"]:
                assert decode(target["target_ids"]).strip() in gist
                kept += target["window"] > row["window"]
    assert kept


# ---- The teacher reads a walk once, each target up to its window ----


def test_a_gist_is_paid_for_what_each_later_window_asks_of_it(make_trainer, lora):
    """By plain forwards: what the gist, as it is, adds to each target of the later windows, discounted by how far they are."""
    args = {"model_init_kwargs": {"dtype": torch.float64}, "recall_age": [1, 1, 1]}
    trainer = make_trainer(peft_config=lora, args=WALKS | args)
    scorer, rows = trainer.generator_trainer.scorer, rows_of_a_walk(trainer)
    gists = [row["chunk_ids"][:6] for row in rows]
    found = scorer.score(rows, gists, windows=3, discount=0.5)

    def log_prob(gist, target):
        prompt = scorer.prompts.generator(gist, target["cue_ids"])
        with torch.no_grad():
            logits = trainer.generator(torch.tensor([prompt + target["target_ids"]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(target["target_ids"])[:, None]).mean().item()

    def gain(gist, row):
        gains = [log_prob(gist, target) - log_prob([], target) for target in row["targets"]]
        return sum(gains) / len(gains)

    assert {target["age"] for target in rows[2]["targets"]} == {0, 1, 2}
    for place, gist in enumerate(gists):
        expected = sum(0.5 ** (later - place) * gain(gist, rows[later]) for later in range(place + 1, 3))
        assert found[place]["log_prob_gain"] == pytest.approx(gain(gist, rows[place]), abs=1e-9)
        assert found[place]["later_log_prob_gain"] == pytest.approx(expected, abs=1e-9)


def rows_of_a_walk(trainer):
    inputs = [trainer.train_dataset[0]]
    rows = trainer.walk.rows(inputs, 1)
    for row in rows:
        row["context_ids"] = trainer.walk.context_ids(row, [])
    return rows


@pytest.mark.parametrize("shares", [True, False])
def test_the_teacher_reads_each_target_after_the_text_up_to_its_window(make_trainer, lora, monkeypatch, shares):
    trainer = make_trainer(peft_config=lora, args=WALKS)
    scorer = trainer.generator_trainer.scorer
    fresh = GistScorer(scorer.generator, scorer.teacher, scorer.prompts, batch_size=2)
    fresh.shares_rows = shares
    rows = rows_of_a_walk(trainer)
    assert any(target["age"] for row in rows for target in row["targets"])
    together, read = [], fresh.teacher._read
    monkeypatch.setattr(
        fresh.teacher, "_read", lambda rows, **kwargs: together.append(len(rows.mask_NT)) or read(rows, **kwargs)
    )
    _, logps_D = fresh.read_targets(rows)
    assert max(together) <= fresh.batch_size
    model = scorer.teacher.model
    for row, logps_T in zip(rows, logps_D, strict=True):
        expected = []
        for target in row["targets"]:
            ids = [*scorer.prompts.bos, *row["seen_ids"], *target["after_ids"], *target["target_ids"]]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            first = len(ids) - len(target["target_ids"])
            expected += [logits[place - 1, ids[place]] for place in range(first, len(ids))]
        torch.testing.assert_close(logps_T, torch.stack(expected), atol=1e-4, rtol=1e-4)


# ---- Training and evaluation ----


def test_both_roles_learn_and_the_log_has_each_age(make_trainer, lora):
    trainer, logged = make_trainer(peft_config=lora, args=WALKS), Counter()
    log_metric = trainer._log_metric
    trainer._log_metric = lambda name, value: logged.update([name]) or log_metric(name, value)
    rollouts = rows_of(trainer)
    trainer.train()
    logs = logs_of(trainer)
    assert len(logs) == len(rollouts) > 0
    # One by one, since ranks have different numbers of them
    asked = [target for rows in rollouts for row in rows for target in row["targets"]]
    ages = Counter(target["age"] for target in asked if target["kind"] != "continuation")
    assert {age: logged[f"age_{age}/exact"] for age in ages} == ages
    for log, rows in zip(logs, rollouts, strict=True):
        for age in range(3):
            scores = [
                score
                for row in rows
                for target, score in zip(row["targets"], row["target_scores"], strict=True)
                if target["age"] == age and target["kind"] != "continuation"
            ]
            for name in ("teacher_kl", "kl_gain", "exact"):
                assert log[f"age_{age}/{name}"] == pytest.approx(sum(score[name] for score in scores) / len(scores))


def test_an_evaluation_of_walks_has_each_kind_and_age(make_trainer, lora):
    held_out = Dataset.from_dict({"text": make_documents(4, seed=9)})
    measures = make_trainer(peft_config=lora, eval_dataset=held_out, args=WALKS).evaluate()
    counts = [
        sum(measures[f"eval_{group}/windows"] for group in groups)
        for groups in (("fact", "recall"), ("age_0", "age_1", "age_2"))
    ]
    assert counts == [measures["eval_windows"]] * 2
    for group in ("fact", "recall", "age_0", "age_1", "age_2"):
        assert {f"eval_{group}/nll_gist", f"eval_{group}/teacher_kl_se"} <= set(measures)


def test_what_was_not_said_has_no_age(make_trainer, lora):
    held_out = Dataset.from_dict({"text": make_documents(4, seed=9)})
    args = WALKS | {"target_kinds": {"fact": 1, "continuation": 1, "far": 1}, "far_offset": 4}
    trainer = make_trainer(peft_config=lora, eval_dataset=held_out, args=args)
    measures, rows = trainer.evaluate(), rows_of_a_walk(trainer)
    assert measures["eval_continuation/windows"] and measures["eval_far/windows"]
    evaluated = sum(measures[f"eval_age_{age}/windows"] for age in range(3))
    assert (
        evaluated
        == measures["eval_fact/windows"]
        == measures["eval_windows"] - sum(measures[f"eval_{kind}/windows"] for kind in ("continuation", "far"))
    )
    scored = [
        row | {"target_scores": [dict.fromkeys(("teacher_kl", "kl_gain", "exact"), 0)] * len(row["targets"])}
        for row in rows
    ]
    logged = trainer._target_measures(scored)
    assert sum(len(logged[f"age_{age}/exact"]) for age in range(3)) == len(logged["fact/exact"]) > 0
    assert logged["continuation/exact"]


def test_a_users_column_of_ages_is_not_taken_for_those_of_targets(make_trainer, lora):
    rows = Dataset.from_list([{**ledger(True), "age": 45 + number} for number in range(6)])
    args = {**WALKS, "target_kinds": None, "context_length": 48, "windows_per_document": 1}
    measures = make_trainer(peft_config=lora, args=args, train_dataset=rows, eval_dataset=rows).evaluate()
    assert "eval_question/exact" in measures
    assert not [name for name in measures if "age_4" in name or "age_5" in name]


def test_documents_bring_what_walks_and_single_windows_are_paid_for(make_trainer, lora):
    rows = Dataset.from_list([ledger(number % 2 == 0) for number in range(6)])
    for settings in ({}, {"windows_per_document": 1}):
        args = {**WALKS, "target_kinds": None, "context_length": 48, "max_windows_per_document": 1, **settings}
        trainer = make_trainer(peft_config=lora, args=args, train_dataset=rows)
        assert "{context}" in trainer.args.summarizer_prompt
        trainer.train()
        logs = logs_of(trainer)
        assert logs and all("question/exact" in log for log in logs)
        assert any("age_1/exact" in log for log in logs) == (settings == {})
