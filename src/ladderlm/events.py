"""One stream of Events: the progress bar, the page and the job log all listen to it. The library never prints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened. `done` of `total` in `unit`; `data` holds figures (loss, tokens/s, ...)."""

    stage: str
    message: str = ""
    done: float = 0
    total: float | None = None
    unit: str = ""
    finished: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


Listener = Callable[[Event], None]
_listeners: list[Listener] = []


def emit(stage: str, message: str = "", **fields: Any) -> None:
    """Tells every listener. Cheap when nobody listens."""
    if _listeners:
        event = Event(stage, message, **fields)
        for listener in tuple(_listeners):
            listener(event)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Delivers events of the whole process to `listener` while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def track(items: Iterable[T], stage: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yields `items` and reports progress at most ten times a second."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    last = time.monotonic()
    emit(stage, done=0, total=total, unit=unit)
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            emit(stage, done=done, total=total, unit=unit)
    emit(stage, done=done, total=total, unit=unit, finished=True)
