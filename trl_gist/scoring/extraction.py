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
What rules cut out of a context: rare tokens, surprising ones, facts, passages, and the tail beside them.

Pieces of one text stand side by side in a gist, and the digits of two numbers would be those of a third: where each digit is
a token, as of SmolLM2, so is the space before a number, and a rule may leave it out. What parts them in the text is then
kept too, within the gist's length ([`kept_apart`]).
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..common.text_units import Units, folded_fact
from ..common.tokens import Spelled, characters_of
from ..data.targets import fact_spans, sentence_spans
from ..models.lm_head import token_log_probs
from ..models.roles import backbone_of, base_of
from ..prompts import bos_ids


IDF_CONTEXTS = 1000  # as many tell how rare a token is
BESIDE_TAIL = ("keywords", "beginning", "passage")


class TokenRarity:
    """
    How rare each token is among contexts.

    Args:
        contexts (`Iterable[list[int]]`):
            The contexts to learn it from.
    """

    def __init__(self, contexts: Iterable[list[int]]):
        self.document_frequencies, self.documents = Counter(), 0
        for context_ids in contexts:
            self.document_frequencies.update(set(context_ids))
            self.documents += 1

    def tf_idf(self, context_ids: list[int]) -> list[float]:
        """For each token of a context: how often it comes in it, times the log of how rare it is in others."""
        counts = Counter(context_ids)
        return [
            counts[token] * math.log((1 + self.documents) / (1 + self.document_frequencies[token]))
            for token in context_ids
        ]


def surprisals(
    model: nn.Module, sequences: list[list[int]], bos: tuple[int, ...] = (), batch_size: int = 8
) -> list[list[float]]:
    """
    −log p of each token after those before it, in nats.

    Args:
        model (`torch.nn.Module`):
            A causal language model, or one under an adapter.
        sequences (`list[list[int]]`):
            Token ids, none of them empty.
        bos (`tuple[int, ...]`, *optional*):
            What comes before each sequence. Without it there is nothing to expect a first token from, and its
            surprisal is 0.
        batch_size (`int`, *optional*, defaults to `8`):
            Sequences in one forward.
    """
    base = base_of(model)
    device = base.get_input_embeddings().weight.device
    known = max(1, len(bos))
    surprisals_N = []
    for start in range(0, len(sequences), batch_size):
        rows = [torch.tensor([*bos, *ids]) for ids in sequences[start : start + batch_size]]
        # Padded on the right: causal attention never looks there
        ids_NS = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths = [len(row) - known for row in rows]
        with torch.no_grad():
            hidden_NSH = backbone_of(base)(input_ids=ids_NS, use_cache=False).last_hidden_state[:, known - 1 :]
            hidden_PH = torch.cat([row_SH[:length] for row_SH, length in zip(hidden_NSH, lengths, strict=True)])
            token_ids_P = torch.cat([row[known:] for row in rows]).to(device)
            logps_P, _ = token_log_probs(base, hidden_PH, token_ids_P, temperature=1.0)
        first = [] if bos else [0.0]
        surprisals_N += [[*first, *row_T] for row_T in (values_T.tolist() for values_T in (-logps_P).split(lengths))]
    return surprisals_N


def kept_apart(tokenizer: PreTrainedTokenizerBase, ids: list[int], ranked: Iterable[int], length: int) -> list[int]:
    """
    Which tokens of a text a gist keeps, of those that a rule finds the best, so that numbers stay apart.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            The text.
        ranked (`Iterable[int]`):
            Their positions, the best first.
        length (`int`):
            The most tokens of the gist.

    Returns:
        `list[int]`: Positions in order. Unless digits of two numbers would meet, the first `length` that are ranked. Else
        also the last character between them in the text that is no part of a number, and in its room fewer of the others.
    """
    spelled, ranked = Spelled(tokenizer, ids), iter(ranked)
    best = list(itertools.islice(ranked, length))
    if len(gist := with_breaks(spelled, best)) <= length:
        return gist
    kept, gist = [], []
    for place in itertools.chain(best, ranked):
        if len(gist) == length:
            break
        if len(more := with_breaks(spelled, [*kept, place])) <= length:
            kept, gist = [*kept, place], more
    return gist


