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

"""examples/question_answering.py, end to end on a tiny checkpoint and a few rows."""

import json
import re

import pytest
from datasets import Dataset

from examples import question_answering
from trl_gist import GistCompactor
from trl_gist.evaluation.compressors.registry import EXTRACTIVE_COMPRESSORS


PASSAGE = "In 18{n} the physician {name} marked on a map of {city} the houses where people had died of cholera. "
NAMES, CITIES = ("Snow", "Farr", "Budd", "Hall"), ("Soho", "London", "Bristol")


@pytest.fixture
def questions():
    """Two questions about each of 24 passages, a passage in an article of its own or shared by two."""
    rows = []
    for index in range(24):
        name, city = NAMES[index % 4], CITIES[index % 3]
        passage = PASSAGE.format(n=50 + index, name=name, city=city)
        rows += [
            {"context": passage, "question": question, "answer": answer, "document_id": f"{city} {index // 6}"}
            for question, answer in (("Who marked a map?", name), ("A map of which city?", city))
        ]
    return Dataset.from_list(rows)


@pytest.fixture
def few_articles(monkeypatch, checkpoint, questions):
    monkeypatch.setattr(question_answering, "HELD_OUT_ARTICLES", 4)
    monkeypatch.setattr(question_answering, "QUESTIONS_OF_EACH", 2)
    monkeypatch.setattr(question_answering, "smollm2_checkpoint", lambda: checkpoint)
    monkeypatch.setattr(question_answering, "question_answers", lambda: questions)


def test_no_article_is_both_trained_on_and_held_out(few_articles, questions):
    train, held_out = question_answering.split_by_article(questions)
    articles = set(held_out["document_id"])
    assert len(articles) == 4 and not articles & set(train["document_id"])
    assert len(train) == sum(article not in articles for article in questions["document_id"])
    assert all(held_out["document_id"].count(article) == 2 for article in articles)


def test_a_passage_is_cut_and_a_question_whose_answer_went_with_the_rest_is_dropped(tokenizer, questions, monkeypatch):
    question = "Who marked a map?"
    ids = tokenizer(questions[0]["context"])["input_ids"]
    length = len(tokenizer(questions[0]["context"].split("map of")[0])["input_ids"])
    monkeypatch.setattr(question_answering, "PASSAGE_LENGTH", length)
    windows = question_answering.answerable(questions, tokenizer)
    assert len(windows) == 24 and all(question in last_k for last_k in windows["last_k"])
    assert windows[0] == {
        "context": ids[:length],
        "last_k": f"\nQuestion: {question}\nAnswer:",
        "target": " Snow\n",
        "document_id": "Soho 0",
    }


@pytest.mark.parametrize("question_aware", [False, True], ids=["unaware", "aware"])
def test_it_trains_measures_and_saves_a_pair_that_answers(few_articles, tmp_path, capsys, monkeypatch, question_aware):
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    question_answering.main(question_aware, max_steps=2, output_dir=str(run))
    printed = capsys.readouterr().out
    assert "8 windows of 4 unseen articles" in printed
    measures = json.loads((run / "gist_config.json").read_text())["measures"]
    for name, label in {**question_answering.ANSWER_NLL, **question_answering.GAINS}.items():
        (after, error) = re.search(rf"{re.escape(label.strip())} .* (-?[\d.]+) ± ([\d.]+)\s*\n", printed).groups()
        assert float(after) == pytest.approx(measures[name], abs=6e-4), name
        assert float(error) == pytest.approx(measures[f"{name}_se"], abs=6e-4), name
    assert printed.count("answered: ") == 3
    compactor = GistCompactor.from_pretrained(run, device="cpu")
    assert compactor.prompts.sees_last_k == question_aware
    assert compactor.pair.step == 2 and compactor.pair.context_length == 256


def test_the_pair_is_compared_with_every_compressor_and_readers_of_their_own(
    few_articles, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    split = {"held_out_articles": 3, "questions_of_each": 4}
    for run, hand, steps in (("pair", None, 1), ("tail", "tail", 3)):  # the first is of the warm-up, at a rate of 0
        question_answering.main(False, steps, str(tmp_path / run), hand=hand, **split)
    trained = capsys.readouterr().out
    assert "learns to read gists by 'tail'" in trained and trained.count("answered: ") == 3
    asked, answer_questions = [], question_answering.answer_questions

    def watch(compactor, teacher, windows, **settings):
        asked.append((windows, answer_questions(compactor, teacher, windows, **settings)))
        return asked[-1][1]

    monkeypatch.setattr(question_answering, "answer_questions", watch)
    own = [f"tail={tmp_path / 'tail'}"]
    question_answering.main(False, 1, None, compare=str(tmp_path / "pair"), own_generators=own, **split)
    ((windows, rows),) = asked
    assert len(rows) == 12 and len({row["document_id"] for row in windows}) == 3
    printed = capsys.readouterr().out
    assert "12 questions about 3 documents" in printed and "G of its own: tail" in printed
    for name in (*EXTRACTIVE_COMPRESSORS, "zero-shot summary"):
        assert re.search(rf"G: {name} .* [+-][\d.]+ ± [\d.]+", printed), name
    # The own reader has learned on the rule's gists, and is not the pair's generator
    assert [row["own_tail_nll"] for row in rows] != [row["compressed_tail_nll"] for row in rows]
