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

"""How a text becomes contexts: every token is in one gist, characters and what is to be kept are whole."""

import subprocess
import sys

import pytest
from tiny import PARAGRAPH, ids_of, make_documents
from tiny_pairs import LAST_K, make_compactor, make_pair

from trl_gist.inference import windows as windows_module
from trl_gist.inference.keep import parse_keep
from trl_gist.inference.pair import LoadedPair
from trl_gist.inference.windows import most_windows, windows_of
from trl_gist.prompts import SUMMARIZER_PROMPT_WITH_TAIL, before_last_k


@pytest.fixture(scope="module")
def compactor(tokenizer):
    return make_compactor(tokenizer)


def loaded(tokenizer, **pair):
    """A pair without models: windows need none."""
    return LoadedPair(None, None, tokenizer, make_pair(**{"context_length": 24, "last_k": 4} | pair))


def stretches(windows):
    return [before_last_k(context, last) if last else context for context, last, _ in windows]


# ---- Every token is in one gist ----


@pytest.mark.parametrize("last_k", [1, 4, 12, 24])
@pytest.mark.parametrize("length", [1, 3, 4, 23, 24, 25, 44, 45, 64, 65, 200])
def test_stretches_are_the_text_and_each_but_the_last_is_followed_by_l(tokenizer, length, last_k):
    pair = loaded(tokenizer, last_k=last_k)
    ids = ids_of(tokenizer, PARAGRAPH)[:length]
    for text in (ids, tokenizer.decode(ids)):
        windows = list(windows_of(pair, text))
        whole = ids if text is ids else ids_of(tokenizer, text)
        assert sum(stretches(windows), []) == whole
        assert all(len(window.context_ids) <= 24 for window in windows)
        assert windows[-1].last_k_ids == []
        for window, following in zip(windows, stretches(windows)[1:], strict=False):
            assert window.last_k_ids == following[: min(last_k, 12)] == window.context_ids[-min(last_k, 12) :]
        assert len(windows) == most_windows(pair.pair, len(whole))


def test_a_question_is_asked_of_windows_side_by_side(tokenizer):
    ids, question = ids_of(tokenizer, PARAGRAPH)[:60], ids_of(tokenizer, "Who?")
    windows = list(windows_of(loaded(tokenizer), ids, question))
    assert windows == [(ids[:24], question, []), (ids[24:48], question, []), (ids[48:], question, [])]


def test_the_summarizer_is_shown_every_token_of_a_text(tokenizer, monkeypatch):
    compactor = make_compactor(tokenizer)
    compactor.pair = make_pair(summarizer_prompt=SUMMARIZER_PROMPT_WITH_TAIL, tail_length=1, max_gist_length=3)
    compactor._make_prompts_and_lock()
    shown = []
    generate = compactor.generate
    monkeypatch.setattr(
        compactor, "generate", lambda role, prompts, **rest: shown.extend(prompts) or generate(role, prompts, **rest)
    )
    text = "".join(make_documents(3))
    gists = compactor.compress_windows(text, batch_size=3)
    expected = [compactor.prompts.summarizer(ids, [], 1) for ids in stretches(windows_of(compactor, text))]
    assert len(gists) == len(shown) > 2 and shown == expected
    assert [gist.token_ids for gist in compactor.iter_windows(text)] == [gist.token_ids for gist in gists]


@pytest.mark.parametrize("chat", ["Broad Street had a pump", "漢字 карта"])
def test_the_end_of_old_turns_is_shown_to_the_summarizer(tokenizer, monkeypatch, chat):
    compactor, seen = make_compactor(tokenizer), []
    write = compactor._write_gists
    monkeypatch.setattr(
        compactor, "_write_gists", lambda windows, request: seen.extend(stretches(windows)) or write(windows, request)
    )
    turns = [{"role": "user", "content": f"{PARAGRAPH} {chat}"}, {"role": "assistant", "content": "The end of it."}]
    result = compactor.compact_messages([*turns, {"role": "user", "content": "And now?"}], 120)
    assert result.compacted == turns
    assert tokenizer.decode(sum(seen, [])).startswith(f"user: {PARAGRAPH} {chat}\nassistant: The end of it.\n")


