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
"""The co-trained pair: an ordinary `GistTrainer` run in which X is the string, L the query and Y the answer."""

from dataclasses import dataclass
from pathlib import Path

from trl_gist import GistConfig, GistTrainer
from trl_gist.rewards import kl_gain
from trl_gist.trainer.callbacks import GistProgressCallback

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, ProgressCallback

from research.rate_distortion.task import QUERIES, draw_row


@dataclass(frozen=True)
class PairSizes:
    """What a co-training run costs."""

    steps: int = 200
    cold_start_steps: int = 50
    contexts: int = 64
    generations: int = 4
    rows: int = 20_000


class BitsHead(nn.Linear):
    """An LM head that gives every token but the two bits and the end a probability of 0: gists are binary strings."""

    def __init__(self, head: nn.Linear, tokenizer: PreTrainedTokenizerFast):
        super().__init__(head.in_features, head.out_features, bias=False)
        nn.init.normal_(self.weight, std=0.02)  # what the reader's head knew of bits was never trained
        offset_V = torch.full((head.out_features,), -1e4)  # finite: 0 × ∞ would make the entropy NaN
        offset_V[tokenizer.convert_tokens_to_ids(["0", "1", tokenizer.eos_token])] = 0.0
        self.register_buffer("offset_V", offset_V)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) + self.offset_V


class EvenlySpacedBits:
    """The cold start's rule: a gist of bits at even distances, from the string's first to its last."""

    def gists(self, row: dict, lengths_G: list[int]) -> list[list[int]]:
        return [evenly_spaced(row["context_ids"], length) for length in lengths_G]


def evenly_spaced(bits, length: int):
    """Of a string or a list; a single one is the last."""
    positions = np.linspace(len(bits) - 1, 0, length)[::-1].round().astype(int)
    kept = [bits[position] for position in positions]
    return "".join(kept) if isinstance(bits, str) else kept


def budget(length: int, rate: float) -> int:
    """The most bits of a gist: the rate times the string's length, rounded, and at least 1."""
    return max(1, int(rate * length + 0.5))


def training_windows(
    tokenizer: PreTrainedTokenizerFast, lengths: range, rate: float, excluded: set[str], count: int, seed: int
) -> Dataset:
    generator, rows = np.random.default_rng(seed), []
    while len(rows) < count:
        bits, query, answer = draw_row(lengths, generator)
        if bits not in excluded:
            window = {"context": list(bits), "last_k": [f"?{QUERIES[query]}"], "target": [f"={answer}"]}
            ids = {column: tokenizer.convert_tokens_to_ids(tokens) for column, tokens in window.items()}
            rows.append({**ids, "budget": budget(len(bits), rate), "document_id": bits})
    return Dataset.from_list(rows)


def pair_config(output_dir: Path, sizes: PairSizes, longest: int, seed: int, query_aware: bool) -> GistConfig:
    rows = sizes.contexts * sizes.generations
    return GistConfig(
        output_dir=str(output_dir),
        # The budget's token stands between the string and the gist
        summarizer_prompt="{context}{last_k}<{budget}>" if query_aware else "{context}<{budget}>",
        max_completion_length=longest,
        gist_length_range=[1, longest],
        num_generations=sizes.generations,
        per_device_train_batch_size=rows,
        score_batch_size=rows,
        steps_per_generation=1,
        max_steps=sizes.steps,
        cold_start_steps=sizes.cold_start_steps,
        cold_start_learning_rate=2e-3,
        learning_rate=1e-3,
        generator_learning_rate=3e-3,
        warmup_steps=20,
        # Unscaled, rewards are in nats; entropy, which keeps the code from settling too early, is priced in the same
        scale_rewards="none",
        entropy_coef=0.03,
        gist_dropout=0.0,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )


def co_train(
    reader: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lengths: range,
    rate: float,
    excluded: set[str],
    sizes: PairSizes,
    seed: int,
    query_aware: bool,
    output_dir: Path,
) -> GistTrainer:
    """
    A trained pair whose gists have at most `rate` times the string's length in bits. Both models start as the frozen
    reader, the summarizer with a head of its own.
    """
    torch.manual_seed(seed)
    summarizer = copy_of(reader)
    summarizer.lm_head = BitsHead(summarizer.lm_head, tokenizer)
    args = pair_config(output_dir, sizes, budget(lengths[-1], rate), seed, query_aware)
    trainer = GistTrainer(
        model=summarizer,
        args=args,
        generator=copy_of(reader),
        teacher=reader,
        train_dataset=training_windows(tokenizer, lengths, rate, excluded, sizes.rows, seed),
        reward_funcs=kl_gain,
        processing_class=tokenizer,
    )
    trainer.rollout.extractive_summarizer = EvenlySpacedBits()
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(GistProgressCallback())
    trainer.train()
    return trainer


def copy_of(model: LlamaForCausalLM) -> LlamaForCausalLM:
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def write_gists(
    summarizer: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, strings: list[str], rate: float, query: str = ""
) -> list[str]:
    """The gist of each string, greedily; `query` is the query's token if the summarizer is to see it."""
    gists = {}
    for length in sorted({len(bits) for bits in strings}):
        of_length, longest = [bits for bits in strings if len(bits) == length], budget(length, rate)
        prompts = tokenizer([f"{bits}{query}<{longest}>" for bits in of_length], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            sequences = summarizer.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=longest,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        written = tokenizer.batch_decode(sequences[:, prompts.shape[1] :], skip_special_tokens=True)
        gists.update(zip(of_length, written, strict=True))
    return [gists[bits] for bits in strings]