def with_breaks(spelled: Spelled, places: Iterable[int]) -> list[int]:
    """Positions of a text's tokens in order, and those of the characters that [`kept_apart`] keeps between numbers."""
    places, end = set(places), None  # of the last digit, if only points and commas have followed it
    for place in sorted(places):
        for at in range(spelled.starts[place], spelled.ends[place]):
            if spelled.text[at].isdecimal():
                since = range(at if end is None else end, at)
                for sign in [between for between in since if not _of_number(spelled.text[between])][-1:]:
                    places |= {*range(spelled.first[sign], spelled.last[sign] + 1)}
                end = at + 1
            elif not _of_number(spelled.text[at]):
                end = None
    return sorted(places)


def _of_number(sign):
    return sign.isdecimal() or sign in ".,"


def each_once(tokenizer: PreTrainedTokenizerBase, ids: list[int], spans: list[tuple[int, int]]) -> list[range]:
    """Positions of each of a text's facts, of [`fact_spans`], where it comes first: as of [`folded_fact`] it is one."""
    facts = {}
    for start, end in spans:
        facts.setdefault(_folded(tokenizer, ids[start:end]), range(start, end))
    return list(facts.values())


def surprising_facts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[list[int]],
    lengths: list[int],
    rarity: TokenRarity,
    cue_length: int = 12,
    batch_size: int = 64,
) -> list[list[int]]:
    """
    Gists cut by rule: of a context's facts the tokens that a model expects least when it has read but the few tokens
    before them, in their order, without commas. That is about what it gains from the context where it is asked for a
    fact, since the context says it. Where the facts run out, the context's rarest other words stand among them.

    Args:
        model (`torch.nn.Module`):
            A causal language model, or one under an adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        contexts (`list[list[int]]`):
            Token ids without special ones.
        lengths (`list[int]`):
            The most tokens of each gist.
        rarity ([`TokenRarity`]):
            Says which other words are rare.
        cue_length (`int`, *optional*, defaults to `12`):
            Tokens that the model reads before a fact.
        batch_size (`int`, *optional*, defaults to `64`):
            Facts in one forward.
    """
    facts_D, said_D = [], []
    for ids in contexts:
        spans = fact_spans(tokenizer, ids)
        facts_D.append(each_once(tokenizer, ids, spans))
        said_D.append({position for span in spans for position in range(*span)})
    read = [
        ids[max(0, fact.start - cue_length) : fact.stop]
        for ids, facts in zip(contexts, facts_D, strict=True)
        for fact in facts
    ]
    # A forward even where there is no fact: the ranks of a sharded model run as many
    surprise = iter(surprisals(model, read or [[0]], bos_ids(tokenizer), batch_size))
    gists = []
    for ids, facts, said, length in zip(contexts, facts_D, said_D, lengths, strict=True):
        value = {place: v for fact in facts for place, v in zip(fact, next(surprise)[-len(fact) :], strict=True)}
        others = _rare_words(tokenizer, ids, rarity, set(range(len(ids))) - said, {ids[place] for place in value})
        ranked = itertools.chain(sorted(value, key=lambda place: -value[place]), others)
        kept = kept_apart(tokenizer, ids, ranked, length)
        gists.append(characters_of(tokenizer).whole([ids[place] for place in kept]))
    return gists


def _rare_words(tokenizer, ids, rarity, places, taken):
    """Positions of words among some, the rarest first, each once, and none of tokens that are taken."""
    scores = rarity.tf_idf(ids)
    for place in sorted(places, key=lambda place: -scores[place]):
        if ids[place] not in taken and any(map(str.isalnum, tokenizer.decode(ids[place]))):
            taken.add(ids[place])
            yield place


