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

"""A ledger: lockers and what they hold. Of a locker with several entries the latest counts."""

import random

from .base import Question, Statement, Task, last_said, question


LOCKERS = (
    *("Alder", "Birch", "Cedar", "Maple", "Willow", "Aspen", "Hazel", "Poplar", "Juniper", "Laurel"),
    *("Myrtle", "Acacia", "Cypress", "Linden", "Spruce", "Walnut", "Olive", "Ebony", "Hickory", "Magnolia"),
)
GOODS = (
    *("copper", "silver", "cotton", "sugar", "salt", "glass", "paper", "leather"),
    *("honey", "iron", "coal", "wool", "silk", "rice", "corn", "rubber"),
)


def make(rng: random.Random, windows: int, difficulty: int) -> tuple[list[Statement], list[Question]]:
    """As many lockers as `difficulty`; every second one has an earlier entry, which counts no more."""
    statements, questions = [], []
    for locker, entries in last_said(rng, windows, rng.sample(LOCKERS, difficulty), lambda _: GOODS, _entry):
        statements += [statement for _, statement in entries]
        cue = question(f"What does locker {locker} hold at the end?", f"Locker {locker} holds")
        questions.append(Question.of_latest(cue, entries, len(GOODS)))
    return statements, questions


def _entry(locker, goods):
    return f"Entry: locker {locker} holds {goods}."


LEDGER = Task(make, frozenset({*LOCKERS, *GOODS, "locker"}), "\n", lambda sentence, _: f"Note: {sentence}")
