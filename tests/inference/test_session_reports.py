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

"""What a session says of its compactions: facts kept and dropped, expected costs, how to take one back, and what it recalls."""

import dataclasses
import json
import re

import pytest
import torch
from tiny import PARAGRAPH, make_model
from tiny_pairs import in_eval, make_adapter_pair, make_pair
from tiny_sessions import GIST, TARGET, make_compactor

from trl_gist import GistCompactor
from trl_gist.inference.certify import expected_kls
from trl_gist.inference.chat_template import ChatTemplate
from trl_gist.inference.facts import facts_of_text, kept_and_dropped


MODES = ("rolling", "chain")
CITIES = (
    "Oslo",
    "New York",
    "Turin",
    "Rome",
    "São Paulo",
    "Kyoto",
    "Bonn",
    "Cape Town",
    "Lima",
    "Łódź",
    "Bern",
    "Minsk",
)
CARGO = [fact for n, city in enumerate(CITIES) for fact in (str(1000 + 37 * n), city)]
STREAM = "".join(
    f"Then box {number} went to {city} by cart. " for number, city in zip(CARGO[::2], CARGO[1::2], strict=True)
)


def test_a_name_in_the_possessive_is_the_same_fact():
    facts = facts_of_text("Then Plato met Aristotle. Later he read Aristotle’s book, and Mary Smith's.")
    assert facts == ["Plato", "Aristotle", "Mary Smith's"]
    kept = kept_and_dropped(facts, "Here Aristotle's, and Mary Smith")
    assert kept == {"facts_kept": ["Aristotle", "Mary Smith's"], "facts_dropped": ["Plato"]}


@pytest.fixture(scope="module")
def compactor():
    return make_compactor()


@pytest.fixture(scope="module")
def roomy():
    """Gists of 20 tokens, so that something fits beside what S writes."""
    base = make_compactor()
    pair = dataclasses.replace(base.pair, context_length=70, max_gist_length=20, tail_length=20)
    return GistCompactor(base.summarizer, base.generator, base.tokenizer, pair)


@pytest.fixture(scope="module")
def ids(compactor):
    return compactor.tokenizer(PARAGRAPH * 3)["input_ids"]


def budget_of(recursion, gist):
    return None if recursion == "rolling" else 4 * (gist + 1)


def state(session):
    return json.dumps(
        session.state | {"history": [dataclasses.asdict(row) | {"seconds": 0} for row in session.history]}
    )


# ---- Facts ----


@pytest.mark.parametrize("recursion", MODES)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_each_fact_that_was_folded_is_kept_or_was_dropped_once(compactor, recursion, step):
    stream, read = compactor.tokenizer(STREAM)["input_ids"], []
    session = compactor.session(gist_budget=budget_of(recursion, GIST))
    session.after_compaction = lambda session, row: read.append(
        f"{session.gist} | {compactor.decode(session.live.token_ids)}"
    )
    for start in range(0, len(stream), step):
        session.append(stream[start : start + step])
    assert len(session.history) > 8
    folded = compactor.decode(stream[: session.history[-1].spans[-1][1]])
    expected = [fact for fact in CARGO if re.search(rf"\b{fact}\b", folded)]
    dropped = [fact for row in session.history for fact in row.facts_dropped]
    kept = session.history[-1].facts_kept
    assert sorted(dropped + kept) == sorted(expected) and len(dropped) > 10
    for row, text in zip(session.history, read, strict=True):
        assert all(all(word in text for word in fact.split()) for fact in row.facts_kept)
        # All words of New York may stand apart; none of these facts has all of its own elsewhere
        assert not any(re.search(rf"\b{fact}\b", text) for fact in row.facts_dropped)


def test_what_is_protected_is_not_dropped(compactor):
    session = compactor.session()
    session.append("Box 4711 and", protected=True)
    session.append(" box 4711 went to Oslo by cart. " + STREAM)
    assert "4711" in session.history[-1].facts_kept
    assert "Oslo" in [fact for row in session.history for fact in row.facts_dropped]


