"""A tiny OpenAI-compatible server for tests, in this process, answering from a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Server:
    """Answers each POST with the next of `script` (the last one again and again); remembers what was asked.

    A step is a function of the handler and the body.
    """

    def __init__(self, *script: Callable[[Any, dict[str, Any]], None]) -> None:
        self.script, self.bodies, self.headers, self.paths = list(script), [], [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.paths.append(self.path)
                reply(200, {"data": [{"id": "first"}, {"id": "second"}]})(self, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                step = server.script[0] if len(server.script) == 1 else server.script.pop(0)
                try:
                    step(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def reply(status: int, body: Any, **headers: str) -> Callable[[Any, Any], None]:
    """A whole JSON answer."""

    def step(handler: Any, _: Any) -> None:
        data = json.dumps(body).encode()
        handler.send_response(status)
        for name, value in ({"content-type": "application/json", "content-length": str(len(data))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return step


def error(status: int, message: str, code: str = "", **headers: str) -> Callable[[Any, Any], None]:
    return reply(status, {"error": {"message": message, "code": code}}, **headers)


def events(*chunks: Any, done: bool = True, hold: threading.Event | None = None) -> Callable[[Any, Any], None]:
    """A streamed answer. With `hold` it stays open after the chunks until the event is set."""

    def step(handler: Any, _: Any) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.send_header("connection", "close")
        handler.end_headers()
        for chunk in chunks:
            handler.wfile.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\r\n\r\n")
            handler.wfile.flush()
        if hold is not None:
            hold.wait(20)
        if done:
            handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True

    return step


def said(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}]}


def usage(read: int, written: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": written}}


def answer(*words: str) -> Callable[[Any, Any], None]:
    return events(*map(said, words), said("", "stop"), usage(3, len(words)))
