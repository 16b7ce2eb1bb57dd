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
Which adapters a role may carry, and what must hold once they are drawn.

Three roles stand on one base, which the teacher reads bare: an adapter may neither write into it nor train a part of it. A
saved pair is loaded by drawing each adapter on a shared base again, so the same holds there. The hidden states that are
scored come from the tree under the adapter, so what a [`~peft.PeftModel`] does around it never happens.
"""

import copy
import logging
import re
from pathlib import Path

from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


logger = logging.getLogger(__name__)


# Tried in tests/models/test_peft_types.py: the teacher is the base before and after a step, gradients are autograd's, and a saved
# pair reads as the trained one
SUPPORTED_TYPES = frozenset(
    PeftType[name]
    for name in (
        "LORA BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR MISS OFT OSF "
        "PEANUT PSOFT RANDLORA ROAD SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT"
    ).split()
)

_PUTS_TOKENS = "puts learned positions before the prompt, outside of the model that scores gists and their targets"
_REASONS = {
    PeftType.PROMPT_TUNING: _PUTS_TOKENS,
    PeftType.MULTITASK_PROMPT_TUNING: _PUTS_TOKENS,
    PeftType.P_TUNING: _PUTS_TOKENS,
    PeftType.PREFIX_TUNING: _PUTS_TOKENS,
    PeftType.CPT: _PUTS_TOKENS,
    PeftType.CARTRIDGE: _PUTS_TOKENS,
    PeftType.ADAPTION_PROMPT: "cannot be taken off a copy of the model, which is the teacher",
    PeftType.ADALORA: "moves its ranks only where the training loop calls `update_and_allocate`, which no trainer does",
    PeftType.LILY: "routes by a mean over all tokens of a batch, so that a gist's probability depends on the other gists",
    PeftType.POLY: "needs a task id with every forward",
    PeftType.XLORA: "reads every prompt twice, to weigh adapters that are trained already",
    PeftType.SHADOW: "runs a second model beside the first, which does not know gists' packed rows",
    PeftType.PVERA: "draws noise in training, so that the policy that samples is not the one that is trained",
}

# Their first letters; PEFT takes "pissa_niter_4"
_WRITING_INITIALISATIONS = ("pissa", "corda", "olora", "loftq", "lora_ga")


def check_adapter(setting: str, config: PeftConfig, drawn_here: bool = False):
    """
    Raises `ValueError` for an adapter that a role cannot carry, before it is drawn.

    Args:
        setting (`str`):
            Where it comes from, for the error: an argument's name, or a folder.
        config ([`~peft.PeftConfig`]):
            Its configuration.
        drawn_here (`bool`, *optional*, defaults to `False`):
            Whether the trainer makes the adapter, so that its settings are this run's.
    """
    if config.peft_type not in SUPPORTED_TYPES:
        reason = _REASONS.get(config.peft_type, "has not been tried here")
        types = ", ".join(sorted(supported.value for supported in SUPPORTED_TYPES))
        raise ValueError(
            f"{setting} is of type {PeftType(config.peft_type).value}, which {reason}. Use `LoraConfig`, or another "
            f"of {types}."
        )
    check_leaves_base(setting, config)
    _check_settings(setting, config.to_dict(), drawn_here)


def check_leaves_base(setting: str, config: PeftConfig):
    """Raises `ValueError` for an adapter that would reach the others that are drawn, or loaded, on its base."""
    values = config.to_dict()
    initialisation = values.get("init_lora_weights")
    if str(initialisation).lower().startswith(_WRITING_INITIALISATIONS) or values.get("kasa_config") is not None:
        named = f"`init_lora_weights={initialisation!r}`"
        named = named if values.get("kasa_config") is None else "`kasa_config`"
        raise ValueError(
            f"{setting} has {named}, which writes into the base that the summarizer, the generator and the teacher "
            'share, and the teacher must read it as it was. Use `init_lora_weights=True`, "gaussian", '
            '"orthogonal" or "mica"; to keep an adapter that was drawn so, `merge_and_unload()` it, save the model '
            "with its tokenizer and pass that folder."
        )
    if values.get("bias", "none") != "none":
        raise ValueError(
            f"{setting} has `bias={values['bias']!r}`, which trains biases of the base that the summarizer, the generator "
            'and the teacher share. Use `bias="none"`; with LoRA `lora_bias=True` gives each adapter its own.'
        )


def _check_settings(setting, values, drawn_here):
    if values.get("init_lora_weights") == "eva":
        raise ValueError(
            f'{setting} has `init_lora_weights="eva"`, which takes its weights from batches that no trainer gives it. '
            "Draw them by `peft.initialize_lora_eva_weights`, set `init_lora_weights=True` in the adapter's "
            "configuration and pass the `PeftModel`, or use another initialisation."
        )
    for name, reason in (
        ("alora_invocation_tokens", "acts where the `PeftModel` finds these tokens, which scoring does not ask for"),
        ("arrow_config", "routes between adapters that are trained already"),
        (
            "monteclora_config",
            "draws noise in training, so that the policy that samples is not the one that is trained",
        ),
        ("layer_replication", "gives the base more layers, so that the teacher would not be it"),
        ("use_qalora", "needs a quantized base, which has not been tried here"),
        ("save_only_topk_weights", "saves too little to resume from"),
    ):
        if values.get(name):
            raise ValueError(f"{setting} has `{name}={values[name]}`, which {reason}. Leave it out.")
    # Where an adapter that was trained elsewhere has a dropout layer of torch, the trainer switches it off
    for name in ("rank_dropout", "module_dropout", "boft_dropout", *(["lora_dropout"] if drawn_here else [])):
        if values.get(name):
            raise ValueError(
                f"{setting} has `{name}={values[name]}`: the policy that samples would differ from the policy that is "
                "trained. Set it to 0."
            )


def check_given(role: str, model: str | PreTrainedModel | PeftModel | None):
    """Raises `ValueError` if a model that is given as a role carries adapters that cannot be told from its base."""
    if isinstance(model, PeftModel):
        check_adapter(f"The {role}'s adapter", model.active_peft_config)
        if list(model.peft_config) != ["default"]:
            raise ValueError(
                f"The {role} holds the adapters {list(model.peft_config)}, and a saved pair one for each half, named "
                "'default'. Take the others off by `delete_adapter` (TRL leaves 'ref' after a run with `beta`), or load the "
                "one to train alone: `PeftModel.from_pretrained(base, path, is_trainable=True)`."
            )
        if any(layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer)):
            raise ValueError(
                f"The {role}'s adapter is merged into its base, from which the teacher is taken. Call "
                "`unmerge_adapter()`, or save the result of `merge_and_unload()` and pass its folder."
            )
    elif isinstance(model, PreTrainedModel) and has_adapters(model):
        raise ValueError(
            f"The {role} holds adapters but is no `PeftModel`, so they would be taken for a part of the base. Load it by "
            "`PeftModel.from_pretrained(base, path, is_trainable=True)`, or save the result of `merge_and_unload()` and "
            "pass its folder."
        )


def check_folder(role: str, checkpoint: str):
    """Raises `ValueError` if a role is given as the folder of an adapter, which holds no model."""
    if Path(checkpoint, ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(
            f"The {role}, {checkpoint}, is the folder of an adapter. Pass "
            "`PeftModel.from_pretrained(base, path, is_trainable=True)`; a teacher must be a checkpoint without one."
        )


# What routers of experts are called in transformers (5.23), with the gate of a shared expert; of a dense model none is
_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)(\.|$)")


def routers_of(model: nn.Module) -> list[str]:
    """The linear layers that choose or weigh the experts of a mixture, by the end of a name that all layers have."""
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _ROUTER.search(name))
    return sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})


def without_routers(setting: str, config: PeftConfig | None, model: nn.Module) -> PeftConfig | None:
    """
    An adapter's configuration that leaves out the routers of a mixture of experts where it asks for all linear layers,
    and says so. To adapt them a user names them in `target_modules`.

    Args:
        setting (`str`):
            The argument's name.
        config ([`~peft.PeftConfig`], *optional*):
            Not changed; where something is left out, the result is a copy.
        model (`torch.nn.Module`):
            That the adapter will be drawn on.
    """
    given, targets = config, getattr(config, "target_modules", None)
    if not isinstance(targets, str) or targets.lower() != INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return config
    config, head = copy.deepcopy(config), model.get_output_embeddings()
    # Packed experts and some routers are parameters, which PEFT (0.21) takes for the linear layers that they were
    convert_peft_config_for_transformers(config, model, None)
    if isinstance(config.target_modules, str):
        config.target_modules = {
            name
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head  # as PEFT leaves it out
        }
    ends = {name.rsplit(".", 1)[-1] for name in routers_of(model)}
    asked = config.target_modules
    config.target_modules = {name for name in asked if name not in ends and not _ROUTER.search(name)}
    routers = set(routers_of(model)) if config.target_modules != asked else set()
    if getattr(config, "target_parameters", None):
        dropped = {name for name in config.target_parameters if _ROUTER.search(name)}
        config.target_parameters -= dropped
        parameters = [name for name, _ in model.named_parameters()]
        there = {name for name in dropped if any(each.endswith(f".{name}") for each in parameters)}
        routers |= {name.removesuffix(".weight") for name in there}
    if not routers:
        return given
    logger.warning(
        f"`{setting}` asks for all linear layers, and leaves out the routers of the experts "
        f"({', '.join(sorted(routers))}): they choose which experts a token is sent to. To adapt them, name the layers in "
        "`target_modules`."
    )
    return config


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether PEFT has replaced some of the modules."""
    return any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in model.modules())


