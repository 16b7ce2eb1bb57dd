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

"""A compactor for servers, which remembers its gists."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import replace

from ..inference.compactor import GistCompactor, GistRequest
from ..inference.gist import Gist
from ..inference.keep import parse_keep
from ..inference.windows import Window, windows_of
from .batcher import Backend


REMEMBERED = 4096  # gists: some tens of megabytes at most


class ServedCompactor(GistCompactor):
    """
    A compactor that remembers its gists. A client of a stateless API sends its whole history with each turn, and what
    was compacted for the turn before is compacted once more: the same contexts from the start on, and S is greedy.
    Several threads may use it at once; a gist that one of them is having written, the others wait for.

    Args:
        compactor ([`GistCompactor`]):
            Whose models it shares.
        backend ([`~serving.batcher.Backend`]):
            Writes, and has the lock.
    """

    shows_progress = False  # a bar is no line of a log

    def __init__(self, compactor: GistCompactor, backend: Backend):
        super().__init__(compactor.summarizer, compactor.generator, compactor.tokenizer, compactor.pair)
        self.backend = backend
        self.lock = backend.lock
        self.gists: OrderedDict[bytes, Future[Gist]] = OrderedDict()
        self.gists_lock = threading.Lock()

    def generate(self, role: str, prompts: list[list[int]], **settings) -> tuple:
        return self.backend.generate(role, prompts, **settings)

    def rows_together(self, tokens: int) -> int:
        return self.backend.rows_together(tokens)

    def iter_texts(
        self, texts: list[str], budget: int | None, keep, certify: bool, batch_size: int
    ) -> Iterator[tuple[int, int, Window, Gist]]:
        """
        As `iter_windows` of each, with windows of several texts in one batch: the text's number, the window's within it,
        the window and its gist.
        """
        request = GistRequest(budget, False, batch_size, parse_keep(keep), certify, False)
        places = [
            (index, number, window)
            for index, text in enumerate(texts)
            for number, window in enumerate(windows_of(self, text, keep=request.keep))
        ]
        gists = self._iter_gists((window for _, _, window in places), request)
        for place, gist in zip(places, gists, strict=True):
            yield *place, gist

    def _iter_gists(self, windows, request):
        # Chats and sessions have as many in one call as suits them
        at_once = min(request.batch_size, self.backend.at_once)
        return super()._iter_gists(windows, replace(request, batch_size=at_once))

    def _write_gists(self, windows, request):
        if request.do_sample or request.search:
            return super()._write_gists(windows, request)
        keys = [_key(*window, request.budget, request.certify) for window in windows]
        asked, known = dict(zip(keys, windows, strict=True)), {}
        while missing := [key for key in asked if key not in known]:
            new, futures = self._futures(missing)
            if new:
                try:
                    gists = self._write_new([asked[key] for key in new], request)
                except BaseException:
                    self._forget({key: futures[key] for key in new})
                    raise
                for key, gist in zip(new, gists, strict=True):
                    futures[key].set_result(gist)
            for key, future in futures.items():
                with suppress(CancelledError):  # what another request failed to write is written for this one
                    known[key] = future.result()
        return [known[key] for key in keys]

    def _futures(self, keys):
        """Those of the keys that are to be written by the caller, and where each gist is or will be."""
        with self.gists_lock:
            new = [key for key in keys if key not in self.gists]
            self.gists |= {key: Future() for key in new}
            for key in keys:
                self.gists.move_to_end(key)
            futures = {key: self.gists[key] for key in keys}
            while len(self.gists) > REMEMBERED:
                self.gists.popitem(last=False)
        return new, futures

    def _forget(self, futures):
        with self.gists_lock:
            for key, future in futures.items():
                if self.gists.get(key) is future:
                    del self.gists[key]
                future.cancel()

    def _write_new(self, windows, request):
        if not request.certify:
            return super()._write_gists(windows, request)
        # A gist may have been written before it is asked what it costs
        return self._certified(windows, self._write_gists(windows, replace(request, certify=False)))


def _key(*parts):
    return hashlib.sha256(repr(parts).encode()).digest()
