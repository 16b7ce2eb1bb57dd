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

"""SQuAD's metrics against published examples and by hand; each reader's answers and NLL against a plain loop."""

import math

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import PARAGRAPH, make_model, make_tokenizer
from tiny_pairs import make_pair

from trl_gist import GistCompactor
from trl_gist.evaluation.compressors import Head, Tail
from trl_gist.evaluation.question_answering import (
    READERS,
    SCORES,
    answer_questions,
    answers_table,
    exact_match,
    f1,
    normalize_answer,
    summarize_answers,
)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The  Broad-Street pump.", "broadstreet pump"),
        ("an apple, a pear\tand THE banana", "apple pear and banana"),
        ("theory of Anna's", "theory of annas"),  # articles only as whole words
        ("$1,854.50", "185450"),
        ("A", ""),
    ],
)
def test_normalisation_is_squads(answer, normal):
    assert normalize_answer(answer) == normal


def test_the_published_examples_of_the_metric_come_out():
    # The metric card of huggingface/evaluate's `squad`: 100/100, 0/0, and 66.67/66.67 over three questions
    assert (exact_match("1976", ["1976"]), f1("1976", ["1976"])) == (1, 1)
    assert (exact_match("1999", ["1976"]), f1("1999", ["1976"])) == (0, 0)
    three = [("1976", "1976"), ("Beyonce", "Beyoncé and Bruno Mars"), ("climate change", "climate change")]
    for score in (exact_match, f1):
        assert 100 * sum(score(answer, [right]) for answer, right in three) / 3 == pytest.approx(66.66666666666667)


def test_f1_counts_repeated_words_and_takes_the_best_reference():
    # common words: "of" once, "soho" once -> precision 2/4, recall 2/3
    assert f1("map of Soho Soho", ["pump of Soho"]) == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert f1("John Snow", ["William Farr", "Dr. John Snow", "Snow"]) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert exact_match("snow.", ["John Snow", "the Snow"]) == 1
    assert f1("", ["Snow"]) == f1("the", ["Snow"]) == exact_match("", ["Snow"]) == 0


# ---- The readers ----


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(bos=True)


@pytest.fixture(scope="module")
def compactor(tokenizer):
    sizes = {"context_length": 24, "target_length": 3, "last_k": 4, "max_gist_length": 5, "tail_length": 5}
    pair = make_pair(summarizer_prompt="Compress: {context} Gist:", base_models={}, **sizes)
    summarizer, generator = (make_model(tokenizer, seed=seed, dtype=torch.float64).eval() for seed in (1, 2))
    return GistCompactor(summarizer, generator, tokenizer, pair)


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return make_model(tokenizer, seed=3, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def windows(tokenizer):
    ids = tokenizer(PARAGRAPH, add_special_tokens=False)["input_ids"]
    questions = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\nWho?", "\nWhere is it?", "\nWhen?")
    ]
    return [
        {
            "document_id": "aab"[index],
            "context_ids": ids[20 * index : 20 * index + 24 - index],
            "last_k_ids": question,
            "target_ids": ids[5 + index : 7 + 2 * index],
        }
        for index, question in enumerate(questions)
    ]


@pytest.fixture(scope="module")
def answers(compactor, teacher, windows):
    return answer_questions(compactor, teacher, windows, max_new_tokens=6, batch_size=2)


def test_each_reader_answers_and_scores_as_a_plain_loop_does(compactor, teacher, windows, answers, tokenizer):
    bos = [tokenizer.bos_token_id]
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("GIST:", "\nLAST K TOKENS:")}
    gists = [compactor.compress(window["context_ids"]).token_ids for window in windows]
    assert all(0 < len(gist) <= 5 for gist in gists)
    for window, gist, row in zip(windows, gists, answers, strict=True):
        passage, question, target = (window[f"{part}_ids"] for part in ("context", "last_k", "target"))
        assert row["gist"] == tokenizer.decode(gist, skip_special_tokens=True)
        tail = passage[-len(gist) :]

        def in_prompt(read, question=question):
            return bos + ids["GIST:"] + read + ids["\nLAST K TOKENS:"] + question

        plain_gist = [token for token in gist if token not in tokenizer.all_special_ids]
        prompts = {
            "teacher_passage": bos + passage + question,
            "teacher_tail": bos + tail + question,
            "teacher_nothing": bos + question,
            "generator_passage": in_prompt(passage),
            "generator_gist": in_prompt(plain_gist),
            "generator_tail": in_prompt(tail),
            "generator_nothing": in_prompt([]),
        }
        assert prompts.keys() == READERS.keys()
        for reader, prompt in prompts.items():
            model = teacher if reader.startswith("teacher") else compactor.generator
            with torch.no_grad():
                log_probs = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
                nll = -sum(log_probs[len(prompt) - 1 + index, token].item() for index, token in enumerate(target))
                written = list(prompt)
                while len(written) < len(prompt) + 6:
                    token = model(torch.tensor([written])).logits[0, -1].argmax().item()
                    if token == tokenizer.eos_token_id:
                        break
                    written.append(token)
            text = tokenizer.decode(written[len(prompt) :], skip_special_tokens=True)
            answer = text.replace("\ufffd", "").strip().split("\n")[0]  # of whole characters
            assert row[f"{reader}_answer"] == answer, reader
            assert row[f"{reader}_nll"] == pytest.approx(nll / len(target), rel=1e-6), reader
            assert row[f"{reader}_exact_match"] == exact_match(answer, row["references"])
            assert row[f"{reader}_f1"] == f1(answer, row["references"])
        assert row["references"] == [tokenizer.decode(target).strip()]


