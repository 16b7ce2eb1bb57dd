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

"""From documents to what a gist is trained on: contexts, last tokens and targets."""

from importlib import import_module
from typing import TYPE_CHECKING


_HOMES = {
    "load_documents": "documents",
    **dict.fromkeys(("ColumnRules", "PositionLimits", "SkippedRows", "WindowSpec", "prepare_windows"), "windows"),
}

__all__ = ["ColumnRules", "PositionLimits", "SkippedRows", "WindowSpec", "load_documents", "prepare_windows"]

if TYPE_CHECKING:
    from .documents import load_documents
    from .windows import ColumnRules, PositionLimits, SkippedRows, WindowSpec, prepare_windows


def __getattr__(name: str):
    # As they are asked for: inference needs `geometry`, and never `datasets` with pandas and pyarrow
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
