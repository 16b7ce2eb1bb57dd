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

"""Walks over several windows of a document: how it is cut, what S reads, what a gist is paid for, and that it is
trained as single windows are."""

from itertools import cycle
from pathlib import Path

import pytest
import torch
from checks import AtStep, assert_equal_models, draw_adapters, history
from datasets import Dataset, IterableDataset
from tiny import make_documents, make_model, make_tokenizer

from trl_gist import GistCompactor, kl_gain, length_penalty, log_prob_gain
from trl_gist.common.tokens import characters_of
from trl_gist.trainer import rollout


WINDOWS, GISTS, DISCOUNT = 3, 4, 0.5
CONTEXT, LAST_K, TARGET, GIST = 24, 4, 8, 6
CHUNK = CONTEXT - LAST_K - GIST - 1  # a newline is one token of the tiny tokenizer
LENGTH = WINDOWS * CHUNK + LAST_K + TARGET


@pytest.fixture
def make_walker(make_trainer, lora):
    """A trainer whose rollout is two walks of three windows."""

    def make(args=None, **kwargs):
        args = {"windows_per_document": WINDOWS, "gist_discount": DISCOUNT, **(args or {})}
        trainer = make_trainer(args=args, **{"peft_config": lora, **kwargs})
        draw_adapters(trainer)
        return trainer

    return make


