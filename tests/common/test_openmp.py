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


"""How many threads run, and how they wait, is said before torch, which reads it once, is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trl_gist.common import openmp


ROOT = Path(__file__).parents[2]
# What the environment says at the moment that torch's libraries are to be loaded, where the probe ends
PROBE = """
import builtins, os
load = builtins.__import__
def watched(name, *args, **kwargs):
    if name.split(".")[0] == "torch":
        print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), flush=True)
        os._exit(7)
    return load(name, *args, **kwargs)
builtins.__import__ = watched
{imports}
"""
IMPORTS = {
    "the library": "import trl_gist; trl_gist.GistConfig",
    "the command line": "import trl_gist.cli; import trl_gist.scripts.train",
    **{f"the {name}": f"import examples.{name}" for name in ("demo", "minimal_loop")},
}


@pytest.mark.parametrize("imports", IMPORTS)
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_how_they_wait(imports, said, expected):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    probe = PROBE.replace("{imports}", IMPORTS[imports])
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=ROOT,
        env={**environment, **said, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr[-2000:]
    assert done.stdout.split("\n")[-2] == expected


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ({"cpu.max": ""}, None),
        ({}, None),
    ],
)
def test_a_containers_share_of_the_cores(files, cores, tmp_path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert openmp.cores_of_container(tmp_path) == cores


@pytest.mark.parametrize(
    ("seen", "said", "expected"), [(64, None, "2"), (64, "5", "5"), (2, None, None), (1, None, None)]
)
def test_no_more_threads_than_the_container_has_cores(seen, said, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(seen), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "0")  # what was there comes back after the test
    monkeypatch.delenv("OMP_NUM_THREADS")
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    openmp.limit_threads(tmp_path)
    assert os.environ.get("OMP_NUM_THREADS") == expected
