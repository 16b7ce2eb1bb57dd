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

"""Numbers, token ids and lists that users give to a pair: what is none is refused by name, numpy's and torch's are
taken."""

import json
import math

import numpy as np
import pytest
import torch
from serving_run import engine_of
from swept_arguments import (
    COUNTS,
    LISTS,
    NO_COUNTS,
    NO_SWITCHES,
    PLACES,
    ROUTES,
    SIZES,
    SWITCHES,
    no_lists,
    no_places,
    session_of,
)
from tiny_sessions import CONTEXT, LAST_K, TARGET, make_compactor

from trl_gist.common.arguments import finite_number, several, whole_number, whole_numbers
from trl_gist.data import windows as windows_module
from trl_gist.data.windows import WindowSpec
from trl_gist.evaluation.question_answering import answer_questions
from trl_gist.inference.certify import expected_kls
from trl_gist.inference.search import search_gist
from trl_gist.inference.session.session import Session
from trl_gist.models.generation import _NUMBERS, _WHOLE
from trl_gist.scoring import GistScorer, TargetScorer
from trl_gist.scoring.targets import TargetRows
from trl_gist.scripts.arguments import EvaluateArguments
from trl_gist.serving.errors import ApiError
from trl_gist.serving.schemas import CompletionRequest, CompressRequest, parse


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


@pytest.mark.parametrize("route", SWITCHES)
def test_what_is_neither_true_nor_false_is_refused_by_name(compactor, route):
    for value in NO_SWITCHES:
        with pytest.raises(ValueError, match=f"^`{route.split()[-1]}` must be True or False, got "):
            SWITCHES[route](compactor, value)


def test_numpys_and_torchs_truths_are_taken(compactor):
    for value in (np.True_, np.array(True), torch.tensor(True)):
        assert compactor.session(measure=value).settings.measure is True


@pytest.mark.parametrize("name", ["max_windows", "max_documents", "batch_size", "samples", "targets_per_context"])
def test_numbers_of_an_evaluation_are_checked_without_a_command_line_too(name):
    for value in ("8", 2.0, True, -1):
        with pytest.raises(ValueError, match=f"^`{name}` must be at least"):
            EvaluateArguments(pair="pair", dataset=["documents.jsonl"], **{name: value})
    taken = EvaluateArguments(pair="pair", dataset=["a"], last_k=np.array([4, 8]), samples=0, **{})
    assert taken.last_k == [4, 8] and type(taken.last_k[0]) is int


def test_a_part_of_the_stream_that_ends_before_it_begins_is_empty(compactor, tmp_path):
    session = compactor.session(keep_history=tmp_path / "tokens")
    session.append([5, 6, 7, 8])
    assert session.stream(3, 1) == [] and session.stream(9) == [] and session.stream(1, 3) == [6, 7]


# ---- Token ids ----

IDS = [5, 9, 14, 20, 31, 40, 51, 62, 73]
KINDS = {
    "a tuple": tuple,
    "numpy's": lambda ids: [np.int64(token) for token in ids],
    "numpy's of all kinds": lambda ids: [(np.int32, np.uint16, int)[n % 3](token) for n, token in enumerate(ids)],
    "torch's": lambda ids: [torch.tensor(token) for token in ids],
    "an array": np.array,
    "a tensor": torch.tensor,
}
NO_IDS = (
    [5, True],
    [False, 5],
    [5, np.True_],
    [5, torch.tensor(True)],
    [5, 2.0],
    [5, np.float64(2)],
    [5, "5"],
    [5, None],
)
NO_IDS += ([5, -1], [5, [6]], [torch.tensor([5])], np.array([5.0]), np.array([True]), torch.tensor([True, False]))
NO_IDS += (torch.tensor([[5, 6]]), np.array([[5, 6]]), {5: 6}, 5)


def appended(pair, ids):
    session = pair.session()
    session.append(ids)
    return session.token_ids


def scored(pair, **given):
    scorer = GistScorer(TargetScorer(pair.generator), TargetScorer(pair.generator), pair.prompts)
    row = {"context_ids": IDS, "last_k_ids": IDS[-2:], "target_ids": [7, 8], **given}
    return scorer.score([row], [given.get("gist", [6])])[0]["gist_log_prob"]


