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

"""A test that gives up on processes of its own leaves none of them behind."""

import subprocess
import sys

import psutil
import pytest
from launching import ending, finished


LAUNCHER = """
import subprocess, sys
sleep = "print(flush=True); import time; time.sleep(600)"
rank = subprocess.Popen([sys.executable, "-c", sleep], stdout=subprocess.PIPE)
rank.stdout.readline()
print(rank.pid, flush=True)
rank.wait()
"""
COMMAND = [sys.executable, "-c", LAUNCHER]


def test_the_processes_of_a_launcher_end_with_it():
    with pytest.raises(RuntimeError, match="a test"):
        with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as launcher, ending(launcher):
            rank = psutil.Process(int(launcher.stdout.readline()))
            assert rank.is_running()
            raise RuntimeError("a test")
    rank.wait(timeout=10)  # it is this process's no more, and may take a moment
    assert launcher.returncode is not None and not psutil.pid_exists(launcher.pid)


def test_a_command_that_takes_too_long_ends_with_all_it_has_started():
    before = set(psutil.Process().children())
    with pytest.raises(subprocess.TimeoutExpired):
        finished(COMMAND, 2)
    assert set(psutil.Process().children()) == before


def test_what_a_command_wrote_is_its_result():
    done = finished([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"], 60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
