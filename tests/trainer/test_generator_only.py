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

"""A generator trained alone: the control for what the summarizer adds."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from checks import moved, snapshot, trainable
from tiny import make_documents

from trl_gist import log_prob_gain
from trl_gist.scripts.arguments import EvaluateArguments
from trl_gist.scripts.compare import with_known_compressors
from trl_gist.scripts.train import GistScriptArguments, load_compressor, make_parser
from trl_gist.scripts.train import make_trainer as make_script_trainer
from trl_gist.trainer.callbacks import GistProgressCallback
from trl_gist.trainer.rollout import GistRollout


class Tail:
    """The last tokens of what G does not see."""

    def compress(self, contexts, budgets):
        self.contexts = contexts
        return [context[-budget:] for context, budget in zip(contexts, budgets, strict=True)]


def trained(make_trainer, lora, **kwargs):
    args = {"generator_only": True, "cold_start_steps": 1, "weight_decay": 0.1, **kwargs.pop("args", {})}
    trainer = make_trainer(peft_config=lora, args=args, **kwargs)
    roles = {"summarizer": trainer.model, "generator": trainer.generator, "teacher": trainer.teacher}
    before = {role: snapshot(model) for role, model in roles.items()}
    trainer.train()
    return trainer, {role: moved(before[role], model) for role, model in roles.items()}


def test_only_the_generator_moves_and_reads_empty_gists(make_trainer, lora):
    trainer, changed = trained(make_trainer, lora)
    assert changed["summarizer"] == changed["teacher"] == set()
    assert changed["generator"] == trainable(trainer.generator)
    logs = [log for log in trainer.state.log_history if "gist_length" in log]
    assert [log["gist_length"] for log in logs] == [0, 0]
    assert [log["log_prob_gain"] for log in logs] == [0, 0]


def test_the_progress_bar_shows_what_there_is_to_show(make_trainer, lora):
    trainer = make_trainer(peft_config=lora, callbacks=[GistProgressCallback()], args={"generator_only": True})
    trainer.train()
    assert trainer.state.global_step == 2


def test_its_gradient_is_that_of_distillation_on_the_compressors_gists(make_trainer, lora, monkeypatch):
    tail, rollouts, rows_of = Tail(), [], GistRollout.rows
    monkeypatch.setattr(GistRollout, "rows", lambda *args: rollouts.append(rows_of(*args)) or rollouts[-1])
    trainer, changed = trained(make_trainer, lora, compressor=tail, args={"max_steps": 1, "gist_dropout": 0.0})
    assert changed["summarizer"] == set()
    (rows,) = rollouts
    assert [row["gist_ids"] for row in rows] == [row["context_ids"][-4 - 6 : -4] for row in rows]

    other = make_trainer(peft_config=lora, args={"gist_dropout": 0.0, "max_steps": 1})
    other.create_optimizer_and_scheduler(1)
    other.generator_trainer.score(rows, [row["gist_ids"] for row in rows], 4, distill=True)
    norm = other.generator_trainer.step()["grad_norm"]
    logged = next(log for log in trainer.state.log_history if "generator/grad_norm" in log)
    assert logged["generator/grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_evaluation_reads_the_compressors_gists_too_and_it_may_be_set_later(make_trainer, lora, documents):
    trainer = make_trainer(peft_config=lora, eval_dataset=documents.select(range(4)), args={"generator_only": True})
    trainer.compressor = Tail()
    trainer.evaluate()
    assert all(row["gist_ids"] == row["context_ids"][-10:-4] for row in trainer.eval_rows)


def test_a_compressor_needs_generator_only(make_trainer, lora):
    with pytest.raises(ValueError, match="`compressor` .* set `generator_only=True`"):
        make_trainer(peft_config=lora, compressor=Tail(), reward_funcs=[log_prob_gain])


def test_the_command_line_trains_on_a_compressor_by_name(checkpoint, tmp_path):
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents(8)))
    flags = {
        "model_name_or_path": checkpoint,
        "dataset_path": tmp_path / "documents.jsonl",
        "output_dir": tmp_path / "pair",
        "context_length": 24,
        "target_length": 8,
        "last_k": 4,
        "max_completion_length": 6,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
    }
    argv = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]

    def trainer(*more):
        return make_script_trainer(*make_parser().parse_args_and_config([*argv, *more]))

    context = list(range(40, 60))
    tail = trainer("--generator_only", "true", "--compressor", "tail").compressor
    assert tail.compress([context], [6]) == [context[-6:]]
    for name in ("tf-idf", "self-information"):
        trained = trainer("--generator_only", "true", "--compressor", name)
        context = trained.train_dataset[0]["context_ids"]
        (gist,) = trained.compressor.compress([context], [6])
        assert 0 < len(gist) <= 6 and set(gist) <= set(context)
    with pytest.raises(ValueError, match="`compressor` must be one of .*'tail'.*, got 'mine'"):
        trainer("--generator_only", "true", "--compressor", "mine")
    with pytest.raises(ValueError, match="set `generator_only` too"):
        trainer("--compressor", "tail")


def test_contexts_are_read_for_their_rarity_only_where_a_rule_asks_for_it(make_trainer, lora, monkeypatch):
    read = []

    def first_contexts(rollout):
        read.append(rollout)
        yield from ([1, 2, 3], [4, 5])

    monkeypatch.setattr(GistRollout, "first_contexts", first_contexts)
    trainer = make_trainer(peft_config=lora, args={"cold_start_steps": 0})
    for name in ("tail", "head", "facts", "self-information", "perplexity pruning"):
        load_compressor(name, trainer)
    assert not read
    for name in ("tf-idf, then tail", "tf-idf"):
        load_compressor(name, trainer)
    assert len(read) == 2


@pytest.mark.parametrize("name", ["perplexity pruning", "self-information"])
def test_one_that_asks_the_teacher_is_refused_where_ranks_hold_shards_of_it(make_trainer, lora, make_args, name):
    args = make_args()
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={}, zero_stage=3)
    with pytest.raises(ValueError, match=f"`compressor` is '{name}', which runs the teacher .* launch with ZeRO-2"):
        load_compressor(name.replace(" ", "_"), SimpleNamespace(args=args))
    trainer = make_trainer(peft_config=lora)
    trainer.args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    assert load_compressor(name, trainer) is not None


@pytest.mark.parametrize("name", ["surprising facts", "surprising_facts", "surprising-facts"])
def test_a_rule_has_one_name_however_it_is_spelled(make_args, name):
    """A compressor's name has a space, the cold start's rule of that name has none."""
    assert make_args(cold_start_gists=name).cold_start_gists == "surprising_facts"
    script = GistScriptArguments(dataset_path="text", compressor=name)
    assert script.compressor == "surprising facts"
    asked = with_known_compressors(
        EvaluateArguments(
            pair="pair", dataset=["text"], output_dir="out", compressors=[name], own_generators=[f"{name}=a=b"]
        )
    )
    twice = dataclasses.replace(asked, own_generators=["surprising facts=a", f"{name}=b"])
    with pytest.raises(ValueError, match="`--own_generators` names two 'surprising facts'"):
        with_known_compressors(twice)
    assert (asked.compressors, asked.own_generators) == (["surprising facts"], ["surprising facts=a=b"])
