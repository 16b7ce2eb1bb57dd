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

"""Patterns of gists: each measure against figures worked out by hand, the copies against a slow plain search."""

import math
import random

import numpy as np
import pytest

from trl_gist.common.text_units import KINDS, Units
from trl_gist.evaluation.gists.patterns import (
    copied_shares,
    gist_patterns,
    summarize_patterns,
    survival,
    text_survival,
)


CONTEXT = (
    "On 26 July 1894 the writer Aldous Huxley was born in Godalming. He went to Oxford, and wrote 11 novels. In 1963 he "
    "died."
)
TARGET = " In Oxford, Huxley wrote 2 books before 1963."


# ---- Units ----


def test_a_text_falls_into_words_numbers_cjk_characters_and_signs():
    units = Units("The 1950s: 1,854.5 km, 3rd U.S. don’t-do 漢字ab… 50%")
    assert units.words == "The|1950s|:|1,854.5|km|,|3rd|U.S.|don’t|-|do|漢|字|ab|…|50|%".split("|")
    assert ["".join(units.words)] == ["The1950s:1,854.5km,3rdU.S.don’t-do漢字ab…50%"]
    text = " a\tb  c."
    assert [text[slice(*span)] for span in Units(text).spans] == Units(text).words


def test_each_unit_is_of_the_kind_one_would_say():
    units = Units(CONTEXT)
    kinds = dict(zip(units.words, units.kinds, strict=True))
    assert {word for word in kinds if kinds[word] == "number"} == {"26", "1894", "11", "1963"}
    assert {word for word in kinds if kinds[word] == "name"} == {"Aldous", "Huxley", "Godalming", "Oxford"}
    function = {"On", "the", "was", "in", "He", "to", "and", "In", "he"}
    assert {word for word in kinds if kinds[word] == "function"} == function
    assert {word for word in kinds if kinds[word] == "punctuation"} == {".", ","}
    assert {word for word in kinds if kinds[word] == "other"} == {
        "July",
        "writer",
        "born",
        "went",
        "wrote",
        "novels",
        "died",
    }


def test_a_word_that_starts_a_sentence_is_a_name_only_if_it_is_one_elsewhere():
    def names(text):
        units = Units(text)
        return [word for word, kind in zip(units.words, units.kinds, strict=True) if kind == "name"]

    assert names("Snow fell. Rain came! “Hail,” he said.\nWind too.") == []
    assert names("Snow fell. The physician Snow died.") == ["Snow", "Snow"]
    assert names("on Monday in May, I met Ann") == ["Ann"]
    assert names("it isn't Bob's; It's mine") == ["Bob's"]


# ---- Copies ----


def plain_copies(context, gist, chance=()):
    """The same definition, by looking at every run at every place."""
    shares, start = [0.0] * len(context), 0
    while start < len(gist):
        length = next(
            (n for n in range(len(gist) - start, 0, -1) if any(context[p : p + n] == gist[start : start + n] for p in range(len(context) - n + 1))),
            0,
        )  # fmt: skip
        places = [
            p
            for p in range(len(context) - length + 1)
            if length and context[p : p + length] == gist[start : start + length]
        ]
        if not set(gist[start : start + length]) <= set(chance):
            for place in places:
                for index in range(place, place + length):
                    shares[index] += 1 / len(places)
        start += max(length, 1)
    return [min(share, 1.0) for share in shares]


def test_copies_are_the_longest_runs_and_repeated_places_share_them():
    assert copied_shares("abcdabx", "ab") == [0.5, 0.5, 0, 0, 0.5, 0.5, 0]
    assert copied_shares("abcdabx", "cdzabc") == [1, 1, 1, 1, 0, 0, 0]  # in another order, and abc beats ab
    assert copied_shares("abab", "aaaaaa") == [1, 0, 1, 0]
    assert copied_shares("a,b,", ",b,", frozenset(",")) == [0, 1, 1, 1]
    assert copied_shares("a,b,", ",", frozenset(",")) == [0, 0, 0, 0]
    assert copied_shares([7, 8], []) == [0, 0] and copied_shares([], [7]) == []


@pytest.mark.parametrize("seed", range(30))
def test_copies_equal_a_plain_search(seed):
    rng = random.Random(seed)
    context, gist = (rng.choices("abcde", k=rng.randint(0, 40)) for _ in range(2))
    assert copied_shares(context, gist, frozenset("de")) == pytest.approx(plain_copies(context, gist, "de"))


def test_function_words_and_signs_alone_are_chance_but_live_within_a_run():
    context, gist = Units("The cat sat on the mat, and the dog."), Units("ON THE MAT , the , and")
    # "on the mat ," is a run of four; "the", "," and "and" come of any text
    assert text_survival(context, gist) == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]


# ---- One gist ----


