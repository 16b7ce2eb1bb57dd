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

"""The tiny runs that tests/helpers/settings_table.py asserts effects on. Runs are shared: the same settings are
trained once."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from tiny import make_documents, make_model, make_tokenizer
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback
from transformers.utils import logging
from trl.trainer import grpo_trainer

from trl_gist import GistConfig, GistTrainer, kl_gain
from trl_gist.data.windows import prepare_windows
from trl_gist.models.roles import base_of
from trl_gist.prompts import SUMMARIZER_PROMPT
from trl_gist.trainer import gist_trainer


SIZES = {
    **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6},
    **{"summarizer_prompt": SUMMARIZER_PROMPT, "cold_start_steps": 0, "num_generations": 4},
    **{"per_device_train_batch_size": 8, "per_device_eval_batch_size": 4, "max_steps": 2, "logging_steps": 1},
    **{"learning_rate": 1e-3, "generator_learning_rate": 1e-3, "gist_dropout": 0.25, "save_strategy": "no"},
    **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "seed": 7},
}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


class Watched(GistTrainer):
    """Writes down what passes through a run."""

    scale_loss = 1.0

    def __init__(self, *args, **kwargs):
        self.seen = defaultdict(list)
        super().__init__(*args, **kwargs)
        for role in (self.model, self.generator, self.teacher):
            base_of(role).base_model.register_forward_pre_hook(self._note_precision)

    @property
    def loader(self):
        return self.get_train_dataloader()

    def _note_precision(self, *args):
        self.seen["precision"].append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        name = "rollouts" if self.model.training else "evaluations"
        self.seen[name].append([(tuple(row["context_ids"]), tuple(row["gist_ids"])) for row in inputs])
        self.seen["paid_for"].append(
            [(row["context_ids"], row.get("targets"), row["target_scores"]) for row in inputs]
        )
        self.seen["advantages"].append(output["advantages"].clone())
        self.seen["rewards"].append(self._rewards_per_func.clone())
        return output

    def _compute_loss(self, model, inputs):
        self.seen["rows"].append(len(inputs["completion_ids"]))
        self.seen["widths"].append(inputs["prompt_ids"].shape[1])
        self.seen["deterministic"].append(torch.are_deterministic_algorithms_enabled())
        return super()._compute_loss(model, inputs) * self.scale_loss

    def create_scheduler(self, *args, **kwargs):
        scheduler = super().create_scheduler(*args, **kwargs)
        if isinstance(self.optimizer, AcceleratedOptimizer):  # a run begins
            for optimizer in (self.optimizer.optimizer, self.generator_trainer.optimizer):
                optimizer.register_step_pre_hook(self._note_norm)
            self.generator_trainer.optimizer.register_step_pre_hook(self._note_gradient)
        return scheduler

    def _note_norm(self, optimizer, *args):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.seen["norms"].append(torch.nn.utils.get_total_norm(gradients).item())

    def _note_gradient(self, *args):
        gradients = [p.grad.flatten() for p in self.generator.parameters() if p.grad is not None]
        self.seen["generator_gradients"].append(torch.cat(gradients).clone())


class Counts(TrainerCallback, ExportableState):
    """A callback with a state of its own."""

    def __init__(self):
        self.steps = 0

    def on_step_end(self, *args, **kwargs):
        self.steps += 1

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


def variety(completion_ids, **kwargs):
    return [float(len(set(ids))) for ids in completion_ids]


class Lab:
    """
    Makes configs, trainers and runs that differ from the usual tiny ones by the settings given, and says of them what
    the table asks.
    """

    def __init__(self, directory: Path):
        self.directory, self.made, self.runs = directory, 0, {}
        self.tokenizer = make_tokenizer()
        self.checkpoint = str(directory / "checkpoint")
        make_model(self.tokenizer).save_pretrained(self.checkpoint)
        self.tokenizer.save_pretrained(self.checkpoint)
        self.documents = Dataset.from_dict({"text": make_documents(6)})
        self.held_out = Dataset.from_dict({"text": make_documents(1, seed=9)})

    def args(self, **values) -> GistConfig:
        self.made += 1
        return GistConfig(**{"output_dir": str(self.directory / f"run-{self.made}"), **SIZES, **values})

    def trainer(self, model=None, reward_funcs=None, callbacks=None, tokenizer=None, **values) -> Watched:
        return Watched(
            model or self.checkpoint,
            self.args(**values),
            train_dataset=self.documents,
            eval_dataset=self.held_out,
            reward_funcs=list(reward_funcs) if reward_funcs else None,
            callbacks=callbacks,
            processing_class=tokenizer or (None if model is None else self.tokenizer),
        )

    def refuses(self, sentence: str, **values) -> bool:
        with pytest.raises(ValueError, match=sentence):
            self.trainer(**values)
        return True

    def run(self, **values) -> Watched:
        key = repr(sorted(values.items(), key=lambda item: item[0]))
        if key not in self.runs:
            self.runs[key] = self.trainer(**values)
            self.runs[key].train()
        return self.runs[key]

    def built(self, **values) -> Watched:
        """With its optimizers and schedules, before the first step."""
        trainer = self.trainer(**values)
        trainer.create_optimizer_and_scheduler(num_training_steps=2)
        return trainer

    # ---- What a run was ----

    def outcome(self, trainer):
        logs = [
            {name: value for name, value in log.items() if not name.endswith(("time", "runtime", "_second"))}
            for log in trainer.state.log_history
        ]
        weights = [p.detach().clone() for role in (trainer.model, trainer.generator) for p in role.parameters()]
        return logs, weights

    def same_as_base(self, **values) -> bool:
        (logs, weights), (others, other_weights) = self.outcome(self.run()), self.outcome(self.run(**values))
        assert logs == others
        return all(map(torch.equal, weights, other_weights))

    def logged(self, *names, **values):
        return [tuple(log[name] for name in names) for log in self.run(**values).state.log_history if "loss" in log]

    def logged_steps(self, **values):
        return [log["step"] for log in self.run(**values).state.log_history if "loss" in log]

    def evaluated(self, **values):
        return [log["step"] for log in self.run(**values).state.log_history if "eval_windows" in log]

    def saved(self, folder, name, **values) -> bool:
        trainer = self.run(**{"save_strategy": "steps", "save_steps": 2, **values})
        return Path(trainer.args.output_dir, folder, name).exists()

    def forwards(self, **values):
        return self.run(**values).seen["rows"]

    def widths(self, **values):
        return self.run(**values).seen["widths"]

    def rollouts(self, **values):
        return len(self.run(**values).seen["rollouts"])

    def rates(self, **values):
        return tuple(round(rate, 9) for rate in self.logged("learning_rate", "generator/learning_rate", **values)[0])

    def second_rates(self, **values):
        """Of the second of two steps, in units of the first step's rate if there is no schedule."""
        return tuple(
            round(rate / 1e-3, 6) for rate in self.logged("learning_rate", "generator/learning_rate", **values)[1]
        )

    def gradient_norms(self, **values):
        return self.run(**values).seen["norms"]

    def autocast(self, **values):
        return set(self.run(max_steps=1, **values).seen["precision"])

    def nan_loss(self, filtered: bool):
        trainer = self.trainer(max_steps=1, logging_nan_inf_filter=filtered)
        trainer.scale_loss = math.nan
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    # ---- Optimizers and models ----

    def optimizers(self, **values):
        trainer = self.built(**values)
        return [type(each).__name__ for each in (trainer.optimizer, trainer.generator_trainer.optimizer)]

    def groups(self, key, **values) -> set:
        """What the parameter groups of S's optimizer have there, and those of G's too."""
        trainer = self.built(**values)
        summarizers, generators = (
            {group[key] for group in optimizer.param_groups}
            for optimizer in (trainer.optimizer, trainer.generator_trainer.optimizer)
        )
        assert summarizers == generators
        return summarizers

    def checkpointed(self, **values) -> bool:
        trainer = self.run(**values)
        return (
            base_of(trainer.model).is_gradient_checkpointing and base_of(trainer.generator).is_gradient_checkpointing
        )

    def checkpointing(self, use_reentrant, **values) -> bool:
        trainer = self.run(**values)
        layers = [role.get_decoder().layers[0] for role in (trainer.model, trainer.generator)]
        return all(layer._gradient_checkpointing_func.keywords["use_reentrant"] is use_reentrant for layer in layers)

    def dtypes(self, **values):
        trainer = self.trainer(**values)
        return {p.dtype for role in (trainer.model, trainer.generator, trainer.teacher) for p in role.parameters()}

    def head_in_float32(self) -> bool:
        trainer = self.run(cast_lm_head_to_fp32=True, model_init_kwargs={"dtype": "bfloat16"}, max_steps=1)
        head = trainer.model.lm_head
        output = head(torch.ones(1, head.in_features, dtype=torch.bfloat16))
        return (
            output.dtype == torch.float32
            and trainer.model.model.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16
        )

    def verbosity(self, **values):
        before = logging.get_verbosity()
        try:
            self.trainer(**values)
            return logging.get_verbosity()
        finally:
            logging.set_verbosity(before)

    def bars(self, **values):
        callbacks = self.trainer(**values).callback_handler.callbacks
        return sum(isinstance(callback, ProgressCallback) for callback in callbacks)

    def deterministic(self) -> bool:
        try:
            seen = self.run(full_determinism=True).seen["deterministic"]
        finally:
            torch.use_deterministic_algorithms(False)
        return all(seen) and not any(self.run().seen["deterministic"])

    def overflow_is_named(self) -> bool:
        trainer = self.trainer(debug="underflow_overflow")
        trainer.model.model.layers[1].mlp.down_proj.weight.data.fill_(math.inf)
        with pytest.raises(ValueError, match="DebugUnderflowOverflow"):
            trainer.train()
        return True

    def gathers(self, **values) -> set:
        """What TRL is told of gathering weights to sample with."""
        told = []

        def unwrap(*args, gather_deepspeed3_params, **kwargs):
            told.append(gather_deepspeed3_params)
            return grpo_trainer.unwrap_model_for_generation(*args, **kwargs)

        with patch.object(gist_trainer, "unwrap_model_for_generation", unwrap):
            self.trainer(max_steps=1, **values).train()
        return set(told)

    # ---- Data ----

    @property
    def windows(self):
        return len(self.run().train_dataset)

    def first_contexts(self, **values):
        """Of the first rollout, by their place in the dataset."""
        trainer = self.trainer(**values)
        places = {tuple(row["context_ids"]): place for place, row in enumerate(trainer.train_dataset)}
        return list(dict.fromkeys(places[tuple(row["context_ids"])] for row in next(iter(trainer.loader))))

    def contexts(self, trainer):
        return [rows[0][0] for rows in trainer.seen["rollouts"]]

    def resumed(self, **values):
        """A run that goes on from the first of its two steps."""
        callbacks = [Counts()]
        whole = self.trainer(save_strategy="steps", save_steps=1, callbacks=[Counts()])
        whole.train()
        trainer = self.trainer(
            output_dir=whole.args.output_dir, save_strategy="steps", save_steps=1, callbacks=callbacks, **values
        )
        trainer.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-1")))
        return whole, trainer

    def begins_anew(self, **values) -> bool:
        whole, trainer = self.resumed(**values)
        first, second = self.contexts(whole)
        assert first != second and self.contexts(trainer) in ([first], [second])
        return self.contexts(trainer) == [first]

    def steps_counted(self, **values):
        _, trainer = self.resumed(**values)
        return next(each.steps for each in trainer.callback_handler.callbacks if isinstance(each, Counts))

    def windows_evaluated(self, **values):
        return self.trainer(**values).evaluate()["eval_windows"]

    def group_sizes(self, name="rollouts", **values) -> set:
        rows = self.run(**values).seen[name][0]
        return set(Counter(context for context, _ in rows).values())

    def longest_gist(self, **values):
        return max(len(gist) for _, gist in self.run(**values).seen["rollouts"][0])

    def lengths(self, column, **values) -> set:
        return {len(row[column]) for row in self.trainer(**values).train_dataset}

    def template_is_told(self) -> bool:
        tokenizer = make_tokenizer()
        tokenizer.chat_template += "{% if not enable_thinking %}No thought.{% endif %}"
        prompts = [
            self.trainer(tokenizer=tokenizer, **values).prompts.summarizer([7, 8, 9], [9])
            for values in (
                {"chat_template_kwargs": {"enable_thinking": True}},
                {"chat_template_kwargs": {"enable_thinking": False}},
            )
        ]
        return [tokenizer.decode(ids).count("No thought.") for ids in prompts] == [0, 1]

    # ---- The policy's step ----

    def batch(self):
        """Eight gists of two contexts, sampled by another policy."""
        torch.manual_seed(0)
        mask_NC = (torch.arange(6) < torch.tensor([6, 3, 5, 1, 6, 2, 4, 6]).unsqueeze(1)).int()
        return {
            "prompt_ids": torch.randint(5, 300, (2, 9)).repeat_interleave(4, 0),
            "prompt_mask": torch.ones(8, 9, dtype=torch.int),
            "completion_ids": torch.randint(5, 300, (8, 6)) * mask_NC,
            "completion_mask": mask_NC,
            "advantages": torch.tensor([1.5, -0.5, 0.25, -1.0, 0.5, 2.0, -1.5, -0.75]),
            "num_items_in_batch": mask_NC.sum(),
        }

    def policy(self, trainer, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, 8:-1] / trainer.args.temperature
        log_probs = logits.log_softmax(-1)
        return log_probs.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1), -(
            log_probs.exp() * log_probs
        ).sum(-1)

    def loss_is(self, formula, name, **values) -> bool:
        trainer, inputs = self.trainer(**values), self.batch()
        logps, entropies = self.policy(trainer, inputs)
        inputs["old_per_token_logps"] = logps - 0.2 * torch.randn(logps.shape)
        inputs["ref_per_token_logps"] = logps - 0.3 * torch.randn(logps.shape)
        given = SimpleNamespace(
            advantages=inputs["advantages"].unsqueeze(1),
            mask=inputs["completion_mask"],
            logps=logps,
            log_ratio=logps - inputs["old_per_token_logps"],
            ref_log_ratio=inputs["ref_per_token_logps"] - logps,
            entropies=entropies,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        got = trainer._compute_loss(trainer.model, inputs).item()
        without = {key: value for key, value in values.items() if key != name}
        if values[name] != "bnpo":  # which is "dapo" where there is one batch
            assert abs(expected_loss(given, **values) - expected_loss(given, **without)) > 1e-4, "it would not be seen"
        return math.isclose(got, formula(given), rel_tol=1e-4, abs_tol=1e-6)

    def temperature_is_in_both(self) -> bool:
        trainer = self.trainer(temperature=0.5)
        return trainer.generation_config.temperature == 0.5 and self.loss_is(
            formula(entropy_coef=0.1), "entropy_coef", entropy_coef=0.1, temperature=0.5
        )

    def router_loss_is_added(self) -> bool:
        sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        }
        config = Qwen3MoeConfig(vocab_size=len(self.tokenizer), max_position_embeddings=512, **sizes, **heads)
        losses = []
        for coef in (0.0, 0.5):
            torch.manual_seed(0)
            trainer = self.trainer(model=Qwen3MoeForCausalLM(config), router_aux_loss_coef=coef)
            trainer.current_gradient_accumulation_steps = 1
            trainer.model.train()
            losses.append(trainer._compute_loss(trainer.model, self.batch()).item())
        (auxiliary,) = trainer._metrics["train"]["aux_loss"]
        return auxiliary > 0.1 and math.isclose(losses[1] - losses[0], 0.5 * auxiliary, rel_tol=1e-3)

    def rewards_and_advantages(self, **values):
        trainer = self.run(max_steps=1, reward_funcs=(kl_gain, variety), **values)
        return trainer.seen["rewards"][0].view(2, 4, 2), trainer.seen["advantages"][0].view(2, 4)

    def advantages_are_normalized_first(self) -> bool:
        rewards_DGF, advantages_DG = self.rewards_and_advantages(
            multi_objective_aggregation="normalize_then_sum", reward_weights=[1.0, 0.5]
        )
        each_DGF = (rewards_DGF - rewards_DGF.mean(1, keepdim=True)) / (rewards_DGF.std(1, keepdim=True) + 1e-4)
        sums_DG = each_DGF @ torch.tensor([1.0, 0.5])
        return torch.allclose(advantages_DG, (sums_DG - sums_DG.mean()) / (sums_DG.std() + 1e-4), atol=1e-5)

    def advantages_are_scaled(self) -> bool:
        scales = {
            "none": lambda sums_DG: torch.ones(1),
            "batch": lambda sums_DG: sums_DG.std() + 1e-4,
            "group": lambda sums_DG: sums_DG.std(1, keepdim=True) + 1e-4,
        }
        for kind, scale in scales.items():
            rewards_DGF, advantages_DG = self.rewards_and_advantages(scale_rewards=kind)
            sums_DG = rewards_DGF.sum(-1)
            expected_DG = (sums_DG - sums_DG.mean(1, keepdim=True)) / scale(sums_DG)
            assert torch.allclose(advantages_DG, expected_DG, atol=1e-5), kind
        return True

    def advantages_are(self, kind) -> bool:
        rewards_DGF, advantages_DG = self.rewards_and_advantages(advantage=kind)
        sums_DG = rewards_DGF.sum(-1)
        best_DG = 4.0 * torch.nn.functional.one_hot(sums_DG.argmax(1), 4)
        return torch.allclose(advantages_DG, {"reward": sums_DG, "best": best_DG}[kind], atol=1e-6)

    def entropy_coefs(self, **values):
        logged = self.logged("entropy_coef", **{"use_adaptive_entropy": True, "entropy_target": 99.0, **values})
        return [round(value, 6) for (value,) in logged]

    def reference_follows(self, **values) -> bool:
        """After the step in which it is synced, and not before."""
        values = {
            "beta": 0.1,
            "sync_ref_model": True,
            "ref_model_mixup_alpha": 1.0,
            "ref_model_sync_steps": 1,
            **values,
        }
        steps, alpha = values["ref_model_sync_steps"], values["ref_model_mixup_alpha"]
        trainer = self.trainer(max_steps=steps, **values)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        followed = zip(trainer.ref_model.parameters(), before, trainer.model.parameters(), strict=True)
        # Had it followed in an earlier step as well, it would not be this mean
        return all(torch.allclose(ref, (1 - alpha) * old + alpha * new, atol=1e-7) for ref, old, new in followed)

    # ---- What is written for people ----

    def rows_printed(self, **values) -> set:
        printed = []
        with (
            patch.object(grpo_trainer, "is_rich_available", lambda: True),
            patch.object(
                grpo_trainer, "print_prompt_completions_sample", lambda *args, **kwargs: printed.append(args[5])
            ),
        ):
            self.trainer(max_steps=1, log_completions=True, **values).train()
        return set(printed)

    def completions_repo(self, repo):
        with (
            patch.object(grpo_trainer, "create_repo"),
            patch.object(grpo_trainer, "DatasetCard"),
            patch.object(grpo_trainer, "CommitScheduler") as scheduler,
        ):
            trainer = self.trainer(log_completions=True, log_completions_hub_repo=repo)
        sent = scheduler.call_args.kwargs
        return sent["repo_id"] == repo and sent["folder_path"] == f"{trainer.args.output_dir}/completions"

    # ---- GistConfig's own ----

    def window_starts(self, **values):
        """Of the first document, in tokens."""
        ids = self.tokenizer(self.documents[0]["text"])["input_ids"]
        rows = [row for row in self.trainer(**values).train_dataset if row["document_id"] == 0]
        width = len(rows[0]["context_ids"])
        place = {tuple(ids[start : start + width]): start for start in range(len(ids))}
        return [place[tuple(row["context_ids"])] for row in rows]

    def controls(self, **values) -> set[int]:
        """The control tokens in windows of a document that spells two."""
        spec = self.args(**values).window_spec(self.tokenizer)
        documents = Dataset.from_dict({"text": ["One</s> two<|im_end|>. " * 20]})
        rows, _ = prepare_windows(documents, self.tokenizer, spec)
        return {token for row in rows for token in row["context_ids"]} & set(self.tokenizer.all_special_ids)

    def reads(self, role, **values):
        prompts = self.trainer(**values).prompts
        ids = prompts.summarizer([7, 8, 9], [9]) if role == "summarizer" else prompts.generator([11], [9])
        return self.tokenizer.decode(ids)

    # Of what G does not see by itself: the last four tokens are L
    def tails(self, **values) -> bool:
        rows = self.run(cold_start_steps=1, max_steps=1, **values).seen["rollouts"][0]
        return all(gist == context[-10:-4] for context, gist in rows)

    def generator_gradient(self, **values):
        return self.run(max_steps=1, max_grad_norm=0.0, **values).seen["generator_gradients"][0]

    def dropout_mixes(self, share) -> bool:
        gists, nulls, both = (self.generator_gradient(gist_dropout=value) for value in (0.0, 1.0, share))
        assert not torch.allclose(gists, nulls, atol=1e-3)
        return torch.allclose(both, (1 - share) * gists + share * nulls, atol=1e-5)

    def rows_of_a_forward(self, **values) -> int:
        """The most that G reads at once."""
        trainer, rows = self.trainer(**values), []
        embeddings = trainer.generator.get_input_embeddings()
        embeddings.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        trainer.train()
        return max(rows)

    def scores_alike(self, **values) -> bool:
        return torch.allclose(self.generator_gradient(**values), self.generator_gradient(), atol=1e-5)

    def paid_for(self, **values) -> list[list[dict]]:
        """The targets of each gist of the first rollout, the mean over which is its reward."""
        asked = {"target_kinds": {"fact": 1, "continuation": 1}, "target_floor": None, "context_length": 60}
        trainer = self.run(max_steps=1, **{**asked, **values})
        (rows,), rewards_NF = trainer.seen["paid_for"], trainer.seen["rewards"][0]
        for (context, targets, scores), reward in zip(rows, rewards_NF[:, 0].tolist(), strict=True):
            assert math.isclose(sum(each["kl_gain"] for each in scores) / len(targets), reward, rel_tol=1e-4)
            assert [each["kind"] for each in scores] == [each["kind"] for each in targets]
            for target in targets:
                place = target["cue_ids"] if target["kind"] == "fact" else [*context, *target["after_ids"]]
                assert any(_holds(ids, [*place, *target["target_ids"]]) for ids in self.document_ids)
        return [targets for _, targets, _ in rows]

    def kinds_paid_for(self, **values) -> set:
        return {target["kind"] for targets in self.paid_for(**values) for target in targets}

    @property
    def document_ids(self):
        return self.tokenizer(self.documents["text"][:])["input_ids"]

    def price_moves(self, **values):
        return self.run(reward_weights=None, **values).length_penalty.integral


