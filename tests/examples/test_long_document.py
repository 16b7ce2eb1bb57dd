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

"""examples/long_document.py on a tiny pair."""

import sys

from examples import long_document


def test_the_long_document_lists_every_compaction(make_trainer, documents, tmp_path, monkeypatch, capsys):
    make_trainer(args={"output_dir": str(tmp_path / "pair")}).save_model()
    monkeypatch.setattr(long_document, "wikipedia_articles", lambda: documents)
    plot = tmp_path / "long.png"
    argv = [
        "long_document.py",
        str(tmp_path / "pair"),
        "--tokens",
        "200",
        "--step",
        "50",
        "--new_tokens",
        "4",
        "--measure",
    ]
    monkeypatch.setattr(sys, "argv", [*argv, "--plot", str(plot)])
    long_document.main()
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if "CPU s/1k" in line]
    assert [int(line.split()[0]) for line in steps] == [50, 100, 150, 200]
    compactions = int(steps[-1].split()[-1])
    listed = [line for line in lines if "→" in line]
    # What G writes in the end may fold once more
    assert compactions <= len(listed) <= compactions + 1
    assert compactions >= (200 - 24) // 13
    assert plot.stat().st_size > 1000
