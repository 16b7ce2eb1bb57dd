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
What gists look like, measured: the patterns that one otherwise sees by eye.

Everything is counted in *units* of text: a word, a number, a CJK character, or a sign such as a comma. Tokens would
not do. The same word is another token after a space and in capitals, a Chinese character may be three tokens, and the
log of a run holds text. Only `gist_length` and `bits_per_token` are about tokens. Units are compared without regard to
case.

Each measure is a share or a count with a denominator, which stands beside it under the same name with `_of`: over many
gists the measure is a ratio of sums, and a gist with one number in its context weighs less than one with twenty.

The kinds of units, by rules for English that err now and then:

    number       what begins with a digit, with its points and commas: 1,854.5, 3rd, 1950s
    name         a capitalised word that also stands, capitalised, where no sentence starts; months and days are none
    function     articles, pronouns, prepositions, conjunctions, auxiliaries: a closed class, listed below
    punctuation  any sign that is no letter and no digit
    other        all else, content words mostly

A date is an ISO date, a month with its day or year, or a year from 1000 to 2099 that stands alone.
"""

import bisect
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from ...common.statistics import ratio_and_error
from ...common.text_units import CJK_UNIT, DATE, KINDS, Units, units_of, words_and_numbers


COPIED_NGRAMS = (1, 2, 4)
_ACRONYM = regex.compile(r"\p{Lu}{2,6}|(?:\p{Lu}\.){2,}")
_SENTENCE_END = regex.compile(r"""[…\p{Sentence_Terminal}][\p{Pe}\p{Pf}"']*$""")


# What a table shows of them, in words
PATTERNS = {
    "copy_rate_1": "words found in the context",
    "copy_rate_2": "… pairs of words",
    "copy_rate_4": "… runs of four",
    "number_recall": "numbers of the context kept",
    "number_recall_in_target": "… of those that the target has too",
    "name_recall": "names kept",
    "name_recall_in_target": "… of those that the target has too",
    "date_recall": "dates kept",
    "function_words_dropped": "function words dropped, against the context's share",
    "punctuation_share": "punctuation, of all words and signs",
    "context_punctuation_share": "… in the context",
    "cjk_share": "CJK characters",
    "acronyms_coined": "acronyms coined, a gist",
    "shortened_share": "words cut short, of all words and signs",
    "repeated_share": "words said again, of all but function words and signs",
    "cut_mid_sentence": "gists cut mid-sentence",
    "bits_per_token": "bits a token under the summarizer",
}


def copied_shares(
    context: Sequence[Hashable], gist: Sequence[Hashable], chance: frozenset[Hashable] = frozenset()
) -> list[float]:
    """
    Which of a context's units, or tokens, live on as copies in its gist.

    The gist is read from its start and cut into the longest runs that stand in the context: the extractive fragments
    of [Grusky et al. 2018](https://huggingface.co/papers/1804.11283), which unlike a longest common subsequence allow
    for another order. Where a run stands in the context several times, each place gets an equal share of it, so that
    no end of the context is favoured. A run that is nothing but `chance` copies no place.

    Args:
        context, gist (`Sequence[Hashable]`):
            Units or token ids.
        chance (`frozenset`, *optional*):
            What stands in any two texts, as function words and signs.

    Returns:
        `list[float]`: From 0, not copied, to 1, for each unit of the context. They add up to the copied units of the
        gist, unless it says one more often than the context does.
    """
    places = {}
    for position, unit in enumerate(context):
        places.setdefault(unit, []).append(position)
    shares = np.zeros(len(context))
    start = 0
    while start < len(gist):
        ends = {first: _run_end(context, gist, first, start) for first in places.get(gist[start], ())}
        length = max((end - first for first, end in ends.items()), default=1)
        longest = [first for first, end in ends.items() if end - first == length]
        if any(unit not in chance for unit in gist[start : start + length]):
            for first in longest:
                shares[first : first + length] += 1 / len(longest)
        start += length
    return np.minimum(shares, 1).tolist()


def text_survival(context: Units, gist: Units) -> list[float]:
    """[`copied_shares`] of two texts: for each unit of the context, whatever its case, its share of a copy in the
    gist. A run of nothing but function words and signs is held to be chance."""
    chance = {
        word
        for text in (context, gist)
        for word, kind in zip(text.folded, text.kinds, strict=True)
        if kind in ("function", "punctuation")
    }
    return copied_shares(context.folded, gist.folded, frozenset(chance))


