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

"""`trl-gist data`: what is shown of a data set before anything is trained on it."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from tiny import PARAGRAPH, make_documents
from transformers import AutoModelForCausalLM

from trl_gist import GistConfig
from trl_gist.cli import main
from trl_gist.data.targets import TargetSpec
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.prompts import targets_of
from trl_gist.scripts.arguments import DataArguments
from trl_gist.scripts.train import GistScriptArguments, make_parser, make_trainer


WINDOW = ["--context_length", "24", "--target_length", "8", "--last_k", "4"]
KINDS = {"continuation": 1, "fact": 2, "far": 1}


@pytest.fixture
def file(tmp_path):
    rows = [{"body": text} for text in [*make_documents(6), "too short", None, "short too"]]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "docs.jsonl"


@pytest.fixture
def shown(file, checkpoint, tmp_path, capsys):
    """Runs the command; returns what it prints and what it writes."""

    def run(*flags, source=file, model=checkpoint):
        capsys.readouterr()
        argv = ["data", source, "--model_name_or_path", model, "--text_column", "body", *WINDOW, *flags]
        assert main([str(part) for part in [*argv, "--json", tmp_path / "report.json"]]) == 0
        return capsys.readouterr().out, json.loads((tmp_path / "report.json").read_text())

    return run


def log_prob(model, before, target):
    """Mean of a target's tokens after some others, by a plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *target]])).logits[0].log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(target) - 1)
    return np.mean([logits[place, token].item() for place, token in zip(places, target, strict=True)])


def mean_and_error(values, documents):
    """The mean, and its standard error over documents, spelled out."""
    mean, of_document = np.mean(values), {}
    for value, document in zip(values, documents, strict=True):
        of_document.setdefault(document, []).append(value - mean)
    residuals = [sum(of_one) for of_one in of_document.values()]
    count = len(residuals)
    return mean, math.sqrt(sum(r * r for r in residuals) * count / (count - 1)) / len(values)


