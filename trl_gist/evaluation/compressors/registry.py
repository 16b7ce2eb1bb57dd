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

"""The compressors by name, as the command line and a comparison take them."""

from collections.abc import Iterable
from os import PathLike

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.arguments import known_name, several
from ...inference.compactor import GistCompactor
from ...scoring.extraction import TokenRarity
from . import (
    Compressor,
    Facts,
    FromFile,
    Head,
    Keywords,
    PerplexityPruning,
    RandomDrop,
    SelfInformation,
    StopWordDrop,
    SurprisingFacts,
    Tail,
    TokenClassifier,
    ZeroShot,
)


# Of extractive_compressors; and of standard_compressors, without outside systems
EXTRACTIVE_COMPRESSORS = (
    *("head", "tail", "random drop", "stop-word drop", "facts", "surprising facts", "tf-idf", "tf-idf, then tail"),
    *("self-information", "perplexity pruning"),
)
# Of these, those that learn how rare a token is, and those that run the teacher
_BY_RARITY = {"surprising facts", "tf-idf", "tf-idf, then tail"}
ASKS_THE_TEACHER = ("surprising facts", "self-information", "perplexity pruning")
COMPRESSORS = (*EXTRACTIVE_COMPRESSORS, "token classifier", "zero-shot summary")


def compressor_name(name: str, known: Iterable[str] = EXTRACTIVE_COMPRESSORS) -> str:
    """A compressor's name as tables have it, of one that may be spelled otherwise; see [`~common.arguments.known_name`]."""
    return known_name(name, known)


def standard_compressors(
    compactor: GistCompactor,
    teacher: PreTrainedModel,
    contexts: Iterable[list[int]],
    token_classifier: str | None = None,
    gist_files: dict[str, str | PathLike] | None = None,
    batch_size: int = 8,
) -> dict[str, Compressor | str]:
    """
    Every compressor there is for a pair, by the name it has in tables.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        teacher ([`~transformers.PreTrainedModel`]):
            The language model of those that prune by surprise.
        contexts (`Iterable[list[int]]`):
            Token ids from which tf-idf learns how rare a token is.
        token_classifier (`str`, *optional*):
            LLMLingua-2's checkpoint; see [`TokenClassifier.from_pretrained`].
        gist_files (`dict[str, str | os.PathLike]`, *optional*):
            Outside systems: their names and files; see [`FromFile`].
        batch_size (`int`, *optional*, defaults to `8`):
            Contexts in one forward.

    Returns:
        `dict[str, Compressor | str]`: In place of a compressor that lacks what it needs, the reason.
    """
    tokenizer = compactor.tokenizer
    classifier = "no checkpoint given: pass LLMLingua-2's as `token_classifier`"
    if token_classifier is not None:
        classifier = TokenClassifier.from_pretrained(tokenizer, token_classifier, compactor.generator.device)
    return {
        **extractive_compressors(tokenizer, teacher, contexts, batch_size),
        "token classifier": classifier,
        "zero-shot summary": ZeroShot(compactor, batch_size=batch_size),
        **{name: FromFile(tokenizer, path) for name, path in (gist_files or {}).items()},
    }


def extractive_compressors(
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel,
    contexts: Iterable[list[int]],
    batch_size: int = 8,
    names: Iterable[str] = EXTRACTIVE_COMPRESSORS,
) -> dict[str, Compressor]:
    """Those of [`standard_compressors`] that need no pair: tokens of the context, kept or dropped, and what stands
    between them in a list; all, or those named. Contexts are read only where one of them learns from them. Raises
    `ValueError` for a name that is none of theirs."""
    names = [compressor_name(name) for name in several("names", names, "names", "put it in a list")]
    if unknown := [name for name in names if name not in EXTRACTIVE_COMPRESSORS]:
        raise ValueError(f"`names` must be some of {EXTRACTIVE_COMPRESSORS}, got {unknown}.")
    rarity = TokenRarity(contexts if _BY_RARITY & set(names) else ())
    every = {
        "head": Head(tokenizer),
        "tail": Tail(tokenizer),
        "random drop": RandomDrop(tokenizer),
        "stop-word drop": StopWordDrop(tokenizer),
        "facts": Facts(tokenizer),
        "surprising facts": SurprisingFacts(tokenizer, teacher, rarity, batch_size),
        "tf-idf": Keywords(tokenizer, rarity),
        "tf-idf, then tail": Keywords(tokenizer, rarity, share=0.5),
        "self-information": SelfInformation(tokenizer, teacher, batch_size),
        "perplexity pruning": PerplexityPruning(tokenizer, teacher, batch_size=batch_size),
    }
    return {name: every[name] for name in names}
