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

    "numbers", "names", "dates"   by the rules of [`trl_gist.common.text_units`], as evaluation measures their recall:
                                  regardless of case, and a date in any of its forms. Names that follow each other are one span
    "regex:…", a compiled pattern each different match, verbatim
    any other string              itself, verbatim

Spans are found in the whole text, however many windows it has; no window ends within one that a window can hold.

A gist may be compressed again, with others or with the text that follows. What it kept is then a request itself, for in a
gist it may stand where no rule or pattern finds it, as a name at its head ([`carried`]).
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import regex
from transformers import PreTrainedTokenizerBase

from ..common.text_units import DATE, Units, iter_units, words_and_numbers
from ..common.tokens import characters_of, decode, literal_ids


SEPARATOR = "; "


@dataclass(frozen=True)
class Span:
    """
    What a gist is to have.

    Attributes:
        text (`str`):
            As the context has it first.
        start (`int` or `None`):
            The character of the text where it does, `None` for a literal string that the context lacks.
        units (`frozenset[str]` or `None`):
            The units, without their case, that a gist must have for it; `None` if it must have the text itself.
        request (`int`):
            The place of the request that it answers.
    """

    text: str
    start: int | None
    units: frozenset[str] | None = None
    request: int = 0

    def is_in(self, gist: str) -> bool:
        """Whether a gist has it."""
        return self.text in gist if self.units is None else self.units <= _folded_units(gist)

    @property
    def key(self) -> frozenset[str] | str:
        """The same for spans that a gist has if it has one of them."""
        return self.units or self.text

    def moved(self, characters: int) -> "Span":
        """It, of a text that has so many characters before."""
        return self if self.start is None else replace(self, start=self.start + characters)


Request = str | re.Pattern | regex.Pattern | Span


