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
Bytes of a text as users have them: which encoding they are in, said where that is a guess, and decoded in blocks.

What is certain is not asked about: a byte order mark, the zeros of UTF-16, valid UTF-8. What else has few letters beyond
ASCII is read as Windows-1252, of which Latin-1's letters are a part, as browsers do, with a warning that shows a piece
of it; the rest is refused. Statistics of languages are left out: of a French page they made cp1257.
"""

import codecs
import functools
import io
import itertools
import logging
from collections.abc import Iterable, Iterator


logger = logging.getLogger(__name__)

UTF_8, FALLBACK = "utf-8", "cp1252"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings of other scripts in bytes that are ASCII, and so valid UTF-8, too
_SEVEN_BIT = ("iso2022", "hz", "utf-7")
# Bytes that tell what a text is whose encoding has to be guessed, and the greatest share of its letters beyond ASCII
_SAMPLE, _MOST_BEYOND_ASCII = 1 << 20, 0.3


@functools.cache
def _warn(message):
    """Once, however often a file is looked at."""
    logger.warning(message)


def check_encoding(encoding: str | None):
    """Raises `ValueError` for a name that Python knows no encoding of texts by."""
    try:
        if encoding is not None:
            "".encode(encoding)
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"`encoding` must be the name of an encoding, as 'cp1252' or 'shift_jis', got {encoding!r}."
        ) from error


def marked_encoding(start: bytes) -> str | None:
    """The encoding that the first bytes of a text show, by a byte order mark or by the zeros of UTF-16; else `None`."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    size = len(start[:4096]) // 2
    zeros = [start[: 2 * size][place::2].count(0) for place in (0, 1)]
    for encoding, none, many in (("utf-16-le", *zeros), ("utf-16-be", *zeros[::-1])):
        if size and many > size / 3 and none < size / 20:
            return encoding
    return None


def find_encoding(name: str, blocks: Iterable[bytes], encoding: str | None = None, whole: bool = True) -> str:
    """
    The encoding of a text, for [`decoded`].

    Args:
        name (`str`):
            What it is called in a warning and an error.
        blocks (`Iterable[bytes]`):
            All of it, or its beginning. They are read as far as it takes.
        encoding (`str`, *optional*):
            What it is in if it has no mark and is no UTF-8.
        whole (`bool`, *optional*, defaults to `True`):
            Whether the blocks are all of it: only a beginning may end within a character.

    Raises:
        ValueError: if it is no UTF-8 and none was given, where it is a damaged or a cut UTF-8, has more than few letters
            beyond ASCII, or zero bytes, as what is packed; with its line and the byte.
    """
    blocks = iter(blocks)
    first = bytes(next(blocks, b""))
    if marked := marked_encoding(first):
        return marked
    decoder, lines, beyond = codecs.getincrementaldecoder(UTF_8)(), 1, 0
    blocks = itertools.chain([first], blocks)
    try:
        for block in blocks:
            text = decoder.decode(block)
            lines += text.count("\n")
            beyond += _beyond_ascii(text)
        if whole:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return encoding or _guessed(name, error, blocks, lines, beyond)
    if encoding is not None and not beyond and codecs.lookup(encoding).name.startswith(_SEVEN_BIT):
        return encoding
    return UTF_8


def _beyond_ascii(text):
    """How many letters; not one by one, since all of a corpus is looked at."""
    return len(text) - len(text.encode("ascii", "ignore"))


def _guessed(name, error, blocks, lines, beyond):
    sample = error.object[error.start :]
    for block in blocks:
        if len(sample) >= _SAMPLE:
            break
        sample += block
    line = lines + error.object[: error.start].count(b"\n")
    where = f"{name} is no UTF-8 (byte 0x{sample[0]:02x} in line {line})"
    if b"\0" in error.object or b"\0" in sample:
        raise ValueError(f"{where}, and has zero bytes, as no text has: see whether its suffix says what it is.")
    text = sample.decode(UTF_8, "replace")
    faults = text.count("\ufffd")
    high = sum(byte > 127 for byte in sample)
    if beyond + _beyond_ascii(text) - faults >= faults:
        raise ValueError(f"{where}, though other characters are: it is damaged. Mend it, or give its `encoding`.")
    try:
        guess = sample.decode(FALLBACK)
    except UnicodeDecodeError:
        guess = None
    if guess is None or high > _MOST_BEYOND_ASCII * (
        high + sum(byte < 128 and chr(byte).isalpha() for byte in sample)
    ):
        raise ValueError(f"{where}, and what else is not clear. Give its `encoding`, as 'cp1251' or 'shift_jis'.")
    before = error.object[max(0, error.start - 20) : error.start].decode(FALLBACK, "replace")
    shown = " ".join((before + guess[:20]).split())
    _warn(f"{where}: read as Windows-1252, as in {shown!r}. If that is wrong, give its `encoding`.")
    return FALLBACK


def text_of(name: str, content: bytes, encoding: str | None = None) -> str:
    """All of a text; arguments and errors as of [`find_encoding`] and [`decoded`]."""
    blocks = [memoryview(content)[start : start + (1 << 16)] for start in range(0, len(content), 1 << 16)]
    found = find_encoding(name, blocks, encoding)
    try:
        return str(memoryview(content), found)  # without a copy of what may be a whole book
    except UnicodeDecodeError:
        return "".join(decoded(name, blocks, found))  # which says where


def decoded(name: str, blocks: Iterable[bytes], encoding: str, newlines: bool = False) -> Iterator[str]:
    """
    A text block by block.

    Args:
        name (`str`):
            What it is called in an error.
        blocks (`Iterable[bytes]`):
            All of it.
        encoding (`str`):
            Of [`find_encoding`].
        newlines (`bool`, *optional*, defaults to `False`):
            Whether other line ends become `\\n`, as of Python's `open`.

    Raises:
        ValueError: where it is not in that encoding; with its line and the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == UTF_8 else encoding)()
    if newlines:
        decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
    lines = 1
    for block in itertools.chain(blocks, [None]):
        try:
            text = decoder.decode(block or b"", block is None)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].decode(encoding, "ignore").count("\n")
            fault = f"byte 0x{error.object[error.start]:02x} in line {line}, {error.reason}"
            # A mark, or the zeros of UTF-16, outdo what is given
            other = "" if encoding.startswith(("utf-8-sig", "utf-16", "utf-32")) else ", or give its `encoding`"
            raise ValueError(f"{name} is no {encoding.upper()}: {fault}. Mend it{other}.") from error
        lines += text.count("\n")
        yield text
