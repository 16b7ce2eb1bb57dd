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
Who runs the models, and in which order: what several requests have written goes through one forward together.

A call that comes while the models are busy waits. When they are free, the oldest goes, and with it all that wait for the
same model with the same settings. What runs the models itself, as certifying does, has its turn among the calls, alone.

Requests that were answered together ask for more at nearly the same time. The first of them would go alone, and the others
after it. So as many as went together are waited for, a small part of the time that they took; a lone client is not.
"""

import random
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..common.arguments import whole_number
from ..inference.pair import LoadedPair
from ..models.generation import are_broken, end_token_ids, in_one_batch, not_numbers
from ..models.positions import written_together
from .worker import Stopped, current_job


GATHERING = 0.05  # of the time of the forwards before


class Backend(Protocol):
    """
    What a server has its text written by, from several threads.

    Attributes:
        lock (`AbstractContextManager`):
            For what runs the pair's models itself.
        waiting (`int` or `None`):
            Requests that wait for the models now; `None` where that is not known.
        at_once (`int`):
            Prompts of one call that it makes use of.
        failure (`Exception` or `None`):
            After which it writes nothing any more.
    """

    lock: AbstractContextManager
    waiting: int | None
    at_once: int
    failure: Exception | None

    def generate(self, role: str, prompts: list[list[int]], **settings) -> tuple:
        """
        As [`LoadedPair.generate`], and with `rng` (`random.Random`), of which a call that samples takes its seed. Raises
        [`~serving.worker.Stopped`] once the request is given up for which the thread works.
        """

    def rows_together(self, tokens: int) -> int:
        """Most prompts of one forward, where each has so many tokens with what is written after it; at least 1."""

    def close(self): ...


class Batcher:
    """
    The [`Backend`] of a pair in this process. One thread writes, for all calls; a call's streamer is called in it.

    A row ends by itself: at its own number of new tokens, at an end-of-sequence token, when its streamer raises, or when
    its request is given up; logits that are not numbers are an error of their row's call. A call without logits has its
    result then, while others go on. Calls that sample share a forward as well, unless they have an `rng`: random numbers
    of requests with a seed do not mix with others.

    Args:
        pair ([`LoadedPair`]):
            Its models get a hook on their LM heads, until [`~Batcher.close`].
        max_rows (`int`):
            Most prompts in one forward. A call of more goes alone.
        max_tokens (`int`):
            Most tokens of these, with padding and what is to be written; likewise. `at_once` is how many of the pair's
            longest contexts have no more.
    """

    failure = None

    def __init__(self, pair: LoadedPair, max_rows: int, max_tokens: int):
        self.pair, self.max_rows, self.max_tokens = pair, max_rows, max_tokens
        sizes = pair.pair
        longest = sizes.context_length + pair.prompts.summarizer_overhead(sizes.max_gist_length)
        self.at_once = self.rows_together(longest + sizes.max_gist_length)
        self.lock = _Turns(self)
        self.entries: deque[_Call | _Turn] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.together, self.gather_until = 1, 0.0
        heads = {model.get_output_embeddings() for model in (pair.summarizer, pair.generator)}
        self.hooks = [head.register_forward_hook(_look) for head in heads]
        self.thread = threading.Thread(target=self._work, name="trl-gist-models", daemon=True)
        self.thread.start()

    @property
    def waiting(self) -> int:
        return len(self.entries)

    def rows_together(self, tokens: int) -> int:
        """See [`Backend`]."""
        return max(1, min(self.max_rows, self.max_tokens // tokens))

    def generate(self, role: str, prompts: list[list[int]], **settings) -> tuple:
        """See [`Backend`]."""
        call = _Call(role, prompts, **settings)
        apart, parts = self._written_together([call]), []
        for rows in apart:  # one after the other: a call is one that waits
            each = call if len(apart) == 1 else _Call(role, [prompts[row] for row in rows], **settings)
            if self.lock.is_mine:  # to wait for itself would be for ever
                self._run([each])
            else:
                self.put(each)
            parts.append(each.result.result())
        return in_one_batch(apart, parts)

    def _written_together(self, calls):
        """As [`~models.positions.written_together`], of all prompts of calls of one kind."""
        lengths = [len(prompt) for call in calls for prompt in call.prompts]
        model = getattr(self.pair, calls[0].role)
        return written_together(model.config, lengths, max(call.max_new_tokens for call in calls))

    def put(self, entry: "_Call | _Turn"):
        """Behind those that wait. Raises `RuntimeError` after [`~Batcher.close`]."""
        with self.changed:
            if self.closed:
                raise RuntimeError("The server has been closed. Start it again.")
            self.entries.append(entry)
            self.changed.notify()

    def close(self):
        """Ends the thread, after all that waits."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()
        for hook in self.hooks:
            hook.remove()

    def _work(self):
        while entries := self._next():
            started = time.monotonic()
            if isinstance(entries[0], _Turn):
                entries[0].take()
            else:
                self._run(entries)
            ended = time.monotonic()
            self.together, self.gather_until = len(entries), ended + GATHERING * (ended - started)

    def _next(self):
        """The oldest entry and the calls that go with it; none at the end."""
        with self.changed:
            while True:
                for entry in [entry for entry in self.entries if entry.is_given_up]:
                    self.entries.remove(entry)
                    entry.fail(Stopped())
                left = self.gather_until - time.monotonic()
                if self.closed or len(self.entries) >= self.together or (self.entries and left <= 0):
                    break
                self.changed.wait(left if self.entries else None)
            taken = []
            for entry in list(self.entries):
                if not taken or self._goes_with(taken, entry):
                    self.entries.remove(entry)
                    taken.append(entry)
            return taken

    def _goes_with(self, calls, other):
        if not all(isinstance(each, _Call) for each in (calls[0], other)) or calls[0].kind != other.kind:
            return False
        rows = sum(len(call.prompts) for call in (*calls, other))
        length = max(call.length for call in (*calls, other))
        new_tokens = max(call.max_new_tokens for call in (*calls, other))
        if len(self._written_together([*calls, other])) > 1:
            return False
        return rows <= self.max_rows and rows * (length + new_tokens) <= self.max_tokens

    def _run(self, calls):
        first = calls[0]
        batch = _Batch(calls, end_token_ids(getattr(self.pair, first.role), self.pair.tokenizer))
        again, before = [], _BATCH.set(batch)
        try:
            with self.pair.lock:
                if first.settings.get("do_sample"):
                    torch.seed() if first.rng is None else torch.manual_seed(first.rng.getrandbits(63))
                _, logits_TNV = self.pair.generate(
                    first.role,
                    [prompt for call in calls for prompt in call.prompts],
                    max_new_tokens=max(call.max_new_tokens for call in calls),
                    stopping_criteria=StoppingCriteriaList([batch]),
                    **first.settings,
                )
            batch.finish(logits_TNV)
        except Exception as error:
            # It may be one call's, as a prompt that does not fit, or of all of them together, as memory
            if len(calls) > 1 and not batch.has_begun:
                again = calls
            else:
                for call in calls:
                    call.fail(error)
        finally:
            _BATCH.reset(before)
        for call in again:  # not above, where the error holds what the forward has left in memory
            self._run([call])


