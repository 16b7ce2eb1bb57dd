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

"""Launches a script on several processes, as a user does."""

import os
import subprocess
import sys
from pathlib import Path


HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
# For a process of its own that runs a test's file
PYTHONPATH = os.pathsep.join(map(str, (ROOT, HELPERS, *(ROOT / "tests").glob("[!_]*/"))))


def launch(script: str | Path, *arguments: str, processes: int = 2, config: str | None = None):
    """Under DDP, or as one of `configs/accelerate` says. Fails with the end of what it wrote to stderr."""
    if config is None:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    else:
        launcher = [
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / "configs" / "accelerate" / f"{config}.yaml"),
        ]
        launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-6000:]
