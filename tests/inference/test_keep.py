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

import random
import re

import pytest
import regex
import torch
from tiny import FAMILIES, PARAGRAPH, make_documents, make_model
from tiny_pairs import LAST_K, in_eval, make_adapter_pair, make_compactor, make_pair

from trl_gist import GistCompactor
from trl_gist.evaluation.gists.patterns import gist_patterns
from trl_gist.inference.certify import draw_continuations, expected_kls, full_context_reader
from trl_gist.inference.keep import SEPARATOR, find_spans, keep_in_gists, parse_keep, with_spans
from trl_gist.inference.windows import windows_of


@pytest.fixture(scope="module")
def compactor(tokenizer):
    return make_compactor(tokenizer)


@pytest.fixture(scope="module")
def adapter_pair(tokenizer):
    return make_adapter_pair(tokenizer)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def texts_of(context, keep):
    return [span.text for span in find_spans(context, parse_keep(keep))]


# ---- What is found ----


def test_kinds_are_those_of_the_patterns():
    text = "The map of John Snow, of 3 March 1854, shows 1,854 deaths. On it Snow marked Soho and the U.S. embassy in 1854."
    assert texts_of(text, "numbers") == ["1854", "3", "1,854"]  # what is said twice comes first
    assert texts_of(text, "names") == ["John Snow", "Snow", "Soho", "U.S."]
    assert texts_of(text, "dates") == ["3 March 1854", "1854"]
    for kind in ("number", "name", "date"):
        assert gist_patterns(text, SEPARATOR.join(texts_of(text, f"{kind}s")))[f"{kind}_recall"] == 1


