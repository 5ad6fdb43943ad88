"""POST /v1/runs/preview."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ladderlm.serve.wire.base import Whole, Wire


class PreviewBody(Wire):
    """`text` is the beginning of the file `name`, which has `bytes` in all."""

    model: str
    name: Annotated[str, Field(max_length=200)]
    text: Annotated[str, Field(min_length=1)]
    bytes: Annotated[Whole, Field(ge=1)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    method: str | None = None
    records: Annotated[Whole, Field(ge=1, le=50)] | None = None
