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


"""What a user hears of calls that are not theirs."""

import os
import subprocess
import sys

import trl_gist


def test_names_that_dependencies_call_are_not_held_against_the_user():
    """In a process of its own: pytest has filters of its own."""
    says = "import warnings, trl_gist\n" + "".join(
        f"warnings.warn('{text}', FutureWarning)\n"
        for text in ("`gradient_checkpointing_enable` is old", "`is_gradient_checkpointing` is old", "`mine` is old")
    )
    root = os.path.dirname(os.path.dirname(trl_gist.__file__))
    run = subprocess.run([sys.executable, "-c", says], capture_output=True, text=True, env={"PYTHONPATH": root})
    assert run.returncode == 0 and run.stderr.count("FutureWarning") == 1 and "`mine` is old" in run.stderr
