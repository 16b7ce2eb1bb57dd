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
Files that are there whole or not at all: written beside and renamed, linked or copied, digested, synced to the disk. And
files as users have them: packed, and in stores that fsspec knows.
"""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO


def _open_zst(file, mode="rb"):
    import pyarrow  # which reads it without another library; not at the top, as the command line imports this

    return pyarrow.input_stream(file if hasattr(file, "read") else str(file), compression="zstd")


# How a file is opened, by its last suffix
COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a letter alone is a drive


def is_url(path: str | os.PathLike) -> bool:
    """Whether it names a file in a store that fsspec knows, as `s3://bucket/a.txt`, and none of this machine."""
    return isinstance(path, str) and _URL.match(path) is not None


def suffixes(path: str | os.PathLike) -> list[str]:
    """Of its name, in lower case; a URL's query is no part of it."""
    name = path.partition("::")[0].partition("?")[0] if is_url(path) else path
    return [suffix.lower() for suffix in Path(name).suffixes]


def filesystem_of(url: str):
    """fsspec's filesystem, and the path in it. Raises `ValueError` that names the URL if there is none, or lacks a
    library."""
    import fsspec

    try:
        return fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} is out of reach: {error}") from error


def open_to_read(path: str | os.PathLike) -> BinaryIO:
    """A file's bytes, wherever it is, decompressed if its suffix is one of `COMPRESSIONS`."""
    unpack = COMPRESSIONS.get((suffixes(path) or [""])[-1])
    if is_url(path):
        filesystem, place = filesystem_of(path)
        path = filesystem.open(place, "rb")
        return path if unpack is None else unpack(path)
    return (unpack or open)(path, "rb")


def replace_file(path: Path, content: bytes, synced: bool = False):
    """Writes beside the file and renames: whoever reads finds what was there before, or all of this."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(content)
        if synced:
            sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def sync(path: str | os.PathLike):
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_in(directory: Path) -> Iterator[Path]:
    """All files but hidden ones, which file managers and download caches leave."""
    for path in directory.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts):
            yield path


def link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> str | os.PathLike:
    """A hard link, or a copy on a filesystem without links. Nothing writes to a checkpoint's files once they are there."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def described_files(directory: Path, paths: list[Path], synced: bool = False) -> Iterator[tuple[str, dict]]:
    """Of each file its path inside the directory and `{"size": bytes, "sha256": hex digest}`."""
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter's lock
        described = pool.map(lambda path: _described(path, synced), paths)
        yield from zip((path.relative_to(directory).as_posix() for path in paths), described, strict=True)


def _described(path, synced):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if synced:
            os.fsync(file.fileno())
        return {"size": file.tell(), "sha256": digest}


def json_digest(values) -> str:
    """SHA-256, in hexadecimal, of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
