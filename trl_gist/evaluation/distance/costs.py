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

"""Memory and time of going on for ever, by length: the pair in its window, and T with all text in its cache."""

import time

import psutil
import torch
from transformers import Cache, DynamicCache

from ...common.geometry import WindowedText
from ...common.tokens import characters_of
from ...models.positions import max_positions
from ...models.roles import backbone_of, base_of
from .walk import DistanceReadings


_STEPS = 4  # tokens of each window that pass one by one, as when text is written


def measure_costs(readings: DistanceReadings, ids: list[int], windows: int) -> list[dict]:
    """
    One document through the pair, folded window by window, and then through T whole; nothing else runs meanwhile.

    Args:
        readings ([`DistanceReadings`]):
            The models.
        ids (`list[int]`):
            A document.
        windows (`int`):
            The most of it.

    Returns:
        `list[dict]`: For each window `tokens` read so far; and, ending in `_pair` and, as far as T has positions, in
        `_full`: `read`, seconds per token of the next chunk that is read (for the pair, S's writing of the gist
        and G's reading of gist and L are part of it), `written`, seconds per token that passes one by one, `cache`,
        bytes of G's or T's keys and values, and `memory`, resident bytes (on an accelerator, bytes allocated).
    """
    if readings.geometry.chunk_length <= _STEPS:
        return []
    # Each window needs the chunk after it
    windows = min(windows, (len(ids) - readings.geometry.last_k) // readings.geometry.chunk_length - 1)
    rows = []
    for window, pair in enumerate(_pair_costs(readings, ids, windows)):
        rows.append({"tokens": readings.geometry.before(window), **pair})
    for row, full in zip(rows, _full_costs(readings, ids, windows), strict=False):
        row |= full
    return rows


def _pair_costs(readings, ids, windows):
    geometry, prompts, gist = readings.geometry, readings.compactor.prompts, []
    document = WindowedText(ids, geometry, characters_of(readings.compactor.tokenizer))
    for window in range(windows):
        started = time.perf_counter()
        (gist,) = readings.fold(readings.compactor, [gist], [document.chunk(window)], [document.last(window)])
        folded = time.perf_counter() - started
        cache = DynamicCache(config=base_of(readings.compactor.generator).config)
        prompt = prompts.generator(gist, document.last(window))
        read, written = _pass(readings.compactor.generator, prompt, _next_chunk(geometry, ids, window), cache)
        per_token = folded / geometry.chunk_length + read / (geometry.chunk_length - _STEPS)
        yield {"read_pair": per_token, "written_pair": written / _STEPS} | _sizes(
            cache, readings.compactor.generator, "pair"
        )


def _full_costs(readings, ids, windows):
    geometry, teacher = readings.geometry, readings.teacher
    positions, cache = max_positions(teacher), DynamicCache(config=base_of(teacher).config)
    prompt = readings.compactor.prompts.plain(ids[: geometry.before(0)])
    _pass(teacher, prompt, [], cache)
    for window in range(windows):
        chunk_ids = _next_chunk(geometry, ids, window)
        if positions is not None and cache.get_seq_length() + len(chunk_ids) > positions:
            return
        read, written = _pass(teacher, [], chunk_ids, cache)
        seconds = {"read_full": read / (geometry.chunk_length - _STEPS), "written_full": written / _STEPS}
        yield {**seconds, **_sizes(cache, teacher, "full")}


def _next_chunk(geometry, ids, window):
    return ids[geometry.before(window) : geometry.before(window) + geometry.chunk_length]


def _pass(model, prompt, chunk_ids, cache: Cache) -> tuple[float, float]:
    """Seconds for a prompt and a chunk but for its last tokens at once, and for those one by one."""
    backbone, seconds = backbone_of(base_of(model)), []
    singles = chunk_ids[len(chunk_ids) - _STEPS :] if chunk_ids else []
    with torch.no_grad():
        for pieces in ([prompt + chunk_ids[: len(chunk_ids) - len(singles)]], [[token] for token in singles]):
            started = time.perf_counter()
            for piece in pieces:
                hidden_1SH = backbone(
                    input_ids=torch.tensor([piece], device=model.device), past_key_values=cache, use_cache=True
                ).last_hidden_state
                # An accelerator computes while the clock runs on; a number from it waits
                base_of(model).get_output_embeddings()(hidden_1SH[:, -1]).argmax().item()
            seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


def _sizes(cache, model, name):
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    if model.device.type == "cpu":
        memory = psutil.Process().memory_info().rss
    else:
        memory = torch.accelerator.memory_allocated(model.device)
    return {f"cache_{name}": sum(tensor.nbytes for tensor in tensors), f"memory_{name}": memory}
