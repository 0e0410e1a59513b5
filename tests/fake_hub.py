"""A hub on this machine: as much of the Hugging Face hub's HTTP API as an upload needs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Hub:
    """What the hub holds, and what it was asked.

    Attributes:
        files: of its one repository, "me/mine".
        commits: of each the message, and which files it added and deleted.
        branches: names.
        url: of the hub.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers within the block."""
    hub = Hub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if "/resolve/" in path:
            return self._file(body=True)
        if "/tree/" in path:
            return self._json([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.held.files])
        return self._json({"id": "me/mine", "sha": "0" * 40, "siblings": [{"rfilename": name} for name in self.held.files]})

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        if path == "/api/repos/create":
            return self._json({"url": f"{self.held.url}/me/mine"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in path:
            names = [each["path"] for each in json.loads(body)["files"]]
            return self._json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        if "/branch/" in path:
            self.held.branches.append(path.rpartition("/")[2])
            return self._json({})
        if "/commit/" in path:
            return self._commit(body, path.rpartition("/")[2])
        return self._answer(404, b"")

    def _commit(self, body: bytes, revision: str) -> None:
        parts = [json.loads(line) for line in body.decode().splitlines()]
        of = {key: [part["value"] for part in parts if part["key"] == key] for key in ("header", "file", "deletedFile")}
        added = {each["path"]: base64.b64decode(each["content"]) for each in of["file"]}
        deleted = [each["path"] for each in of["deletedFile"]]
        self.held.files = {name: content for name, content in self.held.files.items() if name not in deleted} | added
        (header,) = of["header"]
        self.held.commits.append({"message": header["summary"], "added": set(added), "deleted": deleted, "to": revision})
        self._json({"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.held.url}/me/mine/commit/{'1' * 40}"})

    def _file(self, body: bool) -> None:
        found = self.held.files.get(urlsplit(self.path).path.rpartition("/")[2])
        if found is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._answer(200, found, {"ETag": '"0"', "X-Repo-Commit": "0" * 40}, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, code: int, content: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
