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
"""research/rate_distortion, each part against a plain reference, and the whole at a tiny size."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from datasets import Dataset

from research.rate_distortion import pair, reader, run, task
from research.rate_distortion.curves import Problem, lloyd_gists
from trl_gist.prompts import GistPrompts


TINY = run.Sizes(
    lengths=range(5, 7),
    checked_lengths=range(4, 5),
    reader_steps=2,
    reader_batch=6,
    reader_prefixes=3,
    rates=(0.3, 0.5),
    seeds=(0, 1),
    pair=pair.PairSizes(steps=2, cold_start_steps=1, contexts=4, generations=2, rows=40),
)


@pytest.fixture(scope="module")
def bits_tokenizer():
    return task.make_tokenizer()


@pytest.fixture(scope="module")
def model(bits_tokenizer):
    model = reader.make_model(bits_tokenizer, seed=0, hidden_size=16, layers=2).eval()
    for parameter in model.parameters():  # a fresh model at 0.02 is uniform: nothing would depend on its input
        torch.nn.init.normal_(parameter, std=0.5) if parameter.ndim == 2 else None
    return model


# ---- The task ----


@pytest.mark.parametrize(
    ("bits", "answers"),
    [
        ("00110", (2, 3, 0, 2, 0, 2)),
        ("1", (1, 0, 1, 1, 1, 0)),
        ("0110", (2, 2, 0, 2, 1, 2)),
        ("111", (3, 0, 1, 3, 1, 0)),
    ],
)
def test_answers(bits, answers):
    assert tuple(task.answer(bits, query) for query in task.QUERIES[:6]) == answers


def test_the_exact_weights_are_those_of_the_strings_that_are_drawn():
    lengths, generator = range(3, 5), np.random.default_rng(0)
    strings = task.all_strings(lengths)
    weights = task.string_weights(strings, lengths)
    assert weights.sum() == pytest.approx(1)
    drawn = Counter(
        (bits, query, answer) for bits, query, answer in (task.draw_row(lengths, generator) for _ in range(30_000))
    )
    for index, bits in enumerate(strings):
        expected = weights[index, :, None] * task.answer_distribution(bits)
        counted = np.array([[drawn[bits, q, a] for a in range(task.ANSWERS)] for q in range(7)]) / 30_000
        assert counted == pytest.approx(expected, abs=6 * np.sqrt(expected.max() / 30_000) + 1e-3)


def test_the_generator_reads_a_gist_as_the_reader_does_a_string(bits_tokenizer):
    prompts = GistPrompts.from_tokenizer(bits_tokenizer, "{context}<{budget}>")
    string, query = bits_tokenizer("0110")["input_ids"], bits_tokenizer("?parity")["input_ids"]
    assert prompts.generator(string, query) == prompts.teacher(string, query) == [*string, *query]
    assert prompts.summarizer(string, query, budget=3) == bits_tokenizer("0110<3>")["input_ids"]
    assert len(query) == len(bits_tokenizer("<3>")["input_ids"]) == len(bits_tokenizer("=12")["input_ids"]) == 1


def test_queries_asked_together_are_answered_as_each_alone(model, bits_tokenizer):
    strings, lengths = ["0110", "101"], torch.tensor([[2, 4], [3, 0]])
    with torch.no_grad():
        together = reader.Asker(bits_tokenizer).log_probs(model, strings, lengths)
        for row, bits in enumerate(strings):
            for column, length in enumerate(lengths[row].tolist()):
                for index, query in enumerate(task.QUERIES):
                    ids = bits_tokenizer(f"{bits[:length]}?{query}", return_tensors="pt")["input_ids"]
                    alone = model(ids).logits[0, -1].log_softmax(-1)
                    assert torch.allclose(together[row, column, index], alone, atol=1e-5)


# ---- The pair ----


def test_a_summarizer_can_write_bits_and_end_only(model, bits_tokenizer):
    head = pair.BitsHead(model.lm_head, bits_tokenizer)
    probabilities = head(torch.randn(50, 16)).softmax(-1).detach()
    assert probabilities[:, :3].sum(-1).numpy() == pytest.approx(np.ones(50))
    assert (probabilities[:, 3:] == 0).all()
    assert bits_tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["0", "1", bits_tokenizer.eos_token]


def test_greedy_gists_are_those_of_a_plain_loop(model, bits_tokenizer):
    writer = pair.copy_of(model).eval()
    writer.lm_head = pair.BitsHead(writer.lm_head, bits_tokenizer)
    torch.nn.init.normal_(writer.lm_head.weight)
    strings = task.all_strings(range(4, 7))
    gists = pair.write_gists(writer, bits_tokenizer, strings, 0.5, "?ones")
    assert len(set(map(len, gists))) > 1
    for bits, gist in zip(strings, gists, strict=True):
        limit, written = pair.budget(len(bits), 0.5), ""
        while len(written) < limit:
            ids = bits_tokenizer(f"{bits}?ones<{limit}>{written}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                token = writer(ids).logits[0, -1].argmax().item()
            if token == bits_tokenizer.eos_token_id:
                break
            written += str(token)
        assert gist == written


def test_evenly_spaced_bits_hold_the_last():
    assert [pair.evenly_spaced("0001111", length) for length in (1, 2, 3, 7)] == ["1", "01", "011", "0001111"]
    assert pair.EvenlySpacedBits().gists({"context_ids": [5, 6, 7, 8]}, [2, 1]) == [[5, 8], [8]]


def test_a_budget_column_is_the_budget_of_its_rows(make_trainer, tmp_path):
    rows = [{"context": [60 + n] * 12, "target": [30, 31], "budget": 2 + n % 3} for n in range(12)]
    seen = []

    def record(budget, gist_length, context_ids, **kwargs):
        seen.extend(zip(context_ids, budget, gist_length, strict=True))
        return [0.0] * len(budget)

    args = {"gist_length_range": [1, 6], "max_steps": 4}
    make_trainer(args=args, reward_funcs=record, train_dataset=Dataset.from_list(rows)).train()
    assert all(budget == 2 + (ids[0] - 60) % 3 and length <= budget for ids, budget, length in seen)
    assert {budget for _, budget, _ in seen} == {2, 3, 4}
    outside = Dataset.from_list([{**row, "budget": 7} for row in rows])
    with pytest.raises(ValueError, match=r"`budget` 7, which is no whole number within `gist_length_range` \(1, 6\)"):
        make_trainer(args={**args, "output_dir": str(tmp_path / "outside")}, train_dataset=outside)


# ---- Measures ----


def test_the_best_decoder_is_the_posterior():
    problem = Problem(range(4, 6))
    gists = np.array([[bits[-2:] if query < 3 else bits[0] for query in range(7)] for bits in problem.strings])
    counts = defaultdict(lambda: np.zeros(task.ANSWERS))
    for bits, gists_Q, weights_Q in zip(problem.strings, gists, problem.weights_XQ, strict=True):
        for query in range(7):
            counts[query, gists_Q[query]] += weights_Q[query] * task.answer_distribution(bits)[query]
    log_loss = -sum(p * np.log(p / answers.sum()) for answers in counts.values() for p in answers if p > 0)
    assert problem.best_decoding(gists) == {
        "log_loss": pytest.approx(log_loss),
        "error": pytest.approx(1 - sum(answers.max() for answers in counts.values())),
    }


def test_lloyds_code_fills_its_budgets_and_beats_evenly_spaced_bits():
    problem = Problem(range(4, 7))
    budgets = np.array([2 if len(bits) < 6 else 3 for bits in problem.strings])
    even = [pair.evenly_spaced(bits, most) for bits, most in zip(problem.strings, budgets, strict=True)]
    lloyd = lloyd_gists(problem, budgets)
    assert list(map(len, lloyd)) == list(map(len, even)) == budgets.tolist()
    lloyds, evens = (problem.best_decoding(np.array([gists] * 7).T) for gists in (lloyd, even))
    assert lloyds["log_loss"] < evens["log_loss"] - 0.05


def test_the_command_trains_measures_plots_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys, bits_tokenizer):
    results = run.main(str(tmp_path), query_aware=True, sizes=TINY)
    assert results["linprog_difference"] < 1e-9
    for kind, gists in (("agnostic", 1), ("aware", 7)):
        for point in results["points"][kind]:
            assert point["log_loss_best_decoder"] <= point["log_loss"]
            assert point["error_best_encoder"] <= point["error"] + 1e-9
        saved = json.loads((tmp_path / f"{kind}-rate0.5-seed1.json").read_text())
        assert all(len(row) == gists and set("".join(row)) <= {"0", "1"} for row in saved["gist_of"].values())
        # The measures once more, from the saved gists
        weights = task.string_weights(list(saved["gist_of"]), TINY.lengths)
        rates = [[len(gist) / len(bits) for gist in row] for bits, row in saved["gist_of"].items()]
        assert saved["rate"] == pytest.approx((weights * np.array(rates)).sum())
    assert all((tmp_path / f"rate_distortion{suffix}").stat().st_size > 10_000 for suffix in (".png", ".svg"))
    assert "two standard errors at" in capsys.readouterr().out

    def unwanted(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(run, "co_train", unwanted)
    monkeypatch.setattr(run, "train_reader", unwanted)
    again = run.main(str(tmp_path), query_aware=True, sizes=TINY)
    assert again == json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
