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

"""Bad input to the trainer gets a clear error before anything is trained. Errors in mid-run: test_failures.py."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny import make_documents, make_model, make_tokenizer
from tiny_mixtures import make_phi3
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from trl_gist import GistConfig, GistTrainer, log_prob_gain
from trl_gist.scripts.train import load_compressor
from trl_gist.trainer.config_checks import warn_of_unread


both_ways = pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])


# ---- Roles ----


def test_a_role_may_be_a_path(make_trainer, checkpoint):
    trainer = make_trainer(Path(checkpoint), generator=Path(checkpoint), teacher=Path(checkpoint))
    assert trainer.base_models == dict.fromkeys(("summarizer", "generator", "teacher"), checkpoint)


@pytest.mark.parametrize("role", ["model", "generator", "teacher"])
@pytest.mark.parametrize("source", [5, ["a"], {"a": 1}, b"a", 2.5])
def test_what_is_no_role_is_refused_by_name(make_trainer, role, source):
    with pytest.raises(ValueError, match=f"^`{role}` must be a checkpoint, .*, or a model, got "):
        make_trainer(**{role: source})


def test_a_tokenizer_without_a_token_that_ends_a_gist_is_refused(make_trainer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token, .* Set `eos_token` of the `processing_class`"):
        make_trainer(processing_class=tokenizer)


def test_settings_of_another_trainer_are_refused(checkpoint, documents, tmp_path):
    for args in (GRPOConfig(str(tmp_path / "run"), bf16=False, use_cpu=True), {"max_steps": 1}, str(tmp_path / "run")):
        with pytest.raises(ValueError, match=f"^`args` must be a `GistConfig`, .*, got {type(args).__name__}"):
            GistTrainer(checkpoint, args, train_dataset=documents)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A checkpoint with as many tokens as ours, two of which mean something else."""
    path = tmp_path_factory.mktemp("foreign")
    tokenizer = make_tokenizer()
    make_model(tokenizer, seed=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    file = Path(path, "tokenizer.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = (token for token, index in vocabulary.items() if index in (70, 71))
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("loaded", [False, True], ids=["string", "loaded"])
@pytest.mark.parametrize("role", ["generator", "teacher"])
def test_a_role_with_another_tokenizer_is_named_with_the_first_difference(make_trainer, foreign, role, loaded):
    source = AutoModelForCausalLM.from_pretrained(foreign) if loaded else foreign
    with pytest.raises(ValueError, match=f"The {role}'s tokenizer .*differs.*first at id 70.*one tokenizer"):
        make_trainer(**{role: source})


@pytest.mark.parametrize("role", ["model", "generator", "teacher"])
def test_a_loaded_role_with_too_few_embeddings_is_named(make_trainer, tokenizer, role):
    small = make_model(tokenizer, vocab_size=200)
    name = "summarizer" if role == "model" else role
    with pytest.raises(ValueError, match=f"The {name} has 200 token embeddings but the tokenizer has 400 tokens"):
        make_trainer(**{role: small, "processing_class": tokenizer})


def test_a_model_that_knows_no_checkpoint_needs_a_tokenizer(make_trainer, tokenizer):
    with pytest.raises(ValueError, match="pass `processing_class`"):
        make_trainer(model=make_model(tokenizer))


# ---- Positions ----


@pytest.mark.parametrize(
    ("role", "windows"),
    [
        ("summarizer", {"context_length": 120}),
        ("teacher", {"context_length": 60, "target_length": 69}),
        ("generator", {"context_length": 24, "last_k": 20, "target_length": 100}),
    ],
)
def test_a_window_beyond_a_roles_positions_is_refused_and_the_role_named(make_trainer, tokenizer, role, windows):
    roles = {"summarizer": "model", "generator": "generator", "teacher": "teacher"}
    models = {name: make_model(tokenizer, max_position_embeddings=1024) for name in roles.values()}
    models[roles[role]] = make_model(tokenizer, max_position_embeddings=128)
    with pytest.raises(ValueError, match=rf"does not fit the {role}: \d+ tokens .*room for \d+ .*Lower"):
        make_trainer(**models, processing_class=tokenizer, args={"summarizer_prompt": "Shorten: {context}", **windows})


def test_a_window_that_just_fits_every_roles_positions_trains(make_trainer, tokenizer):
    """The limits are not too strict either: at the last position of each role, training still runs."""
    probe = make_trainer(args={"summarizer_prompt": "Shorten: {context}"})
    summarizer = 24 + probe.prompts.summarizer_overhead(6) + 6
    generator = 4 + 8 + probe.prompts.generator_overhead + 6
    limits = {"model": summarizer, "generator": generator, "teacher": 32}

    def models(**less):
        return {
            name: make_model(tokenizer, max_position_embeddings=limit - less.get(name, 0))
            for name, limit in limits.items()
        }

    args = {"summarizer_prompt": "Shorten: {context}"}
    trainer = make_trainer(**models(), processing_class=tokenizer, args=args)
    trainer.train()
    assert trainer.state.global_step == 2
    for name in limits:
        with pytest.raises(ValueError, match="does not fit"):
            make_trainer(**models(**{name: 1}), processing_class=tokenizer, args=args)


def test_a_question_counts_where_it_is_read(make_trainer, tokenizer):
    """The teacher reads it after the passage, and the summarizer if its prompt has it."""
    rows = [{"context": [5] * 40, "last_k": [6] * 20, "target": [7] * 8}] * 12
    for prompt, budgets, read in (
        ("Shorten: {context}", None, 40),
        ("{last_k} {context} in {budget}", [1, 6], 60),
    ):
        args = {"summarizer_prompt": prompt, "gist_length_range": budgets}
        overhead = make_trainer(args=args).prompts.summarizer_overhead(6)
        for role, needed in (("teacher", 68), ("model", read + overhead + 6)):
            for positions in (needed, needed - 1):
                models = {name: make_model(tokenizer, max_position_embeddings=512) for name in ("model", "teacher")}
                models[role] = make_model(tokenizer, max_position_embeddings=positions)
                models["generator"] = make_model(tokenizer)
                with nullcontext() if positions == needed else pytest.raises(ValueError, match="does not fit the"):
                    make_trainer(
                        **models,
                        processing_class=tokenizer,
                        train_dataset=Dataset.from_list(rows),
                        args=args,
                    )


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_a_ready_window_that_does_not_fit_is_named_by_its_row(make_trainer, streaming):
    rows = [{"context": [5, 6, 7], "target": [8]}] * 3 + [{"context": [5] * 600, "target": [8]}]
    dataset = IterableDataset.from_generator(lambda: iter(rows)) if streaming else Dataset.from_list(rows)
    with pytest.raises(ValueError, match="Row 3 of the train dataset does not fit the"):
        make_trainer(train_dataset=dataset).train()


def test_contexts_that_longrope_turns_otherwise_while_gists_are_sampled_are_refused(make_trainer, tokenizer):
    args = {"summarizer_prompt": "Shorten: {context}"}
    written = make_trainer(args=args).prompts.summarizer_overhead(6) + 6

    def make(length, **more):
        models = {role: make_phi3(tokenizer, length=length) for role in ("model", "generator", "teacher")}
        return make_trainer(**models, processing_class=tokenizer, args=args | more)

    message = (
        r"Row 0 of the train dataset gives the summarizer 24 tokens, .* `context_length` or `max_completion_length`"
    )
    for length in (24 + written - 1, 24):
        with pytest.raises(ValueError, match=message):
            make(length)
    for length in (24 + written, 23):
        make(length)
    make(24, generator_only=True)
    # On a walk the first context has 13 tokens, and the others up to 24
    with pytest.raises(ValueError, match=message):
        make(24 + written - 1, windows_per_document=2)


# ---- Datasets ----


def streams_too(values):
    return [Dataset.from_list(values), IterableDataset.from_generator(lambda: iter(values))]


@pytest.mark.parametrize("which", [0, 1], ids=["map-style", "streaming"])
def test_an_empty_dataset_is_refused(make_trainer, which):
    empty = [Dataset.from_dict({"text": []}), IterableDataset.from_generator(lambda: iter([]))][which]
    with pytest.raises(ValueError, match="The train dataset is empty"):
        make_trainer(train_dataset=empty)
    with pytest.raises(ValueError, match="The eval dataset is empty"):
        make_trainer(eval_dataset=empty)


@pytest.mark.parametrize("which", [0, 1], ids=["map-style", "streaming"])
def test_a_dataset_of_short_documents_is_refused_with_the_count_and_the_length_needed(make_trainer, which):
    dataset = streams_too([{"text": "too short"}] * 5)[which]
    with pytest.raises(
        ValueError, match=r"no window: 5 rows skipped \(5 too short\).*context_length \+ target_length"
    ):
        make_trainer(train_dataset=dataset)


@pytest.mark.parametrize("role", ["model", "generator", "teacher"])
def test_a_checkpoint_that_is_nowhere_is_named(checkpoint, make_args, role):
    models = {"model": checkpoint, role: "no-such-model"}
    with pytest.raises(OSError, match="no-such-model is no folder here"):
        GistTrainer(**models, args=make_args(), train_dataset=Dataset.from_dict({"text": ["word " * 200] * 4}))


def test_no_dataset_is_refused(checkpoint, make_args):
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        GistTrainer(model=checkpoint, args=make_args())


@pytest.mark.parametrize("which", [0, 1], ids=["map-style", "streaming"])
@pytest.mark.parametrize("columns", [{"body": "words"}, {"context": "words"}, {"target": "words"}])
def test_wrong_columns_are_listed_beside_the_right_ones(make_trainer, which, columns):
    with pytest.raises(ValueError, match=rf"has columns \['{next(iter(columns))}'\]; it needs either `text`"):
        make_trainer(train_dataset=streams_too([columns])[which])


def test_columns_that_hold_no_text_come_with_a_remedy(make_trainer):
    with pytest.raises(ValueError, match=r"rename_column.*`--text_column`"):
        make_trainer(train_dataset=Dataset.from_dict({"body": ["a"]}))
    chat = [[{"role": "user", "content": "a"}]]
    with pytest.raises(ValueError, match=r"apply_chat_template\(messages.*`parse_special_tokens`"):
        make_trainer(train_dataset=Dataset.from_dict({"messages": chat}))


def test_a_prompt_completion_dataset_as_for_other_trl_trainers_is_refused(make_trainer):
    with pytest.raises(ValueError, match="it needs either `text`, or `context` and `target`"):
        make_trainer(train_dataset=Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}))


