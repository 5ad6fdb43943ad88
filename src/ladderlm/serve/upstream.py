"""Another server's models under our own roof: vLLM, llama-server, Ollama, a hosted API, or another LadderLM."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from ladderlm import events
from ladderlm.errors import AuthError, LadderError, NetworkError, UsageError
from ladderlm.talk.remote import RemoteChat
from ladderlm.types import Cancel, Candidate, Conversation, Delta, FloatArray, Sampling

T = TypeVar("T")
REFRESH = 15.0  # seconds that a list of models is good for
KEY = "LADDERLM_UPSTREAM_KEY"
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(https?://.+)")


class Upstream:
    """The server at `url`. Its models are served under their own names, after `prefix` where it has one.

    The key is in the environment: LADDERLM_UPSTREAM_KEY, or with the prefix "lab/" LADDERLM_UPSTREAM_KEY_LAB.
    """

    def __init__(self, url: str, prefix: str = "") -> None:
        self.url, self.prefix = url.rstrip("/"), prefix
        self._key = f"{KEY}_{re.sub('[^A-Z0-9]', '_', prefix.rstrip('/').upper())}" if prefix else KEY
        if prefix and self._key not in os.environ:
            self._key = KEY
        self._door = RemoteChat(url, "none", key_env=self._key, attempts=1)
        self._lock = threading.Lock()
        self._asking = False
        self._asked = -REFRESH
        self._relays: dict[str, Relay] = {}
        self.names: list[str] | None = None  # None until it has answered once
        self.error = ""

    @classmethod
    def parse(cls, text: str) -> Upstream:
        """Of "URL" or "NAME=URL", whose models are then called NAME/model."""
        named = _NAMED.fullmatch(text)
        return cls(named[2], f"{named[1]}/") if named else cls(text)

    @property
    def state(self) -> str:
        return "failed" if self.error else "loading" if self.names is None else "ready"

    def holds(self, name: str) -> bool:
        return name in (self.names or ())

    def refresh(self) -> None:
        """Asks for the list again where it is old, in the background."""
        with self._lock:
            if self._asking or time.monotonic() - self._asked < REFRESH:
                return
            self._asking = True
        threading.Thread(target=self.ask, name="serve-upstream", daemon=True).start()

    def ask(self) -> None:
        """Asks for the list now. A failure is told and kept; the last list stays."""
        try:
            found = [f"{self.prefix}{name}" for name in self._door.models()]
            error = ""
        except LadderError as failed:
            found, error = self.names or [], str(_translated(failed))
            if error != self.error:
                events.emit("serve", f"upstream {self.url}: {error}")
        with self._lock:
            self.names = self.names if error else found
            self.error, self._asked, self._asking = error, time.monotonic(), False
            self._relays = {name: relay for name, relay in self._relays.items() if name in found}

    def chat(self, name: str) -> Relay:
        with self._lock:
            if name not in self._relays:
                remote = RemoteChat(self.url, name.removeprefix(self.prefix), key_env=self._key, attempts=1)
                self._relays[name] = Relay(remote)
            return self._relays[name]


class Relay:
    """One model of an upstream as a Chat. Errors say that it is the upstream's fault, never the caller's key."""

    def __init__(self, remote: RemoteChat) -> None:
        self._remote = remote
        self.name, self.defaults = remote.name, remote.defaults

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        with _errors():
            yield from self._remote.stream(
                conversation, sampling, cancel=cancel, deadline=deadline, priority=priority
            )  # fmt: skip

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        with _errors():
            yield from self._remote.complete(prompt, sampling, cancel=cancel, deadline=deadline, priority=priority)

    def next(self, prompt: str | Conversation, k: int = 10) -> list[Candidate]:
        with _errors():
            return self._remote.next(prompt, k)

    def embed(
        self, documents: Sequence[str | Sequence[int]], dimensions: int | None = None
    ) -> tuple[FloatArray, int]:  # fmt: skip
        """vectors_ND, and the tokens that were read."""
        with _errors():
            rows, tokens = self._remote.embed(documents, dimensions)
        return np.asarray(rows, np.float32), tokens


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except LadderError as error:
        raise _translated(error) from None


def _translated(error: LadderError) -> LadderError:
    if isinstance(error, AuthError):
        return NetworkError("the upstream refused this server's key", where=error.where, cure="its owner must set it")
    if isinstance(error, UsageError) and "://" in str(error):
        return NetworkError(error.what, where=error.where)
    return error
