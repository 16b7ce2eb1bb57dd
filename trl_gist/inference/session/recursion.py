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

"""How the gists of a stream are kept within a bound as chunk after chunk scrolls off: `rolling`, `chain` and `tree`."""

from collections.abc import Callable
from dataclasses import dataclass


# Asks S for one gist of the token ids of gists, in the order of the stream, and of the chunk after them, if any
Write = Callable[[list[list[int]], list[int]], list[int]]
Fits = Callable[[list["StoredGist"]], bool]


@dataclass(frozen=True)
class StoredGist:
    """
    A gist that a session keeps.

    Attributes:
        token_ids (`list[int]`):
            Without special tokens.
        level (`int`):
            0 for a gist of text; for a gist of two gists, 1 more than the higher of the two.
        tokens (`int`):
            Tokens of the stream that it stands for.
    """

    token_ids: list[int]
    level: int
    tokens: int


def rolling(gists: list[StoredGist], chunk_ids: list[int], write: Write, fits: Fits) -> list[StoredGist]:
    """One gist: S's of the previous gist followed by the chunk. It always fits: it is as long as one gist may be."""
    return [
        StoredGist(
            write([gist.token_ids for gist in gists], chunk_ids),
            level=0,
            tokens=sum(gist.tokens for gist in gists) + len(chunk_ids),
        )
    ]


def chain(gists: list[StoredGist], chunk_ids: list[int], write: Write, fits: Fits) -> list[StoredGist]:
    """
    A gist for each chunk, S's of the chunk alone, oldest first. While they do not fit, the two oldest become S's gist of
    the two: nothing is dropped, and what is oldest has been gisted most often.
    """
    return _merge_oldest([*gists, StoredGist(write([], chunk_ids), 0, len(chunk_ids))], write, fits)


def tree(gists: list[StoredGist], chunk_ids: list[int], write: Write, fits: Fits) -> list[StoredGist]:
    """
    As a binary counter: each chunk adds a gist of level 0, S's of the chunk alone, and while the newest two are of one
    level they become S's gist of the two, one level up. So n chunks leave as many gists as n has ones in binary, and
    no chunk has been gisted more than log2(n) + 1 times. While they do not fit, the two oldest, of whatever levels,
    become one.
    """
    gists = [*gists, StoredGist(write([], chunk_ids), 0, len(chunk_ids))]
    while len(gists) > 1 and gists[-1].level == gists[-2].level:
        gists = [*gists[:-2], _merge(gists[-2], gists[-1], write)]
    return _merge_oldest(gists, write, fits)


RECURSIONS = {"rolling": rolling, "chain": chain, "tree": tree}


def _merge_oldest(gists, write, fits):
    while not fits(gists):
        gists = [_merge(gists[0], gists[1], write), *gists[2:]]
    return gists


def _merge(older, newer, write):
    level = max(older.level, newer.level) + 1
    return StoredGist(write([older.token_ids, newer.token_ids], []), level, older.tokens + newer.tokens)
