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

"""research/memory: what is counted as right, of a session's gists alone, at a text's end and on the way."""

from tiny import PARAGRAPH
from tiny_sessions import GIST, LAST_K, make_compactor

from research.memory.long import read_on
from research.memory.long import table as table_by_length
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


def test_a_long_text_is_asked_about_on_the_way():
    compactor, lengths = make_compactor(), [2, 4]
    chunk, ids = compactor.session().settings.chunk_length, compactor.tokenizer(PARAGRAPH)["input_ids"]
    assert len(ids) > 4 * chunk
    said = []
    for length in lengths:
        session = compactor.session()
        session.append(ids[: length * chunk])
        answer = session.recall("The pump", NEW_TOKENS, live=False).text.strip().partition("\n")[0]
        said.append((session.gist, answer))
    targets = [{"cue": "The pump", "target": answer} for _, answer in said] + [{"cue": "The pump", "target": "no!"}]
    text = {"document_id": "a", "task": "needles", "context": PARAGRAPH, "targets": targets}
    rows = list(read_on(compactor, text, lengths))
    assert [(row["windows"], row["tokens"], row["gist"]) for row in rows] == [
        (length, length * chunk, gist) for length, (gist, _) in zip(lengths, said, strict=True)
    ]
    assert rows[0]["right"][0] and rows[1]["right"][1] and not rows[0]["right"][2]
    assert min(row["memory"] for row in rows) > 0
    other = rows[0] | {"document_id": "b", "task": "ledger", "right": [False] * 3}
    _, _, first, second = table_by_length([*rows, other])
    known = sum(rows[0]["right"])
    assert first.startswith(f"| {2 * chunk} | 0 of 3 | {known} of 3 | {known} of 6 | {known / 6:.2f} ± ")
    assert second.startswith(f"| {4 * chunk} | 0 of 0 | {sum(rows[1]['right'])} of 3 |")
