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
vLLM for the summarizer's sampling: TRL's engine or server (1.16), asked for all gists of a context in one request, and
weights that come back from a sync as they were. The engine itself is run by `make vllm-check`.
"""

import copy
import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from ..models.positions import turned_alike
from ..models.vllm import random_numbers_kept
from .gist_config import GistConfig


def check_vllm_settings(args: GistConfig, model: str | PreTrainedModel | PeftModel):
    """Raises `ValueError` for what vLLM cannot do, `ModuleNotFoundError` without it, before any model is loaded."""
    if args.generator_only:
        raise ValueError("`generator_only` samples no gists: leave out `use_vllm`.")
    if args.vllm_mode == "colocate" and not isinstance(model, str) and not model.name_or_path:
        raise ValueError(
            "vLLM loads the summarizer by the name of its checkpoint, and this model has none. Save it with its "
            "tokenizer and pass the directory as `model`."
        )
    needed = args.context_length + args.max_completion_length
    if args.vllm_max_model_length is not None and args.vllm_max_model_length < needed:
        raise ValueError(
            f"`vllm_max_model_length` ({args.vllm_max_model_length}) must hold `summarizer_prompt` with "
            f"`context_length` + `max_completion_length` = {args.context_length} + {args.max_completion_length} "
            "tokens. Raise it, or leave it out to take the model's own."
        )
    if not vllm_generation.is_vllm_available():
        raise ModuleNotFoundError('vllm is missing, with which `use_vllm` samples: pip install "trl_gist[vllm]"')


@contextmanager
def engine_for(args: GistConfig, model: PreTrainedModel | PeftModel):
    """
    In it TRL builds an engine that samples S as S is trained, and leaves the run's random numbers as they were.

    TRL (1.16) leaves the engine's dtype to vLLM (0.31), which samples a checkpoint of float32 in half of it. On a CPU
    vLLM would compile the model for minutes at every start, in a process of its own, where a sync does not reach it. With
    more positions than LongRoPE's original ones it would read all texts as long ones.

    Args:
        args ([`GistConfig`]):
            `bf16`, `fp16`, `device` and lengths.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The summarizer.
    """
    if not args.use_vllm or args.vllm_mode != "colocate":
        yield
        return
    build = vllm_generation.LLM
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
    needed = args.context_length + args.max_completion_length

    def build_as_trained(**settings):
        on_cpu = args.device.type == "cpu"
        if on_cpu:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        alike = turned_alike(model.config)
        if settings.get("max_model_len") is None and alike is not None and needed <= alike:
            settings["max_model_len"] = alike
        with random_numbers_kept(args.device):
            return build(dtype=dtype, enforce_eager=on_cpu, **settings)

    vllm_generation.LLM = build_as_trained
    try:
        yield
    finally:
        vllm_generation.LLM = build


def prepare_vllm(generation: VLLMGeneration, model: PreTrainedModel | PeftModel, num_generations: int):
    """
    Changes what TRL has built: a sync hands over merged weights as copies, an engine is asked once for all gists of a
    context, and on a CPU it packs its matrices anew at a sync.

    TRL asks a server once for all gists of a context, but the engine beside it, or shared by some ranks
    (`vllm_tensor_parallel_size`), once for each gist.

    Args:
        generation ([`~trl.generation.vllm_generation.VLLMGeneration`]):
            The trainer's.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The summarizer.
        num_generations (`int`):
            Gists of a context in training; in evaluation it is asked for one.
    """
    if isinstance(model, PeftModel):
        generation._iter_named_params = partial(_merged_weights, generation._iter_named_params, model)
    if generation.mode == "colocate":
        llm = generation.llm
        llm.generate = partial(_gists_of_contexts, llm.llm_engine, llm.generate, model, num_generations)
        if generation.accelerator.device.type == "cpu" and any(map(_is_packed, _runner(generation).model.modules())):
            generation.sync_weights = partial(_reload_weights, generation)


def sample_with_vllm(
    generate: Callable,
    generation: VLLMGeneration,
    prompt_ids: list[list[int]],
    num_generations: int,
    temperature: float,
) -> tuple[list[list[int]], list[list[float]]]:
    """
    Completions and their log-probs, `num_generations` rows a context.

    Args:
        generate (`Callable`):
            TRL's `_generate_single_turn`.
        generation ([`~trl.generation.vllm_generation.VLLMGeneration`]):
            The trainer's.
        prompt_ids (`list[list[int]]`):
            A prompt a row; those of a context are adjacent.
        num_generations (`int`):
            Rows of a context.
        temperature (`float`):
            0 is greedy.
    """
    generation.temperature = temperature
    if temperature > 0:
        return generate(prompt_ids, None, {}, num_generations)
    # The greedy gists of a context are one and the same, which vLLM refuses to write more than once
    once = generate(prompt_ids[::num_generations], None, {}, 1)
    return tuple([row for row in rows for _ in range(num_generations)] for rows in once)


def _reload_weights(generation):
    """
    On a CPU vLLM (0.31) multiplies by packed copies of the weights and keeps no others, into which TRL (1.16) would
    write. Its own reload takes whole layers and packs them again, but not a head that is tied to the embeddings.
    """
    runner = _runner(generation)
    runner.reload_weights(weights_iterator=generation._iter_named_params())
    for module in filter(_is_packed, runner.model.modules()):
        if module.weight.numel() > 0:  # heads and embeddings keep their weights
            module.quant_method.process_weights_after_loading(module)
    generation.llm.reset_prefix_cache()


def _runner(generation):
    return generation.llm.llm_engine.model_executor.driver_worker.model_runner


def _is_packed(module):
    return hasattr(module, "cpu_linear")


def _gists_of_contexts(engine, generate, model, num_generations, prompts, sampling_params, **kwargs):
    """`LLM.generate` for rows of which each context has `num_generations`, as TRL passes them; an output a row."""
    size = num_generations if model.training else 1
    sampling_params.n = size
    try:
        outputs = generate(prompts[::size], sampling_params=sampling_params, **kwargs)
    except BaseException:
        with suppress(Exception):  # of an engine that is gone
            _forget_requests(engine)
        raise
    return [_with_gist(output, gist) for output in outputs for gist in output.outputs]


def _forget_requests(engine):
    """
    vLLM (0.31) keeps what it could not finish, and a later `generate` would wait for it for ever. It also keeps the newest
    blocks of its prefix cache, which were promised and not computed.
    """
    engine.abort_request(list(engine.output_processor.external_req_ids))
    engine.output_processor.parent_requests.clear()
    engine.reset_prefix_cache()


def _with_gist(output, gist):
    output = copy.copy(output)
    output.outputs = [gist]
    return output


def _merged_weights(iter_named_params, model):
    """
    TRL's names and merged weights, as copies. TRL subtracts the adapter again when the last one has been taken, but
    vLLM gathers weights to 1 GiB before it broadcasts them (`pack_tensors`), and the last ones, which may be all,
    after that: a server would be sent the base alone.
    """
    with base_restored(model):
        for name, weight in iter_named_params():
            yield name, weight.clone()


@contextmanager
def base_restored(model: PeftModel):
    """
    A context in which the adapter may be merged into the base and subtracted again; after it the base is bit for bit
    what it was.

    TRL does so at every sync, and each subtraction rounds: 100 syncs move a bfloat16 base by 0.8% of its norm, and one
    of float32 by 1.4e-7 (tests/trainer/test_vllm.py prints both), away from the base that the adapter is saved for.
    What is merged is therefore a copy, of the layers that carry an adapter, in memory as long as the sync takes.
    """
    bases = [layer.get_base_layer() for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    kept = {parameter: parameter.data for base in bases for parameter in base.parameters()}
    for parameter, data in kept.items():
        parameter.data = data.clone()
    try:
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data
