"""SIGKILL in the middle of 100 streams, again and again: what was acknowledged is there, and the database is whole.

A server answers 100 clients at once that stream from the echo model, while another hands it files to keep; it is killed
at a random moment and started again. Each time: the workspace's database passes SQLite's integrity check, every file
that was acknowledged is there as it was, and the server answers within seconds; a server without /v1/files is asked to
keep none. Then clients that read nothing and clients that vanish in the middle of an answer: those beside them are
answered all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from bench.load import Heard, ask
from ladderlm.errors import LadderError

STREAMS = 100
TEXT = " ".join(f"word{i}" for i in range(300))
CURE = "see the server's log"


def body(text: str = TEXT) -> bytes:
    told = {"messages": [{"role": "user", "content": text}], "stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(told).encode()


class Victim:
    """`ladderlm serve echo` with a workspace of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "LADDERLM_HOME": str(home)}
        self.port, self.process = self._start()

    def _start(self) -> tuple[int, subprocess.Popen[str]]:
        command = [sys.executable, "-m", "ladderlm", "serve", "echo", "--port", "0", "--json", "--parallel", "64"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.environment
        )
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            if not (line := process.stdout.readline()):
                raise LadderError("the server did not start", cure=CURE)
            text += line
        return int(json.loads(text)["url"].rsplit(":", 1)[1]), process

    def kill(self) -> None:
        """No warning, no farewell."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def restart(self) -> float:
        """Seconds until it answers again."""
        began = time.perf_counter()
        self.port, self.process = self._start()
        httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=30).raise_for_status()
        return time.perf_counter() - began


def whole(home: Path) -> str:
    """What SQLite's check says of the workspace's database: "ok"; "none" where there is no database."""
    path = home / "ladderlm.sqlite"
    if not path.exists():
        return "none"
    with contextlib.closing(sqlite3.connect(path)) as database:
        return str(database.execute("PRAGMA integrity_check").fetchone()[0])


class Writer(threading.Thread):
    """Hands the server files to keep, one after another, and remembers those that it has acknowledged."""

    def __init__(self, port: int, begin: int) -> None:
        super().__init__(daemon=True)
        self._url, self._next = f"http://127.0.0.1:{port}/v1/files", begin
        self.acknowledged: dict[str, bytes] = {}
        self.route = True  # whether the server has one for files
        self.begun = threading.Event()  # it has answered once

    def run(self) -> None:
        with contextlib.suppress(httpx.HTTPError), httpx.Client(timeout=30) as client:
            while self.route:
                data = json.dumps({"custom_id": str(self._next)}).encode() + b"\n"
                form = {"file": (f"{self._next}.jsonl", data)}
                answer = client.post(self._url, data={"purpose": "batch"}, files=form)
                self.route = answer.status_code not in (404, 405)
                if answer.status_code == 200:
                    self.acknowledged[answer.json()["id"]] = data
                self.begun.set()
                self._next += 1


def lost(port: int, acknowledged: Mapping[str, bytes]) -> int:
    """How many of the files are not there, or not as they were."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1/files", timeout=30) as client:
        found = {id: client.get(f"/{id}/content") for id in acknowledged}
    return sum(found[id].status_code != 200 or found[id].content != data for id, data in acknowledged.items())


async def crowd(port: int, seconds: float, strike: Any) -> int:
    """STREAMS clients at once; after `seconds` `strike` is called. How many had an answer by then."""

    async def one() -> bool:
        try:
            return (await ask(port, body())).status == 200
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError):
            return False

    tasks = [asyncio.create_task(one()) for _ in range(STREAMS)]
    await asyncio.sleep(seconds)
    strike()
    return sum(await asyncio.gather(*tasks))


def kills(victim: Victim, count: int) -> dict[str, Any]:
    rng, starts, checks, missing, answered = random.Random(0), list[float](), set[str](), 0, 0
    acknowledged, route = dict[str, bytes](), True
    for _ in range(count):
        writer = Writer(victim.port, len(acknowledged))
        writer.start()
        writer.begun.wait(30)  # what comes first would wait until most streams are over
        answered += asyncio.run(crowd(victim.port, rng.uniform(0.02, 0.6), victim.kill))
        writer.join()
        acknowledged |= writer.acknowledged
        route = route and writer.route
        checks.add(whole(victim.home))
        starts.append(victim.restart())
        missing += lost(victim.port, writer.acknowledged)
    missing += lost(victim.port, acknowledged)
    return {
        "kills": count, "streams": STREAMS * count, "answered_before": answered, "checks": sorted(checks),
        "files_route": route, "acknowledged": len(acknowledged), "lost": missing,
        "restart_seconds": round(statistics.median(starts), 2),
    }  # fmt: skip


async def beside(port: int, deaf: int, vanishing: int) -> list[Heard]:
    """Answers of 20 ordinary clients, beside some that read nothing and some that go away."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    data = body(TEXT * 20)
    ask_all = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    writers = []
    for number in range(deaf + vanishing):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(ask_all)
        await writer.drain()
        if number >= deaf:
            transport: Any = writer.transport
            transport.abort()
        else:
            writers.append(writer)
    try:
        return list(await asyncio.gather(*(ask(port, body()) for _ in range(20))))
    finally:
        for writer in writers:
            writer.close()


def slowest(heard: Sequence[Heard]) -> float:
    return round(max(h.whole for h in heard), 3)


def measure(minute: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        victim = Victim(Path(scratch))
        try:
            found = kills(victim, 2 if minute else 20)
            alone = asyncio.run(beside(victim.port, 0, 0))
            crowded = asyncio.run(beside(victim.port, 60, 60))
        finally:
            victim.kill()
        last = whole(Path(scratch))
    answered = all(h.status == 200 and h.tokens == TEXT.count(" ") + 1 for h in (*alone, *crowded))
    route = found["files_route"]
    result: dict[str, Any] = {**found, "slowest_alone": slowest(alone), "slowest_beside": slowest(crowded)}
    return result | {
        "bars": {
            "the database passes the integrity check after every kill": {*found["checks"], last} <= {"ok", "none"},
            "nothing acknowledged is lost": found["lost"] == 0 and found["acknowledged"] > 0 if route else None,
            "clients that read nothing or vanish block nobody": answered,
        }
    }
