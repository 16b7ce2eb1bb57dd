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
Stop-word drop: content words only, as search engines have done since [Luhn
(1958)](https://doi.org/10.1147/rd.22.0159).

The content words of a context are mostly still too many, so those nearest to its end stay; where they are too few, the
stop words nearest to the end fill the budget.
"""

from dataclasses import dataclass

from ...common.arguments import several
from .base import ExtractiveCompressor, best_words, split_words


# English words of closed classes: articles, pronouns, prepositions, conjunctions, auxiliaries and a few adverbs. The
# lists on offer in packages go much further ("bill", "billion"), to where words are the content of a gist.
STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and another any are as at be because been before being below
    between both but by can could did do does doing down during each either else ever few for from further had has have
    having he her here hers herself him himself his how however i if in into is it its itself just me more most much my
    myself neither no nor not of off on once only or other our ours ourselves out over own same she should so some such
    than that the their theirs them themselves then there these they this those through to too under until up upon us
    very was we were what when where whether which while who whom whose why will with would you your yours yourself
    yourselves
    """.split()
)


@dataclass
class StopWordDrop(ExtractiveCompressor):
    """
    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            See [`ExtractiveCompressor`].
        stop_words (`frozenset[str]`, *optional*, defaults to `STOP_WORDS`):
            In lower case. Punctuation and spaces count as stop words too.
    """

    stop_words: frozenset[str] = STOP_WORDS

    def __post_init__(self):
        self.stop_words = frozenset(several("stop_words", self.stop_words, "words", "put it in a set"))

    def keep(self, contexts: list[list[int]], budgets: list[int]) -> list[list[int]]:
        return [self._keep(context, budget) for context, budget in zip(contexts, budgets, strict=True)]

    def _keep(self, context, budget):
        _, words = split_words(self.tokenizer, context)
        content = [
            any(character.isalnum() for character in word.text) and word.text.lower() not in self.stop_words
            for word in words
        ]
        # The later the better, and any content word better than any stop word
        scores = [place + len(words) * is_content for place, is_content in enumerate(content)]
        return best_words(words, scores, budget)
