"""Many clients at once: our server beside llama-server, on the same file, with the same threads and slots.

80-token prompts that nobody has asked before, 64-token answers, streamed. One small client, written here, drives both
and runs on the same cores, so that its work counts alike. Each measurement starts its server anew.

1. Closed loop, 8 and 32 clients, in turns: tokens a second of all together, and the time to the first token.
2. Open loop: requests come at random (Poisson) at twice the rate that 32 clients got. Some are refused, with 429 and
   nothing else, and each that is accepted is answered whole.
3. Short requests for LADDERLM_BENCH_LOAD_MINUTES (20): what the server's memory grows by, once the memory that it was
   given for keys and values (256 MB here) is full of prompts kept for reuse.

llama-server is that of LLAMA_CPP_BIN, or PATH; without it ours is measured alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from bench.engine import THREADS
from bench.soak import slope
from ladderlm.errors import LadderError, NotFound
from ladderlm.evals.peers import find_tool
from ladderlm.models import ModelFiles, open_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.text.render import render
from ladderlm.types import Conversation

PROMPT, ANSWER = 80, 64  # tokens
CLIENTS = (8, 32)
ROOM = 512  # positions of a slot
QUEUE = 32  # requests that may wait in the open loop
MINUTES = "LADDERLM_BENCH_LOAD_MINUTES"
SETTLE = 0.25  # of the long run's requests, before memory counts
WORDS = ("river", "stone", "morning", "garden", "window", "letter", "music", "winter", "paper", "mountain", "bridge")


class Heard(NamedTuple):
    """One request: its status, tokens, and seconds to the first token and to the end."""

    status: int
    tokens: int
    first: float
    whole: float

    @property
    def complete(self) -> bool:
        return self.status == 200 and self.tokens == ANSWER


# --- The client ---------------------------------------------------------------------------------------------------


async def ask(port: int, body: bytes) -> Heard:
    """One streamed chat over a connection of its own."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        if status != 200:
            return Heard(status, 0, 0.0, time.perf_counter() - began)
        first, tokens = 0.0, 0
        async for data in _events(reader):
            if not first and _says(data):
                first = time.perf_counter() - began
            if b'"completion_tokens"' in data:
                tokens = int(json.loads(data)["usage"]["completion_tokens"])
        return Heard(status, tokens, first, time.perf_counter() - began)
    finally:
        writer.close()


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The data of each event, out of HTTP's chunks."""
    rest = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        rest += await reader.readexactly(size)
        await reader.readline()
        *events, rest = rest.split(b"\n\n")
        for event in events:
            yield event.removeprefix(b"data: ")


def _says(data: bytes) -> bool:
    choices = json.loads(data)["choices"]
    return bool(choices and choices[0]["delta"].get("content"))


def prompts(files: ModelFiles, count: int, seed: int) -> list[str]:
    """Messages of which each is PROMPT tokens with the model's template around it, none like another."""
    rng, found = random.Random(seed), []
    assert files.template is not None
    for number in range(count):
        text = f"{seed} {number}"
        while len(render(Conversation.of(text), files.tokenizer, files.template).ids) < PROMPT:
            text += " " + rng.choice(WORDS)
        found.append(text)
    return found


def request(text: str, tokens: int = ANSWER) -> bytes:
    """`min_tokens` is ours, `ignore_eos` theirs: an answer has all its tokens."""
    body = {
        "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True,
        "temperature": 0.8, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(body).encode()


async def closed(port: int, clients: int, bodies: Sequence[bytes]) -> tuple[float, list[Heard]]:
    """Seconds for all, each client asking again as soon as it has its answer."""
    left, heard = iter(bodies), list[Heard]()

    async def client() -> None:
        for body in left:
            heard.append(await ask(port, body))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, heard


async def poisson(port: int, rate: float, bodies: Sequence[bytes]) -> list[Heard]:
    """Requests at random moments, `rate` a second, whether or not the ones before are answered."""
    rng = random.Random(0)

    async def guarded(body: bytes) -> Heard:
        try:
            return await ask(port, body)
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError):
            return Heard(0, 0, 0.0, 0.0)  # the connection broke off

    tasks = []
    for body in bodies:
        tasks.append(asyncio.create_task(guarded(body)))
        await asyncio.sleep(rng.expovariate(rate))
    return list(await asyncio.gather(*tasks))


# --- The servers --------------------------------------------------------------------------------------------------

Command = Callable[[int, int], list[str]]


