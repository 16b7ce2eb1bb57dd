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
import itertools
from collections import OrderedDict

from ..inference.compactor import GistCompactor, GistRequest
from ..inference.gist import Gist
from ..inference.keep import parse_keep
from ..inference.windows import windows_of


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

    def compress_texts(self, texts: list[str], budget: int | None, keep, certify: bool) -> list[list[Gist]]:
        """As `compress_windows` of each, with windows of several texts in one batch."""
        request = GistRequest(budget, False, 8, parse_keep(keep), certify, False)
        windows_D = [list(windows_of(self, text, keep=request.keep)) for text in texts]
        gists = self._iter_gists(itertools.chain.from_iterable(windows_D), request)
        return [list(itertools.islice(gists, len(windows))) for windows in windows_D]

    def _write_gists(self, windows, request):
        if request.do_sample or request.certify or request.search:
            return super()._write_gists(windows, request)
        keys = [_key(*window, request.budget) for window in windows]
        new = [row for row, key in enumerate(keys) if key not in self.gists]
        known = {key: self.gists[key] for key in keys if key in self.gists}
        if new:
            written = super()._write_gists([windows[row] for row in new], request)
            known |= {keys[row]: gist for row, gist in zip(new, written, strict=True)}
        for key in keys:
            self.gists[key] = known[key]
            self.gists.move_to_end(key)
        while len(self.gists) > REMEMBERED:
            self.gists.popitem(last=False)
        return [known[key] for key in keys]


def _key(*parts):
    return hashlib.sha256(repr(parts).encode()).digest()
