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

"""Documents from files: whatever they are called, however they are packed, and nothing of what is not text."""

import codecs
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from any_path import ALL_SIGNS, DOCUMENTS, SIGNS, Place, walked
from packed import PACKED

from trl_gist.data import files as files_module
from trl_gist.data.documents import load_documents


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def texts_of(source, streaming=False):
    return [row["text"] for row in load_documents(source, streaming=streaming)]


@pytest.mark.parametrize("sign", [*SIGNS, ALL_SIGNS])
def test_a_path_is_no_pattern(tmp_path, sign):
    assert dict(walked(Place(tmp_path, sign), DOCUMENTS)) == dict.fromkeys(DOCUMENTS, "right")


def test_a_file_that_changed_is_read_anew(tmp_path):
    file = tmp_path / "docs[1].jsonl"
    for text in ("one", "three"):
        file.write_bytes(lines(text))
        assert texts_of(str(file)) == [text]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("folder", ["plain", f"docs{ALL_SIGNS}"], ids=["plain", "all signs"])
def test_files_are_read_as_they_are_packed(tmp_path, packed, folder, streaming):
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one, 漢字", "two"]}), table)
    contents = {
        "a.jsonl": lines("one, 漢字", "two"),
        "a.json": json.dumps([{"text": "one, 漢字"}, {"text": "two"}]).encode(),
        "a.csv": 'text,n\n"one, 漢字",1\ntwo,2\n'.encode(),
        "a.txt": "one, 漢字".encode(),
        "A.TXT": "one, 漢字".encode(),
        "a.parquet": table.getvalue().to_pybytes(),
    }
    for name, content in contents.items():
        if name == "a.parquet" and packed:
            continue  # is packed inside
        file = tmp_path / folder / f"{name}{packed}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(PACKED[packed](content))
        expected = ["one, 漢字"] if name.lower() == "a.txt" else ["one, 漢字", "two"]
        assert texts_of([str(file)], streaming) == expected


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_byte_order_mark_is_no_text(tmp_path, packed):
    for name, content in (
        ("a.txt", b"one"),
        ("a.jsonl", lines("one")),
        ("a.json", b'[{"text": "one"}]'),
        ("a.csv", b"text,n\none,1\n"),
    ):
        files = [tmp_path / f"{number}{name}{packed}" for number in (1, 2)]
        for file in files:
            file.write_bytes(PACKED[packed](codecs.BOM_UTF8 + content))
        assert texts_of([str(file) for file in files]) == ["one", "one"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packed", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("blank", [b"", b"\n \n", codecs.BOM_UTF8])
def test_a_file_without_rows_is_passed_over_unless_there_is_no_other(tmp_path, blank, packed, streaming):
    (tmp_path / f"a.jsonl{packed}").write_bytes(PACKED[packed](blank))
    with pytest.raises(ValueError, match="holds no documents: 1 files without a row"):
        load_documents([str(tmp_path)], streaming=streaming)
    (tmp_path / "b.jsonl").write_bytes(lines("one"))
    assert texts_of([str(tmp_path)], streaming) == ["one"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.txt.zst"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"no archive"])
def test_a_damaged_archive_is_named(tmp_path, name, damage):
    file = tmp_path / name
    whole = PACKED[file.suffix](lines(*(str(number) * number for number in range(300))))
    file.write_bytes(damage(whole))
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        list(load_documents([str(file)]))


def table(texts):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("suffix", "empty", "full"),
    [
        (".parquet", table([]), table(["a"])),
        (".csv", b"text,x\r\n", b"text,x\r\na,1\r\n"),
        (".csv", codecs.BOM_UTF8 + b'"text","a\nb"\n\n', b'"text","a\nb"\n"a",1\n'),
        (".json", b"[]\n", b'[{"text": "a"}]'),
        (".jsonl", b"\n", b'{"text": "a"}\n'),
    ],
)
def test_a_table_without_rows_is_passed_over_unless_there_is_no_other(tmp_path, suffix, empty, full, streaming):
    (tmp_path / f"1{suffix}").write_bytes(empty)
    with pytest.raises(ValueError, match="holds no documents: 1 files without a row"):
        load_documents([tmp_path], streaming=streaming)
    (tmp_path / f"2{suffix}").write_bytes(full)
    assert [row["text"] for row in load_documents([tmp_path], streaming=streaming)] == ["a"]


@pytest.mark.parametrize(
    "content", [b"PAR1xxx", b"version https://git-lfs.github.com/spec/v1\n", table(["a" * 99])[:-9]]
)
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "1.parquet").write_bytes(table(["a"]))
    (tmp_path / "2.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/2.parquet cannot be read: "):
        load_documents([tmp_path])


def test_a_folder_with_a_card_may_have_any_name(tmp_path):
    for name, text in (("corpus[1]", "right"), ("corpus1", "wrong"), ("corpus::%", "right too")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "held.jsonl").write_bytes(lines(text))
        card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: held.jsonl\n---\n"
        (folder / "README.md").write_text(card)
    assert load_documents(str(tmp_path / "corpus[1]"), split="test")["text"] == ["right"]
    assert load_documents(str(tmp_path / "corpus::%"), split="test")["text"] == ["right too"]


# ---- Texts, in blocks ----


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_a_text_is_what_open_reads_of_it_wherever_a_block_ends(tmp_path, monkeypatch, block, streaming):
    monkeypatch.setattr(files_module, "_BLOCK", block)
    contents = ["", "\r", "a\r\nb\rc\n\r\n", "漢字 👩‍👩‍👧\r\n", "\ufeffa\ufeff", "x" * 50]
    files = [tmp_path / f"{number}.txt" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content.encode())
    found = texts_of([str(file) for file in files], streaming)
    assert found == [file.read_text("utf-8-sig") for file in files]


@pytest.mark.parametrize("content", [b"\xcf\xf0\xe8\xe2\xe5\xf2", b"cut \xe6\xbc"])
def test_a_text_that_is_no_utf_8_is_named(tmp_path, content):
    (tmp_path / "a.md").write_bytes(content)
    with pytest.raises(ValueError, match="a.md cannot be read: it is no UTF-8.*byte 0x.. in line 1"):
        load_documents([str(tmp_path / "a.md")])


def test_texts_are_prepared_once_until_one_changes(tmp_path):
    files = [tmp_path / f"{name}.txt" for name in "ab"]
    for file in files:
        file.write_text(file.name)
    first, again = (load_documents(files) for _ in range(2))
    assert first.cache_files == again.cache_files and first._fingerprint == again._fingerprint
    files[1].write_text("another")
    assert load_documents(files)["text"][:] == ["a.txt", "another"]
    assert load_documents(files[::-1])["text"][:] == ["another", "a.txt"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_of_texts_has_a_shard_a_file(tmp_path, streaming):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    dataset = load_documents(str(tmp_path), streaming=streaming)
    assert [row["text"] for row in dataset] == ["a", "b", "c"] and dataset.column_names == ["text"]
    assert not streaming or dataset.num_shards == 3