_BATCH: ContextVar["_Batch | None"] = ContextVar("batch", default=None)  # that this thread writes


# No method: certifying copies modules, and with a method it would copy the server
def _look(head, inputs, logits_NTV):
    if batch := _BATCH.get():
        return batch.look(logits_NTV)
    if job := current_job():
        if job.stopped.is_set():
            raise Stopped
        if are_broken(logits_NTV).any():
            raise not_numbers()
    return None


class _Entry:
    """What waits for the models, for the request of the thread that made it; at the end it has a result or an error."""

    def __init__(self):
        self.job = current_job()
        self.result = Future()

    @property
    def is_given_up(self) -> bool:
        return self.job is not None and self.job.stopped.is_set()

    def fail(self, error: Exception):
        """Unless it has ended."""
        if not self.result.done():
            self.result.set_exception(error)


class _Call(_Entry):
    """
    Prompts to be gone on with.

    Attributes:
        kind (`tuple`):
            Calls of one kind may go together.
        length (`int`):
            Of the longest prompt.
        completions (`list[list[int]]`):
            What has been written.
        steps (`int`):
            Of the forwards, until all its rows have ended.
    """

    def __init__(
        self,
        role: str,
        prompts: list[list[int]],
        max_new_tokens: int,
        streamer: BaseStreamer | None = None,
        rng: random.Random | None = None,
        **settings,
    ):
        super().__init__()
        self.role, self.prompts, self.settings = role, prompts, settings
        self.streamer, self.rng = streamer, rng
        # Here what is no number is an error of its own call; in the thread that writes it would be everybody's end
        self.max_new_tokens, self.length = whole_number("max_new_tokens", max_new_tokens), max(map(len, prompts))
        self.kind = (role, settings, None if rng is None else self)
        self.completions: list[list[int]] = [[] for _ in prompts]
        self.open = set(range(len(prompts)))  # rows that have not ended
        self.steps = 0

    def add(self, tokens: list[int], end_ids: list[int]):
        """A step's tokens of all rows, those that have ended too."""
        if self.result.done() or not self.open:
            return
        if self.is_given_up:
            self.fail(Stopped())
            return
        self.steps += 1
        for row in list(self.open):
            ends = tokens[row] in end_ids
            if not ends:
                self.completions[row].append(tokens[row])
            if ends or self.steps == self.max_new_tokens:
                self.open.remove(row)
        try:
            self._stream(tokens[0])
        except Exception as error:
            self.fail(error)
        if not self.open and not self.settings.get("output_logits"):
            self.finish(None)

    def finish(self, logits_TNV: tuple[torch.Tensor, ...] | None):
        if not self.result.done():
            self.result.set_result((self.completions, logits_TNV))

    def _stream(self, token):
        if self.streamer is None:
            return
        if self.steps == 1:
            self.streamer.put(torch.tensor(self.prompts))
        self.streamer.put(torch.tensor([token]))
        if not self.open:
            self.streamer.end()


