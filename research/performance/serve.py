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
What many clients at a time get from `trl-gist serve`: gists a second, and how long each waits for its own.

Starts the server as a process of its own, and for each number of clients sends so many requests to `/v1/compress` from
them, each client the next one when the last is answered, each a context that no request had before, of full length. A
server on a machine that has other work is better told by its own CPU seconds, which the table has as well. Without PAIR the
untrained checkpoint has both roles; its gists have nearly always full length.

python -m research.performance.serve                               SmolLM2-135M, untrained
python -m research.performance.serve PAIR --clients 1 8 32 --serve max_batch_size=32 dtype=float32
"""

import argparse
import asyncio
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from trl_gist.common.tokens import literal_ids
from trl_gist.pair import GENERATOR_DIR, PairConfig

import httpx
import psutil
from transformers import AutoTokenizer

from examples.demo_assets import smollm2_checkpoint, wikipedia_articles
from research.common.tables import markdown_table
from research.common.untrained import untrained_config


WINDOW = {"context_length": 128, "target_length": 32, "last_k": 16, "max_gist_length": 24, "tail_length": 24}


@contextmanager
def untrained_pair():
    """A folder whose two halves are the checkpoint."""
    checkpoint = smollm2_checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        for half in (Path(folder, "untrained"), Path(folder, "untrained", GENERATOR_DIR)):
            half.mkdir()
            for file in checkpoint.iterdir():
                (half / file.name).symlink_to(file)
        untrained_config(**WINDOW).save(Path(folder, "untrained"))
        yield Path(folder, "untrained")


@contextmanager
def served(pair: Path, settings: list[str]):
    """A server of it, as its URL and process, with `name=value` for the flags of `trl-gist serve`."""
    flags = [part for each in settings for part in f"--{each}".split("=", 1)]
    command = [sys.executable, "-m", "trl_gist.cli", "serve", str(pair), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"(http://\S+)/v1", line)
            if found is None:
                sys.exit(f"The server said {line!r}, and not where it is.")
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()


def contexts_of(pair: Path) -> Iterator[list[int]]:
    """Token ids of as many contexts as the demo's articles have, none twice."""
    length, tokenizer = PairConfig.load(pair).context_length, AutoTokenizer.from_pretrained(pair)
    for article in wikipedia_articles().shuffle(seed=0):
        ids = literal_ids(tokenizer, article["text"])
        yield from (ids[start : start + length] for start in range(0, len(ids) - length + 1, length))


async def ask(client: httpx.AsyncClient, contexts: Iterator[list[int]], answers: list[dict]):
    """One client's requests, one after the other."""
    for context in contexts:
        started = time.perf_counter()
        try:
            response = await client.post("/v1/compress", json={"input": context})
            found = response.json()["usage"] if response.status_code == 200 else {"error": response.text}
        except httpx.HTTPError as error:
            found = {"error": repr(error)}
        answers.append({"seconds": time.perf_counter() - started, **found})


async def measure(url: str, process: psutil.Process, clients: int, contexts: list[list[int]]) -> dict:
    answers, shared, cpu = [], iter(contexts), sum(process.cpu_times()[:2])
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=3600, limits=limits) as client:
        started = time.perf_counter()
        await asyncio.gather(*(ask(client, shared, answers) for _ in range(clients)))
        seconds = time.perf_counter() - started
    good = [answer for answer in answers if "prompt_tokens" in answer]
    if not good:
        sys.exit(f"All {len(answers)} requests of {clients} clients failed, the last with: {answers[-1]['error']}")
    waited = sorted(answer["seconds"] for answer in good)
    return {
        "clients": clients,
        "requests": len(answers),
        "errors": len(answers) - len(good),
        "gists_per_s": len(good) / seconds,
        "tokens_per_s": sum(answer["prompt_tokens"] for answer in good) / seconds,
        "gist_tokens": statistics.mean(answer["completion_tokens"] for answer in good),
        "p50_s": statistics.median(waited),
        "p95_s": waited[round(0.95 * (len(waited) - 1))],
        "cpu_s_per_gist": (sum(process.cpu_times()[:2]) - cpu) / len(good),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="?", type=Path, help="a folder that `GistTrainer.save_model` wrote")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="at a time (default: 1 8 32)")
    parser.add_argument(
        "--requests",
        type=int,
        nargs="+",
        default=[64],
        help="in all, one number or one for each of --clients (default: 64)",
    )
    parser.add_argument("--serve", nargs="*", default=[], metavar="NAME=VALUE", help="flags of `trl-gist serve`")
    parser.add_argument("--output", help="JSON file for every number")
    args = parser.parse_args()
    requests = args.requests * len(args.clients) if len(args.requests) == 1 else args.requests
    if len(requests) != len(args.clients):
        parser.error(
            f"--requests has {len(requests)} numbers for {len(args.clients)} of --clients: give one for each."
        )
    settings = [f"max_requests={max(args.clients)}", *args.serve]
    with nullcontext(args.pair) if args.pair else untrained_pair() as pair, served(pair, settings) as (url, process):
        contexts = contexts_of(pair)
        asyncio.run(measure(url, process, 1, list(itertools.islice(contexts, 1))))  # warm
        rows = [
            asyncio.run(measure(url, process, clients, list(itertools.islice(contexts, count))))
            for clients, count in zip(args.clients, requests, strict=True)
        ]
    print_table(rows)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1))


def print_table(rows: list[dict]):
    head = ["clients", "requests", "errors", "gists/s", "tokens compressed/s", "p50, s", "p95, s"]
    head += [f"times {rows[0]['clients']} at a time", "server's CPU, s a gist", "tokens a gist"]
    print(
        *markdown_table(
            head,
            [
                [
                    *(str(row[name]) for name in ("clients", "requests", "errors")),
                    f"{row['gists_per_s']:.2f}",
                    f"{row['tokens_per_s']:,.0f}",
                    *(f"{row[name]:.1f}" for name in ("p50_s", "p95_s")),
                    f"{row['gists_per_s'] / rows[0]['gists_per_s']:.2f}",
                    f"{row['cpu_s_per_gist']:.2f}",
                    f"{row['gist_tokens']:.1f}",
                ]
                for row in rows
            ],
        ),
        sep="\n",
    )


if __name__ == "__main__":
    main()
