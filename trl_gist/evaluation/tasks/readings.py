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
Questions after a text whose tail is worthless: who still knows what was said some windows ago.

A text of [`make_tasks`] is folded window by window, as a `rolling` session and [`~evaluation.distance.walk`] fold it; L
is what follows the last window. Then each question is put to

    full          the frozen T, on all of the text: what is to be had
    last_k        T on L alone: the sliding window
    tail          T on the last |L| + |Z| tokens: a longer sliding window, of as many tokens as G reads
    zero_shot     T, through the generator's prompt, on rolling gists that T itself wrote untrained, and L
    NAME          the same on what a compressor kept of the gist before and the chunk, window by window
    null          G on an empty gist and L: the pair's own sliding window
    single        G on S's gist of the last chunk alone, and L
    recall        G on the rolling gist, and no L: the question stands where L does, as targets of training do
    pair          G on the rolling gist and L, as a session has them

and by its name to every other pair. All write on greedily.
"""

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ...common.geometry import SEPARATOR, WindowedText, join
from ...common.tokens import characters_of
from ...inference.compactor import GistCompactor
from ...models.generation import generate, greedy_continuations
from ...models.positions import becomes_long, max_positions
from ...models.roles import backbone_of, base_of
from ..compressors import Compressor
from ..compressors.base import compress_within
from ..distance.walk import DistanceReadings, check_pair_names
from ..question_answering import normalize_answer


BEFORE_COMPRESSORS = ("full", "last_k", "tail", "zero_shot")
AFTER_COMPRESSORS = ("null", "single", "recall", "pair")
# Tokens beyond the longest answer, which tell whether a word goes on; and those of a text that T reads at once
_BEYOND, _PIECE = 3, 1024


def arms_of(pairs: Iterable[str], compressors: Iterable[str]) -> list[str]:
    """Names of all who answer, beside the first pair's own those of other pairs and of compressors."""
    return [*BEFORE_COMPRESSORS, *compressors, *AFTER_COMPRESSORS, *pairs]


def check_arms(pairs: Iterable[str], compressors: Iterable[str]):
    """Raises `ValueError` for a name that a pair cannot have, or that two have."""
    check_pair_names(pairs)
    arms = arms_of(pairs, compressors)
    for name in (*pairs, *compressors):
        if arms.count(name) > 1:
            raise ValueError(f"A pair or a compressor is named {name!r}, which is taken. Choose another name.")


