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

"""Checkpoints that vLLM can run on a CPU."""

from tiny import make_model


def save_checkpoint(path, tokenizer, **overrides):
    """vLLM's attention on a CPU knows no head of fewer than 32 dimensions."""
    make_model(tokenizer, hidden_size=128, intermediate_size=192, **overrides).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
