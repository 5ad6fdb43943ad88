"""Every error a user can meet, and what each becomes outside Python.

    LadderError
    ├── UsageError        (ValueError)       a wrong flag, field or value
    ├── NotFound          (LookupError)      a model, file, run or record that is not there
    ├── FormatError       (ValueError)       a file that is not what it claims to be, or is corrupt
    ├── ContextOverflow   (ValueError)       more tokens than the model's context holds
    ├── MissingExtra      (ImportError)      an optional dependency is not installed
    ├── StorageError      (OSError)          disk full, not writable, locked
    ├── PortInUse         (OSError)          the address to serve on is taken
    ├── NetworkError      (ConnectionError)  a remote that cannot be reached or refuses
    ├── AuthError         (PermissionError)  a key is missing or wrong
    ├── Forbidden         (PermissionError)  known, and not allowed
    ├── Conflict          (ValueError)       what is asked for is at odds with what is there
    ├── Overloaded        (RuntimeError)     the queue is full; try again
    ├── Unavailable       (RuntimeError)     the server is about to end, or what it needs is not there yet
    ├── DeadlineExceeded  (TimeoutError)     the caller's deadline passed
    └── Cancelled         (RuntimeError)     the caller went away

A message says what is wrong, where, and the cure, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class LadderError(Exception):
    """Root of all errors raised on purpose. `str()` reads "what (where): cure"."""

    def __init__(self, what: str, *, where: str | None = None, cure: str | None = None) -> None:
        self.what, self.where, self.cure = what, where, cure
        text = what + (f" ({where})" if where else "") + (f": {cure}" if cure else "")
        super().__init__(text)


class UsageError(LadderError, ValueError):
    """A flag, field or value that makes no sense."""


class NotFound(LadderError, LookupError):
    """Something named by the caller does not exist."""

    def __str__(self) -> str:  # LookupError would otherwise quote the message
        return str(self.args[0])


class FormatError(LadderError, ValueError):
    """A file or message that is malformed, truncated or corrupt."""


class ContextOverflow(LadderError, ValueError):
    """A prompt that does not fit the model's context."""


class MissingExtra(LadderError, ImportError):
    """An optional dependency that this call needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed",
            cure=f"pip install 'ladderlm[{extra}]' (in a clone: ./ladder install {extra})",
        )


class StorageError(LadderError, OSError):
    """The disk is full, the place is not writable, or another process holds it."""

    def __str__(self) -> str:
        return str(self.args[0])


class PortInUse(LadderError, OSError):
    """The address to listen on is taken."""

    def __str__(self) -> str:
        return str(self.args[0])


class NetworkError(LadderError, ConnectionError):
    """A remote could not be reached, or answered with an error."""

    def __str__(self) -> str:
        return str(self.args[0])


class AuthError(LadderError, PermissionError):
    """A key is missing or was refused."""

    def __str__(self) -> str:
        return str(self.args[0])


class Forbidden(LadderError, PermissionError):
    """Known, and not allowed."""

    def __str__(self) -> str:
        return str(self.args[0])


class Conflict(LadderError, ValueError):
    """What is asked for makes sense, but not beside what is there."""


class Overloaded(LadderError, RuntimeError):
    """The queue is full. `after`: seconds after which it is worth trying again, where that is known."""

    def __init__(
        self, what: str, *, where: str | None = None, cure: str | None = None, after: float | None = None
    ) -> None:
        super().__init__(what, where=where, cure=cure)
        self.after = after


class Unavailable(LadderError, RuntimeError):
    """The server is about to end, or what it needs is not there yet."""


class DeadlineExceeded(LadderError, TimeoutError):
    """The caller's deadline passed before the work was done."""

    def __str__(self) -> str:
        return str(self.args[0])


class Cancelled(LadderError, RuntimeError):
    """The caller cancelled."""


class Outcome(NamedTuple):
    """What an error becomes at the edges of the program."""

    exit_code: int
    http_status: int
    wire_type: str


OUTCOMES: dict[type[LadderError], Outcome] = {
    UsageError: Outcome(2, 400, "invalid_request_error"),
    NotFound: Outcome(1, 404, "not_found_error"),
    FormatError: Outcome(1, 422, "invalid_request_error"),
    ContextOverflow: Outcome(1, 400, "invalid_request_error"),
    MissingExtra: Outcome(1, 501, "server_error"),
    StorageError: Outcome(1, 507, "server_error"),
    PortInUse: Outcome(1, 500, "server_error"),
    NetworkError: Outcome(1, 502, "upstream_error"),
    AuthError: Outcome(1, 401, "authentication_error"),
    Forbidden: Outcome(1, 403, "permission_error"),
    Conflict: Outcome(1, 409, "invalid_request_error"),
    Overloaded: Outcome(1, 429, "rate_limit_error"),
    Unavailable: Outcome(1, 503, "server_error"),
    DeadlineExceeded: Outcome(1, 504, "timeout_error"),
    Cancelled: Outcome(130, 499, "cancelled"),
    LadderError: Outcome(1, 500, "server_error"),
}


def outcome(error: BaseException) -> Outcome:
    """The exit code, HTTP status and wire type for `error`."""
    for cls in type(error).__mro__:
        if cls in OUTCOMES:
            return OUTCOMES[cls]
    return Outcome(1, 500, "server_error")


def nearest(name: str, known: Iterable[str]) -> str:
    """A "did you mean" for an unknown name, or the list of known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)
