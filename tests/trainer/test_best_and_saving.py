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

"""The best checkpoint is the best one, and no checkpoint stands inside a rollout, whoever asks for it."""

import re
from pathlib import Path

import pytest
from checks import assert_equal_models, assert_same, history
from datasets import Dataset, IterableDataset
from tiny import make_documents, stream
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from trl_gist.scoring.controls import GREATER_IS_BETTER


EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1}

# A rollout of four optimizer steps
FOUR_STEPS = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 1}


# ---- The best checkpoint ----

LOWER = {"teacher_kl", "nll_gist", "gist_length", "gist_rate", "total_rate"}


def test_every_measure_of_an_evaluation_has_a_direction_or_is_refused(make_trainer, make_args, documents):
    """What an evaluation returns is what a best checkpoint can be chosen by; what TRL logs beside it is refused too."""
    trainer = make_trainer(eval_dataset=documents)
    returned = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    directions = {}
    for name in sorted(name for name in returned.keys() | logged.keys() if name.startswith("eval_")):
        try:
            directions[name] = make_args(metric_for_best_model=name, **EACH_STEP).greater_is_better
        except ValueError as error:
            assert re.search(f"'{name}'.*(Set `greater_is_better`|Choose one of teacher_kl)", str(error))
    for name, greater in directions.items():
        measure = name.removeprefix("eval_")
        assert greater == (measure not in LOWER), name
        assert measure in LOWER or measure.startswith(("gain_over_", "gap_closed_")), name
    with_direction = {name for name, greater in GREATER_IS_BETTER.items() if greater is not None} - {"exact"}
    assert {name.removeprefix("eval_") for name in directions} == with_direction
    # What is exact is measured where there are other targets than the continuation
    assert {f"eval_{name}" for name in GREATER_IS_BETTER} - {"eval_exact"} <= returned.keys()


@pytest.mark.parametrize("metric", [name for name, greater in GREATER_IS_BETTER.items() if greater is None])
def test_a_measure_that_says_nothing_of_the_gists_wants_a_direction(make_args, metric):
    with pytest.raises(ValueError, match=f"`metric_for_best_model` \\('{metric}'\\) is not better either way"):
        make_args(metric_for_best_model=metric)
    assert make_args(metric_for_best_model=metric, greater_is_better=True).greater_is_better


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "reward", "rewards/kl_gain/mean", "teacher_kl_se", "rouge"])
def test_what_no_evaluation_measures_is_refused(make_args, metric):
    for direction in (None, True, False):
        with pytest.raises(ValueError, match="is no measure of an evaluation. Choose one of teacher_kl, "):
            make_args(metric_for_best_model=metric, greater_is_better=direction)


FACTS = {"context_length": 60, "target_kinds": {"fact": 2, "recall": 1}, "target_floor": None}


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("fact/teacher_kl", False), ("eval_recall/gain_over_null", True), ("easy_my kind/exact", True), ("exact", True)],
)
def test_a_measure_of_one_kind_of_targets_has_the_direction_of_the_measure(make_args, metric, greater):
    assert make_args(metric_for_best_model=metric, **EACH_STEP).greater_is_better is greater


@pytest.mark.parametrize("metric", ["fact/exact", "eval_recall/teacher_kl", "exact"])
def test_the_best_may_be_chosen_by_one_kind_of_targets(make_trainer, documents, tmp_path, metric):
    args = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, **EACH_STEP}
    trainer = make_trainer(eval_dataset=documents, args={**FACTS, **args, "metric_for_best_model": metric})
    trainer.train()
    name = f"eval_{metric.removeprefix('eval_')}"
    measured = [log[name] for log in trainer.state.log_history if name in log]
    assert len(measured) == 2
    assert trainer.state.best_metric == (max if "exact" in metric else min)(measured)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("metric", "args", "message"),
    [
        (
            "far/teacher_kl",
            FACTS,
            "of which the eval dataset has none: it has fact, recall. Choose another, as 'teacher_kl'",
        ),
        ("fact/exact", {}, "of which the eval dataset has none: it has the continuation alone"),
        ("exact", {}, "it has the continuation alone"),
        (
            "continuation/exact",
            {**FACTS, "target_kinds": {"fact": 1, "continuation": 1}},
            "has none: it has continuation, fact",
        ),
        ("/exact", FACTS, "is no measure of an evaluation"),
    ],
)
def test_a_kind_that_no_evaluation_has_is_refused_before_training(
    make_trainer, documents, metric, args, message, streams
):
    evals = stream([{"text": text} for text in documents["text"]]) if streams else documents
    with pytest.raises(ValueError, match=message):
        make_trainer(eval_dataset=evals, args={**args, **EACH_STEP, "metric_for_best_model": metric})