@dataclass
class TaskReadings:
    """
    Args:
        compactor ([`GistCompactor`]):
            The pair.
        teacher ([`~transformers.PreTrainedModel`]):
            The frozen teacher; see [`~evaluation.load_teacher`].
        others (`dict[str, GistCompactor]`, *optional*):
            Pairs of the same window that are asked too, by name.
        compressors (`dict[str, Compressor]`, *optional*):
            Other compressors, by name, each with as many tokens as the pair's gist has.
        batch_size (`int`, *optional*, defaults to `8`):
            Texts that are folded together, and prompts in one forward.

    Raises:
        ValueError: as [`~evaluation.distance.walk.DistanceReadings`]; or if two of those asked have one name.
    """

    compactor: GistCompactor
    teacher: PreTrainedModel
    others: dict[str, GistCompactor] = field(default_factory=dict)
    compressors: dict[str, Compressor] = field(default_factory=dict)
    batch_size: int = 8

    def __post_init__(self):
        self.walk = DistanceReadings(self.compactor, self.teacher, self.others, self.batch_size)
        self.geometry = self.walk.geometry
        self._check_names()

    def add_compressors(self, compressors: dict[str, Compressor]):
        """More of them. Raises `ValueError` if two of those asked have one name."""
        self.compressors = self.compressors | compressors
        self._check_names()

    def _check_names(self):
        check_arms(self.others, self.compressors)

    @property
    def arms(self) -> list[str]:
        return arms_of(self.others, self.compressors)

    @property
    def gist_length(self) -> int:
        """The most tokens of any pair's gist."""
        return max(pair.pair.max_gist_length for pair in (self.compactor, *self.others.values()))

    def read(self, documents: list[dict], done: int = 0) -> Iterator[list[dict]]:
        """
        Args:
            documents (`list[dict]`):
                Rows of [`make_tasks`], with the geometry's chunks as windows, and `windows`, how many it has. Those of
                one number stand together, and `batch_size` of them are folded together.
            done (`int`, *optional*, defaults to `0`):
                How many of the first were read before.

        Yields:
            `list[dict]`: A row for each of some documents: `document_id`, `task`, `windows`, `tokens`; `gists`, the last
            ones as text, by writer; `read`, the mean tokens of a prompt, by arm; and `questions`, each with `cue`,
            `answer`, `age`, `choices`, and by arm `written`, `right` (the same words, of what
            [`~evaluation.question_answering.normalize_answer`] leaves) and `exact` (the same tokens). The arm `full` is
            there as far as T has positions.
        """
        start = 0
        for _, group in itertools.groupby(documents, key=lambda document: document["windows"]):
            group = list(group)
            for first in range(0, len(group), self.batch_size):
                batch = group[first : first + self.batch_size]
                already = min(max(done - start, 0), len(batch))
                start += len(batch)
                if already < len(batch):
                    yield self._read_together(batch)[already:]

    def _read_together(self, documents):
        compactor, windows = self.compactor, documents[0]["windows"]
        ids_D = [compactor.token_ids(document["context"], "The text") for document in documents]
        characters = characters_of(compactor.tokenizer)
        texts_D = [WindowedText(ids, self.geometry, characters) for ids in ids_D]
        gists_D = self._fold(texts_D, windows)
        rows, asked = [], []
        for document, windowed, gists in zip(documents, texts_D, gists_D, strict=True):
            row = {
                **{name: document[name] for name in ("document_id", "task", "windows")},
                "tokens": len(windowed.ids),
                "gists": {name: compactor.decode(each) for name, each in gists.items()},
                "read": {},
                "questions": [],
            }
            rows.append(row)
            for target in document["targets"]:
                cue_ids = compactor.token_ids(target["cue"], "The cue")
                answer_ids = _after(compactor, target["cue"], cue_ids, target["target"])
                row["questions"].append(
                    {
                        "cue": target["cue"],
                        "answer": target["target"],
                        **{name: target[name] for name in ("age", "choices")},
                        **{name: {} for name in ("written", "right", "exact")},
                    }
                )
                asked.append((row, row["questions"][-1], windowed, gists, cue_ids, answer_ids))
        most = max(len(answer_ids) for *_, answer_ids in asked) + _BEYOND
        for arm in self.arms:
            prompts = [self._prompt(arm, text, windows, gists, cue_ids) for _, _, text, gists, cue_ids, _ in asked]
            written = self._write_on(arm, prompts, [len(cue_ids) for *_, cue_ids, _ in asked], most)
            for (row, question, *_, answer_ids), prompt, ids in zip(asked, prompts, written, strict=True):
                if ids is None:
                    continue
                row["read"].setdefault(arm, []).append(len(prompt))
                text = compactor.decode(ids).strip().partition("\n")[0]
                question["written"][arm] = text
                question["right"][arm] = begins_with(text, question["answer"])
                question["exact"][arm] = ids[: len(answer_ids)] == answer_ids
        for row in rows:
            row["read"] = {arm: round(sum(counts) / len(counts), 1) for arm, counts in row["read"].items()}
        return rows

    def _fold(self, texts_D, windows):
        """The last gists of each text, by writer, compressors among them."""
        gists_D = [{} for _ in texts_D]
        kept = {name: [[] for _ in texts_D] for name in self.compressors}
        separator, special = list(self.compactor.prompts.tokenize(SEPARATOR)), self.compactor.prompts.special_ids
        for window in range(windows):
            # Of the gists of a chunk alone, the last one's is read
            write = self.walk.write if window == windows - 1 else self.walk.roll
            gists_D = write(texts_D, window, gists_D)
            budgets = [len(gists["pair"]) for gists in gists_D]
            for name, compressor in self.compressors.items():
                contexts = [
                    join([before, text.chunk(window)], separator)
                    for before, text in zip(kept[name], texts_D, strict=True)
                ]
                kept[name] = compress_within(name, compressor, contexts, budgets, special)
        return [gists | {name: kept_D[row] for name, kept_D in kept.items()} for row, gists in enumerate(gists_D)]

    def _prompt(self, arm, text, windows, gists, cue_ids):
        prompts = self.compactor.prompts
        last = text.ids[text.chunk_start(windows) :]
        verbatim = {"full": len(text.ids), "last_k": len(last), "tail": len(last) + len(gists["pair"])}
        if arm in verbatim:
            return prompts.plain([*text.characters.last(text.ids, verbatim[arm]), *cue_ids])
        if arm == "recall":
            return prompts.generator(gists["pair"], cue_ids)
        prompts = self.others[arm].prompts if arm in self.others else prompts
        return prompts.generator([] if arm == "null" else gists[arm], [*last, *cue_ids])

    def _write_on(self, arm, prompts, cue_lengths, most):
        """What is written after each prompt; `None` where it does not fit."""
        if arm in self.others:
            model = self.others[arm].generator
        else:
            model = self.compactor.generator if arm in AFTER_COMPRESSORS else self.teacher
        tokenizer = self.compactor.tokenizer
        if arm != "full":
            return greedy_continuations(model, prompts, most, tokenizer, self.batch_size)
        positions, written = max_positions(model), [None] * len(prompts)
        by_text = defaultdict(list)
        for row, (prompt, cue_length) in enumerate(zip(prompts, cue_lengths, strict=True)):
            if positions is None or len(prompt) + most <= positions:
                by_text[tuple(prompt[: len(prompt) - cue_length])].append(row)
        for text, rows in by_text.items():
            prompts_of_text = [prompts[row] for row in rows]
            answers = continuations_of_one(model, tokenizer, list(text), prompts_of_text, most, self.batch_size)
            for row, ids in zip(rows, answers, strict=True):
                written[row] = ids
        return written