# ---- What gists must have ----


@pytest.mark.parametrize("recursion", MODES)
@pytest.mark.parametrize(
    ("keep", "text", "span"),
    [
        ("4711", "My number is 4711. ", "4711"),
        ("names", "We met Joseph Bazalgette in town. ", "Joseph Bazalgette"),
        ("numbers", "My number is 4711. ", "4711"),
        (r"regex:(?<=number is )\d+", "My number is 4711. ", "4711"),
        (["dates", "numbers"], "He was born on 3 May 1813 in town. ", "3 May 1813"),
    ],
    ids=str,
)
def test_what_is_to_be_kept_survives_any_number_of_windows(roomy, recursion, keep, text, span):
    filler = "then they went on and on along the same old road without an end in sight or a word to say "
    session = roomy.session(gist_budget=budget_of(recursion, 20), keep=keep)
    session.append(text)
    session.append(filler * 12)
    assert len(session.history) > 7
    for row in session.history[1:]:
        # What S invents in its gists is none of what was asked for
        assert row.kept[:1] == [span] and set(row.kept) <= {span, *span.split()} and not row.not_kept
        assert span in row.gist
    assert all(len(gist.token_ids) <= 20 for gist in session.gists)


@pytest.mark.parametrize("recursion", MODES)
@pytest.mark.parametrize("words", [4, 9, 14, 19, 24])
def test_it_survives_wherever_it_stood(roomy, recursion, words):
    filler = ("then they went on and on along the same old road without an end in sight " * 12).split()
    session = roomy.session(gist_budget=budget_of(recursion, 20), keep=["dates", "4711"])
    session.append(" ".join([*filler[:words], "to berth 4711 on 3 May 1813", *filler[words:]]))
    rows = [row for row in session.history if "4711" in row.facts_kept and "3 May 1813" in row.facts_kept]
    assert len(rows) > 3 and rows == session.history[-len(rows) :]
    assert all({"4711", "3 May 1813"} <= {*row.kept} for row in rows[2:])
    assert "4711" in session.gist and "1813" in session.gist


@pytest.mark.parametrize("keep", ["names", r"regex:(?<=saw )Joseph Bazalgette", "Joseph Bazalgette"])
@pytest.mark.parametrize("off", [-1, 0])
def test_it_survives_where_a_chunk_begins_with_it(roomy, keep, off):
    """A name at the head of a text may be any word, and a pattern may look back."""
    filler, said, before = (
        roomy.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("then they went on along the road " * 40, " and saw Joseph Bazalgette go", " and saw")
    )
    session = roomy.session(keep=keep)
    place = session.settings.chunk_length + off
    session.append([*filler[: place - len(before)], *said, *filler[:150]])
    first, *later = session.history
    assert first.spans[-1][1] - place in (0, 1) and not first.kept and len(later) > 2
    assert all(row.kept == ["Joseph Bazalgette"] and "Joseph Bazalgette" in row.gist for row in later)


def test_what_is_kept_is_whole_however_chunks_would_cut_it(roomy):
    session = roomy.session(keep="numbers")
    session.append(STREAM)
    rows = session.history
    assert len(rows) > 4
    found = {span for row in rows for span in (*row.kept, *row.not_kept)}
    assert found <= set(CARGO) and len(found) > 8
    assert all(set(row.kept) <= set(re.findall(r"\d+", row.gist)) for row in rows)
    plain = roomy.session()
    plain.append(STREAM)
    assert {span for row in plain.history for span in row.kept} == set()


def test_keep_is_saved_with_the_session_and_patterns_must_be_written(roomy, tmp_path):
    whole, saved = (roomy.session(keep=["4711", "numbers"]) for _ in range(2))
    for session in (whole, saved):
        session.append("My number is 4711. " + STREAM[:200])
    saved.save(tmp_path / "session")
    loaded = roomy.load_session(tmp_path / "session")
    for session in (whole, loaded):
        session.append(STREAM[200:])
    assert state(loaded) == state(whole) and "4711" in loaded.gist
    with pytest.raises(ValueError, match=r"`keep` holds re.compile\('x'\), and a session, .* 'regex:...'"):
        roomy.session(keep=[re.compile("x")])
    with pytest.raises(ValueError, match="`keep` holds '', which is empty"):
        roomy.session(keep="")