def rows_of(prompt, cue, target):
    rows = TargetRows.of_several([prompt], [[(cue, target)]], 1, "cpu")
    return rows.input_ids_NS.tolist(), rows.target_ids_NT.tolist()


def windows_with(pair, **columns):
    row = {"context": "a pump", "last_k": "by", "target": "the map", **columns}
    spec = WindowSpec(CONTEXT, TARGET, LAST_K, None, None)
    windows, reason = windows_module._ready_window(row, pair.tokenizer, spec)
    if reason:
        raise ValueError(reason)
    return windows


# Each route of the public API that takes token ids
ID_ROUTES = {
    "compress": lambda pair, ids: pair.compress(ids),
    "compress last_k": lambda pair, ids: pair.compress("a pump in a street, and a map", last_k=ids),
    "compress keep": lambda pair, ids: pair.compress(ids, keep="numbers"),
    "compress certify": lambda pair, ids: pair.compress(ids, certify=True),
    "compress_batch": lambda pair, ids: pair.compress_batch([IDS, ids]),
    "compress_batch last_k": lambda pair, ids: pair.compress_batch([IDS], last_k=[ids]),
    "compress_windows": lambda pair, ids: pair.compress_windows(ids),
    "compress_windows last_k": lambda pair, ids: pair.compress_windows(IDS, last_k=ids),
    "iter_windows": lambda pair, ids: list(pair.iter_windows(ids)),
    "continue_text": lambda pair, ids: pair.continue_text(ids, 2),
    "continue_text last_k": lambda pair, ids: pair.continue_text(IDS, 2, last_k=ids),
    "continue_from gist": lambda pair, ids: pair.continue_from(ids, "a", 2).token_ids,
    "continue_from last_text": lambda pair, ids: pair.continue_from("a", ids, 2).token_ids,
    "session append": appended,
    "decode": lambda pair, ids: pair.decode(ids),
    "token_ids": lambda pair, ids: pair.token_ids(ids, "The text"),
    "generate": lambda pair, ids: pair.generate("generator", [ids, [5]], max_new_tokens=2)[0],
    "prompts summarizer": lambda pair, ids: pair.prompts.summarizer(ids, [5], 6),
    "prompts generator gist": lambda pair, ids: pair.prompts.generator(ids, [5]),
    "prompts generator last_k": lambda pair, ids: pair.prompts.generator([5], ids),
    "prompts teacher": lambda pair, ids: pair.prompts.teacher(ids, [5]),
    "prompts teacher last_k": lambda pair, ids: pair.prompts.teacher([5], ids),
    "prompts plain": lambda pair, ids: pair.prompts.plain(ids),
    "certify contexts": lambda pair, ids: expected_kls(pair, [ids], [[5]], [[6]], samples=2, target_length=2),
    "certify gists": lambda pair, ids: expected_kls(pair, [[5, 6]], [[6]], [ids], samples=2, target_length=2),
    "search context": lambda pair, ids: search_gist(pair, ids, [], [6, 7], continuations=1, piece_length=2),
    "search gist": lambda pair, ids: search_gist(pair, [5, 6, 7, 8, 9], [], ids, continuations=1, piece_length=4),
    "score gist": lambda pair, ids: scored(pair, gist=ids),
    "rows prompt": lambda pair, ids: rows_of(ids, [5], [6]),
    "rows cue": lambda pair, ids: rows_of([5], ids, [6]),
    "rows target": lambda pair, ids: rows_of([5], [], ids),
    "dataset context": lambda pair, ids: windows_with(pair, context=ids),
    "dataset last_k": lambda pair, ids: windows_with(pair, last_k=ids),
    "dataset target": lambda pair, ids: windows_with(pair, target=ids),
}


# A row of a dataset holds lists
ROW_ROUTES = {
    "score context": lambda pair, ids: scored(pair, context_ids=ids),
    "score last_k": lambda pair, ids: scored(pair, last_k_ids=ids),
    "score target": lambda pair, ids: scored(pair, target_ids=ids),
}


