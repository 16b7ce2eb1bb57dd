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

"""Which checkpoints in a run's folder it may go on from: on folders alone, without a trainer."""

from pathlib import Path

import pytest

from trl_gist.trainer.checkpoints.run_directory import RunDirectory


STANDS_ON = {
    "world_size": 1,
    "engine": "accelerate",
    "base_models": {"teacher": "base"},
    "frozen_weights": {"teacher": "digest"},
    "vocabulary": {"size": 400},
    "recipe": {"last_k": 4},
}
FILES = [
    *("trainer_state.json", "length_penalty.json", "alarms.json", "rng_state.pth"),
    *("optimizer.pt", "scheduler.pt", "generator/optimizer.pt", "generator/scheduler.pt"),
]


def directory(path, steps_per_rollout=2, **changes):
    return RunDirectory(path, {**STANDS_ON, **changes}, steps_per_rollout, models={})


def save(run, step, without=None) -> Path:
    staged, final = (Path(run.path, folder, f"checkpoint-{step}") for folder in ("_saving", ""))
    for name in FILES:
        if name != without:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_text(f"{name} of {step}")
    run.complete(staged, final, step, trained_weights={})
    return final


def test_a_run_goes_on_from_the_checkpoint_that_was_saved_last(tmp_path):
    run = directory(tmp_path)
    save(run, 6)
    last = save(run, 4)
    assert run.to_resume(True) == (str(last), False)
    assert run.newest_complete()[1].step == 4
    assert run.to_resume(str(tmp_path / "checkpoint-6")) == (str(tmp_path / "checkpoint-6"), False)


def test_a_damaged_checkpoint_is_passed_over_and_named_when_there_is_no_other(tmp_path, caplog):
    run = directory(tmp_path)
    first, second = save(run, 2), save(run, 4)
    (second / "optimizer.pt").write_text("optimizer.pt of 5")
    assert run.to_resume(True) == (str(first), False)
    assert "Skipped checkpoint-4" in caplog.text and "its checksum is not that" in caplog.text
    (first / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match="No valid checkpoint found(.|\n)*manifest.json is missing(.|\n)*optimizer.pt"
    ):
        run.to_resume(True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps_per_rollout": 4}, "was saved at step 2, inside a rollout of this run, which takes 4 optimizer steps"),
        ({"vocabulary": {"size": 401}}, "another vocabulary, of 400 tokens; this run's has 401"),
        ({"frozen_weights": {"teacher": "other"}}, "does not fit the teacher: .* base model 'base'"),
        ({"engine": "zero2"}, "was saved under accelerate, and this run's engines are zero2's"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    checkpoint = save(directory(tmp_path), 2)
    with pytest.raises(ValueError, match=message):
        directory(tmp_path, **changes).verify(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_was_saved_without_a_part_is_refused(tmp_path, name):
    run = directory(tmp_path)
    with pytest.raises(ValueError, match=f"cannot be resumed: it was saved without {name}"):
        run.verify(save(run, 2, without=name))


def test_other_processes_go_on_with_a_warning(tmp_path, caplog):
    checkpoint = save(directory(tmp_path), 2)
    assert directory(tmp_path, world_size=2).to_resume(checkpoint) == (str(checkpoint), False)
    assert "was saved by 1 processes, and 2 go on" in caplog.text


def test_a_run_begins_where_there_is_no_other(tmp_path):
    directory(tmp_path / "nowhere").check_unused()
    directory(tmp_path).check_unused()
    save(directory(tmp_path / "run"), 2)
    with pytest.raises(ValueError, match="holds another run, up to checkpoint-2. Pass `resume_from_checkpoint=True`"):
        directory(tmp_path / "run").check_unused()
    (tmp_path / "gist_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds the pair that another run saved"):
        directory(tmp_path).check_unused()
