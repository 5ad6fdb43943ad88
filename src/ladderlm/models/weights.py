"""Weights by their Hugging Face names, whatever file they live in: as float32, or as the blocks of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ladderlm.errors import NotFound
from ladderlm.models.arch import Shapes
from ladderlm.models.families.stored import Stored
from ladderlm.models.gguf import GGUF
from ladderlm.models.quants import Bytes, dequantise
from ladderlm.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A matrix as its file holds it: `data` is (rows, bytes per row) in GGUF's block layout of `kind`."""

    kind: str
    rows: int
    cols: int
    data: Bytes

    def float32(self) -> FloatArray:
        """The weights, (rows, cols)."""
        return dequantise(self.kind, self.data, self.cols)


class Weights(Protocol):
    """Read access to a model's tensors. Rotary q/k rows are in the Hugging Face order (halves)."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def float32(self, name: str) -> FloatArray: ...

    def blocks(self, name: str) -> Blocks | None:
        """The matrix in its file's own format; None where there is no such form (a merged adapter)."""


def matrix_blocks(kind: str, values: np.ndarray) -> Blocks | None:
    """An unquantised matrix (its items 2 or 4 bytes wide) as Blocks; None for a vector."""
    if values.ndim != 2:
        return None
    values = np.ascontiguousarray(values)
    return Blocks(kind, values.shape[0], values.shape[1], values.view(np.uint8).reshape(values.shape[0], -1))


class GGUFWeights:
    """The tensors of a GGUF file, mapped, under their canonical names; `layout` says what they are made of."""

    def __init__(self, file: GGUF, layout: Sequence[Stored], shapes: Shapes) -> None:
        self._file, self._shapes = file, shapes
        self._source = {part: stored for stored in reversed(layout) for part in stored.parts}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        self._lookup(name)
        return self._shapes[name]

    def float32(self, name: str) -> FloatArray:
        stored, shape = self._lookup(name), self._shapes[name]
        kind, cols = self._file.tensors[stored.name].kind, shape[-1]
        if len(shape) == 2:
            values = dequantise(kind, self._rows(name), cols)
        else:
            data = self._file.data(stored.name).reshape(1, -1)
            whole = dequantise(kind, data, math.prod(self._file.tensors[stored.name].shape))
            values = stored.part(whole.reshape(stored.shape(self._shapes)), name, self._shapes)
        return values - np.float32(stored.plus) if stored.plus else values

    def blocks(self, name: str) -> Blocks | None:
        stored, shape = self._lookup(name), self._shapes[name]
        if len(shape) != 2 or stored.plus:
            return None
        return Blocks(self._file.tensors[stored.name].kind, *shape, self._rows(name))

    def _lookup(self, name: str) -> Stored:
        try:
            return self._source[name]
        except KeyError:
            raise NotFound(f"the model has no tensor {name!r}", where=str(self._file.path)) from None

    def _rows(self, name: str) -> Bytes:
        """The rows of a matrix as their bytes."""
        stored = self._lookup(name)
        data = self._file.data(stored.name)
        if stored.stacked:
            data = data.reshape(len(stored.parts), -1, data.shape[1])
        return stored.part(data, name, self._shapes)
