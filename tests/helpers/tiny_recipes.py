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

"""What a tiny pair is trained by, in a second or two: commands by a recipe without its model, documents and folder."""

from tiny import DEVICE

from trl_gist import GistConfig
from trl_gist.prompts import SUMMARIZER_PROMPT


RECIPE = {
    **{"text_column": "body", "eval_documents": 4},
    **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6},
    **{"num_generations": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4},
    "max_steps": 2,
    "learning_rate": "1e-3",  # YAML reads it as text; so must we
    "generator_learning_rate": 1.0e-3,
    **{"save_steps": 1, "eval_strategy": "steps", "eval_steps": 2},
    **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True},
    **{"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"},
}


def tiny_args(output_dir, /, **overrides) -> GistConfig:
    values = {
        "output_dir": str(output_dir),
        "context_length": 24,
        "target_length": 8,
        "last_k": 4,
        "max_completion_length": 6,
        "summarizer_prompt": SUMMARIZER_PROMPT,
        "cold_start_steps": 0,  # S samples from the first step on
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "generator_learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": DEVICE == "cpu",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 7,
    }
    return GistConfig(**{**values, **overrides})
