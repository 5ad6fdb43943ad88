"""From threads to asyncio: order, backpressure, cancellation, limits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from ladderlm.errors import Overloaded, Unavailable, UsageError
from ladderlm.serve.bridge import BUFFER, Bridge
from ladderlm.types import Cancel, Delta


def numbers(count: int, seen: list[int] | None = None, ended: threading.Event | None = None):  # type: ignore[no-untyped-def]
    def start(cancel: Cancel) -> Iterator[Delta]:
        try:
            for i in range(count):
                if seen is not None:
                    seen.append(i)
                yield Delta(text=str(i))
        finally:
            if ended is not None:
                ended.set()

    return start


def test_everything_arrives_in_order() -> None:
    async def work() -> list[str]:
        return [d.text async for batch in Bridge().stream(numbers(5000)) for d in batch]

    assert asyncio.run(work()) == [str(i) for i in range(5000)]


def test_a_slow_reader_holds_the_generation_back() -> None:
    async def work() -> None:
        seen: list[int] = []
        ended = threading.Event()
        stream = Bridge().stream(numbers(10**6, seen, ended))
        await anext(stream)
        await asyncio.sleep(0.1)
        assert len(seen) <= 2 * BUFFER + 2
        await stream.aclose()
        assert await asyncio.to_thread(ended.wait, 2)
        assert len(seen) <= 2 * BUFFER + 3

    asyncio.run(work())


def test_an_error_is_raised_where_it_is_read() -> None:
    def start(cancel: Cancel) -> Iterator[Delta]:
        yield Delta(text="a")
        raise UsageError("wrong")

    async def work() -> list[str]:
        texts = []
        with pytest.raises(UsageError, match="wrong"):
            async for _, batch in Bridge().merge([start, numbers(3)]):
                texts += [d.text for d in batch]
        return texts

    assert "a" in asyncio.run(work())


def test_more_streams_than_workers_take_turns() -> None:
    async def work() -> int:
        bridge = Bridge(workers=2)
        return sum([len(batch) async for _, batch in bridge.merge([numbers(100)] * 20)])

    before = threading.active_count()
    assert asyncio.run(work()) == 2000
    assert threading.active_count() <= before + 2


def test_close_ends_all_streams() -> None:
    def endless(cancel: Cancel) -> Iterator[Delta]:
        while not cancel.is_set():
            time.sleep(0.005)
            yield Delta(text="x")

    async def work() -> None:
        bridge = Bridge()
        asyncio.get_running_loop().call_later(0.1, bridge.close)
        async with contextlib.aclosing(bridge.merge([endless, endless])) as batches:
            with pytest.raises(Unavailable, match="ended"):  # for these had not come to their end
                async for _ in batches:
                    pass

    before = threading.active_count()
    asyncio.run(asyncio.wait_for(work(), 3))
    assert threading.active_count() <= before + 2, "no worker goes on with a stream that was ended"


def test_too_many_requests_are_turned_away() -> None:
    bridge = Bridge(limit=1)
    with bridge.admitted(), pytest.raises(Overloaded), bridge.admitted():
        pass
    with bridge.admitted():
        pass


def test_call_returns_and_raises() -> None:
    async def work() -> None:
        bridge = Bridge()
        assert await bridge.call(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            await bridge.call(lambda: 1 // 0)

    asyncio.run(work())
