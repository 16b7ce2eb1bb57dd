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
What commands that measure share: the pairs they load, the console they print on, and an evaluation that goes on where it
was cut off, from the folder it opens to the page it ends with.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from transformers import PreTrainedModel

from ..evaluation import load_teacher
from ..evaluation.folder import EvaluationFolder
from ..evaluation.held_out.readings import window_blocks
from ..inference.compactor import GistCompactor
from ..models.fingerprints import fingerprint
from ..pair import PairConfig
from ..version import __version__
from .arguments import HeldOutArguments, load_pair


# Of the arguments, what decides no row: where models are and come from, whose weights tell, and what is read besides
_DECIDE_NO_ROW = {"device", "dtype", "revision", "trust_remote_code", "output_dir", "overwrite", "readers"}
# What an evaluation of one target a window is not told
_ONLY_WHERE_GIVEN = {
    *("target_kinds", "targets_per_context", "target_floor", "cue_length", "far_offset", "recall_age"),
    "encoding",
}


def load_pairs(
    args: HeldOutArguments, paths: dict[str, str]
) -> tuple[GistCompactor, PreTrainedModel, dict[str, GistCompactor], dict[str, nn.Module]]:
    """The pair, its teacher, and the pairs beside it by their names; and all their models by role, as for [`open_folder`]."""
    compactor = load_pair(args)
    teacher = load_teacher(compactor, args.teacher, args.trust_remote_code)
    others = {name: load_pair(args, path) for name, path in paths.items()}
    models = {"teacher": teacher}
    for name, pair in {"pair": compactor, **others}.items():
        models |= {f"{name} summarizer": pair.summarizer, f"{name} generator": pair.generator}
    return compactor, teacher, others, models


def who_read_what(args: HeldOutArguments, pair: PairConfig) -> dict:
    """The head of a report: the pair, the documents, the teacher and the version, by their names."""
    teacher = args.teacher or pair.base_models["teacher"]
    return {"pair": args.pair, "dataset": args.dataset, "teacher": teacher, "version": __version__}


def open_folder(args: HeldOutArguments, kind: str, models: dict[str, nn.Module]) -> EvaluationFolder:
    """
    The folder that was asked for, or `kind` in the pair's, held until its block ends.

    Args:
        args ([`HeldOutArguments`]):
            Of the command. A folder where one that decides the rows was another holds another evaluation.
        kind (`str`):
            What the evaluation is, in one word.
        models (`dict[str, nn.Module]`):
            Whose weights decide the rows, by role.

    Raises:
        ValueError: see [`EvaluationFolder`].
    """
    pair = Path(args.pair)
    default = pair / kind if pair.is_dir() else Path(f"{args.pair.split('/')[-1]}-{kind}")
    values = dataclasses.asdict(args)
    decide_no_row = _DECIDE_NO_ROW
    if values.get("max_windows") is None:  # else the first windows of a stream are taken, and of a dataset spread ones
        decide_no_row = decide_no_row | {"streaming"}
    decide_no_row = decide_no_row | {name for name in _ONLY_WHERE_GIVEN if values.get(name) is None}
    settings = {
        **{name: value for name, value in values.items() if name not in decide_no_row},
        "fingerprints": {role: fingerprint(model) for role, model in models.items()},
        "version": __version__,
    }
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    return EvaluationFolder(args.output_dir or default, settings, args.overwrite, defaults)


def measure_rows(
    folder: EvaluationFolder,
    measure: Callable[[list[dict]], Iterator[list[dict]]],
    windows: int | None,
    settings: int = 1,
    what: str = "Windows",
) -> list[dict]:
    """
    All rows of an evaluation: those that the folder has, and those still to be measured, written as they come.

    Args:
        folder ([`EvaluationFolder`]):
            Where they are and go.
        measure (`Callable`):
            Takes the rows that there are and yields the others, some windows at a time.
        windows (`int`, *optional*):
            How many windows there are, if that is known.
        settings (`int`, *optional*, defaults to `1`):
            Rows of a window, or of each of its targets.
        what (`str`, *optional*, defaults to `"Windows"`):
            What the progress bar counts.
    """

    def whole(rows):
        return max((end for _, end in window_blocks(rows, settings)), default=0)

    rows = folder.rows(whole)
    done = len(window_blocks(rows, settings))
    console = Console(stderr=True)
    if done:
        console.print(f"{done} {what.lower()} were measured before; going on from there")
    try:
        with progress_bar(console) as progress:
            task = progress.add_task(what, total=windows, completed=done)
            for batch in measure(rows):
                folder.append(batch)
                rows += batch
                progress.advance(task, len(window_blocks(batch, settings)))
    except KeyboardInterrupt:
        measured = len(window_blocks(rows, settings))
        console.print(f"{measured} {what.lower()} are measured and kept; the same command goes on from there")
        raise
    return rows


def plain_console(width: int = 0) -> Console:
    """On which names of files and of kinds are what they are, whatever signs are in them; at least so wide: in a file, and
    in a narrow terminal, whole lines are better than figures cut short."""
    console = Console(markup=False, emoji=False)
    console.width = max(console.width, width)
    return console


def progress_bar(console: Console) -> Progress:
    """That counts, and says for how long it will."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console)


def finish(
    folder: EvaluationFolder,
    draw: Callable[[str | os.PathLike], list[Path]],
    write_page: Callable[[str | os.PathLike], Path],
):
    """Draws the plots, writes the page and says where they are."""
    draw(folder.path)
    print(f"Rows, measures and plots are in {folder.path}; on one page: {write_page(folder.path)}")
