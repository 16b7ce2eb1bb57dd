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

"""The lock of [`common.folder_lock`], held by one process of a training for all of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import broadcast_object_list

from ...common.folder_lock import acquired


# Seconds that a run which goes on waits for the one before it, as a requeued job for one that still saves
PATIENCE = 300.0


@contextmanager
def held_by_main(directory: str | os.PathLike, main: bool, patience: float = 0.0) -> Iterator[None]:
    """
    As [`~common.folder_lock.held`].

    Args:
        directory (`str` or `os.PathLike`):
            Made if there is none.
        main (`bool`):
            Whether this process holds it for all processes of the run, which all enter together.
        patience (`float`, *optional*, defaults to `0.0`):
            Seconds to wait for another run's end.

    Raises:
        ValueError: on all processes.
    """
    lock, refusal = None, None
    if main:
        try:
            lock = acquired(directory, patience)
        except ValueError as error:
            refusal = str(error)
    (refusal,) = broadcast_object_list([refusal])
    if refusal is not None:
        raise ValueError(refusal)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
