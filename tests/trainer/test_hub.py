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

"""What the Hub holds of a run is one pair, and loads elsewhere; through huggingface_hub's own client and a loopback
server."""

import errno
import json
import os
import re
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import USER, Failure, serve
from launching import PYTHONPATH, finished
from tiny import make_documents, make_model, make_tokenizer

from trl_gist.trainer.repository import outdated


TOKEN = "hf_madeUpForTheTests"
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
# Strategy -> how the pair is trained
RUNS = {"end": "lora", "every_save": "full", "checkpoint": "lora", "all_checkpoints": "full"}
BASE, OUTAGE = f"{USER}/base", f"{USER}/outage"
RESUME_DIRS = ("last-checkpoint", "checkpoint-")


def repo_of(strategy):
    return f"{USER}/{strategy.replace('_', '-')}"


# ---- What the processes do that talk to the server ----


def make_trainer(directory, name, way, **args):
    from datasets import Dataset
    from peft import LoraConfig

    from trl_gist import GistConfig, GistTrainer
    from trl_gist.prompts import SUMMARIZER_PROMPT

    return GistTrainer(
        model=BASE,
        args=GistConfig(
            str(directory / name),
            **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6},
            **{"summarizer_prompt": SUMMARIZER_PROMPT, "cold_start_steps": 0, "max_steps": 4, "logging_steps": 1},
            **{"num_generations": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4},
            **{"learning_rate": 1e-2, "generator_learning_rate": 1e-2, "report_to": "none", "disable_tqdm": True},
            **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "seed": 7},
            **{"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, **args},
        ),
        train_dataset=Dataset.from_dict({"text": make_documents(8)}),
        eval_dataset=Dataset.from_dict({"text": make_documents(3, seed=9)}),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if way == "lora" else None,
    )


def parameters(trainer):
    return {
        role: {name: parameter.detach() for name, parameter in model.named_parameters()}
        for role, model in (("S", trainer.model), ("G", trainer.generator))
    }


def push(directory):
    """Trains a run for each strategy, and one through a server that fails."""
    from trl_gist.evaluation.pages import plots
    from trl_gist.scripts.train import train
    from trl_gist.trainer import hub

    def broken(*args, **kwargs):
        raise KeyError("no such metric")

    find_spec, plot_training = hub.find_spec, plots.plot_training
    for strategy, way in RUNS.items():
        # Drawing takes seconds: two runs are as if matplotlib were not installed
        hub.find_spec = (lambda name: None) if way == "lora" else find_spec
        plots.plot_training = broken if strategy == "all_checkpoints" else plot_training
        trainer = make_trainer(
            directory,
            strategy,
            way,
            **{"push_to_hub": True, "hub_strategy": strategy, "hub_model_id": repo_of(strategy)},
            # One run has its token from the arguments, the others from the environment
            hub_token=TOKEN if strategy == "checkpoint" else None,
            hub_always_push=True,  # else a push is left out while the one before goes on
            # The first checkpoint leaves the disk while its push may still be waiting
            save_total_limit=1 if strategy == "checkpoint" else None,
        )
        train(trainer)
        if strategy == "checkpoint":
            torch.save(parameters(trainer), directory / "trained.pt")

    hub.find_spec = lambda name: None
    outage = {"hub_strategy": "every_save", "hub_model_id": OUTAGE, "hub_always_push": True, "hub_revision": "trial"}
    trainer = make_trainer(directory, "outage", "full", push_to_hub=True, **outage)
    trainer.train()
    for attempt in ("first", "second"):
        try:
            print(attempt, "attempt:", trainer.push_to_hub(f"{attempt} attempt").commit_message)
        except OSError as error:
            print(attempt, "attempt:", f"{type(error).__name__}: {error}")
    print("later:", trainer.push_to_hub("nothing new", blocking=False).result().oid)


