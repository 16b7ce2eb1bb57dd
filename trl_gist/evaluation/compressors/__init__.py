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
Other ways to make a gist, to hold the trained summarizer against. All of them are one method: `compress(contexts,
budgets)` from token ids to token ids, [`Compressor`].

| compressor | what stays | paper |
|---|---|---|
| [`Head`], [`Tail`] | the first tokens, the last tokens | [See et al., 2017](https://huggingface.co/papers/1704.04368) |
| [`RandomDrop`] | tokens at random | [Selective-Context](https://huggingface.co/papers/2310.06201) |
| [`StopWordDrop`] | content words, from the end | [Luhn, 1958](https://doi.org/10.1147/rd.22.0159) |
| [`Facts`] | names, numbers and dates, from the start | |
| [`SurprisingFacts`] | of these, the tokens that a language model did not expect | |
| [`Keywords`] | rare tokens by tf-idf, alone or before the tail | [Spärck Jones, 1972](https://doi.org/10.1108/eb026526) |
| [`SelfInformation`] | words that a language model did not expect | [Selective-Context](https://huggingface.co/papers/2310.06201) |
| [`PerplexityPruning`] | the same by tokens, each segment after what was kept | [LLMLingua](https://huggingface.co/papers/2310.05736) |
| [`TokenClassifier`] | words that a classifier was trained to keep | [LLMLingua-2](https://huggingface.co/papers/2403.12968) |
| [`ZeroShot`] | a summary by the summarizer's base, untrained | [Goyal et al., 2022](https://huggingface.co/papers/2209.12356) |
| [`TrainedSummarizer`] | a gist by a pair's summarizer | this one |
| [`FromFile`] | what any outside system wrote, as JSON lines | |
"""

from .base import Compressor, ExtractiveCompressor
from .facts import Facts, SurprisingFacts
from .from_file import FromFile, write_contexts
from .keywords import Keywords
from .perplexity_pruning import PerplexityPruning
from .random_drop import RandomDrop
from .self_information import SelfInformation
from .stop_words import StopWordDrop
from .token_classifier import TokenClassifier
from .trained import TrainedSummarizer
from .truncation import Head, Tail
from .zero_shot import ZeroShot


__all__ = [
    "Compressor",
    "ExtractiveCompressor",
    "Facts",
    "FromFile",
    "Head",
    "Keywords",
    "PerplexityPruning",
    "RandomDrop",
    "SelfInformation",
    "StopWordDrop",
    "SurprisingFacts",
    "Tail",
    "TokenClassifier",
    "TrainedSummarizer",
    "ZeroShot",
    "write_contexts",
]
