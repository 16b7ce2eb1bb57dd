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

"""What a generator says after a prompt, how sure it is of it, and what else it might have said."""

import math

import torch

from ..models.generation import end_token_ids
from ..models.lm_head import log_softmax
from .gist import Recall
from .pair import LoadedPair


def recall(loaded: LoadedPair, prompt: list[int], max_new_tokens: int, alternatives: int) -> Recall:
    """
    The likeliest continuation of a prompt, token by token, and others.

    An alternative leaves it at one token: of all tokens that were not taken anywhere, those that are likeliest together
    with what comes before them. After each the generator goes on greedily, all in one batch, unless a server takes fewer.

    Args:
        loaded ([`~inference.pair.LoadedPair`]):
            The pair.
        prompt (`list[int]`):
            What the generator reads.
        max_new_tokens (`int`):
            Longest continuation.
        alternatives (`int`):
            How many.

    Raises:
        ValueError: if prompt and continuation do not fit the generator's positions.
    """
    loaded.check_models("Recall")
    ends = end_token_ids(loaded.generator, loaded.tokenizer)
    (written,), logits_TSV = loaded.generate("generator", [prompt], max_new_tokens=max_new_tokens, output_logits=True)
    log_probs_TV = log_softmax(torch.cat(logits_TSV))
    said, log_probs = _said(log_probs_TV, written, max_new_tokens)
    unreadable = sorted(loaded.prompts.special_ids - {*ends})
    starts = _starts(log_probs_TV[: len(said)], said, log_probs, unreadable, alternatives)
    others = _gone_on(loaded, prompt, starts, max_new_tokens, ends)
    others = [_recall(loaded, *other, [], ends) for other in sorted(others, key=lambda other: -sum(other[1]))]
    return _recall(loaded, said, log_probs, others, ends)


def _recall(loaded, said, log_probs, alternatives, ends):
    ended = said[-1] in ends
    token_ids = said[:-1] if ended else said
    return Recall(
        text=loaded.decode(token_ids),
        token_ids=token_ids,
        probability=math.exp(sum(log_probs)),
        token_probabilities=[math.exp(log_prob) for log_prob in log_probs],
        ended=ended,
        alternatives=alternatives,
    )


def _said(log_probs_TV, written, most):
    """At most so many of the tokens that were written, an end-of-sequence token too, and their log-probs."""
    said = written[:most]
    if len(said) < most:
        said = [*said, log_probs_TV[len(said)].argmax().item()]
    return said, [step[token].item() for step, token in zip(log_probs_TV, said, strict=False)]


def _starts(log_probs_TV, said, log_probs, unreadable, count):
    """What was said up to a token, another in its place, and their log-probs; the likeliest first."""
    others_TV = log_probs_TV.clone()
    others_TV[:, unreadable] = -torch.inf
    others_TV[torch.arange(len(said)), said] = -torch.inf
    before_T = torch.tensor([sum(log_probs[:place]) for place in range(len(said))]).to(others_TV)
    scores = (others_TV + before_T[:, None]).flatten()
    found = scores.topk(min(count, scores.isfinite().sum().item())).indices.tolist()  # there may be fewer ways
    places = [divmod(index, others_TV.shape[1]) for index in found]
    return [([*said[:at], token], [*log_probs[:at], others_TV[at, token].item()]) for at, token in places]


def _gone_on(loaded, prompt, starts, most, ends):
    """Each start with what the generator says after it, and the log-probs."""
    rows = [row for row, (said, _) in enumerate(starts) if said[-1] not in ends and len(said) < most]
    together, gone_on = loaded.rows_together(len(prompt) + most), list(starts)
    for first in range(0, len(rows), together):
        some = rows[first : first + together]
        longest = most - min(len(starts[row][0]) for row in some)
        prompts = [[*prompt, *starts[row][0]] for row in some]
        written_N, logits_TNV = loaded.generate("generator", prompts, max_new_tokens=longest, output_logits=True)
        for place, (row, written) in enumerate(zip(some, written_N, strict=True)):
            said, log_probs = starts[row]
            log_probs_TV = log_softmax(torch.stack([logits_NV[place] for logits_NV in logits_TNV]))
            more, log_probs_more = _said(log_probs_TV, written, most - len(said))
            gone_on[row] = ([*said, *more], [*log_probs, *log_probs_more])
    return gone_on
