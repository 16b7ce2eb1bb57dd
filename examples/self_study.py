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
Questions about texts of one's own, to train a pair on: a model writes them, and those that need the text are kept.

The model is behind an OpenAI-compatible endpoint (`pip install openai`; its key is in OPENAI_API_KEY). It writes
questions about each chunk, then answers them with the chunk and without it. Those it gets right only with it are kept.
Models study texts by such questions in [Eyuboglu et al. 2025](https://huggingface.co/papers/2506.06266).

python examples/self_study.py --dataset my_documents/ --model Qwen/Qwen3-4B-Instruct-2507 \
    --base_url http://127.0.0.1:8000/v1 --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --output questions.jsonl
trl-gist train --dataset_path questions.jsonl --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --use_peft \
    --cold_start_gists "surprising facts" --output_dir my-pair

A chunk that is done is not asked about again, even after a kill. No real model was asked yet:
tests/examples/test_self_study.py asks a scripted one, and gets

    4 chunks: 6 questions written, 1 chunks unparsable; 1 unanswerable with the chunk, 2 answered without it, 3 kept
"""

import json
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trl_gist.common.files import json_digest, replace_file
from trl_gist.data.documents import load_documents
from trl_gist.evaluation.question_answering import exact_match, normalize_answer

from openai import AuthenticationError, OpenAI, OpenAIError
from tqdm.contrib.concurrent import thread_map
from transformers import AutoTokenizer
from transformers.hf_argparser import HfArg
from trl import TrlParser


WRITE = (
    "Write {questions} questions about the text below. Who is asked them no longer sees it: say what each is about. The "
    "answer to each is a name, a number, a date or a thing, copied from the text, of at most five words. Write JSON only, "
    'as [{{"question": "…", "answer": "…"}}].\n\nText:\n{text}'
)
ANSWER = "Answer in at most five words, without a sentence around them.\n\nQuestion: {question}"
READ_AND_ANSWER = "Read the text.\n\nText:\n{text}\n\n" + ANSWER


@dataclass
class SelfStudyArguments:
    dataset: str = HfArg(help="Texts: a folder or file (.txt, .md, .jsonl, .csv, .parquet), or a dataset on the Hub.")
    tokenizer: str = HfArg(help="Of the model to be trained: chunks are counted in its tokens.")
    model: str = HfArg(help="The endpoint's name of the model that is asked.")
    output: str = HfArg(help="JSON lines to write. What became of each chunk is in OUTPUT.chunks, beside it.")
    base_url: str = HfArg(default="http://127.0.0.1:8000/v1", help="The endpoint.")
    split: str = HfArg(default="train", help="Of the dataset on the Hub, as 'train[:100]'.")
    text_column: str = HfArg(default="text", help="The column that holds the text.")
    context_length: int = HfArg(default=512, help="Tokens of a chunk; the last one of a text may be shorter.")
    questions: int = HfArg(default=4, help="Questions about a chunk, at most.")
    max_tokens: int = HfArg(default=1024, help="Most tokens of a reply, with what the model thinks before it.")
    concurrency: int = HfArg(default=4, help="Chunks asked about at once.")
    retries: int = HfArg(default=4, help="Of a request that fails, and of a reply that is no JSON.")


def cut(documents, tokenizer, length: int):
    """Chunks, cut between tokens, each with the document that it is of."""
    for index, row in enumerate(documents):
        ids = tokenizer(
            row["text"] or "",
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        for spans in (ids["offset_mapping"][at : at + length] for at in range(0, len(ids["input_ids"]), length)):
            yield row["text"][spans[0][0] : spans[-1][1]], row.get("document_id", index)


def reply_to(create, prompt: str, temperature: float = 0.0) -> str:
    try:
        reply = create(messages=[{"role": "user", "content": prompt}], temperature=temperature)
        return (reply.choices[0].message.content or "").rpartition("</think>")[2].strip()
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # of an answer that is another page, or empty
        raise OpenAIError(f"The answer is no chat completion: {error}") from error


def read_questions(reply: str) -> list[list[str]]:
    """Questions, each with its answer; none where the reply is not what was asked for."""
    try:
        rows = json.loads(reply[reply.find("[") : reply.rfind("]") + 1])
        return [[" ".join(str(row[name]).split()) for name in ("question", "answer")] for row in rows]
    except (KeyError, TypeError, ValueError):
        return []


def study(ask, args: SelfStudyArguments, text: str) -> list[list] | OpenAIError:
    """Of each question what became of it and its target, from the file if there is one; or what fails after retries."""
    path = Path(f"{args.output}.chunks", json_digest([WRITE, ANSWER, args.model, args.questions, text]))
    if path.exists():
        return json.loads(path.read_bytes())
    try:
        # Sampled, so that another try gives another reply
        write = partial(ask, WRITE.format(questions=args.questions, text=text), temperature=0.7)
        tries, studied = (read_questions(write()) for _ in range(1 + args.retries)), []
        for question, answer in next(filter(None, tries), [])[: args.questions]:
            with_text, alone = (prompt.format(text=text, question=question) for prompt in (READ_AND_ANSWER, ANSWER))
            right = normalize_answer(answer) and exact_match(ask(with_text), [answer])
            outcome = "unanswerable" if not right else "known" if exact_match(ask(alone), [answer]) else "kept"
            target = {"kind": "question", "cue": f"\nQuestion: {question}\nAnswer:", "target": f" {answer}"}
            studied.append([outcome, target])
    except AuthenticationError as error:
        raise SystemExit(f"{error}\nSet OPENAI_API_KEY to a key that {args.base_url} takes.") from None
    except OpenAIError as error:
        return error
    replace_file(path, json.dumps(studied).encode())
    return studied


def main(args: SelfStudyArguments):
    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = OpenAI(base_url=args.base_url, api_key=key, max_retries=args.retries, timeout=120)
    ask = partial(reply_to, partial(client.chat.completions.create, model=args.model, max_tokens=args.max_tokens))
    documents = load_documents(args.dataset, split=args.split, text_column=args.text_column)
    chunks = dict(cut(documents, AutoTokenizer.from_pretrained(args.tokenizer), args.context_length))
    Path(f"{args.output}.chunks").mkdir(parents=True, exist_ok=True)
    results = thread_map(partial(study, ask, args), list(chunks), max_workers=args.concurrency, desc="Chunks")
    failed = [result for result in results if isinstance(result, OpenAIError)]
    if failed:
        last = f"{failed[-1]} ({args.base_url})"
        said = f"{len(failed)} chunks failed, and the same command asks about them again; the last: {last}"
        if len(failed) == len(chunks):  # what an earlier run wrote stays
            raise SystemExit(said)
    counts, lines = Counter(), []
    for text, result in zip(chunks, results, strict=True):
        studied = [] if isinstance(result, OpenAIError) else result
        counts.update(outcome for outcome, _ in studied)
        if targets := [target for outcome, target in studied if outcome == "kept"]:
            lines.append(json.dumps({"context": text, "targets": targets, "document_id": chunks[text]}) + "\n")
    replace_file(Path(args.output), "".join(lines).encode())
    print(f"{len(chunks)} chunks: {counts.total()} questions written, {results.count([])} chunks unparsable;", end=" ")
    print("{unanswerable} unanswerable with the chunk, {known} answered without it, {kept} kept".format_map(counts))
    if failed:
        print(said)


if __name__ == "__main__":
    main(*TrlParser(SelfStudyArguments).parse_args_and_config())
