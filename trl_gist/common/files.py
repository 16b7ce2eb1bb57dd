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

"""Files that are there whole or not at all: linked or copied, digested, synced to the disk."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor


def _files(directory):
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


def _map_files(directory, paths, sync=False):
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter's lock
        described = pool.map(lambda path: _describe_file(path, sync), paths)
        yield from zip((path.relative_to(directory).as_posix() for path in paths), described, strict=True)


def _describe_file(path, sync):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"size": file.tell(), "sha256": digest}


def _digest_of(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sync_directory(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
