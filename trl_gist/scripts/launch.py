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

"""`trl-gist train --accelerate_config NAME`: training on several processes, by `accelerate launch`."""

import argparse
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path

import psutil
import torch
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing import SignalException

from ..common.openmp import share_threads
from ..trainer.callbacks import SIGNALS, STOPPED_FILE, signals_named


CONFIGS = Path(str(files("trl_gist") / "accelerate_configs"))


@dataclass(frozen=True)
class LaunchArguments:
    """How processes share the work, and those of accelerate's flags that say where; what is trained, others say."""

    accelerate_config: str | None = None
    num_processes: str | None = None
    num_machines: str | None = None
    machine_rank: str | None = None
    main_process_ip: str | None = None
    main_process_port: str | None = None

    def places(self) -> dict[str, str]:
        """Those of accelerate's that were given."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        given.pop("accelerate_config", None)
        return given


def split_launch_flags(argv: list[str]) -> tuple[LaunchArguments, list[str]]:
    """
    The flags of the launch, and the others.

    Raises:
        ValueError: if there is one without `accelerate_config`.
    """
    parser = argparse.ArgumentParser(prog="trl-gist train", add_help=False, allow_abbrev=False)
    for field in fields(LaunchArguments):
        parser.add_argument(f"--{field.name}")
    known, rest = parser.parse_known_args(argv)
    flags = LaunchArguments(**vars(known))
    given = list(flags.places())
    if given and flags.accelerate_config is None:
        raise ValueError(
            f"`--{given[0]}` launches processes: say how they share the work, with `--accelerate_config` and one of "
            f"{', '.join(config_names())} or a file of accelerate's."
        )
    return flags, rest


def launch(flags: LaunchArguments, argv: list[str]):
    """
    Launches `trl-gist train ARGV` as the flags say. Without `num_processes`, one process for each accelerator here.
    Returns when the run has ended, or has been saved on a signal.

    Raises:
        ValueError: if `accelerate_config` is neither a file nor a name.
        SignalException: if a signal ended the run and it could not be saved.
    """
    config, places = config_path(flags.accelerate_config), flags.places()
    said = _read(config)
    if "num_processes" not in places and config.parent == CONFIGS and config.stem != "single":
        places["num_processes"] = str(max(1, torch.accelerator.device_count()))
    # A signal reaches the launcher, which hands it on: give the run the time to end its rollout and save
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    chosen = [part for name, value in places.items() for part in (f"--{name}", value)]
    launch_args = ["--config_file", str(config), *chosen, "--module", "trl_gist.cli", "train", *argv]
    args = launch_command_parser().parse_args(launch_args)
    processes, machines = (getattr(args, name) or said.get(name) or 1 for name in ("num_processes", "num_machines"))
    share_threads(max(1, processes // machines))
    # torchrun's (2.13), and SIGUSR1; but not SIGHUP under `nohup`, which it would listen to and the ranks would not
    handled = [*SIGNALS, *signals_named("SIGQUIT")]
    handled = [each for each in handled if signal.getsignal(each) not in (signal.SIG_IGN, None)]
    args.signals_to_handle = ",".join(each.name for each in handled)
    with tempfile.TemporaryDirectory() as directory:
        stopped = os.environ[STOPPED_FILE] = os.path.join(directory, "stopped")
        try:
            with _handing_on(handled):
                launch_command(args)
        except SignalException:
            if not os.path.exists(stopped):
                raise


@contextmanager
def _handing_on(signals: list[signal.Signals]) -> Iterator[None]:
    """Hands signals on to the children. torchrun sets its own; accelerate (1.15) has none where it launches a single
    process, which would go on without its launcher."""
    previous = {each: signal.getsignal(each) for each in signals}

    def hand_on(number, frame):
        children = psutil.Process().children()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        if not children:
            give_back()
            signal.raise_signal(number)

    def give_back():
        for each, handler in previous.items():
            signal.signal(each, handler)

    for each in signals:
        signal.signal(each, hand_on)
    try:
        yield
    finally:
        give_back()


def size_of_launch(flags: LaunchArguments) -> list[str]:
    """What `--dry_run` takes of such a launch: its `--world_size` and `--zero_stage`."""
    config = _read(config_path(flags.accelerate_config))
    engine = config.get("deepspeed_config") or {}
    stage = engine.get("zero_stage") or 0
    if "deepspeed_config_file" in engine:  # JSON, which is YAML
        stage = _read(Path(engine["deepspeed_config_file"])).get("zero_optimization", {}).get("stage", 0)
    return ["--world_size", str(flags.num_processes or config.get("num_processes") or 1), "--zero_stage", str(stage)]


def _read(config: Path) -> dict:
    """Raises `ValueError` if it is no mapping."""
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(
            f"{config} is no config of accelerate's: it holds no settings. Write some with `accelerate config`."
        )
    return values


def config_names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def config_path(name: str) -> Path:
    """The file of one of accelerate's configs, by its path or, of those that come with the package, by its name."""
    packaged = CONFIGS / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    if Path(name).is_file():
        return Path(name)
    raise ValueError(
        f"`--accelerate_config` must be one of {', '.join(config_names())} or the path of a file, got {name!r}."
    )