def check_teacher(teacher: str | PreTrainedModel | PeftModel | None):
    """Raises `ValueError` for a teacher that a saved pair could not name."""
    if isinstance(teacher, PeftModel):
        raise ValueError(
            "`teacher` is a `PeftModel`, and a saved pair names its teacher by a checkpoint: it would be measured "
            "against the bare base. Save the result of `merge_and_unload()` with its tokenizer and pass that folder."
        )


def check_drawn(summarizer, generator, teacher, teacher_before: str, teacher_now: str):
    """
    Raises `ValueError` unless the adapters, now drawn, left the teacher alone: what is trained is none of its parameters
    and is in one role only, and each role without its adapter is its base.

    Args:
        summarizer, generator, teacher ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The roles.
        teacher_before, teacher_now (`str`):
            Digests of the teacher's parameters before any adapter was drawn, and now.
    """
    trained = {
        role: {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for role, model in (("summarizer", summarizer), ("generator", generator))
    }
    frozen = {id(parameter): name for name, parameter in teacher.named_parameters()}
    for one, others, place in (
        ("summarizer", frozen, "the teacher"),
        ("generator", frozen, "the teacher"),
        ("summarizer", trained["generator"], "what the generator trains"),
    ):
        shared = [name for parameter, name in trained[one].items() if parameter in others]
        if shared:
            raise ValueError(
                f"The {one} would train {len(shared)} tensors that are in {place}, too ({shared[0]} first). Give each "
                "role a model, or adapter, of its own."
            )
    if teacher_before != teacher_now:
        raise ValueError(
            "Drawing the adapters has changed the base that the teacher stands on: a `peft_config` has to leave it as it "
            "is. Use `LoraConfig` with `init_lora_weights=True`."
        )
    for role, model in (("summarizer", summarizer), ("generator", generator)):
        if isinstance(model, PeftModel) and getattr(model.active_peft_config, "ensure_weight_tying", False):
            if not model.config.get_text_config().tie_word_embeddings:
                raise ValueError(
                    f"The {role}'s adapter has `ensure_weight_tying=True`, and its base has a head of its own, which PEFT "
                    "(0.21) would replace by the embeddings. Leave it out."
                )
