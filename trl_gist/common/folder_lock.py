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

"""One run, one folder: the lock that whoever writes a folder holds from the first look at it to the end."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import MarkerSoftFileLock, Timeout


logger = logging.getLogger(__name__)

LOCK_FILE = "_run.lock"
# After which filelock (4.3) takes over what a process was killed in the middle of writing
_SETTLED = 3.0


@contextmanager
def held(directory: str | os.PathLike, patience: float = 0.0) -> Iterator[None]:
    """
    Holds a folder against other runs, on this machine and, where the folder is shared, on others. A process may hold
    it several times over. The lock of a process that is dead is taken over on its own host, which alone can tell.

    Args:
        directory (`str` or `os.PathLike`):
            Made if there is none.
        patience (`float`, *optional*, defaults to `0.0`):
            Seconds to wait for another run's end.

    Raises:
        ValueError: with who holds it: process, host and since when.
    """
    lock = acquired(directory, patience)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def acquired(directory: str | os.PathLike, patience: float) -> MarkerSoftFileLock | None:
    """As [`held`], until its `release`; `None` where nothing can be written, after a warning."""
    directory = Path(os.path.abspath(directory))
    path = directory / LOCK_FILE
    lock = MarkerSoftFileLock(path, is_singleton=True, thread_local=False, poll_interval=0.5)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if patience > 0:
                logger.warning(f"{directory} is in use by another run: {_holder(lock)}. Waiting for its end.")
            lock.acquire(timeout=max(patience, _SETTLED if lock.owner is None else 0))
    except Timeout:
        raise ValueError(
            f"`output_dir` ({directory}) is in use by another run: {_holder(lock)}. Choose another `output_dir`, or "
            "wait for that run's end. If it is certain that it has ended, as on a host that was switched off, remove "
            f"{path}."
        ) from None
    except OSError as error:  # a folder that cannot be written to, or a filesystem without exclusive creation
        logger.warning(f"{directory} is not held against other runs: {error}.")
        return None
    return lock


def _holder(lock):
    owner = lock.owner
    if owner is None:
        return "its lock does not say which"
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.stat(lock.lock_file).st_mtime))
    except FileNotFoundError:  # it has just ended
        since = "just now"
    # filelock (4.3) adds the namespace of a container's processes to the host
    return f"process {owner.pid} on {owner.hostname.partition('?pidns-')[0]}, since {since}"
