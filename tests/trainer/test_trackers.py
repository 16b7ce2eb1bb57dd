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

"""What arrives in trackers: every measure, and with `log_completions` the gists as they read."""

import html
import json
import re
import sys

import pandas
import pytest
from datasets import Dataset
from tiny import make_documents


# A rollout's own, the generator's and an evaluation's
MEASURES = ("train/teacher_kl", "train/generator/grad_norm", "train/rewards/kl_gain/mean")
HELD_OUT = ("eval/teacher_kl", "eval/gap_closed_null_se")
COLUMNS = ["step", "prompt", "completion", "kl_gain", "length_penalty", "teacher_kl", "advantage"]


@pytest.fixture
def train(make_trainer, lora, tmp_path):
    """Trains two steps with a tracker: the trainer, and the table of completions of each step."""

    def run(tracker, **args):
        trainer = make_trainer(
            peft_config=lora,
            eval_dataset=Dataset.from_dict({"text": make_documents(4, seed=9)}),
            args={"report_to": tracker, "log_completions": True, "num_completions_to_print": 0, **args},
        )
        trainer.train()
        tables = {
            step: pandas.read_parquet(tmp_path / "run" / "completions" / f"completions_{step:05d}.parquet")
            for step in (1, 2)
        }
        for step, table in tables.items():
            assert list(table) == COLUMNS and set(table["step"]) == {step} and len(table) == 8
            assert all(text in "".join(make_documents(12)) for text in table["prompt"])
            assert all(isinstance(gist, str) for gist in table["completion"]) and any(table["completion"])
        return trainer, tables

    return run


def test_wandb_gets_measures_and_gists(train, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        trainer, tables = train("wandb")
        trainer.evaluate()
        summary = dict(wandb.run.summary)
        files = [json.loads(file.read_text("utf-8")) for file in tmp_path.glob("wandb/offline-run-*/**/*.table.json")]
    finally:
        wandb.finish()
    logged = {f"train/{name}": value for name, value in trainer.state.log_history[1].items()}
    logged |= {name.replace("eval_", "eval/", 1): value for name, value in trainer.state.log_history[-1].items()}
    for name in (*MEASURES, *HELD_OUT):
        assert summary[name] == pytest.approx(logged[name], rel=1e-6)
    for table in tables.values():
        assert {"columns": COLUMNS, "data": table.values.tolist()} in files


def test_trackio_gets_measures_and_gists(train, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for name, module in list(sys.modules.items()):  # TRL has imported it, and with that its TRACKIO_DIR is read
        if name.startswith("trackio.") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    try:
        trainer, tables = train("trackio", project="tiny", run_name="both")
        trainer.evaluate()  # the run, which has been closed, goes on
    finally:
        trackio.finish()
    (run,) = SQLiteStorage.get_runs("tiny")
    entries = SQLiteStorage.get_logs("tiny", run)
    assert {name for entry in entries for name in entry} >= {*MEASURES, *HELD_OUT}
    shown = [entry["completions"]["_value"] for entry in entries if "completions" in entry]
    for table in tables.values():
        assert table.to_dict("records") in shown


def test_tensorboard_gets_measures_and_gists(train, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugin_util import markdown_to_safe_html

    trainer, tables = train("tensorboard")
    trainer.evaluate()
    tags, texts = set(), {}
    for file in sorted((tmp_path / "run").rglob("events.out.tfevents*")):  # of training, and of what came after
        events = accumulator.EventAccumulator(str(file)).Reload()
        tags |= set(events.Tags()["scalars"])
        for event in events.Tensors("completions/text_summary"):
            texts.setdefault(event.step, event.tensor_proto.string_val[0].decode())
    assert tags >= {*MEASURES, *HELD_OUT}
    for step, table in tables.items():
        page = markdown_to_safe_html(texts[step])
        head, *rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in page.split("<tr>")[1:])
        assert list(map(html.unescape, head)) == COLUMNS and not re.search(
            r"<(?!/?(table|thead|tbody|tr|t[hd])\b)", page
        )
        for row, gist, gain in zip(rows, table["completion"], table["kl_gain"], strict=True):
            assert html.unescape(row[2]).split() == shown(gist).split()
            assert float(html.unescape(row[3])) == pytest.approx(gain, rel=1e-3)


def shown(text):
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def test_nothing_in_a_gist_is_markup(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.plugin_util import markdown_to_safe_html
    from transformers.integrations import TensorBoardCallback

    from trl_gist.trainer.callbacks import show_in_tensorboard

    class Writer(list):
        def add_text(self, tag, text, step):
            self.append((tag, text, step))

        def flush(self):
            pass

    gists = [
        "a | b",
        "*is* _it_ **so** `x`",
        "<b>1854</b> & <|im_end|>",
        "---",
        "[x](y)",
        "two\nlines\x04",
        "東京 1 + 1",
        "",
    ]
    pandas.DataFrame({"completion": gists, "reward": [None, *[0.5] * 7]}).to_parquet(tmp_path / "table.parquet")
    callback = TensorBoardCallback(Writer())
    show_in_tensorboard([callback], tmp_path / "table.parquet", 3, one_a_context=False)
    ((tag, text, step),) = callback.tb_writer
    page = markdown_to_safe_html(text)
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    assert (tag, step) == ("completions", 3) and cells[::2] == [shown(gist) for gist in gists]
    assert cells[1::2] == ["nan", *["0.5"] * 7]
