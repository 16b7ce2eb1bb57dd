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

import functools
import gc
import importlib.metadata
import logging
import os
from collections import Counter


# Set before torch is imported: the tiny models gain nothing from a second thread, and where cores are shared two
# threads that wait for each other by spinning can slow a test a hundredfold
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from datasets import Dataset
from peft import LoraConfig
from tiny import FAMILIES, make_documents, make_model, make_tokenizer
from tiny_recipes import tiny_args

from trl_gist import GistTrainer


def pytest_collection_modifyitems(items):
    """Long files first, so that none is left alone at the end: those that start processes, then those of many tests."""
    counts = Counter(item.path for item in items)
    starts = {item.path for item in items if {"launch", "forked", "fork", "finished"} & vars(item.module).keys()}
    items.sort(key=lambda item: (item.path not in starts, -counts[item.path], item.path))


def pytest_collection_finish():
    """Each training begins with a garbage collection, which would go through all that was imported: half its time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Where nothing but these tests looks, in a folder with a space in its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def known_packages():
    """What a package says of itself is read once. accelerate (1.15) reads it whenever it looks at a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "metadata", functools.cache(importlib.metadata.metadata))
        yield


@pytest.fixture(autouse=True)
def quiet_package():
    """`trl-gist train` has the package say more, in all of its process."""
    logger = logging.getLogger("trl_gist")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """A process that is killed loses nothing that it has written: only the machine could, and no test stops it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", os.fstat)  # a descriptor that is none is an error to both
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    """A saved tiny Llama with its tokenizer: what a user passes as a string."""
    path = tmp_path_factory.mktemp("tiny-llama")
    make_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(params=[f"{family}-{attention}" for family in FAMILIES for attention in ("sdpa", "eager")])
def each_model(request, tokenizer):
    family, attention = request.param.split("-")
    return make_model(tokenizer, family=family, attention=attention)


@pytest.fixture
def documents():
    return Dataset.from_dict({"text": make_documents(12)})


@pytest.fixture
def lora():
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def make_args(tmp_path):
    return functools.partial(tiny_args, tmp_path / "run")


@pytest.fixture
def make_trainer(make_args, checkpoint, documents, tokenizer):
    def make(model=None, train_dataset=None, **kwargs):
        overrides = kwargs.pop("args", {})
        return GistTrainer(
            model=model or checkpoint,
            args=make_args(**overrides),
            train_dataset=documents if train_dataset is None else train_dataset,
            **kwargs,
        )

    return make
