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
Texts in which the tail is worthless: what is asked for stands some windows before the end, and nowhere else.

A text is whole sentences, of which statements are the fewest. Each falls in one window of tokens, and between them, and
in the last tokens, is filler that has none of the task's words.
"""

import bisect
import random
from collections.abc import Iterable

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from ...common.arguments import several, whole_number
from ...common.geometry import Geometry, WindowedText
from ...common.tokens import characters_of, literal_ids, literal_pieces
from ..windows import why_unusable
from .base import MOST_FACTS, Statement, Task
from .dialogue import DIALOGUE
from .filler import Filler
from .ledger import LEDGER
from .needles import NEEDLES
from .story import STORY
from .variables import VARIABLES


TASKS: dict[str, Task] = {
    "ledger": LEDGER,
    "needles": NEEDLES,
    "variables": VARIABLES,
    "story": STORY,
    "dialogue": DIALOGUE,
}
_TEXT, _NUMBER = Value("string"), Value("int64")
# Said, since of some texts nothing was answered before, and rows of several calls go into one dataset
_COLUMNS = {
    "document_id": _TEXT,
    "task": _TEXT,
    "context": _TEXT,
    "targets": [
        {
            **dict.fromkeys(("kind", "cue", "target"), _TEXT),
            **dict.fromkeys(("window", "age", "start", "at"), _NUMBER),
            "earlier": [{"target": _TEXT, "at": _NUMBER, "until": _NUMBER}],
            "choices": _NUMBER,
        }
    ],
}
_DOCUMENT_COLUMNS = {
    "document_id": _TEXT,
    "text": _TEXT,
    "document_targets": [
        {**dict.fromkeys(("kind", "cue", "target"), _TEXT), **dict.fromkeys(("at", "until"), _NUMBER)}
    ],
}
# Of `trl-gist evaluate --tasks`, which measures on texts that another seed does not make
EVALUATION_SEED = 0
# A sentence is at most this share of a window; and tokens that a seam between sentences may cost, or spare
_LONGEST_SENTENCE, _SLACK = 4, 4


def make_tasks(
    tokenizer: PreTrainedTokenizerBase,
    names: str | Iterable[str] | None = None,
    documents: int = 100,
    windows: int = 1,
    window_length: int = 256,
    last_k: int = 0,
    tail_length: int | None = None,
    difficulty: int = 4,
    filler: str | Iterable[str] | None = None,
    seed: int = EVALUATION_SEED + 1,
) -> Dataset:
    """
    Texts with questions about what was said some windows ago, made from code: rows that [`GistTrainer`] trains on as
    they are, and that `trl-gist evaluate --tasks` measures sessions on.

    Whoever has read no statement is right with a chance of one in `choices`: answers are drawn uniformly, and filler has
    none of them.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Which tokens windows are counted in.
        names (`str` or `list[str]`, *optional*):
            Some of `TASKS`: `"ledger"`, `"needles"`, `"variables"`, `"story"`, `"dialogue"`; all by default.
        documents (`int`, *optional*, defaults to `100`):
            Texts of each task. The n-th is the same whatever their number.
        windows, window_length (`int`, *optional*, default to `1` and `256`):
            Windows of a text, and tokens of one; some fewer where a character of several tokens would be cut, as a
            session's chunks have.
        last_k (`int`, *optional*, defaults to `0`):
            Tokens of filler that follow the last window; up to a sentence more, so that the text ends with one. With 0
            the text ends within its windows.
        tail_length (`int`, *optional*):
            Last tokens in which no statement stands, of the windows and `last_k` together. Defaults to `last_k`.
        difficulty (`int`, *optional*, defaults to `4`):
            Facts in a text, from 1 to 16, however many windows it has: lockers, cities, chains of variables, people,
            preferences. What else grows with it is said in each task's own file.
        filler (`str` or `list[str]`, *optional*):
            Texts whose sentences stand between statements. By default plain ones are made up.
        seed (`int`, *optional*, defaults to `1`):
            With 0, the texts are those that `trl-gist evaluate --tasks` measures on.

    Returns:
        [`~datasets.Dataset`]: A row a text, the tasks in turn: `document_id`, `task`, `context` (the text), and
        `targets`, a list with for each question its `kind` (the task), `cue`, `target` (the answer, which the cue ends
        before), `window` (from 0, in which the statement in force stands), `age` (windows from there to the last one: 0
        is the last), `start` (of the statement, in characters), `at` (where the last statement ends that the answer needs, as
        the last step of a chain), `earlier` (what was answered before: `target`, `at`, and `until`, where the statement ends that
        changed it) and `choices`.

    Raises:
        ValueError: if a task is unknown, a number is too small, the statements do not fit their windows, or `filler` has
            no sentence to use.
    """
    names = [names] if isinstance(names, str) else names
    names = list(TASKS) if names is None else several("names", names, "tasks", "put it in a list")
    check_names(names)
    for what, number, least in (
        ("documents", documents, 1),
        ("windows", windows, 1),
        ("window_length", window_length, 1),
        ("last_k", last_k, 0),
        ("difficulty", difficulty, 1),
        ("seed", seed, 0),
    ):
        whole_number(what, number, least)
    tail_length = last_k if tail_length is None else whole_number("tail_length", tail_length, 0)
    if difficulty > MOST_FACTS:
        raise ValueError(f"`difficulty` must be from 1 to {MOST_FACTS}, got {difficulty}.")
    if filler is not None:
        filler = [filler] if isinstance(filler, str) else several("filler", filler, "texts", "put it in a list")
        if not filler:
            raise ValueError("`filler` is empty: give texts, or leave it out for plain sentences.")
        for index, text in enumerate(filler):
            if reason := why_unusable(text):
                raise ValueError(f"`filler[{index}]` is {reason}: leave it out.")
    writers = [
        _Writer(tokenizer, name, windows, window_length, last_k, tail_length, difficulty, filler) for name in names
    ]
    rows = [writer.write(seed, index) for index in range(documents) for writer in writers]
    return Dataset.from_list(rows, features=Features(_COLUMNS))


def check_names(names: list[str]):
    """Raises `ValueError` for what is no task, or is named twice."""
    for name in names:
        if name not in TASKS:
            raise ValueError(f"There is no task {name!r}: choose from {', '.join(TASKS)}.")
        if names.count(name) > 1:
            raise ValueError(
                f"The task {name!r} is named more than once, and would give the same texts: name it once."
            )


def as_documents(tasks: Dataset) -> Dataset:
    """
    Texts of [`make_tasks`] for walks (`GistConfig.windows_per_document`): a window asks for what has been said up to it,
    by `recall_age`, which here is that of the last statement that an answer needs.

    Args:
        tasks ([`~datasets.Dataset`]):
            Rows of [`make_tasks`]. Of a walk's chunks there should be as many as it has windows, and as long.

    Returns:
        [`~datasets.Dataset`]: `document_id`, `text` and `document_targets`, in the order of `tasks`.
    """

    def document(row):
        asked = [
            {"kind": target["kind"], "cue": target["cue"], **answer}
            for target in row["targets"]
            for answer in (
                *(target.get("earlier") or ()),
                {"target": target["target"], "at": target["at"], "until": None},
            )
        ]
        return {"document_id": row["document_id"], "text": row["context"], "document_targets": asked}

    return Dataset.from_list([document(row) for row in tasks], features=Features(_DOCUMENT_COLUMNS))


class _Writer:
    """Texts of one task, of one size."""

    def __init__(self, tokenizer, name, windows, window_length, last_k, tail_length, difficulty, filler):
        self.tokenizer, self.name, self.task = tokenizer, name, TASKS[name]
        self.windows, self.window_length, self.last_k = windows, window_length, last_k
        self.tail_length, self.difficulty = tail_length, difficulty
        self.filler = Filler(filler, self.task.words, self._count, window_length // _LONGEST_SENTENCE)

    def write(self, seed, index):
        rng = random.Random(f"{seed}/{self.name}/{self.windows}/{self.difficulty}/{index}")
        statements, questions = self.task.make(rng, self.windows, self.difficulty)
        text, starts = self._lay_out(sorted(statements, key=lambda each: each.time), rng)
        window_of = self._windows_of(text, starts)
        return {
            "document_id": f"{self.name}-{seed}-{self.windows}-{index}",
            "task": self.name,
            "context": text,
            "targets": [
                {
                    "kind": self.name,
                    "cue": asked.cue,
                    "target": asked.answer,
                    "window": window_of[asked.fact],
                    "age": self.windows - 1 - window_of[asked.fact],
                    "start": starts[asked.fact],
                    **_answers(asked, {each: start + len(each.text) for each, start in starts.items()}),
                    "choices": asked.choices,
                }
                for asked in questions
            ],
        }

    def _lay_out(self, statements, rng):
        """The text, and where in it each statement begins."""
        drawn = enumerate(self.filler.draw(rng))
        sentences = (self.task.dress(sentence, number) for number, sentence in drawn)
        # Statements and sentences in order, and their tokens; a window begins where a walk's chunk does
        units, ids, sentence = [], [], next(sentences)
        chunks = self._chunks(ids)
        for window in range(self.windows):
            due = [each for each in statements if min(int(each.time), self.windows - 1) == window]
            total, end, last = len(ids), chunks.chunk_start(window) + self.window_length, window == self.windows - 1
            limit = (min(end, end + self.last_k - self.tail_length) if last else end) - _SLACK
            room = limit - total - sum(self._count(each.text) for each in due)
            between, after = [], []
            while (size := self._count(sentence)) <= room:
                between.append(sentence)
                room, sentence = room - size, next(sentences)
            left, total = limit - total, limit - room
            places = sorted(rng.choices(range(len(between) + 1), k=len(due)), reverse=True)
            end += self.last_k if last else 0
            while total < end + _SLACK and not (last and not self.last_k and total + size > end - _SLACK):
                after.append(sentence)
                total, sentence = total + size, next(sentences)
                size = self._count(sentence)
            # Where nothing may follow the last window, the text ends a part of a sentence before it
            short = self.tail_length - (total - limit + room) if last and not self.last_k else 0
            most = len(between)
            while most and short > 0:
                most -= 1
                short -= self._count(between[most])
            if room < 0 or short > 0:
                raise ValueError(
                    f"{len(due)} statements of {self.name} do not fit in window {window} of {self.window_length} tokens, "
                    f"of which {max(0, left)} are left. Lower `difficulty` ({self.difficulty}) or `tail_length`, or take longer "
                    "windows: `window_length`, or a pair of a longer `context_length`."
                )
            for place, each in zip(places, reversed(due), strict=True):
                between.insert(min(place, most), each)
            ids += self._following(units, between + after)
            units += between + after
        starts, place = {}, 0
        for unit in units:
            if isinstance(unit, Statement):
                starts[unit] = place
            place += len(_text(unit)) + len(self.task.separator)
        return self.task.separator.join(map(_text, units)), starts

    def _windows_of(self, text, starts):
        """In the chunk of which window each statement begins. A tokenizer without offsets counts the tokens before it."""
        ids, begins = [], []
        for more, places in literal_pieces(self.tokenizer, text):
            ids += more
            begins += places or ()
        chunks = self._chunks(ids)
        return {
            each: chunks.window_of(
                bisect.bisect_right(begins, start) - 1 if begins else len(literal_ids(self.tokenizer, text[:start]))
            )
            for each, start in starts.items()
        }

    def _chunks(self, ids):
        geometry = Geometry(self.window_length, self.window_length, self.last_k, 0)
        return WindowedText(ids, geometry, characters_of(self.tokenizer))

    def _following(self, units, more):
        """The tokens of more units after the last one."""
        before = _text(units[-1]) if units else "."
        whole = literal_ids(self.tokenizer, self.task.separator.join([before, *map(_text, more)]))
        return whole[len(literal_ids(self.tokenizer, before)) :]

    def _count(self, sentence):
        return len(self._following([], [sentence]))


def _answers(asked, ends):
    """When the answer is known, and what was answered before, from when until when."""
    facts = [fact for _, fact in asked.earlier] + [asked.fact]
    known = [max(ends[each] for each in (fact, *asked.others)) for fact in facts]
    earlier = [
        {"target": answer, "at": at, "until": ends[following]}
        for (answer, _), at, following in zip(asked.earlier, known, facts[1:], strict=False)
    ]
    return {"at": known[-1], "earlier": [each for each in earlier if each["at"] < each["until"]]}


def _text(unit):
    return unit.text if isinstance(unit, Statement) else unit
