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
What a gist is paid for: the targets of a context, each a cue that the generator reads and the tokens after it.

Targets made by rule stand in the document itself, so that nothing has to be written for them. All is in token space:
a target's ids are the document's own, wherever it is cut. How documents are cut is in `windows.py`.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import regex
from transformers import PreTrainedTokenizerBase

from ..common.arguments import whole_number
from ..common.geometry import Geometry, WindowedText
from ..common.statistics import is_number
from ..common.text_units import DATE, Units
from ..common.tokens import Spelled, characters_of
from ..prompts import through_last_k


# Made by rule, in a document; questions come with a dataset of ready windows
RULE_KINDS = ("continuation", "fact", "recall", "far")
_KINDS = ", ".join(map(repr, RULE_KINDS))
# Of a target in a ready window that does not say its kind
QUESTION = "question"

# Where nothing else is asked for: targets of a context; and what T must gain for one to count, in nats per token
TARGETS_PER_CONTEXT, TARGET_FLOOR = 8, 0.1

# Tokens: a fact that is longer is rarely one name; a cue, or the rest of a sentence, that is shorter says nothing
_LONGEST_FACT, _SHORTEST_CUE, _SHORTEST_REST = 12, 4, 4
# Tokens after X that tell whether its last sentence ends there
_LOOK_AHEAD = 8

# A point may be of an abbreviation, unless what follows may begin a sentence; other scripts' marks say it by themselves.
# Thai and Lao have none, and no spaces between words: one stands between sentences, or their parts
_SPACED = r"[[\p{Thai}\p{Lao}]&&[\p{L}\p{M}]--[ๆໆฯຯ]]"  # signs of repetition and abbreviation have spaces of their own
_SENTENCE_END = regex.compile(
    rf"""
    [.!?]+ ["'\p{{Pe}}\p{{Pf}}]* (?= \s+ ["'\p{{Ps}}\p{{Pi}}]* [\p{{Lu}}\p{{Lt}}\p{{Lo}}] | \s*\n | \s*\Z )
    | [\p{{Sentence_Terminal}}--[.!?]] ["'\p{{Pe}}\p{{Pf}}]*
    | (?<= {_SPACED} ) (?= [^\S\n]+ {_SPACED} | [^\S\n]*\n (?! \s*\n ) | \s*\Z )
    """,
    regex.VERBOSE | regex.VERSION1,
)
_BLANK_LINE = regex.compile(r"\n\s*\n")


class WindowLengths(Protocol):
    """What a target is cut by of a [`WindowSpec`], in tokens."""

    context_length: int
    target_length: int
    last_k: int


