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

"""Sessions against what they say, written out plainly: every token is accounted for, and every gist is S's of stated ids."""

import dataclasses
import json
import threading

import pytest
import torch
from tiny import PARAGRAPH
from tiny_sessions import CONTEXT, GIST, LAST_K, TARGET, make_compactor
from transformers import TextIteratorStreamer, TextStreamer

from trl_gist.common.tokens import characters_of
from trl_gist.inference.session.session import Session
from trl_gist.prompts import SUMMARIZER_PROMPT


MODES = {"rolling": None, "chain": 4 * (GIST + 1)}  # their `gist_budget`


@pytest.fixture(scope="module")
def compactor():
    return make_compactor()


@pytest.fixture(scope="module")
def ids(compactor):
    return compactor.tokenizer(PARAGRAPH * 3)["input_ids"]


def state(session):
    return json.dumps(
        {
            "position": session.position,
            "gists": [dataclasses.asdict(gist) for gist in session.gists],
            "live": session.live.tokens,
            "history": [dataclasses.asdict(dataclasses.replace(row, seconds=0)) for row in session.history],
        }
    )


def positions(session):
    folded = [position for row in session.history for span in row.spans for position in range(*span)]
    return sorted(folded + [token.position for token in session.live.tokens])


def greedy(compactor, prompt):
    """The likeliest next token, by a forward of the whole prompt without a cache."""
    with torch.no_grad():
        return compactor.generator(torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax().item()


def test_a_pair_and_a_session_say_what_they_are(compactor, ids):
    assert repr(compactor).startswith("GistCompactor(context_length=32, last_k=5, max_gist_length=6, base_models={")
    session = compactor.session()
    assert repr(session) == "Session(position=0, live=0, compactions=0, gist='')"
    session.append(ids[:100])
    live, count = len(session.live.tokens), len(session.history)
    assert count > 0
    assert repr(session) == f"Session(position=100, live={live}, compactions={count}, gist={session.gist!r})"


# ---- Every token is accounted for ----


@pytest.mark.parametrize("recursion", MODES)
def test_every_token_is_live_or_in_exactly_one_compaction(compactor, ids, recursion, tmp_path):
    session = compactor.session(gist_budget=MODES[recursion], keep_history=tmp_path / "tokens")
    protected = []
    for start in range(0, len(ids), 41):
        if start == 82:
            protected = list(range(session.position, session.position + 6))
            session.append(ids[:6], protected=True)
        session.append(ids[start : start + 41])
        assert len(session.token_ids) <= session.settings.window
    session.generate(9)
    assert positions(session) == list(range(session.position))
    assert [token.position for token in session.live.tokens if token.protected] == protected
    assert sum(row.tokens_in for row in session.history) + len(session.live) == session.position
    assert sum(gist.tokens for gist in session.gists) == sum(row.tokens_in for row in session.history)
    stream = session.stream()
    assert stream[: len(ids) + 6] == ids[:82] + ids[:6] + ids[82:]
    assert [token.token_id for token in session.live.tokens] == [stream[t.position] for t in session.live.tokens]
    assert session.token_ids == compactor.prompts.generator(
        session.gist_ids, [t.token_id for t in session.live.tokens]
    )


def test_tokens_that_stay_are_the_newest_and_what_is_protected(compactor, ids):
    session = compactor.session()
    session.append(ids[:4], protected=True)
    session.append(ids[:200])
    live = [token.position for token in session.live.tokens]
    newest = live[4:]
    assert live[:4] == [0, 1, 2, 3]
    assert newest == list(range(204 - len(newest), 204)) and len(newest) >= LAST_K
    assert all(span[0] >= 4 for row in session.history for span in row.spans)


@pytest.mark.parametrize("recursion", MODES)
def test_memory_is_flat_over_80_compactions(compactor, ids, recursion):
    session = compactor.session(gist_budget=MODES[recursion], budget=2, measure=True)
    sizes = []
    while len(session.history) < 80:
        session.append(ids[:90])
        assert len(session.token_ids) <= session.settings.window
        sizes.append(len(session.live) + len(session.gist_ids))
        assert len(session._meter.pending) <= 2
    assert max(sizes[-20:]) <= max(sizes[:40]) <= session.settings.window
    assert session.gist_ids == session.history[-1].gist_ids
    assert all(row.gist_tokens <= session.settings.gist_budget for row in session.history)
    assert sum(gist.tokens for gist in session.gists) + len(session.live) == session.position


# ---- The recursions, written out ----


def ask(compactor, context_ids, last_k_ids):
    """S's greedy gist of a context through the pair's prompt, one forward a token, without a cache; or what fits it."""
    before = context_ids[: len(context_ids) - len(last_k_ids)]
    if len(before) <= GIST:
        return before
    prompt, gist = compactor.prompts.summarizer(context_ids, last_k_ids, GIST), []
    while len(gist) < GIST:
        with torch.no_grad():
            logits = compactor.summarizer(torch.tensor([prompt + gist]), use_cache=False).logits
        token = logits[0, -1].argmax().item()
        if token == compactor.tokenizer.eos_token_id:
            break
        gist.append(token)
    return compactor.prompts.without_special(characters_of(compactor.tokenizer).whole(gist))


def with_newlines(compactor, parts):
    newline, joined = compactor.tokenizer("\n")["input_ids"], []
    for part in [part for part in parts if part]:
        joined += newline + part if joined else part
    return joined


def reference(compactor, ids, recursion, gist_budget, compactions):
    """The gists after each compaction of a stream whose chunks are all whole."""
    newline = len(compactor.tokenizer("\n")["input_ids"])
    length = CONTEXT - LAST_K - (GIST + newline if recursion == "rolling" else 0)
    gists, seen = [], []
    for start in range(0, compactions * length, length):
        chunk, last_k = ids[start : start + length], ids[start + length : start + length + LAST_K]

        def gist_of(*parts, last_k=last_k):
            return ask(compactor, with_newlines(compactor, parts) + last_k, last_k)

        if recursion == "rolling":
            gists = [gist_of(*gists, chunk)]
        else:
            gists = gists + [gist_of(chunk)]
        while len(with_newlines(compactor, gists)) > gist_budget:
            gists = [gist_of(gists[0], gists[1])] + gists[2:]
        seen.append(gists)
    return seen


@pytest.mark.parametrize("recursion", MODES)
@pytest.mark.parametrize("prompt", [SUMMARIZER_PROMPT, "Shorten {context} for {last_k}, in {budget} tokens:"])
def test_gists_are_those_of_the_recursion_written_out(ids, recursion, prompt):
    compactor = make_compactor(summarizer_prompt=prompt)
    session = compactor.session(gist_budget=None if recursion == "rolling" else 2 * GIST + 1, window=150)
    seen = []
    session.after_compaction = lambda session, compaction: seen.append(list(session.gists))
    session.append(ids)
    assert len(seen) >= 7
    expected = reference(compactor, ids, recursion, session.settings.gist_budget, len(seen))
    assert [[gist.token_ids for gist in gists] for gists in seen] == expected
    assert (max(map(len, seen)) > 1) == (recursion != "rolling")


def test_a_chain_keeps_each_gist_as_it_is_while_all_fit(compactor, ids):
    session, seen = compactor.session(gist_budget=60), []
    session.after_compaction = lambda session, compaction: seen.append([gist.token_ids for gist in session.gists])
    session.append(ids)
    assert len(seen) >= 8 and all(len(gists) == n and gists == seen[7][:n] for n, gists in enumerate(seen[:8], 1))


@pytest.mark.parametrize("recursion", MODES)
def test_a_budget_is_exact(compactor, ids, recursion, monkeypatch):
    generate, asked = compactor.generate, set()

    def watched(role, prompts, **settings):
        asked.add(settings["max_new_tokens"])
        return generate(role, prompts, **settings)

    monkeypatch.setattr(compactor, "generate", watched)
    session = compactor.session(gist_budget=MODES[recursion], budget=3)
    session.append(ids[:150])
    assert all(len(gist.token_ids) <= 3 for gist in session.gists)
    assert asked == {3}


# ---- Generation ----


@pytest.mark.parametrize("recursion", MODES)
def test_generation_equals_recomputing_every_token_without_a_cache(compactor, ids, recursion):
    session, plain = (compactor.session(gist_budget=MODES[recursion]) for _ in range(2))
    session.append(ids[:60])
    plain.append(ids[:60])
    continuation = session.generate(80)
    written = []
    while len(written) < 80:
        while plain.room < 1:
            plain.compact()
        token = greedy(compactor, plain.token_ids)
        if token == compactor.tokenizer.eos_token_id:
            break
        written.append(token)
        plain.append([token])
    assert len(written) == 80 and len(set(written)) > 20 and len(session.history) > 2
    assert continuation.token_ids == written
    assert state(session) == state(plain)


def test_generation_ends_at_the_end_of_sequence_token_which_is_not_in_the_stream(compactor, ids, monkeypatch):
    whole = compactor.session()
    whole.append(ids[:50])
    tokens = whole.generate(40).token_ids
    end = tokens[30]
    monkeypatch.setattr(compactor.generator.generation_config, "eos_token_id", [end])
    session = compactor.session()
    session.append(ids[:50])
    streamer = Recorder()
    assert session.generate(40, streamer=streamer).token_ids == tokens[: tokens.index(end)] == streamer.tokens
    assert session.position == 50 + tokens.index(end)


class Recorder:
    def __init__(self, fail_after=None):
        self.tokens, self.ends, self.fail_after = [], 0, fail_after

    def put(self, value):
        if len(self.tokens) == self.fail_after:
            raise KeyboardInterrupt
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ends += 1


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_a_streamer_gets_exactly_the_new_text(compactor, ids, skip_prompt, capsys):
    session = compactor.session()
    session.append(ids[:60])
    iterator = TextIteratorStreamer(compactor.tokenizer, skip_prompt=skip_prompt, timeout=60)
    written = []
    thread = threading.Thread(target=lambda: written.append(session.generate(60, streamer=iterator)))
    thread.start()
    streamed = "".join(iterator)
    thread.join()
    assert len(session.history) > 2
    assert streamed == compactor.tokenizer.decode(written[0].token_ids)
    again = compactor.session()
    again.append(ids[:60])
    again.generate(60, streamer=TextStreamer(compactor.tokenizer, skip_prompt=skip_prompt))
    assert capsys.readouterr().out == streamed + "\n"


def test_what_was_streamed_before_an_interruption_is_in_the_session(compactor, ids):
    session, streamer = compactor.session(), Recorder(fail_after=37)
    session.append(ids[:60])
    with pytest.raises(KeyboardInterrupt):
        session.generate(60, streamer=streamer)
    assert streamer.ends == 1
    assert session.position == 60 + 38  # the one on which it failed was chosen already
    whole = compactor.session()
    whole.append(ids[:60])
    assert session.generate(60 - 38).token_ids == whole.generate(60).token_ids[38:]
    assert state(session) == state(whole)


def test_generation_that_a_setting_ends_early_has_ended(compactor, ids):
    def generate(**kwargs):
        session = compactor.session()
        session.append(ids[:60])
        return session.generate(60, **kwargs).token_ids

    whole = generate()
    end = next(token for token in whole[20:] if token not in whole[:20])
    ended = generate(eos_token_id=end)
    assert ended == whole[: len(ended)] and 20 < len(ended) < 60 and ended[-1] == end


def test_sampling_follows_its_settings_and_the_seed(compactor, ids):
    def sample(**kwargs):
        session = compactor.session()
        session.append(ids[:60])
        torch.manual_seed(0)
        return session.generate(40, **kwargs).token_ids

    assert sample(do_sample=True, top_k=1) == sample() != sample(do_sample=True)
    assert sample(do_sample=True) == sample(do_sample=True)


# ---- On disk ----


@pytest.mark.parametrize("recursion", MODES)
def test_a_session_killed_mid_generation_goes_on_from_its_last_complete_state(compactor, ids, recursion, tmp_path):
    def start(name, **settings):
        session = compactor.session(
            gist_budget=MODES[recursion],
            autosave=tmp_path / name,
            keep_history=tmp_path / f"{name}.tokens",
            measure=True,
        )
        session.append(ids[:3], protected=True)
        session.append(ids[:70])
        return session

    whole, killed = start("whole"), start("killed")
    expected = whole.generate(90).token_ids
    with pytest.raises(KeyboardInterrupt):
        killed.generate(90, streamer=Recorder(fail_after=75))
    assert killed.position == 73 + 76
    loaded = compactor.load_session(tmp_path / "killed", autosave=tmp_path / "killed")
    done = loaded.position - 73
    assert loaded.history[-1].position == loaded.position  # its last complete state is that of the last compaction
    assert 0 < done < 76
    assert loaded.generate(90 - done).token_ids == expected[done:]
    assert state(loaded) == state(whole)
    assert loaded.stream() == whole.stream()
    assert state(compactor.load_session(tmp_path / "killed")) == state(whole)
    assert len(list(tmp_path.glob("killed.*.jsonl"))) == 1


def test_a_save_that_dies_leaves_the_one_before(compactor, ids, tmp_path, monkeypatch):
    session = compactor.session()
    session.append(ids[:100])
    session.save(tmp_path / "session")
    before = state(session)
    session.append(ids[100:200])
    with monkeypatch.context() as patch:
        patch.setattr("trl_gist.inference.session.files.os.replace", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.save(tmp_path / "session")
    assert state(compactor.load_session(tmp_path / "session")) == before
    session.save(tmp_path / "session")
    assert state(compactor.load_session(tmp_path / "session")) == state(session)


def test_saving_takes_no_longer_as_the_session_does(compactor, ids, tmp_path):
    session = compactor.session(autosave=tmp_path / "session", budget=2)
    sizes = []
    session.after_compaction = lambda session, compaction: sizes.append((tmp_path / "session").stat().st_size)
    for _ in range(6):
        session.append(ids)
    assert len(sizes) > 50
    assert max(sizes[-10:]) < 1.1 * max(sizes[:10])


def test_another_pairs_session_is_refused_by_name(compactor, ids, tmp_path):
    session = compactor.session()
    session.append(ids[:100])
    session.save(tmp_path / "session")
    with pytest.raises(ValueError, match=r"session of another pair \(tiny-0 and .* this one is tiny-10 and tiny-10"):
        make_compactor(seed=10).load_session(tmp_path / "session")
    assert make_compactor(dtype=torch.bfloat16).load_session(tmp_path / "session").position == 100
    assert Session.load(tmp_path / "session", make_compactor()).gist == session.gist


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("{", "it is not JSON"),
        ("[]", "no session that this version reads"),
        ('{"format": "other"}', "no session that this version reads"),
        ('{"format": "trl_gist session 1", "position": 1}', "is damaged: it lacks .*'fingerprint'"),
    ],
)
def test_what_is_no_session_is_refused(compactor, tmp_path, content, message):
    path = tmp_path / "session"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        compactor.load_session(path)


