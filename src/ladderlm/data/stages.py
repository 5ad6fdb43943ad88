"""A stage of data preparation: records stream in, records and drops stream out, every drop is counted by its rule.

A stage is a function over an iterable of records; `run_stage` gives it files or stdin, writes what it keeps whole or
not at all, and tells what happened in a report beside it. The same inputs, settings and code are not worked through
twice. Memory does not grow with the corpus: a line longer than MAX_LINE is left out and counted, as is one that is
not UTF-8, not JSON or not a record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib
import io
import json
import lzma
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from ladderlm import events
from ladderlm.data.records import make_record, read_records, to_record
from ladderlm.data.xz import Xz
from ladderlm.errors import FormatError, LadderError, MissingExtra, NotFound, UsageError
from ladderlm.store import atomic_file, sha256_of, write_json
from ladderlm.types import Record, Value

MAX_LINE = 64 << 20  # bytes; a longer line, or a longer document that is not in lines, is no training text
LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst", ".xz")
_UNREADABLE = ("line-too-long", "not-utf-8", "broken-json", "not-a-record")
_SHOWN = 1000  # characters of an unreadable line that the file of drops keeps


class Dropped(NamedTuple):
    """What a stage leaves out, and the rule that says so."""

    record: Record
    rule: str


Stage = Callable[[Iterable[Record]], Iterator[Record | Dropped]]


@dataclass(frozen=True)
class StageReport(Value):
    """What a stage did. Bytes are those of the lines, unpacked; `output` is the sha256 of the file as it lies there.

    `lineage` holds the reports of the inputs that have one. `code` stands for the version of this package's floor.
    """

    stage: str
    settings: Mapping[str, Any]
    inputs: tuple[Mapping[str, str], ...]
    code: str
    records_in: int = 0
    bytes_in: int = 0
    records_out: int = 0
    bytes_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    lineage: tuple[Mapping[str, Any], ...] = ()
    skipped: bool = False
    format: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Every field, those at their default too: a report is read by people and scripts."""
        plain = Value.to_dict(self)
        return {f.name: plain.get(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)}


# --- Reading ------------------------------------------------------------------------------------------------------

Bad = Callable[[str, int, str, bytes], None]  # file, line, rule, the line's beginning


def stream(path: str | Path, bad: Bad | None = None, read: Callable[[int], None] | None = None) -> Iterator[Record]:
    """The records in `path`, lazily: JSON lines (.jsonl .ndjson, .gz .zst .xz), "-" for them on stdin, else a text.

    A line that is no record raises FormatError with its place, or is told to `bad` where given. `read` hears the
    bytes of each line. Raises NotFound, UsageError for a folder, MissingExtra for .zst without its library.
    """
    name = "stdin" if str(path) == "-" else Path(path).name
    if str(path) != "-" and not _in_lines(Path(path)):
        size = _bounded_size(Path(path))
        found = read_records(path, skip_bad=bad is not None)
        if read:
            read(size)
        yield from found
        return
    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer if str(path) == "-" else stack.enter_context(open_bytes(Path(path)))
        for number, line in lines(file, str(path)):
            if read:
                read(len(line))
            if not line.strip():
                continue
            rule, record = parse_line(line, name)
            if record is not None:
                yield record
            elif bad is None:
                cure = "correct or remove the line" if rule != "line-too-long" else "split it into documents"
                raise FormatError(rule.replace("-", " "), where=f"{path}:{number}", cure=cure)
            else:
                bad(name, number, rule, line[: 4 * _SHOWN])


def _in_lines(path: Path) -> bool:
    return unpacked_name(path.name).lower().endswith(LINES)


def unpacked_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in PACKED else name


def parse_line(line: bytes, name: str, licence: str = "unknown") -> tuple[str, Record | None]:
    """("", record), or the rule that leaves the line out. `licence` is for rows that do not name theirs."""
    if len(line) > MAX_LINE:
        return "line-too-long", None
    try:
        text = line.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return "not-utf-8", None
    try:
        return "", to_record(json.loads(text), name, licence)
    except LadderError:
        return "not-a-record", None
    except (ValueError, RecursionError):
        return "broken-json", None


