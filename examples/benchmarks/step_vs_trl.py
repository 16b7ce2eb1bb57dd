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
A training step of GistTrainer against the afternoon's composition: `trl.GRPOTrainer` with a reward function that holds
two more models, scores every gist row against both, and trains the generator on the same rows again.

Same checkpoint, same windows, same number of gists, all gists of full length, one process, run in turn. Prints seconds
by phase, token-passes, the ratios with their spread, and the machine's matmul rate beside the rate each reached; then
the peak memory of each in a process of its own.

python examples/benchmarks/step_vs_trl.py                       # SmolLM2-135M, X=512, 4 documents × 8 gists, LoRA
python examples/benchmarks/step_vs_trl.py --full --repeats 1    # full fine-tuning
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from trl_gist import GistConfig, GistTrainer
from trl_gist.gist_config import SUMMARIZER_PROMPT
from trl_gist.prompts import GistPrompts, gist_from_completion


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class NaiveReward:
    """Scores every gist row against the teacher and the generator, then trains the generator on the rows again."""

    __name__ = "naive_reward"

    def __init__(self, generator, teacher, prompts, tokenizer, batch_size):
        self.generator, self.teacher, self.prompts, self.tokenizer = generator, teacher, prompts, tokenizer
        self.batch_size = batch_size
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
        logits = model(**batch, logits_to_keep=length + 1).logits[:, :-1].float()
        log_p = logits.log_softmax(-1)
        return log_p, log_p.gather(-1, torch.tensor(targets, device=model.device).unsqueeze(-1)).squeeze(-1)


class Timed:
    """Seconds of one step of a trainer, by phase."""

    def __init__(self, trainer, tokens):
        self.trainer, self.tokens, self.seconds = trainer, tokens, {}
        self._time("_generate_single_turn", "sample")
        self._time("_calculate_rewards", "score + distil")
        self._time("training_step", "step")

    def _time(self, name, phase):
        method = getattr(self.trainer, name)

        def timed(*args, **kwargs):
            synchronize()
            start = time.perf_counter()
            result = method(*args, **kwargs)
            synchronize()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
            return result

        setattr(self.trainer, name, timed)

    def step(self):
        self.seconds = {}
        self.trainer.train()
        phases = {phase: self.seconds[phase] for phase in ("sample", "score + distil")}
        return phases | {"policy": self.seconds["step"] - sum(phases.values()), "whole step": self.seconds["step"]}


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def token_passes(args, prompts):
    """
    Tokens that pass through a 135M body in one step, per document; a backward pass counts as one more (the frozen
    base's weights get no gradient), decoding as its new tokens.
    """
    prompt, gists, gist = prompts.summarizer_overhead + args.context, args.gists, args.gist
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


def build(kind, args, directory):
    from demo_assets import smollm2_checkpoint, wikipedia_articles

    checkpoint = args.model or str(smollm2_checkpoint())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    dtype = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
    lora = None if args.full else LoraConfig(r=32, lora_alpha=64, target_modules="all-linear")
    windows, length = [], args.context + args.target
    for text in wikipedia_articles()["text"]:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= length:
            context = ids[: args.context]
            windows.append(
                {
                    "context_ids": context,
                    "last_k_ids": context[-args.last_k :],
                    "target_ids": ids[args.context : length],
                }
            )
    common = {
        "output_dir": str(Path(directory, kind)),
        "num_generations": args.gists,
        "per_device_train_batch_size": args.gists,  # a document a micro-batch: a batch of 32 rows needs over 24 GB in TRL
        "gradient_accumulation_steps": args.documents,
        "max_completion_length": args.gist,
        "generation_kwargs": {"min_new_tokens": args.gist},
        "temperature": 1.0,
        "top_k": 0,
        "max_steps": 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "disable_dropout": True,
    }
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    if kind == "gist":
        config = GistConfig(
            **common,
            context_length=args.context,
            target_length=args.target,
            last_k=args.last_k,
            score_batch_size=args.score_batch_size,
            learning_rate=1e-4,
            generator_learning_rate=2e-4,
            model_init_kwargs={"dtype": args.dtype},
        )
        rows = [
            {"context": row["context_ids"], "last_k": row["last_k_ids"], "target": row["target_ids"]}
            for row in windows
        ]
        trainer = GistTrainer(checkpoint, config, train_dataset=Dataset.from_list(rows), peft_config=lora)
    else:
        generator = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
        teacher = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval().requires_grad_(False)
        generator = get_peft_model(generator, copy.deepcopy(lora)) if lora else generator
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reward = NaiveReward(generator.to(device), teacher.to(device), prompts, tokenizer, args.score_batch_size)
        message = [{"role": "user", "content": SUMMARIZER_PROMPT}]
        rows = [
            {
                **row,
                "prompt": [
                    {
                        **message[0],
                        "content": SUMMARIZER_PROMPT.replace("{context}", tokenizer.decode(row["context_ids"])),
                    }
                ],
            }
            for row in windows
        ]
        trainer = GRPOTrainer(
            checkpoint,
            reward_funcs=reward,
            args=GRPOConfig(**common, learning_rate=1e-4, model_init_kwargs={"dtype": args.dtype}),
            train_dataset=Dataset.from_list(rows),
            peft_config=lora,
        )
    return Timed(trainer, token_passes(args, prompts)[kind == "gist"])


