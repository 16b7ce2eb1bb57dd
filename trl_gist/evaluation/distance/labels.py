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

"""What a walk's measures are called in tables, plots and on the page, and what they say in words."""

from ...common.statistics import is_number, measured, with_error
from ..pages.labels import reader_labels


def arm_labels(report: dict, generator: str = "G", teacher: str = "T") -> dict[str, str]:
    """
    Arms in the order in which tables show them, from all text to the recursive gists; see [`~pages.labels.reader_labels`].
    """
    readers = reader_labels(generator, teacher, report["geometry"]["last_k"])
    labels = {
        "full": f"{teacher}: all text so far",
        "window": f"{teacher}: last {report['geometry']['context_length']}, verbatim",
        "tail": f"{readers['tail']}, verbatim",
        "last_k": f"{readers['last_k']}, sliding window",
        "zero_shot": f"{teacher}: its own rolling summary",
        "zero_shot_g": f"{generator}: {teacher}'s rolling summary",
        "null": f"{readers['null']}, sliding window",
        "stale": f"{generator}: the first window's gist",
        "single": f"{generator}: gist of the chunk alone",
        "pair": f"{generator}: rolling gist",
    }
    for name in report["pairs"]:
        labels |= {f"{name}_null": f"{name}: empty gist", name: f"{name}: rolling gist"}
    return labels


def span(first: int, last: int) -> str:
    """Both ends, or the only one."""
    return f"{first}" if first == last else f"{first}-{last}"


def stretch_label(stretch: dict) -> str:
    """Windows counted from 1."""
    return span(stretch["first"] + 1, stretch["last"] + 1)


def verdict_sentences(report: dict, walker: str) -> list[str]:
    """
    Where a pair's rolling gist is worth something, where it is not, and whether that shrinks: one sentence for each of
    the two sliding windows, its own generator's and the teacher's, one for the slope, one for the other arms, and those of
    [`recall_sentences`].
    """
    label, gains, sentences = arm_labels(report)[walker], report["gains"][walker], []
    for control, found in report["verdicts"][walker].items():
        whose = "T's" if control == "last_k" else "its own"
        if not found["of"]:
            sentences.append(
                f"{label}: too few documents reach a second window to hold it against {whose} sliding window."
            )
            continue
        unit = "windows" if report["errors_over"] == "documents" else "stretches of windows"
        sentence = (
            f"{label}: from the second window on {measured(gains, control, sign='+')} nats per token against {whose} sliding "
            f"window; below it by two standard errors in {found['of'] - len(found['unclear'])} of {found['of']} {unit}"
        )
        if found["unclear"]:
            sentence += f", not at window {_listed(found['unclear'])}"
        if found["since"] is not None:
            sentence += f": NOT BELOW IT from window {found['since'] + 1} on"
        sentences.append(f"{sentence}.")
    slope = report["slopes"][walker]
    sentences.append(
        f"{label}: its gain over its own sliding window changes by {measured(slope, 'slope', 2, '+', 1e3)} · 10⁻³ "
        f"nats per token with each window, {_direction(slope)} (within {slope['documents']} documents)."
    )
    others = ("single" if walker == "pair" else "pair", "stale", "zero_shot", "tail", "window")
    against = "; ".join(f"{measured(gains, arm, sign='+')} over {arm_labels(report)[arm]}" for arm in others)
    sentences.append(f"{label}: from the second window on {against}.")
    return [*sentences, *recall_sentences(report, walker)]


def recall_lines(report: dict) -> list[tuple[str, list[str], bool]]:
    """Of the table of targets of earlier chunks: what a line is of, its cells by age, and whether it is of a pair's rolling
    gist."""
    recall, labels = report["recall"], arm_labels(report)
    lines = [("targets", [f"{count:,}" for count in recall["of"]], False)]
    for arm in labels:
        if arm in recall["arms"]:
            kl = recall["arms"][arm]
            cells = [with_error(*cell) for cell in zip(kl["kl"], kl["kl_se"], strict=True)]
            lines.append((labels[arm], cells, arm in recall["ahead"]))
    for walker, ahead in recall["ahead"].items():
        for arm in _rivals(walker):
            cells = [with_error(*cell, sign="+") for cell in zip(ahead[arm]["kl"], ahead[arm]["kl_se"], strict=True)]
            lines.append((f"{labels[walker]}, ahead of {labels[arm]}", cells, False))
    return lines


def recall_sentences(report: dict, walker: str) -> list[str]:
    """Whether a pair's rolling gist is ahead on targets of earlier chunks, and of which; one sentence for each rival, or none
    where nothing older than a window's own chunk was asked."""
    recall, labels, sentences = report["recall"], arm_labels(report), []
    older = [place for place, age in enumerate(recall["ages"] if recall else ()) if age > 0]
    for arm in _rivals(walker) if older else ():
        ahead = recall["ahead"][walker][arm]
        clear = [place for place in older if _is_clear(ahead["kl"][place], ahead["kl_se"][place])]
        values = ", ".join(with_error(ahead["kl"][place], ahead["kl_se"][place], sign="+") for place in older)
        said = "each" if clear == older else _and(recall["ages"][place] for place in clear) if clear else "none"
        sentences.append(
            f"{labels[walker]}: on what was said {_and(recall['ages'][place] for place in older)} windows ago {values} nats "
            f"per token nearer to T on all text so far than {labels[arm]}; beyond two standard errors for {said}."
        )
    return sentences


def _is_clear(value, error):
    """Whether it is beyond two standard errors, as far as there is one."""
    return is_number(error) and value > 2 * error


def _rivals(walker):
    return ("single" if walker == "pair" else "pair"), "zero_shot_g"


def _and(ages):
    *first, last = map(str, ages)
    return f"{', '.join(first)} and {last}" if first else last


def _direction(slope):
    if slope["slope"] is None or slope["slope_se"] is None or not slope["slope_se"] > 0:
        return "with an unknown error"
    if abs(slope["slope"]) <= 2 * slope["slope_se"]:
        return "which is no change beyond two standard errors"
    return "so it GROWS" if slope["slope"] > 0 else "so it SHRINKS"


def _listed(windows):
    """Windows from 1 on, runs of them as first-last."""
    runs = []
    for window in windows:
        if runs and runs[-1][1] == window - 1:
            runs[-1][1] = window
        else:
            runs.append([window, window])
    return ", ".join(span(first + 1, last + 1) for first, last in runs)
