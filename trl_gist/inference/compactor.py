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

"""The front of a pair at inference: gists, continuations, sessions and chats. Each is a module of its own."""

import collections
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from ..common.arguments import several, truth, whole_number
from ..common.tokens import characters_of, literal_ids
from ..prompts import before_last_k
from .certify import expected_kls, full_context_reader
from .chat import CompactedChat, compact_messages
from .gist import Continuation, Gist
from .keep import Request, find_spans, keep_in_gists, parse_keep
from .pair import LoadedPair
from .search import search_gist
from .session.session import Session
from .windows import Window, windows_of


@dataclass
class GistRequest:
    """
    What is asked of the gists of one call; see [`GistCompactor.compress`].

    Attributes:
        budget (`int` or `None`):
            The most tokens of a gist; `None` is what the pair was trained on.
        do_sample (`bool`):
            Whether the summarizer samples.
        batch_size (`int`):
            Contexts in one forward.
        keep (`list`):
            What [`~inference.keep.parse_keep`] makes of what is given.
        certify, search (`bool`):
            Whether the expected cost is measured, and whether pieces of gists are exchanged.
    """

    budget: int | None
    do_sample: bool
    batch_size: int
    keep: list[Request]
    certify: bool
    search: bool

    def __post_init__(self):
        self.budget = whole_number("budget", self.budget, optional=True)
        self.batch_size = whole_number("batch_size", self.batch_size)
        self.keep = parse_keep(self.keep)
        for name in ("do_sample", "certify", "search"):
            setattr(self, name, truth(name, getattr(self, name)))


