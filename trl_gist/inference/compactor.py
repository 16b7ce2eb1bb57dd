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

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from ..common.arguments import several, whole_number
from ..common.tokens import characters_of, literal_ids
from ..scoring.gist_log_probs import given_log_probs, written_log_probs
from .certify import expected_kls
from .chat import CompactedChat, compact_messages
from .gist import Continuation, Gist
from .keep import Request, keep_in_gists, parse_keep
from .pair import LoadedPair
from .search import search_gist
from .session.session import Session


@dataclass(frozen=True)
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
            Of [`~inference.keep.parse_keep`].
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
        object.__setattr__(self, "budget", whole_number("budget", self.budget, optional=True))
        object.__setattr__(self, "batch_size", whole_number("batch_size", self.batch_size))


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
        summarizer, generator ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
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
                Whether to sample at temperature 1, as in training, instead of taking the likeliest tokens.
            last_k (`str` or `list[int]`, *optional*):
                What the generator will read beside the gist, as a question about the context. Defaults to the last
                `last_k` tokens of the context. The summarizer sees it if its prompt has `{last_k}`.
            keep (`str`, pattern or a list of them, *optional*):
                Spans of the context that the gist must have, within the same budget: `"numbers"`, `"names"`,
                `"dates"`, `"regex:..."`, a compiled pattern, or a literal string; see [`trl_gist.inference.keep`].
            certify (`bool`, *optional*, defaults to `False`):
                Whether to measure what the gist is expected to cost against the whole context. It takes some five
                times the time of the gist itself; see [`trl_gist.inference.certify`].
            search (`bool`, *optional*, defaults to `False`):
                Whether to exchange pieces of the gist for others of the context, where that is expected to cost less;
                `keep` comes after it. It takes some 300 readings by the generator; see [`trl_gist.inference.search`].

        Raises:
            ValueError: if the context is empty, not text, longer than the pair's contexts, or does not fit the
                summarizer's positions; if `keep` holds what cannot be looked for.
        """
        request = GistRequest(budget, do_sample, 1, parse_keep(keep), certify, search)
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
        request = GistRequest(budget, do_sample, batch_size, parse_keep(keep), certify, search)
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
        One gist for each `context_length` tokens of a text of any length; the last context may be shorter. A `last_k`,
        as in [`~GistCompactor.compress`], is the same for all of them.
        """
        request = GistRequest(budget, do_sample, batch_size, parse_keep(keep), certify, search)
        windows = self.windows(text)
        return self._compress(windows, None if last_k is None else [last_k] * len(windows), request)

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
        """As [`~GistCompactor.compress_windows`], each batch of gists as soon as it is written."""
        request = GistRequest(budget, do_sample, batch_size, parse_keep(keep), certify, search)
        windows = self.windows(text)
        last_k_ids = self._last_k_ids(windows, None if last_k is None else [last_k] * len(windows))
        return self._iter_gists(windows, last_k_ids, request)

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
        characters = characters_of(self.tokenizer)
        context_ids = characters.last(self.token_ids(text, "The text"), self.pair.context_length)
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
        self, messages: list[dict[str, str]], max_tokens: int, keep=None, tools: list | None = None
    ) -> CompactedChat:
        """
        A chat within `max_tokens` tokens of the tokenizer's chat template: standing instructions, the tools and the
        newest turns as they are, the oldest turns as one gist, a user's message; see [`trl_gist.inference.chat`]. Of a
        last turn that is too long by itself, the oldest steps are part of the gist.

        Args:
            messages (`list[dict]`):
                The chat: `role`, `content` and what else the template reads. A call's arguments may be a mapping or JSON.
            max_tokens (`int`):
                The most tokens of the whole chat, tools and the header of the next answer included.
            keep (`str`, pattern or a list of them, *optional*):
                As in [`~GistCompactor.compress`], what the gist must have of each window that is compacted.
            tools (`list`, *optional*):
                As for `apply_chat_template`.

        Raises:
            ValueError: if a message has an unknown role or no text, the tokenizer has no chat template, or it refuses
                the messages or would leave one out, or what is not compacted and a gist do not fit `max_tokens`.
        """
        max_tokens = whole_number("max_tokens", max_tokens)
        messages = several("messages", messages, "messages", "put it in a list, as {'role': 'user', 'content': ...}")
        if tools is not None:
            tools = several("tools", tools, "tools", "put it in a list")
        return compact_messages(self, messages, max_tokens, keep, tools)

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
        gists = self._iter_gists(contexts_ids, self._last_k_ids(contexts_ids, last_k), request)
        hidden = not self.shows_progress or (len(contexts) <= request.batch_size and not request.search)
        return list(tqdm(gists, total=len(contexts), desc="Compressing", unit=" contexts", disable=hidden))

    def windows(self, text: str | list[int], what: str = "The text") -> list[list[int]]:
        """The contexts of a text of any length, at most `context_length` tokens each, cut between two characters."""
        ids, characters, cuts = self.token_ids(text, what), characters_of(self.tokenizer), [0]
        while cuts[-1] < len(ids):
            end = min(cuts[-1] + self.pair.context_length, len(ids))
            whole = characters.cut(ids, end) if end < len(ids) else end
            cuts.append(whole if whole > cuts[-1] else end)  # a character may be longer than a context
        return [ids[start:stop] for start, stop in itertools.pairwise(cuts)]

    def _last_k_ids(self, contexts_ids, last_k):
        if last_k is None:
            return [characters_of(self.tokenizer).last(ids, self.pair.last_k) for ids in contexts_ids]
        return [self.token_ids(text, "`last_k`", may_be_empty=True) for text in last_k]

    def _iter_gists(self, contexts_ids, last_k_ids, request):
        size = 1 if request.search else request.batch_size  # each that is searched for is wanted when it is there
        batches = [slice(start, start + size) for start in range(0, len(contexts_ids), size)]
        return (gist for rows in batches for gist in self._write_gists(contexts_ids[rows], last_k_ids[rows], request))

    def _write_gists(self, contexts_ids, last_k_ids, request):
        shown = self.pair.tail_length if request.budget is None else request.budget
        prompts = [self.prompts.summarizer(*ids, shown) for ids in zip(contexts_ids, last_k_ids, strict=True)]
        budget = self.pair.max_gist_length if request.budget is None else request.budget
        written, logits = self.generate(
            "summarizer", prompts, max_new_tokens=budget, do_sample=request.do_sample, output_logits=True
        )
        found, whole = [{}] * len(written), characters_of(self.tokenizer).whole
        gists = [whole(gist) for gist in written]
        if request.search:
            searched = zip(contexts_ids, last_k_ids, gists, strict=True)
            gists = [whole(search_gist(self, *ids)) for ids in searched]
        if request.keep:
            texts = [self.decode(ids) for ids in contexts_ids]
            gists, found = keep_in_gists(gists, texts, request.keep, budget, self.tokenizer)
        # What was only cut off is a part of what was written
        parts = [gist if ids[: len(gist)] == gist else ids for gist, ids in zip(gists, written, strict=True)]
        log_probs = written_log_probs(logits, parts)
        changed = [row for row, gist in enumerate(gists) if gist != parts[row]]
        if changed:
            given = [prompts[row] for row in changed], [gists[row] for row in changed]
            for row, log_prob in zip(changed, given_log_probs(self.summarizer, *given), strict=True):
                log_probs[row] = log_prob
        results = [
            Gist(
                text=self.decode(gist),
                token_ids=gist,
                log_prob=log_prob,
                context_tokens=len(ids),
                gist_rate=len(gist) / len(ids),
                total_rate=len(self.prompts.generator(gist, last_ids)) / len(ids),
                exact_text=literal_ids(self.tokenizer, self.decode(gist)) == self.prompts.without_special(gist),
                **kept,
            )
            for ids, last_ids, gist, log_prob, kept in zip(
                contexts_ids, last_k_ids, gists, log_probs, found, strict=True
            )
        ]
        if not request.certify:
            return results
        measured = expected_kls(self, contexts_ids, last_k_ids, gists)
        return [replace(gist, **costs) for gist, costs in zip(results, measured, strict=True)]
