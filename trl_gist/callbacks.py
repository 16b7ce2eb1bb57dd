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

from transformers import ProgressCallback


_SHOWN = {"teacher_kl": "KL(T‖G)", "log_prob_gain": "gain", "gist_length": "tokens", "entropy": "entropy"}


class GistProgressCallback(ProgressCallback):
    """A progress bar with the four numbers to watch, instead of a printed dictionary of forty. All of them still go to
    the trackers of `report_to` and to `trainer_state.json`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs is not None and "teacher_kl" in logs:
            self.training_bar.set_postfix_str(
                ", ".join(f"{label} {logs[name]:.3f}" for name, label in _SHOWN.items() if name in logs)
            )
