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

"""Every setting of a run. What is refused, and in which words, is in [`trl_gist.trainer.config_checks`]."""

from dataclasses import dataclass, field

import torch
from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig

from ..common.arguments import known_name
from ..common.geometry import SEPARATOR
from ..data.columns import ColumnRules
from ..data.targets import TARGET_FLOOR, TARGETS_PER_CONTEXT, TargetSpec
from ..data.windows import WindowSpec
from ..models.deepspeed import skip_unused_operator
from ..models.machine import fast_dtype
from ..prompts import GENERATOR_PROMPT, SUMMARIZER_PROMPT_WITH_TAIL
from .config_checks import (
    ADVANTAGES,
    DISTILLATION_LOSSES,
    DISTILLATION_MEANS,
    EXTRACTIVE_RULES,
    check_config,
    check_json,
    check_kinds,
    check_targets,
    resolve_best_model,
    show_whole_context,
)
from .walks import walk_geometry


@dataclass
class GistConfig(GRPOConfig):
    r"""
    Configuration class for the [`GistTrainer`].

    This class holds the parameters of the gist experiment; everything else (sampling, clipping, logging, saving) is
    inherited from [`~trl.GRPOConfig`] and [`~transformers.TrainingArguments`] and means what it means there, or is
    refused. The defaults are the numbers of the original experiment: 512 tokens of context, 64 of target, gists of at
    most 48 tokens, 1,500 steps, the summarizer at 1e-5 and the generator at 2e-5.

    Gists are sampled from S's plain distribution at `temperature`, whatever the checkpoint's `generation_config` says;
    [`trl_gist.models.generation_settings`] says which settings reach which model.

    Parameters:
        > Parameters that control the data

        context_length (`int`, *optional*, defaults to `512`):
            Tokens of context X in a window cut from a document. Ready-made `context` columns may be of any length.
        target_length (`int`, *optional*, defaults to `64`):
            Tokens of target Y, which follow the context.
        last_k (`int`, *optional*, defaults to `64`):
            Tokens L at the end of the context that the generator sees verbatim beside the gist.
        window_stride (`int`, *optional*):
            Tokens between the starts of two windows of a document. Defaults to `context_length + target_length`, so
            that windows do not overlap.
        max_windows_per_document (`int`, *optional*):
            At most this many windows, or walks, are cut from a document. `None` takes all that fit.
        parse_special_tokens (`bool`, *optional*, defaults to `False`):
            Whether control tokens that a dataset's texts spell, as `<|endoftext|>` between joined documents, become these
            tokens. By default they are text, so that no document ends the summarizer's turn.

        > Parameters that control what a gist is paid for

        target_kinds (`dict[str, float]`, *optional*):
            Kinds of targets, each with its weight: how many of a context's targets are of that kind, relative to the
            others. `"continuation"`: Y after L, as the original. `"fact"`: a name, number or date of X after the tokens
            before it. `"recall"`: a sentence of X after its first tokens. `"far"`: what stands `far_offset` tokens after
            X. A context has one continuation and one far target at most; what a kind lacks goes to the others. A gist's
            reward is the mean gain over its targets, and G is distilled on all of them (`distillation_mean`).
            Defaults to `{"continuation": 1}`. Ready windows bring theirs in a column `targets`.
        targets_per_context (`int`, *optional*, defaults to `8`):
            Targets of a context, where there is another kind than `"continuation"`.
        target_floor (`float`, *optional*, defaults to `0.1`):
            What T must gain from X over the cue alone for one of several targets to count, in nats per token. The target
            of a context that gains most always counts. `None` takes all.
        cue_length (`int`, *optional*, defaults to `12`):
            Tokens before a fact that G reads, at most; of a sentence to recall it reads half as many.
        far_offset (`int`, *optional*, defaults to `128`):
            Tokens between X and a `"far"` target.
        recall_age (`list[float]`, *optional*):
            In a walk over several windows, weights of targets that stand in the window's own chunk, in the one before it,
            and so on: `[1, 1, 1]` asks of the last three alike, and so pays a gist for what it keeps of the one before.
            `None` asks of all chunks so far alike.

        > Parameters that control walks over several windows

        windows_per_document (`int`, *optional*, defaults to `1`):
            Consecutive windows of a document that a rollout walks, as a `rolling` session does: each gist is written from
            one of the gists before it and the next chunk; see [`walks`]. A document gives as many walks as fit, each of
            which starts without a gist. A rollout has that many times the rows that the batch sizes say, and so has each
            of its forward-backward passes. The teacher reads the walk's text from its beginning.
        gist_discount (`float`, *optional*, defaults to `0.5`):
            In a walk: what a gist gains in the window after its own counts that much in its reward, in the window after
            that the square of it, and so on. 0 rewards a gist for its own window alone.

        > Parameters that control the summarizer

        max_completion_length (`int`, *optional*, defaults to `48`):
            Longest gist, in tokens.
        summarizer_prompt (`str`, *optional*):
            What the summarizer reads; `{context}` stands for the context's tokens, `{before_last_k}` in its place for
            those up to the last tokens L, which the generator sees anyway, and `{tail}` for the last of these once
            more, as many as the gist may have. `{last_k}`, which may be left out,
            stands for the last tokens L, so that the summarizer knows what its gist will be read with (in question
            answering, the question), and `{budget}` for the most tokens the gist may have. Other braces are text.
            Where `target_kinds`, or a dataset's column `targets`, asks for more than the continuation, the default is a
            prompt that shows all of X.
            Rendered as a user message if the tokenizer has a chat template, which is then given `chat_template_kwargs`
            (as `{"enable_thinking": False}`), read as plain text otherwise. Rendered once, when training starts: the
            pair keeps both, and what came of them.
        advantage (`str`, *optional*, defaults to `"group"`):
            `"group"` is GRPO's advantage: the reward against the other gists of the same context. `"reward"` uses the
            raw reward as the advantage, as the original experiment's PPO did. `"best"` imitates the best gist of each
            context and ignores the others (best-of-n): its loss, as the cold start's, is their cross-entropy, a mean over
            their tokens that nothing clips, whatever `loss_type` is; `beta` and `entropy_coef` add to it.
        cold_start_steps (`int`, *optional*, defaults to `10`):
            Optimizer steps before the summarizer samples: it imitates gists cut out of the context by a rule while
            the generator learns to read them. A small summarizer writes noise at first, and a group of noise has no
            signal. Part of `max_steps`.
        cold_start_learning_rate (`float`, *optional*):
            Learning rate of the summarizer in the cold start, which bears a higher one than reinforcement learning
            does. Defaults to `learning_rate`.
        cold_start_gists (`str`, *optional*, defaults to `"mixed"`):
            The rule, one of those in [`~trainer.cold_start`]: `"tail"`, `"mixed"`, `"passages"`, `"facts"`,
            `"surprising facts"`, `"recurring facts"` or, where contexts have several targets, `"answers"`.
        length_penalty (`float`, *optional*, defaults to `1e-4`):
            λ: nats per target token charged for each gist token. It is the weight of the `length_penalty` reward, where
            `reward_weights` does not say all weights.

        > Parameters that control the rate

        target_gist_length (`float`, *optional*):
            Mean gist length to reach, in tokens: λ starts at `length_penalty` and follows by dual ascent.
        max_teacher_kl (`float`, *optional*):
            KL(T‖G) to stay below with gists as short as possible, in nats per target token: λ follows by dual ascent.
        length_penalty_learning_rate (`float`, *optional*):
            How fast λ follows, in nats per target token and gist token for each rollout and relative violation of 1;
            see [`~trainer.length_penalty.LengthPenalty`]. Defaults to `6e-3` for `target_gist_length` and to `4e-4` for
            `max_teacher_kl`, which is noisier.
        gist_length_range (`list[int]`, *optional*):
            Least and greatest budget, in tokens. Every context of a rollout draws one, the prompt states it (write
            `{budget}` into `summarizer_prompt`; one that ends with `Gist:`, as the default, says it by itself) and the
            gist is cut there: one model for every rate in between. A `budget` column of the dataset, where there is
            one, gives the budgets instead, `None` where one is to be drawn. `max_completion_length` is the greatest.

        > Parameters that control the generator

        generator_prompt (`str`, *optional*):
            What the generator reads before the target: `{gist}` stands for the gist's tokens, `{last_k}` after it for the
            last tokens L. Plain text, never rendered as a message.
        generator_learning_rate (`float`, *optional*, defaults to `2e-5`):
            Initial learning rate of the generator. Optimizer, schedule and gradient clipping are those of the
            summarizer: on a rollout, the generator's rate is to this what the summarizer's schedule says at the rollout's
            first optimizer step is to `learning_rate`, but for `cold_start_learning_rate`.
        distillation_loss (`str`, *optional*, defaults to `"forward_kl"`):
            What G learns from, with gists and without. `"forward_kl"`, KL(T‖G), matches the teacher's whole
            distribution; `"cross_entropy"` (the original's) the one token that came. The logged `teacher_kl` is the
            former under either.
        distillation_mean (`str`, *optional*, defaults to `"targets"`):
            Of several targets, what the distillation loss of a context is a mean over. `"targets"`: each alike, however
            long it is. `"tokens"`: a continuation of 32 tokens weighs as much as ten facts of three, so that G does not
            unlearn it for them. The reward is a mean over targets under either.
        gist_dropout (`float`, *optional*, defaults to `0.1`):
            Share of the distillation loss taken with an empty gist, so that G(Y|L), the baseline of the reward, does
            not decay while G learns to lean on gists. The expectation over dropped gists is taken exactly: G(Y|L) is
            computed once per context for the reward anyway.
        distilled_gists (`int`, *optional*):
            Gists of each context that G learns from, the others being scored without a gradient: a third of their cost.
            `None` is all of them.
        score_batch_size (`int`, *optional*, defaults to `8`):
            Rows in one forward of the teacher or the generator. Bounds the memory of scoring, not its result.
        generator_only (`bool`, *optional*, defaults to `False`):
            Train the generator alone, on the gists of the trainer's `compressor` (empty ones by default), while the
            summarizer stays as it is: the control that tells what G learns without S, in as many steps.
        teacher_cache_dir (`str`, *optional*):
            Where the teacher's hidden states at each window's target are kept, for runs over several epochs. `None`
            computes them anew each time.

        > Parameters that control the alarms

        stop_on_alarm (`bool`, *optional*, defaults to `False`):
            End the run, with a checkpoint unless `save_strategy="no"`, at the end of the rollout in which an alarm for
            reward hacking starts; see [`trl_gist.trainer.alarms`]. An alarm always warns and is always logged.

        > Parameters that control the run's log

        gist_samples (`int`, *optional*, defaults to `4`):
            Held-out windows, spread over the documents of `eval_dataset`, whose gists are kept in `run_log/` for
            `trl-gist report`.
        gist_samples_steps (`int`, *optional*):
            Write their gists, greedily, every that many optimizer steps and as training begins and ends. `None` keeps
            those of evaluations alone. Training is the same with and without.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "target_kinds"]

    # Parameters whose default values are overridden from GRPOConfig
    learning_rate: float = field(
        default=1e-5, metadata={"help": "The initial learning rate of the summarizer for AdamW."}
    )
    max_steps: int = field(
        default=1500,
        metadata={"help": "Optimizer steps to run. Set to -1 to let `num_train_epochs` decide."},
    )
    max_completion_length: int | None = field(default=48, metadata={"help": "Longest gist, in tokens."})
    num_generations_eval: int | None = field(
        default=1, metadata={"help": "Gists per context in evaluation. Evaluation samples greedily, so one is enough."}
    )
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "Must stay True: gists are sampled and scored in train mode, where dropout would make the policy "
            "that samples differ from the policy that is trained."
        },
    )

    # Parameters that control the data
    context_length: int = field(default=512, metadata={"help": "Tokens of context X in a window."})
    target_length: int = field(default=64, metadata={"help": "Tokens of target Y, which follow the context."})
    last_k: int = field(
        default=64, metadata={"help": "Tokens at the end of the context that the generator sees verbatim."}
    )
    window_stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens between the starts of two windows of a document. Defaults to context_length + "
            "target_length, so that windows do not overlap."
        },
    )
    max_windows_per_document: int | None = field(
        default=None,
        metadata={"help": "At most this many windows, or walks, are cut from a document. None takes all that fit."},
    )
    parse_special_tokens: bool = field(
        default=False,
        metadata={"help": "Whether control tokens that texts spell, as <|endoftext|>, become these tokens."},
    )

    # Parameters that control what a gist is paid for
    target_kinds: dict | str | None = field(
        default=None,
        metadata={
            "help": "Kinds of targets ('continuation', 'fact', 'recall', 'far'), each with its weight. Defaults to "
            '{"continuation": 1}.'
        },
    )
    targets_per_context: int = field(
        default=TARGETS_PER_CONTEXT, metadata={"help": "Targets of a context, where there are several."}
    )
    target_floor: float | None = field(
        default=TARGET_FLOOR,
        metadata={
            "help": "What the teacher must gain from the context over the cue alone for one of several targets to count, in "
            "nats per token."
        },
    )
    cue_length: int = field(default=12, metadata={"help": "Tokens before a fact that the generator reads, at most."})
    far_offset: int = field(default=128, metadata={"help": "Tokens between the context and a far target."})
    recall_age: list[float] | None = field(
        default=None,
        metadata={
            "help": "In a walk, weights of targets of the window's own chunk, of the one before it, and so on. Defaults to "
            "all chunks so far alike."
        },
    )

    # Parameters that control walks over several windows
    windows_per_document: int = field(
        default=1,
        metadata={
            "help": "Consecutive windows of a document that a rollout walks, each gist written from one before it and the "
            "next chunk."
        },
    )
    gist_discount: float = field(
        default=0.5,
        metadata={"help": "How much a gist's gain in the next window counts in its reward, in [0, 1]."},
    )

    # Parameters that control the summarizer
    summarizer_prompt: str = field(
        default=SUMMARIZER_PROMPT_WITH_TAIL,
        metadata={
            "help": "What the summarizer reads; `{context}` stands for the context's tokens, and, where they are wanted, "
            "`{last_k}` for the last tokens and `{budget}` for the most tokens a gist may have. Rendered as a user "
            "message if the tokenizer has a chat template."
        },
    )
    advantage: str = field(
        default="group",
        metadata={
            "help": "'group': the reward against the other gists of the same context (GRPO). 'reward': the raw "
            "reward (the original experiment's PPO). 'best': imitate the best gist of each context.",
            "choices": ADVANTAGES,
        },
    )
    cold_start_steps: int = field(
        default=10,
        metadata={"help": "Optimizer steps, of `max_steps`, in which the summarizer imitates gists cut by a rule."},
    )
    cold_start_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the summarizer in the cold start. Defaults to `learning_rate`."},
    )
    cold_start_gists: str = field(
        default="mixed",
        metadata={
            "help": f"The rule of the cold start: one of {', '.join(EXTRACTIVE_RULES)}.",
        },
    )
    length_penalty: float = field(
        default=1e-4,
        metadata={"help": "λ: nats per target token charged for each gist token. Refused beside reward_weights."},
    )

    # Parameters that control the rate
    target_gist_length: float | None = field(
        default=None, metadata={"help": "Mean gist length to reach, in tokens, by dual ascent on λ."}
    )
    max_teacher_kl: float | None = field(
        default=None,
        metadata={"help": "KL(T‖G) to stay below with gists as short as possible, in nats per target token."},
    )
    length_penalty_learning_rate: float | None = field(
        default=None, metadata={"help": "How far λ moves in a rollout for a relative violation of 1."}
    )
    gist_length_range: list[int] | None = field(
        default=None,
        metadata={"help": "Least and greatest budget in tokens; every context of a rollout draws one.", "nargs": 2},
    )

    # Parameters that control the generator
    generator_prompt: str = field(
        default=GENERATOR_PROMPT,
        metadata={
            "help": "What the generator reads before the target; `{gist}` stands for the gist's tokens, `{last_k}` after it "
            "for the last tokens."
        },
    )
    generator_learning_rate: float = field(
        default=2e-5, metadata={"help": "The initial learning rate of the generator."}
    )
    distillation_loss: str = field(
        default="forward_kl",
        metadata={
            "help": "'forward_kl': match the teacher's whole distribution, by KL(T‖G). 'cross_entropy': match the "
            "token that came.",
            "choices": DISTILLATION_LOSSES,
        },
    )
    distillation_mean: str = field(
        default="targets",
        metadata={
            "help": "Of several targets, what the distillation loss of a context is a mean over: 'targets', each alike "
            "however long it is, or 'tokens', as a language model's, which keeps the continuation beside facts.",
            "choices": DISTILLATION_MEANS,
        },
    )
    gist_dropout: float = field(
        default=0.1, metadata={"help": "Share of the distillation loss taken with an empty gist, in [0, 1]."}
    )
    distilled_gists: int | None = field(
        default=None,
        metadata={"help": "Gists of each context that the generator learns from (default: all). Fewer cost less."},
    )
    score_batch_size: int = field(
        default=8, metadata={"help": "Rows in one forward of the teacher or the generator. Bounds memory only."}
    )
    generator_only: bool = field(
        default=False,
        metadata={
            "help": "Train the generator alone, on the gists of a compressor (empty ones by default), while the "
            "summarizer stays as it is."
        },
    )
    teacher_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where the teacher's hidden states are kept on disk, for runs over several epochs."},
    )

    # Parameters that control the alarms
    stop_on_alarm: bool = field(
        default=False,
        metadata={
            "help": "End the run, with a checkpoint, when an alarm for reward hacking starts. It warns in any case."
        },
    )

    # Parameters that control the run's log
    gist_samples: int = field(
        default=4, metadata={"help": "Held-out windows whose gists are kept in run_log/ for `trl-gist report`."}
    )
    gist_samples_steps: int | None = field(
        default=None,
        metadata={
            "help": "Write their gists, greedily, every that many optimizer steps. None keeps those of evaluations."
        },
    )

    def __post_init__(self):
        check_kinds(self)
        check_json(self)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # TRL's default of bf16=True is refused on a machine without one unless it is said
        if self.bf16 is None and self.use_cpu and fast_dtype("cpu") == "float32":
            self.bf16 = False
        resolve_best_model(self)
        if self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            skip_unused_operator()
        super().__post_init__()
        check_targets(self)
        self.cold_start_gists = known_name(self.cold_start_gists, EXTRACTIVE_RULES)
        if not self.target_spec.is_continuation:
            show_whole_context(self)
        check_config(self)

    @property
    def tail_length(self) -> int:
        """Tokens of a gist to start from, where no budget is drawn."""
        return round(self.target_gist_length or self.max_completion_length)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps of the summarizer on one rollout; at least 1."""
        return max(1, self.steps_per_generation * self.num_iterations // self.gradient_accumulation_steps)

    def window_spec(self, tokenizer: PreTrainedTokenizerBase) -> WindowSpec:
        """How documents are cut. Raises `ValueError` if a context of a walk has no room for a chunk."""
        geometry = None
        if self.windows_per_document > 1:
            separator_ids = tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
            geometry = walk_geometry(self, len(separator_ids))
        return WindowSpec.of(self, geometry, self.target_spec)

    @property
    def target_spec(self) -> TargetSpec:
        """How a window's targets are drawn, also of those that come with a document."""
        kinds, age = self.target_kinds or {"continuation": 1}, self.recall_age
        return TargetSpec(
            tuple(kinds.items()),
            self.targets_per_context,
            self.cue_length,
            self.far_offset,
            None if age is None else tuple(age),
        )

    @property
    def column_rules(self) -> ColumnRules:
        """What a dataset's columns may be called, and its budgets be."""
        return ColumnRules(self.windows_per_document > 1, self.gist_length_range)
