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

"""How the gists of a stream are kept within a bound as chunk after chunk scrolls off: `rolling` and `chain`."""

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
        tokens (`int`):
            Tokens of the stream that it stands for.
    """

    token_ids: list[int]
    tokens: int


def stored_gists(states: list[dict]) -> list[StoredGist]:
    """Of a saved session; older ones have levels too."""
    return [StoredGist(state["token_ids"], state["tokens"]) for state in states]


def rolling(gists: list[StoredGist], chunk_ids: list[int], write: Write, fits: Fits) -> list[StoredGist]:
    """One gist: S's of the previous gist followed by the chunk. It always fits: it is as long as one gist may be."""
    return [
        StoredGist(
            write([gist.token_ids for gist in gists], chunk_ids),
            tokens=sum(gist.tokens for gist in gists) + len(chunk_ids),
        )
    ]


def chain(gists: list[StoredGist], chunk_ids: list[int], write: Write, fits: Fits) -> list[StoredGist]:
    """
    A gist for each chunk, S's of the chunk alone, oldest first, which stays as it is as long as all fit. While they do not,
    the two oldest become S's gist of the two: nothing is dropped, and what is oldest has been gisted most often.
    """
    gists = [*gists, StoredGist(write([], chunk_ids), len(chunk_ids))]
    while not fits(gists):
        older, newer, *rest = gists
        gists = [StoredGist(write([older.token_ids, newer.token_ids], []), older.tokens + newer.tokens), *rest]
    return gists


RECURSIONS = {"rolling": rolling, "chain": chain}