def survival_pieces(context: str, gist: str) -> list[tuple[str, float]]:
    """The whole context, in pieces of one [`text_survival`] each: the text and its share, from 0 to 1."""
    units = Units(context)
    shares = text_survival(units, Units(gist))
    pieces, end = [], 0
    for (start, stop), share, before in zip(units.spans, shares, [0.0, *shares], strict=False):
        pieces += [(context[end:start], min(before, share)), (context[start:stop], share)]
        end = stop
    pieces = [piece for piece in (*pieces, (context[end:], 0.0)) if piece[0]]
    return [
        ("".join(text for text, _ in group), share)
        for share, group in itertools.groupby(pieces, key=lambda piece: piece[1])
    ]


def gist_patterns(
    context: str,
    gist: str,
    target: str = "",
    gist_length: int | None = None,
    max_gist_length: int | None = None,
    log_prob: float | None = None,
) -> dict[str, float]:
    """
    The patterns of one gist.

    Args:
        context, gist, target (`str`):
            X, Z and Y as text. Pass X without its last tokens if what the generator sees anyway is not to count.
        gist_length, max_gist_length (`int`, *optional*):
            Tokens of the gist, and the most it could have had.
        log_prob (`float`, *optional*):
            Log-prob of the gist's tokens under the summarizer at temperature 1, summed, in nats, as of
            [`~inference.compactor.Gist`].

    Returns:
        `dict[str, float]`: each with its denominator under the name with `_of`, and NaN where that is 0 or an argument
        is not given. Shares from 0 to 1 unless said otherwise:

        - `cjk_share`: of the gist's units, CJK characters
        - `function_share`, `punctuation_share`: of the gist's units, of that kind;
          `context_function_share`, `context_punctuation_share`: of the context's
        - `function_words_dropped`: 1 − function words of the gist / those it would have at the context's share; 0 is
          the context's own style, 1 a gist without any; negative if it has more than its context
        - `number_recall`, `name_recall`, `date_recall`: of the different numbers, names and dates of the context,
          those that the gist has; `..._in_target`: of those that the target has too
        - `acronyms_coined`: words of two to six capitals that the context does not have in any case; a count a gist
        - `shortened_share`: of the gist's units, words that the context does not have but that begin a longer one of it,
          but for function words
        - `repeated_share`: of the gist's units, but for function words and signs, those that it has said before
        - `cut_mid_sentence`: 1 for a gist as long as it may be that ends with no sentence
        - `copy_rate_1`, `copy_rate_2`, `copy_rate_4`: of the gist's n-grams of units, those that the context has
        - `number_survival`, ... for each of `KINDS`: of the context's units of the kind, with repetitions, those that
          live on as copies; see [`text_survival`]
        - `bits_per_token`: −`log_prob` in bits, a token of the gist
    """
    texts = units_of(context), units_of(gist)
    counts = _style_counts(*texts) | _recall_counts(*texts, context, target) | _copy_counts(*texts)
    counts |= _survival_counts(*texts)
    known = gist_length is not None and max_gist_length is not None
    cut = known and gist_length >= max_gist_length and not _SENTENCE_END.search(gist.strip())
    counts["cut_mid_sentence"] = (float(cut), float(known))
    has_bits = log_prob is not None and bool(gist_length)
    counts["bits_per_token"] = (-log_prob / math.log(2), gist_length) if has_bits else (0.0, 0.0)
    patterns = {}
    for name, (part, whole) in counts.items():
        patterns[name], patterns[f"{name}_of"] = part / whole if whole else math.nan, float(whole)
    patterns["function_words_dropped"] = 1 - patterns["function_words_dropped"]
    return patterns


def summarize_patterns(rows: list[dict]) -> dict[str, float]:
    """
    The patterns of many gists: ratios of sums, with linearised standard errors over documents under the same name with
    `_se`; NaN where no gist has a denominator, or only one document has.

    Args:
        rows (`list[dict]`):
            [`gist_patterns`] of each, and its `document_id`.
    """
    summary, documents = {}, [row["document_id"] for row in rows]
    for name in [name.removesuffix("_of") for name in rows[0] if name.endswith("_of")]:
        values, weights = (np.array([row[key] for row in rows], dtype=float) for key in (name, f"{name}_of"))
        summary[name], summary[f"{name}_se"] = ratio_and_error(values * weights, weights, documents)
    return summary | {"gists": len(rows), "documents": len({str(row["document_id"]) for row in rows})}


