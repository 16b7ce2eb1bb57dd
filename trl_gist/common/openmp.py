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


"""
How the threads of a CPU run wait for one another; imported before torch, because libgomp reads it once, as it is loaded.

By default a thread that waits spins for some milliseconds. Beside another busy process it burns the time slice in which
the thread that it waits for would run, and a step takes four times as long. A thousand turns, some 20 microseconds, bridge
most pauses between two products and no more. On GPUs it changes nothing. A step of the demo on two cores of an AMD EPYC,
alone and beside one busy process, in seconds:

    turns     alone   beside
      300,000  11.9    40-93   libgomp's default
        4,000  12.0     31.4
        2,000  12.4     27.3
        1,000  13.1     23.9
"""

import os


if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # what the user says holds
    os.environ["GOMP_SPINCOUNT"] = "1000"
