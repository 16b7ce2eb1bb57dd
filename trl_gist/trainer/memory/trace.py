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
What a training step allocates, found by running it on tensors without contents.

A formula for the activations of a layer would have to follow every cast that autocast makes, every mask that attention
asks for and everything that LoRA and checkpointing keep or recompute. Instead the step's own code runs, forward and
backward, on fake tensors (shapes and dtypes, no data), while the bytes that would be alive are counted.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedTokenizerBase

from ...common.geometry import SEPARATOR
from ...models.roles import Roles, base_of
from ...models.shared_prefix import SharedPrefixBatch, attention_masks, batch_log_probs
from ...prompts import GistPrompts
from ...scoring.gist_scorer import gists_together, row_tokens_of_run, runs_within
from ...scoring.targets import TargetRows, TargetScorer
from ..gist_config import GistConfig
from ..walks import walk_geometry


# Tokens of the templates beside X, L and the gist, where there is no tokenizer to count them: those of SmolLM2 and Qwen
# come to less
_SUMMARIZER_OVERHEAD, _GENERATOR_OVERHEAD = 96, 16


@dataclass(frozen=True)
class PromptLengths:
    """Tokens of what each role reads: S before a gist, G before a target with the longest gist and with none, T; and of
    G's template between L, or a cue, and a target."""

    summarizer: int
    generator: int
    null_generator: int
    teacher: int
    after_cue: int = 0


def prompt_lengths(args: GistConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> PromptLengths:
    """Tokens of the prompts of a full window; without a tokenizer the templates are taken to be of common length."""
    context, last_k, gist = args.context_length, args.last_k, args.max_completion_length
    walks = args.windows_per_document > 1
    if tokenizer is None:
        summarizer = context + _SUMMARIZER_OVERHEAD + ("{tail}" in args.summarizer_prompt) * args.tail_length
        if "{before_last_k}" in args.summarizer_prompt:
            summarizer -= last_k
        return PromptLengths(
            summarizer,
            _GENERATOR_OVERHEAD + gist + last_k,
            _GENERATOR_OVERHEAD + last_k,
            1 + (_longest_seen(args, 1) if walks else context),
        )
    prompts = GistPrompts.from_tokenizer(
        tokenizer, args.summarizer_prompt, args.tail_length, args.generator_prompt, args.chat_template_kwargs
    )
    context_ids = list(range(context))
    last_k_ids = context_ids[context - last_k :]
    null = len(prompts.generator([], last_k_ids))
    return PromptLengths(
        len(prompts.summarizer(context_ids, last_k_ids, gist)),
        null + gist,
        null,
        len(prompts.bos) + (_longest_seen(args, len(prompts.tokenize(SEPARATOR))) if walks else context),
        len(prompts.generator_cue([])),
    )


def _longest_seen(args, separator_length):
    return walk_geometry(args, separator_length).before(args.windows_per_document - 1)


@dataclass(frozen=True)
class Peak:
    """
    The most bytes alive at once in a phase, beside parameters, optimizer states and the gradients that were there before:
    without the gradients that the phase makes (`activations`), and with them (`total`). The two may be at different
    moments: activations go as gradients come.
    """

    activations: int
    total: int


class LiveBytes(TorchDispatchMode):
    """
    Counts the bytes of the tensors that operators make, while they are alive. Scratch space inside a kernel, and what an
    allocator rounds up, is not seen.

    Args:
        resident (`Iterable[torch.Tensor]`):
            Tensors that were there before, which do not count.
        trainable (`Iterable[torch.nn.Parameter]`):
            Parameters whose gradients, once they are accumulated, are no activations.
    """

    def __init__(self, resident: Iterable[torch.Tensor], trainable: Iterable[torch.nn.Parameter]):
        super().__init__()
        self.live = self.peak = self.activations = self.largest_activation = 0
        # Storages are named by their address, which another one may take when they are gone
        self.counted = {tensor.untyped_storage()._cdata: 0 for tensor in resident}
        self.gradients = set()
        self.hooks = [parameter.register_post_accumulate_grad_hook(self._accumulated) for parameter in trainable]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.counted:
                    self.counted[key] = storage.nbytes()
                    self._add(self.counted[key])
                    weakref.finalize(storage, self._freed, key).atexit = False
        self.peak = max(self.peak, self.live)
        self.largest_activation = max(self.largest_activation, self.activations)
        return outputs

    def __exit__(self, *exception):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*exception)

    def _add(self, size):
        self.live += size
        self.activations += size

    def _freed(self, key):
        size = self.counted.pop(key)
        if key in self.gradients:
            self.gradients.remove(key)
            self.live -= size
        else:
            self._add(-size)

    def _accumulated(self, parameter):
        key = parameter.grad.untyped_storage()._cdata
        if key not in self.gradients:
            self.activations -= self.counted[key]
            self.gradients.add(key)


