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
Tasks made from code, against solvers that read the text alone: regular expressions, written without the makers.

A solver gets a text and a cue and gives an answer, or `None` where the text does not say.
"""

import random
import re

import pytest
from any_text import TOKENIZERS
from datasets import concatenate_datasets
from tiny import PARAGRAPH

from trl_gist.common.geometry import Geometry
from trl_gist.data import WindowSpec, prepare_windows
from trl_gist.data.tasks import TASKS, as_documents, make_tasks
from trl_gist.data.tasks.filler import Filler, plain_sentences
from trl_gist.prompts import SUMMARIZER_PROMPT_OF_FACTS


WINDOWS, LENGTH, LAST_K, TAIL = 5, 420, 30, 70
# Each letter is several tokens
FILLER = {
    "Cyrillic": "Лодка стояла у самого берега. В доме давно никого не было. Мимо него шла дорога к реке. ",
    "Chinese": "当时几乎没有人相信他。水泵在街上已经很久了。他们第二天才到了河边。",
    "signs": f"All of the {20 * '🦠'} lay by the shore. ",
}
each_task = pytest.mark.parametrize("name", TASKS)


def solve_ledger(text, cue):
    locker = re.search(r"does locker (\w+) hold", cue)[1]
    held = re.findall(rf"locker {locker} holds (\w+)\.", text)
    return held[-1] if held else None


def solve_needles(text, cue):
    city = re.search(r"animal of (\w+)\?", cue)[1]
    said = re.search(rf"animal of {city} is the (\w+)\.", text)
    return said and said[1]


def solve_variables(text, cue):
    given = dict(re.findall(r"Let (\w+) = (\w+)\.", text))
    value = re.search(r"number is (\w+)\?", cue)[1]
    while value in given:
        value = given[value]
    return value if value.isdigit() else None


def solve_story(text, cue):
    where, bearer = {}, {}
    for who, verb, what in re.findall(r"(\w+) (went to|picked up|left) the (\w+)", text):
        if verb == "went to":
            where[who] = what
            where |= {thing: what for thing, person in bearer.items() if person == who}
        elif verb == "picked up":
            bearer[what] = who
            where[what] = where.get(who)
        else:
            bearer.pop(what, None)
    return where.get(re.search(r"is (?:the )?(\w+) at", cue)[1])


def solve_dialogue(text, cue):
    whose, what = re.search(r"is my ((?:\w+'s )?)favourite (\w+) now", cue).groups()
    said = re.findall(rf"My {whose}favourite {what} is (\w+)\.", text)
    return said[-1] if said else None


SOLVERS = {name.removeprefix("solve_"): solver for name, solver in globals().items() if name.startswith("solve_")}


def make(name, tokenizer, documents=12, **overrides):
    sizes = {"windows": WINDOWS, "window_length": LENGTH, "last_k": LAST_K, "tail_length": TAIL, "difficulty": 5}
    return make_tasks(tokenizer, name, documents, **{**sizes, **overrides})


def asked(rows):
    return [(row, target) for row in rows for target in row["targets"]]


@pytest.fixture(scope="module")
def texts(tokenizer):
    """Of each task, of one window and of several."""
    return {name: [*make(name, tokenizer), *make(name, tokenizer, windows=1, window_length=900)] for name in TASKS}


# ---- What is asked for is in the text, and not in its tail ----


def test_every_task_has_a_solver():
    assert SOLVERS.keys() == TASKS.keys()


@each_task
def test_the_whole_text_answers_every_question(name, texts):
    for row, target in asked(texts[name]):
        assert f" {SOLVERS[name](row['context'], target['cue'])}" == target["target"]


@each_task
def test_the_tail_answers_none_so_that_any_guess_is_right_by_chance(name, tokenizer):
    """Whoever always gives one answer, as what the solver makes of a tail without statements."""
    pairs = asked(make(name, tokenizer, 60, window_length=300, difficulty=4))
    tails = [tokenizer.decode(tokenizer(row["context"])["input_ids"][-TAIL:]) for row, _ in pairs]
    for tail, (_, target) in zip(tails, pairs, strict=True):
        assert target["target"].strip() not in re.findall(r"\w+", tail)
        assert SOLVERS[name](tail, target["cue"]) is None
    answers = [target["target"] for _, target in pairs]
    chance = sum(1 / target["choices"] for _, target in pairs) / len(pairs)
    for guess in set(answers):
        right = sum(answer == guess for answer in answers) / len(answers)
        assert right < chance + 4.5 * (chance * (1 - chance) / len(answers)) ** 0.5


@each_task
def test_answers_are_as_many_as_they_say_and_equally_likely(name):
    """Without texts around them: drawn 3,000 times, each pool is even (χ² by its degrees of freedom)."""
    pools, rng = {}, random.Random(0)
    for _ in range(3000 // 8):
        for question in TASKS[name].make(rng, 3, 8)[1]:
            kind = re.search(r"favourite (\w+)", question.cue)
            of_kind = pools.setdefault((kind and kind[1], question.choices), {})
            of_kind[question.answer] = of_kind.get(question.answer, 0) + 1
    for (_, choices), counts in pools.items():
        expected = sum(counts.values()) / choices
        assert len(counts) == choices
        chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi2 < choices - 1 + 4 * (2 * (choices - 1)) ** 0.5


@each_task
def test_neither_made_up_sentences_nor_cues_name_an_answer(name, texts):
    words = {word.casefold() for word in TASKS[name].words}
    sentences = plain_sentences(random.Random(0))
    assert words.isdisjoint(re.findall(r"\w+", " ".join(next(sentences) for _ in range(3000)).casefold()))
    for _, target in asked(texts[name]):
        assert target["target"].strip() not in re.findall(r"\w+", target["cue"])


# ---- Where it stands ----


@each_task
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_fact_lies_whole_in_the_window_that_is_said(name, kind):
    tokenizer = TOKENIZERS[kind]
    length = 700 if kind == "byte-fallback" else LENGTH
    for row in make(name, tokenizer, 4, window_length=length):
        encoded = tokenizer(row["context"], return_offsets_mapping=True, add_special_tokens=False)
        count = len(encoded["input_ids"])
        assert WINDOWS * length + LAST_K <= count < WINDOWS * length + LAST_K + 100
        for target in row["targets"]:
            end = row["context"].index(".", target["start"])
            assert target["target"] in row["context"][target["start"] : end]
            places = [
                place
                for place, (first, last) in enumerate(encoded["offset_mapping"])
                if last > target["start"] and first <= end
            ]
            assert {place // length for place in places} == {target["window"]}
            assert places[-1] < WINDOWS * length + LAST_K - TAIL
            assert target["age"] == WINDOWS - 1 - target["window"]


@pytest.mark.parametrize("script", ["Cyrillic", "signs"])
@pytest.mark.parametrize("name", ["ledger", "story"])
def test_windows_are_the_chunks_of_a_walk_also_where_a_letter_would_be_cut(name, script):
    """A chunk ends before it, and the next begins there, so that each one is a little further ahead."""
    tokenizer, windows, length = TOKENIZERS["byte-level"], 120, 501
    (row,) = make(name, tokenizer, 1, windows=windows, window_length=length, difficulty=16, filler=FILLER[script])
    encoded = tokenizer(row["context"], return_offsets_mapping=True, add_special_tokens=False)
    spans, chunks = encoded["offset_mapping"], [0]
    for _ in range(windows):
        place = chunks[-1] + length
        while spans[place][0] < spans[place - 1][1]:  # tokens of one letter
            place -= 1
        chunks.append(place)
    assert windows * length - chunks[-1] > 20
    assert LAST_K <= len(spans) - chunks[-1] < LAST_K + 130
    for target in row["targets"]:
        end = row["context"].index(".", target["start"])
        places = [place for place, (first, last) in enumerate(spans) if last > target["start"] and first <= end]
        assert chunks[target["window"]] <= places[0] and places[-1] < chunks[target["window"] + 1]
        assert places[-1] < chunks[-1] + LAST_K - TAIL
        assert target["age"] == windows - 1 - target["window"]


@each_task
def test_every_window_is_asked_about(name, tokenizer):
    for row in make(name, tokenizer, 6):
        assert {target["window"] for target in row["targets"]} == set(range(WINDOWS))
        assert len(row["targets"]) == (7 if name == "story" else 5)


@each_task
def test_an_answer_is_there_when_the_last_statement_that_it_needs_is(name, texts, tokenizer):
    """And not before it."""
    later = 0
    for row, target in asked([*texts[name], *make(name, tokenizer, windows=1, window_length=1600, difficulty=9)]):
        text, at = row["context"], target["at"]
        assert f" {SOLVERS[name](text[:at], target['cue'])}" == target["target"]
        begins = text.rindex("User:", 0, at) if name == "dialogue" else text.rfind(".", 0, at - 1) + 1
        assert f" {SOLVERS[name](text[:begins], target['cue'])}" != target["target"]
        later += at > text.index(".", target["start"]) + 1 + len("\nAssistant: I will keep that in mind.")
    assert bool(later) == (name in ("variables", "story"))


def test_what_counts_no_more_stands_before_what_does(tokenizer):
    old = 0
    for row, target in asked(make("ledger", tokenizer)):
        locker = re.search(r"locker (\w+)", target["cue"])[1]
        entries = [match.start() for match in re.finditer(rf"Entry: locker {locker} ", row["context"])]
        assert entries[-1] == target["start"]
        old += len(entries) - 1
    assert old == 12 * 2


@each_task
def test_one_window_alone_is_no_longer_than_it(name, tokenizer):
    for row in make(name, tokenizer, 6, windows=1, last_k=0, tail_length=0, window_length=600):
        assert 450 < len(tokenizer(row["context"])["input_ids"]) <= 600
        assert {target["age"] for target in row["targets"]} == {0}


@pytest.mark.parametrize("tail_length, window_length", [(0, 500), (150, 700), (400, 1200)])
@each_task
def test_a_tail_has_no_statement_when_nothing_follows_the_last_window_too(name, tail_length, window_length, tokenizer):
    sizes = {"window_length": window_length, "last_k": 0, "tail_length": tail_length, "difficulty": 3}
    for row in make(name, tokenizer, 6, windows=2, **sizes):
        count = len(tokenizer(row["context"])["input_ids"])
        assert 2 * window_length - 60 < count <= 2 * window_length
        for target in row["targets"]:
            assert len(tokenizer(row["context"][target["at"] :])["input_ids"]) >= tail_length


# ---- Seeds, sizes and filler ----


def test_texts_come_of_their_seed_alone(tokenizer):
    first = make(None, tokenizer, 3, seed=4)
    assert [row["task"] for row in first] == 3 * list(TASKS)
    assert first.to_list() == make(None, tokenizer, 3, seed=4).to_list()
    assert make("story", tokenizer, 5, seed=4).to_list()[:3] == [row for row in first if row["task"] == "story"]
    other = make(None, tokenizer, 3, seed=5)
    assert not {row["context"] for row in first} & {row["context"] for row in other}
    assert len({row["document_id"] for row in (*first, *other)}) == 30


@each_task
def test_what_is_harder_has_more_facts(name, tokenizer):
    counts = [
        len(asked(make(name, tokenizer, 1, windows=8, difficulty=difficulty, window_length=600)))
        for difficulty in (1, 8, 16)
    ]
    assert counts == ([1, 12, 24] if name == "story" else [1, 8, 16])


def test_filler_is_the_users_sentences_but_for_those_that_tell(tokenizer):
    texts = [
        PARAGRAPH,
        "Nothing. The copper pump was not there at all. Locker rooms are cold in winter too.\n\nNo title",
    ]
    (row,) = make("ledger", tokenizer, 1, window_length=500, filler=texts)
    notes = [line.removeprefix("Note: ") for line in row["context"].split("\n") if line.startswith("Note: ")]
    wanted = re.split(r"(?<=\.) ", PARAGRAPH.strip())
    assert len(notes) > 10 and set(notes) <= set(wanted)
    assert all(
        (wanted.index(b) - wanted.index(a)) in (1, 1 - len(wanted)) for a, b in zip(notes, notes[1:], strict=False)
    )
    (other,) = make("ledger", tokenizer, 1, window_length=500, filler=PARAGRAPH)
    assert other == row


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (FILLER["Chinese"], 3),
        ("كان معظم المنازل حول مضخة واحدة. لم يصدقه أحد في ذلك الوقت.", 2),
        ("नाव किनारे पर खड़ी थी। उस घर में कोई नहीं था।", 2),
        ("A heading\nThe boat lay by the shore. “It was an old boat,” she said.", 2),
        ("A heading", 0),
    ],
)
def test_filler_is_cut_into_sentences_in_any_script(text, sentences):
    found = Filler([text], (), len, 1000).sentences
    assert len(found) == sentences and "".join(found).replace(" ", "") in text.replace(" ", "")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"names": ["ledger", "story", "ledger"]}, "'ledger' is named more than once"),
        ({"names": ["ledger", "chess"]}, "no task 'chess': choose from ledger, needles"),
        ({"difficulty": 17}, "`difficulty` must be from 1 to 16, got 17"),
        ({"window_length": 60}, r"do not fit in window . of 60 tokens.*Lower `difficulty` \(\d+\)"),
        ({"windows": 0}, "`windows` must be"),
        ({"filler": "The locker was here all day."}, "`filler` has no sentence of at most 105 tokens"),
        ({"filler": [1, 2]}, "`filler` takes a list of texts"),
        ({"filler": [PARAGRAPH, None]}, r"`filler\[1\]` is null: leave it out"),
        ({"filler": ["\ud800 " + PARAGRAPH]}, r"`filler\[0\]` is undecodable: leave it out"),
        ({"tail_length": 5 * LENGTH}, "or `tail_length`"),
    ],
)
def test_what_cannot_be_made_is_said(overrides, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        make(overrides.pop("names", "ledger"), tokenizer, 1, **overrides)


# ---- As training data ----


def test_rows_are_ready_windows(tokenizer):
    dataset = make(None, tokenizer, 2, windows=1, last_k=0, tail_length=0, window_length=600)
    windows, skipped = prepare_windows(dataset, tokenizer, WindowSpec(600, 8, 8, None, None))
    assert skipped.total == 0 and len(windows) == 10
    for row, window in zip(dataset, windows, strict=True):
        assert window["context_ids"] == tokenizer(row["context"])["input_ids"]
        for target, made in zip(row["targets"], window["targets"], strict=True):
            assert made["kind"] == row["task"] == window["task"]
            assert tokenizer.decode(made["cue_ids"] + made["target_ids"]) == target["cue"] + target["target"]


def test_a_pair_trains_on_them_as_they_are(make_trainer, tokenizer):
    parts = [
        make(name, tokenizer, 4, windows=1, last_k=0, tail_length=0, window_length=240, difficulty=2)
        for name in ("needles", "story")
    ]
    sizes = {"context_length": 240, "target_floor": None, "summarizer_prompt": SUMMARIZER_PROMPT_OF_FACTS}
    trainer = make_trainer(train_dataset=concatenate_datasets(parts), args=sizes)
    trainer.train()
    logged = {name for log in trainer.state.log_history for name in log}
    assert {"needles/exact", "story/exact"} <= logged


@each_task
def test_a_walk_asks_for_what_has_been_said(name):
    """Each window's answers stand in the text up to it, in the chunk of their age."""
    tokenizer, geometry = TOKENIZERS["byte-level"], Geometry(LENGTH + 60, LENGTH, LAST_K, 8)
    rows = make_tasks(tokenizer, name, documents=2, windows=3, window_length=LENGTH, last_k=LAST_K + 8, difficulty=3)
    spec = WindowSpec(LENGTH + 60, 8, LAST_K, None, 1, 3, geometry)
    walks, skipped = prepare_windows(as_documents(rows), tokenizer, spec)
    assert len(walks) == 2 and not skipped.total
    for row, walk in zip(rows, walks, strict=True):
        asked = [target for target in walk["targets"] if target["kind"] == name]
        assert {target["window"] for target in asked} <= {0, 1, 2} and any(target["age"] for target in asked)
        last = {tokenizer.decode(target["cue_ids"]): target["age"] for target in asked if target["window"] == 2}
        assert len(last) == len(row["targets"])
        for target in row["targets"]:
            (age,) = (age for cue, age in last.items() if target["cue"].strip() == cue.strip())
            said = len(tokenizer(row["context"][: target["at"]])["input_ids"])
            assert age == 2 - (said - 1) // LENGTH


