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

"""`trl-gist push`: what it lists, sends and refuses, through huggingface_hub's own client and a loopback server; and that
each kind of pair loads from there as its card says."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hub_server import USER, Failure, serve
from huggingface_hub import ModelCard, SpaceCard
from launching import PYTHONPATH, ROOT, finished
from tiny import make_documents, make_model, make_tokenizer
from tiny_pairs import make_pair, save_half

from trl_gist.cli import main
from trl_gist.pair import PairConfig
from trl_gist.scripts.push import PushArguments, pair_files


TOKEN = "hf_madeUpForTheTests"
BASE = f"{USER}/base"
# Whether the summarizer and the generator are adapters
KINDS = {"both-full": (0, 0), "both-lora": (1, 1), "lora-and-full": (1, 0), "full-and-lora": (0, 1)}
HALVES = ("", "generator/")
# Of the summarizer and of the generator: a module that transformers does not have, and one that this imports
CODE = {"": ("own_s", "OwnS"), "generator/": ("own_g", "OwnG")}
TEXT = "".join(make_documents(2))


def make_pair_in(directory, kind, checkpoint, tokenizer, base, **pair):
    """A pair as training saves it, with what a run leaves beside it."""
    for half, seed, lora in (("", 3, KINDS[kind][0]), ("generator", 4, KINDS[kind][1])):
        save_half(checkpoint, tokenizer, directory / half, seed, lora, base)
        tokenizer.save_pretrained(directory / half)
    bases = dict.fromkeys(("summarizer", "generator", "teacher"), base)
    make_pair(context_length=64, base_models=bases, **pair).save(directory)
    for name, content in {
        "checkpoint-2/optimizer.pt": b"x" * 3000,
        "checkpoint-2/model.safetensors": b"x" * 2000,
        "run_log/run.json": b"{}",
        "events.out.tfevents.1": b"e",
        "training_args.bin": TOKEN.encode(),
        ".env": TOKEN.encode(),
        "notes.json": b"{}",
        "generator/optimizer.pt": b"x",
        "generator/README.md": b"PEFT's",
        "plots/training.svg": b"<svg/>",
        "LICENSE": b"theirs",
    }.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def bring_code(pair):
    """Gives both halves a class of their own, as of a base with `trust_remote_code`."""
    for half, (module, name) in CODE.items():
        config = json.loads((pair / half / "config.json").read_text())
        config |= {"architectures": [name], "auto_map": {"AutoModelForCausalLM": f"{module}.{name}"}}
        (pair / half / "config.json").write_text(json.dumps(config))
        source = f"from .{module}_base import Base\n\n\nclass {name}(Base):\n    pass\n"
        (pair / half / f"{module}.py").write_text(source)
        base = "from transformers import LlamaForCausalLM\n\n\nclass Base(LlamaForCausalLM):\n    pass\n"
        (pair / half / f"{module}_base.py").write_text(base)
    (pair / "train.py").write_text("print('mine')")
    return pair


# ---- What the process does that talks to the server ----


def act(directory):
    """Pushes as `actions.json` says, then loads each kind of pair from the Hub. Writes what it found as JSON."""
    from huggingface_hub import hf_hub_download
    from transformers import AutoModelForCausalLM, pipeline

    import trl_gist.pipeline  # noqa: F401  (registers the task)
    from trl_gist import GistCompactor

    found = {}
    for name, argv in json.loads((directory / "actions.json").read_text()).items():
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                code = main(["push", *argv])
            except SystemExit as error:
                code = error.code
        found[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}

    def logits(model):
        with torch.no_grad():
            return model(input_ids=torch.arange(5, 45).view(2, 20)).logits

    def line_of(repo):
        card = Path(hf_hub_download(repo, "README.md")).read_text(encoding="utf-8")
        return card, re.search(r"^generator = (AutoModelForCausalLM.from_pretrained.*)$", card, re.M).group(1)

    repo = f"{USER}/code"
    card, line = line_of(repo)
    compactor = GistCompactor.from_pretrained(repo, device="cpu", trust_remote_code=True)
    halves = (compactor.summarizer, compactor.generator)
    found["loaded code"] = {
        "halves": [type(model).__name__ for model in halves],
        "card": [type(eval(line)).__name__, card.count("trust_remote_code=True")],
        "pipeline": type(pipeline("context-compaction", model=repo, trust_remote_code=True).model.summarizer).__name__,
    }
    for kind in KINDS:
        repo, pair = f"{USER}/{kind}", directory / kind
        _, line = line_of(repo)
        expected = logits(AutoModelForCausalLM.from_pretrained(pair / "generator"))
        compact = pipeline("context-compaction", model=repo, device="cpu")
        gists = GistCompactor.from_pretrained(pair, device="cpu").compress_windows(TEXT)
        found[f"loaded {kind}"] = {
            "line": line,
            "generator": torch.equal(logits(eval(line)), expected),
            "summarizer": torch.equal(
                logits(AutoModelForCausalLM.from_pretrained(repo)), logits(AutoModelForCausalLM.from_pretrained(pair))
            ),
            "pipeline": [gist["token_ids"] for gist in compact(TEXT)]
            == [dataclasses.asdict(gist)["token_ids"] for gist in gists],
        }
    (directory / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The server, the folder of the pairs, and what each push said, after all of them."""
    directory = tmp_path_factory.mktemp("push")
    tokenizer = make_tokenizer()
    base = directory / "base"
    make_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    pairs = {
        kind: make_pair_in(directory / kind, kind, base, tokenizer, BASE, datasets=[f"{USER}/texts"]) for kind in KINDS
    }
    local = make_pair_in(directory / "local", "both-lora", base, tokenizer, str(base))
    whole = make_pair_in(directory / "whole", "both-full", base, tokenizer, str(base))
    code = bring_code(make_pair_in(directory / "code", "both-full", base, tokenizer, BASE))
    shutil.rmtree(pairs["both-lora"] / "checkpoint-2")
    checkpoint = shutil.copytree(pairs["both-lora"], pairs["both-lora"] / "checkpoint-2")
    full = str(pairs["both-full"])
    actions = {
        **{kind: [str(pair), f"{USER}/{kind}"] for kind, pair in pairs.items()},
        "again": [full, f"{USER}/both-full"],
        "checkpoint": [str(checkpoint), f"{USER}/checkpoint"],
        "local": [str(local), f"{USER}/local"],
        "local by name": [str(local), f"{USER}/local", "--base_model", BASE, "--license", "mit"],
        "local by no name": [str(local), f"{USER}/none", "--base_model", f"{USER}/nothing"],
        "whole": [str(whole), f"{USER}/whole"],
        "code": [str(code), f"{USER}/code"],
        "first": [full, f"{USER}/outage"],
        "second": [full, f"{USER}/outage"],
        "other model": [full, BASE],
        "seen": [full, f"{USER}/seen"],
        "seen public": [full, f"{USER}/seen", "--public"],
        "hidden": [full, f"{USER}/both-lora", "--public"],
        "space": [full, f"{USER}/space", "--space", "--public"],
        "other space": [full, f"{USER}/taken", "--space", "--public"],
    }
    (directory / "actions.json").write_text(json.dumps(actions))
    with serve(TOKEN) as hub:
        hub.create_from(BASE, base)
        hub.head(BASE).files["README.md"] = b"---\nlicense: apache-2.0\n---\n"
        hub.create(f"{USER}/seen")
        hub.create(f"spaces/{USER}/taken", {"app.py": b""})
        # One of two files arrives, and then the other is refused
        hub.failures.append(Failure(rf"PUT /lfs/{USER}/outage/", status=403, skip=1))
        environment = {
            **os.environ,
            **{"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url},
            **{"HF_HOME": str(directory / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"},
        }
        done = finished([sys.executable, __file__, str(directory)], 300, env=environment)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        yield hub, directory, json.loads((directory / "found.json").read_text())


# ---- What arrives ----


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_pair_loads_by_name_as_its_card_says(world, kind):
    _, _, found = world
    assert found[kind]["code"] == 0, found[kind]["err"]
    loaded = found[f"loaded {kind}"]
    assert loaded["generator"] and loaded["summarizer"] and loaded["pipeline"], loaded


@pytest.mark.parametrize("kind", KINDS)
def test_one_private_commit_holds_the_pair_and_nothing_of_the_run(world, kind):
    hub, directory, _ = world
    repo = f"{USER}/{kind}"
    (commit,) = hub.commits(repo)
    assert repo in hub.private and commit.parent is not None
    weights = [f"{half}{'adapter_' * lora}model.safetensors" for half, lora in zip(HALVES, KINDS[kind], strict=True)]
    for name in weights:
        assert commit.files[name] == (directory / kind / name).read_bytes()
    left_out = {"training_args.bin", ".env", "notes.json", "events.out.tfevents.1", "generator/optimizer.pt"}
    assert not commit.files.keys() & left_out and "generator/README.md" not in commit.files
    assert {name.split("/")[0] for name in commit.files if "/" in name} == {"generator", "plots"}
    assert {"LICENSE", "plots/training.svg", "tokenizer.json", "generator/tokenizer.json"} <= commit.files.keys()
    assert not any(TOKEN.encode() in content for content in commit.files.values())


def test_a_push_of_what_is_there_makes_no_commit(world):
    hub, _, found = world
    assert found["again"]["code"] == 0 and len(hub.commits(f"{USER}/both-full")) == 1


def test_a_checkpoint_goes_as_the_pair_it_holds(world):
    hub, _, found = world
    assert found["checkpoint"]["code"] == 0
    assert hub.head(f"{USER}/checkpoint").files.keys() == hub.head(f"{USER}/both-lora").files.keys()


def test_the_card_names_base_datasets_and_the_bases_licence(world):
    hub, _, _ = world
    card = ModelCard(hub.head(f"{USER}/both-lora").files["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.base_model == BASE
    assert card.data.base_model_relation == "adapter" and card.data.datasets == [f"{USER}/texts"]
    assert f'pipeline("context-compaction", model="{USER}/both-lora")' in card.text


def test_a_pair_with_code_of_its_own_loads_where_that_is_trusted(world):
    hub, _, found = world
    assert found["code"]["code"] == 0, found["code"]["err"]
    files = hub.head(f"{USER}/code").files
    # transformers looks for a repository's code in the root alone
    expected = {f"{half}{name}{end}.py" for half, (name, _) in CODE.items() for end in ("", "_base")}
    expected |= {"own_g.py", "own_g_base.py"}
    assert {name for name in files if name.endswith(".py")} == expected
    assert found["loaded code"] == {"halves": ["OwnS", "OwnG"], "card": ["OwnG", 3], "pipeline": "OwnS"}


# ---- A base that was a folder ----


def test_adapters_on_a_folder_go_only_with_the_bases_name(world):
    hub, directory, found = world
    assert (
        found["local"]["code"] == 2 and f"{directory / 'base'}, which the adapters stand on" in found["local"]["err"]
    )
    assert "--base_model" in found["local"]["err"]
    assert found["local by name"]["code"] == 0
    files = hub.head(f"{USER}/local").files
    for half in HALVES:
        assert json.loads(files[f"{half}adapter_config.json"])["base_model_name_or_path"] == BASE
    assert set(json.loads(files["gist_config.json"])["base_models"].values()) == {BASE}
    assert ModelCard(files["README.md"].decode()).data.license == "mit"
    assert "is not on the Hub. Push it first" in found["local by no name"]["err"]
    assert f"{USER}/none" not in hub.branches


@pytest.mark.parametrize("repo", ["local", "whole"])
def test_no_path_of_the_machine_is_pushed(world, repo):
    hub, directory, _ = world
    files = hub.head(f"{USER}/{repo}").files
    assert {"README.md", "gist_config.json"} <= files.keys()
    for name, content in files.items():
        assert str(directory).encode() not in content, name


def test_a_whole_pair_from_a_folder_says_that_its_base_is_not_on_the_hub(world):
    hub, _, _ = world
    files = hub.head(f"{USER}/whole").files
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model is None and "base (not on the Hub) (teacher)" in card.text
    assert set(json.loads(files["gist_config.json"])["base_models"].values()) == {"./base"}


# ---- A push that fails, or must not be ----


def test_a_failed_push_goes_on_with_what_is_missing(world):
    hub, _, found = world
    assert found["first"]["code"] == 2 and "The same command tries again" in found["first"]["err"]
    assert found["second"]["code"] == 0
    sent = [oid for repo, oid in hub.uploads if repo == f"{USER}/outage"]
    assert len(sent) == len(set(sent)) == 2 and len(hub.commits(f"{USER}/outage")) == 1


@pytest.mark.parametrize(
    ("action", "repo", "message"),
    [
        ("other model", BASE, "holds another model, as config.json is there and gist_config.json is not"),
        ("seen", f"{USER}/seen", "is public already: add --public"),
        ("hidden", f"{USER}/both-lora", "is private. Leave --public out"),
        ("other space", f"spaces/{USER}/taken", "holds another space, as app.py is there"),
    ],
)
def test_what_others_see_or_hold_is_not_written_over(world, action, repo, message):
    hub, _, found = world
    assert found[action]["code"] == 2 and message in found[action]["err"]
    assert not any(commit.message.startswith("trl-gist push") for commit in hub.commits(repo)[1:])
    assert f"{USER}/taken" not in hub.branches, "the pair waits for its Space"


def test_public_is_asked_for(world):
    hub, _, found = world
    assert found["seen public"]["code"] == 0 and len(hub.commits(f"{USER}/seen")) == 1
    assert f"{USER}/space" not in hub.private and f"spaces/{USER}/space" not in hub.private


def test_a_space_stands_beside_its_pair_and_brings_the_package(world):
    hub, _, found = world
    assert found["space"]["code"] == 0, found["space"]["err"]
    (pair,), (space,) = hub.commits(f"{USER}/space"), hub.commits(f"spaces/{USER}/space")
    assert "gist_config.json" in pair.files and "app.py" not in pair.files
    card = SpaceCard(space.files["README.md"].decode())
    assert (card.data.sdk, card.data.app_file, card.data.models) == ("gradio", "app.py", [f"{USER}/space"])
    # What its page is tested with
    assert f"\ngradio=={card.data.sdk_version}\n" in (ROOT / "constraints.txt").read_text("utf-8")
    assert f'"{USER}/space"'.encode() in space.files["app.py"] and b"user/pair" not in space.files["app.py"]
    compile(space.files["app.py"], "app.py", "exec")
    required = space.files["requirements.txt"].decode().split("\n")
    assert any(line.startswith("transformers>=") for line in required) and not any(
        "extra" in line for line in required
    )
    assert "trl_gist/inference/compactor.py" in space.files and not any("__pycache__" in name for name in space.files)


# ---- Without the Hub ----


@pytest.fixture
def pair(checkpoint, tokenizer, tmp_path):
    return make_pair_in(tmp_path / "my pair", "both-full", checkpoint, tokenizer, BASE)


@pytest.fixture
def refused(capsys):
    """Calls the command, which must end in one line, and returns it."""

    def call(*argv):
        with pytest.raises(SystemExit) as exit:
            main(["push", *map(str, argv), "--dry_run"])
        assert exit.value.code == 2
        return capsys.readouterr().err

    return call


def test_a_dry_run_lists_every_file_with_its_size_and_what_is_left_out(pair, capsys, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    (pair / "train.py").write_text("import os")
    assert main(["push", str(pair), f"{USER}/pair", "--dry_run"]) == 0
    sent, left_out = capsys.readouterr().out.split("Left out:\n")
    assert sent.startswith(f"{USER}/pair, a private model:\n")
    listed = dict(re.findall(r"^  (\S+) +(\d[\d.]* k?M?B)$", sent, re.M))
    expected = {"gist_config.json", "README.md", "LICENSE", "plots/training.svg"}
    for half in HALVES:
        names = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
        expected |= {half + name for name in (*names, "tokenizer_config.json", "chat_template.jinja")}
    assert listed.keys() == expected and listed["LICENSE"] == "6 B"
    assert "  checkpoint-2/  5.0 kB, a checkpoint: what a run needs to go on, as optimizer states\n" in left_out
    for name, why in (
        ("run_log/", "logs"),
        ("events.out.tfevents.1", "logs"),
        (".env", "hidden"),
        ("training_args.bin", "a pickle"),
        ("generator/optimizer.pt", "a pickle"),
        ("notes.json", "no part of a pair"),
        ("train.py", "no part of a pair"),
    ):
        assert re.search(rf"^  {re.escape(name)}  \d+ B, {why}", left_out, re.M), name
    assert left_out.endswith("Nothing was sent.\n")


def test_what_is_no_whole_pair_is_refused(pair, tmp_path, checkpoint, refused):
    assert "is no folder" in refused(tmp_path / "nothing", f"{USER}/pair")
    assert "holds no gist pair" in refused(checkpoint, f"{USER}/pair")
    (pair / "generator" / "model.safetensors").write_bytes(b"\x10" + b"\0" * 9)
    assert "model.safetensors is damaged" in refused(pair, f"{USER}/pair")
    (pair / "generator" / "model.safetensors").unlink()
    assert "The pair's generator has no weights" in refused(pair, f"{USER}/pair")
    shutil.rmtree(pair / "generator")
    assert "The pair lacks its generator" in refused(pair, f"{USER}/pair")


def test_a_missing_shard_or_tokenizer_is_named(pair, refused):
    index = pair / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    assert "The pair's summarizer is not whole" in (said := refused(pair, f"{USER}/pair")) and "model-2" in said
    index.unlink()
    (pair / "tokenizer_config.json").unlink()
    assert "The pair has no tokenizer" in refused(pair, f"{USER}/pair")


def test_code_that_is_missing_or_on_this_machine_alone_is_refused(pair, refused, tmp_path):
    bring_code(pair)
    assert "--space runs no code that a pair brings, as generator/own_g.py" in refused(pair, f"{USER}/pair", "--space")
    (pair / "generator" / "own_g_base.py").unlink()
    said = refused(pair, f"{USER}/pair")
    assert "Without its code nobody could load the pair" in said and "own_g_base.py is missing" in said
    values = json.loads((pair / "tokenizer_config.json").read_text())
    values["auto_map"] = {"AutoTokenizer": [None, f"{tmp_path}--tokens.Tokens"]}
    (pair / "tokenizer_config.json").write_text(json.dumps(values))
    said = refused(pair, f"{USER}/pair")
    assert f"{tmp_path} is not on the Hub" in said and "name tokens.Tokens in `auto_map`" in said
    values["auto_map"] = [None, f"{BASE}--tokens.Tokens"]  # as it was written once; whoever loads it gets it there
    (pair / "tokenizer_config.json").write_text(json.dumps(values))
    assert "own_g_base.py is missing" in refused(pair, f"{USER}/pair")


def test_a_text_with_a_folder_of_the_machine_is_not_sent(pair, refused, tmp_path, monkeypatch):
    (pair / "report.html").write_text(f"<td>{pair}</td>")
    said = refused(pair, f"{USER}/pair")
    assert f"report.html names {pair}" in said and "trl-gist report" in said
    (pair / "report.html").write_text("<td>my pair</td>")
    base = "C:\\models\\base"
    make_pair(context_length=64, base_models=dict.fromkeys(("summarizer", "generator", "teacher"), base)).save(pair)
    card = tmp_path / "card.md"
    card.write_text(f"---\nlicense: mit\n---\n\n# From {base}\n")
    said = refused(pair, f"{USER}/pair", "--card", card)
    assert f"README.md names {base}, a folder of this machine. Remove it there" in said
    assert main(["push", str(pair), f"{USER}/pair", "--dry_run"]) == 0
    monkeypatch.chdir(tmp_path)
    assert "--datasets (my pair) is no name" in refused("my pair", f"{USER}/pair", "--datasets", "my pair")


@pytest.mark.parametrize("repo", ["pair", "a/b/c", "user/a b", ""])
def test_a_repository_is_named_with_its_owner(pair, refused, repo):
    assert f"The repository ({repo})" in refused(pair, repo)


def test_a_file_with_a_token_in_it_is_not_sent(pair, refused):
    values = json.loads((pair / "config.json").read_text())
    (pair / "config.json").write_text(json.dumps({**values, "token": "hf_" + "aB3" * 12}))
    assert "config.json has what looks like a token of the Hub" in refused(pair, f"{USER}/pair")


def test_a_card_of_ones_own_stands_in_for_the_written_one(pair, tmp_path, refused, capsys):
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: mit\n---\n\n# Mine\n")
    assert main(["push", str(pair), f"{USER}/pair", "--card", str(card), "--dry_run"]) == 0
    assert re.search(rf"README.md +{card.stat().st_size} B", capsys.readouterr().out)
    assert "No such file" in refused(pair, f"{USER}/pair", "--card", tmp_path / "none.md")
    card.write_text("---\n- no mapping\n---\n\n# Mine\n")
    assert "repo card metadata block should be a dict" in refused(pair, f"{USER}/pair", "--card", card)


def test_the_card_has_the_measures_of_an_evaluation(pair, tmp_path, refused):
    measures = {"last_k": 4, "budget": None, "teacher_kl": 0.5, "teacher_kl_se": 0.1, "windows": 7, "documents": 3}
    measures |= {"contexts": 2, "kinds": {"fact": {"nll_gist": 2.5, "nll_gist_se": 0.25, "windows": 4, "exact": 0.5}}}
    found = {"dataset": [f"{USER}/held-out"], "measures": [{**measures, "positions": {}}, {"teacher_kl": 9.0}]}
    (tmp_path / "measures.json").write_text(json.dumps(found))
    args = PushArguments(str(pair), f"{USER}/pair", evaluation=str(tmp_path), datasets=[f"{USER}/texts"])
    files, _ = pair_files(pair, args, None)
    card = ModelCard(files["README.md"].decode())
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("teacher_kl", 0.5)
    assert result.dataset_type == f"{USER}/held-out" and card.data.datasets == [f"{USER}/texts"]
    assert "| teacher_kl | 0.5000 ± 0.1000 |" in card.text and "On 7 targets of 2 held-out windows of 3" in card.text
    assert "| fact | 4 |  | 2.5000 ± 0.2500 |  |  | 0.5000 |\n" in card.text
    assert json.loads(files["gist_config.json"])["measures"] == {}, "those of training stay what they are"
    assert "No such file" in refused(pair, f"{USER}/pair", "--evaluation", tmp_path / "none")
    (tmp_path / "measures.json").write_text("{}")
    assert "is no evaluation on held-out documents" in refused(pair, f"{USER}/pair", "--evaluation", tmp_path)


def test_pairs_from_before_there_were_datasets_load(pair):
    values = json.loads((pair / "gist_config.json").read_text())
    assert "datasets" not in values and PairConfig.load(pair).datasets == []


if __name__ == "__main__":
    act(Path(sys.argv[1]))