def rollout_of(trainer):
    """The rows of one rollout with their scores, and what the policy's loss is computed from."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.create_optimizer_and_scheduler(2)
    trainer.current_gradient_accumulation_steps = 1
    rows, write_rows = [], trainer.rollout.rows
    trainer.rollout.rows = lambda inputs: rows.extend(write_rows(inputs)) or rows
    tensors = trainer._generate_and_score_completions(batch)
    return rows, tensors


def ids_of(text):
    return make_tokenizer().encode(text, add_special_tokens=False)


# ---- Cutting documents ----


def test_a_document_gives_as_many_walks_as_fit_each_of_its_own_text(make_walker):
    texts = make_documents(3)
    dataset = make_walker(train_dataset=Dataset.from_dict({"text": texts})).train_dataset
    expected = []
    for text in texts:
        ids = ids_of(text)
        expected += [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)]
    assert [row["walk_ids"] for row in dataset] == expected
    # A row is also its first window, for whatever reads datasets
    for row in dataset:
        assert row["context_ids"] == row["walk_ids"][: CHUNK + LAST_K]
        assert row["last_k_ids"] == row["context_ids"][-LAST_K:]
        assert row["target_ids"] == row["walk_ids"][CHUNK + LAST_K :][:TARGET]


def test_a_document_too_short_for_a_walk_is_skipped_and_counted(make_walker):
    texts = [*make_documents(4), "In 1854 the physician John Snow marked on a map of Soho the houses."]
    trainer = make_walker(train_dataset=Dataset.from_dict({"text": texts}))
    assert set(trainer.train_dataset["document_id"]) == {0, 1, 2, 3}
    assert trainer.skipped_rows["train"].counts == {"too short": 1}
    with pytest.raises(ValueError, match="at least 51 tokens for a walk over 3 windows. Lower `windows_per_document`"):
        make_walker(train_dataset=Dataset.from_dict({"text": texts[-1:]}))


def test_a_stream_walks_the_same_windows(make_walker):
    rows = [{"text": text} for text in make_documents(4)]
    stream = make_walker(train_dataset=IterableDataset.from_generator(lambda: iter(rows))).train_dataset
    assert list(stream) == list(make_walker(train_dataset=Dataset.from_list(rows)).train_dataset)


def test_windows_that_are_not_cut_from_documents_cannot_be_walked(make_walker):
    windows = Dataset.from_dict({"context": ["one two three"] * 4, "target": ["four"] * 4})
    with pytest.raises(ValueError, match="ready windows, and `windows_per_document` .3. walks along documents"):
        make_walker(train_dataset=windows)


def test_a_context_must_hold_a_gist_and_a_chunk(make_walker):
    with pytest.raises(ValueError, match="`context_length` .24. tokens must hold a gist .* Raise `context_length`"):
        make_walker(args={"max_completion_length": 19})


def test_a_walk_must_fit_the_teachers_positions(make_walker, tokenizer):
    short = make_model(tokenizer, max_position_embeddings=LENGTH - 1)
    with pytest.raises(ValueError, match="does not fit the teacher: 51 tokens .* Lower .*`windows_per_document`"):
        make_walker(teacher=short)


@pytest.mark.parametrize("value", [0, -1])
def test_a_walk_has_a_window(make_args, value):
    with pytest.raises(ValueError, match=f"`windows_per_document` must be at least 1, got {value}"):
        make_args(windows_per_document=value)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_discount_is_a_share(make_args, value):
    with pytest.raises(ValueError, match=r"`gist_discount` must be in \[0, 1\]"):
        make_args(gist_discount=value)


# ---- A rollout ----


def test_each_gist_is_written_from_one_gist_of_the_window_before_and_the_next_chunk(make_walker):
    trainer = make_walker()
    rows, _ = rollout_of(trainer)
    whole = characters_of(trainer.processing_class).whole
    assert len(rows) == 2 * WINDOWS * GISTS
    newline = ids_of("\n")
    drawn = set()
    for start in range(0, len(rows), GISTS):
        group = rows[start : start + GISTS]
        walk, window = group[0]["walk_ids"], start // GISTS % WINDOWS
        chunk, rest = walk[window * CHUNK : (window + 1) * CHUNK], walk[(window + 1) * CHUNK :]
        for row in group:
            assert (row["window"], row["last_k_ids"]) == (window, rest[:LAST_K])
            assert row["target_ids"] == rest[LAST_K:][:TARGET]
        previous = [[]] if window == 0 else [row["gist_ids"] for row in rows[start - GISTS : start]]
        words = [[token for token in whole(gist) if token > 4] for gist in previous]  # no special tokens
        contexts = [[*gist, *newline, *chunk] if gist else chunk for gist in words]
        assert all(row["context_ids"] == group[0]["context_ids"] for row in group)
        drawn.add(contexts.index(group[0]["context_ids"][:-LAST_K]))
        assert group[0]["context_ids"][-LAST_K:] == rest[:LAST_K]
    assert len(drawn) > 1, "always the same place's gist was carried on"


def test_in_the_cold_start_half_of_the_contexts_go_on_from_a_gist_of_the_summarizers_own(make_walker, monkeypatch):
    """And imitate the rule's all the same."""
    settings = {"cold_start_steps": 1, "cold_start_gists": "recurring_facts", "gist_length_range": [2, GIST]}
    trainer, sampled, coins = make_walker(args=settings), [], cycle([1, 0])
    sample = trainer.sample
    monkeypatch.setattr(trainer, "sample", lambda prompts: (sampled.append(sample(prompts)), sampled[-1])[1])
    monkeypatch.setattr(rollout, "_draw", lambda count: next(coins) if count == 2 else 2)
    rows, _ = rollout_of(trainer)
    assert len(sampled) == WINDOWS - 1, "nothing goes on from the last window"
    whole, eos = characters_of(trainer.processing_class).whole, trainer.processing_class.eos_token_id

    def context(row, gist):
        gist = [token for token in whole([*gist, eos][: [*gist, eos].index(eos)]) if token > 4]
        return (gist + ids_of("\n") if gist else []) + row["chunk_ids"] + row["last_k_ids"]

    from_own = []
    for index, (own, _) in enumerate(sampled, start=1):
        before, later = ([row for row in rows if row["window"] == window] for window in (index - 1, index))
        for place in range(0, len(later), GISTS):
            by_rule = [row["gist_ids"] for row in later[place : place + GISTS]]
            assert by_rule == by_rule[:1] * GISTS
            gists = own[place + 2][: before[place]["budget"]], before[place]["gist_ids"]
            found = [later[place]["context_ids"] == context(later[place], gist) for gist in gists]
            assert sum(found) == 1
            from_own.append(found[0])
    assert from_own == [True, False, True, False]


def test_a_rule_that_would_copy_what_the_summarizer_invents_goes_on_from_its_own_gists(make_walker, monkeypatch):
    trainer = make_walker(args={"cold_start_steps": 1, "cold_start_gists": "facts"})
    monkeypatch.setattr(trainer, "sample", None)
    rows, _ = rollout_of(trainer)
    assert len(rows) == 2 * WINDOWS * GISTS


