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

"""What `trl-gist train` runs: its arguments beside the trainer's, the data and the rewards they name, and the run."""

import importlib
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils import logging as hub_logging
from transformers import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy
from trl import ModelConfig, TrlParser, get_peft_config

from .. import rewards
from ..common.arguments import meant, no_setting, several, truth, whole_number
from ..data.documents import check_given, datasets_on_hub, load_documents
from ..evaluation.compressors.registry import (
    ASKS_THE_TEACHER,
    EXTRACTIVE_COMPRESSORS,
    compressor_name,
    extractive_compressors,
)
from ..trainer.callbacks import STOPPED_FILE, GistProgressCallback, SaveOnSignal
from ..trainer.checkpoints.run_lock import PATIENCE
from ..trainer.config_checks import warn_of_given
from ..trainer.gist_config import GistConfig
from ..trainer.gist_trainer import GistTrainer
from .windows import without_held_out


REWARD_FUNCS = {
    "log_prob_gain": rewards.log_prob_gain,
    "kl_gain": rewards.kl_gain,
    "binary": rewards.binary,
    "number_recall": rewards.number_recall,
    "length_penalty": rewards.length_penalty,
}


@dataclass
class GistScriptArguments:
    """
    Arguments of the training script beside [`GistConfig`] and [`~trl.ModelConfig`].

    Args:
        dataset_name (`str`, *optional*):
            Dataset on the Hub, or a folder laid out as one: with a card that lists its splits.
        dataset_path (`list[str]`, *optional*):
            Text, JSON lines, CSV or parquet files, also compressed, folders of them, patterns, or URLs as `s3://…`, in
            place of `dataset_name`; see [`load_documents`].
        dataset_config (`str`, *optional*):
            Configuration of the dataset on the Hub.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on, unless `eval_documents` is set.
        dataset_streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream the dataset.
        eval_documents (`int`, *optional*):
            Documents taken off the start of the training split and held out for evaluation.
        text_column (`str`, *optional*, defaults to `"text"`):
            The column that holds the text.
        encoding (`str`, *optional*):
            Of files that are no UTF-8 and have no byte order mark, as `"shift_jis"`; see [`load_documents`].
        remove_columns (`list[str]`, *optional*):
            Columns of the dataset to leave out: one whose name is taken, as `prompt` beside `text`.
        generator_name_or_path, teacher_name_or_path (`str`, *optional*):
            Checkpoints of the generator and the teacher. Default to `model_name_or_path`, the summarizer's.
        reward_funcs (`list[str]`, *optional*):
            `"log_prob_gain"`, `"kl_gain"`, `"binary"`, `"number_recall"`, `"length_penalty"`, or any dotted import
            path (e.g., `"my_lib.rewards.my_reward"`). Defaults to `kl_gain length_penalty`.
        compressor (`str`, *optional*):
            With `generator_only`, whose gists the generator learns to read: a name of
            `evaluation.compressors.registry.EXTRACTIVE_COMPRESSORS`. Defaults to empty gists.
        dry_run (`bool`, *optional*, defaults to `False`):
            Print what the recipe takes on each rank instead of training; see [`~scripts.memory.print_memory`]. Neither
            weights nor data are loaded.
        world_size (`int`, *optional*):
            With `dry_run`, the number of ranks. Defaults to this launch's.
        zero_stage (`int`, *optional*):
            With `dry_run`, DeepSpeed's stage, 0 for none. Defaults to this launch's.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub, or a folder laid out as one."}
    )
    dataset_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Text, JSON lines, CSV or parquet files, also compressed, folders of them, patterns, or URLs as "
            "s3://…, in place of `dataset_name`. A text file is one document."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset on the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on, unless `eval_documents` is set."}
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Whether to stream the dataset."})
    eval_documents: int | None = field(
        default=None,
        metadata={"help": "Documents taken off the start of the training split and held out for evaluation."},
    )
    text_column: str = field(default="text", metadata={"help": "The column that holds the text."})
    encoding: str | None = field(
        default=None, metadata={"help": "Of files that are no UTF-8 and have no byte order mark, as shift_jis."}
    )
    remove_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns of the dataset to leave out: one whose name is taken, as `prompt` beside `text`."},
    )
    generator_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint of the generator. Defaults to `model_name_or_path`."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint of the teacher. Defaults to `model_name_or_path`."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "'log_prob_gain', 'kl_gain', 'binary', 'number_recall', 'length_penalty', or any dotted import "
            "path (e.g., 'my_lib.rewards.my_reward'). Defaults to kl_gain length_penalty."
        },
    )
    compressor: str | None = field(
        default=None,
        metadata={
            "help": "With `generator_only`, whose gists the generator learns to read, as 'tail' or 'tf-idf'. Defaults "
            "to empty gists."
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Print the memory that the recipe takes on each rank instead of training."}
    )
    world_size: int | None = field(
        default=None, metadata={"help": "With `dry_run`, the number of ranks. Defaults to this launch's."}
    )
    zero_stage: int | None = field(
        default=None, metadata={"help": "With `dry_run`, DeepSpeed's stage, 0 for none. Defaults to this launch's."}
    )

    def __post_init__(self):
        # A single value in YAML comes as a string
        for name in ("dataset_path", "reward_funcs", "remove_columns"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        if (self.dataset_name is None) == (self.dataset_path is None):
            raise ValueError(
                "Set one of `dataset_name` (a dataset on the Hub) and `dataset_path` (local files): the documents to train on."
            )
        given = {name: value for name, value in vars(self).items() if value != getattr(type(self), name)}
        of_splits = ("dataset_config", "dataset_train_split", "dataset_test_split")
        check_given(
            self.dataset_path or self.dataset_name,
            of_splits={name: given.get(name) for name in of_splits},
            of_files={"encoding": self.encoding},
        )
        if self.eval_documents is not None and "dataset_test_split" in given:
            raise ValueError(
                f"`dataset_test_split` ({self.dataset_test_split}) would not be read: `eval_documents` ({self.eval_documents}) "
                "holds out documents of the training split. Leave one of the two out."
            )
        self.eval_documents = whole_number("eval_documents", self.eval_documents, optional=True)
        if self.compressor is not None:
            self.compressor = compressor_name(self.compressor)
        if self.compressor not in (None, *EXTRACTIVE_COMPRESSORS):
            raise ValueError(f"`compressor` must be one of {list(EXTRACTIVE_COMPRESSORS)}, got {self.compressor!r}.")
        for name in ("world_size", "zero_stage"):
            if getattr(self, name) is not None and not self.dry_run:
                raise ValueError(f"`{name}` is of `dry_run` alone; what trains is what was launched. Set `dry_run`.")
        self.world_size = whole_number("world_size", self.world_size, optional=True)
        for name in ("dataset_streaming", "dry_run"):
            setattr(self, name, truth(name, getattr(self, name)))
        self.zero_stage = whole_number("zero_stage", self.zero_stage, least=0, optional=True)
        if self.zero_stage not in (None, 0, 1, 2, 3):
            raise ValueError(f"`zero_stage` must be 0, 1, 2 or 3, got {self.zero_stage}.")


@dataclass
class GistModelConfig(ModelConfig):
    """[`~trl.ModelConfig`] without dropout and quantization."""

    lora_dropout: float = field(
        default=0.0,
        metadata={"help": "Must stay 0: gists are sampled and scored in train mode, where dropout would act."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.model_name_or_path is None:
            raise ValueError("`model_name_or_path` is required: the summarizer's checkpoint.")
        if self.lora_dropout != 0:
            raise ValueError(
                f"`lora_dropout` must be 0, got {self.lora_dropout}: gists are sampled and scored in train mode, so "
                "dropout would make the policy that samples differ from the policy that is trained."
            )
        if self.load_in_8bit or self.load_in_4bit:
            raise ValueError("`load_in_8bit` and `load_in_4bit` are not supported. Use `--dtype bfloat16`.")


def config_apart(argv: Iterable[str]) -> list[str]:
    """With `--config FILE` in the place of `--config=FILE`: `TrlParser` (TRL 1.16) knows the former alone."""
    return [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]


class GistParser(TrlParser):
    """
    [`~trl.TrlParser`] that names a setting which does not exist before it makes anything of the others: a default in its
    place would be refused beside what was meant for it. `--config=FILE` is taken too.
    """

    def parse_args_and_config(self, args: Iterable[str] | None = None, **kwargs):
        return super().parse_args_and_config(config_apart(sys.argv[1:] if args is None else args), **kwargs)

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        unknown = super().set_defaults_with_config(**kwargs)
        if unknown:
            name = unknown[0].removeprefix("--")
            question = meant(name, [action.dest for action in self._actions])
            raise ValueError(f"`{name}` of the config file is no setting. {question}`--help` lists them all.")
        return unknown

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            raise ValueError(no_setting(unknown, [action.dest for action in self._actions]))
        return namespace, unknown


def make_parser(prog: str | None = None) -> TrlParser:
    # The usage line would list every flag of three dataclasses; --help does
    usage = "%(prog)s [--config FILE.yaml] [--FLAG VALUE ...]"
    return GistParser((GistScriptArguments, GistConfig, GistModelConfig), prog=prog, usage=usage, allow_abbrev=False)


def make_trainer(
    script_args: GistScriptArguments, training_args: GistConfig, model_args: GistModelConfig
) -> GistTrainer:
    if script_args.compressor is not None and not training_args.generator_only:
        raise ValueError("`compressor` writes gists for a generator trained alone: set `generator_only` too.")
    # How many documents were skipped is logged at this level
    logging.basicConfig(format="%(message)s")
    hub_logging.disable_propagation()  # it has a handler of its own, and would say all twice
    logging.getLogger("trl_gist").setLevel(logging.INFO)

    if not model_args.use_peft:
        of_adapters = [name for name in vars(model_args) if name.startswith(("lora_", "use_rslora", "use_dora"))]
        warn_of_given(model_args, of_adapters, "`use_peft` is false, and no adapter is drawn")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    peft_config = get_peft_config(model_args)
    if peft_config is not None and model_args.model_revision != "main":
        peft_config.revision = model_args.model_revision  # so that the saved adapters find their base again
    train_dataset, eval_dataset = load_splits(script_args, training_args)
    trainer = GistTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        generator=script_args.generator_name_or_path,
        teacher=script_args.teacher_name_or_path,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        reward_funcs=load_reward_funcs(script_args.reward_funcs),
        peft_config=peft_config,
    )
    trainer.datasets = datasets_on_hub(script_args.dataset_path or script_args.dataset_name)
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(GistProgressCallback())
    if script_args.compressor is not None:
        trainer.compressor = load_compressor(script_args.compressor, trainer)
    return trainer


def load_compressor(name: str, trainer: GistTrainer):
    """The compressor of that name, with the trainer's teacher; rarity is learned from its first training contexts.
    Raises `ValueError` for one that asks the teacher under ZeRO-3."""
    name, args = compressor_name(name), trainer.args
    if name in ASKS_THE_TEACHER and args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
        raise ValueError(
            f"`compressor` is {name!r}, which runs the teacher as often as the contexts' lengths ask for, and under ZeRO-3 "
            "ranks gather the teacher's layers together: they would wait for each other for ever. Choose another one, or "
            "launch with ZeRO-2."
        )
    contexts, batch_size = trainer.rollout.first_contexts(), args.score_batch_size
    return extractive_compressors(trainer.processing_class, trainer.teacher, contexts, batch_size, [name])[name]


def load_splits(script_args: GistScriptArguments, training_args: GistConfig):
    """The documents to train on, and those to evaluate on or `None`."""

    def load(split):
        return load_documents(
            script_args.dataset_path or script_args.dataset_name,
            config=script_args.dataset_config,
            split=split,
            streaming=script_args.dataset_streaming,
            text_column=script_args.text_column,
            remove_columns=script_args.remove_columns,
            encoding=script_args.encoding,
        )

    train_dataset = load(script_args.dataset_train_split)
    held_out = script_args.eval_documents
    if held_out is not None:
        return without_held_out(train_dataset, held_out), train_dataset.take(held_out)
    if training_args.eval_strategy == IntervalStrategy.NO:
        return train_dataset, None
    if script_args.dataset_path is not None:
        raise ValueError(
            f"`eval_strategy` is '{training_args.eval_strategy.value}', but local files have no split to evaluate on. "
            "Set `eval_documents`, to hold out that many documents."
        )
    return train_dataset, load(script_args.dataset_test_split)


def load_reward_funcs(names: list[str] | None):
    """The functions that `names` stand for, or `None` for the trainer's default."""
    if names is None:
        return None
    funcs = []
    for name in several("reward_funcs", names, "names", "put it in a list"):
        if name in REWARD_FUNCS:
            funcs.append(REWARD_FUNCS[name])
        elif "." in name:
            module_path, func_name = name.rsplit(".", 1)
            sys.path.insert(0, os.getcwd())
            try:
                funcs.append(getattr(importlib.import_module(module_path), func_name))
            except (ModuleNotFoundError, AttributeError) as error:
                raise ValueError(f"Could not load reward function '{name}': {error}.") from error
        else:
            raise ValueError(
                f"Could not load reward function '{name}'. Expected one of {list(REWARD_FUNCS)} or a dotted import "
                "path."
            )
    return funcs


