"""Several datasets mixed into one: by weight, epochs or temperature, to a budget, in an order that a seed decides.

Two passes and buckets on disk: first every record's size is read, so that a budget is met exactly; then records go
into buckets by the hash of (seed, dataset, place, epoch), and each bucket is sorted. The result is a uniform shuffle of
the whole, the same on every machine; memory holds 16 bytes a record and one bucket.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from ladderlm.data.records import to_record
from ladderlm.data.rewrite import texts
from ladderlm.data.stages import Dropped, Stage, stream, to_line
from ladderlm.errors import UsageError
from ladderlm.types import Record

Unit = Literal["bytes", "tokens", "records"]
Size = Callable[[Record], int]
BUCKET = 64 << 20  # bytes that a bucket should have
_HEAD = struct.Struct("<QI")


@dataclass(frozen=True, slots=True)
class Part:
    """A dataset of the mixture. `weight`: its share of the budget; `epochs`: how often it is gone through."""

    path: str
    weight: float | None = None
    epochs: float | None = None

    @classmethod
    def parse(cls, text: str) -> Part:
        """ "FILE", "FILE=WEIGHT", or "FILE*EPOCHS"."""
        for mark, name in (("=", "weight"), ("*", "epochs")):
            path, found, value = text.rpartition(mark)
            if found and path and not Path(text).exists():
                try:
                    number = float(value)
                except ValueError:
                    continue
                if not 0 < number < 1e6:
                    raise UsageError(f"{name} must be positive", where=text)
                return cls(path, **{name: number})
        return cls(text)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the mixture takes of a part: whole passes over it, and records below `below` in one more."""

    passes: int
    below: int  # of 2 ** 64
    size: int  # of the part
    records: int  # in the part
    taken: int  # size of what the mixture takes


def byte_size(record: Record) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts(record))


def shares(
    parts: Sequence[Part], sizes: Sequence[int], budget: int, temperature: float, most_epochs: float
) -> list[float]:
    """How many epochs of each part. Weights are shares of the budget (default: of the largest that no part exceeds).

    Without weights a part's share goes as its size to the power 1 / temperature (1: as they are; more: evener). A part
    that would be gone through more than `most_epochs` times gives what it has, and the others take the rest.
    """
    if any(size == 0 for size in sizes):
        empty = next(p.path for p, size in zip(parts, sizes, strict=True) if not size)
        raise UsageError("a dataset without text cannot be mixed", where=empty)
    fixed = [p.epochs for p in parts]
    weights = [p.weight if p.weight is not None else size ** (1 / temperature)
               for p, size in zip(parts, sizes, strict=True)]  # fmt: skip
    if any(p.weight is not None for p in parts) and any(p.weight is None and p.epochs is None for p in parts):
        raise UsageError("some datasets have weights and some have not", cure="give each a weight or epochs")
    open_ = [i for i, e in enumerate(fixed) if e is None]
    if open_ and not budget:
        scale = min(sizes[i] / weights[i] for i in open_)  # no part twice
        for i in open_:
            fixed[i] = scale * weights[i] / sizes[i]
        return [e or 0.0 for e in fixed]
    left = budget - sum((fixed[i] or 0) * sizes[i] for i in range(len(parts)) if i not in open_)
    if budget and left < 0:
        raise UsageError("the epochs asked for are more than the budget", where=f"budget {budget:,}")
    while open_:
        total = sum(weights[i] for i in open_)
        over = [i for i in open_ if left * weights[i] / total > most_epochs * sizes[i]]
        for i in over or open_:
            fixed[i] = most_epochs if over else left * weights[i] / total / sizes[i]
        left -= sum(most_epochs * sizes[i] for i in over)
        open_ = [i for i in open_ if i not in over] if over else []
    return [e or 0.0 for e in fixed]


