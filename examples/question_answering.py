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
Question answering as an ordinary run: the passage is the context, the question the last k, the answer the target.

The summarizer compresses a passage, the generator answers a question about it from the gist, and the teacher answers
with the whole passage before it. Without `--question_aware` the summarizer writes its gist before any question is
known, as one would to store passages; with it the prompt has `{last_k}`, and the gist may be about the question alone.
SmolLM2-135M-Instruct on SQuAD's questions, whose answers are words of the passage; articles are held out, not
questions.

python -m examples.question_answering                                      not run yet
python -m examples.question_answering --question_aware --max_steps 16      docs/QUESTION_ANSWERING.md

The second printed, the answer's NLL in nats per token ± standard error over 16 unseen articles (one seed):

    generator with the gist         3.871 ± 0.183 before    3.944 ± 0.180 after
    generator with an empty gist    4.459 ± 0.208 before    4.449 ± 0.201 after

A generator can be trained to read what a rule writes, too. `--hand NAME` trains such a reader. `--compare PAIR` then has
the pair's generator and the readers given answer from every compressor's gists of the held-out passages, all paired by
question:

split="--held_out_articles 20 --questions_of_each 20"      the same for all, so that they have seen the same questions
python -m examples.question_answering $split --output_dir pair
python -m examples.question_answering $split --output_dir tail --hand tail
python -m examples.question_answering $split --compare pair --own_generators tail=tail      not run yet
"""

import argparse
import random
import time

from trl_gist import GistCompactor, GistTrainer, length_penalty, log_prob_gain
from trl_gist.common.arguments import named
from trl_gist.common.tokens import literal_ids
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.evaluation import load_generator_only, load_teacher
from trl_gist.evaluation.compressors.registry import EXTRACTIVE_COMPRESSORS, compressor_name, standard_compressors
from trl_gist.evaluation.question_answering import answer_questions, answers_table
from trl_gist.scripts.train import load_compressor

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from examples.demo_assets import question_answers, smollm2_checkpoint
from examples.short_run import (
    next_run_dir,
    print_answers,
    print_measures,
    print_verdicts,
    quiet_console,
    short_config,
    train_and_evaluate,
)


PASSAGE_LENGTH, HELD_OUT_ARTICLES, QUESTIONS_OF_EACH = 256, 16, 5
ANSWERS = {"max_new_tokens": 16, "batch_size": 16}
PROMPT = (
    "Compress the passage below into a short gist that lets someone who sees only the gist answer {task}. Keep names, "
    "numbers and key terms. Write no full sentences.\n\n"
)
UNAWARE = PROMPT.format(task="questions about the passage") + "{context}\n\nGist:"
AWARE = PROMPT.format(task="the question after the passage") + "{context}\n{last_k}\n\nGist:"
ANSWER_NLL = {
    "nll_teacher": "answer's NLL: teacher with the passage",
    "nll_gist": "  generator with the gist",
    "nll_null": "  generator with an empty gist",
    "nll_shuffled": "  generator with another article's gist",
    "nll_tail": "  teacher with the passage's last |Z| tokens",
    "nll_last_k": "  teacher with the question only",
}
GAINS = {
    "gain_over_null": "the gist gains over an empty gist",
    "gain_over_shuffled": "  over another article's gist",
    "gain_over_tail": "  over the passage's last |Z| tokens",
    "gain_over_last_k": "  over the question only",
}
SIZES = {"gist_length": "tokens a gist", "gist_rate": "gist rate, |Z|/|X|"}


def main(
    question_aware: bool,
    max_steps: int,
    output_dir: str | None,
    hand: str | None = None,
    compare: str | None = None,
    own_generators: list[str] | None = None,
    held_out_articles: int | None = None,
    questions_of_each: int | None = None,
):
    console = quiet_console()
    started = time.time()
    checkpoint = str(smollm2_checkpoint())
    questions = answerable(question_answers(), AutoTokenizer.from_pretrained(checkpoint))
    train, held_out = split_by_article(questions, held_out_articles, questions_of_each)
    if compare is not None:
        console.print(answers_table(compared(compare, named(own_generators, "--own_generators"), train, held_out)))
        return
    output_dir = output_dir or next_run_dir("question-answering")
    args = short_config(
        output_dir,
        context_length=PASSAGE_LENGTH,
        summarizer_prompt=AWARE if question_aware else UNAWARE,
        max_steps=max_steps,
        cold_start_steps=0,  # the end of a passage answers its question no more than the rest
        temperature=0.7,
        save_strategy="no",
        generator_only=hand is not None,
    )
    trainer = GistTrainer(
        model=checkpoint,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        reward_funcs=[log_prob_gain, length_penalty],  # on the right answer, whatever the teacher would say
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    if hand is not None:
        trainer.compressor = load_compressor(hand, trainer)
    sees = "sees the question" if question_aware else "writes before any question is known"
    writes = f"the summarizer {sees}" if hand is None else f"the generator learns to read gists by {hand!r}"
    console.print(f"{len(train)} questions to train on, {len(held_out)} held out; {writes}")
    before, after = train_and_evaluate(console, trainer, "questions about held-out articles")
    print_measures(console, before, after, ANSWER_NLL, GAINS, SIZES)
    trainer.save_model()
    if hand is None:
        print_verdicts(console, before, after, trainer.generator_trainer.scorer)
        compactor = GistCompactor.from_pretrained(output_dir)
        answers = answer_questions(compactor, load_teacher(compactor), after.rows, **ANSWERS)
        print_answers(console, after.rows, answers, compactor.tokenizer)
    console.print(f"Done in {(time.time() - started) / 60:.1f} minutes. The pair is in {output_dir}.", soft_wrap=True)


def compared(pair: str, own_generators: dict[str, str], train: Dataset, held_out: Dataset) -> list[dict]:
    """Answers from the gists of a pair and of every compressor, by the pair's generator and by readers of their own."""
    compactor = GistCompactor.from_pretrained(pair)
    config, teacher = compactor.pair, load_teacher(compactor)
    spec = WindowSpec(config.context_length, config.target_length, config.last_k, None, None)
    windows, _ = prepare_windows(held_out, compactor.tokenizer, spec, name="held-out")
    compressors = standard_compressors(compactor, teacher, train["context"], batch_size=ANSWERS["batch_size"])
    readers = {name: load_generator_only(path, compactor) for name, path in own_generators.items()}
    return answer_questions(
        compactor, teacher, list(windows), compressors=compressors, own_generators=readers, **ANSWERS
    )


