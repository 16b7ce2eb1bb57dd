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

"""A document of any length: its windows are those of its ids as a whole, and never in memory together."""

import json
import os
import subprocess
import sys

import pytest
from any_text import TOKENIZERS
from datasets import Dataset
from tiny import PARAGRAPH, make_documents

from trl_gist.common.geometry import Geometry
from trl_gist.common.tokens import literal_ids, written_ids
from trl_gist.data import windows as windows_module
from trl_gist.data.targets import TargetSpec
from trl_gist.data.windows import WindowSpec, prepare_windows


GEOMETRY = Geometry(context_length=20, chunk_length=9, last_k=4, target_length=6)
KINDS = TargetSpec((("continuation", 1.0), ("fact", 1.0), ("recall", 1.0), ("far", 1.0)), 9, 6, 70)
SPECS = {
    "side by side": WindowSpec(16, 6, 4, None, None),
    "overlapping": WindowSpec(16, 6, 4, 5, None),
    "far apart": WindowSpec(16, 6, 4, 301, None),
    "walks": WindowSpec(20, 6, 4, None, None, windows_per_document=3, geometry=GEOMETRY),
    "kinds of targets": WindowSpec(16, 6, 4, 11, None, targets=KINDS),
    "control tokens": WindowSpec(16, 6, 4, None, None, parse_special_tokens=True),
}
TEXTS = [
    "".join(make_documents(5)),
    "漢字かな 👩‍👩‍👧 العربية 한국어 John Snow. In 1854 <|im_end|>\n" * 14,
    "👩‍👩‍👧" * 120,
    "too short",
    None,
    "",
    PARAGRAPH * 3,
]


def windows_of(tokenizer, spec, texts=TEXTS, streaming=False):
    dataset = Dataset.from_dict({"text": texts, "source": [f"text {index}" for index in range(len(texts))]})
    windows, skipped = prepare_windows(dataset.to_iterable_dataset() if streaming else dataset, tokenizer, spec)
    return list(windows), dict(skipped.counts)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_windows_are_the_same_in_however_many_parts_a_document_is_cut(monkeypatch, spec, kind, streaming):
    tokenizer = TOKENIZERS[kind]
    whole, skipped = windows_of(tokenizer, spec, streaming=streaming)
    monkeypatch.setattr(windows_module, "_PART_TOKENS", 50)
    monkeypatch.setattr(windows_module, "_BYTES_TOGETHER", 1000)  # which some documents exceed
    monkeypatch.setattr(windows_module, "PIECE", 100)  # what is longer is no `str`
    parts = []
    cut = windows_module._iter_parts
    monkeypatch.setattr(
        windows_module, "_iter_parts", lambda *args: (parts.append(part) or part for part in cut(*args))
    )
    assert windows_of(tokenizer, spec, streaming=streaming) == (whole, skipped)
    assert len(parts) > 5 and len(whole) > 5
    assert {row["source"] for row in whole} >= {"text 0", "text 1", "text 6"}
    assert {row["document_id"] for row in whole} == {int(row["source"][5:]) for row in whole}


@pytest.mark.parametrize("spec", [SPECS["side by side"], SPECS["overlapping"], SPECS["control tokens"]])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_windows_of_parts_are_slices_of_the_whole_documents_ids(monkeypatch, kind, spec):
    monkeypatch.setattr(windows_module, "_PART_TOKENS", 50)
    tokenizer = TOKENIZERS[kind]
    ids = (written_ids if spec.parse_special_tokens else literal_ids)(tokenizer, TEXTS[0])
    found, _ = windows_of(tokenizer, spec, [TEXTS[0]])
    starts = range(0, len(ids) - 22 + 1, spec.window_stride or 22)
    assert [row["context_ids"] + row["target_ids"] for row in found] == [ids[start : start + 22] for start in starts]


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
def test_a_document_is_tokenised_only_as_far_as_its_windows_reach(tokenizer, monkeypatch, most):
    monkeypatch.setattr(windows_module, "_PART_TOKENS", 50)
    pieces, real = [], windows_module.literal_pieces
    monkeypatch.setattr(
        windows_module,
        "literal_pieces",
        lambda tokenizer, text: (pieces.append(piece) or piece for piece in real(tokenizer, text, 500)),
    )
    text = PARAGRAPH * 30
    found, _ = windows_of(tokenizer, WindowSpec(16, 6, 4, None, most), [text])
    whole, _ = windows_of(tokenizer, WindowSpec(16, 6, 4, None, None), [text])
    assert found == whole[:most] and len(whole) > 100
    read = sum(len(ids) for ids, _ in pieces[: len(pieces) - len(list(real(tokenizer, text, 500)))])
    assert most == 1000 or read < 22 * (most + 3) + 500


MEASURE = """
import json, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import datasets
from tiny import PARAGRAPH, make_tokenizer
from trl_gist.data import load_documents
from trl_gist.data.targets import TargetSpec
from trl_gist.data import windows as windows_module
from trl_gist.data.windows import WindowSpec, prepare_windows
windows_module._PART_TOKENS, windows_module._BYTES_TOGETHER = 1 << 11, 1 << 16  # of which both texts have many
folder, tokenizer = Path(sys.argv[1]), make_tokenizer()
datasets.config.HF_DATASETS_CACHE = folder / "cache"
datasets.disable_progress_bars()
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
def cut(kind, length, streaming, most, targets):
    text = PARAGRAPH * (length // len(PARAGRAPH)) + "👩"  # for which Python takes four bytes a letter
    file = folder / f"{length} {most} {targets}.{kind}"
    file.write_text(text if kind == "txt" else json.dumps({"text": text}))
    del text
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = peak()
    spec = WindowSpec(200, 56, 16, None, most, targets=TargetSpec((("fact", 1),), 2) if targets else TargetSpec())
    windows, skipped = prepare_windows(load_documents(str(file), streaming=streaming), tokenizer, spec)
    return sum(1 for _ in windows.select_columns(["target_ids"])), peak() - before
for kind, streaming, most, targets, lengths in json.loads(sys.stdin.read()):
    cut(kind, 100_000, streaming, most, targets)  # what is imported and allocated once
    (_, less), (windows, more) = (cut(kind, length, streaming, most, targets) for length in lengths)
    print(windows, (more - less) / (lengths[1] - lengths[0]))
"""

# All windows of a text, and three of a long one, which must be read, but tokenised no farther
WHOLE, READ = (300_000, 2_000_000), (2_000_000, 20_000_000)
ROUTES = [
    *(("txt", streaming, None, not streaming, WHOLE) for streaming in (False, True)),
    *((kind, streaming, 3, False, READ) for kind in ("txt", "jsonl") for streaming in (False, True)),
]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux says the peak since some moment")
def test_a_longer_document_takes_a_few_bytes_of_memory_for_each_of_its_own(tmp_path):
    """Five to ten, as the allocator has it, and some 150 where all of its windows are made at once. Windows that are read
    count too, though they are in a file, and the tiny tokenizer has nearly twice the tokens of a real one."""
    command = [sys.executable, "-c", MEASURE, str(tmp_path), *sys.path]
    done = subprocess.run(command, input=json.dumps(ROUTES), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines()[-len(ROUTES) :]]
    for (_, _, most, _, (_, length)), (windows, bytes_a_byte) in zip(ROUTES, found, strict=True):
        assert int(windows) == most if most else int(windows) > length / 4 / 256
        assert float(bytes_a_byte) < 20, done.stdout
