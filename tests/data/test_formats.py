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

"""Data as users have it: every format in every encoding and packing, wherever it lies; and where it cannot be read."""

import codecs
import functools
import gzip
import http.server
import io
import json
import logging
import threading
import uuid
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Value
from fsspec.registry import known_implementations
from packed import PACKED

from trl_gist.cli.flags import read_text
from trl_gist.common import encodings
from trl_gist.data import files as files_module
from trl_gist.data.documents import load_documents


TEXTS = ["Das Café an der Straße, dès 1854, sells water from a pump in Broad Street.", "two\nlines", 'a "quoted", one']


ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-32": b"",
    "utf-16-le": b"",
    "utf-16-be": b"",
    "utf-16-be with a mark": codecs.BOM_UTF16_BE,
    "latin-1": b"",
    "cp1252": b"",
}


def encoded(text, encoding):
    return ENCODINGS[encoding] + text.encode(encoding.partition(" ")[0])


def written(suffix, texts=TEXTS, end="\n"):
    """What a file of that kind holds, and the documents in it."""
    if suffix in (".txt", ".md"):
        return end.join(texts[0].split(" ")), [texts[0].replace(" ", "\n")]
    if suffix == ".jsonl":
        return "".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in texts), texts
    if suffix == ".json":
        return json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=1).replace("\n", end), texts
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    return end.join(["n,text", *(f"{number},{text}" for number, text in enumerate(quoted))]) + end, texts


