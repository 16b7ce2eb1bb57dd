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

"""A flag that nothing would read is refused by its name, and before any model is loaded: here is none to load."""

import json

import pytest
from tiny import make_documents

from trl_gist.cli import main
from trl_gist.cli.evaluate import _MOST_FACTS
from trl_gist.data.tasks.base import MOST_FACTS
from trl_gist.scripts import train
from trl_gist.scripts.arguments import EvaluateArguments
from trl_gist.scripts.train import GistModelConfig, GistScriptArguments
from trl_gist.scripts.windows import target_spec


FACTS = ("--target_kinds", '{"fact": 1}')
REFUSED = {
    "distance": [
        (["--target_kinds", '{"far": 1}'], "`--target_kinds` has 'far', which is in no earlier chunk"),
        (
            ["--target_kinds", '{"continuation": 1}'],
            "`--target_kinds` has 'continuation', which is in no earlier chunk",
        ),
        ([*FACTS, "--far_offset", 9], "`--far_offset` is no setting"),
        (["--target_kinds", "{}"], "must name kinds with their weights"),
        (["--cue_length", 9], "`--cue_length` (9) is of targets of the kind 'fact' or 'recall'"),
        (["--target_floor", "none"], "`--target_floor` (none) is of targets of the kind"),
        (["--pairs", "tail=other"], "`--pairs` names a pair 'tail', which is taken"),
        (["--split", "validation"], "`--split` (validation) is of a dataset on the Hub"),
    ],
    "evaluate": [
        ([*FACTS, "--far_offset", 9], "`--far_offset` (9) is of targets of the kind 'far'"),
        (
            ["--target_kinds", '{"far": 1}', "--cue_length", 9],
            "`--cue_length` (9) is of targets of the kind 'fact' or",
        ),
        (["--target_floor", 0.2], "`--target_floor` (0.2) is of targets of the kind"),
        ([*FACTS, "--last_k", 9], "`last_k` ([9]) cannot be varied where windows have several targets"),
        (["--samples", 2], "`--samples` (2) is of a comparison with compressors: add `--compressors`"),
        (["--token_classifier", "own"], "`--token_classifier` (own) is of a comparison with compressors"),
        (["--gists", "own=FILE"], "`--gists` (['own=FILE']) is of a comparison with compressors"),
        (["--own_generators", "tail=own"], "`--own_generators` (['tail=own']) is of a comparison with compressors"),
        (["--compressors", "tail", "--gists", "own=FILE"], "`--compressors` leaves 'own' out"),
        (["--compressors", "--gists", "own=none"], "`--gists` names none for 'own', which is no file"),
        (["--compressors", "tail", "--token_classifier", "own"], "`--compressors` leaves 'token classifier' out"),
        (["--dataset_config", "small"], "`--dataset_config` (small) is of a dataset on the Hub"),
        (["--dataset", "user/name", "--encoding", "latin-1"], "`--encoding` (latin-1) is of plain files"),
        (["--dataset", "READY", "--max_windows_per_document", 2], "`--max_windows_per_document` (2) is of texts"),
        (["--tasks", "--split", "validation"], "`--split` (validation) is of a dataset on the Hub"),
        (["--tasks", "--pairs", "recall=other"], "named 'recall', which is taken"),
        (["--tasks", "--pairs", "facts=other", "--compressors", "facts"], "named 'facts', which is taken"),
        (["--tasks", "--difficulty", MOST_FACTS + 1], f"must be from 1 to {MOST_FACTS}, got {MOST_FACTS + 1}"),
    ],
    "data": [
        (["--no_teacher", "--teacher_name_or_path", "other"], "--teacher_name_or_path is of the teacher"),
        (["--no_teacher", "--batch_size", 2], "--batch_size is of the teacher"),
        (["--no_teacher", *FACTS, "--target_floor", 0.2], "--target_floor is of the teacher"),
        (["--target_floor", 0.2], "`--target_floor` (0.2) is of targets of the kind"),
        (["--max_completion_length", 9], "--max_completion_length is of walks"),
        ([*FACTS, "--far_offset", 9], "`--far_offset` (9) is of targets of the kind 'far'"),
        (["--split", "validation"], "`--split` (validation) is of a dataset on the Hub"),
    ],
    "compress": [(["--keep", "regex:("], "which is no valid pattern")],
    "serve": [
        (["--backend", "vllm", "--max_batch_size", 2], "--max_batch_size is of --backend transformers"),
        (["--backend", "vllm", "--max_batch_tokens", 2], "--max_batch_tokens is of --backend transformers"),
    ],
    "push": [
        (["--card", "FILE", "--license", "mit"], "--license (mit) is of the card that is written"),
        (["--card", "FILE", "--evaluation", "FILE"], "is of the card that is written"),
    ],
}