@dataclass(frozen=True)
class TargetSpec:
    """
    Which targets a window gets.

    Attributes:
        kinds (`tuple[tuple[str, float], ...]`, *optional*):
            Names of `RULE_KINDS`, each with its weight: how many of the targets are of that kind, relative to the
            others, in the mean over windows. Defaults to the continuation alone.
        targets_per_context (`int`, *optional*, defaults to `8`):
            Targets of a window, of all kinds together; fewer where a context has fewer.
        cue_length (`int`, *optional*, defaults to `12`):
            Tokens before a fact that the generator reads, at most; of a sentence to recall it reads half as many.
        far_offset (`int`, *optional*, defaults to `128`):
            Tokens between the context and a far target.
        recall_age (`tuple[float, ...]`, *optional*):
            In a walk over several windows, how many of a window's targets stand in its own chunk, in the one before it,
            and so on, relative to the others; `(1, 1, 1)` asks of each of the last three alike. `None` asks of all
            chunks so far. The continuation is the window's own, and so is what is far.

    Raises:
        ValueError: for a kind that is unknown or named twice, or a number that is too small.
    """

    kinds: tuple[tuple[str, float], ...] = (("continuation", 1),)
    targets_per_context: int = TARGETS_PER_CONTEXT
    cue_length: int = 12
    far_offset: int = 128
    recall_age: tuple[float, ...] | None = None

    def __post_init__(self):
        names = self.names
        if not names:
            raise ValueError(f"`target_kinds` is empty: name at least one of {_KINDS} with its weight.")
        for name, weight in self.kinds:
            if name not in RULE_KINDS:
                raise ValueError(
                    f"`target_kinds` has {name!r}, which no rule makes: name some of {_KINDS}, or give other targets as a "
                    "dataset with columns `context` and `targets`."
                )
            if names.count(name) > 1:
                raise ValueError(f"`target_kinds` has {name!r} more than once: add its weights up.")
            if not is_number(weight) or not 0 < weight < math.inf:
                raise ValueError(
                    f"The weight of {name!r} in `target_kinds` must be positive, got {weight!r}; or leave it out."
                )
        for name, least in (("targets_per_context", 1), ("cue_length", 2), ("far_offset", 1)):
            whole_number(name, getattr(self, name), least)
        ages = self.recall_age
        if ages is not None and not (all(is_number(age) and 0 <= age < math.inf for age in ages) and sum(ages) > 0):
            raise ValueError(
                f"`recall_age` must be weights of which none is negative and one is positive, of targets in a window's own "
                f"chunk, in the one before it, and so on, got {ages!r}; or leave it out, to ask of all alike."
            )

    def check_ages(self, windows: int, setting: str = "windows_per_document"):
        """Raises `ValueError` if `recall_age` asks for chunks that no walk over so many windows, as a setting says, has."""
        oldest = max((age for age, weight in enumerate(self.recall_age or ()) if weight > 0), default=0)
        if oldest >= windows:
            raise ValueError(
                f"`recall_age` ({list(self.recall_age)}) asks for what was said {oldest} windows ago, and in a walk over "
                f"`{setting}` ({windows}) nothing is older than {windows - 1}: raise that, or give fewer weights."
            )

    def age_weights(self, window: int) -> dict[int, float]:
        """Of each age that a target of a walk's window, counted from 0, may have."""
        ages = [1.0] * (window + 1) if self.recall_age is None else self.recall_age[: window + 1]
        return {age: weight for age, weight in enumerate(ages) if weight > 0}

    @property
    def names(self) -> list[str]:
        """Of the kinds."""
        return [name for name, _ in self.kinds]

    @property
    def is_continuation(self) -> bool:
        """Whether it is the one target that every window has anyway."""
        return self.names == ["continuation"]

    def largest(self, spec: WindowLengths) -> list[tuple[int, int, int]]:
        """
        Tokens of the cue, of the target and of what T reads between X and it, of each target of a large context: one that
        offers as many of every kind as the weights ask for, each of its greatest length.
        """
        sizes = {
            "continuation": (spec.last_k, spec.target_length, 0),
            "fact": (self.cue_length, _LONGEST_FACT, self.cue_length),
            "recall": (self.cue_length // 2, spec.target_length, self.cue_length // 2),
            "far": (spec.last_k, spec.target_length, self.far_offset),
        }
        one = ("continuation", "far")
        available = {name: 1 if name in one else self.targets_per_context for name, _ in self.kinds}
        counts = max(
            (_shares(self.targets_per_context, dict(self.kinds), available, draw / 16) for draw in range(16)),
            key=lambda counts: sum(sum(sizes[name]) * count for name, count in counts.items()),
        )
        return [sizes[name] for name, count in counts.items() for _ in range(count)]


# ---- A window's targets ----


def make_targets(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    start: int,
    spec: WindowLengths,
    targets: TargetSpec,
    brought: list[dict] | None = None,
) -> list[dict]:
    """
    The targets of one window, drawn from all that its document offers.

    Which are drawn depends on the window's ids alone: on every rank, and in whatever order, a window has the same.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            The whole document's.
        start (`int`):
            Where the window begins: its context is `ids[start : start + spec.context_length]`.
        spec ([`WindowSpec`]):
            Lengths of context, target and last tokens.
        targets ([`TargetSpec`]):
            What is drawn.
        brought (`list[dict]`, *optional*):
            What there is to draw from in place of what the rules make: of each target `kind`, `cue_ids`, `target_ids`,
            and `at` and `until`, the tokens of the window after which it is known and, unless that is `None`, no longer
            true.

    Returns:
        In order of kind, then of place, dictionaries of `kind`, `cue_ids` (what G reads before the target), `target_ids`
        and `after_ids` (what T reads between X and the target). Fewer than `targets_per_context` where the window has no
        more, and none where it has none.
    """
    window = ids[start : start + spec.context_length + spec.target_length]
    if brought is not None:
        end = characters_of(tokenizer).cut(ids, start + spec.context_length) - start
        found = _by_kind_and_age(brought, [(0, end)], {0: 1.0}, window[:end])
        return _drawn(
            {kind: of_kind for (kind, _), of_kind in found.items()}, None, targets.targets_per_context, window
        )
    found = {kind: _candidates(kind, tokenizer, ids, start, spec, targets) for kind, _ in targets.kinds}
    return _drawn(found, dict(targets.kinds), targets.targets_per_context, window)


def make_walk_targets(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    geometry: Geometry,
    windows: int,
    targets: TargetSpec,
    brought: list[dict] | None = None,
    start: int = 0,
) -> list[dict]:
    """
    The targets of each window of a walk: also such as ask about earlier chunks, which only a gist that was carried on can
    answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            A document's, up to the walk's last.
        geometry ([`~common.geometry.Geometry`]):
            How it is folded.
        windows (`int`):
            Its windows.
        targets ([`TargetSpec`]):
            What is drawn, for each window.
        brought (`list[dict]`, *optional*):
            As of [`make_targets`], by the tokens of the walk.
        start (`int`, *optional*, defaults to `0`):
            Where the walk begins: within a document it may be in the middle of a sentence.

    Returns:
        As of [`make_targets`], window after window, and of each also its `window` and its `age`: how many windows ago its
        chunk was the newest. A window that offers nothing else has its continuation.
    """
    walk_ids, drawn = ids[start:], []
    text = WindowedText(walk_ids, geometry, characters_of(tokenizer))
    chunks = [(text.chunk_start(window), text.chunk_start(window + 1)) for window in range(windows)]

    def lengths(first, end):
        return dataclasses.replace(geometry, context_length=end - first)

    def candidates(kind, first, end):
        return _candidates(kind, tokenizer, ids, start + first, lengths(first, end), targets)

    @functools.cache
    def of_chunk(chunk, kind):
        return candidates(kind, *chunks[chunk])

    for window, (first, _) in enumerate(chunks):
        before, ages = text.before(window), targets.age_weights(window)
        # As the walk has it: near its end a character may leave it some tokens short
        continuation = _as_target("continuation", text.last(window), text.target(window), [])
        found, weights = {}, {}
        if brought is not None:
            found = _by_kind_and_age(brought, chunks[window::-1], ages, walk_ids[:before])
            kinds = Counter(age for _, age in found)
            weights = {(kind, age): ages[age] / kinds[age] for kind, age in found}
        for kind, weight in targets.kinds if brought is None else ():
            if kind in ("continuation", "far"):
                found[kind, 0] = [continuation] if kind == "continuation" else candidates(kind, first, before)
                weights[kind, 0] = weight
                continue
            for age, share in ages.items():
                found[kind, age] = of_chunk(window - age, kind)
                weights[kind, age] = weight * share / sum(ages.values())
        of_window = _drawn(found, weights, targets.targets_per_context, walk_ids[: text.end(window)])
        if not of_window:
            of_window = [continuation | {"age": 0}]
        drawn += [target | {"window": window} for target in of_window]
    return drawn


def _candidates(kind, tokenizer, ids, start, spec, targets):
    make = {"continuation": _continuation, "fact": _facts, "recall": _recalls, "far": _far}[kind]
    return [_as_target(kind, *candidate) for candidate in make(tokenizer, ids, start, spec, targets)]


def _as_target(kind, cue, target, after):
    return {"kind": kind, "cue_ids": cue, "target_ids": target, "after_ids": after}


def _by_kind_and_age(brought, chunks, ages, seen):
    """Of the targets that came with a document those that may be asked once `seen` is read; `chunks` are the tokens from
    and to which each age goes."""
    found = {}
    for target in brought:
        age = next((age for age in ages if chunks[age][0] < target["at"] <= chunks[age][1]), None)
        if age is None or (target["until"] is not None and target["until"] <= len(seen)):
            continue
        one = {name: target[name] for name in ("kind", "cue_ids", "target_ids")}
        end = seen[-len(target["cue_ids"]) :]  # which the cue may be already
        one["after_ids"] = through_last_k(end, target["cue_ids"])[len(end) :]
        found.setdefault((target["kind"], age), []).append(one)
    return found


def _drawn(found, weights, count, window) -> list[dict]:
    """Of the candidates of each kind, or of each kind and age, as many as their weights ask for, or alike; by the window's
    ids."""
    weights = dict.fromkeys(found, 1.0) if weights is None else weights
    # Not hash(), whose value may change between processes and versions
    digest = hashlib.sha256(",".join(map(str, window)).encode()).digest()
    available = {key: len(candidates) for key, candidates in found.items()}
    counts = _shares(count, weights, available, random.Random(b"shares" + digest).random())
    rng = random.Random(digest)
    return [
        candidates[n] | ({"age": key[1]} if isinstance(key, tuple) else {})
        for key, candidates in found.items()
        for n in sorted(rng.sample(range(len(candidates)), counts[key]))
    ]


# ---- Facts ----


def fact_spans(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[tuple[int, int]]:
    """
    Where names, numbers and dates stand in a text.

    A date or a name of several words is one fact. A token with the space before a fact belongs to it; a fact that shares
    a token with anything else is left out.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            The text.

    Returns:
        For each fact, in order, the tokens from which and to which it goes.
    """
    spelled = Spelled(tokenizer, ids)
    spans = (spelled.tokens(start, end) for start, end in fact_characters(spelled.text))
    return [span for span in spans if span is not None]


def sentence_spans(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[tuple[int, int]]:
    """
    Where the sentences of a text stand, with what is left of one at its beginning and its end.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the ids.
        ids (`list[int]`):
            The text.

    Returns:
        For each sentence, in order, the tokens from which and to which it goes. One that shares a token with another is
        left out.
    """
    spelled = Spelled(tokenizer, ids)
    spans = (spelled.tokens(start, end) for start, end, _ in sentence_characters(spelled.text))
    return [span for span in spans if span is not None]


def fact_characters(text: str) -> list[tuple[int, int]]:
    """The characters of a text from which and to which each fact goes, in order, the longest of those that overlap."""
    units, run = Units(text), None
    spans = [match.span() for match in DATE.finditer(text)]
    for kind, (start, end) in zip(units.kinds, units.spans, strict=True):
        if kind == "number":
            spans.append((start, end))
        if kind == "name":
            run = (run[0] if run and text[run[1] : start] == " " else start, end)
            spans.append(run)
        else:
            run = None
    taken, facts = bytearray(len(text)), []
    for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if not any(taken[start:end]):
            taken[start:end] = b"\1" * (end - start)
            # Beside a character that cannot be spelled, what looks like a word may be a part of one
            if "\ufffd" not in text[max(0, start - 1) : end + 1]:
                facts.append((start, end))
    return sorted(facts)


# ---- Candidates of each kind: cue, target, and what T reads between X and the target ----


def _continuation(tokenizer, ids, start, spec, targets):
    end = characters_of(tokenizer).cut(ids, start + spec.context_length)
    cue, target = _around(tokenizer, ids, start, end, spec)
    return [(cue, target, [])] if target else []


def _far(tokenizer, ids, start, spec, targets):
    characters = characters_of(tokenizer)
    end = characters.cut(ids, start + spec.context_length)
    place = characters.cut(ids, end + targets.far_offset)
    cue, target = _around(tokenizer, ids, start, place, spec)
    return [(cue, target, ids[end:place])] if target else []


def _around(tokenizer, ids, start, place, spec):
    """What stands before a place, and the target after it; none where there is not all of its length."""
    characters = characters_of(tokenizer)
    first = characters.next_cut(ids, max(start, place - spec.last_k))
    end = characters.cut(ids, place + spec.target_length) if place + spec.target_length <= len(ids) else place
    return ids[first:place], ids[place:end]


def _facts(tokenizer, ids, start, spec, targets):
    characters = characters_of(tokenizer)
    context = ids[start : characters.cut(ids, start + spec.context_length)]
    after = Spelled(tokenizer, ids[start + len(context) :][:_LOOK_AHEAD]).text
    found = []
    for first, end in fact_spans(tokenizer, context):
        cue = context[characters.next_cut(context, max(0, first - targets.cue_length)) : first]
        target = context[first:end]
        if first < _SHORTEST_CUE or len(target) > _LONGEST_FACT:
            continue
        if end == len(context) and after and not after[0].isspace():
            continue  # X may end inside it
        text, before = (Spelled(tokenizer, part).text.casefold() for part in (target, cue))
        if text.strip() not in before:
            found.append((cue, target, cue))
    return found


def _recalls(tokenizer, ids, start, spec, targets):
    read = ids[start : start + spec.context_length + _LOOK_AHEAD]
    spelled, characters, found = Spelled(tokenizer, read), characters_of(tokenizer), []
    whole = (span for *span, is_whole in sentence_characters(spelled.text, whole_start=start == 0) if is_whole)
    for span in whole:
        first, end = spelled.tokens(*span) or (0, 0)
        place = max(first, characters.cut(read, first + targets.cue_length // 2))
        if end <= spec.context_length and end - place >= _SHORTEST_REST:
            cue, rest = read[first:place], read[place : characters.cut(read, min(end, place + spec.target_length))]
            if cue and rest:
                found.append((cue, rest, cue))
    return found


def sentence_characters(text: str, whole_start: bool = True) -> Iterator[tuple[int, int, bool]]:
    """Characters from and to which each sentence goes, and whether it is whole; the first is where the text begins with
    it."""
    cuts = [(match.end(), True) for match in _SENTENCE_END.finditer(text)]
    cuts += [(match.end(), False) for match in _BLANK_LINE.finditer(text)]
    begin, begun = 0, whole_start
    for cut, ends in [*sorted(cuts), (len(text), False)]:
        if sentence := text[begin:cut].lstrip():
            yield cut - len(sentence), cut, begun and ends
        begin, begun = cut, True


def _shares(places, weights, available, draw) -> dict[str, int]:
    """
    Places of each kind: the whole number below its exact share or above it, as `draw` in [0, 1) says, so that in the
    mean over windows each has what its weight asks for. What a kind cannot fill goes to the others.
    """
    shares, free, full = {}, list(weights), True
    while full:
        total = sum(weights[kind] for kind in free)
        exact = {kind: places * weights[kind] / total for kind in free}
        full = [kind for kind in free if exact[kind] >= available[kind]]
        shares |= {kind: available[kind] for kind in full}
        places -= sum(available[kind] for kind in full)
        free = [kind for kind in free if kind not in full]
    # Side by side on a line, and cut at the draw and every whole number after it
    ends = [math.floor(round(end, 9) + draw) for end in itertools.accumulate(exact[kind] for kind in free)]
    shares |= {kind: end - start for kind, start, end in zip(free, [0, *ends], ends, strict=False)}
    return {kind: shares[kind] for kind in weights}
