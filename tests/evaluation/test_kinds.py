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

"""Evaluation of windows with several targets: one gist for all of them, each target a row that every reader reads."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import make_documents, make_model, make_tokenizer
from tiny_pairs import in_eval, make_pair

from trl_gist import GistCompactor
from trl_gist.data.targets import TargetSpec
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.evaluation import PairReadings, evaluate_pair
from trl_gist.evaluation.comparison.compare import compare_compressors, summarize_comparison
from trl_gist.evaluation.compressors import Facts, Tail
from trl_gist.evaluation.gists.transfer import as_text
from trl_gist.evaluation.held_out.measures import quality
from trl_gist.evaluation.held_out.readings import window_blocks
from trl_gist.prompts import SUMMARIZER_PROMPT


LENGTH, TARGET, LAST_K = 60, 6, 4
KINDS = TargetSpec((("fact", 2), ("recall", 1), ("far", 1), ("continuation", 1)), 6, far_offset=10)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make_compactor(tokenizer, **overrides):
    pair = make_pair(context_length=LENGTH, target_length=TARGET, last_k=LAST_K, max_gist_length=6, **overrides)
    models = (in_eval(make_model(tokenizer, seed, torch.float64)) for seed in (0, 1))
    return GistCompactor(*models, tokenizer, dataclasses.replace(pair, tail_length=6))


@pytest.fixture(scope="module")
def compactor(tokenizer):
    return make_compactor(tokenizer)


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return in_eval(make_model(tokenizer, 5, torch.float64))


@pytest.fixture(scope="module")
def windows(tokenizer):
    documents = Dataset.from_dict({"text": make_documents(4, seed=3)})
    spec = WindowSpec(LENGTH, TARGET, LAST_K, None, None, targets=KINDS)
    return list(prepare_windows(documents, tokenizer, spec)[0])


@pytest.fixture(scope="module")
def rows(compactor, teacher, windows):
    return evaluate_pair(compactor, windows, teacher, 3)


def log_probs(model, prompt, target):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


def test_every_target_is_a_row_and_all_of_a_window_have_its_gist(compactor, windows, rows):
    assert len(rows) == sum(len(window["targets"]) for window in windows)
    assert {row["kind"] for row in rows} == {"fact", "recall", "far", "continuation"}
    blocks = window_blocks(rows)
    assert len(blocks) == len(windows)
    for window, (start, end) in zip(windows, blocks, strict=True):
        own = rows[start:end]
        gist = compactor.compress(window["context_ids"]).token_ids
        assert all(row["gist_ids"] == gist and row["context_ids"] == window["context_ids"] for row in own)
        assert [(row["last_k_ids"], row["target_ids"]) for row in own] == [
            (target["cue_ids"], target["target_ids"]) for target in window["targets"]
        ]
        # S is asked for all of X, so that all of it is what the gist is held against
        assert {row["context"] for row in own} == {compactor.tokenizer.decode(window["context_ids"])}


def test_every_reader_reads_what_it_says_of_each_kind(compactor, teacher, windows, rows):
    targets = [(window["context_ids"], target) for window in windows for target in window["targets"]]
    prompts, generator = compactor.prompts, compactor.generator
    for row, (context, target) in zip(rows, targets, strict=True):
        seen, cue, ids = context + target["after_ids"], target["cue_ids"], target["target_ids"]
        of_teacher = log_probs(teacher, seen, ids)
        read = {
            "teacher": (teacher, seen),
            "gist": (generator, prompts.generator(row["gist_ids"], cue)),
            "null": (generator, prompts.generator([], cue)),
            "full": (generator, prompts.generator([], seen)),
            "last_k": (teacher, cue),
        }
        for reader, (model, prompt) in read.items():
            found = log_probs(model, prompt, ids)
            kl = (of_teacher.exp() * (of_teacher - found)).sum(-1)
            assert row["log_probs"][reader] == pytest.approx(found[range(len(ids)), ids].tolist(), abs=2e-5), reader
            assert row["kls"][reader] == pytest.approx(kl.tolist(), abs=2e-5), reader
            assert row["exacts"][reader] == (found.argmax(-1).tolist() == ids), reader


def test_what_is_recalled_is_seen(compactor, teacher, windows):
    """Targets made of what each reader would write: by chance tiny models recall nothing."""
    window = windows[0]
    gist = compactor.compress(window["context_ids"]).token_ids
    cue = window["context_ids"][5:9]
    reads = {
        "gist": (compactor.generator, compactor.prompts.generator(gist, cue)),
        "null": (compactor.generator, compactor.prompts.generator([], cue)),
        "teacher": (teacher, window["context_ids"] + cue),
    }
    written = {reader: log_probs(model, prompt, [0])[0].argmax().item() for reader, (model, prompt) in reads.items()}
    assert len(set(written.values())) == 3
    targets = [{"kind": "fact", "cue_ids": cue, "target_ids": [ids], "after_ids": cue} for ids in written.values()]
    rows = evaluate_pair(compactor, [{**window, "targets": targets}], teacher)
    for row, reader in zip(rows, written, strict=True):
        assert {name: row["exacts"][name] for name in written} == {name: name == reader for name in written}
    measures = quality(rows)
    assert [measures[f"exact_{name}"] for name in written] == pytest.approx([1 / 3] * 3)
    assert measures["exact"] == measures["exact_gist"] and "kinds" not in measures


def test_measures_by_kind_are_those_of_its_rows(windows, rows):
    measures = quality(rows)
    assert (measures["windows"], measures["contexts"], measures["documents"]) == (len(rows), len(windows), 4)
    assert measures["kinds"].keys() == {"fact", "recall", "far", "continuation"}
    for kind, of_kind in measures["kinds"].items():
        own = [row for row in rows if row["kind"] == kind]
        assert of_kind["windows"] == len(own)
        nll = {
            name: -np.mean([np.mean(row["log_probs"][name]) for row in own]) for name in ("gist", "null", "teacher")
        }
        assert of_kind["nll_gist"] == pytest.approx(nll["gist"])
        assert of_kind["kl_gist"] == pytest.approx(np.mean([np.mean(row["kls"]["gist"]) for row in own]))
        closed = (nll["null"] - nll["gist"]) / (nll["null"] - nll["teacher"])
        assert of_kind["gap_closed_null"] == pytest.approx(closed)
        if kind == "continuation":
            assert not [name for name in of_kind if name.startswith("exact")]
        else:
            assert of_kind["exact_full"] == pytest.approx(np.mean([row["exacts"]["full"] for row in own]))
    others = [row for row in rows if row["kind"] != "continuation"]
    assert measures["exact_teacher"] == pytest.approx(np.mean([row["exacts"]["teacher"] for row in others]))


def test_going_on_from_rows_read_before_gives_the_same_rows(compactor, teacher, windows):
    def read(windows, before=()):
        readings = PairReadings(compactor, teacher, 2, budgets=[2, 4])
        return [row for batch in readings.read(windows, before) for row in batch]

    whole = read(windows)
    start = window_blocks(whole, 2)[4][0]
    assert read(windows[4:], whole[:start]) == whole[start:]
    assert {tuple(row["setting"]) for row in whole} == {(None, 2), (None, 4)}
    # A window of which rows are missing is not whole
    assert window_blocks(whole[: start + 1], 2) == window_blocks(whole[:start], 2)


def test_a_floor_leaves_targets_out_that_need_no_context(compactor, teacher, windows):
    # Of a far target it is about the text in between too, which no reader sees alone
    windows = [{**row, "targets": [t for t in row["targets"] if t["kind"] != "far"]} for row in windows]
    windows = [row for row in windows if row["targets"]]
    rows = evaluate_pair(compactor, windows, teacher, 3)
    gains = [np.mean(row["log_probs"]["teacher"]) - np.mean(row["log_probs"]["last_k"]) for row in rows]
    floor = float(np.mean(sorted(gains)[len(gains) // 2 :][:2]))  # between two of them, which rows have rounded
    kept = evaluate_pair(compactor, windows, teacher, 3, target_floor=floor)
    expected = []
    for start, end in window_blocks(rows):
        least = min(floor, max(gains[start:end]))
        expected += [row for row, gain in zip(rows[start:end], gains[start:end], strict=True) if gain >= least - 1e-9]
    assert 0 < len(kept) < len(rows)
    for row, other in zip(kept, expected, strict=True):
        assert (row["last_k_ids"], row["target_ids"]) == (other["last_k_ids"], other["target_ids"])
        assert row["log_probs"]["gist"] == pytest.approx(other["log_probs"]["gist"], abs=2e-5)
    measures = quality(kept)
    assert measures["contexts"] == len(windows)
    dropped = Counter(row["kind"] for row in rows) - Counter(row["kind"] for row in kept)
    assert measures["targets_dropped"] == dropped and dropped.total() == len(rows) - len(kept)
    assert "targets_dropped" not in quality(rows)  # which had no floor


class Counting(Tail):
    """Writes down what it was asked for."""

    def compress(self, contexts, budgets):
        self.asked = [*getattr(self, "asked", []), *map(tuple, contexts)]
        return super().compress(contexts, budgets)


def test_compressors_are_asked_once_a_context_and_read_for_every_target(compactor, teacher, tokenizer, windows, rows):
    scorer = PairReadings(compactor, teacher, 4).scorer
    tail = Counting(tokenizer)
    results = compare_compressors(scorer, rows, {"tail": tail, "facts": Facts(tokenizer)}, tokenizer, batch_size=99)
    assert len(tail.asked) == len(windows)
    assert sorted(tail.asked) == sorted(tuple(window["context_ids"]) for window in windows)
    read = {(row["window"], row["compressor"], row["reader"]): row for row in results}
    for index, row in enumerate(rows):
        trained = read[index, "trained summarizer", "generator"]
        assert trained["kind"] == row["kind"] and trained["exact"] == row["exacts"]["gist"]
        assert trained["kl"] == pytest.approx(np.mean(row["kls"]["gist"]), abs=2e-5)
        gist = row["context_ids"][-row["gist_length"] :]  # all of X, its end too
        found = log_probs(compactor.generator, compactor.prompts.generator(gist, row["last_k_ids"]), row["target_ids"])
        mean = found[range(len(row["target_ids"])), row["target_ids"]].mean().item()
        assert read[index, "tail", "generator"]["log_prob"] == pytest.approx(mean, abs=1e-5)
    summary = summarize_comparison(results)
    others = [index for index, row in enumerate(rows) if row["kind"] != "continuation"]
    for row in summary:
        exact = [read[index, row["compressor"], row["reader"]]["exact"] for index in others]
        assert row["exact"] == pytest.approx(np.mean(exact))


def test_gists_as_text_have_all_that_the_teacher_reads_before_them(tokenizer, rows):
    for row, text in zip(rows, as_text(tokenizer, rows), strict=True):
        assert text["target"] == tokenizer.decode(row["target_ids"])
        whole = tokenizer.decode(row["context_ids"])
        if row["kind"] == "continuation":
            assert text["before"] + text["last_k"] == whole
        else:
            assert text["before"].startswith(whole)


@pytest.mark.parametrize("placeholder", ["{before_last_k}", "{tail} {context}", "{context} {last_k}"])
def test_a_prompt_that_turns_on_the_last_tokens_is_refused(tokenizer, teacher, windows, placeholder):
    compactor = make_compactor(tokenizer, summarizer_prompt=SUMMARIZER_PROMPT.replace("{context}", placeholder))
    with pytest.raises(ValueError, match=r"trained with '\{context\}' in `summarizer_prompt`"):
        evaluate_pair(compactor, windows, teacher)


def test_last_tokens_cannot_be_varied(compactor, teacher, windows):
    with pytest.raises(ValueError, match=r"`last_k` \(8\) cannot be varied where windows have several targets"):
        evaluate_pair(compactor, windows, teacher, last_k=[8])


def test_windows_of_one_target_have_the_rows_that_they_had(compactor, teacher, windows):
    one = [{name: value for name, value in window.items() if name != "targets"} for window in windows]
    rows = evaluate_pair(compactor, one, teacher, target_floor=0.5)
    assert len(rows) == len(windows)
    assert not {"kind", "window_targets", "exacts", "exact", "seen_ids", "targets"} & rows[0].keys()
    assert not {"kinds", "contexts", "exact", "exact_gist", "cue_tokens"} & quality(rows).keys()
