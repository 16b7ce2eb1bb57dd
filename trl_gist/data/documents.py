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

"""Documents from files or the Hub, as rows with a `text`. Where files are, and what is in them, is in `files.py`."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, load_dataset
from datasets.data_files import sanitize_patterns
from datasets.exceptions import DatasetGenerationCastError, DatasetGenerationError
from datasets.packaged_modules.json.json import JsonConfig
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard
from huggingface_hub.constants import REPOCARD_NAME

from ..common.arguments import several, truth
from ..common.encodings import UTF_8, check_encoding, decoded
from ..common.files import COMPRESSIONS, files_in, filesystem_of, is_url, open_to_read, suffixes
from .files import (
    READING_FAILS,
    UnreadableFile,
    blocks_of,
    encoding_of,
    files_of,
    is_blank,
    kind_of,
    naming,
    read_text,
)


# In any other path `datasets` (5.2) sees patterns, hops (`::`) or addresses; of addresses it takes these as they are
_PLAIN_PATH, _PLAIN_URL = re.compile(r"[\w./ -]+"), re.compile(r"[\w.-]+://[\w./@-]+")
_HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
_OF_LONG_ROWS = {"on_mixed_types": None, "writer_batch_size": 1}
# Bytes of texts that are written to the cache together
_BYTES_TOGETHER = 1 << 24


def load_documents(
    source: str | PathLike | Sequence[str | PathLike],
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    text_column: str = "text",
    remove_columns: Sequence[str] | None = None,
    encoding: str | None = None,
) -> Dataset | IterableDataset:
    """
    Loads documents from files, wherever they are, or from the Hub.

    Args:
        source (`str`, `os.PathLike` or `list` of them):
            A list, or a path that is no string, names files (`.txt` and `.md`: one document each; `.jsonl`, `.json`,
            `.csv`, `.parquet`: one document a row; also `.gz`, `.bz2`, `.xz` and `.zst`) or folders of them, all of one
            kind; of a folder of data its `README.md` is no document. A string may be such a path, a dataset on the Hub,
            or a folder laid out as one: with a card (`README.md`) that lists its `configs`. A path is a path, whatever
            signs are in it; where nothing has that name, it is a pattern, as `docs/**/*.jsonl`. A URL of a store that
            fsspec knows, as `s3://bucket/folder` or `hf://datasets/user/name/*.parquet`, names files there, which come
            into the cache of `datasets`. A byte order mark is no text, and a file without rows is passed over, unless
            there is no other.
        config, split (`str`):
            Of the dataset on the Hub or the folder laid out as one.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read documents as they are needed instead of preparing all of them. JSON lines of which the first
            has over 10 MB are prepared all the same. A stream has the columns with which its files begin; of a store, with
            which the first one does.
        text_column (`str`, *optional*, defaults to `"text"`):
            The column that holds the text. It is renamed to `text`.
        remove_columns (`list[str]`, *optional*):
            Columns to leave out.
        encoding (`str`, *optional*):
            What files are in that have no byte order mark and are no UTF-8. Otherwise they are read as Windows-1252,
            with a warning, where they have few letters beyond ASCII, and else refused.

    Raises:
        ValueError: if a path does not exist, files are of no known kind or of several, or a named column is missing; or,
            with the file and its line or rows, if one cannot be read: of a stream, beyond the files' beginnings, where it
            comes to that.
    """
    streaming = truth("streaming", streaming)
    check_encoding(encoding)
    if not isinstance(source, str):
        paths = [source] if isinstance(source, PathLike) else several("source", source, "paths", "give a path")
        if not (source := [fspath(path) for path in paths]):
            raise ValueError("`source` is an empty list: give the paths of documents.")
    if remove_columns is not None:
        remove_columns = several("remove_columns", remove_columns, "names", "put it in a list")
    splits = _splits(Path(source), config) if isinstance(source, str) else None
    if splits:
        # The files are named: datasets 5.2 calls the cache of a folder after its name and its card alone, and so serves
        # what another folder of that name held, or this one before
        dataset = load_dataset(_plain_folder(Path(source)), data_files=splits, split=split, streaming=streaming)
    elif isinstance(source, str) and _may_be_on_hub(source):
        dataset = load_dataset(source, name=config, split=split, streaming=streaming)
    else:
        dataset = _load_files([source] if isinstance(source, str) else source, streaming, encoding)
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


def has_splits(source: str | PathLike | Sequence[str | PathLike]) -> bool:
    """Whether [`load_documents`] reads a dataset on the Hub, or a folder laid out as one, and no other files."""
    return isinstance(source, str) and (_may_be_on_hub(source) or bool(_splits(Path(source), None)))


def check_given(source: str | Sequence[str], of_splits: dict, of_files: dict):
    """Raises `ValueError` if of settings, by name, one has a value that nothing reads: of datasets with splits where a
    source is plain files, and of plain files where it [`has_splits`]. `None` stands for what is not given."""
    unread, kind, found = of_splits, "a dataset on the Hub, or of a folder laid out as one", "plain files"
    if has_splits(source):
        unread, kind, found = of_files, "plain files", "a dataset"
    for name, value in unread.items():
        if value is not None:
            source = source if isinstance(source, str) else " ".join(source)
            raise ValueError(f"`{name}` ({value}) is of {kind}, and {source} is {found}: leave it out.")


def datasets_on_hub(source: str | PathLike | Sequence[str | PathLike]) -> list[str]:
    """Names of the datasets on the Hub that [`load_documents`] reads of a source: none of files of this machine, or of
    other stores."""
    if isinstance(source, str) and _may_be_on_hub(source):
        return [source]
    paths = [source] if isinstance(source, (str, PathLike)) else source
    found = [_HUB_URL.match(fspath(path)) for path in paths]
    return sorted({match[1] for match in found if match})


def _splits(folder, config):
    """Files of each split, where a folder has a card that lists them; else `None`."""
    card = folder / REPOCARD_NAME
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data) if card.is_file() else None
    if not configs:
        return None
    name = config or configs.get_default_config_name() or next(iter(configs))
    if name not in configs:
        raise ValueError(f"{folder} has no config {name!r}; its card lists {', '.join(configs)}.")
    return sanitize_patterns(configs[name]["data_files"])


def _may_be_on_hub(name):
    is_path = Path(name).exists() or is_url(name) or kind_of(name) is not None or any(sign in name for sign in "*?[")
    return not is_path and name.count("/") <= 1 and not name.startswith((".", "/", "~"))


def _load_files(sources, streaming, encoding):
    files = [file for source in sources for file in files_of(source)]
    kinds = sorted({kind_of(file) for file in files})
    if len(kinds) > 1:
        first, packed = str(files[0]), suffixes(files[0])[-1] in COMPRESSIONS
        pattern = first[: -len(Path(first).name)] + "*" + "".join(suffixes(first)[-2 if packed else -1 :])
        raise ValueError(
            f"{', '.join(sources)} holds files of several kinds ({', '.join(kinds)}). Pass the files of one kind, as "
            f"{pattern}."
        )
    try:
        load = _load_texts if kinds == ["text"] else _stream_rows if streaming else _load_rows
        dataset = load(files, encoding, *([streaming] if kinds == ["text"] else []))
    except UnreadableFile:
        raise
    except READING_FAILS as error:
        raise _named(sources, files, encoding, error) from error
    if dataset is None:
        raise ValueError(f"{', '.join(sources)} holds no documents: {len(files)} files without a row.")
    return dataset


def _named(sources, files, encoding, error):
    """The error of the first file that cannot be read by itself, where they could not be prepared together."""
    cause = error if isinstance(error, DatasetGenerationCastError) else error.__cause__ or error
    if isinstance(cause, UnreadableFile):
        return cause
    try:
        for _ in _read_rows(files, kind_of(files[0]), None, encoding):
            pass
    except UnreadableFile as fault:
        return fault
    return ValueError(f"{', '.join(sources)} cannot be read: {cause}")


# ---- Rows ----


def _load_rows(files, encoding):
    """Rows of files of one kind; `None` if there are none."""
    plain, there = [], []
    for file in files:
        with naming(file, encoding):
            if not is_blank(file):
                plain.append(_plain(file, encoding))
                there.append(file)
    if not plain:
        return None
    kind = kind_of(files[0])
    options = _OF_LONG_ROWS if _begins_with_long_row(kind, plain[0]) else {}
    try:
        dataset = load_dataset(kind, data_files=plain, split="train", **options)
    except (ValueError, DatasetGenerationError) as error:
        if "corresponds to no data" in str(error):  # as datasets (5.2) has it of tables with a header alone
            return None
        dataset = _load_apart(kind, plain, there, options) if len(plain) > 1 else None
        if dataset is None:
            raise
    pa.default_memory_pool().release_unused()  # of a long text, some times what it takes
    return dataset


def _load_apart(kind, plain, files, options):
    """Of files whose columns differ each by itself: what one lacks is `None` in its rows, and whole numbers of one are
    floats where another has floats. `None` if one is damaged."""
    try:
        parts = [load_dataset(kind, data_files=[place], split="train", **options) for place in plain]
    except (ValueError, DatasetGenerationError):
        return None
    found = {}
    for file, part in zip(files, parts, strict=True):
        for name, feature in part.features.items():
            before, of = found.setdefault(name, (feature, file))
            try:
                found[name] = _holding_both(before, feature), file if before == Value("null") else of
            except pa.ArrowTypeError as error:
                raise UnreadableFile(
                    f"{file} cannot be read with {of}: its column {name!r} holds {feature}, and that one's {before}. "
                    "Make them alike, or take it out of the files."
                ) from error
    wanted = [Features({name: found[name][0] for name in part.features}) for part in parts]
    return concatenate_datasets(
        [
            part if part.features == features else part.cast(features)
            for part, features in zip(parts, wanted, strict=True)
        ]
    )


def _holding_both(one, other):
    """The feature for values of two. Raises `pyarrow.ArrowTypeError` if there is none."""
    if one == other:
        return one
    schemas = [Features({"": feature}).arrow_schema for feature in (one, other)]
    return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))[""]


def _stream_rows(files, encoding):
    """As [`_load_rows`], a shard a file. What `datasets` (5.2) raises within a stream of its own does not say where it is."""
    files = [file if is_url(file) else str(file.absolute()) for file in files]
    kind, first, schema, told = kind_of(files[0]), None, pa.schema([]), True
    for place, file in enumerate(map(_as_found, files)):
        with naming(file, encoding):
            if is_blank(file):
                continue
            plain = _plain(file, encoding, streaming=True)
            has_long = first is None and _begins_with_long_row(kind, plain)
            if not has_long:
                first = place if first is None else first
                dataset = load_dataset(kind, data_files=[plain], split="train", streaming=True)
                own = dataset.features and dataset.features.arrow_schema
                told = told and own is not None
                own = own or next(iter(dataset.with_format("arrow"))).schema
                schema = pa.unify_schemas([schema, own], promote_options="permissive")
        if has_long:
            dataset = _load_rows(list(map(_as_found, files[place:])), encoding)
            return dataset.to_iterable_dataset(min(len(files), len(dataset)))
        if is_url(file):  # the files after it come into the cache when they are needed
            break
    if first is None:
        return None
    # Without them the first row may say what later ones hold, and make 2.5 a 2
    features = Features.from_arrow_schema(schema)
    settings = {"files": files[first:], "kind": kind, "encoding": encoding}
    settings["features"] = features if kind == "json" and told else None
    return IterableDataset.from_generator(_read_rows, features=features, gen_kwargs=settings)


def _as_found(file):
    return file if is_url(file) else Path(file)


def _read_rows(files, kind, features, encoding):
    """Rows of one file after the other, JSON lines cast to these features."""
    options = {} if features is None else {"features": features}
    for file in map(_as_found, files):
        with naming(file, encoding, set(features or ())):
            if not is_blank(file):
                plain = _plain(file, encoding, streaming=True)
                yield from load_dataset(kind, data_files=[plain], split="train", streaming=True, **options)


def _begins_with_long_row(kind, file):
    """Whether the first of JSON lines is all that `datasets` (5.2) reads of a file at first. Of a row that long it takes
    ten times the memory to look for fields of mixed types, and in a stream seven times to hold it."""
    if kind != "json":
        return False
    with open_to_read(file) as stream:
        start = stream.read(JsonConfig.chunksize + 1)
    return len(start) > JsonConfig.chunksize and b"\n" not in start and not start.lstrip().startswith(b"[")


# ---- Texts ----


def _load_texts(files, encoding, streaming):
    """One document a file. `datasets` (5.2) takes up to twelve bytes of memory for each of a file's."""
    names = [file if is_url(file) else str(file.absolute()) for file in files]
    texts = {"features": Features({"text": Value("string")}), "gen_kwargs": {"files": names, "encoding": encoding}}
    if streaming:
        return IterableDataset.from_generator(_read_texts, **texts)
    sizes = [_status(file)[1] for file in files]
    together = max(1, min(1000, _BYTES_TOGETHER // max(1, sum(sizes) // len(files))))
    state = _state(f"texts {encoding or ''}".strip(), files)
    dataset = Dataset.from_generator(_read_texts, **texts, fingerprint=state, writer_batch_size=together)
    pa.default_memory_pool().release_unused()
    return dataset


def _read_texts(files, encoding):
    for file in map(_as_found, files):
        with naming(file, encoding):
            yield {"text": read_text(_fetched(file), encoding, name=file)}


# ---- What `datasets` is given ----


def _plain(file, encoding, streaming=False):
    """
    The path, or in a stream the URL, as `datasets` takes it for one: a link where it would see more in it, and the content
    as UTF-8 where it cannot read it, lacking a library, or (5.2) taking a byte order mark for text. Of what is streamed
    only the beginning is looked at, but where an `encoding` was given. Names in its cache say which file, as it was last
    changed, so that a prepared dataset is found again.
    """
    name, whole = file, not streaming or encoding is not None
    # Of a packed one in S3 `datasets` (5.2) opens the store with settings of a web server's
    if is_url(file) and not (streaming and _PLAIN_URL.fullmatch(file) and suffixes(file)[-1] not in COMPRESSIONS):
        file = _fetched(file)
    table = kind_of(file) == "parquet"
    found = UTF_8 if table else encoding_of(file, encoding, whole, name)
    copied = found != UTF_8 or suffixes(file)[-1] == ".zst" or (table and suffixes(file)[-1] in COMPRESSIONS)
    if is_url(file) and not copied:
        return file
    path = _fetched(file).absolute()
    if _PLAIN_PATH.fullmatch(str(path)) and not copied:
        return str(path)
    packed = path.suffix.lower() in COMPRESSIONS

    def make(draft):
        if not copied:
            draft.symlink_to(path)
            return
        if table:
            with open(draft, "wb") as plain:
                plain.writelines(blocks_of(path, 1 << 16))
            return
        with open(draft, "w", encoding=UTF_8, newline="") as plain:
            plain.writelines(decoded(str(name), blocks_of(path, 1 << 16), found))

    ending = path.suffixes[-2:] if packed else [path.suffix]
    state = f"{path} {found}" if found not in (UTF_8, "utf-8-sig") else path
    return _in_cache(_state(state, [path]), make, "".join(ending[:1] if copied else ending).lower())


def _fetched(file):
    """A file's path: of a URL, that of its copy in the cache, as it is there now."""
    if not is_url(file):
        return file

    def make(draft):
        filesystem, place = filesystem_of(file)
        with filesystem.open(place, "rb") as stream, open(draft, "wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)

    ending = suffixes(file)
    return Path(_in_cache(_state(file, [file]), make, "".join(ending[-2 if ending[-1] in COMPRESSIONS else -1 :])))


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

    return _in_cache(_state(path, files), make)


def _in_cache(state, make, ending=""):
    """What `make` puts there of files, once, while their state is what it is."""
    place = Path(datasets.config.HF_DATASETS_CACHE, "trl_gist", state + ending)
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
    states = ["\0".join([str(file), *map(str, _status(file))]) for file in files]
    return hashlib.sha256("\0".join([str(name), *states]).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _status(file):
    """When it was last changed, and its bytes."""
    if not is_url(file):
        return file.stat().st_mtime_ns, file.stat().st_size
    filesystem, place = filesystem_of(file)
    about = filesystem.info(place)  # what stores say of a file differs: an ETag, a commit, a time
    return sorted((name, str(value)) for name, value in about.items()), about.get("size") or 0
