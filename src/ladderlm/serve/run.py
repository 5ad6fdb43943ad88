"""`serve`: binds the address, opens the models in the background, and answers until interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from typing import Any

from ladderlm import events
from ladderlm.config import option
from ladderlm.errors import AuthError, MissingExtra, PortInUse, UsageError
from ladderlm.models.fetch import DEFAULT_MODEL
from ladderlm.serve.accounts import list_keys
from ladderlm.serve.bridge import Bridge
from ladderlm.serve.door import is_loopback
from ladderlm.serve.log import RequestLog
from ladderlm.serve.models import Models, short_name
from ladderlm.talk.device import DEVICE, DRAFT, KV_CACHE_DTYPE, KV_CACHE_MB
from ladderlm.types import KVType

KEY_VARIABLE = "LADDERLM_API_KEY"


@dataclass(frozen=True, slots=True)
class ServeConfig:
    models: tuple[str, ...] = option(
        (), f"models: name, folder, file.gguf, base+adapter, url#model (default: {DEFAULT_MODEL})", positional=True
    )
    host: str = option("127.0.0.1", f"address to listen on; beyond this machine ${KEY_VARIABLE} must be set")
    port: int = option(8080, "port to listen on; 0 picks a free one")
    default: str = option("", "the model for requests that name none (default: the first)")
    keep: int = option(3, "models kept in memory at once")
    device: str = option("auto", DEVICE)
    kv_cache_mb: int | None = option(None, KV_CACHE_MB + ", of each model")
    kv_cache_dtype: KVType = option("auto", KV_CACHE_DTYPE)
    draft: str | None = option(None, DRAFT)
    timeout: float = option(600.0, "seconds after which an answer is broken off")
    log_content: bool = option(False, "keep what is asked and answered in the request log, not only the figures")
    log_days: float = option(90.0, "days that the request log goes back; 0: for ever")
    embed: tuple[str, ...] = option((), "origins of sites that may show the chat widget, such as https://example.org")
    json: bool = option(False, "print the address as JSON")


def run(config: ServeConfig) -> None:
    """Serves until interrupted. Emits an Event whose data holds the `url` as soon as it listens."""
    try:
        import uvicorn

        from ladderlm.serve.app import LOOPBACK_NAMES, build_app, origins
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "starlette", "serve") from None
    key = os.environ.get(KEY_VARIABLE)
    local = is_loopback(config.host)
    if not local and not key and not list_keys():
        cure = f"ladderlm keys create NAME, or set {KEY_VARIABLE}, or leave --host out"
        raise AuthError("a key is needed to serve beyond this machine", where=f"--host {config.host}", cure=cure)
    if config.keep < 1 or config.timeout <= 0:
        raise UsageError("keep must be at least 1 and timeout above 0", where=f"keep={config.keep}")
    embed = origins(config.embed)
    refs = config.models or (config.default or DEFAULT_MODEL,)
    models = Models(
        refs, default=config.default or None, keep=config.keep, device=config.device,
        kv_bytes=None if config.kv_cache_mb is None else config.kv_cache_mb << 20,
        kv_dtype=config.kv_cache_dtype, draft=config.draft,
    )  # fmt: skip
    bridge = Bridge()
    with contextlib.closing(_bind(config.host, config.port)) as listening:
        hosts = (*LOOPBACK_NAMES, config.host) if local else None
        app = build_app(
            models, bridge=bridge, hosts=hosts, key=key, guarded=not local, timeout=config.timeout, embed=embed,
            log=RequestLog(content=config.log_content, days=config.log_days),
        )  # fmt: skip
        settings = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="on", server_header=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(settings)
        leave = server.handle_exit

        def interrupted(signal: int, frame: Any) -> None:
            bridge.close()
            leave(signal, frame)

        server.handle_exit = interrupted
        url = _url(config.host, listening.getsockname()[1])
        events.emit("serve", f"listening on {url} (Ctrl-C ends it)", data={"url": url, "models": models.named})
        models.preload([short_name(ref) for ref in refs][: config.keep])
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket. PortInUse when another program listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
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