# ---- Undo ----


@pytest.mark.parametrize("recursion", MODES)
def test_an_undone_compaction_leaves_no_trace(roomy, recursion, tmp_path):
    session = roomy.session(
        gist_budget=budget_of(recursion, 20), measure=True, keep="numbers", autosave=tmp_path / "session"
    )
    session.append("Box 17.", protected=True)
    session.append(STREAM[:300])
    before = json.loads(state(session))
    compaction = session.compact()
    assert json.loads(state(session))["history"] != before["history"]
    assert session.undo() == compaction
    after = json.loads(state(session))
    assert before.pop("undo") and after.pop("undo") is None
    assert after == before
    loaded = json.loads(state(roomy.load_session(tmp_path / "session")))
    assert loaded.pop("undo") is None and loaded == before
    assert dataclasses.replace(session.compact(), seconds=0) == dataclasses.replace(compaction, seconds=0)
    assert len(list(tmp_path.glob("session.*.jsonl"))) == 1


def test_a_loaded_session_may_undo_and_text_that_came_since_stays(compactor, ids, tmp_path):
    session, plain = compactor.session(), compactor.session()
    for each in (session, plain):
        each.append(ids[:120])
    session.append(ids[120:124])
    session.save(tmp_path / "session")
    loaded = compactor.load_session(tmp_path / "session")
    last = loaded.undo()
    assert loaded.room < 0 or len(loaded.history) == len(session.history) - 1
    assert [token.position for token in loaded.live.tokens] == list(range(last.spans[0][0], 124))
    loaded.append(ids[124:200])  # which folds the chunk again
    plain.append(ids[120:200])
    assert [row.gist for row in loaded.history] == [row.gist for row in plain.history]
    assert loaded.token_ids == plain.token_ids
    assert loaded.generate(20).token_ids == plain.generate(20).token_ids


def test_what_was_dropped_can_be_protected_instead(compactor):
    def keep_boxes(session, row):
        if "1000" in row.facts_dropped:
            session.undo()
            text = "".join(compactor.decode([token.token_id]) for token in session.live.tokens)
            assert "1000" in text
            first = session.live.tokens[0].position
            session.protect(first, first + 12)

    session = compactor.session(after_compaction=keep_boxes)
    session.append(STREAM)
    assert not any("1000" in row.facts_dropped for row in session.history)
    assert "1000" in compactor.decode(session.live.token_ids)


def test_only_the_last_compaction_can_be_undone_and_once(compactor, ids, tmp_path):
    session = compactor.session()
    with pytest.raises(ValueError, match="no compaction to undo: 0 took place"):
        session.undo()
    session.append(ids[:120])
    session.undo()
    with pytest.raises(ValueError, match="only the last one can be undone, once"):
        session.undo()


