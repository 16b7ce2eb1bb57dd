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
vLLM itself, on a CPU: `make vllm-check` runs these tests in an environment of its own. Elsewhere they are skipped.
"""

import gc
import os
from importlib.util import find_spec


# Read when vLLM is imported, which TRL does where it is installed
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Compiling one function, which counts ranks, would take a minute
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1" if find_spec("vllm") else "0")

import pytest

from trl_gist import GistTrainer


@pytest.fixture
def engines(monkeypatch):
    """Each test's engines, which are gone after it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # TRL sets them for vLLM; so they are gone again after the test
        monkeypatch.delenv(name)
    trainers = []
    yield trainers
    for trainer in trainers:
        vars(trainer).clear()
    trainers.clear()
    gc.collect()
    from vllm.distributed import cleanup_dist_env_and_memory  # where there is a vLLM

    cleanup_dist_env_and_memory()


@pytest.fixture
def make_run(engines, make_args, checkpoint, documents, lora):
    """A trainer of float32 whose gists the engine samples."""

    def make(with_lora=True, model=None, **kwargs):
        args = {
            **{"use_vllm": True, "vllm_mode": "colocate", "max_steps": 1, "max_completion_length": 12},
            **{"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1e9},
            **{"vllm_importance_sampling_clip_min": 0.0, "learning_rate": 1e-2, **kwargs.pop("args", {})},
        }
        trainer = GistTrainer(
            model=model or checkpoint,
            args=make_args(**args),
            train_dataset=kwargs.pop("train_dataset", documents),
            peft_config=lora if with_lora else None,
            **kwargs,
        )
        engines.append(trainer)
        return trainer

    return make