class _Batch(StoppingCriteria):
    """Calls that are written together, and which of their rows have ended."""

    def __init__(self, calls: list[_Call], end_ids: list[int]):
        self.calls, self.end_ids = calls, end_ids
        starts, rows = [], 0
        for call in calls:
            starts.append(rows)
            rows += len(call.prompts)
        self.spans = [slice(start, start + len(call.prompts)) for start, call in zip(starts, calls, strict=True)]
        self.has_begun = False

    def look(self, logits_NTV: torch.Tensor) -> torch.Tensor | None:
        """Where a row's are not numbers, its call fails; then others in their place, which can be sampled from."""
        broken_N = are_broken(logits_NTV[:, -1])
        if not broken_N.any():
            return None
        for call, span in zip(self.calls, self.spans, strict=True):
            if broken_N[span].any():
                call.fail(not_numbers())
        return logits_NTV.masked_fill(broken_N[:, None, None], 0)

    def __call__(self, input_ids, scores, **kwargs):
        self.has_begun = True
        tokens, ended = input_ids[:, -1].tolist(), []
        for call, span in zip(self.calls, self.spans, strict=True):
            call.add(tokens[span], self.end_ids)
            ended += [call.result.done() or row not in call.open for row in range(len(call.prompts))]
        return torch.tensor(ended, device=input_ids.device)

    def finish(self, logits_TNV: tuple[torch.Tensor, ...] | None):
        """With each call's logits, of as many steps as it had alone."""
        for call, span in zip(self.calls, self.spans, strict=True):
            call.finish(logits_TNV and tuple(logits_NV[span] for logits_NV in logits_TNV[: call.steps]))


class _Turn(_Entry):
    """The models for one thread that runs them itself; the result says that it has them."""

    def __init__(self):
        super().__init__()
        self.over = threading.Event()

    def take(self):
        self.result.set_result(None)
        self.over.wait()


class _Turns(AbstractContextManager):
    """The pair's lock, for which its users wait among the calls of a [`Batcher`]; reentrant as well."""

    def __init__(self, batcher: Batcher):
        self.batcher = batcher
        self.owner: int | None = None
        self.depth = 0
        self.turn: _Turn | None = None

    @property
    def is_mine(self) -> bool:
        """Also in the thread that writes, where streamers are called."""
        return self.owner == threading.get_ident() or threading.current_thread() is self.batcher.thread

    def __enter__(self):
        if not self.is_mine:
            turn = _Turn()
            self.batcher.put(turn)
            turn.result.result()
            self.turn, self.owner = turn, threading.get_ident()
        self.depth += 1
        self.batcher.pair.lock.__enter__()

    def __exit__(self, *error):
        self.batcher.pair.lock.__exit__(*error)
        self.depth -= 1
        if not self.depth and self.owner is not None:
            self.owner = None
            self.turn.over.set()
