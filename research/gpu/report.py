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

"""The tables of `check.py` for docs/PERFORMANCE.md, of nothing but what has run."""

import statistics

from trl_gist.common.tables import cell

from research.common.tables import TRAINERS, markdown_table, spread


MODELS = ("smollm2", "qwen3_4b")


def report(checks: dict[str, dict]) -> str:
    """Markdown, of each check's outcome and the results that some left, also those that did not come to their end."""
    results = {name: outcome["result"] for name, outcome in checks.items() if "result" in outcome}
    machine = results.get("prepare")
    if machine is None:
        return "\n".join([*outcomes(checks), ""])
    parts = [
        [f"### {machine['card']}", "", *facts(machine, results)],
        agreement(results),
        attention(results),
        *(steps(results, model, machine) for model in MODELS),
        memory(results, machine),
        flagship(results),
        outcomes(checks),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def name_of(model, machine):
    if machine["weights"] == "tiny":
        return "a tiny model"
    if model == "qwen3_4b":
        return "Qwen3-4B's shape, random weights"
    return "SmolLM2-135M's shape, random weights" if machine["weights"] == "random" else machine["weights"]


def facts(machine, results):
    versions = machine["versions"]
    rows = [
        ["memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB" if machine["memory_bytes"] else "the CPU's"],
        ["driver", machine["driver"] or "unknown"],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)],
        ["matrix product, bfloat16", f"{machine['matmul_flops'] / 1e12:,.3g} TFLOP/s"],
        ["copy, read and written", f"{machine['copied_bytes_per_second'] / 1e9:,.0f} GB/s"],
        ["small model", name_of("smollm2", machine)],
        ["text", machine["text_is"]],
    ]
    if "tests" in results:
        found = results["tests"]
        failed = ", ".join(f"`{name}`" for name in found["failed"])
        counts = f"{found['passed']} passed, {len(found['failed'])} failed"
        rows.append([f"fast tests on `{found['device']}`", f"{counts}: {failed}" if failed else counts])
    return markdown_table(["machine", ""], rows)


def agreement(results):
    if "shared_rows" not in results:
        return []
    found = results["shared_rows"]
    rows = [
        [
            f"{what}, {way}",
            f"{of['largest_log_prob_error']:.3f}",
            f"{of['mean_log_prob_error']:.4f}",
            f"{of['gradient_error']:.4f}",
            f"{1000 * of['seconds']:,.0f}",
            mebibytes(of["peak_bytes"]),
        ]
        for what in ("gists of a context", "targets of a gist")
        for way, of in found[what].items()
    ]
    head = ["bfloat16 against float32", "largest log-prob error", "mean", "gradient", "ms", "peak, MiB"]
    title = f"{found['contexts']} contexts, {found['gists']} gists or targets each, forward and backward:"
    return [title, "", *markdown_table(head, rows)]


def attention(results):
    if "attention" not in results:
        return []
    head = ["heads", "rows", "attention", "ms, forward + backward", "peak, MiB", "error against float32"]
    rows = []
    for row in results["attention"]["rows"]:
        if "not_run" in row:
            measured = [f"not run: {cell(row['not_run'])}", "", ""]
        else:
            only = " (forward only)" if row["forward_only"] else ""
            measured = [f"{row['milliseconds']:.2f}{only}", mebibytes(row["peak_bytes"]), f"{row['error']:.4f}"]
        rows.append([row["heads"], row["rows"], row["attention"], *measured])
    return markdown_table(head, rows)


def steps(results, model, machine):
    found = results.get(f"step_{model}")
    if found is None:
        return []
    arguments, phases = found["arguments"], found["phases"]
    rows = []
    for phase, of in phases.items():
        before, after = of["token_passes"]
        rows.append([phase, *(spread(of[name], 2) for name in ("naive_s", "gist_s", "ratios"))])
        rows[-1].append(f"{before:,} → {after:,}")
    whole = phases["whole step"]
    seconds = {kind: statistics.median(whole[f"{kind}_s"]) for kind in TRAINERS}
    passes = dict(zip(TRAINERS, whole["token_passes"], strict=True))
    rate = {kind: passes[kind] * arguments["documents"] / seconds[kind] for kind in TRAINERS}
    rows.append(["token-passes a second", *(f"{rate[kind]:,.0f}" for kind in TRAINERS), "", ""])
    share = {kind: found["reached_flops"][kind]["whole step"] / found["matmul_flops"] for kind in TRAINERS}
    rows.append(["MFU, of the matrix product's rate", *(f"{share[kind]:.1%}" for kind in TRAINERS), "", ""])
    if "peak_bytes" in found:
        naive, ours = found["peak_bytes"]["naive"], found["peak_bytes"]["gist"]
        ratio = f"{naive / ours:.1f}"
        rows.append(["peak memory, GiB", f"{naive / 2**30:.2f}", f"{ours / 2**30:.2f}", ratio, ""])
    title = (
        f"A step, {name_of(model, machine)}: X = {arguments['context']}, "
        f"Y = {arguments['target']}, |Z| = {arguments['gist']}, {arguments['documents']} documents × "
        f"{arguments['gists']} gists, {arguments['dtype']}:"
    )
    head = ["phase", *(f"{name}, s" for name in TRAINERS.values()), "ratio", "token-passes a document"]
    return [title, "", *markdown_table(head, rows)]


def memory(results, machine):
    rows = []
    for model in MODELS:
        if f"memory_{model}" in results:
            for phase, (estimate, measured) in results[f"memory_{model}"]["results"]["lora"].items():
                numbers = [f"{estimate / 2**30:.2f}", f"{measured / 2**30:.2f}"]
                rows.append(
                    [name_of(model, machine), phase, *numbers, f"{estimate / measured:.2f}" if measured > 0 else ""]
                )
    head = ["a step's peak by phase, GiB", "", "estimate of `--dry_run`", "measured", "ratio"]
    return markdown_table(head, rows) if rows else []


def flagship(results):
    if "flagship" not in results:
        return []
    found = results["flagship"]
    rows = [["steps", f"{found['step']} of {found['of']}"]]
    for name in ("step_time", "kl_gain", "log_prob_gain", "gist_length", "eval_kl_gain"):
        values = [entry[name] for entry in found["log"] if name in entry]
        if values:
            few = max(len(values) // 5, 1)
            first, last = statistics.mean(values[:few]), statistics.mean(values[-few:])
            rows.append([f"`{name}`, first and last fifth", f"{first:.4g}, {last:.4g}"])
    return markdown_table(["the flagship", ""], rows)


def outcomes(checks):
    rows = [
        [name, of["status"], f"{of['seconds']:.0f}" if "seconds" in of else "", cell(of.get("reason", ""))]
        for name, of in checks.items()
    ]
    return markdown_table(["check", "outcome", "seconds", "why"], rows)


def mebibytes(size):
    return "" if size is None else f"{size / 2**20:,.0f}"