def pull(directory):
    """On another machine: only the Hub is there. Writes what it found as JSON."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trl_gist import GistCompactor

    def same(model, other):
        ours, theirs = (dict(m.named_parameters()) for m in (model, other))
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def same_logits(model, other):
        ids = torch.arange(5, 45).view(2, 20)
        with torch.no_grad():
            return torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits)

    found = {}
    revisions = json.loads((directory / "revisions.json").read_text())
    for strategy, revision, local in revisions:
        hub = GistCompactor.from_pretrained(repo_of(strategy), revision=revision)
        disk = GistCompactor.from_pretrained(directory / "runs" / strategy / local)
        key = f"{strategy} {local}" if revision else strategy
        found[key] = [same(hub.summarizer, disk.summarizer), same(hub.generator, disk.generator)]
        found[f"{key} writes"] = hub.compress("In 1854 the physician John Snow").token_ids == (
            disk.compress("In 1854 the physician John Snow").token_ids
        )
    for strategy, way in RUNS.items():
        repo = repo_of(strategy)
        card = Path(hf_hub_download(repo, "README.md")).read_text(encoding="utf-8")
        found[f"card {strategy}"] = re.search(
            r"^generator = (AutoModelForCausalLM.from_pretrained.*)$", card, re.M
        ).group(1)
        plain = eval(found[f"card {strategy}"])
        if way == "lora":
            base = AutoModelForCausalLM.from_pretrained(BASE)
            peft = PeftModel.from_pretrained(base, repo, subfolder="generator")
            found[f"peft {strategy}"] = same_logits(peft, plain)
        disk = AutoModelForCausalLM.from_pretrained(directory / "runs" / strategy / "generator")
        found[f"plain {strategy}"] = same_logits(plain, disk)
        found[f"other half {strategy}"] = same_logits(plain, AutoModelForCausalLM.from_pretrained(repo))
    try:
        AutoModelForCausalLM.from_pretrained(repo_of("checkpoint"), subfolder="generator")
    except ValueError as error:
        found["adapter by subfolder"] = str(error)
    for repo in (BASE, f"{USER}/nothing"):
        try:
            GistCompactor.from_pretrained(repo)
        except ValueError as error:
            found[repo] = str(error)

    local = snapshot_download(
        repo_of("checkpoint"), allow_patterns="last-checkpoint/*", local_dir=directory / "resumed"
    )
    # Half-way through, as if the machine had been lost after the first push
    first = json.loads((directory / "first.json").read_text())
    local = snapshot_download(
        repo_of("checkpoint"), revision=first, allow_patterns="last-checkpoint/*", local_dir=directory / "resumed"
    )
    trainer = make_trainer(directory, "resumed", "lora")
    trainer.train(resume_from_checkpoint=str(Path(local, "last-checkpoint")))
    found["steps"] = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    found["step of the checkpoint"] = json.loads(Path(local, "last-checkpoint/trainer_state.json").read_text())[
        "global_step"
    ]
    trained = torch.load(directory / "runs" / "trained.pt", weights_only=True)
    found["resumed"] = all(
        torch.equal(value, trained[role][name])
        for role, values in parameters(trainer).items()
        for name, value in values.items()
    )
    (directory / "found.json").write_text(json.dumps(found))


def run(what, directory, hub, home):
    """Runs `push` or `pull` in a process of its own: the client reads its endpoint when it is imported."""
    environment = {
        **os.environ,
        **{"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url},
        **{"HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "TRANSFORMERS_VERBOSITY": "info"},
    }
    done = finished([sys.executable, __file__, what, str(directory)], 300, env=environment)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-6000:]
    return log


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The server, the folder of the runs, and the log, after all have been trained and pushed."""
    directory = tmp_path_factory.mktemp("hub")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    with serve(TOKEN) as hub:
        hub.create_from(BASE, directory / "base")
        hub.failures += [
            # The first push: the connection is lost half-way through a file, and the client comes again by itself
            Failure(rf"PUT /lfs/{OUTAGE}/", status=None),
            # The second push: one of its two files is refused
            Failure(rf"PUT /lfs/{OUTAGE}/", status=403, skip=3),
            # The first attempt at the end: the commit is refused when all files have arrived
            Failure(rf"POST /api/models/{OUTAGE}/commit/", status=403, skip=1),
        ]
        log = run("push", directory / "runs", hub, directory / "home")
        yield hub, directory, log


