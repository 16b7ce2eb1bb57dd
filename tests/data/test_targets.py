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

"""A window's targets: what each kind is cut as, that facts are found whole, and what datasets give by themselves."""

import copy
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import PARAGRAPH, ids_of, make_documents, make_tokenizer, stream
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trl_gist.common import tokens
from trl_gist.data.columns import RESERVED_COLUMNS, WINDOW_COLUMNS
from trl_gist.data.targets import TargetSpec, fact_spans, make_targets
from trl_gist.data.windows import PositionLimits, WindowSpec, prepare_windows
from trl_gist.prompts import one_row_each, seen_ids, targets_of, through_last_k
from trl_gist.scoring.extraction import fact_list


TEXT = (
    "On 3 March 1854 the physician John Snow met Ada Lovelace in Soho. He counted 1,854.5 barrels there and paid 82 pounds "
    "to Mr Brontë. Later, in May 1861, the novelist Žofia Łukasińska wrote of Москва and of 東京 in 1964年 on page 12. The "
    "engineer Joseph Bazalgette built 82 miles of sewers below the river, and cholera did not return to the city. In the "
    "1990s, it was 45% of U.S. trade."
)
FACTS = (
    *(
        "3 March 1854",
        "John Snow",
        "Ada Lovelace",
        "Soho",
        "1,854.5",
        "82",
        "Mr Brontë",
        "May 1861",
        "Žofia Łukasińska",
    ),
    *("Москва", "1964", "12", "Joseph Bazalgette", "82", "1990s", "45", "U.S."),
)
KINDS = ("continuation", "fact", "recall", "far")


