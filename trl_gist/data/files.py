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
Files that documents are in, wherever they are: found, in folders and by patterns, opened as text, and named where they
cannot be read, with the line or the rows. What becomes of their content is in `documents.py`.
"""

import csv
import glob
import io
import itertools
import json
import logging
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from datasets.exceptions import DatasetGenerationError
from fsspec.implementations.local import LocalFileSystem
from pyarrow import ArrowException, parquet

from ..common.encodings import decoded, find_encoding, marked_encoding
from ..common.files import COMPRESSIONS, filesystem_of, is_url, open_to_read, suffixes


logger = logging.getLogger(__name__)

# How `datasets` reads a file, by its suffix
KINDS = {
    ".txt": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
# What a damaged file raises, read by Python, Arrow, pandas, whose own are ValueErrors, or `datasets`
_DAMAGES = (ValueError, EOFError, zlib.error, lzma.LZMAError, OSError, ArrowException)
READING_FAILS = (*_DAMAGES, DatasetGenerationError)
# Bytes of a text that are decoded together, and at its beginning those that tell its encoding where it is streamed
_BLOCK, _BEGINNING = 1 << 13, 1 << 20


class UnreadableFile(ValueError):
    """Says which, and where in it."""


def kind_of(file: str | Path) -> str | None:
    """How `datasets` reads it, or `None` if its name does not say."""
    found = suffixes(file)
    if found and found[-1] in COMPRESSIONS:
        found.pop()
    return KINDS.get(found[-1]) if found else None


def files_of(source: str) -> list[str | Path]:
    """
    The files that a source names, in order: a file, all of known kinds in a folder, or, where there is nothing of that
    name, what a pattern finds. Hidden ones are left out.

    Args:
        source (`str`):
            A path, or a URL of a store that fsspec knows, as `s3://bucket/folder` or `hf://datasets/user/name/*.jsonl`.

    Raises:
        ValueError: if there are none, or it is out of reach.
    """
    if not is_url(source):
        return _local_files(source)
    filesystem, place = filesystem_of(source)
    if isinstance(filesystem, LocalFileSystem):
        return _local_files(place)
    try:
        if kind_of(source) and filesystem.isfile(place):
            return [source]
        # A folder's, or what is in the folders that a pattern finds
        roots = [place] if filesystem.isdir(place) else filesystem.glob(place) if glob.has_magic(place) else []
        if not roots and filesystem.exists(place):
            raise ValueError(f"{source} is of no known kind. Documents are read from {', '.join(KINDS)} files.")
        found = [(file, root) for root in sorted(roots) for file in sorted(filesystem.find(root) or [root])]
    except FileNotFoundError:
        roots = found = []
    except ValueError:
        raise
    except Exception as error:  # as those of [`naming`]
        raise ValueError(f"{source} is out of reach: {type(error).__name__}: {error}") from error
    chain = source[source.index("::") :] if "::" in source else ""
    urls = [(filesystem.unstrip_protocol(file) + chain, file.removeprefix(root)) for file, root in found]
    return _of_known_kinds(source, urls, is_there=bool(roots))


def _local_files(source):
    if not source:
        raise ValueError("A path of documents is empty: name a file, a folder (`.` is this one) or a URL.")
    path = Path(source)
    if not path.exists():
        path = path.expanduser()
    if path.is_file():
        if kind_of(path) is None:
            raise ValueError(f"{path} is of no known kind. Documents are read from {', '.join(KINDS)} files.")
        return [path]
    matches = [path] if path.is_dir() else map(Path, sorted(glob.glob(str(path), recursive=True)))
    found, is_there = {}, path.is_dir()
    for match in matches:
        is_there = True
        for file in sorted(_files_in(match)) if match.is_dir() else [match]:
            if file.is_file():
                found.setdefault(file, file.relative_to(match) if match.is_dir() else "")  # ** finds folders, too
    return _of_known_kinds(path, found.items(), is_there)


def _files_in(folder):
    """Also of folders that links lead to, each once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place, name) for name in names)


def _of_known_kinds(source, found, is_there):
    """The files that hold documents, of files and their paths within the folder that was named."""
    if not is_there:
        raise ValueError(
            f"{source} does not exist." if not glob.has_magic(str(source)) else f"{source} finds no file."
        )
    shown = [file for file, inside in found if not any(part.startswith(".") for part in str(inside).split("/"))]
    files = [file for file in shown if kind_of(file) is not None]
    # A README is a text among texts, and beside data says what they are
    if len({kind_of(file) for file in files}) > 1:
        files = [file for file in files if Path(file).name.lower() != "readme.md"]
    if not files:
        raise ValueError(f"{source} holds no documents. They are read from {', '.join(KINDS)} files.")
    others = Counter((suffixes(file) or [Path(file).name])[-1] for file in shown if kind_of(file) is None)
    if others:
        logger.warning(
            f"{source}: {others.total()} of {len(shown)} files are passed over "
            f"({', '.join(f'{count} {suffix}' for suffix, count in sorted(others.items()))}). Documents are read from "
            f"{', '.join(KINDS)} files."
        )
    return files