def answering_sentences(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], targets: list[dict], length: int, text_ids: list[int]
) -> list[int]:
    """
    A gist cut with hindsight: the sentences of a text that answer what it is asked, in their order.

    A target is answered by the sentence that has all its words in a row; of several the one that has most words of its
    cue, and of these the last, since what is said later holds. Where only a lesser one is left, it is not answered.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            Where they are looked for: the text, or what is left of it, as an earlier gist and the newest chunk.
        targets (`list[dict]`):
            With `cue_ids` and `target_ids`.
        length (`int`):
            The most tokens of the gist, which is cut there. Where no sentence answers anything, it has none.
        text_ids (`list[int]`):
            The text.
    """

    def words(ids):
        return Units(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).folded

    def with_answer(sentences, target):
        """Places of sentences, each after the words that it shares with the cue."""
        answer, cue = f" {' '.join(words(target['target_ids']))} ", set(words(target["cue_ids"]))
        places = (place for place, said in enumerate(sentences) if answer in f" {' '.join(said)} ")
        return [(len(cue.intersection(sentences[place])), place) for place in places]

    spans = sentence_spans(tokenizer, ids)
    sentences = [words(ids[start:end]) for start, end in spans]
    of_text = [words(text_ids[start:end]) for start, end in sentence_spans(tokenizer, text_ids)]
    kept = set()
    for target in targets:
        shared, place = max(with_answer(sentences, target), default=(0, None))
        if place is not None and shared >= max(with_answer(of_text, target), default=(0,))[0]:
            kept.add(place)
    spelled, newline, gist, last = Spelled(tokenizer, ids), _within_text(tokenizer, "\n"), [], 0
    for start, end in (spans[place] for place in sorted(kept)):
        if gist and last < start:
            seam = spelled.text[spelled.ends[last - 1] - 1] + spelled.text[spelled.starts[start]]
            # Without it the two would be one to whoever goes on from the gist
            gist += [] if any(map(str.isspace, seam)) else newline
        gist += ids[start:end]
        last = end
    return gist[: characters_of(tokenizer).cut(gist, length)]


def keywords_and_tail(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], scores_T: list[float], length: int, share: float
) -> list[int]:
    """
    Positions of the tokens of a gist that is part keywords, part tail.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        token_ids (`list[int]`):
            The context.
        scores_T (`list[float]`):
            How much each of its tokens is worth as a keyword.
        length (`int`):
            Tokens of the gist, which is shorter only where the context has no more, or no more different ones.
        share (`float`):
            The keywords' share of it. They are the best-scored tokens before the tail, each at its first occurrence.
    """
    tail = min(round(length * (1 - share)), len(token_ids))
    rest = len(token_ids) - tail
    first = {}
    for position in range(rest):
        first.setdefault(token_ids[position], position)
    keywords = sorted(first.values(), key=lambda position: -scores_T[position])
    return kept_apart(tokenizer, token_ids, [*range(rest, len(token_ids)), *keywords], length)


def passage_and_tail(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], scores_T: list[float], length: int, share: float
) -> list[int]:
    """
    Positions of the tokens of a gist that is part passage, part tail.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        token_ids (`list[int]`):
            The context.
        scores_T (`list[float]`):
            How much each token of the context is worth.
        length (`int`):
            Tokens of the gist, which is shorter only where the context is.
        share (`float`):
            The passage's share of it: the adjacent tokens before the tail with the greatest sum of scores, the first
            of equals.
    """
    tail = min(round(length * (1 - share)), len(scores_T))
    rest = len(scores_T) - tail
    size = min(length - tail, rest)
    sums = list(itertools.accumulate(scores_T, initial=0.0))
    start = max(range(rest - size + 1), key=lambda start: sums[start + size] - sums[start])
    # What is before the passage, if numbers that stand apart leave room for it
    ranked = [*range(rest, len(scores_T)), *range(start, start + size), *reversed(range(start))]
    return kept_apart(tokenizer, token_ids, ranked, length)


