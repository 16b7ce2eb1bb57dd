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

from . import openmp  # isort: skip  (before torch is loaded)

from typing import TYPE_CHECKING

from transformers.utils.import_utils import _LazyModule


__version__ = "0.1.0"

_import_structure = {
    "callbacks": ["SaveOnSignal"],
    "compaction": ["Gist", "GistCompactor"],
    "generator_trainer": ["GeneratorTrainer"],
    "gist_config": ["GistConfig"],
    "gist_trainer": ["GistTrainer"],
    "pipeline": ["GistCompactionPipeline", "GistPair"],
    "rewards": ["binary", "kl_gain", "length_penalty", "log_prob_gain", "number_recall"],
    "session": ["Session"],
}

if TYPE_CHECKING:
    from .callbacks import SaveOnSignal
    from .compaction import Gist, GistCompactor
    from .generator_trainer import GeneratorTrainer
    from .gist_config import GistConfig
    from .gist_trainer import GistTrainer
    from .pipeline import GistCompactionPipeline, GistPair
    from .rewards import binary, kl_gain, length_penalty, log_prob_gain, number_recall
    from .session import Session
else:
    import sys

    sys.modules[__name__] = _LazyModule(
        __name__,
        globals()["__file__"],
        _import_structure,
        module_spec=__spec__,
        extra_objects={"__version__": __version__},
    )
