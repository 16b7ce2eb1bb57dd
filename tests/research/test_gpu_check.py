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

"""research/gpu: a check that hangs or crashes costs itself alone, what is done is kept, the report says what ran."""

import argparse
import importlib.util
import json
import re
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from research.gpu import check, measures
from research.gpu.check import Check, Plan, Results, run_all
from research.gpu.report import report
from trl_gist.scripts.train import make_parser


MACHINE = {
    **{"card": "A card", "memory_bytes": 80 * 2**30, "driver": "1.2", "versions": {"torch": "2.13", "cuda": None}},
    **{"matmul_flops": 5e14, "copied_bytes_per_second": 2e12, "model": "small", "weights": "SmolLM2-135M-Instruct"},
    **{"text": "text.jsonl", "text_is": "the demo's articles"},
}


def python(code):
    """A check's command; `OUT` in the code is its result's file."""
    return lambda name: lambda plan: [sys.executable, "-S", "-c", code.replace("OUT", repr(str(plan.result(name))))]


def writes(value):
    return python(f"open(OUT, 'w').write({json.dumps(value)!r})")


def make(name, command, seconds=60, part=1, **rest):
    return Check(name, part, seconds, command(name), **rest)


PREPARE = make("prepare", writes(MACHINE), part=0)
FINE = make("fine", writes({"value": 1}))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(check, "GRACE", 1)
    monkeypatch.setattr(check, "LEAST", 0.1)


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "gpu check")


def statuses(results):
    return {name: outcome["status"] for name, outcome in results.checks.items()}


# ---- One check and the others ----


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no such kernel')", "exit code 1; .* no such kernel"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("print('all is well')", "exit code 0"),  # and no result
        ("open(OUT, 'w').write('{\"cut')", "exit code 0"),
    ],
    ids=["exception", "crash", "no result", "half a result"],
)
def test_a_check_that_fails_costs_itself_alone(plan, code, reason):
    results = run_all((PREPARE, make("bad", python(code)), FINE), plan)
    assert statuses(results) == {"prepare": "done", "bad": "failed", "fine": "done"}
    assert "result" not in results.checks["bad"]
    assert re.search(reason, results.checks["bad"]["reason"])
    assert json.loads((plan.folder / "results.json").read_text())["checks"] == results.checks


def test_what_a_check_found_before_it_failed_is_kept(plan):
    half = make("half", python("open(OUT, 'w').write('{\"value\": 2}'); raise SystemExit(3)"))
    outcome = run_all((PREPARE, half), plan).checks["half"]
    assert (outcome["status"], outcome["result"]) == ("failed", {"value": 2})


@pytest.mark.parametrize("deaf", [False, True], ids=["ends when asked", "does not"])
def test_one_that_hangs_ends_at_its_limit_with_all_that_it_started(plan, tmp_path, deaf):
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    code = (
        f"{ignore}import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "open(OUT, 'w').write('{\"value\": 3}')\n"
        "time.sleep(600)"
    )
    begun = time.monotonic()
    results = run_all((PREPARE, make("hangs", python(code), seconds=3), FINE), plan)
    assert time.monotonic() - begun < 30
    assert statuses(results) == {"prepare": "done", "hangs": "out of time", "fine": "done"}
    assert results.checks["hangs"]["result"] == {"value": 3}
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the process that it started is still there")


# ---- A second call ----


def counted(name, folder):
    return make(name, python(f"open({str(folder / name)!r}, 'a').write('x'); open(OUT, 'w').write('1')"))


def test_a_second_call_keeps_what_is_done_and_tries_the_rest_again(plan, tmp_path):
    first, second = counted("first", tmp_path), counted("second", tmp_path)
    failing = make("second", python("raise SystemExit(1)"))
    assert statuses(run_all((PREPARE, first, failing), plan))["second"] == "failed"
    assert statuses(run_all((PREPARE, first, second), plan))["second"] == "done"
    assert ((tmp_path / "first").read_text(), (tmp_path / "second").read_text()) == ("x", "x")


def test_a_call_that_was_killed_is_gone_on_with(plan, tmp_path):
    plan.folder.mkdir()
    results = Results(plan.folder)
    results.put("first", status="running")
    assert run_all((PREPARE, counted("first", tmp_path)), plan).is_done("first")


