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
The synthetic task of Nagle et al. 2024 (https://huggingface.co/papers/2407.15504), rebuilt: seven questions about a
binary string, a tokenizer with a token for each bit, and the exact weight of every string, question and answer.

A string is drawn from a two-state chain that starts uniformly and stays with probability 0.9; its length is uniform.
Half of the strings that are asked about palindromes are forced to be one: the second half mirrors the first.
"""

from itertools import groupby, product

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast


STAY = 0.9
MAX_LENGTH = 32
EVALUATED_LENGTHS = range(4, 11)
QUERIES = ("ones", "zeros", "parity", "longest_run", "palindrome", "transitions", "next_bit")
PALINDROME, NEXT_BIT = QUERIES.index("palindrome"), QUERIES.index("next_bit")
ANSWERS = MAX_LENGTH + 1  # every answer is a number from 0 to the longest string's length


def answer(bits: str, query: str) -> int:
    """The answer to every query but `next_bit`, whose answer is drawn by the chain."""
    transitions = sum(left != right for left, right in zip(bits, bits[1:], strict=False))
    return {
        "ones": bits.count("1"),
        "zeros": bits.count("0"),
        "parity": bits.count("1") % 2,
        "longest_run": max(len(list(run)) for _, run in groupby(bits)),
        "palindrome": int(bits == bits[::-1]),
        "transitions": transitions,
    }[query]


def answer_distribution(bits: str) -> np.ndarray:
    """p(answer | string, query), of shape `(7, 33)`."""
    distribution_QA = np.zeros((len(QUERIES), ANSWERS))
    for index, query in enumerate(QUERIES):
        if index == NEXT_BIT:
            distribution_QA[index, int(bits[-1])], distribution_QA[index, 1 - int(bits[-1])] = STAY, 1 - STAY
        else:
            distribution_QA[index, answer(bits, query)] = 1.0
    return distribution_QA


def chain_probability(bits: str) -> float:
    """p(string | its length) under the chain."""
    switches = sum(left != right for left, right in zip(bits, bits[1:], strict=False))
    return 0.5 * STAY ** (len(bits) - 1 - switches) * (1 - STAY) ** switches


def all_strings(lengths) -> list[str]:
    return ["".join(bits) for length in lengths for bits in product("01", repeat=length)]


def string_weights(strings: list[str], lengths) -> np.ndarray:
    """p(string, query) of shape `(strings, 7)`, where the lengths are equally likely, and the queries."""
    weights_XQ = np.tile([[chain_probability(bits)] for bits in strings], len(QUERIES))
    for index, bits in enumerate(strings):
        half = bits[: (len(bits) + 1) // 2]
        forced = chain_probability(half) if bits == bits[::-1] else 0.0
        weights_XQ[index, PALINDROME] = (weights_XQ[index, PALINDROME] + forced) / 2
    return weights_XQ / len(lengths) / len(QUERIES)


def draw_string(length: int, palindrome: bool, generator: np.random.Generator) -> str:
    """A string of the chain, or a palindrome whose first half is."""
    drawn = (length + 1) // 2 if palindrome else length
    switches = generator.random(drawn) >= STAY
    switches[0] = generator.random() < 0.5
    half = "".join(map(str, switches.cumsum() % 2))
    return half + half[: length // 2][::-1] if palindrome else half


def draw_row(lengths, generator: np.random.Generator) -> tuple[str, int, int]:
    """A string, a query's index and the answer."""
    query = int(generator.integers(len(QUERIES)))
    palindrome = query == PALINDROME and generator.random() < 0.5
    bits = draw_string(int(generator.choice(lengths)), palindrome, generator)
    if query == NEXT_BIT:
        stays = generator.random() < STAY
        return bits, query, int(bits[-1]) if stays else 1 - int(bits[-1])
    return bits, query, answer(bits, QUERIES[query])


def make_tokenizer() -> PreTrainedTokenizerFast:
    """
    A token for each bit, query, answer and budget. The words of the generator's template are dropped: the generator
    then reads a gist and a query just as the frozen reader does a string and a query, and can start as that reader.
    """
    tokens = ["0", "1", "</s>", "<pad>", *(f"?{query}" for query in QUERIES), *(f"={n}" for n in range(ANSWERS))]
    tokens += [f"<{n}>" for n in range(1, MAX_LENGTH + 1)]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"GIST:|\nLAST K TOKENS:|\nCONTINUE:"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[01]|[?=]\w+|<\w+>"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
