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
An evaluation on disk, written as it goes, so that one that was cut off goes on where it stopped.

    settings.json   what was measured: the pair, the data, the readers
    rows.jsonl      a line for each window and setting, as [`PairReadings.read`] gives them
    costs.jsonl     of a walk along long documents: a line for each length
    compressors.jsonl   the same of other compressors; contexts.jsonl is for outside systems, to write gists of
    measures.json, plots/, evaluation.html, of tasks tables.md: made from the rows at the end, and anew whenever the rows
                    are complete
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ..common.files import replace_file
from ..common.folder_lock import LOCK_FILE, held
from ..common.run_files import PLOTS_DIR, finite


SETTINGS_FILE, ROWS_FILE, MEASURES_FILE = "settings.json", "rows.jsonl", "measures.json"
COMPRESSORS_FILE, CONTEXTS_FILE, COSTS_FILE = "compressors.jsonl", "contexts.jsonl", "costs.jsonl"
PAGE_FILE, TABLES_FILE = "evaluation.html", "tables.md"


class EvaluationFolder:
    """
    A context, which holds the folder against other evaluations until its end.

    Args:
        path (`str` or `os.PathLike`):
            Made if there is none.
        settings (`dict`):
            Everything that decides what the rows are, fit for JSON.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether another evaluation there is removed.
        defaults (`dict`, *optional*):
            What a setting was where a folder does not name it, since it decided no row.

    Raises:
        ValueError: if the folder holds an evaluation with other settings, or files that are not an evaluation's; or if
            another evaluation is being written there, with who writes it.
    """

    def __init__(self, path: str | os.PathLike, settings: dict, overwrite: bool = False, defaults: dict | None = None):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(self.path))
            file = self.path / SETTINGS_FILE
            if file.is_file() and not overwrite:
                self._check_same(self._settings_in(file), settings, defaults or {})
            elif file.is_file():
                self._remove()
            # With what a kill leaves beside the two
            elif any(not path.name.startswith((LOCK_FILE, SETTINGS_FILE)) for path in self.path.iterdir()):
                raise ValueError(f"{self.path} holds other files. Choose a new `--output_dir`.")
            _replace(file, settings)
            self._holding = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception):
        self._holding.close()

    def rows(
        self, unit: int | Callable[[list[dict]], int], name: str = ROWS_FILE, total: int | None = None
    ) -> list[dict]:
        """What has been measured: all of it if that is `total` rows, else whole units, of so many rows or, where that
        differs, as many rows as a function of them says. What was cut off is dropped."""
        file = self.path / name
        if not file.is_file():
            return []
        lines = file.read_bytes().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
        whole = unit(rows) if callable(unit) else len(rows) - len(rows) % unit
        kept = len(rows) if len(rows) == total else whole
        os.truncate(file, sum(map(len, lines[:kept])))
        return rows[:kept]

    def append(self, rows: list[dict], name: str = ROWS_FILE):
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def write_measures(self, measures: dict):
        _replace(self.path / MEASURES_FILE, finite(measures))

    def _settings_in(self, file):
        try:
            settings, why = json.loads(file.read_text(encoding="utf-8")), "it holds no JSON object"
        except ValueError as error:
            settings, why = None, error
        if not isinstance(settings, dict):
            raise ValueError(
                f"{file} is damaged, so that what was measured there is not known: {why}. Choose another `--output_dir`, or "
                "pass `--overwrite`."
            )
        return settings

    def _remove(self):
        """The evaluation, and nothing else that somebody has put beside it."""
        files = ROWS_FILE, COMPRESSORS_FILE, CONTEXTS_FILE, COSTS_FILE, MEASURES_FILE, PAGE_FILE, TABLES_FILE
        for name in (*files, SETTINGS_FILE):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / PLOTS_DIR, ignore_errors=True)

    def _check_same(self, found, wanted, defaults):
        found, wanted = (
            {name: values.get(name, defaults.get(name)) for name in {**wanted, **found}} for values in (found, wanted)
        )
        different = [name for name in wanted if found[name] != wanted[name]]
        if different:
            name = different[0]
            raise ValueError(
                f"{self.path} holds an evaluation with other settings: `{name}` was {found[name]}, now "
                f"{wanted[name]}. Choose another `--output_dir`, or pass `--overwrite`."
            )


def _replace(file, values):
    # A name that is not UTF-8, as files may have, is escaped as JSON does
    content = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    replace_file(file, content.encode(errors="backslashreplace"))


def read_measures(directory: str | os.PathLike) -> dict:
    """What `measures.json` holds."""
    return json.loads(Path(directory, MEASURES_FILE).read_text(encoding="utf-8"))


def read_rows(directory: str | os.PathLike) -> list[dict]:
    """All rows of an evaluation that is complete."""
    with open(Path(directory, ROWS_FILE), encoding="utf-8") as file:
        return [json.loads(line) for line in file]
