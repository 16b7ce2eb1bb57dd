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
from tiny import PARAGRAPH, make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trl_gist.common.pieces import first_of_character, tokenize_pieces


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
    whole = any_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for piece in (500, 1999):
        pieces = list(tokenize_pieces(any_tokenizer, text, piece))
        assert [token for ids, _ in pieces for token in ids] == whole["input_ids"]
        assert [start for _, starts in pieces for start in starts] == [start for start, _ in whole["offset_mapping"]]
        if text is TEXTS["a paragraph over and over"]:
            assert len(pieces) > 3


def test_a_character_of_several_tokens_has_one_first(tokenizer):
    text = "a漢b"
    ((ids, starts),) = tokenize_pieces(tokenizer, text)
    assert starts == [0, 1, 1, 1, 2] and len(ids) == 5
    assert [first_of_character(starts, index) for index in range(5)] == [0, 1, 1, 1, 4]
