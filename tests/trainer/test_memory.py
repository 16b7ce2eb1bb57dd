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

"""What a recipe takes is known before anything is loaded: exactly where it can be, and within 15% where code decides."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import make_model

from trl_gist.cli.main import main
from trl_gist.scripts import memory
from trl_gist.trainer.memory.estimate import ZeroSettings, memory_per_rank
from trl_gist.trainer.memory.trace import LiveBytes, prompt_lengths


# Activations are those of a model; at the width of the other tests they would be those of masks and ids
SIZES = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 1024}
WINDOW = {"context_length": 96, "target_length": 16, "last_k": 16, "max_completion_length": 12}


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer, **SIZES)


@pytest.fixture
def estimate(make_args, tokenizer, model):
    """The estimate of a recipe on the tiny model."""

    def estimate(lora=None, world_size=1, zero=None, peaks=None, **overrides):
        args = make_args(**overrides)
        lengths = prompt_lengths(args, tokenizer)
        return memory_per_rank(
            args, model.config, lora, lengths=lengths, world_size=world_size, zero=zero, peaks=peaks
        )

    return estimate


def nbytes(tensors):
    return sum({tensor.untyped_storage()._cdata: tensor.nbytes for tensor in tensors}.values())


# ---- Against real trainers ----


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_parameters_gradients_and_optimizer_states_are_a_trainers_to_the_byte(
    estimate, make_trainer, model, tokenizer, lora, kind
):
    lora = lora if kind == "lora" else None
    counted = estimate(lora, peaks={}).roles
    trainer = make_trainer(model=model, peft_config=lora, processing_class=tokenizer)
    found, step = {}, trainer.generator_trainer.step

    def generator_step():
        found["generator"] = nbytes(p.grad for p in trainer.generator.parameters() if p.grad is not None)
        return step()

    def summarizer_step(*args, **kwargs):
        found["summarizer"] = nbytes(p.grad for p in trainer.model.parameters() if p.grad is not None)
        return clip(*args, **kwargs)

    trainer.generator_trainer.step = generator_step
    clip, trainer.accelerator.clip_grad_norm_ = trainer.accelerator.clip_grad_norm_, summarizer_step
    trainer.train()

    roles = (trainer.model, trainer.generator, trainer.teacher)
    assert sum(role.parameters for role in counted.values()) == nbytes(p for role in roles for p in role.parameters())
    optimizers = {"summarizer": trainer.optimizer, "generator": trainer.generator_trainer.optimizer}
    for name, optimizer in optimizers.items():
        states = [tensor for state in optimizer.state_dict()["state"].values() for tensor in state.values()]
        assert counted[name].optimizer == nbytes(states), name
        assert counted[name].gradients == found[name], name
    assert (counted["base"].parameters == 0) == (kind == "full")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_each_phase_of_a_real_step_allocates_what_was_estimated(
    estimate, make_trainer, model, tokenizer, lora, kind, checkpointing
):
    lora = lora if kind == "lora" else None
    settings = {**WINDOW, "gradient_checkpointing": checkpointing}
    settings |= {"score_batch_size": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    peaks = estimate(lora, **settings).peaks
    trainer = make_trainer(
        model=model, peft_config=lora, processing_class=tokenizer, args={**settings, "max_steps": 1}
    )
    trainer.generation_config.min_new_tokens = 12
    measured = {}

    def counter(trained=()):
        roles = (trainer.model, trainer.generator, trainer.teacher)
        resident = [t for role in roles for tensors in (role.parameters(), role.buffers()) for t in tensors]
        resident += [p.grad for role in roles for p in role.parameters() if p.grad is not None]
        return LiveBytes(resident, [p for p in trained if p.requires_grad])

    def watch(owner, name, phase, trained=()):
        method = getattr(owner, name)

        def watched(*args, **kwargs):
            with counter(trained) as live:
                output = method(*args, **kwargs)
            measured[phase] = max(measured.get(phase, 0), live.largest_activation)
            return output

        setattr(owner, name, watched)

    scorer = trainer.generator_trainer.scorer
    watch(trainer, "sample", "sampling")
    watch(scorer, "read_targets", "teacher")
    watch(scorer, "score_gists", "distillation", list(trainer.generator.parameters()))
    # The policy's phase is what of `training_step` follows the rollout: from the loss on
    compute_loss, training_step, counters = trainer.compute_loss, trainer.training_step, []

    def loss_counted(*args, **kwargs):
        counters.append(counter(trainer.model.parameters()))
        counters[-1].__enter__()
        return compute_loss(*args, **kwargs)

    def step_counted(*args, **kwargs):
        output = training_step(*args, **kwargs)
        counters[-1].__exit__(None, None, None)
        return output

    trainer.compute_loss, trainer.training_step = loss_counted, step_counted
    trainer.train()
    measured["policy"] = max(live.largest_activation for live in counters)
    ratios = {phase: peaks[phase].activations / measured[phase] for phase in peaks}
    assert ratios == pytest.approx(dict.fromkeys(peaks, 1), abs=0.15)


def ready_of_largest(args, count):
    """Contexts as token ids, with the targets that an estimate takes them to have."""
    kinds = [name for name, _ in args.target_spec.kinds]
    rows = []
    for place in range(count):
        context = [10 + (place + token) % 300 for token in range(args.context_length)]
        targets = []
        for cue, target, after in args.target_spec.largest(args):
            cue_ids = context[-cue:] if after == 0 else [300 - place - token for token in range(cue)]
            targets.append({"cue": cue_ids, "target": [7 + len(targets)] * target, "kind": kinds[0]})
        rows.append({"context": context, "targets": targets})
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    "checkpointing, row_tokens", [(False, 4096), (True, 4096), (False, 60)], ids=["kept", "recomputed", "in rows"]
)
def test_several_targets_in_a_row_allocate_what_was_estimated(
    estimate, make_args, make_trainer, model, tokenizer, lora, checkpointing, row_tokens, monkeypatch
):
    monkeypatch.setattr("trl_gist.scoring.gist_scorer.ROW_TOKENS", row_tokens)
    settings = {**WINDOW, "gradient_checkpointing": checkpointing, "score_batch_size": 4, "max_steps": 1}
    settings |= {"target_kinds": {"fact": 2, "recall": 1, "continuation": 1}, "targets_per_context": 5}
    found = estimate(lora, **settings)
    trainer = make_trainer(
        model=model,
        train_dataset=ready_of_largest(make_args(**settings), 8),
        peft_config=lora,
        processing_class=tokenizer,
        args={**settings, "target_floor": -1e9},
    )
    trainer.generation_config.min_new_tokens = 12
    scorer, measured = trainer.generator_trainer.scorer, {}
    assert scorer.shares_rows
    for name, phase, trained in (
        ("read_targets", "teacher", []),
        ("worth_asking", "teacher", []),
        ("score_gists", "distillation", list(trainer.generator.parameters())),
    ):
        method = getattr(scorer, name)

        def watched(*args, method=method, phase=phase, trained=trained, **kwargs):
            roles = (trainer.model, trainer.generator, trainer.teacher)
            resident = [t for role in roles for tensors in (role.parameters(), role.buffers()) for t in tensors]
            resident += [p.grad for role in roles for p in role.parameters() if p.grad is not None]
            with LiveBytes(resident, [p for p in trained if p.requires_grad]) as live:
                output = method(*args, **kwargs)
                output = tuple(output) if not isinstance(output, (tuple, list)) else output
            measured[phase] = max(measured.get(phase, 0), live.largest_activation)
            return output

        setattr(scorer, name, watched)
    trainer.train()
    ratios = {phase: found.peaks[phase].activations / measured[phase] for phase in measured}
    assert ratios == pytest.approx({"teacher": 1, "distillation": 1}, abs=0.15)
    if row_tokens < 4096:
        ranks = estimate(lora, world_size=2, **settings)  # which take a row of any length: more at once
        assert ranks.peaks["distillation"].activations > found.peaks["distillation"].activations
        return
    # More of them take more, and a floor its own forward
    one = estimate(lora, **{**settings, "target_kinds": None}).peaks["distillation"].activations
    two = estimate(lora, **{**settings, "targets_per_context": 2}).peaks["distillation"].activations
    assert one < two < found.peaks["distillation"].activations


# ---- What ranks and stages change ----


def test_without_lora_there_are_three_copies_and_with_vllm_two_bases(estimate, model, lora):
    size = nbytes(model.parameters())
    kinds = [((), {}), ((lora,), {}), ((lora,), {"use_vllm": True})]
    full, shared, vllm = (estimate(*args, **kwargs, peaks={}).roles for args, kwargs in kinds)
    assert [full[name].parameters for name in ("base", "summarizer", "generator", "teacher")] == [0, size, size, size]
    adapter = shared["generator"].parameters
    assert [shared[name].parameters for name in ("base", "summarizer", "teacher")] == [size, adapter, 0]
    # S merges its adapter into a base of its own; G and T go on sharing theirs
    assert [vllm[name].parameters for name in ("base", "summarizer")] == [size, size + adapter]


def test_each_stage_shares_out_what_it_is_there_for(estimate, model):
    whole = estimate()
    numel, size = nbytes(model.parameters()) // 4, nbytes(model.parameters())
    assert whole.roles["summarizer"].gradients == size
    stages = {}
    for stage in (1, 2, 3):
        zero = ZeroSettings(stage, reduce_bucket_size=1000, param_persistence_threshold=0)
        stages[stage] = estimate(world_size=4, zero=zero, peaks=whole.peaks)
    summarizer = {stage: found.roles["summarizer"] for stage, found in stages.items()}
    # Two states and the weights once more, in float32, a part on each rank
    assert {role.optimizer for role in summarizer.values()} == {12 * numel // 4}
    assert [summarizer[stage].gradients for stage in (1, 2, 3)] == [size, size // 4, size // 4]
    head = model.get_output_embeddings().weight.nbytes
    assert [summarizer[stage].parameters for stage in (1, 2, 3)] == [size, size, head + (size - head) // 4]
    assert stages[3].phases["sampling"].gathered == size
    assert stages[3].buffers == 2 * 1000 * 4 and stages[2].buffers == 0


def test_ddp_keeps_a_second_copy_of_the_gradients(estimate, lora):
    one = estimate(lora)
    two = estimate(lora, world_size=2, peaks=one.peaks)
    assert two.peak - one.peak == two.buffers == sum(role.gradients for role in one.roles.values())


def test_offloaded_states_leave_the_device(estimate):
    stay = ZeroSettings(3, reduce_bucket_size=1000)
    away = ZeroSettings(3, True, True, reduce_bucket_size=1000)
    on_device = estimate(world_size=4, zero=stay, peaks={})
    off_device = estimate(world_size=4, zero=away, peaks={})
    assert off_device.roles["summarizer"].optimizer == 0
    assert off_device.resident < on_device.resident and off_device.host > 0


def test_settings_come_from_a_deepspeed_config():
    config = {
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "offload_param": {"device": "none"},
            "reduce_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e8,
        }
    }
    found = ZeroSettings.from_deepspeed(config, hidden_size=1000)
    assert found == ZeroSettings(3, True, False, 10**6, False, 10**4, 10**8)
    assert ZeroSettings.from_deepspeed({}, hidden_size=1000) == ZeroSettings()


def test_an_optimizer_of_other_states_is_refused(estimate):
    with pytest.raises(ValueError, match="`optim` is 'adafactor'.*Use one of"):
        estimate(optim="adafactor")


def test_a_deep_model_is_drawn_on_from_two_depths(estimate, model, monkeypatch):
    model.config.num_hidden_layers = 5
    model.config.layer_types = None
    whole = estimate(**WINDOW).peaks
    monkeypatch.setattr("trl_gist.trainer.memory.estimate._TRACED_DEPTHS", (2, 3))
    drawn = estimate(**WINDOW).peaks
    for phase, peak in whole.items():
        assert drawn[phase].activations == pytest.approx(peak.activations, rel=0.02), phase
        assert drawn[phase].total == pytest.approx(peak.total, rel=0.02), phase


# ---- The command ----


@pytest.fixture
def dry_run(tmp_path, model, capsys):
    """Runs `trl-gist train --dry_run true` on a folder that holds a configuration, and neither weights nor documents."""
    config = Path(tmp_path, "tiny.json")
    config.write_text(json.dumps(model.config.to_dict()))

    def run(*argv, model=config):
        command = ["train", "--model_name_or_path", model, "--dataset_path", "missing.jsonl", "--output_dir"]
        command += [tmp_path / "run", "--use_cpu", "--bf16", "false", *argv]
        code = main([str(arg) for arg in command])
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "flags, precision",
    [
        ((), "float32 (`dtype`), with `bf16` off"),
        (("--dtype", "bfloat16", "--bf16", "true"), "bfloat16 (`dtype`), with `bf16` on"),
    ],
)
def test_a_dry_run_says_of_which_precision_it_is(dry_run, flags, precision):
    assert f"Of weights in {precision}." in dry_run("--dry_run", "true", *flags)[1]


def test_a_dry_run_prints_bytes_per_rank_and_touches_nothing(dry_run, tmp_path):
    code, out = dry_run("--dry_run", "true", "--world_size", 8, "--zero_stage", 3)
    assert code == 0
    assert "each of 8 ranks, ZeRO-3" in out and "activations" in out and "Peak: " in out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.json"]


@pytest.fixture
def save_pair(make_trainer, tmp_path):
    """A pair without weights, which a dry run does not read."""

    def save(lora=None, **roles):
        pair = tmp_path / "my-pair"
        make_trainer(peft_config=lora, args={"output_dir": str(tmp_path / "first")}, **roles).save_model(str(pair))
        for file in pair.rglob("*.safetensors"):
            file.unlink()
        return pair

    return save


LORA_FLAGS = ("--use_peft", "true", "--lora_r", 4, "--lora_target_modules", "all-linear")


@pytest.fixture
def estimated(dry_run, monkeypatch):
    """A dry run's estimate, to the byte."""

    def run(*argv, model):
        found = []
        monkeypatch.setattr(memory, "_print", lambda estimate, *_: found.append(estimate))
        assert dry_run("--dry_run", "true", *argv, model=model)[0] == 0
        return found[0]

    return run