def make_metaspace_tokenizer():
    """As SentencePiece's: a space is a part of the next token, and a text has one before it that is not written."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokenizer.train_from_iterator([PARAGRAPH], trainers.BpeTrainer(vocab_size=700, special_tokens=specials))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"byte-level": make_tokenizer(), "metaspace": make_metaspace_tokenizer()}


@pytest.fixture(params=TOKENIZERS)
def each_tokenizer(request):
    return TOKENIZERS[request.param]


def texts_of(tokenizer, ids):
    return [tokenizer.decode(ids[start:end]).strip() for start, end in fact_spans(tokenizer, ids)]


def of(*kinds, count=1000, **more):
    """A spec whose kinds weigh the same, or as given; by default every candidate is taken."""
    pairs = tuple((kind, 1.0) if isinstance(kind, str) else kind for kind in kinds)
    return TargetSpec(pairs, count, **more)


def window_of(context_length, target_length=8, last_k=4, **more):
    return WindowSpec(context_length, target_length, last_k, None, None, **more)


def stands_in(part, whole):
    """Where a list of ids begins in another, each time."""
    return [start for start in range(len(whole) - len(part) + 1) if whole[start : start + len(part)] == part]


# ---- Facts ----


def test_dates_names_and_numbers_are_facts_each_whole_and_in_order(each_tokenizer):
    assert texts_of(each_tokenizer, ids_of(each_tokenizer, TEXT)) == list(FACTS)


def test_facts_do_not_overlap_and_hold_the_space_before_them(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT)
    spans = fact_spans(each_tokenizer, ids)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    for start, end in spans:
        before, fact = (
            each_tokenizer.decode([*ids_of(each_tokenizer, "a"), *part]) for part in (ids[:start], ids[start:end])
        )
        assert before == before.rstrip() and not fact.endswith(" ")


def test_a_windows_first_fact_keeps_its_space_where_the_decoder_would_drop_it():
    """Alone, `decode` of a SentencePiece token has no leading space: offsets by it would be off by one per token."""
    tokenizer = TOKENIZERS["metaspace"]
    ids = ids_of(tokenizer, "had died of cholera in Soho. Few")[2:]
    assert texts_of(tokenizer, ids) == ["Soho"]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("it was 1,000,000 of 2.5 then", ["1,000,000", "2.5"]),
        ("since May 5, 1861 they met on 2024-05-17 again", ["May 5, 1861", "2024-05-17"]),
        ("since the 4th of July they met", ["4th of July"]),
        ("of 5 men and 東京1964年 of 7", ["5", "1964", "7"]),
        ("met Anna. Anna met Ben\nJones of York", ["Anna", "Anna", "Ben", "York"]),  # a line begins as a sentence does
        ("the end. Few saw it. But nobody came", []),
        ("\ufffd12 and 7\ufffd of 8", ["8"]),
        ("", []),
    ],
)
def test_what_is_a_fact(each_tokenizer, text, facts):
    assert texts_of(each_tokenizer, ids_of(each_tokenizer, text)) == facts


def test_a_character_cut_at_the_edge_of_the_ids_makes_no_fact(each_tokenizer):
    ids = ids_of(each_tokenizer, "of Mr Brontë")
    assert texts_of(each_tokenizer, ids) == ["Mr Brontë"]
    assert each_tokenizer.decode(ids[:-1]).endswith("\ufffd")
    assert texts_of(each_tokenizer, ids[:-1]) == []


def test_a_fact_that_shares_a_token_with_anything_else_is_left_out():
    vocabulary = {"a": 0, " of": 1, " 1990s,": 2, " 1854\n": 3, "?": 4, " 5 6": 5, " Ada": 6, " Lovelace": 7, "'s": 8}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.decoder = decoders.Fuse()
    words = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    assert fact_spans(words, [1, 2, 1, 3, 1, 5]) == [(3, 4)]
    assert fact_spans(words, [1, 6, 7, 1, 6, 8]) == [(1, 3), (4, 6)]


def test_a_text_of_special_tokens_and_broken_bytes_is_read(tokenizer):
    rng, found = random.Random(0), 0
    for _ in range(200):
        ids = [rng.randrange(len(tokenizer)) for _ in range(60)]
        for start, end in fact_spans(tokenizer, ids):
            found += 1
            text = tokenizer.decode(ids[start:end])
            assert 0 <= start < end <= len(ids)
            assert "\ufffd" not in text and text.strip()
    assert found


# ---- A gist of facts ----


def test_a_fact_list_has_every_fact_once_whatever_its_case_and_in_the_possessive(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT + " Then JOHN SNOW paid 82 more. Of John Snow's pump, and of John Snow’s.")
    gist = each_tokenizer.decode(fact_list(each_tokenizer, ids, 1000))
    once = [fact for n, fact in enumerate(FACTS) if fact not in FACTS[:n]]
    assert [part.strip() for part in gist.replace(", ", ",").split(",") if part] == ",".join(once).split(",")
    assert "JOHN" not in gist


def test_a_fact_list_is_never_longer_than_asked_and_is_cut_there(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT)
    whole = fact_list(each_tokenizer, ids, 1000)
    # Not inside a character, of which some here have two tokens
    ends = [n - (each_tokenizer.decode(whole[:n]).endswith("\ufffd")) for n in range(60)]
    assert [fact_list(each_tokenizer, ids, n) for n in range(60)] == [whole[:n] for n in ends]
    assert fact_list(each_tokenizer, ids_of(each_tokenizer, "nothing of note here"), 5) == []


# ---- Kinds ----


def test_a_continuation_is_what_the_window_has_been_so_far(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT)
    (target,) = make_targets(each_tokenizer, ids, 5, window_of(24), of("continuation"))
    assert target == {"kind": "continuation", "cue_ids": ids[25:29], "target_ids": ids[29:37], "after_ids": []}
    assert make_targets(each_tokenizer, ids[:36], 5, window_of(24), of("continuation")) == []


def test_a_fact_follows_its_cue_in_the_context(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT)
    targets = make_targets(each_tokenizer, ids, 0, window_of(len(ids)), of("fact", cue_length=9))
    found = [each_tokenizer.decode(target["target_ids"]).strip() for target in targets]
    # The first has too little before it; the others missing have more than twelve tokens, or stand in their cue
    assert 8 < len(found) < len(FACTS) and [fact for fact in FACTS if fact in found] == found
    places = []
    for target in targets:
        cue, fact = target["cue_ids"], target["target_ids"]
        assert target["kind"] == "fact" and target["after_ids"] == cue
        assert 4 <= len(cue) <= 9 and len(fact) <= 12
        (place,) = stands_in(cue + fact, ids)
        assert len(cue) == min(9, place + len(cue))
        places.append(place)
    assert places == sorted(places)


def test_a_fact_that_stands_in_its_own_cue_is_no_target(each_tokenizer):
    ids = ids_of(each_tokenizer, "they say that at home in Soho, so in Soho and of course in the very middle of Soho")
    targets = make_targets(each_tokenizer, ids, 0, window_of(len(ids)), of("fact", cue_length=12))
    spans = fact_spans(each_tokenizer, ids)
    expected = [span for span in spans if "Soho" not in each_tokenizer.decode(ids[max(0, span[0] - 12) : span[0]])]
    assert 0 < len(expected) < len(spans)
    assert [target["target_ids"] for target in targets] == [ids[start:end] for start, end in expected]


def test_a_fact_that_the_contexts_end_may_cut_is_no_target(each_tokenizer):
    ids = ids_of(each_tokenizer, "they had paid as much as 1854 pounds")
    (span,) = fact_spans(each_tokenizer, ids)
    for end in range(span[0] + 1, len(ids) + 1):
        targets = make_targets(each_tokenizer, ids, 0, window_of(end), of("fact"))
        assert [target["target_ids"] for target in targets] == ([ids[slice(*span)]] if end >= span[1] else []), end


def test_a_sentence_is_recalled_from_its_first_tokens(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT)
    spec = window_of(len(ids), target_length=200)
    targets = make_targets(each_tokenizer, ids, 0, spec, of("recall", cue_length=12))
    sentences = [each_tokenizer.decode(target["cue_ids"] + target["target_ids"]).strip() for target in targets]
    assert sentences == [
        "On 3 March 1854 the physician John Snow met Ada Lovelace in Soho.",
        "He counted 1,854.5 barrels there and paid 82 pounds to Mr Brontë.",
        TEXT[TEXT.index("Later") : TEXT.index(" The")],
        TEXT[TEXT.index("The ") : TEXT.index(" In the")],
        "In the 1990s, it was 45% of U.S. trade.",
    ]
    for target in targets:
        assert len(target["cue_ids"]) == 6 and target["after_ids"] == target["cue_ids"]
        assert len(stands_in(target["cue_ids"] + target["target_ids"], ids)) == 1
    short = make_targets(each_tokenizer, ids, 0, replace(spec, target_length=5), of("recall", cue_length=12))
    assert [target["target_ids"] for target in short] == [target["target_ids"][:5] for target in targets]


def test_a_sentence_is_recalled_where_all_of_it_is_in_the_context(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT)
    first, second = (TEXT.index(" He"), TEXT.index(" Later"))
    end = len(ids_of(each_tokenizer, TEXT[:second]))
    assert ids[:end] == ids_of(each_tokenizer, TEXT[:second])
    begin = len(ids_of(each_tokenizer, TEXT[:first]))
    for length, count in ((end, 2), (end - 1, 1), (begin, 1), (begin - 1, 0)):
        assert len(make_targets(each_tokenizer, ids, 0, window_of(length), of("recall"))) == count, length
    # A window that begins within the first sentence has the second alone
    (target,) = make_targets(each_tokenizer, ids, 3, window_of(end - 3), of("recall"))
    assert each_tokenizer.decode(target["cue_ids"]).strip().startswith("He")


@pytest.mark.parametrize(
    "sentences",
    [
        ["बाकी लोग शहर में रहे।", "राम ने घर देखा।", "वह लौट गया।"],
        ["حدد الطبيب المنازل على الخريطة.", "هل صدقه أحد؟", "لم يصدقه سوى القليل آنذاك."],
        ["הרופא סימן את הבתים על מפה.", "רובם גרו סביב משאבה אחת!", "מעטים האמינו לו אז."],
        ["医生在地图上标出了住处。", "有人相信他吗？", "当时几乎没有人相信他。"],
        ["Ներկաները լռեցին։", "Բժիշկը նշեց տները։", "Քչերը հավատացին։"],
        ["แพทย์ทำเครื่องหมายบ้านต่างๆ บนแผนที่ในปี 1854 ในกรุงเทพฯ นั้น", "มีคนเชื่อเขาไหม", "ตอนนั้นแทบไม่มีใครเชื่อเขา"],
        ["ທ່ານໝໍໝາຍເຮືອນໃສ່ແຜນທີ່", "ບໍ່ມີໃຜເຊື່ອລາວ"],
    ],
    ids=["Hindi", "Arabic", "Hebrew", "Chinese", "Armenian", "Thai", "Lao"],
)
def test_sentences_end_in_scripts_without_capitals_too(each_tokenizer, sentences):
    ids = ids_of(each_tokenizer, " ".join(sentences))
    targets = make_targets(each_tokenizer, ids, 0, window_of(len(ids), target_length=200), of("recall"))
    assert [each_tokenizer.decode(t["cue_ids"] + t["target_ids"]).strip() for t in targets] == sentences


@pytest.mark.parametrize("text", [TEXT, "แพทย์ทำเครื่องหมาย มีคนเชื่อเขาไหม แทบไม่มีใครเชื่อเขา"], ids=["English", "Thai"])
def test_no_sentence_ends_where_the_context_happens_to(each_tokenizer, text):
    """As after the point of 1,854.5, where the next token tells that the sentence goes on."""
    ids = ids_of(each_tokenizer, text)
    spec, recall = window_of(len(ids), target_length=200), of("recall")
    sentences = make_targets(each_tokenizer, ids, 0, spec, recall)
    for length in range(10, len(ids)):
        found = make_targets(each_tokenizer, ids, 0, replace(spec, context_length=length), recall)
        assert found == sentences[: len(found)], length


def test_a_heading_in_thai_is_no_sentence_and_a_line_is(each_tokenizer):
    ids = ids_of(each_tokenizer, "แผนที่ของแพทย์\n\nมีคนเชื่อเขาไหม\nแทบไม่มีใครเชื่อเขา 7 คน")
    targets = make_targets(each_tokenizer, ids, 0, window_of(len(ids), target_length=200), of("recall"))
    said = [each_tokenizer.decode(target["cue_ids"] + target["target_ids"]).strip() for target in targets]
    assert said == ["มีคนเชื่อเขาไหม", "แทบไม่มีใครเชื่อเขา 7 คน"]


def test_at_least_four_tokens_of_a_sentence_are_left_to_recall(each_tokenizer):
    ids = ids_of(each_tokenizer, "The pump in Broad Street was closed for good.")
    for rest, count in ((5, 1), (4, 1), (3, 0)):
        recall = of("recall", cue_length=2 * (len(ids) - rest))
        targets = make_targets(each_tokenizer, ids, 0, window_of(len(ids)), recall)
        assert [target["target_ids"] for target in targets] == [ids[-rest:]] * count


def test_short_sentences_are_not_recalled_and_a_blank_line_ends_a_heading(each_tokenizer):
    text = "Yes. No. A heading\n\nThe pump in Broad Street was closed for good.\nIt was 「水」 and nothing but the water。東京は1964年に大きく変わった。"
    ids = ids_of(each_tokenizer, text)
    targets = make_targets(each_tokenizer, ids, 0, window_of(len(ids), target_length=200), of("recall"))
    sentences = [each_tokenizer.decode(target["cue_ids"] + target["target_ids"]).strip() for target in targets]
    assert sentences == [
        "The pump in Broad Street was closed for good.",
        "It was 「水」 and nothing but the water。",
        "東京は1964年に大きく変わった。",
    ]


def test_a_far_target_lies_beyond_the_context_and_the_teacher_reads_up_to_it(each_tokenizer):
    ids, spec, targets = ids_of(each_tokenizer, TEXT), window_of(24), of("far", far_offset=30)
    (target,) = make_targets(each_tokenizer, ids, 5, spec, targets)
    assert target == {"kind": "far", "cue_ids": ids[55:59], "target_ids": ids[59:67], "after_ids": ids[29:59]}
    assert ids[5:29] + target["after_ids"] + target["target_ids"] == ids[5:67]
    assert len(make_targets(each_tokenizer, ids[:67], 5, spec, targets)) == 1
    assert make_targets(each_tokenizer, ids[:66], 5, spec, targets) == []


# ---- Drawing ----


def counts(targets):
    return [sum(target["kind"] == kind for target in targets) for kind in KINDS]


@pytest.mark.parametrize(
    ("weights", "count", "expected"),
    [
        ((1, 3, 2, 1), 7, [1, 3, 2, 1]),
        ((1, 1, 1, 1), 4, [1, 1, 1, 1]),
        ((10, 1, 1, 10), 6, [1, 2, 2, 1]),  # continuation and far have one each: the others get what is left
        ((0.1, 0.3, 0.2, 0.1), 7, [1, 3, 2, 1]),
        ((1, 1, 1, 1), 1000, None),
    ],
)
def test_each_kind_gets_its_share_and_what_one_lacks_goes_to_the_others(tokenizer, weights, count, expected):
    ids, spec = ids_of(tokenizer, TEXT), window_of(len(ids_of(tokenizer, TEXT)) - 20)
    every = [len(make_targets(tokenizer, ids, 0, spec, of(kind, far_offset=4))) for kind in KINDS]
    targets = make_targets(tokenizer, ids, 0, spec, of(*zip(KINDS, weights, strict=True), count=count, far_offset=4))
    assert counts(targets) == (every if expected is None else expected)
    assert [target["kind"] for target in targets] == sorted((t["kind"] for t in targets), key=KINDS.index)
    assert len({str(target) for target in targets}) == len(targets)


@pytest.mark.parametrize(
    ("weights", "count", "expected"),
    [((3, 1), 1, 0.25), ((1, 1), 3, 1.5), ((3, 1), 6, 1.5), ((2, 1), 4, 4 / 3), ((1, 9), 1, 0.9)],
)
def test_in_the_mean_over_windows_each_kind_gets_its_share_however_few_are_asked_for(
    tokenizer, weights, count, expected
):
    """Also where shares are tied, or a kind's is never the largest."""
    spec, targets = window_of(250), of(*zip(("fact", "recall"), weights, strict=True), count=count)
    recalls = []
    for text in make_documents(150):
        drawn = make_targets(tokenizer, ids_of(tokenizer, f"{text}. {text}"), 0, spec, targets)
        recalls.append(sum(target["kind"] == "recall" for target in drawn))
        assert len(drawn) == count
    assert set(recalls) == {math.floor(expected), math.floor(expected) + 1}
    # The standard error is at most 0.5 / √150
    assert sum(recalls) / len(recalls) == pytest.approx(expected, abs=0.13)


