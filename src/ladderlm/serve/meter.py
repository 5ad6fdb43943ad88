"""One stream as it runs: how long it waited, read and wrote, how many tokens, and how it ended."""

from __future__ import annotations

import time
from typing import Protocol

from ladderlm.errors import Cancelled
from ladderlm.types import Delta, Usage


class Listener(Protocol):
    """Told of every stream; from any thread."""

    def opened(self, meter: Meter) -> None: ...
    def began(self, meter: Meter) -> None: ...
    def wrote(self, meter: Meter, tokens: int) -> None: ...
    def ended(self, meter: Meter) -> None: ...


class Meter:
    """What is measured of one stream of `model`. The bridge calls `begin`, `see` for each Delta, and `end`."""

    def __init__(self, model: str, listener: Listener, *, capture: bool = False) -> None:
        self.model = model
        self._listener, self._capture = listener, capture
        self.came = time.monotonic()
        self.came_at = time.time_ns()
        self._begun = self._first = self._last = self._over = 0.0
        self.written = 0  # tokens told so far
        self.usage = Usage()
        self.reasons: list[str] = []
        self.error: BaseException | None = None
        self.text: list[str] = []  # only where it is captured
        listener.opened(self)

    @property
    def begun(self) -> bool:
        """Whether a worker has taken it up."""
        return self._begun > 0

    def begin(self) -> None:
        self._begun = time.monotonic()
        self._listener.began(self)

    def see(self, delta: Delta) -> None:
        if delta.text or delta.tokens:
            self._last = time.monotonic()
            self._first = self._first or self._last
            self._tell(len(delta.tokens) or 1)
            if self._capture:
                self.text.append(delta.text)
        if delta.finish_reason:
            self.reasons.append(delta.finish_reason)
        if delta.usage:
            self.usage = delta.usage

    def end(self, error: BaseException | None = None, *, cancelled: bool = False) -> None:
        """The last call; what the usage counts beyond what was told is told now."""
        self.error = Cancelled("the client went away") if cancelled and error is None else error
        self._over = time.monotonic()
        self._tell(self.usage.completion_tokens - self.written)
        self._listener.ended(self)

    def _tell(self, tokens: int) -> None:
        if tokens > 0:
            self.written += tokens
            self._listener.wrote(self, tokens)

    # --- Of one that has ended, or that nobody waits for any more ---------------------------------------------------

    @property
    def reason(self) -> str:
        """stop, length, tool_calls; abort where the client went away, error where it failed."""
        left = not (self._over or self.reasons)  # whoever waited for it no longer does
        if left or isinstance(self.error, Cancelled) or "cancelled" in self.reasons:
            return "abort"
        return "error" if self.error is not None else next(iter(self.reasons), "stop")

    @property
    def queued(self) -> float:
        """Seconds before it was read: for a worker, then for room in the engine."""
        return (self._begun or self._over) - self.came + self.usage.queued

    @property
    def to_first(self) -> float | None:
        """Seconds from its arrival to its first token; None if none came."""
        return self._first - self.came if self._first else None

    @property
    def prefill(self) -> float | None:
        return None if self.to_first is None else max(0.0, self.to_first - self.queued)

    @property
    def decode(self) -> float | None:
        """Seconds from the first to the last token."""
        return self._last - self._first if self._first else None

    @property
    def per_token(self) -> float | None:
        """Seconds for each token after the first."""
        return None if self.decode is None or self.written < 2 else self.decode / (self.written - 1)

    @property
    def seconds(self) -> float:
        return self._over - self.came
