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

"""
Windows whose last k is not the end of their context: a passage X, a question L about it, and its answer Y.

The teacher reads X then L, the verbatim control the last |Z| tokens of X then L, and S sees L only if its prompt has it.
"""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny import make_model

from trl_gist import GistCompactor
from trl_gist.common.tokens import characters_of
from trl_gist.evaluation import add_controls, evaluate_pair
from trl_gist.evaluation.question_answering import _prompt, answer_questions
from trl_gist.pair import PairConfig
from trl_gist.prompts import GistPrompts
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer
from trl_gist.scoring.teacher_cache import TeacherCache


AWARE, UNAWARE = "Shorten {context} for {last_k} Gist:", "Shorten {context} Gist:"
PASSAGE = list(range(60, 80))


def row(question, answer=(30, 31, 32), passage=PASSAGE, document=0):
    return {
        "document_id": document,
        "context_ids": list(passage),
        "last_k_ids": list(question),
        "target_ids": list(answer),
    }


def plain_log_prob(model, prompt, target):
    """Mean log-prob of the target, from one whole forward in float64."""
    with torch.no_grad():
        logits_SV = model(input_ids=torch.tensor([prompt + target])).logits[0]
    return logits_SV[len(prompt) - 1 : -1].log_softmax(-1)[range(len(target)), target].mean().item()


@pytest.fixture
def scorer(tokenizer):
    generator, teacher = (TargetScorer(make_model(tokenizer, seed, torch.float64).eval()) for seed in (1, 2))
    return GistScorer(generator, teacher, GistPrompts.from_tokenizer(tokenizer, AWARE), batch_size=2)


def test_the_teacher_reads_the_question_after_the_passage(scorer, tokenizer):
    rows = [row([90, 91, 92]), row([93]), row(PASSAGE[-3:])]
    gist = [100, 101]
    teacher, generator = scorer.teacher.model, scorer.generator.model
    for window, scored, read in zip(
        rows,
        scorer.score(rows, [gist] * 3),
        ([*PASSAGE, 90, 91, 92], [*PASSAGE, 93], PASSAGE),
        strict=True,
    ):
        target = window["target_ids"]
        assert scored["teacher_log_prob"] == pytest.approx(plain_log_prob(teacher, read, target), abs=1e-6)
        prompt = tokenizer("GIST:")["input_ids"] + gist + tokenizer("\nLAST K TOKENS:")["input_ids"]
        prompt += window["last_k_ids"]
        assert scored["gist_log_prob"] == pytest.approx(plain_log_prob(generator, prompt, target), abs=1e-6)


def test_the_verbatim_control_is_the_passages_end_and_the_question(scorer):
    rows = [row([90, 91, 92], document=0), row([93], document=1), row(PASSAGE[-3:], document=2)]
    for window, length in zip(rows, (4, 0, 2), strict=True):
        window |= {"gist_ids": [100] * length, "gist_length": length}
    add_controls(scorer, rows)
    verbatim = ([*PASSAGE[-4:], 90, 91, 92], [93], PASSAGE[-5:])
    for window, tail in zip(rows, verbatim, strict=True):
        teacher, target = scorer.teacher.model, window["target_ids"]
        assert window["tail_log_prob"] == pytest.approx(plain_log_prob(teacher, tail, target), abs=1e-6)
        question_only = plain_log_prob(teacher, window["last_k_ids"], target)
        assert window["last_k_log_prob"] == pytest.approx(question_only, abs=1e-6)


def test_two_questions_about_a_passage_are_two_entries_of_the_teachers_cache(scorer, tmp_path):
    rows = [row([90, 91, 92]), row([93])]
    uncached = scorer.read_contexts(rows)[1]
    scorer.teacher_cache = TeacherCache(tmp_path, scorer.teacher.model, scorer.prompts)
    assert [scorer.read_contexts([window])[1][0] for window in rows for _ in range(2)] == pytest.approx(
        [uncached[0], uncached[0], uncached[1], uncached[1]]
    )
    assert len(list(tmp_path.rglob("*.hidden"))) == 2


