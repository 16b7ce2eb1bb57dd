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

"""Processes of their own: scripts on several of them, as a user launches them, and none that is left behind."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from trl_gist.common.folder_lock import LOCK_FILE


HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
# For a process of its own that runs a test's file
PYTHONPATH = os.pathsep.join(map(str, (ROOT, HELPERS, *(ROOT / "tests").glob("[!_]*/"))))
_HOLD = (
    "import sys; from filelock import MarkerSoftFileLock as Lock; lock = Lock(sys.argv[1]); lock.acquire(); "
    "print(flush=True); sys.stdin.read()"
)


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
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    done = finished([sys.executable, "-m", *launcher, str(script), *arguments], 400, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]


def finished(command: list[str], timeout: float, **options) -> subprocess.CompletedProcess:
    """
    What a command has written, as text, once it has ended. Whatever becomes of it, as a timeout, the processes that it
    has started end with it: `subprocess.run` would kill a launcher and leave its ranks.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, **options) as process, ending(process):
        output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def ending(process: subprocess.Popen) -> Iterator[None]:
    """Ends a process that is still there at the end of the block, and all those below it."""
    try:
        yield
    finally:
        if process.poll() is None:
            parent = psutil.Process(process.pid)
            for each in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


@contextlib.contextmanager
def held_by_another(directory: Path) -> Iterator[subprocess.Popen]:
    """A process that holds a folder as a run does, until its input or the block ends."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _HOLD, str(directory / LOCK_FILE)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process, ending(process):
        process.stdout.readline()
        yield process
