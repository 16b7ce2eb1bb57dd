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
The memory of a recipe on each rank against the number of ranks, for every ZeRO stage, from the models' configurations.

python -m research.scaling.scaling --model configs/models/qwen3-4b.json
python -m research.scaling.scaling --model configs/models/qwen3-32b.json --full --stages 2 3 --plot scaling.png

Flags that it does not know go to the recipe, as `--ds3_gather_for_generation false`.
"""

import argparse
from pathlib import Path

from trl_gist.scripts.train import make_parser as make_train_parser
from trl_gist.trainer.memory.estimate import ZeroSettings, memory_per_rank

from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig
from trl import get_peft_config


RECIPE = Path(__file__).parents[2] / "configs" / "qwen3-4b_fineweb-edu.yaml"
GIB = 2**30


def main(args, overrides):
    argv = ["--config", str(RECIPE), "--model_name_or_path", args.model, "--use_peft", str(not args.full), *overrides]
    _, config, model_args = make_train_parser().parse_args_and_config(argv)
    model_config, lora = AutoConfig.from_pretrained(args.model), get_peft_config(model_args)
    estimates, peaks = {}, {}
    for stage in args.stages:
        for ranks in args.ranks:
            found = memory_per_rank(
                config,
                model_config,
                lora,
                dtype=model_config.dtype,
                world_size=ranks,
                zero=ZeroSettings(stage, reduce_bucket_size=args.reduce_bucket_size),
                peaks=peaks.get(stage > 0),
            )
            peaks[stage > 0] = found.peaks
            estimates[stage, ranks] = found
    show(args, estimates)
    if args.plot:
        draw(args, estimates)


def show(args, estimates):
    table = Table(title=f"{title(args)}: GiB on each rank", box=box.SIMPLE, title_justify="left")
    for heading in ("", "ranks", "always", "sampling", "distillation", "policy", "peak", "in"):
        table.add_column(heading, justify="left" if heading in ("", "in") else "right", no_wrap=True)
    for (stage, ranks), found in estimates.items():
        phases = [found.resident + found.phases[name].total for name in ("sampling", "distillation", "policy")]
        sizes = [f"{size / GIB:,.1f}" for size in (found.resident, *phases, found.peak)]
        table.add_row(name_of(stage), str(ranks), *sizes, found.largest_phase)
    Console(width=100).print(table)


def draw(args, estimates):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for stage in args.stages:
        peaks = [estimates[stage, ranks].peak / GIB for ranks in args.ranks]
        axes.plot(args.ranks, peaks, marker="o", label=name_of(stage))
    axes.axhline(80, color="0.5", linewidth=1, linestyle="--")
    axes.text(args.ranks[0], 80, "80 GB device", color="0.35", va="bottom", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(args.ranks, [str(ranks) for ranks in args.ranks])
    axes.set_xlabel("ranks")
    axes.set_ylabel("peak on each rank (GiB)")
    axes.set_title(title(args), loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=150)


def title(args):
    return f"{Path(args.model).stem}, {'full fine-tuning' if args.full else 'LoRA'}"


def name_of(stage):
    return f"ZeRO-{stage}" if stage else "DDP"


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="configuration file, folder or name on the Hub")
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], choices=range(4))
    parser.add_argument("--reduce_bucket_size", type=int, default=500_000_000, help="elements (DeepSpeed's default)")
    parser.add_argument("--plot", metavar="FILE", help="where to draw the peaks")
    return parser


if __name__ == "__main__":
    main(*make_parser().parse_known_args())
