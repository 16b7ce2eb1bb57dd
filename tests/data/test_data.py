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

"""Documents become windows by token ids, the same for map-style datasets and streams."""

import pytest
from datasets import Dataset, IterableDataset
from tiny import PARAGRAPH, ids_of, make_documents, stream

from trl_gist.data.columns import WINDOW_COLUMNS
from trl_gist.data.windows import prepare_windows


IDS = ("context_ids", "last_k_ids", "target_ids")


@pytest.fixture
def cut(make_args, tokenizer):
    def cut(dataset, **args):
        windows, skipped = prepare_windows(dataset, tokenizer, make_args(**args).window_spec(tokenizer))
        return list(windows), skipped

    return cut


def test_windows_are_slices_of_the_documents_token_ids(cut, tokenizer, dataset_of):
    texts = make_documents(3)
    windows, _ = cut(dataset_of([{"text": text} for text in texts]))
    expected = []
    for document, text in enumerate(texts):
        ids = ids_of(tokenizer, text)
        for start in range(0, len(ids) - 31, 32):
            context, target = ids[start : start + 24], ids[start + 24 : start + 32]
            expected.append((document, context, context[-4:], target))
    assert len(expected) > 6
    assert [(w["document_id"], *(w[name] for name in IDS)) for w in windows] == expected
    assert [w["prompt"] for w in windows] == [tokenizer.decode(context) for _, context, _, _ in expected]
    assert all(set(w) == set(WINDOW_COLUMNS) for w in windows)


def test_by_default_windows_do_not_overlap(cut, tokenizer):
    text = make_documents(1)[0]
    windows, _ = cut(Dataset.from_dict({"text": [text]}))
    joined = [token for window in windows for token in window["context_ids"] + window["target_ids"]]
    assert joined == ids_of(tokenizer, text)[: len(joined)]


def test_stride_sets_the_distance_between_window_starts(cut, tokenizer, dataset_of):
    text = make_documents(1)[0]
    ids = ids_of(tokenizer, text)
    windows, _ = cut(dataset_of([{"text": text}]), window_stride=5)
    assert [w["context_ids"] for w in windows] == [ids[s : s + 24] for s in range(0, len(ids) - 31, 5)]


def test_max_windows_takes_the_first_of_each_document(cut, dataset_of):
    rows = [{"text": text} for text in make_documents(3)]
    every, _ = cut(dataset_of(rows))
    two, _ = cut(dataset_of(rows), max_windows_per_document=2)
    assert [w["document_id"] for w in two] == [0, 0, 1, 1, 2, 2]
    assert two == [w for d in range(3) for w in [v for v in every if v["document_id"] == d][:2]]


def test_a_document_of_exactly_one_window_is_kept_and_one_token_less_is_too_short(cut, tokenizer, dataset_of):
    ids = ids_of(tokenizer, PARAGRAPH)
    # Texts whose tokens are known: prefixes that tokenise back to themselves
    texts = {n: tokenizer.decode(ids[:n]) for n in (31, 32)}
    assert {n: len(ids_of(tokenizer, text)) for n, text in texts.items()} == {31: 31, 32: 32}
    windows, skipped = cut(dataset_of([{"text": texts[31]}, {"text": texts[32]}]))
    assert [w["document_id"] for w in windows] == [1]
    assert skipped.counts == {"too short": 1}


def test_of_documents_that_are_all_too_short_the_length_of_the_longest_is_said(
    cut, tokenizer, dataset_of, monkeypatch
):
    ids = ids_of(tokenizer, PARAGRAPH)
    rows = [{"text": text} for text in ("short", tokenizer.decode(ids[:31]), None, tokenizer.decode(ids[:17]))]
    with pytest.raises(ValueError, match=r"24 \+ 8 tokens\. .* longer documents\. The longest has 31\.$"):
        cut(dataset_of(rows))
    monkeypatch.setattr("trl_gist.data.windows._SHORT_ONES", 1)
    with pytest.raises(ValueError, match=rf"The longest of the first 1 has {len(ids_of(tokenizer, 'short'))}\.$"):
        cut(dataset_of(rows))


def test_map_style_and_streaming_give_the_same_windows_and_counts(cut):
    rows = [{"text": text, "source": f"s{i}"} for i, text in enumerate(make_documents(40))]
    for index in (0, 3, 17):
        rows[index] = {"text": "too short", "source": "short"}
    rows[20] = {"text": None, "source": "null"}
    kept, skipped = cut(Dataset.from_list(rows))
    streamed, streamed_skipped = cut(stream(rows))
    assert kept == streamed
    assert skipped.counts == streamed_skipped.counts == {"too short": 3, "null": 1}
    assert skipped.total == 4 and "4 rows skipped" in str(skipped) and "3 too short" in str(skipped)


