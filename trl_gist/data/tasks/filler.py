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

"""What stands between statements: sentences of any text that is given, or plain ones that are made up."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

import regex

from ...common.text_units import CJK_UNIT
from ..targets import sentence_characters


# A sign of a script without spaces is one
_WORD = regex.compile(rf"{CJK_UNIT.pattern}|[[\p{{L}}\p{{N}}]--{CJK_UNIT.pattern}]+", regex.VERSION1)
# A heading is no sentence
_FEWEST_WORDS = 4

_SUBJECTS = (
    *("committee", "valley", "engine", "bridge", "teacher", "harbour", "meeting", "village", "report", "machine"),
    *("journey", "theatre", "railway", "museum", "captain", "neighbour", "lecture", "tower", "newspaper", "bakery"),
    *("orchestra", "factory", "mountain", "student", "shipment", "festival", "inspector", "clock", "painter", "road"),
)
_DOINGS = (
    *("was described at length by", "stood not far from", "had little to do with", "was older than"),
    *("was built shortly after", "took its name from", "was often compared with", "was soon followed by"),
    *("was known only to", "came long before", "was paid for by", "was repaired together with", "looked like"),
    *("caused some trouble for", "was of no interest to", "was said to resemble", "was planned beside"),
    *("was hidden behind", "depended on", "outlasted"),
)
_ENDS = (
    *("in those days", "for no clear reason", "as far as anybody could tell", "after a long winter", "once again"),
    *("without much noise", "on most afternoons", "in spite of the weather", "for several years", "as a rule"),
    *("until the very last week", "under the same conditions", "with some delay", "more than once", "by then"),
)


def plain_sentences(rng: random.Random) -> Iterator[str]:
    """Sentences without names, numbers or anything that a task asks for, without end."""
    while True:
        subject, other = rng.sample(_SUBJECTS, 2)
        words = f"the {subject} {rng.choice(_DOINGS)} the {other} {rng.choice(_ENDS)}"
        yield f"{words[0].upper()}{words[1:]}."


class Filler:
    """
    Sentences of texts, less those that have a word of a task or are too long; or, without texts, plain ones.

    Args:
        texts (`list[str]`, *optional*):
            Of any kind, in any number.
        words (`Iterable[str]`):
            What no sentence may have, whatever its case.
        count (`Callable`), most (`int`):
            Tokens of a sentence, and the most that one may have.
    """

    def __init__(self, texts: list[str] | None, words: Iterable[str], count: Callable[[str], int], most: int):
        self.words = {word.casefold() for word in words}
        self.count, self.most = count, most
        self.sentences = texts and [
            sentence
            for line in itertools.chain.from_iterable(map(str.splitlines, texts))
            for sentence in (" ".join(line[start:end].split()) for start, end, _ in sentence_characters(line))
            if len(found := _WORD.findall(sentence.casefold())) >= _FEWEST_WORDS and self.words.isdisjoint(found)
        ]

    def draw(self, rng: random.Random) -> Iterator[str]:
        """Sentences without end: those of the texts in their order, from any one on. Raises `ValueError` if none is left."""
        if self.sentences is None:
            yield from plain_sentences(rng)
        start, skipped = rng.randrange(max(1, len(self.sentences))), 0
        for sentence in itertools.islice(itertools.cycle(self.sentences), start, None):
            if self.count(sentence) <= self.most:
                skipped = 0
                yield sentence
            elif (skipped := skipped + 1) == len(self.sentences):
                break
        raise ValueError(
            f"`filler` has no sentence of at most {self.most} tokens that is free of the task's own words, as "
            f"{', '.join(sorted(self.words)[:3])}. Give more text or longer windows, or leave it out for plain sentences."
        )