def fact_list(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], length: int, draw: random.Random | None = None
) -> list[int]:
    """
    A gist cut by rule: a text's facts from its start, each once, whatever its case, with commas between them. A comma
    between two numbers without a space would make them one: there stands what is before the second in the text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            The text.
        length (`int`):
            The most tokens of the gist. A fact that does not fit whole is cut.
        draw (`random.Random`, *optional*):
            Draws which facts are listed, in their order. Without it they are the first ones.
    """
    comma, facts = _within_text(tokenizer, ","), each_once(tokenizer, ids, fact_spans(tokenizer, ids))
    places = list(range(len(facts)))
    if draw is not None:
        draw.shuffle(places)
    room, listed = length + len(comma), []
    for place in places:
        if room > 0:
            room -= len(facts[place]) + len(comma)
            listed.append(place)
    listed = [facts[place] for place in sorted(listed)]
    said = {position for fact in listed for position in fact}
    breaks = [position for position in with_breaks(Spelled(tokenizer, ids), said) if position not in said]
    gist = _joined(ids, listed, comma, breaks)
    return gist[: characters_of(tokenizer).cut(gist, length)]


def recurring_facts(tokenizer: PreTrainedTokenizerBase, ids: list[int], length: int, text_ids: list[int]) -> list[int]:
    """
    A gist cut by rule: the facts that are said most often in what it is cut from, each once, in their order, with semicolons
    between them. They are counted where a summarizer reads them, so that it can learn to. Where they leave room there are
    also the other words that are said most often, but for function words. So a summarizer that imitates such lists does not
    learn to stop early: where each next word is a guess, to stop would be the likeliest.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            The text, or what is left of it: an earlier gist and the newest chunk. Of facts that it says as often, those that
            come first stay.
        length (`int`):
            The most tokens of the gist. What does not fit whole is left out.
        text_ids (`list[int]`):
            The text. A fact that it does not say, as a summarizer's gist may, is left out.
    """
    separator = _within_text(tokenizer, ";")
    ids = [*separator, *ids]  # a list begins with a name, which at a text's head would be a capitalised word
    room, listed = length + len(separator), []
    for spans, spans_of_text in zip(
        _facts_and_words(tokenizer, ids), _facts_and_words(tokenizer, text_ids), strict=True
    ):
        found = each_once(tokenizer, ids, spans)
        names = [_folded(tokenizer, [ids[position] for position in piece]) for piece in found]
        counts = Counter(_folded(tokenizer, ids[slice(*span)]) for span in spans)
        said = {_folded(tokenizer, text_ids[slice(*span)]) for span in spans_of_text}
        for place in sorted(range(len(found)), key=lambda place: -counts[names[place]]):
            needed = len(found[place]) + len(separator)
            if names[place] in said and needed <= room:
                room -= needed
                listed.append(found[place])
    return _joined(ids, sorted(listed, key=lambda piece: piece.start), separator)


def _facts_and_words(tokenizer, ids):
    """Spans of a text's facts, and of its words that are neither of a fact nor function words."""
    facts, spelled = fact_spans(tokenizer, ids), Spelled(tokenizer, ids)
    taken, units = {place for span in facts for place in range(*span)}, Units(spelled.text)
    words = [
        spelled.tokens(*span) for span, kind in zip(units.spans, units.kinds, strict=True) if kind in ("name", "other")
    ]
    return facts, [span for span in words if span is not None and taken.isdisjoint(range(*span))]


def _folded(tokenizer, ids):
    return folded_fact(tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip())


def _joined(ids, facts, separator, breaks=()):
    """Facts with a separator between two, or in its place with those of some positions that are between them."""
    gist, end = [], 0
    for fact in facts:
        if gist:
            gist += [ids[position] for position in breaks if end <= position < fact.start] or separator
        gist += [ids[position] for position in fact]
        end = fact.stop
    return gist


def _within_text(tokenizer, sign):
    """Token ids of a sign within a text: at its beginning SentencePiece would put a space before it."""
    word, both, alone = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"a{sign}", sign))
    return both[len(word) :] if both[: len(word)] == word else alone
