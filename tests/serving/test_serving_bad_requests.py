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

"""Requests that are wrong in every way we could think of: each is refused, and the server goes on."""

import copy
import json
import random
import socket

import httpx
import pytest
from serving_run import NAME, metrics_of, running, until
from tiny_sessions import make_compactor


VALID = {
    "/v1/completions": {
        "model": NAME,
        "prompt": "In 1854 John Snow",
        "max_tokens": 4,
        "temperature": 0,
        "stop": ["zz"],
    },
    "/v1/chat/completions": {
        "model": NAME,
        "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Who?"}],
        "max_completion_tokens": 4,
        "temperature": 0,
    },
    "/v1/compress": {"model": NAME, "input": ["John Snow", "the pump"], "budget": 3, "keep": ["names"]},
    "/v1/compare": {"model": NAME, "input": "John Snow", "gists": ["Snow", "pump"], "cue": "Who?", "max_tokens": 3},
}
TEXT = {
    "/v1/completions": "prompt",
    "/v1/chat/completions": "messages",
    "/v1/compress": "input",
    "/v1/compare": "input",
}
NUMBERS = {
    "/v1/completions": ("max_tokens", "temperature", "top_p", "seed", "n"),
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "n"),
    "/v1/compress": ("budget",),
    "/v1/compare": ("max_tokens",),
}
UNSUPPORTED = {
    "/v1/completions": [("logprobs", 2), ("echo", True), ("suffix", "z"), ("best_of", 2), ("prompt", ["a", "b"])],
    "/v1/chat/completions": [
        ("logprobs", True),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
    ],
}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
JSON = {"Content-Type": "application/json"}


# ---- Each kind makes a wrong request, (method, path, headers, body), of a valid one ----


def with_field(rng, path, body, name, value):
    return "POST", path, JSON, json.dumps({**body, name: value}).encode()


def truncated(rng, path, body):
    text = json.dumps(body)
    return "POST", path, JSON, text[: rng.randrange(len(text))].encode()


def broken_syntax(rng, path, body):
    text = json.dumps(body)
    return "POST", path, JSON, rng.choice([f"{text}{text}", f"{text},", text.replace('"', "'"), f"[{text}"]).encode()


def invalid_utf8(rng, path, body):
    text = bytearray(json.dumps(body).encode())
    text.insert(rng.randrange(len(text)), rng.choice([0xFF, 0xC0, 0x80, 0xFE]))
    return "POST", path, JSON, bytes(text)


def other_encoding(rng, path, body):
    return "POST", path, JSON, json.dumps(body).encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))


def lone_surrogate(rng, path, body):
    half = f"a{chr(rng.randrange(0xD800, 0xE000))}b"
    value = [{"role": "user", "content": half}] if path.endswith("chat/completions") else half
    return with_field(rng, path, body, *rng.choice([(TEXT[path], value), ("model", half)]))


def no_number(rng, path, body):
    text = json.dumps({**body, rng.choice(NUMBERS[path]): "HERE"})
    return "POST", path, JSON, text.replace('"HERE"', rng.choice(["NaN", "Infinity", "-Infinity", "1e999"])).encode()


def huge_integer(rng, path, body):
    text = json.dumps({**body, rng.choice(NUMBERS[path]): "HERE"})
    digits = str(rng.randrange(1, 10)) + "0" * rng.choice([19, 100, 5000])
    return "POST", path, JSON, text.replace('"HERE"', rng.choice(["", "-"]) + digits).encode()


def negative(rng, path, body):
    name = rng.choice([name for name in NUMBERS[path] if name != "seed"])
    return with_field(rng, path, body, name, rng.choice([-1, -(2**31), -0.5]))


def out_of_range(rng, path, body):
    if path == "/v1/compress":
        return with_field(rng, path, body, "budget", rng.choice([0, 65, 10**6]))
    name, values = rng.choice(
        [("max_tokens", [0, 65, 10**6]), ("temperature", [2.01, 0.001]), ("top_p", [0, 1.5]), ("n", [0, 2])]
    )
    body.pop("max_completion_tokens", None)
    return with_field(rng, path, body, name, rng.choice(values))


def boolean_for_number(rng, path, body):
    return with_field(rng, path, body, rng.choice(NUMBERS[path]), rng.choice([True, False]))


def wrong_type(rng, path, body):
    name = rng.choice([TEXT[path], *NUMBERS[path], "model"])
    return with_field(rng, path, body, name, rng.choice([{}, {"a": 1}, [None], [[]], [{}], [[["a"]]], [True], [1.5]]))


def text_for_number(rng, path, body):
    return with_field(rng, path, body, rng.choice(NUMBERS[path]), rng.choice(["1", "", "one", [1]]))