def test_other_columns_and_the_users_document_ids_are_kept(cut, dataset_of):
    rows = [{"text": t, "title": f"title {i}", "document_id": f"doc-{i}"} for i, t in enumerate(make_documents(2))]
    windows, _ = cut(dataset_of(rows))
    assert {(w["document_id"], w["title"]) for w in windows} == {("doc-0", "title 0"), ("doc-1", "title 1")}


def test_ready_windows_as_text_and_as_ids_are_the_same(cut, tokenizer, dataset_of):
    rows = [
        {"context": "Broad Street in Soho", "last_k": " Soho", "target": ", where"},
        {"context": "the handle of the pump", "last_k": " pump", "target": " was taken off"},
    ]
    as_ids = [{name: ids_of(tokenizer, text) for name, text in row.items()} for row in rows]
    windows, skipped = cut(dataset_of(rows))
    assert windows == cut(dataset_of(as_ids))[0]
    assert [tuple(w[name] for name in IDS) for w in windows] == [tuple(row.values()) for row in as_ids]
    assert skipped.total == 0


def test_ready_windows_are_never_truncated(cut, dataset_of):
    row = {"context": list(range(5, 105)), "last_k": list(range(5, 35)), "target": list(range(5, 65))}
    (window,), _ = cut(dataset_of([row]))  # context_length 24, target_length 8, last_k 4
    assert [window[name] for name in IDS] == list(row.values())


def test_without_last_k_the_contexts_last_tokens_are_taken(cut, dataset_of):
    (window,), _ = cut(dataset_of([{"context": list(range(5, 25)), "target": [30, 31]}]))
    assert window["last_k_ids"] == [21, 22, 23, 24]


def test_a_ready_window_with_an_empty_part_is_skipped_and_counted(cut, dataset_of):
    """Without last tokens a frozen model on the last tokens, the baseline, would have nothing to read."""
    rows = [
        {"context": [5, 6], "last_k": [6], "target": [7]},
        {"context": [5, 6], "last_k": [], "target": [7]},
        {"context": [], "last_k": [5], "target": [7]},
        {"context": [5, 6], "last_k": [5], "target": []},
    ]
    windows, skipped = cut(dataset_of(rows))
    assert [[w[name] for name in IDS] for w in windows] == [[[5, 6], [6], [7]]]
    assert skipped.counts == {f"whose `{column}` is empty": 1 for column in ("context", "last_k", "target")}


def test_ids_outside_the_vocabulary_are_skipped_and_counted(cut, tokenizer, dataset_of):
    rows = [
        {"context": [5, 6], "target": [7]},
        {"context": [5, len(tokenizer)], "target": [7]},
        {"context": [5, 6], "target": [-1]},
    ]
    windows, skipped = cut(dataset_of(rows))
    assert len(windows) == 1
    assert skipped.counts == {
        f"whose `{column}` is of ids outside the vocabulary": 1 for column in ("context", "target")
    }


def test_special_tokens_written_in_a_document_are_text_unless_they_are_meant(cut, tokenizer, dataset_of):
    text = "<|im_start|> " + PARAGRAPH
    for meant in (False, True):
        windows, _ = cut(dataset_of([{"text": text}]), parse_special_tokens=meant)
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not meant)["input_ids"]
        assert windows[0]["context_ids"] == ids[:24]


def test_a_streams_counts_grow_only_as_it_is_read(make_args, tokenizer):
    rows = [{"text": t} for t in make_documents(3)] + [{"text": "short"}] * 4
    windows, skipped = prepare_windows(stream(rows), tokenizer, make_args().window_spec(tokenizer))
    assert skipped.total == 0
    list(windows)
    assert skipped.counts == {"too short": 4}


def test_a_stream_is_not_read_ahead_of_need(make_args, tokenizer):
    pulled = []

    def endless():
        for index, text in enumerate(make_documents(500)):
            pulled.append(index)
            yield {"text": text}

    windows, _ = prepare_windows(
        IterableDataset.from_generator(endless), tokenizer, make_args().window_spec(tokenizer)
    )
    next(iter(windows))
    assert len(pulled) < 100
