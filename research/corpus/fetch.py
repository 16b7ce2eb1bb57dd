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

"""Packages as they are published, kept in a folder, and read without being installed or unpacked."""

import hashlib
import os
import shlex
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class CorpusError(RuntimeError):
    """What a person has to mend: a tool to install, a file to delete, room to make."""


@dataclass(frozen=True)
class DebianPackage:
    """
    A package of the Debian release that `apt-get` is set up for.

    An archive keeps only the newest build of a release, so that a version cannot be asked for: it is written down.
    `apt-get` checks the download against the archive's signed index.
    """

    name: str

    def fetch(self, cache: Path) -> Path:
        found = sorted(cache.glob(f"{self.name}_*.deb"))
        if not found:
            _fetch(["apt-get", "download", self.name], cache, f"{self.name}_*.deb")
            found = sorted(cache.glob(f"{self.name}_*.deb"))
        if len(found) > 1:
            raise CorpusError(f"{cache} holds {len(found)} versions of {self.name}. Delete all but one of them.")
        return found[0]

    def describe(self, path: Path) -> dict[str, str]:
        version = path.name.split("_")[1].replace("%3a", ":")
        return {"package": self.name, "version": version, "file": path.name, "sha256": sha256_of(path)}

    def members(self, path: Path, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        _require("dpkg-deb", path.name)
        command = ["dpkg-deb", "--fsys-tarfile", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unpacking:
            yield from _members(path, unpacking.stdout, "r|", f"./{start}", end)
            unpacking.stdout.read()  # the padding behind the last member, for dpkg-deb to end well
            said = unpacking.stderr.read().decode(errors="replace")
        if unpacking.returncode != 0:
            raise _damaged(path, said.strip())


@dataclass(frozen=True)
class NpmPackage:
    """A version of an npm package. Versions are never replaced, so that its bytes are known beforehand."""

    name: str
    pinned: str
    sha256: str

    def fetch(self, cache: Path) -> Path:
        path = cache / f"{self.name.removeprefix('@').replace('/', '-')}-{self.pinned}.tgz"
        if not path.exists():
            _fetch(["npm", "pack", "--silent", f"{self.name}@{self.pinned}"], cache, path.name)
        found = sha256_of(path)
        if found != self.sha256:
            raise _damaged(path, f"its sha256 is {found}, not {self.sha256}")
        return path

    def describe(self, path: Path) -> dict[str, str]:
        return {"package": self.name, "version": self.pinned, "file": path.name, "sha256": self.sha256}

    def members(self, path: Path, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        with path.open("rb") as file:
            yield from _members(path, file, "r:gz", f"package/{start}", end)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _members(path, file, mode, start, end):
    """Names, from behind `start`, and contents of the files below `start` whose names end with `end`."""
    try:
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for member in archive:
                if member.isfile() and member.name.startswith(start) and member.name.endswith(end):
                    yield member.name.removeprefix(start), archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path, what):
    return CorpusError(f"{path} is damaged: {what}. Delete it and run again.")


def _require(tool, what):
    if shutil.which(tool) is None:
        raise CorpusError(
            f"{what} needs `{tool}`, which is not on this machine's PATH. Install it, run on a machine that has it and "
            "copy the --cache folder from there, or leave the source out with --sources."
        )


def _fetch(command, cache, pattern):
    """Runs a client in a folder of its own, where it finds what a killed run left, and moves what it brought."""
    _require(command[0], command[-1])
    partial = cache / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(command, cwd=partial, capture_output=True, text=True)
    arrived = sorted(partial.glob(pattern))
    if ran.returncode != 0 or not arrived:
        raise CorpusError(
            f"Could not fetch {command[-1]}. Once the cause is mended run again, which goes on from here; or run by "
            f"hand in {cache}: {shlex.join(command)}\n{command[0]} said: {ran.stderr.strip()}"
        )
    os.replace(arrived[-1], cache / arrived[-1].name)