@pytest.fixture(scope="module")
def found(world):
    """What another machine finds, with nothing but the Hub."""
    hub, directory, _ = world
    first = hub.commits(repo_of("every_save"))[0].id
    revisions = [("every_save", first, "checkpoint-2"), *((strategy, None, "") for strategy in RUNS)]
    (directory / "revisions.json").write_text(json.dumps(revisions))
    (directory / "first.json").write_text(json.dumps(hub.commits(repo_of("checkpoint"))[0].id))
    run("pull", directory, hub, directory / "other-home")
    return json.loads((directory / "found.json").read_text())


def pair_files(files):
    """Without what is there to resume from."""
    return {path: content for path, content in files.items() if not path.split("/")[0].startswith(RESUME_DIRS)}


def weights(strategy, files, under=""):
    return [files[f"{under}{half}{WEIGHTS[RUNS[strategy]]}"] for half in ("", "generator/")]


# ---- What is pushed, and when ----


def test_each_strategy_makes_its_commits(world):
    hub, _, _ = world
    messages = {strategy: [commit.message for commit in hub.commits(repo_of(strategy))] for strategy in RUNS}
    steps = [f"Training in progress, step {step}" for step in (2, 4)]
    # What is saved at the end is the last checkpoint's pair; only the report, where there is one, is a new one
    assert messages == {
        "end": ["Model save"],
        "every_save": [*steps, "Model save"],
        **dict.fromkeys(("checkpoint", "all_checkpoints"), steps),
    }


@pytest.mark.parametrize("strategy", RUNS)
def test_each_commit_holds_both_halves_of_one_step(world, strategy):
    hub, directory, _ = world
    commits = hub.commits(repo_of(strategy))
    steps = [json.loads(commit.files["gist_config.json"])["step"] for commit in commits]
    assert steps == {"end": [4], "every_save": [2, 4, 4]}.get(strategy, [2, 4])
    saved = directory / "runs" / strategy
    for commit, step in zip(commits, steps, strict=True):
        if (saved / f"checkpoint-{step}").is_dir():
            on_disk = files_in(saved / f"checkpoint-{step}")
            assert weights(strategy, commit.files) == weights(strategy, on_disk)
    assert weights(strategy, commits[-1].files) == weights(strategy, files_in(saved))
    if strategy != "end":
        for first, last in zip(*(weights(strategy, commit.files) for commit in commits[:2]), strict=True):
            assert first != last


def test_each_commit_asks_for_the_parent_that_it_was_made_for(world):
    """Unchanged files are left out of a commit: on another parent it could join halves of two pairs."""
    hub, _, _ = world
    for repo, branch in [*((repo_of(strategy), "main") for strategy in RUNS), (OUTAGE, "trial")]:
        commits = hub.branches[repo][branch]
        assert [commit.parent for commit in commits[1:]] == [commit.id for commit in commits[:-1]]


@pytest.mark.parametrize("strategy", RUNS)
def test_the_repository_holds_the_saved_pair_its_plots_and_nothing_else(world, strategy):
    hub, directory, _ = world
    saved = directory / "runs" / strategy
    expected = {
        path for path in files_in(saved) if path.split("/")[0] not in ("run_log", "checkpoint-2", "checkpoint-4")
    }
    expected -= {"generator/README.md"}  # PEFT's card of G; the root's is the pair's
    if strategy == "every_save":
        expected |= {"plots/training.png", "plots/training.svg", "report.html"}
    for commit in hub.commits(repo_of(strategy)):
        assert pair_files(commit.files).keys() - {".gitattributes"} == expected
    assert not list((saved / "_hub").iterdir()), "what was staged is gone"


def test_all_checkpoints_are_pushed_as_they_are_on_disk(world):
    hub, directory, _ = world
    first, last = (commit.files for commit in hub.commits(repo_of("all_checkpoints")))
    for step, pushed in ((2, (first, last)), (4, (last,))):
        on_disk = files_in(directory / "runs" / "all_checkpoints", f"checkpoint-{step}/")
        assert f"checkpoint-{step}/generator/optimizer.pt" in on_disk
        for files in pushed:
            assert {path: files[path] for path in files if path.startswith(f"checkpoint-{step}/")} == on_disk
    assert not any(path.startswith("checkpoint-4/") for path in first)


