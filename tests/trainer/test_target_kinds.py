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

"""Training and evaluating on several targets of a context: what S is paid for, what is logged, and what is refused."""

import math
import re
from contextlib import nullcontext

import pytest
from checks import logs_of, moved, rows_of, snapshot, trainable
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard
from tiny import make_documents
from trl import GRPOTrainer

from trl_gist import log_prob_gain
from trl_gist.data.columns import RESERVED_KINDS
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.evaluation.compressors import Facts
from trl_gist.pair import PairConfig
from trl_gist.prompts import SUMMARIZER_PROMPT, SUMMARIZER_PROMPT_OF_FACTS, SUMMARIZER_PROMPT_WITH_TAIL
from trl_gist.scoring.controls import CONTROLS, GREATER_IS_BETTER
from trl_gist.scoring.extraction import fact_list
from trl_gist.scoring.targets import TargetScorer
from trl_gist.scripts.train import make_parser
from trl_gist.trainer.generator_trainer import GeneratorTrainer


KINDS = {"fact": 2, "recall": 1, "continuation": 1}
# T gains next to nothing from a context of a tiny model
SEVERAL = {"context_length": 60, "target_kinds": KINDS, "target_floor": None}


@pytest.fixture
def held_out():
    return Dataset.from_dict({"text": make_documents(4, seed=9)})


def test_both_roles_learn_from_every_kind_and_the_log_has_each(make_trainer, lora):
    trainer = make_trainer(peft_config=lora, args=SEVERAL)
    rollouts, before = rows_of(trainer), [snapshot(role) for role in (trainer.model, trainer.generator)]
    trainer.train()
    for old, role in zip(before, (trainer.model, trainer.generator), strict=True):
        assert moved(old, role) == trainable(role)
    logs = logs_of(trainer)
    assert len(logs) == len(rollouts) == 2
    for log, rows in zip(logs, rollouts, strict=True):
        scores = [score for row in rows for score in row["target_scores"]]
        assert log["targets"] == pytest.approx(len(scores) / len(rows)) and log["targets"] > 1
        assert {score["kind"] for score in scores} >= {"fact", "continuation"}
        for kind in {score["kind"] for score in scores}:
            of_kind = [score for score in scores if score["kind"] == kind]
            for name in ("teacher_kl", "kl_gain", "exact"):
                mean = sum(score[name] for score in of_kind) / len(of_kind)
                assert log[f"{kind}/{name}"] == pytest.approx(mean)
        for name in ("kl_gain", "teacher_kl"):  # of a context, the mean over its targets
            means = [sum(s[name] for s in row["target_scores"]) / len(row["target_scores"]) for row in rows]
            assert log[name] == pytest.approx(sum(means) / len(means))


def test_reward_functions_get_the_score_of_every_target(make_trainer, lora):
    seen = []

    def facts_alone(target_scores, targets, **kwargs):
        assert [[each["kind"] for each in row] for row in target_scores] == [
            [t["kind"] for t in row] for row in targets
        ]
        rewards = [sum(score["kl_gain"] for score in row if score["kind"] == "fact") for row in target_scores]
        seen.append(rewards)
        return rewards

    trainer = make_trainer(peft_config=lora, reward_funcs=[facts_alone], args=SEVERAL)
    trainer.train()
    logged = [log["rewards/facts_alone/mean"] for log in logs_of(trainer)]
    assert logged == pytest.approx([sum(rewards) / len(rewards) for rewards in seen])
    assert len({reward for rewards in seen for reward in rewards}) > 8


@pytest.mark.parametrize("several", [True, False])
def test_what_is_exact_is_asked_only_where_it_is_used(make_trainer, lora, held_out, several):
    """It takes the generator's head forward one more pass over the vocabulary."""
    trainer = make_trainer(peft_config=lora, eval_dataset=held_out, args=SEVERAL if several else {})
    asked, rollouts, forward = [], rows_of(trainer), TargetScorer.forward

    def watch(scorer, *args, **kwargs):
        scores = forward(scorer, *args, **kwargs)
        asked.append((args[0].gists, len(scores) == 4))
        return scores

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(TargetScorer, "forward", watch)
        trainer.train()
        assert {exact for gists, exact in asked if gists == 4} == {several}  # of the rollout's gists
        assert not [exact for gists, exact in asked if gists == 1 and exact]  # an empty one, the alarms'
        assert {"exact" in score for row in rollouts[0] for score in row["target_scores"]} == {several}
        trainer.evaluate()
    assert all("exact" in score for row in rollouts[-1] for score in row["target_scores"])