def test_a_session_saved_with_a_recursion_that_is_gone_is_refused_and_stays(compactor, ids, tmp_path):
    path = tmp_path / "session"
    session = compactor.session(gist_budget=30, keep_history=tmp_path / "tokens")
    session.append(ids[:100])
    session.save(path)
    saved = json.loads(path.read_text())
    for gist in (*saved["gists"], *saved["undo"]["gists"]):
        gist["level"] = 0  # as of a session that an earlier version saved
    path.write_text(json.dumps(saved))
    assert state(compactor.load_session(path)) == state(session)
    session.append(ids[100:120])  # what loading would cut off
    saved["settings"]["recursion"] = "tree"
    path.write_text(json.dumps(saved))
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=r"with `recursion='tree'`, .*'rolling' and 'chain'.* a new session.*tokens\)"
    ):
        compactor.load_session(path)
    assert files == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_session_without_all_of_its_log_or_its_tokens_is_refused(compactor, ids, tmp_path):
    session = compactor.session(keep_history=tmp_path / "tokens")
    session.append(ids[:100])
    session.save(tmp_path / "session")
    with open(tmp_path / "tokens", "r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match="tokens\\) holds 50 tokens of the session's 100"):
        compactor.load_session(tmp_path / "session")
    (log,) = tmp_path.glob("*.jsonl")
    log.unlink()
    with pytest.raises(ValueError, match="is damaged: .* holds 0 of"):
        compactor.load_session(tmp_path / "session")