def texts_of(source, streaming=False, **settings):
    return [row["text"] for row in load_documents(source, streaming=streaming, **settings)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl", ".json", ".csv"])
def test_every_format_is_read_in_every_encoding(tmp_path, suffix, encoding, streaming):
    for end, packed in (("\n", ""), ("\r\n", ".gz"), ("\n", ".zst")):
        text, expected = written(suffix, end=end)
        file = tmp_path / f"a{suffix}{packed}"
        file.write_bytes(PACKED[packed](encoded(text, encoding)))
        assert texts_of([file], streaming) == expected, (end, packed)


def test_a_guess_is_said_once_with_the_line_and_a_piece_of_the_text(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"John Snow drew a map.\nHe sat in a caf\xe9 in Soho, and waited.\n")
    (tmp_path / "b.txt").write_bytes("Das Café, UTF-16".encode("utf-16"))
    with caplog.at_level(logging.WARNING, "trl_gist"):
        first, _ = (texts_of([tmp_path], streaming=True) for _ in range(2))
    assert first == ["John Snow drew a map.\nHe sat in a café in Soho, and waited.\n", "Das Café, UTF-16"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{tmp_path}/a.txt is no UTF-8 (byte 0xe9 in line 2): read as Windows-1252, as in ")
    assert "in a café in Soho" in said and "give its `encoding`" in said


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Широка страна моя родная, много в ней лесов, полей и рек."),
        ("koi8_r", "Широка страна моя родная, много в ней лесов, полей и рек."),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。"),
        ("gb18030", "学而时习之,不亦说乎?有朋自远方来。"),
        ("iso2022_jp", "吾輩は猫である。名前はまだ無い。"),
        ("utf-16-le", "吾輩は猫である。名前はまだ無い。"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_other_scripts_are_refused_until_their_encoding_is_given(tmp_path, encoding, text, streaming):
    for suffix in (".txt", ".jsonl", ".csv"):
        content, expected = written(suffix, [text, "plain"])
        (tmp_path / f"a{suffix}").write_bytes(content.encode(encoding))
        (tmp_path / f"b{suffix}").write_text(content, encoding="utf-8")  # which the setting is not about
        files = [tmp_path / f"{name}{suffix}" for name in "ab"]
        assert texts_of(files, streaming, encoding=encoding) == 2 * expected
        if encoding not in ("iso2022_jp", "utf-16-le"):
            with pytest.raises(ValueError, match=f"a{suffix} cannot be read: it is no UTF-8 .*Give its `encoding`"):
                texts_of(files, streaming)
    with pytest.raises(ValueError, match="`encoding` must be the name of an encoding.*got 'klingon'"):
        texts_of(files, encoding="klingon")


@pytest.mark.parametrize(
    "content", ["Зимний день\n".encode() * 9 + b"\xff", b"cut \xe6\xbc", b"naive caf\xc3\xa9 \xe6"]
)
def test_damaged_utf_8_is_not_taken_for_another_encoding(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match="a.txt cannot be read: it is no UTF-8( .|: )byte 0x.. in line"):
        texts_of([tmp_path / "a.txt"])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_may_end_in_what_begins_a_character_of_utf_8(tmp_path, streaming):
    for encoding, text in (("cp1252", "un grand café"), ("cp1251", "три кота")):
        (tmp_path / "a.txt").write_bytes(text.encode(encoding))
        assert texts_of([tmp_path / "a.txt"], streaming, encoding=encoding) == [text]
        assert read_text(str(tmp_path / "a.txt"), encoding=encoding) == text
    (tmp_path / "a.txt").write_bytes(b"un grand caf\xe9")
    with pytest.raises(ValueError, match="a.txt cannot be read: it is no UTF-8 .*Give its `encoding`"):
        texts_of([tmp_path / "a.txt"], streaming)


def test_of_a_damaged_text_with_a_mark_no_other_encoding_is_asked_for(tmp_path):
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF8, "utf-8")):
        (tmp_path / "a.txt").write_bytes(mark + "cut off: 日".encode(encoding)[:-1])
        for given in (None, "cp1252"):
            with pytest.raises(ValueError, match=r"a.txt is no UTF-.* in line 1, .* data\. Mend it\.$"):
                read_text(str(tmp_path / "a.txt"), encoding=given)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"])
def test_a_text_is_the_same_wherever_a_block_ends(encoding, block):
    content = encoded(TEXTS[0] + "\r\n— “x”", encoding)
    found = encodings.find_encoding("a.txt", [content], None)
    blocks = [content[start : start + block] for start in range(0, len(content), block)]
    assert "".join(encodings.decoded("a.txt", blocks, found, newlines=True)) == TEXTS[0] + "\n— “x”"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_to_compress_may_be_in_any_encoding_and_in_a_store(tmp_path, encoding):
    text = TEXTS[0] + "\r\nend"
    (tmp_path / "a.txt").write_bytes(encoded(text, encoding))
    assert read_text(str(tmp_path / "a.txt")) == text
    url = f"memory://{uuid.uuid4().hex}/a.txt.gz"
    with fsspec.open(url, "wb") as file:
        file.write(gzip.compress(encoded(text, encoding)))
    assert read_text(url) == text
    (tmp_path / "b.txt").write_bytes("Широка страна".encode("cp1251"))
    assert read_text(str(tmp_path / "b.txt"), encoding="cp1251") == "Широка страна"


# ---- Folders, patterns, stores ----


def test_patterns_find_files_where_nothing_has_their_name(tmp_path, monkeypatch):
    for name in (
        "a/1.jsonl",
        "a/2.jsonl",
        "a/deep/3.jsonl",
        "a/.hidden/4.jsonl",
        "a/notes.bin",
        "a/README.md",
        "b/5.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(written(".jsonl", [name])[0])
    monkeypatch.chdir(tmp_path)
    for source, found in (
        ("a/*.jsonl", ["a/1.jsonl", "a/2.jsonl"]),
        ("a/**/*.jsonl", ["a/1.jsonl", "a/2.jsonl", "a/deep/3.jsonl"]),
        ("a/[2-9].jsonl", ["a/2.jsonl"]),
        ("a*", ["a/1.jsonl", "a/2.jsonl", "a/deep/3.jsonl"]),
        ("a", ["a/1.jsonl", "a/2.jsonl", "a/deep/3.jsonl"]),  # the README says what they are
    ):
        assert texts_of([source]) == texts_of(f"./{source}", streaming=True) == found, source
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts_of("~/a/1.jsonl") == ["a/1.jsonl"]
    (tmp_path / "a" / "[2-9].jsonl").write_text(written(".jsonl", ["that very name"])[0])
    assert texts_of(["a/[2-9].jsonl"]) == ["that very name"]
    for source, why in (
        ("a/*.csv", "a/\\*.csv finds no file"),
        ("a/*.bin", "holds no documents"),
        ("a/9.csv", "exist"),
    ):
        with pytest.raises(ValueError, match=why):
            load_documents([source])


def test_files_of_other_kinds_are_passed_over_and_counted(tmp_path, store, caplog):
    names = ("a.jsonl", "b.ndjson", "c.zip", "d.tsv", "e.ZIP", "f.jsonl.br", "LICENSE", ".hidden.zip", ".git/g.zip")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(written(".jsonl", [name])[0])
        store(name, written(".jsonl", [name])[0].encode())
    for source in (str(tmp_path), store.url):
        caplog.clear()
        assert texts_of([source]) == ["a.jsonl"]
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith(
            f"{source}: 6 of 7 files are passed over (1 .br, 1 .ndjson, 1 .tsv, 2 .zip, 1 LICENSE). Documents are read "
        )
    caplog.clear()
    assert texts_of([tmp_path / "a.jsonl"]) == ["a.jsonl"] and not caplog.records


@pytest.fixture
def store():
    """A folder of fsspec's store in memory."""
    url = f"memory://{uuid.uuid4().hex}"

    def put(name, content):
        with fsspec.open(f"{url}/{name}", "wb") as file:
            file.write(content)
        return f"{url}/{name}"

    put.url = url
    return put


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_a_store_is_read_as_a_folder_is(store, suffix, packed, streaming):
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": TEXTS}), sink)
        contents, expected = {"utf-8": sink.getvalue().to_pybytes()}, TEXTS
        packed = ""
    else:
        text, expected = written(suffix)
        contents = {encoding: encoded(text, encoding) for encoding in ("utf-8", "utf-16", "cp1252")}
    urls = [store(f"x/{name}{suffix}{packed}", PACKED[packed](content)) for name, content in contents.items()]
    store("y/README.md", b"---")
    for url in urls:
        assert texts_of(url, streaming) == expected, url
    for source in (f"{store.url}/x", f"{store.url}/x/", f"{store.url}/x/*{suffix}{packed}", f"{store.url}/*"):
        found = (
            texts_of([source], streaming) if suffix != ".txt" or not source.endswith("/*") else expected * len(urls)
        )
        assert found == expected * len(urls), source
    changed = store(f"x/utf-8{suffix}{packed}", PACKED[packed](contents["utf-8"].replace(b"1854", b"1855")))
    if suffix != ".parquet":
        assert texts_of(changed, streaming) == [text.replace("1854", "1855") for text in expected]


def test_a_file_on_a_server_is_read(tmp_path):
    for name, texts in (("a.jsonl", ["one", "zwö"]), ("b.jsonl.gz", ["three"])):
        (tmp_path / name).write_bytes(PACKED["".join(name[7:])](written(".jsonl", texts)[0].encode()))
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        pytest.importorskip("aiohttp")
        url = f"http://127.0.0.1:{server.server_port}"
        for streaming in (False, True):
            assert texts_of(f"{url}/a.jsonl?download=true", streaming) == ["one", "zwö"]
            assert texts_of([f"{url}/a.jsonl", f"{url}/b.jsonl.gz"], streaming) == ["one", "zwö", "three"]
        with pytest.raises(ValueError, match="missing.jsonl"):
            load_documents(f"{url}/missing.jsonl")
    finally:
        server.shutdown()
        server.server_close()


def test_a_url_of_this_machine_is_a_path(tmp_path):
    (tmp_path / "a.jsonl").write_text(written(".jsonl", ["one"])[0])
    assert texts_of(f"file://{tmp_path}/a.jsonl") == texts_of([f"file://{tmp_path}"], streaming=True) == ["one"]


def test_what_is_out_of_reach_is_named(store, monkeypatch):
    with pytest.raises(ValueError, match="nostore://a/b.txt is out of reach: Protocol not known: nostore"):
        load_documents("nostore://a/b.txt")
    with pytest.raises(ValueError, match="memory://missing/a.txt does not exist"):
        load_documents(["memory://missing/a.txt"])
    with pytest.raises(ValueError, match=r"memory://missing/\*.txt finds no file"):
        load_documents(["memory://missing/*.txt"])
    with pytest.raises(ValueError, match="a.bin is of no known kind"):
        load_documents(store("a.bin", b"x"))
    monkeypatch.setitem(known_implementations, "lacking", {"class": "no.such.Store", "err": "Install lacking"})
    with pytest.raises(ValueError, match="lacking://a/b.txt is out of reach: Install lacking"):
        load_documents("lacking://a/b.txt")


def tables(folder, suffix, *tables):
    """Files of rows."""
    for number, rows in enumerate(tables):
        file = folder / f"{number}{suffix}"
        if suffix.startswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), file)
            file.write_bytes(PACKED[suffix.removeprefix(".parquet")](file.read_bytes()))
        elif suffix == ".csv":
            lines = [list(rows[0]), *(row.values() for row in rows)]
            file.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".parquet.gz", ".parquet.zst"])
