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

import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from launching import held_by_another
from tiny import make_documents
from tiny_recipes import RECIPE

from trl_gist import GistCompactor
from trl_gist.cli import main
from trl_gist.common.folder_lock import LOCK_FILE
from trl_gist.data.documents import load_documents
from trl_gist.prompts import SUMMARIZER_PROMPT_OF_FACTS
from trl_gist.scripts.arguments import DistanceArguments, EvaluateArguments
from trl_gist.scripts.launch import LaunchArguments, size_of_launch
from trl_gist.scripts.resumable import open_folder
from trl_gist.scripts.train import make_parser
from trl_gist.trainer.config_checks import EXTRACTIVE_RULES


ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="session")
def workspace(checkpoint, tmp_path_factory):
    """Documents as JSON lines, and a recipe for them."""
    path = tmp_path_factory.mktemp("workspace")
    rows = [{"body": text, "source": "tiny"} for text in make_documents(12)]
    (path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "article.txt").write_text(make_documents(1, seed=5)[0])
    settings = {"model_name_or_path": checkpoint, "dataset_path": str(path / "documents.jsonl"), **RECIPE}
    (path / "recipe.yaml").write_text(yaml.safe_dump({**settings, "output_dir": str(path / "pair")}))
    return path


@pytest.fixture(scope="session")
def pair(workspace):
    """What `trl-gist train` made of the recipe."""
    assert main(["train", "--config", str(workspace / "recipe.yaml"), "--max_windows_per_document", "3"]) == 0
    return workspace / "pair"


