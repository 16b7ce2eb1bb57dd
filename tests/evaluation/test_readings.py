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


"""An evaluation's readings against each reader by hand, in float64."""

import math

import numpy as np
import pytest
import torch
from tiny import make_model

from trl_gist.evaluation import PairReadings, evaluate_pair
from trl_gist.evaluation.held_out.measures import by_position, quality
from trl_gist.prompts import through_last_k


LENGTH, TARGET, LAST_K = 20, 6, 3


def by_hand(model, prompt, target, teacher_log_probs=None):
    """log p of each target token, and KL from the teacher at each, position by position."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.log_softmax(-1)
    logps = log_probs[range(len(target)), target].tolist()
    if teacher_log_probs is None:
        return logps, log_probs
    return logps, (teacher_log_probs.exp() * (teacher_log_probs - log_probs)).sum(-1).tolist()


@pytest.fixture
def compactor(make_trainer, lora, tmp_path):
    from trl_gist import GistCompactor

    trainer = make_trainer(
        peft_config=lora, args={"context_length": LENGTH, "target_length": TARGET, "last_k": LAST_K}
    )
    trainer.train()
    trainer.save_model()
    return GistCompactor.from_pretrained(trainer.args.output_dir, device="cpu")


@pytest.fixture
def windows():
    generator = np.random.default_rng(0)
    rows = []
    for index in range(7):
        context = generator.integers(10, 300, LENGTH).tolist()
        target = generator.integers(10, 300, TARGET).tolist()
        rows.append(
            {"document_id": index // 2, "context_ids": context, "last_k_ids": context[-LAST_K:], "target_ids": target}
        )
    return rows


@pytest.fixture
def teacher(tokenizer):
    return make_model(tokenizer, seed=5).eval()


def test_every_reader_reads_what_it_says(compactor, teacher, windows, tokenizer):
    alone = make_model(tokenizer, seed=6).eval()
    readings = PairReadings(compactor, teacher, 3, last_k=[2, 5], budgets=[2, 4], generator_only=alone)
    rows = [row for batch in readings.read(windows) for row in batch]
    assert len(rows) == 7 * 4
    prompts, generator = compactor.prompts, compactor.generator
    for row in rows:
        last_k, budget = row["setting"]
        assert row["last_k_ids"] == row["context_ids"][-last_k:] and row["gist_length"] <= budget
        gist = compactor.compress(row["context_ids"], budget, last_k=row["last_k_ids"])
        assert row["gist_ids"] == gist.token_ids and row["total_rate"] == gist.total_rate
        _, teacher_log_probs = by_hand(teacher, prompts.plain(row["context_ids"]), row["target_ids"])
        tail = row["context_ids"][-(last_k + row["gist_length"]) :]
        read = {
            "teacher": (teacher, prompts.plain(row["context_ids"])),
            "gist": (generator, prompts.generator(row["gist_ids"], row["last_k_ids"])),
            "null": (generator, prompts.generator([], row["last_k_ids"])),
            "full": (generator, prompts.generator([], row["context_ids"])),
            "last_k": (teacher, prompts.plain(row["last_k_ids"])),
            "tail": (teacher, prompts.plain(tail)),
            "generator_only": (alone, prompts.generator([], row["last_k_ids"])),
        }
        for reader, (model, prompt) in read.items():
            logps, kls = by_hand(model, prompt, row["target_ids"], teacher_log_probs)
            assert row["log_probs"][reader] == pytest.approx(logps, abs=2e-5), reader
            assert row["kls"][reader] == pytest.approx(kls, abs=2e-5), reader
        generator.float(), teacher.float(), alone.float()


def test_the_shuffled_gist_is_another_documents(compactor, teacher, windows):
    readings = PairReadings(compactor, teacher, 2)
    rows = [row for batch in readings.read(windows) for row in batch]
    assert [("shuffled" in row["log_probs"]) for row in rows] == [False, False] + 5 * [True]
    for index, row in enumerate(rows[2:], 2):
        others = [r["gist_ids"] for r in rows[: index + 2] if r["document_id"] != row["document_id"]]
        prompts = [compactor.prompts.generator(gist, row["last_k_ids"]) for gist in others]
        possible = [by_hand(compactor.generator, prompt, row["target_ids"])[0] for prompt in prompts]
        assert any(row["log_probs"]["shuffled"] == pytest.approx(logps, abs=2e-5) for logps in possible)
        compactor.generator.float()


def test_going_on_from_rows_read_before_gives_the_same_rows(compactor, teacher, windows):
    whole = [row for batch in PairReadings(compactor, teacher, 2).read(windows) for row in batch]
    rest = [row for batch in PairReadings(compactor, teacher, 2).read(windows[4:], whole[:4]) for row in batch]
    assert rest == whole[4:]


def test_quality_is_what_its_names_say(compactor, teacher, windows):
    rows = evaluate_pair(compactor, windows, teacher, 3)
    measures = quality(rows)
    nll = [-np.mean(row["log_probs"]["gist"]) for row in rows]
    assert measures["nll_gist"] == pytest.approx(np.mean(nll))
    # Cluster-robust: documents of 2, 2, 2 and 1 windows
    sums = np.bincount([row["document_id"] for row in rows], np.array(nll) - np.mean(nll))
    assert measures["nll_gist_se"] == pytest.approx(math.sqrt((sums**2).sum() * 4 / 3) / 7)
    bits = sum(-sum(row["log_probs"]["tail"]) for row in rows) / math.log(2)
    text = "".join(compactor.tokenizer.decode(row["target_ids"]) for row in rows)
    assert measures["bits_per_byte_tail"] == pytest.approx(bits / len(text.encode()), rel=1e-6)
    assert measures["kl_null"] == pytest.approx(np.mean([np.mean(row["kls"]["null"]) for row in rows]))
    assert measures["kl_teacher"] == pytest.approx(0, abs=1e-5)
    summarizer = compactor.prompts.summarizer(windows[0]["context_ids"], windows[0]["last_k_ids"])
    assert rows[0]["summarizer_tokens"] == len(summarizer) + rows[0]["gist_length"]


def test_positions_are_means_over_equal_stretches(compactor, teacher, windows):
    windows[0]["target_ids"] = windows[0]["target_ids"][:2]  # reaches into the first stretches only
    rows = evaluate_pair(compactor, windows, teacher, 7)
    positions = by_position(rows, ["gist"])
    assert positions["edges"] == [0, 1, 2, 3, 4, 5, 6]
    for position in range(6):
        kls = [row["kls"]["gist"][position] for row in rows if len(row["target_ids"]) > position]
        assert len(kls) == (7 if position < 2 else 6)
        assert positions["gist"]["kl"][position] == pytest.approx(np.mean(kls))


def test_last_k_cannot_be_varied_where_a_question_takes_its_place(compactor, teacher, windows):
    windows[1]["last_k_ids"] = [90, 91]
    assert through_last_k(windows[1]["context_ids"], [90, 91])[-2:] == [90, 91]
    with pytest.raises(ValueError, match="document 0 brings last tokens of its own"):
        list(PairReadings(compactor, teacher, 2, last_k=[2]).read(windows))