def test_files_need_not_have_the_same_columns(tmp_path, suffix):
    tables(
        tmp_path,
        suffix,
        [{"text": "one", "n": 1}],
        [{"n": 2, "text": "two"}],  # in another order
        [{"text": "three"}, {"text": "four"}],
        [{"text": "five", "n": 5, "from": "Soho"}],
    )
    rows = list(load_documents([tmp_path]))
    assert [row["text"] for row in rows] == ["one", "two", "three", "four", "five"]
    assert [row["n"] for row in rows] == [1, 2, None, None, 5]
    assert [row["from"] for row in rows] == [None] * 4 + ["Soho"]
    assert list(load_documents([tmp_path], streaming=True)) == rows


def test_a_streamed_column_may_be_null_in_all_of_the_first_file(tmp_path):
    tables(tmp_path, ".jsonl", [{"text": "one", "n": None}], [{"text": "two", "n": 2}])
    assert [row["n"] for row in load_documents([tmp_path], streaming=True)] == [None, 2]


def test_a_column_that_a_stores_first_file_lacks_is_named_with_what_to_do(store):
    urls = [store("0.jsonl", b'{"text": "one"}\n'), store("1.jsonl", b'{"text": "two", "n": 2}\n')]
    with pytest.raises(ValueError, match="1.jsonl .*line 1: the first rows have no 'n', .*without streaming"):
        list(load_documents(urls, streaming=True))
    assert [row["n"] for row in load_documents(urls)] == [None, 2]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_stream_whose_first_file_has_whole_numbers_cuts_no_others(tmp_path, suffix):
    tables(tmp_path, suffix, [{"text": "one", "n": 1}], [{"text": "two", "n": 2.5}])
    assert [row["n"] for row in load_documents([tmp_path], streaming=True)] == [1, 2.5]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("values", [(1, 2.5, 3), (2.5, 1, 3)], ids=["int first", "float first"])
