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
Compress-then-continue against full context: what a pair costs at inference.

Full context: the model reads the context X and writes N tokens. Compress-then-continue: the summarizer reads X and
writes the gist, once; the generator reads GIST / LAST K / CONTINUE and writes N tokens, as often as one likes. Same
model, same text (the demo's Wikipedia articles, one after another), one sequence at a time, greedy, in turn. Prints
medians with their spread, lowest to highest, and how many continuations it takes to save the time the gist took.

Gists and continuations always run to full length, so that no cost depends on what a pair has learned: an untrained
model stands in for both halves, and a pair can be timed on longer contexts than its own. Only adapters cost more,
because `GistCompactor` does not merge them: `--pair` shows how much.

Full context reads X anew for each continuation. Where a server keeps the KV cache of X between them, it too pays for
reading once, and what a gist saves is memory and faster decoding.

python -m research.performance.inference --plot cost.png                     # SmolLM2-135M, untrained
python -m research.performance.inference --pair runs/demo-1 --contexts 128   # adapters that the demo saved
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

from trl_gist import GistCompactor
from trl_gist.common.tables import console_table
from trl_gist.models.machine import fast_dtype
from trl_gist.models.positions import max_positions
from trl_gist.models.roles import clone_with_shared_parameters

import torch
from matplotlib.figure import Figure
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation import BaseStreamer
from transformers.utils import logging

from examples.demo_assets import smollm2_checkpoint, wikipedia_articles
from research.common.untrained import untrained_config


RUNS = {"full": "full context", "compress": "writing the gist, once", "gist": "continuing from the gist"}
COSTS = {
    "tokens_read": "tokens read",
    "first_token_s": "first token, s",
    "written_first_s": "… gist written first, s",
    "tokens_per_s": "decoding, tokens/s",
    "whole_s": "in all, s",
    "kv_mib": "KV cache, MiB",
    "peak_mib": "peak GPU memory above weights, MiB",
    "paid_back_after": "continuations until time is saved",
}


class Clock(BaseStreamer):
    """The time of each token. `generate` hands over the prompt first, before it is read."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def timed_generate(model, prompt_ids, tokens):
    """The tokens written, and what they cost."""
    input_ids = torch.tensor([prompt_ids], device=model.device)
    if input_ids.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
    clock, start = Clock(), time.perf_counter()
    # A streamer times the first token and the rest in one call. It gets each token on the CPU, so that a GPU's work on
    # it is done, and costs nothing: `generate` waits for each token anyway, to see if it is the last (transformers 5.23)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
        streamer=clock,
    )
    _, first, *_, last = clock.times
    tensors = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
    cost = {
        "tokens_read": len(prompt_ids),
        "first_token_s": first - start,
        "tokens_per_s": (tokens - 1) / (last - first),
        "whole_s": last - start,
        "kv_mib": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20,
    }
    if input_ids.is_cuda:
        cost["peak_mib"] = (torch.cuda.max_memory_allocated() - allocated) / 2**20
    return output.sequences[0, len(prompt_ids) :].tolist(), cost


def measure(base, compactor, context_ids, args):
    """What one context costs, by run."""
    prompts, last_ids = compactor.prompts, context_ids[max(0, len(context_ids) - args.last_k) :]
    _, full = timed_generate(base, prompts.plain(context_ids), args.tokens)
    gist_ids, compress = timed_generate(compactor.summarizer, prompts.summarizer(context_ids), args.gist)
    _, gist = timed_generate(compactor.generator, prompts.generator(gist_ids, last_ids), args.tokens)
    gist["written_first_s"] = compress["whole_s"] + gist["first_token_s"]
    saved_s = full["whole_s"] - gist["whole_s"]
    gist["paid_back_after"] = math.ceil(compress["whole_s"] / saved_s) if saved_s > 0 else None
    return {"full": full, "compress": compress, "gist": gist}


def load(args):
    """The pair; an untrained one is one model in both roles."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.pair:
        return GistCompactor.from_pretrained(args.pair, device=device, dtype=args.dtype)
    checkpoint = args.model or str(smollm2_checkpoint())
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=args.dtype).to(device).eval()
    window = {"context_length": args.contexts[-1], "target_length": args.tokens, "last_k": 64}
    window |= {"max_gist_length": 48, "tail_length": 48}
    return GistCompactor(model, model, AutoTokenizer.from_pretrained(checkpoint), untrained_config(**window))


