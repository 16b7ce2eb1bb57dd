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

"""
The server's document against the server, by Schemathesis: whatever a request is, the answer is one that is documented.

    CASES=2000 pytest tests/serving/test_openapi.py
"""

import copy
import os
import re
import time

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving_run import CONFIG, NAME, running
from starlette.testclient import TestClient
from tiny_sessions import make_compactor

from trl_gist.serving.app import MODEL_ROUTES, OTHER_ROUTES, make_app
from trl_gist.serving.config import ServingConfig


KEY = {"Authorization": "Bearer secret"}
# What no schema says of a request that it allows: lengths in tokens, the pair's vocabulary, its chat template, and that a
# whole number has no point
BEYOND_SCHEMAS = (
    r"Input should be a valid integer",
    r"has \d+ tokens; this server takes \d+",
    r"which is no id|Give whole numbers",
    r"The tokenizer's chat template (leaves out|refuses)|has the role",
    r"`undo` takes back a compaction, and this text had none",
    r"leave no room in the \d+ tokens that the generator reads of a chat",
    r"would need \d+ positions",
    r"is empty",
)

# Of answers the shapes are of interest, and not how long they take
LIMITS = {**CONFIG, "max_new_tokens": 8}
# Made of the same app; the one that answers is on a socket
SERVED = make_compactor()
DOCUMENT = (
    TestClient(make_app(SERVED, NAME, ServingConfig(**LIMITS), "secret")).get("/openapi.json", headers=KEY).json()
)
CASES = int(os.environ.get("CASES", "33"))
api = schemathesis.openapi.from_dict(DOCUMENT)
api.config.generation.update(max_examples=max(1, CASES // len(DOCUMENT["paths"])))
api.config.phases.coverage.enabled = CASES > 33


@pytest.fixture(scope="module")
def served(request):
    """The server's URL, and the cases so far."""
    cases, started = [], time.monotonic()
    with running(SERVED, "secret", **LIMITS) as url:
        yield url, cases
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{len(cases)} cases in {time.monotonic() - started:.0f} s", end="")


def what_is_allowed_is_answered(ctx, response, case):
    if case.meta.generation.mode.is_positive and response.status_code == 400:
        message = response.json()["error"]["message"]
        assert any(re.search(pattern, message) for pattern in BEYOND_SCHEMAS), (case.body, message)


@api.parametrize()
@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_documented(case, served):
    url, cases = served
    cases.append(case)
    case.call_and_validate(
        base_url=url,
        headers=KEY,
        additional_checks=[what_is_allowed_is_answered],
        excluded_checks=[positive_data_acceptance],
    )


def test_the_document_is_one_and_has_every_route_and_this_servers_limits():
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["paths"].keys() == {*MODEL_ROUTES, *OTHER_ROUTES, "/v1/models/{name}"}
    other = TestClient(make_app(SERVED, "org/é", ServingConfig(max_new_tokens=7))).get("/openapi.json").json()
    assert other == without_key(DOCUMENT, {NAME: "org/é", 8: 7})


def without_key(said, other):
    """The same document of a server without a key, whose name and limit are others."""
    if isinstance(said, list):
        return [without_key(each, other) for each in said]
    if isinstance(said, dict):
        left = {name: each for name, each in said.items() if name not in ("security", "securitySchemes")}
        left = left if "200" not in left else {name: each for name, each in left.items() if name != "401"}
        return {name: without_key(each, other) for name, each in left.items()}
    return other.get(said, said)


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_what_needs_a_key_says_so(served, path):
    ((method, operation),) = DOCUMENT["paths"][path].items()
    asked = httpx.request(method, f"{served[0]}{path.format(name=NAME)}", json={} if method == "post" else None)
    needed = operation.get("security", DOCUMENT["security"]) == [{"key": []}]
    assert (asked.status_code == 401) == needed == ("401" in operation["responses"])


@pytest.mark.parametrize(
    ("schema", "field", "asked"),
    [
        ("GistRow", "window", {}),
        ("GistRow", "window", {"stream": True}),
        ("Gists", "model", {"stream": True}),
        ("Usage", "total_tokens", {}),
        ("ErrorBody", "param", {"budget": 0}),
    ],
    ids=str,
)
def test_a_lie_in_the_document_would_be_found(served, schema, field, asked):
    def hold_to(document):
        operation = schemathesis.openapi.from_dict(document)["/v1/compress"]["POST"]
        case = operation.Case(body={"input": "In 1854 Snow marked houses.", **asked}, media_type="application/json")
        case.call_and_validate(base_url=served[0], headers=KEY)

    hold_to(DOCUMENT)
    lying = copy.deepcopy(DOCUMENT)
    lying["components"]["schemas"][schema]["properties"][field] = {"type": "array"}
    with pytest.raises(FailureGroup):
        hold_to(lying)