def test_files_of_other_sessions_are_not_overwritten(compactor, tmp_path):
    for field in ("autosave", "keep_history"):
        (tmp_path / field).write_text("mine")
        with pytest.raises(ValueError, match=f"`{field}` .* exists already"):
            compactor.session(**{field: tmp_path / field})


def test_a_loaded_session_does_not_replace_another(compactor, ids, tmp_path):
    session = compactor.session(autosave=tmp_path / "session")
    session.append(ids[:40])
    (tmp_path / "other").write_text("mine")
    with pytest.raises(ValueError, match="`autosave` .*other.* exists already"):
        compactor.load_session(tmp_path / "session", autosave=tmp_path / "other")
    branch = compactor.load_session(tmp_path / "session", autosave=tmp_path / "branch")
    branch.append(ids[40:90])
    assert state(compactor.load_session(tmp_path / "session")) == state(session)
    assert state(compactor.load_session(tmp_path / "branch")) == state(branch)


# ---- Hooks, preview, protection, costs ----


def test_hooks_see_the_plan_and_what_came_of_it(compactor, ids):
    plans, done = [], []
    session = compactor.session(
        before_compaction=lambda session, plan: plans.append((plan, session.position)),
        after_compaction=lambda session, compaction: done.append((compaction, session.history[-1])),
    )
    session.append(ids[:150])
    assert [row for row, _ in done] == [row for _, row in done] == session.history
    for (plan, position), row in zip(plans, session.history, strict=True):
        assert (plan.index, plan.position, plan.spans) == (row.index, row.position, row.spans)
        assert plan.position == position
        assert plan.chunk_ids == [ids[at] for span in row.spans for at in range(*span)]
        after = row.spans[-1][1]
        assert plan.last_k_ids == ids[after : after + LAST_K]


