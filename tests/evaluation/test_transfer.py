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

"""Gists as text through readers of other vocabularies: the same bytes scored, against a plain float64 reference."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import FAMILIES, PARAGRAPH, make_documents, make_model, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trl_gist.cli.main import main
from trl_gist.evaluation.gists.transfer import (
    READINGS,
    as_text,
    read_as_text,
    read_by_pair,
    summarize_transfer,
    transfer_table,
)


GISTS = ("cholera: Broad Street pump", "sewers 82 miles", "Snow’s map", "")


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """A vocabulary of bytes, with a token that starts a text: as unlike the pair's as can be."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=258, special_tokens=["<s>", "<pad>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a"], trainer)
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<pad>")


@pytest.fixture(scope="module")
def pair_tokenizer():
    return make_tokenizer()


@pytest.fixture
def rows(pair_tokenizer):
    """Four windows of three documents."""
    ids = pair_tokenizer(PARAGRAPH)["input_ids"]
    rows = []
    for index, gist in enumerate(GISTS):
        window = ids[11 * index :]
        rows.append(
            {
                "document_id": ("a", "b", "c", "c")[index],
                "context_ids": window[:24],
                "last_k_ids": window[20:24],
                "target_ids": window[24:32],
                "gist_ids": pair_tokenizer(gist, add_special_tokens=False)["input_ids"],
            }
        )
    return rows


def plain_nats(model, tokenizer, prefix, last_k, target):
    """−log p of the target's tokens after the rest, one text at a time, in float64."""
    encoding = tokenizer(last_k + target, add_special_tokens=False, return_offsets_mapping=True)
    bos = tokenizer("")["input_ids"]
    before = bos + tokenizer(prefix, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + encoding["input_ids"]])
    with torch.no_grad():
        log_probs = model.double()(ids).logits[0].log_softmax(-1)
    return -sum(
        log_probs[len(before) + index - 1, token].item()
        for index, (token, (_, end)) in enumerate(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))
        if end > len(last_k)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reader_of_another_vocabulary_scores_each_reading_as_a_plain_loop_does(
    rows, pair_tokenizer, bytes_tokenizer, family
):
    model = make_model(bytes_tokenizer, family=family, dtype=torch.float64)
    texts = as_text(pair_tokenizer, rows)
    readings = read_as_text(model, bytes_tokenizer, texts, batch_size=3)
    for index, (row, text) in enumerate(zip(readings, texts, strict=True)):
        context, last_k, target = (
            pair_tokenizer.decode(rows[index][f"{part}_ids"]) for part in ("context", "last_k", "target")
        )
        before = context.removesuffix(last_k)
        assert (text["before"] + text["last_k"], text["target"]) == (context, target)
        size = len(GISTS[index].encode())
        prefixes = {
            "none": "",
            "gist": f"{GISTS[index]}\n" if GISTS[index] else "",
            "tail": before[len(before) - size :],
            "full": before,
        }
        assert size <= len(before) and row["target_bytes"] == len(target)  # the paragraph is ASCII
        for name, prefix in prefixes.items():
            expected = plain_nats(model, bytes_tokenizer, prefix, last_k, target)
            assert row[f"{name}_nats"] == pytest.approx(expected, rel=1e-6), (index, name)
        shuffled = plain_nats(model, bytes_tokenizer, f"{text['gist_shuffled']}\n", last_k, target)
        assert text["gist_shuffled"] == "" or row["shuffled_nats"] == pytest.approx(shuffled, rel=1e-6)


def test_a_reader_may_be_asked_for_some_readings_alone(rows, pair_tokenizer, bytes_tokenizer):
    model, texts = make_model(bytes_tokenizer), as_text(pair_tokenizer, rows)
    every = read_as_text(model, bytes_tokenizer, texts)
    alone = read_as_text(model, bytes_tokenizer, texts, readings=("gist",))
    kept = ("document_id", "target_bytes", "gist_nats")
    assert alone == [{name: row[name] for name in kept} for row in every]


def test_shuffled_gists_are_other_documents_and_none_where_there_is_no_other(rows, pair_tokenizer, bytes_tokenizer):
    texts = as_text(pair_tokenizer, rows)
    own = {"a": set(GISTS[:1]), "b": set(GISTS[1:2]), "c": set(GISTS[2:])}
    assert all(text["gist_shuffled"] not in own[text["document_id"]] for text in texts)
    texts = as_text(pair_tokenizer, [row | {"document_id": "a"} for row in rows])
    assert {text["gist_shuffled"] for text in texts} == {None}
    readings = read_as_text(make_model(bytes_tokenizer), bytes_tokenizer, texts)
    assert all(math.isnan(row["shuffled_nats"]) for row in readings)
    assert math.isnan(summarize_transfer(readings)["gain_over_shuffled"])


def test_a_question_that_is_not_the_passages_end_follows_all_of_it(rows, pair_tokenizer):
    question = pair_tokenizer(" Who?")["input_ids"]
    (text,) = as_text(pair_tokenizer, [rows[0] | {"last_k_ids": question}])
    assert text["before"] == pair_tokenizer.decode(rows[0]["context_ids"]) and text["last_k"] == " Who?"