def test_an_evaluation_measures_each_target_as_a_row_of_its_own(make_trainer, lora, held_out):
    trainer = make_trainer(peft_config=lora, eval_dataset=held_out, args=SEVERAL)
    measures = trainer.evaluate()
    targets = [(row["context_ids"], target) for row in trainer.eval_dataset for target in row["targets"]]
    assert measures["eval_windows"] == len(targets) > len(trainer.eval_dataset)
    of_kind = {kind: sum(target["kind"] == kind for _, target in targets) for kind in KINDS}
    assert min(of_kind.values()) > 0
    for kind, count in of_kind.items():
        assert measures[f"eval_{kind}/windows"] == count
        for name in ("teacher_kl", "nll_gist", *(f"gap_closed_{control}" for control in CONTROLS)):
            assert math.isfinite(measures[f"eval_{kind}/{name}"]), (kind, name)
    # What all rows come to is the mean over those of each kind
    for name in ("nll_gist", "nll_teacher", "nll_last_k", "teacher_kl", "gain_over_null"):
        mean = sum(of_kind[kind] * measures[f"eval_{kind}/{name}"] for kind in KINDS) / len(targets)
        assert measures[f"eval_{name}"] == pytest.approx(mean), name
    assert 0 <= measures["eval_fact/exact"] <= 1 and "eval_continuation/exact" not in measures


def test_rates_are_of_the_context_also_where_the_teacher_reads_on(make_trainer, lora, held_out):
    args = {**SEVERAL, "target_kinds": {"far": 1, "fact": 1}, "far_offset": 10}
    measures = make_trainer(peft_config=lora, eval_dataset=held_out, args=args).evaluate()
    assert min(measures["eval_far/windows"], measures["eval_fact/windows"]) > 0
    for kind in ("", "far/", "fact/"):
        assert measures[f"eval_{kind}gist_rate"] == pytest.approx(measures[f"eval_{kind}gist_length"] / 60)


def test_the_same_gist_is_read_for_every_target_of_a_context(make_trainer, lora, held_out):
    trainer = make_trainer(peft_config=lora, eval_dataset=held_out, args=SEVERAL)
    rollouts = rows_of(trainer)
    trainer.evaluate()
    rows = {tuple(row["context_ids"]): row for rollout in rollouts for row in rollout}
    kinds = [kind for row in rows.values() for kind in (score["kind"] for score in row["target_scores"])]
    assert len(kinds) == sum(len(row["targets"]) for row in trainer.eval_dataset)
    assert len(rows) == len(trainer.eval_dataset)


def test_the_continuation_alone_is_what_a_run_without_kinds_is(make_trainer, lora, held_out):
    outcomes = []
    for kinds in (None, {"continuation": 1}):
        trainer = make_trainer(peft_config=lora, eval_dataset=held_out, args={"target_kinds": kinds})
        assert "targets" not in trainer.train_dataset.column_names
        assert trainer.args.summarizer_prompt == SUMMARIZER_PROMPT
        trainer.train()
        evaluated = trainer.evaluate()
        measures = GREATER_IS_BETTER.keys() - {"exact"}
        expected = {f"eval_{name}{end}" for name in measures for end in ("", "_se")}
        assert expected | {"eval_windows", "eval_documents"} <= evaluated.keys()
        logs = [log for log in trainer.state.log_history if "gist_length" in log]
        for names in (evaluated, *logs):
            assert not [name for name in names if "exact" in name or "fact" in name or name == "targets"]
            assert not [name for name in names if name.removeprefix("eval_").startswith("continuation")]
        kept = [
            {name: value for name, value in log.items() if not name.endswith(("time", "runtime", "_second"))}
            for log in trainer.state.log_history
        ]
        outcomes.append((kept, [p.detach().clone() for p in trainer.model.parameters()]))
    assert repr(outcomes[0][0]) == repr(outcomes[1][0])
    assert all((ours == theirs).all() for ours, theirs in zip(outcomes[0][1], outcomes[1][1], strict=True))


def test_a_generator_alone_learns_to_read_lists_of_facts(make_trainer, lora, tokenizer):
    args = {"generator_only": True, **SEVERAL}
    trainer = make_trainer(peft_config=lora, compressor=Facts(tokenizer), args=args)
    rollouts, before = rows_of(trainer), snapshot(trainer.model)
    trainer.train()
    assert moved(before, trainer.model) == set()
    for row in rollouts[0]:  # of all of the context, the last tokens too
        assert row["gist_ids"] == fact_list(tokenizer, row["context_ids"], 6)
    assert any(row["gist_ids"] for row in rollouts[0])
    log = logs_of(trainer)[0]
    assert {"fact/kl_gain", "fact/exact", "continuation/kl_gain", "targets"} <= log.keys()