def test_batches_change_nothing_and_references_may_be_several(compactor, teacher, windows, answers):
    references = [[row["teacher_passage_answer"], "another"] for row in answers]
    again = answer_questions(compactor, teacher, windows, references, max_new_tokens=6, batch_size=3)
    for one, other in zip(answers, again, strict=True):
        assert [one[f"{reader}_answer"] for reader in READERS] == [other[f"{reader}_answer"] for reader in READERS]
        np.testing.assert_allclose([one[f"{r}_nll"] for r in READERS], [other[f"{r}_nll"] for r in READERS], rtol=1e-6)
    assert [row["teacher_passage_exact_match"] for row in again] == [1, 1, 1]


def test_the_table_has_the_means_with_errors_over_documents():
    values = {"nll": [1.0, 3.0, 2.0, 6.0], "exact_match": [1.0, 0.0, 0.0, 1.0], "f1": [1.0, 0.5, 0.0, 1.0]}
    rows = [
        {"document_id": "aabc"[index]}
        | {
            f"{reader}_{score}": values[score][index] + row / 100
            for row, reader in enumerate(READERS)
            for score in SCORES
        }
        for index in range(4)
    ]
    summary = summarize_answers(rows)
    residuals = np.array([(1 - 3) + (3 - 3), 2 - 3, 6 - 3])  # by document: a has two questions
    error = math.sqrt((residuals**2).sum() * 3 / 2) / 4
    assert (summary["teacher_passage_nll"], summary["teacher_passage_nll_se"]) == pytest.approx((3, error))
    console = Console(width=160)
    with console.capture() as capture:
        console.print(answers_table(rows))
    lines = capture.get().splitlines()
    assert "4 questions about 3 documents" in lines[0]
    (line,) = [line for line in lines if "T: the passage" in line]
    assert f"3.000 ± {error:.3f}" in line and "50.0 ±" in line and "62.5 ±" in line
    (line,) = [line for line in lines if "G: its gist" in line]
    assert "3.020 ±" in line and "52.0 ±" in line and "64.5 ±" in line
    assert summary["teacher_passage_nll_behind"] == pytest.approx(-0.02)  # the same on each question
    assert summary["teacher_passage_f1_behind"] == pytest.approx(0.02)
    assert summary["teacher_passage_nll_behind_se"] == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def own_generators(tokenizer):
    return {"tail": make_model(tokenizer, seed=4, dtype=torch.float64).eval()}


def test_compressors_are_read_by_g_and_by_a_generator_of_their_own(
    compactor, teacher, windows, answers, tokenizer, own_generators
):
    compressors = {"tail": Tail(tokenizer), "head": Head(tokenizer), "mine": "not given"}
    rows = answer_questions(
        compactor,
        teacher,
        [*windows, {**windows[0], "last_k_ids": windows[1]["last_k_ids"]}],
        max_new_tokens=6,
        batch_size=2,
        compressors=compressors,
        own_generators=own_generators,
    )
    special = set(tokenizer.all_special_ids)
    for window, row, alone in zip(windows, rows, answers, strict=False):
        for name, value in alone.items():  # what was there is as it was
            assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name
        gist = compactor.compress(window["context_ids"]).token_ids
        size = sum(token not in special for token in gist)
        passage = [token for token in window["context_ids"] if token not in special]
        for reader, model, ids in (
            ("compressed_head", compactor.generator, passage[:size]),
            ("compressed_tail", compactor.generator, passage[len(passage) - size :]),
            ("own_tail", own_generators["tail"], passage[len(passage) - size :]),
        ):
            prompt, target = compactor.prompts.generator(ids, window["last_k_ids"]), window["target_ids"]
            with torch.no_grad():
                logits_SV = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            expected = -logits_SV.log_softmax(-1)[range(len(target)), target].mean().item()
            assert row[f"{reader}_nll"] == pytest.approx(expected, rel=1e-6), reader
            assert 0 <= row[f"{reader}_f1"] <= 1 and f"{reader}_answer" in row
    assert not [name for name in rows[0] if "mine" in name or name.startswith("own_head")]
    summary = summarize_answers(rows)
    behind = [row["own_tail_nll"] - row["generator_gist_nll"] for row in rows]
    assert summary["own_tail_nll_behind"] == pytest.approx(np.mean(behind))
    # Questions of one document are not independent: as in means, the error is over documents
    residuals = np.array(
        [sum(b - np.mean(behind) for b in (behind[0], behind[1], behind[3])), behind[2] - np.mean(behind)]
    )
    assert summary["own_tail_nll_behind_se"] == pytest.approx(math.sqrt((residuals**2).sum() * 2) / 4)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(answers_table(rows))
    (line,) = [line for line in capture.get().splitlines() if "G of its own: tail" in line]
    assert f"{np.mean(behind):+.3f} ± {summary['own_tail_nll_behind_se']:.3f}" in line


def test_a_generator_of_no_compressor_and_a_gist_too_long_are_refused(compactor, teacher, windows, own_generators):
    with pytest.raises(ValueError, match=r"`own_generators` has \['tail'\], which `compressors` does not"):
        answer_questions(compactor, teacher, windows, own_generators=own_generators)

    class Everything:
        def compress(self, contexts, budgets):
            return contexts

    with pytest.raises(ValueError, match="compressor 'all' wrote a gist of 24 tokens, .* on a budget of"):
        answer_questions(compactor, teacher, windows, compressors={"all": Everything()})
