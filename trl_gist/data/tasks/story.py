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
People who go from place to place and carry things, in the manner of bAbI's first tasks ([Weston et al.,
2015](https://huggingface.co/papers/1502.05698)): where is somebody, and where is something.
"""

import random

from .base import Question, Statement, Task, question, spread


PEOPLE = (
    *("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry"),
    *("Irene", "Jonas", "Karin", "Louis", "Marta", "Oscar", "Paula", "Simon"),
)
PLACES = ("kitchen", "garden", "cellar", "office", "library", "bathroom", "garage", "hallway")
THINGS = ("lamp", "basket", "letter", "hammer", "umbrella", "violin", "bottle", "blanket")


def make(rng: random.Random, windows: int, difficulty: int) -> tuple[list[Statement], list[Question]]:
    """
    As many people as `difficulty`, and half as many things. Every second thing is still carried at the end; the others
    were left where its bearer then went on from.
    """
    things = rng.sample(THINGS, difficulty // 2)
    statements, questions = [], []
    for number, (person, time) in enumerate(
        zip(rng.sample(PEOPLE, difficulty), spread(rng, difficulty, windows), strict=True)
    ):
        thing = things[number] if number < len(things) else None
        times = [*sorted(rng.uniform(0, time) for _ in range(rng.randrange(3))), time]
        if left := thing is not None and number % 2 == 1:
            times.append(rng.uniform(time, windows))
        moves, place = [], None
        for when in times:
            place = rng.choice([other for other in PLACES if other != place])
            moves.append((f" {place}", Statement(when, f"{person} went to the {place}.")))
        statements += [statement for _, statement in moves]
        questions.append(_where(person, moves))
        if thing is not None:
            taken = Statement(rng.uniform(0, time if left else windows), f"{person} picked up the {thing}.")
            statements.append(taken)
            # It is there from then on, and leaving it changes nothing but where its bearer's next move takes it
            questions.append(_where(f"the {thing}", moves[:-1] if left else moves, taken))
        if left:
            statements.append(Statement(rng.uniform(time, times[-1]), f"{person} left the {thing} there."))
    return statements, questions


def _where(who, moves, *others):
    cue = question(f"Where is {who} at the end?", f"{who[0].upper()}{who[1:]} is in the")
    return Question.of_latest(cue, moves, len(PLACES), *others)


STORY = Task(make, frozenset({*PEOPLE, *PLACES, *THINGS}))
