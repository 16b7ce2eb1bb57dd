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
Where documents stream, two processes score those that one process would, step by step, each its own; and a run that
goes on from a checkpoint reads on where it stopped. Launched, it trains and leaves what each rank has scored:
`test_streaming_ranks.py DIRECTORY`.
"""

import json
import os
import random
import sys
from pathlib import Path

import pytest
from datasets import IterableDataset
from distributed_run import save_checkpoint
from launching import launch
from peft import LoraConfig

from trl_gist import GistConfig, GistTrainer


DOCUMENTS, GISTS = 12, 4
# By name: the stream's files and the settings of a run that ends in the second pass over it
WAYS = {
    "one-file": (1, {"max_steps": 8}),
    # Two steps on each rollout, and two micro-batches a step
    "more-files-than-ranks": (4, {"max_steps": 10, "gradient_accumulation_steps": 2, "num_iterations": 2}),
}
RESUMED_FROM = {"one-file": (4, 7), "more-files-than-ranks": (2, 8)}


def documents(files):
    for file in files:
        for document_id in range(file[0], file[1]):
            rng = random.Random(document_id)
            context, target = ([rng.randrange(5, 300) for _ in range(length)] for length in (20, 4))
            yield {"context": context, "target": target, "document_id": document_id}


def stream(count):
    """All documents, in `count` files."""
    size = DOCUMENTS // count
    files = [(start, start + size) for start in range(0, DOCUMENTS, size)]
    return IterableDataset.from_generator(documents, gen_kwargs={"files": files})


def scored_documents(directory, processes, way, resume_from=None) -> list[list[int]]:
    """The documents that this process scores, rollout by rollout."""
    files, settings = WAYS[way]
    accumulated = settings.get("gradient_accumulation_steps", 1)
    args = GistConfig(
        output_dir=f"{directory}/{way}",
        per_device_train_batch_size=8 // processes,
        num_generations=GISTS,
        **{"context_length": 24, "target_length": 8, "last_k": 4, "max_completion_length": 4, "cold_start_steps": 0},
        **{"report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True},
        **{"save_strategy": "steps", "save_steps": settings.get("num_iterations", 1), "save_total_limit": None},
        **{"ddp_find_unused_parameters": False, "steps_per_generation": accumulated, **settings},
    )
    trainer = GistTrainer(
        model=f"{directory}/checkpoint",
        args=args,
        train_dataset=stream(files),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    seen, score = [], trainer.generator_trainer.score

    def watch(rows, *args, **kwargs):
        seen.append([row["document_id"] for row in rows[::GISTS]])
        return score(rows, *args, **kwargs)

    trainer.generator_trainer.score = watch
    trainer.train(resume_from_checkpoint=resume_from and f"{directory}/{way}/checkpoint-{resume_from}")
    trainer.accelerator.free_memory()
    return seen


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    save_checkpoint(directory)
    return {way: scored_documents(directory, 1, way) for way in WAYS}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """For each run, what the two ranks have scored."""
    directory = tmp_path_factory.mktemp("two")
    save_checkpoint(directory)
    launch(__file__, str(directory))
    ranks = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


@pytest.mark.parametrize("way", WAYS)
def test_each_rank_scores_its_own_share_of_what_one_process_would(one_process, two_processes, way):
    expected = one_process[way]
    first, second = two_processes[way]
    assert [one + other for one, other in zip(first, second, strict=True)] == expected
    assert all(len(one) == len(other) for one, other in zip(first, second, strict=True))
    # The first pass over the stream: every document once, on one rank
    rollouts = DOCUMENTS // len(expected[0])
    read = sum((one + other for one, other in zip(first[:rollouts], second[:rollouts], strict=True)), [])
    assert sorted(read) == list(range(DOCUMENTS))
    assert len(expected) > rollouts, "the run goes on into the second pass"
    assert sum(expected[:rollouts], []) != list(range(DOCUMENTS)), "shuffled"


@pytest.mark.parametrize("resumed_from", [0, 1], ids=["first-pass", "second-pass"])
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_reads_on_where_it_stopped(two_processes, way, resumed_from):
    step = RESUMED_FROM[way][resumed_from]
    done = step // WAYS[way][1].get("num_iterations", 1)
    for whole, resumed in zip(two_processes[way], two_processes[f"{way}-{step}"], strict=True):
        assert resumed == whole[done:]


if __name__ == "__main__":
    directory, rank = sys.argv[1], os.environ["RANK"]
    seen = {}
    for way in WAYS:
        seen[way] = scored_documents(directory, 2, way)
        for step in RESUMED_FROM[way]:
            seen[f"{way}-{step}"] = scored_documents(directory, 2, way, resume_from=step)
    Path(directory, f"{rank}.json").write_text(json.dumps(seen))
