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

"""What a recipe takes on each rank, before any weight is loaded."""

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.training_args import OptimizerNames

from ...models.adapters import without_routers
from ...models.checks import disable_dropout
from ...models.roles import Roles, base_of, load_roles
from ..gist_config import GistConfig
from .trace import Peak, PromptLengths, StepTrace, prompt_lengths


# Copies that AdamW keeps of a trainable parameter; DeepSpeed's are in float32, beside a float32 copy of the weights
_ADAMW_STATES = 2
# Multiples of the periods, 2, 3 or 6 layers, in which models alternate kinds of attention
_TRACED_DEPTHS = (6, 12)
_ROLE_OF_PHASE = {
    "sampling": "summarizer",
    "evaluation": "summarizer",
    "teacher": "teacher",
    "distillation": "generator",
    "policy": "summarizer",
}
_ADAMW = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)


@dataclass(frozen=True)
class ZeroSettings:
    """
    The DeepSpeed settings that move memory, with DeepSpeed's defaults (0.19).

    Args:
        stage (`int`, *optional*, defaults to `0`):
            0 is no DeepSpeed: one process, or DDP.
        offload_optimizer, offload_param (`bool`, *optional*, defaults to `False`):
            Whether optimizer states (and gradients with them), and ZeRO-3's shards, are kept off the device.
        reduce_bucket_size (`int`, *optional*, defaults to `500_000_000`):
            Elements of the buffer in which gradients are reduced. Each engine allocates it whole, however few parameters
            it trains.
        overlap_comm (`bool`, *optional*, defaults to `False`):
            Whether stages 1 and 2 take two of these buffers.
        param_persistence_threshold (`int`, *optional*, defaults to `100_000`):
            ZeRO-3 keeps parameters of no more elements whole on each rank.
        max_live_parameters (`int`, *optional*, defaults to `1_000_000_000`):
            Elements that ZeRO-3 keeps gathered at one time, at most.
    """

    stage: int = 0
    offload_optimizer: bool = False
    offload_param: bool = False
    reduce_bucket_size: int = 500_000_000
    overlap_comm: bool = False
    param_persistence_threshold: int = 100_000
    max_live_parameters: int = 1_000_000_000

    @classmethod
    def from_deepspeed(cls, config: dict, hidden_size: int) -> "ZeroSettings":
        """From a DeepSpeed config; `"auto"` takes what transformers (5.23) fills in for models of that hidden size."""
        zero = config.get("zero_optimization", {})
        auto = {"reduce_bucket_size": hidden_size**2, "param_persistence_threshold": 10 * hidden_size}

        def value(name, key):
            given = zero.get(key, getattr(cls, name))
            return auto[name] if given == "auto" else given

        return cls(
            stage=zero.get("stage", 0),
            offload_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offload_param=_is_offloaded(zero, "offload_param"),
            reduce_bucket_size=int(value("reduce_bucket_size", "reduce_bucket_size")),
            overlap_comm=bool(zero.get("overlap_comm")),
            param_persistence_threshold=int(
                value("param_persistence_threshold", "stage3_param_persistence_threshold")
            ),
            max_live_parameters=int(value("max_live_parameters", "stage3_max_live_parameters")),
        )


def _is_offloaded(zero, name):
    return (zero.get(name) or {}).get("device", "none") != "none"