# ---- Contexts that say next to nothing ----


@pytest.mark.parametrize("length", [1, 5, LAST_K, LAST_K + 1, LAST_K + 5, LAST_K + 24, LAST_K + 25])
def test_what_is_no_longer_than_its_gist_is_its_gist(compactor, tokenizer, length):
    ids = ids_of(tokenizer, PARAGRAPH)[:length]
    alone, beside = compactor.compress(ids), compactor.compress(ids, last_k=ids[-LAST_K:])
    before = ids[: -len(ids[-LAST_K:])]
    if length <= 24:
        assert alone.token_ids == ids and alone.text == tokenizer.decode(ids)
    if len(before) <= 24:
        assert beside.token_ids == before
        assert compactor.compress_windows(ids)[0].token_ids == alone.token_ids
    else:
        assert alone == beside and alone.token_ids != before and len(alone.token_ids) <= 24
    assert alone.log_prob < 0 and (beside.log_prob < 0 or not before)


def test_special_tokens_of_what_is_its_own_gist_do_not_reach_it(compactor, tokenizer):
    ids = [*ids_of(tokenizer, "Snow"), tokenizer.eos_token_id, *ids_of(tokenizer, " 1854")]
    assert compactor.compress(ids).text == "Snow 1854"


# ---- Whole characters and whole spans ----


@pytest.mark.parametrize("context_length", range(9, 24))
def test_no_window_ends_within_a_character(tokenizer, context_length):
    text = "Холера 漢字かな 한국어 👩‍👩‍👧 العربية cholera é" * 3
    pair = loaded(tokenizer, context_length=context_length, last_k=3)
    texts = [tokenizer.decode(ids) for ids in stretches(windows_of(pair, text))]
    assert "".join(texts) == text and len(texts) > 5
    assert not any("\ufffd" in tokenizer.decode(window.last_k_ids) for window in windows_of(pair, text))


@pytest.mark.parametrize("keep", ["numbers", "names", "dates", "the pump of Broad Street", r"regex:RFC \d+", None])
@pytest.mark.parametrize("context_length", range(18, 30))
def test_no_window_ends_within_what_is_to_be_kept(tokenizer, context_length, keep):
    span = {"numbers": "1,854,331", "names": "John Snow", "dates": "3 March 1854", None: "1,854,331"}.get(
        keep, "RFC 123456" if keep and "RFC" in keep else keep
    )
    text = f"there it lay for all to see that came by, and {span} then it was gone; " * 6
    pair = loaded(tokenizer, context_length=context_length, last_k=3)
    windows = list(windows_of(pair, text, keep=parse_keep(keep)))
    assert sum(stretches(windows), []) == ids_of(tokenizer, text)
    starts = [start for start in range(len(text)) if text.startswith(span, start)]
    found = [span for window in windows for span in window.spans]
    if keep is not None:
        assert [(item.text, item.start) for item in found] == [(span, start) for start in starts]
        for window, ids in zip(windows, stretches(windows), strict=True):
            assert all(item.text in tokenizer.decode(ids) for item in window.spans)
    assert list(windows_of(pair, ids_of(tokenizer, text), keep=parse_keep(keep))) == windows


def test_a_number_across_a_border_is_not_two_numbers(tokenizer):
    """The whole text's spans, whatever the window: `1,854,331` is neither `1,85` nor `4,331`."""
    for length in range(10, 40):
        text = "x " * length + "1,854,331 deaths. " + "y " * 30
        windows = windows_of(loaded(tokenizer), text, keep=parse_keep("numbers"))
        assert [span.text for window in windows for span in window.spans] == ["1,854,331"]


def test_what_is_longer_than_a_window_is_not_in_the_way_of_others(tokenizer):
    text = "Before. [" + "1,854 and 82,331 " * 20 + "] after 17"
    keep = parse_keep([r"regex:\[.*\]", "numbers"])
    windows = list(windows_of(loaded(tokenizer), text, keep=keep))
    assert sum(stretches(windows), []) == ids_of(tokenizer, text)
    for window, ids in zip(windows, stretches(windows), strict=True):
        numbers = [span for span in window.spans if not span.text.startswith("[")]
        assert all(span.text in tokenizer.decode(ids) for span in numbers)
        assert {span.text for span in numbers} <= {"1,854", "82,331", "17"}


