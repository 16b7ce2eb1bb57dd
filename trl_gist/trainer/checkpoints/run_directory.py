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

"""The folder of a run, in which a checkpoint is complete or is none: verified before anything of it is loaded."""

import logging
import os
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from ...models.saved_weights import weights_in
from ...pair import GENERATOR_DIR, PAIR_CONFIG_NAME
from ..alarms import ALARMS_FILE
from ..generator_trainer import OPTIMIZER_FILE, SCHEDULER_FILE
from ..recipe import check_recipe
from .manifest import Manifest
from .pair_state import LENGTH_PENALTY_FILE, REFERENCE_FILE
from .resharding import universal_checkpoint
from .staging import newest_first, publish


logger = logging.getLogger(__name__)


def check_unused(path: str | os.PathLike):
    """Raises `ValueError` if the folder holds another run, or the pair that one saved."""
    last = get_last_checkpoint(path) if Path(path).is_dir() else None
    if last is not None:
        raise ValueError(
            f"`output_dir` ({path}) holds another run, up to {Path(last).name}. Pass "
            "`resume_from_checkpoint=True` to continue it, or choose another `output_dir`."
        )
    if Path(path, PAIR_CONFIG_NAME).is_file():
        raise ValueError(f"`output_dir` ({path}) holds the pair that another run saved. Choose another `output_dir`.")


