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

"""A walk along documents against the same walk written out plainly, and the command."""

import json
import math

import pytest
import torch
from datasets import Dataset
from tiny import PARAGRAPH, make_documents, make_model
from tiny_sessions import CONTEXT, GIST, LAST_K, TARGET, make_compactor

from trl_gist.cli import main
from trl_gist.common.geometry import Geometry
from trl_gist.common.tokens import characters_of
from trl_gist.data.targets import TargetSpec, make_walk_targets
from trl_gist.data.windows import SkippedRows
from trl_gist.evaluation.distance.costs import measure_costs
from trl_gist.evaluation.distance.measures import distance_measures
from trl_gist.evaluation.distance.walk import ARMS, DistanceReadings, geometry_of_pair, long_documents
from trl_gist.scoring.targets import TargetRows


CHUNK = CONTEXT - LAST_K - GIST - 1  # a newline is one token


@pytest.fixture(scope="module")
def compactor():
    return make_compactor()


@pytest.fixture(scope="module")
def other():
    return make_compactor(seed=5)


@pytest.fixture(scope="module")
def teacher(compactor):
    model = make_model(compactor.tokenizer, seed=9, dtype=torch.float64, tie_word_embeddings=False)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def readings(compactor, teacher, other):
    return DistanceReadings(compactor, teacher, {"recursive": other}, batch_size=2)


@pytest.fixture(scope="module")
def walked(compactor, readings):
    """Of 5, 2 and 4 windows."""
    tokenizer, length = compactor.tokenizer, readings.geometry.length
    return [
        {"document_id": name, "ids": tokenizer(name + PARAGRAPH * 2)["input_ids"][: length(windows)]}
        for name, windows in (("a", 5), ("b", 2), ("c", 4))
    ]


@pytest.fixture(scope="module")
def rows(readings, walked):
    return [row for batch in readings.walk(walked, 5) for row in batch]


