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
Resident memory of a session over many windows, with the lengths of prompts and keys as they come, and rounded up as they are
([`trl_gist.models.attention`]). Random weights of SmolLM2-135M's widths in bfloat16: what oneDNN keeps depends on shapes
alone, and layers of the same shapes share it. A gist of such weights never ends early, so its length is drawn.

OMP_NUM_THREADS=1 python -m research.performance.kernels
"""

import argparse
import multiprocessing
import random

from trl_gist import GistCompactor
from trl_gist.models import attention
from trl_gist.models.loading import for_inference
from trl_gist.pair import PairConfig
from trl_gist.prompts import GENERATOR_PROMPT, SUMMARIZER_PROMPT

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from research.common.tables import markdown_table


def main(args):
    columns = {}
    for name, multiple in (("as they come", 1), ("multiples", attention._LENGTHS)):
        # A process each: what is kept is kept for good
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            columns[name] = pool.apply(measure, (multiple, args))
    rows = [
        [f"{windows * args.every:,}", *(f"{column[windows]:.0f}" for column in columns.values())]
        for windows in range(len(columns["multiples"]))
    ]
    print("\n".join(markdown_table(["windows", *(f"{name}, MB" for name in columns)], rows)))
    for name, column in columns.items():
        print(
            f"{name}: {column[-1] / column[1] - 1:+.1%} from {args.every} windows to {(len(column) - 1) * args.every}"
        )


def measure(multiple: int, args) -> list[float]:
    """Megabytes at the start and after every so many windows."""
    attention._LENGTHS = multiple
    torch.manual_seed(0)
    compactor, rng, process = make_compactor(args), random.Random(0), psutil.Process()
    generate = compactor.generate

    def of_any_length(role, prompts, **settings):
        if role == "summarizer":
            settings["max_new_tokens"] = rng.randint(args.gist // 2, args.gist)
        return generate(role, prompts, **settings)

    compactor.generate = of_any_length
    session, found = compactor.session(), []
    while len(found) * args.every <= args.windows:
        if len(session.history) >= len(found) * args.every:
            found.append(process.memory_info().rss / 1e6)
        # As a text comes, by paragraphs, and as G goes on now and then
        session.append([rng.randrange(256) for _ in range(rng.randint(20, 200))])
        if rng.random() < 0.2:
            session.generate(rng.randint(8, 32))
    return found


def make_compactor(args) -> GistCompactor:
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: n for n, sign in enumerate(signs)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=args.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    halves = [for_inference(LlamaForCausalLM(config).to(torch.bfloat16)) for _ in range(2)]
    pair = PairConfig(
        context_length=args.context,
        target_length=64,
        last_k=args.context // 8,
        max_gist_length=args.gist,
        tail_length=args.gist,
        summarizer_prompt=SUMMARIZER_PROMPT,
        generator_prompt=GENERATOR_PROMPT,
        base_models={"summarizer": "random", "generator": "random", "teacher": "random"},
        recipe={},
        measures={},
        gists=[],
        step=0,
        version="0",
    )
    return GistCompactor(*halves, tokenizer, pair)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=160, help="compactions: 65,536 tokens have 164 of 512")
    parser.add_argument("--every", type=int, default=20, help="windows between two looks")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--gist", type=int, default=48)
    parser.add_argument("--layers", type=int, default=2)
    main(parser.parse_args())
