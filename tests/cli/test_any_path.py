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

"""Every command that takes a path takes any path: one name with all signs that something on the way could misread."""

import codecs
import gzip
import io
import json
import lzma
import shutil
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest
import yaml
from tiny import make_documents

from trl_gist import GistCompactor
from trl_gist.cli import main
from trl_gist.cli.flags import read_text


ODD = "x[1]*?::y :%20#&\\'\" {a,b} Карта 漢字 e\u0301=1"
RECIPE = {
    "text_column": "body",
    "eval_documents": 2,
    "context_length": 24,
    "target_length": 8,
    "last_k": 4,
    "max_completion_length": 6,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_windows_per_document": 1,
    "max_steps": 1,
    "save_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "use_peft": True,
    "lora_r": 4,
    "lora_target_modules": "all-linear",
}


def test_every_command_takes_any_path(checkpoint, tmp_path, capsys):
    folder = tmp_path / ODD
    folder.mkdir()
    for name, source in ((f"{ODD}.jsonl", "right"), ("x1.jsonl", "wrong"), ("x[1]*?", "wrong")):
        rows = [{"body": f"{source} {text}"} for text in make_documents(6)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, model, pair = folder / f"{ODD}.jsonl", folder / f"model {ODD}", folder / f"pair {ODD}"
    shutil.copytree(checkpoint, model)
    recipe = {**RECIPE, "model_name_or_path": str(model), "dataset_path": str(documents), "output_dir": str(pair)}
    (folder / f"{ODD}.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(folder / f"{ODD}.yaml")]) == 0
    assert {path.name for path in pair.glob("checkpoint-*")} == {"checkpoint-1"}

    held_out = ["--dataset", str(documents), "--text_column", "body", "--split", "train", "--max_documents", "2"]
    output = folder / f"out {ODD}"
    held_out += ["--max_windows_per_document", "1"]
    assert main(["evaluate", str(pair), *held_out, "--output_dir", str(output)]) == 0
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["context"].startswith("right ") for row in rows)
    assert main(["report", str(pair)]) == 0 and (pair / "report.html").is_file()

    article = folder / f"{ODD}.txt"
    article.write_text(make_documents(1)[0])
    capsys.readouterr()
    assert main(["compress", str(pair), str(article)]) == 0
    gists = GistCompactor.from_pretrained(pair, device="cpu").compress_windows(article.read_text())
    assert capsys.readouterr().out == "".join(f"{gist.text}\n" for gist in gists)


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".XZ", lzma.compress), (".zst", zst)]
)
def test_a_text_to_compress_is_unpacked_and_has_no_byte_order_mark(tmp_path, monkeypatch, suffix, pack, mark):
    file = tmp_path / f"{ODD}.txt{suffix}"
    file.write_bytes(pack(mark + "карта \ufeff 漢字".encode()))
    assert read_text(str(file)) == "карта \ufeff 漢字"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(mark + b"text")))
    assert read_text("-") == "text"
    assert not sys.stdin.buffer.closed


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize(
    "content", [b"no archive", b"\x1f\x8b\x08\x00 cut off", b"BZh91AY&SY", zst(b"text" * 99)[:12]]
)
def test_a_damaged_text_is_named(tmp_path, suffix, content):
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(content)
    with pytest.raises((ValueError, EOFError), match=f"a.txt{suffix} cannot be decompressed"):
        read_text(str(file))
    with pytest.raises(FileNotFoundError, match="missing"):
        read_text(f"missing{suffix}")
