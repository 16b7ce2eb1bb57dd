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
"""Texts of any script, with control tokens and emoji among them, and vocabularies that spell characters by their bytes."""

import json

from hypothesis import settings
from hypothesis import strategies as st
from tiny import PARAGRAPH, make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


# The same examples in every run, and no database beside the tests
settings.register_profile("suite", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROLS = ("<|im_end|>", "<|im_start|>", "</s>", "<s>", "<tool_call>")
SCRIPTS = (
    *("Größe naïve ", "Łódź ", "Москва ", "霍乱水泵 ", "コレラ ", "콜레라 ", "الكوليرا ", "हैज़ा ", "ไข้ ", "כולרה "),
    *("👩‍👩‍👧", "🦠", "🇬🇧", "e\u0301", "\u200f", "\x00", "\t\r\n", "“…”", "𝔘", "1854, "),
)
texts = st.lists(
    st.one_of(st.sampled_from(SCRIPTS), st.sampled_from(CONTROLS), st.text(max_size=6), st.just("In 1854 ")),
    max_size=12,
).map("".join)
# Long enough to be cut, and without the sign that stands for what is no character
long_texts = texts.map(lambda text: (text.replace("\ufffd", "") or "霍乱") * 12).map(lambda text: text[:70])


def _byte_level():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


def _byte_fallback():
    """As SentencePiece's: a space is a part of the next token, and what is in no token is spelled by its bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator([PARAGRAPH], trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"]))
    model = json.loads(tokenizer.to_str())["model"]
    signs = [*model["vocab"], *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = {sign: index for index, sign in enumerate(signs)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _wrapped(tokenizer)


def _wrapped(tokenizer):
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    wrapped.add_tokens(["<tool_call>"])
    return wrapped


def _unigram():
    """As llm-jp's and XGLM's: control tokens and tokens for bytes are pieces as all others, and signs are normalized."""
    specials, metaspace = ["<unk>", "<s>", "</s>"], pre_tokenizers.Metaspace(prepend_scheme="first")
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = metaspace
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>")
    trained.train_from_iterator([PARAGRAPH], trainer)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), metaspace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _wrapped(tokenizer)


def _word_piece():
    """As BERT's: without case, accents and signs that are not seen."""
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator([PARAGRAPH], trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials))
    return _wrapped(tokenizer)


def _normalizing(normalizer):
    tokenizer = _byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


TOKENIZERS = {"byte-level": _byte_level(), "byte-fallback": _byte_fallback()}
# Of which not each text is that of its tokens
OTHER_TOKENIZERS = {
    "unigram": _unigram(),
    "word pieces": _word_piece(),
    "NFC": _normalizing(normalizers.NFC()),
    "NFKC": _normalizing(normalizers.NFKC()),
    "lower case": _normalizing(normalizers.Lowercase()),
    "no accents": _normalizing(normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])),
}
for each in (*TOKENIZERS.values(), *OTHER_TOKENIZERS.values()):
    each.chat_template = TEMPLATE
