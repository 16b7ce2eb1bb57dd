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

"""
Texts as token ids and back.

Text stays text: a document, a question or a message that spells a control token, as `<|im_end|>`, becomes the tokens of
its letters, so that it ends no turn and begins none. Only a prompt's own template writes control tokens.

Characters stay whole: a token of byte-level BPE, or of byte fallback, may be a part of a character. Where ids are cut,
they are cut between two characters, and what makes no character has no text.
"""

import codecs
import functools
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from .chat_template import render
from .pieces import PIECE, Piece, encode_pieces


# Fast tokenizers hold as their state whether special tokens are split, and may not be changed while they are read
_LOCK = threading.RLock()
_BYTE = re.compile("<0x([0-9A-F]{2})>")
# Around what a chat's strings spell of control tokens, while its template is rendered. Unicode has set them aside for
# such uses; one that is already in a string is left out
_BEGIN, _END = "\ufdd0", "\ufdd1"
_MARK = f"[{_BEGIN}{_END}]"
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}|{_MARK}")
# A character is of four bytes at most, each of which may be a token; and tokens before a place that tell what it is in
_LONGEST, _ENOUGH = 4, 16


# ---- Texts to ids ----


def literal_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """
    Token ids of what a user brings, with no control token among them, whatever it spells: neither a special token nor
    one that the chat template writes. Nothing is added before or after it.
    """
    return [token for ids, _ in literal_pieces(tokenizer, text) for token in ids]


def literal_pieces(tokenizer: PreTrainedTokenizerBase, text: str, piece: int = PIECE) -> Iterator[Piece]:
    """
    As [`literal_ids`], piece by piece, with the character where each token begins; see [`~common.pieces.encode_pieces`].
    A tokenizer without offsets takes the text as a whole, and says `None` for these.
    """
    return _pieces(tokenizer, functools.partial(_literal, tokenizer), text, piece)


def written_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text whose control tokens are meant, as a prompt's template."""
    return [token for ids, _ in written_pieces(tokenizer, text) for token in ids]


def written_pieces(tokenizer: PreTrainedTokenizerBase, text: str, piece: int = PIECE) -> Iterator[Piece]:
    """As [`written_ids`], piece by piece, as [`literal_pieces`]."""
    return _pieces(tokenizer, functools.partial(_encoded, tokenizer, split_special_tokens=False), text, piece)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, **variables
) -> list[int]:
    """
    Token ids of a chat and the header of its next answer. Only the chat template writes control tokens: what messages and
    tools spell of them is text. `variables` are what else the template is given.

    Raises:
        ValueError: if the template refuses the messages.
    """
    messages, tools, variables = (_marked(tokenizer, each) for each in (messages, tools, variables))
    # A mark by itself is what a template's `split` left of two: what stands on either side of it is not joined
    parts = _MARKED.split(render(tokenizer, messages, tools, **variables))
    ids = written_ids(tokenizer, parts[0])
    for place, part in enumerate(parts[1:], 1):
        if part:
            ids += following_ids(tokenizer, part, literal_ids if place % 2 else written_ids)
    return ids


def following_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, encode: Callable[[PreTrainedTokenizerBase, str], list[int]]
) -> list[int]:
    """Token ids of a text that stands after another, as of `encode`: SentencePiece puts a space before a first one."""
    newline, ids = encode(tokenizer, "\n"), encode(tokenizer, f"\n{text}")
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(tokenizer, text)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of all tokens that have no text of their own: the named ones, and those only marked as special."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {token_id for token_id, token in added if token.special}


class _Controls(NamedTuple):
    """
    The control tokens of a tokenizer: special ones but for that of unknown text, and what other added tokens the chat
    template writes, as transformers (5.23) finds them for `sanitize_control_tokens`.

    Attributes:
        ids (`frozenset[int]`):
            All of them.
        of_template (`list[str]`):
            Those that are not special.
        spelled (`re.Pattern`):
            Any of them, and, where a vocabulary would find them in a text, tokens for bytes.
        of_bytes (`list[str]`):
            These.
        normal (`re.Pattern` or `None`):
            Any of them as the tokenizer's normalizer leaves them, if it has one.
    """

    ids: frozenset[int]
    of_template: list[str]
    spelled: re.Pattern
    of_bytes: list[str]
    normal: re.Pattern | None


