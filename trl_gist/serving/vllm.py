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


"""A server's text from vLLM's engine, which has a scheduler of its own."""

import random
from contextlib import nullcontext

from ..common.backends import BACKENDS
from ..inference.pair import LoadedPair
from .worker import Stopped, current_job


class EngineBackend:
    """
    The [`~serving.batcher.Backend`] of a pair in vLLM. A call's streamer is called in the thread that calls; a request that
    is given up is aborted in the engine.

    Args:
        pair ([`LoadedPair`]):
            Loaded with `backend="vllm"`.
    """

    at_once = BACKENDS["vllm"]
    waiting = None  # the engine takes in all that is asked for, and keeps its own queue to itself

    def __init__(self, pair: LoadedPair):
        self.pair = pair
        self.engine = pair.generator.engine
        self.lock = nullcontext()  # nothing else runs the models
        self.engine.check = _check

    @property
    def failure(self) -> Exception | None:
        return self.engine.failure

    def rows_together(self, tokens: int) -> int:
        """See [`~serving.batcher.Backend`]."""
        return self.at_once

    def generate(self, role: str, prompts: list[list[int]], rng: random.Random | None = None, **settings) -> tuple:
        """See [`~serving.batcher.Backend`]."""
        return self.pair.generate(role, prompts, rng=rng or random.Random(), **settings)

    def close(self):
        self.engine.check = lambda: None


def _check():
    job = current_job()
    if job is not None and job.stopped.is_set():
        raise Stopped