def _keys(seed: int, part: int, first: int, count: int, epoch: int) -> npt.NDArray[np.uint64]:
    """keys_N: 64 well-mixed bits for records first, first + 1, ... of a part (splitmix64 of their number)."""
    with np.errstate(over="ignore"):
        z = np.arange(first, first + count, dtype=np.uint64)
        z += np.uint64((seed * 0x9E3779B97F4A7C15 + part * 0xD1B54A32D192ED03 + epoch * 0x8CB92BA72F3D8DD7) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        return z ^ (z >> np.uint64(32))


def measure(part: int, path: str | Path, size: Size) -> npt.NDArray[np.int64]:
    """sizes_N of the records of a file; lines that are no record are left out."""
    return np.fromiter((size(record) for record in stream(path, lambda *_: None)), np.int64)


def take(sizes: npt.NDArray[np.int64], epochs: float, seed: int, part: int) -> Taken:
    """Whole passes and the rest: the records with the smallest keys, as many as come nearest to the size wanted."""
    passes, total = int(epochs), int(sizes.sum())
    wanted = round((epochs - passes) * total)
    below, rest = 0, 0
    if wanted > 0:
        keys = _keys(seed, part, 0, len(sizes), passes)
        order = np.argsort(keys)
        sums = np.concatenate([[0], np.cumsum(sizes[order])])
        count = int(np.argmin(np.abs(sums - wanted)))
        below = int(keys[order[count - 1]]) + 1 if count else 0
        rest = int(sums[count])
    return Taken(passes, below, total, len(sizes), passes * total + rest)


def mix_stage(
    parts: Sequence[Part],
    *,
    budget: int = 0,
    size: Size = byte_size,
    temperature: float = 1.0,
    most_epochs: float = 4.0,
    seed: int = 0,
    details: dict[str, Any] | None = None,
) -> Stage:
    """A stage over the records of all parts in order (as run_stage gives them). `budget` 0: as much as fits.

    `details` tells what was taken of each part. Raises UsageError for wishes that cannot be met.
    """
    if temperature <= 0 or most_epochs <= 0 or budget < 0:
        where = f"temperature {temperature}, most epochs {most_epochs}, budget {budget}"
        raise UsageError("temperature and epochs must be positive, the budget not negative", where=where)

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        sizes = [measure(i, part.path, size) for i, part in enumerate(parts)]
        epochs = shares(parts, [int(s.sum()) for s in sizes], budget, temperature, most_epochs)
        taken = [take(s, e, seed, i) for i, (s, e) in enumerate(zip(sizes, epochs, strict=True))]
        if details is not None:
            details.update(parts=[
                {"name": Path(p.path).name, "records": t.records, "size": t.size, "epochs": round(e, 4),
                 "taken": t.taken} for p, t, e in zip(parts, taken, epochs, strict=True)
            ])  # fmt: skip
        total = sum(e * t.size for e, t in zip(epochs, taken, strict=True)) * (1 if size is byte_size else 8)
        yield from shuffled(_chosen(records, taken, seed), int(total))

    return stage


def _chosen(records: Iterable[Record], taken: Sequence[Taken], seed: int) -> Iterator[tuple[int, Record]]:
    """(key, record) of each time a record is taken."""
    part, place, block = 0, 0, 4096
    keys: list[list[int]] = []
    for record in records:
        while part < len(taken) and place == taken[part].records:
            part, place = part + 1, 0
        if place % block == 0:
            count = min(block, taken[part].records - place)
            keys = [_keys(seed, part, place, count, e).tolist() for e in range(taken[part].passes + 1)]
        for epoch in range(taken[part].passes + 1):
            key = keys[epoch][place % block]
            if epoch < taken[part].passes or key < taken[part].below:
                # the choice and the order must not depend on one another: the order gets bits of its own
                yield (key * 0xD6E8FEB86659FD93 + part) % 2**64, record
        place += 1


def shuffled(items: Iterable[tuple[int, Record]], size: int) -> Iterator[Record]:
    """The records in the order of their keys, by way of buckets on disk; `size`: about how many bytes there are."""
    count = min(512, max(1, size // BUCKET + 1))
    with tempfile.TemporaryDirectory(prefix="ladderlm-mix-") as folder, contextlib.ExitStack() as stack:
        buckets: list[IO[bytes]] = [stack.enter_context((Path(folder) / f"{i}").open("w+b")) for i in range(count)]
        for key, record in items:
            line = to_line(record)
            buckets[key * count >> 64].write(_HEAD.pack(key, len(line)) + line)
        for bucket in buckets:
            bucket.seek(0)
            data, rows, at = bucket.read(), [], 0
            while at < len(data):
                key, length = _HEAD.unpack_from(data, at)
                rows.append((key, at + _HEAD.size, length))
                at += _HEAD.size + length
            for _, start, length in sorted(rows):
                yield to_record(json.loads(data[start : start + length]), "", "unknown")
