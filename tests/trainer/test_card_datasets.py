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

"""What the card of a pair that `trl-gist train` made says it was trained on: datasets on the Hub, and nothing else."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from huggingface_hub import metadata_load
from tiny import make_documents

from trl_gist.cli import main
from trl_gist.data.documents import datasets_on_hub
from trl_gist.pair import PairConfig


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: docs.jsonl\n---\n"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("user/texts", ["user/texts"]),
        ("squad", ["squad"]),
        ("here/corpus", []),
        ("docs.jsonl", []),
        ("docs/*.jsonl", []),
        ("./texts", []),
        ("~/texts", []),
        ("a/b/c", []),
        ("s3://bucket/texts", []),
        (Path("user/texts"), []),
        (["user/texts", "other"], []),
        ("hf://datasets/user/texts", ["user/texts"]),
        ("hf://datasets/user/texts@main/data/*.parquet", ["user/texts"]),
        (
            ["hf://datasets/b/c/1.jsonl", "hf://datasets/b/c/2.jsonl", "s3://x/y.jsonl", "hf://datasets/a/b/"],
            ["a/b", "b/c"],
        ),
    ],
)
def test_only_what_is_read_from_the_hub_is_named(tmp_path, monkeypatch, source, named):
    (tmp_path / "here" / "corpus").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert datasets_on_hub(source) == named


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--dataset_name", "user/texts"], ["user/texts"]),
        (["--dataset_path", "docs.jsonl"], None),
        (["--dataset_name", "docs*.jsonl"], None),
        (["--dataset_name", "laid/out"], None),
    ],
    ids=["Hub", "file", "pattern", "folder"],
)
def test_the_card_of_a_trained_pair_names_the_dataset_if_it_is_on_the_hub(
    tmp_path, monkeypatch, checkpoint, flags, named
):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in make_documents(8))
    (tmp_path / "laid" / "out").mkdir(parents=True)
    (tmp_path / "laid" / "out" / "README.md").write_text(CARD)
    for folder in (tmp_path, tmp_path / "laid" / "out"):
        (folder / "docs.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    load_dataset = datasets.load_dataset

    def from_the_hub(path, **kwargs):
        if path == "user/texts":
            return Dataset.from_dict({"text": make_documents(8)})
        return load_dataset(path, **kwargs)

    monkeypatch.setattr("trl_gist.data.documents.load_dataset", from_the_hub)
    settings = {
        **{"output_dir": "pair", "model_name_or_path": checkpoint, "max_steps": 1, "save_strategy": "no"},
        **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6, "cold_start_steps": 0},
        **{"num_generations": 4, "per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True},
        **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "dtype": "float32"},
    }
    argv = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    assert main(["train", *argv, *flags]) == 0
    assert PairConfig.load("pair").datasets == (named or [])
    metadata = metadata_load("pair/README.md")
    assert metadata.get("datasets") == named
    text = Path("pair/README.md").read_text(encoding="utf-8")
    assert ("on user/texts." in text) == (named is not None) and "docs" not in text and "laid" not in text
