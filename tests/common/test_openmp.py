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


"""How waiting threads wait is said before torch, which reads it once, is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


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