def test_the_largest_window_has_as_many_of_the_longest_kind_as_a_draw_can_give():
    spec, targets = window_of(100, target_length=50), of(("fact", 3.0), ("recall", 1.0), count=6)
    assert sorted(targets.largest(spec)) == [(6, 50, 6)] * 2 + [(12, 12, 12)] * 4


def test_what_is_drawn_is_a_windows_own_wherever_and_whenever_it_is_cut(each_tokenizer):
    ids = ids_of(each_tokenizer, TEXT)
    spec, targets = window_of(len(ids) - 40), of("fact", "recall", count=4)
    first = make_targets(each_tokenizer, ids, 10, spec, targets)
    random.seed(99)
    make_targets(each_tokenizer, ids, 0, spec, targets)
    assert make_targets(each_tokenizer, ids, 10, spec, targets) == first
    # As at another place of a document: all but what lies beyond the context, and before it, is the same
    moved = [*ids_of(each_tokenizer, "So it was."), *ids[10:]]
    assert make_targets(each_tokenizer, moved, len(moved) - len(ids) + 10, spec, targets) == first


def test_other_windows_draw_other_targets(tokenizer):
    ids, spec = ids_of(tokenizer, TEXT), window_of(len(ids_of(tokenizer, TEXT)) - 40)
    drawn = set()
    for start in range(30):
        (target,) = make_targets(tokenizer, ids, start, spec, of("fact", count=1))
        drawn.add(tuple(target["target_ids"]))
    assert len(drawn) > 4


