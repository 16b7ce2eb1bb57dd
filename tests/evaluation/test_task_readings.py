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

"""Questions after a text whose tail is worthless: what each arm reads, how it is counted, and the command."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from any_text import TOKENIZERS
from datasets import Dataset
from launching import held_by_another
from tiny import PARAGRAPH, make_model
from tiny_pairs import in_eval, make_pair

from trl_gist import GistCompactor
from trl_gist.cli import main
from trl_gist.common.folder_lock import LOCK_FILE
from trl_gist.common.geometry import Geometry, WindowedText
from trl_gist.common.tokens import characters_of
from trl_gist.data.tasks import EVALUATION_SEED, make_tasks
from trl_gist.evaluation.compressors.registry import extractive_compressors
from trl_gist.evaluation.tasks.measures import age_groups, task_measures
from trl_gist.evaluation.tasks.readings import TaskReadings, continuations_of_one
from trl_gist.models.generation import generate, greedy_continuations
from trl_gist.scripts.arguments import TasksArguments


CONTEXT, LAST_K, GIST = 180, 8, 24
CHUNK = CONTEXT - LAST_K - GIST - 1  # a newline is one token


def make_compactor(tokenizer, seed):
    models = (make_model(tokenizer, seed + n, tie_word_embeddings=False) for n in (0, 1))
    return GistCompactor(*map(in_eval, models), tokenizer, make_pair(last_k=LAST_K, max_gist_length=GIST))


@pytest.fixture(scope="module")
def compactor(tokenizer):
    return make_compactor(tokenizer, 0)


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return in_eval(make_model(tokenizer, 9, tie_word_embeddings=False))


@pytest.fixture(scope="module")
def readings(compactor, teacher, tokenizer):
    compressors = extractive_compressors(tokenizer, teacher, [], names=["self-information", "head"])
    return TaskReadings(compactor, teacher, {"other": make_compactor(tokenizer, 5)}, compressors, batch_size=2)


@pytest.fixture(scope="module")
def documents(tokenizer):
    sizes = {"window_length": CHUNK, "last_k": LAST_K, "tail_length": LAST_K + GIST, "difficulty": 1}
    return [
        {"windows": windows, **row}
        for windows in (1, 2, 4)
        for row in make_tasks(tokenizer, ["needles", "story"], 1, windows, **sizes)
    ]


@pytest.fixture(scope="module")
def rows(readings, documents):
    return [row for batch in readings.read(documents) for row in batch]


@pytest.fixture(scope="module")
def folded(readings, documents, tokenizer):
    """Each document's tokens and last gists, folded alone."""
    ids = [tokenizer(document["context"])["input_ids"] for document in documents]
    texts = [WindowedText(each, readings.geometry, characters_of(tokenizer)) for each in ids]
    return [
        (each.ids, readings._fold([each], document["windows"])[0])
        for each, document in zip(texts, documents, strict=True)
    ]


# ---- What is read ----


def test_continuations_after_one_reading_are_those_of_a_reading_each(each_model, tokenizer):
    start, model = tokenizer(PARAGRAPH)["input_ids"], in_eval(each_model)
    cues = ["\nWhere was it?", " Broad Street", "\nWho had", " In 1854", " in Soho", "\n"]
    prompts = [start + tokenizer(cue)["input_ids"] for cue in cues]
    assert len({len(prompt) for prompt in prompts}) < len(prompts)
    wanted = [greedy_continuations(model, [prompt], 5, tokenizer)[0] for prompt in prompts]
    assert continuations_of_one(model, tokenizer, start, prompts, 5) == wanted


def test_no_more_prompts_than_asked_for_read_a_text_together(teacher, tokenizer, monkeypatch):
    """Each has a copy of all its keys and values."""
    together = []
    monkeypatch.setattr(
        "trl_gist.evaluation.tasks.readings.generate",
        lambda *args, **settings: together.append(len(args[2])) or generate(*args, **settings),
    )
    start = tokenizer(PARAGRAPH)["input_ids"]
    prompts = [[*start, cue] for cue in range(40, 45)] + [[*start, 40, 41]]
    written = continuations_of_one(teacher, tokenizer, start, prompts, 5, 2)
    assert together == [2, 2, 1, 1]
    assert written == greedy_continuations(teacher, prompts, 5, tokenizer)


def test_gists_are_a_sessions(rows, documents, compactor, tokenizer):
    """Which folds whenever a chunk and L are there."""
    for row, document in zip(rows, documents, strict=True):
        ids, session = tokenizer(document["context"])["input_ids"], compactor.session()
        for window in range(document["windows"]):
            session.append(ids[session.position : (window + 1) * CHUNK + LAST_K])
            if len(session.history) == window:
                session.compact()
        assert [c.tokens_in for c in session.history] == [CHUNK] * document["windows"]
        assert row["gists"]["pair"] == session.gist


