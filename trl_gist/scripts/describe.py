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


"""What `trl-gist evaluate` says of the gists themselves: what they look like, and who else can read them."""

import argparse

from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..common.statistics import is_number, with_error
from ..evaluation import PairReadings
from ..evaluation.folder import PLOTS_DIR, EvaluationFolder
from ..evaluation.gists.pattern_plots import draw_survival
from ..evaluation.gists.patterns import PATTERNS, gist_patterns, summarize_patterns, survival
from ..evaluation.gists.transfer import as_text, read_as_text, read_by_pair, summarize_transfer, transfer_table
from ..evaluation.pages.plots import save_figure
from ..evaluation.quality.measures import with_means


def describe_gists(rows: list[dict], readings: PairReadings, folder: EvaluationFolder) -> dict[str, float]:
    """Prints the patterns of the first setting's gists and draws which places survive; returns [`summarize_patterns`]."""
    labelled, patterns = [], []
    for row in rows:
        last_k, budget = row["setting"]
        most = readings.compactor.pair.max_gist_length if budget is None else budget
        label = f"K = {row['last_k']}, ≤ {most} tokens"
        labelled.append({"context": row["context"], "gist": row["gist"], "label": label})
        if (last_k, budget) == readings.settings[0]:
            found = gist_patterns(
                row["context"], row["gist"], row["target"], row["gist_length"], most, row["summarizer_log_prob"]
            )
            patterns.append({"document_id": row["document_id"], **found})
    save_figure(draw_survival(survival(labelled, by="label"), ylabel=""), folder.path / PLOTS_DIR / "survival")
    summary = summarize_patterns(patterns)
    table = Table(title="What the gists look like", box=box.SIMPLE, title_justify="left", show_header=False)
    for name, label in PATTERNS.items():
        if is_number(summary[name]):
            table.add_row(label, with_error(summary[name], summary[f"{name}_se"]))
    Console().print(table)
    return summary


def ask_other_readers(args: argparse.Namespace, rows: list[dict], readings: PairReadings) -> dict[str, dict]:
    """Prints and returns what the gists, as text, gain the teacher and every one of `--readers`."""
    rows = [with_means(row) for row in rows if tuple(row["setting"]) == readings.settings[0]]
    tokenizer = readings.compactor.tokenizer
    texts = as_text(tokenizer, rows)
    summaries = {
        "G, its own prompt": summarize_transfer(read_by_pair(rows, texts)),
        "T, as text": summarize_transfer(read_as_text(readings.teacher, tokenizer, texts, args.batch_size)),
    }
    for name in args.readers:
        model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=args.trust_remote_code).eval()
        reader = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        model = model.to(readings.teacher.device)
        summaries[f"{name}, as text"] = summarize_transfer(read_as_text(model, reader, texts, args.batch_size))
    console = Console()
    console.print(transfer_table(summaries))
    same = sum(text["same_tokens"] for text in texts)
    console.print(f"{same} of {len(texts)} gists give the same tokens back when their text is tokenised again.")
    return summaries
