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
A long document through a session of a trained pair: memory and time as it grows, and every compaction listed.

python -m examples.long_document runs/demo-1                            4,096 tokens of Wikipedia articles
python -m examples.long_document runs/demo-1 --measure                  and what each compaction cost: not run yet
OMP_NUM_THREADS=1 python -m examples.long_document runs/demo-1 --tokens 65536 --plot long_document.png

The last printed, with a pair of `make demo` on one core that other work shared (docs/PERFORMANCE.md): 753 compactions,
27.9 CPU seconds per 1,000 tokens in the first half and 28.5 in the second, resident memory from 982 to 1,033 MB
(+5.2%).
"""

import argparse
import time

from trl_gist import GistCompactor
from trl_gist.evaluation import standard_error

import psutil

from examples.demo_assets import wikipedia_articles


def article_tokens(compactor: GistCompactor, count: int) -> list[int]:
    """The first `count` tokens of the demo's articles, one after the other."""
    ids = []
    for article in wikipedia_articles():
        ids += compactor.token_ids(article["text"] + "\n\n", "An article")
        if len(ids) >= count:
            return ids[:count]
    raise ValueError(f"`--tokens` ({count}): the articles have {len(ids)}. Ask for fewer.")


def read(session, ids: list[int], step: int) -> list[dict]:
    """
    Appends the tokens, `step` at a time, and notes resident memory, time, and time of all cores in this process, which
    other work on the machine does not lengthen.
    """
    process, rows = psutil.Process(), []
    for start in range(0, len(ids), step):
        started, cpu_started = time.perf_counter(), time.process_time()
        piece = ids[start : start + step]
        session.append(piece)
        rows.append(
            {
                "tokens": session.position,
                "seconds_per_1k": 1000 * (time.perf_counter() - started) / len(piece),
                "cpu_seconds_per_1k": 1000 * (time.process_time() - cpu_started) / len(piece),
                "rss_mb": process.memory_info().rss / 1e6,
                "compactions": len(session.history),
            }
        )
        line = (
            "{tokens:>7,} tokens  {seconds_per_1k:6.2f} s/1k  {cpu_seconds_per_1k:6.2f} CPU s/1k  {rss_mb:7.1f} MB  "
        )
        print((line + "{compactions:>4}").format(**rows[-1]), flush=True)
    return rows


def print_compactions(session):
    for row in session.history:
        spans = ", ".join(f"{start:,}-{stop:,}" for start, stop in row.spans)
        cost = "" if row.cost is None else f"  {row.cost:+.3f} nats/token"
        print(f"{row.index:>4}  {spans:>15} → {row.gist_tokens:>3} tokens  {row.seconds:5.2f} s{cost}  {row.gist!r}")


def print_summary(session, rows: list[dict]):
    # The first steps fill the window and the allocator's pools
    settled = rows[min(2, len(rows) - 1) :]
    memory = [row["rss_mb"] for row in settled]
    half = len(settled) // 2
    folded = sum(row.tokens_in for row in session.history)
    print(f"{session.position:,} tokens: {folded:,} in {len(session.history)} compactions, {len(session.live)} live")
    print(f"resident memory after the first steps: {min(memory):.1f} to {max(memory):.1f} MB, "
          f"{max(memory) / memory[0] - 1:+.1%} over where it started")  # fmt: skip
    for name, label in (("seconds_per_1k", "seconds"), ("cpu_seconds_per_1k", "CPU seconds")):
        early, late = (sum(row[name] for row in part) / max(1, len(part)) for part in (settled[:half], settled[half:]))
        print(f"{label} per 1k tokens: {early:.2f} in the first half of them, {late:.2f} in the second")
    costs = [row.cost for row in session.history if row.cost is not None]
    if costs:
        error = standard_error(costs, range(len(costs)))
        print(f"cost of a compaction: {sum(costs) / len(costs):+.3f} ± {error:.3f} nats per token over {len(costs)}")


def plot(rows: list[dict], path: str):
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 5), layout="constrained")
    tokens = [row["tokens"] for row in rows]
    for axes, name, label in (
        (above, "rss_mb", "resident memory, MB"),
        (below, "cpu_seconds_per_1k", "CPU seconds per 1,000 tokens"),
    ):
        values = [row[name] for row in rows]
        axes.plot(tokens, values)
        axes.set(ylabel=label, ylim=(0, 1.1 * max(values)))
    below.set(xlabel="tokens read")
    figure.savefig(path)
    print(f"plotted in {path}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("pair", help="a folder that `GistTrainer.save_model` wrote")
    parser.add_argument("--tokens", type=int, default=4096, help="length of the document")
    parser.add_argument("--step", type=int, default=1024, help="tokens appended at a time")
    parser.add_argument("--gist_budget", type=int, help="the most tokens of a chain of gists, in place of one")
    parser.add_argument("--window", type=int, help="the most tokens that the generator reads")
    parser.add_argument("--measure", action="store_true", help="measure what each compaction cost")
    parser.add_argument("--new_tokens", type=int, default=32, help="that the generator writes in the end")
    parser.add_argument("--plot", metavar="FILE", help="plot memory and time")
    args = parser.parse_args()
    compactor = GistCompactor.from_pretrained(args.pair)
    ids = article_tokens(compactor, args.tokens)
    session = compactor.session(window=args.window, gist_budget=args.gist_budget, measure=args.measure)
    rows = read(session, ids, args.step)
    print(f"The document goes on: {session.generate(args.new_tokens).text!r}")
    print_compactions(session)
    print_summary(session, rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
