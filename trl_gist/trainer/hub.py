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

import shutil
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

from accelerate.logging import get_logger
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import PushInProgress, hf_api

from ..common.files import link_or_copy
from ..pair import GENERATOR_DIR, PairConfig
from .model_card import PLOTS_DIR, save_model_card


logger = get_logger(__name__)

# In `output_dir`; with an underscore, as all that Trainer (5.23) leaves out of a push
STAGING_DIR = "_hub"
LAST_CHECKPOINT_DIR = "last-checkpoint"
REPORT_FILE = "report.html"

_MODEL_CONFIGS = (CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME)


class PairHub:
    """
    The part of [`GistTrainer`] that pushes to the Hub. The names with a leading underscore are those of
    [`~transformers.Trainer`] (5.23), whose own push would copy S's half of a checkpoint over the pair in `output_dir`,
    pickle the arguments with the token in them, and upload the folder while the run goes on writing to it.

    A push is staged first: a folder of hard links that holds what one commit will hold, so that neither a later
    save nor the rotation of checkpoints can touch it. It is uploaded by `create_commit`: with Xet,
    huggingface_hub's (2.4) `upload_folder` spreads a folder over several commits, and one of S's weights without
    G's could be what somebody downloads. A push that fails leaves the repository at the pair that it had; large files
    that did arrive are kept there, and the next push sends the others.

    Attributes:
        hub_url (`str` or `None`):
            The repository of the last push, as the Hub gave it; on the main process.
    """

    hub_url: str | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        super().init_hf_repo(token=token, private=private)
        if self.is_world_process_zero():
            # What a killed run did not come to push
            shutil.rmtree(Path(self.args.output_dir, STAGING_DIR), ignore_errors=True)
            if self.args.hub_revision is not None:  # now, and not after hours of training
                token = token if token is not None else self.args.hub_token
                hf_api().create_branch(self.hub_model_id, branch=self.args.hub_revision, token=token, exist_ok=True)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Saves the pair to `args.output_dir` and pushes both halves, `gist_config.json`, the card and the run's plots and
        report in one commit.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to return only when the commit is made.
            token (`str`, *optional*):
                Token with write permission. Defaults to `args.hub_token`, or else the one of `hf auth login`.
            revision (`str`, *optional*):
                Branch to push to. Defaults to `args.hub_revision`, or else `"main"`.
            private (`bool`, *optional*):
                Whether to make the repository private when it is created. Defaults to `args.hub_private_repo`.
            kwargs (`dict`):
                What other trainers put in their card; a pair's card takes none.

        Returns:
            [`~huggingface_hub.CommitInfo`], or a `Future` of it if not `blocking`; `None` but on the main process.

        Raises:
            ConnectionError: if the push failed. The pair is saved, and the repository is as it was.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # `args.push_to_hub` is off
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        # The next `save_model` writes where these files are (safetensors 0.8 replaces a file, others write into it), and an
        # upload in the background may not have read them by then
        stage = self._stage(self.args.output_dir, "pair", by_copy=not blocking)
        token = token if token is not None else self.args.hub_token
        revision = revision if revision is not None else self.args.hub_revision
        if blocking:
            return self._push(stage, commit_message, token, revision)
        job = hf_api().run_as_future(self._push, stage, commit_message, token, revision)
        self.push_in_progress = PushInProgress([job])
        return job

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            logger.info(f"{Path(checkpoint_folder).name} is not pushed: the push before it is still going on.")
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        resume_dir = {
            HubStrategy.CHECKPOINT: LAST_CHECKPOINT_DIR,
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }.get(strategy)
        try:
            stage = self._stage(checkpoint_folder, Path(checkpoint_folder).name, resume_dir)
        except OSError as error:  # a full disk
            logger.warning(f"{checkpoint_folder} is not pushed: it could not be staged in {STAGING_DIR}/. {error}")
            return
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        when = f"epoch {int(self.state.epoch)}" if by_epoch else f"step {self.state.global_step}"
        # `hf_api` is one object with one worker: pushes are made in the order in which they were staged
        job = hf_api().run_as_future(
            self._push_if_possible, stage, f"Training in progress, {when}", self.args.hub_token, self.args.hub_revision
        )
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress([])
        self.push_in_progress.jobs.append(job)

    def _stage(self, source, name, resume_dir=None, by_copy=False) -> Path:
        """A folder with what one commit will hold: the pair in `source` and, under `resume_dir`, all of `source`."""
        place = shutil.copy2 if by_copy else link_or_copy
        stage = Path(self.args.output_dir, STAGING_DIR, name)
        shutil.rmtree(stage, ignore_errors=True)
        for half in ("", GENERATOR_DIR):
            Path(stage, half).mkdir(parents=True)
            for path in Path(source, half).iterdir():
                if path.suffix == ".safetensors" or path.name in _MODEL_CONFIGS:
                    place(path, Path(stage, half, path.name))
            self.processing_class.save_pretrained(Path(stage, half))
        pair = PairConfig.load(source)
        pair.save(stage)
        self._draw(stage)
        save_model_card(stage, pair, self.hub_model_id, self._tag_names)
        if resume_dir is not None:
            shutil.copytree(source, stage / resume_dir, copy_function=place)
        return stage

    def _draw(self, stage):
        if find_spec("matplotlib") is None:
            return
        from ..evaluation.pages.plots import plot_training
        from ..evaluation.run_report.report import write_report

        try:
            (stage / PLOTS_DIR).mkdir()
            plot_training(self.state.log_history, stage / PLOTS_DIR / "training")
            write_report(self.args.output_dir, stage / REPORT_FILE)
        except Exception as error:  # a reward function may log anything; no figure is worth a run
            logger.warning(f"The push goes without plots or report, which could not be drawn: {error!r}")

    def _push(self, stage, commit_message, token, revision) -> CommitInfo:
        try:
            commit = self._commit(stage, commit_message, token, revision)
        except Exception as error:  # huggingface_hub (2.4) raises OSError, RuntimeError, ValueError and httpx's own
            # A file's own RuntimeError says which, and its cause says why
            said = f"{error} {error.__cause__}" if isinstance(error, RuntimeError) else error
            raise ConnectionError(
                f"The push to {self.hub_model_id} failed: {said}\nThe repository is as it was, "
                f"and what is saved in {self.args.output_dir} is whole. `trainer.push_to_hub()` pushes again; what has "
                "arrived is not sent twice."
            ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self.hub_url = str(commit.repo_url)
        return commit

    def _push_if_possible(self, *push):
        try:
            self._push(*push)
        except ConnectionError as error:
            logger.warning(f"{error} Training goes on, and so do the pushes of the checkpoints to come.")

    def _commit(self, stage, commit_message, token, revision):
        api = hf_api()
        files = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
        head = api.model_info(self.hub_model_id, revision=revision, token=token)
        held = [sibling.rfilename for sibling in head.siblings]
        return api.create_commit(
            self.hub_model_id,
            operations=[
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in outdated(held, files)),
            ],
            commit_message=commit_message,
            token=token,
            revision=revision,
            # Files that have not changed are left out of a commit: had somebody pushed in between, it would be a mixture
            parent_commit=head.sha,
        )


def outdated(held: list[str], pushed: list[str]) -> list[str]:
    """
    What a push has to delete: files that an earlier one wrote where this one writes, as the shards of a model that now
    has fewer, or adapters of a pair that is now plain models. Whatever else the repository holds is not the pair's.
    """
    folders = {name.split("/")[0] for name in pushed if "/" in name}
    return [
        name
        for name in held
        if name not in pushed
        and (
            name.split("/")[0] in folders
            or name in _MODEL_CONFIGS
            or ("/" not in name and name.endswith(".safetensors"))
        )
    ]
