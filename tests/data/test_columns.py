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

"""What a dataset may bring beside its windows, and what it is told where it may not."""

import datetime

import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict
from tiny import make_documents, stream

from trl_gist.data.columns import RESERVED_COLUMNS, RESERVED_WALK_COLUMNS, WINDOW_COLUMNS
from trl_gist.data.windows import prepare_windows


WALKS = {"windows_per_document": 2, "context_length": 20, "last_k": 3, "max_completion_length": 4, "target_length": 6}
# Names that look taken and are not, beside plain ones
ORDINARY = {
    "title": lambda n: f"title {n}",
    "skipped": lambda n: n % 2 == 0,
    "score": lambda n: n / 7,
    "tools": lambda n: ["search", "read"][: n % 3],
    "environment": lambda n: "game",
    "environments": lambda n: ["game", "code"],
    "meta": lambda n: {"source": f"s{n}", "page": n, "tags": [{"name": "a", "at": n}]},
    "messages": lambda n: [{"role": "user", "content": str(n)}],
    "when": lambda n: datetime.datetime(2026, 1, 1 + n),
    "raw": lambda n: bytes([n, 0, 255]),
    "nothing": lambda n: None,
    "a name, with spaces": lambda n: n,
    "length": lambda n: n,
    "label": lambda n: n % 2,
    "grid": lambda n: [[n, n + 1], [n + 2, n + 3]],
}
FEATURES = {"label": ClassLabel(names=["no", "yes"]), "grid": Array2D((2, 2), "int64")}


def rows_of(kind):
    columns = [{name: value(n) for name, value in ORDINARY.items()} for n in range(8)]
    if kind == "windows":
        texts = [{"context": [60 + n] * 12, "target": [30, 31], "last_k": [60 + n] * 2} for n in range(8)]
    else:
        texts = [{"text": text} for text in make_documents(8)]
    return [
        {**text, **more, "document_id": f"d{n}"} for n, (text, more) in enumerate(zip(texts, columns, strict=True))
    ]


@pytest.fixture(params=["map-style", "streaming"])
def dataset_of(request):
    def map_style(rows):
        dataset = Dataset.from_list(rows)
        typed = {name: feature for name, feature in FEATURES.items() if name in rows[0]}
        return dataset.cast(Features({**dataset.features, **typed}))

    return map_style if request.param == "map-style" else stream


@pytest.fixture
def handed_on(make_trainer):
    """What a reward function is handed in a step of training, and in an evaluation."""

    def handed_on(dataset, **args):
        calls = []

        def reward(prompts, completions, completion_ids, **columns):
            calls.append(columns)
            return [0.0] * len(prompts)

        sizes = {"max_steps": 1, "num_generations": 2, "num_generations_eval": 2, "per_device_train_batch_size": 4}
        trainer = make_trainer(
            train_dataset=dataset,
            eval_dataset=dataset,
            reward_funcs=reward,
            args={**sizes, **args},
        )
        trainer.train()
        trainer.evaluate()
        return calls

    return handed_on


@pytest.mark.parametrize("kind", ["documents", "windows", "walks"])
def test_other_columns_arrive_at_reward_functions_as_they_are(handed_on, dataset_of, kind):
    rows = rows_of(kind)
    calls = handed_on(dataset_of(rows), **(WALKS if kind == "walks" else {}))
    assert len(calls) > 1
    for columns in calls:
        numbers = [int(name.removeprefix("d")) for name in columns["document_id"]]
        for name in ORDINARY:
            assert columns[name] == [rows[number][name] for number in numbers], name


@pytest.mark.parametrize("kind", ["documents", "windows", "walks"])
def test_whatever_else_reward_functions_are_handed_has_a_reserved_name(handed_on, kind):
    """So that a new score, or a new argument of TRL's, cannot replace a user's column in silence."""
    (first, *_) = handed_on(Dataset.from_list(rows_of(kind)), **(WALKS if kind == "walks" else {}))
    reserved = RESERVED_COLUMNS | (RESERVED_WALK_COLUMNS if kind == "walks" else {})
    assert first.keys() - ORDINARY.keys() - reserved.keys() == {"document_id"}
    made = {"prompt", "prompts", "completion", "completions", "completion_ids", "image", "images"}
    walks = set() if kind == "walks" else {"walk_ids", "seen_ids"}
    several = {"targets", "kind", "window_targets", "window_length", "target_age"}
    assert reserved.keys() - first.keys() == made | walks | several


