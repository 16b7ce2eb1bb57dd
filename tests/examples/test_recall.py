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

"""examples/recall.py on a tiny pair."""

import re
import sys

import pytest
import torch
from rich.console import Console
from tiny import make_documents

from examples import recall
from trl_gist import GistCompactor


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return tmp_path_factory.mktemp("recall") / "pair"


@pytest.fixture
def compactor(pair, make_trainer):
    if not pair.exists():
        args = {"context_length": 100, "target_kinds": {"fact": 3, "recall": 1}, "output_dir": str(pair)}
        make_trainer(args=args).save_model()
    return GistCompactor.from_pretrained(pair, device="cpu")


def greedy(model, prompt, length, stop):
    written = []
    while len(written) < length and stop not in written:
        with torch.no_grad():
            written.append(model(torch.tensor([prompt + written])).logits[0, -1].argmax().item())
    return [token for token in written if token != stop]


def test_a_target_is_recalled_greedily_from_the_gist_and_its_cue(compactor):
    (window,) = recall.first_windows(compactor, make_documents(1)[0], 1)
    gist = compactor.compress_batch([window["context_ids"]])[0].token_ids
    kinds = [target["kind"] for target in window["targets"]]
    assert kinds.count("fact") > kinds.count("recall") > 0
    for gist_ids in (gist, []):
        for target, text in zip(window["targets"], recall.recalled(compactor, window, gist_ids), strict=True):
            prompt = compactor.prompts.generator(gist_ids, target["cue_ids"])
            length, stop = len(target["target_ids"]), compactor.tokenizer.eos_token_id
            assert text == compactor.decode(greedy(compactor.generator, prompt, length, stop))


def test_every_target_of_the_first_windows_is_shown(compactor, pair, tmp_path, monkeypatch, capsys):
    text = " ".join(make_documents(4))
    (tmp_path / "notes.txt").write_text(text)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["recall.py", str(pair), str(tmp_path / "notes.txt"), "--windows", "2"])
    recall.main()
    printed = capsys.readouterr().out
    windows = recall.first_windows(compactor, text, 2)
    assert len(windows) == 2 and len(re.findall(r"^  gist, \d+ tokens: ", printed, re.MULTILINE)) == 2
    for window in windows:
        assert window["prompt"].strip()[:60] in printed
        for target in window["targets"]:
            wanted = compactor.decode(target["target_ids"]).strip()
            assert any(wanted in line and target["kind"] in line for line in printed.splitlines()), wanted


def test_what_is_word_for_word_is_green(compactor, monkeypatch):
    (window,) = recall.first_windows(compactor, make_documents(1)[0], 1)
    right = [compactor.decode(target["target_ids"]) for target in window["targets"]]
    monkeypatch.setattr(recall, "recalled", lambda compactor, window, gist: right if gist else [" no"] * len(right))
    console = Console(width=300, force_terminal=True, color_system="standard", highlight=False)
    with console.capture() as capture:
        recall.print_window(console, compactor, window)
    green, red = "\x1b[32m", "\x1b[31m"
    assert capture.get().count(green) >= len(right) and capture.get().count(red) == len(right)
