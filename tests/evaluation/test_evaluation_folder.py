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

"""An evaluation's folder belongs to one evaluation at a time, from the first look at it to its end."""

import pytest
from launching import held_by_another

from trl_gist.common.folder_lock import LOCK_FILE
from trl_gist.evaluation.folder import EvaluationFolder, read_measures


SETTINGS, ROWS = {"pair": "pair"}, [{"window": 0}, {"window": 1}]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != LOCK_FILE}


def test_a_folder_that_another_evaluation_writes_is_refused_and_stays_as_it_is(tmp_path):
    with EvaluationFolder(tmp_path, SETTINGS) as folder:
        folder.append(ROWS)
    before = contents(tmp_path)
    with held_by_another(tmp_path) as holder:
        for settings, overwrite in ((SETTINGS, False), (SETTINGS, True), ({"pair": "other"}, True)):
            with pytest.raises(ValueError, match=f"in use by another run: process {holder.pid} on"):
                EvaluationFolder(tmp_path, settings, overwrite)
    assert contents(tmp_path) == before and len(before) == 2
    with EvaluationFolder(tmp_path, SETTINGS) as folder:
        assert folder.rows(1) == ROWS


def test_a_folder_is_held_until_its_end_however_it_comes(tmp_path):
    lock = tmp_path / LOCK_FILE
    with EvaluationFolder(tmp_path, SETTINGS):
        assert lock.exists()
    assert not lock.exists()
    with pytest.raises(OSError, match="full"), EvaluationFolder(tmp_path, SETTINGS):
        raise OSError("the disk is full")
    assert not lock.exists()
    with pytest.raises(ValueError, match="`pair` was pair, now other"):
        EvaluationFolder(tmp_path, {"pair": "other"})
    assert not lock.exists()


def test_a_lock_is_no_file_of_others(tmp_path):
    with held_by_another(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert (tmp_path / LOCK_FILE).exists()
        with EvaluationFolder(tmp_path, SETTINGS):
            pass
    (tmp_path / "settings.json").rename(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds other files"):
        EvaluationFolder(tmp_path, SETTINGS)
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("content", ["", '{"pair": "pa', "[]", "null"])
def test_damaged_settings_are_named_and_may_be_overwritten(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="settings.json is damaged, .* or pass `--overwrite`"):
        EvaluationFolder(tmp_path, SETTINGS)
    with EvaluationFolder(tmp_path, SETTINGS, overwrite=True) as folder:
        folder.append(ROWS)
    with EvaluationFolder(tmp_path, SETTINGS) as folder:
        assert folder.rows(1) == ROWS


def test_what_a_kill_leaves_beside_them_is_no_file_of_others(tmp_path):
    (tmp_path / "settings.json.4711.draft").write_text('{"pa')
    with EvaluationFolder(tmp_path, SETTINGS) as folder:
        assert folder.rows(1) == []


def test_names_that_are_not_utf8_are_settings_too(tmp_path):
    settings = {"dataset": [b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")]}
    for _ in range(2):
        with EvaluationFolder(tmp_path, settings) as folder:
            folder.write_measures(settings)
    assert read_measures(tmp_path) == settings
