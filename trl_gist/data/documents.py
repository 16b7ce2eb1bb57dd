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

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset
from datasets.data_files import sanitize_patterns
from datasets.exceptions import DatasetGenerationError
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard


# How `datasets` reads a file, by its suffix
_BUILDERS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_documents(
    source: str | Sequence[str],
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    text_column: str = "text",
    remove_columns: Sequence[str] | None = None,
) -> Dataset | IterableDataset:
    """
    Loads documents from local files or from the Hub.

    Args:
        source (`str` or `list[str]`):
            A list names local files (`.txt` and `.md`: one document each; `.jsonl`, `.json`, `.parquet`: one document
            a row; also gzipped) or folders of them, all of one kind. A string may be such a path, a dataset on the
            Hub, or a folder laid out as one: with a card (`README.md`) that lists its `configs`.
        config, split (`str`):
            Of the dataset on the Hub or the folder laid out as one.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read documents as they are needed instead of preparing all of them.
        text_column (`str`, *optional*, defaults to `"text"`):
            The column that holds the text. It is renamed to `text`.
        remove_columns (`list[str]`, *optional*):
            Columns to leave out.

    Raises:
        ValueError: if a path does not exist, files are of no known kind or of several, or cannot be read, or a named
            column is missing.
    """
    splits = _splits(Path(source), config) if isinstance(source, str) else None
    if splits:
        # The files are named: datasets 5.2 calls the cache of a folder after its name and its card alone, and so serves
        # what another folder of that name held, or this one before
        dataset = load_dataset(source, data_files=splits, split=split, streaming=streaming)
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
        dataset = dataset.remove_columns(list(remove_columns))
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
        raise ValueError(
            f"{', '.join(sources)} holds files of several kinds ({', '.join(builders)}). Pass the files of one kind, "
            f"as {sources[0].rstrip('/')}/*.parquet."
        )
    options = {"sample_by": "document"} if builders == ["text"] else {}
    try:
        return load_dataset(
            builders[0], data_files=[str(file) for file in files], split="train", streaming=streaming, **options
        )
    except DatasetGenerationError as error:
        raise ValueError(f"{', '.join(sources)} cannot be read: {error.__cause__}") from error


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
    return _BUILDERS.get(Path(path.name.removesuffix(".gz")).suffix)
