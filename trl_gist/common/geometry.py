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

"""How a document is laid out in the windows of a walk: lengths in tokens, and the separator between gists."""

from bisect import bisect_right
from dataclasses import dataclass


# Between two gists, or a gist and the text that follows it: neither goes on where the other ends
SEPARATOR = "\n"


@dataclass(frozen=True)
class Geometry:
    """
    How a `rolling` session folds a text, in tokens; windows count from 0.

    Attributes:
        context_length (`int`):
            What S reads at most: the longest previous gist, a chunk and L.
        chunk_length (`int`):
            What a gist takes in.
        last_k, target_length (`int`):
            L and the target, which follow a chunk, and with which the next chunk begins.
    """

    context_length: int
    chunk_length: int
    last_k: int
    target_length: int

    def before(self, window: int) -> int:
        """Tokens of the text before the window's target."""
        return (window + 1) * self.chunk_length + self.last_k

    def length(self, windows: int) -> int:
        """Tokens that so many windows take. The last target may reach beyond a next chunk."""
        return self.before(windows - 1) + self.target_length

    def windows(self, length: int) -> int:
        """Windows that a document of so many tokens has."""
        return max(0, (length - self.last_k - self.target_length) // self.chunk_length)


class WindowedText:
    """
    A document's token ids in the windows of a walk, all of them cut between characters. No part has more tokens than the
    geometry says, and a few fewer where a character would be cut; none is empty but for want of text.

    Args:
        ids (`list[int]`):
            The document.
        geometry ([`Geometry`]):
            How it is cut.
        characters ([`~common.tokens.Characters`]):
            Of its tokenizer.
    """

    def __init__(self, ids: list[int], geometry: Geometry, characters):
        self.ids, self.geometry, self.characters = ids, geometry, characters
        self._chunks = [0]  # where each begins, as far as they have been asked for

    def chunk(self, window: int) -> list[int]:
        return self.ids[self.chunk_start(window) : self.chunk_start(window + 1)]

    def last(self, window: int, count: int | None = None) -> list[int]:
        """The last tokens before the target: L, or as many as asked for, if there are."""
        before, start = self.before(window), self.chunk_start(window + 1)
        if count is not None:
            start = min(before, self.characters.next_cut(self.ids, max(0, before - count)))
        return self.ids[start:before]

    def target(self, window: int) -> list[int]:
        return self.ids[self.before(window) : self.end(window)]

    def chunk_start(self, window: int) -> int:
        """Where a window's chunk begins; the chunk before it ends there."""
        while len(self._chunks) <= window:
            self._chunks.append(self._after(self._chunks[-1], self.geometry.chunk_length))
        return self._chunks[window]

    def window_of(self, place: int) -> int:
        """In whose chunk a token is."""
        while self._chunks[-1] <= place:
            self.chunk_start(len(self._chunks))
        return bisect_right(self._chunks, place) - 1

    def before(self, window: int) -> int:
        """Tokens before the window's target."""
        stop = self.chunk_start(window + 1)
        return max(stop, self.characters.cut(self.ids, stop + self.geometry.last_k))

    def end(self, window: int) -> int:
        """Where its target ends."""
        return self._after(self.before(window), self.geometry.target_length)

    def _after(self, start, length):
        place = self.characters.cut(self.ids, start + length)
        return place if place > start else start + length  # one character, of more tokens


def rolling_chunk_length(context_length: int, last_k: int, gist_length: int, separator_length: int) -> int:
    """Tokens of a chunk with which S reads its longest previous gist, and L, in one context; below 1 if none fits."""
    return context_length - last_k - gist_length - separator_length


def join(parts: list[list[int]], separator_ids: list[int]) -> list[int]:
    """Token ids one after the other, with the separator's between those that are not empty."""
    joined = []
    for part in parts:
        joined += [*separator_ids, *part] if joined and part else part
    return joined
