"""A small Hugging Face hub on loopback: the endpoints that huggingface_hub asks, and every way to fail them.

    with FakeHub() as hub:
        commit = hub.add("org/model", {"config.json": b"{}", "model.safetensors": weights})
        hub.faults.append(Fault("model.safetensors", cut_at=1000))
        ... HF_ENDPOINT=hub.url ...

Large-file-storage files (weights) are redirected to another host name, as the real hub does with its storage.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = re.compile(r".*\.(safetensors|bin|onnx|gguf|model)")
BLOCK = 1 << 15
TREE_PAGE = 1000


@dataclass
class Fault:
    """What goes wrong, for the paths that `path` is found in; `times` requests long, or for ever."""

    path: str  # weights are served below /storage/
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None  # close the connection before this byte of the file
    hold_at: int | None = None  # stop sending before this byte of the file, until the hub is closed
    flip: bool = False  # send the file with its first byte changed
    body: bytes | None = None  # send this in place of the answer
    ranges: bool = True  # False: answer 200 and the whole file, whatever range was asked for
    act: Callable[[], object] | None = None  # call this first
    times: float = float("inf")


@dataclass
class Request:
    """One request as it came."""

    method: str
    host: str
    path: str
    headers: dict[str, str]


class FakeHub:
    """The hub: its repositories, its faults, and what was asked of it."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.gated: dict[str, str] = {}  # repository -> the token that opens it
        self.stated: dict[str, str] = {}  # file -> a hash to state in place of the true one
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.served: Counter[str] = Counter()  # bytes of body sent, by file name
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage_url(self) -> str:
        return f"http://localhost:{self._server.server_address[1]}"

    def add(self, repository: str, files: dict[str, bytes], *, branch: str = "main") -> str:
        """Commit files to a branch and return the commit."""
        names = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(files.items())})
        commit = hashlib.sha1(f"{repository}{names}".encode()).hexdigest()
        self.commits[repository, commit] = files
        self.branches[repository, branch] = commit
        return commit

    def fault(self, path: str) -> Fault | None:
        """Return the first fault for a path that is not used up, and use it."""
        with self.lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def paths(self, *, method: str = "GET") -> list[str]:
        """Return the paths that were asked for, in order."""
        return [request.path for request in self.requests if request.method == method]

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms an answer
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with hub.lock:
            hub.requests.append(Request(self.command, headers["host"], path, headers))
        fault = hub.fault(path) or Fault("")
        if fault.act:
            fault.act()
        if fault.status:
            self._send(fault.status, fault.body or b'{"error": "as told"}', fault.headers)
        elif fault.body is not None:
            self._send(200, fault.body, fault.headers)
        elif api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self._api(api.group(1), api.group(2) or "revision", api.group(3) or "main")
        elif resolved := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*resolved.groups(), body=body, fault=fault)
        elif stored := re.fullmatch(r"/storage/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            repository, commit, name = stored.groups()
            self._file(name, hub.commits[repository, commit][name], {}, body=body, fault=fault)
        else:
            self._send(404, b"{}", {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _commit(self, repository: str, revision: str) -> str | None:
        """Return the commit of a revision; else send the error that the hub sends."""
        hub = self.server.hub
        known = any(name == repository for name, _ in hub.commits)
        if not known:
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        if repository in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.gated[repository]}":
            status = 403 if "Authorization" in self.headers else 401
            error = f"Access to model {repository} is restricted."
            self._send(status, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": error})
            return None
        commit = hub.branches.get((repository, revision), revision)
        if (repository, commit) not in hub.commits:
            self._send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _api(self, repository: str, what: str, revision: str) -> None:
        hub = self.server.hub
        commit = self._commit(repository, revision)
        if commit is None:
            return
        files = hub.commits[repository, commit]
        query = parse_qs(urlsplit(self.path).query)
        if what == "tree":
            start = int(query.get("cursor", ["0"])[0])
            names = sorted(files)
            entries = [{"type": "file", "path": name} | self._stated(name, files[name], oid="oid") for name in names]
            more = f'<{hub.url}{urlsplit(self.path).path}?recursive=True&cursor={start + TREE_PAGE}>; rel="next"'
            headers = {"Link": more} if start + TREE_PAGE < len(names) else {}
            self._send(200, json.dumps(entries[start : start + TREE_PAGE]).encode(), headers)
            return
        blobs = "blobs" in query
        siblings = [{"rfilename": name} | (self._stated(name, data) if blobs else {}) for name, data in files.items()]
        info = {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings[:1000], "tags": []}
        self._send(200, json.dumps(info).encode(), {})

    def _stated(self, name: str, data: bytes, *, oid: str = "blobId") -> dict[str, Any]:
        """Return what the hub states of a file."""
        stated = self.server.hub.stated.get(name)
        if not LFS.fullmatch(name):
            return {"size": len(data), oid: stated or git_blob_id(data)}
        sha256 = stated or hashlib.sha256(data).hexdigest()
        hashed = {"oid": sha256} if oid == "oid" else {"sha256": sha256}
        return {"size": len(data), oid: "0" * 40, "lfs": {"size": len(data), "pointerSize": 134, **hashed}}

    def _resolve(self, repository: str, revision: str, name: str, *, body: bool, fault: Fault) -> None:
        hub = self.server.hub
        commit = self._commit(repository, revision)
        if commit is None:
            return
        data = hub.commits[repository, commit].get(name)
        if data is None:
            self._send(404, b'{"error": "Entry not found"}', {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_blob_id(data)}"'}
        if LFS.fullmatch(name):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
            headers["Location"] = f"{hub.storage_url}/storage/{repository}/{commit}/{name}"
            self._send(302, b"", headers)
            return
        self._file(name, data, headers, body=body, fault=fault)

    def _file(self, name: str, data: bytes, headers: dict[str, str], *, body: bool, fault: Fault) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if fault.ranges else None
        start, stop = (int(asked.group(1)), int(asked.group(2) or len(data) - 1) + 1) if asked else (0, len(data))
        stop = min(stop, len(data))
        if asked and start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if asked else 200)
        if asked:
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        for key, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(stop - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self._send_body(name, bytes([data[0] ^ 1]) + data[1:] if fault.flip else data, start, stop, fault)

    def _send_body(self, name: str, data: bytes, start: int, stop: int, fault: Fault) -> None:
        hub = self.server.hub
        end = min(stop, *(limit for limit in (fault.cut_at, fault.hold_at) if limit is not None), stop)
        for first in range(start, end, BLOCK):
            block = data[first : min(first + BLOCK, end)]
            with hub.lock:  # before it is sent: who has it may ask at once
                hub.served[name] += len(block)
            try:
                self.wfile.write(block)
            except OSError:
                with hub.lock:
                    hub.served[name] -= len(block)
                raise
        if end < stop:
            self.close_connection = True
            if fault.hold_at is not None:
                hub.closing.wait()


def git_blob_id(data: bytes) -> str:
    """Return the id that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