def parse_keep(keep: Request | list[Request] | None) -> list[Request]:
    """
    The requests of a `keep` argument, with its patterns compiled; none for `None`. Those of [`carried`] stay as they are.

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
        if not isinstance(request, Request) or isinstance(getattr(request, "pattern", ""), bytes):
            raise ValueError(
                f"`keep` holds {request!r}; it takes 'numbers', 'names', 'dates', 'regex:...', compiled patterns and "
                "literal strings."
            )
        if not (request.pattern if isinstance(request, (re.Pattern, regex.Pattern)) else request):
            raise ValueError(f"`keep` holds {request!r}, which is empty: name what is to be kept.")
        requests.append(request)
    return requests


def carried(spans: list[Span], gist: str) -> list[Span]:
    """What a gist has of the spans that it was to have: the requests of a text that the gist is a part of."""
    return [span for span in spans if span.start is not None and span.is_in(gist)]


class SpanReader:
    """
    The spans of a text that are asked for, found in all of it, for windows that follow each other. It holds no more of them
    than a window has.

    Args:
        text (`str`):
            The whole text.
        requests (`list[Request]`):
            Of [`parse_keep`].
    """

    def __init__(self, text: str, requests: list[Request]):
        # A literal string is asked of the windows that have it, and of all, if the text has it nowhere
        self._lacking = [isinstance(r, str) and r not in FINDERS and r not in text for r in requests]
        self.requests = requests
        self._found = [_find(text, request, place) for place, request in enumerate(requests)]
        self._ahead: list[list[Span]] = [[] for _ in requests]  # in no window yet

    def cut(self, earliest: int, latest: int) -> int:
        """
        The character before which a window is to end: `latest`, or, if that is within a span, where the span begins. Spans
        that begin before `earliest` are longer than a window, and are cut.
        """
        self._read(latest)
        ahead = [span for spans in self._ahead for span in spans if span.start >= earliest]
        while within := [span.start for span in ahead if span.start < latest < span.start + len(span.text)]:
            latest = min(within)
        return latest

    def take(self, stop: int | None = None) -> list[Span]:
        """The different spans that begin before `stop` and were not taken yet, those that are worth most first."""
        self._read(stop)
        ranked = {}
        for index, (request, spans) in enumerate(zip(self.requests, self._ahead, strict=True)):
            found = [span for span in spans if stop is None or span.start < stop]
            self._ahead[index] = spans[len(found) :]
            if self._lacking[index]:
                found = [Span(request, None)]
            counts = Counter(span.key for span in found)
            for span in sorted(found, key=lambda span: -counts[span.key]):
                ranked.setdefault(span.key, span)
        return list(ranked.values())

    def _read(self, stop):
        """Until all spans that begin before `stop` are found."""
        for found, ahead in zip(self._found, self._ahead, strict=True):
            if stop is None:
                ahead.extend(found)
                continue
            while not ahead or ahead[-1].start < stop:
                span = next(found, None)
                if span is None:
                    break
                ahead.append(span)


def find_spans(context: str, requests: list[Request]) -> list[Span]:
    """The different spans of a context that are asked for, those that are worth most first."""
    return SpanReader(context, requests).take()


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


def kept_and_not(spans: list[Span], gist: str) -> dict[str, list]:
    """
    The spans that a gist has and those it lacks, as [`Gist`] says them: `kept` and `not_kept`, and, in `kept_at` and
    `not_kept_at`, where the text has them first.
    """
    report = {"kept": [], "not_kept": [], "kept_at": [], "not_kept_at": []}
    for span in spans:
        name = "kept" if span.is_in(gist) else "not_kept"
        report[name].append(span.text)
        report[f"{name}_at"].append(span.start)
    return report


def keep_in_gists(
    gists: list[list[int]], spans_N: list[list[Span]], budget: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], list[dict[str, list]]]:
    """
    Gists with what is to be kept.

    Args:
        gists (`list[list[int]]`):
            Of at most `budget` tokens.
        spans_N (`list[list[Span]]`):
            What each is to have, those worth most first.
        budget (`int`):
            The most tokens of a gist.
        tokenizer (`PreTrainedTokenizerBase`):
            The pair's.

    Returns:
        The gists, and of each what [`kept_and_not`] says.
    """
    kept_N = [with_spans(gist, spans, budget, tokenizer) for gist, spans in zip(gists, spans_N, strict=True)]
    texts = [decode(tokenizer, ids) for ids in kept_N]
    return kept_N, [kept_and_not(spans, text) for spans, text in zip(spans_N, texts, strict=True)]


@functools.lru_cache(maxsize=256)  # of a gist, many spans are looked for
def _folded_units(text):
    return frozenset(Units(text).folded)


def _find(text, request, place):
    """Each place where it stands, from the first on."""
    if isinstance(request, Span):
        return _again(text, request)
    if not isinstance(request, str):
        found = (Span(match[0], match.start()) for match in request.finditer(text) if match[0])
    else:
        found = FINDERS[request](text) if request in FINDERS else _literals(text, request)
    return (replace(span, request=place) for span in found)


def _again(text, span):
    """What a gist has kept, where it stands as it did; or at the head, if it stands there in other words."""
    if span.units is None:
        starts = [found.start for found in _literals(text, span.text)]
    else:
        whole = rf"(?<![\p{{L}}\p{{M}}\p{{N}}]){regex.escape(span.text)}(?![\p{{L}}\p{{M}}\p{{N}}])"
        starts = [match.start() for match in regex.finditer(whole, text)] or [0] * span.is_in(text)
    return (replace(span, start=start) for start in starts)


def _literals(text, literal):
    start = text.find(literal)
    while start >= 0:
        yield Span(literal, start)
        start = text.find(literal, start + len(literal))


def _numbers(text):
    for word, kind, (start, _) in iter_units(text):
        if kind == "number":
            yield Span(word, start, frozenset([word.casefold()]))


def _names(text):
    run = []  # names that follow each other
    for word, kind, (start, stop) in iter_units(text):
        follows = bool(run) and start == run[-1][2] + 1 and text[start - 1] == " "
        if run and not (kind == "name" and follows):
            yield _run_span(text, run)
            run = []
        if kind == "name":
            run.append((word, start, stop))
    if run:
        yield _run_span(text, run)


def _run_span(text, run):
    start, stop = run[0][1], run[-1][2]
    return Span(text[start:stop], start, frozenset(word.casefold() for word, _, _ in run))


def _dates(text):
    return (Span(match[0], match.start(), words_and_numbers(match[0])) for match in DATE.finditer(text))


FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {"numbers": _numbers, "names": _names, "dates": _dates}


def _assemble(gist_ids, added, budget, tokenizer):
    """The gist's start and the added spans within the budget, or `None` if they alone exceed it."""
    texts = [span.text for span in sorted(added, key=lambda span: span.start)]
    ids = literal_ids(tokenizer, SEPARATOR + SEPARATOR.join(texts))
    head = characters_of(tokenizer).whole(gist_ids[: max(0, budget - len(ids))])
    if not head:  # what follows nothing needs no separator
        ids = literal_ids(tokenizer, SEPARATOR.join(texts))
    return [*head, *ids] if len(ids) <= budget else None
