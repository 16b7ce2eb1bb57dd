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

"""Words, numbers, names and dates of a text, as `keep` finds them, and evaluation and the alarms count them."""

import calendar
import functools
from collections.abc import Iterator

import regex


KINDS = ("number", "name", "function", "punctuation", "other")

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}"
_UNIT = regex.compile(
    rf"""
    \p{{Nd}}+ (?: [.,]\p{{Nd}}+ )* [\p{{L}}--[{_CJK}]]*       # 1,854.5 and 1950s
    | (?: \p{{Lu}}\. ){{2,}}                                 # U.S.
    | [{_CJK}]
    | [[\p{{L}}\p{{M}}\p{{N}}]--[{_CJK}]]+ (?: ['’] [[\p{{L}}\p{{M}}\p{{N}}]--[{_CJK}]]+ )*   # don't
    | \S
    """,
    regex.VERBOSE | regex.VERSION1,
)
CJK_UNIT = regex.compile(f"[{_CJK}]")
_POSSESSIVE = regex.compile(r"['’]s\Z")
_SIGN = regex.compile(r"[^\p{L}\p{M}\p{N}]")

_SENTENCE_START = regex.compile(
    r"""(?: ^ | [.!?…。！？:]["'\p{Pe}\p{Pf}]*\s | \n ) [\s\p{Ps}\p{Pi}"'*#–—-]* $""", regex.VERBOSE
)

_MONTHS = [*calendar.month_name[1:], *calendar.month_abbr[1:], "Sept"]
_DAYS = [*calendar.day_name, *calendar.day_abbr]
_MONTH, _DAY, _YEAR = rf"(?:{'|'.join(_MONTHS)})\b\.?", r"\d{1,2}(?:st|nd|rd|th)?\b", r"(?:1\d{3}|20\d{2})\b"

DATE = regex.compile(
    rf"\b(?:\d{{4}}-\d{{2}}-\d{{2}}\b|{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?"
    rf"|{_MONTH}\s+{_DAY}(?:,?\s+{_YEAR})?|{_MONTH},?\s+{_YEAR}|(?<![\d.,-]){_YEAR}(?![.,-]\d))"
)

FUNCTION_WORDS = frozenset(
    # articles and determiners
    "a an the this that these those each every either neither some any no all both such own another other "
    # pronouns
    "i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us "
    "our ours ourselves they them their theirs themselves who whom whose which what whoever whatever one ones "
    "something anything nothing everything someone anyone everyone somebody anybody nobody everybody "
    # prepositions
    "about above across after against along among amongst around as at before behind below beneath beside besides "
    "between beyond by despite down during except for from in inside into like near of off on onto out outside over "
    "past per since through throughout to toward towards under underneath until up upon via with within without "
    # conjunctions
    "and but or nor so yet if because although though unless while whereas whether than when where why how once "
    # auxiliaries, and the verb to be
    "am is are was were be been being have has had having do does did doing will would shall should can could may might "
    "must ought "
    # particles
    "not there here then too also just very only even more most less least".split()
)


class Units:
    """
    A text, unit by unit.

    Args:
        text (`str`):
            Any text.

    Attributes:
        words (`list[str]`):
            The units in order, as they stand there.
        folded (`list[str]`):
            The same without their case.
        kinds (`list[str]`):
            For each the one of `KINDS` that it is of.
        spans (`list[tuple[int, int]]`):
            For each the characters of the text from which and to which it goes.
    """

    def __init__(self, text: str):
        units = list(iter_units(text))
        self.words = [word for word, _, _ in units]
        self.folded = [word.casefold() for word in self.words]
        self.kinds = [kind for _, kind, _ in units]
        self.spans = [span for _, _, span in units]

    def count(self, kind: str) -> int:
        """Units of a kind."""
        return self.kinds.count(kind)


# ---- Units ----


def iter_units(text: str) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Each unit's word, kind and span, as of [`Units`], one by one: a text may be a whole book."""
    names = {match[0].casefold() for match in _UNIT.finditer(text) if _is_name(match)}
    for match in _UNIT.finditer(text):
        yield match[0], _kind(match[0], names), match.span()


units_of = functools.lru_cache(maxsize=256)(Units)  # a context has a gist at every step


def _kind(unit, names):
    if regex.match(r"\p{Nd}", unit):
        return "number"
    if _SIGN.fullmatch(unit):
        return "punctuation"
    if unit.casefold() in names and unit[0].isupper():
        return "name"
    return "function" if _is_function_word(unit) else "other"


def _is_function_word(unit):
    stem, _, ending = unit.casefold().replace("’", "'").partition("'")
    return stem in FUNCTION_WORDS or (stem.endswith("n") and ending == "t")  # it's, isn't


def _is_name(match):
    word = match[0]
    if len(word) < 2 or not word[0].isupper() or _is_function_word(word) or word in (*_MONTHS, *_DAYS):
        return False
    return _SENTENCE_START.search(match.string[max(0, match.start() - 16) : match.start()]) is None


def folded_fact(fact: str) -> str:
    """By which a fact is the same without its case, and in the possessive."""
    return _POSSESSIVE.sub("", fact.casefold())


def words_and_numbers(text: str) -> frozenset[str]:
    """What of a text tells whether it has a name, a number or a date, of which all must be there, in whatever order: its
    words and numbers as of [`folded_fact`], but for "of"."""
    parts = map(folded_fact, Units(text).words)
    return frozenset(part for part in parts if part != "of" and not _SIGN.fullmatch(part))