def reference_gains(trainer, row, gist, window):
    """log-prob and KL of a window's target with a gist, less those without one, by plain forwards."""
    walk, start = row["walk_ids"], (window + 1) * CHUNK
    seen, target = walk[: start + LAST_K], walk[start + LAST_K :][:TARGET]

    def log_probs(model, prompt):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)

    teacher = log_probs(trainer.teacher, seen)

    def score(gist):
        prompt = ids_of("GIST:") + [token for token in gist if token > 4] + ids_of("\nLAST K TOKENS:")
        own = log_probs(trainer.generator, prompt + seen[-LAST_K:])
        kl = (teacher.exp() * (teacher - own)).sum(-1).mean()
        return torch.stack([own[range(TARGET), target].mean(), -kl])

    return score(gist) - score([])


@pytest.mark.parametrize("discount", [0.0, DISCOUNT, 1.0])
def test_a_gist_is_paid_for_its_own_window_and_for_what_it_still_buys_in_later_ones(make_walker, discount):
    args = {"model_init_kwargs": {"dtype": torch.float64}, "gist_discount": discount, "score_batch_size": 3}
    trainer = make_walker(args=args, reward_funcs=[log_prob_gain, kl_gain, length_penalty])
    trainer.generator_trainer.step = lambda: {}  # the reference below reads the generator as it was
    rows, _ = rollout_of(trainer)
    for index, row in enumerate(rows):
        own = reference_gains(trainer, row, row["gist_ids"], row["window"])
        later = sum(
            (discount ** (window - row["window"]) * reference_gains(trainer, row, row["gist_ids"], window))
            for window in range(row["window"] + 1, WINDOWS)
        )
        later = torch.zeros(2, dtype=torch.float64) + later
        found = torch.tensor([row["log_prob_gain"], row["kl_gain"]], dtype=torch.float64)
        torch.testing.assert_close(found, own, rtol=0, atol=1e-9)
        found = torch.tensor([row["later_log_prob_gain"], row["later_kl_gain"]], dtype=torch.float64)
        torch.testing.assert_close(found, later, rtol=0, atol=1e-9)
        rewards = trainer._rewards_per_func[index, :2].double()
        torch.testing.assert_close(rewards, own + later, rtol=0, atol=1e-5)  # TRL keeps rewards in float32


def test_budgets_differ_along_a_walk_and_not_within_a_window(make_walker):
    rows, _ = rollout_of(make_walker(args={"gist_length_range": [1, GIST]}))
    budgets = [{row["budget"] for row in rows[start : start + GISTS]} for start in range(0, len(rows), GISTS)]
    assert len(budgets) == 2 * WINDOWS and all(len(of_window) == 1 for of_window in budgets)
    assert any(len(set.union(*budgets[start : start + WINDOWS])) > 1 for start in (0, WINDOWS))
    assert all(len(row["gist_ids"]) <= row["budget"] for row in rows)


def test_advantages_compare_the_gists_of_one_document_and_window(make_walker):
    trainer = make_walker()
    rows, tensors = rollout_of(trainer)
    rewards = torch.tensor([row["kl_gain"] + row["later_kl_gain"] - 1e-4 * row["gist_length"] for row in rows]).view(
        -1, GISTS
    )
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(tensors["advantages"].view(-1, GISTS), expected, rtol=1e-3, atol=1e-3)
    assert len(expected) == 2 * WINDOWS


def test_one_row_for_the_gists_of_a_context_gives_the_loss_of_a_row_each(make_walker):
    trainer = make_walker()
    _, tensors = rollout_of(trainer)
    gradients = []
    for trainer.shares_prefix in (True, False):
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, tensors).backward()
        gradients.append({name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None})
    assert trainer.args.windows_per_document == WINDOWS
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_teacher_reads_a_walk_once(make_walker, monkeypatch):
    trainer, read = make_walker(), []
    teacher = trainer.generator_trainer.scorer.teacher
    hidden_states = teacher.hidden_states
    monkeypatch.setattr(
        teacher, "hidden_states", lambda rows: (read.append(tuple(rows.input_ids_NS.shape)), hidden_states(rows))[1]
    )
    trainer.alarms.watch = lambda *args: {}
    rollout_of(trainer)
    assert read == [(2, LENGTH)]