def test_every_arm_reads_what_it_says(rows, documents, folded, readings, compactor, teacher, tokenizer):
    other, prompts = readings.others["other"], compactor.prompts
    assert readings.arms == [
        *("full", "last_k", "tail", "zero_shot", "self-information", "head", "null", "single", "recall", "pair"),
        "other",
    ]
    for row, document, (ids, gists) in zip(rows, documents, folded, strict=True):
        last = ids[document["windows"] * CHUNK :]
        assert LAST_K <= len(last) < LAST_K + 60 and row["tokens"] == len(ids)
        for question, target in zip(row["questions"], document["targets"], strict=True):
            cue, answer = tokenizer(target["cue"])["input_ids"], tokenizer(target["target"])["input_ids"]
            reads = {
                "full": (teacher, ids + cue),
                "last_k": (teacher, last + cue),
                "zero_shot": (teacher, prompts.generator(gists["zero_shot"], last + cue)),
                "self-information": (teacher, prompts.generator(gists["self-information"], last + cue)),
                "null": (compactor.generator, prompts.generator([], last + cue)),
                "single": (compactor.generator, prompts.generator(gists["single"], last + cue)),
                "recall": (compactor.generator, prompts.generator(gists["pair"], cue)),
                "pair": (compactor.generator, prompts.generator(gists["pair"], last + cue)),
                "other": (other.generator, prompts.generator(gists["other"], last + cue)),
            }
            for arm, (model, prompt) in reads.items():
                if arm == "full" and len(prompt) + 40 > 512:
                    assert arm not in question["written"] and document["windows"] == 4
                    continue
                (ids_written,) = greedy_continuations(model, [prompt], len(answer) + 3, tokenizer)
                text = compactor.decode(ids_written).strip().partition("\n")[0]
                # It is longer, and the end of this one may be half a character
                assert question["written"][arm].startswith(text[: len(text) // 2])
                assert question["exact"][arm] == (ids_written[: len(answer)] == answer)
            assert (question["age"], question["answer"]) == (target["age"], target["target"])


def test_a_longer_tail_and_what_is_pruned_have_as_many_tokens_as_the_gist(readings, documents, folded, tokenizer):
    for document, (ids, gists) in zip(documents, folded, strict=True):
        windows = document["windows"]
        count, last = len(gists["pair"]), len(ids) - windows * CHUNK
        text = WindowedText(ids, readings.geometry, characters_of(tokenizer))
        assert readings._prompt("tail", text, windows, gists, [7]) == [*ids[len(ids) - last - count :], 7]
        assert len(gists["self-information"]) == len(gists["head"]) == count > 0
        # Nothing that is asked for stands there
        tail = tokenizer.decode(ids[len(ids) - last - count :])
        assert not any(target["target"] in tail for target in document["targets"])


def test_head_rolls_so_that_it_keeps_the_beginning(folded):
    ids, gists = folded[-1]
    # As far as every window's gist was long enough
    assert gists["head"][:10] == ids[:10]


def test_a_compressor_that_breaks_its_budget_is_named(compactor, teacher, documents):
    class Everything:
        def compress(self, contexts, budgets):
            return contexts

    readings = TaskReadings(compactor, teacher, compressors={"all": Everything()})
    with pytest.raises(ValueError, match="The compressor 'all' wrote a gist of .* on a budget of"):
        next(readings.read(documents[:1]))


def test_a_read_that_was_cut_off_goes_on(readings, documents, rows):
    for done in (3, len(documents)):
        assert [row for batch in readings.read(documents, done) for row in batch] == rows[done:]


def test_an_answer_is_right_by_its_words(readings, documents, monkeypatch):
    says = {"lion": " The lion. It was", "exact": " lion", "longer": " lioness", "empty": "", "later": " a big lion"}
    document = replace_answers(documents[0], " lion")
    for name, right, exact in (
        *(("lion", True, False), ("exact", True, True)),
        *(("longer", False, False), ("empty", False, False), ("later", False, False)),
    ):
        ids = readings.compactor.tokenizer(says[name])["input_ids"]
        monkeypatch.setattr(readings, "_write_on", lambda arm, prompts, *_, ids=ids: [ids] * len(prompts))
        (row,) = next(readings.read([document]))
        assert row["questions"][0]["right"] == dict.fromkeys(readings.arms, right)
        assert row["questions"][0]["exact"] == dict.fromkeys(readings.arms, exact)


def replace_answers(document, answer):
    return {**document, "targets": [{**target, "target": answer} for target in document["targets"]]}


def test_nobody_may_be_called_as_somebody_else(compactor, teacher, tokenizer):
    with pytest.raises(ValueError, match="'recall', which is taken"):
        TaskReadings(compactor, teacher, {"recall": compactor})
    with pytest.raises(ValueError, match="'tail', which is taken"):
        TaskReadings(compactor, teacher, {}, extractive_compressors(tokenizer, teacher, [], names=["tail"]))
    narrow = make_compactor(tokenizer, 5)
    narrow.pair = replace(narrow.pair, context_length=150)
    with pytest.raises(ValueError, match="narrow folds 117 tokens"):
        TaskReadings(compactor, teacher, {"narrow": narrow})


def test_a_compressor_that_comes_later_may_not_be_called_as_a_pair(compactor, teacher, tokenizer):
    readings = TaskReadings(compactor, teacher, {"head": compactor})
    with pytest.raises(ValueError, match="'head', which is taken"):
        readings.add_compressors(extractive_compressors(tokenizer, teacher, [], names=["head"]))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("script", ["霍乱水泵在街上", "👩‍👩‍👧🦠🇬🇧", "ไข้ "])
def test_no_token_is_lost_between_the_last_chunk_and_the_tail(kind, script):
    """Where chunks end before a character that they would cut: what was folded and L are the text."""
    tokenizer, ends = TOKENIZERS[kind], set()
    for before in range(4):
        ids = tokenizer("a" * before + script * 120, add_special_tokens=False)["input_ids"]
        text = WindowedText(ids, Geometry(90, 50, 8, 8), characters_of(tokenizer))
        compactor = SimpleNamespace(prompts=SimpleNamespace(plain=list, generator=lambda gist, rest: rest))
        readings, gists = SimpleNamespace(compactor=compactor, others={}, geometry=text.geometry), {"pair": [1] * 9}
        for windows in (1, 2, 5):
            chunks = [token for window in range(windows) for token in text.chunk(window)]
            assert chunks + TaskReadings._prompt(readings, "null", text, windows, gists, []) == ids
            tail = TaskReadings._prompt(readings, "tail", text, windows, gists, [])
            ends.add(len(ids) - len(chunks) + 9 - len(tail))
            assert "\ufffd" not in tokenizer.decode(tail) and ids[-len(tail) :] == tail
    assert ends <= {0, 1, 2, 3}


def test_a_chunk_alone_is_folded_at_the_end_only(readings, documents, monkeypatch):
    folded, fold = [], readings.walk.fold
    monkeypatch.setattr(
        readings.walk, "fold", lambda writer, previous, *rest: folded.append(previous) or fold(writer, previous, *rest)
    )
    next(readings.read([document for document in documents if document["windows"] == 4][:1]))
    # Three writers a window, with nothing before the first
    assert len(folded) == 3 * 4 + 1 and sum(previous == [[]] for previous in folded) == 3 + 1


# ---- What it comes to ----


def test_measures_are_shares_with_errors_over_documents():
    rng, rows = np.random.default_rng(0), []
    for task, choices in (("ledger", 16), ("story", 8)):
        for windows in (2, 12):
            for index in range(9):
                asked = [
                    {
                        "age": int(rng.integers(windows)),
                        "choices": choices,
                        "right": {arm: bool(rng.random() < share) for arm, share in (("pair", 0.6), ("null", 0.2))},
                        "exact": {"pair": False, "null": True},
                    }
                    for _ in range(1 + index % 3)
                ]
                row = {
                    "document_id": f"{task}{windows}{index}",
                    "task": task,
                    "windows": windows,
                    "tokens": 9 * windows,
                }
                rows.append({**row, "read": {"pair": 7, "null": 5}, "questions": asked})
    measures = task_measures(rows, ["full", "null", "pair"])
    assert list(measures) == ["ledger", "story", "all tasks"]
    for task, found in measures.items():
        for group in found["lengths"]:
            own = [row for row in rows if task in (row["task"], "all tasks") and row["windows"] == group["windows"]]
            check(group, own, [question for row in own for question in row["questions"]])
        for group in found["ages"]:
            chosen = [row for row in rows if task in (row["task"], "all tasks") and row["windows"] == 12]
            old = range(group["first"], group["last"] + 1)
            check(group, chosen, [q for row in chosen for q in row["questions"] if q["age"] in old])
        assert {(group["first"], group["last"]) for group in found["ages"]} <= {*age_groups(11)}
    assert measures["story"]["lengths"][0]["chance"] == 1 / 8
    assert 1 / 16 < measures["all tasks"]["lengths"][0]["chance"] < 1 / 8


def check(group, rows, questions):
    """By hand: each document's sum of what is left of its own mean."""
    assert group["questions"] == len(questions) and math.isnan(group["right_full"])
    for name, value in (
        ("right_pair", lambda q: q["right"]["pair"]),
        ("ahead_of_null", lambda q: q["right"]["pair"] - q["right"]["null"]),
        ("exact_null", lambda q: 1),
    ):
        mean = sum(map(value, questions)) / len(questions)
        assert group[name] == pytest.approx(mean)
        sums = [
            sum(value(q) - mean for q in own)
            for row in rows
            if (own := [q for q in row["questions"] if any(q is each for each in questions)])
        ]
        if len(sums) > 1:
            variance = sum(each**2 for each in sums) * len(sums) / (len(sums) - 1)
            assert group[f"{name}_se"] == pytest.approx(variance**0.5 / len(questions))


def test_ages_are_each_alone_then_together():
    assert age_groups(0) == [(0, 0)]
    assert age_groups(8) == [(age, age) for age in range(9)]
    assert age_groups(40)[9:] == [(9, 16), (17, 32), (33, 40)]


# ---- The command ----


@pytest.fixture
def saved_pair(make_trainer, lora):
    sizes = {"context_length": 170, "target_length": 6, "last_k": 3, "max_steps": 1}
    text = {"text": [f"{index} {PARAGRAPH * 2}" for index in range(8)]}
    trainer = make_trainer(peft_config=lora, args=sizes, train_dataset=Dataset.from_dict(text))
    trainer.train()
    trainer.save_model()
    return trainer.args.output_dir


def test_the_command_leaves_tables_plots_and_a_page_and_goes_on_after_a_kill(saved_pair, tmp_path, capsys):
    flags = ["evaluate", saved_pair, "--tasks", "ledger", "needles", "--lengths", "1", "3", "--texts", "2"]
    flags += ["--difficulty", "1", "--pairs", f"again={saved_pair}", "--device", "cpu", "--batch_size", "2"]
    assert main([*flags, "--output_dir", str(tmp_path / "straight")]) == 0
    printed = capsys.readouterr().out
    assert "all tasks: right answers in %, by windows of the text" in printed
    assert "ledger: right" not in printed and "The tables of each task are in" in printed
    assert "Needles, 3 windows: the pair answers" in printed and "chance 6.2%" in printed
    folder = tmp_path / "straight"
    rows = (folder / "rows.jsonl").read_bytes()
    assert len(rows.splitlines()) == 8
    for name in ("age", "length"):
        assert (folder / f"plots/tasks_{name}.png").stat().st_size > 5000
    page = (folder / "evaluation.html").read_text()
    assert page.count("<svg") == 2 and "again: rolling gist" in page and str(tmp_path) not in page
    tables = (folder / "tables.md").read_text()
    assert "| T: self-information, rolling |" in tables and "| **G: rolling gist** |" in tables
    lines = [line for line in tables.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[:5]] == [
        *("| answered from", "| ---", "| questions", "| T: all of the text", "| chance")
    ]
    ahead = tables.partition("is ahead, paired by question, of texts of 3 windows")[2].splitlines()
    rows_of_table = [line.strip("| ").split(" | ") for line in ahead if line.startswith("| ")]
    assert rows_of_table[0] == ["ahead of", "ledger", "needles", "all tasks"]
    assert rows_of_table[-1] == ["again: rolling gist", *["+0.0 ± 0.0"] * 3] and len(rows_of_table) == 2 + 7
    assert page.index("is ahead, paired by question") < page.index("by windows of the text")
    measures = json.loads((folder / "measures.json").read_text())
    for task in measures["tasks"].values():
        assert [(group["windows"], group["questions"]) for group in task["lengths"]] in (
            [(1, 2), (3, 2)],
            [(1, 4), (3, 4)],
        )
        assert all(group["ahead_of_again"] == 0 for group in task["lengths"] + task["ages"])

    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "settings.json").write_bytes((folder / "settings.json").read_bytes())
    (killed / "rows.jsonl").write_bytes(rows[: len(rows) * 2 // 3])
    assert main([*flags, "--output_dir", str(killed)]) == 0
    assert (killed / "rows.jsonl").read_bytes() == rows
    assert json.loads((killed / "measures.json").read_text()) == measures


def test_an_interruption_says_what_is_kept(saved_pair, tmp_path, monkeypatch, capsys):
    read = TaskReadings.read

    def interrupted(*args):
        yield next(read(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(TaskReadings, "read", interrupted)
    flags = ["evaluate", saved_pair, "--tasks", "needles", "--lengths", "1", "--texts", "3", "--difficulty", "1"]
    flags += ["--device", "cpu", "--batch_size", "2", "--output_dir", str(tmp_path / "out")]
    assert main(flags) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "2 texts are measured and kept; the same command goes on from there" in said
    assert len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 2


def test_documents_stand_between_the_facts(saved_pair, tmp_path, capsys):
    file, texts = tmp_path / "filler.jsonl", [PARAGRAPH, None]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = ["evaluate", saved_pair, "--dataset", str(file), "--tasks", "needles"]
    flags += ["--lengths", "40", "--texts", "1", "--difficulty", "1", "--device", "cpu"]
    flags += ["--compressors", "head", "stop_word_drop"]
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    (row,) = map(json.loads, (tmp_path / "out/rows.jsonl").read_text().splitlines())
    assert row["tokens"] > 40 * 100 and "stop-word drop" in row["gists"]
    assert row["gists"]["head"].strip() in PARAGRAPH and len(row["gists"]["head"]) > 3
    printed = capsys.readouterr().out
    assert "1 rows skipped (1 null)." in printed
    assert "Needles, 40 windows: " in printed and "right, T has too few positions for all of the text, ch" in printed
    for columns, message in (({"text": None}, "no text to stand"), ({"body": PARAGRAPH}, "has columns ['body']")):
        file.write_text(json.dumps(columns))
        with pytest.raises(SystemExit):
            main([*flags, "--output_dir", str(tmp_path / "none")])
        assert message in capsys.readouterr().err


def test_a_folder_is_held_until_its_page_is_written_and_no_longer(saved_pair, tmp_path, monkeypatch, capsys):
    flags = ["evaluate", saved_pair, "--tasks", "needles", "--lengths", "1", "--texts", "1", "--difficulty", "1"]
    flags += ["--device", "cpu", "--output_dir", str(tmp_path / "out")]
    with held_by_another(tmp_path / "out") as holder, pytest.raises(SystemExit):
        main(flags)
    assert f"in use by another run: process {holder.pid} on" in capsys.readouterr().err
    folders = []

    def fail(folder, *_):
        folders.append(folder)
        assert (folder.path / LOCK_FILE).exists()
        raise ValueError("no page")

    monkeypatch.setattr("trl_gist.scripts.tasks.finish", fail)
    with pytest.raises(SystemExit):
        main(flags)
    assert len(folders) == 1 and not (tmp_path / "out" / LOCK_FILE).exists()


def test_defaults_are_those_of_the_command(monkeypatch):
    asked = []
    monkeypatch.setattr("trl_gist.scripts.tasks.measure_tasks", asked.append)
    assert main(["evaluate", "pair", "--tasks"]) == main(["evaluate", "pair", "--tasks", "all", "--seed", "3"]) == 0
    first, second = asked
    assert (first.seed, second.seed, second.tasks) == (EVALUATION_SEED, 3, ["all"])
    assert first == TasksArguments(pair="pair", tasks=[]) and first.text_column == "text"


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    for flags, message in (
        (["--tasks", "chess"], "There is no task 'chess': choose from ledger"),
        (["--tasks", "--compressors", "zero-shot summary"], "--compressors takes some of head"),
        (["--tasks", "--compressors", "tail"], "got 'tail'"),
        (["--tasks", "--max_windows", "3"], "--max_windows does not go with --tasks"),
        (["--tasks", "--target_floor", "0"], "--target_floor does not go with --tasks"),
        (["--tasks", "all", "needles"], "There is no task 'all'"),
        (["--tasks", "needles", "needles"], "'needles' is named more than once"),
        (["--tasks", "--pairs", "a=x", "b=y", "a=z"], "`--pairs` names two 'a'"),
        *(
            (["--tasks", *flags], f"{flags[0]} is of documents that stand between the facts: add --dataset")
            for flags in (["--streaming"], ["--text_column", "text"], ["--max_documents", "3"], ["--split", "train"])
        ),
        (["--seed", "0", "--dataset", "x"], "--seed is for facts that a session is asked for: add --tasks"),
        (["--pairs", "a=x", "--dataset", "x"], "--pairs is for facts that a session is asked for: add --tasks"),
        (["--lengths", "3", "--dataset", "x"], "--lengths is for facts that a session is asked for: add --tasks"),
        ([], "--dataset is missing"),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", str(tmp_path), *flags])
        assert message in capsys.readouterr().err
