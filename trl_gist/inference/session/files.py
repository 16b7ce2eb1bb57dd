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

"""A session on disk: its state, written beside and renamed; the log of its compactions; all tokens of its stream."""

import array
import dataclasses
import json
import os
import secrets
import sys
from pathlib import Path

from ...common.files import replace_file, sync
from ...pair import PairConfig
from ..pair import LoadedPair
from .recursion import RECURSIONS
from .state import Compaction


FORMAT = "trl_gist session 1"
STATE_NAMES = (
    *("fingerprint", "pair", "settings", "position", "gists", "live", "pending", "keep_history"),
    *("folded", "undo", "log", "log_bytes"),
)


def pair_name(pair: PairConfig) -> str:
    """What errors call a pair, which does not know the folder it came from."""
    bases = pair.base_models
    return (
        f"{bases.get('summarizer')} and {bases.get('generator')} after {pair.step} steps, "
        f"{pair.context_length} tokens to {pair.max_gist_length}"
    )


def check_unused(autosave: str | os.PathLike):
    """Raises `ValueError` rather than let a session replace what is there."""
    if Path(autosave).exists():
        raise ValueError(
            f"`autosave` ({autosave}) exists already: go on with it by `compactor.load_session`, or name a new file."
        )


class SavedSession:
    """
    Where a session is saved again and again: a JSON file of its state, and a log of its compactions, which only grows,
    so that a save takes no longer as the session does. The state says how much of which log belongs to it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.log = path.with_name(f"{path.name}.{secrets.token_hex(4)}.jsonl")
        self.log_bytes = 0

    def write(self, state: dict, compactions: list[Compaction]):
        """Adds these compactions to the log; the state then replaces the one before at once, or not at all."""
        lines = "".join(json.dumps(dataclasses.asdict(compaction)) + "\n" for compaction in compactions)
        with open(self.log, "r+b" if self.log_bytes else "wb") as file:
            file.seek(self.log_bytes)
            file.truncate()  # of what a failed save left
            file.write(lines.encode())
            log_bytes = file.tell()
        sync(self.log)
        state = {"format": FORMAT, **state, "log": self.log.name, "log_bytes": log_bytes}
        replaced = None if self.log_bytes else _log_of(self.path)
        replace_file(self.path, json.dumps(state).encode(), synced=True)
        self.log_bytes = log_bytes
        if replaced is not None and replaced != self.log:
            replaced.unlink(missing_ok=True)


def read_session(path: str | os.PathLike, loaded: LoadedPair) -> tuple[dict, list[Compaction]]:
    """
    The state and the compactions of a session of this pair.

    Raises:
        ValueError: if the file is none, is damaged, is a session of another pair or has a `recursion` that is gone.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} holds no session: there is no such file.")
    try:
        state = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} holds no session: it is not JSON. ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} holds no session that this version reads: its `format` is not {FORMAT!r}.")
    missing = [name for name in STATE_NAMES if name not in state]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {missing}.")
    if state["fingerprint"] != loaded.fingerprint:
        raise ValueError(
            f"{path} is a session of another pair ({state['pair']}; fingerprint {state['fingerprint'][:12]}), and this "
            f"one is {pair_name(loaded.pair)} (fingerprint {loaded.fingerprint[:12]}). Load it with its own pair."
        )
    recursion = state["settings"]["recursion"]
    if recursion not in RECURSIONS:
        raise ValueError(
            f"{path} is a session with `recursion={recursion!r}`, and there is {' and '.join(map(repr, RECURSIONS))}. It and "
            f"its log, with every gist, stay as they are: open a new session, and append the text to it again. All tokens of "
            f"the stream are in its `keep_history`, if it had one ({state['keep_history']})."
        )
    log = path.with_name(state["log"])
    content = log.read_bytes()[: state["log_bytes"]] if log.is_file() else b""
    if len(content) != state["log_bytes"]:
        raise ValueError(
            f"{path} is damaged: {log} lists its compactions and holds {len(content)} of {state['log_bytes']} bytes."
        )
    history = {}
    for line in content.splitlines():
        values = json.loads(line)
        # A compaction is logged once more when its cost is known
        history[values["index"]] = Compaction(**{**values, "spans": [tuple(span) for span in values["spans"]]})
    return state, [history[index] for index in range(len(history))]


class TokenFile:
    """All tokens of a stream, 4 bytes each, little-endian: the token at position p is at byte 4p."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def create(self):
        if self.path.exists():
            raise ValueError(f"`keep_history` ({self.path}) exists already: name a new file, or remove it.")
        self.path.touch()

    def resume(self, position: int):
        """Drops what came after a position: a process may have died between its tokens and its state."""
        held = self.path.stat().st_size // 4 if self.path.is_file() else 0
        if held < position:
            raise ValueError(f"`keep_history` ({self.path}) holds {held} tokens of the session's {position}.")
        os.truncate(self.path, 4 * position)

    def append(self, token_ids: list[int]):
        with open(self.path, "ab") as file:
            file.write(_in_file_order(array.array("I", token_ids)).tobytes())

    def read(self, start: int, stop: int) -> list[int]:
        with open(self.path, "rb") as file:
            file.seek(4 * start)
            return _in_file_order(array.array("I", file.read(4 * (stop - start)))).tolist()


def _in_file_order(values):
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _log_of(path):
    """The log that a session already at this path stands on, if there is one."""
    try:
        state = json.loads(path.read_bytes())
        return path.with_name(state["log"]) if state["format"] == FORMAT else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