@pytest.mark.parametrize("route", ROW_ROUTES)
def test_a_row_that_is_scored_holds_integers_of_any_kind_and_nothing_else(compactor, route):
    expected = ROW_ROUTES[route](compactor, IDS)
    for of in list(KINDS.values())[:4]:
        assert ROW_ROUTES[route](compactor, of(IDS)) == expected
    for ids in [ids for ids in NO_IDS if isinstance(ids, list)]:
        with pytest.raises(ValueError, match="no id of"):
            ROW_ROUTES[route](compactor, ids)


@pytest.mark.parametrize("route", ID_ROUTES)
def test_every_kind_of_integer_is_the_same_token(compactor, route):
    expected = ID_ROUTES[route](compactor, IDS)
    for kind, of in KINDS.items():
        found = ID_ROUTES[route](compactor, of(IDS))
        assert found == expected, kind
        assert repr(found) == repr(expected), f"{kind}: what comes of them is Python's"


@pytest.mark.parametrize("route", ID_ROUTES)
def test_what_is_no_token_id_is_refused(compactor, route):
    for ids in NO_IDS:
        with pytest.raises(ValueError, match="no id of|outside the vocab|lists? of token ids|not a string"):
            ID_ROUTES[route](compactor, ids)


def test_text_is_asked_for_where_it_is_taken_alone(compactor):
    for route in (
        lambda: compactor.prompts.plain("hello"),
        lambda: compactor.generate("generator", ["hello"], max_new_tokens=2),
        lambda: compactor.decode("hello"),
        lambda: rows_of([5], [], "hello"),
    ):
        with pytest.raises(
            ValueError, match="(The text|A prompt|What is decoded|A target) must be a list of token ids, got str"
        ):
            route()
    with pytest.raises(ValueError, match="The cue must be text or a list of token ids, got bytes"):
        compactor.token_ids(b"hello", "The cue")


def test_an_id_beyond_the_vocabulary_is_refused_with_its_bounds(compactor):
    most = len(compactor.tokenizer) - 1
    compactor.compress([5, most])
    for value in (most + 1, np.int64(most + 1), torch.tensor(10**6)):
        with pytest.raises(
            ValueError, match=f"The context holds .*Give whole numbers from 0 to {most}, as the pair's"
        ):
            compactor.compress([5, value])


@pytest.mark.parametrize("value", [True, 2.0, "5", -1, 10**6, None])
@pytest.mark.parametrize("field", ["prompt", "input"])
def test_a_servers_client_is_told_what_is_no_token_id(compactor, field, value):
    schema = CompletionRequest if field == "prompt" else CompressRequest
    with engine_of(compactor, max_new_tokens=24) as engine, pytest.raises(ApiError) as error:
        answer = engine.complete if field == "prompt" else engine.compress
        answer(parse(json.dumps({field: [5, value]}).encode(), schema), lambda text: None)
    assert error.value.status == 400 and field in str(error.value)


# ---- Several ----


@pytest.mark.parametrize("route", LISTS)
def test_one_text_is_not_taken_for_several(compactor, route):
    for value in no_lists(route):
        with pytest.raises(ValueError, match=f"^`{route.split()[-1]}` takes a list of .*, and got one .*: [a-z`]"):
            LISTS[route](compactor, value)


@pytest.mark.parametrize("value", ["12", b"12", {1: 2}, 5, None, torch.tensor(3), np.array(3), np.int64(3)])
def test_one_number_is_not_taken_for_several(value):
    with pytest.raises(ValueError, match="^`last_k` takes a list of whole numbers, got .*: put them in a list"):
        whole_numbers("last_k", value)
    for given in ([2, 3], (2, 3), np.array([2, 3]), torch.tensor([2, 3])):
        assert whole_numbers("last_k", given) == [2, 3]


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


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", True, None, [1.0], 1j, torch.tensor(True)])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="`share` must be a finite number, got"):
        finite_number("share", value)


def test_numbers_are_pythons():
    for value in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 0.5):
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
