"""The verb: address, port, key, start-up and end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from ladderlm.errors import AuthError, NotFound, PortInUse, UsageError
from ladderlm.serve.run import ServeConfig, bind, run

pytest.importorskip("uvicorn")


def test_a_taken_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse, match="--port 0"):
        run(ServeConfig(models=("echo",), port=taken.getsockname()[1]))


def test_what_is_written_is_sent_at_once() -> None:
    async def accepted() -> int:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0) as listening:
            async with await asyncio.start_server(met, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname())
                writer.close()
                return await asyncio.wait_for(told, 5)

    assert asyncio.run(accepted())


def test_beyond_this_machine_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LADDERLM_API_KEY", raising=False)
    with pytest.raises(AuthError, match="LADDERLM_API_KEY"):
        run(ServeConfig(models=("echo",), host="0.0.0.0"))


@pytest.mark.parametrize(
    "more", [{"models": ("no-such-model",)}, {"models": ("echo", "./nowhere.gguf")}, {"models": ("echo+nowhere",)},
             {"models": ("echo",), "draft": "no-such-model"}],
)  # fmt: skip
def test_a_model_that_is_not_there_is_told_before_anything_listens(more: dict[str, object]) -> None:
    with pytest.raises(NotFound, match="no such"):
        run(ServeConfig(**more))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"port": 70000}, {"host": "no.such.host.invalid."}, {"keep": 0}])
def test_wrong_settings(wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDERLM_API_KEY", "k")
    with pytest.raises(UsageError):
        run(ServeConfig(models=("echo",), **wrong))  # type: ignore[arg-type]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_serves_at_once_and_ends_at_once() -> None:
    command = [sys.executable, "-m", "ladderlm", "serve", "echo", "--port", "0", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            text += child.stdout.readline()
        url = json.loads(text)["url"]
        assert httpx.get(url).headers["content-type"].startswith("text/html")
        body = {"messages": [{"role": "user", "content": "a b"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "a b"
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=10)
        assert time.monotonic() - began < 5  # a second on a quiet machine
        assert (child.returncode, out) == (0, "")
        assert "Traceback" not in err
    finally:
        child.kill()
        child.wait()