def test_the_last_checkpoint_takes_the_place_of_the_one_before(world):
    hub, directory, _ = world
    commits = [commit.files for commit in hub.commits(repo_of("checkpoint"))]
    for files, step in zip(commits, (2, 4), strict=True):
        assert json.loads(files["last-checkpoint/trainer_state.json"])["global_step"] == step
        for half in ("", "generator/"):
            assert {f"last-checkpoint/{half}{name}.pt" for name in ("optimizer", "scheduler")} <= files.keys()
    on_disk = files_in(directory / "runs" / "checkpoint" / "checkpoint-4")
    assert {path: commits[-1][f"last-checkpoint/{path}"] for path in on_disk} == on_disk
    assert sum(path.startswith("last-checkpoint/") for path in commits[-1]) == len(on_disk)


@pytest.mark.parametrize("strategy", RUNS)
def test_no_pickle_is_pushed_outside_the_resume_checkpoints(world, strategy):
    hub, _, _ = world
    commits = hub.commits(repo_of(strategy))
    assert ".safetensors" in {Path(path).suffix for path in pair_files(commits[-1].files)}
    for commit in commits:
        suffixes = {Path(path).suffix for path in pair_files(commit.files)}
        assert suffixes <= {".safetensors", ".json", ".md", ".jinja", ".png", ".svg", ".html", ""}
        assert not any(path.endswith("training_args.bin") for path in commit.files)


def test_the_token_is_in_no_file_and_in_no_log(world):
    hub, directory, log = world
    assert TOKEN not in log
    for branches in hub.branches.values():
        for commit in (commit for branch in branches.values() for commit in branch):
            for path, content in commit.files.items():
                assert TOKEN.encode() not in content, path
    for path, content in files_in(directory / "runs").items():
        assert TOKEN.encode() not in content, path
    assert '"hub_token"' in (directory / "runs" / "checkpoint" / "run_log" / "run.json").read_text(), "it was set"


# ---- The card and the plots ----


def test_the_card_loads_the_pair_by_its_name_on_the_hub(world):
    hub, _, _ = world
    for strategy in RUNS:
        card = hub.head(repo_of(strategy)).files["README.md"].decode()
        assert f'GistCompactor.from_pretrained("{repo_of(strategy)}")' in card
        assert f"base_model: {BASE}" in card and "| teacher_kl | " in card
        assert ("](plots/training.png)" in card) == ("plots/training.png" in hub.head(repo_of(strategy)).files)


def test_plots_and_report_are_those_of_the_run_so_far(world):
    hub, _, _ = world
    first, second, _ = (commit.files for commit in hub.commits(repo_of("every_save")))
    assert (
        first["plots/training.png"].startswith(b"\x89PNG")
        and first["plots/training.png"] != second["plots/training.png"]
    )
    assert b"step 2 of 4" in first["report.html"] and b"step 4 of 4" in second["report.html"]


def test_a_plot_that_fails_costs_the_plot_alone(world):
    _, _, log = world
    assert (
        log.count("The push goes without plots or report, which could not be drawn: KeyError('no such metric')") == 3
    )


def test_the_last_message_names_the_repository_where_the_hub_put_it(world):
    hub, _, log = world
    for strategy in RUNS:
        assert f"🤗 Pair pushed to {hub.url}/{repo_of(strategy)}.\n" in log
    assert log.count("🤗 Pair pushed to ") == len(RUNS)


# ---- A Hub that fails ----


def test_a_lost_connection_is_tried_again(world):
    hub, _, _ = world
    first = hub.commits(OUTAGE, "trial")[0]
    assert first.message == "Training in progress, step 2"
    puts = [request for request in hub.requests if request.startswith(f"PUT /lfs/{OUTAGE}/")]
    assert len(puts) == 6 and len(set(puts)) == 4, "each file once, and those that were spoilt once more"


def test_a_failed_push_costs_the_run_a_warning_that_says_what_to_do(world):
    _, _, log = world
    said = [part.split("arrived is not sent twice.")[0] for part in log.split("The push to ")[1:]]
    end, during = said  # stdout, then stderr
    assert during.startswith(f"{OUTAGE} failed: Error while uploading '") and "403 Forbidden" in during
    assert f"/api/models/{OUTAGE}/commit/trial" in end and "403 Forbidden" in end
    for message in said:
        assert "The repository is as it was" in message and "`trainer.push_to_hub()` pushes again" in message
    assert "first attempt: ConnectionError: The push to" in log and "second attempt: second attempt" in log
    assert log.count("is not sent twice. Training goes on") == 1


