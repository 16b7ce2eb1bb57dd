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

"""Commands that docstrings, pages and the Makefile give for examples and research name what is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PLACES = [
    ROOT / "README.md",
    ROOT / "Makefile",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("configs/*.yaml"),
    *ROOT.glob("research/**/*.md"),
    *(path for folder in ("examples", "research", "tests", "trl_gist") for path in (ROOT / folder).rglob("*.py")),
]
PLACES.remove(Path(__file__))
MODULES = re.compile(r"python[\d.]* -m ((?:examples|research)\.[\w.]+)|\"-m\", \"(research\.[\w.]+)\"")
FILES = re.compile(r"(?:python[\d.]*|launch) ((?:examples|research|tests)/\S+\.py)|(?<![\w/])(research/\S+?\.py)\b")


def found(pattern):
    return sorted(
        {name for path in PLACES for pair in pattern.findall(path.read_text("utf-8")) for name in pair} - {""}
    )


@pytest.mark.parametrize("module", found(MODULES))
def test_a_module_that_is_to_be_run_is_there(module):
    assert find_spec(module) is not None


@pytest.mark.parametrize("file", found(FILES))
def test_a_script_that_is_named_is_there(file):
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("folder", ["examples", "research"])
def test_no_script_changes_where_modules_are_looked_for(folder):
    assert not [path for path in (ROOT / folder).rglob("*.py") if "sys.path" in path.read_text("utf-8")]
