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


"""What a compressor is, and what those that cut tokens out of the context have in common."""

import re
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from ...common.tokens import Spelled, special_ids


# Numbers and contractions are one word, a run of punctuation is one
_WORD = re.compile(r"\w+(?:['’]\w+|[.,]\d+)*|[^\w\s]+")


class Compressor(Protocol):
    """Anything that writes gists: the compressors of this folder, or an outside one."""

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """
        Writes a gist of each context. The same call gives the same gists.

        Args:
            contexts (`list[list[int]]`):
                Token ids of what the generator does not see by itself; see [`~prompts.before_last_k`].
            budgets (`list[int]`):
                The most tokens that each gist may have.

        Returns:
            `list[list[int]]`: Token ids of the same vocabulary, no special tokens among them, never more than the
            budget, and as many where there is enough to say.
        """
        ...


def compress_within(
    name: str,
    compressor: Compressor,
    contexts: list[list[int]],
    budgets: list[int],
    special_ids: frozenset[int],
    once: bool = False,
) -> list[list[int]]:
    """
    A compressor's gist of each context.

    Args:
        name (`str`), compressor ([`Compressor`]):
            Which.
        contexts (`list[list[int]]`), budgets (`list[int]`):
            As of [`Compressor.compress`].
        special_ids (`frozenset[int]`):
            Tokens that no gist may have.
        once (`bool`, *optional*, defaults to `False`):
            Whether a context that comes again with the same budget, as for another question, is compressed once.

    Raises:
        ValueError: with the compressor's name, if a gist has more tokens than its budget, or special ones.
    """
    asked = [(tuple(context), budget) for context, budget in zip(contexts, budgets, strict=True)]
    each = list(dict.fromkeys(asked)) if once else asked
    gists = compressor.compress([list(context) for context, _ in each], [budget for _, budget in each])
    for (_, budget), gist in zip(each, gists, strict=True):
        if len(gist) > budget or special_ids & set(gist):
            raise ValueError(
                f"The compressor {name!r} wrote a gist of {len(gist)} tokens, {len(special_ids & set(gist))} of them "
                f"special, on a budget of {budget}. It may have no more, and none that are special."
            )
    if not once:
        return gists
    gist_of = dict(zip(each, gists, strict=True))
    return [gist_of[key] for key in asked]


def without_special(tokenizer: PreTrainedTokenizerBase, contexts: list[list[int]]) -> list[list[int]]:
    """Contexts without special tokens, which no gist has."""
    special = special_ids(tokenizer)
    return [[token for token in context if token not in special] for context in contexts]


@dataclass
class ExtractiveCompressor:
    """
    Keeps some tokens of the context, in the order they came, and drops the others. A subclass says which.

    Whole tokens are dropped, never characters: in the vocabularies of byte-level BPE and SentencePiece a token carries
    the space before it, so what is left is text, its length is exact, and nothing is tokenised again.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids. Its special tokens are dropped first.
    """

    tokenizer: PreTrainedTokenizerBase

    def compress(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """See [`Compressor`]. A context within its budget is kept as it is."""
        contexts = without_special(self.tokenizer, contexts)
        gists = [context[:budget] for context, budget in zip(contexts, budgets, strict=True)]
        cut = [row for row, context in enumerate(contexts) if 0 < budgets[row] < len(context)]
        if cut:
            kept = self.keep([contexts[row] for row in cut], [budgets[row] for row in cut])
            for row, positions in zip(cut, kept, strict=True):
                gists[row] = [contexts[row][position] for position in sorted(positions)]
        return gists

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """Positions of the tokens to keep, in any order. Every context is longer than its budget of at least 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class Word:
    """A word of a context: `positions` of its tokens, its `text`, and the `start` and `end` of it in characters."""

    positions: list[int]
    text: str
    start: int
    end: int


def split_words(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> tuple[str, list[Word]]:
    """
    The text of token ids, and its words in order. A run of punctuation, and a token that is only space, is a word too.
    """
    spelled = Spelled(tokenizer, token_ids)
    text = spelled.text
    word_of = {place: match.start() for match in _WORD.finditer(text) for place in range(*match.span())}
    words, previous, start = [], None, 0
    for position, end in enumerate(spelled.ends):  # of tokens that share a character the first takes it to its word
        piece = text[start:end]
        first = start + len(piece) - len(piece.lstrip())
        name = word_of.get(first, ("space", start)) if piece else previous
        if words and name == previous:
            before = words[-1]
            words[-1] = Word([*before.positions, position], text[before.start : end].strip(), before.start, end)
        else:
            words.append(Word([position], piece.strip(), start, end))
        previous, start = name, end
    return text, words


def best_words(words: list[Word], scores: list[float], budget: int) -> list[int]:
    """
    Positions of the best-scored words that fit, whole: one that is too long for what is left gives way to the next, so
    that the budget is used. Among equals the first comes first.
    """
    kept = []
    for word in sorted(range(len(words)), key=lambda word: -scores[word]):
        if len(kept) + len(words[word].positions) <= budget:
            kept += words[word].positions
    return kept
