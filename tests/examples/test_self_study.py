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

"""examples/self_study.py against an endpoint on a real socket, whose model answers by rule."""

import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import load_dataset
from trl import TrlParser

from examples import self_study
from trl_gist.data.windows import WindowSpec, prepare_windows
from trl_gist.prompts import SUMMARIZER_PROMPT_OF_FACTS
from trl_gist.scripts.train import make_parser, make_trainer


SPEC = WindowSpec(context_length=24, target_length=8, last_k=4, window_stride=None, max_windows_per_document=None)
# What the model says of a sentence that it reads, by its place; it knows Paris by heart, and cannot read Atlantis
TEXTS = [
    "The colour of Rome is red. The colour of Paris is blue.",
    "The height of Oslo is 82. The colour of Atlantis is green. The height of Paris is 300.",
    "Garbled: the colour of Bern is grey.",
    "The river of Cairo is the Nile.",
]
FACT = re.compile(r"[Tt]he (\w+ of \w+) is (.+?)\.")
QUESTION = re.compile(r"What is the (\w+ of (\w+))\?")


class Endpoint:
    """Answers by rule, after what `failures` holds for the texts and `turned_away` for requests from some number on."""

    def __init__(self):
        self.requests, self.keys, self.failures, self.key, self.turned_away = [], set(), {}, None, None

    def respond(self, prompt, key):
        """Status and body."""
        self.requests.append(prompt)
        self.keys.add(key)
        if self.turned_away is not None and len(self.requests) > self.turned_away:
            return 401, {"error": {"message": "Incorrect API key provided"}}
        for words, statuses in self.failures.items():
            if words in prompt and statuses:
                return statuses.pop(0), {"error": {"message": "overloaded"}}
        return 200, {"choices": [{"message": {"content": self.reply(prompt)}}]}

    def reply(self, prompt):
        text = prompt.partition("Text:\n")[2]
        if prompt.startswith("Write"):
            questions = [{"question": f"What is the {what}?", "answer": answer} for what, answer in FACT.findall(text)]
            if "Garbled" in text and len(self.about("Garbled")) % 3:
                return 'Here they are: [{"question": "What is'
            return f"<think>[Some facts]</think>\n```json\n{json.dumps(questions)}\n```"
        what, place = QUESTION.search(prompt).groups()
        if place == "Paris":
            return {"colour": "blue", "height": "300"}[what.split()[0]]
        return f"{dict(FACT.findall(text)).get(what, 'unknown').removeprefix('the ').upper()}." * (place != "Atlantis")

    def about(self, words):
        return [prompt for prompt in self.requests if words in prompt]


@pytest.fixture
def endpoint():
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, asked["model"]) == ("/v1/chat/completions", "scripted")
            (message,) = asked["messages"]
            status, body = endpoint.respond(message["content"], self.headers["Authorization"])
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield endpoint
        server.shutdown()
        thread.join()