def test_whole_numbers_of_one_file_are_floats_beside_those_of_another(tmp_path, suffix, values):
    first, second, third = values
    tables(
        tmp_path,
        suffix,
        [{"text": "one", "n": first}],
        [{"text": "two", "n": second, "from": "Soho"}],
        [{"text": "three"}],
        [{"text": "four", "n": third}],
    )
    dataset = load_documents([tmp_path])
    assert dataset.features["n"] == Value("float64") and dataset["n"] == [first, second, None, third]
    assert list(load_documents([tmp_path], streaming=True)) == list(dataset)


def test_what_is_in_a_column_may_be_floats_in_one_file_and_whole_numbers_in_another(tmp_path):
    rows = [{"text": "one", "n": [1], "of": {"a": 1}}, {"text": "two", "n": [2.5], "of": {"a": 1.5, "b": "x"}}]
    tables(tmp_path, ".parquet", *([row] for row in rows))
    assert list(load_documents([tmp_path])) == [{**rows[0], "of": {"a": 1, "b": None}}, rows[1]]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_column_that_is_another_thing_in_another_file_is_named(tmp_path, suffix):
    tables(tmp_path, suffix, [{"text": "one", "n": 1}], [{"text": "two", "n": "ii"}])
    with pytest.raises(ValueError, match=f"1{suffix} cannot be read: .*Field n has incompatible types: int64 vs "):
        load_documents([tmp_path], streaming=True)
    with pytest.raises(
        ValueError, match=f"1{suffix} cannot be read with {tmp_path}/0{suffix}: its column 'n' holds .*str"
    ):
        load_documents([tmp_path])


