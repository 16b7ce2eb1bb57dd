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
What readers, controls and comparisons are called, in tables, plots and on pages alike. What a gist looks like has its
labels beside the measures: [`~evaluation.gists.patterns.PATTERNS`], [`~evaluation.gists.transfer.GAINS`].
"""


def reader_labels(
    generator: str = "G", teacher: str = "T", last_k: str | int = "K", cues: bool = False
) -> dict[str, str]:
    """
    Those who predict a target, by their names in [`~evaluation.PairReadings`]. G sees the last K tokens whatever else
    it reads. The arguments say how the two models and the number are called where nothing explains the letters, and
    whether there are several targets, each with a cue in the place of those tokens.
    """
    labels = {
        "teacher": f"{teacher}: whole context",
        "full": f"{generator}: whole context",
        "gist": f"{generator}: gist",
        "tail": f"{teacher}: last {last_k}+|Z|",
        "last_k": f"{teacher}: last {last_k}",
        "generator_only": f"{generator} alone: empty gist",
        "null": f"{generator}: empty gist",
        "random": f"{generator}: random tokens",
        "shuffled": f"{generator}: another's gist",
    }
    if cues:
        labels |= {"tail": f"{teacher}: last |Z|, cue", "last_k": f"{teacher}: cue alone"}
    return labels


def count_label(measures: dict, windows: str = "windows") -> str:
    """How much was read: windows, or targets of windows that have several."""
    if measures.get("contexts") is None:
        return f"{measures['windows']} {windows} of {measures['documents']} documents"
    return f"{measures['windows']} targets of {measures['contexts']} {windows} of {measures['documents']} documents"


def dropped_label(measures: dict) -> str | None:
    """What `target_floor` left out of several targets, if there was one."""
    if measures.get("targets_dropped") is None:
        return None
    dropped = sum(measures["targets_dropped"].values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in measures["targets_dropped"].items())
    return (
        f"{dropped} of {measures['windows'] + dropped} targets left out{f' ({kinds})' if kinds else ''}: the teacher "
        f"gains less than {measures['target_floor']:g} nats per token on them from the context"
    )


# What a gist is held against, as a sentence has it
CONTROLS = {
    "null": "an empty gist",
    "shuffled": "another document's gist",
    "generator_only": "a generator trained without gists",
    "tail": "the frozen teacher on as many tokens, verbatim",
    "last_k": "the frozen teacher on the last K tokens",
}

# Who reads in a comparison of compressors, as a title
COMPARISON_READERS = {
    "teacher": "Read by the frozen teacher",
    "generator": "Read by the co-trained generator",
    "own generator": "Read by a generator of its own",
}
