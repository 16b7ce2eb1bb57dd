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

"""A dialogue with preferences: what the user and others like best, some of which change; the latest counts."""

import random

from .base import Question, Statement, Task, last_said


FAVOURITES = {
    "drink": ("tea", "coffee", "milk", "water", "juice", "wine", "beer", "cocoa"),
    "colour": ("red", "blue", "green", "yellow", "white", "black", "brown", "purple"),
    "fruit": ("apple", "pear", "peach", "grape", "lemon", "melon", "cherry", "mango"),
    "sport": ("tennis", "golf", "boxing", "rowing", "hockey", "swimming", "cycling", "football"),
}
_REPLIES = ("I see.", "Is that so?", "That is good to know.", "Go on.")
WHOSE = ("", "sister's ", "brother's ", "mother's ", "father's ", "uncle's ")


def make(rng: random.Random, windows: int, difficulty: int) -> tuple[list[Statement], list[Question]]:
    """As many preferences as `difficulty`; every second one was another before."""
    asked = rng.sample([(whose, what) for whose in WHOSE for what in FAVOURITES], difficulty)
    statements, questions = [], []
    for (whose, what), said in last_said(rng, windows, asked, lambda each: FAVOURITES[each[1]], _said):
        statements += [statement for _, statement in said]
        cue = f"\nUser: What is my {whose}favourite {what} now?\nAssistant: Your {whose}favourite {what} is"
        questions.append(Question.of_latest(cue, said, len(FAVOURITES[what])))
    return statements, questions


def _said(asked, best):
    whose, what = asked
    return f"User: My {whose}favourite {what} is {best}.\nAssistant: I will keep that in mind."


def _turns(sentence, number):
    return f"User: {sentence}\nAssistant: {_REPLIES[number % len(_REPLIES)]}"


DIALOGUE = Task(make, frozenset({"favourite", *(each for best in FAVOURITES.values() for each in best)}), "\n", _turns)