@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "full"])
def test_a_dry_run_of_a_saved_pair_is_that_of_its_bases_its_adapters_and_its_teacher(
    estimated, save_pair, lora, checkpoint, with_lora
):
    pair = save_pair(lora if with_lora else None)
    if with_lora:
        (pair / "config.json").write_text("{}")  # no model's
    assert estimated(model=pair) == estimated(*(LORA_FLAGS if with_lora else ()), model=checkpoint)


def test_a_dry_run_of_a_saved_pair_counts_a_generator_over_another_base(
    estimated, save_pair, lora, checkpoint, tokenizer, tmp_path
):
    other = tmp_path / "other"
    make_model(tokenizer, hidden_size=64, intermediate_size=96).save_pretrained(other)
    tokenizer.save_pretrained(other)
    pair = save_pair(lora, generator=str(other))
    expected = estimated(*LORA_FLAGS, "--generator_name_or_path", other, model=checkpoint)
    assert estimated(model=pair) == expected
    # A pair in the generator's place is its generator
    assert estimated(*LORA_FLAGS, "--generator_name_or_path", pair, model=checkpoint) == expected


def test_a_dry_run_refuses_of_saved_pairs_what_training_refuses(
    dry_run, capsys, make_trainer, save_pair, lora, checkpoint
):
    pair = save_pair(lora)
    for argv, model, message in (
        (LORA_FLAGS, pair, "is a pair of adapters, which go on training, and `peft_config` asks for new ones"),
        (
            ("--teacher_name_or_path", pair),
            checkpoint,
            "is a saved pair, which has two models and neither is its teacher",
        ),
        ((), pair / "generator", "is the folder of an adapter"),
        (("--teacher_name_or_path", pair / "generator"), checkpoint, "is the folder of an adapter"),
        (("--generator_name_or_path", pair / "generator"), checkpoint, "is the folder of an adapter"),
    ):
        with pytest.raises(SystemExit):
            dry_run("--dry_run", "true", *argv, model=model)
        assert message in capsys.readouterr().err


def test_a_dry_run_counts_new_adapters_on_a_pair_that_was_trained_whole(estimated, save_pair):
    pair = save_pair()
    with_lora = estimated(*LORA_FLAGS, model=pair)
    assert with_lora.roles["summarizer"].gradients < estimated(model=pair).roles["summarizer"].gradients


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--world_size", 8], "`world_size` is of `dry_run` alone"),
        (["--dry_run", "true", "--zero_stage", 4], "`zero_stage` must be 0, 1, 2 or 3, got 4"),
        (["--dry_run", "true", "--world_size", 0], "`world_size` must be at least 1 or None, got 0"),
    ],
)
def test_a_dry_runs_settings_are_checked(dry_run, capsys, argv, message):
    with pytest.raises(SystemExit) as error:
        dry_run(*argv)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
