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
What a run leaves behind for `trl-gist report`, in `run_log/` of its `output_dir`:

    run.json        base models, recipe, environment, and the held-out windows whose gists are kept
    metrics.jsonl   everything the trainer logged, an object a log
    gists.jsonl     greedy gists of those windows, an object a gist

Each line is in the file before the run goes on, so a kill loses none.
"""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import TrainerCallback

from ..common.files import replace_file
from ..common.run_files import GISTS_FILE, METRICS_FILE, RUN_FILE, RUN_LOG_DIR, finite, read_entries
from ..common.tokens import characters_of, decode
from ..data.windows import window_key
from ..models.generation_settings import plain_generation_config
from ..models.machine import cpu_multiplies
from ..models.sampling import sample_gists
from ..prompts import gist_from_completion, stands_for
from ..version import __version__
from .recipe import recipe_of


logger = get_logger(__name__)

# Fields that the machine or a dataclass fills in, and the folder, which is where the log is
_NOT_CHOSEN = ("output_dir", "accelerator_config", "debug", "disable_tqdm", "pad_to_multiple_of", "report_to")


class RunLog(TrainerCallback):
    """
    Writes a run's log; [`GistTrainer`] adds it by itself. Training is bit for bit the same without it.

    A resumed run drops what was logged beyond its checkpoint. A run from the start sets another run's log aside, under
    the next free `run_log-N`. A log that cannot be written, as on a full disk, costs the log and a warning.

    Args:
        trainer ([`GistTrainer`]):
            The run.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.directory = Path(trainer.args.output_dir, RUN_LOG_DIR)
        self.run = None  # what run.json holds, once this process writes to it
        self.trained = self.failed = False
        self.held = []  # what came before training, while the folder holds another run's log
        self.windows = None
        self.sampled_step = None

    # ---- Hooks ----

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self._append(METRICS_FILE, [{**logs, "step": state.global_step, "time": round(time.time(), 3)}])

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._open(state)
        self.trained = True
        if args.gist_samples_steps is not None:
            self._sample(state)

    def on_step_end(self, args, state, control, **kwargs):
        if args.gist_samples_steps is not None and state.global_step % args.gist_samples_steps == 0:
            self._sample(state)

    def on_evaluate(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        rows = {window_key(row): row for row in self.trainer.eval_rows}
        entries = []
        for name, window in self._windows().items():
            if window_key(window) in rows:
                row = rows[window_key(window)]
                scores = {score: row[score] for score in ("teacher_kl", "log_prob_gain")}
                entries.append(self._entry(state, name, window, row["gist_ids"]) | scores)
        if entries:
            self._append(GISTS_FILE, entries)

    def on_train_end(self, args, state, control, **kwargs):
        if args.gist_samples_steps is not None and self.sampled_step != state.global_step:
            self._sample(state)
        if state.is_world_process_zero:
            with self._costing_only_the_log():
                self._write_run(ended={"step": state.global_step, "time": _now()})

    def _open(self, state):
        with self._costing_only_the_log():
            if state.global_step > 0:
                self._resume(state)
            elif self.directory.exists() and (self.run is None or self.trained):
                self._set_aside()
            self._write_run(max_steps=state.max_steps, ended=None)
            held, self.held = self.held, []
            for name, entries in held:
                self._append(name, entries)

    # ---- Gists of fixed held-out windows ----

    def _windows(self):
        """`gist_samples` windows of `eval_dataset`, spread over its documents, by name."""
        if self.windows is None:
            dataset, count = self.trainer.eval_dataset, self.trainer.args.gist_samples
            if isinstance(dataset, dict):
                dataset = next(iter(dataset.values()))
            if dataset is None:
                rows = []
            elif isinstance(dataset, Dataset):
                rows = [dataset[index] for index in _spread(dataset["document_id"], count)]
            else:
                first = list(islice(dataset, 16 * count))
                rows = [first[index] for index in _spread([row["document_id"] for row in first], count)]
            self.windows = {sha256(repr(window_key(row)).encode()).hexdigest()[:8]: row for row in rows}
        return self.windows

    def _sample(self, state):
        """Every process writes the gists, because ZeRO-3 gathers the summarizer from all of them; the main one keeps
        them."""
        if self.trainer.args.generator_only:
            return
        self.sampled_step = state.global_step
        windows = self._windows()
        if windows:
            gists = self._greedy_gists(list(windows.values()))
            entries = [self._entry(state, name, windows[name], ids) for name, ids in zip(windows, gists, strict=True)]
            if state.is_world_process_zero:
                self._append(GISTS_FILE, entries)

    def _greedy_gists(self, windows):
        trainer, args = self.trainer, self.trainer.args
        prompt_ids = [
            trainer.prompts.summarizer(window["context_ids"], window["last_k_ids"], args.tail_length)
            for window in windows
        ]
        config = plain_generation_config(trainer.processing_class, trainer.eos_token_ids, args.max_completion_length)
        with trainer.generating() as model:
            if trainer.shares_prefix:
                completions = sample_gists(model, prompt_ids, config, config.pad_token_id).tolist()
            else:
                device = trainer.accelerator.device
                completions = [
                    model.generate(torch.tensor([ids], device=device), generation_config=config)[
                        0, len(ids) :
                    ].tolist()
                    for ids in prompt_ids
                ]
        # As in evaluations
        whole, own_gist = characters_of(trainer.processing_class).whole, trainer.prompts.own_gist
        owned = [own_gist(stands_for(window), args.max_completion_length) for window in windows]
        return [
            whole(gist_from_completion(ids, trainer.eos_token_ids)) if own is None else own
            for ids, own in zip(completions, owned, strict=True)
        ]

    def _entry(self, state, name, window, gist_ids):
        tokenizer = self.trainer.processing_class
        return {
            "step": state.global_step,
            "window": name,
            "document_id": window["document_id"],
            "context_end": decode(tokenizer, window["last_k_ids"], False),
            "gist": decode(tokenizer, gist_ids),
            "gist_length": len(gist_ids),
        }

    # ---- Files ----

    def _append(self, name: str, entries: list[dict]):
        with self._costing_only_the_log():
            if self.run is None:
                if self.directory.exists():
                    if not self.held:
                        logger.warning(
                            f"{self.directory} holds the log of another run: what is measured before training is not "
                            "added to it."
                        )
                    self.held.append((name, entries))
                    return
                self._write_run()
            lines = "".join(f"{_to_json(entry)}\n" for entry in entries)
            if self.failed:
                lines = f"\n{lines}"  # the last line may be half a line
            with open(self.directory / name, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(lines)

    def _write_run(self, **values):
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.run is None:
            self.run = {"started": _now(), "resumed": []}
        tokenizer = self.trainer.processing_class
        self.run |= {**_describe(self.trainer), **values}
        self.run["windows"] = self.run.get("windows", {}) | {
            name: {
                "document_id": window["document_id"],
                **{part: decode(tokenizer, window[f"{part}_ids"], False) for part in ("context", "last_k", "target")},
            }
            for name, window in self._windows().items()
        }
        run = json.dumps(finite(self.run), indent=2, ensure_ascii=False, default=str)
        replace_file(self.directory / RUN_FILE, run.encode(errors="backslashreplace"))

    def _resume(self, state):
        """Takes up the log of the run that the checkpoint is of, up to the checkpoint's step."""
        self.held.clear()  # measured on a pair that is not this run's
        path = self.directory / RUN_FILE
        if self.run is None and path.is_file():
            self.run = json.loads(path.read_text(encoding="utf-8"))
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in (METRICS_FILE, GISTS_FILE):
            path = self.directory / name
            entries = read_entries(path)[0] if path.is_file() else []
            if not entries and name == METRICS_FILE:
                entries = state.log_history  # the checkpoint's: it comes from another folder
            kept = [entry for entry in entries if entry["step"] <= state.global_step]
            if len(kept) < len(entries):
                logger.info(f"{path}: dropped {len(entries) - len(kept)} entries beyond step {state.global_step}.")
            lines = "".join(f"{_to_json(entry)}\n" for entry in kept)
            replace_file(path, lines.encode(errors="backslashreplace"))
        if self.run is None:
            self.run = {"started": None, "resumed": []}
        self.run["resumed"].append({"step": state.global_step, "time": _now()})

    def _set_aside(self):
        number = 1
        while self.directory.with_name(f"{RUN_LOG_DIR}-{number}").exists():
            number += 1
        other = self.directory.with_name(f"{RUN_LOG_DIR}-{number}")
        self.directory.rename(other)
        self.run = None
        logger.warning(f"{self.directory} held the log of another run; it is now {other}.")

    @contextmanager
    def _costing_only_the_log(self):
        try:
            yield
        except OSError as error:
            if not self.failed:
                logger.warning(
                    f"The run's log lacks what comes now, for `trl-gist report`: {error}. Training goes on."
                )
            self.failed = True


def _describe(trainer):
    args = trainer.args
    values = args.to_dict()  # tokens are left out of it
    defaults = {
        field.name: field.default_factory() if field.default is MISSING else field.default
        for field in fields(args)
        if field.init and (field.default is not MISSING or field.default_factory is not MISSING)
    }
    changed = {
        name: values[name]
        for name, default in defaults.items()
        if name not in _NOT_CHOSEN and getattr(args, name) != default
    }
    device = trainer.accelerator.device
    return {
        "base_models": trainer.base_models,
        "recipe": recipe_of(args),
        "changed": changed,
        "rewards": dict(zip(trainer.reward_func_names, trainer.initial_reward_weights, strict=True)),
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": trainer.accelerator.num_processes,
            "CPU cores": os.cpu_count(),
            "CPU threads": torch.get_num_threads(),
            "CPU multiplies bfloat16": cpu_multiplies(torch.bfloat16),
            "dtype of the summarizer": str(trainer.model.dtype),
            "trl_gist": __version__,
            **_versions(),
        },
    }


@cache
def _versions():
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets")}


def _spread(document_ids: Iterable, count: int) -> list[int]:
    """Indices of `count` rows, of as many documents as possible, evenly over the dataset."""
    seen, order = Counter(), []
    for index, document in enumerate(document_ids):
        order.append((seen[document], index))
        seen[document] += 1
    firsts = [index for nth, index in order if nth == 0]
    if len(firsts) >= count:
        return [firsts[number * len(firsts) // count] for number in range(count)]
    return [index for _, index in sorted(order)[:count]]


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _to_json(entry):
    return json.dumps(finite(entry), ensure_ascii=False, default=str)