@contextlib.contextmanager
def serving(command: Command, slots: int, home: Path) -> Iterator[tuple[int, int]]:
    """The port and the process of a server with so many slots, once it has answered a request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command(port, slots), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300  # a first start compiles
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > until:
                lines = (home / "server.log").read_text(errors="replace").strip().splitlines()
                raise LadderError("the server did not start", where=(lines or ["it said nothing"])[-1][:300])
            time.sleep(0.2)
        asyncio.run(ask(port, request("hello")))
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        found = [httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=5).status_code for path in ("ready", "health")]
        return 200 in found and 503 not in found
    return False


def ours(files: ModelFiles, *more: str) -> Command:
    def command(port: int, slots: int) -> list[str]:
        flags = ["--port", str(port), "--parallel", str(slots), "--queue", str(QUEUE), *more]
        return [sys.executable, "-m", "ladderlm", "serve", files.ref, *flags]

    return command


def theirs(files: ModelFiles) -> Command:
    tool = find_tool("llama-server")

    def command(port: int, slots: int) -> list[str]:
        flags = ["--port", str(port), "-np", str(slots), "-c", str(slots * ROOM), "-t", THREADS, "-tb", THREADS]
        return [tool, "-m", str(files.path), "--host", "127.0.0.1", *flags]

    return command


# --- What is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Size:
    """How much of each is done."""

    rounds: int = 5
    each: int = 4  # requests of a client in the closed loop
    arrivals: int = 300
    minutes: float = 20.0


def closed_loop(command: Command, files: ModelFiles, clients: int, each: int, seed: int, home: Path) -> dict[str, Any]:
    bodies = [request(text) for text in prompts(files, clients * each, seed)]
    with serving(command, clients, home) as (port, _):
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds, heard = asyncio.run(closed(port, clients, bodies))
        after = resource.getrusage(resource.RUSAGE_SELF)
    first = np.quantile([h.first for h in heard], [0.5, 0.95])
    return {
        "tokens_per_second": sum(h.tokens for h in heard) / seconds, "requests_per_second": len(heard) / seconds,
        "first_p50": float(first[0]), "first_p95": float(first[1]), "complete": all(h.complete for h in heard),
        "client_cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }  # fmt: skip


def open_loop(command: Command, files: ModelFiles, rate: float, arrivals: int, home: Path) -> dict[str, Any]:
    bodies = [request(text) for text in prompts(files, arrivals, 99)]
    with serving(command, max(CLIENTS), home) as (port, _):
        heard = asyncio.run(poisson(port, rate, bodies))
    accepted = [h for h in heard if h.status == 200]
    return {
        "rate": round(rate, 2), "requests": len(heard), "accepted": len(accepted),
        "complete": sum(h.complete for h in accepted), "refused_429": sum(h.status == 429 for h in heard),
        "other": sum(h.status not in (200, 429) for h in heard),
        "first_p95": round(float(np.quantile([h.first for h in accepted] or [0.0], 0.95)), 3),
    }  # fmt: skip


def long_run(command: Command, files: ModelFiles, minutes: float, home: Path) -> dict[str, Any]:
    """Short requests from 8 clients; the server's resident memory once a second, by requests answered."""
    texts = prompts(files, 64, 7)
    seen, answered = list[tuple[int, int]](), 0

    async def run(port: int, pid: int) -> None:
        until = time.monotonic() + minutes * 60

        async def client(number: int) -> None:
            nonlocal answered
            rng = random.Random(number)
            while time.monotonic() < until:
                heard = await ask(port, request(f"{rng.random()} {rng.choice(texts)}", rng.randrange(1, 4)))
                answered += heard.status == 200

        async def look() -> None:
            while time.monotonic() < until:
                seen.append((answered, _resident(pid)))
                await asyncio.sleep(1 if minutes > 1 else 0.1)

        await asyncio.gather(look(), *(client(i) for i in range(8)))

    with serving(command, 8, home) as (port, pid):
        asyncio.run(run(port, pid))
    numbers, memory = np.array([s for s in seen if s[0] >= answered * SETTLE], float).T
    each, bound = slope(numbers, memory)
    return {"requests": answered, "minutes": minutes, "bytes_per_10000": round(each), "bound_95": round(bound)}


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def middle(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    told = {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0] if name != "complete"}
    return told | {"complete": all(r["complete"] for r in rounds)}


def measure(minute: bool) -> dict[str, Any]:
    size = Size(1, 1, 20, 0.1) if minute else Size(minutes=float(os.environ.get(MINUTES, "20")))
    counts = (2,) if minute else CLIENTS
    files = open_model(DEFAULT_MODEL)
    systems = {"ladderlm": ours(files)}
    result: dict[str, Any] = {"threads": int(THREADS), "prompt": PROMPT, "answer": ANSWER}
    try:
        systems["llama-server"] = theirs(files)
    except NotFound as error:
        result["llama_server_left_out"] = str(error)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        found: dict[tuple[str, int], list[dict[str, Any]]] = {(s, n): [] for n in counts for s in systems}
        for turn in range(size.rounds):
            for clients in counts:
                for name, command in systems.items():
                    seed = 1000 * turn + clients
                    found[name, clients].append(closed_loop(command, files, clients, size.each, seed, home))
        rate = 2 * statistics.median(r["requests_per_second"] for r in found["ladderlm", counts[-1]])
        result["open_loop"] = open_loop(systems["ladderlm"], files, rate, size.arrivals, home)
        result["long_run"] = long_run(ours(files, "--kv-cache-mb", "256"), files, size.minutes, home)
    for clients in counts:
        result[f"clients_{clients}"] = {name: middle(found[name, clients]) for name in systems}
    return result if minute else result | {"bars": bars(result, "llama-server" in systems)}


def bars(result: dict[str, Any], compared: bool) -> dict[str, bool]:
    arrived, memory = result["open_loop"], result["long_run"]
    met = {
        "above capacity only 429s": arrived["other"] == 0 and arrived["refused_429"] > 0,
        "every accepted request completed": arrived["complete"] == arrived["accepted"],
        "memory: under 1 MB per 10,000 requests": memory["bytes_per_10000"] < 2**20,
    }
    for clients in CLIENTS:
        mine = result[f"clients_{clients}"]["ladderlm"]
        met[f"{clients} clients: every request completed, none refused"] = mine["complete"]
        if compared:
            peer = result[f"clients_{clients}"]["llama-server"]
            faster = mine["tokens_per_second"] >= 2.5 * peer["tokens_per_second"]
            met[f"{clients} clients: 2.5 times llama-server's tokens a second"] = faster
            met[f"{clients} clients: first token (p95) in half of its time"] = (
                mine["first_p95"] <= 0.5 * peer["first_p95"]
            )
    return met
