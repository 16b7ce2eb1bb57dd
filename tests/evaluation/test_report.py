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

"""The page of a run: it holds the run's figures, escapes what models write, loads nothing, and says what it lacks."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import make_documents
from transformers import TrainerCallback

from trl_gist.cli.main import main
from trl_gist.common.run_files import read_entries


pytest.importorskip("matplotlib")

from trl_gist.evaluation.run_report.plots import draw_run, series
from trl_gist.evaluation.run_report.report import MARKER, render, write_report
from trl_gist.evaluation.run_report.run_folder import read_run


ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """A page's text, elements and tables; raises if its elements do not nest."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.pieces, self.rows, self.headings = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.pieces.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if {"h1", "h2", "h3"} & set(self.open):
            self.headings[-1] += data

    def row(self, label):
        return next(row[1:] for row in self.rows if row and row[0] == label)


@pytest.mark.parametrize(
    "path",
    [
        "/home/someone/base",
        "C:\\Users\\someone\\base",
        "~/someone/base",
        "../someone/base",
        "/home/someone/my runs/base",
    ],
)
def test_no_folder_of_any_machine_is_on_the_page(make_folder, path):
    changed = {
        **{"teacher_cache_dir": path, "deepspeed": {"offload": [path]}, "resume_from_checkpoint": path},
        **{"model_init_kwargs": {"cache_dir": path}, "summarizer_prompt": "/no_think {context}"},
    }
    folder = make_folder(base_models={"summarizer": path, "generator": "user/g", "teacher": path}, changed=changed)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "someone" not in page and str(folder.parent) not in page
    assert "base" in page and "/no_think {context}" in page and "user/g" in page


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint):
    """A folder of a run that was evaluated, trained for six steps and evaluated again; and what it measured."""
    from peft import LoraConfig

    from trl_gist import GistConfig, GistTrainer

    folder = tmp_path_factory.mktemp("runs") / "tiny run"
    trainer = GistTrainer(
        model=checkpoint,
        args=GistConfig(
            **{"output_dir": str(folder), "context_length": 24, "target_length": 8, "last_k": 4, "max_steps": 6},
            **{"max_completion_length": 6, "num_generations": 4, "per_device_train_batch_size": 8, "logging_steps": 1},
            **{"learning_rate": 1e-2, "save_strategy": "no", "report_to": "none", "bf16": False, "use_cpu": True},
            **{"gradient_checkpointing": False, "disable_tqdm": True, "gist_samples_steps": 3, "seed": 7},
            cold_start_steps=0,
        ),
        train_dataset=Dataset.from_dict({"text": make_documents(6)}),
        eval_dataset=Dataset.from_dict({"text": make_documents(5, seed=1)}),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    before, _, after = trainer.evaluate(), trainer.train(), trainer.evaluate()
    return folder, before, after


@pytest.fixture
def make_folder(tmp_path):
    """A run's folder with given logs and gists, as `RunLog` writes them."""

    def make(metrics=(), gists=(), **info):
        log = tmp_path / "run" / "run_log"
        log.mkdir(parents=True, exist_ok=True)
        run = {
            **{"started": "2026-01-02T03:04:05+0000", "resumed": [], "ended": None, "max_steps": 100, "windows": {}},
            **{"base_models": {}, "recipe": {}, "changed": {}, "rewards": {}, "environment": {"python": "3"}, **info},
        }
        (log / "run.json").write_text(json.dumps(run))
        for name, entries in (("metrics", metrics), ("gists", gists)):
            (log / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return tmp_path / "run"

    return make


def page_of(folder):
    return Page(render(read_run(folder)))


def steps(count, **columns):
    """Logs of training: each column a value, or a function of the step."""
    return [
        {"step": step, **{name: value(step) if callable(value) else value for name, value in columns.items()}}
        for step in range(1, count + 1)
    ]


def evaluation(step, prefix="eval_", **measures):
    measures = {"gain_over_null": 0.1, "gain_over_null_se": 0.02, "teacher_kl": 0.5, **measures}
    return {"step": step, **{f"{prefix}{name}": value for name, value in measures.items()}}


# ---- A real run ----


def test_the_page_of_a_run_holds_its_figures(finished, capsys):
    folder, before, after = finished
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.headings[0] == "tiny run" and "finished: step 6 of 6" in page.text
    for label, name, digits in (
        ("KL(teacher ‖ generator), with the gist", "teacher_kl", 3),
        ("the same with an empty gist", "null_teacher_kl", 3),
        ("NLL, teacher: last K+|Z|", "nll_tail", 3),
        ("the gist's gain over an empty gist", "gain_over_null", 3),
        ("tokens a gist", "gist_length", 1),
    ):
        expected = [
            f"{m[f'eval_{name}']:.{digits}f} ± {m[f'eval_{name}_se']:.{digits}f}".replace("-", "−")
            for m in (before, after)
        ]
        assert page.row(label) == expected
    assert f"{before['eval_teacher_kl']:.3f} → {after['eval_teacher_kl']:.3f}" in page.text
    assert f"{after['eval_windows']} held-out windows of 5 documents" in page.text
    assert page.row("learning_rate") == ["0.01"] and page.row("trl")[0].startswith("1.16")
    figures = ["Distance to the teacher", "What the gist buys", "Against each control", "Gist length", "Reward"]
    assert page.headings[page.headings.index("Curves") + 1 :][:5] == figures
    assert sum(tag == "svg" for tag, _ in page.elements) >= 8
    assert len(html.encode()) < 1_000_000 and "lacks" not in page.text


def test_the_gallery_shows_each_context_at_each_step(finished):
    folder, _, _ = finished
    html = render(read_run(folder))
    table = html[html.index('<table class="gallery">') :]
    table = Page(table[: table.index("</table>") + 8])
    run = json.loads((folder / "run_log" / "run.json").read_text())
    assert table.rows[0] == ["context", "step 0", "step 3", "step 6"]
    assert len(table.rows) == 1 + 4
    gists, _ = read_entries(folder / "run_log" / "gists.jsonl")
    for row, (name, window) in zip(table.rows[1:], run["windows"].items(), strict=True):
        assert window["target"].strip() in row[0]
        for cell, step in zip(row[1:], (0, 3, 6), strict=True):
            of_cell = [gist for gist in gists if (gist["window"], gist["step"]) == (name, step)]
            assert f"{of_cell[0]['gist_length']} tokens" in cell
            assert ("gain " in cell) == (step in (0, 6))  # the evaluations' come with their scores


def test_the_page_loads_nothing_and_runs_nothing(finished):
    folder, _, _ = finished
    html = render(read_run(folder))
    for tag, attributes in Page(html).elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value.startswith("#"), (tag, name, value)
    assert "http" not in html.replace('lang="en"', "") and "@import" not in html
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_every_reference_has_its_target(finished, make_folder):
    metrics = [*steps(9, teacher_kl=0.5, **{"alarm/collapse": lambda step: float(step == 4)}), evaluation(9)]
    for folder in (finished[0], make_folder(metrics)):
        html = render(read_run(folder))
        ids = [attributes["id"] for _, attributes in Page(html).elements if "id" in attributes]
        assert len(ids) == len(set(ids)) > 20
        references = re.findall(r'(?:url\(|href=")#([^")]*)', html)
        assert references and set(references) <= set(ids)


# ---- What models and users write ----


def test_what_a_model_wrote_is_text(make_folder):
    attack = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"</svg></td>"
    folder = make_folder(
        [*steps(3, **{f"signal/{attack}$x_$": 1.0, f"alarm/{attack}": 1.0}), evaluation(3)],
        [{"step": 0, "window": "w", "gist": attack + "\x00\u202e\n", "gist_length": 4}],
        windows={"w": {"document_id": attack, "context": attack, "last_k": attack, "target": attack}},
        base_models={"summarizer": attack},
        changed={attack: attack},
        environment={attack: attack},
    )
    html = render(read_run(folder.rename(folder.with_name("<b>run"))))
    page = Page(html)
    assert {tag for tag, _ in page.elements} & {"script", "img", "b"} <= {"b"}
    assert page.headings[0] == "<b>run"
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert "\x00" not in html
    assert page.text.count("alert('x')") >= 10  # gallery, figures, alarms, config, environment
    cell = next(row[1] for row in page.rows if row and "whole context" in row[0])
    assert cell.startswith(attack + "␀\u202e↵")


def test_words_from_the_context_are_marked_and_counted(make_folder):
    folder = make_folder(
        gists=[{"step": 2, "window": "w", "gist": "Radium, warsaw; dog 1903", "gist_length": 9}],
        windows={
            "w": {"document_id": 1, "context": "born in Warsaw: radium (1903)", "last_k": "(1903)", "target": "."}
        },
    )
    html = render(read_run(folder))
    assert re.findall("<mark>(.*?)</mark>", html) == ["Marked", "Radium", "warsaw", "1903"]
    assert "3 of 4 words kept" in Page(html).text


def test_an_unchanged_gist_points_back_and_a_long_gallery_keeps_first_and_last(make_folder):
    gists = [
        {"step": step, "window": "w", "gist": "same" if step < 10 else f"gist{step}", "gist_length": 1}
        for step in range(0, 400, 5)
    ]
    windows = {"w": {"document_id": 1, "context": "c", "last_k": "c", "target": "t"}}
    page = page_of(make_folder(gists=gists, windows=windows))
    heading = next(row for row in page.rows if row[0] == "context")
    assert len(heading) == 17 and heading[1] == "step 0" and heading[-1] == "step 395"
    assert "16 of 80 steps" in page.text
    page = page_of(make_folder(gists=gists[:2], windows=windows))
    assert (
        "as at step 0" in page.text and page.text.count("same") == 3
    )  # "The same held-out contexts", the gist, and it again beside its context


# ---- Killed, running, evaluated, damaged ----


def test_a_killed_or_running_run_is_called_so(make_folder):
    folder = make_folder(steps(13, teacher_kl=0.5, time=1.0))
    page = page_of(folder)
    assert "not finished: step 13 of 100" in page.text and "still running, or killed" in page.text
    assert "No evaluation on held-out documents" in page.text
    with open(folder / "run_log" / "metrics.jsonl", "a") as log:
        log.write('{"step": 14, "teach')
    page = page_of(folder)
    assert "not finished: step 13 of 100" in page.text and "1 unreadable line, left out" in page.text


def test_a_run_killed_in_truth_has_its_page(make_trainer, lora, documents, tmp_path):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    trainer = make_trainer(peft_config=lora, callbacks=[Kill()], args={"max_steps": 8})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    page = Page(write_report(tmp_path / "run").read_text())
    assert "not finished: step 2 of 8" in page.text
    assert "Distance to the teacher" in page.headings


def test_a_run_that_was_only_evaluated(make_folder):
    page = page_of(make_folder([evaluation(0, gain_over_shuffled=-0.3, gain_over_shuffled_se=0.1)]))
    assert "evaluated, not trained" in page.text
    assert "No training step is logged" in page.text and "One evaluation only, at step 0" in page.text
    assert "beats an empty gist by 0.100 ± 0.020; it loses to another document's gist by 0.300 ± 0.100" in page.text
    assert [heading for heading in page.headings if "control" in heading] == ["Against each control"]


def test_a_run_that_has_just_begun(make_folder):
    page = page_of(make_folder())
    assert "nothing logged yet" in page.text and "No training step is logged" in page.text
    assert not [tag for tag, _ in page.elements if tag == "svg"]


def test_gaps_are_named(make_folder):
    page = page_of(make_folder([log for log in steps(20, teacher_kl=0.5) if not 7 < log["step"] < 12]))
    assert "Nothing is logged between the steps 7 and 12." in page.text
    assert page.text.count("Nothing is logged") == 1
    page = page_of(make_folder(steps(20, teacher_kl=0.5)[9:]))
    assert "Nothing is logged before step 10." in page.text


def test_an_effect_within_its_error_is_not_called_a_win(make_folder):
    page = page_of(make_folder([evaluation(0), evaluation(9, gain_over_null=0.03, gain_over_null_se=0.02)]))
    assert "is within two standard errors of an empty gist (0.030 ± 0.020)" in page.text
    assert "beats" not in page.text
    page = page_of(make_folder([evaluation(9, gain_over_null_se=None)]))  # one document: no standard error
    assert "standard error unknown" in page.text and "beats" not in page.text


def test_nan_leaves_a_gap_and_not_a_figure(make_folder):
    nan_at = {3, 4}
    metrics = steps(
        9, teacher_kl=lambda step: None if step in nan_at else 0.5, reward=None, entropy=lambda _: float("nan")
    )
    page = page_of(make_folder([*metrics, evaluation(9, teacher_kl=None, gain_over_shuffled=None)]))
    assert "Distance to the teacher" in page.headings and "Entropy of the summarizer" not in page.headings
    assert "nan" not in page.text.lower().split()
    assert page.row("KL(teacher ‖ generator), with the gist") == ["–"]
    assert list(series(metrics, "teacher_kl")[0]) == [1, 2, 5, 6, 7, 8, 9]


def test_evaluations_of_several_datasets_have_a_table_each(make_folder):
    metrics = [evaluation(5, "eval_news_", gain_over_null=0.2), evaluation(5, "eval_wiki_", gain_over_null=0.4)]
    page = page_of(make_folder(metrics))
    assert {"eval_news", "eval_wiki"} <= set(page.headings)
    gains = [row[1] for row in page.rows if row and row[0] == "the gist's gain over an empty gist"]
    assert gains == ["0.200 ± 0.020", "0.400 ± 0.020"]


def test_several_targets_are_counted_and_each_kind_has_a_table_with_what_is_exact(make_folder):
    recipe = {"target_kinds": {"fact": 3, "recall": 0.5}, "targets_per_context": 6}
    overall = evaluation(5, windows=30, contexts=8, documents=4, exact=0.25, nll_last_k=2.0)
    page = page_of(make_folder([overall | evaluation(5, "eval_fact/", exact=0.75, nll_last_k=3.0)], recipe=recipe))
    assert "On 30 targets of 8 held-out windows of 4 documents" in page.text
    assert "at most 6 targets a context: 3 fact, 0.5 recall" in page.text
    assert {"eval", "eval_fact"} <= set(page.headings)
    assert [row[1] for row in page.rows if row and row[0] == "NLL, teacher: cue alone"] == ["2.000", "3.000"]
    exact = [row[1] for row in page.rows if row and row[0] == "share of targets written token for token"]
    assert exact == ["0.250", "0.750"]
    plain = page_of(make_folder([evaluation(5, windows=8, documents=4)], recipe={"target_kinds": {"continuation": 1}}))
    assert "On 8 held-out windows of 4 documents" in plain.text and "targets" not in plain.text
    assert plain.row("NLL, teacher: last K") == ["–"] and "token for token" not in plain.text


def test_alarms_are_listed_with_step_and_figure(make_folder):
    metrics = steps(
        30,
        gist_length=lambda step: 20.0 - 0.5 * step,
        **{"alarm/short": lambda step: float(step >= 28), "alarm/quiet": 0.0},
    )
    page = page_of(make_folder(metrics))
    assert page.row("short") == ["3 of 30", "step 28", "step 30", "tokens a gist 6"]
    assert page.row("quiet") == ["0 of 30", "–", "–", "silent"]
    assert "1 of 2 alarms went off: short" in page.text


def test_figures_appear_with_their_scalars():
    scalars = {
        "length_penalty": lambda step: 1e-3 * step,
        "signal/a": 0.1,
        "noise/a": 0.1,
        "reliability/a": 0.5,
        "cold_start": 1.0,
    }
    titles = [plot.title for plot in draw_run(steps(5, **scalars), [], "eval_", {})]
    assert titles == ["The price of a token, λ", "Reward spread: signal and noise", "Reliability of the reward"]
    assert draw_run([], [], "eval_", {}) == draw_run(steps(5, length_penalty=1e-3), [], "eval_", {}) == []
    shaded = draw_run(steps(9, entropy=1.0, cold_start=lambda step: float(step < 4)), [], "eval_", {})
    plain = draw_run(steps(9, entropy=1.0, cold_start=0.0), [], "eval_", {})
    assert "cold start" in shaded[0].svg and "cold start" not in plain[0].svg


def test_a_long_run_stays_a_small_page(make_folder):
    names = ("teacher_kl", "null_teacher_kl", "log_prob_gain", "gist_length", "reward", "reward_std", "entropy")
    noisy = {name: lambda step: 1 + step * 7919 % 101 / 100 for name in names}
    metrics = steps(4_000, **noisy, **{"grad_norm": 1.0, "completions/min_length": 1, "completions/max_length": 9})
    html = render(read_run(make_folder(metrics + [evaluation(step) for step in range(0, 4_001, 100)])))
    assert len(html.encode()) < 1_000_000
    assert "All 41 evaluations" in html


# ---- Folders without a log, and the command ----


def test_without_a_log_the_checkpoint_and_the_pair_speak(make_trainer, lora, documents, tmp_path):
    trainer = make_trainer(
        peft_config=lora, eval_dataset=documents.select(range(4)), args={"save_strategy": "steps", "save_steps": 2}
    )
    trainer.train()
    measured = trainer.evaluate()
    trainer.save_model()
    for path in (tmp_path / "run" / "run_log").iterdir():
        path.unlink()
    page = page_of(tmp_path / "run")
    assert "has no run_log/: the curves are those of checkpoint-2" in page.text
    assert "Distance to the teacher" in page.headings
    assert page.row("NLL, generator: gist") == [
        f"{measured['eval_nll_gist']:.3f} ± {measured['eval_nll_gist_se']:.3f}"
    ]


@pytest.fixture
def fails(capsys):
    def run(*argv):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in argv])
        captured = capsys.readouterr()
        assert stopped.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
        return captured.err

    return run