class RunDirectory:
    """
    What a run may do with its `output_dir`: begin there, go on from a checkpoint in it, add one to it.

    Args:
        path (`str` or `Path`):
            The `output_dir`.
        stands_on (`dict`):
            What manifests say of the run: `world_size`, `engine`, `base_models`, `frozen_weights`, `vocabulary` and
            `recipe`, as attributes of [`Manifest`].
        steps_per_rollout (`int`):
            Optimizer steps; a checkpoint falls between two rollouts.
        models (`dict[str, PreTrainedModel]`):
            `summarizer` and `generator`, into which the weights of a checkpoint must fit.
        follows_reference (`bool`, *optional*, defaults to `False`):
            Whether a checkpoint holds the reference.

    Attributes:
        recipe_changes (`list[dict]`):
            As of [`Manifest`], of the run up to now.
    """

    def __init__(
        self,
        path: str | Path,
        stands_on: dict,
        steps_per_rollout: int,
        models: dict[str, PreTrainedModel | PeftModel],
        follows_reference: bool = False,
    ):
        self.path = Path(path)
        self.stands_on = stands_on
        self.steps_per_rollout = steps_per_rollout
        self.models = models
        self.follows_reference = follows_reference
        self.recipe_changes = []

    def check_unused(self):
        """See [`check_unused`]."""
        check_unused(self.path)

    def complete(self, staged: Path, final: Path, step: int, trained_weights: dict[str, str]):
        """Makes a checkpoint of what all ranks have written in a folder beside its place, and puts it there; with what
        [`trained_digests`] gives of the models."""
        changes = self.recipe_changes
        Manifest(step=step, trained_weights=trained_weights, recipe_changes=changes, **self.stands_on).complete(staged)
        publish(staged, final)

    def to_resume(self, checkpoint: str | Path | bool) -> tuple[str, bool]:
        """
        The checkpoint to load, and whether it is in DeepSpeed's universal form.

        Args:
            checkpoint (`str`, `Path` or `True`):
                `True` stands for the newest complete one.

        Raises:
            ValueError: if it, or each in the folder, is damaged or of another run, saying what is wrong with it; or if it
                was trained on other windows, prompts or targets.
        """
        if checkpoint is True:
            checkpoint, manifest = self.newest_complete()
        else:
            checkpoint = Path(checkpoint)
            manifest = self.verify(checkpoint)
        self.recipe_changes = list(manifest.recipe_changes)
        if changes := check_recipe(checkpoint, manifest.recipe, self.stands_on["recipe"]):
            self.recipe_changes.append({"step": manifest.step, **changes})
        universal = manifest.engine != "accelerate" and manifest.world_size != self.stands_on["world_size"]
        if universal:
            checkpoint = universal_checkpoint(checkpoint, self.path)
        return str(checkpoint), universal

    def newest_complete(self) -> tuple[Path, Manifest]:
        """The checkpoint that was saved last of those that fit. Raises `ValueError` that says why each does not."""
        refusals = []
        for checkpoint in newest_first(self.path):
            try:
                manifest = self.verify(checkpoint)
            except ValueError as error:
                logger.warning(f"Skipped {checkpoint.name}: {error}")
                refusals.append(str(error))
                continue
            logger.info(f"Resuming from {checkpoint}, the newest complete checkpoint.")
            return checkpoint, manifest
        raise ValueError(
            "\n".join([f"No valid checkpoint found in `output_dir` ({self.path}) to resume from.", *refusals])
        )

    def verify(self, checkpoint: Path) -> Manifest:
        """The manifest of a checkpoint. Raises `ValueError` that names what is wrong with it; loads nothing."""
        manifest = Manifest.load(checkpoint)
        manifest.check_files(checkpoint)
        self._check_parts(checkpoint, manifest)
        if manifest.step % self.steps_per_rollout != 0:
            raise ValueError(
                f"{checkpoint} was saved at step {manifest.step}, inside a rollout of this run, which takes "
                f"{self.steps_per_rollout} optimizer steps (`steps_per_generation` × `num_iterations` / "
                "`gradient_accumulation_steps`): its rest would be left out. Resume from a checkpoint between two "
                "rollouts, or with the settings that it was trained with."
            )
        vocabulary = self.stands_on["vocabulary"]
        if manifest.vocabulary != vocabulary:
            raise ValueError(
                f"{checkpoint} was trained with another vocabulary, of {manifest.vocabulary['size']} tokens; this "
                f"run's has {vocabulary['size']}. Pass the `processing_class` that is saved in the checkpoint."
            )
        for role, model in self.models.items():
            weights_in(checkpoint / (GENERATOR_DIR if role == "generator" else ""), model, role, device="meta")
        for role, digest in self.stands_on["frozen_weights"].items():
            if manifest.frozen_weights[role] != digest:
                raise ValueError(
                    f"{checkpoint} does not fit the {role}: it was trained with the frozen weights of base model "
                    f"{manifest.base_models[role]!r}, and those of {self.stands_on['base_models'][role]!r} are "
                    "others. Resume with the base model, the dtype and the kind of `peft_config` that it was trained with."
                )
        self._check_world_size(checkpoint, manifest)
        return manifest

    def _check_parts(self, checkpoint, manifest):
        """What a checkpoint needs beside what its manifest lists: it may have been saved as a model only."""
        engine = self.stands_on["engine"]
        if manifest.engine != engine:
            raise ValueError(
                f"{checkpoint} was saved under {manifest.engine}, and this run's engines are {engine}'s: "
                "their optimizer states are kept in other forms. Launch it as it was, with the same "
                "`--accelerate_config`."
            )
        ranks = [f"_{rank}" for rank in range(manifest.world_size)] if manifest.world_size > 1 else [""]
        names = [TRAINER_STATE_NAME, LENGTH_PENALTY_FILE, ALARMS_FILE, *(f"rng_state{rank}.pth" for rank in ranks)]
        optimizer = OPTIMIZER_FILE if engine == "accelerate" else "latest"  # names the folder of DeepSpeed's shards
        names += [f"{half}{name}" for half in ("", f"{GENERATOR_DIR}/") for name in (optimizer, SCHEDULER_FILE)]
        if self.follows_reference:
            names.append(REFERENCE_FILE)
        for name in names:
            if name not in manifest.files:
                raise ValueError(
                    f"{checkpoint} cannot be resumed: it was saved without {name}, as with `save_only_model=True` or "
                    "other settings. Resume from another checkpoint."
                )

    def _check_world_size(self, checkpoint, manifest):
        world_size = self.stands_on["world_size"]
        if manifest.world_size == world_size:
            return
        if manifest.engine == "zero3" and not isinstance(self.models["summarizer"], PeftModel):
            raise ValueError(
                f"{checkpoint} was saved by {manifest.world_size} processes. DeepSpeed (0.19) does not carry all of "
                "the optimizer's state of fully fine-tuned models to another number of processes under ZeRO-3. "
                f"Launch it with `--num_processes {manifest.world_size}`, or fine-tune with LoRA."
            )
        logger.warning(
            f"{checkpoint} was saved by {manifest.world_size} processes, and {world_size} go on: what is "
            "sampled from here on is not what they would have sampled."
        )
