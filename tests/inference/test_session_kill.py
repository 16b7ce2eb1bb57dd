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

"""A process with a session is killed by SIGKILL, which nothing can catch, and another goes on from what it left."""

import json
import multiprocessing
from pathlib import Path

import pytest
from launching import fork
from test_session import state
from tiny import PARAGRAPH
from tiny_sessions import make_compactor


NEW_TOKENS = 90


class Teller:
    """Says each token that G writes and each forward of S, and waits, so that the process can be killed at any."""

    def __init__(self, connection):
        self.connection = connection

    def say(self, what):
        self.connection.send(what)
        self.connection.recv()

    def put(self, value):
        if value.numel():
            self.say("G")

    def end(self):
        pass


def victim(folder, recursion, connection):
    teller, compactor = Teller(connection), make_compactor()
    compactor.summarizer.register_forward_hook(lambda *_: teller.say("S"))
    open_session(compactor, folder, recursion).generate(NEW_TOKENS, streamer=teller)
    teller.say("end")


def open_session(compactor, folder, recursion, **settings):
    session = compactor.session(
        gist_budget=27 if recursion == "chain" else None,
        autosave=Path(folder, "session"),
        keep_history=Path(folder, "tokens"),
        **settings,
    )
    session.append(PARAGRAPH[:150])
    return session


def kill_when(folder, recursion, heard):
    """Runs the victim and kills it as soon as what it said so far is what is waited for."""
    ours, theirs = multiprocessing.Pipe()
    with fork(victim, folder, recursion, theirs) as process:
        theirs.close()  # an end of the victim's own ends the wait
        said = [ours.recv()]
        while not heard(said):
            ours.send("go on")
            said.append(ours.recv())
        process.kill()
    assert process.exitcode == -9 and "end" not in said
    return said


def while_generating(said):
    return said.count("G") == 50 and said[-1] == "G"


def while_compacting(said):
    return said.count("G") > 30 and said[-2:] == ["S", "S"]


def saved(path):
    """A saved state without what differs from one session to the next."""
    values = json.loads(path.read_text())
    return json.dumps(
        {name: value for name, value in values.items() if name not in ("log", "log_bytes", "keep_history")}
    )


@pytest.mark.parametrize(
    ("heard", "recursion"),
    [(while_generating, "rolling"), (while_compacting, "rolling"), (while_compacting, "chain")],
    ids=["generating", "compacting", "compacting-chain"],
)
def test_a_killed_session_goes_on_from_a_complete_state_as_if_nothing_had_been(heard, recursion, tmp_path):
    compactor = make_compactor()
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    complete = []
    whole = open_session(
        compactor,
        tmp_path / "whole",
        recursion,
        after_compaction=lambda session, _: complete.append(saved(tmp_path / "whole" / "session")),
    )
    complete.append(saved(tmp_path / "whole" / "session"))
    prompt_tokens = whole.position
    expected = whole.generate(NEW_TOKENS).token_ids

    said = kill_when(tmp_path / "killed", recursion, heard)

    path = tmp_path / "killed" / "session"
    assert saved(path) in complete
    loaded = compactor.load_session(path, autosave=path)
    done = loaded.position - prompt_tokens
    # Nothing before its last compaction is lost
    assert 0 < done <= said.count("G")
    assert loaded.history[-1].position == loaded.position
    assert loaded.generate(NEW_TOKENS - done).token_ids == expected[done:]
    assert state(loaded) == state(whole) and loaded.stream() == whole.stream()
