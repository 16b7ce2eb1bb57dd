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

"""From a request to its answer: what is compacted, what is generated, what is counted. Nothing of HTTP."""

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from ..common.geometry import SEPARATOR, join
from ..common.tokens import chat_ids
from ..evaluation.gists.patterns import survival_pieces
from ..inference.chat import ChatTooLong, as_text
from ..inference.contrast import Side, contrast
from ..inference.session.session import Session
from ..models.generation import TokenTee, end_token_ids
from ..models.vllm import NoModels
from ..prompts import before_last_k
from .compactor import ServedCompactor
from .config import ServingConfig
from .errors import ApiError, ContextTooLong
from .schemas import (
    ChatRequest,
    CompareRequest,
    CompletionRequest,
    CompressRequest,
    Generation,
    RecallRequest,
    as_list,
)
from .text_stream import StopReached, TextStream


Emit = Callable[[str | dict], None]
# Of a [`~inference.session.state.Compaction`] and of a [`~inference.chat.CompactedChat`]
REPORTED = (
    *("facts_kept", "facts_dropped", "kept", "not_kept"),
    *("expected_kl", "expected_kl_se", "expected_kl_reader"),
)


@dataclass(frozen=True)
class Answer:
    """
    What is to be said of an answer beside its text.

    Attributes:
        finish_reason (`str`):
            `"length"` if it was cut off, `"stop"` if it ended.
        prompt_tokens, completion_tokens (`int`):
            Of the prompt as it was sent, and of what was generated up to the end-of-sequence token.
        gist (`dict` or `None`):
            What was compacted, if anything was: `text`, of the gist that stood for it at the end; `tokens_in` and
            `tokens_out`, of what it stood for and of itself; `compactions`; `prompt_tokens`, of all that the generator
            read before its first token; and, if it is asked for, `report`: of each compaction those of `REPORTED`.
    """

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    gist: dict | None


@dataclass(frozen=True)
class Compressed:
    """
    Gists, or answers from gists or from memory.

    Attributes:
        data (`list[dict]`):
            The fields of each [`Gist`]; `index` of its text, `window` within that, `stands_for` so many tokens of it and,
            if asked for, `highlights` of these. None that was emitted. Or the two answers, or what is recalled.
        prompt_tokens, completion_tokens (`int`):
            Of all texts or prompts, and of all gists or answers.
        rest (`dict`):
            What else is to be said, as `gist`, like an [`Answer`]'s, of what was compacted for want of room.
    """

    data: list[dict]
    prompt_tokens: int
    completion_tokens: int
    rest: dict = dataclasses.field(default_factory=dict)

    @property
    def gist(self) -> dict | None:
        return self.rest.get("gist")