def ready(count):
    context = "The pump in Broad Street stood near a brewery. Its men drank beer, and few of them fell ill. "
    questions = [
        {"cue": "Where did the pump stand? In", "target": " Broad Street"},
        {"cue": "What did the men drink?", "target": " beer", "kind": "drink"},
    ]
    rows = [{"context": f"{place}. {context}", "targets": questions[: 1 + place % 2]} for place in range(count)]
    return Dataset.from_list([{**row, "targets": [{"kind": None, **t} for t in row["targets"]]} for row in rows])


def test_ready_windows_bring_their_own_targets(make_trainer, lora, tokenizer):
    trainer = make_trainer(
        train_dataset=ready(8), eval_dataset=ready(4), peft_config=lora, args={"target_floor": None}
    )
    rollouts = rows_of(trainer)
    trainer.train()
    log = logs_of(trainer)[0]
    assert {"question/kl_gain", "question/exact", "targets"} <= log.keys() and "continuation/kl_gain" not in log
    for row in rollouts[0]:
        texts = [tokenizer.decode(target["target_ids"]) for target in row["targets"]]
        assert texts == [" Broad Street", " beer"][: len(texts)]
    measures = trainer.evaluate()
    assert (measures["eval_question/windows"], measures["eval_drink/windows"]) == (4, 2)
    assert measures["eval_windows"] == 6


def named(kind):
    rows = [{**row, "targets": [{**target, "kind": kind} for target in row["targets"]]} for row in ready(8)]
    return Dataset.from_list(rows)


def test_a_question_of_two_kinds_is_measured_under_both(make_trainer, lora):
    first = ready(4).map(lambda row: {"targets": [{**row["targets"][0], "kind": kind} for kind in ("easy", "all")]})
    measures = make_trainer(eval_dataset=first, peft_config=lora, args={"target_floor": None}).evaluate()
    assert (measures["eval_easy/windows"], measures["eval_all/windows"]) == (4, 4)
    assert measures["eval_easy/nll_gist"] == pytest.approx(measures["eval_all/nll_gist"])


def test_a_kind_is_no_group_of_other_figures(make_trainer, lora, tokenizer, held_out):
    for kind in ("noise", "signal", "generator"):
        with pytest.raises(ValueError, match=f"Row 0 of the train dataset has a target of kind '{kind}', a name that"):
            make_trainer(train_dataset=named(kind), peft_config=lora)
    with pytest.raises(ValueError, match="Row 0 of the eval dataset .* Rename the kind, as 'my_alarm'"):
        make_trainer(train_dataset=named("mine"), eval_dataset=named("alarm"), peft_config=lora)
    # Where nothing is logged any kind will do
    windows, _ = prepare_windows(named("noise"), tokenizer, WindowSpec(24, 8, 4, None, None))
    assert {target["kind"] for row in windows for target in row["targets"]} == {"noise"}
    trainer = make_trainer(train_dataset=named(""), eval_dataset=held_out, peft_config=lora, args=SEVERAL)
    trainer.train()
    trainer.evaluate()
    logged = {name.removeprefix("eval_") for log in trainer.state.log_history for name in log}
    groups = {name.split("/")[0] for name in logged if "/" in name}
    assert groups - set(RESERVED_KINDS) == {"question", *KINDS} and len(groups & set(RESERVED_KINDS)) > 5


def test_a_streams_first_row_is_read_for_its_columns_once(make_trainer, monkeypatch):
    """Of a stream that fills a buffer to be shuffled, the first row takes as long as many."""
    started = []

    def rows():
        started.append(1)
        yield from ready(8)

    class Windows(Exception):
        pass

    def stop(*args, **kwargs):
        raise Windows

    monkeypatch.setattr(GRPOTrainer, "__init__", stop)
    with pytest.raises(Windows):
        make_trainer(train_dataset=IterableDataset.from_generator(rows))
    assert len(started) == 2, "for its columns, and for a window"


