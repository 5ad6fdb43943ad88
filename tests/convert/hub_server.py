"""A hub of one process: the few routes that making a repository and committing to it take."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What was uploaded: `repos` by name whether private, `files` of the last commit, `message`, the `tokens` seen."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.message = ""
        self.tokens: set[str] = set()
        self.address = ""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if self.tokens != {"Bearer hf_secret"}:
            return 403, {"error": "you may not write with hf_wrong"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization')}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repos[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            wanted = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in
                      json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": wanted}
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "header":
                    self.message = item["value"]["summary"]
                elif item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            oid = "0" * 40
            return 200, {"commitUrl": f"{self.address}/org/name/commit/{oid}", "commitOid": oid, "success": True}
        return 404, {"error": f"no route {path}"}


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _body(self) -> bytes:
            if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_POST(self) -> None:
            body = self._body()
            hub.tokens.add(self.headers.get("Authorization") or "")
            status, found = hub.answer(self.path.partition("?")[0], body)
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
