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
A text of any length, encoded piece by piece: of a whole book a tokenizer takes some 180 bytes of memory a byte. What becomes
of control tokens, and where windows are cut, is not said here.
"""

import codecs
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate


PIECE = 1 << 16  # characters that are tokenised together
# Characters that two pieces share, and tokens that must be the same in both on either side of the seam
_SHARED, _AGREEING = 1 << 11, 8

Piece = tuple[list[int], list[int] | None]


class LongText:
    """
    A text of which only slices become a `str`, one after the other: one emoji makes Python's take four bytes a letter.

    Args:
        content (`memoryview`):
            In UTF-8.
        length (`int`):
            Its characters.
    """

    def __init__(self, content: memoryview, length: int):
        self._content, self._length = content, length
        self._place = self._byte = 0  # where the last slice began, in characters and in bytes

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> str:
        """Of a slice with both its ends, the text; quick if it begins where the last one did, or after that."""
        if part.start < self._place:
            self._place = self._byte = 0
        self._byte += len(self._read(part.start - self._place).encode())
        self._place = part.start
        return self._read(part.stop - part.start)

    def _read(self, count):
        content = bytes(self._content[self._byte : self._byte + 4 * count])
        return codecs.getincrementaldecoder("utf-8")().decode(content)[:count]


def encode_pieces(
    encode: Callable[[str], tuple[list[int], list[int]]], text: str | LongText, piece: int = PIECE
) -> Iterator[Piece]:
    """
    The ids of a text, and at which of its characters each begins.

    Pieces overlap, and are joined where both encode the text around the seam alike, so that the ids are those of the whole
    text; a piece grows where they nowhere do, as in a long run of one sign. A tokenizer that looks farther than some
    tokens around a character could differ from that; none is known to.

    Args:
        encode (`Callable`):
            From a text to its ids and the character where each begins.
        text (`str` or [`LongText`]):
            Valid text.
        piece (`int`, *optional*, defaults to 65,536):
            Characters that are encoded together, at least.

    Yields:
        Ids and their characters.
    """

    def encoded(begin, stop):
        ids, starts = encode(text[begin:stop])
        # They never go back, but where a normalizer has exchanged signs
        return ids, list(accumulate((begin + start for start in starts), max))

    begin, stop = 0, min(piece, len(text))  # of the piece; the first of its tokens that are not handed out yet
    ids, starts = encoded(begin, stop)
    first = starts[0] if starts else 0
    while stop < len(text):
        next_begin = max(begin, stop - min(_SHARED, piece // 4))
        next_stop = min(len(text), next_begin + piece)
        next_ids, next_starts = encoded(next_begin, next_stop)
        seam = _seam(ids, starts, next_ids, next_starts)
        if seam is None:
            stop = min(len(text), stop + (stop - begin))
            ids, starts = encoded(begin, stop)
            done = bisect_left(starts, first)
        else:
            yield ids[: seam[0]], starts[: seam[0]]
            begin, stop, ids, starts, done = next_begin, next_stop, next_ids, next_starts, seam[1]
            first = starts[done]
        del ids[:done], starts[:done]
    yield ids, starts


def _seam(ids, starts, next_ids, next_starts):
    """The last place where the same tokens begin in both, after as many that are the same; `None` if there is none."""
    places = {}
    for index, start in enumerate(next_starts):
        places.setdefault(start, index)
    for here in range(len(ids) - _AGREEING, _AGREEING - 1, -1):
        if starts[here] < next_starts[0]:
            return None
        there = places.get(starts[here], 0)
        if there < _AGREEING or starts[here - 1] == starts[here]:
            continue
        around, around_next = (slice(index - _AGREEING, index + _AGREEING) for index in (here, there))
        if ids[around] == next_ids[around_next] and starts[around] == next_starts[around_next]:
            return here, there
    return None
