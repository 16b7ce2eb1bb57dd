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
What the benchmarks measure: a GistTrainer, and the afternoon's composition of the same method, on the same model,
windows and number of gists, each of full length.
"""

import copy
import functools
import time
from pathlib import Path

from trl_gist import GistConfig, GistTrainer, length_penalty, log_prob_gain
from trl_gist.data.documents import load_documents
from trl_gist.models.machine import fast_dtype
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts, gist_from_completion

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from examples.demo_assets import smollm2_checkpoint, wikipedia_articles


PHASES = ("sample", "score + distil", "policy", "whole step")

# name: (default, help)
SIZES = {
    "context": (512, "tokens of a context"),
    "target": (64, "tokens of a target"),
    "last_k": (64, "last tokens of the context that the generator sees"),
    "gist": (48, "tokens of a gist"),
    "documents": (4, "contexts in a step"),
    "gists": (8, "gists of a context"),
    "score_batch_size": (8, "rows in a forward of the generator"),
}


def add_arguments(parser, **defaults):
    for name, (default, text) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=defaults.get(name, default), help=text)
    parser.add_argument("--repeats", type=int, default=defaults.get("repeats", 2), help="counted steps of each")
    parser.add_argument("--model", help="checkpoint (default: the demo's SmolLM2-135M)")
    parser.add_argument("--text", help="JSON lines with a column `text` (default: the demo's articles)")
    parser.add_argument(
        "--dtype", default=fast_dtype(), choices=["bfloat16", "float32"], help="(default: %(default)s here)"
    )
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    parser.add_argument("--output", help="JSON file for every number")


class NaiveReward:
    """Scores every gist row against the teacher and the generator, then trains the generator on the rows again."""

    __name__ = "naive_reward"

    def __init__(self, generator, teacher, prompts, tokenizer, batch_size, autocast):
        self.generator, self.teacher, self.prompts, self.tokenizer = generator, teacher, prompts, tokenizer
        self.batch_size, self.autocast = batch_size, autocast
        self.optimizer = torch.optim.AdamW([p for p in generator.parameters() if p.requires_grad], lr=2e-4)

    def __call__(self, completion_ids, context_ids, last_k_ids, target_ids, **kwargs):
        gists = [gist_from_completion(ids, [self.tokenizer.eos_token_id]) for ids in completion_ids]
        with_gist = [self.prompts.generator(gist, last_k) for gist, last_k in zip(gists, last_k_ids, strict=True)]
        without = [self.prompts.generator([], last_k) for last_k in last_k_ids]
        contexts = [self.prompts.plain(context) for context in context_ids]
        rewards = []
        with torch.no_grad():
            for rows in self._batches(len(gists)):
                target = target_ids[rows]
                gained = self._log_probs(self.generator, with_gist[rows], target)[1]
                base = self._log_probs(self.generator, without[rows], target)[1]
                rewards += (gained - base).mean(1).tolist()
        for rows in self._batches(len(gists)):
            with torch.no_grad():
                p = self._log_probs(self.teacher, contexts[rows], target_ids[rows])[0]
            q = self._log_probs(self.generator, with_gist[rows], target_ids[rows])[0]
            kl = (p.exp() * (p - q)).sum(-1).mean() * len(target_ids[rows]) / len(gists)
            kl.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return rewards

    def _batches(self, count):
        return [slice(start, start + self.batch_size) for start in range(0, count, self.batch_size)]

    def _log_probs(self, model, prompts, targets):
        batch = self.tokenizer.pad(
            {"input_ids": [prompt + target for prompt, target in zip(prompts, targets, strict=True)]},
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        length = len(targets[0])  # the windows of this benchmark all have the same
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self.autocast):
            logits = model(**batch, logits_to_keep=length + 1).logits[:, :-1].float()
        log_p = logits.log_softmax(-1)
        return log_p, log_p.gather(-1, torch.tensor(targets, device=model.device).unsqueeze(-1)).squeeze(-1)


class Timed:
    """Seconds of one step of a trainer, by phase."""

    def __init__(self, trainer, tokens):
        self.trainer, self.tokens, self.marks = trainer, tokens, []
        self._time("_generate", "sample")
        self._time("_calculate_rewards", "score + distil")
        self._time("training_step", "step")

    def _time(self, name, phase):
        method = getattr(self.trainer, name)

        def timed(*args, **kwargs):
            start = mark()
            result = method(*args, **kwargs)
            self.marks.append((phase, start, mark()))
            return result

        setattr(self.trainer, name, timed)

    def step(self):
        self.marks = []
        self.trainer.train()
        seconds = dict.fromkeys(("sample", "score + distil", "step"), 0.0)
        for phase, start, stop in self.marks:
            seconds[phase] += seconds_between(start, stop)
        step = seconds.pop("step")
        return seconds | {"policy": step - sum(seconds.values()), "whole step": step}


def mark():
    """This moment. On a GPU an event in its stream, so that timing makes nobody wait."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start, stop):
    """Between two of [`mark`]."""
    if not torch.cuda.is_available():
        return stop - start
    stop.synchronize()
    return start.elapsed_time(stop) / 1000