@pytest.mark.parametrize("where", ["after_compaction", "save", "compress_batch"])
def test_a_compaction_that_fails_leaves_the_session_as_it_was(compactor, ids, tmp_path, monkeypatch, where):
    session = compactor.session(measure=True, autosave=tmp_path / "session")
    session.append(ids[:120])
    before, calls = state(session), []

    def fail(*args, **settings):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return save(*args)

    save = session.save
    with monkeypatch.context() as patch:
        patch.setattr(compactor if where == "compress_batch" else session, where, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            session.compact()
    assert state(session) == before == state(compactor.load_session(tmp_path / "session"))


# ---- Expected costs ----


@pytest.mark.parametrize("kind", ["generator", "teacher"])
def test_what_a_compaction_is_expected_to_cost_is_the_kl_to_a_reader_of_the_window_before(kind, tokenizer):
    if kind == "teacher":
        compactor = make_adapter_pair(tokenizer)
    else:
        compactor = GistCompactor(*(in_eval(make_model(tokenizer, n)) for n in (0, 1)), tokenizer, make_pair())
    compactor.pair = dataclasses.replace(compactor.pair, context_length=60, max_gist_length=12)
    seen, newline = {}, list(compactor.prompts.tokenize("\n"))
    session = compactor.session(
        certify=True,
        before_compaction=lambda session, plan: seen.update({plan.index: (session.gist_ids, session.live.token_ids)}),
    )
    session.append(PARAGRAPH)
    assert len(session.history) > 2
    torch.manual_seed(3)
    session.compact()
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(3))
    for row in session.history[:2]:
        gist, live = seen[row.index]
        whole = [*gist, *(newline if gist else []), *live] if kind == "teacher" else live
        stays = live[row.tokens_in :]
        if kind == "teacher" or not gist:
            (expected,) = expected_kls(compactor, [whole], [stays], [row.gist_ids])
            assert (row.expected_kl, row.expected_kl_se) == (expected["expected_kl"], expected["expected_kl_se"])
        assert row.expected_kl > 0 and row.expected_kl_se > 0 and row.expected_kl_reader == kind
    plan, preview = session.preview_compaction()
    assert preview.expected_kl > 0 and compactor.session().settings.certify is False


@pytest.mark.parametrize("way", ["certify", "search", "session", "chat"])
def test_continuations_are_drawn_while_no_other_thread_samples(tokenizer, monkeypatch, way):
    """To draw them takes the random state that all threads share."""

    class Lock:
        depth = 0

        def __enter__(self):
            self.depth += 1

        def __exit__(self, *args):
            self.depth -= 1

    pair, lock, drawn = make_adapter_pair(tokenizer), Lock(), []
    pair.lock, seed = lock, torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda value: drawn.append(lock.depth > 0) or seed(value))
    if way in ("certify", "search"):
        pair.compress(tokenizer(PARAGRAPH)["input_ids"][:100], **{way: True})
    elif way == "session":
        session = pair.session(certify=True)
        session.append(tokenizer(PARAGRAPH)["input_ids"][:100])
        session.compact()
    else:
        chat = [{"role": "user", "content": f"{n} {PARAGRAPH[:60]}"} for n in range(8)]
        pair.compact_messages(chat, len(ChatTemplate(tokenizer).ids(chat[-1:])) + 100, certify=True)
    assert drawn and all(drawn)


def test_a_window_that_leaves_no_room_for_continuations_is_refused(compactor, ids):
    with pytest.raises(
        ValueError, match=rf"`certify` reads {TARGET} tokens .* `window` \(509\) .* Lower it to {512 - TARGET}"
    ):
        compactor.session(window=509, certify=True)
    session = compactor.session(window=512 - TARGET, certify=True)
    session.append(ids[:400])
    session.append(ids)
    session.undo()
    session.append(ids[:2])  # more than a window was folded at once: that may be too much to read
    assert session.history[-1].gist


def test_a_chat_that_leaves_no_room_for_continuations_is_refused(tokenizer, monkeypatch):
    pair = make_adapter_pair(tokenizer)
    chat = [{"role": "user", "content": f"{n} {PARAGRAPH[:60]}"} for n in range(8)]
    form = ChatTemplate(tokenizer)
    tokens, most = form.count(chat), form.count(chat[-1:]) + 100
    monkeypatch.setattr(pair.generator.config, "max_position_embeddings", tokens + pair.pair.target_length)
    assert pair.compact_messages(chat, most, certify=True).expected_kl > 0
    monkeypatch.setattr(pair.generator.config, "max_position_embeddings", tokens + pair.pair.target_length - 1)
    with pytest.raises(
        ValueError, match=rf"`certify` .* {tokens} tokens, .* for {tokens - 1}\. Leave it out, or shorten"
    ):
        pair.compact_messages(chat, most, certify=True)


# ---- Recall ----


def log_probs(compactor, prompt):
    with torch.no_grad():
        return compactor.generator(torch.tensor([prompt]), use_cache=False).logits[0, -1].log_softmax(-1)