def test_another_process_draws_the_same(tokenizer):
    code = (
        "import sys; sys.path.insert(0, 'tests/helpers'); sys.path.insert(0, 'tests/data'); from test_targets import *; "
        "t = TOKENIZERS['byte-level']; ids = ids_of(t, TEXT); "
        "print(make_targets(t, ids, 0, window_of(len(ids) - 40), of('fact', 'recall', count=3)))"
    )
    ids = ids_of(tokenizer, TEXT)
    expected = make_targets(tokenizer, ids, 0, window_of(len(ids) - 40), of("fact", "recall", count=3))
    assert os.environ.get("PYTHONHASHSEED") != "1"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.splitlines()[-1] == str(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": ()}, "`target_kinds` is empty: name at least one"),
        ({"kinds": (("question", 1.0),)}, "'question', which no rule makes: .* columns `context` and `targets`"),
        ({"kinds": (("fact", 1.0), ("fact", 2.0))}, "'fact' more than once"),
        ({"kinds": (("fact", 0.0),)}, "The weight of 'fact' in `target_kinds` must be positive, got 0.0"),
        ({"kinds": (("fact", float("nan")),)}, "must be positive, got nan"),
        ({"targets_per_context": 0}, "`targets_per_context` must be at least 1, got 0"),
        ({"cue_length": 1}, "`cue_length` must be at least 2, got 1"),
        ({"far_offset": 0}, "`far_offset` must be at least 1, got 0"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TargetSpec(**{"kinds": (("fact", 1.0),), "targets_per_context": 1, **values})


# ---- Windows cut from documents ----


@pytest.fixture
def cut(make_args, tokenizer):
    def cut(dataset, targets=None, limits=None, rules=None, **args):
        spec = replace(make_args(**args).window_spec(tokenizer), targets=targets or TargetSpec())
        windows, skipped = prepare_windows(dataset, tokenizer, spec, limits, rules=rules)
        return list(windows), skipped

    return cut


SEVERAL = of("continuation", "fact", "recall", "far", count=5, far_offset=12)


def test_windows_get_the_column_and_are_otherwise_as_without_it(cut, tokenizer, dataset_of):
    rows = [{"text": text, "title": f"t{n}"} for n, text in enumerate(make_documents(5))]
    windows, skipped = cut(dataset_of(rows), SEVERAL, context_length=48)
    plain, _ = cut(dataset_of(rows), context_length=48)
    assert [{name: value for name, value in w.items() if name != "targets"} for w in windows] == plain
    assert all(set(w) == {*WINDOW_COLUMNS, "title"} for w in plain) and skipped.total == 0
    starts = [n for n, w in enumerate(windows) if n == 0 or w["document_id"] != windows[n - 1]["document_id"]]
    for n, window in enumerate(windows):
        ids = ids_of(tokenizer, rows[window["document_id"]]["text"])
        start = 56 * (n - max(s for s in starts if s <= n))
        assert window["targets"] == make_targets(tokenizer, ids, start, window_of(48), SEVERAL)
        assert len(window["targets"]) <= 5
    assert {target["kind"] for window in windows for target in window["targets"]} == set(KINDS)


def test_streams_and_map_style_datasets_get_the_same_targets(cut):
    rows = [{"text": text} for text in make_documents(30)]
    rows[0] = rows[7] = {"text": "short"}  # a batch may begin with rows that give nothing
    kept, skipped = cut(Dataset.from_list(rows), SEVERAL, context_length=48)
    streamed, streamed_skipped = cut(stream(rows), SEVERAL, context_length=48)
    assert kept == streamed
    assert skipped.counts == streamed_skipped.counts == {"too short": 2}


def test_a_window_without_targets_is_skipped_and_counted_and_its_document_keeps_the_others(cut, tokenizer, dataset_of):
    plain, dated = " and so it went on and on" * 8, " and then it was 1854 or so"
    ids = ids_of(tokenizer, plain)
    texts = [plain + dated * 8, plain, dated * 8]
    windows, skipped = cut(dataset_of([{"text": text} for text in texts]), of("fact", count=2))
    every, _ = cut(dataset_of([{"text": text} for text in texts]))
    assert {window["document_id"] for window in windows} == {0, 2}
    assert len(windows) + skipped.counts["windows without targets"] == len(every) and len(skipped.counts) == 1
    assert skipped.total > len(ids) // 32 - 1
    kept = [tuple(window["context_ids"]) for window in windows]
    assert kept == [
        tuple(w["context_ids"]) for w in every if "1854" in w["prompt"] and tuple(w["context_ids"]) in kept
    ]


def test_documents_without_any_target_are_refused_with_the_way_out(cut, dataset_of):
    rows = [{"text": "and so it went on and on " * 20}] * 3
    with pytest.raises(
        ValueError, match=r"gave no window: \d+ rows skipped \(\d+ windows without targets\).*add `continuation`"
    ):
        cut(dataset_of(rows), of("fact"))


# ---- Ready windows ----


PASSAGE = "John Snow marked the houses on a map. The engineer built the sewers."
QUESTIONS = [
    {"cue": " Who marked the houses?", "target": " John Snow"},
    {"cue": " What was built?", "target": " The sewers"},
]


@pytest.mark.parametrize("spec_targets", [None, SEVERAL], ids=["default", "with-spec"])
def test_ready_contexts_with_several_targets(cut, tokenizer, dataset_of, spec_targets):
    context = ids_of(tokenizer, PASSAGE)
    tail = {"cue": context[-3:], "target": [30, 31], "kind": "tail"}
    rows = [{"context": PASSAGE, "targets": QUESTIONS}, {"context": PASSAGE, "targets": QUESTIONS[1:]}]
    windows, skipped = cut(dataset_of(rows), spec_targets)
    assert skipped.total == 0 and [len(window["targets"]) for window in windows] == [2, 1]
    for row, window in zip(rows, windows, strict=True):
        assert window["context_ids"] == context and window["last_k_ids"] == context[-4:]
        assert window["target_ids"] == ids_of(tokenizer, row["targets"][0]["target"])
        for given, target in zip(row["targets"], window["targets"], strict=True):
            cue = ids_of(tokenizer, given["cue"])
            expected = {"kind": "question", "cue_ids": cue, "target_ids": ids_of(tokenizer, given["target"])}
            assert target == {**expected, "after_ids": cue}
    (window,), _ = cut(dataset_of([{"context": context, "targets": [tail]}]), spec_targets)
    assert window["targets"] == [{"kind": "tail", "cue_ids": context[-3:], "target_ids": [30, 31], "after_ids": []}]


def test_a_target_that_is_given_as_text_goes_on_where_its_cue_ends():
    """Without the space that SentencePiece puts before a text, in its older form also before one that begins with a space."""
    older = make_metaspace_tokenizer()
    backend = older.backend_tokenizer
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    for tokenizer in (*TOKENIZERS.values(), older):
        for cue, target in ((" The pump stood in", " Broad Street"), ("(Lon", "don"), ("So", "\nBroad 82")):
            rows = [{"context": PASSAGE, "targets": [{"cue": cue, "target": target}]}]
            (window,), _ = prepare_windows(Dataset.from_list(rows), tokenizer, window_of(24))
            (asked,) = window["targets"]
            assert tokenizer.decode(asked["cue_ids"] + asked["target_ids"]).lstrip() == f"{cue}{target}".lstrip()
            rows = [{"context": PASSAGE + cue, "target": target}]
            (window,), _ = prepare_windows(Dataset.from_list(rows), tokenizer, window_of(24))
            assert tokenizer.decode(window["context_ids"] + window["target_ids"]) == PASSAGE + cue + target


def test_ready_rows_that_all_lack_something_are_not_called_too_short(cut, dataset_of):
    without_cue, without_context = (
        {"context": PASSAGE, "targets": [{"cue": "", "target": " x"}]},
        {"context": "", "target": " x"},
    )
    for row, told in (
        (without_cue, r"1 with a target whose `cue` is empty\)\. Targets are a list of dictionaries"),
        (without_context, r"1 whose `context` is empty\)\. Each row needs text, or token ids of the vocabulary"),
    ):
        with pytest.raises(ValueError, match=told):
            cut(dataset_of([row]))


def test_ready_windows_of_one_target_go_on_as_they_were_beside_a_spec(cut, dataset_of):
    rows = [{"context": [60 + n] * 12, "target": [30, 31], "last_k": [60 + n, 9]} for n in range(3)]
    windows, _ = cut(dataset_of(rows), SEVERAL)
    assert windows == cut(dataset_of(rows))[0] and set(windows[0]) == set(WINDOW_COLUMNS)


def test_kinds_that_ready_windows_do_not_follow_are_named(cut, dataset_of, caplog):
    for rows in ([{"context": [60] * 12, "target": [30]}], [{"context": PASSAGE, "targets": QUESTIONS}]):
        caplog.clear()
        cut(dataset_of(rows))
        assert not caplog.records
        cut(dataset_of(rows), SEVERAL)
        assert "`target_kinds` makes no targets of the train dataset's windows" in caplog.text
        for setting in ("window_stride", "max_windows_per_document"):
            cut(dataset_of(rows), **{setting: 7})
            assert f"`{setting}` (7) cuts no windows of the train dataset" in caplog.text
    texts = [{"text": make_documents(1)[0], "document_targets": [{"cue": "Where? In", "target": " Soho", "at": 1}]}]
    caplog.clear()
    cut(dataset_of(texts), window_stride=7)
    assert not caplog.records
    cut(dataset_of(texts), SEVERAL)
    assert "its `document_targets` are what they are asked for" in caplog.text


@pytest.mark.parametrize("spec_targets", [None, SEVERAL], ids=["default", "with-spec"])
def test_a_given_last_k_stays_beside_targets(cut, tokenizer, dataset_of, spec_targets):
    (window,), _ = cut(dataset_of([{"context": PASSAGE, "last_k": [7, 8], "targets": QUESTIONS}]), spec_targets)
    assert window["last_k_ids"] == [7, 8]


def test_target_beside_targets_is_refused(cut, dataset_of):
    rows = [{"context": PASSAGE, "target": "a", "targets": QUESTIONS}]
    with pytest.raises(ValueError, match="both `target` and `targets`.*remove_columns"):
        cut(dataset_of(rows))
    with pytest.raises(ValueError, match="both `text`, which is cut into windows, and `context` and `targets`"):
        cut(dataset_of([{"text": PASSAGE, "context": PASSAGE, "targets": QUESTIONS}]))


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (None, "whose targets are null"),
        ([], "without targets"),
        ([{"cue": None, "target": "a", "kind": "q"}], "with a target whose `cue` is null"),
        ([{"cue": "a", "target": None, "kind": "q"}], "with a target whose `target` is null"),
        (
            [{"cue": "a", "target": "b", "kind": "q"}, {"cue": "", "target": "b", "kind": "q"}],
            "with a target whose `cue` is empty",
        ),
        ([{"cue": "a", "target": "", "kind": "q"}], "with a target whose `target` is empty"),
    ],
)
def test_a_row_whose_targets_cannot_be_used_is_skipped_and_counted(cut, dataset_of, targets, reason):
    good = {"context": PASSAGE, "targets": [{"cue": "a", "target": "b", "kind": "q"}]}
    windows, skipped = cut(dataset_of([{"context": PASSAGE, "targets": targets}, good, good]))
    assert len(windows) == 2 and skipped.counts == {reason: 1}


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ([{"cue": "a"}], "with a target that lacks `cue` or `target`"),
        (["a"], "with a target that lacks `cue` or `target`"),
        ("a", "whose targets are not a list"),
        ({"cue": ["a"], "target": ["b"]}, "whose targets are not a list"),
        ([{"cue": 5, "target": "a"}], "with a target whose `cue` is not a string"),
        ([{"cue": "a", "target": "b", "kind": 5}], "with a target whose `kind` is not a string"),
        ([{"cue": "\ud800", "target": "b"}], "with a target whose `cue` is undecodable"),
        ([{"cue": [10**6], "target": "b"}], "with a target whose `cue` is of ids outside the vocabulary"),
        (
            [{"cue": "a", "target": "b"}, {"cue": "a", "target": [-1]}],
            "with a target whose `target` is of ids outside the vocabulary",
        ),
    ],
)
def test_a_stream_may_hold_worse_and_skips_it_too(cut, targets, reason):
    windows, skipped = cut(
        stream([{"context": PASSAGE, "targets": QUESTIONS}, {"context": PASSAGE, "targets": targets}])
    )
    assert len(windows) == 1 and skipped.counts == {reason: 1}


