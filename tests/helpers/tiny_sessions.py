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

"""A pair of tiny models in float64 whose window folds after a few tokens."""

import torch
from tiny import make_model, make_tokenizer
from tiny_pairs import make_pair

from trl_gist import GistCompactor
from trl_gist.prompts import SUMMARIZER_PROMPT


CONTEXT, LAST_K, GIST, TARGET = 32, 5, 6, 8


def make_compactor(seed=0, dtype=torch.float64, summarizer_prompt=SUMMARIZER_PROMPT):
    tokenizer = make_tokenizer()
    # A fresh model whose head is tied mostly repeats its last token
    summarizer, generator = (
        make_model(tokenizer, seed=seed + n, dtype=dtype, tie_word_embeddings=False).eval() for n in (1, 2)
    )
    generator.lm_head.weight.data[tokenizer.eos_token_id] = 0  # so that greedy continuations are as long as asked
    pair = make_pair(
        context_length=CONTEXT,
        target_length=TARGET,
        last_k=LAST_K,
        max_gist_length=GIST,
        tail_length=GIST,
        summarizer_prompt=summarizer_prompt,
        base_models=dict.fromkeys(("summarizer", "generator", "teacher"), f"tiny-{seed}"),
        step=2,
    )
    return GistCompactor(summarizer, generator, tokenizer, pair)
