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

"""Numbers and lists that users give to a pair: what is none is refused by name, numpy's integers are taken."""

import math

import numpy as np
import pytest
import torch
from swept_arguments import COUNTS, LISTS, NO_COUNTS, PLACES, ROUTES, SIZES, no_lists, no_places, session_of
from tiny_sessions import make_compactor

from trl_gist.common.arguments import finite_number, several, whole_number
from trl_gist.evaluation.question_answering import answer_questions
from trl_gist.inference.session.session import Session
from trl_gist.models.generation import _NUMBERS, _WHOLE


@pytest.fixture(scope="module")
def compactor():
    return make_compactor()


@pytest.mark.parametrize("route", [*ROUTES, *SIZES])
def test_what_is_no_count_is_refused_by_name(compactor, route):
    name = route.split()[-1]
    for value in NO_COUNTS:
        with pytest.raises(ValueError, match=f"^`{name}` must be at least 1.*, got .*[.] Give a whole number[.]$"):
            {**ROUTES, **SIZES}[route](compactor, value)


@pytest.mark.parametrize("route", ROUTES)
def test_every_kind_of_integer_is_the_same_count(compactor, route):
    first, *others = (ROUTES[route](compactor, value) for value in COUNTS)
    assert all(other == first for other in others)


@pytest.mark.parametrize("route", PLACES)
def test_what_is_no_place_is_refused_by_name(compactor, tmp_path, route):
    session = compactor.session(keep_history=tmp_path / "tokens")
    session.append([5, 6, 7, 8])
    for value in no_places():
        with pytest.raises(ValueError, match=f"^`{route.split()[-1]}` must be at least 0.*, got .*[.] Give a whole"):
            PLACES[route](session, value)
    with pytest.raises(ValueError, match=f"^`{route.split()[-1]}` must be at least 0"):
        PLACES[route](session, -1)


def test_a_part_of_the_stream_that_ends_before_it_begins_is_empty(compactor, tmp_path):
    session = compactor.session(keep_history=tmp_path / "tokens")
    session.append([5, 6, 7, 8])
    assert session.stream(3, 1) == [] and session.stream(9) == [] and session.stream(1, 3) == [6, 7]


@pytest.mark.parametrize("route", LISTS)
def test_one_text_is_not_taken_for_several(compactor, route):
    for value in no_lists(route):
        with pytest.raises(ValueError, match=f"^`{route.split()[-1]}` takes a list of .*, and got one .*: [a-z`]"):
            LISTS[route](compactor, value)


def test_a_question_has_several_answers(compactor):
    for value in no_lists("f1 references"):
        with pytest.raises(ValueError, match="^`references` takes a list of .*answers, and got one"):
            answer_questions(compactor, compactor.generator, [], [value])


def test_several_texts_may_come_in_any_order_of_things(compactor):
    expected = compactor.compress_batch(["a pump", "a map"], last_k=["Who?", "Where?"])
    for kind in (tuple, iter, lambda texts: (text for text in texts), lambda texts: np.array(texts, dtype=object)):
        assert compactor.compress_batch(kind(["a pump", "a map"]), last_k=kind(["Who?", "Where?"])) == expected
    assert compactor.compress_batch([]) == []


def test_each_context_has_a_question_of_its_own(compactor):
    with pytest.raises(ValueError, match="`last_k` has 1 texts for 2 contexts: give one for each"):
        compactor.compress_batch(["a pump", "a map"], last_k=["Who?"])


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", True, None, [1.0], 1j])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="`share` must be a finite number, got"):
        finite_number("share", value)


def test_numbers_are_pythons():
    for value in (np.float32(0.5), np.float64(0.5), 0.5):
        assert finite_number("share", value) == 0.5 and isinstance(finite_number("share", value), float)
    for value in COUNTS:
        assert type(whole_number("count", value)) is int
    assert whole_number("count", None, optional=True) is None
    assert whole_number("count", -3, least=None) == -3
    assert several("texts", ("a", "b"), "texts", "") == ["a", "b"]


@pytest.mark.parametrize("name", [*_WHOLE, *_NUMBERS])
def test_a_setting_of_generation_that_is_no_number_is_refused_by_name(compactor, name):
    values = ("2", "x", True, math.nan, [1], *([2.5, -1] if name in _WHOLE else [math.inf]))
    routes = (
        lambda **settings: compactor.continue_text("a pump", 2, do_sample=True, **settings),
        lambda **settings: compactor.continue_from("a", "pump", 2, do_sample=True, **settings),
        lambda **settings: session_of(compactor).generate(2, do_sample=True, **settings),
    )
    for route in routes:
        for value in values:
            with pytest.raises(ValueError, match=f"^`{name}` must be .*, got "):
                route(**{name: value})


def test_settings_of_generation_may_be_numpys(compactor):
    def written(kind, whole):
        torch.manual_seed(0)
        settings = {"temperature": kind(0.5), "top_p": kind(0.5), "top_k": whole(3), "min_p": None}
        return compactor.continue_from("a", "pump", 5, do_sample=True, **settings)

    assert written(np.float64, np.int32) == written(float, int)
    for value in (0, -0.5, 1.5):
        with pytest.raises(ValueError, match="^`top_p` must be above 0 and at most 1, got"):
            compactor.continue_from("a", "pump", 2, do_sample=True, top_p=value)


def test_a_session_is_as_a_pair_opens_it(compactor):
    with pytest.raises(ValueError, match="`last_k` must be at least 1 or None, got 2.5"):
        Session(compactor, last_k=2.5)
