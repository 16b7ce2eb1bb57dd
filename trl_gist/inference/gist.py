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

"""What a pair writes: gists, continuations and what it recalls."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gist:
    """
    A gist and what it cost.

    Attributes:
        text (`str`):
            The gist as text, without special tokens: what the generator reads of it.
        token_ids (`list[int]`):
            Every token the summarizer wrote up to, not including, its end-of-sequence token, but for those that make no
            whole character, as where `budget` cut one in two.
        log_prob (`float`):
            Log-prob of these tokens under the summarizer at temperature 1, summed, in nats.
        context_tokens (`int`):
            Tokens of the context, |X|. Of a window of a longer text, with the `last_k` tokens that follow it.
        gist_rate (`float`):
            |Z| / |X|.
        total_rate (`float`):
            (|Z| + |L| + template) / |X|: all that the generator reads against the context it stands for.
        kept, not_kept (`list[str]`):
            What was asked for with `keep` and is in the gist, and what is not: it did not fit, or is a literal string
            that the text lacks. In order of worth; see [`trl_gist.inference.keep`].
        kept_at, not_kept_at (`list[int | None]`):
            For each of these the character of the text, of all its windows, where this window has it first; `None` for a
            literal string that it lacks. Of token ids that are not their own text's, characters of the windows' texts.
        expected_kl (`float`, *optional*):
            With `certify=True`, what the gist is expected to cost: KL(reader of the whole context ‖ generator on the
            gist and L) along the reader's own continuations, in nats per token; see [`trl_gist.inference.certify`].
        expected_kl_se (`float`, *optional*):
            Its standard error over the continuations.
        expected_kl_reader (`str`, *optional*):
            Who read the whole context: `"teacher"`, or `"generator"` where the pair's teacher is not in memory.
        exact_text (`bool`):
            Whether `text` is tokenised to what the generator reads of the gist. Where it is not, since the summarizer
            spelled it in other tokens, hand on the gist itself, or `token_ids`, rather than `text`.
    """

    text: str
    token_ids: list[int]
    log_prob: float
    context_tokens: int
    gist_rate: float
    total_rate: float
    kept: list[str] = field(default_factory=list)
    not_kept: list[str] = field(default_factory=list)
    kept_at: list[int | None] = field(default_factory=list)
    not_kept_at: list[int | None] = field(default_factory=list)
    expected_kl: float | None = None
    expected_kl_se: float | None = None
    expected_kl_reader: str | None = None
    exact_text: bool = True


@dataclass(frozen=True)
class Continuation:
    """
    What the generator wrote.

    Attributes:
        text (`str`):
            The continuation as text, without special tokens.
        token_ids (`list[int]`):
            Its tokens up to, not including, the end-of-sequence token.
        gist ([`Gist`] or `str`):
            The gist it was written from; its `context_tokens` says how much of the text it stands for.
    """

    text: str
    token_ids: list[int]
    gist: Gist | str


@dataclass(frozen=True)
class Recall:
    """
    What the generator said after a cue, and how sure it was of it.

    Attributes:
        text (`str`):
            What it said as text, without special tokens.
        token_ids (`list[int]`):
            Its tokens up to, not including, the end-of-sequence token.
        probability (`float`):
            Of all that it said together: the product of `token_probabilities`.
        token_probabilities (`list[float]`):
            Of each token after all before it, at temperature 1; and, if it `ended`, of the end-of-sequence token.
        ended (`bool`):
            Whether it ended, rather than was cut off at the most tokens that were asked for.
        alternatives (`list[Recall]`):
            What else it considered, the likeliest first: each leaves what it said at one token, and was gone on with
            greedily. Some may say the same in other tokens.
    """

    text: str
    token_ids: list[int]
    probability: float
    token_probabilities: list[float]
    ended: bool
    alternatives: list["Recall"] = field(default_factory=list)