def test_a_training_that_its_limit_stops_goes_on_until_it_is_done(plan, tmp_path):
    """Its result is what it has saved; what it is asked to end by, it ends by itself."""
    code = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        f"steps = pathlib.Path({str(tmp_path / 'steps')!r})\n"
        "done = steps.exists()\n"
        "steps.write_text('x')\n"
        "time.sleep(0 if done else 600)"
    )
    found = {"found": lambda plan: {"step": 1, "of": 2, "log": []} if (tmp_path / "steps").exists() else None}
    training = make("flagship", python(code), seconds=3, **found)
    assert statuses(run_all((PREPARE, training), plan))["flagship"] == "stopped"
    assert statuses(run_all((PREPARE, training), plan))["flagship"] == "done"


def test_a_folder_is_of_one_card(plan):
    run_all((PREPARE, FINE), plan)
    before = (plan.folder / "results.json").read_text()
    other = make("prepare", writes({**MACHINE, "card": "Another"}), part=0)
    with pytest.raises(SystemExit, match="results of 'A card', and this is 'Another'.*--output"):
        run_all((other, FINE), plan)
    assert (plan.folder / "results.json").read_text() == before


# ---- What is left out ----


def test_without_a_machine_nothing_else_is_tried(plan, tmp_path):
    none = make("prepare", python("raise SystemExit('torch finds no CUDA device')"), part=0)
    results = run_all((none, counted("first", tmp_path)), plan)
    assert statuses(results) == {"prepare": "failed", "first": "skipped"}
    assert "no CUDA device" in results.checks["prepare"]["reason"]
    assert not (tmp_path / "first").exists()


def test_a_call_too_short_to_look_at_the_machine_leaves_all_out(plan, tmp_path):
    run_all((PREPARE, FINE), plan)
    small = make("small", writes(1), why_not=lambda plan: f"{plan.machine['memory_bytes']} bytes are too few")
    results = run_all((PREPARE, small, counted("last", tmp_path)), Plan(plan.folder), minutes=0.001)
    assert statuses(results) == {"prepare": "done", "fine": "done", "small": "skipped", "last": "skipped"}
    assert not (tmp_path / "last").exists()


def test_when_the_minutes_are_over_the_rest_is_left_for_another_call(plan, tmp_path):
    slow = make("slow", python("import time; time.sleep(600)"))
    results = run_all((PREPARE, slow, counted("last", tmp_path)), plan, minutes=0.1)
    assert statuses(results) == {"prepare": "done", "slow": "out of time", "last": "skipped"}
    assert "minutes" in results.checks["last"]["reason"]
    assert run_all((PREPARE, counted("last", tmp_path)), plan).is_done("last")


def test_why_a_check_is_left_out_is_said_and_takes_nothing_away(plan):
    run_all((PREPARE, FINE), plan)
    small = make("fine", python("raise SystemExit(1)"), why_not=lambda plan: "the card is small")
    assert run_all((PREPARE, small), plan).is_done("fine")
    large = make("large", python("raise SystemExit(1)"), why_not=lambda plan: "the card is small")
    assert run_all((PREPARE, large), plan).checks["large"] == {"status": "skipped", "reason": "the card is small"}


@pytest.mark.parametrize(
    ("name", "machine", "reason"),
    [
        ("weights_qwen3_4b", {"memory_bytes": 24e9}, "the card has 24"),
        ("step_qwen3_4b", {}, "weights are not there"),
        ("flagship", {"weights": "random"}, "examples.demo_assets"),
    ],
)
def test_what_a_machine_lacks_is_named(tmp_path, name, machine, reason):
    plan = Plan(tmp_path)
    plan.machine = {**MACHINE, **machine}
    (wanted,) = (each for each in check.CHECKS if each.name == name)
    assert reason in wanted.why_not(plan)
    plan.machine = MACHINE
    if name != "step_qwen3_4b":
        assert wanted.why_not(plan) is None


# ---- The parts ----


def test_each_part_fits_its_minutes_when_all_goes_well():
    assert [each.part for each in check.CHECKS] == sorted(each.part for each in check.CHECKS)
    assert {each.part for each in check.CHECKS} == {0, 1, 2} and check.MINUTES_OF_A_PART * 2 == 15
    before_the_flagship = sum(each.seconds for each in check.CHECKS if each.part in (0, 2) and each.found is None)
    assert before_the_flagship + 60 <= 60 * check.MINUTES_OF_A_PART