@both_ways
def test_unusable_rows_are_skipped_counted_and_reported_and_the_rest_train(make_trainer, lora, caplog, with_lora):
    texts = make_documents(12)
    for index in (1, 4):
        texts[index] = None
    dataset = Dataset.from_dict({"text": texts})
    with caplog.at_level("INFO", logger="trl_gist.data.windows"):
        trainer = make_trainer(train_dataset=dataset, peft_config=lora if with_lora else None)
    assert trainer.skipped_rows["train"].counts == {"null": 2}
    assert "train dataset: 50 windows from 12 rows, 2 rows skipped (2 null)." in caplog.text
    trainer.train()
    assert trainer.state.global_step == 2


def test_null_non_string_and_undecodable_rows_of_a_stream_are_skipped_and_counted(make_trainer, lora):
    good = make_documents(8)
    bad = [None, 17, "lone surrogate \ud800 in it", ["a", "list"], good[0][:20] + "\udfff" + good[0][20:], 2.5]
    rows = [{"text": text} for pair in zip(good, bad, strict=False) for text in pair]
    rows += [{"text": text} for text in good[len(bad) :]]
    trainer = make_trainer(
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)),
        peft_config=lora,
        args={"shuffle_dataset": False, "max_steps": 18},
    )
    trainer.train()
    counts = trainer.skipped_rows["train"].counts
    assert counts["null"] >= 1 and counts["undecodable"] >= 2 and counts["not a string"] >= 3
    assert trainer.state.log_history[-2]["skipped_rows"] == sum(counts.values())


