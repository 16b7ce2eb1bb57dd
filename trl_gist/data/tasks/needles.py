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

"""Needles in prose: cities, each with a secret animal, said once."""

import random

from .base import Question, Statement, Task, question, spread


CITIES = (
    *("Lisbon", "Vienna", "Oslo", "Madrid", "Athens", "Dublin", "Warsaw", "Prague", "Cairo", "Tokyo", "Delhi", "Lima"),
    *("Toronto", "Sydney", "Boston", "Chicago", "Milan", "Geneva", "Berlin", "Havana"),
)
ANIMALS = (
    *("tiger", "eagle", "horse", "rabbit", "wolf", "bear", "lion", "snake"),
    *("goat", "monkey", "elephant", "turtle", "whale", "shark", "spider", "fox"),
)


def make(rng: random.Random, windows: int, difficulty: int) -> tuple[list[Statement], list[Question]]:
    """As many needles as `difficulty`."""
    statements, questions = [], []
    for city, time in zip(rng.sample(CITIES, difficulty), spread(rng, difficulty, windows), strict=True):
        animal = rng.choice(ANIMALS)
        statements.append(Statement(time, f"The secret animal of {city} is the {animal}."))
        cue = question(f"What is the secret animal of {city}?", f"The secret animal of {city} is the")
        questions.append(Question(cue, f" {animal}", statements[-1], len(ANIMALS)))
    return statements, questions


NEEDLES = Task(make, frozenset({*CITIES, *ANIMALS}))