def greedy(compactor, prompt, most, ends):
    """The likeliest tokens after a prompt and their probabilities, one forward without a cache for each."""
    said, probabilities = [], []
    while len(said) < most and not (said and said[-1] in ends):
        step = log_probs(compactor, prompt + said)
        said.append(step.argmax().item())
        probabilities.append(step.max().exp().item())
    return said, probabilities


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("ends_early", [False, True])
def test_recall_says_what_the_generator_would_and_how_sure_it_is(compactor, ids, monkeypatch, live, ends_early):
    session = compactor.session()
    session.append(ids[:130])
    before, cue = state(session), compactor.tokenizer(" The pump was in")["input_ids"]
    newline = list(compactor.prompts.tokenize("\n"))
    prompt = compactor.prompts.generator(session.gist_ids, [*session.live.token_ids, *newline, *cue] if live else cue)
    ends = [compactor.tokenizer.eos_token_id]
    if ends_early:
        ends = [greedy(compactor, prompt, 6, ends)[0][4], *ends]
        monkeypatch.setattr(compactor.generator.generation_config, "eos_token_id", ends)
    said, probabilities = greedy(compactor, prompt, 6, ends)
    found = session.recall(" The pump was in", max_new_tokens=6, alternatives=5, live=live)
    assert state(session) == before
    assert found.ended == ends_early == (said[-1] in ends)
    assert found.token_ids == (said[:-1] if found.ended else said) and found.text == compactor.decode(found.token_ids)
    assert found.token_probabilities == pytest.approx(probabilities)
    assert found.probability == pytest.approx(torch.tensor(probabilities).double().prod().item())
    # Of all ways to leave the answer, the five likeliest, each gone on with
    ways = []
    for place in range(len(said)):
        step = log_probs(compactor, prompt + said[:place]).exp()
        before = torch.tensor(probabilities[:place]).double().prod().item()
        ways += [(before * p, place, token) for token, p in enumerate(step.tolist()) if token != said[place]]
    unreadable = compactor.prompts.special_ids - {*ends}
    ways = sorted((way for way in ways if way[2] not in unreadable), reverse=True)[:5]
    expected = []
    for _, place, token in ways:
        start = [*said[:place], token]
        more = greedy(compactor, prompt + start, 6 - len(start), ends) if token not in ends else ([], [])
        whole = [*probabilities[:place], log_probs(compactor, prompt + said[:place])[token].exp().item(), *more[1]]
        expected.append((torch.tensor(whole).double().prod().item(), [*start, *more[0]]))
    expected.sort(reverse=True)
    assert [other.probability for other in found.alternatives] == pytest.approx([p for p, _ in expected])
    assert [other.token_ids for other in found.alternatives] == [
        tokens[:-1] if tokens[-1] in ends else tokens for _, tokens in expected
    ]
    assert all(other.alternatives == [] for other in found.alternatives)


def test_recall_needs_a_text_a_cue_and_a_number_of_tokens(compactor):
    session = compactor.session()
    with pytest.raises(ValueError, match="The session is empty: `append`"):
        session.recall("The pump")
    session.append("cholera")
    assert session.recall("The pump", alternatives=0).alternatives == []
    every = session.recall("The pump", max_new_tokens=1, alternatives=10**6)
    unreadable = compactor.prompts.special_ids - {compactor.tokenizer.eos_token_id}
    assert len(every.alternatives) == len(compactor.tokenizer) - 1 - len(unreadable)
    assert sum(each.probability for each in (every, *every.alternatives)) <= 1 + 1e-6
    for settings, message in (
        ({"cue": ""}, "The cue is empty"),
        ({"cue": "The", "max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
        ({"cue": "The", "alternatives": -1}, "`alternatives` must be at least 0"),
        ({"cue": "The", "max_new_tokens": 600}, "The generator would need .* positions"),
    ):
        with pytest.raises(ValueError, match=message):
            session.recall(**settings)