def test_a_hook_may_protect_what_would_be_folded(compactor, ids):
    def keep_three(session, plan):
        if plan.index == 1:
            start = plan.spans[0][0] + 4
            kept.extend(range(start, start + 3))
            session.protect(start, start + 3)

    kept = []
    session = compactor.session(before_compaction=keep_three)
    session.append(ids[:150])
    assert [token.position for token in session.live.tokens if token.protected] == kept
    assert len(session.history[1].spans) == 2
    assert positions(session) == list(range(150))
    session.unprotect(kept[0], kept[-1] + 1)
    session.append(ids[:60])
    assert not any(token.position in kept for token in session.live.tokens)
    assert positions(session) == list(range(210))


@pytest.mark.parametrize("recursion", MODES)
def test_a_preview_changes_nothing_and_tells_what_happens(compactor, ids, recursion):
    session = compactor.session(gist_budget=MODES[recursion], before_compaction=lambda *_: called.append(1))
    called = []
    session.append(ids[:100])
    called.clear()
    before = state(session)
    plan, preview = session.preview_compaction()
    assert state(session) == before and not called
    compaction = session.compact()
    assert called
    assert dataclasses.replace(compaction, seconds=0) == dataclasses.replace(preview, seconds=0)
    assert plan.spans == compaction.spans


