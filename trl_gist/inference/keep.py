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
Spans of a context that a gist must have.

A summarizer writes what it finds worth its tokens. Whoever knows that certain spans must survive asks for them, and what
the summarizer's own text lacks of them is added after it: verbatim, whole, in the context's order, set off by `"; "`. The
budget holds: to make room, the summarizer's text is cut from its end. Not everything may fit, so spans come in an order of
worth: as the requests are listed, and within one request what the context says most often first, then what it says first.

What can be asked for:

    "numbers", "names", "dates"   as [`trl_gist.evaluation.gists.patterns`] has them and measures their recall: regardless of
                                  case, and a date in any of its forms. Names that follow each other are one span
    "regex:…", a compiled pattern each different match, verbatim
    any other string              itself, verbatim
"""

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import regex
from transformers import PreTrainedTokenizerBase

from ..common.text_units import DATE, Units, date_parts
from ..common.tokens import characters_of, decode, literal_ids


SEPARATOR = "; "
Request = str | re.Pattern | regex.Pattern


@dataclass(frozen=True)
class Span:
    """
    What a gist is to have.

    Attributes:
        text (`str`):
            As the context has it first.
        start (`int` or `None`):
            The character of the context where it does, `None` for a literal string that the context lacks.
        units (`frozenset[str]` or `None`):
            The units, without their case, that a gist must have for it; `None` if it must have the text itself.
    """

    text: str
    start: int | None
    units: frozenset[str] | None = None

    def is_in(self, gist: str) -> bool:
        """Whether a gist has it."""
        return self.text in gist if self.units is None else self.units <= _folded_units(gist)


def parse_keep(keep: Request | list[Request] | None) -> list[Request]:
    """
    The requests of a `keep` argument, with its patterns compiled; none for `None`.

    Raises:
        ValueError: if a request is empty, neither a string nor a pattern, or no valid pattern.
    """
    if keep is None:
        return []
    requests = []
    for request in keep if isinstance(keep, (list, tuple)) else [keep]:
        if isinstance(request, str) and request.startswith("regex:"):
            try:
                request = regex.compile(request.removeprefix("regex:"))
            except regex.error as error:
                raise ValueError(f"`keep` holds {request!r}, which is no valid pattern: {error}.") from error
        if not isinstance(request, Request):
            raise ValueError(
                f"`keep` holds {request!r}; it takes 'numbers', 'names', 'dates', 'regex:...', compiled patterns and "
                "literal strings."
            )
        if not (request if isinstance(request, str) else request.pattern):
            raise ValueError(f"`keep` holds {request!r}, which is empty: name what is to be kept.")
        requests.append(request)
    return requests


def find_spans(context: str, requests: list[Request]) -> list[Span]:
    """The different spans of a context that are asked for, those that are worth most first."""
    ranked = {}
    for request in requests:
        found = _find(context, request)
        counts = Counter(_key(span) for span in found)
        for span in sorted(found, key=lambda span: -counts[_key(span)]):
            ranked.setdefault(_key(span), span)
    return list(ranked.values())


def with_spans(gist_ids: list[int], spans: list[Span], budget: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """
    The gist with as many of the spans as fit.

    Args:
        gist_ids (`list[int]`):
            What the summarizer wrote, at most `budget` tokens.
        spans (`list[Span]`):
            Those of [`find_spans`]; each is taken that still fits when those before it are in.
        budget (`int`):
            The most tokens the result has.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            For the text of the spans.
    """
    held, added, ids, text = [], [], list(gist_ids), decode(tokenizer, gist_ids)
    for span in spans:
        if span.start is None:
            continue
        trial, trial_ids, trial_text = added, ids, text
        missing = [] if span.is_in(text) else [span]
        while missing:
            trial = [*trial, *missing]
            trial_ids = _assemble(gist_ids, trial, budget, tokenizer)
            if trial_ids is None:
                break
            trial_text = decode(tokenizer, trial_ids)
            # Cutting the summarizer's text may cost what it had: that is then added as well
            missing = [other for other in [*held, span] if not other.is_in(trial_text)]
            if any(other in trial for other in missing):
                break
        else:
            held, added, ids, text = [*held, span], trial, trial_ids, trial_text
    return ids


def kept_and_not(spans: list[Span], gist: str) -> tuple[list[str], list[str]]:
    """The texts of the spans that a gist has, and of those it lacks."""
    kept, not_kept = [], []
    for span in spans:
        (kept if span.is_in(gist) else not_kept).append(span.text)
    return kept, not_kept


def keep_in_gists(
    gists: list[list[int]],
    contexts: list[str],
    requests: list[Request],
    budget: int,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[list[int]], list[dict[str, list[str]]]]:
    """
    Gists with what is to be kept.

    Args:
        gists (`list[list[int]]`):
            Of at most `budget` tokens.
        contexts (`list[str]`):
            What each is a gist of.
        requests (`list[Request]`):
            Of [`parse_keep`].
        budget (`int`):
            The most tokens of a gist.
        tokenizer (`PreTrainedTokenizerBase`):
            The pair's.

    Returns:
        The gists, and of each `kept` and `not_kept`, as of [`kept_and_not`].
    """
    spans_N = [find_spans(context, requests) for context in contexts]
    kept_N = [with_spans(gist, spans, budget, tokenizer) for gist, spans in zip(gists, spans_N, strict=True)]
    texts = [decode(tokenizer, ids) for ids in kept_N]
    found = [kept_and_not(spans, text) for spans, text in zip(spans_N, texts, strict=True)]
    return kept_N, [{"kept": kept, "not_kept": not_kept} for kept, not_kept in found]


@functools.lru_cache(maxsize=256)  # of a gist, many spans are looked for
def _folded_units(text):
    return frozenset(Units(text).folded)


def _find(context, request):
    if not isinstance(request, str):
        return [Span(match[0], match.start()) for match in request.finditer(context) if match[0]]
    if request in _FINDERS:
        return _FINDERS[request](context)
    start = context.find(request)
    return [Span(request, start if start >= 0 else None)]


def _numbers(context):
    units = Units(context)
    return [
        Span(word, start, frozenset([word.casefold()]))
        for word, kind, (start, _) in zip(units.words, units.kinds, units.spans, strict=True)
        if kind == "number"
    ]


def _names(context):
    units, runs = Units(context), []
    for index, (start, _) in enumerate(units.spans):
        if units.kinds[index] != "name":
            continue
        if runs and runs[-1][-1] == index - 1 and context[units.spans[index - 1][1] : start] == " ":
            runs[-1].append(index)
        else:
            runs.append([index])
    ends = [(units.spans[run[0]][0], units.spans[run[-1]][1]) for run in runs]
    return [
        Span(context[start:end], start, frozenset(units.folded[index] for index in run))
        for run, (start, end) in zip(runs, ends, strict=True)
    ]


def _dates(context):
    return [Span(match[0], match.start(), date_parts(match[0])) for match in DATE.finditer(context)]


_FINDERS: dict[str, Callable[[str], list[Span]]] = {"numbers": _numbers, "names": _names, "dates": _dates}


def _key(span):
    return span.units or span.text


def _assemble(gist_ids, added, budget, tokenizer):
    """The gist's start and the added spans within the budget, or `None` if they alone exceed it."""
    texts = [span.text for span in sorted(added, key=lambda span: span.start)]
    for before in (SEPARATOR, ""):
        ids = literal_ids(tokenizer, before + SEPARATOR.join(texts))
        head = characters_of(tokenizer).whole(gist_ids[: max(0, budget - len(ids))])
        # What follows nothing needs no separator
        if head or not before:
            break
    return [*head, *ids] if len(ids) <= budget else None
