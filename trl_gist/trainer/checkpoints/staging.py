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

"""Folders written beside their place and put there in one step, and what an interrupted step left behind."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from ...common.files import files_in, sync
from .manifest import MANIFEST_FILE, Manifest


logger = logging.getLogger(__name__)


# In `output_dir`; with an underscore, as all that Trainer (5.23) leaves out of a push
SAVING_DIR, PUSHING_DIR = "_saving", "_hub"
# Weights as transformers (5.23) and PEFT (0.21) save them, and what tells how to read them
_OF_WEIGHTS = re.compile(
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|adapter_config\.json"
)
# What safetensors and torch raise for a full disk
_OF_THE_DISK = (OSError, SafetensorError, RuntimeError)


# ---- Written beside and renamed ----


@contextmanager
def written_beside(directory: str | os.PathLike, what: str, run_id: str, main: bool, wait) -> Iterator[Path]:
    """
    Yields an empty folder inside `directory` to write in; the caller moves what it wrote out of it.

    Args:
        directory (`str` or `os.PathLike`):
            Made if there is none.
        what (`str`):
            What is written, for the error.
        run_id (`str`):
            Names the folder: where a lock does not hold, as on some shared folders, no other run writes into it.
        main (`bool`):
            Whether this process makes and removes the folder, which all of them write in.
        wait (`Callable[[], None]`):
            A barrier of the processes.

    Raises:
        OSError: if it could not be written, as on a full disk. The folder is gone then, with all that was in it, as it is
            after any other error.
    """
    staging = Path(directory, SAVING_DIR, run_id)
    if main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    wait()
    try:
        yield staging
    except Exception as error:
        free = shutil.disk_usage(directory).free
        _remove(staging)
        # For a full disk tokenizers (0.22) has no class of its own
        if not isinstance(error, _OF_THE_DISK) and type(error) is not Exception:
            raise
        last = get_last_checkpoint(directory)
        kept = (
            "There was no checkpoint before it" if last is None else f"{Path(last).name} and those before it are whole"
        )
        raise OSError(
            f"{what} could not be written to {directory}, where {free} bytes were free: {type(error).__name__}: "
            f"{error}. What was written of it is removed. {kept}. Make room there, or choose a lower "
            "`save_total_limit`; then resume."
        ) from error
    wait()
    if main:
        _remove(staging)


def publish(staged: Path, final: Path):
    """Renames a complete checkpoint into place. One that is there steps aside first, into the staging folder."""
    if final.exists():
        final.rename(staged.with_name(f"replaced-{final.name}"))
    staged.rename(final)
    sync(final.parent)


def replace_files(source: Path, target: Path, last: str):
    """
    Moves each file of `source` over its namesake in `target`, and the one named `last` when the others are there. Weights
    that lie beside them and have no namesake are those of another model: whoever loads what is new would find them first.
    """
    paths = sorted(files_in(source), key=lambda path: (path.name == last, path))
    names = {path.relative_to(source) for path in paths}
    for folder in {name.parent for name in names if _OF_WEIGHTS.fullmatch(name.name)}:
        for old in Path(target, folder).glob("*.*"):
            if _OF_WEIGHTS.fullmatch(old.name) and folder / old.name not in names:
                old.unlink()
    for path in paths:
        destination = target / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)


def recover(directory: str | os.PathLike):
    """Removes what a killed run was writing. A checkpoint that lacked nothing but its last renaming gets it."""
    staging = Path(directory, SAVING_DIR)
    if not staging.is_dir():
        return
    for staged in staging.glob(f"*/{PREFIX_CHECKPOINT_DIR}-*"):
        if (staged / MANIFEST_FILE).is_file():
            publish(staged, Path(directory, staged.name))
            logger.warning(f"{staged.name} was complete when its run was killed: it is now in {directory}.")
        else:
            logger.warning(f"Removed {staged}, which a killed run had not written to its end.")
    shutil.rmtree(staging)


def newest_first(directory: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder by the time of saving, those that do not tell it first."""
    checkpoints = [
        path
        for path in Path(directory).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()
    ]
    return sorted(checkpoints, key=_saved_at, reverse=True)


def rotate(directory: str | os.PathLike, limit: int | None, kept: set[Path], run_id: str):
    """
    Removes all but `limit` checkpoints: those that are none first, then the oldest, never one of `kept`. What goes is
    first moved to where the run writes.

    [`~transformers.trainer_utils.rotate_checkpoints`] (transformers 5.23) sorts by step where folders are less than a
    second apart, and then takes a damaged checkpoint of a later step for the one to keep.
    """
    checkpoints = newest_first(directory)
    if not limit or len(checkpoints) <= limit:
        return
    kept = {path.resolve() for path in kept}  # the best one's path is as the run that saved it wrote `output_dir`
    removable = [path for path in checkpoints if path.resolve() not in kept]
    removable.sort(key=lambda path: _saved_at(path, otherwise=0.0))
    staging = Path(directory, SAVING_DIR, run_id)
    for path in removable[: len(checkpoints) - max(limit, len(kept))]:
        # A kill in the middle must not leave half of it under its name
        staging.mkdir(parents=True, exist_ok=True)
        removed = path.rename(staging / f"removed-{path.name}")
        shutil.rmtree(removed, ignore_errors=True)
    _remove(staging)


# ---- Files ----


def _remove(staging):
    shutil.rmtree(staging, ignore_errors=True)
    with suppress(OSError):  # another run's is in it, or it is gone
        staging.parent.rmdir()


def _saved_at(checkpoint, otherwise=float("inf")):
    try:
        return Manifest.load(checkpoint).saved_at
    except ValueError:
        return otherwise