def _controls_of(tokenizer) -> _Controls:
    return _controls(tokenizer, len(tokenizer), str(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _controls(tokenizer, _, chat_template):
    named = getattr(tokenizer, "chat_control_tokens", None)  # transformers 5.17 knows of none
    of_template = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if not token.special
        and (
            token.content in named
            if named is not None
            else token.content in chat_template and len(token.content) > 1 and not token.content.isspace()
        )
    ]
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    names = [*of_template, *tokenizer.convert_ids_to_tokens(sorted(special))]
    of_bytes, normalizer = [], _normalizer(tokenizer)
    if tokenizer.is_fast and isinstance(tokenizer.backend_tokenizer.model, models.Unigram):
        of_bytes = [name for name in tokenizer.get_vocab() if _BYTE.fullmatch(name)]
    return _Controls(
        special | {*tokenizer.convert_tokens_to_ids(of_template)},
        of_template,
        _any_of([*names, *of_bytes]),
        of_bytes,
        None if normalizer is None else _any_of(map(normalizer.normalize_str, names)),
    )


def _normalizer(tokenizer):
    return tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None


def _any_of(names):
    """A pattern of texts, the longest first, and of nothing else."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _marked(tokenizer, value):
    """Messages, and the like, with marks around the control tokens in their strings: those of mappings' keys too, as a
    call's arguments have them."""
    if isinstance(value, dict):
        return {_marked(tokenizer, key): _marked(tokenizer, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marked(tokenizer, each) for each in value]
    if not isinstance(value, str):
        return value
    value, marked, done = re.sub(_MARK, "", value), "", 0
    for start, stop in _spans(tokenizer, value):
        if start >= done:
            marked, done = f"{marked}{value[done:start]}{_BEGIN}{value[start:stop]}{_END}", stop
    return marked + value[done:]


def _spans(tokenizer, text) -> list[tuple[int, int]]:
    """Where a text spells a control token, as it stands or as the tokenizer's normalizer leaves it."""
    controls, normalizer = _controls_of(tokenizer), _normalizer(tokenizer)
    spans = [match.span() for match in controls.spelled.finditer(text)]
    if normalizer is not None and controls.normal.search(normalizer.normalize_str(text)):
        with _LOCK:
            encoded = tokenizer(
                text, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
            )
        found = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        spans = sorted({*spans, *(span for token, span in found if token in controls.ids)})
    return spans


def _pieces(tokenizer, encode, text, piece):
    if tokenizer.is_fast:
        yield from encode_pieces(encode, text, piece)
    else:
        yield encode(text)[0], None


def _encoded(tokenizer, text, split_special_tokens):
    """Token ids, and the characters where they begin: none of a tokenizer without offsets."""
    with _LOCK:
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            return_offsets_mapping=tokenizer.is_fast,
            verbose=False,
        )
    return encoded["input_ids"], [start for start, _ in encoded.get("offset_mapping", ())]


def _literal(tokenizer, text):
    controls = _controls_of(tokenizer)
    ends = []  # each after the first character of a control token
    if any(name in text for name in controls.of_template):
        ends = _ends(text, _any_of(controls.of_template))
    ids, starts = _in_parts(tokenizer, text, ends)
    # A vocabulary of whole words, or of Unigram, finds them among its own
    if not controls.ids.isdisjoint(ids) or any(name in text for name in controls.of_bytes):
        ends = _ends(text, controls.spelled)
        ids, starts = _in_parts(tokenizer, text, ends)
    # And a normalizer makes them of other characters
    while more := {start + 1 for token, start in zip(ids, starts, strict=False) if token in controls.ids} - {*ends}:
        ends = sorted({*ends, *more})
        ids, starts = _in_parts(tokenizer, text, ends)
    return ids, starts


def _ends(text, pattern):
    return [match.start() + 1 for match in re.finditer(f"(?={pattern.pattern})", text)]


def _in_parts(tokenizer, text, ends):
    """As `_encoded`, in parts that end at these places."""
    ids, starts = _encoded(tokenizer, text[: ends[0]] if ends else text, True)
    for start, stop in itertools.pairwise([*ends, len(text)] if ends else []):
        # After a newline, since SentencePiece puts a space before a text
        newline, before = _encoded(tokenizer, "\n", True)[0], 1
        part_ids, part_starts = _encoded(tokenizer, "\n" + text[start:stop], True)
        if part_ids[: len(newline)] != newline:
            newline, before = [], 0
            part_ids, part_starts = _encoded(tokenizer, text[start:stop], True)
        ids += part_ids[len(newline) :]
        starts += [start - before + at for at in part_starts[len(newline) :]]
    return ids, starts


# ---- Ids to texts ----


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], skip_special_tokens: bool = True) -> str:
    """The text of token ids, without what makes no whole character and, unless they are wanted, without special tokens."""
    characters = characters_of(tokenizer)
    return characters.text(characters.whole(token_ids), skip_special_tokens)


