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
A DeepSpeed checkpoint for another number of processes: DeepSpeed's universal checkpoint, of both halves.

Each process has saved its shard of the optimizer; the universal form holds every parameter's state whole, and a run of
any size takes its shards from it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from accelerate import Accelerator

from ...common.files import link_or_copy
from ...pair import GENERATOR_DIR


RESHARDING_DIR = "_resharding"
# What DeepSpeed (0.19) names the folder of a step's shards, and the file that says which is the newest
_SHARDS, _LATEST = "global_step*", "latest_universal"


def universal_checkpoint(checkpoint: Path, output_dir: Path) -> Path:
    """
    A copy of a checkpoint in `output_dir` that holds both halves in the universal form; the files that stay are links.

    Args:
        checkpoint (`Path`):
            Saved under DeepSpeed.
        output_dir (`Path`):
            Where there is room for another 12 bytes for each trained parameter.

    Raises:
        ValueError: if DeepSpeed cannot convert it, with what it says.
    """
    copy = output_dir / RESHARDING_DIR / checkpoint.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(checkpoint, copy, copy_function=link_or_copy)
    for half in (copy, copy / GENERATOR_DIR):
        (shards,) = half.glob(_SHARDS)
        # Its own process: it works on files alone, in processes of its own, and prints a lot
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        folders = ["--input_folder", str(shards), "--output_folder", f"{shards}_universal"]
        done = subprocess.run([*command, *folders], capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(
                f"{checkpoint} could not be made ready for another number of processes. DeepSpeed says: "
                f"{done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
            )
        (half / _LATEST).write_text(f"{shards.name}_universal", encoding="utf-8")
    return copy


def load_universal(accelerator: Accelerator):
    """Has every engine that is made from here on load that form."""
    accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}


def remove_universal(output_dir: Path):
    shutil.rmtree(output_dir / RESHARDING_DIR, ignore_errors=True)
