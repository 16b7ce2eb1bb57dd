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

"""What the Hub reads of a card: metadata that go through huggingface_hub's own classes and back unchanged."""

import itertools
import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from tiny_pairs import make_pair

from trl_gist.trainer.model_card import folder_name, hub_name, save_model_card
from trl_gist.trainer.repository import TAGS, license_of, without_folder


MEASURES = {
    **{"teacher_kl": 0.12345, "teacher_kl_se": 0.01, "gain_over_tail": -0.02, "gain_over_tail_se": None},
    **{"gap_closed_tail": float("nan"), "gap_closed_tail_se": float("nan")},
    **{"fact/nll_gist": 2.5, "fact/nll_gist_se": 0.5, "windows": 20, "documents": 4},
}
# Held-out text may look like anything
GISTS = [
    {"context_end": "line one\n---\n# two: {{ three }} 'four' \"five\"", "gist": " {% gist %} *a*\n- b"},
    {"context_end": "\u2028 日本\U0001f600\x07", "gist": ""},
]


@pytest.fixture
def card_of(tmp_path):
    def make(name="user/pair", license=None, **pair):
        save_model_card(tmp_path, make_pair(**{"measures": MEASURES, "gists": GISTS, **pair}), name, TAGS, license)
        return tmp_path / "README.md"

    return make


def bases(*names):
    return dict(zip(("summarizer", "generator", "teacher"), names, strict=True))


def test_the_metadata_go_through_the_hubs_classes_unchanged(card_of):
    path = card_of(
        datasets=["user/texts"], base_models=bases("user/s", "user/g", "user/t"), license={"license": "mit"}
    )
    metadata = metadata_load(path)
    again = ModelCardData(**metadata)
    assert yaml.safe_load(again.to_yaml()) == metadata == ModelCard.load(path).data.to_dict()
    assert metadata["base_model"] == ["user/s", "user/g"] and metadata["base_model_relation"] == "finetune"
    assert (metadata["license"], metadata["datasets"]) == ("mit", ["user/texts"])
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-generation")
    assert metadata["widget"] == [{"text": each["context_end"], "output": {"text": each["gist"]}} for each in GISTS]


def test_measures_are_a_model_index_that_the_hub_reads(card_of):
    metadata = metadata_load(card_of(datasets=["user/texts"]))
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "user/pair"
    assert {result.metric_type: result.metric_value for result in results} == {
        "teacher_kl": 0.1235,
        "gain_over_tail": -0.02,
    }
    assert {(result.task_type, result.dataset_type) for result in results} == {("text-generation", "user/texts")}
    assert results[0].dataset_name == "user/texts, 4 held-out documents"
    assert eval_results_to_model_index(name, results) == metadata["model-index"]


def test_measures_by_kind_are_a_table_of_their_own(card_of):
    text = card_of().read_text(encoding="utf-8")
    assert "On 20 held-out windows of 4 documents" in text and "fact/nll_gist" not in text
    assert "| kind | targets | teacher_kl | nll_gist | gain_over_null | gap_closed_last_k | exact |\n" in text
    assert "|---|---|---|---|---|---|---|\n| fact |  |  | 2.5000 ± 0.5000 |  |  |  |\n" in text
    more = {"contexts": 6, "fact/windows": 12, "a/b/windows": 8}
    several = card_of(measures={**MEASURES, **more}).read_text(encoding="utf-8")
    assert "On 20 targets of 6 held-out windows of 4 documents" in several
    assert "\n| a/b | 8 |" in several and "\n| fact | 12 |" in several
    assert "| contexts |" not in several
    alone = card_of(measures={"teacher_kl": 0.1, "windows": 2, "documents": 1}).read_text(encoding="utf-8")
    assert "| teacher_kl | 0.1000 |" in alone and "by kind" not in alone


