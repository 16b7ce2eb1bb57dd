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

"""Documents on the Hub by `hf://` and in S3 by `s3://`, of servers on the loopback."""

import gzip
import hashlib
import json
import os
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_server import serve
from launching import ROOT, finished

from trl_gist.data.documents import load_documents


def lines(*texts):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


FILES = {"data/a.jsonl": lines("one", "zwö"), "data/b.jsonl.gz": gzip.compress(lines("three")), "README.md": b"---\n"}

LOAD = """
import json, sys
from trl_gist.data.documents import load_documents
for source in sys.argv[1:]:
    for streaming in (False, True):
        print("found", json.dumps([row["text"] for row in load_documents(source, streaming=streaming)]))
"""


def test_files_of_a_repository_are_read(tmp_path):
    """Of a model's, which has its datasets' addresses without a prefix: the one that the tests' server speaks."""
    with serve("token") as hub:
        hub.create("tester/data", {name.rpartition("/")[2]: content for name, content in FILES.items()})
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "http"))},
            **{"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"},
        }
        sources = [f"hf://tester/data{rest}" for rest in ("/a.jsonl", "", "/*.jsonl.gz")]
        done = finished([sys.executable, "-c", LOAD, *sources], 200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("found ")]
    assert found == [texts for texts in (["one", "zwö"], ["one", "zwö", "three"], ["three"]) for _ in range(2)]


class _Bucket(BaseHTTPRequestHandler):
    """What s3fs (2026.9) asks of S3: a listing, a file's head, and its bytes or a range of them."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        key, query = unquote(url.path).removeprefix("/bucket").removeprefix("/"), parse_qs(url.query)
        if "list-type" in query:
            return self._send(200, self._listing(query.get("prefix", [""])[0], "delimiter" in query))
        if key not in FILES:
            return self._send(404, b"")
        content, part = FILES[key], self.headers.get("Range")
        if part is None:
            return self._send(200, content, ETag=f'"{hashlib.md5(content).hexdigest()}"')
        first, last = part.removeprefix("bytes=").split("-")
        wanted = content[int(first) : int(last) + 1 if last else None]
        return self._send(206, wanted, **{"Content-Range": f"bytes {first}-{len(wanted)}/{len(content)}"})

    def _listing(self, prefix, shallow):
        keys = [key for key in sorted(FILES) if key.startswith(prefix)]
        folders = sorted(
            {prefix + key[len(prefix) :].split("/")[0] + "/" for key in keys if "/" in key[len(prefix) :]}
        )
        files = [key for key in keys if not shallow or "/" not in key[len(prefix) :]]
        body = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>x</ETag><Size>{len(FILES[key])}</Size></Contents>"
            for key in files
        ) + "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders if shallow)
        space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        return f"<ListBucketResult {space}><IsTruncated>false</IsTruncated>{body}</ListBucketResult>".encode()

    def _send(self, status, content, **headers):
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def served(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_bucket_are_read(monkeypatch, streaming):
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # which has the server before this one
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    with served(_Bucket) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for source, texts in (
            ("s3://bucket/data/a.jsonl", ["one", "zwö"]),
            ("s3://bucket", ["one", "zwö", "three"]),
            ("s3://bucket/data/*.jsonl.gz", ["three"]),
        ):
            found = [row["text"] for row in load_documents(source, streaming=streaming)]
            assert found == texts, source
        with pytest.raises(ValueError, match="s3://bucket/data/missing.jsonl does not exist"):
            load_documents("s3://bucket/data/missing.jsonl")


def test_a_library_that_a_store_needs_is_named():
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="s3://bucket/a.jsonl is out of reach: .*s3fs"):
            load_documents("s3://bucket/a.jsonl")
