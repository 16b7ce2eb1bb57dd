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

"""`trl-gist train --dry_run true`: what a recipe takes on each rank, with nothing loaded but configurations."""

from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from trl import get_peft_config

from ..common.tables import console_table
from ..models.adapters import check_folder
from ..models.loading import is_adapter, pair_directory
from ..models.roles import naming
from ..pair import GENERATOR_DIR, PairConfig
from ..trainer.constructor import check_has_its_adapters, check_is_no_pair
from ..trainer.gist_config import GistConfig
from ..trainer.memory.estimate import MemoryEstimate, ZeroSettings, memory_per_rank
from ..trainer.memory.trace import prompt_lengths
from .resumable import plain_console


_ROLES = {
    "base": "base of all (frozen)",
    "summarizer": "S, summarizer",
    "generator": "G, generator",
    "teacher": "T, teacher",
    "reference": "reference of S",
}
_PHASES = {
    "sampling": "S samples gists",
    "evaluation": "S samples in evaluation",
    "teacher": "T reads the contexts",
    "distillation": "G is scored and distilled",
    "policy": "S's policy loss",
    "optimizer step": "optimizer step",
}


def print_memory(script_args, training_args: GistConfig, model_args) -> MemoryEstimate:
    """
    Prints the bytes per rank of the recipe in these arguments (of [`~scripts.train.make_parser`]) for
    `script_args.world_size` ranks and `script_args.zero_stage`, by default those of this launch. A saved pair is taken
    apart as [`GistTrainer`] does: its halves' bases, its own adapters and its own teacher. What that refuses of them is
    refused here too.
    """
    name, trust_remote_code = model_args.model_name_or_path, training_args.trust_remote_code
    summarizer, asked = _half_of(name, "", trust_remote_code, model_args.model_revision), get_peft_config(model_args)
    if summarizer.adapter is not None:
        check_has_its_adapters(name, asked)
    teacher = script_args.teacher_name_or_path
    if teacher is not None:
        check_is_no_pair(teacher, pair_directory(teacher, weights=False))
    names = [script_args.generator_name_or_path, teacher]
    directory = pair_directory(name, model_args.model_revision, weights=False)
    if directory is not None:  # of which the roles that are not given are, too
        names = [names[0] or str(directory), names[1] or PairConfig.load(directory).base_models["teacher"]]

    def config_of(role, half):
        """`None` where it is the summarizer's, whose base it then shares or copies."""
        found = summarizer if role is None else _half_of(role, half, trust_remote_code)
        return None if found.base == summarizer.base else found.config

    model_config, peft_config = summarizer.config, summarizer.adapter or asked
    tokenizer = None
    if not Path(name).is_file():
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )
    world_size = script_args.world_size or training_args.world_size
    zero = _zero_settings(script_args.zero_stage, training_args, model_config)
    dtype = _dtype(model_args.dtype, model_config)
    estimate = memory_per_rank(
        training_args,
        model_config,
        peft_config,
        config_of(names[0], GENERATOR_DIR),
        config_of(names[1], ""),
        dtype,
        prompt_lengths(training_args, tokenizer),
        world_size,
        zero,
        trust_remote_code=trust_remote_code,
    )
    if training_args.process_index == 0:
        notes = _notes(training_args, tokenizer, estimate, dtype)
        _print(estimate, f"{Path(name).name}: {_launch(world_size, zero)}", notes)
    return estimate


class _Half(NamedTuple):
    """What a role stands on: its base's configuration and name, and the adapter that it has already."""

    config: PreTrainedConfig
    base: str
    adapter: PeftConfig | None = None


def _half_of(name, half, trust_remote_code, revision=None) -> _Half:
    """Of a checkpoint, or of a half of a saved pair."""
    directory = pair_directory(name, revision, weights=False)
    if directory is None:
        check_folder(half or "model", name)
        with naming(name):
            config = AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code)
        return _Half(config, name)
    directory = directory / half
    if not is_adapter(directory, half or "summarizer"):
        return _Half(AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code), str(directory))
    adapter = PeftConfig.from_pretrained(directory)
    adapter.inference_mode = False  # as it is saved
    base = adapter.base_model_name_or_path
    return _half_of(base, "", trust_remote_code, adapter.revision)._replace(adapter=adapter)


def _zero_settings(stage, training_args, model_config) -> ZeroSettings:
    plugin = training_args.deepspeed_plugin
    if plugin is None:
        return ZeroSettings(stage=stage or 0)
    config = dict(plugin.deepspeed_config)
    if stage is not None:
        config["zero_optimization"] = {**config.get("zero_optimization", {}), "stage": stage}
    return ZeroSettings.from_deepspeed(config, model_config.get_text_config().hidden_size)


def _dtype(name: str | None, model_config: PreTrainedConfig) -> torch.dtype:
    """As `create_model_from_path` (TRL 1.16), which takes float32 where none is said."""
    if name == "auto":
        return model_config.dtype or torch.float32
    return getattr(torch, name or "float32")


def _launch(world_size, zero):
    ranks = "one process" if world_size == 1 else f"each of {world_size} ranks"
    return f"{ranks}, {f'ZeRO-{zero.stage}' if zero.stage else 'DDP' if world_size > 1 else 'no DeepSpeed'}"


def _notes(training_args, tokenizer, estimate, dtype):
    name = str(dtype).removeprefix("torch.")
    notes = [f"Of weights in {name} (`dtype`), with `bf16` {'on' if training_args.bf16 else 'off'}."]
    if estimate.host:
        notes.append(f"Offloaded, off the device: {_gib(estimate.host)} GiB for each rank.")
    if training_args.use_vllm:
        notes.append("What vLLM itself takes (`vllm_gpu_memory_utilization`) is not in it.")
    if tokenizer is None:
        notes.append("There is no tokenizer beside a config file: the templates are taken to be of common length.")
    return notes


def _print(estimate: MemoryEstimate, title: str, notes: list[str]):
    console = plain_console()
    table = console_table(f"{title} (GiB)", "", "parameters", "gradients", "optimizer", "activations")
    for name, role in estimate.roles.items():
        values = (role.parameters, role.gradients, role.optimizer, estimate.largest_activation(name))
        table.add_row(_ROLES[name], *map(_gib, values))
    sums = [sum(column) for column in zip(*(vars(role).values() for role in estimate.roles.values()), strict=True)]
    largest = max(estimate.largest_activation(name) for name in estimate.roles)
    table.add_section()
    table.add_row("total", *map(_gib, (*sums, largest)))
    console.print(table)
    headings = ("", "activations", "gathered", "all that is there")
    table = console_table("At the most in each phase of a step (GiB)", *headings)
    for name, phase in estimate.phases.items():
        peak = estimate.resident + phase.total
        style = "bold" if name == estimate.largest_phase else None
        table.add_row(_PHASES[name], *map(_gib, (phase.activations, phase.gathered, peak)), style=style)
    console.print(table)
    always = f"{_gib(estimate.resident)} GiB of it all the time"
    buffers = f", with {_gib(estimate.buffers)} of buffers for gradients" if estimate.buffers else ""
    console.print(
        f"Peak: {_gib(estimate.peak)} GiB, {always}{buffers}. The device's own context comes on top.", soft_wrap=True
    )
    for note in notes:
        console.print(note, soft_wrap=True)


def _gib(size):
    return f"{size / 2**30:,.2f}"