def deep(rng, path, body):
    depth = rng.choice([500, 5000, 20_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    inner = "1" if opening != "[" else ""
    text = json.dumps({**body, TEXT[path]: "HERE"})
    return "POST", path, JSON, text.replace('"HERE"', opening * depth + inner + closing * depth).encode()[:49_000]


def key_twice(rng, path, body):
    text, name = json.dumps(body), rng.choice(list(body))
    return "POST", path, JSON, f'{text[:-1]}, "{name}": {json.dumps(body[name])}}}'.encode()


def unknown_field(rng, path, body):
    return with_field(rng, path, body, rng.choice(["promt", "Max_tokens", "", "best_off", "x" * 500, "é"]), 1)


def missing_field(rng, path, body):
    del body[TEXT[path]]
    return "POST", path, JSON, json.dumps(body).encode()


def no_object(rng, path, body):
    return "POST", path, JSON, rng.choice(["null", "3", '"text"', "true", json.dumps([body]), "[]", "{}", ""]).encode()


def empty_text(rng, path, body):
    empty = [[]] if path == "/v1/chat/completions" else ["", [], [""], [[]]]
    return with_field(rng, path, body, TEXT[path], rng.choice(empty))


def bad_tokens(rng, path, body):
    path = rng.choice(["/v1/completions", "/v1/compress"])
    ids = [5, 6, rng.choice([-1, 10**6, 400 + 10**3, 2**70])]
    return with_field(rng, path, copy.deepcopy(VALID[path]), TEXT[path], rng.choice([ids, [ids]]))


def bad_message(rng, path, body):
    path, body = "/v1/chat/completions", copy.deepcopy(VALID["/v1/chat/completions"])
    message = rng.choice(
        [
            {"role": rng.choice(["function", "robot", "", "User", "system\n", None, 3]), "content": "Who?"},
            {"content": "Who?"},
            {"role": "user", "content": rng.choice([3, {"type": "text", "text": "a"}, ["a"], True])},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            {"role": "user", "content": [{"type": "text"}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "1", "type": "function", "function": "f"}]},
            {"role": "user", "content": "Who?", "extra": 1},
            "Who?",
            None,
            ["user", "Who?"],
        ]
    )
    return with_field(rng, path, body, "messages", [*body["messages"], message])


def unsupported(rng, path, body):
    path = rng.choice(["/v1/completions", "/v1/chat/completions"])
    body = copy.deepcopy(VALID[path])
    name, value = rng.choice(
        [
            ("n", 3),
            ("frequency_penalty", 0.5),
            ("presence_penalty", -1),
            ("logit_bias", {"5": 1}),
            ("stop", ["a", "b", "c", "d", "e"]),
            ("stop", [""]),
            ("stream_options", {"include": True}),
            *UNSUPPORTED[path],
        ]
    )
    return with_field(rng, path, body, name, value)


def regex_over_the_wire(rng, path, body):
    return with_field(rng, "/v1/compress", copy.deepcopy(VALID["/v1/compress"]), "keep", ["names", "regex:(a+)+$"])


def other_model(rng, path, body):
    return with_field(rng, path, body, "model", rng.choice(["gpt-4", "", "../etc", "x" * 3000]))


def wrong_content_type(rng, path, body):
    kind = rng.choice(
        ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "", "multipart/form-data"]
    )
    return "POST", path, {"Content-Type": kind}, json.dumps(body).encode()


def unknown_route(rng, path, body):
    end = rng.choice(["/", "x", "/../../x", "%00", "?a=b/c/", "/1"])
    return "POST", path + end if not end.startswith("?") else "/v2" + end, JSON, json.dumps(body).encode()


