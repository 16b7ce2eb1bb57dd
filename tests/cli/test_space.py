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

"""The page of a Space, on a tiny pair, through gradio's own client."""

import pytest
from tiny import make_documents, make_model
from tiny_pairs import make_pair

from trl_gist import GistCompactor
from trl_gist.scripts.space import make_demo


pytest.importorskip("gradio")
TEXT = "".join(make_documents(3))


@pytest.fixture(scope="module")
def pair_dir(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pair")
    make_model(tokenizer, 3).save_pretrained(directory)
    make_model(tokenizer, 4).save_pretrained(directory / "generator")
    tokenizer.save_pretrained(directory)
    make_pair(context_length=64).save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def client(pair_dir):
    from gradio_client import Client

    demo = make_demo(pair_dir)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True)
    yield Client(url, verbose=False)
    demo.close()


def test_gists_come_one_by_one_with_their_lengths(client, pair_dir):
    gists = GistCompactor.from_pretrained(pair_dir).compress_windows(TEXT, budget=9, keep=["numbers"], batch_size=1)
    job = client.submit(TEXT, 9, ["numbers"], api_name="/write_gists")
    rows = [[gist.text, len(gist.token_ids), gist.context_tokens] for gist in gists]
    assert job.result()["data"] == rows
    assert [len(each["data"]) for each in job.outputs()] == list(range(1, len(rows) + 1))


def test_the_text_goes_on_with_or_without_a_question(client, pair_dir):
    compactor = GistCompactor.from_pretrained(pair_dir)
    for question in ("", "Where was the pump?"):
        expected = compactor.continue_text(TEXT, max_new_tokens=7, last_k=question or None).text
        assert client.predict(TEXT, question, 7, api_name="/continue_text") == expected


def test_an_empty_text_is_said_to_be_empty(client):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="The text is empty"):
        client.predict("", 9, [], api_name="/write_gists")