def test_a_folder_without_a_run_is_refused(tmp_path, fails):
    assert "holds no run" in fails("report", tmp_path)
    assert "is no folder" in fails("report", tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", '{"started": "20', "[]", "null"])
@pytest.mark.parametrize("file", ["run_log/run.json", "gist_config.json"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, fails, file, content):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    assert f"{tmp_path / file} is damaged: it " in fails("report", tmp_path)


def test_only_an_earlier_report_is_overwritten(make_folder, tmp_path, fails, capsys):
    folder, page = make_folder(), tmp_path / "page.html"
    assert main(["report", str(folder), "--output", str(page)]) == 0
    assert MARKER in page.read_text()
    assert main(["report", str(folder), "--output", str(page)]) == 0
    page.write_text("<!doctype html>my own page")
    capsys.readouterr()
    assert "is not a report of trl-gist" in fails("report", folder, "--output", page)
    assert page.read_text() == "<!doctype html>my own page"
    assert main(["report", str(folder), "--output", str(page), "--overwrite"]) == 0
    assert MARKER in page.read_text()
    capsys.readouterr()
    assert "there is no such folder" in fails("report", folder, "--output", tmp_path / "no" / "page.html")
    assert "Is a directory" in fails("report", folder, "--output", tmp_path)


def test_without_matplotlib_the_command_names_the_extra(make_folder, fails, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "trl_gist[eval]"' in fails("report", make_folder())


# ---- Trackers ----


def test_tensorboard_gets_every_scalar(make_trainer, lora, documents, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = make_trainer(
        peft_config=lora, eval_dataset=documents.select(range(4)), args={"report_to": "tensorboard", "max_steps": 3}
    )
    trainer.train()
    trainer.evaluate()
    events = {}
    for path in (tmp_path / "run").rglob("events.out.tfevents*"):
        reader = accumulator.EventAccumulator(str(path))
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            events.setdefault(tag, {}).update({event.step: event.value for event in reader.Scalars(tag)})
    for log in read_entries(tmp_path / "run" / "run_log" / "metrics.jsonl")[0]:
        for name, value in log.items():
            if name in ("step", "time") or value is None or "train_" in name:
                continue
            tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            assert events[tag][log["step"]] == pytest.approx(value, rel=1e-6), tag
