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

"""A searched gist: the pieces that lower the expected cost most, against plain searches."""

import pytest
import torch
from tiny import PARAGRAPH, make_documents
from tiny_pairs import LAST_K, make_adapter_pair, make_compactor

from trl_gist.inference.certify import draw_continuations, full_context_reader
from trl_gist.inference.search import exchange_pieces, search_gist


@pytest.fixture(scope="module", params=[make_compactor, make_adapter_pair], ids=["two_models", "adapter"])
def pair(request, tokenizer):
    return request.param(tokenizer)


def context_of(pair, text=PARAGRAPH, length=100):
    return pair.tokenizer(text, add_special_tokens=False)["input_ids"][:length]


# ---- Exchanging ----


def worth(values):
    """Costs of gists whose tokens are each worth what `values` says, once."""
    return lambda gists: [-sum(values.get(token, 0) for token in set(gist)) for gist in gists]


def test_each_piece_in_turn_gives_its_place_to_the_best_of_the_context():
    context = list(range(20))
    # The tail is 14-19. Its first piece goes for the best of the context, its second for the next best, its third stays
    found = exchange_pieces(context[-6:], context, 2, worth({8: 5, 3: 4, 18: 3}))
    assert found == [context[-6:], [8, 9, 16, 17, 18, 19], [2, 3, 8, 9, 18, 19], [2, 3, 8, 9, 18, 19]]
    assert exchange_pieces(context[-6:], context, 2, worth({8: 5, 3: 4, 18: 3}), exchanges=1) == found[:2]


def test_no_piece_stands_in_a_gist_twice():
    context = list(range(12))
    *_, found = exchange_pieces(context[-4:], context, 2, worth({0: 9, 1: 9}))
    assert found == [0, 1, 10, 11]


def test_what_is_better_as_it_is_stays_as_it_is():
    context = list(range(12))
    for gist in ([8, 9, 2, 3], [90, 91, 4, 5], [90, 3, 4, 5, 6]):  # in no order, with words of its own, of odd length
        values = dict.fromkeys(gist, 1)
        assert exchange_pieces(gist, context, 2, worth(values)) == [gist] * (len(gist) // 2 + 1)


def test_what_is_not_from_the_context_stands_behind_what_is():
    context = list(range(12))
    *_, found = exchange_pieces([90, 91, 92, 93], context, 2, worth({93: 1, 6: 1}))
    assert found == [6, 7, 92, 93]


def test_the_rest_of_a_gist_and_of_a_context_takes_no_part():
    context = list(range(11))  # 0 is the rest
    *_, found = exchange_pieces([90, 91, 92], context, 2, worth({0: 9, 5: 1, 90: -9}))
    assert found == [90, 5, 6]


# ---- By expected cost ----


def plain_cost(pair, context, gist, targets):
    """KL(reader ‖ generator), summed over the continuations' tokens, in float64 by whole forwards."""
    reader, last = full_context_reader(pair), context[-LAST_K:]
    total = 0.0
    for target in targets:
        logs = []
        for model, prompt in (
            (reader.model, reader.prompt(context, last)),
            (pair.generator, pair.prompts.generator(gist, last)),
        ):
            logits = model.double()(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            logs.append(logits.log_softmax(-1))
            model.float()
        total += (logs[0].exp() * (logs[0] - logs[1])).sum().item()
    return total


def test_the_piece_of_the_lowest_expected_cost_is_found(pair):
    exchanged = 0
    for text in make_documents(6):
        context = context_of(pair, text, 80)
        reader, last = full_context_reader(pair), context[-LAST_K:]
        gist = (pair.compress(context, budget=24).token_ids * 24)[:24]  # one piece, also without half characters
        targets, _ = draw_continuations(reader.model, pair.tokenizer, reader.prompt(context, last), 4, 6, seed=1)
        choices = [context[start : start + 24] for start in (0, 24, 48)] + [gist]
        best = min(choices, key=lambda choice: plain_cost(pair, context, choice, targets))
        assert search_gist(pair, context, last, gist, piece_length=24) == best
        exchanged += best != gist
    assert exchanged


def test_compress_searches_within_the_same_length(pair):
    contexts = [context_of(pair, text, 80) for text in make_documents(6)]
    both = [[pair.compress(context, search=search) for search in (False, True)] for context in contexts]
    assert all(len(searched.token_ids) == len(plain.token_ids) for plain, searched in both)
    context, (plain, searched) = next(
        (context, gists)
        for context, gists in zip(contexts, both, strict=True)
        if gists[0].token_ids != gists[1].token_ids
    )
    assert searched.gist_rate == plain.gist_rate and searched.total_rate == plain.total_rate
    assert searched.text == pair.tokenizer.decode(searched.token_ids, skip_special_tokens=True)
    # The log-prob is the summarizer's, of what it did not write
    prompt = pair.prompts.summarizer(context, context[-LAST_K:], pair.pair.tail_length)
    logits = pair.summarizer(torch.tensor([prompt + searched.token_ids])).logits[0, len(prompt) - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, torch.tensor(searched.token_ids)[:, None])
    assert searched.log_prob == pytest.approx(logps.sum().item(), abs=1e-3)


def test_a_search_depends_on_nothing_but_its_context(pair):
    contexts = [context_of(pair, text, 80) for text in make_documents(3)]
    torch.manual_seed(0)
    batch = pair.compress_batch(contexts, search=True, certify=True)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after  # the random state outside is left as it was
    assert pair.compress(contexts[2], search=True, certify=True) == batch[2]
    assert all(gist.expected_kl > 0 for gist in batch)


def test_what_is_to_be_kept_is_kept_in_a_searched_gist(pair):
    gist = pair.compress(context_of(pair), search=True, keep="numbers")
    assert gist.kept and len(gist.token_ids) <= 24


def test_where_there_is_no_gist_there_is_nothing_to_exchange(pair):
    context = context_of(pair)
    assert search_gist(pair, context, context[-LAST_K:], []) == []
    # All of the context is L: there is no piece to take
    assert search_gist(pair, context, context, [5, 6, 7]) == [5, 6, 7]


def test_special_tokens_are_no_part_of_a_searched_gist(pair):
    special = pair.tokenizer.eos_token_id
    context = context_of(pair)
    context[20:20] = context[60:60] = [special]
    last, gist = context[-LAST_K:], [*context[30:50], special]
    found = search_gist(pair, context, last, gist, piece_length=5)
    assert len(found) == 20 and special not in found
