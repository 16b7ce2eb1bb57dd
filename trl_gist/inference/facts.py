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
Which facts a compaction keeps: by rule, in milliseconds, and whatever the models know.

A fact is a name, a number or a date, as a target of that kind is ([`~data.targets.fact_spans`]). A text has it if it has
all of its words and numbers, in whatever order and case. These facts are spans, of one word or of several; those of
[`evaluation.distance.facts`] are single words.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from ..common.text_units import words_and_numbers
from ..common.tokens import decode
from ..data.targets import fact_characters, fact_spans


def find_facts(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], first: int = 0, last: int | None = None
) -> list[str]:
    """
    The different facts of a text, in order.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            The text, with what stands before and after, since a fact may begin or end there.
        first, last (`int`, *optional*):
            Only facts of which the last token is one of `ids[first:last]`: of the parts of a text each fact is so in one.
    """
    last = len(ids) if last is None else last
    spans = [(start, end) for start, end in fact_spans(tokenizer, ids) if first < end <= last]
    return different(decode(tokenizer, ids[start:end]).strip() for start, end in spans)


def facts_of_text(text: str) -> list[str]:
    """As [`find_facts`] of a text by itself, where its tokenizer is elsewhere; also those that share a token."""
    return different(text[start:end] for start, end in fact_characters(text))


def different(facts: Iterable[str]) -> list[str]:
    """Facts, each once, as it is said first."""
    return list({words_and_numbers(fact): fact for fact in reversed([*facts])}.values())[::-1]


def kept_and_dropped(facts: Iterable[str], text: str) -> dict[str, list[str]]:
    """As [`~inference.session.state.Compaction`] says them: the facts that a text has, and those that it lacks."""
    units = words_and_numbers(text)
    found = {"facts_kept": [], "facts_dropped": []}
    for fact in facts:
        found["facts_kept" if words_and_numbers(fact) <= units else "facts_dropped"].append(fact)
    return found
