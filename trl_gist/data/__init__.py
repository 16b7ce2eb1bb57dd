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
From documents to what a gist is trained on: contexts, last tokens and targets.

What is named here is loaded as it is asked for: inference finds a text's facts as targets are found, and reads no data set.
"""

from importlib import import_module
from typing import TYPE_CHECKING


__all__ = ["ColumnRules", "PositionLimits", "SkippedRows", "WindowSpec", "load_documents", "prepare_windows"]

if TYPE_CHECKING:
    from .documents import load_documents
    from .windows import ColumnRules, PositionLimits, SkippedRows, WindowSpec, prepare_windows


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(".documents" if name == "load_documents" else ".windows", __name__)
    value = globals()[name] = getattr(module, name)
    return value
