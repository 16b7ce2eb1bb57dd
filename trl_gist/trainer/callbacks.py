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

"""Callbacks: a checkpoint on a signal, progress with the figures of a gist, and gists for TensorBoard."""

import os
import signal
import time
from pathlib import Path

import pandas
import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..common.statistics import measured


_SHOWN = {"teacher_kl": "KL(T‖G)", "log_prob_gain": "gain", "gist_length": "tokens", "entropy": "entropy"}
_HELD_OUT = {
    "teacher_kl": "KL(T‖G)",
    "gain_over_null": "gain over an empty gist",
    "gain_over_tail": "over as many tokens verbatim",
}


class GistProgressCallback(ProgressCallback):
    """A progress bar with the four numbers to watch, and a line for each evaluation, instead of printed dictionaries of
    forty. All of them still go to the trackers of `report_to`, to `run_log/` and to `trainer_state.json`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or logs is None:
            return
        if "teacher_kl" in logs:
            self.training_bar.set_postfix_str(
                ", ".join(f"{label} {logs[name]:.3f}" for name, label in _SHOWN.items() if name in logs)
            )
        elif held_out := next((name for name in logs if name.endswith("_teacher_kl")), None):
            prefix = held_out.removesuffix("teacher_kl")
            measures = [
                f"{label} {measured(logs, prefix + name)}"
                for name, label in _HELD_OUT.items()
                if prefix + name in logs
            ]
            self.training_bar.write(f"{prefix.rstrip('_')}, step {state.global_step}: {', '.join(measures)}")


def show_in_tensorboard(callbacks: list[TrainerCallback], completions: Path, step: int, one_a_context: bool):
    """The table that TRL (1.16) writes as parquet, and hands to trackio and wandb alone, as a text of TensorBoard."""
    writers = [each.tb_writer for each in callbacks if isinstance(each, TensorBoardCallback)]
    writers = [writer for writer in writers if writer is not None]
    if not writers:
        return
    table = pandas.read_parquet(completions)
    if one_a_context:
        table = table.drop_duplicates("prompt")
    rows = [[_cell(value) for value in row] for row in (table.columns, *table.itertuples(index=False))]
    rows.insert(1, ["---"] * len(table.columns))
    for writer in writers:
        writer.add_text("completions", "\n".join(f"| {' | '.join(row)} |" for row in rows), step)
        writer.flush()


def _cell(value):
    """Text as it reads: none of its signs means anything to Markdown or HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    return "".join(sign if sign.isalnum() or sign == " " else f"&#{ord(sign)};" for sign in text)


def signals_named(*names: str) -> tuple[signal.Signals, ...]:
    """Those of them that this system has: Windows has neither SIGHUP nor SIGUSR1."""
    return tuple(each for each in signal.Signals if each.name in names)


# What schedulers send before they kill, and a terminal at Ctrl-C and when it is closed
SIGNALS = signals_named("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
STOPPED_FILE = "TRL_GIST_STOPPED_FILE"  # names, in the environment, the file by which a run says that it was saved
# Seconds in which a launched process gets one signal twice: from its scheduler and from the launcher that hands it on
_ONE_EVENT = 2.0


class SaveOnSignal(TrainerCallback):
    """
    Ends a run with a checkpoint when it is interrupted or the machine is about to be taken away: at the end of the
    rollout in which a signal arrives, on all processes alike. A second signal does what it would have done without: it
    ends the process at once.

    It listens inside its `with` block; then whoever listened before does again. A signal that the process ignores, as
    SIGHUP under `nohup`, it leaves ignored.

    Example:

    ```python
    with SaveOnSignal() as save_on_signal:
        trainer.add_callback(save_on_signal)
        trainer.train(resume_from_checkpoint=any(Path(args.output_dir).glob("checkpoint-*")))
    if save_on_signal.stopped_at is None:
        trainer.save_model()
    ```

    Args:
        signals (`tuple[signal.Signals, ...]`, *optional*, defaults to SIGTERM, SIGINT, SIGHUP and SIGUSR1):
            Each process has to get it, or one of them.

    Attributes:
        stopped_at (`int` or `None`):
            The step of the checkpoint with which it ended a run. `None` if the run came to its own end.
        stopped_by (`signal.Signals` or `None`):
            The signal that did.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = SIGNALS):
        self.signals = signals
        self.received = self.stopped_at = self.stopped_by = None

    def __enter__(self):
        self.received = self.stopped_at = self.stopped_by = None
        self._process = os.getpid()
        before = {each: signal.getsignal(each) for each in self.signals}
        # `None` is a handler that Python could not put back
        self._previous = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for each in self._previous:
            signal.signal(each, self._note)
        return self

    def __exit__(self, *error):
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _note(self, number, frame):
        launched = "TORCHELASTIC_RUN_ID" in os.environ or STOPPED_FILE in os.environ
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
            if not launched:
                self.__exit__()  # so that the second one is felt even where Python is not listening
            # Of several processes one says so, and no worker that loads data
            if os.environ.get("LOCAL_RANK", "0") == "0" and os.getpid() == self._process:
                # `print` and loggers may be in the middle of a line that this interrupts
                said = "it is saved when this rollout is done, then it ends. A second signal ends it at once."
                os.write(2, f"\n{self.received.name} to the run: {said}\n".encode())
        elif time.monotonic() - self._received_at > _ONE_EVENT:
            self.__exit__()
            signal.raise_signal(number)

    def on_step_end(self, args, state, control, **kwargs):
        # Inside a rollout there is no checkpoint, and a run at its end is saved as such
        if state.global_step % args.steps_per_rollout != 0 or state.global_step >= state.max_steps:
            return
        received = torch.tensor([int(self.received or 0)], device=PartialState().device)
        number = gather(received).max().item()
        if number > 0:
            self.stopped_at, self.stopped_by = state.global_step, signal.Signals(number)
            control.should_log = control.should_save = control.should_training_stop = True
