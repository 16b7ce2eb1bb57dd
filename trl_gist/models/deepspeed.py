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
DeepSpeed beside the one engine that an `Accelerator` drives: the generator's own, the teacher's, and what ZeRO-3, which
leaves every rank a shard of each parameter, asks of code that reads parameters itself.

Ranks under ZeRO-3 gather a layer when they come to it, all of them together: each must run the same forwards in the same
order. The LM head is the exception, because how often it runs depends on how many target tokens a rank has. So it stays
whole on every rank, and is called past DeepSpeed's hooks.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from accelerate.utils.deepspeed import map_pytorch_optim_to_deepspeed
from torch import nn
from transformers.integrations import deepspeed as hf_deepspeed


def uses_deepspeed(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def zero_stage(accelerator: Accelerator) -> int:
    """0 without DeepSpeed."""
    return accelerator.state.deepspeed_plugin.zero_stage if uses_deepspeed(accelerator) else 0


def check_distributed_settings(args):
    """Raises `ValueError` for what two engines cannot share, before any model is loaded."""
    if args.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "GistTrainer trains two engines, and FSDP shards the summarizer's alone. Launch it with DeepSpeed "
            "(`trl-gist train --accelerate_config zero3` shards all three models), or with DDP (`multi_gpu`)."
        )
    if args.deepspeed_plugin is None:
        return
    _check_deepspeed_config(args.deepspeed_plugin.deepspeed_config)
    if args.deepspeed_plugin.zero_stage == 3 and args.teacher_cache_dir is not None:
        raise ValueError(
            "`teacher_cache_dir` lets each rank skip forwards of its own, but under ZeRO-3 ranks gather the "
            "teacher's layers together. Leave it out, or launch with ZeRO-2."
        )
    if args.deepspeed_plugin.zero_stage == 3 and args.sync_ref_model:
        raise ValueError(
            "`sync_ref_model` is True, and under ZeRO-3 a checkpoint would hold one rank's shard of the reference, which "
            "follows the summarizer. Leave it out, or launch with ZeRO-2."
        )


def _check_deepspeed_config(config):
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise ValueError(
                f"The DeepSpeed config has a section `{section}`, which would be the summarizer's alone. Remove it: both "
                "optimizers and schedules come from GistConfig (`optim`, `learning_rate`, `generator_learning_rate`, "
                "`lr_scheduler_type`)."
            )


def deepspeed_engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, max_grad_norm: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """
    A second engine, beside the one that the accelerator drives and with its settings, offloading included.

    Args:
        model (`torch.nn.Module`):
            What to train. May share frozen parameters with the first engine's model.
        optimizer (`torch.optim.Optimizer`):
            Over its trainable parameters.
        accelerator ([`~accelerate.Accelerator`]):
            After it has prepared the first engine, which fills in what the config leaves to `"auto"`.
        max_grad_norm (`float`):
            Gradients are clipped to it; 0 for no clipping.

    Returns:
        The engine, whose `backward` may be called any number of times before a `step`, and the optimizer that it
        steps, whose `param_groups` a schedule may set.
    """
    import deepspeed  # not at the top: importing it initializes its backend

    config = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    zero = config["zero_optimization"]
    config["gradient_clipping"] = max_grad_norm
    # As many backward passes a step as there are chunks of gists (DeepSpeed 0.19)
    config["managed_gradient_accumulation"] = False
    config["gradient_accumulation_steps"] = 1
    config["train_batch_size"] = config["train_micro_batch_size_per_gpu"] * accelerator.num_processes
    config["zero_allow_untested_optimizer"] = True
    if zero["stage"] < 2:
        zero["overlap_comm"] = False  # which such passes do not know below stage 2
    # As accelerate (1.13) does for the first engine
    offloads = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if offloads and config.get("zero_force_ds_cpu_optimizer", True):
        optimizer = map_pytorch_optim_to_deepspeed(optimizer)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, optimizer


def keep_on_every_rank(engine: nn.Module, parameters: Iterable[nn.Parameter]):
    """ZeRO-3: these parameters stay whole between their uses."""
    for parameter in parameters:
        if is_partitioned(parameter) and not parameter.ds_persist:
            parameter.ds_persist = True
            # What the engine gathers after a step, when every shard is new (DeepSpeed 0.19)
            engine.optimizer.persistent_parameters.append(parameter)


def head_logits(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """An LM head's output, gathered first where generation or a checkpoint has left a shard of it."""
    if not any(is_partitioned(parameter) for parameter in head.parameters()):
        return head(hidden)
    for parameter in head.parameters():
        if parameter.numel() != parameter.ds_numel:
            parameter.all_gather()
    return head.forward(hidden)  # past the hooks, which would count the calls of each rank


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has sharded a parameter."""
    return hasattr(parameter, "ds_id")


def is_sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 has sharded a model while it was loaded: it runs only once it is in an engine."""
    return any(is_partitioned(parameter) for parameter in model.parameters())


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter of which this rank may hold a shard."""
    return parameter.ds_shape if is_partitioned(parameter) else parameter.shape


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
    """A context in which the parameters are whole, to be read. All ranks enter."""
    parameters = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not parameters:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


@contextmanager
def whole_on_each_rank() -> Iterator[None]:
    """A context in which a rank loads whole models by itself, where ZeRO-3 would have all ranks shard them together."""
    config = hf_deepspeed._hf_deepspeed_config_weak_ref  # there is no function that gives it (transformers 5.23)
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config


def whole_state_dict(model: nn.Module, trainable_only: bool = False) -> dict[str, torch.Tensor]:
    """
    A model's weights on the CPU, one of them gathered at a time; all ranks call it. Tied weights stay tied.

    Args:
        model (`torch.nn.Module`):
            Sharded or not.
        trainable_only (`bool`, *optional*, defaults to `False`):
            Leaves out what is frozen.
    """
    copies, state_dict = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trainable_only and not tensor.requires_grad:
            continue
        if id(tensor) not in copies:
            with gathered([tensor]):
                copies[id(tensor)] = tensor.detach().cpu().clone()
        state_dict[name] = copies[id(tensor)]
    return state_dict


def skip_unused_operator():
    """
    Spares ranks on a CPU what DeepSpeed (0.19) compiles when they start: a reduction that tensor-parallel layers alone
    call. It would take a minute and a compiler, and ranks that compile at once can fail. To be called before
    `Accelerator` is made.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
