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

"""What all pages share: how they are rendered, how figures are written, plots inlined; the templates lie beside it."""

import os
import re
import time
from pathlib import Path, PureWindowsPath

import jinja2

from ...common.run_files import PLOTS_DIR
from ...common.statistics import is_number, measured, with_error
from ..folder import PAGE_FILE
from .labels import CONTROLS


_HEADLINE = ("null", "shuffled", "generator_only", "tail")


def render_page(template: str, **content) -> str:
    """A page as HTML, from one of evaluation's templates, named by its path from there, and what it shows."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trl_gist.evaluation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"measure": measure, "number": number}
    return environment.get_template(template).render(now=time.strftime("%Y-%m-%d %H:%M %Z"), **content)


def write_page(directory: str | os.PathLike, template: str, report: dict, captions: dict[str, str], **content) -> Path:
    """Writes the page of an evaluation into its folder, with its measures and those of its plots that have a caption;
    returns its path."""
    plots, path = inline_plots(Path(directory, PLOTS_DIR), captions), Path(directory, PAGE_FILE)
    page = render_page(template, name=Path(report["pair"]).name, report=report, plots=plots, **content)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def measure(value, error=None, sign: str = "", digits: int = 3) -> str:
    """[`with_error`] as it is printed on a page."""
    return with_error(value, error, digits, sign).replace("-", "−")


def measure_of(measures: dict, name: str, sign: str = "", digits: int = 3, scale: float = 1) -> str:
    """[`measured`] as it is printed on a page."""
    return measured(measures, name, digits, sign, scale).replace("-", "−")


def number(value) -> str:
    """Any scalar of a log, with as many digits as it needs."""
    if not is_number(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def spread(items: list, count: int) -> list:
    """At most `count` of them, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def headline(measures: dict, prefix: str = "") -> tuple[str, list[tuple[str, str, str]]]:
    """
    What the gist gains over its controls.

    Args:
        measures (`dict`):
            `gain_over_{control}` and their standard errors under the same names with `_se`.
        prefix (`str`, *optional*, defaults to `""`):
            What their names begin with.

    Returns:
        `tuple[str, list]`: What a sentence says of the gist, and tiles: each a label, a figure and a grade.
    """
    parts, tiles = [], []
    for name in _HEADLINE:
        gain, error = (measures.get(f"{prefix}gain_over_{name}{end}") for end in ("", "_se"))
        if is_number(gain):
            words, grade = _gain_against(CONTROLS[name], gain, error)
            parts.append(words)
            tiles.append((f"gain over {CONTROLS[name]}", measure(gain, error, sign="+"), grade))
    return "; it ".join(parts), tiles


def _gain_against(control, gain, error):
    """In words, and graded."""
    if not is_number(error):
        return f"is {measure(gain)} from {control} (standard error unknown)", "even"
    if abs(gain) <= 2 * error:
        return f"is within two standard errors of {control} ({measure(gain, error)})", "even"
    beats = gain > 0
    words = f"{'beats' if beats else 'loses to'} {control} by {measure(abs(gain), error)}"
    return words, "good" if beats else "bad"


def without_folders(name: str) -> str:
    """A checkpoint's or a file's name without the folders of somebody's machine."""
    is_path = name.startswith(("/", "~/", "./", "../")) or PureWindowsPath(name).is_absolute()
    return PureWindowsPath(name).name if is_path else name


def inline_plots(directory: Path, captions: dict[str, str]) -> list[tuple[str, str, str]]:
    """Name, caption and SVG of those that are there, to be put into one page: each with ids of its own."""
    plots = []
    for name, caption in captions.items():
        file = directory / f"{name}.svg"
        if file.is_file():
            svg = file.read_text(encoding="utf-8")
            svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
            plots.append((name, caption, own_ids(svg, f"{name}-")))
    return plots


def own_ids(svg: str, prefix: str) -> str:
    """An SVG whose ids are none of another's on the page."""
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