@pytest.mark.parametrize("datasets", [[], ["user/a", "user/b"]])
def test_measures_on_no_single_dataset_name_none(card_of, datasets):
    _, results = model_index_to_eval_results(metadata_load(card_of(datasets=datasets))["model-index"])
    assert {result.dataset_type for result in results} == {"text"}


def test_a_run_without_evaluation_has_no_index_and_no_examples(card_of):
    metadata = metadata_load(card_of(measures={}, gists=[]))
    assert not metadata.keys() & {"model-index", "widget", "datasets", "license"}
    assert metadata["model_name"] == "user/pair"


@pytest.mark.parametrize(
    "folder",
    [
        "/home/someone/models/tiny",
        "C:\\Users\\someone\\tiny",
        "./runs/tiny",
        "../tiny",
        "~/models/tiny",
        "/home/someone/tiny/",
    ],
)
def test_no_folder_of_any_machine_stands_in_a_card(card_of, folder):
    path = card_of(base_models=bases(folder, "user/g", folder))
    assert metadata_load(path)["base_model"] == "user/g" and hub_name(folder) is None
    text = path.read_text(encoding="utf-8")
    assert "Trained from tiny (not on the Hub) (summarizer), user/g (generator)" in text
    assert not re.search(r"someone|runs/|\.\./|~/", text) and folder_name(folder) == "tiny"
    assert "base_model" not in metadata_load(card_of(base_models=bases(*3 * [folder])))


def test_a_folder_that_is_there_is_no_name_on_the_hub(card_of, tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("models/tiny") is None and hub_name("models/other") == "models/other"
    assert hub_name("LlamaForCausalLM") is None, "what a model is called that came from nowhere"


@pytest.mark.parametrize(
    ("name", "line"),
    [("user/pair", '"user/pair", subfolder="generator"'), ("my pair", '"my pair/generator"')],
)
def test_a_folder_is_loaded_by_its_path_and_a_repository_by_its_name(card_of, name, line):
    assert f"generator = AutoModelForCausalLM.from_pretrained({line})\n" in card_of(name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("base", "called"),
    [
        ("/home/me/models/base", "./base"),
        ("C:\\models\\base", "./base"),
        ("models", "./models"),  # which transformers has, too
        ("data/", "./data"),
        ("LlamaForCausalLM", "LlamaForCausalLM"),
    ],
)
def test_a_base_is_called_by_its_folders_name_or_its_class(base, called):
    assert without_folder(base) == called


def test_a_licence_holds_if_all_bases_have_it():
    class Api:
        cards = {
            "a": ModelCardData(license="mit"),
            "b": ModelCardData(license="other", license_name="x", license_link="LICENSE"),
            "none": ModelCardData(),
        }

        def model_info(self, base, token):
            if base not in self.cards:
                raise ConnectionError
            return type("Info", (), {"card_data": self.cards[base]})

    assert license_of(Api(), ["a"]) == {"license": "mit"}
    assert license_of(Api(), ["b", "b"]) == {"license": "other", "license_name": "x", "license_link": "LICENSE"}
    assert not any(license_of(Api(), names) for names in ([], ["a", "b"], ["none"], ["a", "nowhere"]))


def test_no_name_and_no_setting_breaks_a_table(card_of):
    prompt = "<|im_start|>{context}\n\nGist:"
    path = card_of(measures={**MEASURES, "yes|no/nll_gist": 1.5}, recipe={"summarizer_prompt": prompt, "beta": 0.0})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert r"| yes\|no |  |  | 1.5000 |  |  |  |" in lines
    assert r"| `summarizer_prompt` | `<\|im_start\|>{context}  Gist:` |" in lines and "| `beta` | `0.0` |" in lines
    tables = [list(table) for is_row, table in itertools.groupby(lines, lambda line: line.startswith("|")) if is_row]
    assert len(tables) == 3
    for heading, *rows in tables:
        assert len(rows) > 1 and {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {len(heading.split("|"))}