@pytest.fixture
def run(endpoint, checkpoint, tmp_path, monkeypatch):
    """Runs the example on texts and returns what it wrote."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    output = tmp_path / "studied" / "questions.jsonl"

    def run(texts=TEXTS, **overrides):
        rows = [{"body": text, "document_id": f"text {index}"} for index, text in enumerate(texts)]
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "dataset": str(tmp_path / "texts.jsonl"),
            "text_column": "body",
            "tokenizer": checkpoint,
            "model": "scripted",
            "output": str(output),
            "base_url": endpoint.url,
            "retries": 1,
            "context_length": 100,
        }
        self_study.main(self_study.SelfStudyArguments(**{**values, **overrides}))
        return [json.loads(line) for line in output.read_text().splitlines()]

    run.output = output
    return run


def targets(**answers):
    return [
        {"kind": "question", "cue": f"\nQuestion: What is the {what} of {place}?\nAnswer:", "target": f" {answer}"}
        for place, (what, answer) in answers.items()
    ]


STUDIED = [
    {"context": TEXTS[0], "targets": targets(Rome=("colour", "red")), "document_id": "text 0"},
    {"context": TEXTS[1], "targets": targets(Oslo=("height", "82")), "document_id": "text 1"},
    {"context": TEXTS[3], "targets": targets(Cairo=("river", "the Nile")), "document_id": "text 3"},
]


def test_what_is_right_with_the_text_and_wrong_without_it_is_kept(run, endpoint, capsys):
    assert run() == STUDIED
    (printed,) = capsys.readouterr().out.splitlines()
    assert printed == (
        "4 chunks: 6 questions written, 1 chunks unparsable; 1 unanswerable with the chunk, 2 answered without it, 3 kept"
    )
    assert f"\n    {printed}\n" in self_study.__doc__
    assert endpoint.keys == {"Bearer secret"}
    assert len(endpoint.about("Garbled")) == 2  # a try and another


def test_an_answer_that_is_wrong_with_the_text_is_not_asked_for_without_it(run, endpoint):
    run()
    (asked,) = endpoint.about("of Atlantis?")
    assert asked.startswith("Read the text.")


def test_a_reply_that_is_no_json_is_asked_for_again(run, endpoint, capsys):
    rows = run(retries=2)  # the third is whole
    assert [row["document_id"] for row in rows] == [f"text {index}" for index in range(4)]
    assert rows[2]["targets"] == targets(Bern=("colour", "grey"))
    assert "7 questions written, 0 chunks unparsable" in capsys.readouterr().out


@pytest.mark.parametrize("status", [429, 500])
def test_a_request_that_fails_once_is_sent_again(run, endpoint, capsys, status):
    endpoint.failures = {"Oslo": [status], "Cairo": [status]}
    assert run() == STUDIED
    assert "failed" not in capsys.readouterr().out


def test_a_chunk_that_fails_for_good_is_counted_and_asked_about_by_the_next_run(run, endpoint, capsys):
    endpoint.failures = {"Oslo": [503] * 2}
    assert run() == [STUDIED[0], STUDIED[2]]
    assert "1 chunks failed, and the same command asks about them again; the last: Error code: 503" in (
        capsys.readouterr().out
    )
    endpoint.requests.clear()
    assert run() == STUDIED
    # To write; Oslo's height and Paris's with the text and without; Atlantis's colour with it
    assert len(endpoint.requests) == 6 and not endpoint.about("Rome") + endpoint.about("Garbled")


def test_where_every_chunk_fails_the_command_does(run, endpoint):
    studied = run(texts=TEXTS[:1])
    endpoint.failures = {"Write": [503] * 8}
    said = rf"4 chunks failed, and the same command asks about them again; the last: .*503.* \({re.escape(endpoint.url)}\)"
    with pytest.raises(SystemExit, match=said):
        run(questions=3)  # so that all are asked anew
    assert [json.loads(line) for line in run.output.read_text().splitlines()] == studied, "what there was is kept"


def test_an_answer_that_is_no_chat_completion_is_a_failure_of_its_chunk(run, endpoint, monkeypatch, capsys):
    respond = endpoint.respond
    monkeypatch.setattr(
        endpoint, "respond", lambda prompt, key: (200, {"choices": []}) if "Cairo" in prompt else respond(prompt, key)
    )
    assert run() == STUDIED[:2]
    assert "1 chunks failed" in capsys.readouterr().out


def test_a_key_that_is_refused_ends_it_with_what_to_do(run, endpoint):
    endpoint.turned_away = 0
    with pytest.raises(SystemExit, match="Incorrect API key.*\nSet OPENAI_API_KEY to a key that http.* takes"):
        run()
    assert not run.output.exists()


def test_a_run_that_was_cut_off_asks_only_what_is_missing(run, endpoint):
    # The first text takes five requests, one to write and two for each question
    endpoint.turned_away = 5
    with pytest.raises(SystemExit):
        run(concurrency=1)
    endpoint.turned_away = None
    endpoint.requests.clear()
    assert run() == STUDIED
    assert not endpoint.about("Rome") and endpoint.about("Oslo")
    endpoint.requests.clear()
    assert run() == STUDIED and endpoint.requests == []
    assert len(run([*TEXTS, "The colour of Lima is white."])) == 4
    assert endpoint.requests == endpoint.about("Lima") and len(endpoint.requests) == 3


def test_another_number_of_questions_asks_anew(run, endpoint):
    run()
    endpoint.requests.clear()
    assert [row["targets"] for row in run(questions=1)] == [row["targets"] for row in STUDIED]
    assert len(endpoint.requests) == 3 * 3 + 2


def test_a_text_is_cut_between_tokens_into_all_of_its_chunks(tokenizer):
    text = "Zoë asked 😀: " * 20
    chunks = list(self_study.cut([{"text": None}, {"text": text}], tokenizer, 50))
    assert {document_id for _, document_id in chunks} == {1} and len(chunks) > 3
    lengths = [len(tokenizer(chunk)["input_ids"]) for chunk, _ in chunks]
    assert max(lengths) <= 53  # a character of several tokens that is cut is in both
    assert all(chunk in text and "\ufffd" not in chunk for chunk, _ in chunks)
    plain = list(self_study.cut([{"text": "A plain text of words. " * 20}], tokenizer, 50))
    assert "".join(chunk for chunk, _ in plain) == "A plain text of words. " * 20


def test_a_folder_of_texts_is_studied(run, tmp_path):
    (tmp_path / "texts").mkdir()
    for index, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{index}.txt").write_text(text)
    rows = run(dataset=str(tmp_path / "texts"), text_column="text")
    assert rows == [{**row, "document_id": int(row["document_id"][-1])} for row in STUDIED]


def test_the_file_is_ready_windows(run, tokenizer):
    run()
    dataset = load_dataset("json", data_files=str(run.output), split="train")
    windows, skipped = prepare_windows(dataset, tokenizer, SPEC)
    assert skipped.total == 0 and windows["document_id"] == ["text 0", "text 1", "text 3"]
    for window, row in zip(windows, STUDIED, strict=True):
        assert tokenizer.decode(window["context_ids"]) == row["context"]
        for made, given in zip(window["targets"], row["targets"], strict=True):
            assert made["kind"] == "question" and made["after_ids"] == made["cue_ids"]
            assert tokenizer.decode(made["cue_ids"]) == given["cue"]
            assert tokenizer.decode(made["target_ids"]) == given["target"]


def test_the_docstrings_command_is_understood():
    command = re.search(r"python examples/self_study.py (.*?)\ntrl-gist", self_study.__doc__, re.DOTALL).group(1)
    parser = TrlParser(self_study.SelfStudyArguments)
    (args,) = parser.parse_args_and_config(shlex.split(command))
    assert (args.dataset, args.output, args.questions) == ("my_documents/", "questions.jsonl", 4)


def test_the_docstrings_command_trains_on_it(run, checkpoint, tmp_path):
    run()
    command = re.search(r"trl-gist train (.*?)\n\n", self_study.__doc__, re.DOTALL).group(1)
    argv = shlex.split(command)
    for flag, value in (
        ("--model_name_or_path", checkpoint),
        ("--dataset_path", str(run.output)),
        ("--output_dir", str(tmp_path / "pair")),
    ):
        argv[argv.index(flag) + 1] = value
    argv += "--max_completion_length 6 --max_steps 1 --cold_start_steps 0 --num_generations 2 --last_k 4".split()
    argv += "--per_device_train_batch_size 4 --logging_steps 1 --bf16 false --gradient_checkpointing false".split()
    trainer = make_trainer(*make_parser().parse_args_and_config([*argv, "--use_cpu"]))
    assert trainer.args.summarizer_prompt == SUMMARIZER_PROMPT_OF_FACTS  # S sees all of the chunk
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["targets"] == 1 and "question/kl_gain" in log
