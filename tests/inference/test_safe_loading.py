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

"""Loading a pair runs nobody's code: no pickles, and a checkpoint's own modules only for those who ask for them."""

import ast
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import trl_gist
from trl_gist import GistCompactor, GistConfig
from trl_gist.models.roles import load_roles


PACKAGE = Path(inspect.getfile(trl_gist)).parent
# They have no `trust_remote_code` to hand on, and transformers' default is to run nothing
WITHOUT_THE_OPTION = {"evaluation/compressors/token_classifier.py"}


def calls():
    """(file in the package, the call as written, the call) of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), node


def keyword(call, name):
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), None)


def test_every_torch_load_is_of_weights_only():
    found = [(path, keyword(call, "weights_only")) for path, function, call in calls() if function == "torch.load"]
    assert found and {value for _, value in found} == {"True"}, found
    pickles = ("pickle.load", "pickle.loads", "joblib.load", "dill.load", "np.load")
    assert not [path for path, function, _ in calls() if function in pickles]


def test_every_checkpoint_is_loaded_with_the_users_trust():
    """By keyword, or in the keyword arguments that carry it."""
    loaded = 0
    for path, function, call in calls():
        of_auto_class = function.startswith("Auto") and function.endswith((".from_pretrained", ".from_config"))
        if not of_auto_class and function != "create_model_from_path":
            continue
        loaded += 1
        trust = keyword(call, "trust_remote_code")
        assert trust != "True", f"{path}: {ast.unparse(call)}"
        handed_on = trust is not None or any(given.arg is None for given in call.keywords)
        assert handed_on or path in WITHOUT_THE_OPTION, f"{path}: {ast.unparse(call)}"
    assert loaded >= 8


def test_trust_is_off_unless_it_is_asked_for():
    defaults = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in node.args.args]
                given = dict(zip(names[::-1], node.args.defaults[::-1], strict=False))
                defaults += [ast.unparse(given[name]) for name in given if name == "trust_remote_code"]
    assert defaults and set(defaults) == {"False"}
    assert GistConfig.trust_remote_code is False


CODE = """
from pathlib import Path
from transformers import LlamaForCausalLM

Path({mark!r}).touch()

class Planted(LlamaForCausalLM):
    pass
"""


def plant(folder, mark):
    """Gives a checkpoint modelling code of its own, which leaves a mark when it is run."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Planted"], "auto_map": {"AutoModelForCausalLM": "planted.Planted"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "planted.py").write_text(CODE.format(mark=str(mark)))


@pytest.fixture(autouse=True)
def modules_cache(tmp_path, monkeypatch):
    """Where transformers copies the code that it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def pair(make_trainer, tmp_path):
    make_trainer().save_model(str(tmp_path / "pair"))
    return tmp_path / "pair"


@pytest.mark.parametrize("half", ["", "generator"], ids=["summarizer", "generator"])
def test_a_pair_with_code_of_its_own_does_not_run_it_unless_trusted(pair, tmp_path, half):
    mark = tmp_path / f"ran-{half}"
    plant(pair / half, mark)
    GistCompactor.from_pretrained(pair, device="cpu")
    assert not mark.exists()
    GistCompactor.from_pretrained(pair, device="cpu", trust_remote_code=True)
    assert mark.exists(), "the code was planted where it would be found"


def test_a_role_with_code_of_its_own_does_not_run_it_unless_trusted(checkpoint, tmp_path):
    folder, mark = tmp_path / "planted", tmp_path / "ran"
    shutil.copytree(checkpoint, folder)
    plant(folder, mark)
    load_roles(str(folder), None, None, share_base=False)
    assert not mark.exists()
    load_roles(str(folder), None, None, share_base=False, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("half", ["", "generator"], ids=["summarizer", "generator"])
def test_pickled_weights_are_refused(pair, half):
    safe = pair / half / "model.safetensors"
    torch.save(load_file(safe), pair / half / "pytorch_model.bin")
    GistCompactor.from_pretrained(pair, device="cpu")  # beside safetensors they are not read
    safe.unlink()
    with pytest.raises(
        ValueError, match=f"The pair's {'generator' if half else 'summarizer'} has no weights.*pickles"
    ):
        GistCompactor.from_pretrained(pair, device="cpu")


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a pointer of git's": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
def test_weights_that_are_not_whole_are_named(make_trainer, lora, tmp_path, with_lora, damage):
    make_trainer(peft_config=lora if with_lora else None).save_model(str(tmp_path / "pair"))
    for half in ("generator", ""):
        (file,) = (tmp_path / "pair" / half).glob("*.safetensors")
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
        with pytest.raises(ValueError, match=f"The weights of {file.parent} cannot be read: .*`git lfs pull`"):
            GistCompactor.from_pretrained(tmp_path / "pair", device="cpu")


def test_weights_of_a_role_that_are_not_whole_are_named(make_trainer, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    for role in ("model", "generator", "teacher"):
        with pytest.raises(ValueError, match="The weights of .*model cannot be read: "):
            make_trainer(**{role: str(tmp_path / "model")})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:100], "is damaged, or was edited with an error: it is no JSON"),
        (lambda text: text.replace('"last_k"', '"last_k",'), "is damaged, or was edited with an error: it is no JSON"),
        (lambda text: "[]", "is damaged: it holds no JSON object"),
        (lambda text: re.sub('"last_k": 4', '"last_k": "4"', text), "has '4' for `last_k`, which must be of type int"),
        (
            lambda text: re.sub('"last_k": 4', '"last_k": null', text),
            "has None for `last_k`, which must be of type int",
        ),
        (
            lambda text: re.sub('"last_k": 4', '"last_k": true', text),
            "has True for `last_k`, which must be of type int",
        ),
        (
            lambda text: text.replace("{", '{"chat_template_kwargs": "enable_thinking", ', 1),
            "has 'enable_thinking' for `chat_template_kwargs`, which must be of type dict",
        ),
    ],
)
def test_what_an_edited_config_has_wrong_is_named(pair, edit, message):
    path = pair / "gist_config.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        GistCompactor.from_pretrained(pair, device="cpu")


def test_a_pickled_adapter_is_refused(make_trainer, lora, tmp_path):
    make_trainer(peft_config=lora).save_model(str(tmp_path / "pair"))
    folder = tmp_path / "pair" / "generator"
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="The pair's generator has no weights: .* holds no \\*.safetensors"):
        GistCompactor.from_pretrained(tmp_path / "pair", device="cpu")


def test_a_checkpoint_with_a_pickled_adapter_is_not_resumed(make_trainer, lora, tmp_path):
    make_trainer(peft_config=lora, args={"save_strategy": "steps", "save_steps": 1, "max_steps": 1}).train()
    folder = tmp_path / "run" / "checkpoint-1" / "generator"
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    trainer = make_trainer(peft_config=lora)
    with pytest.raises(ValueError, match="adapter_model.safetensors is missing"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("pair", [None, 5, 2.5, b"pair", ["pair"]])
def test_what_names_no_pair_is_refused(pair):
    with pytest.raises(ValueError, match="A pair is named by its folder or its repository on the Hub, got "):
        GistCompactor.from_pretrained(pair, device="cpu")


def test_a_pair_without_a_token_that_ends_a_gist_is_refused(pair):
    (pair / "tokenizer_config.json").unlink()  # as where some files were copied
    with pytest.raises(
        ValueError, match="tokenizer has no end-of-sequence token.*see whether tokenizer_config.json is"
    ):
        GistCompactor.from_pretrained(pair, device="cpu")