@dataclass
class RoleMemory:
    """Bytes of one role on each rank, its share of a common base left out."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0


@dataclass
class PhaseMemory:
    """
    Bytes of one phase of a step on each rank, beside what is always there.

    Attributes:
        role (`str`):
            Whose forward it is.
        activations (`int`):
            The most at one time.
        gathered (`int`):
            Parameters that ZeRO-3 gathers for it.
        total (`int`):
            The most at one time of activations, gradients, what is gathered and the buffers that gradients are reduced in.
    """

    role: str
    activations: int
    gathered: int
    total: int


@dataclass
class MemoryEstimate:
    """
    What [`memory_per_rank`] returns, in bytes.

    Attributes:
        roles (`dict[str, RoleMemory]`):
            `"base"`, which roles share under LoRA, `"summarizer"`, `"generator"`, `"teacher"` and, with `beta`,
            `"reference"`.
        phases (`dict[str, PhaseMemory]`):
            `"sampling"`, `"evaluation"`, `"teacher"`, `"distillation"`, `"policy"` and `"optimizer step"`.
        buffers (`int`):
            What data parallelism holds all the time: DDP's copy of the gradients, or the buckets of ZeRO-3.
        host (`int`):
            What is offloaded, off the device.
        peaks (`dict[str, Peak]`):
            What the phases allocate by themselves, however many ranks there are.
    """

    roles: dict[str, RoleMemory]
    phases: dict[str, PhaseMemory] = field(default_factory=dict)
    buffers: int = 0
    host: int = 0
    peaks: dict[str, Peak] = field(default_factory=dict)

    @property
    def resident(self) -> int:
        """Parameters, optimizer states and buffers: what is there all the time, from the second step on."""
        return sum(role.parameters + role.optimizer for role in self.roles.values()) + self.buffers

    @property
    def largest_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name].total)

    @property
    def peak(self) -> int:
        """The most at one time. What the device's context and allocator take comes on top."""
        return self.resident + self.phases[self.largest_phase].total

    def largest_activation(self, role: str) -> int:
        return max((phase.activations for phase in self.phases.values() if phase.role == role), default=0)


def memory_per_rank(
    args: GistConfig,
    model_config: PreTrainedConfig,
    peft_config: PeftConfig | None = None,
    generator_config: PreTrainedConfig | None = None,
    teacher_config: PreTrainedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    lengths: PromptLengths | None = None,
    world_size: int = 1,
    zero: ZeroSettings | None = None,
    peaks: dict[str, Peak] | None = None,
    trust_remote_code: bool = False,
) -> MemoryEstimate:
    """
    The memory that training a pair takes on each rank, from the models' configurations alone: nothing is loaded and
    nothing computed, so that any size can be asked for on any machine.

    For dense models. Parameters, gradients and optimizer states are counted on the models as [`GistTrainer`] builds them, on the meta
    device. Activations are those of the step's own code on tensors without contents ([`trainer.memory.trace.StepTrace`]), with
    attention by torch's fused kernels, in which no scores are kept. Of contexts with several targets it takes as many of
    each kind as `target_kinds` asks for, each of its greatest length.

    Args:
        args ([`GistConfig`]):
            The recipe.
        model_config, generator_config, teacher_config ([`~transformers.PreTrainedConfig`]):
            Of the three roles; generator and teacher default to the model's.
        peft_config ([`~peft.PeftConfig`], *optional*):
            LoRA of both trained roles. `None` fine-tunes in full.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Of the weights as they are loaded.
        lengths ([`~trainer.memory.trace.PromptLengths`], *optional*):
            Of [`prompt_lengths`], which estimates them without a tokenizer.
        world_size (`int`, *optional*, defaults to `1`):
            Ranks, each with a device of its own.
        zero ([`ZeroSettings`], *optional*):
            DeepSpeed's settings. `None` is no DeepSpeed.
        peaks (`dict[str, Peak]`, *optional*):
            Those of an earlier estimate, to save the time of finding them. A number of ranks does not change them, unless
            the targets of a context take more than one row on one process; nor does a stage of DeepSpeed's, from 1 on.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether a model may be built by its checkpoint's own code.

    Returns:
        [`MemoryEstimate`]

    Raises:
        ValueError: if the optimizer is not torch's AdamW.
    """
    if args.optim not in _ADAMW:
        names = [name.value for name in _ADAMW]
        raise ValueError(f"`optim` is '{args.optim.value}', whose states are not accounted for. Use one of {names}.")
    zero = ZeroSettings() if zero is None else zero
    configs = (model_config, generator_config, teacher_config)
    build = partial(_build_roles, args, configs, peft_config, dtype, zero, trust_remote_code)
    roles = build()
    estimate = _count(roles, args, world_size, zero)
    gathered = {name: _gathered(role, zero) for name, role in vars(roles).items()}
    whole = sum(parameter.nbytes for parameter in roles.summarizer.parameters())
    whole = whole if zero.stage == 3 and args.ds3_gather_for_generation else gathered["summarizer"]
    trained = {
        name: sum(p.numel() for p in role.parameters() if p.requires_grad) for name, role in vars(roles).items()
    }
    if peaks is None:
        peaks = _peaks(build, roles, args, lengths or prompt_lengths(args), zero, world_size)
    estimate.peaks = peaks

    # S's gradients wait through a rollout only where a step takes several
    several = args.gradient_accumulation_steps > args.steps_per_generation * args.num_iterations
    waiting = estimate.roles["summarizer"].gradients if several else 0
    bucket = _bucket_bytes(roles.generator, zero) if zero.stage in (1, 2) else 0
    for name, peak in estimate.peaks.items():
        role = _ROLE_OF_PHASE[name]
        of_zero = whole if name in ("sampling", "evaluation") else gathered[role]
        total = of_zero + (waiting if name != "policy" else 0)
        if name in ("distillation", "policy"):
            # Sharded gradients are all there from the start
            sharded = peak.activations + estimate.roles[role].gradients
            total += bucket + (sharded if zero.stage >= 2 else peak.total)
        else:
            total += peak.activations
        estimate.phases[name] = PhaseMemory(role, peak.activations, of_zero, total)
    largest = max(("summarizer", "generator"), key=trained.get)
    total = estimate.roles[largest].gradients
    if zero.stage > 0 and not zero.offload_optimizer:  # a rank's part of the gradients, in float32
        total += 4 * math.ceil(trained[largest] / world_size)
    estimate.phases["optimizer step"] = PhaseMemory(largest, 0, 0, total)
    return estimate


