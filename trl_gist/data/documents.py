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

"""Documents from local files or the Hub, as rows with a `text`."""

import codecs
import contextlib
import csv
import functools
import hashlib
import io
import lzma
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from datasets.data_files import sanitize_patterns
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.json.json import JsonConfig
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard
from pyarrow import ArrowException, parquet

from ..common.arguments import several, truth
from ..common.files import COMPRESSIONS, files_in, open_to_read


# How `datasets` reads a file, by its suffix
_BUILDERS = {
    ".txt": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
# In any other path `datasets` (5.2) sees patterns, hops (`::`) or addresses
_PLAIN_PATH = re.compile(r"[\w./ -]+")
# Bytes of a text that are decoded together, and of texts that are written to the cache together
_BLOCK, _BYTES_TOGETHER = 1 << 13, 1 << 24


def load_documents(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    text_column: str = "text",
    remove_columns: Sequence[str] | None = None,
) -> Dataset | IterableDataset:
    """
    Loads documents from local files or from the Hub.

    Args:
        source (`str`, `os.PathLike` or `list` of them):
            A list, or a path that is no string, names local files (`.txt` and `.md`: one document each; `.jsonl`,
            `.json`, `.csv`, `.parquet`: one document a row; also `.gz`, `.bz2`, `.xz` and `.zst`) or folders of them,
            all of one kind. A string may be such a path, a dataset on the Hub, or a folder laid out as one: with a
            card (`README.md`) that lists its `configs`. A path is a path, whatever signs are in it, and no pattern. A
            byte order mark is no text, and a file without rows is passed over, unless there is no other.
        config, split (`str`):
            Of the dataset on the Hub or the folder laid out as one.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read documents as they are needed instead of preparing all of them. JSON lines of which the first
            has over 10 MB are prepared all the same.
        text_column (`str`, *optional*, defaults to `"text"`):
            The column that holds the text. It is renamed to `text`.
        remove_columns (`list[str]`, *optional*):
            Columns to leave out.

    Raises:
        ValueError: if a path does not exist, files are of no known kind or of several, or cannot be read, or a named
            column is missing.
    """
    streaming = truth("streaming", streaming)
    if not isinstance(source, str):
        paths = [source] if isinstance(source, os.PathLike) else several("source", source, "paths", "give a path")
        source = [os.fspath(path) for path in paths]
    if remove_columns is not None:
        remove_columns = several("remove_columns", remove_columns, "names", "put it in a list")
    splits = _splits(Path(source), config) if isinstance(source, str) else None
    if splits:
        # The files are named: datasets 5.2 calls the cache of a folder after its name and its card alone, and so serves
        # what another folder of that name held, or this one before
        dataset = load_dataset(_plain_folder(Path(source)), data_files=splits, split=split, streaming=streaming)
    elif isinstance(source, str) and not Path(source).exists() and _may_be_on_hub(source):
        dataset = load_dataset(source, name=config, split=split, streaming=streaming)
    else:
        dataset = _load_files([source] if isinstance(source, str) else source, streaming)
    named = {"remove_columns": remove_columns or [], "text_column": [text_column] if text_column != "text" else []}
    if not any(named.values()):
        return dataset
    columns = dataset.column_names or list(next(iter(dataset), {}))
    for setting, names in named.items():
        for name in names:
            if name not in columns:
                raise ValueError(f"The dataset has no column {name!r} for `{setting}`; it has {sorted(columns)}.")
    if remove_columns:
        dataset = dataset.remove_columns(remove_columns)
        columns = [name for name in columns if name not in remove_columns]
    if text_column == "text":
        return dataset
    return dataset.remove_columns([name for name in columns if name == "text"]).rename_column(text_column, "text")


def _splits(folder, config):
    """Files of each split, where a folder has a card that lists them; else `None`."""
    card = folder / "README.md"
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data) if card.is_file() else None
    if not configs:
        return None
    name = config or configs.get_default_config_name() or next(iter(configs))
    if name not in configs:
        raise ValueError(f"{folder} has no config {name!r}; its card lists {', '.join(configs)}.")
    return sanitize_patterns(configs[name]["data_files"])


def _may_be_on_hub(name):
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and _builder(Path(name)) is None


def _load_files(sources, streaming):
    files = [file for source in sources for file in _files(Path(source))]
    builders = sorted({_builder(file) for file in files})
    if len(builders) > 1:
        first = files[0]
        suffix = "".join(first.suffixes[-2:] if first.suffix.lower() in COMPRESSIONS else first.suffixes[-1:])
        raise ValueError(
            f"{', '.join(sources)} holds files of several kinds ({', '.join(builders)}). Pass the files of one kind, "
            f"as {first.parent / f'*{suffix}'}."
        )
    try:
        full = files if builders == ["text"] else [file for file in files if not _is_blank(file)]
        if full:
            dataset = (_load_texts if builders == ["text"] else _load_rows)(full, streaming)
            pa.default_memory_pool().release_unused()  # of a long text, some times what it takes
            return dataset
    except DatasetGenerationError as error:
        raise ValueError(f"{', '.join(sources)} cannot be read: {error.__cause__}") from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"{', '.join(sources)} cannot be read: {error}") from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):  # as datasets (5.2) has it of tables with a header alone
            raise
    raise ValueError(f"{', '.join(sources)} holds no documents: {len(files)} files without a row.")


