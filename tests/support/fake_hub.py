"""A Hub of our own on the loopback: it speaks what huggingface_hub asks for, and fails when it is told to.

    with FakeHub() as hub:
        hub.fail("POST", "/commit/", status=503, times=2)
        run_client("...", hub)

Files live in memory. LFS files are PUT without a token to an address with a signature in it, as with the real one.
Xet's client (hf_xet) finds here what its upload asks for: a short-lived token, a place for xorbs (chunks one behind the
other) and for shards (which file is which chunks). A file is put together again at the commit, from xorbs in the order
in which they came, so a push of one incompressible large file is read back; deduplication and downloads are not here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_" + "nbtuneTestTokenThatMustNeverShow0"
XET_TOKEN = "xet-short-lived"
LFS_FROM = 100_000  # bytes; safetensors and gguf always


@dataclass
class Repo:
    """A repository: branches of path → (bytes, is it LFS)."""

    private: bool
    branches: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=lambda: {"main": {}})
    commits: int = 0

    def sha(self, branch: str) -> str:
        text = repr(
            sorted((path, hashlib.sha256(data).hexdigest()) for path, (data, _) in self.branches[branch].items())
        )
        return hashlib.sha1(f"{branch}{text}".encode()).hexdigest()


@dataclass
class Fault:
    """What goes wrong; `how`: ``"status"``, ``"drop"`` (no answer), ``"half"`` (half the body is read), ``"stall"``,
    ``"loris"`` (an answer that comes byte by byte, and never ends)."""

    method: str
    path: str
    how: str
    status: int
    times: int
    headers: dict[str, str]


class FakeHub:
    """The server; `repos`, `objects` (LFS) and `requests` (method, path, had it the token) may be looked at."""

    def __init__(self, token: str = TOKEN, user: str = "ada") -> None:
        self.token, self.user, self.role = token, user, "write"
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.xorbs: list[bytes] = []
        self.requests: list[tuple[str, str, bool]] = []
        self.messages: list[str] = []
        """Of the commits, in their order."""
        self.faults: list[Fault] = []
        self.seen: Callable[[int], None] | None = None
        """Called with the number of each request before it is served."""
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.released = threading.Event()

    def fail(
        self,
        method: str,
        path: str,
        *,
        how: str = "status",
        status: int = 500,
        times: int = 1_000_000,
        headers: dict[str, str] | None = None,
    ) -> None:
        """From now on the next `times` requests whose path matches the regular expression `path` go wrong."""
        self.faults.append(Fault(method, path, how, status, times, headers or {}))

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.faults.clear()
        self.requests.clear()

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        return {path: data for path, (data, _) in self.repos[repo].branches[branch].items()}

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # --- plumbing -------------------------------------------------------------------------------------------------

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if not any(key.lower() == "content-length" for key in headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Request-Id", "test")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, code: str = "", message: str = "no") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, {"error": message}, headers)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def _drip(self) -> None:
        """An answer of a megabyte, a byte at a time."""
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 20))
        self.end_headers()
        while not self.hub.released.wait(0.2):
            try:
                self.wfile.write(b" ")
            except OSError:
                break
        self._drop()

    def _handle(self) -> None:
        hub, url = self.hub, urllib.parse.urlsplit(self.path)
        with_token = self.headers.get("Authorization") == f"Bearer {hub.token}"
        hub.requests.append((self.command, self.path, with_token))
        if hub.seen:
            hub.seen(len(hub.requests))
        fault = hub.take_fault(self.command, self.path)
        if fault and fault.how == "half":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self._drop()
        if fault and fault.how == "stall":
            self._body()
            hub.released.wait(60)
            return self._drop()
        body = self._body()
        if fault and fault.how == "drop":
            return self._drop()
        if fault and fault.how == "loris":
            return self._drip()
        if fault:
            return self._send(fault.status, {"error": "told to fail"}, fault.headers)
        path = re.sub(
            r"^/(api/)?datasets/", lambda found: "/api/models/" if found[1] else "/", url.path
        )  # one place for both
        for method, pattern, function, needs_token in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                if needs_token and not with_token:
                    return self._error(401, message="Invalid username or password.")
                query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
                with hub.lock:
                    parts = {key: urllib.parse.unquote(value) for key, value in match.groupdict().items()}
                    return function(self, body, query, **parts)
        return self._error(404, message=f"no route for {self.command} {url.path}")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _handle

    def _repo(self, repo: str, branch: str = "main") -> Repo | None:
        found = self.hub.repos.get(repo)
        if found is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif branch not in found.branches:
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return None
        return found

    def _named(self, repo: str, branch: str) -> str:
        """The branch that a commit is of."""
        known = self.hub.repos.get(repo)
        return next((name for name in known.branches if known.sha(name) == branch), branch) if known else branch

    # --- what the Hub does ----------------------------------------------------------------------------------------

    def whoami(self, _body: bytes, _query: dict[str, str]) -> None:
        auth = {"type": "access_token", "accessToken": {"displayName": "of a test", "role": self.hub.role}}
        self._send(200, {"type": "user", "name": self.hub.user, "orgs": [{"name": "crew"}], "auth": auth})

    def create(self, body: bytes, _query: dict[str, str]) -> None:
        want = json.loads(body)
        name = f"{want.get('organization') or self.hub.user}/{want['name']}"
        if want.get("organization") not in (None, self.hub.user):
            return self._error(403, message="You don't have the rights to create a model under this namespace")
        if name in self.hub.repos:
            return self._error(409, message="You already created this model repo")
        private = want.get("private") or want.get("visibility") == "private"
        self.hub.repos[name] = Repo(bool(private))
        return self._send(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def delete(self, body: bytes, _query: dict[str, str]) -> None:
        want = json.loads(body)
        self.hub.repos.pop(f"{want.get('organization') or self.hub.user}/{want['name']}", None)
        self._send(200)

    def validate(self, _body: bytes, _query: dict[str, str]) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def branch(self, _body: bytes, _query: dict[str, str], repo: str, name: str) -> None:
        found = self._repo(repo)
        if found and name in found.branches:
            return self._error(409, message="Reference already exists")
        if found:
            found.branches[name] = dict(found.branches["main"])
            self._send(200)
        return None

    def preupload(self, body: bytes, query: dict[str, str], repo: str, branch: str) -> None:
        found = self._repo(repo, branch)
        if not found:
            return
        answers = []
        for file in json.loads(body)["files"]:
            large = file["size"] > LFS_FROM or file["path"].endswith((".safetensors", ".gguf"))
            have = found.branches[branch].get(file["path"])
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if have:
                answer["oid"] = hashlib.sha256(have[0]).hexdigest() if have[1] else _git_sha(have[0])
            answers.append(answer)
        self._send(200, {"files": answers})

    def batch(self, body: bytes, _query: dict[str, str], repo: str) -> None:
        if not self._repo(repo):
            return
        objects = []
        for want in json.loads(body)["objects"]:
            item: dict[str, Any] = {"oid": want["oid"], "size": want["size"]}
            if want["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/lfs/{want['oid']}?signature=presigned"
                item["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.hub.endpoint}/verify"}}
            objects.append(item)
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, query: dict[str, str], oid: str) -> None:
        if self.headers.get("Authorization"):
            return self._error(400, message="a token was sent to the storage")
        if query.get("signature") != "presigned" or hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, message="the content is not what was announced")
        self.hub.objects[oid] = body
        return self._send(200)

    def verify(self, body: bytes, _query: dict[str, str]) -> None:
        want = json.loads(body)
        whole = len(self.hub.objects.get(want["oid"], b"")) == want["size"]
        self._send(200) if whole else self._error(404, message="no such object")

    def xet_token(self, _body: bytes, _query: dict[str, str], repo: str, branch: str) -> None:
        if self._repo(repo, branch):
            until = int(time.time()) + 3600
            body = {"casUrl": self.hub.endpoint, "accessToken": XET_TOKEN, "exp": until}
            headers = {"X-Xet-Cas-Url": self.hub.endpoint, "X-Xet-Access-Token": XET_TOKEN}
            self._send(200, body, headers | {"X-Xet-Token-Expiration": str(until)})

    def xorb(self, body: bytes, _query: dict[str, str], hash: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {XET_TOKEN}":
            return self._error(401, message="the storage takes its own token only")
        self.hub.xorbs.append(_chunks_of(body))
        return self._send(200, {"was_inserted": True})

    def shard(self, _body: bytes, _query: dict[str, str]) -> None:
        self._send(200, {"result": 1})

    def commit(self, body: bytes, query: dict[str, str], repo: str, branch: str) -> None:
        found = self._repo(repo, branch)
        if not found:
            return None
        files = dict(found.branches[branch])
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.hub.messages.append(value.get("summary", ""))
            elif item["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                sent = b"".join(self.hub.xorbs)[: value.get("size", 0)]
                if hashlib.sha256(sent).hexdigest() == value["oid"]:
                    self.hub.objects[value["oid"]] = sent
                if value["oid"] not in self.hub.objects:
                    return self._error(400, message="LFS object is missing")
                files[value["path"]] = (self.hub.objects[value["oid"]], True)
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        found.commits += 1
        answer = {"success": True, "hookOutput": ""}
        if query.get("create_pr"):
            branch = f"refs/pr/{found.commits}"
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{found.commits}"
        found.branches[branch] = files
        sha = found.sha(branch)
        return self._send(200, {**answer, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha})

    def info(self, _body: bytes, _query: dict[str, str], repo: str, branch: str = "main") -> None:
        branch = self._named(repo, branch)
        found = self._repo(repo, branch)
        if found:
            siblings = [{"rfilename": path} for path in found.branches[branch]]
            body = {
                "id": repo,
                "modelId": repo,
                "private": found.private,
                "sha": found.sha(branch),
                "siblings": siblings,
            }
            self._send(200, {**body, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, _body: bytes, _query: dict[str, str], repo: str, branch: str, path: str = "") -> None:
        branch = self._named(repo, branch)
        found = self._repo(repo, branch)
        if not found:
            return
        rows = []
        for name, (data, large) in sorted(found.branches[branch].items()):
            if path and not name.startswith(path.strip("/") + "/"):
                continue
            row: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _git_sha(data)}
            if large:
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            rows.append(row)
        if path and not rows:
            return self._error(404, "EntryNotFound", "no such folder")
        return self._send(200, rows)

    def paths(self, body: bytes, _query: dict[str, str], repo: str, branch: str) -> None:
        found = self.hub.repos.get(repo)
        asked = urllib.parse.parse_qs(body.decode()).get("paths", [])
        if found is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        rows = [
            {"type": "file", "path": path, "size": len(data), "oid": _git_sha(data)}
            for path, (data, _) in found.branches[self._named(repo, branch)].items()
            if path in asked
        ]
        return self._send(200, rows)

    def resolve(self, _body: bytes, _query: dict[str, str], repo: str, branch: str, path: str) -> None:
        found = self.hub.repos.get(repo)
        if found is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        name = next((b for b in found.branches if branch in (b, found.sha(b))), None)
        if name is None:
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        have = found.branches[name].get(path)
        if have is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found.sha(name)})
            return None
        etag = hashlib.sha256(have[0]).hexdigest() if have[1] else _git_sha(have[0])
        headers = {"X-Repo-Commit": found.sha(name), "ETag": f'"{etag}"', "Content-Length": str(len(have[0]))}
        return self._send(200, have[0], headers)


def _chunks_of(xorb: bytes) -> bytes:
    """The chunks of a xorb; each has a header of 8 bytes: version, bytes here (3), scheme (0: plain), bytes (3)."""
    found, at = [], 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        here, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        if scheme or at + 8 + here > len(xorb):
            break
        found.append(xorb[at + 8 : at + 8 + here])
        at += 8 + here
    return b"".join(found)


def _git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Any, bool]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami, True),
    ("POST", r"/api/repos/create", _Handler.create, True),
    ("DELETE", r"/api/repos/delete", _Handler.delete, True),
    ("POST", r"/api/validate-yaml", _Handler.validate, False),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<name>[^/]+)", _Handler.branch, True),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<branch>[^/]+)", _Handler.preupload, True),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<branch>[^/]+)", _Handler.commit, True),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch, True),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put, False),
    ("GET", rf"/api/models/{_REPO}/xet-write-token/(?P<branch>[^/]+)", _Handler.xet_token, True),
    ("POST", r"/v1/xorbs?/default/(?P<hash>[0-9a-f]{64})", _Handler.xorb, False),
    ("POST", r"(?:/v1)?/shards?", _Handler.shard, False),
    ("POST", r"/verify", _Handler.verify, False),
    ("GET", rf"/api/models/{_REPO}", _Handler.info, True),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<branch>[^/]+)", _Handler.info, True),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<branch>[^/]+)", _Handler.tree, True),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<branch>[^/]+)/(?P<path>.+)", _Handler.tree, True),
    ("POST", rf"/api/models/{_REPO}/paths-info/(?P<branch>[^/]+)", _Handler.paths, True),
    ("GET", rf"/{_REPO}/resolve/(?P<branch>[^/]+)/(?P<path>.+)", _Handler.resolve, True),
    ("HEAD", rf"/{_REPO}/resolve/(?P<branch>[^/]+)/(?P<path>.+)", _Handler.resolve, True),
]


def client_environment(hub: FakeHub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """The environment of a process whose Hub is `hub`; huggingface_hub reads it once, at import."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_OFF"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HOME": str(home)}
    return environment | ({"HF_TOKEN": token} if token else {})


def run_client(
    code: str, hub: FakeHub, home: Path, *, token: str | None = TOKEN, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process whose Hub is `hub`."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=client_environment(hub, home, token),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


if __name__ == "__main__":
    with FakeHub() as served:
        print(served.endpoint, flush=True)
        while True:
            time.sleep(3600)