def matmul_rate(dtype, size=2048, seconds=2.0):
    """Floating-point operations a second of a large matrix product: the machine's limit for this work."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        synchronize()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start)


def peak_memory(kind, args):
    """Peak bytes of one step, in a process of its own."""
    command = [sys.executable, __file__, "--measure_memory", kind]
    for name in ("context", "target", "last_k", "gist", "documents", "gists", "score_batch_size", "dtype"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--full"] if args.full else []
    command += ["--model", args.model] if args.model else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])


def main(args):
    console = Console(highlight=False, width=120)
    with tempfile.TemporaryDirectory() as directory:
        if args.measure_memory:
            build(args.measure_memory, args, directory).step()
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            print(peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            return
        trainers = {kind: build(kind, args, directory) for kind in ("naive", "gist")}
        runs = {"naive": [], "gist": []}
        for repeat in range(args.repeats + 1):
            for kind, timed in trainers.items():
                seconds = timed.step()
                if repeat:  # the first is a warm-up
                    runs[kind].append(seconds)
        model = trainers["gist"].trainer.accelerator.unwrap_model(trainers["gist"].trainer.model)
    body = sum(p.numel() for n, p in model.named_parameters() if "lora" not in n and "embed" not in n)
    rate = matmul_rate(torch.bfloat16 if args.dtype == "bfloat16" else torch.float32)
    table = Table(
        title=f"One step, X={args.context} Y={args.target} |Z|={args.gist}, {args.documents} documents × {args.gists} "
        f"gists, {'full' if args.full else 'LoRA r=32'}, {args.dtype}, {torch.get_num_threads()} threads",
        box=box.SIMPLE,
        title_justify="left",
    )
    for heading in (
        "phase",
        "TRL + reward function, s",
        "GistTrainer, s",
        "ratio",
        "token-passes a document",
        "ratio",
    ):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    report = {}
    for phase in ("sample", "score + distil", "policy", "whole step"):
        naive, ours = ([run[phase] for run in runs[kind]] for kind in ("naive", "gist"))
        ratios = [a / b for a, b in zip(naive, ours, strict=True)]
        passes = [
            sum(timed.tokens.values()) if phase == "whole step" else timed.tokens[phase] for timed in trainers.values()
        ]
        report[phase] = {"naive_s": naive, "gist_s": ours, "ratios": ratios, "token_passes": passes}
        table.add_row(
            phase,
            _spread(naive),
            _spread(ours),
            _spread(ratios),
            f"{passes[0]:,} → {passes[1]:,}",
            f"{passes[0] / passes[1]:.1f}",
        )
    console.print(table)
    for kind, name in (("naive", "TRL + reward function"), ("gist", "GistTrainer")):
        passes = sum(trainers[kind].tokens.values()) * args.documents
        reached = 2 * body * passes / statistics.median(run["whole step"] for run in runs[kind])
        console.print(f"{name}: {reached / 1e9:.0f} GFLOP/s in the body of the model, {reached / rate:.0%} of matmul")
    console.print(f"matmul: {rate / 1e9:.0f} GFLOP/s")
    if not args.no_memory:
        peaks = {kind: peak_memory(kind, args) for kind in ("naive", "gist")}
        report["peak_bytes"] = peaks
        console.print(
            f"peak memory: {peaks['naive'] / 1e9:.1f} GB → {peaks['gist'] / 1e9:.1f} GB, "
            f"{peaks['gist'] / peaks['naive']:.2f}x"
        )
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n")


def _spread(values):
    middle = statistics.median(values)
    return f"{middle:.1f}" + (f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "context": 512, "target": 64, "last_k": 64, "gist": 48, "documents": 4, "gists": 8, "score_batch_size": 8, "repeats": 2,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", help="checkpoint (default: the demo's SmolLM2-135M)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--output", help="JSON file for every number")
    parser.add_argument("--measure_memory", choices=["naive", "gist"], help=argparse.SUPPRESS)
    main(parser.parse_args())
