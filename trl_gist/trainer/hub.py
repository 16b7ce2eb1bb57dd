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

"""The pair on the Hub: what is pushed, when, and that it is always one pair."""

import json
import shutil
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

from accelerate.logging import get_logger
from huggingface_hub import CommitInfo
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress, hf_api

from ..common.files import link_or_copy, replace_file
from ..common.run_files import PLOTS_DIR
from ..pair import GENERATOR_DIR, PAIR_CONFIG_NAME, PairConfig
from .checkpoints.manifest import Manifest
from .checkpoints.staging import PUSHING_DIR
from .gist_config import GistConfig
from .model_card import hub_name, save_model_card
from .repository import (
    MODEL_CONFIGS,
    REPORT_FILE,
    code_files,
    commit_files,
    license_of,
    with_names,
    without_folder,
)


logger = get_logger(__name__)

LAST_CHECKPOINT_DIR = "last-checkpoint"


class PairHub:
    """
    Pushes the pair of a [`GistTrainer`], in the place of [`~transformers.Trainer`]'s own pushes (5.23), which would
    copy S's half of a checkpoint over the pair in `output_dir`, pickle the arguments with the token in them, and
    upload the folder while the run goes on writing to it.

    A push is staged first: a folder of hard links that holds what one commit will hold, so that neither a later
    save nor the rotation of checkpoints can touch it. It is uploaded by [`~repository.commit_files`]. A push that fails
    leaves the repository at the pair that it had; large files that did arrive are kept there, and the next push sends
    the others.

    Args:
        trainer ([`GistTrainer`]):
            Has the repository's name, and the pushes that go on, where [`~transformers.Trainer`] waits for them.
        args ([`GistConfig`]):
            The trainer's.
        tags (`list[str]`):
            Of the card.

    Attributes:
        url (`str` or `None`):
            The repository of the last push, as the Hub gave it; on the main process.
        license (`dict` or `None`):
            Of the card: the bases' own, as [`~repository.license_of`].
    """

    def __init__(self, trainer, args: GistConfig, tags: list[str]):
        self.trainer = trainer
        self.args = args
        self.tags = tags
        self.url = self.license = None

    def clear(self):
        """Removes what a killed run did not come to push. The folder must be held, or it may be another run's push."""
        # `Trainer` (5.23) sets it when it makes a repository
        push = getattr(self.trainer, "push_in_progress", None)
        if push is None or push.is_done():
            shutil.rmtree(Path(self.args.output_dir, PUSHING_DIR), ignore_errors=True)

    def prepare(self, token: str | None = None):
        """Makes the branch, and says what nobody else will have: now, and not after hours of training."""
        if not self.trainer.is_world_process_zero():
            return
        self._warn_of_local_bases()
        token = token if token is not None else self.args.hub_token
        names = {hub_name(base) for role, base in self.trainer.base_models.items() if role != "teacher"}
        self.license = None if None in names else license_of(hf_api(), sorted(names), token)
        if self.args.hub_revision is not None:
            repo = self.trainer.hub_model_id
            hf_api().create_branch(repo, branch=self.args.hub_revision, token=token, exist_ok=True)

    def _warn_of_local_bases(self):
        folders = {}
        for role, base in self.trainer.base_models.items():
            if Path(base).is_dir():
                folders.setdefault(base, []).append(role)
        for folder, roles in folders.items():
            logger.warning(
                f"{folder}, which the {' and the '.join(roles)} started from, is a folder of this machine. What is pushed calls "
                f"it {without_folder(folder)}, and nobody else can load adapters that stand on it. Push it to the Hub and pass "
                f"its name there in place of the folder; or, when training has ended: trl-gist push {self.args.output_dir} "
                f"{self.trainer.hub_model_id} --base_model USER/BASE"
            )

    def push_pair(
        self, commit_message: str | None, blocking: bool, token: str | None, revision: str | None
    ) -> CommitInfo | Future[CommitInfo]:
        """What [`GistTrainer.push_to_hub`] does once the pair is saved in `output_dir`; on the main process."""
        # The next `save_model` writes where these files are (safetensors 0.8 replaces a file, others write into it),
        # and an upload in the background may not have read them by then
        stage = self.stage(self.args.output_dir, "pair", by_copy=not blocking)
        token = token if token is not None else self.args.hub_token
        revision = revision if revision is not None else self.args.hub_revision
        if blocking:
            return self._push(stage, commit_message, token, revision)
        job = hf_api().run_as_future(self._push, stage, commit_message, token, revision)
        self.trainer.push_in_progress = PushInProgress([job])
        return job

    def push_checkpoint(self, checkpoint: str):
        """Has a complete checkpoint pushed in the background, as `hub_strategy` says."""
        trainer, strategy = self.trainer, self.args.hub_strategy
        if not trainer.is_world_process_zero() or strategy == HubStrategy.END:
            return
        going_on = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
        if going_on and not self.args.hub_always_push:
            logger.info(f"{Path(checkpoint).name} is not pushed: the push before it is still going on.")
            return
        trainer.callback_handler.on_push_begin(self.args, trainer.state, trainer.control)
        resume_dir = {
            HubStrategy.CHECKPOINT: LAST_CHECKPOINT_DIR,
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint).name,
        }.get(strategy)
        try:
            stage = self.stage(checkpoint, Path(checkpoint).name, resume_dir)
        except (OSError, ValueError) as error:  # a full disk, or code that is not there
            logger.warning(f"{checkpoint} is not pushed: it could not be staged in {PUSHING_DIR}/. {error}")
            return
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        when = f"epoch {int(trainer.state.epoch)}" if by_epoch else f"step {trainer.state.global_step}"
        # `hf_api` is one object with one worker: pushes are made in the order in which they were staged
        job = hf_api().run_as_future(
            self._push_if_possible, stage, f"Training in progress, {when}", self.args.hub_token, self.args.hub_revision
        )
        if trainer.push_in_progress is None or trainer.push_in_progress.is_done():
            trainer.push_in_progress = PushInProgress([])
        trainer.push_in_progress.jobs.append(job)

    def stage(self, source: str, name: str, resume_dir: str | None = None, by_copy: bool = False) -> Path:
        """A folder with what one commit will hold: the pair in `source` and, under `resume_dir`, all of `source`; but for
        the folders of this machine that its bases lie in."""
        place = shutil.copy2 if by_copy else link_or_copy
        pair, changed = self._for_others(Path(source))
        stage = Path(self.args.output_dir, PUSHING_DIR, name)
        shutil.rmtree(stage, ignore_errors=True)
        for half in ("", GENERATOR_DIR):
            Path(stage, half).mkdir(parents=True)
            for path in Path(source, half).iterdir():
                if path.suffix == ".safetensors" or path.name in MODEL_CONFIGS:
                    place(path, Path(stage, half, path.name))
            self.trainer.processing_class.save_pretrained(Path(stage, half))
        for name, path in code_files(Path(source)).items():
            place(path, stage / name)
        for name, content in ({PAIR_CONFIG_NAME: pair.to_json().encode()} | changed).items():
            replace_file(stage / name, content)
        self._draw(stage)
        save_model_card(stage, pair, self.trainer.hub_model_id, self.tags, self.license)
        if resume_dir is not None:
            shutil.copytree(source, stage / resume_dir, copy_function=place)
            self._change(stage / resume_dir, pair, changed)
        return stage

    def _for_others(self, source):
        """The pair in a folder by names that mean something elsewhere, and what of its files that changes."""
        pair, files = PairConfig.load(source), [f"{half}{ADAPTER_CONFIG_NAME}" for half in ("", f"{GENERATOR_DIR}/")]
        adapters = {name: json.loads((source / name).read_text()) for name in files if (source / name).is_file()}
        named = {*pair.base_models.values(), *(config["base_model_name_or_path"] for config in adapters.values())}
        names = {base: without_folder(base) for base in named if base and hub_name(base) is None}
        renamed, changed = with_names(pair, adapters, names)
        if renamed != pair:
            changed[PAIR_CONFIG_NAME] = renamed.to_json().encode()
        return renamed, changed

    def _change(self, checkpoint, pair, changed):
        """In the copy of a checkpoint, which stays one."""
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        if state["best_model_checkpoint"] is not None:
            state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
            changed = {**changed, TRAINER_STATE_NAME: (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()}
        if changed:
            for name, content in changed.items():
                replace_file(checkpoint / name, content)
            manifest = Manifest.load(checkpoint)
            manifest.base_models = pair.base_models
            manifest.amend(checkpoint, changed)

    def _draw(self, stage):
        if find_spec("matplotlib") is None:
            return
        from ..evaluation.pages.plots import plot_training
        from ..evaluation.run_report.report import write_report

        try:
            (stage / PLOTS_DIR).mkdir()
            plot_training(self.trainer.state.log_history, stage / PLOTS_DIR / "training")
            write_report(self.args.output_dir, stage / REPORT_FILE)
        except Exception as error:  # a reward function may log anything; no figure is worth a run
            logger.warning(
                f"The push goes without plots or report, which could not be drawn: {error!r}", exc_info=True
            )

    def _push(self, stage, commit_message, token, revision) -> CommitInfo:
        try:
            commit = self._commit(stage, commit_message, token, revision)
        except Exception as error:  # huggingface_hub (2.4) raises OSError, RuntimeError, ValueError and httpx's own
            # A file's own RuntimeError says which, and its cause says why
            said = f"{error} {error.__cause__}" if isinstance(error, RuntimeError) else error
            raise ConnectionError(
                f"The push to {self.trainer.hub_model_id} failed: {said}\nThe repository is as it was, "
                f"and what is saved in {self.args.output_dir} is whole. `trainer.push_to_hub()` pushes again; what "
                "has arrived is not sent twice."
            ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self.url = str(commit.repo_url)
        return commit

    def _push_if_possible(self, *push):
        try:
            self._push(*push)
        except ConnectionError as error:
            logger.warning(f"{error} Training goes on, and so do the pushes of the checkpoints to come.")

    def _commit(self, stage, commit_message, token, revision):
        files = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
        return commit_files(hf_api(), self.trainer.hub_model_id, files, commit_message, token, revision)