def windows_of(tokenizer, targets=None):
    documents = Dataset.from_dict({"text": [*make_documents(6), "too short", None, "short too"]})
    return prepare_windows(documents, tokenizer, WindowSpec(24, 8, 4, None, None, targets=targets or TargetSpec()))[0]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_worth_of_contexts_is_what_plain_forwards_say(shown, tokenizer, checkpoint, batch_size):
    out, report = shown("--max_windows", 7, "--batch_size", batch_size)
    model, windows = AutoModelForCausalLM.from_pretrained(checkpoint).eval(), windows_of(tokenizer)
    rows = [windows[place * len(windows) // 7] for place in range(7)]
    read = [log_prob(model, row["context_ids"], row["target_ids"]) for row in rows]
    alone = [log_prob(model, row["last_k_ids"], row["target_ids"]) for row in rows]
    gain, error = mean_and_error(np.subtract(read, alone), [row["document_id"] for row in rows])
    (worth,) = report["worth"].values()
    assert worth["gain"] == pytest.approx(gain, abs=1e-5) and worth["gain_se"] == pytest.approx(error, abs=1e-5)
    assert worth["nll_context"] == pytest.approx(-np.mean(read), abs=1e-5)
    assert worth["nll_cue"] == pytest.approx(-np.mean(alone), abs=1e-5)
    assert (worth["targets"], worth["documents"]) == (7, len({row["document_id"] for row in rows}))
    assert [example["targets"][0]["gain"] for example in report["examples"]] == pytest.approx(
        np.subtract(read, alone), abs=1e-5
    )
    assert f"{gain:.4f} ± {error:.4f}" in out and "after its last 4" in out
    assert "the last 4 of them read verbatim, and 8 of target" in " ".join(out.split())


def test_the_worth_of_each_kind_is_what_plain_forwards_say(shown, tokenizer, checkpoint):
    flags = ["--target_kinds", json.dumps(KINDS), "--targets_per_context", 5, "--cue_length", 6, "--far_offset", 9]
    out, report = shown(*flags, "--target_floor", 0.05, "--max_windows", 9)
    spec = TargetSpec(tuple(KINDS.items()), 5, 6, 9)
    model, windows = AutoModelForCausalLM.from_pretrained(checkpoint).eval(), windows_of(tokenizer, spec)
    gains = {}
    for place in range(9):
        row = windows[place * len(windows) // 9]
        for target in row["targets"]:
            before = max(target["cue_ids"], target["after_ids"], key=len)
            read = log_prob(model, row["context_ids"] + target["after_ids"], target["target_ids"])
            gain = read - log_prob(model, before, target["target_ids"])
            for kind in (target["kind"], "all"):
                gains.setdefault(kind, []).append((gain, row["document_id"]))
    assert report["worth"].keys() == gains.keys() == {*KINDS, "all"}
    for kind, values in gains.items():
        gain, error = mean_and_error(*zip(*values, strict=True))
        worth = report["worth"][kind]
        assert worth["gain"] == pytest.approx(gain, abs=1e-5) and worth["gain_se"] == pytest.approx(error, abs=1e-5)
        assert worth["above_floor"] == np.mean([value >= 0.05 for value, _ in values])
        assert worth["targets"] == len(values) and kind in out
    assert "after its cue" in out and "≥ 0.05" in out
    assert "24 tokens of context, and targets of at most 8, each after a cue" in " ".join(out.split())


@pytest.mark.parametrize("streaming", [False, True])
def test_windows_and_what_is_skipped_are_shown_without_a_teacher(shown, tokenizer, checkpoint, monkeypatch, streaming):
    monkeypatch.setattr("trl_gist.scripts.data._load_teacher", lambda *args: pytest.fail("loaded"))
    out, report = shown("--no_teacher", "--show", 2, *(["--streaming"] if streaming else []))
    windows = windows_of(tokenizer)
    assert report["skipped"] == {"too short": 2, "null": 1}
    assert (report["documents"], report["windows"]) == ((None, None) if streaming else (9, len(windows)))
    assert report["windows_read"] == len(windows) and "worth" not in report
    assert "skipped" in out and "3 rows: 1 null, 2 too short" in " ".join(out.split())
    assert out.count("A window of document") == 2
    first = report["examples"][0]
    assert first["context"] == tokenizer.decode(windows[0]["context_ids"])
    assert first["last_k"] == tokenizer.decode(windows[0]["last_k_ids"])
    assert first["targets"][0]["target"] == tokenizer.decode(windows[0]["target_ids"])
    assert first["targets"][0]["cue"] == first["last_k"] and first["targets"][0]["tokens"] == 8


def test_texts_are_shown_as_they_are(tmp_path, shown):
    text = "[bold]John Snow[/bold] of [1854]:\r\nbéni " * 9
    (tmp_path / "a.txt").write_bytes(text.replace("\r\n", "\n").encode("utf-16"))
    out, _ = shown("--no_teacher", "--show", 1, "--text_column", "text", source=tmp_path / "a.txt")
    assert "[bold]John Snow[/bold] of [1854]:" in out
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": text}))
    out, report = shown("--no_teacher", source=tmp_path / "a.jsonl")
    assert report["with_carriage_returns"] == report["windows_read"]
    assert "have carriage returns" in " ".join(out.split())


def test_ready_windows_are_shown_with_their_questions(tmp_path, shown):
    row = {"context": make_documents(1)[0], "targets": [{"cue": "Who drew the map?", "target": " John Snow"}] * 2}
    (tmp_path / "q.jsonl").write_text((json.dumps(row) + "\n") * 3)
    out, report = shown("--text_column", "text", source=tmp_path / "q.jsonl")
    assert report["worth"]["question"]["targets"] == 6 and "ready-made, of any length" in out
    assert "Who drew the map? →  John Snow" in out
    assert report["joined_words"] == [] and "joined words" not in out
    # A space that is missing is said, in scripts that have spaces
    row["targets"] = [
        {"cue": "He drank", "target": "beer"},
        {"cue": "彼は", "target": "ビール"},
        {"cue": "In", "target": "1854"},
    ]
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    out, report = shown("--no_teacher", "--text_column", "text", source=tmp_path / "s.jsonl")
    assert report["joined_words"] == ["drank|beer", "In|1854"]
    assert "2 targets go on inside the word that their cue ends with, as drank|beer" in " ".join(out.split())
    # Advice is on what can be changed
    row["targets"] = [{"cue": PARAGRAPH[:60], "target": PARAGRAPH[60:80]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"context": "Who?"}) + "\n")
    out, report = shown("--text_column", "text", source=tmp_path / "a.jsonl")
    assert (
        "or ask for what the contexts alone tell." in out and "--context_length" not in out
    )  # one document: no error


def test_what_cannot_be_used_is_one_line(file, checkpoint, tmp_path, capsys):
    def fails(*flags, source=file, model=checkpoint):
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            main([str(part) for part in ["data", source, "--model_name_or_path", model, *flags]])
        assert error.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "missing.jsonl does not exist" in fails(source=tmp_path / "missing.jsonl")
    assert "missing/a.json) names a file in a folder that is not there" in fails("--json", tmp_path / "missing/a.json")
    assert "it needs either `text`" in fails("--no_teacher")
    assert "no-such-model is no folder here" in fails("--no_teacher", model="no-such-model")
    assert "gave no window: 9 rows skipped (8 too short, 1 null)" in fails("--text_column", "body", "--no_teacher")
    assert "`last_k` (64) must not exceed `context_length` (24)" in fails("--context_length", 24)
    assert "no setting" in (said := fails("--targets_per_context", 3)) or "`--targets_per_context` (3)" in said
    assert "does not fit the teacher" in fails(
        "--text_column", "body", *WINDOW, "--context_length", 600, source=long(tmp_path)
    )


def long(folder):
    (folder / "long.jsonl").write_text(json.dumps({"body": " ".join(make_documents(9))}))
    return folder / "long.jsonl"


def test_its_flags_are_those_of_training_with_their_defaults():
    defaults = {**vars(GistConfig("x", use_cpu=True, bf16=False)), **vars(GistScriptArguments(dataset_path=["x"]))}
    windows = (
        "window_stride",
        "max_windows_per_document",
        "windows_per_document",
        "max_completion_length",
        "recall_age",
    )
    for name in ("context_length", "target_length", "last_k", *windows, "remove_columns", "eval_documents"):
        assert getattr(DataArguments, name) == defaults[name], name
    for name in ("parse_special_tokens", "text_column", "encoding", "target_kinds", "teacher_name_or_path"):
        assert getattr(DataArguments, name) == defaults[name], name
    assert {"targets_per_context", "target_floor", "cue_length", "far_offset", "dataset_config"} <= defaults.keys()


# ---- A recipe ----

RECIPES = {
    "windows": {"window_stride": 9, "max_windows_per_document": 2, "eval_documents": 2},
    "targets": {
        "target_kinds": KINDS,
        "targets_per_context": 5,
        "cue_length": 6,
        "far_offset": 9,
        "target_floor": None,
    },
    "walks": {
        "windows_per_document": 3,
        "max_completion_length": 8,
        "max_windows_per_document": 2,
        "eval_documents": 1,
    },
    "walks with targets": {
        **{"windows_per_document": 2, "target_kinds": {"fact": 1, "continuation": 1}, "targets_per_context": 4},
        **{"recall_age": [1, 2], "cue_length": 5, "max_completion_length": 6},
    },
}


@pytest.fixture
def recipe(file, checkpoint, tmp_path):
    """Writes one whose documents have a column that training refuses, and another with the text."""

    def write(**settings):
        rows = [json.loads(line) | {"prompt": "taken"} for line in file.read_text().splitlines()]
        (tmp_path / "columns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            **{
                "model_name_or_path": checkpoint,
                "dataset_path": str(tmp_path / "columns.jsonl"),
                "text_column": "body",
            },
            **{"remove_columns": ["prompt"], "output_dir": str(tmp_path / "pair"), "context_length": 24},
            **{
                "target_length": 8,
                "last_k": 4,
                "num_generations": 4,
                "per_device_train_batch_size": 4,
                "max_steps": 1,
            },
            **{"report_to": "none", "bf16": False, "use_cpu": True, "dtype": "float32", **settings},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        return str(tmp_path / "recipe.yaml")

    return write


@pytest.fixture
def shown_by_recipe(tmp_path, capsys):
    def run(file, *flags):
        capsys.readouterr()
        argv = ["data", "--config", file, *map(str, flags), "--json", str(tmp_path / "report.json")]
        assert main(argv) == 0
        return capsys.readouterr().out, json.loads((tmp_path / "report.json").read_text())

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shows_the_windows_that_training_reads(recipe, shown_by_recipe, tokenizer, name):
    file = recipe(**RECIPES[name])
    _, report = shown_by_recipe(file, "--max_windows", 10_000, "--no_teacher")
    trainer = make_trainer(*make_parser().parse_args_and_config(["--config", file]))
    rows = list(trainer.train_dataset)
    assert report["windows"] == report["windows_read"] == len(rows) > 3
    assert report["skipped"] == dict(trainer.skipped_rows["train"].counts)
    assert report["held_out"] == RECIPES[name].get("eval_documents", 0)
    decode = tokenizer.decode
    for row, example in zip(rows, report["examples"], strict=True):
        walk = [row] if trainer.walk is None else trainer.walk.rows([row], 1)
        for window, said in zip(walk, example.get("walk", [example]), strict=True):
            text = window["prompt"] if trainer.walk is None else decode(window["chunk_ids"])
            assert (said.get("context", said.get("chunk")), said["last_k"]) == (text, decode(window["last_k_ids"]))
            assert [(each["kind"], each["cue"], each["target"], each.get("age")) for each in said["targets"]] == [
                (each["kind"], decode(each["cue_ids"]), decode(each["target_ids"]), each.get("age"))
                for each in targets_of(window)
            ]


def test_flags_and_files_override_a_recipe(recipe, shown_by_recipe, checkpoint, tmp_path):
    file = recipe(eval_documents=2, max_windows_per_document=1)
    _, report = shown_by_recipe(
        file, "--context_length", 16, "--max_windows_per_document", 2, "--show", 0, "--no_teacher"
    )
    assert (
        report["window"] == {"context_length": 16, "target_length": 8, "last_k": 4} and report["model"] == checkpoint
    )
    assert report["windows"] == 2 * 4 and report["documents"] == 7
    (tmp_path / "other.jsonl").write_text(3 * (json.dumps({"body": make_documents(1)[0], "prompt": "x"}) + "\n"))
    _, report = shown_by_recipe(file, tmp_path / "other.jsonl", "--no_teacher")
    assert report["dataset"] == [str(tmp_path / "other.jsonl")] and report["documents"] == 1 == report["windows"]


def test_walks_are_shown_as_walks_and_read_from_their_beginning(recipe, shown_by_recipe, tokenizer, checkpoint):
    file = recipe(**RECIPES["walks"])
    out, report = shown_by_recipe(file, "--max_windows", 3, "--show", 1, "--batch_size", 2)
    (title,) = [line for line in out.splitlines() if line.startswith("A walk over 3 windows of document")]
    words = " ".join(out.split())
    assert all(f"chunk {number}" in words for number in range(3)) and "walks 10, 3 of them read" in words
    assert "3 windows, each with a chunk of 11 tokens, the 4 after it read verbatim, and 8 of target" in words
    assert "documents 8, after 1 that are held out" in words
    model, gains = AutoModelForCausalLM.from_pretrained(checkpoint).eval(), {}
    trainer = make_trainer(*make_parser().parse_args_and_config(["--config", file]))
    for place in range(3):
        row = trainer.train_dataset[place * 10 // 3]
        for window in trainer.walk.rows([row], 1):
            read = log_prob(model, window["seen_ids"], window["target_ids"])
            gain = read - log_prob(model, window["last_k_ids"], window["target_ids"])
            for kind in ("continuation", f"window_{window['window']}"):
                gains.setdefault(kind, []).append((gain, row["document_id"]))
    assert report["worth"].keys() == gains.keys()
    for kind, values in gains.items():
        gain, error = mean_and_error(*zip(*values, strict=True))
        assert report["worth"][kind]["gain"] == pytest.approx(gain, abs=1e-5)
        assert report["worth"][kind]["gain_se"] == pytest.approx(error, abs=1e-5) and kind in out


def test_targets_of_a_walk_are_read_after_all_of_its_text(recipe, shown_by_recipe, checkpoint):
    file = recipe(**RECIPES["walks with targets"])
    _, report = shown_by_recipe(file, "--max_windows", 8)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    trainer = make_trainer(*make_parser().parse_args_and_config(["--config", file]))
    ages = set()
    for place, example in enumerate(report["examples"]):
        row = trainer.train_dataset[place * len(trainer.train_dataset) // 8]
        for window, said in zip(trainer.walk.rows([row], 1), example["walk"], strict=True):
            for target, of_target in zip(targets_of(window), said["targets"], strict=True):
                read = log_prob(model, window["seen_ids"] + target["after_ids"], target["target_ids"])
                alone = log_prob(model, max(target["cue_ids"], target["after_ids"], key=len), target["target_ids"])
                assert of_target["gain"] == pytest.approx(read - alone, abs=1e-5)
                ages.add(target["age"])
    assert ages == {0, 1} and {"fact", "all", "window_0", "window_1"} <= report["worth"].keys()


def test_what_a_recipe_lacks_is_one_line(recipe, tmp_path, capsys):
    def fails(*flags):
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            main(["data", *map(str, flags)])
        assert error.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "give FILE …, or --config RECIPE.yaml" in fails("--no_teacher")
    assert "none.yaml" in fails("--config", tmp_path / "none.yaml")
    assert "`contxt_length` of the config file is no setting. Did you mean `context_length`?" in fails(
        "--config", recipe(contxt_length=3)
    )
    assert "`eval_documents` (9) leaves nothing" in fails("--config", recipe(), "--eval_documents", 9)
    assert "a column `prompt`, a name that is taken" in fails("--config", recipe(remove_columns=None), "--no_teacher")
    assert "Raise `context_length`" in fails("--config", recipe(windows_per_document=2, max_completion_length=48))
    assert "`--recall_age` ([1.0]) is of walks" in fails("--config", recipe(), "--recall_age", 1)
    walks = recipe(windows_per_document=2, max_completion_length=6)
    assert "asks for what was said 2 windows ago" in fails("--config", walks, "--recall_age", 0, 0, 1)