def wrong_method(rng, path, body):
    method, path = rng.choice(
        [(rng.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"]), path), ("POST", "/v1/models")]
    )
    return method, path, JSON, json.dumps(body).encode()


def huge_body(rng, path, body):
    body = {**body, "user": "a" * rng.choice([50_001, 80_000])}
    return "POST", path, JSON, json.dumps(body).encode()


def too_many_tokens(rng, path, body):
    path = rng.choice(["/v1/completions", "/v1/compress"])
    return with_field(rng, path, copy.deepcopy(VALID[path]), TEXT[path], rng.choice([[7] * 2001, "q " * 3000]))


KINDS = (
    *(truncated, broken_syntax, invalid_utf8, other_encoding, lone_surrogate, no_number, huge_integer, negative),
    *(out_of_range, boolean_for_number, wrong_type, text_for_number, deep, key_twice, unknown_field, missing_field),
    *(no_object, empty_text, bad_tokens, bad_message, unsupported, regex_over_the_wire, other_model),
    *(wrong_content_type, unknown_route, wrong_method, huge_body, too_many_tokens),
)


def test_a_thousand_malformed_requests_are_refused_and_the_server_goes_on(url):
    rng = random.Random(0)
    statuses = {kind.__name__: set() for kind in KINDS}
    with httpx.Client(timeout=30) as client:
        for number in range(1000):
            kind = KINDS[number % len(KINDS)]
            path = rng.choice(list(VALID))
            method, path, headers, body = kind(rng, path, copy.deepcopy(VALID[path]))
            response = client.request(method, url + path, headers=headers, content=body)
            said = (
                f"{kind.__name__}: {method} {path[:80]} {body[:300]!r}: {response.status_code} {response.text[:300]}"
            )
            assert 400 <= response.status_code < 500, said
            statuses[kind.__name__].add(response.status_code)
            if method != "HEAD":
                assert response.json()["error"].keys() == {"message", "type", "param", "code"}, said
                assert response.json()["error"]["type"] == "invalid_request_error" and len(response.text) < 3000, said
                assert "Traceback" not in response.text, said
        for path, body in VALID.items():
            assert client.post(url + path, json=body).status_code == 200
        samples = metrics_of(client.get(f"{url}/metrics").text)
    assert samples[("trl_gist_requests_in_flight",)] == 0
    assert statuses["wrong_content_type"] == {415} and statuses["huge_body"] == {413}
    assert statuses["unknown_route"] == {404} == statuses["other_model"] and statuses["wrong_method"] == {405}
    assert all(
        found == {400} for name, found in statuses.items() if name in ("deep", "key_twice", "bad_message", "negative")
    )


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "valid integer"),
        ({"prompt": "a", "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"prompt": "a", "temperature": 0.001}, "temperature", "must be 0, .* or at least 0.01"),
        ({"prompt": "a", "n": 2}, "n", "less than or equal to 1"),
        ({"prompt": "a", "echo": True}, "echo", "does not support it"),
        ({"prompt": "a", "bestof": 1}, "bestof", "Unrecognized"),
        ({"prompt": [1, 2, True]}, "prompt.2", "valid integer"),
        ({"prompt": [3, 5000]}, "prompt", "5000, which is no id"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": ["a", "b"]}, "prompt", "one a request"),
        ({}, "prompt", "required"),
        # As they really are wrong, and not as one of the kinds that they could be
        ({"prompt": "a", "stop": ["z", ""]}, "stop.1", "at least 1 character"),
        ({"prompt": "a", "stop": 5}, "stop", "should be text or a list of texts"),
        ({"prompt": [[]]}, "prompt.0", "is empty"),
        ({"prompt": [2.0, 3]}, "prompt.0", "valid integer"),
        (
            {"prompt": "a", "stream_options": {"include_obfuscation": 0}},
            "stream_options.include_obfuscation",
            "boolean",
        ),
        (
            {"prompt": "a", "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "not",
        ),
        ({"prompt": "a", "max_tokens": 10**400}, "max_tokens", "1000.* is more than this server's 64"),
        ({"prompt": [10**400]}, "prompt", "no id"),
    ],
)
def test_the_field_that_is_wrong_is_named(url, body, param, message):
    response = httpx.post(f"{url}/v1/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    with pytest.raises(ValueError, match=message):
        raise ValueError(error["message"])


def test_a_message_that_is_wrong_is_named(url):
    def param(message):
        response = httpx.post(
            f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}, message]}
        )
        return response.json()["error"]["param"]

    assert param({"role": "robot", "content": "a"}) == "messages.1.role"
    assert param({"role": "user", "content": 3}) == "messages.1.content"
    assert param({"role": "user", "content": [{"type": "text", "text": 3}]}) == "messages.1.content.0.text"


def test_a_client_that_leaves_in_the_middle_of_its_body_holds_no_place(url):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(HEAD.encode() + b'{"prompt": "a')
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
    until(lambda: metrics_of(httpx.get(f"{url}/metrics").text)[("trl_gist_requests_in_flight",)] == 0)


def test_a_body_that_trickles_in_holds_a_place_for_a_time_only():
    with running(make_compactor(), request_seconds=0.3) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10) as connection:
            connection.sendall(HEAD.encode() + b'{"prompt": "a')
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        until(lambda: metrics_of(httpx.get(f"{url}/metrics").text)[("trl_gist_requests_in_flight",)] == 0)


@pytest.mark.parametrize(
    "request_",
    ["POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", "\x00\x01\r\n\r\n", "GET\r\n\r\n"],
)
def test_what_is_no_http_is_refused(url, request_):
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10) as connection:
        connection.sendall(request_.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert httpx.get(f"{url}/health").status_code == 200
