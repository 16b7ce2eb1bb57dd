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
OMP_NUM_THREADS=1 python -m research.performance.kernels --products    what single products of 300 lengths leave
"""

import argparse
import multiprocessing
import os
import random

from trl_gist import GistCompactor
from trl_gist.models import attention
from trl_gist.models.loading import for_inference
from trl_gist.prompts import GENERATOR_PROMPT

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from research.common.tables import markdown_table
from research.common.untrained import untrained_config


FEATURES, INNER, KEY_HEADS, HEAD_SIZE = 576, 1536, 3, 64
# The least kernels that oneDNN can be told to keep; it reads this when it makes the first
CACHE_OF_NONE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}


def main(args):
    if args.products:
        rows = [
            [kind, *(f"{in_a_process(kept_by, kind, environment):.0f}" for environment in ({}, CACHE_OF_NONE))]
            for kind in PRODUCTS
        ]
        print("\n".join(markdown_table(["products of 300 lengths", "kept, MB", "with no kernel cached, MB"], rows)))
        return
    columns = {}
    for name, multiple in (("as they come", 1), ("multiples", attention._LENGTHS)):
        columns[name] = in_a_process(measure, multiple, args)
    rows = [
        [f"{windows * args.every:,}", *(f"{column[windows]:.0f}" for column in columns.values())]
        for windows in range(len(columns["multiples"]))
    ]
    print("\n".join(markdown_table(["windows", *(f"{name}, MB" for name in columns)], rows)))
    for name, column in columns.items():
        print(
            f"{name}: {column[-1] / column[1] - 1:+.1%} from {args.every} windows to {(len(column) - 1) * args.every}"
        )


def in_a_process(function, *args):
    """What a function returns in a process of its own: what oneDNN keeps it keeps for good."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def linear(tokens: int):
    """The linear maps of a layer."""
    for rows, columns in (
        (FEATURES, FEATURES),
        (FEATURES, KEY_HEADS * HEAD_SIZE),
        (FEATURES, INNER),
        (INNER, FEATURES),
    ):
        torch.randn(1, tokens, rows, dtype=torch.bfloat16) @ torch.ones(columns, rows, dtype=torch.bfloat16).T


def attend(queries: int, keys: int):
    """Queries of three heads a key's, to all keys."""
    query, key = (torch.randn(1, KEY_HEADS, count, HEAD_SIZE, dtype=torch.bfloat16) for count in (3 * queries, keys))
    (query @ key.transpose(2, 3)).softmax(-1) @ key


PRODUCTS = {
    "linear maps of a prompt": linear,
    "of multiples of 64": lambda tokens: linear(-(-tokens // 64) * 64),
    "attention over a prompt": lambda tokens: attend(tokens, tokens),
    "attention of a new token": lambda tokens: attend(1, tokens),
}


def kept_by(kind: str, environment: dict) -> float:
    """Megabytes more after products of 300 lengths than after the first."""
    os.environ.update(environment)
    PRODUCTS[kind](100)
    before = psutil.Process().memory_info().rss
    for tokens in range(100, 400):
        PRODUCTS[kind](tokens)
    return (psutil.Process().memory_info().rss - before) / 1e6


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
        session.append([rng.randrange(128) for _ in range(rng.randint(20, 200))])
        if rng.random() < 0.2:
            session.generate(rng.randint(8, 32))
    return found


def make_compactor(args) -> GistCompactor:
    # Of ASCII alone: half a character would be left out of a gist, and what is left read once more, for its probability
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    signs = [byte_level.pre_tokenize_str(chr(byte))[0][0] for byte in range(128)]
    tokenizer = Tokenizer(models.BPE(vocab={sign: n for n, sign in enumerate(signs)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=FEATURES,
        intermediate_size=INNER,
        num_hidden_layers=args.layers,
        num_attention_heads=9,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    halves = [for_inference(LlamaForCausalLM(config).to(torch.bfloat16)) for _ in range(2)]
    sizes = {"context_length": args.context, "target_length": 64, "last_k": args.context // 8}
    sizes |= {"max_gist_length": args.gist, "tail_length": args.gist}
    return GistCompactor(*halves, tokenizer, untrained_config(generator_prompt=GENERATOR_PROMPT, **sizes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--products", action="store_true", help="single products instead of sessions")
    parser.add_argument("--windows", type=int, default=80, help="compactions")
    parser.add_argument("--every", type=int, default=10, help="windows between two looks")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--gist", type=int, default=48)
    parser.add_argument("--layers", type=int, default=1)
    main(parser.parse_args())