@pytest.fixture
def cut(make_args, tokenizer):
    """As a trainer does at its construction."""

    def cut(dataset, name="train", **settings):
        args = make_args(**settings)
        return prepare_windows(dataset, tokenizer, args.window_spec(tokenizer), name=name, rules=args.column_rules)

    return cut


@pytest.mark.parametrize("column", RESERVED_COLUMNS)
@pytest.mark.parametrize("kind", ["documents", "windows"])
def test_a_reserved_name_is_refused_with_the_way_out(cut, dataset_of, kind, column):
    rows = [{**row, column: [1, 2]} for row in rows_of(kind)]
    message = rf"The train dataset has a column `{column}`.*rename_column\('{column}', "
    if (kind, column) == ("windows", "targets"):
        message = "The train dataset has both `target` and `targets`"  # beside a context it is an input
    with pytest.raises(ValueError, match=message):
        cut(dataset_of(rows))


def test_a_reserved_name_is_refused_at_construction(make_trainer):
    dataset = Dataset.from_list([{"text": text, "seen_ids": [1, 2]} for text in make_documents(4)])
    with pytest.raises(ValueError, match="The train dataset has a column `seen_ids`"):
        make_trainer(train_dataset=dataset)
    with pytest.raises(ValueError, match="The eval dataset has a column `seen_ids`"):
        make_trainer(eval_dataset=dataset)


@pytest.mark.parametrize("column", RESERVED_WALK_COLUMNS)
def test_a_name_of_walks_is_taken_on_walks_alone(make_trainer, handed_on, column):
    dataset = Dataset.from_list([{"text": text, column: 5} for text in make_documents(4)])
    assert handed_on(dataset)[0][column] == [5] * 4
    with pytest.raises(ValueError, match=f"has a column `{column}`"):
        make_trainer(train_dataset=dataset, args=WALKS)


def test_renamed_as_it_says_a_column_arrives(handed_on):
    dataset = Dataset.from_list([{"text": text, "images": "x.png"} for text in make_documents(4)])
    assert handed_on(dataset.rename_column("images", "my_images"))[0]["my_images"] == ["x.png"] * 4


def test_text_beside_context_and_target_is_refused_beside_one_of_them_it_is_not(make_trainer, handed_on):
    rows = [{"text": text, "context": "a"} for text in make_documents(4)]
    assert handed_on(Dataset.from_list(rows))[0]["context"] == ["a"] * 4
    with pytest.raises(ValueError, match="both `text`, which is cut .* and `context` and `target`"):
        make_trainer(train_dataset=Dataset.from_list([{**row, "target": "b"} for row in rows]))


# ---- Budgets ----


@pytest.mark.parametrize("budget", [2, 10**7, 0, "short", None])
def test_without_a_range_a_budget_is_refused(cut, dataset_of, budget):
    rows = [{"text": text, "budget": budget} for text in make_documents(4)]
    with pytest.raises(ValueError, match=r"column `budget`.*`gist_length_range` is set; it is None.*rename_column"):
        cut(dataset_of(rows))


@pytest.mark.parametrize("budget", [0, 7, 10**7, -1, "short", 2.5, 2.0, True])
def test_a_budget_outside_the_range_is_refused_at_construction(cut, dataset_of, budget):
    rows = [{"text": text, "budget": budget} for text in make_documents(4)]
    with pytest.raises(ValueError, match=r"Row 0 of the train dataset has `budget` .* `gist_length_range` \(1, 6\)"):
        cut(dataset_of(rows), gist_length_range=[1, 6])