@pytest.fixture
def places(tmp_path):
    lines = {"FILE": {"text": make_documents(1)[0]}, "READY": {"context": "The pump stood.", "target": " Broad"}}
    paths = {name: tmp_path / f"{name.lower()}.jsonl" for name in lines}
    for name, path in paths.items():
        path.write_text(json.dumps(lines[name]) + "\n")
    return {name: str(path) for name, path in paths.items()}


@pytest.mark.parametrize(
    ("command", "flags", "said"), [(command, *each) for command, several in REFUSED.items() for each in several]
)
def test_what_nothing_would_read_is_refused_before_models_load(command, flags, said, places, tmp_path, capsys):
    missing, file = str(tmp_path / "missing"), places["FILE"]
    before = {
        "distance": [missing, "--dataset", file, "--windows", 2],
        "evaluate": [missing, "--dataset", file],
        "data": [file, "--model_name_or_path", missing],
        "compress": [missing, file],
        "serve": [missing],
        "push": [missing, "user/name"],
    }[command]
    argv = [str(part) for part in (command, *before, *flags)]
    for name, path in places.items():
        argv = [part.replace(name, path) for part in argv]
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2
    assert said.replace("FILE", file) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset_path": ["a.jsonl"], "dataset_config": "small"}, r"`dataset_config` \(small\) is of a dataset on"),
        (
            {"dataset_path": ["a.jsonl"], "dataset_test_split": "all"},
            r"`dataset_test_split` \(all\) is of a dataset on",
        ),
        (
            {"dataset_name": "./a.txt", "dataset_train_split": "all"},
            r"`dataset_train_split` \(all\) .* and ./a.txt is plain files",
        ),
        (
            {"dataset_name": "user/name", "dataset_test_split": "all", "eval_documents": 2},
            r"`dataset_test_split` \(all\) would not be read: `eval_documents` \(2\)",
        ),
        ({"dataset_name": "user/name", "encoding": "latin-1"}, r"`encoding` \(latin-1\) is of plain files"),
    ],
)
def test_training_refuses_what_its_documents_do_not_have(settings, said):
    with pytest.raises(ValueError, match=said):
        GistScriptArguments(**settings)
    GistScriptArguments(dataset_name="./a.txt", encoding="latin-1")


def test_what_is_said_of_adapters_is_warned_of_where_none_is_drawn(make_args, monkeypatch, caplog):
    def stop(*args):
        raise StopIteration

    monkeypatch.setattr(train, "load_splits", stop)
    for use_peft in (True, False):
        model_args = GistModelConfig("model", use_peft=use_peft, lora_r=32, use_dora=True)
        with pytest.raises(StopIteration):
            train.make_trainer(GistScriptArguments(dataset_name="user/name"), make_args(), model_args)
        said = "`use_peft` is false, and no adapter is drawn: `lora_r` (32), `use_dora` (True) have no effect."
        assert (said in caplog.text) is not use_peft


def test_documents_that_bring_targets_are_asked_for_as_many_as_is_said():
    args = EvaluateArguments(pair="pair", dataset=["FILE"], targets_per_context=3)
    assert target_spec(args, {"text", "document_targets"}).targets_per_context == 3
    for columns in ({"text"}, {"context", "targets"}):
        with pytest.raises(ValueError, match=r"`--targets_per_context` \(3\) is of targets of the kind"):
            target_spec(args, columns)


def test_a_folder_has_no_revision(places, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compress", str(tmp_path), places["FILE"], "--revision", "main"])
    assert "--revision (main) is of a repository on the Hub" in capsys.readouterr().err


def test_difficulty_is_what_the_tasks_take():
    assert _MOST_FACTS == MOST_FACTS
