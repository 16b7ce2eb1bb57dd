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


"""What is published: the sdist and the wheel that `make package` builds, and the files beside the code."""

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from launching import ROOT, finished

from trl_gist import __version__
from trl_gist.cli import main


@pytest.fixture(scope="module")
def tracked():
    """Paths of the files that git has."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a checkout, whose files are those of the sdist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def dist(tracked, tmp_path_factory):
    """The sdist, and the wheel that is built from it; from a copy, which git and what it ignores are not in."""
    clone = tmp_path_factory.mktemp("a clone")
    for name in tracked:
        copy = clone / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(ROOT / name)
    done = finished([sys.executable, "-m", "build", "--no-isolation"], 120, cwd=clone)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "would be ignored" not in done.stdout + done.stderr, "setuptools would leave a folder out one day"
    return clone / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_index_takes_both(dist):
    files = sorted(map(str, dist.iterdir()))
    assert [Path(file).name for file in files] == [
        f"trl_gist-{__version__}-py3-none-any.whl",
        f"trl_gist-{__version__}.tar.gz",
    ]
    done = finished([sys.executable, "-m", "twine", "check", "--strict", *files], 60)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_sdist_is_the_clone(dist, tracked):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sorted(set(tracked) - names) == []
    made = {name for name in names if (ROOT / name).suffix and not name.startswith("trl_gist.egg-info")} - set(tracked)
    assert {Path(name).name for name in made if not name.startswith("configs/accelerate/")} <= {"PKG-INFO"}


def test_the_wheel_holds_the_package_and_nothing_else(wheel, tracked):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {name for name in tracked if name.startswith("trl_gist/")}
    assert {Path(name).suffix for name in names} >= {".py", ".yaml", ".jinja", ".css", ".typed"}


def test_the_wheel_runs_the_command_and_has_the_licence_and_the_version(wheel):
    folder = f"trl_gist-{__version__}.dist-info"
    assert "trl-gist = trl_gist.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    metadata = message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert (metadata["Version"], metadata["License"]) == (__version__, "Apache-2.0")
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def test_the_command_says_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"trl-gist {__version__}\n"


def test_the_version_stands_in_one_place_and_its_changes_on_top():
    heading = next(line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## "))
    assert heading.split()[1] == __version__
    assert __version__ not in (ROOT / "setup.cfg").read_text("utf-8")


def test_the_citation_is_that_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format asks for
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "Apache-2.0")
    assert all(author.keys() == {"name"} for author in citation["authors"])


def test_contributing_names_commands_that_are_there():
    text, makefile = ((ROOT / name).read_text("utf-8") for name in ("CONTRIBUTING.md", "Makefile"))
    for command in ("demo", "test", "lint", "docs"):
        assert f"make {command}" in text and f"\n{command}:" in makefile
