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

from contextlib import contextmanager

import torch
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from ..models.roles import base_of
from ..models.sampling import sample_gists
from ..models.shared_prefix import shared_prefix_log_probs
from ..prompts import before_last_k, gist_from_completion
from .vllm import sample_with_vllm


# Multiples of it, modulo 1, spread evenly over [0, 1) however many there are
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class GistRollouts:
    """
    Where the gists of a rollout come from: S samples them, in the cold start a rule cuts them out of the context, or
    where G alone is trained a compressor writes them; and
    how they stay together, so that their context is read once. Mixed into [`GistTrainer`]; the names with a leading
    underscore are those of TRL (1.16).
    """

    def _set_budgets(self, rows: list[dict]):
        """The most tokens that each row's gist may have: its `budget` column, or one drawn for all gists of a context."""
        if self.args.gist_length_range is None:
            return
        least, greatest = self.args.gist_length_range
        for index, row in enumerate(rows):
            if row.get("budget") is not None:  # a column of the dataset
                continue
            if not self.model.training:  # spread evenly, and the same in every evaluation
                fraction = _GOLDEN_RATIO * (len(self.eval_rows) + index) % 1
                row["budget"] = least + int(fraction * (greatest - least + 1))
            elif index % self.num_generations == 0:
                row["budget"] = torch.randint(least, greatest + 1, ()).item()
            else:
                row["budget"] = rows[index - 1]["budget"]

    def _tokenize_prompts(self, prompts: list[str]):
        # TRL passes the prompts' text; re-tokenising it could move the tokens of X
        ids = [
            self.prompts.summarizer(row["context_ids"], row["last_k_ids"], row.get("budget"))
            for row in self._rollout_rows
        ]
        return ids, None, {}

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        if self.args.generator_only:
            return self._compressor_completions(), None
        if self._cold_start:
            return self._extractive_completions()
        completions, logprobs = self._sample(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        # What S would have written on is cut: up to there its gist is what it would be with a limit of its own
        budgets = [row.get("budget") for row in self._rollout_rows]
        completions = [ids[:budget] for ids, budget in zip(completions, budgets, strict=True)]
        if logprobs is not None:
            logprobs = [values[:budget] for values, budget in zip(logprobs, budgets, strict=True)]
        return completions, logprobs

    def _sample(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        # Evaluation is greedy: what `GistCompactor` writes, and no noise between evaluations
        if self.use_vllm:
            temperature = self.temperature if self.model.training else 0.0
            generate = super()._generate_single_turn
            return sample_with_vllm(generate, self.vllm_generation, prompt_ids, num_generations, temperature)
        self.generation_config.do_sample = self.model.training
        if self.use_transformers_continuous_batching or not self.shares_prefix:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        with self.generating() as model:
            completion_ids_NC = sample_gists(model, prompt_ids, self.generation_config, self._tokenizer.pad_token_id)
        return [self._through_eos(ids) for ids in completion_ids_NC.tolist()], None

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

    def _extractive_completions(self):
        completions = []
        for start in range(0, len(self._rollout_rows), self.num_generations):
            row, longest = self._rollout_rows[start], self.args.max_completion_length
            length = row.get("budget") or self._cold_start_length()
            for gist in self.extractive_summarizer.gists(row, [length] * self.num_generations):
                # Where the limit cuts, S need not learn to stop
                at_limit = len(gist) == (row.get("budget") or longest)
                completions.append(gist if at_limit else self._ended(gist))
        # vLLM's log-probs correct what it samples; `None` stands for no correction
        return completions, [[None] * len(ids) for ids in completions] if self.use_vllm else None

    def _compressor_completions(self):
        size = self.num_generations if self.model.training else self.num_generations_eval
        rows = self._rollout_rows[::size]
        gists = [[] for _ in rows]
        if self.compressor is not None:
            contexts = [before_last_k(row["context_ids"], row["last_k_ids"]) for row in rows]
            gists = self.compressor.compress(contexts, [row.get("budget") or self.args.tail_length for row in rows])
        unread = self.unread_ids
        gists = [[token for token in gist if token not in unread] for gist in gists]
        return [self._ended(gist) for gist in gists for _ in range(size)]

    @property
    def unread_ids(self) -> frozenset[int]:
        """What no gist cut out of a context may have: special tokens, which G never reads, and whatever ends a gist."""
        return self.prompts.special_ids | set(self.eos_token_ids)

    def _ended(self, gist):
        # The model may stop at several tokens, in an order of its own. TRL (1.16) has the tokenizer's always among them
        return [*gist, self._tokenizer.eos_token_id]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.args.generator_only:  # no gradient at all, rather than one of 0, so that not even weight decay moves S
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _compute_loss(self, model, inputs):
        """
        TRL's, but where gists are imitated: the cross-entropy of those with a weight, a mean over their tokens in the
        rollout (over ranks, and split over the rollout's steps). It is the same whatever `loss_type` is, and nothing clips
        it: the rule that wrote a gist is not an old policy. The KL to the reference, the entropy bonus and the auxiliary
        loss of experts are added to either.
        """
        if "imitated_tokens" not in inputs:
            return super()._compute_loss(model, inputs)
        weights_N = inputs["advantages"]
        # Each `loss_type` (TRL 1.16) multiplies the policy's term by the advantage
        others = super()._compute_loss(model, {**inputs, "advantages": torch.zeros_like(weights_N)})
        logps_NC, self._logps_NC = self._logps_NC, None
        imitated_NC = inputs["completion_mask"] * (weights_N > 0).unsqueeze(1)
        steps = self.args.steps_per_generation / self.current_gradient_accumulation_steps
        tokens = inputs["imitated_tokens"] / steps / self.accelerator.num_processes  # wrappers average over ranks
        return others - (logps_NC * imitated_NC).sum() / tokens

    def _cold_start_length(self):
        if self.args.max_teacher_kl is None:
            return self.args.tail_length
        # The rate is S's to find: it needs the habit of stopping, and every length a chance
        return torch.randint(1, self.args.max_completion_length + 1, ()).item()

    def _through_eos(self, completion_ids):
        return completion_ids[: len(gist_from_completion(completion_ids, self.eos_token_ids)) + 1]

    # ---- All gists of a context in one row, where the model allows it ----

    def _prepare_inputs(self, generation_batch):
        if not self.model.training or not self.shares_prefix:
            return super()._prepare_inputs(generation_batch)
        # As TRL's, but without its shuffle of rows, which would tear the gists of a context apart
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            rollout = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(rollout, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

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


def sample_walks(prompts: list[str], trainer) -> dict[str, list]:
    """
    TRL's `rollout_func` for a [`GistTrainer`] that walks: window after window, for all walks at once. In evaluation,
    which is greedy, the first gist is carried on.
    """
    rows, walk, training = trainer._rollout_rows, trainer.walk, trainer.model.training
    size = trainer.num_generations if training else trainer.num_generations_eval
    output = {name: [None] * len(rows) for name in ("prompt_ids", "completion_ids", "logprobs")}
    carried = [[] for _ in range(len(rows) // (walk.windows * size))]
    for index in range(walk.windows):
        where = [place for place, row in enumerate(rows) if row["window"] == index]
        trainer._rollout_rows = of_window = [rows[place] for place in where]
        for place, row in enumerate(of_window):
            row["context_ids"] = walk.context_ids(row, carried[place // size])
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        completions, logprobs = trainer._generate_single_turn(prompt_ids, None, {}, size)
        for place, *values in zip(where, prompt_ids, completions, logprobs or [None] * len(where), strict=True):
            for name, value in zip(output, values, strict=True):
                output[name][place] = value
        chosen = [group * size + (_draw(size) if training else 0) for group in range(len(carried))]
        carried = [gist_from_completion(completions[place], trainer.eos_token_ids) for place in chosen]
    trainer._rollout_rows = rows
    if output["logprobs"][0] is None:
        output["logprobs"] = None
    return output


def _draw(count):
    return torch.randint(count, ()).item()
