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

"""Learned context compaction in plain tokens. What is named here is public, and loaded as it is asked for."""

from .common import openmp  # isort: skip  (before torch is loaded)

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__


# By these names TRL (1.16) and peft (0.21) call transformers (5.23), which says so at every rollout and every load
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)

_PUBLIC = {
    "Gist": "inference.gist",
    "GistCompactionPipeline": "pipeline",
    "GistCompactor": "inference.compactor",
    "GistConfig": "trainer.gist_config",
    "GistPair": "pipeline",
    "GistTrainer": "trainer.gist_trainer",
    "GeneratorTrainer": "trainer.generator_trainer",
    "SaveOnSignal": "trainer.callbacks",
    "Session": "inference.session.session",
    "binary": "rewards",
    "kl_gain": "rewards",
    "length_penalty": "rewards",
    "log_prob_gain": "rewards",
    "number_recall": "rewards",
}

_MODULES = ("data", "evaluation", "pipeline", "prompts", "rewards", "scoring")

__all__ = ["__version__", *_MODULES, *_PUBLIC]

if TYPE_CHECKING:
    from .inference.compactor import GistCompactor
    from .inference.gist import Gist
    from .inference.session.session import Session
    from .pipeline import GistCompactionPipeline, GistPair
    from .rewards import binary, kl_gain, length_penalty, log_prob_gain, number_recall
    from .trainer.callbacks import SaveOnSignal
    from .trainer.generator_trainer import GeneratorTrainer
    from .trainer.gist_config import GistConfig
    from .trainer.gist_trainer import GistTrainer


def __getattr__(name: str):
    # Each is loaded as it is asked for: the command line answers before torch is there, and inference never loads TRL
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
