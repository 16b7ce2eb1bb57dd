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
A pair's two adapters in one engine of vLLM (0.31), over one base, in the place of its two models.

An [`EngineModel`] stands where a model does. It knows its configuration and writes, with the log-prob of each token; it
gives no logits, no hidden states and no weights. The engine schedules by itself: all prompts that several threads have
written at one time share its forwards, and prompts that begin alike share their keys and values.
"""

import atexit
import copy
import itertools
import logging
import math
import os
import queue
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch.nn.functional import linear
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..common.extras import extra
from ..pair import GENERATOR_DIR
from ..prompts import gist_from_completion
from .adapters import check_leaves_base
from .generation import checked_request, end_token_ids, not_numbers
from .loading import base_error, check_half
from .machine import dtype_to_load, is_slow
from .positions import turned_alike


logger = logging.getLogger(__name__)

# transformers' names of what both can, by vLLM's
_SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
}
# Of an adapter's configuration: what vLLM reads, or what says nothing of how the adapter is applied. vLLM (0.31) takes
# the rest, as `alpha_pattern`, for what it is by default, without a word
_TAKEN_OF_LORA = frozenset(
    (
        *("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"),
        *("peft_version", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "lora_dropout"),
        *("layers_to_transform", "layers_pattern", "init_lora_weights", "fan_in_fan_out"),
        *("runtime_config", "loftq_config", "eva_config", "corda_config"),
    )
)
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_CPU_CACHE_GIB = "4"


class NoModels(ValueError):
    """For what reads logits, hidden states or weights of models that are in an engine."""

    def __init__(self, what: str):
        super().__init__(
            f"{what} reads the models' own logits or weights, which vLLM does not give. Leave it out, or load the pair "
            'with `backend="transformers"`; on the command line, --backend transformers.'
        )


class EngineError(RuntimeError):
    """The engine failed while it wrote, whatever was asked of it."""


@dataclass
class EngineModel:
    """
    One half of a pair in an engine.

    Args:
        engine ([`SharedEngine`]):
            That both halves share.
        adapter (`vllm.lora.request.LoRARequest`):
            This half's.
        config ([`~transformers.PreTrainedConfig`]):
            The base's, with the engine's positions.
        generation_config ([`~transformers.GenerationConfig`]):
            Of which the end-of-sequence tokens are taken.
    """

    engine: "SharedEngine"
    adapter: object
    config: PreTrainedConfig
    generation_config: GenerationConfig

    def generate(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        max_new_tokens: int,
        do_sample: bool = False,
        name: str = "model",
        streamer: BaseStreamer | None = None,
        rng: random.Random | None = None,
        **generation_kwargs,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """
        As [`~models.generation.generate`], and the log-prob of each token at temperature 1, in nats, in place of logits.

        Args:
            rng (`random.Random`, *optional*):
                Of which each prompt's seed is drawn; else of torch's random numbers.

        Raises:
            ValueError: as there, and for settings that vLLM does not have.
            FloatingPointError: if a log-prob is not a number.
            EngineError: if the engine fails.
        """
        max_new_tokens, do_sample = checked_request(self, prompts, max_new_tokens, do_sample, name, generation_kwargs)
        ends = end_token_ids(self, tokenizer)
        settings = _sampling(do_sample, generation_kwargs)
        params = [
            {
                **settings,
                "max_tokens": max_new_tokens,
                "stop_token_ids": ends,
                "ignore_eos": True,  # the same tokens end a text here and there
                "logprobs": 0,
                "seed": _seed(rng) if do_sample else None,
            }
            for _ in prompts
        ]
        add = None
        if streamer is not None:
            streamer.put(torch.tensor(prompts))

            def add(token):
                streamer.put(torch.tensor([token]))

        completions, log_probs = [], []
        for said in self.engine.ask(prompts, params, self.adapter, add):
            ids = gist_from_completion(said.token_ids, ends)
            completions.append(ids)
            log_probs.append(said.log_probs[: len(ids)])
        if streamer is not None:
            streamer.end()
        return completions, log_probs

    def log_probs(self, prompts: list[list[int]], completions: list[list[int]]) -> list[float]:
        """Of completions that are given, at temperature 1, summed over their tokens, in nats."""
        rows = [[*prompt, *ids] for prompt, ids in zip(prompts, completions, strict=True)]
        # vLLM always writes a token, for which it must have a position: it is the last one, and can be no other. Log-probs
        # are those before others were ruled out
        params = {"temperature": 0.0, "max_tokens": 1, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0}
        last = [{**params, "allowed_token_ids": row[-1:]} for row in rows]
        said = self.engine.ask([row[:-1] for row in rows], last, self.adapter)
        log_probs = ([*each.prompt_log_probs, *each.log_probs] for each in said)
        return [sum(of_row[len(prompt) :]) for of_row, prompt in zip(log_probs, prompts, strict=True)]


def _sampling(do_sample, generation_kwargs):
    """vLLM's settings for transformers'."""
    given = {name: value for name, value in generation_kwargs.items() if value is not None}
    for name in given:
        if name not in _SETTINGS:
            raise ValueError(
                f"`{name}` is no setting that vLLM and transformers have in common: leave it out, or load the pair with "
                f'`backend="transformers"`. Both have {", ".join(_SETTINGS)}.'
            )
    settings = {_SETTINGS[name]: value for name, value in given.items()}
    if "stop" in settings:
        settings |= {"detokenize": True, "include_stop_str_in_output": True}
    if not do_sample:
        kept = ("repetition_penalty", "min_tokens", "stop", "detokenize", "include_stop_str_in_output")
        return {"temperature": 0.0, **{name: settings[name] for name in kept if name in settings}}
    if settings.setdefault("temperature", 1.0) <= 0:
        raise ValueError(
            f"`temperature` must be above 0 with `do_sample`, got {settings['temperature']}. Leave `do_sample` out for the "
            "likeliest tokens."
        )
    return settings


def _seed(rng):
    return int(torch.randint(2**62, ())) if rng is None else rng.getrandbits(62)


# ---- The engine's thread ----


@dataclass
class _Request:
    """What one prompt asks for, and what is said to it; `token_ids` with those that end it."""

    name: str
    prompt: list[int]
    params: object
    adapter: object
    answers: queue.SimpleQueue  # of the call that made it
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    prompt_log_probs: list[float] = field(default_factory=list)


class SharedEngine:
    """
    An engine of vLLM for several threads. A thread of its own steps it as long as somebody waits for something, and takes
    in what is asked for between two steps.

    When a step fails, all that is being written fails with it. What the engine then holds is dropped, its prefix cache
    too, whose newest blocks were promised and not computed, and it goes on; if it cannot, or if its process is gone, all
    that is asked for fails.

    Args:
        engine (`vllm.v1.engine.llm_engine.LLMEngine`):
            With LoRA.

    Attributes:
        check (`Callable`):
            Called now and then in a thread that waits. What it raises ends the waiting, and what was asked for.
    """

    def __init__(self, engine):
        self.engine = engine
        # vLLM (0.31) has it of an engine in a process of its own; one in this process lives as long
        self._ensure_alive = getattr(engine.engine_core, "ensure_alive", lambda: None)
        self.check: Callable[[], None] = lambda: None
        self._failure: Exception | None = None
        self.arrived: queue.SimpleQueue[_Request | set[str] | None] = queue.SimpleQueue()
        self.open: dict[str, _Request] = {}
        self.names = itertools.count()
        self.thread = threading.Thread(target=self._work, name="trl-gist-vllm", daemon=True)
        self.thread.start()
        atexit.register(self.close)

    @property
    def failure(self) -> Exception | None:
        """Why the engine cannot go on, if it cannot: also where its process ended while nobody asked for anything."""
        if self._failure is None:
            try:
                self._ensure_alive()
            except Exception as error:
                self._failure = error
        return self._failure

    def ask(
        self,
        prompts: list[list[int]],
        params: list[dict],
        adapter: object,
        add: Callable[[int], None] | None = None,
    ) -> list[_Request]:
        """
        What is said to prompts, when all is said.

        Args:
            prompts (`list[list[int]]`):
                Token ids.
            params (`list[dict]`):
                Of each, for `vllm.SamplingParams`.
            adapter (`vllm.lora.request.LoRARequest`):
                Who reads and writes.
            add (`Callable`, *optional*):
                Called in this thread with each token of a single prompt as soon as it is there.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY if add is None else RequestOutputKind.DELTA
        answers = queue.SimpleQueue()
        requests = [
            _Request(
                str(next(self.names)),
                prompt,
                SamplingParams(**{"detokenize": False, **each, "output_kind": kind}),
                adapter,
                answers,
            )
            for prompt, each in zip(prompts, params, strict=True)
        ]
        left = {request.name: request for request in requests}
        for request in requests:
            self.arrived.put(request)
        try:
            while left:
                output = self._next(answers)
                request = left[output.request_id]
                if output.finished:
                    del left[output.request_id]
                for token in _taken_over(request, output):
                    if add is not None:
                        add(token)
        finally:
            if left:
                self.arrived.put(set(left))
        return requests

    def close(self):
        """Ends the thread, and the engine."""
        atexit.unregister(self.close)
        if self.thread.is_alive():
            self.arrived.put(None)
            while self.thread.is_alive() and self.failure is None:  # a step of a process that is gone may never end
                self.thread.join(0.1)
            self.engine.engine_core.shutdown()

    def _next(self, answers):
        while True:
            self.check()
            try:
                answer = answers.get(timeout=0.1)
            except queue.Empty:
                if self.failure is not None:
                    raise _failed(self.failure) from self.failure
                if not self.thread.is_alive():
                    raise EngineError("vLLM's engine has been closed. Load the pair again.") from None
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _work(self):
        while self._take_in():
            try:
                outputs = self.engine.step() if self.open else []
            except Exception as error:
                self._fail(error)
                continue
            for output in outputs:
                request = self.open[output.request_id]
                if output.finished:
                    del self.open[output.request_id]
                request.answers.put(output)

    def _take_in(self):
        """What has come; waits for something if there is nothing to step. Returns whether there is more to do."""
        while not self.open or not self.arrived.empty():
            entry = self.arrived.get()
            if entry is None:
                return False
            if isinstance(entry, set):
                self._give_up([name for name in entry if name in self.open])
            elif self.failure is not None:
                entry.answers.put(_failed(self.failure))
            else:
                self._add(entry)
        return True

    def _add(self, request):
        try:
            prompt = {"prompt_token_ids": request.prompt}
            self.engine.add_request(request.name, prompt, request.params, lora_request=request.adapter)
        except Exception as error:
            request.answers.put(error if self.failure is None else _failed(self.failure))
        else:
            self.open[request.name] = request

    def _give_up(self, names):
        try:
            self._abort(names)
        except Exception as error:  # as of a process of the engine's that is gone
            self._fail(error)

    def _abort(self, names):
        self.engine.abort_request(names)
        for name in names:
            del self.open[name]

    def _fail(self, error):
        logger.error("vLLM's engine failed.", exc_info=error)
        requests = list(self.open.values())
        try:
            self._abort(list(self.open))
            if not self.engine.reset_prefix_cache():
                self._failure = error
        except Exception:
            self._failure = error
        self.open.clear()
        if self.failure is not None:
            logger.error("It cannot go on: start it again.")
        for request in requests:
            request.answers.put(_failed(error))


