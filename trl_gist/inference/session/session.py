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

"""The session itself. How gists follow from chunks is in [`recursion`], what is on disk in [`files`]."""

import dataclasses
import os
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.generation.streamers import BaseStreamer

from ...common.arguments import truth, whole_number
from ...common.files import sync
from ...common.geometry import SEPARATOR, join
from ...common.tokens import characters_of
from ...models.generation import TokenTee, end_token_ids
from ..facts import different, find_facts, kept_and_dropped
from ..gist import Continuation, Recall
from ..keep import SpanReader, carried, find_spans, kept_and_not, parse_keep, with_spans
from ..pair import GistWriter
from ..recall import recall
from .cost import CostMeter, expected_cost
from .files import SavedSession, TokenFile, check_unused, pair_name, read_session
from .recursion import RECURSIONS, StoredGist, stored_gists
from .state import Compaction, CompactionPlan, Folded, SessionSettings, Undo
from .window import LiveToken, LiveWindow


# Tokens of what was folded before a chunk: before its last one the longest fact may have so many
_FACT_BEGINS = 16


class Session:
    """
    A stream of text of any length that a pair goes on reading and writing in a window of fixed size.

    The generator reads `template, gists, live tokens`, at most `window` tokens of them. When there is no room for the
    next token, the oldest live tokens scroll off as a *chunk* and are folded into the gists, and the last `last_k` stay
    at least. Everything is done in token ids: text is tokenised once, alone, when it is appended, and nothing is decoded
    and tokenised again. S writes each gist through the pair's own prompts, greedily, from a context of at most the
    `context_length` that the pair was trained on: what is folded, and after it, as in training, the next `last_k`
    tokens, which stay live and which G reads beside the gist. How the gists follow from the chunks:

    - There is one rolling gist; the new one is S(previous gist, chunk, L).
    - With `gist_budget` there is a chain of them: S(chunk, L) for each chunk, which stays as it is. While they are longer
      together than `gist_budget`, the two oldest become S(gist, gist, L).

    A newline's tokens stand between two gists, and between a gist and a chunk.

    What it keeps in memory: the gists, the live tokens, and a record of each compaction in `history` (a gist and a few
    numbers). Of what scrolled off it keeps the last chunk, by which [`~Session.undo`] takes the last compaction back, and
    nothing else, but on disk with `keep_history`. A session is used by one thread at a time; the sessions of one compactor
    may be used by several, which take turns at its models.

    Example:

    ```python
    session = compactor.session(window=512)
    session.append(book)
    session.generate(200, streamer=TextStreamer(compactor.tokenizer))
    for compaction in session.history:
        print(compaction.spans, compaction.gist, compaction.facts_dropped)
    print(session.recall("The pump was in").text)
    ```

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        window (`int`, *optional*):
            The most tokens the generator reads. Defaults to as many as let S read full contexts and leave G `last_k` live
            tokens after a compaction, as in training.
        last_k (`int`, *optional*):
            Live tokens that are never folded, the newest. Defaults to the pair's.
        budget (`int`, *optional*):
            The most tokens of one gist. Defaults to the pair's.
        gist_budget (`int`, *optional*):
            The most tokens of a chain of gists, newlines between them included. Left out, there is one gist.
        measure (`bool`, *optional*, defaults to `False`):
            Whether to measure what each compaction cost; see [`~inference.session.state.Compaction`]. Takes two forwards of G each.
        autosave (`str` or `os.PathLike`, *optional*):
            Where the session is saved after each `append`, `generate` and compaction.
        keep_history (`str` or `os.PathLike`, *optional*):
            A new file for all tokens of the stream; see [`~inference.session.files.TokenFile`].
        before_compaction (`Callable`, *optional*):
            Called as `before_compaction(session, plan)` with a [`~inference.session.state.CompactionPlan`]. It may call `protect`
            and `unprotect`; the plan is then made anew.
        after_compaction (`Callable`, *optional*):
            Called as `after_compaction(session, compaction)` with a [`~inference.session.state.Compaction`], when it is done and
            saved. It may call `undo`; unless something is protected then, the same chunk is folded again, without end.
        certify (`bool`, *optional*, defaults to `False`):
            Whether each compaction says what it is expected to cost; see [`~inference.session.state.Compaction`]. It takes
            a reading of the window by the pair's teacher, 8 continuations in one batch and a reading of these by G:
            longer than the gist itself.
        keep (`str` or a list of them, *optional*):
            Spans that the gists must have, within the same budget, as in [`GistCompactor.compress`]; patterns as
            `"regex:..."`. What a gist kept is asked of the next one before what is new. No chunk ends within a span that
            `last_k` shows to be one.

    Raises:
        ValueError: if sizes do not fit each other or the pair, or a file is there already.
    """

    def __init__(
        self,
        compactor: GistWriter,
        window: int | None = None,
        last_k: int | None = None,
        budget: int | None = None,
        gist_budget: int | None = None,
        measure: bool = False,
        autosave: str | os.PathLike | None = None,
        keep_history: str | os.PathLike | None = None,
        before_compaction: Callable | None = None,
        after_compaction: Callable | None = None,
        certify: bool = False,
        keep: str | list[str] | None = None,
    ):
        settings = SessionSettings.resolve(compactor, window, last_k, budget, gist_budget, measure, certify, keep)
        if autosave is not None:
            check_unused(autosave)
        self._start(compactor, settings, keep_history, autosave, before_compaction, after_compaction)
        if self._tokens is not None:
            self._tokens.create()

    def _start(
        self,
        compactor,
        settings,
        keep_history,
        autosave,
        before_compaction,
        after_compaction,
        position=0,
        gists=(),
        live=(),
        history=(),
        pending=(),
        folded=None,
        undo=None,
    ):
        self.compactor = compactor
        self.settings = settings
        self.autosave = autosave
        self.before_compaction = before_compaction
        self.after_compaction = after_compaction
        self.position = position  # tokens of the stream so far
        self.gists: list[StoredGist] = list(gists)
        self.live = LiveWindow(settings.protectable, live)
        self.history: list[Compaction] = list(history)
        self._meter = CostMeter(compactor, pending)
        self._requests = parse_keep(settings.keep)
        self._folded: Folded = folded or Folded()
        self._undo: Undo | None = undo
        self._separator_ids = list(compactor.prompts.tokenize(SEPARATOR))
        self._tokens = None if keep_history is None else TokenFile(keep_history)
        self._saved: SavedSession | None = None
        self._unsaved: list[Compaction] = []  # not yet in the log of `_saved`

    def __repr__(self):
        return (
            f"{type(self).__name__}(position={self.position}, live={len(self.live)}, compactions={len(self.history)}, "
            f"gist={self.gist!r})"
        )

    # ---- What the generator reads ----

    @property
    def gist_ids(self) -> list[int]:
        """What G reads as the gist: all gists, oldest first."""
        return self._join(self.gists)

    @property
    def gist(self) -> str:
        return self.compactor.decode(self.gist_ids)

    @property
    def token_ids(self) -> list[int]:
        """All that G reads before the next token."""
        return self._prompt(self.gists, self.live)

    @property
    def room(self) -> int:
        """Tokens that still fit in the window."""
        overhead = self.compactor.prompts.generator_overhead
        return self.settings.window - overhead - len(self.gist_ids) - len(self.live)

    def stream(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Tokens of the stream, from the file of `keep_history`."""
        if self._tokens is None:
            raise ValueError("What scrolled off was not kept: open the session with `keep_history`.")
        start, stop = whole_number("start", start, least=0), whole_number("stop", stop, least=0, optional=True)
        stop = self.position if stop is None else min(stop, self.position)
        return self._tokens.read(start, max(start, stop))

    # ---- The stream grows ----

    def append(self, text: str | list[int], protected: bool = False):
        """
        Adds text to the stream, and compacts whenever the window is full. It is added whole or not at all: where a
        compaction, a hook or a save fails on the way, the session is as it was before, also where it is saved.

        Args:
            text (`str` or `list[int]`):
                Text, or token ids of the pair's tokenizer.
            protected (`bool`, *optional*, defaults to `False`):
                Whether it stays in the window verbatim for good, where it is; S never reads it.

        Raises:
            ValueError: if it is not text or empty, or more would be protected than the window can hold. Nothing was
                added then.
        """
        pieces, protected = self.compactor.token_pieces(text, "The text"), truth("protected", protected)
        if protected:
            pieces = list(pieces)
            self.live.check_protectable(sum(len(ids) for ids, _ in pieces))
        before = self.position
        with self._whole_or_not_at_all():
            for ids, _ in pieces:
                start = 0
                while start < len(ids):
                    self._make_room()
                    piece = ids[start : start + self.room]
                    self._add(piece, protected)
                    self._measure_due()
                    start += len(piece)
            if self.position == before:
                raise ValueError("The text is empty.")
            self._save_if_asked()

    def generate(
        self,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        streamer: BaseStreamer | None = None,
        **generation_kwargs,
    ) -> Continuation:
        """
        Lets G go on, up to its end-of-sequence token; what it writes becomes part of the stream, token by token, so an
        exception of the streamer leaves in the session what was streamed. Between two compactions G keeps its keys and
        values; after one, they are computed anew from the new gist.

        Args:
            max_new_tokens (`int`, *optional*, defaults to `64`):
                Longest continuation.
            do_sample (`bool`, *optional*, defaults to `False`):
                Whether to sample, at temperature 1 unless `generation_kwargs` say otherwise.
            streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*):
                Gets an empty prompt, then each new token, then `end()`, also after an exception. So a `TextStreamer`
                gives the new text alone, with or without `skip_prompt`.
            generation_kwargs:
                For [`~transformers.GenerationConfig`], as `temperature` or `top_p`.

        Raises:
            ValueError: if the stream is empty, or no token is asked for.
        """
        if not self.position:
            raise ValueError("The session is empty: `append` the text that the generator is to go on from.")
        max_new_tokens, do_sample = whole_number("max_new_tokens", max_new_tokens), truth("do_sample", do_sample)
        written = []

        def add(token):
            self._add([token])
            written.append(token)

        tee = TokenTee(add, streamer, end_token_ids(self.compactor.generator, self.compactor.tokenizer))
        try:
            if streamer is not None:
                streamer.put(torch.empty(1, 0, dtype=torch.long))
            goes_on = True
            while goes_on and len(written) < max_new_tokens:
                self._make_room()
                up_to = min(len(written) + self.room, max_new_tokens)
                self.compactor.generate(
                    "generator",
                    [self.token_ids],
                    max_new_tokens=up_to - len(written),
                    do_sample=do_sample,
                    streamer=tee,
                    **generation_kwargs,
                )
                goes_on = len(written) == up_to
                self._measure_due()
        finally:
            if streamer is not None:
                streamer.end()
        self._save_if_asked()
        return Continuation(self.compactor.decode(written), written, self.gist)

    def protect(self, start: int, stop: int):
        """Keeps the live tokens at these positions of the stream verbatim. Raises `ValueError` as `append` does."""
        self.live.mark(start, stop, True)

    def unprotect(self, start: int, stop: int):
        """Lets them be folded again."""
        self.live.mark(start, stop, False)

    def recall(
        self, cue: str | list[int], max_new_tokens: int = 12, alternatives: int = 3, live: bool = True
    ) -> Recall:
        """
        What G goes on with after a cue, how sure it is of it, and what else it considered. The session stays as it is.

        Args:
            cue (`str` or `list[int]`):
                The beginning of what is asked for, as `"The pump was in"`. G reads it on a line of its own after the live
                tokens.
            max_new_tokens (`int`, *optional*, defaults to `12`):
                Longest continuation; the default is the longest fact that pairs are trained on.
            alternatives (`int`, *optional*, defaults to `3`):
                How many other answers to give; each takes a row of one more batch.
            live (`bool`, *optional*, defaults to `True`):
                Whether G reads the live tokens. Without them it reads the gists and the cue alone, as a pair does that is
                trained on facts; so the difference says where the answer stands.

        Raises:
            ValueError: if the session or the cue is empty, no token is asked for, or it does not fit the generator's
                positions.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens)
        alternatives = whole_number("alternatives", alternatives, least=0)
        return recall(self.compactor, self.recall_prompt(cue, live), max_new_tokens, alternatives)

    def recall_prompt(self, cue: str | list[int], live: bool = True) -> list[int]:
        """The token ids that G reads for [`~Session.recall`]. Raises `ValueError` if the session or the cue is empty."""
        if not self.position:
            raise ValueError("The session is empty: `append` the text that the generator is to recall.")
        cue_ids = self.compactor.token_ids(cue, "The cue")
        read = join([self.live.token_ids if truth("live", live) else [], cue_ids], self._separator_ids)
        return self.compactor.prompts.generator(self.gist_ids, read)

    @contextmanager
    def _whole_or_not_at_all(self):
        position, gists, live, history = self.position, self.gists, list(self.live.tokens), list(self.history)
        pending, folded, undo = self._meter.state, self._folded, self._undo
        try:
            yield
        except BaseException:
            self.position, self.gists, self.history = position, gists, history
            self._folded, self._undo = folded, undo
            self.live = LiveWindow(self.settings.protectable, live)
            self._meter = CostMeter(self.compactor, pending)
            self._saved = None  # its log may have gone on: another is begun, so that no moment is without a whole save
            try:
                self._save_if_asked()
            finally:
                if self._tokens is not None:
                    self._tokens.resume(position)
            raise

    def _add(self, ids, protected=False):
        self.live.append(ids, self.position, protected)
        self.position += len(ids)
        self._meter.add(ids)
        if self._tokens is not None:
            self._tokens.append(ids)

    # ---- Compactions ----

    def compact(self) -> Compaction:
        """
        Folds one chunk now, or, where a model, a hook or a save fails on the way, leaves the session as it was. Raises
        `ValueError` if no more than `last_k` unprotected tokens are live.
        """
        plan = self._plan()
        with self._whole_or_not_at_all():
            if self.before_compaction is not None:
                self.before_compaction(self, plan)
                plan = self._plan()
            gists, folded, compaction = self._fold(plan)
            stays = self.live.without(plan.spans)
            if self.settings.measure:
                self._meter.watch(plan.index, self._prompt(self.gists, self.live), self._prompt(gists, stays))
            self._undo = Undo(self.gists, plan.chunk, self._folded)
            self.gists, self.live, self._folded = gists, stays, folded
            self.history.append(compaction)
            self._unsaved.append(compaction)
            self._save_if_asked()
            if self.after_compaction is not None:
                self.after_compaction(self, compaction)
        return compaction

    def undo(self) -> Compaction:
        """
        Takes the last compaction back, as if it had not been, and returns its record: its chunk is live again, with what
        came since. The window may so be overfull until the next `append` or `generate`, which folds the chunk again, but
        for what was protected meanwhile.

        Raises:
            ValueError: if there is none, or it is undone already.
        """
        if self._undo is None:
            raise ValueError(
                f"There is no compaction to undo: {len(self.history)} took place, and only the last one can be undone, once."
            )
        with self._whole_or_not_at_all():
            compaction, undo = self.history.pop(), self._undo
            self.gists, self._folded, self._undo = undo.gists, undo.folded, None
            self.live = self.live.having(undo.chunk)
            self._meter.forget(compaction.index)
            self._saved = None  # its log has the compaction
            self._save_if_asked()
        return compaction

    def preview_compaction(self) -> tuple[CompactionPlan, Compaction]:
        """What [`~Session.compact`] would fold now, and what would come of it. Calls no hook and changes nothing."""
        plan = self._plan()
        return plan, self._fold(plan)[-1]

    def _make_room(self):
        # Usually once. A short chunk may free fewer tokens than the gist grows by; the sizes are such that there is
        # always one more to fold
        while self.room < 1:
            self.compact()

    def _plan(self):
        characters = characters_of(self.compactor.tokenizer)
        chunk, following = self.live.oldest(self.settings.chunk_length, self.settings.last_k, characters)
        whole = self._before_span(chunk, following) if self._requests else 0
        if whole:
            chunk, following = self.live.oldest(whole, self.settings.last_k, characters)
        return CompactionPlan(len(self.history), self.position, chunk, following, list(self.gists))

    def _before_span(self, chunk, following):
        """Tokens of the chunk before a span that its end would cut; 0 if there is none, or nothing before it."""
        ids = [token.token_id for token in [*chunk, *following]]

        def characters(stop):
            return len(self.compactor.decode(ids[:stop]))

        end = characters(len(chunk))
        at = SpanReader(self.compactor.decode(ids), self._requests).cut(0, end)
        return bisect_right(range(1, len(chunk)), at, key=characters) if at < end else 0

    def _fold(self, plan):
        """The gists after a planned compaction, what is known of all that is folded then, and its record."""
        context_lengths, chunk_ids, decode = [], plan.chunk_ids, self.compactor.decode
        kept = [*self._folded.kept]

        def write(gists, chunk):
            context_ids = join([*gists, chunk], self._separator_ids) + plan.last_k_ids
            context_lengths.append(len(context_ids))
            gist = self.compactor.compress_batch([context_ids], self.settings.budget, last_k=[plan.last_k_ids])[0]
            gist_ids = self.compactor.prompts.without_special(gist.token_ids)
            spans = self._spans_of(kept, gists, chunk)
            gist_ids = with_spans(gist_ids, spans, self.settings.gist_length, self.compactor.tokenizer)
            kept.extend(carried(spans, decode(gist_ids)))  # for a gist of this one
            return gist_ids

        def fits(gists):
            return len(self._join(gists)) <= self.settings.gist_budget

        started = time.perf_counter()
        gists = RECURSIONS[self.settings.recursion](plan.gists, chunk_ids, write, fits)
        seconds = time.perf_counter() - started
        gist_ids, stays = self._join(gists), self.live.without(plan.spans)
        gist = decode(gist_ids)
        spans = self._spans_of(self._folded.kept, [self.gist_ids], chunk_ids)
        found = kept_and_not(spans, gist)
        last_ids = [*self._folded.last_ids, *chunk_ids]
        first = len(self._folded.last_ids)
        facts = find_facts(self.compactor.tokenizer, [*last_ids, *plan.last_k_ids], first, len(last_ids))
        known = self.history[-1].facts_kept if self.history else []
        report = kept_and_dropped(different([*known, *facts]), f"{gist}{SEPARATOR}{decode(stays.token_ids)}")
        if self.settings.certify:
            report |= expected_cost(self.compactor, self.gist_ids, self.live.token_ids, self._prompt(gists, stays))
        folded = Folded(last_ids[-_FACT_BEGINS:], carried(spans, gist))
        return (
            gists,
            folded,
            Compaction(
                index=plan.index,
                position=plan.position,
                spans=plan.spans,
                tokens_in=len(chunk_ids),
                read_tokens=sum(context_lengths),
                gists_written=len(context_lengths),
                previous_gist=self.history[-1].gist if self.history else "",
                gist=gist,
                gist_ids=gist_ids,
                gist_tokens=len(gist_ids),
                seconds=seconds,
                kept=found["kept"],
                not_kept=found["not_kept"],
                **report,
            ),
        )

    def _spans_of(self, kept, gists, chunk_ids):
        """What a gist of gists and a chunk is to have: what was asked for and is in the chunk, or was kept in a gist."""
        if not self._requests:
            return []
        decode, last_ids = self.compactor.decode, self._folded.last_ids
        before = decode(self._separator_ids).join(map(decode, gists))
        # At the head of a chunk a name, or what a pattern looks back from, is none without what was folded before it; and a
        # span may have begun there, of which not enough was live to see where it ends
        reader, head = SpanReader(decode([*last_ids, *chunk_ids]), self._requests), len(decode(last_ids))
        begun = [span for span in reader.take(head) if span.start is not None and span.start + len(span.text) > head]
        new = [span.moved(len(before)) for span in (*begun, *reader.take())] if chunk_ids else []
        kept = find_spans(before, kept)
        # In the order of the requests, of which each is so asked for what is kept first
        found = {}
        for span in sorted((*kept, *new), key=lambda span: span.request):
            if span.start is not None:
                found.setdefault(span.key, span)
        return list(found.values())

    def _measure_due(self):
        for index, cost in self._meter.due():
            self.history[index] = dataclasses.replace(self.history[index], cost=cost)
            self._unsaved.append(self.history[index])

    def _join(self, gists):
        return join([gist.token_ids for gist in gists], self._separator_ids)

    def _prompt(self, gists, live):
        return self.compactor.prompts.generator(self._join(gists), live.token_ids)

    # ---- On disk ----

    def save(self, path: str | os.PathLike):
        """
        Saves the session: at once or not at all, whatever happens meanwhile. The file's compactions are in a log beside
        it, `path.….jsonl`; keep the two together.
        """
        if self._saved is None or self._saved.path != Path(path):
            self._saved, self._unsaved = SavedSession(Path(path)), list(self.history)
        if self._tokens is not None:
            sync(self._tokens.path)
        self._saved.write(self.state, self._unsaved)
        self._unsaved = []

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        compactor: GistWriter,
        autosave: str | os.PathLike | None = None,
        before_compaction: Callable | None = None,
        after_compaction: Callable | None = None,
    ) -> "Session":
        """
        The session as it was last saved. Its file of `keep_history` is cut back to what it held then.

        Args:
            path (`str` or `os.PathLike`):
                Where it was saved.
            compactor ([`GistCompactor`]):
                Its pair; in which dtype and on which device does not matter.
            autosave, before_compaction, after_compaction:
                As for a new session; `autosave` may be `path`.

        Raises:
            ValueError: if the file holds no session, is damaged, or is of another pair.
        """
        state, history = read_session(path, compactor)
        if autosave is not None and Path(autosave) != Path(path):
            check_unused(autosave)
        return cls._from_state(state, history, compactor, autosave, before_compaction, after_compaction)

    @property
    def state(self) -> dict:
        """All that the session goes on from, but its `history`; no longer for a longer stream."""
        return {
            "fingerprint": self.compactor.fingerprint,
            "pair": pair_name(self.compactor.pair),
            "settings": dataclasses.asdict(self.settings),
            "position": self.position,
            "gists": [dataclasses.asdict(gist) for gist in self.gists],
            "live": self.live.tokens,
            "pending": self._meter.state,
            "folded": self._folded.state,
            "undo": None if self._undo is None else self._undo.state,
            "keep_history": None if self._tokens is None else str(self._tokens.path),
        }

    @classmethod
    def _from_state(cls, state, history, compactor, autosave, before_compaction, after_compaction):
        session = cls.__new__(cls)  # past `__init__`: its sizes are resolved, and its files are there
        session._start(
            compactor,
            SessionSettings(**state["settings"]),
            state["keep_history"],
            autosave,
            before_compaction,
            after_compaction,
            position=state["position"],
            gists=stored_gists(state["gists"]),
            live=[LiveToken(*token) for token in state["live"]],
            history=history,
            pending=state["pending"],
            folded=Folded.from_state(state["folded"]),
            undo=None if state["undo"] is None else Undo.from_state(state["undo"]),
        )
        if session._tokens is not None:
            session._tokens.resume(session.position)
        return session

    def _save_if_asked(self):
        if self.autosave is not None:
            self.save(self.autosave)
