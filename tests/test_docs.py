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

"""What README.md and docs/ name is there. That the site builds, and that its links lead somewhere, is `make docs`."""

import ast
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

from trl_gist.cli import main


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "configs|docs|examples|research|tests|trl_gist"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def found(page, pattern):
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_readme_is_read_in_five_minutes():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@each_page
def test_lines_are_of_at_most_100_columns_but_in_tables(page):
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 100]
    assert [line for line in lines if page == README or not line.startswith("|")] == []


@each_page
def test_links_lead_to_files(page):
    links = [link.partition("#")[0] for link in found(page, r"\]\(([^)\s]+)\)") if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    home = ROOT if page == README else ROOT / "docs"  # what the site has
    assert [link for link in links if not (page.parent / link).resolve().is_relative_to(home)] == []


def test_the_site_has_every_page():
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page != README}
    assert set(found(ROOT / "mkdocs.yml", r"^ +- ([\w/]+\.md)$")) | {"index.md"} == pages


@each_page
def test_paths_exist(page):
    # The command that draws docs/images/original/rate names it without `.png`
    paths = [path.rstrip(".") for path in found(page, rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*)")]
    assert [path for path in paths if not (ROOT / path).exists() and not list(ROOT.glob(f"{path}.*"))] == []


@each_page
def test_commands_run_what_exists(page):
    modules = [
        module for module in found(page, r"python -m ([\w.]+)") if module.startswith(("examples.", "research."))
    ]
    modules = [module for module in modules if not module.endswith(".")]  # as `research.<page>.<script>`
    assert [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").is_file()] == []
    targets = found(ROOT / "Makefile", r"^([a-z-]+):")
    assert set(found(page, r"(?:^|`)make ([a-z-]+)")) <= set(targets)


@each_page
def test_commands_of_trl_gist_exist(page, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    known = re.findall(r"^    ([a-z]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert {"train", "report"} < set(known) and set(found(page, r"(?:^|[`\"] ?)trl-gist ([a-z]+)")) <= set(known)


@each_page
def test_names_of_the_package_exist(page):
    for name in found(page, r"(?<![\w./])(trl_gist(?:\.[A-Za-z_]\w*)+)"):
        pkgutil.resolve_name(name)


@each_page
def test_imports_of_the_package_work(page):
    for module, names in found(page, r"^ *from (trl_gist[\w.]*) import ([\w, ]+)"):
        for name in names.split(","):
            assert hasattr(import_module(module), name.strip()), (module, name)


@each_page
def test_python_can_be_parsed(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        ast.parse(block)
