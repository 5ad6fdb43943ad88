"""/v1/responses over a WebSocket: one caller's responses, one after another on each lane of a connection.

Each `response.create` is answered by the request that it stands for over HTTP, which passes key, quotas, limits and log
as any other; its events go out as messages. `stream_id` names a lane: lanes answer beside each other, and their events
carry it. The latest response of each lane stays in memory until the connection ends: the next may go on from it though
it is not stored.

Source: WebSocket mode of OpenAI's Responses API.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from ladderlm.errors import LadderError, UsageError
from ladderlm.serve import answers
from ladderlm.serve.responses import Latest
from ladderlm.serve.wire.base import Object

if TYPE_CHECKING:
    from starlette.types import Message, Scope

router = APIRouter(prefix="/v1/responses")
LIFE = 3600.0  # seconds of a connection
LANES = 16
AHEAD = 4  # messages of a lane that may wait for their turn
_OWN = (b"connection", b"upgrade", b"content-type", b"content-length", b"x-request-id")  # headers that do not go on


@router.websocket("")
async def responses_socket(socket: WebSocket) -> None:
    """Answers until the client goes away, or the connection has lived its time."""
    await socket.accept()
    gone, known = asyncio.Event(), dict[str, list[Object]]()
    lanes: dict[str | None, _Lane] = {}

    async def listen() -> None:
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            try:
                body, name = _asked(message)
                if name not in lanes and len(lanes) == LANES:
                    raise UsageError(f"more than {LANES} lanes", where="stream_id", cure="open another connection")
            except UsageError as error:
                await _tell(socket, 400, answers.error_body(error))
                continue
            if name not in lanes:
                lanes[name] = _Lane(socket, name, Latest(known), gone)
            await lanes[name].waiting.put(body)

    try:
        async with asyncio.timeout(LIFE):
            await listen()
    except TimeoutError:
        told = answers.error_body(UsageError("this connection has lived its time", cure="open another"))
        told["error"]["code"] = "websocket_connection_limit_reached"
        await _tell(socket, 400, told)
        with contextlib.suppress(RuntimeError):
            await socket.close()
    finally:
        gone.set()
        for lane in lanes.values():
            lane.task.cancel()
        await asyncio.gather(*(lane.task for lane in lanes.values()), return_exceptions=True)


class _Lane:
    """Answers its messages in their order."""

    def __init__(self, socket: WebSocket, name: str | None, latest: Latest, gone: asyncio.Event) -> None:
        self._socket, self._name, self._latest, self._gone = socket, name, latest, gone
        self.waiting: asyncio.Queue[Object] = asyncio.Queue(AHEAD)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._answer(await self.waiting.get())

    async def _answer(self, body: Object) -> None:
        data, sent, status, rest, ended = json.dumps(body).encode(), False, 500, b"", False

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": data, "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status, rest, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                return
            rest += message.get("body", b"")
            if status == 200:
                *events, rest = rest.split(b"\n\n")
                for event in events:
                    ended = await self._pass_on(event)
            elif not message.get("more_body", False):
                await _tell(self._socket, status, json.loads(rest), self._name)
                ended = True

        await self._socket.app(_scope(self._socket.scope, self._latest), receive, send)
        if not ended:
            await _tell(self._socket, 500, answers.error_body(LadderError("the answer was broken off")), self._name)

    async def _pass_on(self, event: bytes) -> bool:
        """A server-sent event as a message; whether it is the last, which has no name: the end, or an error."""
        name, _, data = event.partition(b"data: ")
        if name:
            await _say(self._socket, data.decode(), self._name)
        elif data != b"[DONE]":
            await _tell(self._socket, 500, json.loads(data), self._name)
        return not name


def _asked(message: Message) -> tuple[Object, str | None]:
    """The body of the request that a message stands for, and its lane. Raises UsageError."""
    try:
        body = json.loads(message.get("text") or "")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise UsageError("a message must be a JSON object", cure="send it as text")
    if (kind := body.pop("type", None)) != "response.create":
        raise UsageError(f"not answered here: {str(kind)[:100]!r}", where="type", cure="send response.create")
    if body.get("background"):
        raise UsageError("nothing runs in the background of a connection", where="background", cure="POST it")
    lane = body.pop("stream_id", None)
    if lane is not None and not (isinstance(lane, str) and 0 < len(lane) <= 100):
        raise UsageError("must be a string of at most 100 characters", where="stream_id")
    return {**body, "stream": True}, lane


def _scope(handshake: Scope, latest: Latest) -> Scope:
    """A POST by the one who opened the connection."""
    kept = [(n, v) for n, v in handshake["headers"] if n not in _OWN and not n.startswith(b"sec-websocket-")]
    scope = {k: v for k, v in handshake.items() if k not in ("subprotocols", "extensions", "endpoint", "route", "app")}
    return scope | {
        "type": "http", "http_version": "1.1", "method": "POST", "query_string": b"",
        "scheme": "https" if handshake["scheme"] == "wss" else "http",
        "headers": [*kept, (b"content-type", b"application/json")], "state": {"latest": latest},
    }  # fmt: skip


async def _tell(socket: WebSocket, status: int, body: Object, lane: str | None = None) -> None:
    await _say(socket, json.dumps({"type": "error", "status": status, **body}, ensure_ascii=False), lane)


async def _say(socket: WebSocket, text: str, lane: str | None) -> None:
    """Sends an object, with its lane."""
    if lane is not None:
        text = f'{{"stream_id": {json.dumps(lane)}, {text[1:]}'
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # gone: who listens knows it in a moment
        await socket.send_text(text)
