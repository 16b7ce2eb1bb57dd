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

"""A module that has moved says where it went, and what never was fails as any name."""

import importlib
import importlib.util

import pytest

import trl_gist
from trl_gist.common.moved import MOVED


def test_every_place_that_is_named_is_there_and_no_old_one():
    for old, new in MOVED.items():
        assert importlib.util.find_spec(f"trl_gist.{new}") is not None, new
        with pytest.raises(ModuleNotFoundError, match=f"^`trl_gist.{old}` has moved: import `trl_gist.{new}`.$"):
            importlib.import_module(f"trl_gist.{old}")


def test_each_way_to_import_says_so():
    with pytest.raises(ModuleNotFoundError, match="import `trl_gist.inference.compactor`"):
        from trl_gist.compaction import GistCompactor  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="import `trl_gist.trainer.gist_config`"):
        from trl_gist.gist_config import GistConfig  # noqa: F401
    with pytest.raises(ImportError, match="import `trl_gist.trainer.alarms`"):
        from trl_gist import alarms  # noqa: F401
    with pytest.raises(AttributeError, match="import `trl_gist.inference.session.session`"):
        trl_gist.session  # noqa: B018


def test_what_never_was_fails_as_ever():
    with pytest.raises(ModuleNotFoundError, match="No module named 'trl_gist.compactoin'"):
        importlib.import_module("trl_gist.compactoin")
    with pytest.raises(ImportError, match="cannot import name 'compactoin'"):
        from trl_gist import compactoin  # noqa: F401
    with pytest.raises(AttributeError, match="module 'trl_gist' has no attribute 'compactoin'"):
        trl_gist.compactoin  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="No module named 'compaction'"):
        importlib.import_module("compaction")
