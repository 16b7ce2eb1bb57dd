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
Variable tracking, as in RULER ([Hsieh et al., 2024](https://huggingface.co/papers/2404.06654)): a number is given to a
variable, which is given to the next, along chains that cross windows. The last variable of each chain is asked for, and
its number was said in the chain's first line alone.
"""

import itertools
import random

from .base import Question, Statement, Task, question, spread


NAMES = tuple(map("".join, itertools.permutations("BCDFGHJKLMNPQRSTVWXZ", 2)))
NUMBERS = tuple(map(str, range(10, 100)))


def make(rng: random.Random, windows: int, difficulty: int) -> tuple[list[Statement], list[Question]]:
    """As many chains as `difficulty`, each of one step, and one step more for every 4 chains."""
    steps = 1 + difficulty // 4
    names = iter(rng.sample(NAMES, difficulty * (steps + 1)))
    statements, questions = [], []
    for time in spread(rng, difficulty, windows):
        number, name = rng.choice(NUMBERS), next(names)
        fact = Statement(time, f"Let {name} = {number}.")
        chain = [fact]
        for later in sorted(rng.uniform(time, windows) for _ in range(steps)):
            before, name = name, next(names)
            chain.append(Statement(later, f"Let {name} = {before}."))
        statements += chain
        cue = question(f"What number is {name}?", f"{name} =")
        questions.append(Question(cue, f" {number}", fact, len(NUMBERS), tuple(chain[1:])))
    return statements, questions


VARIABLES = Task(make, frozenset({*NAMES, *NUMBERS}), "\n", lambda sentence, _: f"Note: {sentence}")
