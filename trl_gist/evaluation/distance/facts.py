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
Facts by age: the numbers and names of a long text, where each was said last, and whether its gists still have it.

Numbers and names are those of [`patterns`], told in the whole text at once and compared without regard to case. Each
is a fact by itself; in [`inference.facts`], where a session says what it lost, a name of two words is one.
"""

from bisect import bisect_left, bisect_right

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...common.geometry import WindowedText
from ...common.statistics import mean_and_error
from ...common.text_units import Units
from ...common.tokens import Spelled


FACT_KINDS = ("number", "name")


class FactIndex:
    """
    The facts of a document, by window.

    Args:
        document ([`~common.geometry.WindowedText`]):
            The document.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            For its text.
    """

    def __init__(self, document: WindowedText, tokenizer: PreTrainedTokenizerBase):
        self.document = document
        spelled = Spelled(tokenizer, document.ids)
        units, ends = Units(spelled.text), spelled.ends
        self.facts, self.last_said = [], []
        said = {}
        for word, kind, (start, stop) in zip(units.folded, units.kinds, units.spans, strict=True):
            if kind in FACT_KINDS:
                first = bisect_right(ends, start)
                self.facts.append((first, bisect_left(ends, stop), word, kind))
                self.last_said.append(said.get(word))
                said[word] = first

    def of_chunk(self, window: int) -> list[str]:
        """The different facts that begin in the window's chunk."""
        start, stop = self.document.chunk_start(window), self.document.chunk_start(window + 1)
        return sorted({word for first, _, word, _ in self.facts if start <= first < stop})

    def of_target(self, window: int) -> list[dict]:
        """
        The facts of the target that G cannot copy from L or from the target itself.

        Returns:
            `list[dict]`: `fact`, its `kind`, the tokens of the target `[first, last]` that spell it, and its `age`:
            how many windows ago it was said last, 0 for this window's chunk, `None` if it was never said.
        """
        seen, start, end = (
            self.document.chunk_start(window + 1),
            self.document.before(window),
            self.document.end(window),
        )
        found = []
        for (first, last, word, kind), said in zip(self.facts, self.last_said, strict=True):
            inside = start <= first and last < end
            if inside and (said is None or said < seen):
                age = None if said is None else window - self.document.window_of(said)
                found.append({"fact": word, "kind": kind, "tokens": [first - start, last - start], "age": age})
        return found


def facts_by_age(rows: list[dict], writers: list[str], ages: list[tuple[int, int]]) -> dict:
    """
    The share of facts that the newest gist still has, by how many windows ago they were said.

    Args:
        rows (`list[dict]`):
            Of [`DistanceReadings.walk`].
        writers (`list[str]`):
            Whose gists.
        ages (`list[tuple[int, int]]`):
            Stretches of ages, first and last.

    Returns:
        `dict`: `ages`, and for `since_first` (facts by the window that said them first, however often they came again)
        and `since_last` (by the last that said them) for each writer `share`, `share_se` (over documents) and `of`,
        how many facts were looked for, a figure for each stretch of ages.
    """
    looked_up = {writer: {"since_first": [], "since_last": []} for writer in writers}
    said_first, said_last = {}, {}
    for row in sorted(rows, key=lambda row: row["window"]):  # a document's rows in their order
        document, window = str(row["document_id"]), row["window"]
        first, last = said_first.setdefault(document, {}), said_last.setdefault(document, {})
        for fact in row["facts"]:
            first.setdefault(fact, window)
            last[fact] = window
        for writer in writers:
            held = set(Units(row["gists"][writer]).folded)
            for name, said in (("since_first", first), ("since_last", last)):
                looked_up[writer][name] += [(document, window - since, fact in held) for fact, since in said.items()]
    result = {"ages": [list(stretch) for stretch in ages], "since_first": {}, "since_last": {}}
    for writer in writers:
        for name, found in looked_up[writer].items():
            result[name][writer] = by_stretch(found, ages, "share")
    return result


def fact_gains_by_age(rows: list[dict], arms: dict[str, str], ages: list[tuple[int, int]]) -> dict:
    """
    What an arm gains over its sliding window, in nats per token, on the tokens of facts that come again in the target.

    Args:
        rows (`list[dict]`):
            Of [`DistanceReadings.walk`].
        arms (`dict[str, str]`):
            Arms, each with the one that it is held against.
        ages (`list[tuple[int, int]]`):
            Stretches of ages since the fact was said last, first and last.

    Returns:
        `dict`: For each arm `gain`, `gain_se` (over documents) and `of`, how many facts, a figure for each stretch of
        ages; and under `new` the same for facts that were never said before, which no memory can help with.
    """
    result = {}
    for arm, control in arms.items():
        found = []
        for row in rows:
            if arm not in row["log_probs"]:
                continue
            gains = np.array(row["log_probs"][arm]) - np.array(row["log_probs"][control])
            for fact in row["target_facts"]:
                first, last = fact["tokens"]
                found.append((str(row["document_id"]), fact["age"], float(gains[first : last + 1].mean())))
        aged = [entry for entry in found if entry[1] is not None]
        new = [(document, 0, gain) for document, age, gain in found if age is None]
        result[arm] = {**by_stretch(aged, ages, "gain"), "new": by_stretch(new, [(0, 0)], "gain")}
    return result


def by_stretch(found: list[tuple[str, int, float]], ages: list[tuple[int, int]], name: str) -> dict[str, list]:
    """Of values with their document and age, for each stretch of ages the mean, its error over documents, and `of`, how
    many there are."""
    columns = {name: [], f"{name}_se": [], "of": []}
    for first, last in ages:
        chosen = [(document, value) for document, age, value in found if first <= age <= last]
        mean, error = mean_and_error([value for _, value in chosen], [document for document, _ in chosen])
        for column, figure in ((name, mean), (f"{name}_se", error), ("of", len(chosen))):
            columns[column].append(figure)
    return columns
