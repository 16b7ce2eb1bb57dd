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
Which precision this CPU multiplies fast, and what is computed in where nobody says: [`trl_gist.models.machine`].

OMP_NUM_THREADS=1 python -m research.performance.precision
"""

from trl_gist.models.machine import cpu_capabilities, fast_dtype

import torch
from torch.nn.functional import linear
from torch.utils.benchmark import Timer

from research.common.tables import markdown_table
from research.performance.workload import machine


TOKENS, FEATURES, INNER = 512, 576, 1536  # a map of SmolLM2-135M's layers


def rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second, the median of several turns."""
    inputs = torch.randn(TOKENS, FEATURES, dtype=dtype), torch.randn(INNER, FEATURES, dtype=dtype)
    timer = Timer("linear(*inputs)", globals={"linear": linear, "inputs": inputs}, num_threads=torch.get_num_threads())
    return 2 * TOKENS * FEATURES * INNER / timer.blocked_autorange(min_run_time=1).median


def main():
    found = cpu_capabilities()
    names = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "neon", "sve", "bf16", "fp16_arith")
    there = [name for name in names if found.get(name)]
    rows = [[str(dtype), f"{rate(dtype) / 1e9:.0f}"] for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    print(f"{found.get('cpu_name', 'CPU')}: {', '.join(there)}; {machine()}; chosen: {fast_dtype()}\n")
    print("\n".join(markdown_table([f"{TOKENS} tokens, {FEATURES} → {INNER}, in", "GFLOP/s"], rows)))


if __name__ == "__main__":
    main()
