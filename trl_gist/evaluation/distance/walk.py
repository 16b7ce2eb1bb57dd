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
What a pair keeps as windows pass: a walk along long documents, folded as a `rolling` session folds them.

Window w of a document has a chunk of C tokens, [w·C, (w+1)·C); L, the next `last_k` tokens; and the target Y, the next
`target_length`; all of them a few fewer where they would end inside a character. The gist is S's of the previous gist, the chunk and L, as in [`~inference.session.session.Session`],
and every arm predicts the same Y:

    full          the frozen T on all text so far, as long as it fits T's positions
    window        T on the last `context_length` tokens, verbatim: as many as S reads at once
    tail          T on the last k + |Z| tokens, verbatim: as many as G reads beside its template
    last_k        T on L alone: T's sliding window
    zero_shot     T, through the generator's prompt, on rolling gists that T itself wrote through the summarizer's
    zero_shot_g   G on the same gists
    null          G on an empty gist and L: G's sliding window
    stale         G on the gist of the first window and L: what is lost if it is never rewritten
    single        G on S's gist of the chunk without the previous gist, and L: what recursion adds
    pair          G on the rolling gist and L

and for every other pair that walks beside it, under its name, its own rolling gist, and `NAME_null` its own empty one.
With `targets` the gists are also read for facts and sentences of earlier chunks, as in `recall.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from ...common.geometry import SEPARATOR, Geometry, WindowedText, join
from ...common.tokens import characters_of
from ...data.columns import columns_of
from ...data.targets import TargetSpec
from ...data.windows import SkippedRows, why_unusable
from ...inference.compactor import GistCompactor
from ...inference.session.state import SessionSettings
from ...models.lm_head import check_logits
from ...scoring.gist_scorer import GistScorer
from ...scoring.targets import TargetRows, TargetScorer
from .facts import FactIndex
from .recall import RecallReadings
from .teacher import full_context_hidden, teacher_log_probs


# The arms, and against whose sliding window each is held
SLIDING_WINDOW = {
    "full": "last_k",
    "window": "last_k",
    "tail": "last_k",
    "zero_shot": "last_k",
    "zero_shot_g": "null",
    "stale": "null",
    "single": "null",
    "pair": "null",
}
ARMS = ("full", "window", "tail", "last_k", "zero_shot", "zero_shot_g", "null", "stale", "single", "pair")
DOCUMENT_SEPARATOR = "\n\n"


def geometry_of_pair(compactor: GistCompactor) -> Geometry:
    """A session's, with its defaults. Raises `ValueError` if the pair's contexts are too short to fold."""
    pair = compactor.pair
    settings = SessionSettings.resolve(compactor, None, None, None, None, measure=False)
    return Geometry(pair.context_length, settings.chunk_length, settings.last_k, pair.target_length)


def check_pair_names(names: Iterable[str]):
    """Raises `ValueError` for a name that a pair beside the first cannot have."""
    for name in names:
        if name in (*ARMS, "teacher", "first") or not name.isidentifier() or name.endswith("_null"):
            raise ValueError(f"`--pairs` names a pair {name!r}, which is taken or no plain word. Choose another name.")


def long_documents(
    dataset: Dataset | IterableDataset,
    compactor: GistCompactor,
    geometry: Geometry,
    windows: int,
    join_documents: bool = False,
    skipped: SkippedRows | None = None,
) -> Iterator[dict]:
    """
    The documents to walk, one at a time.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            With a column `text`.
        compactor ([`GistCompactor`]), geometry ([`Geometry`]):
            The pair.
        windows (`int`):
            The most of a document.
        join_documents (`bool`, *optional*, defaults to `False`):
            Whether documents are joined, in their order and with an empty line between them, into streams of `windows`
            windows. No document is in two of them: what is left of one that fills a stream is dropped.
        skipped ([`~data.windows.SkippedRows`], *optional*):
            Counts the documents that have not even one window.

    Yields:
        `dict`: `document_id` and `ids`, no more than are walked.

    Raises:
        ValueError: if the dataset is empty or has no `text`.
    """
    columns = columns_of(dataset, "evaluation")
    if "text" not in columns:
        raise ValueError(
            f"The evaluation dataset has columns {sorted(columns)}; walking along documents needs `text`."
        )
    skipped = SkippedRows() if skipped is None else skipped
    stream, streams = [], 0
    for index, row in enumerate(dataset):
        reason = why_unusable(row["text"])
        if reason:
            skipped.counts[reason] += 1
            continue
        text = row["text"] + DOCUMENT_SEPARATOR if join_documents else row["text"]
        pieces = compactor.token_pieces(text, "The document")
        wanted = geometry.length(windows) - len(stream)
        ids = list(islice((token for ids, _ in pieces for token in ids), wanted))
        if not join_documents:
            if geometry.windows(len(ids)):
                yield {"document_id": row.get("document_id", index), "ids": ids}
            else:
                skipped.counts["too short"] += 1
            continue
        stream += ids
        if len(stream) >= geometry.length(windows):
            yield {"document_id": f"stream {streams}", "ids": stream}
            stream, streams = [], streams + 1
    if geometry.windows(len(stream)):
        yield {"document_id": f"stream {streams}", "ids": stream}


@dataclass
class DistanceReadings:
    """
    Folds documents and lets every arm predict the targets on the way.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        teacher ([`~transformers.PreTrainedModel`]):
            The frozen teacher, which also writes the zero-shot gists; see [`~evaluation.load_teacher`].
        others (`dict[str, GistCompactor]`, *optional*):
            Pairs that walk beside it, by name.
        batch_size (`int`, *optional*, defaults to `8`):
            Documents in one forward.
        targets ([`~data.targets.TargetSpec`], *optional*):
            What windows are asked of earlier chunks beside what comes next; nothing by default.
        target_floor (`float`, *optional*):
            What T must gain from the text over the cue alone for such a target to count, in nats per token; the best of a
            window always does. `None` asks nothing.

    Raises:
        ValueError: if another pair has the name of an arm, other window sizes or another tokenizer; or a model's
            logits are capped or scaled in a way that scoring does not know.
    """

    compactor: GistCompactor
    teacher: PreTrainedModel
    others: dict[str, GistCompactor] = field(default_factory=dict)
    batch_size: int = 8
    targets: TargetSpec | None = None
    target_floor: float | None = None

    def __post_init__(self):
        self.geometry = geometry_of_pair(self.compactor)
        check_pair_names(self.others)
        for name, other in self.others.items():
            self._check_other(name, other)
        generators = {name: pair.generator for name, pair in {"pair": self.compactor, **self.others}.items()}
        for model in (self.teacher, *generators.values()):
            check_logits(model)
        self.scorers = {name: TargetScorer(model) for name, model in generators.items()}
        self.scorers["teacher"] = TargetScorer(self.teacher)
        zero_shot = GistCompactor(self.teacher, self.teacher, self.compactor.tokenizer, self.compactor.pair)
        self.writers = {"pair": self.compactor, "zero_shot": zero_shot, **self.others}
        # Of each scorer: the teacher reads gists as the pair's generator does
        others = {name: other.prompts for name, other in self.others.items()}
        self.prompts = {"pair": self.compactor.prompts, "teacher": self.compactor.prompts, **others}
        self.recall = None if self.targets is None else self._recall()

    def _recall(self):
        teacher, settings = self.scorers["teacher"], {"target_floor": self.target_floor}
        scorers = {
            name: GistScorer(scorer, teacher, self.prompts[name], self.batch_size, **settings)
            for name, scorer in self.scorers.items()
        }
        return RecallReadings(scorers, self.compactor.prompts, self.targets)

    @property
    def arms(self) -> list[str]:
        return [*ARMS, *(arm for name in self.others for arm in (name, f"{name}_null"))]

    def walk(self, documents: Iterable[dict], windows: int, read_before: list[dict] = ()) -> Iterator[list[dict]]:
        """
        Args:
            documents (`Iterable[dict]`):
                Of [`long_documents`]; `batch_size` of them walk together.
            windows (`int`):
                The most windows of each.
            read_before (`list[dict]`, *optional*):
                The first rows of an earlier walk of the same documents, which this one goes on from: the gists that it
                needs are theirs, and nothing else of what they hold is computed again.

        Yields:
            `list[dict]`: A window of the documents that walk together, a row for each document that reaches it:
            `document_id`, `window`, `tokens` before the target, at most; `gist_ids` and `gists` (as text) by writer; under
            `log_probs` and `kls` what each arm makes of every token of the target, in nats (`kls` from the full
            context, only where there is one); the texts; `facts` and `target_facts` of [`FactIndex`]; and with
            `targets` what [`RecallReadings.read`] gives, as `recall`.
        """
        done, documents = list(read_before), iter(documents)
        while batch := list(islice(documents, self.batch_size)):
            yield from self._walk_together(batch, windows, done)

    def _walk_together(self, documents, windows, done):
        """Takes the rows that are its own from the front of `done`."""
        counts = [min(windows, self.geometry.windows(len(document["ids"]))) for document in documents]
        if len(done) >= sum(counts):
            del done[: sum(counts)]
            return
        characters = characters_of(self.compactor.tokenizer)
        texts = [WindowedText(document["ids"], self.geometry, characters) for document in documents]
        facts = [FactIndex(text, self.compactor.tokenizer) for text in texts]
        hidden = [
            full_context_hidden(self.scorers["teacher"], self.compactor.prompts, text, count)
            for text, count in zip(texts, counts, strict=True)
        ]
        asked = None if self.recall is None else [*map(self.recall.ask, texts, counts)]
        states = [{} for _ in documents]  # of each document, the newest gist of each writer, and the first of the pair
        for window in range(max(counts)):
            present = [index for index, count in enumerate(counts) if count > window]
            earlier = [done.pop(0) for _ in present[: len(done)]]
            if len(earlier) == len(present):
                gists = [row["gist_ids"] for row in earlier]
                rows = []
            else:
                gists = self.write([texts[index] for index in present], window, [states[index] for index in present])
                rows = self._read(documents, texts, facts, present, window, gists, states, hidden, asked)
                rows = rows[len(earlier) :]
            for index, gist_ids in zip(present, gists, strict=True):
                states[index] = {"first": states[index].get("first", gist_ids["pair"]), **gist_ids}
            if rows:
                yield rows

    def write(self, texts_D: list[WindowedText], window: int, states: list[dict[str, list[int]]]) -> list[dict]:
        """Every writer's gist of each document's window, and `single`, by name; arguments as of [`roll`]."""
        written_D = self.roll(texts_D, window, states)
        # With nothing before, they are the same
        singles_D = self._roll(self.compactor, texts_D, window) if window else [each["pair"] for each in written_D]
        return [each | {"single": single} for each, single in zip(written_D, singles_D, strict=True)]

    def roll(self, texts_D: list[WindowedText], window: int, states: list[dict[str, list[int]]]) -> list[dict]:
        """Every writer's gist of each document's window, by name; `states` are those of the window before, and empty
        before the first."""
        written = {
            name: self._roll(writer, texts_D, window, [state.get(name, []) for state in states])
            for name, writer in self.writers.items()
        }
        return [{name: gists[row] for name, gists in written.items()} for row in range(len(texts_D))]

    def _roll(self, writer, texts_D, window, previous=None):
        chunks, last_ks = [text.chunk(window) for text in texts_D], [text.last(window) for text in texts_D]
        return self.fold(writer, [[] for _ in texts_D] if previous is None else previous, chunks, last_ks)

    def fold(
        self,
        writer: GistCompactor,
        previous: list[list[int]],
        chunks: list[list[int]],
        last_ks: list[list[int]],
    ) -> list[list[int]]:
        """The gists of previous gists and chunks, as a session writes them: special tokens reach nobody."""
        contexts = self.contexts(writer, previous, chunks, last_ks)
        gists = writer.compress_batch(contexts, None, False, self.batch_size, last_k=last_ks)
        return [writer.prompts.without_special(gist.token_ids) for gist in gists]

    def contexts(
        self, writer: GistCompactor, previous: list[list[int]], chunks: list[list[int]], last_ks: list[list[int]]
    ) -> list[list[int]]:
        """What a writer reads: the previous gist, the chunk and L."""
        separator = list(writer.prompts.tokenize(SEPARATOR))
        return [
            join([gist, chunk], separator) + last_k
            for gist, chunk, last_k in zip(previous, chunks, last_ks, strict=True)
        ]

    def _read(self, documents, texts, facts, present, window, gists, states, hidden, asked):
        decode, texts_D = self.compactor.decode, [texts[index] for index in present]
        targets = [text.target(window) for text in texts_D]
        rows = [
            {
                "document_id": documents[index]["document_id"],
                "window": window,
                "tokens": self.geometry.before(window),
                "gist_ids": gist_ids,
                "gists": {name: decode(ids) for name, ids in gist_ids.items()},
                "chunk": decode(text.chunk(window)),
                "target": decode(target),
                "facts": facts[index].of_chunk(window),
                "target_facts": facts[index].of_target(window),
                "log_probs": {},
                "kls": {},
            }
            for index, text, gist_ids, target in zip(present, texts_D, gists, targets, strict=True)
        ]
        # They are all at one distance, and so fit the teacher's positions or do not
        hidden_D = [hidden[index][window] for index in present if window < len(hidden[index])]
        if hidden_D:
            logps_D = teacher_log_probs(self.scorers["teacher"], hidden_D, targets)
            for row, logps_T in zip(rows, logps_D, strict=True):
                row["log_probs"]["full"], row["kls"]["full"] = _rounded(logps_T), [0.0] * len(logps_T)
        first = [states[index].get("first", gist["pair"]) for index, gist in zip(present, gists, strict=True)]
        gist_arms = self._gist_arms(gists, first)
        for arm, (scorer, prompts) in self._prompts(texts_D, window, gists, gist_arms).items():
            for row, (logps_T, kl_T) in zip(rows, self._score(scorer, prompts, targets, hidden_D), strict=True):
                row["log_probs"][arm] = _rounded(logps_T)
                if hidden_D:
                    row["kls"][arm] = _rounded(kl_T)
        if self.recall is not None:
            recall_D = self.recall.read([asked[index][window] for index in present], gist_arms)
            for row, recall in zip(rows, recall_D, strict=True):
                row["recall"] = recall
        return rows

    def _gist_arms(self, gists, first):
        """Who reads which gists: `{arm: (scorer's name, a gist for each document)}`."""

        def of(writer):
            return [gist[writer] for gist in gists]

        empty = [[] for _ in gists]
        arms = {
            "zero_shot": ("teacher", of("zero_shot")),
            "zero_shot_g": ("pair", of("zero_shot")),
            "null": ("pair", empty),
            "stale": ("pair", first),
            "single": ("pair", of("single")),
            "pair": ("pair", of("pair")),
        }
        for name in self.others:
            arms |= {name: (name, of(name)), f"{name}_null": (name, empty)}
        return arms

    def _prompts(self, texts_D, window, gists, gist_arms):
        """Who reads what: `{arm: (scorer's name, a prompt for each document)}`."""
        pair, last_ks = self.compactor.prompts, [text.last(window) for text in texts_D]

        def verbatim(counts):
            return [pair.plain(text.last(window, n)) for text, n in zip(texts_D, counts, strict=True)]

        arms = {
            "window": ("teacher", verbatim([self.geometry.context_length] * len(texts_D))),
            "tail": (
                "teacher",
                verbatim([len(ids) + len(gist["pair"]) for ids, gist in zip(last_ks, gists, strict=True)]),
            ),
            "last_k": ("teacher", [pair.plain(ids) for ids in last_ks]),
        }
        for arm, (reader, read) in gist_arms.items():
            beside = self.prompts[reader].generator
            arms[arm] = reader, [beside(gist, ids) for gist, ids in zip(read, last_ks, strict=True)]
        return arms

    def _score(self, name, prompts, targets, hidden_D):
        """Log-prob of each target token, and KL from the full context where there is one; float64, on the CPU."""
        scorer, teacher = self.scorers[name], self.scorers["teacher"]
        rows = TargetRows.build(prompts, targets, 1, scorer.model.device)
        with torch.no_grad():
            scores = scorer(rows, torch.cat(hidden_D), teacher) if hidden_D else scorer(rows)
        logps_NT, kl_NT = (score_NT.double().cpu() for score_NT in scores[:2])
        return zip(logps_NT, kl_NT, strict=True)

    def _check_other(self, name, other):
        found = geometry_of_pair(other)
        if found != self.geometry:
            raise ValueError(
                f"`--pairs`: {name} folds {found.chunk_length} tokens at a time and the pair "
                f"{self.geometry.chunk_length} ({found} against {self.geometry}), so their targets differ. Compare "
                "pairs trained on the same window."
            )
        if other.tokenizer.get_vocab() != self.compactor.tokenizer.get_vocab():
            raise ValueError(
                f"`--pairs`: {name} has another vocabulary than the pair. Compare pairs of one tokenizer."
            )


def _rounded(values_T):
    return [round(value, 5) for value in values_T.tolist()]