def test_after_a_failure_only_what_is_missing_is_sent_and_the_repository_was_never_half_a_pair(world):
    hub, directory, _ = world
    commits = hub.commits(OUTAGE, "trial")
    assert [commit.message for commit in commits] == ["Training in progress, step 2", "second attempt"]
    assert not hub.commits(OUTAGE), "`hub_revision` was made, and main left alone"
    sent = [oid for repo, oid in hub.uploads if repo == OUTAGE]
    assert len(sent) == len(set(sent)) == 4, "two halves at two steps"
    for commit, step in zip(commits, (2, 4), strict=True):
        for half in ("", "generator/"):
            on_disk = directory / "runs" / "outage" / f"checkpoint-{step}" / half / "model.safetensors"
            assert commit.files[f"{half}model.safetensors"] == on_disk.read_bytes()


def test_a_push_of_what_is_there_already_makes_no_commit(world):
    hub, _, log = world
    assert f"later: {hub.head(OUTAGE, 'trial').id}" in log


# ---- What others load ----


@pytest.mark.parametrize("strategy", RUNS)
def test_the_pair_loads_by_its_name(found, strategy):
    assert found[strategy] == [True, True] and found[f"{strategy} writes"]


def test_a_revision_is_the_pair_of_that_commit(found):
    assert found["every_save checkpoint-2"] == [True, True]


@pytest.mark.parametrize("strategy", RUNS)
def test_plain_transformers_loads_the_generator_alone_as_the_card_says(found, strategy):
    how = 'subfolder="generator"' if RUNS[strategy] == "full" else 'adapter_kwargs={"subfolder": "generator"}'
    assert found[f"card {strategy}"] == f'AutoModelForCausalLM.from_pretrained("{repo_of(strategy)}", {how})'
    assert found[f"plain {strategy}"] and not found[f"other half {strategy}"]


@pytest.mark.parametrize("strategy", [strategy for strategy, way in RUNS.items() if way == "lora"])
def test_peft_puts_the_generators_adapter_on_its_base(found, strategy):
    assert found[f"peft {strategy}"]


def test_transformers_refuses_an_adapters_subfolder_rather_than_load_the_other_half(found):
    """transformers 5.23 looks for the subfolder in the base's repository. Should it load one day, the card may say so."""
    assert found["adapter by subfolder"].startswith(f"Unrecognized model in {BASE}")


def test_a_run_goes_on_from_the_pushed_checkpoint_as_if_it_had_stayed(found):
    assert found["step of the checkpoint"] == 2 and found["steps"] == [1, 2, 3, 4] and found["resumed"]


@pytest.mark.parametrize(
    ("repo", "message"),
    [(BASE, "holds no gist pair: gist_config.json is missing"), (f"{USER}/nothing", "is neither a folder nor a repo")],
)
def test_a_repository_that_is_no_pair_is_refused(found, repo, message):
    assert found[repo].startswith(repo) and message in found[repo]


# ---- Staging ----


@pytest.fixture
def staging(make_trainer, tmp_path, monkeypatch):
    """A trainer whose next checkpoint would be pushed, and that checkpoint."""
    monkeypatch.setattr("trl_gist.trainer.hub.find_spec", lambda name: None)
    trainer = make_trainer(args={"hub_strategy": "checkpoint"})
    trainer.base_models = dict.fromkeys(trainer.base_models, BASE)
    trainer.hub_model_id, trainer.push_in_progress = f"{USER}/pair", None
    saved = tmp_path / "run" / "checkpoint-1"
    trainer.save_model(str(saved))
    trainer.state.save_to_json(str(saved / "trainer_state.json"))
    return trainer, saved


