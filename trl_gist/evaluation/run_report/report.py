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
The report of a run: one HTML page that needs nothing but itself.

Everything on it comes from the run's folder, so it can be made while the run goes on, after a kill, or years later; no
model is loaded. What the folder does not hold, the page names.
"""

import os
import re
import time
from datetime import datetime, timedelta
from pathlib import Path

from ...common.arguments import truth
from ...common.files import replace_file
from ...common.statistics import is_number
from ...version import __version__
from ..gists.pattern_plots import visible
from ..pages.labels import CONTROLS, count_label, reader_labels
from ..pages.render import headline, measure, measure_of, number, render_page, spread, without_folders
from .patterns import draw_gists
from .plots import draw_run, series, smoothing_window
from .run_folder import Run, read_run


MARKER = "<!-- trl-gist report -->"

_MAX_GALLERY_STEPS = 16
_LABELS = reader_labels("generator", "teacher")
_MEASURES = {
    "teacher_kl": "KL(teacher ‖ generator), with the gist",
    "null_teacher_kl": "the same with an empty gist",
    **{f"nll_{name}": f"NLL, {_LABELS[name]}" for name in ("teacher", "tail", "last_k", "gist", "null", "shuffled")},
    "gain_over_null": f"the gist's gain over {CONTROLS['null']}",
    **{f"gain_over_{name}": f"… over {CONTROLS[name]}" for name in ("shuffled", "last_k", "tail")},
    "gap_closed_last_k": "gap closed, against the teacher's last K",
    "gap_closed_null": "gap closed, against an empty gist",
    "exact": "share of targets written token for token",
    "gist_length": "tokens a gist",
    "gist_rate": "gist rate, |Z|/|X|",
    "total_rate": "total rate, all that the generator reads / |X|",
}
# Where each target has a cue of its own
_MEASURES_AFTER_CUES = {
    **_MEASURES,
    **{f"nll_{name}": f"NLL, {reader_labels('generator', 'teacher', cues=True)[name]}" for name in ("tail", "last_k")},
    "gain_over_last_k": "… over the frozen teacher on the cue alone",
    "gap_closed_last_k": "gap closed, against the teacher's cue alone",
}
_OVER_TIME = ("null", "shuffled", "tail")
# What a reader wants to know of the moment an alarm went off
_ALARM_FIGURES = {"gist_length": "tokens a gist", "log_prob_gain": "gain", "null_teacher_kl": "KL, empty gist"}


def write_report(run_dir: str | os.PathLike, output: str | os.PathLike | None = None, overwrite: bool = False) -> Path:
    """
    Writes the page of a run.

    Args:
        run_dir (`str` or `os.PathLike`):
            The run's `output_dir`. The run may be finished, killed, or still going on.
        output (`str` or `os.PathLike`, *optional*):
            Defaults to `report.html` in `run_dir`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to overwrite a file that is not an earlier report.

    Returns:
        `Path`: What it wrote.

    Raises:
        ValueError: if the folder holds no run, or `output` is another file or in no folder.
    """
    overwrite = truth("overwrite", overwrite)
    output = Path(run_dir, "report.html") if output is None else Path(output)
    run = read_run(run_dir)
    if not output.absolute().parent.is_dir():
        raise ValueError(f"`--output` ({output}): there is no such folder.")
    if output.is_file() and not overwrite and MARKER not in output.read_text("utf-8", "replace")[:200]:
        raise ValueError(f"{output} is not a report of trl-gist. Choose another `--output`, or pass `--overwrite`.")
    replace_file(output, render(run).encode(errors="backslashreplace"))
    return output


def render(run: Run) -> str:
    """The page as HTML."""
    prefix = run.prefixes[0] if run.prefixes else "eval_"
    run.info["changed"] = _without_paths(run.info.get("changed", {}))
    config = run.info["changed"] | run.info.get("recipe", {})
    gists = _gists_at(run)
    return render_page(
        "run_report/report.html.jinja",
        marker=MARKER,
        name=run.name,
        run=run,
        config=config,
        status=_status(run),
        facts=_facts(run, config),
        verdict=_verdict(run.held_out, prefix),
        tables=[_held_out_table(run.held_out, name) for name in run.prefixes],
        plots=draw_run(run.train, run.held_out, prefix, config),
        smoothing=smoothing_window(len(run.train)),
        alarms=_alarms(run.train),
        gallery=_gallery(run, gists),
        patterns=draw_gists(run.info.get("windows", {}), gists, config.get("max_completion_length")),
        scalars=_scalars(run),
        version=__version__,
    )


def _without_paths(value):
    """Settings as anybody may read them. A prompt, which may begin with a slash, has braces."""
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return without_folders(value) if isinstance(value, str) and "{" not in value else value


# ---- The headline ----


def _status(run):
    logs = [*run.train, *run.held_out]
    last = max((log["step"] for log in logs), default=0)
    planned = run.info.get("max_steps")
    of = f" of {planned}" if planned else ""
    ended = run.info.get("ended")
    if ended:
        early = planned and ended["step"] < planned
        return ("stopped early, at" if early else "finished:") + f" step {ended['step']}{of}"
    if not run.train:
        return "evaluated, not trained" if run.held_out else "nothing logged yet"
    times = [log["time"] for log in logs if is_number(log.get("time"))]
    if not times:
        return f"logged up to step {last}{of}"
    ago = timedelta(seconds=round(time.time() - max(times)))
    return f"not finished: step {last}{of}, last logged {ago} before this page was made (still running, or killed)"


def _facts(run, config):
    models = {role: without_folders(name) for role, name in run.info.get("base_models", {}).items()}
    facts = []
    if models:
        same = len(set(models.values())) == 1
        value = next(iter(models.values())) if same else ", ".join(f"{name} ({role})" for role, name in models.items())
        facts.append(("model" if same else "models", value))
    if "context_length" in config:
        facts.append(
            (
                "window",
                f"{config['context_length']} tokens of context → gist of at most {config['max_completion_length']}; "
                f"the generator also sees the last {config['last_k']}; {config['target_length']} tokens of target",
            )
        )
    kinds = config.get("target_kinds") or {}
    if kinds.keys() - {"continuation"}:
        weights = ", ".join(f"{weight:g} {kind}" for kind, weight in kinds.items())
        facts.append(("paid for", f"at most {config.get('targets_per_context', 8)} targets a context: {weights}"))
    if config.get("windows_per_document", 1) > 1:
        facts.append(
            (
                "walks",
                f"{config['windows_per_document']} consecutive windows, each gist from one before it and the next "
                f"chunk; gains in later windows discounted by {config['gist_discount']}",
            )
        )
    times = [log["time"] for log in run.train if is_number(log.get("time"))]
    if run.info.get("started"):
        took = f", {timedelta(seconds=round(max(times) - min(times)))} from the first to the last log" if times else ""
        started = datetime.strptime(run.info["started"], "%Y-%m-%dT%H:%M:%S%z")
        facts.append(("started", f"{started:%Y-%m-%d %H:%M %z}{took}"))
    for resumed in run.info.get("resumed", []):
        facts.append(("resumed", f"from step {resumed['step']}"))
    return facts


def _verdict(held_out, prefix):
    """The held-out result in a sentence and in four figures; `None` without an evaluation."""
    logs = [log for log in held_out if is_number(log.get(f"{prefix}gain_over_null"))]
    if not logs:
        return None
    first, last = logs[0], logs[-1]
    words, tiles = headline(last, prefix)
    counts = {name: number(last.get(f"{prefix}{name}")) for name in ("windows", "contexts", "documents")}
    if f"{prefix}contexts" not in last:
        counts["contexts"] = None
    sentence = (
        f"On {count_label(counts, 'held-out windows')} the gist {words}. "
        "In nats per target token, ± standard error over documents."
    )
    kl, error = ([measure(log.get(f"{prefix}teacher_kl{end}"), None) for log in (first, last)] for end in ("", "_se"))
    if first["step"] < last["step"]:
        label = f"KL to the teacher (± {error[0]}, ± {error[1]}), steps {first['step']} and {last['step']}"
        tiles.append((label, f"{kl[0]} → {kl[1]}", "plain"))
    else:
        tiles.append((f"KL to the teacher (± {error[1]}), step {last['step']}", kl[1], "plain"))
    return {"sentence": sentence, "tiles": tiles, "step": last["step"]}


# ---- Tables ----


def _held_out_table(held_out, prefix):
    by_step = {log["step"]: log for log in held_out if f"{prefix}gain_over_null" in log}
    logs = [by_step[step] for step in sorted(by_step)]
    ends = logs if len(logs) < 3 else [logs[0], logs[-1]]

    def cells(log, names):
        return [measure_of(log, f"{prefix}{name}", digits=1 if name == "gist_length" else 3) for name in names]

    over_time = ("teacher_kl", "null_teacher_kl", *(f"gain_over_{name}" for name in _OVER_TIME), "gist_length")
    cues = prefix.endswith("/") or any(f"{prefix}contexts" in log for log in ends)
    labels = dict(_MEASURES_AFTER_CUES if cues else _MEASURES)
    if not any(f"{prefix}exact" in log for log in ends):
        del labels["exact"]
    columns = [cells(log, labels) for log in ends]
    return {
        "name": prefix.rstrip("_/"),
        "steps": [log["step"] for log in ends],
        "rows": list(zip(labels.values(), zip(*columns, strict=True), strict=True)),
        "headings": [labels[name] for name in over_time],
        "all": [(log["step"], cells(log, over_time)) for log in logs] if len(logs) > 2 else [],
    }


def _alarms(train):
    alarms = []
    for name in sorted({name for log in train for name in log if name.startswith("alarm/")}):
        steps, values = series(train, name)
        fired = [int(step) for step, value in zip(steps, values, strict=True) if value > 0]
        at_first = next((log for log in train if fired and log["step"] == fired[0] and name in log), {})
        figures = [
            f"{label} {number(at_first[figure])}"
            for figure, label in _ALARM_FIGURES.items()
            if is_number(at_first.get(figure))
        ]
        alarms.append(
            {"name": name.removeprefix("alarm/"), "logs": len(steps), "fired": fired, "figures": ", ".join(figures)}
        )
    return sorted(alarms, key=lambda alarm: -len(alarm["fired"]))


def _scalars(run):
    names = sorted({name for log in (*run.train, *run.held_out) for name in log} - {"step", "time"})
    rows = []
    for name in names:
        _, values = series([*run.train, *run.held_out], name)
        if len(values):
            rows.append((name, len(values), values[0], values[-1], values.min(), values.max()))
    return rows


# ---- Gists through training ----


def _gists_at(run):
    """The gist of each window at each step."""
    at = {}
    for gist in run.gists:
        known = at.get((gist["window"], gist["step"]), {})
        if "log_prob_gain" in gist or "log_prob_gain" not in known:  # an evaluation's comes with its scores
            at[gist["window"], gist["step"]] = gist
    return at


def _gallery(run, at):
    steps = sorted({step for _, step in at})
    shown = spread(steps, _MAX_GALLERY_STEPS)
    rows = []
    for name, window in run.info.get("windows", {}).items():
        words, cells, before = set(_words(window["context"])), [], None
        for step in shown:
            gist = at.get((name, step))
            cells.append(None if gist is None else _cell(gist, words, before))
            before = gist or before
        if any(cells):
            context, last_k = (visible(window[part]) for part in ("context", "last_k"))
            rows.append(
                {
                    "document": visible(str(window["document_id"])),
                    "context": context,
                    # The end of the context; what a question is about a passage, not its end, stands by itself
                    "end": re.sub(r"^\S*\s", "", context[-240:]),
                    "last_k": "" if context.endswith(last_k) else last_k,
                    "target": visible(window["target"]).strip(),
                    "cells": cells,
                }
            )
    return {"steps": shown, "sampled": len(steps), "rows": rows}


def _cell(gist, context_words, before):
    text = visible(gist["gist"])
    words = _words(gist["gist"])
    return {
        "pieces": [(piece, piece.casefold() in context_words) for piece in re.split(r"(\w+)", text) if piece],
        "length": gist["gist_length"],
        "words": len(words),
        "kept": sum(word in context_words for word in words),
        "gain": gist.get("log_prob_gain"),
        "as_before": before["step"] if before and before["gist"] == gist["gist"] else None,
    }


def _words(text):
    return [word.casefold() for word in re.findall(r"\w+", text)]
