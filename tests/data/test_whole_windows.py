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
"""Windows of any script: cut between two characters, without control tokens; of plain text as they ever were."""

import pytest
from any_text import CONTROLS, TOKENIZERS, long_texts
from datasets import Dataset
from hypothesis import given, settings
from tiny import make_documents

from trl_gist.common.geometry import Geometry
from trl_gist.common.tokens import characters_of, literal_ids, special_ids
from trl_gist.data.columns import ColumnRules
from trl_gist.data.targets import TargetSpec, make_targets
from trl_gist.data.windows import WindowSpec, prepare_windows


each_vocabulary = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
GEOMETRY = Geometry(context_length=20, chunk_length=9, last_k=4, target_length=6)
SPECS = {
    "single": WindowSpec(16, 6, 4, None, None),
    "overlapping": WindowSpec(16, 6, 4, 5, None),
    "walks": WindowSpec(20, 6, 4, None, None, windows_per_document=3, geometry=GEOMETRY),
}
KINDS = TargetSpec((("continuation", 1.0), ("fact", 1.0), ("recall", 1.0), ("far", 1.0)), 100, 6, 7)


def windows_of(tokenizer, text, spec):
    stream = Dataset.from_dict({"text": [text]}).to_iterable_dataset()
    try:
        return list(prepare_windows(stream, tokenizer, spec, rules=ColumnRules(spec.walks, None))[0])
    except ValueError as error:
        assert "gave no window" in str(error)
        return []


def plain_windows(ids, spec):
    """As they were cut before there was anything but one token a character."""
    rows = []
    for start in range(0, len(ids) - spec.length + 1, spec.window_stride or spec.length):
        cut = ids[start : start + spec.length]
        end = spec.geometry.before(0) if spec.walks else spec.context_length
        row = {"context_ids": cut[:end], "last_k_ids": cut[end - spec.last_k : end]}
        row["target_ids"] = cut[end : end + spec.target_length]
        rows.append({**row, "walk_ids": cut} if spec.walks else row)
    return rows


@each_vocabulary
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_windows_of_plain_text_are_slices_as_ever(tokenizer, spec):
    for text in make_documents(2):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows = windows_of(tokenizer, text, spec)
        expected = plain_windows(ids, spec)
        assert len(rows) > 1 and [{name: row[name] for name in expected[0]} for row in rows] == expected
        assert [row["prompt"] for row in rows] == [tokenizer.decode(row["context_ids"]) for row in expected]


@each_vocabulary
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@settings(max_examples=15)
@given(text=long_texts)
def test_no_part_of_a_window_ends_inside_a_character(tokenizer, spec, text):
    characters, special = characters_of(tokenizer), special_ids(tokenizer)
    for row in windows_of(tokenizer, text, spec):
        context, last_k, target = (row[f"{name}_ids"] for name in ("context", "last_k", "target"))
        assert 0 < len(context) <= spec.context_length and 0 < len(target) <= spec.target_length
        assert len(last_k) <= spec.last_k and context[len(context) - len(last_k) :] == last_k
        for ids in (context, last_k, target, context[: len(context) - len(last_k)], row.get("walk_ids", [])):
            assert characters.whole(ids) == ids and special.isdisjoint(ids)
            assert "\ufffd" not in tokenizer.decode(ids)
        assert "\ufffd" not in row["prompt"]
        assert context + target == row.get("walk_ids", context + target)[: len(context + target)]


@each_vocabulary
@settings(max_examples=15)
@given(text=long_texts)
def test_no_target_begins_or_ends_inside_a_character(tokenizer, text):
    ids, characters = literal_ids(tokenizer, text), characters_of(tokenizer)
    for start in {0, characters.cut(ids, 11), characters.cut(ids, 40)}:
        for target in make_targets(tokenizer, ids, start, SPECS["single"], KINDS):
            for name in ("cue_ids", "target_ids", "after_ids"):
                assert characters.whole(target[name]) == target[name]
            assert 0 < len(target["target_ids"])


@each_vocabulary
@pytest.mark.parametrize("control", CONTROLS)
def test_control_tokens_that_a_dataset_spells_are_text_unless_they_are_meant(tokenizer, control):
    ids = {tokenizer.convert_tokens_to_ids(control)}
    text = f"In 1854{control} the physician {control}John Snow marked " * 5
    for meant in (False, True):
        spec = WindowSpec(16, 6, 4, None, None, parse_special_tokens=meant)
        ready = Dataset.from_list([{"context": text, "last_k": control + "a", "target": "b" + control}])
        rows = [*windows_of(tokenizer, text, spec), *prepare_windows(ready, tokenizer, spec)[0]]
        assert len(rows) > 2
        assert any(ids & {*row["context_ids"]} for row in rows) == meant
        assert bool(ids & {*rows[-1]["last_k_ids"]}) == bool(ids & {*rows[-1]["target_ids"]}) == meant