def test_a_direction_that_is_given_is_kept(make_args):
    for greater in (True, False):
        for metric in ("teacher_kl", "eval_gain_over_null"):
            assert make_args(metric_for_best_model=metric, greater_is_better=greater).greater_is_better is greater


@pytest.mark.parametrize("wanted", [{"load_best_model_at_end": True}, {"save_strategy": "best"}])
def test_the_best_is_the_one_closest_to_the_teacher_unless_it_is_said(make_args, wanted):
    args = make_args(**{"save_strategy": "steps", "save_steps": 1, **EACH_STEP, **wanted})
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_teacher_kl", False)


def test_the_best_without_evaluations_is_refused(make_args):
    with pytest.raises(ValueError, match="no evaluation would say which is: set `eval_strategy`"):
        make_args(save_strategy="best")


@pytest.mark.parametrize(
    ("metric", "datasets", "message"),
    [
        (None, ["easy", "hard"], r"each of \['easy', 'hard'\] has measures of its own. Set it to 'easy_teacher_kl'"),
        ("hrad_teacher_kl", ["easy", "hard"], "is measured on no eval dataset: each of"),
        ("hard_teacher_kl", None, "is measured on no eval dataset. Set it to 'teacher_kl'"),
        ("eval_hard_gain_over_tail", ["easy", "hard"], None),
        ("teacher_kl", None, None),
    ],
)
def test_the_best_is_chosen_on_a_dataset_that_there_is(make_trainer, documents, metric, datasets, message):
    args = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, **EACH_STEP}
    evals = documents if datasets is None else dict.fromkeys(datasets, documents)
    if message is None:
        trainer = make_trainer(eval_dataset=evals, args={**args, "metric_for_best_model": metric})
        assert trainer.args.greater_is_better == ("gain" in metric)
        return
    with pytest.raises(ValueError, match=message):
        make_trainer(eval_dataset=evals, args={**args, "metric_for_best_model": metric})


def given(trainer, values):
    """Evaluations measure these values of `teacher_kl`, one after another."""
    values, loop = iter(values), trainer.evaluation_loop

    def evaluation_loop(*args, **kwargs):
        output = loop(*args, **kwargs)
        output.metrics["eval_teacher_kl"] = next(values)
        return output

    trainer.evaluation_loop = evaluation_loop


@pytest.mark.parametrize("save", [{"save_strategy": "best"}, {"save_strategy": "steps", "save_steps": 1}])
def test_the_best_checkpoint_has_the_lowest_kl(make_trainer, lora, documents, save):
    args = {**save, **EACH_STEP, "max_steps": 4, "load_best_model_at_end": True}
    trainer = make_trainer(peft_config=lora, eval_dataset=documents.select(range(2)), args=args)
    given(trainer, [0.9303, 0.9260, 0.9284, 0.9275])
    trainer.train()
    assert trainer.state.best_metric == 0.9260
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"


# ---- No checkpoint inside a rollout ----


class AtStep(TrainerCallback):
    """Sets `control` as a user's callback may, at one step."""

    def __init__(self, step, **flags):
        self.step, self.flags = step, flags

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            vars(control).update(self.flags)


def checkpoints(trainer):
    return sorted(int(path.name.split("-")[1]) for path in Path(trainer.args.output_dir).glob("checkpoint-*"))


@pytest.fixture
def make_run(make_trainer, lora, tmp_path):
    """Two epochs of three rollouts, each of four steps."""

    def make(callback=None, name="run", **args):
        return make_trainer(
            train_dataset=Dataset.from_dict({"text": make_documents(12)}),
            eval_dataset=Dataset.from_dict({"text": make_documents(2, seed=1)}),
            peft_config=lora,
            callbacks=[callback] if callback else [],
            args={
                **{"output_dir": str(tmp_path / name), "max_windows_per_document": 1, "max_steps": 24},
                **{"max_completion_length": 2, **FOUR_STEPS, **args},
            },
        )

    return make


@pytest.mark.parametrize(
    ("callback", "args", "expected"),
    [
        (None, {"save_strategy": "epoch"}, [12, 24]),
        (None, {"save_strategy": "epoch", "max_steps": 16}, [12, 16]),
        (None, {"save_strategy": "steps", "save_steps": 0.2}, [8, 12, 16, 20, 24]),  # 5, 10, 15, 20 and the end
        (None, {"save_strategy": "steps", "save_steps": 5, "max_steps": 16}, [8, 12, 16]),
        (AtStep(6, should_save=True), {"save_strategy": "no"}, [8]),
        (AtStep(8, should_save=True), {"save_strategy": "no"}, [8]),
        (AtStep(6, should_training_stop=True), {"save_strategy": "epoch"}, []),
        (AtStep(6, should_save=True, should_training_stop=True), {"save_strategy": "no"}, []),
        (AtStep(6, should_epoch_stop=True), {"save_strategy": "epoch", "max_steps": 16}, [8, 16]),
    ],
)
def test_a_checkpoint_waits_for_the_end_of_its_rollout(make_run, callback, args, expected):
    trainer = make_run(callback, **args)
    trainer.train()
    assert checkpoints(trainer) == expected


