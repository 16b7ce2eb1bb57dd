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

"""research/performance on a tiny model: the counts are exact, the times add up."""

import argparse
import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from serving_run import running
from tiny import FAMILIES, make_model
from tiny_sessions import CONTEXT, make_compactor

from research.performance import compress, growth, inference, serve, step_vs_trl, workload
from research.scaling import memory


@pytest.fixture
def run(checkpoint, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "wikipedia_articles", lambda: documents)
    files = {"output": str(tmp_path / "out" / "costs.json"), "plot": str(tmp_path / "out" / "costs.svg")}

    def run(**overrides):
        settings = {"contexts": [32, 64], "tokens": 5, "gist": 4, "last_k": 8, "repeats": 2, "dtype": "float32"}
        return inference.main(
            argparse.Namespace(**{"model": checkpoint, "pair": None, **settings, **files, **overrides})
        )

    return run


def test_inference_costs_count_the_cache_and_charge_the_gist_once(run, tmp_path, capsys):
    report = run()
    token_mib = 2 * 2 * 2 * 8 * 4 / 2**20  # keys and values, layers, heads, head size, bytes
    for length, costs in report.items():
        full, compress, gist = (costs[name] for name in ("full", "compress", "gist"))
        assert full["tokens_read"] == [length] * 2
        # The last token written is never read
        for cost, written in ((full, 5), (compress, 4), (gist, 5)):
            assert cost["kv_mib"] == [(read + written - 1) * token_mib for read in cost["tokens_read"]]
            for first, speed, whole in zip(cost["first_token_s"], cost["tokens_per_s"], cost["whole_s"], strict=True):
                assert first + (written - 1) / speed == pytest.approx(whole)
        written_first = [a + b for a, b in zip(compress["whole_s"], gist["first_token_s"], strict=True)]
        assert gist["written_first_s"] == written_first
    saved = json.loads(Path(tmp_path, "out", "costs.json").read_text())["costs"]
    assert saved == {str(length): costs for length, costs in report.items()}
    assert "gist written first" in Path(tmp_path, "out", "costs.svg").read_text()
    assert "continuations until time is saved" in capsys.readouterr().out


def test_inference_refuses_a_context_beyond_the_positions(run):
    with pytest.raises(SystemExit, match="takes .* positions.*the model has 512.*Leave this length out"):
        run(contexts=[32, 508])


def test_inference_times_a_saved_pair_at_its_own_window(make_trainer, run):
    trainer = make_trainer()
    trainer.save_model()
    report = run(model=None, pair=trainer.args.output_dir, gist=None, last_k=None)
    args, prompts = trainer.args, trainer.prompts
    read = prompts.generator_overhead + args.max_completion_length + args.last_k
    specials = args.max_completion_length  # an untrained gist may hold some, which never reach the generator
    assert all(read - specials <= tokens <= read for tokens in report[32]["gist"]["tokens_read"])


