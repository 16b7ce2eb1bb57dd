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

"""The notebook, run as a reader runs it, on a tiny model."""

import json

import nbformat
import pytest
from launching import ROOT
from nbclient import NotebookClient
from tiny import make_documents


NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
AFTERWARDS = """
import math
assert trainer.state.global_step == steps == 4
assert 0 < after["eval_teacher_kl"] != before["eval_teacher_kl"] and math.isfinite(after["eval_teacher_kl_se"])
assert len(gists_before) == len(trainer.last_gists) > 0
assert len(gists) > 1 and all(0 < len(gist.token_ids) <= 12 for gist in gists) and any(gist.kept for gist in gists)
assert continuation.gist.context_tokens == 128 and len(continuation.token_ids) <= 48
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in cells if cell.outputs or cell.execution_count is not None] == []


def test_the_notebook_trains_looks_and_compresses(notebook, checkpoint, tmp_path, monkeypatch):
    pairs = zip(make_documents(12), make_documents(12, seed=1), strict=True)  # each of some 300 tokens
    documents = [" ".join(pair) for pair in pairs]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    (at,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    names = {"model": checkpoint, "my_file": str(file), "steps": 4}
    assert all(f"{name} = " in notebook.cells[at].source for name in names)
    values = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    for place, source in ((at + 1, values), (len(notebook.cells) + 1, AFTERWARDS)):
        notebook.cells.insert(place, nbformat.v4.new_code_cell(source))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    shown = "".join(data.get("text/html", "") for data in outputs)
    assert all(words in shown for words in ("KL(teacher ‖ generator)", "gist after", "of tokens", "report.html"))
    for file in ("gist_config.json", "report.html", "generator/adapter_model.safetensors"):
        assert (tmp_path / "quickstart-pair" / file).is_file()
