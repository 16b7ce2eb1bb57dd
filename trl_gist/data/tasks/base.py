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

"""What a task is: statements that fall in the windows of a text, and questions that one of them answers each."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


# Facts in a text, at most: names of each kind there are enough of
MOST_FACTS = 16


@dataclass(frozen=True, eq=False)
class Statement:
    """A sentence that is no filler, and when it comes: `time` counts windows, so that 2.5 is the middle of the third."""

    time: float
    text: str


@dataclass(frozen=True)
class Question:
    """
    Attributes:
        cue (`str`):
            The question up to its answer, on lines of its own.
        answer (`str`):
            With the space before it.
        fact (`Statement`):
            The one in force that names the answer.
        choices (`int`):
            How many answers are equally likely to who has read no statement.
        others (`tuple[Statement, ...]`, *optional*):
            Without which the one in force does not tell the answer.
        earlier (`tuple[tuple[str, Statement], ...]`, *optional*):
            What was answered before, and the statement that was in force until the next one came, in their order.
    """

    cue: str
    answer: str
    fact: Statement
    choices: int
    others: tuple[Statement, ...] = ()
    earlier: tuple[tuple[str, Statement], ...] = ()

    @classmethod
    def of_latest(cls, cue: str, said: list[tuple[str, Statement]], choices: int, *others: Statement) -> "Question":
        """Of answers and the statements that name them, in their order, the last one counts."""
        *earlier, (answer, fact) = said
        return cls(cue, answer, fact, choices, others, tuple(earlier))


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        make (`Callable`):
            Takes a `random.Random`, the number of windows and the difficulty (facts, from 1 to `MOST_FACTS`), and gives
            statements in any order and questions. Its answers are drawn uniformly, whatever else the text has.
        words (`frozenset[str]`):
            Names and answers, none of which filler may have.
        separator (`str`):
            Between sentences.
        dress (`Callable`):
            What becomes of the n-th sentence of filler.
    """

    make: Callable[[random.Random, int, int], tuple[list[Statement], list[Question]]]
    words: frozenset[str]
    separator: str = " "
    dress: Callable[[str, int], str] = field(default=lambda sentence, number: sentence)


def spread(rng: random.Random, count: int, windows: int) -> list[float]:
    """Times, each in another window, until every window has one."""
    order = []
    while len(order) < count:
        order += rng.sample(range(windows), windows)
    return [window + rng.random() for window in order[:count]]


def last_said(
    rng: random.Random, windows: int, subjects: list, choices: Callable, said: Callable
) -> Iterator[tuple[object, list[tuple[str, Statement]]]]:
    """Each subject, and what is said of it in order: one of its choices and the statement that says so; of every second
    subject another one before."""
    for number, (subject, time) in enumerate(zip(subjects, spread(rng, len(subjects), windows), strict=True)):
        choice = rng.choice(choices(subject))
        entries = [(f" {choice}", Statement(time, said(subject, choice)))]
        if number % 2:
            other = rng.choice([each for each in choices(subject) if each != choice])
            entries.insert(0, (f" {other}", Statement(rng.uniform(0, time), said(subject, other))))
        yield subject, entries


def question(asked: str, stem: str) -> str:
    """A cue: the question, and the words of its answer up to what is asked for."""
    return f"\nQuestion: {asked}\nAnswer: {stem}"
