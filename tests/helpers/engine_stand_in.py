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

"""What [`~models.vllm.SharedEngine`] asks of vLLM, by a rule in the place of a model: elsewhere than in tests/engine there is
no vLLM."""

import math
import queue
import sys
from types import ModuleType, SimpleNamespace

from tiny import make_tokenizer
from tiny_pairs import make_pair
from transformers import GenerationConfig, LlamaConfig

from trl_gist import GistCompactor
from trl_gist.models.vllm import EngineModel, SharedEngine


def put_in_place_of_vllm(monkeypatch):
    """What is imported of the package."""
    vllm, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.SamplingParams = lambda **settings: SimpleNamespace(**settings)
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY=0, DELTA=1)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)


def log_prob(ids, token):
    """Of a token after others."""
    return -math.log(2 + (sum(ids) + token) % 7)


class StandInEngine:
    """
    An engine in a process of its own, which writes the token of least id that it may, over and over.

    Args:
        max_model_len (`int`):
            Positions; as in vLLM one is for what is written.
    """

    def __init__(self, max_model_len: int = 512):
        self.max_model_len = max_model_len
        self.requests, self.dead, self.hangs = {}, False, False
        self.engine_core = SimpleNamespace(ensure_alive=self._ensure_alive, shutdown=lambda: None)

    def _ensure_alive(self):
        if self.dead:
            raise RuntimeError("The process is gone.")

    def add_request(self, name, prompt, params, lora_request):
        if len(prompt["prompt_token_ids"]) >= self.max_model_len:
            raise ValueError("The prompt leaves no position for a token.")
        self._ensure_alive()
        self.requests[name] = prompt["prompt_token_ids"], params

    def step(self):
        if self.hangs:
            queue.SimpleQueue().get()
        written = [_written(name, *request) for name, request in self.requests.items()]
        self.requests.clear()
        return written

    def abort_request(self, names):
        for name in names:
            self.requests.pop(name, None)

    def reset_prefix_cache(self):
        self._ensure_alive()
        return True


def _written(name, prompt, params):
    (token,), ids, found = getattr(params, "allowed_token_ids", [10]), [*prompt], []
    while len(found) < params.max_tokens:
        found.append({token: SimpleNamespace(logprob=log_prob(ids, token))})
        ids.append(token)
    of_prompt = None
    if hasattr(params, "prompt_logprobs"):
        of_prompt = [None] + [
            {ids[at]: SimpleNamespace(logprob=log_prob(ids[:at], ids[at]))} for at in range(1, len(prompt))
        ]
    said = SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=found, finish_reason="length")
    return SimpleNamespace(
        request_id=name, finished=True, outputs=[said], prompt_token_ids=prompt, prompt_logprobs=of_prompt
    )


def make_engine_pair(engine: StandInEngine) -> GistCompactor:
    """A pair whose two halves are in it."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(max_position_embeddings=engine.max_model_len, vocab_size=len(tokenizer))
    generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    shared = SharedEngine(engine)
    halves = (EngineModel(shared, role, config, generation_config) for role in ("summarizer", "generator"))
    return GistCompactor(*halves, tokenizer, make_pair())