def test_the_generator_is_distilled_on_every_window_of_the_walk(make_walker, monkeypatch):
    trainer, distilled = make_walker(), []
    backward = trainer.generator_trainer._backward

    def spy(weight):
        inner = backward(weight)
        return lambda loss, rows: (distilled.extend(row["window"] for row in rows), inner(loss, rows))

    monkeypatch.setattr(trainer.generator_trainer, "_backward", spy)
    rollout_of(trainer)
    assert sorted(distilled) == sorted([*range(WINDOWS)] * 2 * (GISTS + 1))  # and once with the empty gist


# ---- A run ----


@pytest.mark.parametrize(
    "settings",
    [
        {"cold_start_steps": 2, "cold_start_gists": "mixed"},
        {"advantage": "reward"},
        {"gist_length_range": [2, GIST]},
        {"generator_only": True},
        {"steps_per_generation": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    ],
)
def test_walks_train_with_whatever_single_windows_do(make_walker, settings):
    trainer = make_walker(args={"max_steps": 3, **settings})
    trainer.train()
    log = history(trainer)
    assert {f"window_{index}/{name}" for index in range(WINDOWS) for name in ("log_prob_gain", "teacher_kl")} <= set(
        log[0]
    )
    assert trainer.state.global_step == 3


def test_the_report_says_that_windows_were_walked(make_walker):
    pytest.importorskip("matplotlib")
    from trl_gist.evaluation.run_report.report import write_report

    trainer = make_walker()
    trainer.train()
    page = Path(write_report(trainer.args.output_dir)).read_text()
    assert f"{WINDOWS} consecutive windows" in page and f"discounted by {DISCOUNT}" in page


def test_a_run_that_walks_resumes_as_if_it_had_not_stopped(make_walker, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "straight")}
    straight = make_walker(args=settings)
    straight.train()
    settings["output_dir"] = str(tmp_path / "killed")

    def kill():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_walker(args=settings, callbacks=[AtStep(3, kill)]).train()
    resumed = make_walker(args=settings)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_models(straight.model, resumed.model)
    assert_equal_models(straight.generator, resumed.generator)
    assert history(resumed)[-1] == history(straight)[-1]


def test_an_evaluation_walks_greedily_and_writes_what_a_session_writes(make_walker, tmp_path, tokenizer):
    texts = make_documents(3, seed=4)
    trainer = make_walker(eval_dataset=Dataset.from_dict({"text": texts}), args={"max_windows_per_document": 1})
    trainer.evaluate()
    rows = sorted(trainer.eval_rows, key=lambda row: (row["document_id"], row["window"]))
    assert len(rows) == trainer.last_measures["windows"] == 3 * WINDOWS
    trainer.save_model(str(tmp_path / "pair"))
    compactor = GistCompactor.from_pretrained(str(tmp_path / "pair"))
    whole = characters_of(tokenizer).whole  # what a session reads of a gist
    for document, text in enumerate(texts):
        session = compactor.session()
        session.append(ids_of(text))
        folded = session.history[:WINDOWS]
        assert [compaction.spans for compaction in folded] == [
            [(index * CHUNK, (index + 1) * CHUNK)] for index in range(WINDOWS)
        ]
        of_document = rows[document * WINDOWS : (document + 1) * WINDOWS]
        assert [compaction.gist_ids for compaction in folded] == [
            [token for token in whole(row["gist_ids"]) if token > 4] for row in of_document
        ]


def test_rates_of_a_walk_count_all_text_that_the_gist_stands_for(make_walker):
    trainer = make_walker(eval_dataset=Dataset.from_dict({"text": make_documents(2)}))
    trainer.evaluate()
    assert {row["window"] for row in trainer.eval_rows} == {0, 1, 2}
    for row in trainer.eval_rows:
        seen = (row["window"] + 1) * CHUNK + LAST_K
        assert row["gist_rate"] == row["gist_length"] / seen
