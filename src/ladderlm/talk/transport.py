"""One HTTP exchange with an OpenAI-compatible server: retries, streamed events, cancellation, errors in one line."""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import random
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Self

import httpx

from ladderlm import events
from ladderlm.errors import (
    AuthError,
    Cancelled,
    ContextOverflow,
    DeadlineExceeded,
    FormatError,
    LadderError,
    NetworkError,
    NotFound,
    Overloaded,
    UsageError,
)
from ladderlm.types import Cancel

ATTEMPTS = 5
FIRST_PAUSE = 0.5  # seconds; doubles with every attempt, with full jitter
LONGEST_PAUSE = 60.0
SILENCE = 600.0  # seconds without a byte before a server counts as gone
_RETRIED = {408, 429, 500, 502, 503, 504, 529}
_QUOTA = "insufficient_quota"
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")
_LINE_LIMIT = 16 * 2**20
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


class Transport:
    """Requests to one server. Safe to share between threads.

    Every request has a connection of its own: some servers close idle ones without a word. Redirects are refused, so
    the key never reaches another host. Neither key nor body is logged.
    """

    def __init__(self, url: str, key_env: str, attempts: int = ATTEMPTS) -> None:
        """`attempts`: how often a request is sent where the server is busy; 1 hands its refusal on."""
        self.url, self._key_env, self._attempts = url.rstrip("/"), key_env, attempts
        host = httpx.URL(url).host
        self.host = httpx.URL(url).netloc.decode()
        self._client = httpx.Client(
            headers={"Connection": "close", "Accept": "text/event-stream, application/json"},
            timeout=httpx.Timeout(SILENCE, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=host not in _LOOPBACK,  # a proxy has no way to this machine
        )

    def close(self) -> None:
        self._client.close()

    @property
    def _key(self) -> str:
        """The key, read when it is needed. AuthError where a header cannot hold it (it is never shown)."""
        key = os.environ.get(self._key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise AuthError("the key holds characters that no key has", where=self._key_env, cure="set it again")
        return key

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        watch = Watch(None, None)
        with self._errors(watch), contextlib.closing(self._send("GET", path, None, watch)) as response:
            return _parse(response.read())

    def upload(self, path: str, fields: Mapping[str, str], name: str, data: bytes) -> Any:
        """The JSON that answers a file sent as a form, with its other fields."""
        watch = Watch(None, None)
        form = (dict(fields), {"file": (name, data, "application/jsonl")})
        with self._errors(watch), contextlib.closing(self._send("POST", path, None, watch, form)) as response:
            return self._checked(_parse(response.read()))

    def call(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The JSON object that answers `body`."""
        return next(self.post(path, body))

    def post(
        self, path: str, body: Mapping[str, Any], *, cancel: Cancel | None = None, deadline: float | None = None
    ) -> Generator[Mapping[str, Any]]:
        """The events of a streamed answer, or the one object of a whole one.

        Raises Cancelled and DeadlineExceeded at once, not at the next byte; NetworkError when the stream breaks off.
        """
        with (
            Watch(cancel, deadline) as watch,
            self._errors(watch),
            contextlib.closing(self._send("POST", path, body, watch)) as response,
        ):
            if "text/event-stream" in response.headers.get("content-type", ""):
                yield from self._events(response, watch)
            else:
                data = response.read()
                watch.check()
                yield self._checked(_parse(data))

    def _events(self, response: httpx.Response, watch: Watch) -> Iterator[Mapping[str, Any]]:
        for data in _data(response):
            watch.check()
            if data == b"[DONE]":
                return
            yield self._checked(_parse(data))
        watch.check()  # a socket that we shut reads like the end of the stream

    def _checked(self, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise FormatError("the server's answer is not a JSON object", where=self.host)
        if value.get("error"):
            raise NetworkError(f"the server failed: {self._clean(_message(value))}", where=self.host)
        return value

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, watch: Watch,
        form: tuple[dict[str, str], dict[str, Any]] | None = None,
    ) -> httpx.Response:  # fmt: skip
        """An open response with status 200. Tries again while nothing of an answer has come."""
        attempt = 0
        while True:
            watch.check()
            key = self._key
            request = self._client.build_request(
                method,
                self.url + path,
                json=body,
                data=form[0] if form else None,
                files=form[1] if form else None,
                headers={"Authorization": f"Bearer {key}"} if key else None,
                extensions={"trace": watch.trace},
            )
            response = self._client.send(request, stream=True)
            if response.status_code == 200:
                return response
            with contextlib.closing(response):
                detail = _parse_quietly(response.read())
            attempt += 1
            pause = _pause(response, attempt)
            wanted = response.status_code in _RETRIED and _code(detail) != _QUOTA
            if not wanted or attempt >= self._attempts or pause > min(LONGEST_PAUSE, watch.remaining()):
                raise self._refusal(response, detail)
            events.emit("remote", f"{self.host} answers {response.status_code}; again in {pause:.1f} s")
            watch.sleep(pause)

    def _refusal(self, response: httpx.Response, detail: Any) -> LadderError:
        """What a status other than 200 means."""
        status, said, where = response.status_code, self._clean(_message(detail)), self.host
        said = f": {said}" if said else ""
        if status in (401, 403):
            what = "the server refused the key" if self._key else "the server wants a key"
            return AuthError(f"{what}{said}", where=where, cure=f"put it into the environment as {self._key_env}")
        if status == 404:
            what = said.removeprefix(": ") or f"nothing at {response.url.path}"
            return NotFound(what, where=where, cure="check the model and the URL")
        if status == 429:
            after = response.headers.get("retry-after")
            seconds = float(after) if after and after.isdigit() else None
            cure = "try again later" if seconds is None else f"try again in {after} s"
            return Overloaded(f"too many requests{said}", where=where, cure=cure, after=seconds)
        if 300 <= status < 400:
            target = response.headers.get("location", "elsewhere")
            return NetworkError("the server sends us elsewhere", where=where, cure=f"if you trust it, use {target}")
        if _code(detail) in _TOO_LONG:
            return ContextOverflow(f"the prompt does not fit{said}", where=where)
        if 400 <= status < 500 and status != 408:
            return UsageError(f"the server refused the request{said}", where=f"{where}, status {status}")
        return NetworkError(f"the server failed{said}", where=f"{where}, status {status}", cure="try again later")

    @contextlib.contextmanager
    def _errors(self, watch: Watch) -> Iterator[None]:
        """Turns what a broken connection raises into our errors; a socket that we shut ourselves is none."""
        try:
            yield
        except LadderError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, AttributeError) as error:
            watch.check()
            if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
                reason = str(error).split("] ")[-1] or "no answer"
                raise NetworkError(
                    f"cannot reach the server: {reason}", where=self.url, cure="is it running?"
                ) from None
            if isinstance(error, httpx.TimeoutException):
                raise NetworkError("the server fell silent", where=self.host, cure="try again") from None
            if isinstance(error, httpx.HTTPError | OSError):
                raise NetworkError("the connection broke off", where=self.host, cure="try again") from None
            if isinstance(error, httpx.InvalidURL):
                raise UsageError(f"not a URL: {error}", where=self.url) from None
            raise

    def _clean(self, text: str) -> str:
        """One short line, without the key should the server repeat it."""
        text = " ".join(text.split())[:300]
        key = self._key
        return text.replace(key, "***") if key else text


class Watch:
    """Shuts the socket as soon as the caller cancels or the deadline passes: a blocked read wakes from that only."""

    def __init__(self, cancel: Cancel | None, deadline: float | None) -> None:
        self._cancel, self._deadline = cancel, deadline
        self._socket: socket.socket | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        if self._cancel is not None or self._deadline is not None:
            threading.Thread(target=self._look, name="remote-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """httpcore tells here of every step; the socket is all we want."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")

    def remaining(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def check(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("cancelled")
        if self.remaining() <= 0:
            raise DeadlineExceeded("the deadline passed before the server had answered")

    def sleep(self, seconds: float) -> None:
        if self._cancel is not None:
            self._cancel.wait(seconds)
        else:
            time.sleep(seconds)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            try:
                self.check()
            except LadderError:
                if self._socket is not None:
                    with contextlib.suppress(OSError):
                        self._socket.shutdown(socket.SHUT_RDWR)
                    return


def _data(response: httpx.Response) -> Iterator[bytes]:
    """The data of each server-sent event. Cut at newlines only: JSON may hold what str.splitlines takes for one."""
    rest = b""
    data: list[bytes] = []
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            raise FormatError("the server sends a line without end")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].strip())
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data:
        yield b"\n".join(data)


def _pause(response: httpx.Response, attempt: int) -> float:
    """Seconds before the next attempt: what the server asks for, else exponential with full jitter (at least half)."""
    asked = response.headers.get("retry-after", "")
    if asked:
        with contextlib.suppress(ValueError):
            return max(0.0, float(asked))
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    return FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise FormatError(
            "the server's answer is not JSON", cure="is the URL that of an OpenAI-compatible API?"
        ) from None


def _parse_quietly(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace") if not data.lstrip().startswith(b"<") else ""


def _message(detail: Any) -> str:
    """The words of an error body, in the forms servers use."""
    if isinstance(detail, dict):
        inner = detail.get("error", detail)
        if isinstance(inner, dict):
            return str(inner.get("message") or inner.get("detail") or inner.get("type") or "")
        return str(inner)
    return detail if isinstance(detail, str) else ""


def _code(detail: Any) -> str:
    """The machine-readable reason of an error body; some servers put it in `type`."""
    inner = detail.get("error") if isinstance(detail, dict) else None
    if not isinstance(inner, dict):
        return ""
    found = {str(inner.get("code")), str(inner.get("type"))}
    return next((code for code in (_QUOTA, *_TOO_LONG) if code in found), "")
