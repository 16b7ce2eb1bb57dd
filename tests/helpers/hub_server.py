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
A Hub in memory, on the loopback: what huggingface_hub (2.4) asks for when it creates a repository, pushes a commit over
LFS, and downloads; of Spaces, whose repositories are named `spaces/…` here, what a push asks for. It refuses what the
Hub would refuse: a write without the token, a large file whose bytes are not what its sha256 says, a commit that names
a file that never arrived, or whose parent is no longer the head.
"""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


USER = "tester"
# As the Hub's default .gitattributes
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".png", ".model")


@dataclass
class Commit:
    """A commit: its id, its message, all files as bytes by path, and the parent that the client asked for."""

    id: str
    message: str
    files: dict[str, bytes]
    parent: str | None


@dataclass
class Failure:
    """Requests to spoil: those whose `METHOD /path` matches, but for the first `skip`, `times` times."""

    pattern: str
    status: int | None  # None drops the connection half-way through the request
    skip: int = 0
    times: int = 1


@dataclass
class Hub:
    """The server's state, for a test to read."""

    token: str
    url: str = ""
    branches: dict[str, dict[str, list[Commit]]] = field(default_factory=dict)  # repository -> branch -> commits
    objects: dict[str, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))  # LFS, by sha256
    uploads: list[tuple[str, str]] = field(default_factory=list)  # (repository, sha256) of each PUT that arrived
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def create(self, repo: str, files: dict[str, bytes] | None = None):
        self.branches[repo] = {"main": []}
        self.add_commit(repo, "main", "initial commit", {".gitattributes": b"", **(files or {})})

    def create_from(self, repo: str, folder: Path):
        self.create(repo, {path.name: path.read_bytes() for path in Path(folder).iterdir()})

    def commits(self, repo: str, branch: str = "main") -> list[Commit]:
        """The pushed ones, oldest first."""
        return self.branches[repo][branch][1:]

    def head(self, repo: str, branch: str = "main") -> Commit:
        return self.branches[repo][branch][-1]

    def find(self, repo: str, revision: str) -> Commit | None:
        if revision in self.branches[repo]:
            return self.head(repo, revision)
        commits = [commit for branch in self.branches[repo].values() for commit in branch]
        return next((commit for commit in commits if commit.id == revision), None)

    def add_commit(self, repo, branch, message, files, parent=None):
        commits = self.branches[repo][branch]
        digest = hashlib.sha1(f"{repo} {branch} {len(commits)}".encode()).hexdigest()
        commits.append(Commit(digest, message, files, parent))
        return commits[-1]

    def failure(self, request: str) -> Failure | None:
        for failure in self.failures:
            if re.search(failure.pattern, request):
                if failure.skip:
                    failure.skip -= 1
                elif failure.times:
                    failure.times -= 1
                    return failure
        return None


@contextmanager
def serve(token: str):
    """Yields a [`Hub`] that listens on a free port of the loopback until the end of the block."""
    hub = Hub(token)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_API = r"/api/(?:models/|(?=spaces/))((?:spaces/)?[^/]+/[^/]+)"


def _git_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _id(path, content):
    return _sha256(content) if path.endswith(LARGE) else _git_id(content)