def token_passes(args, prompts):
    """
    Tokens that pass through a 135M body in one step, per document; a backward pass counts as one more (the frozen
    base's weights get no gradient), decoding as its new tokens.
    """
    prompt, gists, gist = prompts.summarizer_overhead(args.gist) + args.context, args.gists, args.gist
    row = prompts.generator_overhead + gist + args.last_k + args.target
    null = row - gist
    naive = {
        "sample": gists * (prompt + gist),
        "score + distil": gists * (row + null + (args.context + args.target) + 2 * row),
        "policy": 2 * gists * (prompt + gist),
    }
    ours = {
        "sample": prompt + gists * gist,
        "score + distil": (args.context + args.target) + 2 * null + 2 * gists * row,
        "policy": 2 * (prompt + gists * gist),
    }
    return naive, ours


def build(kind, args, directory, target_kinds=None):
    """A `Timed` trainer; `kind` is "naive" or "gist", which alone knows several kinds of targets."""
    checkpoint = args.model or str(smollm2_checkpoint())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    lora = None if args.full else LoraConfig(r=32, lora_alpha=64, target_modules="all-linear")
    common = {
        "output_dir": str(Path(directory, kind)),
        "num_generations": args.gists,
        "per_device_train_batch_size": args.gists,  # a document a micro-batch: of 32 rows TRL's step needs over 24 GB
        "gradient_accumulation_steps": args.documents,
        "max_completion_length": args.gist,
        "temperature": 1.0,
        "top_k": 0,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": args.dtype == "bfloat16",  # autocast, TRL's default
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "disable_dropout": True,
        "learning_rate": 1e-4,
        "model_init_kwargs": {"dtype": args.dtype},
    }
    make = functools.partial(gist_trainer, target_kinds=target_kinds) if kind == "gist" else naive_trainer
    trainer = make(checkpoint, tokenizer, prompts, lora, common, args)
    trainer.generation_config.min_new_tokens = args.gist  # the longest gists, in both
    return Timed(trainer, token_passes(args, prompts)[kind == "gist"])


def gist_trainer(checkpoint, tokenizer, prompts, lora, common, args, target_kinds=None):
    config = GistConfig(
        **common,
        context_length=args.context,
        target_length=args.target,
        last_k=args.last_k,
        summarizer_prompt=SUMMARIZER_PROMPT,
        cold_start_steps=0,
        score_batch_size=args.score_batch_size,
        generator_learning_rate=2e-4,
        target_kinds=target_kinds,
        max_windows_per_document=1,
    )
    if target_kinds is None:
        rows = [
            {"context": context, "last_k": context[-args.last_k :], "target": target}
            for context, target in windows(tokenizer, args)
        ]
    else:  # far targets ask for more text than a window has
        rows = [{"text": text} for text in texts(args) if len(text) > 8_000]
    return GistTrainer(
        checkpoint,
        config,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=[log_prob_gain, length_penalty],  # as the afternoon's has it
        peft_config=lora,
    )


def naive_trainer(checkpoint, tokenizer, prompts, lora, common, args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator, teacher = (
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=args.dtype).to(device) for _ in range(2)
    )
    if lora:
        generator = get_peft_model(generator, copy.deepcopy(lora))
    reward = NaiveReward(generator, teacher.eval(), prompts, tokenizer, args.score_batch_size, common["bf16"])
    rows = [
        {
            "context_ids": context,
            "last_k_ids": context[-args.last_k :],
            "target_ids": target,
            "prompt": [{"role": "user", "content": SUMMARIZER_PROMPT.replace("{context}", tokenizer.decode(context))}],
        }
        for context, target in windows(tokenizer, args)
    ]
    config = GRPOConfig(**common)
    return GRPOTrainer(checkpoint, reward, config, train_dataset=Dataset.from_list(rows), peft_config=lora)


def texts(args):
    if args.text is None:
        return wikipedia_articles()["text"]
    return load_documents(args.text)["text"]


def windows(tokenizer, args):
    """The context and the target that each long enough text begins with, as token ids."""
    length = args.context + args.target
    for text in texts(args):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= length:
            yield ids[: args.context], ids[args.context : length]


def matmul_rate(dtype, seconds=2.0):
    """Floating-point operations a second of a large linear map: the machine's limit for this work. Without instructions for
    bfloat16 a product of two matrices as they lie in memory takes far longer still."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    linear(a, b)  # the first may load libraries
    spent, count = 0.0, 1
    while spent < seconds / 2:
        count *= 2
        start = mark()
        for _ in range(count):
            linear(a, b)
        spent = seconds_between(start, mark())
    return 2 * size**3 * count / spent


def machine():
    """What a figure was measured on, in words."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
