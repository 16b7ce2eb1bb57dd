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
The trainer, top to bottom: all that it overrides of TRL's and transformers'. What is no training is a
collaborator beside it.
"""

import itertools
import os
import secrets
import signal
import threading
from collections import defaultdict
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from huggingface_hub import CommitInfo
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState
from transformers.integrations import TrackioCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import get_config_model_id, split_tensor_dict

from ..common.tokens import characters_of
from ..data.columns import BROUGHT_TARGETS, check_dataset, columns_of, is_cut
from ..data.windows import PositionLimits, prepare_windows
from ..models.adapters import without_routers
from ..models.attention import use_matmul_attention
from ..models.checks import check_adapted_layers, check_causal, check_not_random, disable_dropout
from ..models.deepspeed import is_sharded, whole_state_dict, zero_stage
from ..models.fingerprints import frozen_digests, trained_digests, vocabulary_of
from ..models.generation_settings import plain_generation_config
from ..models.positions import max_positions, turned_alike
from ..models.roles import base_of, name_experts, naming, number_of_experts
from ..models.sampling import sample_gists
from ..models.saved_weights import load_weights
from ..models.shared_prefix import check_padded, shared_prefix_log_probs, why_not_shared
from ..pair import GENERATOR_DIR, PAIR_CONFIG_NAME
from ..prompts import GistPrompts, gist_from_completion, said_age
from ..rewards import length_penalty
from . import held_out
from .advantages import best_of_group, group_signal
from .alarms import Alarms, StopOnAlarm
from .callbacks import SaveOnSignal, show_in_tensorboard
from .checkpoints.manifest import Manifest
from .checkpoints.pair_state import load_state, pair_config, prompts_of_run, save_pair, save_state
from .checkpoints.resharding import load_universal, remove_universal
from .checkpoints.run_directory import RunDirectory
from .checkpoints.run_lock import PATIENCE, held_by_main
from .checkpoints.staging import recover, replace_files, rotate, written_beside
from .cold_start import first_steps_times
from .config_checks import (
    check_best_kind_of,
    check_end_of_run,
    check_only_continuation,
    check_said_of_targets,
    check_shows_whole_context,
    show_whole_context,
)
from .constructor import (
    RewardFunc,
    check_adapters,
    check_arguments,
    check_rewards,
    draw_generator,
    load_given,
    open_pair,
    rewards_and_weights,
    roles_given,
)
from .data_order import EpochRepeatSampler, OneStream
from .generator_trainer import GeneratorSchedule, GeneratorTrainer
from .gist_config import GistConfig
from .hub import PairHub
from .length_penalty import LengthPenalty, exchange_rate
from .recipe import run_recipe
from .repository import TAGS
from .rollout import GistRollout
from .run_log import RunLog
from .vllm import engine_for, prepare_vllm, sample_with_vllm
from .walks import Walk


logger = get_logger(__name__)

# What is logged of every rollout: means over its gists
_SCORE_METRICS = ("teacher_kl", "null_teacher_kl", "log_prob_gain", "kl_gain", "gist_length")


class GistTrainer(GRPOTrainer):
    """
    Trainer for learned context compaction in plain tokens.

    A summarizer S (the policy, trained by GRPO) writes a short gist Z of a context X; a generator G, distilled in the
    same step, continues from the gist and the last k tokens L as well as a frozen teacher T that saw all of X.

    ```text
    windows (X, L, Y) → S samples gists of X → T(Y|X), G(Y|L) once per context, G(Y|Z,L) per gist → reward functions
                                                   └ the same forwards train G                       → advantages → S
    ```

    Example:

    ```python
    from datasets import load_dataset
    from peft import LoraConfig
    from trl_gist import GistConfig, GistTrainer

    dataset = load_dataset("HuggingFaceFW/fineweb-edu", name="sample-10BT", split="train", streaming=True)

    trainer = GistTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        args=GistConfig("smollm2-gist", learning_rate=1e-4, generator_learning_rate=2e-4),
        train_dataset=dataset,
        peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    ```

    Args:
        model (`str`, `os.PathLike`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The summarizer. The folder or repository of a saved pair stands for all three roles: both halves go on from
            what was trained, adapters as adapters, and the teacher is the pair's own.
        args ([`GistConfig`], *optional*):
            Configuration. `None` takes the defaults, with a directory named after the model.
        generator, teacher (`str`, `os.PathLike` or a model as above, *optional*):
            Default to the model's own checkpoint. Under LoRA the three then stand on one base in memory. As `generator`
            a saved pair stands for its generator.
        train_dataset, eval_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Documents (`text`) or ready windows (`context`, `target`, optionally `last_k`); see
            [`~data.windows.prepare_windows`]. `eval_dataset` may be a dict of them; `evaluate` and `predict` take the
            same.
        reward_funcs (`Callable` or `list`, *optional*):
            TRL reward functions over the scored columns listed in [`trl_gist.rewards`] and the dataset's own. Defaults
            to `[kl_gain, length_penalty]`, the latter weighted by `args.length_penalty`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The one tokenizer of all roles. Defaults to the model's.
        peft_config ([`~peft.PeftConfig`], *optional*):
            LoRA for the summarizer. `None` fine-tunes in full, or goes on with the adapter of a [`~peft.PeftModel`].
        generator_peft_config ([`~peft.PeftConfig`], *optional*):
            LoRA for the generator. Defaults to the summarizer's.
        compressor (*optional*):
            With `args.generator_only`: writes the gists that G learns to read, by `compress(contexts, budgets)` as
            those of [`trl_gist.evaluation.compressors`]. `None` stands for empty gists.
        callbacks (`list`, *optional*):
            As in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler of the summarizer, as in [`~transformers.Trainer`].

    A subclass that writes gists in another way overrides [`sample`]. TRL's own `rollout_func`, `_generate_single_turn` and
    `_tokenize_prompts` are not asked, because gists of a context are written side by side.

    Raises:
        ValueError: if roles have different tokenizers, an adapter would change the teacher, a window does not fit a
            model's positions, a dataset is empty or all too short or has a column whose name is taken, or the
            distributed setting is not supported.
    """

    _tag_names = TAGS
    _name = "Gist"

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel | PeftModel,
        args: GistConfig | None = None,
        generator: str | os.PathLike | PreTrainedModel | PeftModel | None = None,
        teacher: str | os.PathLike | PreTrainedModel | PeftModel | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        generator_peft_config: PeftConfig | None = None,
        compressor=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
    ):
        given = roles_given(model, generator, teacher)
        model_id = given.model if isinstance(given.model, str) else get_config_model_id(given.model.config)
        if args is None:
            args = GistConfig(f"{model_id.split('/')[-1]}-Gist")
        if not isinstance(args, GistConfig):
            raise ValueError(
                f"`args` must be a `GistConfig`, which has settings of its own, got {type(args).__name__}."
            )
        # First what needs no model to be refused
        check_arguments(args, given.model, train_dataset, eval_dataset, peft_config, generator_peft_config, compressor)
        reward_funcs, weights = rewards_and_weights(reward_funcs, args)
        model, generator, teacher, tokenizer_id = open_pair(given, args, peft_config)
        check_adapters(args, model, model_id, generator, peft_config, generator_peft_config)
        self.initial_reward_weights = weights
        price = weights[reward_funcs.index(length_penalty)] if length_penalty in reward_funcs else 0.0
        self.length_penalty = LengthPenalty(price, args)

        lora = peft_config is not None or isinstance(model, PeftModel)
        if processing_class is None:
            if not model_id:
                raise ValueError("The model does not say which checkpoint it came from: pass `processing_class`.")
            with naming(tokenizer_id or model_id):
                processing_class = AutoTokenizer.from_pretrained(
                    tokenizer_id or model_id, trust_remote_code=args.trust_remote_code
                )
        roles = load_given(model, generator, teacher, processing_class, args, lora, tokenizer_id is not None)
        self.base_models = {
            role: get_config_model_id(base.config) or type(base).__name__ for role, base in vars(roles).items()
        }
        peft_config = without_routers("peft_config", peft_config, roles.summarizer)
        generator_peft_config = without_routers("generator_peft_config", generator_peft_config, roles.generator)
        teacher_digest = frozen_digests({"teacher": roles.teacher})["teacher"]
        train_dataset, eval_dataset = self._cut_windows(train_dataset, eval_dataset, processing_class, args, roles)

        self.hub = PairHub(self, args, self._tag_names)
        self.datasets = []  # on the Hub, as the card names them: a `Dataset` does not say where it came from
        self._stands_on = self.run_directory = None  # what manifests say, once it trains
        self._staging_dir = None  # while a checkpoint is written
        self._unsaved = ExitStack()  # holds `output_dir` while what was trained is in no file
        self._held = frozenset()  # what the trainer was asked to do inside a rollout and does at its end
        # TRL needs the former for a reference alone, and would warn of them else: S is loaded
        loads_reference = args.beta != 0 and not lora and isinstance(model, str)
        model_init_kwargs = args.model_init_kwargs if loads_reference else None
        with (
            fields_set(args, model_init_kwargs=model_init_kwargs, reward_weights=weights),
            engine_for(args, roles.summarizer),
        ):
            super().__init__(
                model=roles.summarizer,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        self._run_id = broadcast_object_list([secrets.token_hex(4)])[0]
        self._prepare_policy(roles, as_given=not isinstance(model, str))
        # After S's adapter is drawn, so that a run with S alone draws the same one
        generator = draw_generator(self.model, roles, generator_peft_config, teacher_digest)
        self.generator_trainer = GeneratorTrainer(generator, roles.teacher, self.prompts, args, self.accelerator)
        self._prepare_rollouts(compressor)
        self._add_callbacks()

    def _cut_windows(self, train_dataset, eval_dataset, tokenizer, args, roles):
        def columns_of_dataset(dataset, name):
            check_dataset(dataset, name)
            return columns_of(dataset, name)

        columns = columns_of_dataset(train_dataset, "train")
        held_out = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        held_out_columns = {
            name: columns_of_dataset(each, name) for name, each in held_out.items() if eval_dataset is not None
        }
        check_said_of_targets(args, columns.union(*held_out_columns.values()))
        if columns & BROUGHT_TARGETS:
            show_whole_context(args)
        elif args.target_spec.is_continuation or "text" not in columns:
            check_only_continuation(args)
        self.prompts = GistPrompts.from_tokenizer(
            tokenizer,
            args.summarizer_prompt,
            args.tail_length,
            args.generator_prompt,
            args.chat_template_kwargs,
        )
        if self.prompts.opened_thought:
            logger.warning(
                f"The summarizer's prompt ends with {self.prompts.opened_thought}, which the tokenizer's chat template "
                "opens: its gists are the beginning of a thought. To have it closed, set `chat_template_kwargs`, as "
                "{'enable_thinking': False} where the template knows that, or another `chat_template`."
            )
        positions = {role: max_positions(each) for role, each in vars(roles).items()}
        limits = PositionLimits.from_positions(
            **positions,
            prompts=self.prompts,
            max_gist_length=args.max_completion_length,
            sampled_alike=None if args.generator_only else turned_alike(roles.summarizer.config),
        )
        spec, rules = args.window_spec(tokenizer), args.column_rules
        self.skipped_rows = {}

        def windows(dataset, name, columns=None):
            columns = columns_of_dataset(dataset, name) if columns is None else columns
            if columns & BROUGHT_TARGETS and not args.generator_only:
                check_shows_whole_context(self.prompts, name)
            dataset, self.skipped_rows[name] = prepare_windows(dataset, tokenizer, spec, limits, name, rules, columns)
            return dataset

        self.windows_of = windows  # for what `evaluate` and `predict` are given later
        train_dataset = windows(train_dataset, "train", columns)
        contexts = args.generation_batch_size // args.num_generations
        if isinstance(train_dataset, Dataset) and len(train_dataset) < contexts:
            raise ValueError(
                f"The train dataset gave {len(train_dataset)} windows, but a rollout takes {contexts} contexts, so "
                "nothing would be trained. Lower `per_device_train_batch_size` or `steps_per_generation`, raise "
                "`num_generations`, or give more documents."
            )
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: windows(each, name, held_out_columns[name]) for name, each in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = windows(eval_dataset, "eval", held_out_columns["eval"])
        check_best_kind_of(args, eval_dataset)
        return train_dataset, eval_dataset

    def _prepare_policy(self, roles, as_given):
        """How S samples and is scored, and the reference that it is held to; `as_given` is a loaded model."""
        if self.use_vllm:
            prepare_vllm(self.vllm_generation, self.model, self.num_generations)
        else:  # TRL's would be completed by the checkpoint's
            self.generation_config = plain_generation_config(
                self.processing_class,
                self.eos_token_ids,
                self.args.max_completion_length,
                do_sample=True,
                temperature=self.args.temperature,
            )
        policies = [self.model]
        if self.ref_model is not None:
            policies.append(self.accelerator.unwrap_model(self.ref_model))
            if as_given and not is_sharded(self.model):
                # TRL has loaded the checkpoint that S is named after; S is what it was given as
                policies[1].load_state_dict(self.model.state_dict())
        for policy in policies:
            disable_dropout(policy)
        if self.accelerator.device.type == "cpu":
            for role in (*policies, roles.generator, roles.teacher):
                use_matmul_attention(role)
        if not is_sharded(self.model):
            self._choose_layout()

    def _prepare_rollouts(self, compressor):
        args = self.args
        self.walk = None
        if args.windows_per_document > 1:
            self.walk = Walk(self.prompts, args, self.processing_class.decode)
        self.rollout = GistRollout(self, compressor)
        self.last_measures, self.last_gists, self.eval_rows = {}, [], []

    def _add_callbacks(self):
        args = self.args
        self.alarms = Alarms(self.generator_trainer.scorer, args.max_completion_length, self.accelerator)
        if args.stop_on_alarm:
            self.add_callback(StopOnAlarm(self.alarms, args.steps_per_rollout))
        self.add_callback(GeneratorSchedule(self.generator_trainer))
        self.add_callback(RunLog(self))

    @property
    def generator(self) -> PreTrainedModel | PeftModel:
        return self.generator_trainer.model

    @property
    def teacher(self) -> PreTrainedModel:
        return self.generator_trainer.scorer.teacher.model

    @property
    def compressor(self):
        """With `args.generator_only`, what writes the gists. It may be set once the trainer has loaded its models."""
        return self.rollout.compressor

    @compressor.setter
    def compressor(self, compressor):
        self.rollout.compressor = compressor

    @property
    def gists_per_context(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    @property
    def in_cold_start(self) -> bool:
        """Whether a rule writes the gists of this step."""
        early = self.state.global_step < self.args.cold_start_steps
        return early and self.model.training and not self.args.generator_only

    # ---- The method: one rollout ----
    # GRPOTrainer's rollout is: `rollout_func` writes → rewards → advantages. The overrides hand it the exact tokens of
    # the context, score and distil before the reward functions run, and choose the advantage. The names with a leading
    # underscore are TRL 1.16's and transformers 5.23's; tests/trainer/test_trl_names.py fails when one goes.

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        if self.rollout_func is not None:
            raise ValueError(
                "`rollout_func` is how this trainer writes gists. To write them another way, override `sample`."
            )
        inputs = self.rollout.rows(inputs)
        # TRL hands on the prompts' text alone
        ours = {"rollout_func": lambda prompts, trainer: self.rollout(inputs)}
        if self.use_vllm and self.in_cold_start and not self.rollout.goes_on_from_own:
            # TRL would hand vLLM weights that nothing is sampled with
            ours["_last_loaded_step"] = self.state.global_step
        with fields_set(self, **ours):
            output = super()._generate_and_score_completions(inputs)
        kind = "best" if self.in_cold_start else self.args.advantage
        if kind != "group" and self.model.training:
            rewards = (self._rewards_per_func * self.reward_weights.to(self._rewards_per_func.device)).sum(dim=1)
            advantages = rewards if kind == "reward" else best_of_group(rewards, self.num_generations)
            start = self.accelerator.process_index * len(inputs)
            output["advantages"] = advantages[start : start + len(inputs)]
            logged = self._logs["advantages"]
            for _ in range(min(len(rewards), len(logged))):  # it keeps the newest alone
                logged.pop()
            logged.extend(advantages.tolist())
        if kind == "best" and self.model.training:
            if self.in_cold_start:
                output.pop("old_per_token_logps", None)  # no old policy wrote these gists: nothing has a ratio to it
            tokens = (output["completion_mask"].sum(1) * (output["advantages"] > 0)).sum()
            output["imitated_tokens"] = self.accelerator.reduce(tokens, reduction="sum")
        if self.model.training and not self.in_cold_start:  # gists cut by a rule do not answer to a price
            self._update_length_penalty(inputs)
            if not self.args.generator_only:
                self._watch_signal(inputs, output)
        return output

    def _watch_signal(self, rows, output):
        """A context teaches S something if its gists differ, also in what they are paid, by more than rounding, and the
        loss counts a token of them."""
        rewards_N = self._rewards_per_func @ self.reward_weights.to(self._rewards_per_func)  # of all processes
        rewards_N = rewards_N[self.accelerator.process_index * len(rows) :]
        counted_NC, ratio = output["completion_mask"].bool(), output.get("importance_sampling_ratio")
        if ratio is not None:
            counted_NC = counted_NC & (ratio != 0)
        taught = []
        for start in range(0, len(rows), self.num_generations):
            group = slice(start, start + self.num_generations)
            if self.args.advantage == "reward":
                paid = rewards_N[group].any()
            else:
                gists = {tuple(row["gist_ids"]) for row in rows[group]}
                paid = len(gists) > 1 and not torch.isclose(rewards_N[group].max(), rewards_N[group].min())
            taught.append(bool(paid and counted_NC[group].any()))
        documents = [str(row["document_id"]) for row in rows[:: self.num_generations]]
        for name, value in self.alarms.watch_signal(taught, documents, self.state.global_step + 1).items():
            self._metrics["train"][name].append(value)  # `_log_metric` (TRL 1.16) has said what it had of this rollout

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        training = self.model.training
        gists = [gist_from_completion(ids, self.eos_token_ids) for ids in completion_ids_list]
        if not training:  # as the pair will write them: S is paid for what it writes, half characters too
            gists = [characters_of(self.processing_class).whole(gist) for gist in gists]
        num_generations = self.gists_per_context
        same = num_generations if self.rollout.one_gist_a_context else 1
        each = self.generator_trainer.score(inputs[::same], gists[::same], num_generations // same, training)
        scores = [score for score in each for _ in range(same)]
        for row, score in zip(inputs, scores, strict=True):
            row.update(score)
        if training:  # in evaluation `summarize` gives the measures; a mean of batch means would overwrite them
            self._log_rollout(inputs, completions)
        self._log_completion_extra("teacher_kl", [score["teacher_kl"] for score in scores])

        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        check_rewards(rewards_per_func, self.reward_func_names)
        self._rewards_per_func = rewards_per_func
        if training:
            # Last, so that a reward function that fails leaves the generator where the last checkpoint can follow
            for name, value in self.generator_trainer.step().items():
                self._log_metric(f"generator/{name}", value)
        else:
            self.eval_rows += inputs
        return rewards_per_func

    def _log_rollout(self, rows, completions):
        for name in _SCORE_METRICS:
            self._log_metric(name, sum(row[name] for row in rows) / len(rows))
        # One by one, so that their mean is over the targets of all ranks, which have different numbers of them
        for name, values in self._target_measures(rows).items():
            for value in values:
                self._log_metric(name, value)
        if self.walk is not None:
            for name, value in self.walk.measures(rows).items():
                self._log_metric(name, value)
        self._log_metric("length_penalty", self.length_penalty.value)
        self._log_metric("cold_start", float(self.in_cold_start))
        if self.args.generator_only:
            return  # what follows is about S
        for name in ("log_prob_gain", "kl_gain"):
            gains = [
                [score[name] for score in row["target_scores"]] if "targets" in row else row[f"token_{name}s"]
                for row in rows
            ]
            signal = group_signal(gains, self.num_generations)
            for measure, value in signal.items():
                self._log_metric(f"{measure.removesuffix('_std')}/{name}", value)
        step = self.state.global_step + 1
        for name, value in self.alarms.watch(rows, completions, self.num_generations, step).items():
            self._log_metric(name, value)

    def _target_measures(self, rows):
        """Lists to log, a value a target, by its kind and in walks by its age, and how many targets each context has;
        none where contexts have one."""
        measures = defaultdict(list)
        for row in rows:
            if "targets" in row:
                measures["targets"].append(len(row["targets"]))
                for target, score in zip(row["targets"], row["target_scores"], strict=True):
                    age = said_age(target)
                    groups = [target["kind"], *([] if age is None else [f"age_{age}"])]
                    for group, name in itertools.product(groups, ("teacher_kl", "kl_gain", "exact")):
                        measures[f"{group}/{name}"].append(float(score[name]))
        return measures

    def _update_length_penalty(self, rows):
        if self.length_penalty.is_fixed:
            return
        means = [sum(row[name] for row in rows) / len(rows) for name in ("gist_length", "teacher_kl")]
        means = torch.tensor(means, dtype=torch.float64, device=self.accelerator.device)
        priced = self.reward_funcs.index(length_penalty)
        others = self.reward_weights.clone()
        others[priced] = 0.0
        rewards_N = self._rewards_per_func @ others.to(self._rewards_per_func)
        lengths_N = -self._rewards_per_func[:, priced]
        rate = exchange_rate(rewards_N, lengths_N, self.num_generations)
        self.length_penalty.update(*self.accelerator.reduce(means, reduction="mean").tolist(), rate)
        self._apply_length_penalty()

    def _apply_length_penalty(self):
        self.reward_weights[self.reward_funcs.index(length_penalty)] = self.length_penalty.value

    # ---- S samples ----

    def sample(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        """
        A completion for each prompt, those of a context adjacent, up to where S stops; and by vLLM their log-probs. In
        evaluation it is greedy: what [`GistCompactor`] writes, and no noise between evaluations.
        """
        generate, size = self._generate_single_turn, self.gists_per_context
        if self.use_vllm:
            temperature = self.temperature if self.model.training else 0.0
            return sample_with_vllm(generate, self.vllm_generation, prompt_ids, size, temperature)
        training, config = self.model.training, self.generation_config
        # What cuts a distribution is said of none that is not sampled from, else transformers (5.23) warns of it
        config.do_sample, config.temperature, config.top_k = (
            (True, self.temperature, 0) if training else (False, None, None)
        )
        if self.use_transformers_continuous_batching or not self.shares_prefix:
            written = generate(prompt_ids, None, {}, size)
            if not training:  # TRL (1.16) leaves the model training where it batches continuously
                self.model.eval()
            return written
        with self.generating() as model:
            completion_ids_NC = sample_gists(
                model, prompt_ids, self.generation_config, self.processing_class.pad_token_id
            )
        rows = completion_ids_NC.tolist()
        return [ids[: len(gist_from_completion(ids, self.eos_token_ids)) + 1] for ids in rows], None

    @contextmanager
    def generating(self):
        """S as it generates on the transformers path, whatever wraps it."""
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self.accelerator.autocast(),  # the precision in which the policy's log-probs will be computed
        ):
            yield model

    # ---- The policy's loss: all gists of a context in one row, where the model allows it ----

    def _prepare_inputs(self, generation_batch):
        if not self.model.training or not self.shares_prefix:
            return super()._prepare_inputs(generation_batch)
        # As TRL's, but without its shuffle of rows, which would tear the gists of a context apart
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            rollout = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(rollout, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.args.generator_only:  # no gradient at all, rather than one of 0, so that not even weight decay moves S
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _compute_loss(self, model, inputs):
        """
        TRL's, but where gists are imitated: the cross-entropy of those with a weight, a mean over their tokens in the
        rollout (over ranks, and split over the rollout's steps). It is the same whatever `loss_type` is, and nothing
        clips it: the rule that wrote a gist is not an old policy. The KL to the reference, the entropy bonus and the
        auxiliary loss of experts are added to either.
        """
        if "imitated_tokens" not in inputs:
            return super()._compute_loss(model, inputs)
        weights_N = inputs["advantages"]
        # Each `loss_type` (TRL 1.16) multiplies the policy's term by the advantage
        others = super()._compute_loss(model, {**inputs, "advantages": torch.zeros_like(weights_N)})
        # TRL's loss keeps its log-probs to itself: they are kept where it asks for them, or a second forward would be due
        logps_NC, self._logps_NC = self._logps_NC, None
        imitated_NC = inputs["completion_mask"] * (weights_N > 0).unsqueeze(1)
        steps = self.args.steps_per_generation / self.current_gradient_accumulation_steps
        tokens = inputs["imitated_tokens"] / steps / self.accelerator.num_processes  # wrappers average over ranks
        return others - (logps_NC * imitated_NC).sum() / tokens

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_aux_loss=False, **kwargs
    ):
        if not self.shares_prefix or compute_aux_loss:
            scores = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_aux_loss=compute_aux_loss,
                **kwargs,
            )
            self._logps_NC = scores[0]
            return scores
        # Of the model that is asked: it may be the reference, and either may be in a wrapper
        base = base_of(self.accelerator.unwrap_model(model, keep_torch_compile=False))
        logps, entropies = [], []
        size = batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            with self.accelerator.autocast():
                logps_NC, entropies_NC = shared_prefix_log_probs(
                    model,
                    base,
                    ids[:, :-logits_to_keep],
                    mask[:, :-logits_to_keep],
                    ids[:, -logits_to_keep:],
                    mask[:, -logits_to_keep:],
                    self.temperature,
                    differentiable_entropies=self.args.entropy_coef != 0 or self.args.use_adaptive_entropy,
                )
            logps.append(logps_NC)
            entropies.append(entropies_NC)
        self._logps_NC = torch.cat(logps)  # for `_compute_loss`
        return self._logps_NC, torch.cat(entropies), None

    # ---- The second trainer, through the first one's life cycle ----

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        # The Trainer calls this once S's engine is prepared: the moment to build G's
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.args.cold_start_learning_rate is not None:
            ratio = self.args.cold_start_learning_rate / self.args.learning_rate
            scheduler = self.lr_scheduler = first_steps_times(ratio, self.args.cold_start_steps, scheduler)
        self.generator_trainer.create_optimizer_and_scheduler(num_training_steps)
        if is_sharded(self.model):
            self._choose_layout()
        return scheduler

    def _choose_layout(self):
        base = base_of(self.model)
        check_adapted_layers(base)
        check_not_random(base)
        check_causal(base)
        reason = why_not_shared(base)
        self.shares_prefix = reason is None
        # TRL (1.16) asks for the balance of experts wherever a configuration speaks of it, also if there are none
        if self.aux_loss_enabled and number_of_experts(base.config) == 0:
            if self.args.router_aux_loss_coef is not None:
                raise ValueError(
                    f"`router_aux_loss_coef` ({self.args.router_aux_loss_coef}) weighs the balance of experts, and "
                    f"{type(base).__name__} is configured to have none. Leave it out."
                )
            self.aux_loss_enabled = False
        if self.aux_loss_enabled:
            name_experts(base.config)
        if reason is not None or self.aux_loss_enabled:
            check_padded(base, self.temperature, self.aux_loss_enabled)
        if reason is not None:
            logger.warning(f"The gists of a context are padded into a row each, which is slower: {reason}.")
        elif self.aux_loss_enabled:
            logger.warning(
                "The policy's loss pads the gists of a context into a row each, which is slower: TRL takes the "
                f"load-balancing loss of the experts (`router_aux_loss_coef`, {self.router_aux_loss_coef}) over such "
                "rows. `router_aux_loss_coef=0.0` leaves that loss out."
            )

    # ---- The data: which rank reads what, and what is measured on held-out windows ----

    def _get_train_sampler(self, dataset: Dataset | None = None):
        return EpochRepeatSampler.of(super()._get_train_sampler(dataset))

    def _get_dataloader(self, dataset, *args, **kwargs):
        if isinstance(dataset, IterableDataset):
            dataset = OneStream(dataset)
            # As TRL (1.16) sets it for streams that it is constructed with: rows of text cannot be concatenated
            self.accelerator.dataloader_config.dispatch_batches = False
        return super()._get_dataloader(dataset, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | IterableDataset | None = None):
        # `evaluate` may be given documents, as the constructor; a name stands for windows that it has cut
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        check_dataset(eval_dataset, "eval")
        columns = columns_of(eval_dataset, "eval")
        if not is_cut(columns):
            eval_dataset = self.windows_of(eval_dataset, "eval", columns)
        # With `dataloader_persistent_workers` it would be taken for the trainer's own, or that for it
        kept = self.__dict__.pop("_eval_dataloaders", {})
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self._eval_dataloaders = kept

    def get_test_dataloader(self, test_dataset: Dataset | IterableDataset):
        # `predict` samples, and measures, as `evaluate`; of streams TRL (1.16) repeats the contexts for that alone
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        if self.is_deepspeed_enabled and self.generator_trainer.engine is None:
            raise ValueError(
                "Under DeepSpeed the generator's engine is made when training begins: evaluate with "
                "`eval_on_start=True`, or after training."
            )
        for callback in self.callback_handler.callbacks:
            # TRL (1.16) logs its timings there, also before and after training
            if isinstance(callback, TrackioCallback):
                callback.on_train_begin(self.args, self.state, self.control, model=self.model)
        self.eval_rows = []
        # The loader takes its seed from torch's generator, from which the next gists are sampled; a run that is
        # evaluated on the way is the run that is not
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        scorer = self.generator_trainer.scorer
        self.eval_rows, self.last_measures = held_out.measure(scorer, self.eval_rows, self.accelerator)
        self.last_gists = held_out.readable_gists(self.eval_rows, self.processing_class)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self.last_measures.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        # Samples, scores and logs; the policy's loss says nothing on held-out data and is not computed
        self._prepare_inputs(inputs)
        return None, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if isinstance(self.train_dataset, IterableDataset) and self.model.training:
            logs["skipped_rows"] = self.skipped_rows["train"].total
        super().log(logs, start_time)
        if self.log_completions and self.accelerator.is_main_process:
            step = self.state.global_step
            table = Path(self.args.output_dir, "completions", f"completions_{step:05d}.parquet")
            show_in_tensorboard(self.callback_handler.callbacks, table, step, self.log_unique_prompts)

    # ---- A run ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        As [`~transformers.Trainer.train`], but `resume_from_checkpoint=True` takes the newest *complete* checkpoint.

        Ctrl-C, and the signals that [`SaveOnSignal`] listens to, take effect when the rollout is done and saved, unless
        `save_strategy="no"`; a second one does at once. With a [`SaveOnSignal`] among the callbacks `train` returns
        then, as that says.

        Raises:
            ValueError: if the checkpoint, or each in `output_dir`, is damaged or of another run, saying what is wrong
                with it; if it was trained on other windows, prompts or targets; if a new run's `output_dir` holds another
                run; or if another run is using `output_dir`, with its process and host.
        """
        own = None
        listening = any(isinstance(each, SaveOnSignal) for each in self.callback_handler.callbacks)
        saves = self.args.save_strategy != SaveStrategy.NO
        if not listening and saves and threading.current_thread() is threading.main_thread():
            own = SaveOnSignal()
        with ExitStack() as stack:
            stack.enter_context(self.holding(PATIENCE if resume_from_checkpoint else 0.0))
            self._unsaved.close()
            if own is not None:
                self.add_callback(own)
                stack.callback(self.remove_callback, own)
                stack.enter_context(own)
            output = self._train(resume_from_checkpoint, **kwargs)
            last = Path(self._get_output_dir(None), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            if not broadcast_object_list([last.is_dir()])[0]:  # the main process's is where checkpoints are
                self._unsaved.enter_context(self.holding())
        if own is not None and own.stopped_by is not None:
            logger.warning(
                f"{own.stopped_by.name}: stopped after step {self.state.global_step} of {self.state.max_steps}, which is "
                f"saved in {self.args.output_dir}. `resume_from_checkpoint=True` goes on from there."
            )
            signal.raise_signal(own.stopped_by)
        return output

    def holding(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """Holds `output_dir` against other runs, for as long as its block lasts; see [`~run_lock.held_by_main`]. All
        processes enter it."""
        return held_by_main(self.args.output_dir, self.is_world_process_zero(), patience)

    def _train(self, resume_from_checkpoint, **kwargs):
        if self.is_world_process_zero():
            recover(self.args.output_dir)
            self.hub.clear()
        self.accelerator.wait_for_everyone()
        roles = {"summarizer": self.model, "generator": self.generator, "teacher": self.teacher}
        if self._stands_on is None:  # while the weights are as they were loaded: no engine has sharded them yet
            self._stands_on = {
                "world_size": self.args.world_size,
                "engine": f"zero{zero_stage(self.accelerator)}" if self.is_deepspeed_enabled else "accelerate",
                "base_models": self.base_models,
                "frozen_weights": frozen_digests(roles),
                "vocabulary": vocabulary_of(self.processing_class),
            }
        self.run_directory = RunDirectory(
            self.args.output_dir,
            {**self._stands_on, "recipe": run_recipe(self.args)},
            self.args.steps_per_rollout,
            {"summarizer": self.model, "generator": self.generator},
            self.args.sync_ref_model,
        )
        if resume_from_checkpoint:
            resume_from_checkpoint, universal = self._verified_on_all_ranks(resume_from_checkpoint)
            if universal:
                load_universal(self.accelerator)
            self.prompts = prompts_of_run(self.prompts, self.args, resume_from_checkpoint)
        else:
            self.run_directory.check_unused()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _verified_on_all_ranks(self, resume_from_checkpoint):
        """The checkpoint to load, and whether it is in DeepSpeed's universal form."""
        outcome = [None, False, None]
        if self.is_world_process_zero():
            try:
                outcome[:2] = self.run_directory.to_resume(resume_from_checkpoint)
            except ValueError as error:
                outcome[2] = str(error)
        checkpoint, universal, refusal = broadcast_object_list(outcome)
        if refusal is not None:
            raise ValueError(refusal)
        return checkpoint, universal

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        check_end_of_run(self.args, max_steps)
        self._held = frozenset()
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if checkpoint is None or self.args.ignore_data_skip or not isinstance(self.train_dataset, IterableDataset):
            return position
        # A stream has no length, so `Trainer` (5.23) takes the whole run for one epoch and would look for the position
        # past the stream's end. The epoch it saved counts passes over the stream, in fractions of the run's batches.
        saved = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME))
        passes, fraction = divmod(saved.epoch, 1)
        return int(passes), round(fraction * saved.max_steps * self.args.gradient_accumulation_steps)

    def _run_epoch(self, model, epoch, train_dataloader, *args, **kwargs):
        if self.state.global_step < self.state.max_steps:
            # Where processes share the batches and some are skipped, accelerate (1.15) does not pass it on
            train_dataloader.set_epoch(epoch)
            before = self.state.global_step, self._step
            # `Trainer` passes the same number in each of a resumed run's epochs
            resumed_inside = kwargs["steps_trained_in_current_epoch"] > 0 and epoch == kwargs["epochs_trained"]
            super()._run_epoch(model, epoch, train_dataloader, *args, **kwargs)
            self._check_trained(*before, resumed_inside=resumed_inside)
        else:
            # `Trainer` looks at the step's number after a step: from the last checkpoint it would take one too many
            self.control.should_training_stop = True

    def _check_trained(self, global_step, micro_step, resumed_inside):
        """Raises `ValueError` if a whole pass over the dataset gave no optimizer step, where `Trainer` ends the run as
        if it had come to its end, or makes passes without one."""
        stopped = self._step > micro_step and (self.control.should_training_stop or self.control.should_epoch_stop)
        if self.state.global_step > global_step or stopped or resumed_inside:
            return
        args = self.args
        rollouts = max(1, args.gradient_accumulation_steps // (args.steps_per_generation * args.num_iterations))
        contexts = rollouts * args.generation_batch_size // args.num_generations
        raise ValueError(
            f"The train dataset ended before it gave the {contexts} windows of one optimizer step "
            f"({self.skipped_rows['train'].total} of its rows were skipped), so nothing would be trained. Lower "
            "`per_device_train_batch_size`, `steps_per_generation` or `gradient_accumulation_steps`, raise "
            "`num_generations`, or give more documents."
        )

    def _finalize_training(self, trial, num_train_samples, start_time):
        if self._held:
            logger.warning(
                f"The run ended at step {self.state.global_step}, inside a rollout of {self.args.steps_per_rollout} "
                "optimizer steps, so the checkpoint that was asked for was not written."
            )
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            logger.warning(
                "`load_best_model_at_end` is True, and the best evaluation fell on no step that was saved: the "
                "weights stay those of the last step. Evaluate at the steps that are saved (`eval_steps`, `save_steps`)."
            )
        limit = self.args.save_total_limit
        if self.state.global_step < self.state.max_steps:
            # With a limit of 1 `Trainer` keeps the best checkpoint alone; a run that was stopped goes on from its last
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit = limit

    # ---- A checkpoint: between two rollouts, both halves as one, complete or none ----
    # The generator has taken its step on a rollout before the summarizer takes its first, and a checkpoint holds no
    # half-used rollout: the rest of one would never be trained on, and the next ones would start at other steps.

    def _inside_rollout(self):
        return self.state.global_step % self.args.steps_per_rollout != 0

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Whoever asked for it, a checkpoint waits for the end of the rollout, and so does the evaluation that it is
        chosen by."""
        asked = {"should_save"} if self.control.should_save else set()
        if self.control.should_evaluate and (asked or self.args.save_strategy == SaveStrategy.BEST):
            asked.add("should_evaluate")
        if self._inside_rollout():
            self._held |= asked
        for name in self._held:
            setattr(self.control, name, not self._inside_rollout())
        if not self._inside_rollout():
            self._held = frozenset()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        step = self.state.global_step
        if self._inside_rollout():
            raise ValueError(
                f"No checkpoint can be written at step {step}, inside a rollout of "
                f"{self.args.steps_per_rollout} optimizer steps: a run that resumes from it would leave the rest of "
                "the rollout out. Set `control.should_save`, which waits for the rollout's end, or use `save_model`."
            )
        run_dir = self._get_output_dir(trial)
        final = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        try:
            with self._written_beside(run_dir, f"The checkpoint of step {step}") as staging:
                self._staging_dir = str(staging)
                with fields_set(self.args, push_to_hub=False):  # `Trainer` would push what is not complete
                    super()._save_checkpoint(model, trial)
                staged = staging / Path(final).name
                if self.state.best_model_checkpoint == str(staged):
                    self.state.best_model_checkpoint = final
                    if self.args.should_save:
                        self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                trained = self._trained_digests()
                self.accelerator.wait_for_everyone()  # each rank has written its part
                if self.args.should_save:
                    self.run_directory.complete(staged, Path(final), step, trained)
        finally:
            self._staging_dir = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            kept = {Path(final)} | ({Path(best)} if best else set())
            rotate(run_dir, self.args.save_total_limit, kept, self._run_id)

    def _get_output_dir(self, trial):
        # `Trainer._save_checkpoint` (5.23) makes its folder in here
        return self._staging_dir or super()._get_output_dir(trial)

    def _written_beside(self, directory, what):
        wait = self.accelerator.wait_for_everyone
        return written_beside(directory, what, self._run_id, self.args.should_save, wait)

    def _save_optimizer_and_scheduler(self, output_dir: str):
        super()._save_optimizer_and_scheduler(output_dir)
        self.generator_trainer.save_checkpoint(Path(output_dir, GENERATOR_DIR))
        if self.args.should_save:
            save_state(output_dir, self.length_penalty, self.alarms, self._followed_reference())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.generator_trainer.load_checkpoint(Path(checkpoint, GENERATOR_DIR))
            load_state(checkpoint, self.length_penalty, self.alarms, self._followed_reference())
            if not self.length_penalty.is_fixed:
                self._apply_length_penalty()
            self._check_loaded(Path(checkpoint))
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            remove_universal(Path(self.args.output_dir))

    def _followed_reference(self):
        """The reference, if it follows S; one that does not is the checkpoint that S came from."""
        return self.accelerator.unwrap_model(self.ref_model) if self.args.sync_ref_model else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        model = self.model if model is None else model
        # `Trainer` (5.23) would take generator/ for a second adapter of S, and has no names for packed experts
        self.generator_trainer.load_model(Path(resume_from_checkpoint, GENERATOR_DIR))
        load_weights(resume_from_checkpoint, model, "summarizer")

    def _load_best_model(self):
        best = Path(self.state.best_model_checkpoint)
        Manifest.load(best).check_files(best)
        if self.is_deepspeed_enabled:  # whose checkpoints hold optimizer and weights in one
            super()._load_best_model()
            self.generator_trainer.load_checkpoint(best / GENERATOR_DIR)
        else:
            self._load_from_checkpoint(str(best))
        self._check_loaded(best)
        self._last_loaded_step = -1  # or vLLM (TRL 1.16) would go on with the last weights until a step is taken

    def _trained_digests(self):
        return trained_digests({"summarizer": self.model, "generator": self.generator})

    def _check_loaded(self, checkpoint):
        """All ranks call it, whatever loaded the weights."""
        Manifest.load(checkpoint).check_loaded(checkpoint, self._trained_digests())

    # ---- The pair ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        output_dir = output_dir or self.args.output_dir
        if self._staging_dir is not None:  # a checkpoint is itself written beside its place
            self._save_pair(output_dir)
        else:
            with held_by_main(output_dir, self.is_world_process_zero()):
                if self.args.should_save:
                    recover(output_dir)
                with self._written_beside(output_dir, "The pair") as staging:
                    staged = staging / Path(output_dir).resolve().name
                    self._save_pair(str(staged))
                    self.accelerator.wait_for_everyone()
                    if self.args.should_save:
                        replace_files(staged, Path(output_dir), last=PAIR_CONFIG_NAME)
            self._unsaved.close()
        # As in `Trainer.save_model`, but once both halves are there
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_pair(self, directory):
        if self.is_deepspeed_enabled and zero_stage(self.accelerator) < 3:
            # accelerate (1.15) would clone each weight for itself, and tied ones be saved twice
            if self.args.should_save:
                self._save(directory, state_dict=whole_state_dict(self.model))
        else:
            super().save_model(directory, _internal_call=True)
        if self.args.should_save:
            # A pickle; gist_config.json holds the recipe
            Path(directory, TRAINING_ARGS_NAME).unlink(missing_ok=True)
        changes = self.run_directory.recipe_changes if self.run_directory is not None else []
        pair = pair_config(
            self.args,
            self.base_models,
            self.last_measures,
            self.last_gists,
            self.state.global_step,
            changes,
            self.prompts.rendered,
            self.datasets,
        )
        save_pair(directory, pair, self.generator_trainer, self.processing_class, self._tag_names)

    def create_model_card(self, *args, **kwargs):
        pass  # TRL writes its own to `output_dir` at every checkpoint; `save_model` writes ours where the pair is

    # ---- The Hub ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        super().init_hf_repo(token=token, private=private)
        self.hub.prepare(token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Saves the pair to `args.output_dir` and pushes both halves, `gist_config.json`, the card and the run's plots
        and report in one commit.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to return only when the commit is made.
            token (`str`, *optional*):
                Token with write permission. Defaults to `args.hub_token`, or else the one of `hf auth login`.
            revision (`str`, *optional*):
                Branch to push to. Defaults to `args.hub_revision`, or else `"main"`.
            private (`bool`, *optional*):
                Whether to make the repository private when it is created. Defaults to `args.hub_private_repo`.
            kwargs (`dict`):
                What other trainers put in their card; a pair's card takes none.

        Returns:
            [`~huggingface_hub.CommitInfo`], or a `Future` of it if not `blocking`; `None` but on the main process.

        Raises:
            ConnectionError: if the push failed. The pair is saved, and the repository is as it was.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # `args.push_to_hub` is off
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self.hub.push_pair(commit_message, blocking, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.hub.push_checkpoint(checkpoint_folder)

    @property
    def hub_url(self) -> str | None:
        """The repository of the last push, as the Hub gave it; on the main process."""
        return self.hub.url


@contextmanager
def fields_set(owner, **values):
    """Fields of an object that hold other values inside, and their own afterwards."""
    own = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(owner, name, value)