def answerable(questions: Dataset, tokenizer) -> Dataset:
    """Windows of passages cut to `PASSAGE_LENGTH` tokens; those whose answer was cut off are dropped."""

    def window(row):
        passage = literal_ids(tokenizer, row["context"])[:PASSAGE_LENGTH]
        question = f"\nQuestion: {row['question']}\nAnswer:"
        # The line break is part of the target: a generator that nobody taught to end its answers matches none
        return {"context": passage, "last_k": question, "target": f" {row['answer']}\n"}

    windows = questions.map(window, remove_columns="question")
    return windows.filter(lambda row: row["answer"] in tokenizer.decode(row["context"])).remove_columns("answer")


def split_by_article(
    questions: Dataset, held_out_articles: int | None = None, questions_of_each: int | None = None
) -> tuple[Dataset, Dataset]:
    """Questions about most articles, and a few about each of the articles held out."""
    articles, of_each = sorted(set(questions["document_id"])), questions_of_each or QUESTIONS_OF_EACH
    held_out = dict.fromkeys(random.Random(0).sample(articles, held_out_articles or HELD_OUT_ARTICLES), 0)
    train, evaluated = [], []
    for index, article in enumerate(questions["document_id"]):
        if article not in held_out:
            train.append(index)
        elif held_out[article] < of_each:
            held_out[article] += 1
            evaluated.append(index)
    return questions.select(train), questions.select(evaluated)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question_aware", action="store_true", help="let the summarizer see the question")
    parser.add_argument("--max_steps", type=int, default=32, help="optimizer steps (default: 32)")
    parser.add_argument("--output_dir", help="where the run goes (default: the next free runs/question-answering-N)")
    parser.add_argument(
        "--hand",
        type=compressor_name,
        choices=EXTRACTIVE_COMPRESSORS,
        help="train a generator alone, to read the gists of this rule",
    )
    parser.add_argument("--compare", metavar="PAIR", help="train nothing: this pair against every compressor")
    parser.add_argument(
        "--own_generators", nargs="+", metavar="NAME=PAIR", help="with --compare: what `--hand NAME` has trained"
    )
    parser.add_argument(
        "--held_out_articles", type=int, help=f"articles that are not trained on (default: {HELD_OUT_ARTICLES})"
    )
    parser.add_argument(
        "--questions_of_each", type=int, help=f"questions about each of them (default: {QUESTIONS_OF_EACH})"
    )
    main(**vars(parser.parse_args()))
