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
Attention by matrix products (`trl_gist/models/attention.py`) against torch's fused kernel, in bfloat16 on a CPU, in
the shapes of a training step of SmolLM2-135M: X=512, Y=64, |Z|=48, 8 gists a context, 4 contexts decoded together.

python -m research.performance.cpu_attention
"""

import argparse
import statistics
import time
from types import SimpleNamespace

from trl_gist.common.tables import console_table
from trl_gist.models.attention import additive_mask, matmul_attention

import torch
from rich.console import Console
from transformers.integrations.sdpa_attention import sdpa_attention_forward


HEADS, KEY_HEADS, SIZE = 9, 3, 64

# name: (rows, queries, keys, whether a mask is given, whether a backward pass follows)
SHAPES = {
    "policy: a context and 8 gists in one row": (1, 929, 929, True, True),
    "score + distil: 8 gists": (8, 192, 192, False, True),
    "teacher: a context": (1, 576, 576, False, False),
    "sample: a token of 8 gists, 4 contexts": (4, 8, 900, True, False),
}


def tensors(rows, queries, keys, masked, trained):
    shapes = ((queries, HEADS), (keys, KEY_HEADS), (keys, KEY_HEADS))
    inputs = [torch.randn(rows, n, h, SIZE).bfloat16().transpose(1, 2).requires_grad_(trained) for n, h in shapes]
    visible = None
    if masked:
        visible = torch.rand(rows, 1, queries, keys) < 0.6
        visible[..., 0] = True
        if queries == keys:
            visible &= torch.ones(queries, keys, dtype=torch.bool).tril()
    return inputs, visible


def milliseconds(attend, inputs, mask, trained, repeats=15):
    layer = SimpleNamespace(is_causal=True, num_key_value_groups=HEADS // KEY_HEADS)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        output, _ = attend(layer, *inputs, mask, scaling=SIZE**-0.5)
        if trained:
            output.backward(torch.ones_like(output))
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[3:])


def main():
    title = f"ms a layer, median of 12, {torch.get_num_threads()} threads"
    table = console_table(title, "", "fused kernel", "matrix products", "ratio")
    for name, (*shape, masked, trained) in SHAPES.items():
        inputs, visible = tensors(*shape, masked, trained)
        fused = milliseconds(sdpa_attention_forward, inputs, visible, trained)
        mask = additive_mask(visible, torch.bfloat16) if masked else None
        ours = milliseconds(matmul_attention, inputs, mask, trained)
        passes = "forward + backward" if trained else "forward"
        table.add_row(f"{name}, {passes}", f"{fused:.1f}", f"{ours:.1f}", f"{fused / ours:.1f}")
    Console(highlight=False, width=110).print(table)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
