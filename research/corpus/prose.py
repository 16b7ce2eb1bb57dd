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

"""From pages to documents: what of a page is running prose, which pages are too short, which were there before."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import ftfy
from datasketch import MinHash, MinHashLSH
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree


# A window of 512 + 64 tokens is about 400 words of such prose; a document must give one
MIN_WORDS = 450
# What stands in a page without being its prose, under the names that Sphinx, DocBook, AsciiDoc, mdBook and the house
# styles of Apache and SQLite give it
LISTINGS = "pre, table, dt, .highlight, .programlisting, .screen, .synopsis, .codeblock, .listingblock, .example"
BOILERPLATE = (
    "script, style, nav, figure, h1, h2, h3, h4, h5, h6, .headerlink, .admonition-title, .seealso, "
    ".toctree-wrapper, .contents, .topic, .toc, .navheader, .navfooter, .versionadded, .versionchanged, .deprecated, "
    ".deprecated-removed, .availability, .audit-hook, .footnote, .footnotes, .citation, .refsynopsisdiv, "
    ".fancy_toc, .fancy_title, .nosearch, .imgcontainer, #quickview, .stableabi, #preamble > .toplang, #footer, "
    "#footer-text, .bottomlang, .top, .menu, .nav-wrapper, .warning.experimental"
)
SENTENCE_END = re.compile(r"[.!?][\"')\]”’»]*$")
# A small letter goes on with a sentence that a listing broke off; the others are captions
FRAGMENT = re.compile(r"[a-z]+[,;]?\s|(Listing|Figure|Table|Example) [\dA-Z]+[-.\d]*[:.]? ")
WORD = re.compile(r"[(\[\"'“‘]*[A-Za-zÀ-ÿ]+(?:['’-][A-Za-zÀ-ÿ]+)*['’]?[)\]\"'”’.,;:!?]*$")
FUNCTION_WORDS = frozenset("the of and to a in is that for it as be are with on this by or an not was".split())
TITLE_SUFFIX = re.compile(r" (—|-) [^—]*(documentation|Version [\d.]+|Rust.*|[Tt]he \S+ [Bb]ook)$")
CLEANING = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, normalization="NFC")


@dataclass
class Page:
    """One file of a source. `chapter` is what it may be joined with where it is too short."""

    key: str
    title: str
    chapter: str
    paragraphs: list[str]
    prose_share: float = 1.0  # the kept paragraphs' share of all of the page's words

    @property
    def words(self) -> int:
        return sum(len(paragraph.split()) for paragraph in self.paragraphs)


def read_html(data: bytes, content: str, chapter: str | None) -> tuple[str, str | None, list[str], float]:
    """
    Title, chapter, prose paragraphs and their share of the page's words.

    Entries of a reference that say in a line what a name stands for go with the name.

    Args:
        data (`bytes`):
            The page, UTF-8.
        content (`str`):
            CSS selector of what holds the text.
        chapter (`str`, *optional*):
            CSS selector of the chapter's name.
    """
    tree = HTMLTree.parse(data.decode("utf-8", errors="replace"))
    title = TITLE_SUFFIX.sub("", clean(tree.title or ""))
    heading = tree.body.query_selector(chapter) if chapter else None
    for entry in reversed(tree.body.query_selector_all("dd")):  # inner ones first
        if len(entry.text.split()) < 40:
            entry.decompose()
    body = (tree.body.query_selector(content) or tree.body).html
    skipped = [selector.strip() for selector in BOILERPLATE.split(",")]
    listings = [selector.strip() for selector in LISTINGS.split(",")]
    options = {"main_content": False, "list_bullets": False, "alt_texts": False}
    everything = len(extract_plain_text(body, skip_elements=skipped, **options).split())
    text = extract_plain_text(body, skip_elements=[*skipped, *listings], **options)
    paragraphs = prose_paragraphs(text.split("\n"))
    share = sum(len(paragraph.split()) for paragraph in paragraphs) / max(everything, 1)
    return title, clean(heading.text) if heading else None, paragraphs, share


def clean(text: str) -> str:
    """One line, composed Unicode, no control characters and no mojibake."""
    return " ".join(ftfy.fix_text(text, CLEANING).replace("\u00ad", "").replace("¶", "").split())


def prose_paragraphs(lines: Iterable[str]) -> list[str]:
    """The lines that read as sentences. What only leads to a listing, and ends with a colon, goes with the listing."""
    paragraphs = []
    for line in lines:
        paragraph = clean(line)
        if paragraph.endswith(":"):
            sentences = re.match(r".*[.!?](?=\s)", paragraph)
            paragraph = sentences[0] if sentences else ""
        words = paragraph.split()
        ordinary = sum(WORD.match(word) is not None for word in words)
        is_sentence = SENTENCE_END.search(paragraph) and not FRAGMENT.match(paragraph) and "\ufffd" not in paragraph
        if is_sentence and len(words) >= 5 and ordinary >= 0.75 * len(words):
            paragraphs.append(paragraph)
    return paragraphs


def is_prose(page: Page) -> bool:
    """
    Whether a page is running English rather than a listing with remarks or a list of names: a quarter of its words
    were kept, and of these a fifth are the commonest twenty, which make up a third of ordinary prose.
    """
    words = [word.lower() for paragraph in page.paragraphs for word in paragraph.split()]
    common = sum(word in FUNCTION_WORDS for word in words)
    return page.prose_share >= 0.25 and common >= 0.2 * len(words)


@dataclass
class Duplicates:
    """
    Remembers what has come, so that whichever source is read first keeps it.

    Two documents are near-duplicates when the Jaccard similarity of their five-word shingles, estimated by MinHash, is
    at least `threshold` ([Broder 1997](https://doi.org/10.1109/SEQUEN.1997.666900)). A paragraph of 40 characters or
    more that comes again word for word is dropped too: what pages share is boilerplate, and a page inside a longer one
    is not like it by Jaccard.
    """

    threshold: float = 0.5
    paragraphs: set[bytes] = field(default_factory=set)
    documents: dict[str, MinHash] = field(default_factory=dict)

    def __post_init__(self):
        self.index = MinHashLSH(threshold=self.threshold, num_perm=128)

    def new_paragraphs(self, paragraphs: Iterable[str]) -> list[str]:
        kept = []
        for paragraph in paragraphs:
            letters = re.sub(r"\W+", "", paragraph.lower())
            seen = hashlib.blake2b(letters.encode(), digest_size=16).digest()
            if len(paragraph) < 40 or seen not in self.paragraphs:
                kept.append(paragraph)
                self.paragraphs.add(seen)
        return kept

    def is_new(self, document_id: str, text: str) -> bool:
        words = re.findall(r"\w+", text.lower())
        shingles = {" ".join(words[start : start + 5]).encode() for start in range(len(words) - 4)}
        signature = MinHash(num_perm=128)
        signature.update_batch(sorted(shingles))
        if any(signature.jaccard(self.documents[other]) >= self.threshold for other in self.index.query(signature)):
            return False
        self.index.insert(document_id, signature)
        self.documents[document_id] = signature
        return True


def join_short_pages(pages: Iterable[Page]) -> Iterator[Page]:
    """
    Pages of at least `MIN_WORDS` words. Shorter ones follow, joined with their chapter's other short ones in the order
    in which they came; what then is still too short is left out.
    """
    short: dict[str, list[Page]] = {}
    for page in pages:
        if page.words >= MIN_WORDS:
            yield page
        else:
            short.setdefault(page.chapter, []).append(page)
    for chapter, parts in short.items():
        joined, count = Page("", "", chapter, []), 0
        for part in parts:
            joined.title = joined.title or part.title
            joined.paragraphs += part.paragraphs
            if joined.words >= MIN_WORDS:
                count += 1
                joined.key = f"{chapter}#{count}"
                yield joined
                joined = Page("", "", chapter, [])