def lines(file: IO[bytes], path: str) -> Iterator[tuple[int, bytes]]:
    """(number, line). Of a line over MAX_LINE only the first MAX_LINE + 1 bytes are ever held."""
    number = 0
    try:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                    pass
            yield number, line
    except unpack_errors() as error:
        raise FormatError(f"not a whole compressed file: {error}", where=path) from None


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file that is perhaps .gz, .zst or .xz, as a stream."""
    try:
        if path.suffix == ".zst":
            opened: Any = zstd().open(path, "rb")
        elif path.suffix == ".gz":
            opened = gzip.GzipFile(path, "rb")
        elif path.suffix == ".xz":
            opened = io.BufferedReader(Xz(path.open("rb")))
        else:
            opened = path.open("rb")
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UsageError("a folder, not a file", where=str(path), cure="ladderlm data collect FOLDER") from None
    with opened:
        yield opened


def _bounded_size(path: Path) -> int:
    """The unpacked bytes of a file that is read whole; FormatError when there are more than MAX_LINE."""
    size = 0
    with open_bytes(path) as file:
        try:
            while part := file.read(1 << 20):
                size += len(part)
                if size > MAX_LINE:
                    cure = "ladderlm data collect FILE splits it into documents"
                    raise FormatError("too large for one document", where=str(path), cure=cure)
        except unpack_errors() as error:
            raise FormatError(f"not a whole compressed file: {error}", where=str(path)) from None
    return size


def zstd() -> Any:
    """Python 3.14's compression.zstd, or the same module for older ones."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise MissingExtra("backports.zstd", "data")


def unpack_errors() -> tuple[type[Exception], ...]:
    """What reading a compressed file that is broken raises."""
    modules = (sys.modules.get(name) for name in ("compression.zstd", "backports.zstd"))
    return (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, *(module.ZstdError for module in modules if module))


# --- Writing ------------------------------------------------------------------------------------------------------


class _Writer:
    """Lines into a file object, hashed and counted on the way."""

    def __init__(self, file: IO[bytes], suffix: str) -> None:
        self._file, self._sha, self.records, self.bytes = file, hashlib.sha256(), 0, 0
        self._packed: Any = None
        if suffix == ".gz":  # no name and no time in the header: the same records give the same bytes
            self._packed = gzip.GzipFile(filename="", mode="wb", fileobj=self, mtime=0, compresslevel=6)
        elif suffix == ".zst":
            self._packed = zstd().open(self, "wb")
        elif suffix == ".xz":
            self._packed = lzma.LZMAFile(self, "wb")  # type: ignore[arg-type]  # noqa: SIM115

    def write(self, data: bytes) -> int:
        """What is hashed is what lies in the file, packed if it is."""
        self._sha.update(data)
        return self._file.write(data)

    def flush(self) -> None: ...

    def add(self, record: Record) -> None:
        line = to_line(record)
        self.records += 1
        self.bytes += len(line)
        (self._packed or self).write(line)

    def close(self) -> str:
        if self._packed:
            self._packed.close()
        return self._sha.hexdigest()


def to_line(record: Record) -> bytes:
    """One JSON line, as Record.to_dict says it."""
    row: dict[str, Any] = {"id": record.id, "source": record.source, "licence": record.licence, "kind": record.kind}
    row["fields"] = record.fields
    if record.meta:
        row["meta"] = record.meta
    return json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):  # a numpy number
        return value.item()
    raise TypeError(f"a record holds a {type(value).__name__}, which is no JSON value")


@contextlib.contextmanager
def writer(out: str | Path) -> Iterator[_Writer]:
    """Takes records for the file `out` (whole or not at all), or for stdout ("-")."""
    if str(out) == "-":
        yield _Writer(sys.stdout.buffer, "")
        sys.stdout.buffer.flush()
        return
    with atomic_file(Path(out), "wb") as file:
        yield _Writer(file, Path(out).suffix)


# --- Running ------------------------------------------------------------------------------------------------------


class Sources:
    """The records of several files in order. Files can be gone through again; unreadable lines count once."""

    def __init__(self, name: str, paths: Sequence[str | Path], refused: Callable[[Dropped], None]) -> None:
        self.records = self.bytes = self._passes = 0
        self.again = all(str(path) != "-" for path in paths)
        self._name = self._stage = name
        self._paths, self._refused = paths, refused
        self._total = sum(Path(p).stat().st_size for p in paths if str(p) != "-" and Path(p).suffix not in PACKED)

    def __iter__(self) -> Iterator[Record]:
        self._passes += 1
        first, last, done = self._passes == 1, time.monotonic(), 0

        def read(size: int) -> None:
            nonlocal last, done
            done += size
            self.bytes += size if first else 0
            if (now := time.monotonic()) - last > 0.1:
                last = now
                events.emit(self._stage, done=done / 1e6, total=max(done, self._total) / 1e6, unit="MB")

        def bad(name: str, number: int, rule: str, line: bytes) -> None:
            if first:
                self.records += 1
                shown = line.decode("utf-8", "replace")[:_SHOWN]
                self._refused(Dropped(make_record("text", {"text": shown}, source=f"{name}:{number}"), rule))

        self._stage = self._name if first else f"{self._name}, pass {self._passes}"
        for path in self._paths:
            for record in stream(path, bad, read):
                self.records += first
                yield record
        events.emit(self._stage, done=done / 1e6, total=max(done, self._total, 1) / 1e6, unit="MB", finished=True)