def test_ids_outside_the_vocabulary_in_a_target_are_skipped(cut, tokenizer, dataset_of):
    bad = [{"cue": [5, 6], "target": [len(tokenizer)]}]
    rows = [{"context": [5, 6], "targets": targets} for targets in (bad, [{"cue": [5], "target": [6]}])]
    windows, skipped = cut(dataset_of(rows))
    assert len(windows) == 1 and skipped.total == 1
    assert skipped.counts == {"with a target whose `target` is of ids outside the vocabulary": 1}


@pytest.mark.parametrize("targets", ["a", [{"question": "Who?", "answer": "a"}], [{"cue": "a", "target": 5}]])
def test_where_no_targets_can_be_used_the_error_shows_what_they_look_like(cut, targets):
    shape = re.escape('as [{"cue": "The men drank", "target": " beer"}]')
    with pytest.raises(ValueError, match=rf"gave no window: 1 rows skipped .*{shape}.*CSV has no lists"):
        cut(stream([{"context": PASSAGE, "targets": targets}]))


def test_questions_in_columns_of_their_own_are_to_be_targets(cut, dataset_of):
    with pytest.raises(ValueError, match=r"write questions and answers as `targets`: \[\{\"cue\": "):
        cut(dataset_of([{"context": PASSAGE, "question": "Who?", "answer": "a"}]))
    with pytest.raises(ValueError, match="to train on these `targets`, call what they are about `context`"):
        cut(dataset_of([{"passage": PASSAGE, "targets": QUESTIONS}]))


