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
What makes a folder a complete checkpoint: `manifest.json`, written last, with every file's size and checksum.

A checkpoint is written in `_saving/` inside `output_dir`, completed there by its manifest, and renamed into place, so
that a kill at any moment leaves `checkpoint-N` whole or absent. Both the Hub's uploads and
[`~transformers.trainer_utils.get_last_checkpoint`] pass over the name `_saving`.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from . import __version__
from .digests import ALGORITHM, WeightDigests, sample_of
from .engines import gathered, whole_shape


logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
STAGING_DIR = "_saving"


@dataclass
class Manifest:
    """
    What a complete checkpoint says of itself.

    Attributes:
        step (`int`):
            Optimizer steps taken.
        world_size (`int`):
            Processes that trained; each saved its random state.
        engine (`str`):
            `"zero1"`, `"zero2"` or `"zero3"` if each saved its shards by DeepSpeed, else `"accelerate"`.
        base_models (`dict[str, str]`):
            Checkpoints that `summarizer`, `generator` and `teacher` started from.
        frozen_weights (`dict[str, str]`):
            [`frozen_digests`] of the roles, or [`sampled_digests`]: a checkpoint does not hold frozen weights, but means
            nothing on others.
        vocabulary (`dict`):
            [`vocabulary_of`] the tokenizer.
        files (`dict[str, dict]`):
            Path inside the checkpoint → `{"size": bytes, "sha256": hex digest}`.
        saved_at (`float`):
            Seconds since the epoch.
        version (`str`):
            The trl_gist version that wrote it.
    """

    step: int
    world_size: int
    engine: str
    base_models: dict[str, str]
    frozen_weights: dict[str, str]
    vocabulary: dict
    files: dict[str, dict] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.time)
    version: str = __version__

    def complete(self, directory: Path):
        """Lists the files of `directory`, makes sure that they are on the disk, and writes the manifest last."""
        self.files = dict(_map_files(directory, sorted(_files(directory)), sync=True))
        values = asdict(self)
        content = {"format": MANIFEST_FORMAT, "sha256": _digest_of(values), **values}
        draft = directory / f"{MANIFEST_FILE}.tmp"
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        _describe_file(draft, sync=True)
        draft.rename(directory / MANIFEST_FILE)
        for folder in {directory / path.parent for path in map(Path, self.files)} | {directory}:
            _sync_directory(folder)

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Raises `ValueError` if the folder has no manifest, a damaged one, or one of another format."""
        path = directory / MANIFEST_FILE
        if not directory.is_dir():
            raise ValueError(f"{directory} is no checkpoint: there is no such folder.")
        if not path.is_file():
            raise ValueError(
                f"{directory} is no complete checkpoint: {path} is missing. It was not written to its end, or by a "
                "trl_gist from before there were manifests; go on with that version, or load it with "
                "`GistCompactor.from_pretrained` to look at the pair."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            format, digest = values.pop("format"), values.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is damaged: it cannot be read as a manifest ({error!r}).") from error
        if format != MANIFEST_FORMAT:
            age = "a newer" if isinstance(format, int) and format > MANIFEST_FORMAT else "another"
            raise ValueError(
                f"{path} has format {format}, written by trl_gist {values.get('version')}; this trl_gist ({__version__}) "
                f"reads format {MANIFEST_FORMAT}. Go on with {age} version."
            )
        if digest != _digest_of(values) or values.keys() != {each.name for each in fields(cls)}:
            raise ValueError(f"{path} is damaged: it is not what was written.")
        return cls(**values)

    def check_files(self, directory: Path):
        """Raises `ValueError` that names the first file that is missing, of another size or content, or unknown."""
        for name, written in self.files.items():
            path = directory / name
            if not path.is_file():
                raise ValueError(f"{directory} lacks {_part_of(name)}: {path} is missing.")
            if path.stat().st_size != written["size"]:
                raise ValueError(
                    f"{path} is damaged: it has {path.stat().st_size} bytes, but {written['size']} were written."
                )
        # A folder that the checkpoint did not have, as that of an evaluation, is read by no one who resumes
        folders = {str(Path(name).parent) for name in self.files}
        for path in _files(directory):
            name = path.relative_to(directory)
            if str(name) not in {*self.files, MANIFEST_FILE} and str(name.parent) in folders:
                raise ValueError(
                    f"{path} is not of the checkpoint: {MANIFEST_FILE} does not list it. Move it elsewhere, so that it "
                    "is not loaded for what was saved."
                )
        paths = [directory / name for name in self.files]
        for name, found in _map_files(directory, paths):
            if found["sha256"] != self.files[name]["sha256"]:
                raise ValueError(f"{directory / name} is damaged: its checksum is not that of what was written.")


# ---- What a checkpoint stands on ----


def frozen_digests(models: dict[str, torch.nn.Module]) -> dict[str, str]:
    """
    For each model a digest of all its frozen weights, after the algorithm's name: what a checkpoint stands on and does
    not hold. Where ZeRO-3 has sharded them all ranks call it, and what models share is gathered once.
    """
    weights, digests = WeightDigests(), {}
    for role, model in models.items():
        digest = hashlib.sha256()
        for _, content in weights.of(model, frozen_only=True):  # PEFT writes into names which modules have an adapter
            digest.update(content)
        digests[role] = f"{ALGORITHM}:{digest.hexdigest()}"
    return digests


def sampled_digests(models: dict[str, torch.nn.Module]) -> dict[str, str]:
    """What manifests had before [`frozen_digests`]: of a sample of every frozen parameter, without an algorithm's name."""
    samples, digests = {}, {}
    for role, model in models.items():
        digest = hashlib.sha256()
        for parameter in model.parameters():
            if not parameter.requires_grad:
                if id(parameter) not in samples:
                    with gathered([parameter]):
                        samples[id(parameter)] = sample_of(parameter).double().cpu().numpy().tobytes()
                digest.update(f"{tuple(whole_shape(parameter))}".encode() + samples[id(parameter)])
        digests[role] = digest.hexdigest()
    return digests


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> dict:
    """`{"size": tokens, "sha256": digest of every token and its id}`."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return {"size": len(vocabulary), "sha256": _digest_of(vocabulary)}


# ---- Written beside and renamed ----


@contextmanager
def written_beside(directory: str | os.PathLike, what: str, main: bool, wait) -> Iterator[Path]:
    """
    Yields an empty folder inside `directory` to write in; the caller moves what it wrote out of it.

    Args:
        directory (`str` or `os.PathLike`):
            Made if there is none.
        what (`str`):
            What is written, for the error.
        main (`bool`):
            Whether this process makes and removes the folder, which all of them write in.
        wait (`Callable[[], None]`):
            A barrier of the processes.

    Raises:
        OSError: if it could not be written, as on a full disk. The folder is gone then, with all that was in it.
    """
    staging = Path(directory, STAGING_DIR)
    if main:
        recover(directory)
        staging.mkdir(parents=True)
    wait()
    try:
        yield staging
    except Exception as error:  # torch, safetensors and tokenizers each have their own for a full disk
        free = shutil.disk_usage(directory).free
        shutil.rmtree(staging, ignore_errors=True)
        last = get_last_checkpoint(directory)
        kept = (
            "There was no checkpoint before it" if last is None else f"{Path(last).name} and those before it are whole"
        )
        raise OSError(
            f"{what} could not be written to {directory}, where {free} bytes were free: {type(error).__name__}: {error}. "
            f"What was written of it is removed. {kept}. Make room there, or choose a lower `save_total_limit`; then "
            "resume."
        ) from error
    wait()
    if main:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staged: Path, final: Path):
    """Renames a complete checkpoint into place. One that is there steps aside first, into the staging folder."""
    if final.exists():
        final.rename(staged.with_name(f"replaced-{final.name}"))
    staged.rename(final)
    _sync_directory(final.parent)


def replace_files(source: Path, target: Path, last: str):
    """Moves each file of `source` over its namesake in `target`, and the one named `last` when the others are there."""
    for path in sorted(_files(source), key=lambda path: (path.name == last, path)):
        destination = target / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)


def recover(directory: str | os.PathLike):
    """Removes what a killed run was writing. A checkpoint that lacked nothing but its last renaming gets it."""
    staging = Path(directory, STAGING_DIR)
    if not staging.is_dir():
        return
    for staged in staging.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
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


def rotate(directory: str | os.PathLike, limit: int | None, kept: set[Path]):
    """
    Removes all but `limit` checkpoints: those that are none first, then the oldest, never one of `kept`.

    [`~transformers.trainer_utils.rotate_checkpoints`] (transformers 5.23) sorts by step where folders are less than a
    second apart, and then takes a damaged checkpoint of a later step for the one to keep.
    """
    checkpoints = newest_first(directory)
    if not limit or len(checkpoints) <= limit:
        return
    kept = {path.resolve() for path in kept}  # the best one's path is as the run that saved it wrote `output_dir`
    removable = [path for path in checkpoints if path.resolve() not in kept]
    removable.sort(key=lambda path: _saved_at(path, otherwise=0.0))
    staging = Path(directory, STAGING_DIR)
    for path in removable[: len(checkpoints) - max(limit, len(kept))]:
        # A kill in the middle must not leave half of it under its name
        staging.mkdir(exist_ok=True)
        removed = path.rename(staging / f"removed-{path.name}")
        shutil.rmtree(removed, ignore_errors=True)
    shutil.rmtree(staging, ignore_errors=True)


# ---- Files ----


def _saved_at(checkpoint, otherwise=float("inf")):
    try:
        return Manifest.load(checkpoint).saved_at
    except ValueError:
        return otherwise


def _part_of(name):
    if name.startswith("generator/"):
        return "the generator's half"
    return "the summarizer's half" if name.endswith((".safetensors", "optimizer.pt", "scheduler.pt")) else "a part"


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
