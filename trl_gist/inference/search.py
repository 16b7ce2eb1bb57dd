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
A gist that is searched for, where a context is worth more time than the summarizer takes.

The gist that S wrote is cut into pieces. Each in turn is exchanged for the piece of the context that lowers the expected
cost of the gist most, the KL along continuations that the full-context reader draws ([`trl_gist.inference.certify`]), or is left.
Exchanged so, a tail gives up some of its tokens for others from farther back. No target is needed, and no token is added.

A context of 512 tokens and a gist of three pieces take some 80 gists × 4 continuations, one row of the generator each.
docs/ORIGINAL.md says what that gains on text that really follows. The continuations are not those by which
`certify=True` measures, so that the cost of the gist that won is not read off where it was chosen.
"""

from collections.abc import Callable, Sequence

import torch

from ..common.arguments import token_ids
from ..models.lm_head import check_logits
from ..prompts import before_last_k
from ..scoring.targets import TargetScorer
from .certify import continuation_kls, draw_continuations, full_context_reader
from .pair import LoadedPair


ROWS = 16  # of the generator in one forward


def search_gist(
    loaded: LoadedPair,
    context_ids: list[int],
    last_k_ids: list[int],
    gist: list[int],
    continuations: int = 4,
    piece_length: int = 16,
    seed: int = 1,
) -> list[int]:
    """
    Exchanges a gist's pieces for others of the context, where that is expected to cost less.

    Args:
        loaded ([`~inference.pair.LoadedPair`]):
            The pair.
        context_ids, last_k_ids, gist (`list[int]`):
            X, L and the Z to start from.
        continuations (`int`, *optional*, defaults to `4`):
            Drawn to choose by; one tells nearly as much as four (docs/ORIGINAL.md), in a quarter of the time.
        piece_length (`int`, *optional*, defaults to `16`):
            Tokens exchanged together. A shorter gist is one piece.
        seed (`int`, *optional*, defaults to `1`):
            Of the continuations. The random state outside is left as it is.

    Returns:
        `list[int]`: A gist of as many tokens, the given one if nothing is better; without the special tokens, of both,
        which the generator never reads.

    Raises:
        ValueError: if ids are none, a context and its continuation do not fit the reader's positions, or the generator's
            logits are capped or scaled in a way that scoring does not know.
    """
    context_ids, last_k_ids, gist = (
        token_ids(what, ids) for what, ids in (("The context", context_ids), ("L", last_k_ids), ("The gist", gist))
    )
    gist = loaded.prompts.without_special(gist)
    if not gist:
        return []
    reader, scorer = full_context_reader(loaded), TargetScorer(loaded.generator)
    check_logits(loaded.generator)
    prompt = reader.prompt(context_ids, last_k_ids)
    length = loaded.pair.target_length
    with loaded.lock:  # not for all of the search, which takes long
        targets, logits_TSV = draw_continuations(reader.model, loaded.tokenizer, prompt, continuations, length, seed)
    at_once = max(1, ROWS // continuations)

    def costs(gists):
        prompts = [loaded.prompts.generator(gist, last_k_ids) for gist in gists]
        kls = [
            continuation_kls(logits_TSV, scorer, prompts[start : start + at_once], targets)
            for start in range(0, len(prompts), at_once)
        ]
        return torch.cat(kls).sum((1, 2)).tolist()  # of the same continuations, so not divided by their tokens

    readable = loaded.prompts.without_special(before_last_k(context_ids, last_k_ids))
    return exchange_pieces(gist, readable, min(piece_length, len(gist)), costs)[-1]


def exchange_pieces(
    gist: list[int],
    context_ids: list[int],
    piece_length: int,
    costs: Callable[[list[list[int]]], Sequence[float]],
    exchanges: int | None = None,
) -> list[list[int]]:
    """
    The search itself. Both are cut from their ends; what is left over at the beginning, shorter than a piece, is neither
    exchanged nor put in place. Pieces stand in the order of the context, before what of the gist is not from there.

    Args:
        gist, context_ids (`list[int]`):
            The gist to start from, and what pieces are taken from.
        piece_length (`int`):
            Tokens of a piece.
        costs (`Callable`):
            Called once for each exchange with the gists to choose from, the one as it is last; returns a number for each.
        exchanges (`int`, *optional*):
            At most. Defaults to all pieces of the gist, from the first.

    Returns:
        `list[list[int]]`: The gist as given, and after each exchange.
    """
    starts = range(len(context_ids) % piece_length, len(context_ids), piece_length)
    offset = len(gist) % piece_length
    pieces = [gist[start : start + piece_length] for start in range(offset, len(gist), piece_length)]
    placed = [(_last_start(piece, context_ids), piece) for piece in pieces]
    found = [gist]
    for own in placed[:exchanges]:
        others = [place for place in placed if place is not own]
        taken = [start for start, _ in placed]
        choices = [(start, context_ids[start : start + piece_length]) for start in starts if start not in taken]
        arranged = [sorted([*others, choice], key=lambda place: place[0]) for choice in choices] + [placed]
        gists = [gist[:offset] + [token for _, piece in places for token in piece] for places in arranged]
        costs_M = costs(gists)
        best = min(reversed(range(len(gists))), key=lambda index: costs_M[index])  # as it is, if nothing is better
        placed = arranged[best]
        found.append(gists[best])
    return found


def _last_start(piece, context_ids):
    """Where the piece stands in the context, the last time; its end if nowhere."""
    length = len(piece)
    starts = range(len(context_ids) - length, -1, -1)
    return next((start for start in starts if context_ids[start : start + length] == piece), len(context_ids))
