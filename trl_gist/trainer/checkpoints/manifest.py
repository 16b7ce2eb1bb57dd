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

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ...common.files import described_files, files_in, json_digest, replace_file, sync
from ...version import __version__


MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1


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
            [`frozen_digests`] of the roles: a checkpoint does not hold frozen weights, but means nothing on others.
        vocabulary (`dict`):
            [`vocabulary_of`] the tokenizer.
        recipe (`dict`):
            [`run_recipe`] of the run.
        recipe_changes (`list[dict]`):
            Of each resume with other rates the `step` and, by name, the value before and the one from there on.
        trained_weights (`dict[str, str]`):
            [`trained_digests`] of the summarizer and the generator.
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
    recipe: dict
    recipe_changes: list[dict]
    trained_weights: dict[str, str]
    files: dict[str, dict] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.time)
    version: str = __version__

    def complete(self, directory: Path):
        """Lists the files of `directory`, makes sure that they are on the disk, and writes the manifest last."""
        self.files = dict(described_files(directory, sorted(files_in(directory)), synced=True))
        self._write(directory)
        for folder in {directory / path.parent for path in map(Path, self.files)} | {directory}:
            sync(folder)

    def amend(self, directory: Path, names: Iterable[str]):
        """Writes it anew for a copy of a checkpoint, some of whose files were changed on purpose."""
        self.files |= dict(described_files(directory, [directory / name for name in names]))
        self._write(directory)

    def _write(self, directory):
        values = asdict(self)
        content = {"format": MANIFEST_FORMAT, "sha256": json_digest(values), **values}
        replace_file(directory / MANIFEST_FILE, (json.dumps(content, indent=1) + "\n").encode(), synced=True)

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Raises `ValueError` if the folder has no manifest, a damaged one, or one of another format."""
        path = directory / MANIFEST_FILE
        if not directory.is_dir():
            raise ValueError(f"{directory} is no checkpoint: there is no such folder.")
        if not path.is_file():
            raise ValueError(
                f"{directory} is no complete checkpoint: {path} is missing. It was not written to its end; load it with "
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
                f"{path} has format {format}, written by trl_gist {values.get('version')}; this trl_gist "
                f"({__version__}) reads format {MANIFEST_FORMAT}. Go on with {age} version."
            )
        if digest != json_digest(values) or values.keys() != {each.name for each in fields(cls)}:
            raise ValueError(f"{path} is damaged: it is not what was written.")
        return cls(**values)

    def check_loaded(self, directory: Path, trained_weights: dict[str, str]):
        """Raises `ValueError` that names the role whose weights are others, now that they are loaded, than those saved."""
        for role, digest in self.trained_weights.items():
            if trained_weights[role] != digest:
                raise ValueError(
                    f"The {role}'s weights are not those that were trained when {directory} was saved, though its files "
                    "are whole: it was saved, or is loaded, with an error. Resume from another checkpoint, with the "
                    "versions of transformers and peft that it was saved with."
                )

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
        for path in files_in(directory):
            name = path.relative_to(directory)
            if str(name) not in {*self.files, MANIFEST_FILE} and str(name.parent) in folders:
                raise ValueError(
                    f"{path} is not of the checkpoint: {MANIFEST_FILE} does not list it. Move it elsewhere, so that "
                    "it is not loaded for what was saved."
                )
        paths = [directory / name for name in self.files]
        for name, found in described_files(directory, paths):
            if found["sha256"] != self.files[name]["sha256"]:
                raise ValueError(f"{directory / name} is damaged: its checksum is not that of what was written.")


def _part_of(name):
    if name.startswith("generator/"):
        return "the generator's half"
    return "the summarizer's half" if name.endswith((".safetensors", "optimizer.pt", "scheduler.pt")) else "a part"
