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
Question answering as a test of gists: the passage is the context, the question the last tokens, the answer the target.

Two models answer, greedily: the frozen teacher T, which reads plain text, and the generator G, in its own prompt. Each
is given

    passage     all of it
    gist        what the summarizer made of it (G only)
    tail        as many tokens as the gist has, from the end of the passage, verbatim
    nothing     the question alone

in the place where G's gist stands, or for T before the question. G with the passage says what its prompt and its
training cost it, beside T; G with nothing, what it guesses.

Beside them, any [`Compressor`]'s gist of as many tokens may stand there, read by G and by a generator of its own, which
was trained to read that compressor's gists: the fair test. All are paired by question with the summarizer's gist.

Answers are compared as in SQuAD ([Rajpurkar et al. 2016](https://huggingface.co/papers/1606.05250)): without case,
punctuation, articles and extra spaces, by exact match and by F1 over words. An answer ends at its first line break.
"""

import re
import string
from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from ..common.arguments import several
from ..common.statistics import measured, standard_error
from ..common.tables import console_table
from ..common.tokens import characters_of
from ..inference.compactor import GistCompactor
from ..models.generation import greedy_continuations
from ..prompts import before_last_k
from ..scoring.targets import target_log_probs
from .compressors import Compressor
from .compressors.base import compress_within


READERS = {
    "teacher_passage": "T: the passage",
    "generator_passage": "G: the passage",
    "generator_gist": "G: its gist",
    "generator_tail": "G: as many last tokens of it",
    "teacher_tail": "T: as many last tokens of it",
    "generator_nothing": "G: the question alone",
    "teacher_nothing": "T: the question alone",
}
SCORES = ("nll", "exact_match", "f1")
_COMPRESSED, _OWN = "compressed_", "own_"  # before a compressor's name


def normalize_answer(answer: str) -> str:
    """As SQuAD's official script: lower case, no punctuation, no articles, single spaces."""
    answer = "".join(char for char in answer.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def exact_match(answer: str, references: list[str]) -> float:
    """1.0 if the answer is one of the references, both normalised, else 0.0."""
    references = several("references", references, "answers", "put it in a list")
    return float(normalize_answer(answer) in {normalize_answer(reference) for reference in references})


def f1(answer: str, references: list[str]) -> float:
    """The best F1, from 0 to 1, of the answer's words against a reference's, both normalised and with repetitions."""
    references = several("references", references, "answers", "put it in a list")
    return max(_f1(normalize_answer(answer).split(), normalize_answer(reference).split()) for reference in references)


def answer_questions(
    compactor: GistCompactor,
    teacher: PreTrainedModel,
    windows: list[dict],
    references: list[list[str]] | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 8,
    compressors: dict[str, Compressor | str] | None = None,
    own_generators: dict[str, nn.Module] | None = None,
) -> list[dict]:
    """
    Writes the gist of each passage and lets each of `READERS` answer.

    Args:
        compactor ([`GistCompactor`]):
            The pair.
        teacher ([`~transformers.PreTrainedModel`]):
            The frozen teacher; see [`load_teacher`].
        windows (`list[dict]`):
            Rows of [`~data.windows.prepare_windows`]: passage, question and answer as `context_ids`, `last_k_ids` and
            `target_ids`, and `document_id`.
        references (`list[list[str]]`, *optional*):
            The right answers to each question; by default its target.
        max_new_tokens (`int`, *optional*, defaults to `24`):
            Longest answer.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows in one forward.
        compressors (`dict[str, Compressor | str]`, *optional*):
            By name, as of [`~evaluation.compressors.registry.standard_compressors`]: each compresses the passage to as
            many tokens as the summarizer's gist has. A string, why there is none, is passed over.
        own_generators (`dict[str, nn.Module]`, *optional*):
            By a compressor's name, a generator that was trained on its gists; see [`~evaluation.load_generator_only`].

    Returns:
        `list[dict]`: For each question its `document_id`, `references` and `gist`, and for each reader
        `{reader}_answer`, `{reader}_nll` of the target in nats per token, `{reader}_exact_match` and `{reader}_f1`.
        Readers are `READERS`; `compressed_{name}`, G with a compressor's gist; and `own_{name}`, its own generator.

    Raises:
        ValueError: if a generator is of no compressor, or a compressor breaks its budget.
    """
    if references is not None:
        references = several("references", references, "lists of answers", "give a list for each question")
        references = [several("references", each, "answers", "give a list for each question") for each in references]
    compressors = {name: each for name, each in (compressors or {}).items() if not isinstance(each, str)}
    unknown = sorted(set(own_generators or ()) - set(compressors))
    if unknown:
        raise ValueError(
            f"`own_generators` has {unknown}, which `compressors` does not; it has {sorted(compressors)}."
        )
    passages, questions, targets = (
        [row[f"{part}_ids"] for row in windows] for part in ("context", "last_k", "target")
    )
    if references is None:
        references = [[compactor.decode(target).strip()] for target in targets]
    gists = compactor.compress_batch(passages, batch_size=batch_size, last_k=questions)
    rows = [
        {"document_id": window["document_id"], "references": right, "gist": gist.text}
        for window, right, gist in zip(windows, references, gists, strict=True)
    ]
    models = {"teacher": teacher, "generator": compactor.generator}
    readers = {}
    for reader in READERS:
        role, given = reader.split("_")
        readers[reader] = (
            models[role],
            [
                _prompt(compactor, role, given, window, gist.token_ids)
                for window, gist in zip(windows, gists, strict=True)
            ],
        )
    before_questions = [
        before_last_k(passage, question) for passage, question in zip(passages, questions, strict=True)
    ]
    budgets = [len(compactor.prompts.without_special(gist.token_ids)) for gist in gists]
    for name, compressor in compressors.items():
        compressed = compress_within(
            name, compressor, before_questions, budgets, compactor.prompts.special_ids, once=True
        )
        prompts = [
            compactor.prompts.generator(ids, question) for ids, question in zip(compressed, questions, strict=True)
        ]
        readers[f"{_COMPRESSED}{name}"] = compactor.generator, prompts
        if name in (own_generators or ()):
            readers[f"{_OWN}{name}"] = own_generators[name], prompts
    for reader, (model, prompts) in track(readers.items(), "Answering", console=Console(stderr=True), transient=True):
        written = greedy_continuations(model, prompts, max_new_tokens, compactor.tokenizer, batch_size)
        answers = [_first_line(compactor.decode(ids)) for ids in written]
        log_probs = target_log_probs(model, prompts, targets, batch_size)
        for row, answer, log_prob, target in zip(rows, answers, log_probs, targets, strict=True):
            row[f"{reader}_answer"] = answer
            row[f"{reader}_nll"] = -log_prob / len(target)
            row[f"{reader}_exact_match"] = exact_match(answer, row["references"])
            row[f"{reader}_f1"] = f1(answer, row["references"])
    return rows


def summarize_answers(rows: list[dict]) -> dict[str, float]:
    """
    Means over questions, with standard errors over documents under the same name with `_se`, of the columns
    `{reader}_nll`, `{reader}_exact_match` and `{reader}_f1` of [`answer_questions`]; of each, paired by question, how far
    it is behind G with the summarizer's gist, `{reader}_{score}_behind`, above 0 where that is better; and the counts
    `questions` and `documents`.
    """
    documents = [row["document_id"] for row in rows]
    summary = {}
    for reader in _labels(rows):
        for score in SCORES:
            name, worse = f"{reader}_{score}", 1 if score == "nll" else -1
            values = [row[name] for row in rows]
            behind = [worse * (row[name] - row[f"generator_gist_{score}"]) for row in rows]
            for key, of_rows in ((name, values), (f"{name}_behind", behind)):
                summary[key], summary[f"{key}_se"] = sum(of_rows) / len(of_rows), standard_error(of_rows, documents)
    return summary | {"questions": len(rows), "documents": len({str(document) for document in documents})}


def answers_table(rows: list[dict]) -> Table:
    """The table of [`summarize_answers`], for [`rich.console.Console.print`]; exact match and F1 in percent."""
    summary = summarize_answers(rows)
    title = f"{summary['questions']} questions about {summary['documents']} documents, ± standard error over documents"
    headings = ("answered from", "answer's NLL, nats/token", "behind its gist", "exact match, %", "F1, %")
    table = console_table(title, *headings, wrap=True)
    for reader, label in _labels(rows).items():
        cells = []
        for score, scale, digits in (("nll", 1, 3), ("nll_behind", 1, 3), ("exact_match", 100, 1), ("f1", 100, 1)):
            sign = "+" if score == "nll_behind" else ""
            of_gist = sign and reader == "generator_gist"
            cells.append("" if of_gist else measured(summary, f"{reader}_{score}", digits, sign, scale))
        table.add_row(escape(label), *cells, style="bold" if reader == "generator_gist" else None)
    return table


def _labels(rows):
    """What to call each reader that the rows have."""
    compared = {}
    for column in rows[0]:
        for kind, label in ((_COMPRESSED, "G: {}"), (_OWN, "G of its own: {}")):
            if column.startswith(kind) and column.endswith("_nll"):
                reader = column.removesuffix("_nll")
                compared[reader] = label.format(reader.removeprefix(kind))
    return READERS | compared


def _f1(answer, reference):
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def _prompt(compactor, role, given, window, gist_ids):
    prompts, question = compactor.prompts, window["last_k_ids"]
    passage = before_last_k(window["context_ids"], question)
    read = {
        "passage": passage,
        "gist": gist_ids,
        "tail": characters_of(compactor.tokenizer).last(passage, len(gist_ids)),
        "nothing": [],
    }[given]
    return prompts.generator(read, question) if role == "generator" else prompts.plain([*read, *question])


def _first_line(text):
    return text.strip().partition("\n")[0]