class Characters:
    """
    Which tokens of a vocabulary make whole characters together, by the bytes of each; see [`characters_of`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of any kind. Tokens of a vocabulary that has none for bytes are whole characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    def cut(self, token_ids: list[int], place: int) -> int:
        """The last place at or before `place` where ids may be cut: between two characters, or at 0."""
        place = min(place, len(token_ids))
        if place < len(token_ids) and not self._goes_on(token_ids[place]):
            return place
        return place - self.unfinished(token_ids[max(0, place - _ENOUGH) : place])

    def next_cut(self, token_ids: list[int], place: int) -> int:
        """The first such place at or after `place`, or the end of the ids."""
        while place < len(token_ids) and self.cut(token_ids, place) < place:
            place += 1
        return place

    def last(self, token_ids: list[int], count: int) -> list[int]:
        """The last ids, `count` of them at most, from the beginning of a character on."""
        return list(token_ids[self.next_cut(token_ids, max(0, len(token_ids) - count)) :])

    def unfinished(self, token_ids: list[int]) -> int:
        """How many tokens at the end are the beginning of a character that others may complete."""
        first = len(token_ids)
        while first > 0 and len(token_ids) - first < _LONGEST:
            first -= 1
            if not self._goes_on(token_ids[first]):
                break
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(map(self._bytes, token_ids[first:])))
        left, count = len(decoder.getstate()[0]), 0
        while left > 0:
            count += 1
            left -= len(self._bytes(token_ids[-count]))
        # Such a token may itself begin inside a character
        return count + self.unfinished(token_ids[:-count]) if count and self._goes_on(token_ids[-count]) else count

    def whole(self, token_ids: list[int]) -> list[int]:
        """The ids without those whose bytes make no character."""
        kept = list(token_ids)
        while broken := _broken_bytes(b"".join(map(self._bytes, kept))):
            left, start = [], 0
            for token in kept:
                end = start + len(self._bytes(token))
                if broken.isdisjoint(range(start, end)):
                    left.append(token)
                start = end
            kept = left
        return kept

    def text(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of ids that make whole characters."""
        text, start = "", 0
        for place, token in enumerate(token_ids if self._misread else ()):
            if token in self._misread:
                text += self._decode(token_ids[start:place], skip_special_tokens) + self._misread[token]
                start = place + 1
        return text + self._decode(token_ids[start:], skip_special_tokens)

    def _decode(self, token_ids, skip_special_tokens):
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    @functools.cached_property
    def _misread(self) -> dict[int, str]:
        """Added tokens of letters that the decoder of a byte-level vocabulary (tokenizers 0.22) takes for bytes."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {
            token_id: token.content
            for token_id, token in added
            if not token.special
            and not token.content.isascii()
            and all(map(self._byte_of.__contains__, token.content))
        }

    @functools.cached_property
    def _byte_of(self):
        """The byte of each sign by which a byte-level vocabulary spells it; empty for any other vocabulary."""
        signs = sorted(pre_tokenizers.ByteLevel.alphabet())
        shown = [sign for sign in signs if ord(sign) < 256]  # these stand for themselves
        others = [byte for byte in range(256) if chr(byte) not in shown]
        byte_of = {**{sign: ord(sign) for sign in shown}, **dict(zip(signs[len(shown) :], others, strict=True))}
        return byte_of if self.tokenizer.convert_tokens_to_string(["Ã©"]) == "é" else {}

    def _goes_on(self, token):
        """Whether a token begins inside a character."""
        return 0x80 <= next(iter(self._bytes(token)), 0) < 0xC0

    def _bytes(self, token):
        if token not in self._known:
            misread = self._misread.get(token)
            sign = self.tokenizer.convert_ids_to_tokens(token)
            self._known[token] = self._spelled(sign) if misread is None else misread.encode()
        return self._known[token]

    def _spelled(self, sign):
        if sign is None:  # beyond the vocabulary, where embeddings are padded
            return b""
        if isinstance(sign, bytes):
            return sign
        if self._byte_of and all(letter in self._byte_of for letter in sign):
            return bytes(self._byte_of[letter] for letter in sign)
        if not self._byte_of and (byte := _BYTE.fullmatch(sign)):
            return bytes([int(byte[1], 16)])
        return sign.encode("utf-8", "replace")


# Of a few tokenizers, since each keeps what it has looked up
characters_of = functools.lru_cache(maxsize=8)(Characters)


def _broken_bytes(data):
    """Places of the bytes that are no part of a character."""
    broken, start = set(), 0
    while True:
        try:
            data[start:].decode("utf-8")
            return broken
        except UnicodeDecodeError as error:
            broken.update(range(start + error.start, start + error.end))
            start += error.end


# ---- Characters of given ids ----


class _Added:
    """What each token of a tokenizer adds to a text."""

    def __init__(self, tokenizer):
        self.tokenizer, self.known = tokenizer, {}
        # Decoders drop the space before a first token: an anchor takes that place
        self.anchor = written_ids(tokenizer, "a")
        self.before = len(self._decode(self.anchor))

    def __call__(self, *ids: int) -> str:
        if ids not in self.known:
            self.known[ids] = self._decode([*self.anchor, *ids])[self.before :]
        return self.known[ids]

    def _decode(self, ids):
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# Of a few tokenizers, since each keeps what it has decoded
_added = functools.lru_cache(maxsize=4)(_Added)


class Spelled:
    """
    Given ids as text, and which tokens each character comes from: a tokenizer gives offsets for texts, not for ids, which
    may begin and end inside a word.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            Any.

    Attributes:
        text (`str`):
            With the space, if there is one, before its first word.
        starts, ends (`list[int]`):
            The characters from which and to which each token goes; alike for those that make up a character together.
    """

    # Tokens that can share characters: a byte each of one of four bytes, or some that each end within one
    LONGEST = 8

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids: list[int]):
        added = _added(tokenizer)
        texts, self.first, self.last, self.starts, self.ends, self.spaces = [], [], [], [], [], []
        token = length = 0
        while token < len(ids):
            group, text = 1, added(ids[token])
            if "\ufffd" in text:
                for size in range(2, min(self.LONGEST, len(ids) - token) + 1):
                    if "\ufffd" not in (together := added(*ids[token : token + size])):
                        group, text = size, together
                        break
            texts.append(text)
            self.first += [token] * len(text)
            self.last += [token + group - 1] * len(text)
            self.starts += [length] * group
            self.ends += [length + len(text)] * group
            self.spaces += [text == " "] * group
            token, length = token + group, length + len(text)
        self.text = "".join(texts)

    def tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """
        The tokens of some characters, with that of a space before them; `None` if they share one with what is no space.
        """
        first, last = self.first[start], self.last[end - 1]
        if self.text[self.starts[first] : start].strip() or self.text[end : self.ends[last]].strip():
            return None
        if first and self.spaces[first - 1]:
            first -= 1
        return first, last + 1
