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

"""The live tokens of a session: what scrolls off, and what is protected."""

from collections.abc import Iterable
from typing import NamedTuple

from ...common.arguments import whole_number
from ...common.tokens import Characters


class LiveToken(NamedTuple):
    """A token that the generator reads verbatim, and where it stands in the stream."""

    token_id: int
    position: int
    protected: bool


class LiveWindow:
    """The live tokens of a session, in the order of the stream; at most `protectable` of them may be protected."""

    def __init__(self, protectable: int, tokens: Iterable[LiveToken] = ()):
        self.protectable = protectable
        self.tokens = list(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    def append(self, token_ids: list[int], position: int, protected: bool):
        for offset, token_id in enumerate(token_ids):
            self.tokens.append(LiveToken(token_id, position + offset, protected))

    def check_protectable(self, more: int):
        """Raises `ValueError` if so many more tokens cannot be protected."""
        protected = sum(token.protected for token in self.tokens)
        if protected + more > self.protectable:
            raise ValueError(
                f"The window leaves {self.protectable} tokens for protected text beside the template, the gists and "
                f"`last_k`; {protected} are protected, and {more} more do not fit. Unprotect some, protect less, or open "
                "a session with a larger `window`."
            )

    def mark(self, start: int, stop: int, protected: bool):
        """
        Protects a span of the stream, or not.

        Raises:
            ValueError: if it is empty, not all of it is live, or it cannot be protected as well.
        """
        start, stop = whole_number("start", start, least=0), whole_number("stop", stop, least=0)
        live = {token.position for token in self.tokens}
        missing = [position for position in range(start, stop) if position not in live]
        if missing or start >= stop:
            raise ValueError(
                f"`start` ({start}) and `stop` ({stop}) must be a span of the stream that is live: "
                f"{f'position {missing[0]} is not' if missing else 'this one is empty'}."
            )
        if protected:
            self.check_protectable(
                sum(start <= token.position < stop and not token.protected for token in self.tokens)
            )
        self.tokens = [
            token._replace(protected=protected) if start <= token.position < stop else token for token in self.tokens
        ]

    def oldest(self, most: int, last_k: int, characters: Characters) -> tuple[list[LiveToken], list[LiveToken]]:
        """
        The chunk to fold, the oldest unprotected tokens, at most `most`, and the `last_k` unprotected tokens after it, or
        some fewer, so that both end with a whole character.

        Raises:
            ValueError: if no more than `last_k` are there.
        """
        free = [token for token in self.tokens if not token.protected]
        length = min(len(free) - last_k, most)
        if length < 1:
            raise ValueError(
                f"There is nothing to compact: {len(free)} unprotected tokens are live, and `last_k` ({last_k}) of them "
                "stay. Append more first."
            )
        ids = [token.token_id for token in free]
        # The window may have room for a part of the first character alone
        end = characters.cut(ids, length) or min(characters.next_cut(ids, length), most)
        return free[:end], free[end : max(end, characters.cut(ids, end + last_k))]

    def having(self, tokens: list[LiveToken]) -> "LiveWindow":
        return LiveWindow(self.protectable, sorted([*self.tokens, *tokens], key=lambda token: token.position))

    def without(self, spans: list[tuple[int, int]]) -> "LiveWindow":
        folded = {position for span in spans for position in range(*span)}
        return LiveWindow(self.protectable, (token for token in self.tokens if token.position not in folded))


def spans_of(tokens: list[LiveToken]) -> list[tuple[int, int]]:
    """Their positions in the stream as `(first, one past the last)`."""
    spans = []
    for token in tokens:
        if spans and spans[-1][1] == token.position:
            spans[-1] = (spans[-1][0], token.position + 1)
        else:
            spans.append((token.position, token.position + 1))
    return spans
