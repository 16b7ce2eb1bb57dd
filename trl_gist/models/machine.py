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
What this machine computes in, if nobody says: its accelerator or the CPU, and the precision that it multiplies fast.

A CPU without instructions for bfloat16 takes eight or nine times as long for a product in it as in float32 (AMD EPYC with
AVX2, one core: 8 against 74 GFLOP/s), one with AVX-512 BF16 or AMX a third to a half of float32's time.
"""

import functools
import logging

import torch


logger = logging.getLogger(__name__)

# By torch's names, on x86 and Arm. Who has one may lack the other, as AMD's Zen 4 has no products of float16
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def machine_device() -> torch.device:
    """The machine's accelerator, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def cpu_capabilities() -> dict:
    """What the CPU is and has, by torch's names; empty of a torch that does not list it (before 2.12)."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


@functools.cache
def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for products of a dtype, as AVX-512 BF16, AMX and some of Arm's are for bfloat16.
    Where they are not listed, and of other dtypes than the two halves, it is taken for granted."""
    found = cpu_capabilities()
    return not found or dtype not in _INSTRUCTIONS or any(map(found.get, _INSTRUCTIONS[dtype]))


def is_slow(dtype: torch.dtype, device: str | torch.device) -> bool:
    """Whether it takes several times as long as float32 there."""
    return torch.device(device).type == "cpu" and not cpu_multiplies(dtype)


def fast_dtype(device: str | torch.device | None = None) -> str:
    """`"bfloat16"`, or `"float32"` on a CPU that would be slow in it; for `from_pretrained`.

    Args:
        device (`str` or `torch.device`, *optional*):
            Defaults to the machine's accelerator, or the CPU.
    """
    return "float32" if is_slow(torch.bfloat16, device or machine_device()) else "bfloat16"


def stored_or_fast_dtype(device: str | torch.device) -> str:
    """`"auto"`, the dtype that a checkpoint is stored in; but `"float32"` on a CPU that would be slow in bfloat16, and so in
    each half."""
    return "auto" if fast_dtype(device) == "bfloat16" else "float32"


def dtype_to_load(dtype: str | torch.dtype | None, device: str | torch.device) -> str | torch.dtype:
    """The one that was asked for, with a warning where it is slow; of `None` and `"auto"` [`stored_or_fast_dtype`]."""
    warn_if_slow(dtype, device, "Leave out `dtype`, unless memory is what counts.")
    return stored_or_fast_dtype(device) if dtype in (None, "auto") else dtype


def warn_if_slow(dtype: str | torch.dtype | None, device: str | torch.device, remedy: str):
    """
    Says once what it costs where a half precision was asked for that this CPU has no instructions for.

    Args:
        dtype (`str` or `torch.dtype`, *optional*):
            That the models compute in.
        device (`str` or `torch.device`):
            On which they do.
        remedy (`str`):
            What to write instead.
    """
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if isinstance(dtype, torch.dtype) and is_slow(dtype, device):
        _warn_once(str(dtype).removeprefix("torch."), remedy)


@functools.cache
def _warn_once(dtype, remedy):
    logger.warning(
        "This CPU has no instructions for %s, in which products take eight or nine times as long as in float32. %s",
        dtype,
        remedy,
    )
