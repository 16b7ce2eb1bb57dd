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
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from ..inference.compactor import GistCompactor, GistRequest
from ..inference.gist import Gist
from ..inference.keep import parse_keep
from ..inference.windows import Window, windows_of


REMEMBERED = 4096  # gists: some tens of megabytes at most


class ServedCompactor(GistCompactor):
    """
    A compactor that remembers its gists. A client of a stateless API sends its whole history with each turn, and what
    was compacted for the turn before is compacted once more: the same contexts from the start on, and S is greedy.

    Args:
        compactor ([`GistCompactor`]):
            Whose models and lock it shares.
    """

    shows_progress = False  # a bar is no line of a log

    def __init__(self, compactor: GistCompactor):
        super().__init__(compactor.summarizer, compactor.generator, compactor.tokenizer, compactor.pair)
        self.lock = compactor.lock
        self.gists: OrderedDict[bytes, Gist] = OrderedDict()

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

    def _write_gists(self, windows, request):
        if request.do_sample or request.search:
            return super()._write_gists(windows, request)
        keys = [_key(*window, request.budget, request.certify) for window in windows]
        new = [row for row, key in enumerate(keys) if key not in self.gists]
        known = {key: self.gists[key] for key in keys if key in self.gists}
        if new:
            written = self._write_new([windows[row] for row in new], request)
            known |= {keys[row]: gist for row, gist in zip(new, written, strict=True)}
        for key in keys:
            self.gists[key] = known[key]
            self.gists.move_to_end(key)
        while len(self.gists) > REMEMBERED:
            self.gists.popitem(last=False)
        return [known[key] for key in keys]

    def _write_new(self, windows, request):
        if not request.certify:
            return super()._write_gists(windows, request)
        # A gist may have been written before it is asked what it costs
        return self._certified(windows, self._write_gists(windows, replace(request, certify=False)))


def _key(*parts):
    return hashlib.sha256(repr(parts).encode()).digest()