@pytest.mark.parametrize("args", [{"cold_start_steps": 1}, {"generator_only": True}], ids=["cold start", "compressor"])
def test_what_a_rule_learns_from_in_a_stream_counts_once(make_trainer, lora, args):
    rows = [{"text": text} for document in make_documents(12) for text in ("too short", document)]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer(train_dataset=stream, peft_config=lora, args=args)
    if trainer.args.generator_only:
        trainer.compressor = load_compressor("tf-idf", trainer)
    assert trainer.skipped_rows["train"].total == 0


def test_unusable_ready_rows_are_skipped_and_counted(make_trainer):
    rows = [
        {"context": "Broad Street", "target": " pump"},
        {"context": None, "target": " pump"},
        {"context": "Broad Street", "target": None},
        {"context": "Broad \ud800", "target": " pump"},
        {"context": "Broad Street", "target": 5},
    ]
    trainer = make_trainer(
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)), args={"max_steps": 1, "num_generations": 8}
    )
    list(trainer.train_dataset)
    assert trainer.skipped_rows["train"].counts == {
        **{f"whose `{column}` is null": 1 for column in ("context", "target")},
        **{"whose `context` is undecodable": 1, "whose `target` is not a string": 1},
    }


def test_a_training_set_smaller_than_a_rollout_is_refused(make_trainer):
    """Two windows for the three contexts of a rollout: TRL drops incomplete rollouts, so nothing would be trained."""
    documents = Dataset.from_dict({"text": make_documents(2)})
    with pytest.raises(ValueError, match="2 windows.*3 contexts"):
        make_trainer(train_dataset=documents, args={"max_windows_per_document": 1, "per_device_train_batch_size": 12})