def test_kept_spans_are_reported_where_the_text_has_them(compactor):
    text = "".join(make_documents(4))
    gists = compactor.compress_windows(text, budget=40, keep=["numbers", "not there"], batch_size=3)
    assert len(gists) > 2
    for gist in gists:
        assert gist.not_kept[-1] == "not there" and gist.not_kept_at[-1] is None  # as the text has it nowhere
        assert gist.kept and all(span in gist.text for span in gist.kept)
        for name in ("kept", "not_kept"):
            for span, start in zip(getattr(gist, name), getattr(gist, f"{name}_at"), strict=True):
                assert start is None or text.startswith(span, start)
    starts = [start for gist in gists for start in (*gist.kept_at, *gist.not_kept_at) if start is not None]
    assert max(starts) > 0.7 * len(text)


def test_a_literal_is_asked_of_the_windows_that_have_it_and_of_all_if_there_is_none(tokenizer):
    text = PARAGRAPH * 2
    windows = list(windows_of(loaded(tokenizer), text, keep=parse_keep(["John Snow", "Kot"])))
    starts = [start for start in range(len(text)) if text.startswith("John Snow", start)]
    assert [s.start for window in windows for s in window.spans if s.text == "John Snow"] == starts
    assert [s.start for window in windows for s in window.spans if s.text == "Kot"] == [None] * len(windows)


def test_ids_that_are_not_their_texts_keep_their_cuts_and_their_spans(tokenizer):
    ids = [token for character in "In 1854 and 82" * 5 for token in ids_of(tokenizer, character)]
    assert ids != ids_of(tokenizer, tokenizer.decode(ids))
    windows = list(windows_of(loaded(tokenizer), ids, keep=parse_keep("numbers")))
    assert stretches(windows) == [ids[start : start + 20] for start in range(0, 60, 20)] + [ids[60:]]
    text = tokenizer.decode(ids)
    assert all(text.startswith(span.text, span.start) for window in windows for span in window.spans)


def test_an_empty_text_is_refused_at_once(compactor):
    for text, message in (("", "The text is empty"), ([], "The text is empty"), (b"x", "must be text or a list")):
        with pytest.raises(ValueError, match=message):
            compactor.iter_windows(text)


# ---- A text of any length ----

MEASURE = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from tiny import PARAGRAPH, make_tokenizer
from tiny_pairs import make_pair
from trl_gist.inference.pair import LoadedPair
from trl_gist.inference.windows import windows_of
pair = LoadedPair(None, None, make_tokenizer(), make_pair(context_length=512, last_k=64))
text = PARAGRAPH * (int(sys.argv[1]) // len(PARAGRAPH))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = sum(len(window.context_ids) for window in windows_of(pair, text))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(tokens, before // 1024, (after - before) // 1024)
"""


def test_a_long_text_takes_little_more_memory_than_itself():
    """Some 180 bytes a character, where all of it is tokenised at once: over 500 MB here."""
    length = 3_000_000
    command = [sys.executable, "-c", MEASURE, str(length), *sys.path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tokens, _, more = map(int, done.stdout.split())
    assert tokens > length / 4 and more < 120, done.stdout


def test_windows_come_while_the_text_is_tokenised(tokenizer, monkeypatch):
    text, asked = PARAGRAPH * 700, []
    real = windows_module.LoadedPair.token_pieces

    def pieces(self, text, what):
        for piece in real(self, text, what):
            asked.append(piece)
            yield piece

    monkeypatch.setattr(windows_module.LoadedPair, "token_pieces", pieces)
    windows = windows_of(loaded(tokenizer), text)
    next(windows)
    assert len(asked) == 1
    assert sum(stretches(windows), [])[-4:] == ids_of(tokenizer, text)[-4:] and len(asked) > 4