def test_the_flagships_recipe_takes_the_articles_or_a_corpus_and_goes_on(tmp_path):
    plan = Plan(tmp_path)
    plan.machine = MACHINE
    command = check.flagship(plan)
    recipe = yaml.safe_load((tmp_path / "flagship.yaml").read_text())
    assert (recipe["dataset_path"], recipe["eval_documents"], recipe["context_length"]) == ("text.jsonl", 16, 512)
    assert "dataset_name" not in recipe and "--resume_from_checkpoint" not in command
    checkpoint = tmp_path / "flagship" / "checkpoint-25"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 25, "max_steps": 1500, "log_history": []}')
    assert check.flagship(plan)[-2:] == ["--resume_from_checkpoint", "true"]
    assert check.flagship_found(plan) == {"step": 25, "of": 1500, "log": []}
    plan.corpus = tmp_path / "corpus"
    check.flagship(plan)
    recipe = yaml.safe_load((tmp_path / "flagship.yaml").read_text())
    assert (recipe["dataset_name"], recipe["dataset_test_split"]) == (str(plan.corpus), "validation[:64]")
    assert "dataset_path" not in recipe


def test_the_flagships_recipe_at_tiny_size_is_one(tmp_path):
    plan = Plan(tmp_path, cpu=True)
    plan.machine = MACHINE
    check.flagship(plan)
    _, args, _ = make_parser().parse_args_and_config(["--config", str(tmp_path / "flagship.yaml")])
    assert (args.max_steps, args.output_dir, args.use_cpu) == (2, str(tmp_path / "flagship"), True)


def test_each_module_that_a_check_starts_is_there(tmp_path):
    plan = Plan(tmp_path, cpu=True)
    plan.machine = MACHINE
    for each in check.CHECKS:
        command = each.command(plan)
        assert (
            command[1] == "-m"
            and (check.ROOT / command[2].replace(".", "/")).with_suffix(".py").is_file()
            or (command[2] == "trl_gist.cli")
        )


# ---- What is measured ----