def _peaks(build, roles, args, lengths, zero, world_size) -> dict[str, Peak]:
    """
    The peaks of a step's phases. Those of deep models are drawn on from two depths: layers of a kind allocate the same,
    and so each peak grows by the same with each.
    """
    depths = {name: base_of(role).config.get_text_config().num_hidden_layers for name, role in vars(roles).items()}
    if min(depths.values()) <= _TRACED_DEPTHS[-1]:
        parts = _trace(roles, args, lengths, zero, world_size)
    else:
        shallow, deep = (_trace(build(depth), args, lengths, zero, world_size) for depth in _TRACED_DEPTHS)
        parts = {part: _extend(shallow[part], deep[part], depths[_ROLE_OF_PHASE[part[0]]]) for part in deep}
    peaks = {}
    for (phase, _), peak in parts.items():
        peaks[phase] = max(peaks.get(phase, peak), peak, key=lambda peak: peak.total)
    return peaks


def _extend(shallow, deep, depth):
    few, more = _TRACED_DEPTHS

    def extend(name):
        at_few, at_more = getattr(shallow, name), getattr(deep, name)
        return at_more + (at_more - at_few) * (depth - more) // (more - few)

    activations = extend("activations")
    # What is largest may change with the depth, from embeddings' gradients to activations
    return Peak(activations, max(activations, extend("total")))


def _trace(roles, args, lengths, zero, world_size) -> dict[tuple[str, str], Peak]:
    """By phase, and by part of a phase: each part's peak is at one place, whatever the depth."""
    autocast = nullcontext
    if args.bf16 and zero.stage == 0:  # DeepSpeed's engine computes in the weights' own dtype
        autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    trace = StepTrace(roles, args, lengths, autocast, world_size)
    contexts = args.per_device_train_batch_size * args.steps_per_generation // args.num_generations
    samplings = {}
    if not args.generator_only:
        samplings["sampling"] = contexts, args.num_generations
        if args.eval_strategy != "no":
            gists = args.num_generations_eval
            samplings["evaluation"] = max(args.per_device_eval_batch_size // gists, 1), gists
    peaks = {}
    for phase, sizes in samplings.items():
        peaks[phase, "prefill"], peaks[phase, "decode"] = trace.prefill(*sizes), trace.decode(*sizes)
    windows = args.windows_per_document
    peaks["teacher", ""] = trace.read(contexts)  # the windows of a walk in one row
    if trace.targets is not None and args.target_floor is not None:
        peaks["teacher", "cues"] = trace.read_cues(contexts)
    peaks["distillation", ""] = trace.score(contexts * windows)
    if not args.generator_only:
        rows = args.per_device_train_batch_size * windows
        peaks["policy", ""] = trace.policy(rows, args.gradient_accumulation_steps)
    return peaks


def _build_roles(args, configs, peft_config, dtype, zero, trust_remote_code, depth=None) -> Roles:
    def build(config):
        if config is None:
            return None
        if depth is not None:
            config = copy.deepcopy(config)
            text_config = config.get_text_config()
            text_config.num_hidden_layers = depth
            if getattr(text_config, "layer_types", None) is not None:
                text_config.layer_types = text_config.layer_types[:depth]
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=trust_remote_code
        )

    with torch.device("meta"):
        roles = load_roles(
            *map(build, configs),
            share_base=peft_config is not None,
            summarizer_owns_base=args.use_vllm,
        )
        if peft_config is not None:
            # As GRPOTrainer (TRL 1.16), and GistTrainer's generator, whose adapter is in the base's dtype with it
            in_base_dtype = {"autocast_adapter_dtype": False} if zero.stage == 3 else {}
            peft_config = without_routers("peft_config", peft_config, roles.summarizer)
            roles.summarizer = get_peft_model(roles.summarizer, peft_config, **in_base_dtype)
            roles.generator = get_peft_model(roles.generator, peft_config, **in_base_dtype)
        for role in vars(roles).values():
            disable_dropout(role)
            if zero.stage > 0 and args.bf16:
                role.to(torch.bfloat16)  # as DeepSpeed's engine with bf16 enabled
    return roles