def test_a_gist_spelled_in_tokens_that_its_text_does_not_give_is_told(rows, pair_tokenizer):
    spelled = [token for char in "Snow" for token in pair_tokenizer(char)["input_ids"]]
    whole = pair_tokenizer("Snow")["input_ids"]
    assert spelled != whole
    texts = as_text(pair_tokenizer, [rows[0] | {"gist_ids": spelled}, rows[1] | {"gist_ids": whole}])
    assert [text["same_tokens"] for text in texts] == [False, True]
    assert [text["gist"] for text in texts] == ["Snow", "Snow"]


def test_the_tail_has_no_more_bytes_than_the_gist_and_cuts_no_character(pair_tokenizer, bytes_tokenizer):
    text = {"before": "aé漢", "last_k": " x", "target": " y", "gist": "1234", "gist_shuffled": None, "document_id": 0}
    model = make_model(bytes_tokenizer, dtype=torch.float64)
    (row,) = read_as_text(model, bytes_tokenizer, [text])
    expected = plain_nats(model, bytes_tokenizer, "漢", " x", " y")  # three bytes; the fourth is half of é
    assert row["tail_nats"] == pytest.approx(expected, rel=1e-6)


def test_the_summary_is_in_nats_per_byte_with_errors_over_documents():
    rng = np.random.default_rng(0)
    size = np.array([5, 9, 7, 4, 20])
    nats = {name: rng.uniform(5, 30, 5) for name in READINGS}
    nats["shuffled"][2] = math.nan
    readings = [
        {"document_id": "aabcd"[i], "target_bytes": size[i]} | {f"{name}_nats": nats[name][i] for name in READINGS}
        for i in range(5)
    ]
    summary = summarize_transfer(readings)
    assert summary["gist"] == pytest.approx(nats["gist"].sum() / size.sum(), rel=1e-12)
    difference = nats["none"] - nats["gist"]
    gain = difference.sum() / size.sum()
    residual_C = np.array([r.sum() for r in np.split(difference - gain * size, [2, 3, 4])])
    error = math.sqrt((residual_C**2).sum() * 4 / 3) / size.sum()
    assert (summary["gain_over_none"], summary["gain_over_none_se"]) == pytest.approx((gain, error), rel=1e-12)
    known = [0, 1, 3, 4]
    shuffled = (nats["shuffled"] - nats["gist"])[known].sum() / size[known].sum()
    assert summary["gain_over_shuffled"] == pytest.approx(shuffled, rel=1e-12)
    assert (summary["windows"], summary["documents"]) == (5, 4)


def test_the_pairs_own_reading_is_its_scores_per_byte_and_has_its_line(rows, pair_tokenizer):
    scores = {"null_log_prob": -3.0, "gist_log_prob": -2.0, "shuffled_log_prob": -2.5, "tail_log_prob": -2.2}
    texts = as_text(pair_tokenizer, rows)
    summary = summarize_transfer(read_by_pair([row | scores | {"teacher_log_prob": -1.0} for row in rows], texts))
    size = sum(len(text["target"].encode()) for text in texts)
    assert summary["gain_over_none"] == pytest.approx(1.0 * 32 / size)
    assert summary["gain_of_full"] == pytest.approx(2.0 * 32 / size)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(transfer_table({"G": summary}))
    gain, error = 1e3 * summary["gain_over_none"], 1e3 * summary["gain_over_none_se"]
    assert f"G {gain:+.1f} ± {error:.1f}" in " ".join(capture.get().split())


def test_what_a_reader_cannot_read_raises(rows, pair_tokenizer, bytes_tokenizer):
    texts = as_text(pair_tokenizer, rows)
    short = make_model(bytes_tokenizer, max_position_embeddings=40)
    with pytest.raises(ValueError, match="the reader has 40 positions"):
        read_as_text(short, bytes_tokenizer, texts)
    with pytest.raises(ValueError, match="empty `last_k`"):
        read_as_text(make_model(pair_tokenizer), pair_tokenizer, [text | {"last_k": ""} for text in texts])


def test_evaluate_prints_the_patterns_and_a_line_for_each_reader(
    make_trainer, checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    documents, reader = Path("[b].jsonl"), Path("[", "b]")  # neither of them mark-up
    documents.write_text("\n".join(json.dumps({"text": text}) for text in make_documents(6)))
    reader.parent.mkdir()
    reader.symlink_to(checkpoint)
    make_trainer().save_model()
    argv = ["evaluate", "run", "--dataset", documents, "--max_windows", 6, "--readers", reader]
    assert main([str(arg) for arg in argv]) == 0
    printed = capsys.readouterr().out
    assert "run on [b].jsonl" in printed and "[/b], as text" in printed
    assert "What the gists look like" in printed and re.search(r"bits a token under the summarizer +\d", printed)
    t, other = (
        [part.strip() for part in line.split("  ") if "±" in part]
        for line in printed.splitlines()
        if "as text" in line
    )
    assert len(t) == 4 and t == other  # the other reader is the teacher's own checkpoint
    assert "Who else can read them" in (tmp_path / "run" / "evaluation" / "evaluation.html").read_text()