@pytest.mark.parametrize("kind", ["documents", "walks"])
def test_a_budget_within_the_range_holds_and_none_is_drawn(handed_on, dataset_of, kind):
    rows = [{"text": text, "budget": (None, 1, 3)[n % 3], "given": n % 3} for n, text in enumerate(make_documents(9))]
    args = {**(WALKS if kind == "walks" else {}), "gist_length_range": [1, 4 if kind == "walks" else 6]}
    for columns in handed_on(dataset_of(rows), **args):
        for given, budget, length in zip(columns["given"], columns["budget"], columns["gist_length"], strict=True):
            assert budget == (None, 1, 3)[given] or (given == 0 and 1 <= budget <= args["gist_length_range"][1])
            assert length <= budget


# ---- What is no dataset ----


@pytest.mark.parametrize("kind", [DatasetDict, IterableDatasetDict, dict])
def test_a_dictionary_of_splits_to_train_on_is_refused_by_the_splits_names(make_trainer, kind):
    dataset = Dataset.from_dict({"text": make_documents(4)})
    splits = {"validation": dataset, "test": dataset}
    if kind is IterableDatasetDict:
        splits = {name: split.to_iterable_dataset() for name, split in splits.items()}
    with pytest.raises(
        ValueError, match=rf"is a {kind.__name__} of \['validation', 'test'\].*`dataset\['validation'\]`"
    ):
        make_trainer(train_dataset=kind(splits))


def test_a_list_is_refused_and_its_dataset_named(make_trainer):
    with pytest.raises(ValueError, match=r"The train dataset is a list; .*Dataset.from_list\(rows\)"):
        make_trainer(train_dataset=[{"text": text} for text in make_documents(4)])


def test_rows_read_as_tensors_are_the_same_windows(make_trainer):
    rows = [{"context": [60 + n] * 12, "target": [30, 31], "weight": n} for n in range(4)]
    plain, formatted = Dataset.from_list(rows), Dataset.from_list(rows).with_format("torch")
    assert list(make_trainer(train_dataset=formatted).train_dataset) == list(
        make_trainer(train_dataset=plain).train_dataset
    )


# ---- Evaluation on what was not there at construction ----


@pytest.mark.parametrize("ask", ["evaluate", "predict"])
def test_documents_given_later_are_cut_and_measured_as_those_of_the_constructor(make_trainer, dataset_of, ask):
    held_out = dataset_of([{"text": text} for text in make_documents(3, seed=5)])
    args = {"num_generations_eval": 2}
    expected = make_trainer(eval_dataset=held_out, args=args).evaluate()
    trainer = make_trainer(args=args)
    found = trainer.evaluate(held_out) if ask == "evaluate" else trainer.predict(held_out).metrics
    prefix = "eval" if ask == "evaluate" else "test"
    for name in ("windows", "documents", "teacher_kl", "nll_gist", "gap_closed_tail"):
        assert found[f"{prefix}_{name}"] == expected[f"eval_{name}"], name
    assert trainer.skipped_rows["eval"].total == 0


def test_windows_given_later_are_taken_as_they_are(make_trainer, documents):
    trainer = make_trainer(eval_dataset=documents)
    assert set(trainer.eval_dataset.column_names) == set(WINDOW_COLUMNS)
    assert trainer.evaluate(trainer.eval_dataset.select(range(5)))["eval_windows"] == 5


def test_several_given_later_are_measured_each_by_its_name(make_trainer, documents):
    held_out = DatasetDict({"near": documents.select([0]), "far": documents.select([1, 2])})
    measures = make_trainer().evaluate(held_out)
    assert (measures["eval_near_documents"], measures["eval_far_documents"]) == (1, 2)


def test_documents_given_later_are_refused_as_those_of_the_constructor(make_trainer):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="The eval dataset gave no window"):
        trainer.evaluate(Dataset.from_dict({"text": ["too short"]}))
    with pytest.raises(ValueError, match="has a column `images`"):
        trainer.predict(Dataset.from_dict({"text": make_documents(1), "images": [1]}))


def test_workers_that_stay_do_not_confuse_what_was_given_with_the_trainers_own(make_trainer, documents):
    args = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(eval_dataset=documents.select([0]), args=args)
    own = len(trainer.get_eval_dataloader().dataset)
    assert len(trainer.get_eval_dataloader(documents).dataset) == len(trainer.train_dataset) > own
    assert len(trainer.get_eval_dataloader().dataset) == own