def _load_rows(files, streaming):
    """Rows of files of one kind; where the first is a long one of JSON, one by one. Of a row that long, `datasets` (5.2)
    takes ten times the memory to look for fields of mixed types, and in a stream seven times to hold it."""
    kind, options = _builder(files[0]), {"data_files": [_plain(file) for file in files], "split": "train"}
    if not (kind == "json" and _begins_with_long_row(files[0])):
        return load_dataset(kind, **options, streaming=streaming)
    dataset = load_dataset(kind, **options, on_mixed_types=None, writer_batch_size=1)
    return dataset.to_iterable_dataset(min(len(files), len(dataset))) if streaming else dataset


def _load_texts(files, streaming):
    """One document a file. `datasets` (5.2) takes up to twelve bytes of memory for each of a file's."""
    files = [file.absolute() for file in files]
    texts = {"features": Features({"text": Value("string")}), "gen_kwargs": {"files": [*map(str, files)]}}
    if streaming:
        return IterableDataset.from_generator(_read_texts, **texts)
    size = sum(file.stat().st_size for file in files) // len(files)
    together = max(1, min(1000, _BYTES_TOGETHER // max(1, size)))
    return Dataset.from_generator(_read_texts, **texts, fingerprint=_state("texts", files), writer_batch_size=together)


def _read_texts(files):
    for file in files:
        yield {"text": _read_text(file)}


def _read_text(file):
    """A file's text, as Python's `open` reads it. In blocks: one emoji makes four bytes of each letter around it."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    with open_to_read(file) as stream:
        blocks = [decoder.decode(block) for block in iter(functools.partial(stream.read, _BLOCK), b"")]
    return "".join([*blocks, decoder.decode(b"", final=True)])


def _files(path):
    if path.is_file():
        if _builder(path) is None:
            raise ValueError(f"{path} is of no known kind. Documents are read from {', '.join(_BUILDERS)} files.")
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist.")
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and _builder(file) is not None
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise ValueError(f"{path} holds no documents. They are read from {', '.join(_BUILDERS)} files.")
    return files


def _builder(path):
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return _BUILDERS.get(name.suffix.lower())


def _is_blank(file):
    """Whether no row is in it: nothing but white space and a byte order mark, an empty list, or a table without rows."""
    if file.suffix.lower() == ".parquet" and file.stat().st_size:
        try:
            return parquet.read_metadata(file).num_rows == 0
        except ArrowException as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    if _builder(file) == "csv":
        with io.TextIOWrapper(open_to_read(file), "utf-8-sig", errors="replace", newline="") as text:
            rows = filter(None, csv.reader(text))
            with contextlib.suppress(csv.Error):  # of a text that is long, but there
                return next(rows, None) is None or next(rows, None) is None
            return False
    with open_to_read(file) as stream:
        start = stream.read(1 << 12)
        return start.removeprefix(codecs.BOM_UTF8).strip() in (b"", b"[]", b"{}") and not stream.read(1)


def _begins_with_long_row(file):
    """Whether the first of JSON lines is all that `datasets` (5.2) reads of a file at first."""
    with open_to_read(file) as stream:
        start = stream.read(JsonConfig.chunksize + 1)
    return len(start) > JsonConfig.chunksize and b"\n" not in start and not start.lstrip().startswith(b"[")


def _plain(path):
    """
    The path as `datasets` takes it for one: a link where it would see more in it, and the content where it cannot read it,
    lacking a library or (5.2) taking a byte order mark for text. Names in its cache say which file, as it was last changed,
    so that a prepared dataset is found again.
    """
    path = path.absolute()
    with open_to_read(path) as stream:
        has_mark = stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    copied = has_mark or path.suffix.lower() == ".zst"
    if _PLAIN_PATH.fullmatch(str(path)) and not copied:
        return str(path)
    suffixes = [path.suffix] if _builder(path) == _BUILDERS.get(path.suffix.lower()) else path.suffixes[-2:]

    def make(draft):
        if not copied:
            draft.symlink_to(path)
            return
        with open_to_read(path) as stream, open(draft, "wb") as file:
            stream.read(len(codecs.BOM_UTF8) * has_mark)
            shutil.copyfileobj(stream, file)

    return _in_cache(path, [path], make, "".join(suffixes[:1] if copied else suffixes).lower())


def _plain_folder(path):
    """As [`_plain`], a folder whose files may be named in patterns: a folder of links, for `datasets` resolves one itself."""
    path = path.absolute()
    if _PLAIN_PATH.fullmatch(str(path)):
        return str(path)
    files = sorted(files_in(path))

    def make(draft):
        for file in files:
            link = draft / file.relative_to(path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)

    return _in_cache(path, files, make)


def _in_cache(path, files, make, suffixes=""):
    """What `make` puts in the place of a path, once, while its files are as they are."""
    place = Path(datasets.config.HF_DATASETS_CACHE, "trl_gist", _state(path, files) + suffixes)
    if place.exists():
        return str(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as drafts:
        make(Path(drafts, "draft"))
        try:
            Path(drafts, "draft").rename(place)
        except OSError:
            if not place.exists():  # another process was as quick
                raise
    return str(place)


def _state(name, files):
    """What tells files, as they are now, from others and from what they were."""
    states = [f"{file}\0{file.stat().st_mtime_ns}\0{file.stat().st_size}" for file in files]
    return hashlib.sha256("\0".join([str(name), *states]).encode("utf-8", "surrogateescape")).hexdigest()[:32]