@dataclass(frozen=True)
class Survival:
    """
    Where in the context the surviving units stand.

    Attributes:
        labels (`list`):
            What the gists are grouped by, in order.
        share_LB (`np.ndarray` of shape `(labels, bins)`):
            Of the context's units in each of equal stretches of it, from its start to its end, the share that lives on
            in the gist. NaN where no context has a unit.
    """

    labels: list
    share_LB: np.ndarray


def survival(rows: list[dict], bins: int = 24, by: str = "step") -> Survival:
    """
    Which places of the contexts survive, as [`text_survival`] has it.

    Args:
        rows (`list[dict]`):
            With `context` and `gist` as text, and the column that is named by `by`.
        bins (`int`, *optional*, defaults to `24`):
            Stretches of the context.
        by (`str`, *optional*, defaults to `"step"`):
            What a line of the map is: the step, or a summarizer's name.
    """
    labels = sorted({row[by] for row in rows})
    kept_LB, units_LB = np.zeros((len(labels), bins)), np.zeros((len(labels), bins))
    for row in rows:
        shares = text_survival(units_of(row["context"]), units_of(row["gist"]))
        places = np.arange(len(shares)) * bins // max(len(shares), 1)
        line = labels.index(row[by])
        kept_LB[line] += np.bincount(places, weights=shares, minlength=bins)
        units_LB[line] += np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Survival(labels, kept_LB / units_LB)


# ---- Counts: for each measure its numerator and its denominator ----


def _style_counts(context, gist):
    known = {word.replace(".", "") for word in context.folded}
    acronyms = [word.casefold().replace(".", "") for word in gist.words if _ACRONYM.fullmatch(word)]
    spoken = [
        word for word, kind in zip(gist.folded, gist.kinds, strict=True) if kind not in ("function", "punctuation")
    ]
    longer = sorted(set(context.folded))
    shortened = [word for word in spoken if word.isalpha() and _begins_longer(word, longer)]
    expected = len(gist.words) * context.count("function") / max(len(context.words), 1)
    counts = {
        "cjk_share": (sum(bool(CJK_UNIT.fullmatch(word)) for word in gist.words), len(gist.words)),
        "function_words_dropped": (gist.count("function"), expected),
        "acronyms_coined": (sum(acronym not in known for acronym in acronyms), 1),
        "shortened_share": (len(shortened), len(gist.words)),
        "repeated_share": (len(spoken) - len(set(spoken)), len(spoken)),
    }
    for kind in ("function", "punctuation"):
        for name, text in ((f"{kind}_share", gist), (f"context_{kind}_share", context)):
            counts[name] = (text.count(kind), len(text.words))
    return counts


def _begins_longer(word, in_order):
    """Whether it is none of some words, and the beginning of one."""
    place = bisect.bisect_left(in_order, word)
    return place < len(in_order) and in_order[place] != word and in_order[place].startswith(word)


def _recall_counts(units, gist, context, target):
    kept, useful = set(gist.folded), set(Units(target).folded)
    items = {
        kind: {frozenset([word]) for word, its_kind in zip(units.folded, units.kinds, strict=True) if its_kind == kind}
        for kind in ("number", "name")
    }
    counts = {}
    for name, wanted in {**items, "date": {words_and_numbers(match[0]) for match in DATE.finditer(context)}}.items():
        in_target = {item for item in wanted if item <= useful}
        counts[f"{name}_recall"] = (sum(item <= kept for item in wanted), len(wanted))
        counts[f"{name}_recall_in_target"] = (sum(item <= kept for item in in_target), len(in_target))
    return counts


def _copy_counts(context, gist):
    counts = {}
    for n in COPIED_NGRAMS:
        known, ngrams = set(_ngrams(context.folded, n)), _ngrams(gist.folded, n)
        counts[f"copy_rate_{n}"] = (sum(ngram in known for ngram in ngrams), len(ngrams))
    return counts


def _survival_counts(context, gist):
    kinds, shares = np.array(context.kinds), np.array(text_survival(context, gist))
    return {f"{kind}_survival": (shares[kinds == kind].sum(), (kinds == kind).sum()) for kind in KINDS}


def _ngrams(units, n):
    return [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]


def _run_end(context, gist, first, start):
    """Where the run ends in the context that begins there at `first` and in the gist at `start`."""
    while first < len(context) and start < len(gist) and context[first] == gist[start]:
        first, start = first + 1, start + 1
    return first