def test_folders_are_found_through_links_and_each_once(tmp_path):
    for name in ("elsewhere/a", "elsewhere/deep/b", "here/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(name[-1])
    for name, target in (("link", "elsewhere"), ("again", "elsewhere/deep"), ("loop", "here")):
        (tmp_path / "here" / name).symlink_to(tmp_path / target, target_is_directory=True)
    assert sorted(texts_of([tmp_path / "here"])) == ["a", "b", "c"]


def test_no_path_is_not_this_folder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    assert texts_of(".") == ["a"]
    for source, why in (
        ("", "A path of documents is empty"),
        ([""], "A path of documents is empty"),
        ([], "empty list"),
    ):
        for streaming in (False, True):
            with pytest.raises(ValueError, match=why):
                load_documents(source, streaming=streaming)


# ---- Where a file cannot be read ----


def zipped(text):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", text)
    return buffer.getvalue()


def as_parquet(text):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [text]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("pack", [zipped, as_parquet], ids=["zip", "parquet"])
def test_what_is_packed_is_not_read_as_text_under_another_suffix(tmp_path, suffix, pack):
    (tmp_path / f"a{suffix}").write_bytes(pack("John Snow drew a map of Soho.\n" * 9))
    for streaming in (False, True):
        with pytest.raises(
            ValueError, match=f"a{suffix} cannot be read: it .*(zero bytes, as no text has|is no UTF-)"
        ):
            texts_of([tmp_path / f"a{suffix}"], streaming)


GOOD = [f"document {number}" for number in range(300)]


def faulty_files(folder):
    """Of each kind a file with a fault in the middle, and what the error must say of it."""
    rows = [json.dumps({"text": text}) + "\n" for text in GOOD]
    yield ".jsonl", "".join([*rows[:200], '{"text": "cut\n', *rows[200:]]).encode(), "line 201: "
    yield (
        ".jsonl",
        "".join([*rows[:200], "\n", "[1]\n", *rows[200:]]).encode(),
        r"line 202: 1 is no row|line 202: \[1\]",
    )
    yield ".jsonl", "".join([*rows[:200], '"one"x\n', *rows[200:]]).encode(), "line 201: Extra data"
    yield (
        ".jsonl",
        "".join([*rows[:200], '{"text": "\\ud83d"}\n', *rows[200:]]).encode(),
        r"line 201: '\\ud83d' is half",
    )
    yield (
        ".jsonl",
        "".join([*rows[:200], '{"text": "", "text": ""}\n']).encode(),
        "line 201: the name 'text' is there twice",
    )
    yield ".jsonl", "".join(rows[:200]).encode() + b'{"text": "\xe6\xbc"}\n' * 9, "in line 201"
    yield ".json", json.dumps([{"text": text} for text in GOOD], indent=0).encode()[:-9], "line 90[0-9]: "
    table = "text,n\n" + "".join(f"{text},1\n" for text in GOOD[:200])
    yield ".csv", (table + "a,b,c\n").encode(), "Expected 2 fields in line 202, saw 3"
    yield ".jsonl.gz", gzip.compress("".join(rows).encode())[:-200], "Compressed file ended"
    yield ".txt", "Зима\n".encode() * 200 + b"\xff\n", r"byte 0xff in line 201"
    pq.write_table(pa.table({"text": GOOD}), folder / "a.parquet", row_group_size=100, compression="none")
    damaged = bytearray((folder / "a.parquet").read_bytes())
    start = pq.read_metadata(folder / "a.parquet").row_group(1).column(0).dictionary_page_offset
    damaged[start : start + 40] = b"\xff" * 40
    (folder / "a.parquet").unlink()
    yield ".parquet", bytes(damaged), "rows 100 to 199: "


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("fault", range(11))
def test_a_fault_is_named_with_its_file_and_its_line_or_rows(tmp_path, fault, streaming):
    suffix, content, message = list(faulty_files(tmp_path))[fault]
    good = (
        b"text,n\nfirst,1\n" if suffix == ".csv" else written(".txt" if suffix == ".txt" else ".jsonl", ["first"])[0]
    )
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": ["first"]}), tmp_path / "1.parquet")
    else:
        packed = suffix[len(suffix.removesuffix(".gz")) :]
        (tmp_path / f"1{suffix}").write_bytes(PACKED[packed](good if isinstance(good, bytes) else good.encode()))
    (tmp_path / f"2{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/2{suffix} cannot be read: .*({message})"):
        list(load_documents([tmp_path], streaming=streaming))


def test_a_stream_gives_what_stands_before_a_fault(tmp_path):
    (tmp_path / "1.jsonl").write_text(written(".jsonl", GOOD)[0])
    long = [text + "x" * 50_000 for text in GOOD]  # `datasets` reads 10 MB at once
    (tmp_path / "2.jsonl").write_text(written(".jsonl", long)[0] + '{"text": "", "other": 2}\n' + '{"text": "cut\n')
    found = []
    with pytest.raises(ValueError, match="2.jsonl cannot be read: line 30[12]: "):
        for row in load_documents([tmp_path], streaming=True):
            found.append(row["text"])
    assert found[:300] == GOOD and found[300:] == long[: len(found) - 300] and len(found) > 400


def test_a_stream_goes_on_from_its_state_and_has_a_shard_a_file(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text(written(".jsonl", [f"{name}{number}" for number in range(5)])[0])
    dataset = load_documents([tmp_path], streaming=True)
    assert dataset.num_shards == 3 and dataset.column_names == ["text"]
    rows = iter(dataset)
    first = [next(rows)["text"] for _ in range(7)]
    state = dataset.state_dict()
    again = load_documents([tmp_path], streaming=True)
    again.load_state_dict(state)
    assert first + [row["text"] for row in again] == [f"{name}{number}" for name in "abc" for number in range(5)]


def test_a_long_line_with_a_fault_is_found_in_little_time(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "_BLOCK", 1 << 10)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 5_000_000 + '"}\n{"text": "cut\n')
    with pytest.raises(ValueError, match="a.jsonl cannot be read: line 2: "):
        load_documents([tmp_path])