@each_task
def test_a_walk_asks_for_all_that_the_text_so_far_answers_as_it_stands_there(name):
    """An entry is asked for until another one counts: that it will be written over, nobody can know."""
    tokenizer, geometry = TOKENIZERS["byte-level"], Geometry(LENGTH + 60, LENGTH, LAST_K, 8)
    rows = make_tasks(tokenizer, name, documents=8, windows=4, window_length=LENGTH, last_k=LAST_K + 8, difficulty=4)
    walks, _ = prepare_windows(as_documents(rows), tokenizer, WindowSpec(LENGTH + 60, 8, LAST_K, None, 1, 4, geometry))
    changed = 0
    for row, walk in zip(rows, walks, strict=True):
        changed += any(target["earlier"] for target in row["targets"])
        for window in range(4):
            # What is said after the chunks is in no gist yet, and what it changes holds no more
            ends = (window + 1) * LENGTH, geometry.before(window)
            texts = [f"{tokenizer.decode(walk['walk_ids'][:end]).rpartition('.')[0]}." for end in ends]
            expected = {}
            for target in row["targets"]:
                of_chunks, of_all = (SOLVERS[name](text, target["cue"]) for text in texts)
                if of_chunks is not None and of_chunks == of_all:
                    expected[target["cue"].strip()] = of_all
            assert expected == {
                tokenizer.decode(target["cue_ids"]).strip(): tokenizer.decode(target["target_ids"]).strip()
                for target in walk["targets"]
                if target["window"] == window and target["kind"] == name
            }
    assert bool(changed) == (name in ("ledger", "story", "dialogue"))
