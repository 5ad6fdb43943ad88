"""Records on disk: one JSON object a line, in our own form or in the layouts people already have (shapes.py)."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ladderlm import events
from ladderlm.data import shapes
from ladderlm.errors import FormatError, LadderError, NotFound, UsageError, nearest
from ladderlm.store import atomic_file
from ladderlm.types import Record

MANY_SOURCES = 10
_KEYS = frozenset(f.name for f in dataclasses.fields(Record))


def record_id(kind: str, fields: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of the content: the same content has the same id on every machine."""
    text = json.dumps([kind, fields], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def make_record(kind: str, fields: Mapping[str, Any], *, source: str, licence: str = "unknown", **meta: Any) -> Record:
    """A record whose id follows from its content. `meta` is whatever else is worth keeping."""
    return Record(record_id(kind, fields), source, licence, kind, dict(fields), meta)


# --- Reading ------------------------------------------------------------------------------------------------------


def read_records(path: str | Path, *, skip_bad: bool = False, licence: str = "unknown") -> list[Record]:
    """The records in `path`: .jsonl, a .json array, or .txt/.md (one document), each perhaps gzipped (.gz).

    With `skip_bad`, lines that cannot be read are left out, counted, and reported as an event.
    Raises NotFound, or FormatError that names file:line and the cure; an empty file is a FormatError too.
    """
    path = Path(path)
    text = read_text(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if not text.strip():
        raise FormatError("the file is empty", where=str(path), cure="expected one JSON object a line, or text")
    if suffix not in (".jsonl", ".json", ".ndjson"):
        return [make_record("text", {"text": text}, source=path.name, licence=licence)]
    records, bad = [], 0
    for line, row in rows_of(path, text):
        try:
            records.append(to_record(row, path.name, licence))
        except LadderError as error:
            if not skip_bad:
                cure = error.cure or "correct or remove the line, or pass skip_bad (--skip-bad)"
                what = error.what + (f" ({error.where})" if error.where else "")
                raise FormatError(what, where=f"{path}:{line}", cure=cure) from None
            bad += 1
    if bad:
        events.emit("read", f"left out {bad} unreadable of {bad + len(records)} in {path}", data={"skipped": bad})
    if not records:
        raise FormatError("no readable record", where=str(path), cure="known layouts: " + ", ".join(shapes.NAMES))
    return records


def read_text(path: Path) -> str:
    """A file's text, unpacked. NotFound, UsageError for a folder, FormatError for what is not UTF-8."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UsageError("a folder, not a file", where=str(path), cure="ladderlm data collect FOLDER") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FormatError(f"not a whole gzip file: {error}", where=str(path)) from None
    except UnicodeDecodeError as error:
        cure = "save the file as UTF-8"
        raise FormatError(f"not UTF-8 text at byte {error.start}", where=str(path), cure=cure) from None


def rows_of(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line number, parsed JSON or the error it gave) of each non-blank line, or of each item of one JSON array."""
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise FormatError(f"not a valid JSON array: {error}", where=str(path)) from None
        yield from enumerate(rows, 1)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield number, error


def to_record(row: Any, source: str, licence: str) -> Record:
    """The record that one parsed JSON line describes; `source` and `licence` where it names none. FormatError."""
    if isinstance(row, Exception):
        raise FormatError(f"broken JSON: {row}")
    if not isinstance(row, Mapping):
        raise FormatError(f"a line must be a JSON object, not {type(row).__name__}")
    if "kind" in row and "fields" in row:
        kind, fields = row["kind"], row["fields"]
        if not isinstance(fields, Mapping):
            raise FormatError("fields must be an object")
        if unknown := row.keys() - _KEYS:
            raise FormatError(f"Record has no field {min(unknown)!r}", cure=nearest(min(unknown), _KEYS))
        text, meta = ("id", "source", "licence", "kind"), row.get("meta") or {}
        if not isinstance(meta, Mapping) or not all(isinstance(row.get(key, ""), str) for key in text):
            raise FormatError("id, source, licence and kind must be text, meta an object")
        name = row.get("id") or record_id(kind, fields)
        return Record(name, row.get("source", source), row.get("licence", licence), kind, fields, meta)
    kind, fields, meta = shapes.recognise(row)
    named = source if kind == "translation" else str(row.get("source") or source)  # there it is the text itself
    return make_record(kind, fields, source=named, licence=str(row.get("licence") or licence), **meta)


# --- Writing and splitting ----------------------------------------------------------------------------------------


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes one record a line, whole or not at all; `.gz` compresses. Returns how many."""
    path, count = Path(path), 0
    zipped = path.suffix == ".gz"
    with atomic_file(path, "wb") as file:
        # no name and no time in the header: the same records give the same bytes
        out = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if zipped else file
        for record in records:
            out.write(json.dumps(record.to_dict(), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            count += 1
        if zipped:
            out.close()
    return count


@dataclass(frozen=True, slots=True)
class Plan:
    """Which records are held out: those whose `by` (source or id) hashes below `fraction`, save that the side of the
    group `turned` is the other one."""

    by: Literal["source", "id"]
    fraction: float
    seed: int = 0
    turned: str | None = None

    def held(self, record: Record) -> bool:
        key: str = getattr(record, self.by)
        return (place(key, self.seed) < self.fraction) != (key == self.turned)


class _Ends:
    """The first and the last group in the order of the hashes: of any number of groups, two are remembered."""

    def __init__(self) -> None:
        self.first, self.last = (1.0, ""), (-1.0, "")
        self.seen: str | None = None

    def add(self, key: str, seed: int) -> None:
        if key != self.seen:  # records of one source come together
            self.seen, here = key, (place(key, seed), key)
            self.first, self.last = min(self.first, here), max(self.last, here)


def plan_split(
    records: Iterable[Record], fraction: float, seed: int = 0, by: Literal["source", "id"] | None = None
) -> Plan:
    """How to hold out about `fraction`, decided in one pass that remembers a handful of names.

    `by="source"` keeps everything of one source on one side; `by="id"` decides record by record; None means by
    source when there are at least ten. Raises UsageError when there is nothing to hold out.
    """
    if not 0 < fraction < 1:
        raise UsageError("fraction must lie in (0, 1)", where=f"fraction={fraction}")
    ends, sources, count = {"source": _Ends(), "id": _Ends()}, set[str](), 0
    for record in records:
        count += 1
        for name, seen in ends.items():
            seen.add(getattr(record, name), seed)
        if len(sources) < MANY_SOURCES:
            sources.add(record.source)
    by = by or ("source" if len(sources) >= MANY_SOURCES else "id")
    first, last = ends[by].first, ends[by].last
    if first[1] == last[1]:
        cure = "split by id" if by == "source" else "at least two different records are needed"
        raise UsageError(f"cannot hold out a part of {min(count, 1)} {by}(s)", where=f"{count} records", cure=cure)
    # a split of few groups can come out one-sided: the nearest group then changes sides
    turned = first[1] if first[0] >= fraction else last[1] if last[0] < fraction else None
    return Plan(by, fraction, seed, turned)


def split(
    records: Sequence[Record], fraction: float, seed: int = 0, by: Literal["source", "id"] | None = None
) -> tuple[list[Record], list[Record]]:
    """(train, held out), as `plan_split` decides: by hashes, so that a record never changes sides."""
    plan = plan_split(records, fraction, seed, by)
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        sides[plan.held(record)].append(record)
    return sides


def place(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on `key` and `seed` only."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64
