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

"""research/memory: what is counted as right, of a session's gists alone."""

from tiny import PARAGRAPH
from tiny_sessions import GIST, LAST_K, make_compactor

from research.memory.sessions import NEW_TOKENS, rows_of, table


def test_questions_are_asked_of_the_gists_of_all_that_can_be_folded():
    compactor = make_compactor()
    session = compactor.session(gist_budget=400)
    session.append(PARAGRAPH)
    while len(session.live) > LAST_K + 1:
        session.compact()
    said = session.recall("The pump", NEW_TOKENS, live=False).text.strip().partition("\n")[0]
    targets = [{"cue": "The pump", "target": said}, {"cue": "The pump", "target": f"not {said}"}]
    texts = [{"context": PARAGRAPH, "targets": targets}]
    (row,) = rows_of(compactor, texts, {"gist_budget": 400})
    assert row["gist"] == session.gist and row["right"] == [True, False]
    assert row["gists_written"] == len(session.history) > 4 and row["gist_tokens"] > GIST
    (rolling,) = rows_of(compactor, texts, {})
    assert rolling["gist_tokens"] <= GIST
    _, _, line, _ = table({"chain": [row, row], "rolling": [rolling]})
    assert line.startswith(f"| chain | 2 of 4 | {row['gist_tokens']} | {len(session.history)} |")
