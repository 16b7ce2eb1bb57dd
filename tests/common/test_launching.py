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

"""A test that gives up on processes of its own leaves none of them behind; forks are as good as they are."""

import subprocess
import sys
import time

import psutil
import pytest
from launching import TRAINING, ending, finished, fork, forked, launch


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


def test_what_a_fork_wrote_is_its_result_and_it_begins_with_all_that_is_imported(tmp_path):
    script = tmp_path / "script.py"
    says = "import os, sys; print(sys.argv[1:], os.environ['SOME']); print('err', file=sys.stderr); sys.exit(3)"
    script.write_text(f"import sys; assert {TRAINING!r} in sys.modules and __name__ == '__main__'\n{says}")
    done = forked([str(script), "an argument"], 60, SOME="thing")
    assert (done.returncode, done.stdout, done.stderr) == (3, "['an argument'] thing\n", "err\n")
    module = forked(["-m", "trl_gist.cli", "--version"], 60)
    assert (module.returncode, module.stdout.split()[0]) == (0, "trl-gist")


def test_a_fork_ends_with_all_it_has_started():
    with fork(subprocess.run, ["sleep", "600"]) as process:
        parent = psutil.Process(process.pid)
        while not parent.children():
            time.sleep(0.01)
        (child,) = parent.children()
    child.wait(timeout=10)
    assert process.exitcode == -9


def test_a_fork_that_takes_too_long_is_ended(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time; time.sleep(600)")
    with pytest.raises(subprocess.TimeoutExpired):
        forked([str(script)], 0.1)


def test_a_rank_that_fails_fails_its_launch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, time; assert os.environ['RANK'] == '0', 'the second rank'\ntime.sleep(300)")
    with pytest.raises(AssertionError, match="AssertionError: the second rank"):
        launch(script)


@pytest.mark.parametrize("config", [None, "zero3"])
def test_ranks_are_forks_that_know_what_their_launcher_says(tmp_path, config):
    script = tmp_path / "script.py"
    known = f"os.environ['WORLD_SIZE'], os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE'), {TRAINING!r} in sys.modules"
    script.write_text(f"import os, sys; open(sys.argv[1] + os.environ['RANK'], 'w').write(repr(({known})))")
    launch(script, str(tmp_path / "rank"), config=config)
    expected = repr(("2", config and "3", True))
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == [expected, expected]
