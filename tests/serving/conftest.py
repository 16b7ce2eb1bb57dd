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

"""One server of a tiny pair for the tests of a module."""

import pytest
from serving_run import running
from tiny_sessions import make_compactor


@pytest.fixture(scope="module")
def compactor():
    return make_compactor()


@pytest.fixture(scope="module")
def url(compactor):
    with running(compactor) as url:
        yield url
