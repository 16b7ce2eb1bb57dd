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
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

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


_FORKS = multiprocessing.get_context("forkserver")
TRAINING = "trl_gist.trainer.gist_trainer"
_LAUNCHERS = ("torch.distributed.run", "accelerate.commands.launch")
_FORKS.set_forkserver_preload([TRAINING, "trl_gist.inference.compactor", "deepspeed", *_LAUNCHERS, __name__])


def launch(
    script: str | Path, *arguments: str, processes: int = 2, config: str | None = None
) -> subprocess.CompletedProcess:
    """What it has written, under DDP or as one of `configs/accelerate` says. Fails with the end of its stderr."""
    torch, accelerate = _LAUNCHERS
    if config is None:
        launcher = [torch, "--standalone", "--nproc_per_node", str(processes)]
    else:
        launcher = [accelerate, "--config_file", str(ROOT / "configs" / "accelerate" / f"{config}.yaml")]
        launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
    # As the options `--run-path` and `--start-method`, of which accelerate has no twins: ranks too are forks
    ranks = {"PET_RUN_PATH": "1", "PET_START_METHOD": "fork"}
    done = forked(["-m", *launcher, str(script), *arguments], 900, **ranks)
    assert done.returncode == 0, done.stderr[-6000:]
    return done


def forked(arguments: list[str], timeout: float, **environment: str) -> subprocess.CompletedProcess:
    """
    What `python ARGUMENTS` has written once it has ended, without the ten seconds in which each process imports what
    all of them do: by a fork of a process that has done no more than that. Not for what a process reads as it imports.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        with fork(_interpret, arguments, streams, {**os.environ, "PYTHONPATH": PYTHONPATH, **environment}) as process:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, *(each.read_text() for each in streams))


@contextlib.contextmanager
def fork(target, *arguments) -> Iterator[multiprocessing.Process]:
    """`target(*arguments)` in such a fork. It ends with the block at the latest, and all those below it."""
    with mock.patch.dict(os.environ, PYTHONPATH=PYTHONPATH):  # it finds what it imports by this alone
        multiprocessing.forkserver.ensure_running()
    process = _FORKS.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        if process.exitcode is None:
            _kill(process.pid)
        process.join()


def _interpret(arguments, streams, environment):
    for descriptor, path in enumerate(streams, start=1):
        with path.open("wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


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
            _kill(process.pid)


def _kill(pid: int):
    parent = psutil.Process(pid)
    for each in [
        parent,
        *parent.children(recursive=True),
    ]:  # it first: it could end by itself, as if all had gone well
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
