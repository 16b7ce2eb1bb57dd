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

import os
from contextlib import contextmanager
from pathlib import Path

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, get_last_checkpoint

from ...models.deepspeed import whole_shape, zero_stage
from ...models.fingerprints import frozen_digests, sampled_digests, vocabulary_of
from ...pair import GENERATOR_DIR, PAIR_CONFIG_NAME
from ..alarms import ALARMS_FILE
from ..config_checks import check_end_of_run
from ..generator_trainer import OPTIMIZER_FILE, SCHEDULER_FILE, read_adapter
from .manifest import Manifest
from .pair_state import LENGTH_PENALTY_FILE, REFERENCE_FILE
from .resharding import load_universal, remove_universal, universal_checkpoint
from .staging import newest_first, publish, recover, replace_files, rotate, written_beside


logger = get_logger(__name__)


class DurableCheckpoints:
    """
    The part of [`GistTrainer`] by which a checkpoint is complete or is none: written beside and renamed, verified
    before anything of it is loaded. The names with a leading underscore are those of [`~transformers.Trainer`] (5.23).
    """

    _staging_dir = None  # while a checkpoint is written
    _stands_on = None  # what its manifest says of the run
    _held = frozenset()  # what the trainer was asked to do inside a rollout and does at its end
    _sampled_digests = None  # what a manifest from before digests of whole weights says of it

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        As [`~transformers.Trainer.train`], but `resume_from_checkpoint=True` takes the newest *complete* checkpoint.

        Raises:
            ValueError: if the checkpoint, or each in `output_dir`, is damaged or of another run, saying what is wrong
                with it; or if a new run's `output_dir` holds another run.
        """
        if self.is_world_process_zero():
            recover(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        roles = {"summarizer": self.model, "generator": self.generator, "teacher": self.teacher}
        if self._stands_on is None:  # while the weights are as they were loaded: no engine has sharded them yet
            self._stands_on = {
                "world_size": self.args.world_size,
                "engine": f"zero{zero_stage(self.accelerator)}" if self.is_deepspeed_enabled else "accelerate",
                "base_models": self.base_models,
                "frozen_weights": frozen_digests(roles),
                "vocabulary": vocabulary_of(self.processing_class),
            }
        if resume_from_checkpoint:
            if self._sampled_digests is None:  # on all ranks: they may hold a shard each
                self._sampled_digests = sampled_digests(roles)
            resume_from_checkpoint, universal = self._verified_on_all_ranks(resume_from_checkpoint)
            if universal:
                load_universal(self.accelerator)
        else:
            self._check_unused()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _check_unused(self):
        output_dir = self.args.output_dir
        last = get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None
        if last is not None:
            raise ValueError(
                f"`output_dir` ({output_dir}) holds another run, up to {Path(last).name}. Pass "
                "`resume_from_checkpoint=True` to continue it, or choose another `output_dir`."
            )
        if Path(output_dir, PAIR_CONFIG_NAME).is_file():
            raise ValueError(
                f"`output_dir` ({output_dir}) holds the pair that another run saved. Choose another `output_dir`."
            )

    def _run_epoch(self, model, epoch, train_dataloader, *args, **kwargs):
        if self.state.global_step < self.state.max_steps:
            # Where processes share the batches and some are skipped, accelerate (1.15) does not pass it on
            train_dataloader.set_epoch(epoch)
            before = self.state.global_step, self._step
            # `Trainer` passes the same number in each of a resumed run's epochs
            resumed_inside = kwargs["steps_trained_in_current_epoch"] > 0 and epoch == kwargs["epochs_trained"]
            super()._run_epoch(model, epoch, train_dataloader, *args, **kwargs)
            self._check_trained(*before, resumed_inside=resumed_inside)
        else:
            # `Trainer` looks at the step's number after a step: from a run's last checkpoint it would take one too many
            self.control.should_training_stop = True

    def _check_trained(self, global_step, micro_step, resumed_inside):
        """Raises `ValueError` if a whole pass over the dataset gave no optimizer step, where `Trainer` ends the run as if
        it had come to its end, or makes passes without one."""
        stopped = self._step > micro_step and (self.control.should_training_stop or self.control.should_epoch_stop)
        if self.state.global_step > global_step or stopped or resumed_inside:
            return
        args = self.args
        rollouts = max(1, args.gradient_accumulation_steps // (args.steps_per_generation * args.num_iterations))
        contexts = rollouts * args.generation_batch_size // args.num_generations
        raise ValueError(
            f"The train dataset ended before it gave the {contexts} windows of one optimizer step "
            f"({self.skipped_rows['train'].total} of its rows were skipped), so nothing would be trained. Lower "
            "`per_device_train_batch_size`, `steps_per_generation` or `gradient_accumulation_steps`, raise "
            "`num_generations`, or give more documents."
        )

    # ---- Between two rollouts ----
    # The generator has taken its step on a rollout before the summarizer takes its first, and a checkpoint holds no
    # half-used rollout: the rest of one would never be trained on, and the next ones would start at other steps.

    def _inside_rollout(self):
        return self.state.global_step % self.args.steps_per_rollout != 0

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Whoever asked for it, a checkpoint waits for the end of the rollout, and so does the evaluation that it is
        chosen by."""
        asked = {"should_save"} if self.control.should_save else set()
        if self.control.should_evaluate and (asked or self.args.save_strategy == SaveStrategy.BEST):
            asked.add("should_evaluate")
        if self._inside_rollout():
            self._held |= asked
        for name in self._held:
            setattr(self.control, name, not self._inside_rollout())
        if not self._inside_rollout():
            self._held = frozenset()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # ---- Written beside and renamed ----

    def _get_output_dir(self, trial):
        # `Trainer._save_checkpoint` makes its folder in here
        return self._staging_dir or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        if self._inside_rollout():
            raise ValueError(
                f"No checkpoint can be written at step {self.state.global_step}, inside a rollout of "
                f"{self.args.steps_per_rollout} optimizer steps: a run that resumes from it would leave the rest of the "
                "rollout out. Set `control.should_save`, which waits for the rollout's end, or use `save_model`."
            )
        run_dir = self._get_output_dir(trial)
        final = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            with self._written_beside(run_dir, f"The checkpoint of step {self.state.global_step}") as staging:
                self._staging_dir = str(staging)
                super()._save_checkpoint(model, trial)
                self._complete(staging / Path(final).name, final)
        finally:
            self._staging_dir = None
        if self.args.push_to_hub:
            self.hub.push_checkpoint(final)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run_dir, self.args.save_total_limit, {Path(final)} | ({Path(best)} if best else set()))

    def _complete(self, staged, final):
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = final
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()  # each rank has written its part
        if self.args.should_save:
            Manifest(step=self.state.global_step, **self._stands_on).complete(staged)
            publish(staged, Path(final))

    def _init_training_state(self, max_steps, *args, **kwargs):
        check_end_of_run(self.args, max_steps)
        self._held = frozenset()
        return super()._init_training_state(max_steps, *args, **kwargs)

    @contextmanager
    def _written_beside(self, directory, what):
        with written_beside(directory, what, self.args.should_save, self.accelerator.wait_for_everyone) as staging:
            yield staging

    @contextmanager
    def replacing(self, output_dir):
        """Yields a folder of the same name to save a pair in, whose files then replace those of `output_dir`."""
        if self._staging_dir is not None:  # a checkpoint is itself written beside its place
            yield output_dir
            return
        with self._written_beside(output_dir, "The pair") as staging:
            staged = staging / Path(output_dir).resolve().name
            yield str(staged)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                replace_files(staged, Path(output_dir), last=PAIR_CONFIG_NAME)

    def _finalize_training(self, trial, num_train_samples, start_time):
        if self._held:
            logger.warning(
                f"The run ended at step {self.state.global_step}, inside a rollout of {self.args.steps_per_rollout} "
                "optimizer steps, so the checkpoint that was asked for was not written."
            )
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            logger.warning(
                "`load_best_model_at_end` is True, and the best evaluation fell on no step that was saved: the weights stay "
                "those of the last step. Evaluate at the steps that are saved (`eval_steps`, `save_steps`)."
            )
        limit = self.args.save_total_limit
        if self.state.global_step < self.state.max_steps:
            # With a limit of 1 `Trainer` keeps the best checkpoint alone; a run that was stopped goes on from its last
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit = limit

    # ---- Verified before it is loaded ----

    def _verified_on_all_ranks(self, resume_from_checkpoint):
        """The checkpoint to load, and whether it is in DeepSpeed's universal form."""
        outcome = [None, False, None]
        if self.is_world_process_zero():
            try:
                if resume_from_checkpoint is True:
                    checkpoint, manifest = self._newest_complete()
                else:
                    checkpoint = Path(resume_from_checkpoint)
                    manifest = self._verify(checkpoint)
                universal = self.is_deepspeed_enabled and manifest.world_size != self.args.world_size
                if universal:
                    checkpoint = universal_checkpoint(checkpoint, Path(self.args.output_dir))
                outcome[:2] = str(checkpoint), universal
            except ValueError as error:
                outcome[2] = str(error)
        checkpoint, universal, refusal = broadcast_object_list(outcome)
        if refusal is not None:
            raise ValueError(refusal)
        return checkpoint, universal

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            remove_universal(Path(self.args.output_dir))

    def _newest_complete(self):
        output_dir, refusals = self.args.output_dir, []
        for checkpoint in newest_first(output_dir):
            try:
                manifest = self._verify(checkpoint)
            except ValueError as error:
                logger.warning(f"Skipped {checkpoint.name}: {error}")
                refusals.append(str(error))
                continue
            logger.info(f"Resuming from {checkpoint}, the newest complete checkpoint.")
            return checkpoint, manifest
        raise ValueError(
            "\n".join([f"No valid checkpoint found in `output_dir` ({output_dir}) to resume from.", *refusals])
        )

    def _verify(self, checkpoint: Path):
        """The manifest of a checkpoint. Raises `ValueError` that names what is wrong with it; loads nothing."""
        manifest = Manifest.load(checkpoint)
        manifest.check_files(checkpoint)
        self._check_parts(checkpoint, manifest)
        if manifest.step % self.args.steps_per_rollout != 0:
            raise ValueError(
                f"{checkpoint} was saved at step {manifest.step}, inside a rollout of this run, which takes "
                f"{self.args.steps_per_rollout} optimizer steps (`steps_per_generation` × `num_iterations` / "
                "`gradient_accumulation_steps`): its rest would be left out. Resume from a checkpoint between two "
                "rollouts, or with the settings that it was trained with."
            )
        vocabulary = self._stands_on["vocabulary"]
        if manifest.vocabulary != vocabulary:
            raise ValueError(
                f"{checkpoint} was trained with another vocabulary, of {manifest.vocabulary['size']} tokens; this run's "
                f"has {vocabulary['size']}. Pass the `processing_class` that is saved in the checkpoint."
            )
        for directory, role, model in (
            (checkpoint, "summarizer", self.model),
            (checkpoint / GENERATOR_DIR, "generator", self.generator),
        ):
            check_fits(model, directory, role)
        for role, digest in self._stands_on["frozen_weights"].items():
            if manifest.frozen_weights[role] not in (digest, self._sampled_digests[role]):
                raise ValueError(
                    f"{checkpoint} does not fit the {role}: it was trained with the frozen weights of base model "
                    f"{manifest.base_models[role]!r}, and those of {self.base_models[role]!r} are others. Resume with "
                    "the base model, the dtype and the kind of `peft_config` that it was trained with."
                )
        if manifest.world_size != self.args.world_size:
            if manifest.engine == "zero3" and not isinstance(self.model, PeftModel):
                raise ValueError(
                    f"{checkpoint} was saved by {manifest.world_size} processes. DeepSpeed (0.19) does not carry all of "
                    "the optimizer's state of fully fine-tuned models to another number of processes under ZeRO-3. "
                    f"Launch it with `--num_processes {manifest.world_size}`, or fine-tune with LoRA."
                )
            logger.warning(
                f"{checkpoint} was saved by {manifest.world_size} processes, and {self.args.world_size} go on: what is "
                "sampled from here on is not what they would have sampled."
            )
        return manifest

    def _check_parts(self, checkpoint, manifest):
        """What a checkpoint needs beside what its manifest lists: it may have been saved as a model only."""
        if manifest.engine != self._stands_on["engine"]:
            raise ValueError(
                f"{checkpoint} was saved under {manifest.engine}, and this run's engines are {self._stands_on['engine']}'s: "
                "their optimizer states are kept in other forms. Launch it as it was, with the same "
                "`--accelerate_config`."
            )
        ranks = [f"_{rank}" for rank in range(manifest.world_size)] if manifest.world_size > 1 else [""]
        names = [TRAINER_STATE_NAME, LENGTH_PENALTY_FILE, ALARMS_FILE, *(f"rng_state{rank}.pth" for rank in ranks)]
        optimizer = "latest" if self.is_deepspeed_enabled else OPTIMIZER_FILE  # names the folder of DeepSpeed's shards
        names += [f"{half}{name}" for half in ("", f"{GENERATOR_DIR}/") for name in (optimizer, SCHEDULER_FILE)]
        if self.args.sync_ref_model:
            names.append(REFERENCE_FILE)
        for name in names:
            if name not in manifest.files:
                raise ValueError(
                    f"{checkpoint} cannot be resumed: it was saved without {name}, as with `save_only_model=True` or other "
                    "settings. Resume from another checkpoint."
                )

    def _load_best_model(self):
        best = Path(self.state.best_model_checkpoint)
        Manifest.load(best).check_files(best)
        super()._load_best_model()


def check_fits(model, directory: Path, role: str):
    """Raises `ValueError` if the weights in a folder have other names or shapes than the model's."""
    if isinstance(model, PeftModel):
        if not Path(directory, SAFETENSORS_WEIGHTS_NAME).is_file():  # PEFT would look for it on the Hub
            raise ValueError(
                f"{directory} does not fit the {role}: it holds no adapter. Was it trained without a `peft_config`?"
            )
        read_adapter(model, directory, role)
        return
    expected = {name: tuple(whole_shape(parameter)) for name, parameter in model.state_dict(keep_vars=True).items()}
    saved = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    different = {name for name, shape in saved.items() if expected.get(name) != shape}
    if different or not saved:
        raise ValueError(
            f"The weights in {directory} do not fit the {role}: {len(different)} of {len(saved)} tensors differ in name "
            "or shape. Was it trained with another model, or with a `peft_config`?"
        )
