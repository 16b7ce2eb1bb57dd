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
What `trl_gist.trainer.memory.estimate` says a step takes, against what one took: the same recipe, in a process of its
own, trained for two steps, on a GPU where there is one.

python -m research.scaling.memory                             # LoRA and full, with and without checkpointing, X = 512
python -m research.scaling.memory --context 256 --cases lora full

Measured is the most that was resident in each phase of the second step, when optimizer states are there (VmHWM, reset
where a phase begins), less what a run with next to no model leaves resident: libraries and the interpreter. So it
holds what the estimate leaves out of a model's own, as the scratch space of kernels. On a GPU it is the most that torch
had allocated there.
"""

import argparse
import copy
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from research.common.process import memory_status


CASES = {
    "lora": {"full": False, "gradient_checkpointing": False},
    "lora, checkpointing": {"full": False, "gradient_checkpointing": True},
    "full": {"full": True, "gradient_checkpointing": False},
    "full, checkpointing": {"full": True, "gradient_checkpointing": True},
}


def main(args):
    if args.measure:
        print(json.dumps(measure(args, **CASES[args.measure])))
        return
    results = {}
    for case in args.cases:
        print(f"{case} …", file=sys.stderr)
        results[case] = run(args, case)
        if args.output:
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            Path(args.output).write_text(json.dumps({"arguments": vars(args), "results": results}, indent=2) + "\n")
    show(results)


def run(args, case):
    """Estimate and measurement of one case, in bytes, from a process of its own."""
    command = [sys.executable, "-m", "research.scaling.memory", "--measure", case]
    for name in ("context", "gists", "documents", "score_batch_size", "dtype", "model", "text"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    # Every large block is its own mapping, given back when it is freed: resident is what is in use
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(args, full, gradient_checkpointing):
    from trl_gist import GistConfig, GistTrainer
    from trl_gist.trainer.memory.estimate import memory_per_rank
    from trl_gist.trainer.memory.trace import prompt_lengths

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, AutoTokenizer

    from research.performance.workload import windows

    checkpoint = args.model
    if checkpoint is None:
        from examples.demo_assets import smollm2_checkpoint

        checkpoint = str(smollm2_checkpoint())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lora = None if full else LoraConfig(r=32, lora_alpha=64, target_modules="all-linear")
    dtype, on_gpu = getattr(torch, args.dtype), torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as directory:
        config = GistConfig(
            directory,
            context_length=args.context,
            num_generations=args.gists,
            per_device_train_batch_size=args.gists,
            gradient_accumulation_steps=args.documents,
            score_batch_size=args.score_batch_size,
            cold_start_steps=0,
            max_steps=2,
            save_strategy="no",
            report_to="none",
            bf16=dtype == torch.bfloat16,
            gradient_checkpointing=gradient_checkpointing,
            disable_tqdm=True,
            use_cpu=not on_gpu,
        )
        model_config = AutoConfig.from_pretrained(checkpoint)
        estimate = memory_per_rank(config, model_config, lora, dtype=dtype, lengths=prompt_lengths(config, tokenizer))

        args.target = config.target_length
        rows = [
            {"context": context, "last_k": context[-config.last_k :], "target": target}
            for context, target in windows(tokenizer, args)
        ]
        rows = Dataset.from_list(rows)
        before = 0
        if not on_gpu:
            load_libraries(model_config, tokenizer, copy.deepcopy(config), rows, copy.deepcopy(lora))
            before = memory_status("VmRSS")
        config.model_init_kwargs = {"dtype": args.dtype}
        trainer = GistTrainer(checkpoint, config, train_dataset=rows, peft_config=lora)
        trainer.generation_config.min_new_tokens = 48  # the longest gists
        phases = PhasePeaks(trainer, on_gpu)
        trainer.train()
    measured = {name: peak - before for name, peak in phases.peaks.items() if name in estimate.phases}
    return {name: [estimate.resident + estimate.phases[name].total, measured[name]] for name in measured}


def load_libraries(model_config, tokenizer, config, rows, lora):
    """The same run with next to no model: what libraries and the interpreter take is no model's memory."""
    from trl_gist import GistTrainer

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(smallest(model_config))
    trainer = GistTrainer(model, config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    shutil.rmtree(config.output_dir)
    del trainer, model
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def smallest(model_config):
    """A configuration of the same family, with one narrow layer."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    config = {**model_config.to_dict(), **sizes, **heads}
    if config.get("layer_types"):  # in some families each layer has its own
        config["layer_types"] = config["layer_types"][:1]
    return type(model_config).from_dict(config)


class PhasePeaks:
    """The most memory in each phase of a trainer's last step, in bytes: of the GPU, or resident."""

    def __init__(self, trainer, on_gpu):
        from transformers import TrainerCallback

        self.phase, self.peaks, self.on_gpu = None, {}, on_gpu
        scorer = trainer.generator_trainer.scorer
        self._around(trainer, "_generate", "sampling", None)
        self._around(scorer, "read_targets", "teacher", "distillation")
        self._around(trainer, "_calculate_rewards", None, "policy")
        peaks = self

        class Step(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                peaks.enter(None)
                peaks.peaks.clear()

            def on_pre_optimizer_step(self, args, state, control, **kwargs):
                peaks.enter("optimizer step")

            def on_step_end(self, args, state, control, **kwargs):
                peaks.enter(None)

        trainer.add_callback(Step())

    def enter(self, phase):
        """Keeps the peak of the phase that ends here, and starts a new one."""
        from torch import cuda

        if self.phase is not None:
            peak = cuda.max_memory_allocated() if self.on_gpu else memory_status("VmHWM")
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), peak)
        if self.on_gpu:
            cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's
        self.phase = phase

    def _around(self, owner, name, phase, then):
        method = getattr(owner, name)

        def within(*args, **kwargs):
            self.enter(phase)
            try:
                return method(*args, **kwargs)
            finally:
                self.enter(then)

        setattr(owner, name, within)


def show(results):
    table = Table(title="MB at the most in each phase of a step", box=box.SIMPLE, title_justify="left")
    for heading in ("", "phase", "estimate", "measured", "ratio"):
        table.add_column(heading, justify="right" if heading not in ("", "phase") else "left")
    for case, phases in results.items():
        largest = max(phases, key=lambda name: phases[name][1])
        peaks = [max(column) for column in zip(*phases.values(), strict=True)]
        for name, (estimate, measured) in {**phases, "whole step": peaks}.items():
            style = "bold" if name == "whole step" else None
            mark = " ←" if name == largest else ""
            cells = (f"{estimate / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{estimate / measured:.2f}")
            table.add_row(case, name + mark, *cells, style=style)
            case = ""
    Console(highlight=False, width=100).print(table)


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--context", type=int, default=512, help="tokens of a context")
    parser.add_argument("--gists", type=int, default=8, help="gists of a context, one context a micro-batch")
    parser.add_argument("--documents", type=int, default=2, help="contexts in a step")
    parser.add_argument("--score_batch_size", type=int, default=8, help="rows in a forward of the generator")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"], help="of the weights")
    parser.add_argument("--model", help="checkpoint (default: the demo's SmolLM2-135M)")
    parser.add_argument("--text", help="JSON lines with a column `text` (default: the demo's articles)")
    parser.add_argument("--output", help="JSON file for every number")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
