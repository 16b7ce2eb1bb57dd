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
Arguments that take a number or a list, each by a route of the public API, and what they are given: what is none, and
every kind of what is one. For the tests, and for the page that `research/what_users_bring` prints.
"""

import math

import numpy as np
import torch
from tiny import PARAGRAPH

from trl_gist.cli import main
from trl_gist.data.documents import load_documents
from trl_gist.evaluation import summarize
from trl_gist.evaluation.compressors import StopWordDrop
from trl_gist.evaluation.compressors.registry import extractive_compressors
from trl_gist.evaluation.question_answering import answer_questions, exact_match, f1
from trl_gist.evaluation.run_report.report import write_report
from trl_gist.scoring import GistScorer, TargetScorer
from trl_gist.scripts.arguments import DistanceArguments, EvaluateArguments
from trl_gist.scripts.train import load_reward_funcs
from trl_gist.serving.config import ServingConfig


NO_COUNTS = (2.5, 2.0, "8", "", b"8", True, False, np.True_, np.float64(3), math.nan, -1, 0, [8], (8,), {}, 8j)
NO_COUNTS += (torch.tensor(True), np.array(True), torch.tensor(2.0), torch.tensor([2]), np.array([2]))
COUNTS = (2, np.int64(2), np.int8(2), np.uint16(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.int8))
ONE_TEXT = (
    "hello",
    b"hello",
    {"a": "hello"},
    5,
    None,
    2.5,
    [5, 6],
    (5, 6),
    [np.int64(5)],
    torch.tensor(3),
    np.array(3),
)


def session_of(compactor):
    session = compactor.session(window=40)
    session.append(PARAGRAPH[:20])
    return session


CHAT = [{"role": "user", "content": "Who?"}]
# Each route of the public API that takes a number of tokens, contexts or places; 0 is a place
ROUTES = {
    "compress budget": lambda pair, n: pair.compress("a pump", budget=n),
    "compress_batch budget": lambda pair, n: pair.compress_batch(["a pump"], budget=n),
    "compress_windows budget": lambda pair, n: pair.compress_windows("a pump", budget=n),
    "iter_windows budget": lambda pair, n: list(pair.iter_windows("a pump", budget=n)),
    "compress_batch batch_size": lambda pair, n: pair.compress_batch(["a", "b"], batch_size=n),
    "compress_windows batch_size": lambda pair, n: pair.compress_windows("a pump", batch_size=n),
    "iter_windows batch_size": lambda pair, n: list(pair.iter_windows("a pump", batch_size=n)),
    "continue_text max_new_tokens": lambda pair, n: pair.continue_text("a pump", max_new_tokens=n),
    "continue_from max_new_tokens": lambda pair, n: pair.continue_from("a", "pump", max_new_tokens=n),
    "generate max_new_tokens": lambda pair, n: pair.generate("generator", [[5]], max_new_tokens=n),
    "session last_k": lambda pair, n: vars(pair.session(last_k=n).settings),
    "session budget": lambda pair, n: vars(pair.session(budget=n).settings),
    "Session.generate max_new_tokens": lambda pair, n: session_of(pair).generate(n),
}
SIZES = {  # which 2 would not fit
    "session window": lambda pair, n: pair.session(window=n),
    "session gist_budget": lambda pair, n: pair.session(gist_budget=n),
    "compact_messages max_tokens": lambda pair, n: pair.compact_messages(CHAT, n),
    "ServingConfig max_new_tokens": lambda pair, n: ServingConfig(max_new_tokens=n).resolve(pair),
    "ServingConfig max_requests": lambda pair, n: ServingConfig(max_requests=n).resolve(pair),
    "ServingConfig max_batch_size": lambda pair, n: ServingConfig(max_batch_size=n).resolve(pair),
    "ServingConfig max_batch_tokens": lambda pair, n: ServingConfig(max_batch_tokens=n).resolve(pair),
    "ServingConfig max_body_bytes": lambda pair, n: ServingConfig(max_body_bytes=n).resolve(pair),
    "ServingConfig max_context_tokens": lambda pair, n: ServingConfig(max_context_tokens=n).resolve(pair),
    "ServingConfig chat_window": lambda pair, n: ServingConfig(chat_window=n).resolve(pair),
    "ServingConfig window": lambda pair, n: ServingConfig(window=n).resolve(pair),
    "GistScorer batch_size": lambda pair, n: GistScorer(
        TargetScorer(pair.generator), TargetScorer(pair.generator), pair.prompts, batch_size=n
    ),
}
PLACES = {
    "protect start": lambda session, n: session.protect(n, 3),
    "protect stop": lambda session, n: session.protect(0, n),
    "unprotect start": lambda session, n: session.unprotect(n, 3),
    "stream start": lambda session, n: session.stream(n),
    "stream stop": lambda session, n: session.stream(0, n),
}


# Each that is true or false; of a text Python would take "false" for true
SWITCHES = {
    **{
        f"compress {name}": lambda pair, v, name=name: pair.compress("a pump", **{name: v})
        for name in ("do_sample", "certify", "search")
    },
    "compress_batch do_sample": lambda pair, v: pair.compress_batch(["a pump"], do_sample=v),
    "compress_windows certify": lambda pair, v: pair.compress_windows("a pump", certify=v),
    "continue_text do_sample": lambda pair, v: pair.continue_text("a pump", do_sample=v),
    "continue_from do_sample": lambda pair, v: pair.continue_from("a", "pump", do_sample=v),
    "generate do_sample": lambda pair, v: pair.generate("generator", [[5]], max_new_tokens=1, do_sample=v),
    "compact_messages certify": lambda pair, v: pair.compact_messages(CHAT, 100, certify=v),
    "session measure": lambda pair, v: pair.session(measure=v),
    "session certify": lambda pair, v: pair.session(certify=v),
    "Session.append protected": lambda pair, v: pair.session().append("a", protected=v),
    "Session.generate do_sample": lambda pair, v: session_of(pair).generate(1, do_sample=v),
    "Session.recall live": lambda pair, v: session_of(pair).recall("a", live=v),
    "from_pretrained trust_remote_code": lambda pair, v: type(pair).from_pretrained("missing", trust_remote_code=v),
    "load_documents streaming": lambda pair, v: load_documents("missing.jsonl", streaming=v),
    "write_report overwrite": lambda pair, v: write_report("missing", overwrite=v),
    **{
        f"DistanceArguments {name}": lambda pair, v, name=name: _held_out(DistanceArguments, windows=2, **{name: v})
        for name in ("streaming", "overwrite", "trust_remote_code", "join_documents")
    },
}
NO_SWITCHES = ("false", "True", "", 0, 1, None, 2.5, [], np.int64(1), math.nan)


def _held_out(kind, **values):
    return kind(**{"pair": "pair", "dataset": ["documents.jsonl"], **values})


# Each that takes a list of texts or the like, of which Python would take one text for its letters
LISTS = {
    "compress_batch contexts": lambda pair, v: pair.compress_batch(v),
    "compress_batch last_k": lambda pair, v: pair.compress_batch(["hello", "pumps"], last_k=v),
    "compact_messages messages": lambda pair, v: pair.compact_messages(v, 100),
    "compact_messages tools": lambda pair, v: pair.compact_messages(CHAT, 100, tools=v),
    "exact_match references": lambda pair, v: exact_match("hello", v),
    "f1 references": lambda pair, v: f1("hello", v),
    "answer_questions references": lambda pair, v: answer_questions(pair, pair.generator, [], v),
    "summarize controls": lambda pair, v: summarize([], v),
    "load_documents remove_columns": lambda pair, v: load_documents("missing.jsonl", remove_columns=v),
    "extractive_compressors names": lambda pair, v: extractive_compressors(
        pair.tokenizer, pair.generator, [[5]], names=v
    ),
    "StopWordDrop stop_words": lambda pair, v: StopWordDrop(pair.tokenizer, v),
    "load_reward_funcs reward_funcs": lambda pair, v: load_reward_funcs(v),
    "main argv": lambda pair, v: main(v),
    **{
        f"EvaluateArguments {name}": lambda pair, v, name=name: _held_out(EvaluateArguments, **{name: v})
        for name in ("dataset", "readers", "compressors", "gists", "own_generators")
    },
    "DistanceArguments pairs": lambda pair, v: _held_out(DistanceArguments, windows=2, pairs=v),
}
# Where `None` stands for the default
MAY_BE_NONE = (
    *("compress_batch last_k", "compact_messages tools", "answer_questions references"),
    *("load_documents remove_columns", "load_reward_funcs reward_funcs", "main argv", "DistanceArguments pairs"),
    *(f"EvaluateArguments {name}" for name in ("readers", "compressors", "gists", "own_generators")),
)


def no_lists(route: str) -> list:
    """What a route of `LISTS` is to refuse."""
    return [value for value in ONE_TEXT if value is not None or route not in MAY_BE_NONE]


def no_places() -> list:
    """What a route of `PLACES` is to refuse: any count may be one, and 0."""
    return [value for value in NO_COUNTS if type(value) is not int]


def refusal(route: str, call, pair, value) -> str | None:
    """What an error says that names the route's argument; `None` where the value is taken, or the error another."""
    try:
        call(pair, value)
    except ValueError as error:
        return str(error) if str(error).startswith(f"`{route.split()[-1]}` ") else None
    return None