def _count(roles: Roles, args, world_size, zero) -> MemoryEstimate:
    """Parameters, gradients and optimizer states."""
    owners = {}
    for name, role in vars(roles).items():
        for parameter in role.parameters():
            owners.setdefault(parameter, []).append(name)
    counted = {name: RoleMemory() for name in ("base", *(f.name for f in fields(Roles)))}
    heads = {base_of(role).get_output_embeddings().weight for role in vars(roles).values()}
    estimate = MemoryEstimate(counted)
    for parameter, names in owners.items():
        role = counted[names[0] if len(names) == 1 else "base"]
        # The head is read outside the model's forward, which is when ZeRO-3 gathers: it stays whole
        sharded = zero.stage == 3 and parameter not in heads and parameter.numel() > zero.param_persistence_threshold
        size = math.ceil(parameter.numel() / world_size) * parameter.itemsize if sharded else parameter.nbytes
        if sharded and zero.offload_param:
            estimate.host += size
        else:
            role.parameters += size
        if parameter.requires_grad and not (args.generator_only and names == ["summarizer"]):
            _count_trained(estimate, role, parameter, world_size, zero)
    if args.beta != 0 and not hasattr(roles.summarizer, "peft_config"):
        counted["reference"] = RoleMemory(parameters=counted["summarizer"].parameters)
    if zero.stage == 3:
        estimate.buffers = _bucket_bytes(roles.summarizer, zero) + _bucket_bytes(roles.generator, zero)
    elif zero.stage == 0 and world_size > 1:  # gradient_as_bucket_view is off
        estimate.buffers = sum(role.gradients for role in counted.values())
    return estimate


def _count_trained(estimate, role, parameter, world_size, zero):
    numel, part = parameter.numel(), math.ceil(parameter.numel() / world_size)
    if zero.stage == 0:
        role.gradients += parameter.nbytes
        role.optimizer += _ADAMW_STATES * parameter.nbytes + 4  # and the count of steps
        return
    gradients = part * parameter.itemsize if zero.stage >= 2 else numel * parameter.itemsize
    states = part * 4 * (_ADAMW_STATES + 1)
    if zero.offload_optimizer:
        estimate.host += states + part * 4
        role.gradients += 0 if zero.stage >= 2 else gradients
    else:
        role.gradients += gradients
        role.optimizer += states


def _bucket_bytes(role, zero):
    trainable = next(parameter for parameter in role.parameters() if parameter.requires_grad)
    return zero.reduce_bucket_size * trainable.itemsize * (2 if zero.overlap_comm and zero.stage < 3 else 1)


def _gathered(role, zero):
    """What ZeRO-3 gathers of a role's parameters at one time, at most."""
    if zero.stage < 3:
        return 0
    sharded = [p for p in role.parameters() if p.numel() > zero.param_persistence_threshold]
    return min(sum(p.numel() for p in sharded), zero.max_live_parameters) * next(role.parameters()).itemsize
