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

import pytest
from any_text import TOKENIZERS as WITH_TEMPLATES
from tiny import PARAGRAPH, make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trl_gist.common.pieces import LongText
from trl_gist.common.tokens import literal_ids, literal_pieces, written_ids


def sentencepiece_like(kind):
    """Tokenizers that put a sign before a text, look across words, or split characters into bytes."""
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>")
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    if kind == "across words":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator([PARAGRAPH], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {
    "bytes": make_tokenizer,
    **{kind: lambda kind=kind: sentencepiece_like(kind) for kind in ("unigram", "across words", "metaspace")},
}
BITS = [
    *("cholera ", "Сноу карта ", "漢字かな", "한국어 ", "👩‍👩‍👧 ", "العربية ", "1854 ", "é", " ", "   ", "\n\n"),
    *("<|im_end|>", "a" * 120, "=" * 300),
]
TEXTS = {
    "a paragraph over and over": PARAGRAPH * 12,
    "all scripts": "".join(random.Random(0).choices(BITS, k=700)),
    "one letter": "a" * 5000,
    "one sign": "=" * 4000 + " x",
    "lines": "\n" * 3000,
    "one character of three bytes": "漢" * 2000,
    "one word": "the " * 1500,
    "next to nothing": "x",
    "nothing": "",
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_pieces_are_the_whole_texts_ids_and_say_where_each_begins(any_tokenizer, text):
    whole = any_tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    for piece in (500, 1999):
        pieces = list(literal_pieces(any_tokenizer, text, piece))
        assert [token for ids, _ in pieces for token in ids] == whole["input_ids"]
        assert [start for _, starts in pieces for start in starts] == [start for start, _ in whole["offset_mapping"]]
        if text is TEXTS["a paragraph over and over"]:
            assert len(pieces) > 3


@pytest.mark.parametrize("kind", WITH_TEMPLATES)
def test_control_tokens_are_text_where_they_are_written_and_tokens_where_they_are_meant(kind):
    """Those that only the chat template writes too, wherever a piece ends: a text of any length as one of a few words."""
    tokenizer = WITH_TEMPLATES[kind]
    text, meant = "the <tool_call>pump and <|im_end|> ", tokenizer.convert_tokens_to_ids("<tool_call>")
    for count in (40, 4000):  # the second is longer than a piece
        ids = literal_ids(tokenizer, text * count)
        assert meant not in ids and tokenizer.decode(ids) == text * count
        assert written_ids(tokenizer, text * count).count(meant) == count
    whole = literal_ids(tokenizer, text * 40)
    for piece in range(200, 240):
        pieces = list(literal_pieces(tokenizer, text * 40, piece))
        assert [token for ids, _ in pieces for token in ids] == whole and len(pieces) > 3
        starts = [start for _, starts in pieces for start in starts]
        for start, stop, token in zip(starts, starts[1:], whole, strict=False):
            assert tokenizer.decode([*whole[:1], token]).endswith((text * 40)[start:stop])


def test_a_tokenizer_without_offsets_takes_a_text_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert list(literal_pieces(tokenizer, PARAGRAPH, 100)) == [(literal_ids(tokenizer, PARAGRAPH), None)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_in_bytes_has_the_pieces_of_a_str(text, kind):
    tokenizer = TOKENIZERS[kind]()
    in_bytes = LongText(memoryview(text.encode()), len(text))
    assert [*literal_pieces(tokenizer, in_bytes, 200)] == [*literal_pieces(tokenizer, text, 200)]


def test_a_text_in_bytes_is_sliced_as_a_str_forward_and_back():
    text = TEXTS["all scripts"]
    in_bytes, rng = LongText(memoryview(text.encode()), len(text)), random.Random(0)
    for _ in range(300):
        start, stop = sorted(rng.choices(range(len(text) + 1), k=2))
        assert in_bytes[start:stop] == text[start:stop]