def _failed(error):
    failed = EngineError(f"vLLM's engine failed: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


def _taken_over(request, output) -> Iterator[int]:
    """Adds to a request what is new, and yields each new token."""
    (said,) = output.outputs
    if output.finished and said.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM's engine gave a request up: {said.finish_reason}.")
    if output.prompt_logprobs:
        request.prompt_log_probs = _log_probs(output.prompt_token_ids, output.prompt_logprobs)
    request.log_probs += _log_probs(said.token_ids, said.logprobs or [None] * len(said.token_ids))
    for token in said.token_ids:
        request.token_ids.append(token)
        yield token


def _log_probs(token_ids, found):
    """Of each token; 0 where there is none."""
    log_probs = [0.0 if each is None else each[token].logprob for token, each in zip(token_ids, found, strict=True)]
    if any(math.isnan(log_prob) for log_prob in log_probs):
        raise not_numbers()
    return log_probs


# ---- Loading ----


def load_engine_models(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> tuple[EngineModel, EngineModel]:
    """
    The summarizer and the generator of a pair of two adapters, in an engine over their base.

    On a CPU the engine runs in this process, compiles nothing, and keeps keys and values in 4 GiB, or
    `VLLM_CPU_KVCACHE_SPACE`.

    Args:
        directory (`Path`):
            The pair's.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The pair's.
        device (`str` or `torch.device`, *optional*):
            vLLM's own, which its build decides on.
        dtype (`str` or `torch.dtype`, *optional*):
            Defaults to that of models that transformers loads: the base's, or float32 on a CPU that is slow in less.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the base may run its own code.

    Raises:
        ModuleNotFoundError: without vLLM.
        ValueError: if a half is no adapter, or one that vLLM cannot take, they have two bases, or vLLM has no such device.
    """
    halves = {"summarizer": directory, "generator": directory / GENERATOR_DIR}
    adapters = {role: _adapter(half, role) for role, half in halves.items()}
    bases = {(adapter.base_model_name_or_path, adapter.revision) for adapter in adapters.values()}
    if len(bases) > 1:
        raise ValueError(
            f"The pair's adapters stand on two bases, {' and '.join(name for name, _ in sorted(bases))}, and one engine of "
            'vLLM has one. Load it with `backend="transformers"`.'
        )
    ((base, revision),) = bases
    modules = set().union(*(_modules(half, role) for role, half in halves.items()))
    rank = max(adapter.r for adapter in adapters.values())
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for gists
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with extra("vllm"):
        import vllm
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    _check_device(device, current_platform.device_type)
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise base_error(base, directory, error) from error
    on_cpu = current_platform.device_type == "cpu"
    if on_cpu:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        _multiply_by_adapter()
    arguments = vllm.EngineArgs(
        model=base,
        revision=revision,
        skip_tokenizer_init=True,  # a pair's folder has no configuration beside its tokenizer, which vLLM looks for
        dtype=_dtype(dtype, current_platform.device_type, config, base),
        trust_remote_code=trust_remote_code,
        enforce_eager=on_cpu,
        max_model_len=turned_alike(config) or -1,  # else as many of the model's positions as there is memory for
        enable_lora=True,
        max_loras=len(adapters),
        max_lora_rank=next((each for each in _RANKS if each >= rank), rank),
        lora_target_modules=sorted(modules),
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    with random_numbers_kept():
        engine = LLMEngine.from_engine_args(arguments)
    engine.output_processor.tokenizer = tokenizer  # in whose text stop strings are looked for
    requests = {role: LoRARequest(role, n, str(halves[role])) for n, role in enumerate(halves, 1)}
    for role, request in requests.items():
        try:
            engine.add_lora(request)
        except Exception as error:
            engine.engine_core.shutdown()
            raise ValueError(
                f"vLLM cannot take the adapter of the pair's {role}: {error} Load the pair with "
                '`backend="transformers"`.'
            ) from error
    config = copy.deepcopy(config)
    config.get_text_config().max_position_embeddings = engine.model_config.max_model_len
    generation_config = _generation_config(base, revision, config)
    shared = SharedEngine(engine)
    return tuple(EngineModel(shared, request, config, generation_config) for request in requests.values())


def _multiply_by_adapter():
    """
    On a CPU vLLM (0.31) copies an adapter's matrices once for each token before it multiplies; here one product is of all
    neighbouring tokens of an adapter.
    """
    from vllm.lora.punica_wrapper import punica_cpu

    def products(inputs, weights, starts, lengths, adapters):
        weights, spans = weights.flatten(0, -3), zip(starts.tolist(), lengths.tolist(), adapters.tolist(), strict=True)
        inputs = inputs.to(weights.dtype)
        return torch.cat([linear(inputs[start : start + length], weights[each]) for start, length, each in spans])

    def sgmv_shrink(inputs, weights, output, starts, lengths, adapters, batches, longest, tokens, scaling):
        found = products(inputs, weights, starts, lengths, adapters)
        output[: len(found), : found.shape[1]] = scaling * found

    def sgmv_expand_slice(
        inputs, weights, output, starts, lengths, adapters, batches, longest, tokens, start, size, add_inputs=False
    ):
        found = products(inputs, weights, starts, lengths, adapters)
        part = output[: len(found), start : start + size]
        part.copy_(part + found if add_inputs else found)

    punica_cpu.sgmv_shrink, punica_cpu.sgmv_expand_slice = sgmv_shrink, sgmv_expand_slice


@contextmanager
def random_numbers_kept(device: torch.device | None = None):
    """
    While an engine is built: vLLM (0.31) seeds the whole process, whatever `seed` says.

    Args:
        device (`torch.device`, *optional*):
            An accelerator, whose random numbers are kept as well.
    """
    kept, on_cpu = (random.getstate(), np.random.get_state()), device is None or device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])


def _adapter(half, role):
    if not check_half(half, role):
        raise ValueError(
            f"The pair's {role} is a whole model, and with vLLM both halves are adapters of one base. Load the pair with "
            '`backend="transformers"`, or train one with LoRA (`use_peft: true`).'
        )
    adapter = PeftConfig.from_pretrained(str(half))
    check_leaves_base(f"The adapter in {half}", adapter)
    if type(adapter) is not LoraConfig:
        raise ValueError(
            f"The pair's {role} is an adapter of type {adapter.peft_type.value}, and vLLM has LoRA alone. Load the pair with "
            '`backend="transformers"`.'
        )
    plain = LoraConfig().to_dict()
    for name, value in adapter.to_dict().items():
        if name not in _TAKEN_OF_LORA and value != plain.get(name) and value:
            raise ValueError(
                f"The adapter of the pair's {role} has `{name}={value!r:.80}`, which vLLM does not apply. Load the pair with "
                '`backend="transformers"`.'
            )
    return adapter


def _modules(half, role):
    """
    The last names of the modules that an adapter is on: vLLM would have room for one on every other, the head's the
    largest.
    """
    with safe_open(half / SAFETENSORS_WEIGHTS_NAME, framework="pt") as weights:
        modules = {name.partition(".lora_")[0] for name in weights.keys()}  # noqa: SIM118
        names = {name.rpartition(".")[2] for name in modules}
        if "lm_head" in names or any(".lora_embedding_" in name for name in weights.keys()):  # noqa: SIM118
            raise ValueError(
                f"The adapter of the pair's {role} is on the embeddings or on the LM head, under which vLLM (0.31) scores no "
                'text that is given. Load the pair with `backend="transformers"`.'
            )
    return names


def _check_device(device, own):
    if device is not None and (torch.device(device).type != own or torch.device(device).index):
        raise ValueError(
            f"`device` ({device}) is not for vLLM, which was built for {own} and takes the first that it sees. Leave it out; "
            "to choose a GPU, set CUDA_VISIBLE_DEVICES."
        )


def _dtype(dtype, device, config, base):
    """As of models that transformers loads."""
    dtype = dtype_to_load(dtype, device)
    if dtype == "auto":
        dtype = config.dtype or config.get_text_config().dtype
        if dtype is not None and is_slow(dtype, device):
            dtype = torch.float32
    if dtype is None:
        raise ValueError(f"The configuration of {base} does not say in which dtype it is stored. Give `dtype`.")
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)


def _generation_config(base, revision, config):
    """As a model's is loaded."""
    try:
        return GenerationConfig.from_pretrained(base, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(config)
