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

"""research/memory: what is counted as right, of a session's gists alone, at a text's end and on the way; and what a summarizer
imitates alone."""

import torch
from checks import moved, snapshot
from tiny import PARAGRAPH, make_model
from tiny_sessions import GIST, LAST_K, make_compactor

from research.memory.imitate import batches
from research.memory.lists import ListReadings, next_tokens, tables
from research.memory.long import read_on
from research.memory.long import table as table_by_length
from research.memory.sessions import NEW_TOKENS, rows_of, table
from research.targets.codes import fit_summarizer
from trl_gist.scoring.extraction import recurring_facts


def test_questions_are_asked_of_the_gists_of_all_that_can_be_folded():
    compactor = make_compactor()
    session = compactor.session(gist_budget=400)
    session.append(PARAGRAPH)
    while len(session.live) > LAST_K + 1:
        session.compact()
    said = session.recall("The pump", NEW_TOKENS, live=False).text.strip().partition("\n")[0]
    targets = [{"cue": "The pump", "target": said}, {"cue": "The pump", "target": f"not {said}"}]
    texts = [{"context": PARAGRAPH, "targets": targets}]
    (row,) = rows_of(compactor, texts, {"gist_budget": 400})
    assert row["gist"] == session.gist and row["right"] == [True, False]
    assert row["gists_written"] == len(session.history) > 4 and row["gist_tokens"] > GIST
    (rolling,) = rows_of(compactor, texts, {})
    assert rolling["gist_tokens"] <= GIST
    _, _, line, _ = table({"chain": [row, row], "rolling": [rolling]})
    assert line.startswith(f"| chain | 2 of 4 | {row['gist_tokens']} | {len(session.history)} |")


def test_a_long_text_is_asked_about_on_the_way():
    compactor, lengths = make_compactor(), [2, 4]
    chunk, ids = compactor.session().settings.chunk_length, compactor.tokenizer(PARAGRAPH)["input_ids"]
    assert len(ids) > 4 * chunk
    said = []
    for length in lengths:
        session = compactor.session()
        session.append(ids[: length * chunk])
        answer = session.recall("The pump", NEW_TOKENS, live=False).text.strip().partition("\n")[0]
        said.append((session.gist, answer))
    targets = [{"cue": "The pump", "target": answer} for _, answer in said] + [{"cue": "The pump", "target": "no!"}]
    text = {"document_id": "a", "task": "needles", "context": PARAGRAPH, "targets": targets}
    rows = list(read_on(compactor, text, lengths))
    assert [(row["windows"], row["tokens"], row["gist"]) for row in rows] == [
        (length, length * chunk, gist) for length, (gist, _) in zip(lengths, said, strict=True)
    ]
    assert rows[0]["right"][0] and rows[1]["right"][1] and not rows[0]["right"][2]
    assert min(row["memory"] for row in rows) > 0
    other = rows[0] | {"document_id": "b", "task": "ledger", "right": [False] * 3}
    _, _, first, second = table_by_length([*rows, other])
    known = sum(rows[0]["right"])
    assert first.startswith(f"| {2 * chunk} | 0 of 3 | {known} of 3 | {known} of 6 | {known / 6:.2f} ± ")
    assert second.startswith(f"| {4 * chunk} | 0 of 0 | {sum(rows[1]['right'])} of 3 |")


def test_a_summarizer_imitates_the_lists_of_walks_without_its_generator(make_trainer, lora):
    settings = {"windows_per_document": 3, "cold_start_steps": 1, "cold_start_gists": "recurring_facts"}
    trainer = make_trainer(args=settings, peft_config=lora)
    trainer.model.train()
    (prompts, gists), *_ = batches(trainer)
    rows = trainer.train_dataset.select(range(len(prompts) // 3))
    eos = trainer.processing_class.eos_token_id
    for row, prompt, gist in zip(
        rows, prompts[::3], gists[::3], strict=True
    ):  # what stands first does not depend on S
        first = {**row, "targets": []} if "targets" in row else row
        by_rule, *_ = trainer.rollout.extractive_summarizer.gists(first, [trainer.args.tail_length])
        assert gist in (by_rule, [*by_rule, eos])
        assert prompt == trainer.prompts.summarizer(row["context_ids"], row["last_k_ids"])
    before = {role: snapshot(model) for role, model in (("s", trainer.model), ("g", trainer.generator))}
    fit_summarizer(trainer, iter([(prompts, gists)] * 2), 2, learning_rate=1e-3)
    assert moved(before["s"], trainer.model) and not moved(before["g"], trainer.generator)


def test_a_pairs_generator_reads_the_lists_that_were_to_be_imitated():
    compactor = make_compactor()
    teacher = make_model(compactor.tokenizer, seed=9, dtype=torch.float64).eval().requires_grad_(False)
    readings = ListReadings(compactor, teacher, windows=3, batch_size=2)
    tokenizer, geometry = compactor.tokenizer, readings.geometry
    walked = [
        {"document_id": name, "ids": tokenizer(f"{name} {PARAGRAPH}")["input_ids"][: geometry.length(3)]}
        for name in "ab"
    ]
    rows = [row for batch in readings.walk(walked, 3) for row in batch]
    for document in walked:
        rolling = []
        for row in (row for row in rows if row["document_id"] == document["document_id"]):
            start = row["window"] * geometry.chunk_length
            chunk = document["ids"][start : start + geometry.chunk_length + geometry.last_k]
            before = [*rolling, *tokenizer("\n")["input_ids"]] if rolling else []
            rolling, alone = (recurring_facts(tokenizer, ids, GIST, ids) for ids in (before + chunk, chunk))
            assert (row["gist_ids"]["list"], row["gist_ids"]["chunk_list"]) == (rolling, alone)
    assert any(row["gist_ids"]["list"] != row["gist_ids"]["chunk_list"] for row in rows)
    head, _, targets, *lines = tables(rows)
    assert head.startswith("| windows ago | 0 | 1 |") and targets.startswith("| targets |")
    assert len(lines) == 7 + 4 + 5 and sum(line.startswith("| facts:") for line in lines) == 5
    assert next_tokens(rows)[2].startswith("| empty gist | 0.000 ± 0.000 |")
