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
import shutil

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ResolvedRevision
from tiny import make_documents
from tiny_pairs import make_pair, save_half
from transformers import pipeline
from transformers.pipelines import PipelineException
from transformers.pipelines.pt_utils import KeyDataset

from trl_gist import GistCompactor
from trl_gist.models.roles import storage_pointers
from trl_gist.pipeline import GistCompactionPipeline, GistPair


TEXT = "".join(make_documents(3))


@pytest.fixture(scope="module", params=["lora", "full"])
def pair_dir(request, checkpoint, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp(f"pair-{request.param}")
    save_half(checkpoint, tokenizer, directory, 3, request.param == "lora")
    save_half(checkpoint, tokenizer, directory / "generator", 4, request.param == "lora")
    tokenizer.save_pretrained(directory)
    bases = dict.fromkeys(("summarizer", "generator", "teacher"), checkpoint)
    make_pair(context_length=64, base_models=bases).save(directory)
    return directory


@pytest.fixture(scope="module")
def compactor(pair_dir):
    return GistCompactor.from_pretrained(pair_dir, device="cpu")


@pytest.fixture(scope="module")
def compact(pair_dir):
    return pipeline("context-compaction", model=str(pair_dir), device="cpu", batch_size=2)


def as_dicts(gists):
    return [{**dataclasses.asdict(gist), "log_prob": pytest.approx(gist.log_prob, abs=1e-4)} for gist in gists]


def test_the_pipeline_loads_both_halves_from_the_folder_of_a_pair(compact, compactor):
    assert isinstance(compact, GistCompactionPipeline) and isinstance(compact.model, GistPair)
    loaded = compact.model
    for half, expected in ((loaded.summarizer, compactor.summarizer), (loaded.generator, compactor.generator)):
        weights = expected.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in half.state_dict().items())
    shared = storage_pointers(loaded.summarizer) & storage_pointers(loaded.generator)
    assert bool(shared) == hasattr(loaded.summarizer, "peft_config")
    assert "GistCompactionPipeline" in repr(compact)


def test_a_text_becomes_the_gists_of_its_windows(compact, compactor):
    assert compact(TEXT) == as_dicts(compactor.compress_windows(TEXT, batch_size=2))
    settings = {"budget": 9, "keep": "numbers", "last_k": "Where?"}
    assert compact(TEXT, batch_size=5, **settings) == as_dicts(
        compactor.compress_windows(TEXT, batch_size=5, **settings)
    )
    certified = compact("The pump in Broad Street", certify=True)[0]
    assert certified["expected_kl"] > 0
    assert certified["expected_kl_reader"] == (
        "teacher" if hasattr(compactor.generator, "peft_config") else "generator"
    )


def test_lists_and_generators_give_one_result_for_each_text(compact, compactor):
    texts = make_documents(3)
    expected = [as_dicts(compactor.compress_windows(text, batch_size=2)) for text in texts]
    assert compact(texts) == expected
    assert list(compact(text for text in texts)) == expected
    assert compact(Dataset.from_dict({"text": texts})["text"]) == compact(tuple(texts)) == expected


def test_of_no_texts_there_are_no_gists(compact):
    none = Dataset.from_dict({"text": []})
    for inputs in ([], (), none["text"], KeyDataset(none, "text"), (text for text in ())):
        assert list(compact(inputs)) == []
    with pytest.raises(ValueError, match="The text is empty"):
        compact("")


def test_settings_of_the_pipeline_hold_for_every_call(pair_dir, compactor):
    short = pipeline("context-compaction", model=str(pair_dir), device="cpu", budget=3)
    assert short(TEXT) == as_dicts(compactor.compress_windows(TEXT, budget=3))
    assert short(TEXT, budget=4) == as_dicts(compactor.compress_windows(TEXT, budget=4))


def test_a_chat_becomes_one_that_fits(compact, compactor):
    chat = [{"role": "user", "content": text} for text in make_documents(4)]
    result = compactor.compact_messages(chat, 300, keep="numbers")
    assert result.compacted
    assert compact(chat, max_tokens=300, keep="numbers") == dataclasses.asdict(result)
    assert compact([chat, chat], max_tokens=300, keep="numbers") == [dataclasses.asdict(result)] * 2


def test_a_loaded_pair_may_be_given_and_takes_the_dtype_asked_for(pair_dir, compactor):
    given = pipeline("context-compaction", model=GistPair(compactor), device="cpu")
    assert given(TEXT) == as_dicts(compactor.compress_windows(TEXT))
    half = pipeline("context-compaction", model=str(pair_dir), device="cpu", dtype="bfloat16")
    assert half.dtype == half.model.generator.dtype == torch.bfloat16


def test_what_is_no_pair_is_refused_and_not_loaded_as_a_model(pair_dir, checkpoint, tmp_path):
    with pytest.raises(PipelineException, match="holds no gist pair: gist_config.json is missing"):
        pipeline("context-compaction", model=checkpoint, device="cpu")
    damaged = shutil.copytree(pair_dir, tmp_path / "pair")
    shutil.rmtree(damaged / "generator")
    with pytest.raises(PipelineException, match="The pair lacks its generator"):
        pipeline("context-compaction", model=str(damaged), device="cpu")


def test_a_pair_of_adapters_is_not_looked_for_at_its_bases_commit(compactor, monkeypatch):
    asked = []
    monkeypatch.setattr(GistCompactor, "from_pretrained", lambda *args, **kwargs: asked.append(kwargs) or compactor)
    resolved = ResolvedRevision("0" * 40, "v1", "someone/base")  # what the pipeline passes on, of the adapter's base
    GistPair.from_pretrained("someone/pair", revision=resolved)
    assert type(asked[0]["revision"]) is str and asked[0]["revision"] == "v1"
