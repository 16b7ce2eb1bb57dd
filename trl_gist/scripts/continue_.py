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

"""What `trl-gist continue` runs."""

import dataclasses
import json
import sys

from transformers import TextStreamer, set_seed

from ..inference.compactor import GistCompactor


def continue_from_gist(
    compactor: GistCompactor,
    text: str,
    last_k: str,
    max_new_tokens: int,
    as_json: bool = False,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int | None = None,
):
    """Prints what follows a gist of the text's end and `last_k`; with `as_json`, one object."""
    sampling = _sampling(do_sample, temperature, seed)
    continuation = compactor.continue_text(text, max_new_tokens, do_sample, last_k, **sampling)
    print(json.dumps(dataclasses.asdict(continuation), ensure_ascii=False) if as_json else continuation.text)


def continue_session(
    compactor: GistCompactor,
    text: str,
    max_new_tokens: int,
    as_json: bool = False,
    window: int | None = None,
    recursion: str = "rolling",
    verbose: bool = False,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int | None = None,
):
    """Prints what follows a text, token by token; with `as_json`, one object at the end."""
    sampling = _sampling(do_sample, temperature, seed)
    session = compactor.session(window=window, recursion=recursion, after_compaction=_report if verbose else None)
    session.append(text)
    streamer = None if as_json else TextStreamer(compactor.tokenizer, skip_special_tokens=True)
    continuation = session.generate(max_new_tokens, do_sample, streamer, **sampling)
    if as_json:
        compactions = [dataclasses.asdict(compaction) for compaction in session.history]
        print(json.dumps({**dataclasses.asdict(continuation), "compactions": compactions}, ensure_ascii=False))


def _sampling(do_sample, temperature, seed):
    if seed is not None:
        set_seed(seed)
    return {"temperature": temperature} if do_sample else {}


def _report(session, compaction):
    print(
        f"compaction {compaction.index}: {compaction.tokens_in} tokens up to {compaction.spans[-1][1]} -> "
        f"{compaction.gist_tokens}: {compaction.gist!r}",
        file=sys.stderr,
    )
