"""GET /v1/models, /health and /ready."""

from __future__ import annotations

from typing import Literal

from ladderlm.serve.wire.base import Wire
from ladderlm.serve.wire.chat import Count

State = Literal["ready", "loading", "failed", "idle"]


class ModelAnswer(Wire):
    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    state: State
    images: bool  # whether it may be shown some


class ModelList(Wire):
    object: Literal["list"]
    data: list[ModelAnswer]


class Health(Wire):
    """`models`: those that were named, and upstreams by their address."""

    status: State | Literal["draining"]
    version: str
    models: dict[str, State]
    error: str | None = None