@pytest.fixture
def arguments(checkpoint, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(workload, "wikipedia_articles", lambda: documents)
    sizes = {"context": 24, "target": 8, "last_k": 4, "gist": 6, "documents": 2, "gists": 4, "score_batch_size": 4}
    report = str(tmp_path / "out" / "report.json")
    return argparse.Namespace(
        **sizes,
        model=checkpoint,
        text=None,
        dtype="float32",
        repeats=1,
        full=False,
        output=report,
        no_memory=True,
        measure_memory=None,
        profile=False,
    )


@pytest.mark.parametrize("full", [False, True], ids=["LoRA", "full"])
def test_step_vs_trl_times_both_and_counts_their_token_passes(arguments, full, capsys):
    arguments.full = full
    step_vs_trl.main(arguments)
    report = json.loads(Path(arguments.output).read_text())
    for kind in ("naive_s", "gist_s"):
        (whole,) = report["phases"]["whole step"][kind]
        assert whole == pytest.approx(sum(report["phases"][phase][kind][0] for phase in report["phases"]) - whole)
    naive, ours = report["phases"]["policy"]["token_passes"]
    assert naive - ours == 2 * (4 - 1) * (naive // (2 * 4) - 6)  # the prompt, read once instead of four times
    for kind in ("naive", "gist"):
        work = {
            phase: report["reached_flops"][kind][phase] * found[f"{kind}_s"][0]
            for phase, found in report["phases"].items()
        }
        assert work.pop("whole step") == pytest.approx(sum(work.values()))
    assert "TRL + reward function" in capsys.readouterr().out


def test_growth_measures_the_crossing_of_its_axes_once(arguments, tmp_path, monkeypatch):
    measured = []
    measure = growth.measure
    monkeypatch.setattr(growth, "measure", lambda *args: measured.append(args) or measure(*args))
    arguments = argparse.Namespace(
        **{**vars(arguments), "documents": 1, "repeats": 1},
        gists_axis=[2, 4],
        context_axis=[16, 24],
        gist_only=False,
        naive_gists=2,
        naive_context=16,
        plot=str(tmp_path / "out" / "growth.svg"),
    )
    growth.main(arguments)
    found = json.loads(Path(arguments.output).read_text())["seconds_a_document"]
    assert [list(found[axis][kind]) for axis in found for kind in ("gist", "naive")] == [
        ["2", "4"],
        ["2"],
        ["16", "24"],
        ["16"],
    ]
    assert found["gists"]["gist"]["4"] == found["context"]["gist"]["24"]
    assert len(measured) == 5
    assert "tokens of a context" in Path(arguments.plot).read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_of_each_family_there_is_next_to_no_model(tokenizer, family):
    config = memory.smallest(make_model(tokenizer, family=family).config)
    model = FAMILIES[family][1](config)
    assert len(model.model.layers) == 1
    model(torch.tensor([[7, 8, 9]]))


def test_on_a_gpu_a_step_is_timed_by_events_that_nobody_waits_for(monkeypatch):
    clock = iter(range(100))

    class Event:
        synchronized = []

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def synchronize(self):
            self.synchronized.append(running)

        def elapsed_time(self, stop):
            return 1000 * (stop.at - self.at)

    class Trainer:
        def train(self):
            nonlocal running
            running = True
            self.training_step()
            running = False

        def training_step(self):
            self._generate(), self._calculate_rewards(), self._generate()

        def _generate(self):
            pass

        def _calculate_rewards(self):
            pass

    running = False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    seconds = workload.Timed(Trainer(), {}).step()
    # Events 0 to 7: the step's own around those of three calls
    assert seconds == {"sample": 2, "score + distil": 1, "policy": 4, "whole step": 7}
    assert Event.synchronized and not any(Event.synchronized)


@pytest.fixture
def tiny_pair(make_trainer, tmp_path):
    make_trainer(args={"output_dir": str(tmp_path / "pair")}).save_model()
    return str(tmp_path / "pair")


def test_compressing_is_timed_beside_reading(tiny_pair, documents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compress, "wikipedia_articles", lambda: documents)
    output = tmp_path / "rates.json"
    argv = ["compress.py", tiny_pair, "--contexts", "5", "--batch_sizes", "1", "4", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--output", str(output)])
    monkeypatch.setenv("COLUMNS", "60")
    compress.main()
    rates = json.loads(output.read_text())
    assert set(rates) == {"1", "4"}
    for row in rates.values():
        assert 0 < row["overhead"] < 1
        assert 0 < row["gist_tokens"] <= 6
    assert "merely read" in capsys.readouterr().out


def test_clients_of_a_server_ask_for_other_contexts_and_errors_are_counted(documents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serve, "wikipedia_articles", lambda: documents)
    compactor = make_compactor()
    compactor.tokenizer.save_pretrained(tmp_path)
    compactor.pair.save(tmp_path)
    contexts = list(itertools.islice(serve.contexts_of(tmp_path), 9))
    assert {len(context) for context in contexts} == {CONTEXT} and len({*map(tuple, contexts)}) == 9
    with running(compactor, max_requests=4) as url:
        asked = [*contexts, [10**9]]
        rows = [asyncio.run(serve.measure(url, psutil.Process(), clients, asked)) for clients in (4, 1)]
        with pytest.raises(SystemExit, match="Of 1 requests none was answered"):
            asyncio.run(serve.measure(url, psutil.Process(), 1, asked[-1:]))
    for clients, row in zip((4, 1), rows, strict=True):
        assert (row["clients"], row["requests"], row["errors"]) == (clients, 10, 1)
        assert row["tokens_per_s"] == pytest.approx(CONTEXT * row["gists_per_s"])
        assert 0 < row["p50_s"] <= row["p95_s"]
    serve.print_table(rows)
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert "| times 4 at a time |" in head and [line[:14] for line in lines] == ["| 4 | 10 | 1 |", "| 1 | 10 | 1 |"]


def test_the_clock_counts_the_models_seconds_alone():
    class Slow(torch.nn.Linear):
        device = torch.device("cpu")

        def forward(self, x):
            time.sleep(0.05)
            return super().forward(x)

    model = Slow(2, 2)
    clock = compress.ForwardClock(model)
    for _ in range(3):
        model(torch.zeros(1, 2))
        time.sleep(0.05)
    clock.remove()
    model(torch.zeros(1, 2))
    assert clock.forwards == 3
    assert 0.15 <= clock.seconds < 0.28, "the sleeps between forwards are not the model's"