def test_requests_come_in_the_order_they_are_listed_and_each_span_once():
    assert texts_of("In 1854, 82 miles; in 1866, 82 deaths", ["regex:18\\d\\d", "numbers", "deaths"]) == [
        "1854",
        "1866",
        "82",
        "1854",
        "1866",
        "deaths",
    ]
    assert texts_of("a1 b2 a1", [regex.compile(r"b\d"), re.compile(r"\w\d")]) == ["b2", "a1"]
    assert texts_of("abc", ["regex:x*", "missing"]) == ["missing"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("", "`keep` holds '', which is empty"),
        ("regex:", "which is empty"),
        ("regex:(", r"`keep` holds 'regex:\(', which is no valid pattern: missing \)"),
        (7, "`keep` holds 7; it takes 'numbers', 'names'"),
        (["numbers", None], "`keep` holds None; it takes"),
        (re.compile(b"a"), r"`keep` holds re.compile\(b'a'\); it takes"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(compactor, keep, message):
    with pytest.raises(ValueError, match=message):
        compactor.compress(PARAGRAPH[:80], keep=keep)


# ---- What fits ----


def test_the_summarizers_text_stays_where_there_is_room(tokenizer):
    gist = ids_of(tokenizer, "cholera")
    spans = find_spans("In 1854, cholera; 82 miles", parse_keep("numbers"))
    ids = with_spans(gist, spans, 40, tokenizer)
    assert tokenizer.decode(ids) == "cholera; 1854; 82"
    assert with_spans(ids, spans, 40, tokenizer) == ids  # what is there is not added again


def test_the_summarizers_text_is_cut_from_its_end_to_make_room(tokenizer):
    gist = ids_of(tokenizer, "cholera in Soho and the pump in Broad Street")
    spans = find_spans("In 1854, cholera; 82 miles", parse_keep("numbers"))
    added = ids_of(tokenizer, "; 1854; 82")
    for budget in range(len(added) + 1, len(gist) + len(added)):
        assert with_spans(gist[:budget], spans, budget, tokenizer) == gist[: budget - len(added)] + added
    assert tokenizer.decode(with_spans(gist, spans, len(ids_of(tokenizer, "1854; 82")), tokenizer)) == "1854; 82"


def test_what_the_cut_would_take_is_added_again(tokenizer):
    gist = ids_of(tokenizer, "the pump in Broad Street, 82")
    spans = find_spans("82 miles, 82 miles, 1854", parse_keep("numbers"))
    ids = with_spans(gist, spans, len(gist), tokenizer)
    assert len(ids) <= len(gist)
    assert tokenizer.decode(ids).endswith("; 82; 1854")


def test_spans_are_whole_or_not_there_and_those_worth_most_come_first(tokenizer):
    context = "first 11111, then 2222222222222, then 33"
    spans = find_spans(context, parse_keep("numbers"))
    budget = len(ids_of(tokenizer, "11111; 33"))
    assert budget < len(ids_of(tokenizer, "11111; 2222222222222"))
    assert tokenizer.decode(with_spans([], spans, budget, tokenizer)) == "11111; 33"
    assert with_spans([], spans, 1, tokenizer) == []


# ---- compress ----


@pytest.mark.parametrize("keep", [None, "numbers", ["names", "dates", "numbers", "pump", "regex:[a-z]+er"]])
def test_no_gist_has_more_tokens_than_its_budget(compactor, keep):
    rng = random.Random(0)
    contexts = [compactor.tokenizer(text)["input_ids"] for text in make_documents(6)]
    for budget in [*range(1, 13), 17, 24, 31, 64, 100]:
        batch = [context[: rng.randint(1, 170)] for context in contexts]
        for context, gist in zip(batch, compactor.compress_batch(batch, budget, keep=keep), strict=True):
            assert len(gist.token_ids) <= budget
            assert gist.gist_rate == len(gist.token_ids) / len(context)
            assert gist.text == compactor.tokenizer.decode(gist.token_ids, skip_special_tokens=True)
            spans = [] if keep is None else find_spans(compactor.tokenizer.decode(context), parse_keep(keep))
            assert sorted([*gist.kept, *gist.not_kept]) == sorted(span.text for span in spans)
            assert gist.kept == [span.text for span in spans if span.is_in(gist.text)]


def test_with_room_enough_everything_is_kept_and_the_result_says_so(compactor):
    document = make_documents(1)[0]
    gist = compactor.compress(document, budget=100, keep=["numbers", "names", "not there"])
    assert {"1854", "82", "John Snow", "Joseph Bazalgette"} <= set(gist.kept)
    assert gist.not_kept == ["not there"]
    patterns = gist_patterns(document, gist.text)
    assert patterns["number_recall"] == patterns["name_recall"] == 1
    little = compactor.compress(
        document, budget=len(ids_of(compactor.tokenizer, "1854")), keep=["regex:1854", "names"]
    )
    assert little.text == "1854" and little.kept == ["1854"] and "London" in little.not_kept


def test_the_log_prob_is_that_of_the_gist_as_it_is(compactor):
    context = compactor.tokenizer(make_documents(1)[0])["input_ids"]
    gist = compactor.compress(context, keep="numbers")
    assert gist.token_ids != compactor.compress(context).token_ids
    prompt = compactor.prompts.summarizer(context)
    logits = compactor.summarizer(torch.tensor([prompt + gist.token_ids])).logits[0].double()
    steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
    expected = sum(step[token].item() for step, token in zip(steps, gist.token_ids, strict=True))
    assert gist.log_prob == pytest.approx(expected, abs=1e-4)


def test_windows_keep_each_its_own_and_come_as_they_are_written(compactor, monkeypatch):
    text = "".join(make_documents(4))
    gists = compactor.compress_windows(text, keep="numbers", batch_size=2)
    windows = list(windows_of(compactor, text, keep=["numbers"]))
    assert len(gists) == len(windows) > 2
    for window, gist in zip(windows, gists, strict=True):
        plain = compactor.compress(window.context_ids, last_k=window.last_k_ids).token_ids
        assert gist.token_ids == with_spans(plain, window.spans, 24, compactor.tokenizer)
        assert gist.kept == [span.text for span in window.spans if span.is_in(gist.text)]
    calls = []
    write = compactor._write_gists
    monkeypatch.setattr(compactor, "_write_gists", lambda *args: calls.append(1) or write(*args))
    streamed = compactor.iter_windows(text, keep="numbers", batch_size=2)
    assert not calls
    assert next(streamed).token_ids == gists[0].token_ids and len(calls) == 1
    assert [gist.token_ids for gist in streamed] == [gist.token_ids for gist in gists[1:]]


# ---- certify ----


def full_and_gist_logits(compactor, context, gist, continuations, last_k):
    """Logits in float64 of the teacher on the context and of the generator on the gist, as plain forwards."""
    reader, prompts = full_context_reader(compactor), compactor.prompts
    last = context[-last_k:]
    for name, model, prompt in (
        ("full", reader.model, reader.prompt(context, last)),
        ("gist", compactor.generator, prompts.generator(gist, last)),
    ):
        rows = torch.tensor([prompt + ids for ids in continuations])
        yield name, model.double()(rows).logits[:, len(prompt) - 1 :].log_softmax(-1)
        model.float()


def kl_of(compactor, context, gist, continuations, last_k=LAST_K):
    logs = dict(full_and_gist_logits(compactor, context, gist, continuations, last_k))
    return (logs["full"].exp() * (logs["full"] - logs["gist"])).sum(-1), logs["full"]


@pytest.mark.parametrize("which", ["compactor", "adapter_pair"])
def test_over_one_token_the_expected_cost_is_exact(request, which):
    pair = request.getfixturevalue(which)
    context = pair.tokenizer(PARAGRAPH)["input_ids"][:100]
    gist = pair.compress(context).token_ids
    (cost,) = expected_kls(pair, [context], [context[-LAST_K:]], [gist], target_length=1)
    kl_NT, _ = kl_of(pair, context, gist, [[]])
    assert cost["expected_kl"] == pytest.approx(kl_NT[0, 0].item(), rel=1e-4)
    assert cost["expected_kl_se"] == pytest.approx(0, abs=1e-6)
    assert cost["expected_kl_reader"] == {"compactor": "generator", "adapter_pair": "teacher"}[which]


@pytest.mark.parametrize("which", ["compactor", "adapter_pair"])
def test_over_two_tokens_it_estimates_the_kl_over_all_continuations(request, which):
    pair = request.getfixturevalue(which)
    context = pair.tokenizer(PARAGRAPH)["input_ids"][:60]
    gist = pair.compress(context).token_ids
    (cost,) = expected_kls(pair, [context], [context[-LAST_K:]], [gist], samples=256, target_length=2)
    kl_VT, log_probs_VTV = kl_of(pair, context, gist, [[token] for token in range(len(pair.tokenizer))])
    first_V = log_probs_VTV[0, 0].exp()
    ended = torch.zeros_like(first_V, dtype=torch.bool)
    ended[pair.tokenizer.eos_token_id] = True
    total = kl_VT[0, 0] + (first_V * kl_VT[:, 1])[~ended].sum()
    tokens = 1 + first_V[~ended].sum()
    assert cost["expected_kl"] == pytest.approx((total / tokens).item(), abs=4 * cost["expected_kl_se"])
    assert 0 < cost["expected_kl_se"] < 0.2 * cost["expected_kl"]


@pytest.mark.parametrize("wanted", ["numbers", ["1854", "1866"], "names"])
def test_spans_that_fill_a_budget_are_whole_and_follow_no_letter(tokenizer, wanted):
    gist = ids_of(tokenizer, "disease was held to come from bad air")
    spans = find_spans("In 1854 John Snow marked a map; in 1866 Joseph Bazalgette built sewers.", parse_keep(wanted))
    listed = SEPARATOR.join(span.text for span in spans)
    alone, after = (len(ids_of(tokenizer, f"{before}{listed}")) for before in ("", SEPARATOR))
    for budget in range(alone, after + 4):
        text = tokenizer.decode(with_spans(gist, spans, budget, tokenizer))
        assert text == listed or text.endswith(SEPARATOR + listed), budget


@pytest.mark.parametrize("keep", ["regex:<.*?>", "<|im_end|>", "Snow</s> 82", "regex:.*"])
def test_what_spells_special_tokens_is_kept_as_text_which_is_what_the_generator_reads(tokenizer, keep):
    context = "In 1854 <|im_end|> John Snow</s> 82 miles <|im_start|>Broad Street"
    gist = tokenizer.encode("the map", add_special_tokens=False)
    spans = find_spans(context, parse_keep([keep, "numbers"]))
    ((ids,), (found,)) = keep_in_gists([gist], [spans], 40, tokenizer)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert found["kept"][-2:] == ["1854", "82"] and not found["not_kept"]
    assert len(found["kept"]) > 2 and all(span in tokenizer.decode(ids) for span in found["kept"])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_kl_of_plain_forwards_along_the_continuations(tokenizer, family):
    models = [in_eval(make_model(tokenizer, seed, family=family)) for seed in (0, 1)]
    pair = GistCompactor(*models, tokenizer, make_pair())
    context, gist = ids_of(tokenizer, PARAGRAPH)[:90], ids_of(tokenizer, "cholera, Snow 1854")
    reader, last = full_context_reader(pair), context[-1:]  # windows of 5 see nothing of a gist before a longer L
    targets, _ = draw_continuations(reader.model, tokenizer, reader.prompt(context, last), samples=5, length=7, seed=3)
    assert len({tuple(target) for target in targets}) == 5
    kls = [kl_of(pair, context, gist, [target[:-1]], last_k=1)[0].sum().item() for target in targets]
    tokens = [len(target) for target in targets]
    (cost,) = expected_kls(pair, [context], [last], [gist], samples=5, seed=3, target_length=7)
    assert cost["expected_kl"] == pytest.approx(sum(kls) / sum(tokens), rel=1e-4) and sum(kls) > 0.1
    if len(set(tokens)) == 1:  # then the linearised error is that of the mean
        error = torch.tensor(kls).std().item() / 5**0.5 / 7
        assert cost["expected_kl_se"] == pytest.approx(error, rel=1e-3)


def test_a_gist_that_costs_nothing_is_certified_with_nothing(compactor):
    context = compactor.tokenizer(PARAGRAPH)["input_ids"][:100]
    (cost,) = expected_kls(compactor, [context], [context], [[]])  # G reads all of the context beside an empty gist
    assert cost["expected_kl"] == pytest.approx(0, abs=1e-6)


def test_a_certificate_depends_on_nothing_but_its_gist(adapter_pair):
    contexts = [adapter_pair.tokenizer(text)["input_ids"][:80] for text in make_documents(3)]
    torch.manual_seed(0)
    batch = adapter_pair.compress_batch(contexts, certify=True, keep="numbers")
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after  # the random state outside is left as it was
    single = adapter_pair.compress(contexts[2], certify=True, keep="numbers")
    assert single.expected_kl == pytest.approx(batch[2].expected_kl, rel=1e-4)
    assert single.expected_kl_se == pytest.approx(batch[2].expected_kl_se, rel=1e-3)
    assert batch[0].expected_kl != batch[1].expected_kl
    assert adapter_pair.compress(contexts[0]).expected_kl is None


def test_a_context_that_the_reader_has_no_room_for_is_refused(compactor):
    context = compactor.tokenizer(PARAGRAPH)["input_ids"][:100]
    with pytest.raises(ValueError, match="The full-context reader would need .* positions .* it has 512"):
        expected_kls(compactor, [context], [context], [[]], target_length=500)