def test_the_column_is_an_input_beside_a_context_and_taken_beside_text(cut, make_args, dataset_of):
    rules = make_args().column_rules
    assert len(cut(dataset_of([{"context": PASSAGE, "targets": QUESTIONS}]), rules=rules)[0]) == 1
    message = (
        r"has a column `targets`.*'text', 'context'.*`document_targets`.*rename_column\('targets', 'my_targets'\)"
    )
    with pytest.raises(ValueError, match=message):
        cut(dataset_of([{"text": make_documents(1)[0], "targets": QUESTIONS}]), rules=rules)
    assert {"targets", "kind", "target_scores"} <= RESERVED_COLUMNS.keys()


def test_where_no_rules_are_a_column_of_that_name_beside_text_is_not_taken_for_targets(cut, dataset_of):
    rows = [{"text": text, "targets": ["a"]} for text in make_documents(2)]
    assert all(set(window) == set(WINDOW_COLUMNS) for window in cut(dataset_of(rows))[0])
    windows, _ = cut(dataset_of(rows), SEVERAL)
    assert all(isinstance(target, dict) for window in windows for target in window["targets"])


# ---- Limits ----


LONG_TARGETS = [
    {"kind": "a", "cue_ids": [1] * 5, "target_ids": [2] * 3, "after_ids": [3] * 20},
    {"kind": "b", "cue_ids": [1] * 9, "target_ids": [2] * 2, "after_ids": []},
]
LONG = {"context_ids": [4] * 30, "last_k_ids": [4] * 4, "target_ids": [2] * 3, "targets": LONG_TARGETS}


