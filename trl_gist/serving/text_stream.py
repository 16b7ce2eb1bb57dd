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

"""Tokens as text as they come, whole characters only, up to a stop string."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..common.tokens import characters_of


class StopReached(Exception):
    """A stop string is complete: there is nothing more to generate."""


class TextStream(BaseStreamer):
    """
    Tokens to text, as they come: whole characters alone, nothing of a stop string, and in all exactly what
    [`~common.tokens.decode`] makes of all tokens together, up to the first stop string.

    A token's text may depend on those before it, so that it is the difference that the token makes to the text of the
    last few. Text that may be the start of a stop string is held back until it is known.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes.
        emit (`Callable[[str], None]`):
            Gets each piece of text, never an empty one.
        stops (`list[str]`):
            Strings before which the text ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, emit: Callable[[str], None], stops: list[str]):
        self.tokenizer = tokenizer
        self.emit = emit
        self.stops = stops
        self.token_ids: list[int] = []
        self.held = ""
        self.characters = characters_of(tokenizer)
        self.open: list[int] = []  # the beginning of a character
        self.whole: list[int] = []  # what has a text, of all before it
        self.start, self.done = 0, 0  # of these, [start, done) are in the text and decoded again beside new ones

    def put(self, value):
        for token in value.flatten().tolist():
            self.add(token)

    def add(self, token: int):
        """Raises `StopReached` once there is a stop string."""
        self.token_ids.append(token)
        self.open.append(token)
        known = len(self.open) - self.characters.unfinished(self.open)
        self.whole += self.characters.whole(self.open[:known])
        self.open = self.open[known:]
        before, after = self._decode(self.start, self.done), self._decode(self.start, None)
        # A decoder that shows none of its bytes may still be waiting for the last of a character
        if len(after) > len(before) and not after.endswith("�"):
            self.start, self.done = self.done, len(self.whole)
            self._add_text(after[len(before) :])

    def finish(self):
        """Emits what was held back, after the last token; may raise `StopReached`, as [`~TextStream.add`]."""
        self._add_text(self._decode(self.start, None)[len(self._decode(self.start, self.done)) :])
        self._emit(self.held)
        self.held = ""

    def end(self):
        pass

    def _add_text(self, text):
        self.held += text
        found = [self.held.find(stop) for stop in self.stops if stop in self.held]
        if found:
            self._emit(self.held[: min(found)])
            self.held = ""
            raise StopReached
        unsure = max((_overlap(self.held, stop) for stop in self.stops), default=0)
        split = len(self.held) - unsure
        self._emit(self.held[:split])
        self.held = self.held[split:]

    def _emit(self, text):
        if text:
            self.emit(text)

    def _decode(self, start, stop):
        return self.characters.text(self.whole[start:stop])


def _overlap(text, stop):
    """How many characters at the end of a text are the start of a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
