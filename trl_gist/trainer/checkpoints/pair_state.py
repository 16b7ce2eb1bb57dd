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

import json
from enum import Enum
from pathlib import Path

import torch
from datasets import IterableDataset
from peft import PeftModel, set_peft_model_state_dict
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from ...pair import GENERATOR_DIR, PairConfig
from ...version import __version__
from ..generator_trainer import read_adapter
from ..model_card import save_model_card


# The arguments that shape a result, for the model card
_RECIPE = (
    "context_length target_length last_k max_completion_length num_generations per_device_train_batch_size "
    "gradient_accumulation_steps max_steps learning_rate generator_learning_rate lr_scheduler_type temperature "
    "advantage scale_rewards loss_type beta num_iterations distillation_loss gist_dropout length_penalty "
    "length_penalty_learning_rate target_gist_length max_teacher_kl gist_length_range cold_start_steps "
    "cold_start_learning_rate cold_start_gists generator_only windows_per_document gist_discount seed"
).split()

LENGTH_PENALTY_FILE = "length_penalty.json"
REFERENCE_FILE = "reference.pt"


class PairCheckpoints:
    """
    The part of [`GistTrainer`] that saves and resumes both trainers as one. The names with a leading underscore are
    those of [`~transformers.Trainer`] (5.23), which calls them before it rotates checkpoints and pushes to the Hub.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        output_dir = output_dir or self.args.output_dir
        with self.replacing(output_dir) as directory:
            super().save_model(directory, _internal_call=True)
            if self.args.should_save:
                # A pickle; gist_config.json holds the recipe
                Path(directory, TRAINING_ARGS_NAME).unlink(missing_ok=True)
            generator_dir = Path(directory, GENERATOR_DIR)
            self.generator_trainer.save_model(generator_dir)
            if self.args.should_save:
                self.processing_class.save_pretrained(generator_dir)
                pair = self._pair_config()
                pair.save(directory)
                save_model_card(directory, pair, Path(directory).name, self._tag_names)
        # As in `Trainer.save_model`, but once both halves are there
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(self, *args, **kwargs):
        # TRL writes its own card to `output_dir` at every checkpoint; ours is written where the pair is, in `save_model`
        pass

    def _pair_config(self):
        return PairConfig(
            context_length=self.args.context_length,
            target_length=self.args.target_length,
            last_k=self.args.last_k,
            max_gist_length=self.args.max_completion_length,
            tail_length=self.args.tail_length,
            generator_prompt=self.args.generator_prompt,
            summarizer_prompt=self.args.summarizer_prompt,
            chat_template_kwargs=self.args.chat_template_kwargs or {},
            base_models=self.base_models,
            recipe={name: _plain(getattr(self.args, name)) for name in _RECIPE},
            measures=self.last_measures,
            gists=self.last_gists,
            step=self.state.global_step,
            version=__version__,
        )

    def _save_optimizer_and_scheduler(self, output_dir: str):
        super()._save_optimizer_and_scheduler(output_dir)
        self.generator_trainer.save_checkpoint(Path(output_dir, GENERATOR_DIR))
        if self.args.should_save:
            state = json.dumps(self.length_penalty.state_dict(), indent=2)
            Path(output_dir, LENGTH_PENALTY_FILE).write_text(state + "\n", encoding="utf-8")
            self.alarms.save(output_dir)
            if self.args.sync_ref_model:  # it follows S; one that does not is the checkpoint that S came from
                torch.save(
                    self.accelerator.unwrap_model(self.ref_model).state_dict(), Path(output_dir, REFERENCE_FILE)
                )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.generator_trainer.load_checkpoint(Path(checkpoint, GENERATOR_DIR), self.state.global_step)
            if not self.length_penalty.is_fixed:
                state = Path(checkpoint, LENGTH_PENALTY_FILE).read_text(encoding="utf-8")
                self.length_penalty.load_state_dict(json.loads(state))
                self._apply_length_penalty()
            self.alarms.load(checkpoint)
            if self.args.sync_ref_model:
                state = torch.load(Path(checkpoint, REFERENCE_FILE), map_location="cpu", weights_only=True)
                self.accelerator.unwrap_model(self.ref_model).load_state_dict(state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        self._load_pair(resume_from_checkpoint, model)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if checkpoint is None or self.args.ignore_data_skip or not isinstance(self.train_dataset, IterableDataset):
            return position
        # A stream has no length, so Trainer (5.23) takes the whole run for one epoch and would look for the position
        # past the stream's end. The epoch it saved counts passes over the stream, in fractions of the run's batches.
        saved = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME))
        passes, fraction = divmod(saved.epoch, 1)
        return int(passes), round(fraction * saved.max_steps * self.args.gradient_accumulation_steps)

    def _load_best_model(self):
        checkpoint = self.state.best_model_checkpoint
        if self.is_deepspeed_enabled:  # whose checkpoints hold optimizer and weights in one
            super()._load_best_model()
            self.generator_trainer.load_checkpoint(Path(checkpoint, GENERATOR_DIR), self.state.best_global_step)
        else:
            self._load_pair(checkpoint)
        self._last_loaded_step = -1  # or vLLM (TRL 1.16) would go on with the last weights until a step is taken

    def _load_pair(self, checkpoint, model=None):
        model = self.model if model is None else model
        generator_dir = Path(checkpoint, GENERATOR_DIR)
        if isinstance(model, PeftModel):
            # Trainer (5.23) would take generator/ for a second adapter of S
            weights = read_adapter(model, checkpoint, "summarizer")
            self.generator_trainer.load_model(generator_dir)
            set_peft_model_state_dict(model, weights)
        else:
            self.generator_trainer.load_model(generator_dir)
            super()._load_from_checkpoint(checkpoint, model)


def _plain(value):
    value = value.value if isinstance(value, Enum) else value
    return value if value is None or isinstance(value, (bool, int, float, str, list)) else str(value)