@pytest.mark.parametrize("eval_steps", [0.4, 5])
def test_the_best_is_chosen_where_it_can_be_saved(make_run, eval_steps):
    trainer = make_run(max_steps=12, save_strategy="best", eval_strategy="steps", eval_steps=eval_steps)  # 5, 10, 12
    given(trainer, [0.9, 0.8, 0.7])
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_runtime" in log] == [8, 12]
    assert checkpoints(trainer) == [8, 12]


def test_a_run_that_saved_late_goes_on_as_if_it_had_not_stopped(make_run):
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 0.5}  # 6
    whole = make_run(name="whole", **settings)
    whole.train()
    stopped = make_run(AtStep(8, should_training_stop=True), **settings)
    stopped.train()
    assert checkpoints(stopped) == [8]
    resumed = make_run(**settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(history(whole), history(resumed))
    assert_equal_models(whole.model, resumed.model)
    assert_equal_models(whole.generator, resumed.generator)


@pytest.mark.parametrize("save_strategy", ["steps", "epoch", "best"])
def test_a_run_that_saves_may_not_end_inside_a_rollout(make_args, make_run, save_strategy):
    args = {"save_strategy": save_strategy, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    with pytest.raises(ValueError, match=r"`max_steps` \(6\) must be a multiple of the 4 .* Set `max_steps` to 4"):
        make_args(**FOUR_STEPS, **args, max_steps=6)
    trainer = make_run(**args, max_steps=-1, num_train_epochs=0.5)
    message = r"The 6 optimizer steps that `num_train_epochs` \(0.5\) comes to must be a multiple of the 4"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    make_args(**FOUR_STEPS, max_steps=6, save_strategy="no")


def test_a_checkpoint_inside_a_rollout_can_be_neither_written_nor_resumed_from(make_run):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.save_model(str(Path(args.output_dir, "model")))  # may be written anywhere
                with pytest.raises(ValueError, match="No checkpoint can be written at step 2, inside a rollout of 4"):
                    trainer._save_checkpoint(trainer.model, None)

    settings = {"max_steps": 4, "save_strategy": "steps"}
    trainer = make_run(Save(), **settings, save_steps=4)
    trainer.train()
    assert Path(trainer.args.output_dir, "model", "generator").is_dir()
    assert checkpoints(trainer) == [4]
    other = make_run(**{**settings, "max_steps": 16, "save_steps": 16, "num_iterations": 2})
    with pytest.raises(ValueError, match="was saved at step 4, inside a rollout of this run, which takes 8"):
        other.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))


# ---- Steps as a share of the run ----


def test_steps_may_be_a_share_of_the_run(make_trainer, lora, documents):
    shares = {"save_steps": 0.5, "eval_steps": 0.5, "logging_steps": 0.25}
    args = {"max_steps": 4, "save_strategy": "steps", "eval_strategy": "steps", **shares}
    trainer = make_trainer(peft_config=lora, eval_dataset=documents.select(range(2)), args=args)
    trainer.train()
    assert checkpoints(trainer) == [2, 4]
    logs = trainer.state.log_history
    assert [log["step"] for log in logs if "eval_runtime" in log] == [2, 4]
    assert [log["step"] for log in logs if "grad_norm" in log] == [1, 2, 3, 4]


# ---- A dataset shorter than a rollout ----


@pytest.mark.parametrize(
    ("args", "contexts"),
    [
        ({}, 2),
        ({"per_device_train_batch_size": 8, "steps_per_generation": 2, "gradient_accumulation_steps": 1}, 4),
        # A stream of one rollout, where an optimizer step takes two: passes without end
        ({"per_device_train_batch_size": 4, "steps_per_generation": 1, "gradient_accumulation_steps": 2}, 2),
    ],
)
def test_a_stream_shorter_than_a_step_is_named(make_trainer, lora, args, contexts):
    rows = [{"text": make_documents(1)[0]}]
    trainer = make_trainer(
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)),
        peft_config=lora,
        args={"max_windows_per_document": 1, **args},
    )
    with pytest.raises(ValueError, match=f"ended before it gave the {contexts} windows of one optimizer step"):
        trainer.train()


def test_a_run_that_a_callback_ends_before_its_first_step_is_no_short_dataset(make_trainer, lora):
    class Stop(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    args = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer(peft_config=lora, callbacks=[Stop()], args=args)
    trainer.train()
    assert trainer.state.global_step == 0