# ---- Settings ----


REFUSED = [
    ({"last_k": 25}, r"`last_k` \(25\) must not exceed `context_length` \(24\)"),
    ({"context_length": 0}, "`context_length` must be at least 1, got 0"),
    ({"target_length": 0}, "`target_length` must be at least 1"),
    ({"last_k": 0}, "`last_k` must be at least 1"),
    ({"max_completion_length": 0}, "`max_completion_length` must be at least 1"),
    ({"score_batch_size": 0}, "`score_batch_size` must be at least 1"),
    ({"window_stride": 0}, "`window_stride` must be at least 1 or None"),
    ({"max_windows_per_document": 0}, "`max_windows_per_document` must be at least 1 or None"),
    (
        {"generator_prompt": "{last_k} {gist}"},
        "`generator_prompt` must contain '{gist}' once and, after it, '{last_k}'",
    ),
    ({"generator_prompt": "{gist} {last_k} {gist}"}, "`generator_prompt` must contain '{gist}' once"),
    ({"summarizer_prompt": "Shorten this."}, "must contain '{context}'"),
    ({"summarizer_prompt": "{context} {before_last_k}"}, "must contain '{context}'.* or '{before_last_k}'"),
    ({"summarizer_prompt": "{context} and {context}"}, "must contain '{context}' once at most"),
    ({"summarizer_prompt": "{last_k} {context} {last_k}"}, "must contain '{last_k}' once at most"),
    ({"summarizer_prompt": "{context} {question}"}, "has '{question}', which stands for nothing: only .*'{budget}'"),
    ({"summarizer_prompt": "{context} { {lastk} }"}, "has '{lastk}', which stands for nothing"),
    ({"advantage": "ppo"}, "`advantage` must be one of .*got 'ppo'"),
    ({"distillation_loss": "kl"}, "`distillation_loss` must be one of .*got 'kl'"),
    ({"cold_start_gists": "tf_idf"}, "`cold_start_gists` must be one of .*'facts'.*got 'tf_idf'"),
    (
        {"length_penalty_learning_rate": 0.01},
        r"`length_penalty_learning_rate` \(0.01\) moves λ towards .* set one of them",
    ),
    ({"max_steps": 1500, "num_train_epochs": 2.0}, r"`num_train_epochs` \(2.0\) .* Set `max_steps` to -1"),
    ({"generator_only": True, "advantage": "best"}, r"`advantage` \(best\) acts on the summarizer"),
    ({"chat_template_kwargs": {"messages": []}}, "must not set `messages`, which `apply_chat_template` sets"),
    ({"gist_dropout": 1.1}, r"`gist_dropout` must be in \[0, 1\], got 1.1"),
    ({"gist_dropout": -0.1}, r"`gist_dropout` must be in \[0, 1\]"),
    ({"disable_dropout": False}, "`disable_dropout` must be True"),
    ({"num_generations": 3}, "divisible by .*num_generations"),
    (
        {"per_device_train_batch_size": 2, "num_generations": 4, "steps_per_generation": 3},
        r"divisible by .*num_generations",
    ),
    # A rollout of two optimizer steps, and a run that ends after the first
    (
        {"num_iterations": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 5},
        r"`max_steps` \(5\) must be a multiple of the 2",
    ),
    (
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        r"\(3\) and `gradient_accumulation_steps` \(2\) must divide one another",
    ),
]


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=[" ".join(args) for args, _ in REFUSED])
def test_settings_that_cannot_work_are_refused_by_name(make_args, args, message):
    with pytest.raises(ValueError, match=message):
        make_args(**args)