# ---- Text ----


def blocks_of(file: str | Path, size: int | None = None) -> Iterator[bytes]:
    """A file's bytes, unpacked."""
    with open_to_read(file) as stream:
        yield from iter(partial(stream.read, size or _BLOCK), b"")


def encoding_of(file: str | Path, encoding: str | None, whole: bool = True, name: str | Path | None = None) -> str:
    """What [`find_encoding`] says of all of a file, or of its beginning."""
    blocks = blocks_of(file, 1 << 16)
    most = None if whole else _BEGINNING >> 16
    return find_encoding(str(name or file), itertools.islice(blocks, most), encoding, whole)


def read_text(file: str | Path, encoding: str | None, name: str | Path | None = None) -> str:
    """A file's text, as Python's `open` reads it. In blocks: one emoji makes four bytes of each letter around it."""
    name = str(name or file)
    return "".join(decoded(name, blocks_of(file), encoding_of(file, encoding, name=name), newlines=True))


def is_blank(file: str | Path) -> bool:
    """Whether no row is in it: nothing but white space and a byte order mark, an empty list, or a table without rows."""
    if kind_of(file) == "parquet":
        with open_to_read(file) as stream:
            table = _seekable(stream)
            return bool(table.read(1)) and parquet.read_metadata(table).num_rows == 0
    with open_to_read(file) as stream:
        start = stream.read(1 << 12)
        ended = len(start) < 1 << 12 and not stream.read(1)
    marked = marked_encoding(start) or "utf-8-sig"
    if kind_of(file) != "csv":
        return ended and start.decode(marked, "replace").strip() in ("", "[]", "{}")
    with io.TextIOWrapper(open_to_read(file), marked, errors="replace", newline="") as text:
        rows = filter(None, csv.reader(text))
        with suppress(csv.Error):  # of a text that is long, but there
            return next(rows, None) is None or next(rows, None) is None
        return False


# ---- Where a file cannot be read ----


@contextmanager
def naming(file: str | Path, encoding: str | None, columns: set[str] = frozenset()):
    """Within it, what says that a file cannot be read becomes an [`UnreadableFile`]; `columns` are those that rows may
    have, if that is known."""
    try:
        yield
    except UnreadableFile:
        raise
    except Exception as error:  # each store has errors of its own: botocore's, aiohttp's
        if not is_url(file) and not isinstance(error, READING_FAILS):
            raise
        try:
            where = _FAULTS.get(kind_of(file), lambda *_: None)(file, encoding, columns)
        except _DAMAGES as found:
            where = str(found)
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        why = where or str(cause) or type(cause).__name__  # pandas says the line itself
        raise UnreadableFile(f"{file} cannot be read: {why.replace(f'{file} is', 'it is')}") from error


def _fault_in_json(file, encoding, columns):
    lines = _lines(decoded(str(file), blocks_of(file, 1 << 22), encoding_of(file, encoding)))
    is_first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            line += "".join(lines)  # one list, whatever lines it is on
        try:
            found = json.loads(line, object_pairs_hook=_unique)
            json.dumps(found, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            return f"line {number + error.lineno - 1}: {error.msg} (column {error.colno})"
        except UnicodeEncodeError as error:
            return f"line {number}: {error.object[error.start]!a} is half of a surrogate pair, which is no text"
        except ValueError as error:
            return f"line {number}: {error}"
        for row in found if is_first and isinstance(found, list) else [found]:
            if not isinstance(row, (dict, str)):
                return f"line {number}: {json.dumps(row)[:40]} is no row, which is an object with names"
            if columns and isinstance(row, dict) and row.keys() - columns:
                return (
                    f"line {number}: the first rows have no {sorted(row.keys() - columns)[0]!r}, which is in it. Add it to "
                    "them, or read the files without streaming"
                )
        is_first = False
    return None


def _unique(pairs):
    """An object, of which Python reads the last where a name is there twice, and Arrow none."""
    if len(row := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return row


def _lines(blocks):
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _seekable(stream):
    """A file that can be read from any place, as zstd's cannot."""
    if stream.seekable():
        return stream
    return io.BytesIO(stream.read())


def _fault_in_parquet(file, encoding, columns):
    with open_to_read(file) as stream:
        table, first = parquet.ParquetFile(_seekable(stream)), 0
        for group in range(table.num_row_groups):
            last = first + table.metadata.row_group(group).num_rows - 1
            try:
                table.read_row_group(group)
            except _DAMAGES as error:
                return f"rows {first} to {last}: {error}"
            first = last + 1
    return None


_FAULTS = {"json": _fault_in_json, "parquet": _fault_in_parquet}