def _holds(ids, part) -> bool:
    return any(ids[start : start + len(part)] == part for start in range(len(ids)))


def expected_loss(
    x,
    loss_type="dapo",
    epsilon=0.2,
    epsilon_high=None,
    delta=None,
    importance_sampling_level="token",
    off_policy_mask_threshold=None,
    top_entropy_quantile=1.0,
    entropy_coef=0.0,
    beta=0.0,
    use_bias_correction_kl=True,
    sapo_temperature_neg=1.05,
    sapo_temperature_pos=1.0,
    vespo_k_pos=2.0,
    vespo_lambda_pos=3.0,
    vespo_k_neg=3.0,
    vespo_lambda_neg=2.0,
    temperature=1.0,
) -> float:
    """The policy's loss on one batch, written down from the papers that TRL's docs name, not from its code."""
    gain, mask, lengths = x.advantages, x.mask, x.mask.sum(1, keepdim=True)
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = x.log_ratio.exp()
    if importance_sampling_level == "sequence":
        ratio = ((x.log_ratio * mask).sum(1, keepdim=True) / lengths).exp()
    if loss_type == "cispo":
        tokens = -ratio.clamp(max=high) * gain * x.logps
    elif loss_type == "sapo":
        slope = torch.where(gain > 0, sapo_temperature_pos, sapo_temperature_neg)
        tokens = -4 / slope * torch.sigmoid(slope * (ratio - 1)) * gain
    elif loss_type == "vespo":
        whole = (x.log_ratio * mask).sum(1, keepdim=True).exp()
        k = torch.where(gain >= 0, vespo_k_pos, vespo_k_neg)
        decay = torch.where(gain >= 0, vespo_lambda_pos, vespo_lambda_neg)
        tokens = -(whole**k) * (decay * (1 - whole)).exp() * gain * x.logps
    else:
        bounded = ratio if delta is None else ratio.clamp(max=delta)
        tokens = -torch.min(bounded * gain, ratio.clamp(1 - epsilon, 1 + high) * gain)
    if off_policy_mask_threshold is not None:
        drift = (-x.log_ratio * mask).sum(1, keepdim=True) / lengths
        tokens = tokens * ((gain >= 0) | (drift <= off_policy_mask_threshold))
    counted = mask
    if top_entropy_quantile < 1:
        counted = mask * (x.entropies >= torch.quantile(x.entropies[mask.bool()], 1 - top_entropy_quantile))
        tokens = tokens * counted
    if beta:
        divergence = x.ref_log_ratio.exp() - x.ref_log_ratio - 1
        tokens = tokens + beta * divergence * (ratio if use_bias_correction_kl else 1)
    masked = tokens * mask
    if loss_type in ("grpo", "sapo"):
        loss = (masked.sum(1, keepdim=True) / lengths).mean()
    elif loss_type == "luspo":
        loss = masked.sum(1).mean()
    elif loss_type == "dr_grpo":
        loss = masked.sum() / (6 * len(mask))
    else:
        loss = masked.sum() / mask.sum()
    return (loss - entropy_coef * (x.entropies * counted).sum() / counted.sum()).item()


def formula(**values):
    return lambda given: expected_loss(given, **values)
