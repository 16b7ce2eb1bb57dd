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

"""`trl-gist train`. Its flags are those of the training script's dataclasses, and accelerate's of a launch."""

from .flags import exit_with


def add_parser(commands):
    commands.add_parser("train", help="co-train a pair on documents (`trl-gist train --help` lists every setting)")


def run(argv: list[str]) -> int:
    """Returns the exit code."""
    import yaml

    from ..scripts.launch import launch, size_of_launch, split_launch_flags
    from ..scripts.memory import print_memory
    from ..scripts.train import checkpoint_of, config_apart, make_parser, make_trainer, train
    from ..trainer.checkpoints.run_directory import check_unused

    prog = "trl-gist train"
    if not argv:
        exit_with(
            prog,
            "Say what to train: give --config FILE.yaml, as those in configs/, or --model_name_or_path and --dataset_path. "
            "--help lists every setting.",
        )
    # `TrlParser` (TRL 1.16) raises IndexError or TypeError for want of what it expects
    argv = config_apart(argv)
    if argv[-1:] == ["--config"]:
        exit_with(prog, "--config needs a file.")
    try:
        if "--config" in argv:
            file = argv[argv.index("--config") + 1]
            with open(file) as stream:
                if not isinstance(yaml.safe_load(stream), dict):
                    raise ValueError(
                        f"{file} is no recipe: it holds no settings. Write them as `name: value`, one a line."
                    )
        flags, rest = split_launch_flags(argv)
        if flags.accelerate_config is not None and any(part.startswith("--dry_run") for part in rest):
            rest = [*rest, *size_of_launch(flags)]
        elif flags.accelerate_config is not None:
            launch(flags, rest)
            return 0
        arguments = make_parser(prog).parse_args_and_config(rest)
        if arguments[0].dry_run:
            print_memory(*arguments)
            return 0
        if not checkpoint_of(arguments[1]):
            check_unused(arguments[1].output_dir)  # before the minutes that models and a corpus may take
        trainer = make_trainer(*arguments)
    except (ValueError, OSError, ImportError, yaml.YAMLError) as error:  # as vLLM, which only some recipes need
        exit_with(prog, error)
    try:
        train(trainer)
    except (ValueError, OSError) as error:
        if trainer.state.max_steps > 0:  # training had begun
            raise
        exit_with(prog, error)
    return 0
