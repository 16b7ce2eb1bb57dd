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
from trl_gist.scripts import launch
from trl_gist.trainer.callbacks import STOPPED_FILE


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


@pytest.mark.parametrize(
    ("said", "expected", "imports"),
    [
        *(({}, "1000 None", imports) for imports in IMPORTS),
        # What was said is read in one place, whoever imports it
        ({"GOMP_SPINCOUNT": "7"}, "7 None", "the library"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE", "the library"),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_how_they_wait(said, expected, imports):
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
    assert openmp.cores_of_container(tmp_path, tmp_path / "own") == cores


VERSION_1 = {"cpu.cfs_quota_us": "{}00000\n", "cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("own", "shares", "cores"),
    [
        ("0::/system.slice/gists.service", {"system.slice/gists.service": 2}, 2),
        ("0::/system.slice/gists.service", {"system.slice": 3, "system.slice/gists.service": 5}, 3),
        ("0::/system.slice/gists.service", {"system.slice/other.service": 2}, None),
        ("0::/docker/123", {"": 4}, 4),  # that is mounted at the container's own
        ("0::/../..", {"": 4}, 4),
        ("5:memory:/a\n4:cpu,cpuacct:/b\n0::/a", {"cpu/a": 2, "cpu/b": 6}, 6),
        ("4:cpuset:/a\n3:name=systemd:/a:b", {"cpu/a": 2}, None),
    ],
)
def test_the_share_of_a_service_or_another_group(own, shares, cores, tmp_path):
    (tmp_path / "own").write_text(own + "\n")
    for group, share in shares.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        files = VERSION_1 if group.startswith("cpu/") else {"cpu.max": "{}00000 100000\n"}
        for name, text in files.items():
            (tmp_path / group / name).write_text(text.format(share))
    assert openmp.cores_of_container(tmp_path, tmp_path / "own") == cores


@pytest.mark.parametrize(
    ("seen", "said", "expected"), [(64, None, "2"), (64, "5", "5"), (64, "", "2"), (2, None, None), (1, None, None)]
)
def test_no_more_threads_than_the_container_has_cores(seen, said, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(seen), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "0")  # what was there comes back after the test
    monkeypatch.delenv("OMP_NUM_THREADS")
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    was_set = openmp.limit_threads(tmp_path, tmp_path / "own")
    assert os.environ.get("OMP_NUM_THREADS") == expected
    assert was_set == (None if said or expected is None else int(expected))


@pytest.mark.parametrize(
    ("flags", "set_here", "expected"),
    [
        ({"accelerate_config": "multi_gpu", "num_processes": "4"}, 9, "2"),
        ({"accelerate_config": "zero3", "num_processes": "8", "num_machines": "2", "machine_rank": "1"}, 9, "2"),
        ({"accelerate_config": "multi_gpu", "num_processes": "4"}, 2, "1"),
        ({"accelerate_config": "single"}, 9, "9"),
        ({"accelerate_config": "multi_gpu", "num_processes": "4"}, None, "9"),
    ],
)
def test_launched_processes_share_the_containers_threads(flags, set_here, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "launch_command", lambda args: seen.append(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr(openmp, "SET", set_here)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", STOPPED_FILE):
        monkeypatch.setenv(name, "")
    launch.launch(launch.LaunchArguments(**flags), [])
    assert seen == [expected]