class _Refused(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer("GET")

    def do_HEAD(self):
        self._answer("HEAD")

    def do_POST(self):
        self._answer("POST")

    def do_PUT(self):
        self._answer("PUT")

    def _answer(self, method):
        url = urlsplit(self.path)
        path, request = unquote(url.path), f"{method} {unquote(url.path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
            failure = self.hub.failure(request)
        if failure is not None and failure.status is None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        body = self._body()
        try:
            if failure is not None:
                raise _Refused(failure.status, "spoilt by the test")
            with self.hub.lock:
                self._route(method, path, parse_qs(url.query), body)
        except _Refused as refused:
            self._send(
                refused.status,
                {"error": str(refused)},
                **{"X-Error-Message": str(refused), **({"X-Error-Code": refused.code} if refused.code else {})},
            )

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- What is asked ----

    def _route(self, method, path, query, body):
        for verb, pattern, answer in (
            ("POST", r"/api/repos/create", self._create),
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/validate-yaml", self._validate_yaml),
            ("POST", _API + r"/preupload/(.+)", self._preupload),
            ("POST", _API + r"/commit/(.+)", self._commit),
            ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            ("POST", r"/lfs/([^/]+/[^/]+)/verify", self._lfs_verify),
            ("PUT", r"/lfs/([^/]+/[^/]+)/(\w+)", self._lfs_put),
            ("GET", r"/api/models/([^/]+/[^/]+)/refs", self._refs),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree),
            ("GET", _API + r"/revision/(.+)", self._info),
            ("GET", _API, self._info),
            ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ):
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                if verb == "POST" or path == "/api/whoami-v2":
                    self._check_token()
                return answer(*match.groups(), **({"body": body} if verb in ("POST", "PUT") else {}))
        raise _Refused(404, f"this server does not speak {method} {path}")

    def _check_token(self):
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _commit_at(self, repo, revision):
        if repo not in self.hub.branches:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        commit = self.hub.find(repo, revision)
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _whoami(self):
        self._send(200, {"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}})

    def _create(self, body):
        values = json.loads(body)
        repo = f"{values['organization'] or USER}/{values['name']}"
        repo = f"spaces/{repo}" if values.get("type") == "space" else repo
        exists = repo in self.hub.branches
        if not exists:
            self.hub.create(repo)
            if values.get("visibility") == "private":
                self.hub.private.add(repo)
        self._send(409 if exists else 200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _validate_yaml(self, body):
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _branch(self, repo, branch, body):
        branches = self.hub.branches[repo]
        if branch in branches:
            raise _Refused(409, "the branch exists")
        branches[branch] = [branches["main"][-1]]
        self._send(201, {})

    def _refs(self, repo):
        branches = self.hub.branches[repo]
        refs = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].id}
            for name, commits in branches.items()
        ]
        self._send(200, {"branches": refs, "tags": [], "converts": []})

    def _info(self, repo, revision="main"):
        commit = self._commit_at(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        card = re.match(r"---\n(.*?)\n---\n", commit.files.get("README.md", b"").decode(), re.DOTALL)
        values = {"id": repo.removeprefix("spaces/"), "sha": commit.id, "siblings": siblings, "tags": []}
        values |= {"private": repo in self.hub.private, "cardData": yaml.safe_load(card.group(1)) if card else None}
        self._send(200, values)

    def _tree(self, repo, revision, folder=None):
        commit = self._commit_at(repo, revision)
        prefix = f"{folder}/" if folder else ""
        files = {path: content for path, content in commit.files.items() if path.startswith(prefix)}
        if not files:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
        entries = []
        for path, content in sorted(files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": _git_id(content)}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._send(200, entries)

    def _resolve(self, repo, revision, path):
        commit = self._commit_at(repo, revision)
        if path not in commit.files:
            raise _Refused(404, f"{path} does not exist", "EntryNotFound")
        content = commit.files[path]
        headers = {"ETag": f'"{_id(path, content)}"', "X-Repo-Commit": commit.id}
        if path.endswith(LARGE):
            headers |= {"X-Linked-ETag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        self._send(200, content, **headers)

    # ---- A push ----

    def _preupload(self, repo, branch, body):
        held = self._commit_at(repo, branch).files
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": _id(file["path"], held[file["path"]]) if file["path"] in held else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def _lfs_batch(self, repo, body):
        answers = []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects[repo] and answer["oid"] not in [a["oid"] for a in answers]:
                storage = f"{self.hub.url}/lfs/{repo}"
                answer["actions"] = {
                    "upload": {"href": f"{storage}/{wanted['oid']}"},
                    "verify": {"href": f"{storage}/verify"},
                }
            answers.append(answer)
        self._send(200, {"transfer": "basic", "objects": answers})

    def _lfs_put(self, repo, oid, body):
        if "Authorization" in self.headers:
            raise _Refused(400, "the token is not for the storage")
        if _sha256(body) != oid:
            raise _Refused(400, f"the bytes that arrived are not those of {oid}")
        self.hub.objects[repo][oid] = body
        self.hub.uploads.append((repo, oid))
        self._send(200, b"")

    def _lfs_verify(self, repo, body):
        values = json.loads(body)
        content = self.hub.objects[repo].get(values["oid"])
        if content is None or len(content) != values["size"]:
            raise _Refused(404, f"{values['oid']} has not arrived")
        self._send(200, {})

    def _commit(self, repo, branch, body):
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header = lines[0]["value"]
        head = self._commit_at(repo, branch)
        if header.get("parentCommit", head.id) != head.id:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects[repo]:
                    raise _Refused(400, f"{value['path']}: {value['oid']} was never uploaded")
                files[value["path"]] = self.hub.objects[repo][value["oid"]]
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise _Refused(400, f"unknown operation {line['key']}")
        commit = self.hub.add_commit(repo, branch, header["summary"], files, header.get("parentCommit"))
        self._send(
            200, {"success": True, "commitOid": commit.id, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit.id}"}
        )
