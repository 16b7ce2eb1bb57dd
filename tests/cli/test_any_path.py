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

"""Every route that takes a path takes any path: one name with all signs that something on the way could misread."""

import codecs
import gzip
import io
import lzma
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest
from any_path import ALL_SIGNS, OTHER_ROUTES, Place, walked

from trl_gist.cli.flags import read_text


def test_every_route_takes_any_path(checkpoint, tmp_path):
    found = dict(walked(Place(tmp_path, ALL_SIGNS, checkpoint), OTHER_ROUTES))
    assert found == dict.fromkeys(OTHER_ROUTES, "right")


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
    file = tmp_path / f"{ALL_SIGNS}.txt{suffix}"
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
    with pytest.raises(ValueError, match=f"a.txt{suffix} cannot be decompressed"):
        read_text(str(file))
    with pytest.raises(FileNotFoundError, match="missing"):
        read_text(f"missing{suffix}")