def test_there_may_be_nothing_to_compact(compactor, ids):
    session = compactor.session()
    session.append(ids[:LAST_K])
    for compact in (session.compact, session.preview_compaction):
        with pytest.raises(
            ValueError, match="nothing to compact: 5 unprotected tokens are live, and `last_k` \\(5\\)"
        ):
            compact()
    session.append(ids[5:6])
    assert session.compact().tokens_in == 1


def test_costs_are_those_of_the_next_tokens_on_the_full_window_and_on_the_gist(compactor, ids):
    def log_prob(prompt, target):
        with torch.no_grad():
            logits = compactor.generator(torch.tensor([prompt + target]), use_cache=False).logits[0]
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return sum(step[token].item() for step, token in zip(steps, target, strict=True)) / len(target)

    prompts = {}
    session = compactor.session(
        measure=True,
        before_compaction=lambda session, plan: prompts.update({plan.index: [session.token_ids]}),
        after_compaction=lambda session, compaction: prompts[compaction.index].append(session.token_ids),
    )
    session.append(ids[:150])
    assert len(session.history) >= 5
    for row in session.history[:-1]:
        full, kept = prompts[row.index]
        target = ids[row.position : row.position + TARGET]
        assert row.cost == pytest.approx(log_prob(full, target) - log_prob(kept, target), abs=1e-9)
    wide = compactor.session(measure=True, window=510)
    wide.append(ids * 2)
    assert {row.cost for row in wide.history} == {None}
    assert all(row.cost is None for row in compactor.session().history)