def test_a_prompt_that_hides_the_contexts_end_is_refused_where_all_of_it_is_asked_for(make_args, make_trainer, lora):
    hidden = SUMMARIZER_PROMPT.replace("{context}", "{before_last_k}")
    for kinds in ({"fact": 1, "continuation": 1}, {"recall": 1}, {"far": 1}):
        with pytest.raises(ValueError, match=r"`summarizer_prompt` shows .*'\{before_last_k\}'.* Write '\{context\}'"):
            make_args(target_kinds=kinds, summarizer_prompt=hidden)
    with pytest.raises(ValueError, match=r"column `targets`, asks for the whole context"):
        make_trainer(train_dataset=ready(8), peft_config=lora, args={"summarizer_prompt": hidden})
    # The default gives way to one that shows it
    by_default = make_args(target_kinds={"fact": 1}, summarizer_prompt=SUMMARIZER_PROMPT_WITH_TAIL)
    assert by_default.summarizer_prompt == SUMMARIZER_PROMPT_OF_FACTS
    args = {"summarizer_prompt": SUMMARIZER_PROMPT_WITH_TAIL}
    trainer = make_trainer(train_dataset=ready(8), peft_config=lora, args=args)
    assert not trainer.prompts.needs_last_k and trainer.args.summarizer_prompt == SUMMARIZER_PROMPT_OF_FACTS


def test_an_evaluation_on_targets_is_refused_where_the_prompt_hides_the_contexts_end(make_trainer, lora):
    """S is trained on texts and not shown their last tokens, which G is not shown either where its cue is a question."""
    hidden = {"summarizer_prompt": SUMMARIZER_PROMPT_WITH_TAIL}
    message = r"The questions dataset brings targets.*Set `summarizer_prompt` to one with '\{context\}' instead"
    with pytest.raises(ValueError, match=message):
        make_trainer(eval_dataset={"questions": ready(4)}, peft_config=lora, args=hidden)
    trainer = make_trainer(peft_config=lora, args=hidden)
    with pytest.raises(ValueError, match="The eval dataset brings targets"):
        trainer.evaluate(ready(4))
    # A prompt that shows it, or that is not read
    for args in ({}, {**hidden, "generator_only": True}):
        trainer = make_trainer(eval_dataset=ready(4), peft_config=lora, args={"target_floor": None, **args})
        assert trainer.evaluate()["eval_question/windows"] == 4


