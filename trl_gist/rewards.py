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
Reward functions over the scored columns, in TRL's plain signature.

The trainer scores every gist with the teacher and the generator before it calls reward functions, and adds the scores
to the row, so a reward function asks for the columns it needs by name. Means are over the target's tokens, in nats:

| column | meaning |
|---|---|
| `log_prob_gain` | log p_G(Y\\|Z,L) − log p_G(Y\\|L) |
| `kl_gain` | KL(T‖G(·\\|L)) − KL(T‖G(·\\|Z,L)) |
| `teacher_kl`, `null_teacher_kl` | KL(T‖G) with the gist and with an empty one |
| `gist_log_prob`, `null_log_prob`, `teacher_log_prob` | log p of Y under G with the gist, G without, T |
| `gist_length`, `gist_ids` | the gist, every token up to the end-of-sequence token |
| `context_ids`, `last_k_ids`, `target_ids`, `document_id` | the window |
"""


def log_prob_gain(log_prob_gain: list[float], **kwargs) -> list[float]:
    """What the gist bought over the last k tokens alone, in nats per target token."""
    return log_prob_gain


def length_penalty(gist_length: list[int], **kwargs) -> list[float]:
    """Minus the gist's length in tokens; λ (`GistConfig.length_penalty`) is its reward weight."""
    return [-float(length) for length in gist_length]
