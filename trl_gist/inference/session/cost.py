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
What compactions cost: measured on the tokens that came next ([`CostMeter`]), or expected at once ([`expected_cost`]), along
continuations that a reader of the whole window draws.
"""

import dataclasses
from collections.abc import Iterable

import torch

from ...common.geometry import SEPARATOR, join
from ...models.positions import max_positions
from ...scoring.targets import TargetRows, TargetScorer
from ..certify import expected_kl, full_context_reader, longest_certified
from ..pair import LoadedPair


@dataclasses.dataclass
class PendingCost:
    """
    A compaction whose cost waits for the tokens that come next.

    Attributes:
        index (`int`):
            Of the compaction.
        prompts (`list[list[int]]`):
            What G read before and after it.
        next_ids (`list[int]`):
            What came next, as far as it is there.
    """

    index: int
    prompts: list[list[int]]
    next_ids: list[int]


class CostMeter:
    """
    Measures what compactions cost; see [`~inference.session.state.Compaction`].

    It keeps two prompts of each compaction until the `target_length` tokens that come next are there.
    """

    def __init__(self, loaded: LoadedPair, pending: Iterable[dict] = ()):
        self.loaded = loaded
        self.pending = [PendingCost(**values) for values in pending]

    def watch(self, index: int, before: list[int], after: list[int]):
        self.pending.append(PendingCost(index, [before, after], []))

    def forget(self, index: int):
        """A compaction that did not take place."""
        self.pending = [pending for pending in self.pending if pending.index != index]

    def add(self, token_ids: list[int]):
        """Tokens that came next in the stream."""
        for pending in self.pending:
            pending.next_ids += token_ids[: self._length - len(pending.next_ids)]

    def due(self) -> list[tuple[int, float | None]]:
        """The compactions whose tokens are there, and their costs in nats per token; each is given once."""
        due = [pending for pending in self.pending if len(pending.next_ids) == self._length]
        self.pending = [pending for pending in self.pending if len(pending.next_ids) < self._length]
        return [(pending.index, self._cost(pending)) for pending in due]

    @property
    def state(self) -> list[dict]:
        """For `pending` of another meter."""
        return [dataclasses.asdict(pending) for pending in self.pending]

    @property
    def _length(self):
        return self.loaded.pair.target_length

    def _cost(self, pending):
        generator, next_ids = self.loaded.generator, pending.next_ids
        positions = max_positions(generator)
        if positions is not None and max(map(len, pending.prompts)) + len(next_ids) > positions:
            return None
        rows = TargetRows.build(pending.prompts, [next_ids] * 2, 1, generator.device)
        with self.loaded.lock, torch.no_grad():
            logps_NT = TargetScorer(generator)(rows)[0]
        before, after = logps_NT.double().mean(-1).tolist()
        return before - after


def expected_cost(
    loaded: LoadedPair, gist_ids: list[int], live_ids: list[int], compacted: list[int]
) -> dict[str, float | str | None]:
    """
    What is expected of a compaction, as of [`~inference.certify.expected_kls`].

    Args:
        loaded ([`~inference.pair.LoadedPair`]):
            The pair.
        gist_ids, live_ids (`list[int]`):
            What G read before: gists and live tokens. The teacher reads them as one text; where it is not in memory, G reads
            them as it did.
        compacted (`list[int]`):
            The prompt that G reads since.

    Returns:
        `dict`: `expected_kl`, `expected_kl_se` and `expected_kl_reader`; nothing if what was read, and a continuation, do not
        fit the positions of both.
    """
    reader = full_context_reader(loaded)
    if reader.name == "teacher":
        whole = reader.prompt(join([gist_ids, live_ids], list(loaded.prompts.tokenize(SEPARATOR))), [])
    else:
        whole = loaded.prompts.generator(gist_ids, live_ids)
    if max(len(whole), len(compacted)) > longest_certified(loaded):
        return {}
    return expected_kl(loaded, reader, whole, compacted)