@pytest.mark.parametrize("named", ["summarizer", "generator", "teacher"])
def test_a_base_that_nobody_else_has_is_named_before_training(staging, checkpoint, caplog, named):
    trainer, _ = staging
    trainer.base_models = dict.fromkeys(("summarizer", "generator", "teacher"), f"{USER}/base")
    trainer.hub.prepare()
    assert not caplog.text
    trainer.base_models[named] = checkpoint
    trainer.hub.prepare()
    (said,) = caplog.messages
    assert f"{checkpoint}, which the {named} started from, is a folder of this machine" in said
    assert f"calls it ./{Path(checkpoint).name}" in said and f"{USER}/pair --base_model USER/BASE" in said


def test_a_run_that_pushes_says_so_once_for_each_folder(make_trainer, checkpoint, caplog, monkeypatch):
    monkeypatch.setattr("trl_gist.trainer.gist_trainer.GRPOTrainer.init_hf_repo", lambda self, **kwargs: None)
    make_trainer(args={"push_to_hub": True, "hub_model_id": f"{USER}/pair"})
    assert [text for text in caplog.messages if checkpoint in text and "is a folder of this machine" in text] == [
        text for text in caplog.messages if "summarizer and the generator and the teacher" in text
    ]
    assert caplog.text.count("is a folder of this machine") == 1


@pytest.mark.parametrize("way", ["lora", "full"])
def test_no_folder_of_the_machine_is_in_what_is_pushed_and_a_run_goes_on_from_it(
    make_trainer, lora, checkpoint, monkeypatch, tmp_path, way
):
    from datasets import Dataset

    monkeypatch.setattr("trl_gist.evaluation.pages.plots.plot_training", lambda *_: None)  # takes seconds
    args = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "teacher_kl"}
    held_out = Dataset.from_dict({"text": make_documents(3, seed=9)})
    given = {"peft_config": lora if way == "lora" else None, "eval_dataset": held_out}
    trainer = make_trainer(args={**args, **best, "hub_strategy": "checkpoint"}, **given)
    trainer.hub_model_id, trainer.push_in_progress = f"{USER}/pair", None
    trainer.train()
    trainer.save_model()
    saved = tmp_path / "run" / "checkpoint-2"
    before = files_in(saved)
    assert str(tmp_path).encode() in before["trainer_state.json"] and checkpoint.encode() in before["manifest.json"]
    stages = [trainer.hub.stage(str(tmp_path / "run"), "pair"), trainer.hub.stage(str(saved), "2", "last-checkpoint")]
    for stage in stages:
        files = files_in(stage)
        assert "report.html" in files
        for name, content in files.items():
            assert not {path for path in (checkpoint, str(tmp_path)) if path.encode() in content}, name
        name = f"./{Path(checkpoint).name}"
        assert set(json.loads(files["gist_config.json"])["base_models"].values()) == {name}
        if way == "lora":
            for half in ("", "generator/"):
                assert json.loads(files[f"{half}adapter_config.json"])["base_model_name_or_path"] == name
    assert files_in(saved) == before, "what is on the disk stays as it is"
    resumed = make_trainer(args={**args, "output_dir": str(tmp_path / "resumed")}, **given)
    resumed.train(resume_from_checkpoint=str(stages[1] / "last-checkpoint"))
    assert resumed.state.global_step == 4