@pytest.mark.parametrize("windows", [1, 2])
def test_last_tokens_that_are_fewer_than_a_character_has_are_none(make_trainer, lora, windows):
    """Nothing then stands before the target, where the teacher is not shown the context, nor before a cue."""
    texts = Dataset.from_dict({"text": ["约翰斯诺在1854年于苏活区标出了霍乱死者的住处。" * 4] * 8})
    args = {**SEVERAL, "last_k": 2, "cue_length": 2, "windows_per_document": windows, "context_length": 40}
    trainer = make_trainer(train_dataset=texts, eval_dataset=texts, peft_config=lora, args=args)
    rollouts = rows_of(trainer)
    trainer.train()
    measures = trainer.evaluate()
    assert {len(target["cue_ids"]) for row in rollouts[0] for target in row["targets"]} >= {0}
    assert all(math.isfinite(measures[f"eval_nll_{reader}"]) for reader in ("gist", "teacher", "last_k", "tail"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"target_kinds": {}}, "`target_kinds` must name kinds with their weights"),
        ({"target_kinds": {"answer": 1}}, "'answer', which no rule makes"),
        ({"target_kinds": {"fact": 0}}, "weight of 'fact' .* must be positive, got 0"),
        ({"target_kinds": {"fact": 1}, "targets_per_context": 0}, "`targets_per_context` must be at least 1, got 0"),
        ({"target_kinds": {"fact": 1}, "recall_age": [0, 0]}, "`recall_age` must be weights"),
        ({"target_kinds": {"fact": 1}, "recall_age": [1, 1]}, "`recall_age` .* is of windows of a walk"),
        (
            {"target_kinds": {"fact": 1}, "recall_age": [1, 0, 2, 0], "windows_per_document": 2},
            r"`recall_age` \(\[1, 0, 2, 0\]\) asks for what was said 2 windows ago, .* `windows_per_document` \(2\)",
        ),
    ],
)
def test_kinds_that_cannot_be_are_refused(make_trainer, args, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_trainer(args=args, reward_funcs=[log_prob_gain])


WALKS = {"windows_per_document": 2, "context_length": 64, "max_completion_length": 6}


@pytest.mark.parametrize(
    ("setting", "unread", "read"),
    [
        ({"targets_per_context": 3}, [{}, {"continuation": 2}], {"far": 1}),
        ({"target_floor": 0.2}, [{}, {"continuation": 2}], {"far": 1}),
        ({"distillation_mean": "tokens"}, [{}, {"continuation": 2}], {"far": 1}),
        ({"cue_length": 5}, [{}, {"continuation": 1, "far": 1}], {"recall": 1}),
        ({"far_offset": 9}, [{}, {"continuation": 1, "fact": 1}], {"far": 1}),
        ({"recall_age": [1, 1], **WALKS}, [{}, {"continuation": 1, "far": 1}], {"recall": 1}),
    ],
)
def test_what_is_said_of_targets_that_no_window_has_is_refused(make_trainer, setting, unread, read):
    name = next(iter(setting))
    said = re.escape(f"`{name}` ({setting[name]}) is of targets of the kind")
    for kinds in unread:
        with pytest.raises(ValueError, match=rf"{said}.*name it in `target_kinds`"):
            make_trainer(args={**setting, "target_kinds": kinds or None})
    make_trainer(args={**SEVERAL, "target_kinds": read, "far_offset": 9 if "far" in read else 128, **setting})


def test_what_is_said_of_targets_may_be_of_those_that_a_dataset_brings(make_trainer, held_out):
    brought = [{"cue": "What did they drink?", "target": " beer", "at": 1}]
    ready_ones, texts = ready(8), held_out.map(lambda row: {"document_targets": brought})
    for train_dataset, read in (
        (ready_ones, {"target_floor"}),
        (texts, {"target_floor", "targets_per_context"}),
    ):
        for name, value in {"target_floor": None, "targets_per_context": 3, "cue_length": 5, "far_offset": 9}.items():
            with nullcontext() if name in read else pytest.raises(ValueError, match=f"`{name}` .* is of targets"):
                make_trainer(train_dataset=train_dataset, args={name: value})
    make_trainer(eval_dataset=ready_ones, args={"target_floor": None})  # which training does not read


def test_a_pair_says_what_it_was_paid_for(make_trainer, lora, held_out, tmp_path):
    for args in ({**SEVERAL, "targets_per_context": 5}, {}):
        trainer = make_trainer(peft_config=lora, eval_dataset=held_out, args={**args, "max_steps": 1})
        measures = trainer.evaluate()
        trainer.save_model(tmp_path)
        recipe = PairConfig.load(tmp_path).recipe
        card = ModelCard.load(tmp_path / "README.md").text
        assert recipe.get("target_kinds") == args.get("target_kinds")
        assert recipe.get("targets_per_context") == args.get("targets_per_context")
        assert ("eval_contexts" in measures) == bool(args)
        windows = len(trainer.eval_dataset)
        if args:
            assert measures["eval_contexts"] == windows < measures["eval_windows"]
            assert f"On {measures['eval_windows']} targets of {windows} held-out windows" in card
            assert f"| `target_kinds` | `{KINDS}` |" in card
        else:
            assert measures["eval_windows"] == windows and f"On {windows} held-out windows" in card


def test_the_command_line_takes_kinds_as_json(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    argv += ["--model_name_or_path", "model", "--dataset_path", "text", "--target_kinds", '{"fact": 3, "recall": 1}']
    _, args, _ = make_parser().parse_args_and_config(argv)
    assert args.target_kinds == {"fact": 3, "recall": 1}
    assert args.target_spec.kinds == (("fact", 3), ("recall", 1))
    assert args.summarizer_prompt == SUMMARIZER_PROMPT_OF_FACTS


@pytest.mark.parametrize("processes", [1, 2])
def test_on_several_ranks_contexts_of_any_number_of_targets_are_as_many_rows(make_trainer, monkeypatch, processes):
    """For ranks wait for each other in every forward; one process splits what is long."""
    monkeypatch.setattr("trl_gist.scoring.gist_scorer.ROW_TOKENS", 100)
    trainer = make_trainer(args=SEVERAL)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", processes)
    built = trainer.generator_trainer
    built = GeneratorTrainer(
        built.model, built.scorer.teacher.model, built.scorer.prompts, trainer.args, trainer.accelerator
    )
    built.scorer.batch_size = 1
    target = {"kind": "question", "cue_ids": [5] * 7, "target_ids": [6] * 5, "after_ids": [5] * 7}
    calls, found, scored = [], [], []
    built.scorer.generator.register_forward_hook(lambda *_: calls.append(0))
    for count in (2, 18):
        row = {"document_id": 0, "prompt": "", "context_ids": [7] * 20, "last_k_ids": [], "targets": [target] * count}
        calls.clear()
        scored += built.score([row], [[8]], 1, distill=False)
        found.append(len(calls) / 2)  # an empty gist takes as many
    assert found[0] == 1 and (found[1] == 1 if processes > 1 else found[1] > 1)
    assert scored[0]["teacher_kl"] == pytest.approx(scored[1]["teacher_kl"], rel=1e-4)
