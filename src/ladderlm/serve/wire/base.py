"""What every request's JSON obeys.

Strict: no "5" for 5 and no 1 for true; but 5.0 is the whole number 5, as JSON has it. null means absent, and fields
that are not ours are ignored. What a model here accepts, its schema in /openapi.json accepts, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ladderlm.errors import UsageError
from ladderlm.types import Image

Object = dict[str, Any]
MAX_PRIORITY = 1_000_000  # either way: months ahead of, or behind, those without
Detail = Literal["auto", "low", "high"]
See = Callable[[str, str], Image]  # (an image's URL, its place in the request) -> the part that stands for it


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


AsWhole = BeforeValidator(_whole)  # comes after the bounds, for a schema to tell them
Whole = Annotated[int, AsWhole]
Id = Annotated[int, Field(ge=0, le=2**31 - 1), AsWhole]  # of a token


def blind(url: str, where: str) -> Image:
    """What those do who read text only. Raises UsageError."""
    raise UsageError("this model reads text only", where=where, cure="leave out images, or choose one that sees")


class Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Ranked(Wire):
    """A request that may let others go first."""

    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), AsWhole] | None = None

    @property
    def rank(self) -> int:
        """Our priority, of which the highest goes first. On the wire, as vLLM has it, the lowest does."""
        return -(self.priority or 0)


class ErrorDetail(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Wire):
    """Every refusal."""

    error: ErrorDetail


def complaint(errors: Sequence[Any], body: Any) -> UsageError:
    """What is wrong with `body`, by the errors of its validation. Of a union's members each complains: first counts one
    that found the right type and a wrong value, then the one that saw deepest."""
    found = [(not error["type"].endswith("_type"), _field(error, body), error) for error in errors]
    _, where, error = max(found, key=lambda f: (f[0], len(f[1])))
    if "discriminator" in error.get("ctx", {}):
        where = f"{where}.{error['ctx']['discriminator'].strip(chr(39))}".lstrip(".")
    return UsageError(error["msg"], where=where or None)


def _field(error: Any, body: Any) -> str:
    """The field, "messages[0].content": its place without what is not in `body`, the names of a union's members."""
    found, here = "", body
    missing = error["loc"][-1:] if error["type"] == "missing" else ()
    for part in error["loc"]:
        if isinstance(part, int) and isinstance(here, list) and part < len(here):
            found, here = f"{found}[{part}]", here[part]
        elif isinstance(part, str) and isinstance(here, dict) and (part in here or (part,) == missing):
            found, here = f"{found}.{part}" if found else part, here.get(part)
    return found