def continuations_of_one(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    start: list[int],
    prompts: list[list[int]],
    most: int,
    batch_size: int = 8,
) -> list[list[int]]:
    """As [`~models.generation.greedy_continuations`], of prompts that begin with `start` and are longer, which is read
    once."""
    base, written = base_of(model), [None] * len(prompts)
    cache, read = DynamicCache(config=base.config.get_text_config()), 0
    with torch.no_grad():
        while read < len(start):
            stop = min(read + _PIECE, len(start))
            if becomes_long(base.config, read, stop):
                read, cache = 0, DynamicCache(config=base.config.get_text_config())
            piece_1S = torch.tensor([start[read:stop]], device=base.device)
            backbone_of(base)(input_ids=piece_1S, past_key_values=cache, use_cache=True)
            read = stop
    by_length = defaultdict(list)
    for row, prompt in enumerate(prompts):
        by_length[len(prompt)].append(row)
    together = (  # what shares a cache is equally long, and each row has a copy of it
        rows[first : first + batch_size] for rows in by_length.values() for first in range(0, len(rows), batch_size)
    )
    for rows in together:
        own = copy.deepcopy(cache)
        own.batch_repeat_interleave(len(rows))
        answers, _ = generate(model, tokenizer, [prompts[row] for row in rows], most, past_key_values=own)
        for row, ids in zip(rows, answers, strict=True):
            written[row] = ids
    return written


def _after(compactor, cue, cue_ids, answer):
    """The answer's tokens as a text has them that goes on from the cue."""
    both = compactor.token_ids(cue + answer, "The answer")
    if both[: len(cue_ids)] == cue_ids and len(both) > len(cue_ids):
        return both[len(cue_ids) :]
    return compactor.token_ids(answer, "The answer")


def begins_with(text: str, answer: str) -> bool:
    """Whether these are the answer's words first, of what [`normalize_answer`] leaves."""
    words, wanted = (normalize_answer(each).split() for each in (text, answer))
    return words[: len(wanted)] == wanted