def checkpoint_of(args: GistConfig) -> str | bool | None:
    """What to resume from, of a flag or a YAML value: true means the newest complete checkpoint in `output_dir`."""
    resume = args.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(resume).lower(), resume)


def train(trainer: GistTrainer):
    """
    Trains, saves the pair and, with `push_to_hub`, uploads it. A run that a signal cuts short ends with a checkpoint
    instead; see [`SaveOnSignal`].
    """
    args = trainer.args
    resume = checkpoint_of(args)
    with trainer.holding(PATIENCE if resume else 0.0), SaveOnSignal() as save_on_signal:
        trainer.add_callback(save_on_signal)
        trainer.train(resume_from_checkpoint=resume)
        stopped_at = save_on_signal.stopped_at
        if stopped_at is None:
            trainer.save_model(args.output_dir)
    if stopped_at is not None:
        trainer.accelerator.print(
            f"⏸️ Stopped by {save_on_signal.stopped_by.name} after step {stopped_at} of {trainer.state.max_steps}, saved as "
            f"{Path(args.output_dir, f'{PREFIX_CHECKPOINT_DIR}-{stopped_at}')}. To go on, run the same command with "
            "--resume_from_checkpoint true."
        )
        if STOPPED_FILE in os.environ and trainer.is_world_process_zero():
            Path(os.environ[STOPPED_FILE]).touch()
    else:
        trainer.accelerator.print(f"💾 Pair saved to {args.output_dir}.")
        if args.push_to_hub:
            trainer.accelerator.print(f"🤗 Pair pushed to {trainer.hub_url}.")
    trainer.end()
