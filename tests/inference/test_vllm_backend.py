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


"""What is said of a pair that vLLM cannot take, before vLLM is needed. What it can is in tests/engine."""

import json
import queue
import shutil
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from peft import LoraConfig, get_peft_model
from peft.utils import CONFIG_NAME
from serving_run import until
from tiny import make_model
from tiny_pairs import make_pair, save_half

from trl_gist import GistCompactor
from trl_gist.cli.main import main
from trl_gist.models.loading import HalfLoader
from trl_gist.models.vllm import SharedEngine, _Request
from trl_gist.pair import GENERATOR_DIR


@pytest.fixture
def folder(checkpoint, tokenizer, tmp_path):
    for seed, half in enumerate((tmp_path, tmp_path / GENERATOR_DIR), 1):
        save_half(checkpoint, tokenizer, half, seed, lora=True)
    tokenizer.save_pretrained(tmp_path)
    make_pair().save(tmp_path)
    return tmp_path


def refused(folder, **settings):
    with pytest.raises(ValueError) as caught:
        GistCompactor.from_pretrained(folder, backend="vllm", **settings)
    return str(caught.value)


def save_adapter(checkpoint, half, **settings):
    """Of one kind that transformers loads."""
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})
    model = HalfLoader(None, "auto", False)._base(LoraConfig(base_model_name_or_path=checkpoint), half)
    get_peft_model(model, config).save_pretrained(half)


def test_without_vllm_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match=r'vllm is missing: pip install "trl_gist\[vllm\]"'):
        GistCompactor.from_pretrained(folder, backend="vllm")


@pytest.mark.parametrize("rope_type, positions", [("longrope", 128), ("default", -1)])
def test_an_engine_has_no_positions_beyond_which_it_turns_all_texts_otherwise(
    folder, checkpoint, rope_type, positions, monkeypatch
):
    class Built(Exception):
        pass

    def build(**settings):
        raise Built(settings["max_model_len"])

    shutil.copytree(checkpoint, folder / "base")
    for half in (folder, folder / GENERATOR_DIR):
        change_json(half / CONFIG_NAME, base_model_name_or_path=str(folder / "base"))
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0, "original_max_position_embeddings": 128}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    change_json(folder / "base" / "config.json", rope_parameters=rope)
    for name, contents in {
        "vllm": {"EngineArgs": build},
        "vllm.lora.request": {"LoRARequest": None},
        "vllm.platforms": {"current_platform": SimpleNamespace(device_type="cuda")},
        "vllm.v1.engine.llm_engine": {"LLMEngine": None},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**contents))
    with pytest.raises(Built, match=f"^{positions}$"):
        GistCompactor.from_pretrained(folder, backend="vllm")


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_backend_that_there_is_not(folder):
    with pytest.raises(ValueError, match="`backend` must be 'transformers' or 'vllm', got 'jax'"):
        GistCompactor.from_pretrained(folder, backend="jax")


@pytest.mark.parametrize("half", ["", GENERATOR_DIR], ids=["summarizer", "generator"])
def test_a_whole_model(folder, half, tokenizer):
    for file in (folder / half).glob("adapter*"):
        file.unlink()
    make_model(tokenizer).save_pretrained(folder / half)
    role = "generator" if half else "summarizer"
    message = refused(folder)
    assert f"The pair's {role} is a whole model" in message and '`backend="transformers"`' in message


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"use_dora": True}, "`use_dora=True`"),
        ({"alpha_pattern": {"q_proj": 3}}, "`alpha_pattern={'q_proj': 3}`"),
        ({"rank_pattern": {"q_proj": 3}}, "`rank_pattern={'q_proj': 3}`"),
        ({"modules_to_save": ["o_proj"]}, "`modules_to_save=['o_proj']`"),
        ({"lora_bias": True}, "`lora_bias=True`"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "on the embeddings or on the LM head"),
        ({"target_modules": ["q_proj", "lm_head"]}, "on the embeddings or on the LM head"),
    ],
    ids=str,
)
def test_an_adapter_that_vllm_would_apply_otherwise(folder, checkpoint, settings, named):
    save_adapter(checkpoint, folder / GENERATOR_DIR, **settings)
    GistCompactor.from_pretrained(folder)
    message = refused(folder)
    assert named in message and "the pair's generator" in message and '`backend="transformers"`' in message


def test_adapters_of_two_bases(folder, tokenizer, tmp_path):
    make_model(tokenizer, 3).save_pretrained(tmp_path / "other")
    save_half(tmp_path / "other", tokenizer, folder / GENERATOR_DIR, 2, lora=True)
    assert "stand on two bases" in refused(folder)


def test_an_adapter_of_another_type(folder, monkeypatch):
    path = folder / CONFIG_NAME
    config = {
        "peft_type": "IA3",
        "base_model_name_or_path": "base",
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj"],
    }
    path.write_text(json.dumps(config))
    assert "is an adapter of type IA3, and vLLM has LoRA alone" in refused(folder)


@pytest.mark.parametrize("command", ["compress", "serve"])
def test_the_command_line_says_which_extra_is_missing(folder, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "vllm" else True)
    file = tmp_path / "text.txt"
    file.write_text("A text.")
    with pytest.raises(SystemExit) as caught:
        main([command, str(folder), *([str(file)] if command == "compress" else []), "--backend", "vllm"])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert (
        'vllm is missing, in which --backend vllm runs a pair of two adapters: pip install "trl_gist[vllm]"' in message
    )


@pytest.mark.parametrize("flags", [["--search"], ["--certify", "--json"]], ids=["search", "certify"])
def test_the_command_line_refuses_what_reads_the_models(folder, flags, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text("A text.")
    with pytest.raises(SystemExit):
        main(["compress", str(folder), str(file), "--backend", "vllm", *flags])
    said = capsys.readouterr().err
    assert f"{flags[0]} reads the models' own logits" in said and "use --backend transformers" in said


def test_an_engine_whose_process_is_gone_when_a_client_leaves_has_failed():
    gone = Mock()
    gone.abort_request.side_effect = RuntimeError("The process is gone.")
    gone.step.side_effect = lambda: time.sleep(0.01) or []
    engine = SharedEngine(gone)
    stays, leaves, comes = (_Request(name, [1], None, None, queue.SimpleQueue()) for name in "012")
    for entry in (stays, leaves, {leaves.name}):
        engine.arrived.put(entry)
    until(lambda: engine.failure is not None)
    engine.arrived.put(comes)
    for request in (stays, comes):
        assert "The process is gone." in str(request.answers.get(timeout=60))
    engine.close()
    gone.engine_core.shutdown.assert_called_once()