def test_what_the_trainer_is_given_must_have_what_settings_are_about(make_trainer):
    with pytest.raises(ValueError, match=r"`length_penalty` \(0.5\) would not be followed.* to `reward_funcs`"):
        make_trainer(args={"length_penalty": 0.5}, reward_funcs=[log_prob_gain])
    make_trainer(args={"length_penalty": 0.0, "reward_weights": [1.0]}, reward_funcs=[log_prob_gain])
    with pytest.raises(ValueError, match=r"`length_penalty` \(0.01\) would not be followed.* `reward_weights`"):
        make_trainer(args={"reward_weights": [1.0, 1e-4], "length_penalty": 0.01})


@pytest.mark.parametrize("eval_dataset", [None, {}])
def test_the_trainer_warns_of_what_is_unread(make_trainer, caplog, eval_dataset):
    make_trainer(args={"gist_samples_steps": 1, "cold_start_gists": "tail"}, eval_dataset=eval_dataset)
    assert "There is no `eval_dataset`: `gist_samples_steps` (1) has no effect." in caplog.text
    assert "`cold_start_steps` is 0: `cold_start_gists` ('tail') has no effect." in caplog.text


def test_no_dataset_among_several_is_refused_by_its_name(make_trainer):
    with pytest.raises(ValueError, match="The a dataset is a NoneType"):
        make_trainer(eval_dataset={"a": None})


OF_SUMMARIZER = {"cold_start_steps": 3, "distilled_gists": 1, "stop_on_alarm": True, "gist_samples_steps": 1}


@pytest.mark.parametrize(
    ("off", "on", "unread"),
    [
        ({"generator_only": True}, {}, {**OF_SUMMARIZER, "epsilon": 0.1}),
        (
            {"cold_start_steps": 0},
            {"cold_start_steps": 1},
            {"cold_start_learning_rate": 0.1, "cold_start_gists": "tail"},
        ),
        ({"gist_dropout": 1.0}, {}, {"distilled_gists": 1}),
        ({"sync_ref_model": False}, {"sync_ref_model": True}, {"ref_model_sync_steps": 3}),
        ({"use_adaptive_entropy": False}, {"use_adaptive_entropy": True}, {"entropy_target": 0.3}),
        ({"loss_type": "sapo"}, {"loss_type": "grpo"}, {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 3.0}),
        ({"loss_type": "cispo"}, {"loss_type": "grpo"}, {"delta": 3.0}),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, {"loss_type": "cispo"}, {"epsilon": 0.1}),
        ({"loss_type": "dapo"}, {"loss_type": "sapo"}, {"sapo_temperature_pos": 2.0}),
        ({"loss_type": "grpo"}, {"loss_type": "vespo"}, {"vespo_k_neg": 2.5}),
        ({"use_vllm": False}, {"use_vllm": True}, {"vllm_importance_sampling_mode": "token_mask"}),
    ],
)
def test_what_another_setting_switches_off_is_warned_of(make_args, caplog, off, on, unread):
    warn_of_unread(make_args(**off))
    warn_of_unread(make_args(**on, **unread))
    assert not caplog.records
    warn_of_unread(make_args(**off, **unread))
    said = caplog.text
    assert all(f"`{name}` ({value!r})" in said for name, value in unread.items())


