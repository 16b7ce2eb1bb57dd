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

"""
A short training whose data, gists and parameters do not depend on how many processes share them, for the tests that
compare. Launched, it does one run after the other, which takes little beside starting: `distributed_run.py RUN …`,
each the arguments of [`run`] as JSON.
"""

import json
import random
import sys
from pathlib import Path

import torch
from checks import draw_adapters
from datasets import Dataset
from peft import LoraConfig
from tiny import make_documents, make_model, make_tokenizer

from trl_gist import GistConfig, GistTrainer
from trl_gist.models.deepspeed import whole_shape, whole_state_dict
from trl_gist.trainer import rollout


WAYS = ("lora", "full")


def ready_windows():
    """Targets of very different lengths: the ranks hold unequal shares of the rollout's tokens."""
    rng = random.Random(0)

    def ids(length):
        return [rng.randrange(5, 300) for _ in range(length)]

    lengths = (2, 11, 1, 9, 3, 7, 12, 1)
    return Dataset.from_list([{"context": ids(20), "last_k": ids(4), "target": ids(length)} for length in lengths])


def documents():
    return Dataset.from_dict({"text": make_documents(8)})


def save_checkpoint(directory: Path, make=make_model):
    """Where [`make_trainer`] looks for it: by name, so that ZeRO-3 shards it while it loads."""
    tokenizer = make_tokenizer()
    make(tokenizer).save_pretrained(directory / "checkpoint")
    tokenizer.save_pretrained(directory / "checkpoint")


def make_trainer(
    output_dir: str, processes: int, with_lora: bool, dtype: str = "float64", pair: str | None = None, **settings
) -> GistTrainer:
    """Eight gists a step, however many processes share them; what was sampled depends on the context. A saved pair goes
    on with what it has."""
    with_lora = with_lora and pair is None
    defaults = {
        **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 6},
        **{"num_generations": 4, "cold_start_steps": 0},
        **{"learning_rate": 1e-2, "generator_learning_rate": 1e-2, "optim": "sgd", "logging_steps": 1, "max_steps": 3},
        **{"per_device_eval_batch_size": 2, "eval_strategy": "steps", "save_strategy": "steps"},
        **{"report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False},
        **{"disable_tqdm": True, "ddp_find_unused_parameters": False, "model_init_kwargs": {"dtype": dtype}},
    }
    micro_batches = settings.get("gradient_accumulation_steps", 1)
    settings = {"per_device_train_batch_size": 8 // (processes * micro_batches), **settings}
    args = GistConfig(output_dir=output_dir, **{**defaults, **settings})
    if args.deepspeed_plugin is not None:  # parameters as small as these would not be sharded otherwise
        args.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    torch.manual_seed(0)
    trainer = GistTrainer(
        model=pair or str(Path(output_dir).parent / "checkpoint"),
        args=args,
        train_dataset=documents() if args.windows_per_document > 1 or args.target_kinds else ready_windows(),
        eval_dataset=Dataset.from_dict({"text": make_documents(3, seed=9)}),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if with_lora else None,
    )
    if with_lora:
        draw_adapters(trainer)
    write = trainer.rollout.write

    def sample(rows, prompts):
        if not trainer.model.training:
            return write(rows, prompts)
        completions = []
        for row, prompt in enumerate(prompts):
            rng = random.Random(f"{trainer.state.global_step} {prompt} {row % 4}")
            completions.append([rng.randrange(5, 300) for _ in range(rng.randrange(0, 6))] + [2])
        return completions, None

    trainer.rollout.write = sample
    rollout._draw = lambda count: 1  # the gist that is carried on: each process draws its own
    return trainer


def result(trainer: GistTrainer) -> dict:
    """What was logged, step by step, and the parameters of the three roles."""
    roles = {"S": trainer.model, "G": trainer.generator, "T": trainer.teacher}
    sharded = {
        name: sum(parameter.numel() < whole_shape(parameter).numel() for parameter in role.parameters())
        for name, role in roles.items()
    }
    return {
        "sharded": sharded,
        **{name: whole_state_dict(role) for name, role in roles.items()},
        "logged": [log for log in trainer.state.log_history if "reward" in log],
        "measures": [log for log in trainer.state.log_history if "eval_windows" in log],
    }


def run(directory: str, processes: int, names: list[str], ways: tuple[str, ...] = WAYS, **settings):
    """Leaves what each process has of each way and name: of a `straight` run, or of one from its checkpoint."""
    for way in ways:
        checkpoint = f"{directory}/{way}/checkpoint-{settings['save_steps']}"
        for name in names:
            trainer = make_trainer(f"{directory}/{way}", processes, way == "lora", **settings)
            try:
                trainer.train(resume_from_checkpoint=None if name == "straight" else checkpoint)
                torch.save(result(trainer), f"{directory}/{way}-{name}-{trainer.args.process_index}.pt")
            except ValueError as error:
                Path(f"{directory}/{way}-{name}.txt").write_text(str(error))
            trainer.accelerator.free_memory()


if __name__ == "__main__":
    for arguments in map(json.loads, sys.argv[1:]):
        run(**arguments)
