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

"""docs/WHAT_USERS_BRING.md has what its command prints."""

from pathlib import Path

import pytest
from any_path import ALL_SIGNS, DOCUMENTS, OTHER_ROUTES, SIGNS
from tiny_sessions import make_compactor

from research.what_users_bring import sweep


PAGE = (Path(__file__).parents[2] / "docs" / "WHAT_USERS_BRING.md").read_text(encoding="utf-8")


def test_the_page_has_the_tables_of_numbers_and_lists(tmp_path):
    assert "\n".join(sweep.arguments(make_compactor(), tmp_path)) in PAGE


def test_the_page_has_each_sign_and_route_and_no_path_goes_wrong():
    """As tests/data/test_documents.py and tests/cli/test_any_path.py find."""
    signs = [*map(sweep.code, SIGNS), "all of them"]
    documents = sweep.markdown_table(["sign", *DOCUMENTS], [[sign, *["right"] * len(DOCUMENTS)] for sign in signs])
    others = sweep.markdown_table(["route", "all signs"], [[route, "right"] for route in OTHER_ROUTES])
    assert "\n".join(documents) in PAGE and "\n".join(others) in PAGE


@pytest.mark.parametrize("sign", ["[1]", "`|"])
def test_a_line_of_a_table_is_what_becomes_of_a_sign(tmp_path, monkeypatch, sign):
    def failing(place):
        raise SystemExit(2)

    seen = []
    routes = {"a": lambda place: seen.append(place.folder.name) is None, "b": lambda place: False, "c": failing}
    monkeypatch.setattr(sweep, "DOCUMENTS", routes)
    shown = "`[1]`" if sign == "[1]" else "`` `\\| ``"
    outcomes = "right | **wrong** | **SystemExit: 2** |"
    assert sweep.documents(tmp_path, (sign, ALL_SIGNS)) == [
        *("| sign | a | b | c |", "| --- | --- | --- | --- |"),
        *(f"| {shown} | {outcomes}", f"| all of them | {outcomes}"),
    ]
    assert seen == [f"docs{sign}", f"docs{ALL_SIGNS}"]
