"""`serve`: binds the address, opens the models in the background, and answers until it is told to end.

SIGTERM drains: /ready turns to 503, new requests are refused, and the server ends when those that are here have ended
or their time is over. SIGINT, and any second signal, ends it at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ladderlm import events
from ladderlm.config import option
from ladderlm.errors import AuthError, MissingExtra, PortInUse, UsageError
from ladderlm.models.fetch import DEFAULT_MODEL
from ladderlm.serve.accounts import list_keys
from ladderlm.serve.bridge import Bridge
from ladderlm.serve.door import is_loopback
from ladderlm.serve.images import Images
from ladderlm.serve.log import RequestLog
from ladderlm.serve.models import Models
from ladderlm.serve.upstream import Upstream
from ladderlm.talk import check
from ladderlm.talk.device import DEVICE, DRAFT, KV_CACHE_DTYPE, KV_CACHE_MB
from ladderlm.types import KVType

if TYPE_CHECKING:
    import uvicorn

    from ladderlm.serve.telemetry import Telemetry

KEY_VARIABLE = "LADDERLM_API_KEY"
KEEP = 3  # models, where no memory is named


@dataclass(frozen=True, slots=True)
class ServeConfig:
    models: tuple[str, ...] = option(
        (), f"models: name, folder, file.gguf, base+adapter, url#model (default: {DEFAULT_MODEL})", positional=True
    )
    host: str = option("127.0.0.1", f"address to listen on; beyond this machine ${KEY_VARIABLE} must be set")
    port: int = option(8080, "port to listen on; 0 picks a free one")
    default: str = option("", "the model for requests that name none (default: the first)")
    upstream: tuple[str, ...] = option(
        (), "another OpenAI-compatible server to put in front of, as URL or NAME=URL; may be repeated"
    )
    keep: int | None = option(None, f"models kept in memory at once (default: {KEEP}, or as many as --memory holds)")
    memory: int | None = option(None, "megabytes for the weights, keys and values of all models together")
    device: str = option("auto", DEVICE)
    kv_cache_mb: int | None = option(None, KV_CACHE_MB + ", of each model")
    kv_cache_dtype: KVType = option("auto", KV_CACHE_DTYPE)
    draft: str | None = option(None, DRAFT)
    parallel: int = option(32, "answers written at the same time")
    queue: int = option(224, "requests that may wait beside them; more are refused with 429")
    timeout: float = option(600.0, "seconds after which an answer is broken off; a request may ask for less")
    drain: float = option(30.0, "seconds that answers under way have when the server is told to end (SIGTERM)")
    otel: bool = option(False, "send traces and metrics to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names")
    log_json: bool = option(False, "log every request, and what happens, as JSON lines on stderr")
    log_content: bool = option(False, "keep what is asked and answered in the request log, not only the figures")
    log_days: float = option(90.0, "days that the request log goes back; 0: for ever")
    fetch_images: bool = option(
        False, "fetch images that requests name by their address, from the public internet only"
    )
    embed: tuple[str, ...] = option((), "origins of sites that may show the chat widget, such as https://example.org")
    json: bool = option(False, "print the address as JSON")


def run(config: ServeConfig) -> None:
    """Serves until interrupted. Emits an Event whose data holds the `url` as soon as it listens."""
    try:
        import uvicorn

        from ladderlm.serve.app import IMAGE_LIMIT, LOOPBACK_NAMES, build_app, origins
        from ladderlm.serve.routes.sockets import AHEAD
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "starlette", "serve") from None
    key = os.environ.get(KEY_VARIABLE)
    local = is_loopback(config.host)
    if not local and not key and not list_keys():
        cure = f"ladderlm keys create NAME, or set {KEY_VARIABLE}, or leave --host out"
        raise AuthError("a key is needed to serve beyond this machine", where=f"--host {config.host}", cure=cure)
    _check(config)
    models, keep = _models(config)
    bridge = Bridge(config.parallel, config.parallel + config.queue)
    telemetry, embed = _telemetry(config), origins(config.embed)
    with contextlib.closing(bind(config.host, config.port)) as listening:
        hosts = (*LOOPBACK_NAMES, config.host) if local else None
        app = build_app(
            models, bridge=bridge, hosts=hosts, key=key, guarded=not local, timeout=config.timeout, embed=embed,
            log=RequestLog(content=config.log_content, days=config.log_days), telemetry=telemetry,
            images=Images(config.fetch_images),
        )  # fmt: skip
        settings = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="on", server_header=False, timeout_graceful_shutdown=1,
            ws_max_size=IMAGE_LIMIT, ws_max_queue=AHEAD,
            log_config=None if config.log_json else uvicorn.config.LOGGING_CONFIG,
        )  # fmt: skip
        server = uvicorn.Server(settings)
        _end_in_order(server, models, bridge, config.drain)
        url = _url(config.host, listening.getsockname()[1])
        events.emit("serve", f"listening on {url} (Ctrl-C ends it)", data={"url": url, "models": models.named})
        models.preload(models.named[:keep])
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    if telemetry is not None:
        telemetry.close()


def _check(config: ServeConfig) -> None:
    if config.timeout <= 0 or config.drain < 0:
        raise UsageError("must be above 0", where=f"timeout={config.timeout}, drain={config.drain}")
    for name, least in (("keep", 1), ("memory", 1), ("parallel", 1), ("queue", 0)):
        if (value := getattr(config, name)) is not None and value < least:
            raise UsageError(f"must be at least {least}", where=f"{name}={value}")


def _models(config: ServeConfig) -> tuple[Models, int]:
    """The models on offer, and how many of the named are opened at the start."""
    upstreams = [Upstream.parse(text) for text in config.upstream]
    refs = config.models or ((config.default or DEFAULT_MODEL,) if not upstreams else ())
    for ref in (*config.models, *filter(None, (config.draft,))):
        check(ref)
    keep = config.keep or (KEEP if config.memory is None else 2**31)
    models = Models(
        refs, default=config.default or None, keep=keep,
        memory=None if config.memory is None else config.memory << 20, upstreams=upstreams, device=config.device,
        kv_bytes=None if config.kv_cache_mb is None else config.kv_cache_mb << 20,
        kv_dtype=config.kv_cache_dtype, draft=config.draft,
    )  # fmt: skip
    return models, keep


def _telemetry(config: ServeConfig) -> Telemetry | None:
    from ladderlm.serve import telemetry

    return telemetry.start() if config.otel or telemetry.wanted() else None


def _end_in_order(server: uvicorn.Server, models: Models, bridge: Bridge, seconds: float) -> None:
    """Has signals end `server`: SIGTERM after the answers under way, SIGINT and any second one at once."""

    def end(wait: float) -> None:
        bridge.drain(wait)
        bridge.close()
        server.should_exit = True

    def interrupted(number: int, frame: Any) -> None:
        at_once = number != signal.SIGTERM or bridge.draining
        models.stop()
        bridge.draining = True
        wait = 0.0 if at_once else seconds
        if wait:
            events.emit("serve", f"ends when its answers are written, in {wait:.0f} s at most")
        threading.Thread(target=end, args=(wait,), name="serve-end", daemon=True).start()

    server.handle_exit = interrupted


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. PortInUse when another program listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Where the protocol is not named, asyncio leaves out TCP_NODELAY: an answer's end then waits 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere this would let two servers share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(256)
    except (OSError, OverflowError) as error:
        listening.close()
        where, code = f"{host}:{port}", getattr(error, "errno", None)
        if code in (errno.EADDRINUSE, errno.EACCES):
            what = "the port is taken" if code == errno.EADDRINUSE else "the port needs privileges"
            raise PortInUse(what, where=where, cure="--port 0 picks a free one") from None
        raise UsageError(f"cannot listen there: {error}", where=where, cure="check --host and --port") from None
    return listening


def _url(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else {"0.0.0.0": socket.gethostname()}.get(host, host)  # noqa: S104
    return f"http://{name}:{port}"