def test_the_patterns_of_a_gist_are_those_counted_by_hand():
    gist = "Huxley b. 26 July 1894; OX, 漢 wrote 11 novels"
    # Units: Huxley b . 26 July 1894 ; OX , 漢 wrote 11 novels = 13; 3 signs, no function word
    patterns = gist_patterns(CONTEXT, gist, TARGET, gist_length=24, max_gist_length=24, log_prob=-48 * math.log(2))
    # The context's units: On 26 July 1894 the writer Aldous Huxley was born in Godalming . He went to Oxford , and
    # wrote 11 novels . In 1963 he died . = 28, of them 9 function words and 4 signs
    expected = {
        "cjk_share": (1 / 13, 13),
        "function_share": (0, 13),
        "context_function_share": (9 / 28, 28),
        "function_words_dropped": (1, 13 * 9 / 28),
        "punctuation_share": (3 / 13, 13),
        "context_punctuation_share": (4 / 28, 28),
        "number_recall": (3 / 4, 4),  # 26, 1894, 11; not 1963
        "number_recall_in_target": (0, 1),
        "name_recall": (1 / 4, 4),
        "name_recall_in_target": (1 / 2, 2),  # Oxford, Huxley
        "date_recall": (1 / 2, 2),
        "date_recall_in_target": (0, 1),
        "acronyms_coined": (1, 1),
        "shortened_share": (2 / 13, 13),  # b of born, OX of Oxford
        "repeated_share": (0, 10),
        "cut_mid_sentence": (1, 1),
        "copy_rate_1": (9 / 13, 13),  # all but b ; OX 漢
        "copy_rate_2": (4 / 12, 12),  # 26 July, July 1894, wrote 11, 11 novels
        "copy_rate_4": (0, 10),
        "number_survival": (3 / 4, 4),
        "name_survival": (1 / 4, 4),
        "function_survival": (0, 9),
        "punctuation_survival": (0, 4),
        "other_survival": (3 / 7, 7),  # July, wrote, novels
        "bits_per_token": (2, 24),
    }
    assert set(patterns) == {f"{name}{end}" for name in expected for end in ("", "_of")}
    for name, (value, whole) in expected.items():
        assert (patterns[name], patterns[f"{name}_of"]) == pytest.approx((value, whole)), name


def test_dates_are_kept_only_whole_and_in_any_of_their_forms():
    context = "From July 26th, 1894 to 3 May 1901, 2001-09-11, spring 1854; in 1,600 parts, 16003 m; you may 5 times."
    recall = {
        gist: gist_patterns(context, gist)["date_recall"] * 4
        for gist in ("1894 July 26th", "July 1894", "May 3 1901", "1854, 1600", "2001-09-11", "may 5")
    }
    assert gist_patterns(context, "")["date_recall_of"] == 4
    assert list(recall.values()) == pytest.approx([1, 0, 1, 1, 1, 0])


def test_an_acronym_is_coined_if_the_context_has_it_in_no_form():
    def coined(gist):
        return gist_patterns("The ABC islands, the U.S. and Nato", gist)["acronyms_coined"]

    assert coined("ABC US NATO U.S.") == 0
    assert coined("WHO, A LONGISH F.B.I.") == 2


def test_a_word_is_shortened_that_the_context_has_in_full_alone():
    def shortened(gist):
        return gist_patterns("The physician Snow, in Broad St., counted 1854 dead", gist)["shortened_share"]

    assert shortened("Phys coun") == 1
    assert shortened("Snow Broad St 18 dead physicians ; 漢") == 0


def test_what_is_said_again_counts_from_the_second_time_on():
    patterns = gist_patterns("x", "Asia, the Asia, the ASIA 1854 of of")
    assert (patterns["repeated_share"], patterns["repeated_share_of"]) == (2 / 4, 4)


@pytest.mark.parametrize(
    ("gist", "length", "cut"),
    [("He died", 8, 1), ("He died.", 8, 0), ("He died.”", 8, 0), ("वह लौट गया।", 8, 0), ("He died", 7, 0)],
)
def test_cut_is_a_gist_at_its_longest_that_ends_no_sentence(gist, length, cut):
    assert gist_patterns("x", gist, gist_length=length, max_gist_length=8)["cut_mid_sentence"] == cut


def test_what_cannot_be_known_is_nan():
    patterns = gist_patterns("no digits here", "", "")
    for name in ("number_recall", "name_recall", "date_recall", "cut_mid_sentence", "bits_per_token", "copy_rate_1"):
        assert math.isnan(patterns[name]) and patterns[f"{name}_of"] == 0, name
    assert patterns["acronyms_coined"] == 0 and patterns["other_survival"] == 0


# ---- Many gists ----


def test_the_summary_is_a_ratio_of_sums_with_its_error_over_documents():
    rng = np.random.default_rng(0)
    rows = [
        {"document_id": document, "x": x, "x_of": of}
        for document, x, of in zip([0, 0, 1, 2, 2, 3], rng.normal(size=6), [1.0, 4, 2, 0, 3, 5], strict=True)
    ]
    rows[3]["x"] = math.nan
    summary = summarize_patterns(rows)
    parts = {}
    for row in rows:
        if row["x_of"]:
            part, whole = parts.get(row["document_id"], (0.0, 0.0))
            parts[row["document_id"]] = part + row["x"] * row["x_of"], whole + row["x_of"]
    part_D, whole_D = np.array(list(parts.values())).T
    ratio = part_D.sum() / whole_D.sum()
    variance = ((part_D - ratio * whole_D) ** 2).sum() * 4 / 3 / whole_D.sum() ** 2
    assert summary["x"] == pytest.approx(ratio, rel=1e-12)
    assert summary["x_se"] == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert (summary["gists"], summary["documents"]) == (6, 4)
    assert math.isnan(summarize_patterns(rows[3:4])["x"])


def test_the_map_has_a_line_for_each_step_and_follows_the_place():
    context = " ".join(f"w{number}" for number in range(40))
    rows = [
        {"step": 8, "context": context, "gist": "w30 w31 w32 w33 w34"},
        {"step": 0, "context": context, "gist": "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"},
        {"step": 0, "context": context, "gist": "w39"},
    ]
    found = survival(rows, bins=4)
    assert found.labels == [0, 8]
    np.testing.assert_allclose(found.share_LB, [[0.5, 0, 0, 0.05], [0, 0, 0, 0.5]])
    assert np.isnan(survival([{"step": 0, "context": "two words", "gist": "two"}], bins=3).share_LB[0, 2])


def test_kinds_partition_the_units():
    units = Units(CONTEXT + TARGET)
    assert sum(units.count(kind) for kind in KINDS) == len(units.words)