def test_protected_text_that_would_fill_the_window_is_refused_and_changes_nothing(compactor, ids):
    session = compactor.session()
    session.append(ids[:100])
    most = session.settings.protectable
    before = state(session)
    with pytest.raises(
        ValueError, match=f"leaves {most} tokens for protected text .*; 0 are protected, and {most + 1}"
    ):
        session.append(ids[: most + 1], protected=True)
    assert state(session) == before
    session.append(ids[:most], protected=True)
    session.append(ids[:12])
    session.generate(5)
    assert positions(session) == list(range(session.position))
    with pytest.raises(ValueError, match="1 more do not fit"):
        session.append(ids[:1], protected=True)
    with pytest.raises(ValueError, match="must be a span of the stream that is live: position 0 is not"):
        session.unprotect(0, 200)


# ---- Several sessions ----


def test_interleaved_sessions_do_not_mix(compactor, ids):
    def alone(recursion, start):
        session = compactor.session(gist_budget=MODES[recursion])
        session.append(ids[start : start + 90])
        session.generate(50)
        return state(session)

    expected = [alone(recursion, 20 * n) for n, recursion in enumerate(MODES)]
    sessions = [compactor.session(gist_budget=MODES[recursion]) for recursion in MODES]
    for step in range(0, 90, 15):
        for n, session in enumerate(sessions):
            session.append(ids[20 * n + step : 20 * n + min(step + 15, 90)])
    threads = [threading.Thread(target=session.generate, args=(50,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state(session) for session in sessions] == expected


# ---- Errors ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 10}, r"`window` \(10\) is too small: .* need \d+\. Raise it"),
        ({"window": 513}, r"`window` \(513\) exceeds the generator's 512 positions: lower it to 512"),
        ({"window": 0}, "`window` must be at least 1 or None, got 0. Give a whole number"),
        ({"last_k": "5"}, "`last_k` must be at least 1 or None, got '5'. Give a whole number"),
        ({"last_k": 30}, r"`last_k` \(30\) and `budget` \(6\) are too large"),
        ({"gist_budget": 30, "budget": 14}, r"`budget` \(14\) are too large: .* with `gist_budget`, a second gist"),
        ({"budget": 20, "last_k": 9, "summarizer": 90}, r"`budget` \(20\) is too large: .* it has 90"),
        ({"gist_budget": 5}, r"`gist_budget` \(5\) must hold at least one gist"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(compactor, settings, message, monkeypatch):
    positions = settings.pop("summarizer", 512)
    monkeypatch.setattr(compactor.summarizer.config, "max_position_embeddings", positions)
    with pytest.raises(ValueError, match=message):
        compactor.session(**settings)


def test_the_least_window_that_is_allowed_works(compactor, ids):
    with pytest.raises(ValueError, match="need (?P<least>\\d+)") as refusal:
        compactor.session(window=1)
    least = int(str(refusal.value).split("need ")[1].split(".")[0])
    session = compactor.session(window=least)
    session.append(ids[:40])
    session.generate(10)
    assert positions(session) == list(range(session.position))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The text is empty"),
        (None, "must be text or a list of token ids, got NoneType"),
        ("bad \ud800 surrogate", "is not valid text"),
        ([1, 10**6], "holds 1000000, which is no id"),
    ],
)
def test_what_is_not_text_is_refused_and_changes_nothing(compactor, text, message):
    session = compactor.session()
    session.append("cholera")
    before = state(session)
    with pytest.raises(ValueError, match=message):
        session.append(text)
    assert state(session) == before


class Failure(BaseException):
    """Nothing that the session could know of."""


def fails_at(count, error):
    """A function that does so when it is called for that time."""
    calls = iter(range(1, 10**6))

    def fail(*args):
        if next(calls) == count:
            raise error

    return fail


@pytest.mark.parametrize(
    ("where", "error"),
    [
        *((where, RuntimeError("out of memory")) for where in ("summarizer", "before_compaction", "save")),
        *(("after_compaction", error) for error in (KeyboardInterrupt(), Failure())),
    ],
    ids=repr,
)
@pytest.mark.parametrize("recursion", MODES)
def test_an_append_that_fails_half_way_is_not_taken(compactor, ids, tmp_path, monkeypatch, recursion, where, error):
    settings = {"gist_budget": MODES[recursion], "measure": True}
    files = {"autosave": tmp_path / "session", "keep_history": tmp_path / "tokens"}
    session, plain = compactor.session(**settings, **files), compactor.session(**settings)
    for each in (session, plain):
        each.append(ids[:90], protected=False)
        each.append(ids[90:93], protected=True)
    assert len(session.history) > 1
    before, length = state(session), len(session.history)
    fail = fails_at(2, error)
    with monkeypatch.context() as patch:
        if where == "summarizer":
            generate = compactor.generate
            patch.setattr(compactor, "generate", lambda *args, **kw: fail() or generate(*args, **kw))
        elif where == "save":
            save = session.save
            patch.setattr(session, "save", lambda path: fail() or save(path))
        else:
            patch.setattr(session, where, fail)
        with pytest.raises(type(error)):
            session.append(ids[93:180])
    assert state(session) == before and positions(session) == list(range(session.position))
    assert session.stream() == ids[:93]
    loaded = compactor.load_session(tmp_path / "session")
    assert state(loaded) == before and loaded.history[:length] == session.history
    for each in (session, plain):  # what comes next is as if nothing had been
        each.append(ids[93:180])
        each.generate(5)
    assert state(session) == state(plain) == state(compactor.load_session(tmp_path / "session"))
    assert len(list(tmp_path.glob("session.*.jsonl"))) == 1


def test_a_first_append_that_fails_leaves_an_empty_session(compactor, ids, tmp_path, monkeypatch):
    session = compactor.session(keep_history=tmp_path / "tokens")
    with monkeypatch.context() as patch:
        patch.setattr(session, "after_compaction", fails_at(1, ValueError("no")))
        with pytest.raises(ValueError, match="no"):
            session.append(ids)
    assert state(session) == state(compactor.session()) and session.stream() == []
    with pytest.raises(ValueError, match="The session is empty"):
        session.generate(1)


def test_generation_needs_a_text_and_a_number_of_tokens(compactor):
    session = compactor.session()
    with pytest.raises(ValueError, match="The session is empty: `append`"):
        session.generate(5)
    session.append("cholera")
    for number in (0, -1, "5"):
        with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1"):
            session.generate(number)
    with pytest.raises(ValueError, match="open the session with `keep_history`"):
        session.stream()
