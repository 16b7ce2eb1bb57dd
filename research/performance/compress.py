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
How fast texts are compressed in batches, beside the rate at which the same model merely reads: what is spent outside
the model's forwards is overhead.

For each batch size, in turn: `compress_batch` on contexts of full length, and a plain forward of the same prompts in
the same batches, which keeps one position's logits. The model's share is timed around its own `forward`; the rest of
`compress_batch` (tokenising, prompts, the loop of `generate`, choosing tokens, log-probs of gists, decoding) is
overhead. Prints medians over repeats.

python -m research.performance.compress PAIR            a pair that `make demo` trained, on the demo's articles
python -m research.performance.compress PAIR --batch_sizes 1 8 32 --contexts 64
python -m research.performance.compress PAIR --backend vllm      where there is vLLM: its forwards are not told apart
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from trl_gist import GistCompactor
from trl_gist.common.backends import BACKENDS
from trl_gist.models.roles import base_of
from trl_gist.models.vllm import EngineModel

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo_assets import wikipedia_articles


class ForwardClock:
    """Seconds inside a model's forwards, and how many there were."""

    def __init__(self, model):
        self.seconds, self.forwards, self.device = 0.0, 0, model.device
        self.hooks = [
            model.register_forward_pre_hook(self._start),
            model.register_forward_hook(self._stop),
        ]

    def _start(self, *_):
        synchronize(self.device)
        self.started = time.perf_counter()

    def _stop(self, *_):
        synchronize(self.device)
        self.seconds += time.perf_counter() - self.started
        self.forwards += 1

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def article_contexts(compactor: GistCompactor, count: int) -> list[str]:
    """Texts of `context_length` tokens: what a caller passes, tokenising included."""
    length, ids = compactor.pair.context_length, []
    for article in wikipedia_articles().shuffle(seed=0):
        ids += compactor.token_ids(article["text"], "An article")
        if len(ids) >= 2 * count * length:
            break
    texts = (compactor.tokenizer.decode(ids[start : start + length]) for start in range(0, len(ids), length))
    # A text cut from the middle may have a token more when it is tokenised again
    fits = [text for text in texts if len(compactor.token_ids(text, "text")) <= length]
    return fits[:count]


def measure(compactor: GistCompactor, texts: list[str], batch_size: int) -> dict[str, float]:
    in_engine = isinstance(compactor.summarizer, EngineModel)
    if in_engine:
        compactor.summarizer.engine.engine.reset_prefix_cache()  # of the repeat before
    clock = None if in_engine else ForwardClock(base_of(compactor.summarizer))
    started, cpu = time.perf_counter(), time.process_time()
    gists = compactor.compress_batch(texts, batch_size=batch_size)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    tokens = sum(gist.context_tokens for gist in gists)
    found = {
        "compress_tokens_per_s": tokens / seconds,
        "gists_per_s": len(gists) / seconds,
        "gist_tokens": statistics.mean(len(gist.token_ids) for gist in gists),
        "cpu_s_per_gist": cpu / len(gists),
    }
    if in_engine:
        return found
    clock.remove()
    return found | {
        "overhead": 1 - clock.seconds / seconds,
        "overhead_ms_per_forward": 1000 * (seconds - clock.seconds) / clock.forwards,
        "prefill_tokens_per_s": prefill_rate(compactor, texts, batch_size),
    }


@torch.inference_mode()
def prefill_rate(compactor, texts, batch_size):
    """Tokens that the summarizer reads in a second when it writes nothing: of the same prompts, template included."""
    prompts = []
    for text in texts:
        ids = compactor.token_ids(text, "text")
        prompts.append(compactor.prompts.summarizer(ids, ids[-compactor.pair.last_k :], compactor.pair.tail_length))
    width = max(map(len, prompts))
    started = time.perf_counter()
    for start in range(0, len(prompts), batch_size):
        rows = [prompt + prompt[-1:] * (width - len(prompt)) for prompt in prompts[start : start + batch_size]]
        input_ids = torch.tensor(rows, device=compactor.summarizer.device)
        compactor.summarizer(input_ids=input_ids, logits_to_keep=1, use_cache=False)
    synchronize(compactor.summarizer.device)
    return sum(map(len, prompts)) / (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="a folder that `GistTrainer.save_model` wrote")
    parser.add_argument("--contexts", type=int, default=32, help="compressed in each repeat (default: 32)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32], help="(default: 1 8 32)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    parser.add_argument("--output", help="JSON file for every number")
    parser.add_argument("--backend", choices=BACKENDS, default="transformers", help="(default: %(default)s)")
    args = parser.parse_args()
    compactor = GistCompactor.from_pretrained(args.pair, backend=args.backend)
    texts = article_contexts(compactor, args.contexts)
    compactor.compress_batch(texts[:2])  # warm
    results = {}
    for batch_size in args.batch_sizes:
        repeats = [measure(compactor, texts, batch_size) for _ in range(args.repeats)]
        results[batch_size] = {name: statistics.median(row[name] for row in repeats) for name in repeats[0]}
    table = Table(
        title=f"{len(texts)} contexts of {compactor.pair.context_length} tokens, {torch.get_num_threads()} threads",
        box=box.SIMPLE,
    )
    headings = ["batch", "compressed, tokens/s", "gists/s", "tokens a gist", "CPU, s a gist"]
    if args.backend == "transformers":
        headings += ["merely read, tokens/s", "outside the model"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for batch_size, row in results.items():
        table.add_row(
            str(batch_size),
            f"{row['compress_tokens_per_s']:,.0f}",
            f"{row['gists_per_s']:.2f}",
            f"{row['gist_tokens']:.1f}",
            f"{row['cpu_s_per_gist']:.2f}",
            *(
                (
                    f"{row['prefill_tokens_per_s']:,.0f}",
                    f"{row['overhead']:.1%}, {row['overhead_ms_per_forward']:.2f} ms a forward",
                )
                if "overhead" in row
                else ()
            ),
        )
    Console(highlight=False, width=120).print(table)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
