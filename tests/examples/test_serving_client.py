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

"""examples/serving_client.py: OpenAI's client on a real socket, against a tiny pair."""

import io
from contextlib import redirect_stdout

import pytest
from serving_run import running

from examples import serving_client
from trl_gist import GistCompactor


@pytest.fixture
def compactor(make_trainer):
    trainer = make_trainer()
    trainer.save_model()
    return GistCompactor.from_pretrained(trainer.args.output_dir, device="cpu")


def test_it_prints_answers_what_was_compacted_for_them_and_gists(compactor, monkeypatch):
    monkeypatch.setenv("TRL_GIST_API_KEY", "secret")
    # Not captured by pytest, whose files the server's threads would share
    with running(compactor, api_key="secret") as url, redirect_stdout(io.StringIO()) as stdout:
        serving_client.main(f"{url}/v1", None, 4)
    printed = stdout.getvalue()
    answered, streamed = printed.split("streamed: ")
    assert answered.startswith("answered: ") and answered.endswith(" written\n  nothing was compacted\n")
    chat = compactor.compact_messages(serving_client.MESSAGES, 150, serving_client.KEEP)
    assert f"were compacted into {len(compactor.tokenizer(chat.gist)['input_ids'])}: {chat.gist!r}\n" in streamed
    gists = compactor.compress_windows(serving_client.TEXT, 4, keep=serving_client.KEEP, certify=True)
    assert len(gists) > 2
    assert [line.split("nats per token: ")[1] for line in printed.splitlines() if line.startswith("compressed: ")] == [
        repr(gist.text) for gist in gists
    ]
