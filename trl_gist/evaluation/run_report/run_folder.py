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

"""What a run's folder holds, for its report: the log that `RunLog` keeps, or what a checkpoint says."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from ...common.run_files import GISTS_FILE, METRICS_FILE, RUN_FILE, RUN_LOG_DIR, read_entries
from ...pair import PAIR_CONFIG_NAME


@dataclass
class Run:
    """
    What a run's folder holds.

    Attributes:
        name (`str`):
            The folder's name.
        info (`dict`):
            `run.json`: base models, recipe, environment, windows; parts may be missing.
        train, held_out (`list[dict]`):
            The logs of training steps and of evaluations.
        gists (`list[dict]`):
            Greedy gists of fixed held-out windows.
        missing (`list[str]`):
            Sentences on what it does not hold.
    """

    name: str
    info: dict = field(default_factory=dict)
    train: list[dict] = field(default_factory=list)
    held_out: list[dict] = field(default_factory=list)
    gists: list[dict] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def prefixes(self) -> list[str]:
        """What the names of held-out measures begin with: `"eval_"`, or one for each of several datasets."""
        ends = "gain_over_null"
        return sorted({name.removesuffix(ends) for log in self.held_out for name in log if name.endswith(ends)})


def read_run(run_dir: str | os.PathLike) -> Run:
    """
    Reads a run's folder: its log, or for want of one its last checkpoint and the saved pair.

    Raises:
        ValueError: if the folder holds no run.
    """
    directory = Path(run_dir)
    if not directory.is_dir():
        raise ValueError(f"{run_dir} is no folder. Pass the `output_dir` of a run.")
    run, log_dir = Run(directory.resolve().name), directory / RUN_LOG_DIR
    metrics = []
    if (log_dir / RUN_FILE).is_file():
        run.info = _object_in(log_dir / RUN_FILE)
        metrics, run.gists = (_entries(log_dir / name, run) for name in (METRICS_FILE, GISTS_FILE))
    else:
        _read_without_log(directory, run, metrics)
    for log in metrics:
        if any(name.endswith("gain_over_null") for name in log):
            run.held_out.append(log)
        elif not any(name.startswith("eval_") or name == "train_runtime" for name in log):
            run.train.append(log)
    _name_gaps(run)
    return run


def _object_in(path):
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON in UTF-8. ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object.")
    return values


def _entries(path, run):
    if not path.is_file():
        return []
    entries, broken = read_entries(path)
    if broken:
        run.missing.append(f"{path.name}: {broken} unreadable {'line' if broken == 1 else 'lines'}, left out.")
    return entries


def _read_without_log(directory, run, metrics):
    checkpoint = get_last_checkpoint(str(directory))
    state_path = None if checkpoint is None else Path(checkpoint, TRAINER_STATE_NAME)
    pair_path = directory / PAIR_CONFIG_NAME
    if state_path is not None and state_path.is_file():
        state = TrainerState.load_from_json(str(state_path))
        metrics += state.log_history
        run.info["max_steps"] = state.max_steps
        pair_path = pair_path if pair_path.is_file() else Path(checkpoint, PAIR_CONFIG_NAME)
    elif not pair_path.is_file():
        raise ValueError(
            f"{directory} holds no run: neither {RUN_LOG_DIR}/{RUN_FILE} nor a checkpoint nor a saved pair. Pass the "
            "`output_dir` of a run."
        )
    source = "no curves" if checkpoint is None else f"the curves are those of {Path(checkpoint).name}"
    run.missing.append(f"The folder has no {RUN_LOG_DIR}/: {source}; there are no gists over time and no environment.")
    if pair_path.is_file():
        pair = _object_in(pair_path)
        run.info |= {"base_models": pair["base_models"], "recipe": pair["recipe"]}
        if not any("eval_gain_over_null" in log for log in metrics) and pair["measures"]:
            metrics.append(
                {f"eval_{name}": value for name, value in pair["measures"].items()} | {"step": pair["step"]}
            )


def _name_gaps(run):
    if not run.train:
        run.missing.append(
            "No training step is logged: the run was only evaluated, has just begun, or is shorter than its `logging_steps`."
        )
    if not run.held_out:
        run.missing.append("No evaluation on held-out documents: give the trainer an `eval_dataset` and evaluate.")
    elif len({log["step"] for log in run.held_out}) == 1:
        step = run.held_out[0]["step"]
        run.missing.append(f"One evaluation only, at step {step}: nothing to compare it with.")
    if not run.gists and run.info.get("environment"):
        run.missing.append(
            "No gists of fixed contexts: they are kept at evaluations, and every `gist_samples_steps` steps."
        )
    steps = sorted({log["step"] for log in run.train})
    if len(steps) > 2:
        usual = float(np.median(np.diff(steps)))
        for before, after in zip(steps, steps[1:], strict=False):
            if after - before > 1.5 * usual:
                run.missing.append(f"Nothing is logged between the steps {before} and {after}.")
    if steps and steps[0] > 1.5 * (float(np.median(np.diff(steps))) if len(steps) > 1 else steps[0]):
        run.missing.append(f"Nothing is logged before step {steps[0]}.")
