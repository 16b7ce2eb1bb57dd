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

"""Texts of one's own, as the examples that take a file read them."""

import re
import runpy
import sys

import pytest


@pytest.mark.parametrize(
    "example, flags",
    [("recall", ["PAIR", "FILE"]), ("minimal_loop", ["--texts", "FILE"]), ("serving_client", ["--file", "FILE"])],
)
@pytest.mark.parametrize(
    "content, told",
    [
        ("Холера была в Лондоне в 1854 году.".encode("cp1251"), "no UTF-8 .byte 0xd5 in line 1.* saved in UTF-8"),
        (None, "No such file"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_is_no_text_is_an_error_of_its_flag(example, flags, content, told, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "notes.txt").write_bytes(content)
    flags = [str(tmp_path / "notes.txt") if flag == "FILE" else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", [f"{example}.py", *flags])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(f"examples.{example}", run_name="__main__")
    assert exit.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(f"error: argument .*notes.txt.*{told}|error: argument .*{told}.*notes.txt", said), said
