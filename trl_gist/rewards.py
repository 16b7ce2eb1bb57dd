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
to the row, so a reward function asks for the columns it needs by name. In nats, means over the target's tokens unless
said:

| column | meaning |
|---|---|
| `log_prob_gain` | log p_G(Y\\|Z,L) − log p_G(Y\\|L) |
| `kl_gain` | KL(T‖G(·\\|L)) − KL(T‖G(·\\|Z,L)) |
| `token_log_prob_gains`, `token_kl_gains` | the same for each of the target's tokens, as a list |
| `later_log_prob_gain`, `later_kl_gain` | what it would gain, read as it is, in later windows of a walk: discounted sum |
| `teacher_kl`, `null_teacher_kl` | KL(T‖G) with the gist and with an empty one |
| `gist_log_prob`, `null_log_prob`, `teacher_log_prob` | log p of Y under G with the gist, G without, T |
| `target_scores` | by target, in dictionaries: `kind`, scores as above and, of several, `exact` (G writes it whole) |
| `targets` | where a context has several: their `kind`, `cue_ids`, `target_ids`, `after_ids`; the rest are means |
| `gist_length`, `gist_ids` | the gist, every token up to the end-of-sequence token |
| `context_ids`, `last_k_ids`, `target_ids`, `document_id` | the window |
| `prompts`, `completions` | the context and the gist as text |
| any other name | the dataset's column of that name; the names above, but for `document_id`, are refused in it |

A reward function returns a number for each gist. `GistConfig.reward_weights` weighs several; by default each counts 1.0,
and `length_penalty` λ.
"""

import re


# Thousands may be set off by commas
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?")


def log_prob_gain(log_prob_gain: list[float], later_log_prob_gain: list[float], **kwargs) -> list[float]:
    """What the gist bought over the last k tokens alone, in nats per target token, and still buys in later windows."""
    return [sum(gains) for gains in zip(log_prob_gain, later_log_prob_gain, strict=True)]


def kl_gain(kl_gain: list[float], later_kl_gain: list[float], **kwargs) -> list[float]:
    """
    How much closer the gist brought the generator to the teacher than the last k tokens alone, in nats per target
    token, and still brings it in later windows: `log_prob_gain` in expectation over the teacher's distribution instead
    of on the one token that came.
    """
    return [sum(gains) for gains in zip(kl_gain, later_kl_gain, strict=True)]


def binary(log_prob_gain: list[float], **kwargs) -> list[float]:
    """1.0 if the gist made the target likelier than an empty gist does, else 0.0: the original's early variant."""
    return [float(gain > 0) for gain in log_prob_gain]


def length_penalty(gist_length: list[int], **kwargs) -> list[float]:
    """Minus the gist's length in tokens; λ (`GistConfig.length_penalty`) is its reward weight."""
    return [-float(length) for length in gist_length]


def number_recall(prompts: list[str], completions: list[str], **kwargs) -> list[float]:
    """Share of the context's different numbers that the gist keeps, in [0, 1]; 0 where the context has none."""
    recalls = []
    for prompt, completion in zip(prompts, completions, strict=True):
        given, kept = ({number.replace(",", "") for number in _NUMBER.findall(text)} for text in (prompt, completion))
        recalls.append(len(given & kept) / len(given) if given else 0.0)
    return recalls