@contextlib.contextmanager
def rereadable(records: Iterable[Record]) -> Iterator[Iterable[Record]]:
    """`records` as something that can be gone through twice: itself, or a file on disk with what it gave once."""
    if records.again if isinstance(records, Sources) else iter(records) is not records:
        yield records
        return
    with tempfile.TemporaryDirectory(prefix="ladderlm-") as folder:
        path = Path(folder) / "records.jsonl"
        with path.open("wb") as file:
            file.writelines(to_line(record) for record in records)
        yield _File(path)


@dataclass(frozen=True)
class _File:
    path: Path

    def __iter__(self) -> Iterator[Record]:
        return stream(self.path)


def run_stage(
    name: str,
    stage: Stage,
    sources: Sequence[str | Path],
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    report: str | Path = "",
    dropped: str | Path = "",
    changed: Counter[str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> StageReport:
    """Runs `stage` over `sources` into `out` ("-": stdin, stdout), and writes OUT.report.json (or `report`).

    `dropped` names a file for what was left out, each record with its rule in meta. `changed` and `details` are what
    the stage itself counts and finds (given to it by closure), read when it has ended. Work already done (same
    inputs, settings and code, output unharmed) is not done again. Raises FormatError when no line is a record.
    """
    if any(str(out) == str(path) != "-" for path in sources):
        raise UsageError("the output is one of the inputs", where=str(out), cure="name another file: -o FILE")
    told = Path(report) if report else None if str(out) == "-" else report_path(out)
    plain = json.loads(json.dumps(dict(settings), default=str))
    inputs, lineage = _describe(sources)
    planned = StageReport(name, plain, inputs, code_version(), lineage=lineage)
    if told and (before := done_before(told, planned, out, dropped)):
        events.emit(name, f"already done: {out} is what these inputs and settings give")
        return before
    drops: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(writer(out))
        left = stack.enter_context(writer(dropped)) if dropped else None

        def drop(item: Dropped) -> None:
            drops[item.rule] += 1
            if left:
                left.add(dataclasses.replace(item.record, meta={**item.record.meta, "rule": item.rule}))

        read = Sources(name, sources, drop)
        for item in stage(read):
            if isinstance(item, Dropped):
                drop(item)
            else:
                kept.add(item)
        if read.records <= sum(drops[rule] for rule in _UNREADABLE):
            where = ", ".join(map(str, sources))
            raise FormatError("no readable record", where=where, cure="expected one JSON object a line, or text")
        if left:
            left.close()
        done = dataclasses.replace(
            planned, records_in=read.records, bytes_in=read.bytes, records_out=kept.records, bytes_out=kept.bytes,
            dropped=dict(sorted(drops.items())), changed=dict(sorted((changed or {}).items())),
            details=dict(details or {}), output=kept.close(),
        )  # fmt: skip
    if told:
        write_json(told, done.to_dict())
    return done


def report_path(out: str | Path) -> Path:
    """Where the report of a file lies."""
    return Path(f"{out}.report.json")


def read_report(path: str | Path) -> dict[str, Any] | None:
    """The report that lies beside a file, or None."""
    try:
        found = json.loads(report_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == 1 else None


def _describe(sources: Sequence[str | Path]) -> tuple[tuple[dict[str, str], ...], tuple[Mapping[str, Any], ...]]:
    """Name and sha256 of each input, and the reports of those that still are what theirs says."""
    inputs, lineage = [], []
    for path in sources:
        if str(path) == "-":
            inputs.append({"name": "-", "sha256": ""})
            continue
        with open_bytes(Path(path)):
            sha = sha256_of(Path(path))
        inputs.append({"name": Path(path).name, "sha256": sha})
        if (before := read_report(path)) and before.get("output") == sha:
            lineage.append(before)
    return tuple(inputs), tuple(lineage)


def done_before(told: Path, planned: StageReport, out: str | Path, dropped: str | Path) -> StageReport | None:
    """The report of the same work done before, when what it wrote is still there."""
    if str(out) == "-" or any(not i["sha256"] for i in planned.inputs) or (dropped and not Path(dropped).exists()):
        return None
    try:
        before = StageReport.from_dict(json.loads(told.read_text(encoding="utf-8")))
        same = all(
            getattr(before, key) == getattr(planned, key) for key in ("format", "stage", "settings", "inputs", "code")
        )
        whole = same and Path(out).exists() and sha256_of(Path(out)) == before.output
    except (OSError, ValueError, TypeError):
        return None
    return dataclasses.replace(before, skipped=True) if whole else None


@functools.cache
def code_version() -> str:
    """16 hex digits that change when a file of this floor does."""
    sha = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(file.name.encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()[:16]