@pytest.mark.parametrize(("role", "needed"), [("summarizer", 30), ("teacher", 30 + 23), ("generator", 11)])
def test_targets_need_the_positions_of_the_longest_of_them_not_of_all(role, needed):
    PositionLimits(**{role: needed}).check(LONG, "Row 0")
    with pytest.raises(ValueError, match=f"Row 0 does not fit the {role}: {needed} tokens .*bring its targets nearer"):
        PositionLimits(**{role: needed - 1}).check(LONG, "Row 0")


def test_far_targets_that_do_not_fit_the_teacher_are_refused_while_cutting(cut, dataset_of):
    rows = [{"text": text} for text in make_documents(3)]
    cut(dataset_of(rows), SEVERAL, PositionLimits(teacher=24 + 12 + 8))
    with pytest.raises(ValueError, match="Row 0 of the train dataset does not fit the teacher: 44 tokens"):
        cut(dataset_of(rows), SEVERAL, PositionLimits(teacher=24 + 12 + 7))


def test_facts_are_found_while_other_threads_read_texts(tokenizer):
    """A tokenizer is asked by one thread at a time: it holds as its state how it reads special tokens."""
    asked = []

    class Watched(type(tokenizer)):
        def __call__(self, *args, **kwargs):
            asked.append(tokens._LOCK._is_owned())
            return super().__call__(*args, **kwargs)

    watched = copy.deepcopy(tokenizer)
    watched.__class__ = Watched
    assert fact_spans(watched, tokenizer("It took Snow 82 days.")["input_ids"])
    assert asked and all(asked)