@pytest.mark.parametrize("rows", measures.TINY_ROWS.values(), ids=["gists", "targets"])
def test_the_kernels_for_attention_agree(rows, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # flash-attn may be there
    found = measures.of_each_attention(measures.TINY_HEADS["tiny"], rows)
    ran = {name: of for name, of in found.items() if "not_run" not in of}
    assert {"SDPA, a mask", "FlexAttention, a block mask", "SDPA's flash kernel, a row each"} <= ran.keys()
    assert all(of["error"] < 0.02 and of["milliseconds"] > 0 for of in ran.values())
    assert "flash-attn is not installed" in found["flash-attn, a row each"]["not_run"]


def test_a_kernel_that_sees_too_much_is_found_out(monkeypatch):
    causal = torch.ones(40, 40, dtype=torch.bool).tril()
    right = measures.sdpa
    monkeypatch.setattr(measures, "sdpa", lambda groups, visible_SS: right(groups, causal))
    found = measures.of_each_attention(measures.TINY_HEADS["tiny"], (2, 16, 3, 8))
    assert found["SDPA, a mask"]["error"] > 0.1


@pytest.fixture
def arguments(tmp_path):
    args = argparse.Namespace(folder=tmp_path, cpu=True, model=None, measure="prepare")
    measures.write(args, measures.prepare(args))
    return args


def test_shared_rows_are_as_near_to_float32_as_rows_of_their_own(arguments):
    found = measures.shared_rows(arguments)
    assert not found["wrong"]
    for what in ("gists of a context", "targets of a gist"):
        assert set(found[what]) == {"a row each", "one row for all"}
        assert all(0 < of["gradient_error"] < 0.1 for of in found[what].values())


def test_a_shared_row_that_is_wrong_is_found_out(arguments, monkeypatch):
    right = measures.shared_prefix_log_probs

    def wrong(model, base, prompt_ids, prompt_mask, *rest):
        return right(model, base, prompt_ids.roll(1, dims=1), prompt_mask, *rest)

    monkeypatch.setattr(measures, "shared_prefix_log_probs", wrong)
    assert measures.shared_rows(arguments)["wrong"]


def test_random_weights_have_the_shape_and_are_made_once(tmp_path, tokenizer, monkeypatch):
    shape = json.loads((check.ROOT / "configs" / "models" / "smollm2-135m.json").read_text())
    tiny = {**shape, "num_hidden_layers": 1, "vocab_size": 500, "hidden_size": 18, "intermediate_size": 8}
    (tmp_path / "shape.json").write_text(json.dumps(tiny))
    folder = measures.random_weights(tmp_path / "shape.json", tokenizer, tmp_path / "weights")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    written = (folder / "model.safetensors").stat().st_mtime_ns
    measures.random_weights(tmp_path / "shape.json", tokenizer, tmp_path / "weights")
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


# ---- The report ----


def test_the_report_has_what_ran_and_why_the_rest_did_not():
    phases = {
        name: {"naive_s": [2 * s, 4 * s, 3 * s], "gist_s": [s, s, s], "ratios": [2, 4, 3], "token_passes": [900, 300]}
        for name, s in (("sample", 1.0), ("whole step", 2.0))
    }
    sizes = {"context": 512, "target": 64, "gist": 48, "documents": 4, "gists": 8, "dtype": "bfloat16"}
    step = {
        **{
            "arguments": sizes,
            "phases": phases,
            "matmul_flops": 1e14,
            "reached_flops": {"naive": {"whole step": 1e13}, "gist": {"whole step": 3e13}},
        },
        "peak_bytes": {"naive": 8 * 2**30, "gist": 2 * 2**30},
    }
    kernel = {"heads": "SmolLM2-135M", "rows": "4 contexts", "forward_only": False}
    checks = {
        "prepare": {"status": "done", "seconds": 9.6, "result": MACHINE},
        "tests": {
            **{"status": "failed", "seconds": 50, "reason": "exit code 1; a | b"},
            "result": {"device": "cuda", "passed": 99, "skipped": 0, "failed": ["tests/a.py::test_b"]},
        },
        "attention": {
            **{"status": "out of time", "seconds": 90, "reason": "no end after 90 s"},
            "result": {
                "rows": [
                    {**kernel, "attention": "SDPA", "milliseconds": 1.25, "peak_bytes": 3 * 2**20, "error": 0.004},
                    {**kernel, "attention": "flash-attn", "not_run": "ImportError: the package is not installed"},
                ]
            },
        },
        "step_smollm2": {"status": "done", "seconds": 70, "result": step},
        "memory_smollm2": {
            **{"status": "done", "seconds": 20},
            "result": {"results": {"lora": {"policy": [3 * 2**30, 4 * 2**30]}}},
        },
        "flagship": {"status": "skipped", "reason": "there is no checkpoint"},
    }
    text = report(checks)
    for line in (
        "### A card",
        "| matrix product, bfloat16 | 500 TFLOP/s |",
        "| fast tests on `cuda` | 99 passed, 1 failed: `tests/a.py::test_b` |",
        "| SmolLM2-135M | 4 contexts | SDPA | 1.25 | 3 | 0.0040 |",
        "| SmolLM2-135M | 4 contexts | flash-attn | not run: ImportError: the package is not installed |  |  |",
        "| whole step | 6.00 (4.00–8.00) | 2.00 (2.00–2.00) | 3.00 (2.00–4.00) | 900 → 300 |",
        "| token-passes a second | 600 | 600 |  |  |",
        "| MFU, of the matrix product's rate | 10.0% | 30.0% |  |  |",
        "| peak memory, GiB | 8.00 | 2.00 | 4.0 |  |",
        "| SmolLM2-135M-Instruct | policy | 3.00 | 4.00 | 0.75 |",
        "| tests | failed | 50 | exit code 1; a \\| b |",
        "| flagship | skipped |  | there is no checkpoint |",
    ):
        assert line in text.splitlines(), line
    assert "Qwen3" not in text


def test_the_report_of_no_machine_says_why():
    assert "| prepare | failed | 3 | no CUDA device |" in report(
        {"prepare": {"status": "failed", "seconds": 3, "reason": "no CUDA device"}}
    )


def test_a_report_can_be_made_again_without_running(plan, monkeypatch, capsys):
    run_all((PREPARE, FINE), plan)
    monkeypatch.setattr(check, "run_all", None)
    monkeypatch.setattr(sys, "argv", ["check.py", "--report", "--output", str(plan.folder)])
    assert check.main() == 0
    assert "### A card" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "names", "minutes"),
    [
        ([], {each.name for each in check.CHECKS}, 15),
        (["--part", "1"], {"prepare", *(each.name for each in check.CHECKS if each.part == 1)}, 7.5),
        (["--only", "attention", "--minutes", "3"], {"prepare", "attention"}, 3),
        (["--part", "2", "--only", "attention", "flagship"], {"prepare", "flagship"}, 7.5),
        (["--cpu"], {each.name for each in check.CHECKS}, None),
    ],
    ids=["both", "a part", "one", "some of a part", "cpu"],
)
def test_a_part_of_the_checks_can_be_asked_for(tmp_path, monkeypatch, argv, names, minutes):
    called = []
    monkeypatch.setattr(check, "run_all", lambda *arguments: called.append(arguments) or Results(tmp_path))
    monkeypatch.setattr(sys, "argv", ["check.py", *argv, "--output", str(tmp_path)])
    assert check.main() == 0
    ((checks, plan, given),) = called
    assert {each.name for each in checks} == names and given == minutes and plan.cpu == ("--cpu" in argv)


def test_the_page_names_the_command():
    for place in ("docs/PERFORMANCE.md", "research/gpu/README.md"):
        assert "make gpu-check" in Path(check.ROOT, place).read_text("utf-8")