class Engine:
    """
    Answers requests with a pair, in whatever thread it is asked.

    Args:
        compactor ([`~serving.compactor.ServedCompactor`]):
            The pair.
        config ([`ServingConfig`]):
            Resolved for this pair.
    """

    def __init__(self, compactor: ServedCompactor, config: ServingConfig):
        self.compactor = compactor
        self.config = config

    def complete(self, request: CompletionRequest, emit: Emit) -> Answer:
        """A text is read and gone on with in a [`~inference.session.session.Session`], so that both may have any length."""
        self._check_certify(request)
        ids = self._only(request.prompt, "prompt")
        new_tokens = self._new_tokens(request.new_tokens, 16)  # as OpenAI's default
        session = self._session(request, ids)
        read = len(session.token_ids)
        text = TextStream(self.compactor.tokenizer, emit, request.stops)
        finish_reason = self._generate(
            text, request, new_tokens, lambda **sampling: session.generate(new_tokens, streamer=text, **sampling)
        )
        return Answer(finish_reason, len(ids), len(text.token_ids), _folded(request, session, read))

    def chat(self, request: ChatRequest, emit: Emit) -> Answer:
        """The oldest turns of a chat that has outgrown its window become a gist; then G answers in the chat template."""
        self._check_certify(request)
        compactor, tokenizer = self.compactor, self.compactor.tokenizer
        new_tokens = self._new_tokens(request.new_tokens, self.config.max_new_tokens)
        messages = [message.as_dict() for message in request.messages]
        self._check_context(self._count(as_text(messages)), "messages")
        try:
            chat = compactor.compact_messages(
                messages, self.config.chat_window, request.keep, certify=bool(request.certify)
            )
        except ChatTooLong as error:
            raise ContextTooLong(
                "The system prompt and other instructions, the last user's message and the newest step after it, which "
                f"are not compacted, leave no room in the {self.config.chat_window} tokens that the generator reads of a "
                "chat. Shorten them.",
                "messages",
            ) from error
        except ValueError as error:
            raise ApiError(400, str(error), None, "messages") from error
        ids = chat_ids(tokenizer, chat.messages, **compactor.pair.chat_template_kwargs)
        text = TextStream(tokenizer, emit, request.stops)
        tee = TokenTee(text.add, None, end_token_ids(compactor.generator, tokenizer))
        finish_reason = self._generate(
            text,
            request,
            new_tokens,
            lambda **sampling: compactor.generate(
                "generator", [ids], max_new_tokens=new_tokens, streamer=tee, **sampling
            ),
        )
        gist = None
        if chat.compacted:
            gist = {
                "text": chat.gist,
                "tokens_in": self._count(as_text(chat.compacted)),
                "tokens_out": self._count(chat.gist),
                "compactions": 1,
                "prompt_tokens": len(ids),
                **_report(request, [chat]),
            }
        return Answer(finish_reason, chat.tokens_before, len(text.token_ids), gist)

    def compress(self, request: CompressRequest, emit: Emit) -> Compressed:
        """
        The contexts of all texts, in batches; a text of more than one context has as many gists. In a stream each is
        emitted when it is written.
        """
        self._check_certify(request)
        texts = as_list(request.input)
        tokens = [
            len(self._token_ids(text, f"input.{index}" if len(texts) > 1 else "input"))
            for index, text in enumerate(texts)
        ]
        self._check_context(sum(tokens), "input")
        data, written = [], 0
        add, at_once = (emit, 1) if request.stream else (data.append, self.compactor.backend.at_once)
        try:
            for index, number, window, gist in self.compactor.iter_texts(
                texts, request.budget, request.keep, bool(request.certify), at_once
            ):
                stretch = before_last_k(window.context_ids, window.last_k_ids)
                row = {"object": "gist", "index": index, "window": number, "stands_for": len(stretch)}
                row |= dataclasses.asdict(gist)
                if request.highlights:
                    row["highlights"] = survival_pieces(self.compactor.decode(stretch), gist.text)
                add(row)
                written += len(gist.token_ids)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        return Compressed(data, sum(tokens), written)

    def compare(self, request: CompareRequest, emit: Emit) -> Compressed:
        """Greedy answers from gists and from the text that they stand for, each token under both readers."""
        self._check_models("/v1/compare")
        compactor, ids = self.compactor, self._only(request.input, "input")
        gists = [self._token_ids(gist, "gists", may_be_empty=True) for gist in as_list(request.gists)]
        gist_ids = join(gists, list(compactor.prompts.tokenize(SEPARATOR)))
        self._check_context(len(gist_ids), "gists")
        cue_ids = None if request.cue is None else self._only(request.cue, "cue")
        new_tokens = self._new_tokens(request.max_tokens, 48)
        try:
            sides = contrast(compactor, gist_ids, ids, cue_ids, new_tokens)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        data = [
            {
                "object": "answer",
                "from": name,
                "reader": side.reader,
                "text": compactor.decode(side.token_ids),
                "prompt_tokens": side.prompt_tokens,
                "completion_tokens": len(side.token_ids),
                "finish_reason": "length" if len(side.token_ids) == new_tokens else "stop",
                "pieces": self._pieces(side),
                "error": side.error,
            }
            for name, side in zip(("gists", "input"), sides, strict=True)
        ]
        return Compressed(data, *(sum(row[f"{which}_tokens"] for row in data) for which in ("prompt", "completion")))

    def recall(self, request: RecallRequest, emit: Emit) -> Compressed:
        """What a session that read a text says after a cue; if it is asked to, as before its last compaction."""
        self._check_models("/v1/recall")
        ids, cue_ids = self._only(request.input, "input"), self._only(request.cue, "cue")
        session = self._session(request, ids)
        live, undone = request.live is not False, None
        if request.undo:
            if not session.history:
                raise ApiError(
                    400, "`undo` takes back a compaction, and this text had none: leave it out.", None, "undo"
                )
            compaction = session.undo()
            undone = {"text": compaction.gist, "tokens_in": compaction.tokens_in, **_reported(compaction)}
        try:
            recalled = session.recall(
                cue_ids,
                self._new_tokens(request.max_tokens, 12),
                3 if request.alternatives is None else request.alternatives,
                live,
            )
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        read = len(session.recall_prompt(cue_ids, live))
        said = sum(len(answer.token_ids) for answer in (recalled, *recalled.alternatives))
        data = [{"object": "recall", **dataclasses.asdict(recalled)}]
        rest = {"gist": _folded(request, session, read), "undone": undone}
        return Compressed(data, len(ids) + len(cue_ids), said, rest)

    def _check_certify(self, request):
        if request.certify:
            self._check_models("certify", 400, "certify")

    def _check_models(self, what, status=501, param=None):
        try:
            self.compactor.check_models(f"`{what}`")
        except NoModels as error:
            raise ApiError(status, str(error), "not_supported", param) from error

    def _session(self, request: CompletionRequest | RecallRequest, ids: list[int]) -> Session:
        """That has read a text."""
        try:
            session = self.compactor.session(
                window=self.config.window,
                gist_budget=self.config.gist_budget,
                keep=request.keep,
                certify=bool(request.certify),
            )
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        session.append(ids)
        return session

    def _pieces(self, side: Side) -> list[dict]:
        """The answer in pieces of whole characters, each with the log-probs of its tokens."""
        pieces, texts = [], []
        stream, own, other = TextStream(self.compactor.tokenizer, texts.append, []), 0.0, 0.0
        for token, *log_probs in zip(side.token_ids, side.log_probs, side.other_log_probs, strict=False):
            own, other = own + log_probs[0], other + log_probs[1]
            stream.add(token)
            if texts:
                pieces.append({"text": "".join(texts), "log_prob": own, "other_log_prob": other})
                texts.clear()
                own = other = 0.0
        stream.finish()
        if texts:
            pieces.append({"text": "".join(texts), "log_prob": own, "other_log_prob": other})
        return pieces

    def _generate(self, text, request: Generation, new_tokens: int, generate) -> str:
        """Runs `generate`; returns the reason for which it ended."""
        sampling = request.sampling
        if sampling["do_sample"] and request.seed is not None:
            sampling["rng"] = random.Random(request.seed)
        try:
            generate(**sampling)
            text.finish()
        except StopReached:
            return "stop"
        return "stop" if len(text.token_ids) < new_tokens else "length"

    def _new_tokens(self, asked, default):
        return min(default, self.config.max_new_tokens) if asked is None else asked

    def _only(self, text, param):
        """The tokens of a text that is alone."""
        (text,) = as_list(text)
        ids = self._token_ids(text, param)
        self._check_context(len(ids), param)
        return ids

    def _token_ids(self, text, param, may_be_empty=False):
        try:
            return self.compactor.token_ids(text, f"`{param}`", may_be_empty)
        except ValueError as error:
            raise ApiError(400, str(error), None, param) from error

    def _check_context(self, tokens, param):
        most = self.config.max_context_tokens
        if tokens > most:
            raise ContextTooLong(f"`{param}` has {tokens} tokens; this server takes {most}.", param)

    def _count(self, text):
        return len(self.compactor.token_ids(text, "The text", may_be_empty=True))


def _folded(request, session, read):
    """What a session has compacted, if anything."""
    if not session.history:
        return None
    return {
        "text": session.gist,
        "tokens_in": sum(row.tokens_in for row in session.history),
        "tokens_out": len(session.gist_ids),
        "compactions": len(session.history),
        "prompt_tokens": read,
        **_report(request, session.history),
    }


def _report(request, compactions):
    if not request.report and not request.certify:
        return {}
    return {"report": [_reported(each) for each in compactions]}


def _reported(compaction):
    return {name: getattr(compaction, name) for name in REPORTED}
