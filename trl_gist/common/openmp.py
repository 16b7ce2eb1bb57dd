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
How many threads of a CPU run, and how they wait for one another; imported before torch, because libgomp reads it once, as
it is loaded.

By default a thread that waits spins for some milliseconds. Beside another busy process it burns the time slice in which
the thread that it waits for would run, and a step takes four times as long. A thousand turns, some 20 microseconds, bridge
most pauses between two products and no more. On GPUs it changes nothing. A step of the demo on two cores of an AMD EPYC,
alone and beside one busy process, in seconds:

    turns     alone   beside
      300,000  11.9    40-93   libgomp's default
        4,000  12.0     31.4
        2,000  12.4     27.3
        1,000  13.1     23.9

A container that may use two of 64 cores sees all of them, and libgomp starts as many threads, which then wait for their
share of time. So there are no more than its share; and of processes that are launched together each has its part.
"""

import math
import os
from contextlib import suppress
from pathlib import Path


CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def cores_of_container(cgroups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int | None:
    """
    The cores whose time Linux gives this process, rounded up: a container's, or those of a service or another control
    group; `None` where nothing sets a limit.

    Args:
        cgroups (`Path`):
            Where control groups are mounted: with `cpu.max` in version 2, in version 1 with `cpu/cpu.cfs_quota_us`.
        own (`Path`):
            Names those of this process.
    """
    # In a container its own group is where they are mounted, whatever `own` calls it
    groups = [cgroups, cgroups / "cpu"]
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                group = (cgroups / "cpu" if controllers else cgroups) / path.lstrip("/")
                groups += [group, *group.parents]  # a limit holds for all that is within
    shares = [share for share in map(_share, groups) if share is not None]
    return max(1, math.ceil(min(shares))) if shares else None


def _share(group):
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        quota, period = int(quota), int(period)
    except ValueError:  # "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def limit_threads(cgroups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int | None:
    """Sets `OMP_NUM_THREADS` where the container has fewer cores than this process sees, unless it is set. Returns what it
    was set to."""
    cores = cores_of_container(cgroups, own)
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores is None or cores >= seen or os.environ.get("OMP_NUM_THREADS"):
        return None
    os.environ["OMP_NUM_THREADS"] = str(cores)
    return cores


def share_threads(processes: int):
    """Before so many processes are launched: each has its part of what was set here. What the user has set holds for each."""
    if SET is not None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, SET // processes))


if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # what the user says holds
    os.environ["GOMP_SPINCOUNT"] = "1000"
SET = limit_threads()
