"""How a file's tensors are made of ours: rows concatenated, put in another order, turned, or stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file, made of canonical `parts`: their rows one after the other, row i of the result being row
    `order[i]` of that, then transposed; or, `stacked`, the parts along a new first axis; `plus` is then added.

    `also` are names that some files have for it.
    """

    name: str
    parts: tuple[str, ...]
    order: Order | None = None
    turned: bool = False
    stacked: bool = False
    plus: float = 0.0
    also: tuple[str, ...] = ()

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Its shape in the file, from those of the canonical tensors."""
        first = shapes[self.parts[0]]
        if self.stacked:
            return (len(self.parts), *first)
        found = (sum(shapes[p][0] for p in self.parts), *first[1:])
        return found[::-1] if self.turned else found

    def join(self, get: Callable[[str], np.ndarray]) -> np.ndarray:
        """The file's tensor, from the canonical ones."""
        if self.stacked:
            return np.stack([get(p) for p in self.parts])
        value = get(self.parts[0]) if len(self.parts) == 1 else np.concatenate([get(p) for p in self.parts])
        value = value if self.order is None else value[self.order]
        value = value.T if self.turned else value
        return value + np.float32(self.plus) if self.plus else value

    def part(self, value: np.ndarray, wanted: str, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
        """The canonical tensor `wanted`, from the file's, `plus` still in it. A view where it can be one."""
        if self.stacked:
            return value[self.parts.index(wanted)]
        value = value.T if self.turned else value
        if self.order is not None:
            value = value[np.argsort(self.order)]
        start = sum(shapes[p][0] for p in self.parts[: self.parts.index(wanted)])
        return value[start : start + shapes[wanted][0]] if len(self.parts) > 1 else value


def renamed(names: Iterable[str], rename: Callable[[str], str]) -> list[Stored]:
    """Every tensor as it is, under another name."""
    return [Stored(rename(name), (name,)) for name in names]


def grouped(heads: int, kv_heads: int, head_dim: int) -> Order:
    """Row order of a fused projection that keeps each key head with its queries: [q.., k, v] for each key head.

    The parts are all queries, all keys, all values.
    """
    share = heads // kv_heads
    q = np.arange(heads * head_dim).reshape(kv_heads, share, head_dim)
    k = heads * head_dim + np.arange(kv_heads * head_dim).reshape(kv_heads, 1, head_dim)
    v = k + kv_heads * head_dim
    return np.concatenate([q, k, v], axis=1).reshape(-1)
