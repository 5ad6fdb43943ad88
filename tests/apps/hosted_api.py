"""A hosted API for tests: chat by a function of the question, files, and tuning jobs that end after some looks."""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class HostedApi:
    """`say(model, messages)` answers. What was uploaded, asked and begun is kept."""

    def __init__(self, say: Callable[[str, list[dict[str, str]]], str], looks: int = 2, fails: str = "") -> None:
        self.files: dict[str, list[dict]] = {}
        self.jobs: list[dict[str, Any]] = []
        self.asked: list[tuple[str, list[dict[str, str]]]] = []
        self.looks, self.fails = looks, fails
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.endswith("/models"):
                    return self.send({"data": [{"id": "small"}]})
                if "/events" in self.path:
                    data = {"step": 1, "train_loss": 1.5, "valid_loss": 1.7}
                    return self.send({"data": [{"id": "e1", "message": "Step 1", "data": data}]})
                api.looks -= 1
                if api.looks > 0:
                    return self.send({"id": "job-1", "status": "running"})
                if api.fails:
                    return self.send({"id": "job-1", "status": "failed", "error": {"message": api.fails}})
                done = {"status": "succeeded", "fine_tuned_model": "small:tuned", "trained_tokens": 321}
                return self.send({"id": "job-1", **done})

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.path.endswith("/files"):
                    head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
                    form = email.message_from_bytes(head + data, policy=email.policy.default)
                    parts = {p.get_param("name", header="content-disposition"): p for p in form.iter_parts()}
                    assert parts["purpose"].get_content().strip() == "fine-tune"
                    text = parts["file"].get_payload(decode=True).decode()
                    name = f"file-{len(api.files)}"
                    api.files[name] = [json.loads(line) for line in text.splitlines()]
                    return self.send({"id": name})
                body = json.loads(data)
                if self.path.endswith("/jobs"):
                    api.jobs.append(body)
                    return self.send({"id": "job-1", "status": "queued"})
                messages = body["messages"]
                api.asked.append((body["model"], messages))
                choice = {"index": 0, "message": {"content": say(body["model"], messages)}, "finish_reason": "stop"}
                return self.send({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})

            def send(self, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