def log_probs(model, prompt, target):
    """Of shape (target, vocabulary), by one forward without a cache."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt + target]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits_TV.double().log_softmax(-1)


def written(model, compactor, context_ids, last_k_ids):
    """The likeliest gist, token by token, as a session keeps it."""
    prompt = compactor.prompts.summarizer(context_ids, last_k_ids, GIST)
    gist = []
    while len(gist) < GIST:
        with torch.no_grad():
            token = model(torch.tensor([prompt + gist]), use_cache=False).logits[0, -1].argmax().item()
        if token == compactor.tokenizer.eos_token_id:
            break
        gist.append(token)
    return compactor.prompts.without_special(characters_of(compactor.tokenizer).whole(gist))


def walked_plainly(ids, windows, compactor, teacher, other):
    """Of each window: its gists, and what each arm reads before the target."""
    (newline,) = compactor.tokenizer("\n")["input_ids"]
    models = {"pair": compactor.summarizer, "zero_shot": teacher, "recursive": other.summarizer}
    gists, first, result = {name: [] for name in models}, None, []
    for window in range(windows):
        chunk, end = ids[window * CHUNK : (window + 1) * CHUNK], (window + 1) * CHUNK + LAST_K
        last, target = ids[end - LAST_K : end], ids[end : end + TARGET]
        single = written(compactor.summarizer, compactor, chunk + last, last)
        for name, model in models.items():
            before = [*gists[name], newline] if gists[name] else []
            gists[name] = written(model, compactor, before + chunk + last, last)
        first = gists["pair"] if first is None else first
        prompt = compactor.prompts.generator
        reads = {
            "full": (teacher, ids[:end]),
            "window": (teacher, ids[max(0, end - CONTEXT) : end]),
            "tail": (teacher, ids[end - LAST_K - len(gists["pair"]) : end]),
            "last_k": (teacher, last),
            "zero_shot": (teacher, prompt(gists["zero_shot"], last)),
            "zero_shot_g": (compactor.generator, prompt(gists["zero_shot"], last)),
            "null": (compactor.generator, prompt([], last)),
            "stale": (compactor.generator, prompt(first, last)),
            "single": (compactor.generator, prompt(single, last)),
            "pair": (compactor.generator, prompt(gists["pair"], last)),
            "recursive": (other.generator, prompt(gists["recursive"], last)),
            "recursive_null": (other.generator, prompt([], last)),
        }
        result.append(({**gists, "single": single}, target, reads))
    return result


# ---- The walk ----


def test_every_arm_reads_what_it_says(rows, walked, compactor, teacher, other, readings):
    assert set(readings.arms) == {*ARMS, "recursive", "recursive_null"}
    assert [(row["document_id"], row["window"]) for row in rows] == [
        *(("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("a", 3), ("a", 4)),  # two walk together
        *(("c", window) for window in range(4)),
    ]
    own = [row for row in rows if row["document_id"] == "a"]
    plain = walked_plainly(walked[0]["ids"], 5, compactor, teacher, other)
    different = 0
    for row, (gists, target, reads) in zip(own, plain, strict=True):
        assert row["gist_ids"] == gists
        assert row["tokens"] == (row["window"] + 1) * CHUNK + LAST_K
        assert row["log_probs"].keys() == row["kls"].keys() == reads.keys()
        reference = log_probs(teacher, reads["full"][1], target)
        for arm, (model, prompt) in reads.items():
            found = log_probs(model, prompt, target)
            assert row["log_probs"][arm] == pytest.approx(found[range(TARGET), target].tolist(), abs=2e-5), arm
            kl_T = (reference.exp() * (reference - found)).sum(-1)
            assert row["kls"][arm] == pytest.approx(kl_T.tolist(), abs=2e-5), arm
        different += gists["single"] != gists["pair"]
    assert different, "recursion changed no gist, so nothing was told apart"


def test_a_session_that_folds_the_same_text_writes_the_same_gists(rows, walked, compactor):
    session = compactor.session()
    session.append(walked[0]["ids"])
    session.append(walked[0]["ids"][:GIST])  # the last window's gist is written once G has read past its target
    own = [row["gist_ids"]["pair"] for row in rows if row["document_id"] == "a"]
    assert len(session.history) >= 4
    for compaction, gist_ids in zip(session.history, own, strict=False):
        assert compaction.gist_ids == gist_ids
        assert compaction.spans == [(compaction.index * CHUNK, (compaction.index + 1) * CHUNK)]


@pytest.mark.parametrize("text", ["霍乱水泵콜레라", "🦠 1854, Größe 👩‍👩‍👧 "], ids=["CJK", "emoji"])
def test_a_text_of_any_script_is_cut_between_characters_as_a_session_cuts_it(compactor, teacher, text):
    text = text * 20
    ids = compactor.token_ids(text, "The text")
    rows = [
        row
        for batch in DistanceReadings(compactor, teacher).walk([{"document_id": 0, "ids": ids}], 5)
        for row in batch
    ]
    assert len(rows) == 5 and text.startswith("".join(row["chunk"] for row in rows))
    assert all(row["target"] in text and row["target"] for row in rows)
    session, cut = compactor.session(), characters_of(compactor.tokenizer).cut
    session.append(ids)
    for compaction, row in zip(session.history, rows, strict=False):
        ((start, stop),) = compaction.spans
        before = cut(ids, stop + LAST_K)
        target = ids[before : cut(ids, before + TARGET)]
        assert compactor.decode(ids[start:stop]) == row["chunk"] and compactor.decode(target) == row["target"]
        assert compaction.gist_ids == row["gist_ids"]["pair"]
        reads = {
            "full": (teacher, ids[:before]),
            "last_k": (teacher, ids[stop:before]),
            "pair": (compactor.generator, compactor.prompts.generator(compaction.gist_ids, ids[stop:before])),
        }
        for arm, (model, prompt) in reads.items():
            expected = log_probs(model, prompt, target)[range(len(target)), target].tolist()
            assert row["log_probs"][arm] == pytest.approx(expected, abs=2e-5), arm
    assert len(session.history) > 3 and any(stop - start < CHUNK for c in session.history for start, stop in c.spans)


@pytest.mark.parametrize("kept", [0, 1, 2, 5, 7, 9, 11])
def test_a_walk_that_was_cut_off_goes_on_with_the_same_rows(rows, walked, readings, kept):
    saved = json.loads(json.dumps(rows[:kept]))
    assert [row for batch in readings.walk(walked, 5, saved) for row in batch] == rows[kept:]


def test_a_walk_leaves_out_the_full_context_beyond_the_teachers_positions(compactor, teacher):
    settings = {"seed": 9, "dtype": torch.float64, "tie_word_embeddings": False}
    positions = 9 * CHUNK + LAST_K + TARGET  # of nine windows; the summarizer's prompt fits too
    short = make_model(compactor.tokenizer, max_position_embeddings=positions, **settings).eval()
    ids = compactor.tokenizer(PARAGRAPH * 3)["input_ids"]
    found, complete = (
        [
            row
            for batch in DistanceReadings(compactor, model).walk([{"document_id": 0, "ids": ids}], 11)
            for row in batch
        ]
        for model in (short, teacher)
    )
    assert len(found) == 11
    for row, of_complete in zip(found, complete, strict=True):
        fits = row["window"] < 9
        assert ("full" in row["log_probs"]) == bool(row["kls"]) == fits
        of_complete["log_probs"] = {arm: of_complete["log_probs"][arm] for arm in row["log_probs"]}
        assert row == of_complete | ({} if fits else {"kls": {}})
    measures = distance_measures(found)
    assert math.isnan(measures["windows"][9]["kl_pair"]) and measures["windows"][9]["nll_pair"] > 0
    assert math.isnan(measures["windows"][9]["nll_full"]) and measures["windows"][8]["nll_full"] > 0


def test_no_forward_grows_over_160_windows(compactor, teacher, monkeypatch):
    readings = DistanceReadings(compactor, teacher)
    ids = (compactor.tokenizer(PARAGRAPH)["input_ids"] * 40)[: readings.geometry.length(160)]
    widths, build = [], TargetRows.build.__func__

    def watch(cls, prompts, targets, *args):
        widths.append(max(map(len, prompts)))
        return build(cls, prompts, targets, *args)

    monkeypatch.setattr(TargetRows, "build", classmethod(watch))
    # The summarizer reads its own prompt again where a gist lost half a character; readers are what may grow
    monkeypatch.setattr("trl_gist.inference.pair.given_log_probs", lambda _, prompts, gists: [0.0] * len(gists))
    count = sum(len(batch) for batch in readings.walk([{"document_id": 0, "ids": ids}], 160))
    assert count == 160 and len(ids) > teacher.config.max_position_embeddings
    assert max(widths) == CONTEXT


# ---- Targets of earlier chunks ----

ASKED = TargetSpec((("fact", 1), ("recall", 1)), targets_per_context=6, cue_length=4, recall_age=(1, 1, 1))


@pytest.fixture(scope="module")
def asking(compactor, teacher, other):
    return DistanceReadings(compactor, teacher, {"recursive": other}, batch_size=2, targets=ASKED)


@pytest.fixture(scope="module")
def asked_rows(asking, walked):
    return [row for batch in asking.walk(walked, 5) for row in batch]


def test_every_gist_is_read_for_the_same_targets_of_earlier_chunks(
    asked_rows, rows, walked, compactor, teacher, other
):
    assert [{**row, "recall": None} for row in asked_rows] == [{**row, "recall": None} for row in rows]
    ids, ages = walked[0]["ids"], set()
    geometry = geometry_of_pair(compactor)
    drawn = make_walk_targets(compactor.tokenizer, ids, geometry, 5, ASKED)
    plain = walked_plainly(ids, 5, compactor, teacher, other)
    first = plain[0][0]["pair"]
    for row, (gists, _, _) in zip([row for row in asked_rows if row["document_id"] == "a"], plain, strict=True):
        own = [one for one in drawn if one["window"] == row["window"] and one["kind"] != "continuation"]
        assert len(own) == len(row["recall"]) > 0
        seen, prompt = ids[: (row["window"] + 1) * CHUNK + LAST_K], compactor.prompts.generator
        for target, found in zip(own, row["recall"], strict=True):
            assert (found["kind"], found["age"]) == (target["kind"], target["age"])
            ages.add(found["age"])
            cue, wanted = target["cue_ids"], target["target_ids"]
            reference = log_probs(teacher, seen + target["after_ids"], wanted)
            reads = {
                "zero_shot": (teacher, prompt(gists["zero_shot"], cue)),
                "zero_shot_g": (compactor.generator, prompt(gists["zero_shot"], cue)),
                "null": (compactor.generator, prompt([], cue)),
                "stale": (compactor.generator, prompt(first, cue)),
                "single": (compactor.generator, prompt(gists["single"], cue)),
                "pair": (compactor.generator, prompt(gists["pair"], cue)),
                "recursive": (other.generator, prompt(gists["recursive"], cue)),
                "recursive_null": (other.generator, prompt([], cue)),
            }
            assert found["log_probs"].keys() == found["kls"].keys() == {"full", *reads}
            for arm, log_probs_TV in {
                "full": reference,
                **{arm: log_probs(model, before, wanted) for arm, (model, before) in reads.items()},
            }.items():
                expected = log_probs_TV[range(len(wanted)), wanted].mean().item()
                assert found["log_probs"][arm] == pytest.approx(expected, abs=2e-5), arm
                kl = (reference.exp() * (reference - log_probs_TV)).sum(-1).mean().item()
                assert found["kls"][arm] == pytest.approx(kl, abs=2e-5), arm
    assert ages == {0, 1, 2}


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_a_walk_that_asks_goes_on_with_the_same_rows(asked_rows, walked, asking, kept):
    saved = json.loads(json.dumps(asked_rows[:kept]))
    assert [row for batch in asking.walk(walked, 5, saved) for row in batch] == asked_rows[kept:]


def test_only_what_the_teacher_knows_better_from_the_text_is_asked(asked_rows, compactor, teacher, walked):
    high = DistanceReadings(compactor, teacher, targets=ASKED, target_floor=1e9)
    rows = [row for batch in high.walk(walked[:1], 5) for row in batch]
    of_all = [row for row in asked_rows if row["document_id"] == "a"]
    assert [len(row["recall"]) for row in rows] == [1] * 5 and any(len(row["recall"]) > 1 for row in of_all)
    for row, all_asked in zip(rows, of_all, strict=True):
        assert row["recall"][0]["log_probs"]["full"] in [one["log_probs"]["full"] for one in all_asked["recall"]]


def test_what_is_beyond_the_teachers_positions_is_not_asked(compactor, teacher):
    positions = 9 * CHUNK + LAST_K + TARGET  # of nine windows; the summarizer's prompt fits too
    settings = {"dtype": torch.float64, "tie_word_embeddings": False, "max_position_embeddings": positions}
    short = make_model(compactor.tokenizer, seed=9, **settings).eval()
    document = {"document_id": 0, "ids": compactor.tokenizer(PARAGRAPH * 3)["input_ids"]}
    found, complete = (
        [
            [one["kind"] for one in row["recall"]]
            for batch in DistanceReadings(compactor, model, targets=ASKED).walk([document], 11)
            for row in batch
        ]
        for model in (short, teacher)
    )
    assert found[:8] == complete[:8] and any(found[:8]) and found[9:] == [[], []] and all(complete[9:])


def test_what_comes_next_is_no_target_of_an_earlier_chunk(compactor, teacher):
    with pytest.raises(ValueError, match="'far', which is in no earlier chunk: a walk asks for 'fact' and 'recall'"):
        DistanceReadings(compactor, teacher, targets=TargetSpec((("fact", 1), ("far", 1))))


# ---- Documents ----


def test_windows_are_those_that_fit(compactor):
    geometry = geometry_of_pair(compactor)
    assert geometry == Geometry(CONTEXT, CHUNK, LAST_K, TARGET)
    for length in range(4 * CHUNK):
        fitting = [w for w in range(9) if (w + 1) * CHUNK + LAST_K + TARGET <= length]
        assert geometry.windows(length) == len(fitting)
    assert geometry.length(3) == 3 * CHUNK + LAST_K + TARGET


def test_documents_that_are_too_short_are_counted_and_long_ones_cut(compactor):
    geometry, skipped = geometry_of_pair(compactor), SkippedRows()
    texts = ["too short", None, PARAGRAPH, PARAGRAPH * 4]
    found = list(long_documents(Dataset.from_dict({"text": texts}), compactor, geometry, 6, skipped=skipped))
    assert [document["document_id"] for document in found] == [2, 3]
    assert len(found[1]["ids"]) == geometry.length(6)
    assert skipped.counts == {"too short": 1, "null": 1}


def test_joined_documents_come_in_order_and_each_in_one_stream(compactor):
    geometry, texts = geometry_of_pair(compactor), make_documents(9)
    found = list(long_documents(Dataset.from_dict({"text": texts}), compactor, geometry, 24, join_documents=True))
    decoded = [compactor.tokenizer.decode(document["ids"]) for document in found]
    assert len(found) > 1 and all(len(document["ids"]) == geometry.length(24) for document in found[:-1])
    assert decoded[0].startswith(texts[0] + "\n\n" + texts[1])
    starts = [next(i for i, text in enumerate(texts) if stream.startswith(text[:12])) for stream in decoded]
    for stream, start, stop in zip(decoded, starts, [*starts[1:], 9], strict=True):
        assert "\n\n".join(texts[start:stop]).startswith(stream.rstrip("\n"))


def test_other_pairs_must_fold_as_the_pair_does(compactor, teacher, other):
    with pytest.raises(ValueError, match="'tail', which is taken"):
        DistanceReadings(compactor, teacher, {"tail": other})
    wider = make_compactor(seed=5)
    wider.pair.context_length += 1
    with pytest.raises(ValueError, match="wide folds 21 tokens at a time and the pair 20"):
        DistanceReadings(compactor, teacher, {"wide": wider})


# ---- Costs and the command ----


def test_the_pairs_cache_stays_and_the_teachers_grows_until_its_positions_end(readings, walked, teacher):
    ids = (walked[0]["ids"] * 9)[: readings.geometry.length(40)]
    costs = measure_costs(readings, ids, 40)
    per_token = 2 * 2 * 2 * 8 * 8  # keys and values, layers, key heads, head size, bytes
    assert [row["cache_full"] for row in costs if "cache_full" in row] == [
        per_token * (row["tokens"] + CHUNK) for row in costs if row["tokens"] + CHUNK <= 512
    ]
    assert len(costs) == 39 and "cache_full" not in costs[-1]
    template = len(readings.compactor.prompts.generator([], []))
    assert all(row["cache_pair"] <= per_token * (template + GIST + LAST_K + CHUNK) for row in costs)
    assert all(row["read_pair"] > 0 and row["written_pair"] > 0 and row["memory_pair"] > 0 for row in costs)


@pytest.fixture
def saved_pair(make_trainer, lora):
    trainer = make_trainer(peft_config=lora, args={"context_length": 30, "target_length": 6, "last_k": 3})
    trainer.train()
    trainer.save_model()
    return trainer.args.output_dir


def test_the_command_leaves_measures_plots_and_a_page_and_goes_on_after_a_kill(saved_pair, tmp_path, capsys):
    data = tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*make_documents(4, seed=9), "short"]))
    flags = [saved_pair, "--dataset", str(data), "--windows", "4", "--pairs", f"again={saved_pair}"]
    flags += [
        "--device",
        "cpu",
        "--batch_size",
        "2",
        "--target_kinds",
        '{"fact": 1, "recall": 1}',
        "--cue_length",
        "4",
    ]
    assert main(["distance", *flags, "--output_dir", str(tmp_path / "straight")]) == 0
    printed = capsys.readouterr().out
    assert "again: rolling gist: on what was said 1, 2 and 3 windows ago" in printed
    assert "G: rolling gist, ahead of G: gist of the chunk alone" in printed
    assert "NLL, nats per token" in printed and "1 rows skipped (1 too short)" in printed
    straight = (tmp_path / "straight/rows.jsonl").read_bytes()
    assert len(straight.splitlines()) == 16
    for name in ("loss", "advantage", "facts", "recall", "costs"):
        assert (tmp_path / f"straight/plots/distance_{name}.png").stat().st_size > 5000
    page = (tmp_path / "straight/evaluation.html").read_text()
    assert "again: rolling gist" in page and page.count("<svg") == 5 and str(tmp_path) not in page
    measures = json.loads((tmp_path / "straight/measures.json").read_text())
    assert measures["stretches"][0]["nll_again"] == measures["stretches"][0]["nll_pair"]
    assert measures["gains"]["again"]["pair"] == 0

    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "settings.json").write_bytes((tmp_path / "straight/settings.json").read_bytes())
    (killed / "rows.jsonl").write_bytes(straight[: len(straight) * 2 // 3])
    assert main(["distance", *flags, "--output_dir", str(killed)]) == 0
    assert (killed / "rows.jsonl").read_bytes() == straight
    mine = json.loads((killed / "measures.json").read_text())
    assert {**mine, "costs": 0} == {**measures, "costs": 0}


def test_the_command_says_what_is_wrong(saved_pair, tmp_path, capsys):
    data = tmp_path / "short.jsonl"
    data.write_text('{"text": "short"}\n')
    argv = ["distance", saved_pair, "--dataset", str(data), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    for flags, message in (
        (["--windows", "2"], "No document has one window of 29 tokens: 1 rows skipped (1 too short)"),
        ([], "the following arguments are required: --windows"),
        (["--windows", "2", "--pairs", "other"], "`--pairs` takes NAME=PATH, got 'other'"),
    ):
        with pytest.raises(SystemExit):
            main([*argv, *flags])
        assert message in capsys.readouterr().err
