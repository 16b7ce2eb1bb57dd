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

"""The second trainer: scores gists under the generator, and steps it by the gradient of the same forwards."""

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, Trainer, TrainerCallback, get_scheduler
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_pt_utils import get_parameter_names
from trl.models.utils import prepare_deepspeed

from ..models.checks import check_adapted_layers, check_not_random, disable_dropout
from ..models.deepspeed import (
    deepspeed_engine,
    is_sharded,
    keep_on_every_rank,
    uses_deepspeed,
    whole_state_dict,
    zero_stage,
)
from ..models.lm_head import check_logits
from ..models.saved_weights import load_weights
from ..prompts import GistPrompts
from ..scoring.gist_scorer import GistScorer, row_tokens_of_run
from ..scoring.targets import TargetScorer, router_loss_coef
from ..scoring.teacher_cache import TeacherCache
from .gist_config import GistConfig


OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"

_RESUME = "Resume from the last checkpoint with a lower `generator_learning_rate`."


class GeneratorTrainer:
    """
    The second trainer: distils the generator into predicting, from a gist, what the teacher predicts from the context.

    It is stepped inside [`GistTrainer`]'s step. The forward that scores a gist for its reward is the forward that is
    differentiated: [`~GeneratorTrainer.score`] leaves the gradient of the whole rollout's loss on the generator, and
    [`~GeneratorTrainer.step`] takes one optimizer step with it. It is not a [`~transformers.Trainer`]: it has no loop
    and no data of its own, only an engine, an optimizer, a schedule and a checkpoint.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The generator G.
        teacher ([`~transformers.PreTrainedModel`]):
            The frozen teacher T.
        prompts ([`GistPrompts`]):
            How gists, last tokens and contexts become prompts.
        args ([`GistConfig`]):
            Learning rate, schedule, loss.
        accelerator ([`~accelerate.Accelerator`]):
            The one of the [`GistTrainer`].
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, teacher, prompts: GistPrompts, args: GistConfig, accelerator
    ):
        self.model = model
        self.args = args
        self.accelerator: Accelerator = accelerator
        for role in (model, teacher):
            role.to(accelerator.device)
            disable_dropout(role)  # the adapter's too
            if not is_sharded(role):
                check_adapted_layers(role)
                check_not_random(role)
                check_logits(role)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        model.train()
        cache = None
        if args.teacher_cache_dir is not None:
            cache = TeacherCache(args.teacher_cache_dir, teacher, prompts, accelerator.mixed_precision)
        self.scorer = GistScorer(
            self._target_scorer(),
            TargetScorer(teacher.eval()),
            prompts,
            args.score_batch_size,
            accelerator.autocast,
            cache,
            args.distillation_loss,
            args.target_floor,
            row_tokens_of_run(accelerator.num_processes),
            mean=args.distillation_mean,
        )
        self.engine = None  # DeepSpeed's
        self.optimizer = None
        self.lr_scheduler = None
        self._optimizer_cls_and_kwargs()  # so that an optimizer whose package is missing is named before training

    def _target_scorer(self):
        return TargetScorer(self.model, router_loss_coef(self.model, self.args.router_aux_loss_coef))

    def _optimizer_cls_and_kwargs(self):
        args = copy.copy(self.args)
        args.learning_rate = self.args.generator_learning_rate
        return Trainer.get_optimizer_cls_and_kwargs(args, self.model)

    def create_optimizer_and_scheduler(self, num_training_steps: int):
        """
        Args:
            num_training_steps (`int`):
                Steps of the summarizer in the whole run, which the schedule counts; see [`~GeneratorTrainer.step`].
        """
        args = self.args
        optimizer_cls, optimizer_kwargs = self._optimizer_cls_and_kwargs()
        # The parameters that `Trainer` would decay: all but biases and norms
        decayed = set(get_parameter_names(self.model, [torch.nn.LayerNorm], [r"bias", r"norm"]))
        trainable = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trainable if name in decayed], "weight_decay": args.weight_decay},
            {"params": [p for name, p in trainable if name not in decayed], "weight_decay": 0.0},
        ]
        groups = optimizer_kwargs.pop("params", groups)  # GaLore and APOLLO bring their own, as in `Trainer`
        self.optimizer = optimizer_cls([group for group in groups if group["params"]], **optimizer_kwargs)
        if uses_deepspeed(self.accelerator):
            self._create_engines()
        else:
            self.scorer.generator = self.accelerator.prepare_model(self._target_scorer())
        schedule = summarizer_schedule(args, num_training_steps)
        self.lr_scheduler = LambdaLR(self.optimizer, [schedule] * len(self.optimizer.param_groups))

    def _create_engines(self):
        accelerator, teacher = self.accelerator, self.scorer.teacher.model
        scorer, max_norm = self._target_scorer(), self.args.max_grad_norm
        self.engine, self.optimizer = deepspeed_engine(scorer, self.optimizer, accelerator, max_norm)
        self.scorer.generator = self.engine
        # As TRL does with a reference model: sharded under ZeRO-3, else whole on every rank. It hooks into `teacher`.
        self.teacher_engine = prepare_deepspeed(teacher, accelerator)
        if zero_stage(accelerator) == 3:
            summarizer = accelerator.deepspeed_engine_wrapped.engine
            for engine in (summarizer, self.engine, self.teacher_engine):
                model = next(module for module in engine.modules() if isinstance(module, PreTrainedModel))
                keep_on_every_rank(engine, model.get_output_embeddings().parameters())
            for role in (self.model, teacher):  # which could not run before
                check_not_random(role)
                check_logits(role)

    def score(self, rows: list[dict], gists: list[list[int]], num_generations: int, distill: bool) -> list[dict]:
        """
        Scores each row's gist, as [`GistScorer.score`]; if `distill`, leaves the gradient of the rollout's loss, a
        mean over all its target tokens, on the generator. With `args.distilled_gists` so many of each context's gists
        stand for all. The caller then calls [`~GeneratorTrainer.step`].

        Raises:
            FloatingPointError: if a loss is not finite; names the document. No step has been taken then.
        """
        # On all ranks alike, and before any forward in a lower precision
        if "targets" in rows[0] and not self.scorer.shares_rows and self.accelerator.num_processes > 1:
            raise ValueError(
                "Contexts have several targets, and a model that takes no 4D mask reads each in a row of its own: ranks "
                "would run different numbers of forwards, and wait for each other for ever. Load the models with "
                "attn_implementation='sdpa', train on one process, or leave `target_kinds` out."
            )
        walk = {"windows": self.args.windows_per_document, "discount": self.args.gist_discount}
        if not distill:
            return self.scorer.score(rows, gists, num_generations, **walk)
        weight, dropout = self._token_weight(rows), self.args.gist_dropout
        # One forward without a gist stands for as much of all its context's rows
        of_context = weight * num_generations
        learned = min(self.args.distilled_gists or num_generations, num_generations)
        return self.scorer.score(
            rows,
            gists,
            num_generations,
            **walk,
            learned=learned,
            backward=self._backward(of_context / learned * (1 - dropout)) if dropout < 1 else None,
            null_backward=self._backward(of_context * dropout) if dropout > 0 else None,
        )

    def distill(self, documents: list[dict], gists: list[list[int]], num_generations: int, hidden_D: list):
        """
        Leaves the gradient of the loss on gists of contexts that the teacher has read, a mean over the gists, on the
        generator; arguments as of [`GistScorer.score_gists`]. Raises `FloatingPointError` as [`~GeneratorTrainer.score`].
        """
        self.scorer.score_gists(documents, gists, num_generations, hidden_D, self._backward(1 / len(gists)))

    def step(self) -> dict[str, float]:
        """
        One optimizer step on the accumulated gradient. Returns the gradient norm and the learning rate used.

        The schedule is not advanced: its clock is the summarizer's step, so that the learning rate of a rollout is
        what the summarizer's schedule says at the rollout's first step, in proportion; see [`GeneratorSchedule`].
        """
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        grad_norm = self._step() if self.engine is None else self._step_engine()
        return {"grad_norm": grad_norm, "learning_rate": learning_rate}

    def _step(self):
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        max_norm = self.args.max_grad_norm if self.args.max_grad_norm > 0 else float("inf")
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"The generator's gradient norm is {grad_norm}; no step was taken. {_RESUME}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return grad_norm

    def _step_engine(self):
        self.engine.step()
        grad_norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"The generator's gradient norm was {grad_norm}, and DeepSpeed has taken the step. {_RESUME}"
            )
        return grad_norm

    def save_model(self, output_dir: str | os.PathLike):
        """Writes the generator so that plain transformers or peft loads it. Under DeepSpeed all ranks call it."""
        lora = isinstance(self.model, PeftModel)
        state_dict = None if self.engine is None else whole_state_dict(self.model, trainable_only=lora)
        if self.args.should_save:
            self.model.save_pretrained(output_dir, state_dict=state_dict)

    def save_checkpoint(self, output_dir: str | os.PathLike):
        """
        Writes optimizer and schedule beside the model that [`~GeneratorTrainer.save_model`] wrote. Under DeepSpeed all
        ranks call it, each for its shard.
        """
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        if self.engine is not None:
            self.engine.save_checkpoint(str(output_dir), exclude_frozen_parameters=isinstance(self.model, PeftModel))
        elif self.args.should_save:
            torch.save(self.optimizer.state_dict(), Path(output_dir, OPTIMIZER_FILE))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_FILE))

    def load_model(self, checkpoint_dir: str | os.PathLike):
        """Loads what [`~GeneratorTrainer.save_model`] wrote."""
        load_weights(checkpoint_dir, self.model, "generator")

    def load_checkpoint(self, checkpoint_dir: str | os.PathLike):
        """Loads what [`~GeneratorTrainer.save_checkpoint`] wrote. Raises `ValueError` if a file is missing."""
        targets = {OPTIMIZER_FILE: self.optimizer, SCHEDULER_FILE: self.lr_scheduler}
        if self.engine is not None:  # which holds the weights too
            del targets[OPTIMIZER_FILE]
            lora = isinstance(self.model, PeftModel)
            deepspeed_load_checkpoint(self.engine, str(checkpoint_dir), load_module_strict=not lora)
        for name, target in targets.items():
            path = Path(checkpoint_dir, name)
            if not path.is_file():
                raise ValueError(
                    f"{path} is missing: the checkpoint lacks the generator's half. Resume from an earlier one."
                )
            target.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _token_weight(self, rows):
        """1 / target tokens of the rollout on all ranks, so that the summed loss is a mean over tokens; where contexts have
        several targets, a mean over contexts."""
        tokens = sum(1 if "targets" in row else len(row["target_ids"]) for row in rows)
        tokens = torch.tensor(tokens, device=self.accelerator.device)
        # Data-parallel wrappers average gradients over ranks
        return self.accelerator.num_processes / self.accelerator.reduce(tokens, reduction="sum").item()

    def _backward(self, weight):
        def backward(loss_NT, rows):
            self._check_finite(loss_NT, rows)
            loss = weight * loss_NT.sum()
            loss.backward() if self.engine is None else self.engine.backward(loss)

        return backward

    def _check_finite(self, loss_NT, rows):
        for row, loss in zip(rows, loss_NT.detach().sum(-1).tolist(), strict=True):
            if not math.isfinite(loss):
                self.model.zero_grad()
                raise FloatingPointError(
                    f"The generator's loss is {loss} on document {row['document_id']} "
                    f"({row['prompt'][:80]!r}…); no step was taken. Remove the document, or resume from the last "
                    "checkpoint with a lower `generator_learning_rate`."
                )


class GeneratorSchedule(TrainerCallback):
    """
    Advances the generator's schedule with each step of the summarizer's optimizer.

    Args:
        generator_trainer ([`GeneratorTrainer`]):
            The second trainer.
    """

    def __init__(self, generator_trainer: GeneratorTrainer):
        self.generator_trainer = generator_trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.generator_trainer.lr_scheduler.step()


def summarizer_schedule(args: GistConfig, num_training_steps: int) -> Callable[[int], float]:
    """What `args` multiply the summarizer's learning rate by at each of its steps, the cold start's rate aside. A floor
    in `lr_scheduler_kwargs`, as `min_lr`, is the summarizer's: the generator's is as much higher as its learning rate."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(num_training_steps),
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    return scheduler.lr_lambdas[0]