def check(args, compactor):
    """Ends the script, before anything is timed, if a setting makes no sense or does not fit the models' positions."""
    if min(args.contexts[0], args.repeats, args.tokens - 1, args.gist - 1, args.last_k + 1) < 1:
        sys.exit("--contexts and --repeats must be at least 1, --tokens and --gist at least 2, --last_k at least 0.")
    for path in filter(None, (args.output, args.plot)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    if args.plot and Path(args.plot).suffix not in (".png", ".svg"):
        sys.exit(f"--plot {args.plot}: choose a name that ends in .png or .svg.")
    longest, prompts = args.contexts[-1], compactor.prompts
    needed = max(
        len(prompts.bos) + longest + args.tokens,
        prompts.summarizer_overhead(args.gist) + longest + args.gist,
        prompts.generator_overhead + args.gist + args.last_k + args.tokens,
    )
    for model in (compactor.summarizer, compactor.generator):
        positions = max_positions(model)
        if positions is not None and needed > positions:
            sys.exit(
                f"--contexts {longest} takes {needed:,} positions, prompt and written tokens included; the model has "
                f"{positions:,}. Leave this length out, or take a --model with more positions."
            )


def read_text(tokenizer, length):
    text = "\n".join(wikipedia_articles()["text"])
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < length:
        sys.exit(f"--contexts {length}: the demo's articles have only {len(ids):,} tokens. Leave this length out.")
    return ids


def print_table(report, title):
    console = Console(highlight=False, width=44 + 26 * len(report))
    table = console_table(None, "context, tokens", *(f"{length:,}" for length in report))
    for run, heading in RUNS.items():
        table.add_row(f"[bold]{heading}")
        for name, label in COSTS.items():
            if all(name in runs[run] for runs in report.values()):
                table.add_row(f"  {label}", *(_spread(runs[run][name]) for runs in report.values()))
        table.add_section()
    console.print(title, soft_wrap=True)
    console.print(table)


def draw(report, title, path):
    full, gist = "#555555", "#1f6f8b"
    panels = {
        "Time to first token, seconds": {
            "full context": ("full", "first_token_s", full, "-"),
            "gist at hand": ("gist", "first_token_s", gist, "-"),
            "gist written first": ("gist", "written_first_s", gist, "--"),
        },
        "KV cache, MiB": {
            "full context": ("full", "kv_mib", full, "-"),
            "gist + last K": ("gist", "kv_mib", gist, "-"),
        },
    }
    figure, lengths = Figure(figsize=(10, 3.8), layout="constrained"), list(report)
    figure.get_layout_engine().set(wspace=0.06)
    figure.suptitle(f"{title}; bars: lowest to highest", x=0.01, ha="left", fontsize=9, color=full)
    for axis, (heading, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        ends = []
        for label, (run, name, color, style) in lines.items():
            values = [runs[run][name] for runs in report.values()]
            medians = [statistics.median(v) for v in values]
            bars = [[m - min(v) for m, v in zip(medians, values, strict=True)]]
            bars += [[max(v) - m for m, v in zip(medians, values, strict=True)]]
            axis.errorbar(
                lengths, medians, bars, ls=style, color=color, marker="o", ms=4.5, lw=1.8, elinewidth=1, capsize=3
            )
            ends.append((medians[-1], label, color))
        axis.set_xlim(0, 1.01 * lengths[-1])
        axis.set_ylim(0)
        lowest = -math.inf
        for y, label, color in sorted(ends):  # lines may end on one another, their names may not
            lowest = max(y, lowest + 0.07 * axis.get_ylim()[1])
            axis.text(1.02, lowest, label, transform=axis.get_yaxis_transform(), va="center", color=color)
        axis.set_title(heading, loc="left", fontsize=11, fontweight="bold")
        axis.set_xlabel("context, tokens")
        # Ticks nearer to 0 would lie on each other
        axis.set_xticks([length for length in lengths if length >= lengths[-1] / 10])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.2)
    figure.savefig(path, dpi=160)


def main(args):
    compactor = load(args)
    args.last_k = compactor.pair.last_k if args.last_k is None else args.last_k
    args.gist = compactor.pair.max_gist_length if args.gist is None else args.gist
    check(args, compactor)
    ids = read_text(compactor.tokenizer, args.contexts[-1])
    base = clone_with_shared_parameters(compactor.generator)  # without its adapter, if it has one
    report = {length: {run: {} for run in RUNS} for length in args.contexts}
    for repeat in range(args.repeats + 1):
        for length, runs in report.items():
            for run, cost in measure(base, compactor, ids[:length], args).items():
                for name, value in cost.items():
                    if repeat:  # the first is a warm-up
                        runs[run].setdefault(name, []).append(value)
    machine = torch.cuda.get_device_name() if base.device.type == "cuda" else f"CPU, threads={torch.get_num_threads()}"
    model = Path(args.pair or base.name_or_path).name + ("" if args.pair else ", untrained")
    title = f"{model}, N={args.tokens} |Z|={args.gist} K={args.last_k}, {args.dtype}, {machine}"
    print_table(report, title)
    if args.output:
        Path(args.output).write_text(json.dumps({"title": title, "costs": report}, indent=2) + "\n")
    if args.plot:
        draw(report, title, args.plot)
    return report


def _spread(values):
    values = [math.inf if value is None else value for value in values]
    middle, low, high = (_number(function(values)) for function in (statistics.median, min, max))
    return middle + (f" ({low}–{high})" if low != high else "")


def _number(value):
    """A count, or three digits that matter."""
    if math.isinf(value):
        return "never"
    return f"{value:,.{0 if value == int(value) else max(0, 2 - math.floor(math.log10(value)))}f}"


def context_lengths(text):
    return sorted({int(length) for length in text.split(",")})


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", help="checkpoint, for an untrained pair (default: the demo's SmolLM2-135M)")
    models.add_argument("--pair", help="directory that GistTrainer saved")
    parser.add_argument(
        "--contexts", type=context_lengths, default="256,512,1024,2048", help="tokens (default: %(default)s)"
    )
    for name, default, text in (
        ("tokens", 64, "of a continuation, N"),
        ("last_k", None, "tokens the generator reads beside the gist (default: the pair's, or 64)"),
        ("gist", None, "tokens of the gist (default: the pair's longest, or 48)"),
        ("repeats", 3, "counted, after a warm-up"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument(
        "--dtype", default=fast_dtype(), choices=["bfloat16", "float32"], help="(default: %(default)s here)"
    )
    parser.add_argument("--output", help="JSON file for every number")
    parser.add_argument("--plot", help="PNG or SVG file")
    main(parser.parse_args())