class StepTrace:
    """
    The phases of a training step as [`GistTrainer`] runs them, at their largest: every gist, target and prompt has its
    full length. Where a context has several targets there are as many of each kind as their weights ask for
    ([`~data.targets.TargetSpec.largest`]), side by side in one row. Each method returns the [`Peak`] of its phase.

    Args:
        roles ([`~models.roles.Roles`]):
            The models with their adapters, on the meta device. They are given fake tensors.
        args ([`GistConfig`]):
            Batch sizes and losses.
        lengths ([`PromptLengths`]):
            Tokens of the prompts.
        autocast (`Callable`):
            Gives the context manager to run forwards in.
        processes (`int`, *optional*, defaults to `1`):
            Ranks; see [`~scoring.gist_scorer.row_tokens_of_run`].
    """

    def __init__(
        self,
        roles: Roles,
        args: GistConfig,
        lengths: PromptLengths,
        autocast: Callable[[], AbstractContextManager],
        processes: int = 1,
    ):
        self.summarizer, self.generator, self.teacher = roles.summarizer, roles.generator, roles.teacher
        self.args = args
        self.lengths = lengths
        self.autocast = autocast
        self.row_tokens = row_tokens_of_run(processes)
        self.targets = None if args.target_spec.is_continuation else args.target_spec.largest(args)
        self.target_tokens = args.target_length
        if self.targets is not None:
            self.target_tokens = sum(target for _, target, _ in self.targets)
        self.fake = FakeTensorMode()
        _give_fake_tensors(self.fake, (self.summarizer, self.generator, self.teacher))
        for model in (self.summarizer, self.generator):
            model.train()
            if args.gradient_checkpointing:
                model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        if args.gradient_checkpointing and hasattr(self.summarizer, "peft_config"):
            self.summarizer.enable_input_require_grads()  # as GRPOTrainer (TRL 1.16) does
        self.teacher.eval()

    def prefill(self, contexts: int, gists: int) -> Peak:
        """S reads the prompt of every context once; see [`~models.sampling.sample_gists`]."""

        def run():
            ids_DP = torch.zeros(contexts, self.lengths.summarizer, dtype=torch.long)
            logits_DV = self.summarizer(input_ids=ids_DP, use_cache=True, logits_to_keep=1).logits[:, -1]
            _draw(logits_DV.repeat_interleave(gists, dim=0))

        return self._sampling_peak(run)

    def decode(self, contexts: int, gists: int) -> Peak:
        """S's last step of sampling, when the keys and values of all other tokens are there."""
        base = base_of(self.summarizer)
        after = self.lengths.summarizer + gists * (self.args.max_completion_length - 1)

        def run():
            cache = DynamicCache()
            self.summarizer(
                input_ids=torch.zeros(contexts, 1, dtype=torch.long), past_key_values=cache, use_cache=True
            )
            for layer in cache.layers:
                shape = (contexts, layer.keys.shape[1], after - gists, layer.keys.shape[3])
                layer.keys, layer.values = layer.keys.new_zeros(shape), layer.values.new_zeros(shape)
            visible_DGK = torch.ones(contexts, gists, after, dtype=torch.bool)
            positions_DG, positions_DK = (torch.zeros(contexts, n, dtype=torch.long) for n in (gists, after))
            logits_DGV = self.summarizer(
                input_ids=positions_DG,
                attention_mask=attention_masks(base, visible_DGK, positions_DG, positions_DK),
                position_ids=positions_DG,
                past_key_values=cache,
                use_cache=True,
            ).logits
            _draw(logits_DGV.flatten(0, 1))

        return self._sampling_peak(run)

    def read(self, contexts: int) -> Peak:
        """T on every context and its log-probs of the targets; see [`~scoring.gist_scorer.GistScorer.read_targets`]."""
        rows, teacher = self.args.score_batch_size, TargetScorer(self.teacher)
        prompt, after = self.lengths.teacher, None
        windows = 1 if self.targets is None else self.args.windows_per_document
        if self.targets is not None:  # those of all windows of a walk stand in its row
            after = [between for _, _, between in self.targets] * windows
        count = contexts * self._rows_of_one(prompt, after)

        def run():
            hidden = []
            with torch.no_grad(), self.autocast():
                for start in range(0, count, rows):
                    batch = self._rows(prompt, min(rows, count - start), 1, after)
                    hidden.append(teacher.hidden_states(batch).flatten(0, 1).clone())
                if count > contexts:
                    hidden = [torch.cat(hidden)]
                hidden = [hidden_TH for read in hidden for hidden_TH in read.split(self.target_tokens)]
                for hidden_TH in hidden[:2]:  # the first's are gone when the third's come
                    teacher.log_probs(hidden_TH)

        return self._peak(run, ())

    def read_cues(self, contexts: int) -> Peak:
        """T on the cues alone, which says what of several targets counts; see [`~scoring.gist_scorer.GistScorer`]."""
        rows, teacher = self.args.score_batch_size, TargetScorer(self.teacher)
        bos = self.lengths.teacher - self.args.context_length
        before = [bos + max(cue, between) for cue, _, between in self.targets]

        def run():
            with torch.no_grad(), self.autocast():
                teacher(self._rows(0, min(rows, contexts * self._rows_of_one(0, before)), 1, before))

        return self._peak(run, ())

    def score(self, contexts: int) -> Peak:
        """G with and without gists, forward and backward; see [`~scoring.gist_scorer.GistScorer.score`]."""
        rows, gists, dropout = self.args.score_batch_size, self.args.num_generations, self.args.gist_dropout
        cues = None if self.targets is None else [cue + self.lengths.after_cue for cue, _, _ in self.targets]
        contexts_of_rows = contexts * self._rows_of_one(0, cues)  # gists share their context's rows
        batches = gists_together(contexts_of_rows * gists, gists, rows)

        def run():
            hidden_size = base_of(self.teacher).config.get_text_config().hidden_size
            shape = (contexts * self.target_tokens, hidden_size)
            hidden_DH = torch.zeros(shape, dtype=torch.bfloat16 if self.args.bf16 else self.teacher.dtype)
            null_rows = min(rows, contexts_of_rows)
            self._score_chunk(self.lengths.null_generator, hidden_DH, null_rows, 1, cues, dropout > 0)
            for start, stop, together in batches[:2]:  # as in `policy`; only the last may be smaller
                self._score_chunk(self.lengths.generator, hidden_DH, stop - start, together, cues, dropout < 1)

        return self._peak(run, self.generator.parameters())

    def policy(self, rows: int, passes: int) -> Peak:
        """
        S's forward and backward over `rows` gists, the gists of a context side by side in one row; see
        [`~models.shared_prefix.shared_prefix_log_probs`]. `passes` of them add up their gradients before a step.
        """
        gists = min(rows, self.args.num_generations)
        contexts, steps, prompt = -(-rows // gists), self.args.max_completion_length, self.lengths.summarizer
        entropies = self.args.entropy_coef != 0 or self.args.use_adaptive_entropy

        def one_pass():
            ids_DS = torch.zeros(contexts, prompt + gists * steps, dtype=torch.long)
            visible_DSS = torch.ones(*ids_DS.shape, ids_DS.shape[1], dtype=torch.bool)
            tokens_P = torch.zeros(contexts * gists * steps, dtype=torch.long)
            batch = SharedPrefixBatch(ids_DS, ids_DS, visible_DSS, tokens_P, tokens_P)
            with self.autocast():
                base = base_of(self.summarizer)
                logps_P, _ = batch_log_probs(self.summarizer, base, batch, self.args.temperature, entropies)
            logps_P.sum().backward()

        def run():
            # The first backward makes the gradients, the second adds to them: more would be the same
            for _ in range(min(passes, 2)):
                one_pass()

        return self._peak(run, self.summarizer.parameters())

    def _score_chunk(self, prompt, teacher_hidden_DH, rows, together, cues, differentiated):
        if cues is not None:  # the prompt has none of them
            prompt -= self.args.last_k + self.lengths.after_cue
        batch = self._rows(prompt, rows, together, cues)
        generator, teacher = TargetScorer(self.generator), TargetScorer(self.teacher)
        loss = self.args.distillation_loss if differentiated else "forward_kl"
        with torch.set_grad_enabled(differentiated), self.autocast():
            teacher_hidden_UH = teacher_hidden_DH[: len(batch.real_U)].clone()
            _, _, loss_NT, *_ = generator(batch, teacher_hidden_UH, teacher, loss)
        if differentiated:
            loss_NT.sum().backward()

    def _sharing_a_row(self, prompt, cues):
        """The targets of a context, or after more cues of its whole walk, and which of them are in one row."""
        targets = [target for _, target, _ in self.targets] * (len(cues) // len(self.targets))
        sizes = [cue + target for cue, target in zip(cues, targets, strict=True)]
        most = None if self.row_tokens is None else max(self.row_tokens, prompt)
        return targets, runs_within(sizes, most)

    def _rows_of_one(self, prompt, cues):
        return 1 if cues is None else len(self._sharing_a_row(prompt, cues)[1])

    def _rows(self, prompt, rows, together, cues=None):
        """A batch of prompts of one length, each with its target or, after `cues` of these lengths, with those of its
        targets that the first of its rows takes."""
        tokens = self.target_tokens
        if cues is not None:
            targets, (own, *_) = self._sharing_a_row(prompt, cues)
            cues, tokens = cues[own], sum(targets[own])
        length = prompt + sum(cues or ()) + tokens
        zeros_NS, zeros_NT = (torch.zeros(rows, size, dtype=torch.long) for size in (length, tokens))
        real_U = torch.zeros(rows // together * tokens, dtype=torch.long)
        several = {}
        if cues is not None and len(cues) > 1:
            visible_NSS = torch.ones(rows, length, length, dtype=torch.bool)
            several = {"position_ids_NS": zeros_NS.clone(), "visible_NSS": visible_NSS}
        return TargetRows(zeros_NS, zeros_NT, zeros_NT, zeros_NT.bool(), real_U, together, **several)

    def _sampling_peak(self, run):
        training = self.summarizer.training
        self.summarizer.eval()  # where sampling turns checkpointing off; there is no dropout either way
        with torch.no_grad(), self.autocast():
            peak = self._peak(run, ())
        self.summarizer.train(training)
        return peak

    def _peak(self, run, parameters):
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        roles = (self.summarizer, self.generator, self.teacher)
        resident = [t for role in roles for tensors in (role.parameters(), role.buffers()) for t in tensors]
        with self.fake, LiveBytes(resident, trainable) as counter:
            run()
        for parameter in trainable:
            parameter.grad = None
        return Peak(counter.largest_activation, counter.peak)


def _draw(logits_NV):
    """What [`~models.sampling._draw`] holds, which reads values."""
    logits_NV.float().softmax(-1).cumsum(-1, dtype=torch.float64)


def _give_fake_tensors(fake, models):
    """Fake tensors on the CPU in place of parameters and buffers on the meta device; what is shared stays shared."""
    made = {}

    def like(tensor):
        if id(tensor) not in made:
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = tensor, new  # the old one is kept, so that no other takes its id
        return made[id(tensor)][1]

    with fake:
        for model in models:
            for module in model.modules():
                for tensors in (module._parameters, module._buffers):
                    tensors.update({name: like(tensor) for name, tensor in tensors.items() if tensor is not None})
