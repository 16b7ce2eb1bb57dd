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
What eight targets of a context cost beside one: the seconds in which a rollout's gists are scored and G is distilled.

python -m research.performance.targets        some five minutes on two cores; docs/PERFORMANCE.md

SmolLM2-135M in bfloat16 under LoRA, four contexts of 512 tokens, four gists of 48 each, taken by turns in one process. In
one row each context and gist is read once, whatever the number of targets; with `--separate` the targets have a row each too,
as of a model that cannot share one. `--whole_step` times whole training steps instead, four contexts × eight gists, by phase.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from trl_gist.data.targets import TargetSpec
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.models.attention import use_matmul_attention
from trl_gist.models.machine import fast_dtype
from trl_gist.prompts import SUMMARIZER_PROMPT, GistPrompts
from trl_gist.scoring.gist_scorer import GistScorer
from trl_gist.scoring.targets import TargetScorer

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.demo_assets import smollm2_checkpoint, split_articles
from examples.short_run import quiet_console
from research.common.tables import markdown_table
from research.performance.workload import PHASES, SIZES, build


CONTEXTS, GISTS, GIST_LENGTH = 4, 4, 48
TARGETS = {
    "one continuation of 64 tokens": None,
    "8 facts": {"fact": 1},
    "4 facts, 2 sentences, the continuation, one far": {"fact": 4, "recall": 2, "continuation": 1, "far": 1},
}


def make_scorer(checkpoint, tokenizer):
    generator, teacher = (AutoModelForCausalLM.from_pretrained(checkpoint, dtype=fast_dtype()) for _ in range(2))
    generator = get_peft_model(generator, LoraConfig(r=32, target_modules="all-linear"), autocast_adapter_dtype=False)
    for model in (generator, teacher):
        use_matmul_attention(model)
    prompts = GistPrompts.from_tokenizer(tokenizer, SUMMARIZER_PROMPT)
    return GistScorer(TargetScorer(generator), TargetScorer(teacher.eval()), prompts, batch_size=8)


def first_windows(tokenizer, kinds):
    """Of as many long articles; of one kind of targets the same articles as of the others."""
    targets = TargetSpec(tuple(kinds.items()), 8) if kinds else TargetSpec()
    articles = split_articles()[0].filter(lambda row: len(row["text"]) > 8_000).select(range(CONTEXTS))
    return list(prepare_windows(articles, tokenizer, WindowSpec(512, 64, 64, None, 1, targets=targets))[0])


def seconds(scorer, windows):
    rows = [window for window in windows for _ in range(GISTS)]
    gists = [row["context_ids"][index % GISTS * 100 :][:GIST_LENGTH] for index, row in enumerate(rows)]
    start = time.perf_counter()
    scorer.score(rows, gists, GISTS, backward=_backward, null_backward=_backward)
    return time.perf_counter() - start


def _backward(loss_NT, rows):
    loss_NT.mean().backward()


def whole_steps(repeats):
    sizes = {name: default for name, (default, _) in SIZES.items()} | {
        "model": None,
        "text": None,
        "full": False,
        "dtype": fast_dtype(),
    }
    with tempfile.TemporaryDirectory() as folder:
        timed = {
            name: build("gist", argparse.Namespace(**sizes), Path(folder, str(place)), kinds)
            for place, (name, kinds) in enumerate(TARGETS.items())
        }
        runs = {name: [] for name in timed}
        for turn in range(repeats + 1):
            for name, trainer in timed.items():
                seconds = trainer.step()
                if turn:  # the first warms up
                    runs[name].append(seconds)
    median = {
        name: {phase: statistics.median(run[phase] for run in of) for phase in PHASES} for name, of in runs.items()
    }
    one = median[next(iter(median))]["whole step"]
    lines = [
        [name, *(f"{of[phase]:.1f}" for phase in PHASES), f"{of['whole step'] / one:.2f}"]
        for name, of in median.items()
    ]
    return markdown_table(["targets of a context", *(f"{phase}, s" for phase in PHASES), "times one"], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--separate", action="store_true", help="also with a row for each target")
    parser.add_argument("--whole_step", action="store_true", help="time whole steps, S's sampling and gradient too")
    args = parser.parse_args()
    quiet_console()
    if args.whole_step:
        print("\n".join(whole_steps(args.repeats)))
        return
    tokenizer = AutoTokenizer.from_pretrained(smollm2_checkpoint())
    scorer = make_scorer(smollm2_checkpoint(), tokenizer)
    windows = {name: first_windows(tokenizer, kinds) for name, kinds in TARGETS.items()}
    ways = (True, False) if args.separate else (True,)
    times = {(name, shared): [] for name, kinds in TARGETS.items() for shared in (ways if kinds else (True,))}
    for turn in range(args.repeats + 1):
        for name, shared in times:
            scorer.shares_rows = shared
            spent = seconds(scorer, windows[name])
            if turn:  # the first warms up
                times[name, shared].append(spent)
    one = statistics.median(times[next(iter(times))])
    lines = []
    for (name, shared), spent in times.items():
        median = statistics.median(spent)
        tokens = sum(len(target["target_ids"]) for row in windows[name] for target in row.get("targets", ())) or 256
        lines.append(
            [f"{name}{'' if shared else ', a row each'}", f"{tokens / CONTEXTS:.0f}", f"{median:.2f}"]
            + [f"{min(spent):.2f} to {max(spent):.2f}", f"{median / one:.2f}"]
        )
    head = ["targets of a context", "target tokens", "seconds, median", "least to most", "times one"]
    print("\n".join(markdown_table(head, lines)))


if __name__ == "__main__":
    main()
