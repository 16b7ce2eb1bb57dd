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

"""What a session is told and tells: its sizes, the plan of a compaction, its record, and what it is undone by."""

from dataclasses import asdict, dataclass, field

from ...common.arguments import truth, whole_number
from ...common.geometry import SEPARATOR, rolling_chunk_length
from ...models.positions import max_positions
from ..certify import longest_certified
from ..keep import Span, parse_keep
from ..pair import LoadedPair
from .recursion import StoredGist, stored_gists
from .window import LiveToken, spans_of


@dataclass(frozen=True)
class CompactionPlan:
    """
    What a compaction will fold.

    Attributes:
        index (`int`):
            Its place in `session.history`.
        position (`int`):
            Tokens of the stream so far.
        chunk (`list[LiveToken]`):
            The oldest live tokens that are not protected.
        following (`list[LiveToken]`):
            The unprotected tokens after it, which S sees as L and which stay live.
        gists (`list[StoredGist]`):
            What stands for all that was folded before.
    """

    index: int
    position: int
    chunk: list[LiveToken]
    following: list[LiveToken]
    gists: list[StoredGist]

    @property
    def chunk_ids(self) -> list[int]:
        return [token.token_id for token in self.chunk]

    @property
    def last_k_ids(self) -> list[int]:
        return [token.token_id for token in self.following]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Positions of the chunk, `(first, one past the last)`; more than one around protected tokens."""
        return spans_of(self.chunk)


@dataclass(frozen=True)
class Compaction:
    """
    A compaction that took place.

    Attributes:
        index (`int`):
            Its place in `session.history`.
        position (`int`):
            Tokens of the stream when it took place.
        spans (`list[tuple[int, int]]`):
            Positions that were folded, `(first, one past the last)`; over a session each position is in one at most.
        tokens_in (`int`):
            How many these are.
        read_tokens (`int`):
            Tokens of all contexts that S read for it: earlier gists, chunk, L; `gists_written` times.
        gists_written (`int`):
            1, and 1 more for each pair of gists that was gisted.
        previous_gist, gist (`str`):
            What G read as the gist before and after.
        gist_ids (`list[int]`):
            Its tokens.
        gist_tokens (`int`):
            How many these are, separators between gists included.
        seconds (`float`):
            That S took.
        cost (`float` or `None`):
            With `measure=True`, once the tokens that came next are there, what it cost in nats per token: the mean over
            the next `target_length` tokens of the stream of log p_G(token | previous gist, whole live window) −
            log p_G(token | gist, what stayed). S saw none of these tokens. `None` where it is not measured: the tokens
            are not there yet, or they and the whole window do not fit the generator's positions. What it compares with
            is G on the window as it was, not on the whole stream; and G was trained on `last_k` last tokens, so that
            reading more of them can be the worse of the two. Tokens that G itself wrote count as any others.
        expected_kl, expected_kl_se, expected_kl_reader (`float`, `float` and `str`, or `None`):
            With `certify=True`, at once, what it is expected to cost, as of [`Gist`]: the KL from a reader of the previous
            gists and the whole live window to G on the gists and what stayed, in nats per token. `None` also where they
            do not fit the models' positions, as after [`~inference.session.session.Session.undo`].
        facts_kept, facts_dropped (`list[str]`):
            Names, numbers and dates of what was folded, now or before, that G still reads, in the gists or live; and those
            that it reads no more. A fact is followed from the compaction in which its last token is folded to the one that
            drops it, and a fact of which all words and numbers are there is kept. See [`trl_gist.inference.facts`].
        kept, not_kept (`list[str]`):
            With `keep`, of what was asked for and stood in the previous gists or the chunk, what the gists have and what
            they lack.
    """

    index: int
    position: int
    spans: list[tuple[int, int]]
    tokens_in: int
    read_tokens: int
    gists_written: int
    previous_gist: str
    gist: str
    gist_ids: list[int]
    gist_tokens: int
    seconds: float
    cost: float | None = None
    expected_kl: float | None = None
    expected_kl_se: float | None = None
    expected_kl_reader: str | None = None
    facts_kept: list[str] = field(default_factory=list)
    facts_dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    not_kept: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Folded:
    """
    What a session knows of what it folded, beside the gists.

    Attributes:
        last_ids (`list[int]`):
            The last tokens of it, where a fact may have begun.
        kept (`list[Span]`):
            What the gists have of what they are to keep.
    """

    last_ids: list[int] = field(default_factory=list)
    kept: list[Span] = field(default_factory=list)

    @property
    def state(self) -> dict:
        """For JSON."""
        kept = [[span.text, None if span.units is None else sorted(span.units), span.request] for span in self.kept]
        return {"last_ids": self.last_ids, "kept": kept}

    @classmethod
    def from_state(cls, state: dict) -> "Folded":
        kept = [Span(text, 0, units and frozenset(units), request) for text, units, request in state["kept"]]
        return cls(state["last_ids"], kept)


@dataclass(frozen=True)
class Undo:
    """
    What the last compaction changed.

    Attributes:
        gists (`list[StoredGist]`):
            Those before it.
        chunk (`list[LiveToken]`):
            What was folded.
        folded ([`Folded`]):
            What was known before it.
    """

    gists: list[StoredGist]
    chunk: list[LiveToken]
    folded: Folded

    @property
    def state(self) -> dict:
        """For JSON."""
        return {"gists": [asdict(gist) for gist in self.gists], "chunk": self.chunk, "folded": self.folded.state}

    @classmethod
    def from_state(cls, state: dict) -> "Undo":
        return cls(
            stored_gists(state["gists"]),
            [LiveToken(*token) for token in state["chunk"]],
            Folded.from_state(state["folded"]),
        )


@dataclass(frozen=True)
class SessionSettings:
    """
    The sizes of a session, in tokens; see [`~inference.session.session.Session`].

    Attributes:
        window, last_k, gist_length, gist_budget, chunk_length, protectable (`int`):
            All that G reads; what stays verbatim; the most of one gist, of all gists together, of one chunk, and of
            protected text, so that there is always a token to fold.
        budget (`int` or `None`):
            What S is asked for: `None` is what the pair was trained on.
        recursion (`str`):
            `"rolling"` or `"chain"`.
        measure, certify (`bool`):
            Whether costs are measured, and whether they are expected.
        keep (`list[str]`):
            What gists must have.
    """

    window: int
    last_k: int
    recursion: str
    budget: int | None
    gist_length: int
    gist_budget: int
    chunk_length: int
    protectable: int
    measure: bool
    certify: bool
    keep: list[str]

    @classmethod
    def resolve(
        cls,
        loaded: LoadedPair,
        window: int | None,
        last_k: int | None,
        budget: int | None,
        gist_budget: int | None,
        measure: bool,
        certify: bool = False,
        keep: str | list[str] | None = None,
    ) -> "SessionSettings":
        """Fills in the defaults. Raises `ValueError` that names the field if sizes do not fit each other or the pair."""
        window, last_k = whole_number("window", window, optional=True), whole_number("last_k", last_k, optional=True)
        budget = whole_number("budget", budget, optional=True)
        gist_budget = whole_number("gist_budget", gist_budget, optional=True)
        measure, certify = truth("measure", measure), truth("certify", certify)
        if measure:
            loaded.check_models("`measure`")
        keep = _checked_keep(keep)
        pair, prompts = loaded.pair, loaded.prompts
        last_k = pair.last_k if last_k is None else last_k
        gist_length = pair.max_gist_length if budget is None else budget
        separator = len(prompts.tokenize(SEPARATOR))
        rolls = gist_budget is None
        if rolls:
            gist_budget = gist_length
        elif gist_budget < gist_length:
            raise ValueError(
                f"`gist_budget` ({gist_budget}) must hold at least one gist of `budget` ({gist_length}) tokens: raise it."
            )
        read_besides = (gist_length, separator) if rolls else (0, 0)
        chunk_length = rolling_chunk_length(pair.context_length, last_k, *read_besides)
        if chunk_length < 1 or (not rolls and 2 * gist_length + separator + last_k > pair.context_length):
            raise ValueError(
                f"`last_k` ({last_k}) and `budget` ({gist_length}) are too large: the summarizer reads them "
                f"{'and the text' if rolls else 'and, with `gist_budget`, a second gist'} in one context, which has "
                f"{pair.context_length} tokens for this pair. Lower one of the two."
            )
        if window is None:
            window = prompts.generator_overhead + gist_budget + chunk_length + last_k
        protectable = window - prompts.generator_overhead - gist_budget - last_k - 1
        recursion = "rolling" if rolls else "chain"
        settings = cls(
            *(window, last_k, recursion, budget, gist_length, gist_budget, chunk_length, protectable),
            *(measure, certify, keep),
        )
        settings._check_window(loaded)
        settings._check_summarizer(loaded)
        return settings

    def _check_window(self, loaded):
        overhead = loaded.prompts.generator_overhead
        least = overhead + self.gist_budget + self.last_k + 1
        if self.window < least:
            raise ValueError(
                f"`window` ({self.window}) is too small: the generator's template ({overhead}), the gists "
                f"({self.gist_budget}), `last_k` ({self.last_k}) and a new token need {least}. Raise it, or lower "
                "`gist_budget`, `budget` or `last_k`."
            )
        positions = max_positions(loaded.generator)
        if positions is not None and self.window > positions:
            raise ValueError(
                f"`window` ({self.window}) exceeds the generator's {positions} positions: lower it to {positions}."
            )
        if self.certify and self.window > (longest := longest_certified(loaded)):
            raise ValueError(
                f"`certify` reads {loaded.pair.target_length} tokens after a window, and with `window` ({self.window}) the "
                f"models have no positions for them. Lower it to {longest}, or leave `certify` out."
            )

    def _check_summarizer(self, loaded):
        # As long as its prompts get: what the tokens are does not matter
        shown = loaded.pair.tail_length if self.budget is None else self.budget
        context_ids = [0] * loaded.pair.context_length
        needed = len(loaded.prompts.summarizer(context_ids, [0] * self.last_k, shown)) + self.gist_length
        positions = max_positions(loaded.summarizer)
        if positions is not None and needed > positions:
            raise ValueError(
                f"`budget` ({self.gist_length}) is too large: with its prompt the summarizer would need {needed} "
                f"positions, and it has {positions}. Lower it."
            )


def _checked_keep(keep):
    """As a list, for it is saved: of strings alone."""
    keep = list(keep) if isinstance(keep, (list, tuple)) else [] if keep is None else [keep]
    parse_keep(keep)
    for request in keep:
        if not isinstance(request, str):
            raise ValueError(
                f"`keep` holds {request!r}, and a session, which is saved, takes strings alone. Write the pattern as "
                "'regex:...'."
            )
    return keep