@pytest.mark.parametrize("prompt", [AWARE, UNAWARE], ids=["aware", "unaware"])
def test_the_summarizer_trains_on_prompts_with_the_question_only_if_they_have_a_place_for_it(
    make_trainer, lora, tokenizer, monkeypatch, prompt
):
    rows = [{"context": [60 + index] * 12, "last_k": [160 + index] * 3, "target": [30, 31]} for index in range(12)]
    trainer = make_trainer(peft_config=lora, train_dataset=Dataset.from_list(rows), args={"summarizer_prompt": prompt})
    trained_on, compute_loss = [], trainer._compute_loss

    def watch(model, inputs):
        for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True):
            trained_on.append(ids[mask.bool()].tolist())
        return compute_loss(model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", watch)
    trainer.train()

    def plain(window):
        def ids(text):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        parts = (
            ids("<|im_start|>user\nShorten "),
            window["context"],
            *((ids(" for "), window["last_k"]) if prompt == AWARE else ()),
            ids(" Gist:<|im_end|>\n<|im_start|>assistant\n"),
        )
        return sum(parts, [])

    assert len(trained_on) == 16
    assert all(ids in [plain(window) for window in rows] for ids in trained_on)


# ---- The pair at inference ----


@pytest.fixture(scope="module", params=[AWARE, UNAWARE], ids=["aware", "unaware"])
def compactor(request, tokenizer):
    pair = PairConfig(
        context_length=20,
        target_length=8,
        last_k=3,
        max_gist_length=5,
        tail_length=5,
        summarizer_prompt=request.param,
        **{"base_models": {}, "recipe": {}, "measures": {}, "gists": [], "step": 0, "version": ""},
    )
    models = (make_model(tokenizer, seed, tie_word_embeddings=False).eval() for seed in (3, 4))
    return GistCompactor(*models, tokenizer, pair)


def greedy(model, prompt, length):
    written = []
    for _ in range(length):
        with torch.no_grad():
            token = model(torch.tensor([prompt + written])).logits[0, -1].argmax().item()
        if token == model.config.eos_token_id:
            break
        written.append(token)
    return written


QUESTION = "Who made the map of Soho?"


def test_a_question_shapes_the_gist_of_an_aware_pair_only(compactor):
    question = compactor.tokenizer(QUESTION)["input_ids"]
    gists = {
        name: compactor.compress(PASSAGE, last_k=last_k) for name, last_k in (("ids", question), ("text", QUESTION))
    }
    assert gists["ids"] == gists["text"]
    prompt = compactor.prompts.summarizer(PASSAGE, question)
    written = greedy(compactor.summarizer, prompt, 5)
    assert gists["ids"].token_ids == characters_of(compactor.tokenizer).whole(written)
    aware = compactor.pair.summarizer_prompt == AWARE
    assert (gists["ids"].token_ids != compactor.compress(PASSAGE).token_ids) == aware
    # The generator reads the question in any case, and the rate says so
    template = compactor.prompts.generator_overhead
    assert gists["ids"].total_rate == (len(gists["ids"].token_ids) + len(question) + template) / 20


def test_by_default_the_summarizer_sees_the_contexts_own_end(compactor):
    assert compactor.compress(PASSAGE) == compactor.compress(PASSAGE, last_k=PASSAGE[-3:])


def test_each_context_of_a_batch_has_its_own_question(compactor):
    questions = [[200, 201], QUESTION, [210]]
    contexts = [PASSAGE, PASSAGE[:7], PASSAGE]
    batch = compactor.compress_batch(contexts, last_k=questions, batch_size=2)
    for gist, context, question in zip(batch, contexts, questions, strict=True):
        single = compactor.compress(context, last_k=question)
        assert gist == replace(single, log_prob=pytest.approx(single.log_prob, abs=1e-4))
    windows = compactor.compress_windows(PASSAGE + PASSAGE[:7], last_k=QUESTION)
    assert [gist.token_ids for gist in windows] == [
        compactor.compress(context, last_k=QUESTION).token_ids for context in contexts[:2]
    ]


def test_a_pair_is_measured_with_the_gists_it_writes_for_each_question(compactor):
    windows = [row([90, 91, 92], document=0), row([93], document=1), row([94, 95], document=2)]
    teacher = make_model(compactor.tokenizer, seed=5).eval()
    for window, scored in zip(windows, evaluate_pair(compactor, windows, teacher, batch_size=2), strict=True):
        gist = compactor.compress(PASSAGE, last_k=window["last_k_ids"])
        assert scored["gist_ids"] == gist.token_ids
        assert scored["total_rate"] == gist.total_rate
        read = [*PASSAGE, *window["last_k_ids"]]
        expected = plain_log_prob(teacher, read, window["target_ids"])
        assert scored["teacher_log_prob"] == pytest.approx(expected, abs=1e-5)


def test_answers_and_what_they_are_held_against_are_whole_characters(compactor):
    """Also where `max_new_tokens`, the gist's budget or a user's own ids end inside one."""
    ids = compactor.token_ids("霍乱水泵🦠콜레라", "The passage")
    windows = [row(ids[1:4], ids[: 3 + cut], ids[cut : cut + 20], document=cut) for cut in range(4)]
    teacher = make_model(compactor.tokenizer, seed=5).eval()
    answers = answer_questions(compactor, teacher, windows, max_new_tokens=7)
    assert not any("\ufffd" in str(answer) for answer in answers) and any(a["references"][0] for a in answers)
    characters, passage = characters_of(compactor.tokenizer), ids[:19]
    for count in range(1, 8):
        window = row([9], passage=passage)
        tail = _prompt(compactor, "teacher", "tail", window, [9] * count)[len(compactor.prompts.bos) : -1]
        assert len(tail) <= count and characters.whole(tail) == tail == passage[19 - len(tail) :]


def test_an_answer_is_written_from_the_gist_and_the_question(compactor):
    question = compactor.tokenizer(QUESTION)["input_ids"]
    answer = compactor.continue_text([99] * 9 + PASSAGE, max_new_tokens=6, last_k=QUESTION)
    gist = compactor.compress(PASSAGE, last_k=QUESTION)
    assert answer.gist == gist
    assert answer.token_ids == greedy(compactor.generator, compactor.prompts.generator(gist.token_ids, question), 6)
    assert answer == compactor.continue_from(gist, QUESTION, max_new_tokens=6)
