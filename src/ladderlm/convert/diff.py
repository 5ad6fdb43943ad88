"""`models diff A B`: in what two models, or two forms of one, differ."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ladderlm import events
from ladderlm.config import option
from ladderlm.convert import alike
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.types import Value


@dataclass(frozen=True, slots=True)
class DiffConfig(Value):
    a: str = option(help="a model")
    b: str = option(help="another")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class TensorDifference(Value):
    """How far a tensor of B lies from that of A: the largest difference over A's largest entry, and the root mean
    square of the differences over that of A."""

    name: str
    max: float
    rms: float


@dataclass(frozen=True, slots=True)
class Difference(Value):
    """`config`, `generation`, `lineage`: (field, of A, of B). `missing` tensors are only in A, `extra` only in B,
    `shapes` are (name, of A, of B); `tensors` differ, the farthest first, of `compared`. `template` is a unified diff.
    `same`: whether they are one model; generation settings and lineage do not count."""

    a: str
    b: str
    same: bool
    compared: int
    config: tuple[tuple[str, Any, Any], ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    tensors: tuple[TensorDifference, ...] = ()
    tokenizer: tuple[str, ...] = ()
    template: str = ""
    generation: tuple[tuple[str, Any, Any], ...] = ()
    lineage: tuple[tuple[str, Any, Any], ...] = ()


def run(config: DiffConfig) -> Difference:
    """Compares two models of this machine, tensor by tensor."""
    return compare(open_model(config.a), open_model(config.b))


def compare(a: ModelFiles, b: ModelFiles) -> Difference:
    names_a, names_b = a.weights.names(), b.weights.names()
    both = [name for name in names_a if name in set(names_b)]
    missing = tuple(n for n in names_a if n not in set(names_b))
    extra = tuple(n for n in names_b if n not in set(names_a))
    shapes = tuple(
        (n, a.weights.shape(n), b.weights.shape(n)) for n in both if a.weights.shape(n) != b.weights.shape(n)
    )
    compared = [n for n in both if a.weights.shape(n) == b.weights.shape(n)]
    tensors = [d for n in events.track(compared, "diff", unit="tensors") if (d := _tensor(n, a, b)) is not None]
    config = tuple(alike.fields(a.arch, b.arch))
    tokenizer = tuple(alike.tokenizers(a.tokenizer, b.tokenizer))
    template = _template(a, b)
    same = not (missing or extra or shapes or tensors or config or tokenizer or template)
    return Difference(
        a.ref, b.ref, same, len(compared), config, missing, extra, shapes,
        tuple(sorted(tensors, key=lambda d: -d.rms)), tokenizer, template, _fields(a.generation, b.generation),
        _fields(a.lineage, b.lineage),
    )  # fmt: skip


def _tensor(name: str, a: ModelFiles, b: ModelFiles) -> TensorDifference | None:
    x, y = a.weights.float32(name), b.weights.float32(name)
    if np.array_equal(x, y):
        return None
    apart = y - x
    largest = float(np.abs(x).max()) or 1.0
    power = float(np.sqrt(np.mean(np.square(x), dtype=np.float64))) or 1.0
    rms = float(np.sqrt(np.mean(np.square(apart), dtype=np.float64)))
    return TensorDifference(name, float(np.abs(apart).max()) / largest, rms / power)


def _template(a: ModelFiles, b: ModelFiles) -> str:
    one, two = ("" if f.template is None else f.template.source for f in (a, b))
    lines = difflib.unified_diff(one.splitlines(), two.splitlines(), a.name, b.name, lineterm="", n=1)
    return "\n".join(lines)


def _fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    """(key, of a, of b) where two mappings differ; one value and a list of it are the same."""

    def plain(value: Any) -> Any:
        return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value

    keys = dict.fromkeys([*a, *b])
    return tuple((k, a.get(k), b.get(k)) for k in keys if plain(a.get(k)) != plain(b.get(k)))