def test_code_that_a_base_brings_goes_with_the_pair(make_trainer, checkpoint, tmp_path, monkeypatch):
    from trl_gist import GistCompactor

    monkeypatch.setattr("trl_gist.trainer.hub.find_spec", lambda name: None)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = shutil.copytree(checkpoint, tmp_path / "base")
    (base / "own.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"
    )
    config = json.loads((base / "config.json").read_text())
    config |= {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (base / "config.json").write_text(json.dumps(config))
    trainer = make_trainer(model=str(base), args={"trust_remote_code": True})
    trainer.hub_model_id = f"{USER}/pair"
    trainer.save_model()
    stage = trainer.hub.stage(trainer.args.output_dir, "pair")
    assert {"own.py", "generator/own.py"} <= files_in(stage).keys()
    assert f'from_pretrained("{USER}/pair", trust_remote_code=True)' in (stage / "README.md").read_text()
    compactor = GistCompactor.from_pretrained(stage, device="cpu", trust_remote_code=True)
    assert type(compactor.summarizer).__name__ == type(compactor.generator).__name__ == "Own"


def test_a_stage_takes_no_room_and_outlives_its_checkpoint(staging):
    trainer, saved = staging
    stage = trainer.hub.stage(saved, "checkpoint-1", "last-checkpoint")
    expected = files_in(saved)
    for weights in ("model.safetensors", "generator/model.safetensors"):
        assert (stage / weights).samefile(saved / weights)
        assert (stage / "last-checkpoint" / weights).samefile(saved / weights)
    shutil.rmtree(saved)
    assert files_in(stage / "last-checkpoint") == expected


def test_what_is_pushed_in_the_background_stays_what_was_saved(staging, monkeypatch):
    trainer, _ = staging
    monkeypatch.setattr("trl_gist.trainer.hub.hf_api", lambda: SimpleNamespace(run_as_future=lambda *_: Future()))
    trainer.push_to_hub(blocking=False)
    output_dir = Path(trainer.args.output_dir)
    stage = output_dir / "_hub" / "pair"
    before = files_in(stage)
    assert not (stage / "model.safetensors").samefile(output_dir / "model.safetensors")
    with torch.no_grad():
        for model in (trainer.model, trainer.generator):
            next(model.parameters()).add_(1)
    trainer.save_model()
    assert files_in(stage) == before
    assert before["model.safetensors"] != (output_dir / "model.safetensors").read_bytes()


def test_where_there_are_no_hard_links_a_stage_is_a_copy(staging, monkeypatch):
    trainer, saved = staging

    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    stage = trainer.hub.stage(saved, "checkpoint-1", "last-checkpoint")
    assert files_in(stage / "last-checkpoint") == files_in(saved)
    assert not (stage / "model.safetensors").samefile(saved / "model.safetensors")


def test_a_disk_too_full_to_stage_on_costs_the_push_and_a_warning(staging, monkeypatch, caplog):
    trainer, saved = staging
    before = files_in(saved)

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trl_gist.trainer.hub.link_or_copy", refuse)
    trainer.hub.push_checkpoint(str(saved))
    assert f"{saved} is not pushed: it could not be staged in _hub/. [Errno 28] No space left" in caplog.text
    assert trainer.push_in_progress is None and files_in(saved) == before


def test_a_push_is_left_out_while_the_one_before_goes_on(staging, monkeypatch):
    trainer, saved = staging
    jobs = []
    monkeypatch.setattr(
        "trl_gist.trainer.hub.hf_api",
        lambda: SimpleNamespace(run_as_future=lambda *_: jobs.append(Future()) or jobs[-1]),
    )
    trainer.hub.push_checkpoint(str(saved))
    trainer.hub.push_checkpoint(str(saved))
    assert len(jobs) == 1
    jobs[0].set_result(None)
    trainer.hub.push_checkpoint(str(saved))
    assert len(jobs) == 2
    trainer.args.hub_always_push = True
    trainer.hub.push_checkpoint(str(saved))
    assert len(jobs) == 3 and trainer.push_in_progress.jobs == jobs[1:]


# ---- What a push deletes ----


def test_a_push_deletes_what_an_earlier_one_wrote_and_nothing_of_the_users():
    shards = [f"{half}model-0000{n}-of-00002.safetensors" for half in ("", "generator/") for n in (1, 2)]
    theirs = [".gitattributes", "LICENSE", "notes.json", "eval/model.safetensors", "checkpoint-2/model.safetensors"]
    held = [*shards, "model.safetensors.index.json", "config.json", "last-checkpoint/rng_state_1.pth", *theirs]
    pushed = ["adapter_config.json", "adapter_model.safetensors", "generator/adapter_model.safetensors"]
    kept = {"last-checkpoint/rng_state_1.pth", *theirs}
    assert set(outdated(held, pushed)) == set(held) - kept
    assert set(outdated(held, [*pushed, "last-checkpoint/rng_state.pth"])) == set(held) - set(theirs)
    assert outdated(pushed, pushed) == []


def files_in(folder, under=""):
    """Path -> bytes."""
    paths = (path for path in (folder / under).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


if __name__ == "__main__":
    {"push": push, "pull": pull}[sys.argv[1]](Path(sys.argv[2]))
