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

"""Callbacks that a script adds: a checkpoint on a signal, and progress with the figures of a gist."""

import signal

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import ProgressCallback, TrainerCallback


_SHOWN = {"teacher_kl": "KL(T‖G)", "log_prob_gain": "gain", "gist_length": "tokens", "entropy": "entropy"}


class GistProgressCallback(ProgressCallback):
    """A progress bar with the four numbers to watch, instead of a printed dictionary of forty. All of them still go to
    the trackers of `report_to` and to `trainer_state.json`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs is not None and "teacher_kl" in logs:
            self.training_bar.set_postfix_str(
                ", ".join(f"{label} {logs[name]:.3f}" for name, label in _SHOWN.items() if name in logs)
            )


class SaveOnSignal(TrainerCallback):
    """
    Ends a run with a checkpoint when the machine is about to be taken away: at the end of the rollout in which a
    signal arrives, on all processes alike.

    It listens inside its `with` block; then whoever listened before does again.

    Example:

    ```python
    with SaveOnSignal() as save_on_signal:
        trainer.add_callback(save_on_signal)
        trainer.train(resume_from_checkpoint=any(Path(args.output_dir).glob("checkpoint-*")))
    if save_on_signal.stopped_at is None:
        trainer.save_model()
    ```

    Args:
        signals (`tuple[signal.Signals, ...]`, *optional*, defaults to `(signal.SIGTERM,)`):
            What schedulers send before they kill. Each process has to get it, or one of them.

    Attributes:
        stopped_at (`int` or `None`):
            The step of the checkpoint with which it ended a run. `None` if the run came to its own end.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)):
        self.signals = signals
        self.received = False
        self.stopped_at = None

    def __enter__(self):
        self._previous = {each: signal.signal(each, self._note) for each in self.signals}
        return self

    def __exit__(self, *error):
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _note(self, number, frame):
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        # Inside a rollout there is no checkpoint, and a run at its end is saved as such
        if state.global_step % args.steps_per_rollout != 0 or state.global_step >= state.max_steps:
            return
        received = torch.tensor(float(self.received), device=PartialState().device)
        if reduce(received, reduction="sum").item() > 0:
            self.stopped_at = state.global_step
            control.should_log = control.should_save = control.should_training_stop = True