class GistCompactor(LoadedPair):
    """
    A trained pair at inference: the summarizer compresses contexts, the generator continues from the gists.

    Example:

    ```python
    from trl_gist import GistCompactor

    compactor = GistCompactor.from_pretrained("smollm2-gist")
    gist = compactor.compress(text)
    print(gist.text, gist.total_rate)
    print(compactor.continue_text(text, max_new_tokens=64).text)
    ```

    Args:
        summarizer, generator ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`] or [`~models.vllm.EngineModel`]):
            The two models, in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Their tokenizer.
        pair ([`~pair.PairConfig`]):
            The window they were trained on.
    """

    shows_progress = True

    def compress(
        self,
        context: str | list[int],
        budget: int | None = None,
        do_sample: bool = False,
        last_k: str | list[int] | None = None,
        keep=None,
        certify: bool = False,
        search: bool = False,
    ) -> Gist:
        """
        Writes the gist of one context.

        Args:
            context (`str` or `list[int]`):
                Text or token ids, at most the `context_length` the pair was trained on.
            budget (`int`, *optional*):
                The most tokens the gist may have; it never has more. Defaults to what the pair was trained on. A pair
                trained with `gist_length_range` is told, and writes what is worth most within it; any other is cut
                off there.
            do_sample (`bool`, *optional*, defaults to `False`):
                Whether to sample at temperature 1, as in training, instead of taking the likeliest tokens. What is no
                longer than `budget` is its own gist, verbatim: the summarizer is not asked.
            last_k (`str` or `list[int]`, *optional*):
                What the generator will read beside the gist, as a question about the context. The summarizer sees it if
                its prompt has `{last_k}`. Defaults to the last `last_k` tokens of the context, which are then in no gist;
                of a context that has no more than `budget` tokens before them, to nothing: its gist is of all of it.
            keep (`str`, pattern or a list of them, *optional*):
                Spans of the context that the gist must have, within the same budget: `"numbers"`, `"names"`,
                `"dates"`, `"regex:..."`, a compiled pattern, or a literal string; see [`trl_gist.inference.keep`].
            certify (`bool`, *optional*, defaults to `False`):
                Whether to measure what the gist is expected to cost against the whole context. It takes longer than
                the gist itself; see [`trl_gist.inference.certify`].
            search (`bool`, *optional*, defaults to `False`):
                Whether to exchange pieces of the gist for others of the context, where that is expected to cost less;
                `keep` comes after it. It takes some 300 readings by the generator; see [`trl_gist.inference.search`].

        Raises:
            ValueError: if the context is empty, not text, longer than the pair's contexts, or does not fit the
                summarizer's positions; if `keep` holds what cannot be looked for.
        """
        request = GistRequest(budget, do_sample, 1, keep, certify, search)
        return self._compress([context], None if last_k is None else [last_k], request)[0]

    def compress_batch(
        self,
        contexts: list[str | list[int]],
        budget: int | None = None,
        do_sample: bool = False,
        batch_size: int = 8,
        last_k: list[str | list[int]] | None = None,
        keep=None,
        certify: bool = False,
        search: bool = False,
    ) -> list[Gist]:
        """
        As [`~GistCompactor.compress`], for many contexts, `batch_size` of them in one forward, and as many `last_k`.
        """
        request = GistRequest(budget, do_sample, batch_size, keep, certify, search)
        contexts = several("contexts", contexts, "texts or of lists of token ids", "`compress` takes one")
        if last_k is not None:
            last_k = several("last_k", last_k, "texts or of lists of token ids", "give one for each context")
            if len(last_k) != len(contexts):
                raise ValueError(f"`last_k` has {len(last_k)} texts for {len(contexts)} contexts: give one for each.")
        return self._compress(contexts, last_k, request)

    def compress_windows(
        self,
        text: str | list[int],
        budget: int | None = None,
        do_sample: bool = False,
        batch_size: int = 8,
        last_k: str | list[int] | None = None,
        keep=None,
        certify: bool = False,
        search: bool = False,
    ) -> list[Gist]:
        """
        The gists of a text of any length, which together stand for all of it: one for each `context_length` tokens, of
        which the last `last_k` are those that the next one begins with; see [`~inference.windows.windows_of`]. A `last_k`
        as in [`~GistCompactor.compress`] is the same for all of them, and the windows are then of `context_length` tokens
        each, side by side.
        """
        request = GistRequest(budget, do_sample, batch_size, keep, certify, search)
        windows = self._windows(text, last_k, request)
        first = list(itertools.islice(windows, batch_size + 1))
        return self._gists(itertools.chain(first, windows), request, None if len(first) > batch_size else len(first))

    def iter_windows(
        self,
        text: str | list[int],
        budget: int | None = None,
        do_sample: bool = False,
        batch_size: int = 8,
        last_k: str | list[int] | None = None,
        keep=None,
        certify: bool = False,
        search: bool = False,
    ) -> Iterator[Gist]:
        """
        As [`~GistCompactor.compress_windows`], each batch of gists as soon as it is written. The text is tokenised as it is
        needed.
        """
        request = GistRequest(budget, do_sample, batch_size, keep, certify, search)
        return self._iter_gists(self._windows(text, last_k, request), request)

    def continue_text(
        self,
        text: str | list[int],
        max_new_tokens: int = 64,
        do_sample: bool = False,
        last_k: str | list[int] | None = None,
        **generation_kwargs,
    ) -> Continuation:
        """
        Continues a text of any length: its last `context_length` tokens are compressed greedily, and the generator
        goes on from the gist and the last `last_k` tokens; or from the gist and what is given in their place, as a
        question about the text.

        Args:
            text (`str` or `list[int]`):
                Text or token ids.
            max_new_tokens (`int`, *optional*, defaults to `64`):
                Longest continuation.
            do_sample (`bool`, *optional*, defaults to `False`):
                Whether to sample, at temperature 1 unless `generation_kwargs` say otherwise.
            last_k (`str` or `list[int]`, *optional*):
                As in [`~GistCompactor.compress`].
            generation_kwargs:
                For [`~transformers.GenerationConfig`], as `temperature` or `top_p`.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens)  # before a gist is written
        do_sample = truth("do_sample", do_sample)
        characters = characters_of(self.tokenizer)
        pieces = self.token_pieces(text, "The text")
        # Tokens before the context tell where its first character begins
        end = collections.deque((token for ids, _ in pieces for token in ids), maxlen=2 * self.pair.context_length)
        context_ids = characters.last(self.token_ids(list(end), "The text"), self.pair.context_length)
        last_k = characters.last(context_ids, self.pair.last_k) if last_k is None else last_k
        gist = self.compress(context_ids, last_k=last_k)
        return self.continue_from(gist, last_k, max_new_tokens, do_sample, **generation_kwargs)

    def continue_from(
        self,
        gist: Gist | str,
        last_text: str | list[int],
        max_new_tokens: int = 64,
        do_sample: bool = False,
        **generation_kwargs,
    ) -> Continuation:
        """
        As [`~GistCompactor.continue_text`], from a gist that is there already, or from any text in its place.

        The generator reads all of `last_text`; it was trained on `last_k` tokens of it, or on what stood in their place.
        """
        do_sample = truth("do_sample", do_sample)
        gist_ids = gist.token_ids if isinstance(gist, Gist) else self.token_ids(gist, "The gist", may_be_empty=True)
        last_ids = self.token_ids(last_text, "The last text", may_be_empty=True)
        prompt = self.prompts.generator(gist_ids, last_ids)
        (token_ids,), _ = self.generate(
            "generator", [prompt], max_new_tokens=max_new_tokens, do_sample=do_sample, **generation_kwargs
        )
        return Continuation(self.decode(token_ids), token_ids, gist)

    def session(self, **settings) -> Session:
        """
        A stream of any length that the pair goes on reading and writing in one window; see
        [`~inference.session.session.Session`].
        """
        return Session(self, **settings)

    def load_session(self, path: str | os.PathLike, **settings) -> Session:
        """
        The session that [`~inference.session.session.Session.save`] wrote; see
        [`~inference.session.session.Session.load`].
        """
        return Session.load(path, self, **settings)

    def compact_messages(
        self,
        messages: list[dict[str, str]],
        max_tokens: int,
        keep=None,
        tools: list | None = None,
        certify: bool = False,
    ) -> CompactedChat:
        """
        A chat within `max_tokens` tokens of the tokenizer's chat template: standing instructions, the tools and the
        newest turns as they are, the oldest turns as one gist, a user's message; see [`trl_gist.inference.chat`]. Of a
        last turn that is too long by itself, the oldest steps are part of the gist. `messages` are left as they are.

        Args:
            messages (`list[dict]`):
                The chat: `role`, `content` and what else the template reads. A call's arguments may be a mapping or JSON.
            max_tokens (`int`):
                The most tokens of the whole chat, tools and the header of the next answer included.
            keep (`str`, pattern or a list of them, *optional*):
                As in [`~GistCompactor.compress`], what the gist must have of each window that is compacted.
            tools (`list`, *optional*):
                As for `apply_chat_template`.
            certify (`bool`, *optional*, defaults to `False`):
                As in [`~GistCompactor.compress`]; a chat that is longer than the models' positions cannot be certified.

        Raises:
            ValueError: if a message has an unknown role or no text, the tokenizer has no chat template, or it refuses
                the messages or would leave one out, or what is not compacted and a gist do not fit `max_tokens`, or
                the chat is too long for `certify`.
        """
        max_tokens, certify = whole_number("max_tokens", max_tokens), truth("certify", certify)
        messages = several("messages", messages, "messages", "put it in a list, as {'role': 'user', 'content': ...}")
        if tools is not None:
            tools = several("tools", tools, "tools", "put it in a list")
            for tool in tools:
                if not (isinstance(tool, dict) or callable(tool)):
                    raise ValueError(f"`tools` holds {tool!r}, which is neither a JSON schema nor a function.")
        return compact_messages(self, messages, max_tokens, keep, tools, certify)

    def _compress(self, contexts, last_k, request):
        contexts_ids = []
        for index, context in enumerate(contexts):
            what = "The context" if len(contexts) == 1 else f"Context {index}"
            ids = self.token_ids(context, what)
            if len(ids) > self.pair.context_length:
                raise ValueError(
                    f"{what} has {len(ids)} tokens, but the pair was trained on contexts of "
                    f"{self.pair.context_length}. Use `compress_windows`, which cuts a text into such contexts."
                )
            contexts_ids.append(ids)
        if last_k is None:
            least, last = self.pair.last_k + self._budget(request), characters_of(self.tokenizer).last
            last_k_ids = [last(ids, self.pair.last_k) if len(ids) > least else [] for ids in contexts_ids]
        else:
            last_k_ids = [self.token_ids(text, "`last_k`", may_be_empty=True) for text in last_k]
        windows = [
            Window(ids, last_ids, find_spans(text if isinstance(text, str) else self.decode(ids), request.keep))
            for text, ids, last_ids in zip(contexts, contexts_ids, last_k_ids, strict=True)
        ]
        return self._gists(windows, request, len(windows))

    def _windows(self, text, last_k, request):
        last_k_ids = None if last_k is None else self.token_ids(last_k, "`last_k`", may_be_empty=True)
        windows = windows_of(self, text, last_k_ids, request.keep)
        return itertools.chain([next(windows)], windows)  # an empty text is refused at once

    def _gists(self, windows, request, total):
        hidden = not self.shows_progress or (total is not None and total <= request.batch_size and not request.search)
        gists = self._iter_gists(windows, request)
        return list(tqdm(gists, total=total, desc="Compressing", unit=" contexts", disable=hidden))

    def _iter_gists(self, windows, request):
        if request.certify or request.search:
            full_context_reader(self)  # before any gist is written
        size = 1 if request.search else request.batch_size  # each that is searched for is wanted when it is there
        windows = iter(windows)
        while batch := list(itertools.islice(windows, size)):
            yield from self._write_gists(batch, request)

    def _budget(self, request):
        return self.pair.max_gist_length if request.budget is None else request.budget

    def _write_gists(self, windows, request):
        shown, budget = self.pair.tail_length if request.budget is None else request.budget, self._budget(request)
        whole = characters_of(self.tokenizer).whole
        prompts = [self.prompts.summarizer(*window[:2], shown) for window in windows]
        gists = [self.prompts.own_gist(before_last_k(*window[:2]), budget) for window in windows]
        asked = [row for row, ids in enumerate(gists) if ids is None]
        written, steps, found = [], [], [{}] * len(gists)
        if asked:
            written, steps = self.write([prompts[row] for row in asked], budget, request.do_sample)
        for row, ids in zip(asked, written, strict=True):
            gists[row] = whole(ids)
            if request.search:
                gists[row] = whole(search_gist(self, *windows[row][:2], gists[row]))
        if request.keep:
            gists, found = keep_in_gists(gists, [window.spans for window in windows], budget, self.tokenizer)
        # What was only cut off is a part of what was written
        log_probs = {
            row: sum(log_probs[: len(gists[row])])
            for row, ids, log_probs in zip(asked, written, steps, strict=True)
            if ids[: len(gists[row])] == gists[row]
        }
        given = [row for row, gist in enumerate(gists) if gist and row not in log_probs]
        if given:
            scored = self.log_probs([prompts[row] for row in given], [gists[row] for row in given])
            log_probs |= zip(given, scored, strict=True)
        results = [
            Gist(
                text=self.decode(gist),
                token_ids=gist,
                log_prob=log_probs.get(row, 0.0),
                context_tokens=len(ids),
                gist_rate=len(gist) / len(ids),
                total_rate=len(self.prompts.generator(gist, last_ids)) / len(ids),
                exact_text=literal_ids(self.tokenizer, self.decode(gist)) == self.prompts.without_special(gist),
                **found[row],
            )
            for row, ((ids, last_ids, _), gist) in enumerate(zip(windows, gists, strict=True))
        ]
        return self._certified(windows, results) if request.certify else results

    def _certified(self, windows, gists):
        contexts_ids, last_k_ids = ([window[index] for window in windows] for index in (0, 1))
        measured = expected_kls(self, contexts_ids, last_k_ids, [gist.token_ids for gist in gists])
        return [replace(gist, **costs) for gist, costs in zip(gists, measured, strict=True)]