# ---- Rows ----


def test_a_row_without_targets_has_the_one_that_its_columns_are():
    row = {"context_ids": [1, 2, 3, 4], "last_k_ids": [3, 4], "target_ids": [5]}
    target = {"kind": "continuation", "cue_ids": [3, 4], "target_ids": [5], "after_ids": []}
    assert targets_of(row) == [target]
    assert targets_of({**row, "last_k_ids": [8, 9]})[0]["after_ids"] == [8, 9]
    assert targets_of({**row, "seen_ids": [7, 7, 3, 4]})[0]["after_ids"] == []
    assert targets_of({**row, "targets": LONG_TARGETS}) == LONG_TARGETS


def test_one_row_each_reads_as_its_target_says(cut, tokenizer):
    rows = [{"text": text, "title": "t"} for text in make_documents(6)]
    windows, _ = cut(Dataset.from_list(rows), SEVERAL, context_length=48)
    far = 0
    for window in windows:
        each = one_row_each(window)
        assert [row["kind"] for row in each] == [target["kind"] for target in window["targets"]]
        for row, target in zip(each, window["targets"], strict=True):
            assert "targets" not in row and row["title"] == "t" and row["context_ids"] == window["context_ids"]
            assert (row["last_k_ids"], row["target_ids"]) == (target["cue_ids"], target["target_ids"])
            # As `GistPrompts.teacher` is called in scoring
            assert through_last_k(seen_ids(row), row["last_k_ids"]) == window["context_ids"] + target["after_ids"]
            assert ("seen_ids" in row) == (row["kind"] == "far")
            far += row["kind"] == "far"
    assert far and "targets" in windows[0]


def test_a_cue_that_is_also_the_contexts_end_is_still_read_again():
    """The teacher would else read the context alone, as if the target came after its end."""
    target = {"kind": "fact", "cue_ids": [1, 2], "target_ids": [3], "after_ids": [1, 2]}
    row = {"context_ids": [1, 2, 3, 1, 2], "last_k_ids": [1, 2], "target_ids": [9], "targets": [target]}
    (one,) = one_row_each(row)
    assert through_last_k(seen_ids(one), one["last_k_ids"]) == [1, 2, 3, 1, 2, 1, 2]


def test_a_row_of_one_target_stays_one_row():
    row = {"context_ids": [1, 2, 3, 4], "last_k_ids": [8, 9], "target_ids": [5], "title": "t"}
    assert one_row_each(row) == [{**row, "kind": "continuation"}]