def test_how_to_load_is_said_of_a_checkpoint(make_trainer, checkpoint):
    loaded, kwargs = AutoModelForCausalLM.from_pretrained(checkpoint), {"dtype": "bfloat16"}
    with pytest.raises(
        ValueError, match="`model_init_kwargs` .* every model is loaded already.* pass the checkpoint's"
    ):
        make_trainer(model=loaded, args={"model_init_kwargs": kwargs})
    teacher = make_trainer(model=loaded, teacher=checkpoint, args={"model_init_kwargs": kwargs}).teacher
    assert teacher.dtype == torch.bfloat16


def test_braces_that_are_no_placeholder_are_left_alone(make_args):
    prompt = 'As {"gist": ["a", {"n": 1}]}, {{doubled}}, { spaced }, {}, x^{2}: {context} {last_k} {budget}'
    assert make_args(summarizer_prompt=prompt, gist_length_range=[1, 6]).summarizer_prompt == prompt


def test_the_defaults_are_the_original_experiments_numbers():
    config = GistConfig("run", bf16=False, use_cpu=True)
    assert (config.context_length, config.target_length, config.last_k, config.max_completion_length) == (
        512,
        64,
        64,
        48,
    )
    assert (config.max_steps, config.learning_rate, config.generator_learning_rate) == (1500, 1e-5, 2e-5)
    assert config.length_penalty == 1e-4 and config.gist_dropout == 0.1


def test_fsdp_is_refused(checkpoint, documents, make_args):
    args = make_args()
    args.fsdp_plugin_args = object()
    with pytest.raises(ValueError, match="--accelerate_config zero3"):
        GistTrainer(checkpoint, args, train_dataset=documents)


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_an_optimizer_that_deepspeed_would_make_is_refused(checkpoint, documents, make_args, section):
    args = make_args()
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={section: {}}, zero_stage=2)
    with pytest.raises(ValueError, match=f"section `{section}`"):
        GistTrainer(checkpoint, args, train_dataset=documents)


def test_a_teacher_cache_under_zero3_is_refused(checkpoint, documents, make_args, tmp_path):
    args = make_args(teacher_cache_dir=str(tmp_path))
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={}, zero_stage=3)
    with pytest.raises(ValueError, match="`teacher_cache_dir` .* ZeRO-2"):
        GistTrainer(checkpoint, args, train_dataset=documents)


def test_fsdp_by_accelerate_launch_is_refused_too(make_trainer, monkeypatch):
    """`accelerate launch --use_fsdp` leaves no trace in the arguments."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="--accelerate_config zero3"):
        make_trainer()


def test_nothing_answers_a_continuation(make_trainer, lora):
    """That of ready windows neither, of which no rule makes any other target."""
    answers = {"cold_start_gists": "answers", "cold_start_steps": 1}
    ready = Dataset.from_list([{"context": text, "target": " and so on"} for text in make_documents(4)])
    for dataset, kinds in ((None, None), (ready, {"fact": 1, "recall": 1})):
        with pytest.raises(ValueError, match="the continuation is the only target: set `target_kinds`"):
            make_trainer(train_dataset=dataset, peft_config=lora, args={**answers, "target_kinds": kinds})
