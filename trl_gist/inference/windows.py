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

"""How a text of any length becomes contexts for the summarizer: each token in one gist, each span whole."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ..common.tokens import Characters, characters_of
from ..pair import PairConfig
from .keep import Request, Span, SpanReader, find_spans
from .pair import LoadedPair


class Window(NamedTuple):
    """
    What a gist is asked of.

    Attributes:
        context_ids (`list[int]`):
            X, which ends with L where L follows what the gist stands for.
        last_k_ids (`list[int]`):
            L.
        spans (`list[Span]`):
            What the gist must have.
    """

    context_ids: list[int]
    last_k_ids: list[int]
    spans: list[Span]


def windows_of(
    loaded: LoadedPair, text: str | list[int], last_k_ids: list[int] | None = None, keep: list[Request] | None = None
) -> Iterator[Window]:
    """
    The windows of a text, one after the other, as soon as it is tokenised so far.

    Each gist stands for a stretch of the text, and each token is in one such stretch. As in a session, and in training, X
    is the stretch and the `last_k` tokens that follow it, which are L and with which the next stretch begins; the last
    stretch is followed by nothing, so that its L is empty and its gist stands for all of it. No stretch ends within a
    character; nor, unless it would be empty, within a span that is to be kept.

    Args:
        loaded ([`~inference.pair.LoadedPair`]):
            The pair.
        text (`str` or `list[int]`):
            Text, or token ids; where these are not what their own text is tokenised to, no cut is moved before a span.
        last_k_ids (`list[int]`, *optional*):
            What is read beside each gist in place of what follows, as a question: then X is the stretch alone.
        keep (`list[Request]`, *optional*):
            Of [`~inference.keep.parse_keep`].

    Raises:
        ValueError: at once if the text is none; with the first window if it is empty.
    """
    if keep and not isinstance(text, str):
        ids = loaded.token_ids(text, "The text")
        decoded = loaded.decode(ids)
        text = decoded if loaded.token_ids(decoded, "The text", may_be_empty=True) == ids else ids
    return _windows(loaded, text, loaded.token_pieces(text, "The text"), last_k_ids, keep or [])


def stretch_length(pair: PairConfig) -> int:
    """The most tokens that a gist stands for where others follow: what leaves room for `last_k` of them."""
    return pair.context_length - min(pair.last_k, pair.context_length // 2)


def most_windows(pair: PairConfig, tokens: int) -> int:
    """Windows of a text of so many tokens, where no cut is moved."""
    return min(tokens, 1) + -(-max(0, tokens - pair.context_length) // stretch_length(pair))


def _windows(loaded, text, pieces, last_k_ids, keep):
    length, characters = loaded.pair.context_length, characters_of(loaded.tokenizer)
    following = length - stretch_length(loaded.pair) if last_k_ids is None else 0
    reader, position = None, 0
    ids, starts, done = [], [], 0  # what begins at `done` is of no window yet
    for more_ids, more_starts in pieces:
        if keep and more_starts is not None:
            reader = reader or SpanReader(text, keep)
        ids = [*ids[done:], *more_ids]
        starts = [*starts[done:], *(more_starts or [])]
        done = 0
        while len(ids) - done > length:
            cut = _cut(characters, ids, starts, done, length - following, reader)
            stop = max(cut, characters.cut(ids, cut + following))
            spans, position = _spans(loaded, reader, keep, ids[done:cut], starts[cut] if starts else position)
            yield Window(ids[done:stop], ids[cut:stop] if last_k_ids is None else last_k_ids, spans)
            done = cut
    if not ids:
        raise ValueError("The text is empty.")
    spans, _ = _spans(loaded, reader, keep, ids[done:], None if reader else position)
    yield Window(ids[done:], [] if last_k_ids is None else last_k_ids, spans)


def _cut(characters: Characters, ids, starts, first, most, reader):
    """Where the stretch ends: `most` tokens on, or before, so that it ends between characters and between spans."""
    cut, second = characters.cut(ids, first + most), characters.next_cut(ids, first + 1)
    if cut < second:  # one character, of more tokens than a window
        return first + most
    while reader and (at := reader.cut(starts[second], starts[cut])) < starts[cut]:
        cut = characters.cut(ids, bisect_right(starts, at) - 1)
    return cut


def _spans(loaded, reader, keep, ids, stop):
    """Those of a stretch, and where in the text the next one begins."""
    if reader:
        return reader.take(stop), stop
    if not keep:
        return [], stop
    text = loaded.decode(ids)
    spans = [span.moved(stop) for span in find_spans(text, keep)]
    return spans, stop + len(text)