@pytest.fixture
def fails(capsys):
    """Runs a command that must end in exit code 2 and one line; returns the line."""

    def run(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            main([str(arg) for arg in argv])
        assert error.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(lines) == 1
        return lines[0]

    return run


def stdin_of(monkeypatch, content: bytes):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


# ---- train ----


def test_train_from_yaml_and_flags_saves_a_pair(pair):
    saved = json.loads((pair / "gist_config.json").read_text())
    assert saved["step"] == 2
    assert (saved["context_length"], saved["last_k"], saved["max_gist_length"]) == (24, 4, 6)
    assert saved["recipe"]["learning_rate"] == 1e-3
    # 4 documents were held out; the flag cut 3 windows of each, where the recipe says nothing
    assert (saved["measures"]["documents"], saved["measures"]["windows"]) == (4, 12)
    adapter = json.loads((pair / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_dropout"]) == (4, 0.0)
    assert {path.name for path in pair.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_train_streams_and_uses_a_reward_function_of_ones_own(workspace, tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "from pathlib import Path\n"
        "def vowels(gist_ids, **kwargs):\n"
        "    Path(__file__).with_name('called').touch()\n"
        "    return [float(len(ids)) for ids in gist_ids]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    argv = ["train", "--config", workspace / "recipe.yaml", "--output_dir", tmp_path / "run", "--dataset_streaming"]
    argv += ["--reward_funcs", "log_prob_gain", "my_rewards.vowels", "--max_steps", 1, "--save_strategy", "no"]
    assert main([str(arg) for arg in argv]) == 0
    assert (tmp_path / "called").exists()
    assert json.loads((tmp_path / "run" / "gist_config.json").read_text())["step"] == 1


def test_a_folder_in_use_is_refused_before_anything_is_loaded(workspace, pair, monkeypatch, fails):
    monkeypatch.setattr("trl_gist.scripts.train.load_documents", lambda *args, **kwargs: pytest.fail("loaded"))
    argv = ["train", "--config", workspace / "recipe.yaml", "--output_dir"]
    assert "holds another run, up to checkpoint-2" in fails(*argv, pair)
    assert "holds the pair that another run saved" in fails(*argv, pair / "checkpoint-1")


def test_train_refuses_a_folder_that_holds_another_run_and_resumes_it_if_asked(workspace, pair, tmp_path, fails):
    run = shutil.copytree(pair, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-2")
    argv = ["train", "--config", str(workspace / "recipe.yaml"), "--output_dir", str(run)]
    argv += ["--max_windows_per_document", "3"]
    assert "holds another run, up to checkpoint-1" in fails(*argv)
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 0
    for half in (".", "generator"):
        resumed, whole = (path / half / "adapter_model.safetensors" for path in (run, pair))
        assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "missing.yaml"], "No such file or directory: 'missing.yaml'"),
        (["--config"], "--config needs a file"),
        (["--model_name_or_path", "x"], "Set one of `dataset_name` (a dataset on the Hub) and `dataset_path`"),
        ([], "Say what to train: give --config FILE.yaml"),
        (["--config", "RECIPE", "--no_such_flag", "1"], "`--no_such_flag` is no setting"),
        (["--config=RECIPE", "--max_stesp=3"], "`--max_stesp` is no setting. Did you mean `max_steps`?"),
        (["--config", "RECIPE", "--context-lenght", "9"], "Did you mean `context_length`?"),
        (["--config", "RECIPE", "documents.jsonl"], "'documents.jsonl' is the value of no flag"),
        # As of the other commands
        (["--config", "RECIPE", "--dataset", "x"], "Did you mean `dataset_name` or `dataset_path`?"),
        (["--config", "RECIPE", "--model", "x"], "` or `model_name_or_path`? `--help` lists them all."),
        # Before the default of `last_k`, which exceeds the recipe's `context_length`, is refused in its place
        (["--config", "typo.yaml"], "`last_kk` of the config file is no setting. Did you mean `last_k`?"),
        (
            ["--config", "RECIPE", "--target_kinds", "{fact: 3}"],
            "`target_kinds` must be JSON, its names in double quotes as in '{\"name\": 1}', got '{fact: 3}'",
        ),
        (["--config", "RECIPE", "--lr_scheduler_kwargs", "{a"], "`lr_scheduler_kwargs` must be JSON"),
        (["--config", "RECIPE", "--target_kinds", '{"facts": 3}'], "`target_kinds` has 'facts', which no rule makes"),
        (["--config", "RECIPE", "--dataset_path", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--config", "RECIPE", "--dataset_path", "missing/folder"], "missing/folder does not exist"),
        (["--config", "RECIPE", "--dataset_path", "data.bin"], "data.bin is of no known kind"),
        (
            ["--config", "RECIPE", "--dataset_path", "mixed"],
            "several kinds (json, text). Pass the files of one kind, as mixed/*.txt",
        ),
        (["--config", "RECIPE", "--dataset_path", "empty"], "empty holds no documents"),
        (["--config", "RECIPE", "--dataset_path", "bad.jsonl"], "bad.jsonl cannot be read"),
        (
            ["--config", "RECIPE", "--text_column", "txt"],
            "no column 'txt' for `text_column`; it has ['body', 'source']",
        ),
        (["--config", "RECIPE", "--eval_documents", "12"], "leaves nothing to train on: there are 12 documents"),
        (
            ["--config", "RECIPE", "--eval_documents", "12", "--dataset_streaming", "true"],
            "The train dataset is empty, or its documents are all held out (`eval_documents`).",
        ),
        (["--config", "RECIPE", "--lora_dropout", "0.1"], "`lora_dropout` must be 0, got 0.1"),
        (["--config", "RECIPE", "--load_in_4bit"], "not supported"),
        (["--config", "RECIPE", "--last_k", "30"], "`last_k` (30) must not exceed `context_length` (24)"),
        (["--config", "RECIPE", "--reward_funcs", "nope"], "Could not load reward function 'nope'. Expected one of"),
        (["--config", "RECIPE", "--reward_funcs", "math.nope"], "Could not load reward function 'math.nope'"),
        (["--config", "RECIPE", "--model_name_or_path", "./no/model"], "./no/model"),
        (
            ["--config", "RECIPE", "--model_name_or_path", "no-model", "--dry_run", "true"],
            "no-model is no folder here",
        ),
        (["--config", "RECIPE", "--context_length", "1000"], "gave no window: 8 rows skipped (8 too short)"),
        (["--config", "RECIPE", "--max_steps", "many"], "invalid int value: 'many'"),
    ],
)
def test_train_refuses_what_it_cannot_use(workspace, tmp_path, monkeypatch, fails, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("data.bin").write_bytes(b"x")
    Path("bad.jsonl").write_bytes(b'{"body": "a"}\n{"body": ')
    Path("empty").mkdir()
    Path("mixed").mkdir()
    Path("mixed/a.txt").write_text("a")
    Path("mixed/b.jsonl").write_text('{"text": "b"}')
    recipe = (workspace / "recipe.yaml").read_text()
    Path("typo.yaml").write_text(recipe.replace("last_k:", "last_kk:"))
    flags = [flag.replace("RECIPE", str(workspace / "recipe.yaml")) for flag in flags]
    assert message in fails("train", *(["--output_dir", tmp_path / "run"] if flags else []), *flags)


def test_a_library_that_a_recipe_needs_and_that_is_missing_is_one_line(workspace, tmp_path, monkeypatch, fails):
    def make_trainer(*arguments):
        raise ImportError("Please install vLLM")

    monkeypatch.setattr("trl_gist.scripts.train.make_trainer", make_trainer)
    argv = ["--config", workspace / "recipe.yaml", "--output_dir", tmp_path / "run"]
    assert "Please install vLLM" in fails("train", *argv)


def test_the_cold_start_of_every_rule_may_be_named(workspace):
    parser = make_parser()
    for rule in EXTRACTIVE_RULES:
        for spelled in (rule, rule.replace("_", " ")):
            argv = ["--config", str(workspace / "recipe.yaml"), "--cold_start_gists", spelled]
            assert parser.parse_args_and_config(argv)[1].cold_start_gists == rule


def test_a_terminal_has_a_line_for_an_evaluation_and_no_dictionaries(workspace, tmp_path, capsys):
    argv = ["--config", workspace / "recipe.yaml", "--output_dir", tmp_path / "run", "--max_steps", 2]
    argv += ["--disable_tqdm", "false", "--logging_steps", 1, "--eval_steps", 1, "--save_strategy", "no"]
    assert main([str(arg) for arg in ["train", *argv]]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if "eval, step " in line]
    assert len(lines) == 2 and "{" not in printed.out
    number = r"-?\d+\.\d{3} ± \d+\.\d{3}"
    assert re.search(
        rf"eval, step 2: KL\(T‖G\) {number}, gain over an empty gist {number}, over as many tokens verbatim {number}$",
        lines[1],
    )
    assert re.search(r"KL\(T‖G\) \d+\.\d{3}, gain -?\d+\.\d{3}, tokens \d+\.\d{3}", printed.err)
    assert "FutureWarning" not in printed.err


@pytest.mark.parametrize("content", ["", "# a comment\n", "- learning_rate\n", "learning_rate"])
def test_a_recipe_without_settings_is_named(tmp_path, fails, content):
    (tmp_path / "recipe.yaml").write_text(content)
    for flags in (["--config", tmp_path / "recipe.yaml"], [f"--config={tmp_path / 'recipe.yaml'}"]):
        assert f"{tmp_path}/recipe.yaml is no recipe: it holds no settings" in fails("train", *flags)
    message = f"{tmp_path}/recipe.yaml is no config of accelerate's: it holds no settings"
    assert message in fails("train", "--accelerate_config", tmp_path / "recipe.yaml")
    assert message in fails("train", "--accelerate_config", tmp_path / "recipe.yaml", "--dry_run", "true")


def test_the_stage_of_a_launch_is_found_in_its_file_of_deepspeeds(tmp_path):
    engine, config = tmp_path / "engine.json", tmp_path / "config.yaml"
    engine.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    config.write_text(
        yaml.safe_dump({"num_processes": None, "deepspeed_config": {"deepspeed_config_file": str(engine)}})
    )
    flags = LaunchArguments(accelerate_config=str(config))
    assert size_of_launch(flags) == ["--world_size", "1", "--zero_stage", "2"]
    config.write_text("num_processes: 4\ndeepspeed_config:\n")
    assert size_of_launch(flags) == ["--world_size", "4", "--zero_stage", "0"]


def test_a_pair_that_is_served_from_its_own_folder_has_its_name(tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr("trl_gist.scripts.serve.serve", lambda load, name, *rest: served.append(name))
    (tmp_path / "my-pair").mkdir()
    monkeypatch.chdir(tmp_path / "my-pair")
    (tmp_path / "my-pair" / "generator").mkdir()
    for pair in (".", "./", "../my-pair/", "generator/..", str(tmp_path / "my-pair"), "somebody/my-pair"):
        assert main(["serve", pair]) == 0
    assert served == ["my-pair"] * 6


def test_local_files_without_held_out_documents_cannot_be_evaluated(workspace, tmp_path, fails):
    recipe = yaml.safe_load((workspace / "recipe.yaml").read_text())
    del recipe["eval_documents"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": str(tmp_path / "run")}))
    assert "Set `eval_documents`" in fails("train", "--config", tmp_path / "recipe.yaml")


def test_a_recipe_may_name_one_reward_function(workspace, tmp_path, fails):
    (tmp_path / "recipe.yaml").write_text((workspace / "recipe.yaml").read_text() + "reward_funcs: nope\n")
    argv = ["--config", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "run"]
    assert "Could not load reward function 'nope'" in fails("train", *argv)


def test_text_files_are_one_document_each_and_a_folder_is_searched(tmp_path):
    for name, text in (("a.txt", "one\n\nstill one"), ("deep/b.md", "two"), (".git/x.txt", "x"), ("c.bin", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert load_documents([str(tmp_path)])["text"] == ["one\n\nstill one", "two"]
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write('{"text": "old", "body": "three"}\n')
    documents = load_documents(str(tmp_path / "d.jsonl.gz"), text_column="body", streaming=True)
    assert list(documents) == [{"text": "three"}]
    documents = load_documents(str(tmp_path / "d.jsonl.gz"), remove_columns=["body"], streaming=True)
    assert list(documents) == [{"text": "old"}]
    with pytest.raises(ValueError, match="no column 'prompt' for `remove_columns`; it has .'body', 'text'."):
        load_documents(str(tmp_path / "d.jsonl.gz"), remove_columns=["prompt"])
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(
        ValueError, match="a.txt cannot be read: it is no UTF-8 .byte 0xff in line 1.*Give its `encoding`"
    ):
        load_documents([str(tmp_path / "a.txt")])


def test_an_unknown_key_in_a_recipe_is_named(workspace, tmp_path, fails):
    (tmp_path / "recipe.yaml").write_text((workspace / "recipe.yaml").read_text() + "contxt_length: 3\n")
    assert "contxt_length" in fails("train", "--config", tmp_path / "recipe.yaml")


def test_a_failure_during_training_keeps_its_traceback(workspace, tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("def reward(gist_ids, **kwargs):\n    raise ValueError('mine')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match="mine"):
        main(
            ["train", "--config", str(workspace / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
            + ["--reward_funcs", "failing.reward"]
        )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_made_of_known_and_valid_settings(config):
    script_args, training_args, model_args = make_parser().parse_args_and_config(
        ["--config", str(config), "--use_cpu"]
    )
    flagship = config.stem.startswith("flagship")
    assert script_args.dataset_name == ("corpus" if flagship else "HuggingFaceFW/fineweb-edu")
    assert script_args.dataset_streaming != flagship
    assert (training_args.context_length, training_args.target_length, training_args.last_k) == (512, 64, 64)
    assert training_args.max_steps == (150 if config.stem.endswith("_cpu") else 1500)
    assert isinstance(training_args.learning_rate, float)
    assert (model_args.use_peft, model_args.lora_r, model_args.lora_target_modules) == (True, 32, "all-linear")
    recall = config.stem.endswith("_recall")
    assert training_args.target_kinds == ({"fact": 3, "recall": 1} if recall else None)
    if recall:
        assert (training_args.targets_per_context, training_args.cold_start_gists) == (8, "surprising_facts")
        assert training_args.summarizer_prompt == SUMMARIZER_PROMPT_OF_FACTS
    assert f"--config configs/{config.name}" in config.read_text()


def test_there_are_recipes():
    assert {path.stem for path in CONFIGS} == {
        "flagship_smollm2-135m",
        "flagship_smollm2-135m_cpu",
        "smollm2-135m_fineweb-edu",
        "smollm2-135m_recall",
        "qwen3-4b_fineweb-edu",
    }


# ---- evaluate ----


def evaluate(pair, dataset, output_dir, *flags):
    argv = ["evaluate", pair, "--dataset", dataset, "--output_dir", output_dir, *flags]
    assert main([str(arg) for arg in argv]) == 0
    return json.loads((output_dir / "measures.json").read_text())


def test_evaluate_repeats_the_trainers_measures_on_the_documents_it_held_out(workspace, pair, tmp_path, capsys):
    flags = ["--text_column", "body", "--max_documents", 4, "--max_windows_per_document", 3]
    report = evaluate(pair, workspace / "documents.jsonl", tmp_path / "evaluation", *flags)
    (measures,) = report["measures"]
    trained = json.loads((pair / "gist_config.json").read_text())["measures"]
    assert trained.keys() < measures.keys()
    for name, value in trained.items():
        if "shuffled" not in name:  # which gist another document gives depends on the order of rows
            assert measures[name] == pytest.approx(value, abs=1e-4, rel=1e-3), name
    printed = capsys.readouterr().out
    for name in ("nll_gist", "nll_tail", "gain_over_null"):
        assert f"{trained[name]:.4f} ± {trained[name + '_se']:.4f}" in printed
    assert "12 windows of 4 documents" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if "±" in line and "  " in line)


def test_evaluate_spreads_windows_over_documents_and_takes_another_teacher(workspace, pair, checkpoint, tmp_path):
    teacher = shutil.copytree(checkpoint, tmp_path / "teacher")
    flags = ["--text_column", "body", "--max_windows", 6, "--batch_size", 3, "--teacher", teacher]
    report = evaluate(pair, workspace / "documents.jsonl", tmp_path / "evaluation", *flags)
    (measures,) = report["measures"]
    assert (measures["windows"], measures["documents"]) == (6, 6)
    assert report["teacher"] == str(teacher)
    # G's prompt is no shorter than these contexts, so no number of uses pays; and nobody asked for a budget
    assert {name for name, value in measures.items() if value is None} == {"break_even_uses", "budget"}


def test_evaluate_of_one_document_writes_null_where_there_is_no_standard_error(workspace, pair, tmp_path, capsys):
    flags = ["--streaming", "--max_windows", 2]
    (measures,) = evaluate(pair, workspace / "article.txt", tmp_path / "evaluation", *flags)["measures"]
    assert measures["windows"] == 2
    assert measures["nll_gist_se"] is None
    assert measures["nll_shuffled"] is None
    assert "nan" not in capsys.readouterr().out


def test_an_evaluation_that_was_cut_off_goes_on_and_ends_the_same(workspace, pair, tmp_path, capsys):
    flags = ["--text_column", "body", "--max_windows", 7, "--batch_size", 2, "--last_k", 3, 6, "--budgets", 2, 4]
    whole = evaluate(pair, workspace / "documents.jsonl", tmp_path / "whole", *flags)
    assert [(entry["last_k"], entry["budget"]) for entry in whole["measures"]] == [(3, 2), (3, 4), (6, 2), (6, 4)]
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    content = (cut / "rows.jsonl").read_bytes()
    # Four windows of four settings, a part of the fifth, and half a line
    (cut / "rows.jsonl").write_bytes(b"".join(content.splitlines(keepends=True)[:18]) + b'{"document_id": 3, "conte')
    (cut / "measures.json").unlink()
    capsys.readouterr()
    assert evaluate(pair, workspace / "documents.jsonl", cut, *flags) == whole
    assert "4 windows were measured before" in capsys.readouterr().err
    assert (cut / "rows.jsonl").read_bytes() == content


def test_evaluate_leaves_plots_and_one_page_that_needs_nothing_else(workspace, pair, tmp_path):
    folder = tmp_path / "evaluation"
    evaluate(
        pair, workspace / "documents.jsonl", folder, "--text_column", "body", "--max_windows", 6, "--budgets", 2, 4
    )
    page = (folder / "evaluation.html").read_text()
    assert page.count("<svg") == 4
    assert "src=" not in page and "http" not in re.sub(r'"http://www\.w3\.org[^"]*"', "", page)
    for name in ("readers", "positions", "rate"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 5000


def test_evaluate_compares_other_compressors_and_an_outside_system(workspace, pair, tmp_path, capsys, fails):
    documents, flags = workspace / "documents.jsonl", ["--text_column", "body", "--max_windows", 5, "--compressors"]
    evaluate(pair, documents, tmp_path / "first", *flags)
    asked = [json.loads(line) for line in (tmp_path / "first" / "contexts.jsonl").read_text().splitlines()]
    answers = [
        {"context_hash": row["context_hash"], "gist_ids": row["context_ids"][-row["budget"] :]} for row in asked
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    flags += ["--gists", f"outside={tmp_path / 'answers.jsonl'}", "--own_generators", f"tail={pair}", "--samples", 2]
    capsys.readouterr()
    report = evaluate(pair, documents, tmp_path / "second", *flags)
    printed = capsys.readouterr().out
    rows = {(row["compressor"], row.get("reader")): row for row in report["compressors"]}
    assert "unavailable" in rows["token classifier", None] and "not run: token classifier" in printed
    for reader in ("teacher", "generator"):  # the last tokens, under two names
        assert rows["outside", reader]["nll"] == rows["tail", reader]["nll"]
        assert rows["trained summarizer", reader]["tokens"] == rows["tail", reader]["tokens"] <= 6
    assert rows["tail", "own generator"]["nll"] == pytest.approx(rows["tail", "generator"]["nll"], abs=1e-5)
    assert rows["sampled gist 1", "generator"]["nll"] != rows["sampled gist 2", "generator"]["nll"]
    (measures,) = report["measures"]
    assert rows["trained summarizer", "generator"]["nll"] == pytest.approx(measures["nll_gist"], abs=1e-4)
    assert "Other compressors" in (tmp_path / "second" / "evaluation.html").read_text()

    lines = (tmp_path / "second" / "compressors.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "second" / "compressors.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    assert evaluate(pair, documents, tmp_path / "second", *flags)["compressors"] == report["compressors"]
    flags[flags.index("--gists") + 1] = "outside"
    assert "`--gists` takes NAME=PATH, got 'outside'" in fails(
        "evaluate", pair, "--dataset", documents, "--output_dir", tmp_path / "third", *flags
    )


def test_evaluate_compares_with_some_compressors(workspace, pair, tmp_path, fails):
    flags = ["--text_column", "body", "--max_windows", 2, "--compressors", "tail", "tf-idf, then tail"]
    report = evaluate(pair, workspace / "documents.jsonl", tmp_path / "some", *flags)
    names = {row["compressor"] for row in report["compressors"]}
    assert names == {"no gist", "trained summarizer", "tail", "tf-idf, then tail"}
    argv = ["evaluate", pair, "--dataset", workspace / "documents.jsonl", "--output_dir", tmp_path / "none"]
    assert "`--compressors` has 'tale'. It takes names of 'head', 'tail'" in fails(*argv, "--compressors", "tale")
    assert "`--own_generators` has 'head'. It takes names of 'tail'" in fails(
        *argv, "--compressors", "tail", "--own_generators", f"head={pair}"
    )
    assert not (tmp_path / "none").exists()


def test_an_evaluation_is_not_mixed_with_another(workspace, pair, tmp_path, fails):
    documents, folder = workspace / "article.txt", tmp_path / "evaluation"
    evaluate(pair, documents, folder, "--max_windows", 2)
    argv = ["evaluate", pair, "--dataset", documents, "--output_dir", folder, "--max_windows", 3]
    assert "`max_windows` was 2, now 3" in fails(*argv)
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 2
    (folder / "notes.txt").write_text("mine")
    assert main([str(arg) for arg in [*argv, "--overwrite"]]) == 0
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 3
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    argv[argv.index(folder)] = tmp_path / "mine"
    assert "holds other files" in fails(*argv, "--overwrite")


def test_a_folder_holds_what_decides_its_rows(tmp_path):
    held_out = {"pair", "dataset", "dataset_config", "split", "text_column", "max_documents", "batch_size", "teacher"}
    of_evaluate = {"max_windows_per_document", "max_windows", "last_k", "budgets", "generator_only", "compressors"}
    of_evaluate |= {"samples", "token_classifier", "gists", "own_generators"}
    for kind, own in (
        (partial(DistanceArguments, windows=2), {"windows", "pairs", "join_documents"}),
        (EvaluateArguments, of_evaluate),
        # They decide the rows where they are given
        (partial(EvaluateArguments, target_kinds={"fact": 1}), of_evaluate | {"target_kinds"}),
        (partial(EvaluateArguments, target_floor="none"), of_evaluate | {"target_floor"}),
    ):
        args = kind(pair="pair", dataset=["text"], output_dir=str(tmp_path / "-".join(sorted(own))))
        settings = json.loads((open_folder(args, "evaluation", {}).path / "settings.json").read_text())
        assert settings.keys() == held_out | own | {"fingerprints", "version"}


def test_a_stream_has_other_windows_only_where_they_are_chosen(tmp_path):
    def reopen(folder, first, then, **given):
        given |= {"pair": "pair", "dataset": ["text"], "output_dir": str(tmp_path / folder)}
        open_folder(EvaluateArguments(**given, streaming=first), "evaluation", {})
        open_folder(EvaluateArguments(**given, streaming=then), "evaluation", {})

    for first, then in ((False, True), (True, False)):
        reopen(f"all of {first}", first, then)
        with pytest.raises(ValueError, match=f"`streaming` was {first}, now {then}"):
            reopen(f"some of {first}", first, then, max_windows=2)
        reopen(f"the same of {first}", first, first, max_windows=2)
    given = {"pair": "pair", "dataset": ["text"], "output_dir": str(tmp_path / "no stream")}
    open_folder(EvaluateArguments(**given), "evaluation", {})
    with pytest.raises(ValueError, match="`max_windows` was None, now 2"):
        open_folder(EvaluateArguments(**given, max_windows=2), "evaluation", {})


@pytest.fixture(scope="session")
def pair_of_facts(workspace, pair, tmp_path_factory):
    """A pair whose summarizer is shown all of the context, wherever its last tokens begin; wide enough for facts."""
    folder = shutil.copytree(pair, tmp_path_factory.mktemp("facts") / "pair")
    config = json.loads((folder / "gist_config.json").read_text())
    config |= {"summarizer_prompt": SUMMARIZER_PROMPT_OF_FACTS, "context_length": 60}
    (folder / "gist_config.json").write_text(json.dumps(config))
    return folder


KINDS = ["--target_kinds", '{"fact": 2, "recall": 1, "continuation": 1}', "--target_floor", "none"]


def test_evaluate_measures_by_kind_of_target(workspace, pair_of_facts, tmp_path, capsys):
    flags = ["--text_column", "body", "--max_windows", 6, *KINDS, "--targets_per_context", 4]
    flags += ["--compressors", "tail", "facts", "--readers"]
    report = evaluate(pair_of_facts, workspace / "documents.jsonl", tmp_path / "kinds", *flags)
    rows = [json.loads(line) for line in (tmp_path / "kinds" / "rows.jsonl").read_text().splitlines()]
    (measures,) = report["measures"]
    assert (measures["windows"], measures["contexts"], measures["documents"]) == (len(rows), 6, 6)
    assert len({(row["document_id"], tuple(row["gist_ids"])) for row in rows}) == 6
    assert max(row["window_targets"] for row in rows) <= 4
    assert measures["kinds"].keys() == {"fact", "recall", "continuation"} == {row["kind"] for row in rows}
    for kind, of_kind in measures["kinds"].items():
        assert of_kind["windows"] == sum(row["kind"] == kind for row in rows)
    printed = capsys.readouterr().out
    assert f"{len(rows)} targets of 6 windows of 6 documents" in printed
    fact = measures["kinds"]["fact"]
    for name, digits in (("nll_gist", 3), ("kl_gist", 3), ("exact_gist", 2)):
        assert f"{fact[name]:.{digits}f} ± {fact[name + '_se']:.{digits}f}" in printed
    assert "T: cue alone" in printed and "targets of kind 'fact'" in printed
    assert all(len(line.rstrip()) <= 80 for line in printed.splitlines() if "±" in line and "  " in line)
    page = (tmp_path / "kinds" / "evaluation.html").read_text()
    assert "By kind of target" in page and ">exact</th>" in page
    assert "cue, which the generator reads before the target" in page and "last tokens, which" not in page
    assert "<h2>each target after its cue</h2>" in page and "was paid for" not in printed
    by_kind = {(row["kind"], row["compressor"], row["reader"]): row for row in report["compressors_by_kind"]}
    for kind, of_kind in measures["kinds"].items():
        trained = by_kind[kind, "trained summarizer", "generator"]
        assert trained["nll"] == pytest.approx(of_kind["nll_gist"], abs=1e-4)
        assert trained.get("exact") == of_kind.get("exact_gist")
    # An outside system compresses each context once
    assert len((tmp_path / "kinds" / "contexts.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("floor", ["100", "-100"])
def test_evaluate_says_how_many_targets_the_floor_left_out(workspace, pair_of_facts, tmp_path, capsys, floor):
    flags = ["--text_column", "body", "--max_windows", 4, *KINDS[:2], f"--target_floor={floor}"]
    report = evaluate(pair_of_facts, workspace / "documents.jsonl", tmp_path / "out", *flags)
    (measures,) = report["measures"]
    dropped = sum(measures["targets_dropped"].values())
    if float(floor) > 0:  # of each window the best is left
        kinds = ", ".join(f"{count} {kind}" for kind, count in measures["targets_dropped"].items())
        assert (
            measures["windows"] == 4
            and dropped > 4
            and measures["targets_dropped"].keys() <= {"fact", "recall", "continuation"}
        )
        told = f"{dropped} of {dropped + 4} targets left out ({kinds}): the teacher gains less than 100 nats per token"
    else:
        assert dropped == 0
        told = f"0 of {measures['windows']} targets left out: the teacher gains less than -100 nats per token"
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "out" / "evaluation.html").read_text()


def test_evaluate_asks_for_targets_as_far_and_after_as_many_tokens_as_it_is_told(
    workspace, pair_of_facts, tmp_path, tokenizer
):
    flags = ["--text_column", "body", "--max_windows", 4, "--target_kinds", '{"fact": 1, "far": 1}']
    flags += ["--target_floor", "none", "--cue_length", 5, "--far_offset", 20]
    evaluate(pair_of_facts, workspace / "documents.jsonl", tmp_path / "out", *flags)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    facts, far = ([row for row in rows if row["kind"] == kind] for kind in ("fact", "far"))
    assert max(row["last_k"] for row in facts) == 5
    assert far and all(row["teacher_tokens"] > row["context_length"] + 19 for row in far)


def test_an_evaluation_by_kind_that_was_cut_off_goes_on_and_ends_the_same(workspace, pair_of_facts, tmp_path, capsys):
    flags = ["--text_column", "body", "--max_windows", 7, "--batch_size", 2, "--budgets", 2, 4, *KINDS]
    flags += ["--compressors", "tail", "facts", "--samples", 1]
    whole = evaluate(pair_of_facts, workspace / "documents.jsonl", tmp_path / "whole", *flags)
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    contents = {name: (cut / name).read_bytes() for name in ("rows.jsonl", "compressors.jsonl")}
    rows = [json.loads(line) for line in contents["rows.jsonl"].splitlines()]
    done, windows = 0, 4  # of two budgets each, and a part of the fifth
    for _ in range(windows):
        done += 2 * rows[done]["window_targets"]
    lines = contents["rows.jsonl"].splitlines(keepends=True)
    (cut / "rows.jsonl").write_bytes(b"".join(lines[: done + 3]) + b'{"document_id": 3, "conte')
    lines = contents["compressors.jsonl"].splitlines(keepends=True)
    (cut / "compressors.jsonl").write_bytes(b"".join(lines[: 2 * len(lines) // 3]))
    (cut / "measures.json").unlink()
    capsys.readouterr()
    assert evaluate(pair_of_facts, workspace / "documents.jsonl", cut, *flags) == whole
    assert "4 windows were measured before" in capsys.readouterr().err
    assert {name: (cut / name).read_bytes() for name in contents} == contents


def test_the_continuation_as_a_kind_is_the_evaluation_without_kinds(workspace, pair, tmp_path):
    flags = ["--text_column", "body", "--max_windows", 4, "--compressors", "tail"]
    for name, more in (("without", []), ("with", ["--target_kinds", '{"continuation": 2}'])):
        evaluate(pair, workspace / "documents.jsonl", tmp_path / name, *flags, *more)
    for name in ("rows.jsonl", "measures.json", "compressors.jsonl", "contexts.jsonl"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name


def test_of_a_pair_that_was_paid_for_kinds_an_evaluation_without_any_says_so(
    workspace, pair_of_facts, tmp_path, capsys
):
    folder = shutil.copytree(pair_of_facts, tmp_path / "paid")
    config = json.loads((folder / "gist_config.json").read_text())
    config["recipe"]["target_kinds"] = {"fact": 2, "recall": 1}
    (folder / "gist_config.json").write_text(json.dumps(config))
    said = """: --target_kinds '{"fact": 2, "recall": 1}' measures that."""
    flags = ["--text_column", "body", "--max_windows", 2]
    evaluate(folder, workspace / "documents.jsonl", tmp_path / "without", *flags)
    assert said in " ".join(capsys.readouterr().out.split())
    evaluate(folder, workspace / "documents.jsonl", tmp_path / "with", *flags, *KINDS)
    assert "was paid for" not in capsys.readouterr().out


def test_evaluate_reads_the_targets_that_a_dataset_brings(pair_of_facts, tmp_path, fails):
    targets = [{"cue": "The pump stood in", "target": " Broad Street"}, {"cue": "They drank", "target": " beer"}]
    context = "The pump in Broad Street stood near a brewery, and its men drank beer."
    lines = [{"context": f"{number}. {context}", "targets": targets} for number in range(3)]
    (tmp_path / "ready.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--target_floor", "none"]
    (measures,) = evaluate(pair_of_facts, tmp_path / "ready.jsonl", tmp_path / "out", *flags)["measures"]
    assert (measures["windows"], measures["contexts"]) == (6, 3)
    assert 0 <= measures["exact_gist"] <= 1
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": context * 9, "targets": targets}) + "\n")
    said = fails("evaluate", pair_of_facts, "--dataset", tmp_path / "text.jsonl", "--output_dir", tmp_path / "text")
    assert "The evaluation dataset has a column `targets`, which are of one `context`, beside `text`" in said


@pytest.mark.parametrize("command", [["evaluate"], ["distance", "--windows", 1]], ids=["evaluate", "distance"])
def test_two_evaluations_do_not_write_into_one_folder(workspace, pair, tmp_path, fails, command):
    name, *flags = command
    argv = [name, pair, "--dataset", workspace / "documents.jsonl", "--text_column", "body", *flags]
    with held_by_another(tmp_path / "out") as holder:
        message = fails(*argv, "--output_dir", tmp_path / "out", "--overwrite")
        assert f"`output_dir` ({tmp_path / 'out'}) is in use by another run: process {holder.pid} on" in message
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


def test_evaluate_refuses_kinds_that_it_cannot_measure(workspace, pair, pair_of_facts, tmp_path, fails):
    argv = ["--dataset", workspace / "documents.jsonl", "--text_column", "body", "--output_dir", tmp_path / "out"]
    config = json.loads((pair / "gist_config.json").read_text())
    assert "{before_last_k}" in config["summarizer_prompt"]
    assert "trained with '{context}' in `summarizer_prompt`" in fails("evaluate", pair, *argv, *KINDS)
    argv = ["evaluate", pair_of_facts, *argv]
    assert "`last_k` ([8]) cannot be varied" in fails(*argv, *KINDS, "--last_k", 8)
    assert "'answer', which no rule makes" in fails(*argv, "--target_kinds", '{"answer": 1}')
    example = """'{"fact": 3, "recall": 1}'"""
    assert f"must be JSON, as {example}, got 'fact'" in fails(*argv, "--target_kinds", "fact")
    assert f"must name kinds with their weights, as {example}" in fails(*argv, "--target_kinds", '["fact"]')
    for flag in ("--targets_per_context", "--cue_length", "--far_offset"):
        assert f"`{flag}` (3) is of targets of the kind" in fails(*argv, flag, 3)
    assert "`cue_length` must be at least 2, got 1" in fails(*argv, *KINDS, "--cue_length", 1)
    assert not (tmp_path / "out").exists()
    evaluate(pair_of_facts, workspace / "documents.jsonl", tmp_path / "out", *argv[4:6], "--max_windows", 1, *KINDS)
    assert "`target_kinds` was {" in fails(*argv, "--max_windows", 1)
    assert "`target_floor` was none, now None" in fails(*argv, "--max_windows", 1, *KINDS[:2])


def test_distance_refuses_targets_that_no_earlier_window_has(workspace, pair, tmp_path, fails):
    argv = ["distance", pair, "--dataset", workspace / "documents.jsonl", "--text_column", "body", "--windows", 2]
    argv += ["--output_dir", tmp_path / "out"]
    kinds = ["--target_kinds", '{"fact": 1}']
    assert "`--recall_age` ([1.0]) is of targets of the kind 'fact' or 'recall'" in fails(*argv, "--recall_age", 1)
    said = fails(*argv, *kinds, "--recall_age", 1, 0, 1)
    assert "asks for what was said 2 windows ago, and in a walk over `windows` (2) nothing is older than 1" in said
    assert "'far', which is in no earlier chunk" in fails(*argv, "--target_kinds", '{"far": 1}')
    assert not (tmp_path / "out").exists()


def test_a_generator_of_another_prompt_is_no_control(workspace, pair, tmp_path, fails):
    other = shutil.copytree(pair, tmp_path / "other")
    config = json.loads((other / "gist_config.json").read_text())
    (other / "gist_config.json").write_text(json.dumps({**config, "generator_prompt": "{gist} {last_k}"}))
    documents = workspace / "documents.jsonl"
    message = fails(
        "evaluate", pair, "--dataset", documents, "--generator_only", other, "--output_dir", tmp_path / "out"
    )
    assert "'{gist} {last_k}'" in message and "`generator_prompt`" in message


def test_evaluate_refuses_what_it_cannot_use(workspace, pair, checkpoint, tmp_path, fails):
    documents = workspace / "documents.jsonl"
    assert "missing.txt does not exist" in fails("evaluate", pair, "--dataset", "missing.txt")
    assert "needs either `text`" in fails("evaluate", pair, "--dataset", documents)
    assert "holds no gist pair" in fails("evaluate", checkpoint, "--dataset", workspace / "article.txt")
    assert "must be at least 1, got 0" in fails("evaluate", pair, "--dataset", documents, "--max_windows", 0)
    (tmp_path / "short.txt").write_text("Too short.")
    assert "1 too short" in fails("evaluate", pair, "--dataset", tmp_path / "short.txt")
    assert "--dataset" in fails("evaluate", pair)


# ---- compress and continue ----


def test_compress_prints_a_gist_per_context(workspace, pair, capsys, monkeypatch):
    text = (workspace / "article.txt").read_text()
    gists = GistCompactor.from_pretrained(pair, device="cpu").compress_windows(text)
    capsys.readouterr()
    assert main(["compress", str(pair), str(workspace / "article.txt"), "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [dataclasses.asdict(gist) for gist in gists]

    stdin_of(monkeypatch, text.encode())
    assert main(["compress", str(pair)]) == 0
    assert capsys.readouterr().out == "".join(f"{gist.text}\n" for gist in gists)

    assert main(["compress", str(pair), str(workspace / "article.txt"), "--json", "--budget", "2"]) == 0
    assert {len(json.loads(line)["token_ids"]) for line in capsys.readouterr().out.splitlines()} == {2}

    question = "Who had the handle taken off?"
    asked = GistCompactor.from_pretrained(pair, device="cpu").compress_windows(text, last_k=question)
    capsys.readouterr()
    assert main(["compress", str(pair), str(workspace / "article.txt"), "--json", "--last_k", question]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [dataclasses.asdict(gist) for gist in asked] and printed[0]["total_rate"] != gists[0].total_rate


def test_compress_keeps_and_certifies(workspace, pair, capsys, fails):
    article = workspace / "article.txt"
    settings = {"budget": 9, "keep": ["numbers", "regex:chol.ra"], "certify": True}
    gists = GistCompactor.from_pretrained(pair, device="cpu").compress_windows(article.read_text(), **settings)
    capsys.readouterr()
    flags = ["--budget", "9", "--keep", "numbers", "regex:chol.ra", "--certify", "--json"]
    assert main(["compress", str(pair), str(article), *flags]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [dataclasses.asdict(gist) for gist in gists]
    assert any(gist["kept"] for gist in printed) and all(gist["expected_kl"] > 0 for gist in printed)
    assert "--certify measures what only --json prints" in fails("compress", pair, article, "--certify")
    assert "'regex:(', which is no valid pattern" in fails("compress", pair, article, "--keep", "regex:(")


def test_compress_searches(workspace, pair, capsys):
    article = workspace / "article.txt"
    compactor = GistCompactor.from_pretrained(pair, device="cpu")
    gists = [compactor.compress_windows(article.read_text(), search=search) for search in (False, True)]
    capsys.readouterr()
    assert main(["compress", str(pair), str(article), "--search", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == list(
        map(dataclasses.asdict, gists[1])
    )
    assert [gist.token_ids for gist in gists[0]] != [gist.token_ids for gist in gists[1]]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["evaluate", "no-pair", "--dataset_path", "a.txt"],
            "trl-gist evaluate: error: `--dataset_path` is no setting. Did you mean `dataset`? `--help` lists them all.",
        ),
        (
            ["evaluate", "no-pair", "a.txt"],
            "trl-gist evaluate: error: 'a.txt' is the value of no flag; `--help` lists",
        ),
        (
            ["data", "a.txt", "--model=x"],
            "trl-gist data: error: `--model` is no setting. Did you mean `model_name_or_",
        ),
        (
            ["compress", "no-pair", "a.txt", "--jsno"],
            "trl-gist compress: error: `--jsno` is no setting. Did you mean `js",
        ),
        (
            ["serve", "no-pair", "--max-requests", "3"],
            "trl-gist serve: error: `--max-requests` is no setting. Did you",
        ),
        (["push", "no-pair", "me/it", "-x"], "trl-gist push: error: '-x' is the value of no flag"),
        (["report", "run", "--zzz"], "trl-gist report: error: `--zzz` is no setting. `--help` lists them all."),
    ],
)
def test_a_flag_that_a_command_lacks_is_said_with_what_may_be_meant(fails, argv, said):
    assert fails(*argv).startswith(said)


def test_continue_streams_what_a_session_writes(workspace, pair, capsys, monkeypatch):
    text = (workspace / "article.txt").read_text()
    session = GistCompactor.from_pretrained(pair, device="cpu").session()
    session.append(text)
    continuation = session.generate(40)  # longer than there is room in the window
    capsys.readouterr()
    assert main(["continue", str(pair), str(workspace / "article.txt"), "--tokens", "40", "--verbose"]) == 0
    printed = capsys.readouterr()
    assert printed.out == continuation.text + "\n"
    assert printed.err.count("compaction ") == len(session.history) > 3
    assert f"-> {session.history[-1].gist_tokens}: {session.gist!r}" in printed.err.splitlines()[-1]

    stdin_of(monkeypatch, text.encode())
    assert main(["continue", str(pair), "-", "--max_new_tokens", "40", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    compactions = printed.pop("compactions")
    assert printed == dataclasses.asdict(continuation)
    assert [row["gist"] for row in compactions] == [row.gist for row in session.history]

    sampled = ["continue", str(pair), str(workspace / "article.txt"), "--do_sample", "--seed"]
    outputs = []
    for seed in ("1", "1", "2"):
        assert main([*sampled, seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_continue_with_a_question_goes_on_from_one_gist_and_the_question(workspace, pair, capsys, fails):
    article, question = workspace / "article.txt", "Who had the handle taken off?"
    compactor = GistCompactor.from_pretrained(pair, device="cpu")
    continuation = compactor.continue_text(article.read_text(), max_new_tokens=7, last_k=question)
    capsys.readouterr()
    assert main(["continue", str(pair), str(article), "--tokens", "7", "--last_k", question, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dataclasses.asdict(continuation)
    assert "leave one of the two out" in fails("continue", pair, article, "--last_k", question, "--window", 99)
    for flag in ("--temperature", "--seed"):
        assert f"{flag} is of sampling" in fails("continue", pair, article, flag, 1)
    assert "`window` (9) is too small" in fails("continue", pair, article, "--window", 9)
    assert "`gist_budget` (1) must hold" in fails("continue", pair, article, "--gist_budget", 1)


@pytest.mark.parametrize("command", ["compress", "continue"])
def test_unreadable_text_is_refused_before_the_pair_is_loaded(command, tmp_path, monkeypatch, fails):
    assert "No such file or directory" in fails(command, "no-pair", tmp_path / "missing.txt")
    assert "Is a directory" in fails(command, "no-pair", tmp_path)
    stdin_of(monkeypatch, b"ab\xff")
    assert "stdin is no UTF-8 (byte 0xff in line 1)" in fails(command, "no-pair")
    stdin_of(monkeypatch, b"")
    assert "stdin is empty." in fails(command, "no-pair", "-")


@pytest.mark.parametrize("command", ["compress", "continue"])
def test_nobody_is_left_waiting_at_a_terminal(command, monkeypatch, fails):
    terminal = io.BytesIO(b"typed")
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=terminal))
    assert "No FILE is given, and stdin is a terminal." in fails(command, "no-pair")
    assert "no-pair is neither a folder" in fails(command, "no-pair", "-")  # it was typed


@pytest.mark.parametrize("keep", [["numbers", "{}"], ["{}"], ["names", "regex:a+", "{}"], ["{}", "dates"]], ids=str)
def test_a_file_that_keep_took_is_missed(workspace, monkeypatch, fails, keep):
    stdin_of(monkeypatch, b"John Snow of 1854")
    article = str(workspace / "article.txt")
    values = [value.format(article) for value in keep]
    said = fails("compress", "no-pair", "--keep", *values)
    assert f"No FILE is left: the flag before it took {article!r} too. Write FILE right after PAIR" in said
    # Whoever says where the text comes from may keep any string
    assert "no-pair is neither a folder" in fails("compress", "no-pair", "-", "--keep", *values)
    assert "no-pair is neither a folder" in fails("compress", "no-pair", article, "--keep", *values)
    stdin_of(monkeypatch, b"John Snow of 1854")
    assert "no-pair is neither a folder" in fails("compress", "no-pair", "--keep", "numbers", "x" * 5000)


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "tpu", "xpu", "banana", "cpu:banana", "", "meta", "-1"])
@pytest.mark.parametrize("command", ["compress", "continue", "evaluate", "distance", "serve"])
def test_a_device_that_this_machine_lacks_is_named_at_once(workspace, fails, command, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has it")
    more = {
        "evaluate": ["--dataset", workspace / "documents.jsonl", "--text_column", "body"],
        "distance": ["--dataset", workspace / "documents.jsonl", "--windows", 2],
        "serve": ["--port", 0],
    }.get(command, [workspace / "article.txt"])
    said = fails(command, "no-pair", *more, f"--device={device}")
    assert f"`device` ({device}) " in said and ", or give " in said


@pytest.mark.parametrize("value", ["2.5", "0", "-1", "x", "", "1e3", "nan", "٣.٥"])
def test_what_is_no_count_is_refused_by_every_flag(fails, value):
    flags = {
        "compress": ("--budget", "--batch_size"),
        "continue": ("--tokens", "--window"),
        "distance": ("--windows", "--max_documents", "--batch_size"),
        "evaluate": (
            "--max_windows",
            "--budgets",
            "--last_k",
            "--targets_per_context",
            "--max_documents",
        ),
        "serve": ("--window", "--chat_window", "--max_new_tokens", "--max_requests", "--request_seconds"),
    }
    for command, names in flags.items():
        for name in names:
            said = fails(command, "no-pair", f"{name}={value}")
            assert f"argument {name}" in said and f"must be at least 1, got {value}. Give a whole number" in said


@pytest.mark.parametrize(
    ("command", "flag", "message"),
    [
        ("evaluate", "--samples=-1", "must be at least 0, got -1"),
        ("evaluate", "--samples=2.5", "must be at least 0, got 2.5"),
        ("evaluate", "--target_floor=x", "must be a number or 'none', got x"),
        ("evaluate", "--target_floor=inf", "must be a number or 'none', got inf"),
        ("serve", "--port=65536", "must be from 0 to 65535, got 65536"),
        ("serve", "--port=x", "must be from 0 to 65535, got x"),
        ("continue", "--temperature=0", "must be a number above 0, got 0"),
        ("continue", "--temperature=nan", "must be a number above 0, got nan"),
        ("continue", "--temperature=hot", "must be a number above 0, got hot"),
        ("continue", "--seed=-1", "must be from 0 to 4294967295, got -1"),
        ("continue", "--seed=1.5", "must be from 0 to 4294967295, got 1.5"),
    ],
)
def test_other_numbers_are_refused_by_flag_and_value(fails, command, flag, message):
    assert f"argument {flag.partition('=')[0]}: {message}" in fails(command, "no-pair", flag)


def test_a_damaged_pair_is_named(workspace, pair, tmp_path, fails):
    article = workspace / "article.txt"
    assert "no-pair is neither a folder nor a repository" in fails("compress", "./no-pair", article)
    damaged = shutil.copytree(pair, tmp_path / "pair")
    shutil.rmtree(damaged / "generator")
    assert "The pair lacks its generator" in fails("continue", damaged, article)
    (damaged / "gist_config.json").write_text("{")
    assert "trl-gist continue: error: " in fails("continue", damaged, article)
    assert "would need" in fails("continue", pair, article, "--last_k", "Who?", "--tokens", 1000)


# ---- the command itself ----


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_installed_command_is_this_module():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].split() == ["trl-gist", "=", "trl_gist.cli:main"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom trl_gist.cli import main\ntry: main(['--help'])\n"
        "finally: assert not {'torch', 'transformers', 'datasets', 'numpy', 'rich'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for command in ("train", "evaluate", "distance", "compress", "continue", "serve", "report"):
        assert f"  {command} " in done.stdout


def test_a_real_process_reads_a_pipe_and_survives_a_reader_that_leaves(workspace, pair):
    command = [sys.executable, "-m", "trl_gist.cli", "compress", str(pair), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    process.stdout.close()
    _, error = process.communicate((workspace / "article.txt").read_bytes())
    assert process.returncode == 1
    assert b"Traceback" not in error and b"BrokenPipe" not in error
