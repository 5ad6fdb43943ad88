"""Files of rows as people have them: JSON lines, JSON, CSV, TSV, Parquet and CoNLL, every row with its place.

Columns may have any name: a mapping says which column is which field. Nothing is left out unseen: a row that cannot be
a record is kept with its line and the reason.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ladderlm import events
from ladderlm.data.records import read_records, read_text, rows_of, to_record
from ladderlm.errors import FormatError, LadderError, MissingExtra, NotFound, UsageError, nearest
from ladderlm.types import Record

SHOWN = 5  # bad rows in a message
LONGEST_FIELD = 1 << 26  # characters of one cell
Columns = Mapping[str, str]  # field -> column, by name or by number from 1


class Bad(NamedTuple):
    """A row that cannot be used. `line` counts from 1; in JSON arrays and Parquet it is the row's number."""

    file: str
    line: int
    reason: str


class Row(NamedTuple):
    """A record and where it stood."""

    file: str
    line: int
    record: Record


@dataclass(frozen=True, slots=True)
class Table:
    """What a file holds: its records, and the rows that are none."""

    rows: Sequence[Row]
    bad: Sequence[Bad]

    @property
    def records(self) -> list[Record]:
        return [row.record for row in self.rows]

    def settled(self, skip_bad: bool) -> list[Record]:
        """The records; rows that are none are an error that names the first of them, or told and left out.

        FormatError where nothing is left.
        """
        settle(self.bad, skip_bad)
        if not self.rows:
            raise FormatError(f"no usable record: {first_of(self.bad)}")
        return self.records


def settle(bad: Sequence[Bad], skip_bad: bool) -> None:
    """Bad rows are an error that names the first of them (FormatError), or with `skip_bad` told."""
    if not bad:
        return
    shown = first_of(bad)
    if not skip_bad:
        cure = "mend them; where the command has them, --columns names a table's columns, --skip-bad leaves rows out"
        raise FormatError(f"{len(bad)} bad rows: {shown}", cure=cure)
    events.emit("data", f"left out {len(bad)} bad rows: {shown}", data={"skipped": len(bad)})


def first_of(bad: Sequence[Bad]) -> str:
    """The first bad rows, where they stand and why, in one line."""
    shown = "; ".join(f"{b.file}:{b.line}: {b.reason}" for b in bad[:SHOWN])
    return shown + (f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")


def parse_columns(settings: Sequence[str]) -> dict[str, str]:
    """{"text": "review"} of "text=review"; several may stand in one setting, parted by commas. UsageError otherwise."""
    found: dict[str, str] = {}
    for setting in (part for s in settings for part in s.split(",")):
        field, equals, column = setting.partition("=")
        if not (field.strip() and equals and column.strip()):
            raise UsageError(f"not a column mapping: {setting!r}", cure="--columns text=review,label=stars")
        if field.strip() in found:
            raise UsageError(f"the field {field.strip()!r} is mapped twice", where="columns")
        found[field.strip()] = column.strip()
    return found


def read_table(path: str | Path, columns: Columns | None = None, licence: str = "unknown") -> Table:
    """The records in a file and the rows that are none.

    Raises NotFound, UsageError for a folder, MissingExtra for Parquet without its library, and FormatError for a file
    that cannot be read as a whole or has no column of a name that `columns` wants.
    """
    path = Path(path)
    reader = _READERS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
    if reader is None:
        if columns:
            raise UsageError("a text has no columns", where=str(path), cure="CSV, TSV, Parquet or JSON lines")
        return Table([Row(path.name, 1, r) for r in read_records(path, licence=licence)], [])
    rows: list[Row] = []
    bad: list[Bad] = []
    for line, data in events.track(list(reader(path, columns or {})), "read", unit="rows"):
        try:
            if isinstance(data, LadderError):
                raise data
            rows.append(Row(path.name, line, to_record(data, path.name, licence)))
        except LadderError as error:
            bad.append(Bad(path.name, line, error.what + (f" ({error.where})" if error.where else "")))
    if not (rows or bad):
        raise FormatError("the file holds no rows", where=str(path))
    return Table(rows, bad)


# --- One reader per format: (line, row or the error that reading it gave) -------------------------------------------

Rows = Iterator[tuple[int, Any]]


def _mapped(row: Any, columns: Columns) -> Any:
    """The row under the names of the fields. What says where it comes from is kept."""
    if not columns or not isinstance(row, Mapping):
        return row
    missing = [column for column in columns.values() if column not in row]
    if missing:
        there = ", ".join(sorted(map(str, row))[:8])
        return FormatError(f"no column {missing[0]!r}", cure=f"there are {there}")
    kept = {name: row[name] for name in ("id", "licence") if name in row}
    return kept | {field: row[column] for field, column in columns.items()}


def _json(path: Path, columns: Columns) -> Rows:
    text = read_text(path)
    if not text.strip():
        raise FormatError("the file is empty", where=str(path), cure="expected one JSON object a line")
    if whole := _whole(text):
        yield from ((n, _mapped(row, columns)) for n, row in enumerate(_nested(whole), 1))
        return
    for line, row in rows_of(path, text):
        yield line, _mapped(row, columns)


def _whole(text: str) -> Mapping[str, Any] | None:
    """The one JSON object that the text is, if it goes over several lines."""
    if not text.lstrip().startswith("{") or "\n" not in text.strip():
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _nested(whole: Mapping[str, Any]) -> Iterator[Any]:
    """The rows of one object: SQuAD's articles, paragraphs and questions; a list under "data"; or the object itself."""
    data = whole.get("data")
    if not isinstance(data, list):
        yield whole
        return
    for item in data:
        if not (isinstance(item, Mapping) and isinstance(item.get("paragraphs"), list)):
            yield item
            continue
        for paragraph in item["paragraphs"]:
            for asked in paragraph.get("qas", ()) if isinstance(paragraph, Mapping) else ():
                yield {**asked, "context": paragraph.get("context")} if isinstance(asked, Mapping) else asked


def _table(delimiter: str | None, quoting: int) -> Callable[[Path, Columns], Rows]:
    def read(path: Path, columns: Columns) -> Rows:
        text = read_text(path)
        first = text.partition("\n")[0]
        if not first.strip():
            raise FormatError("the first line is empty", where=str(path), cure="the names of the columns")
        csv.field_size_limit(LONGEST_FIELD)
        marks = delimiter or max(",;\t|", key=first.count)
        found = csv.reader(io.StringIO(text, newline=""), delimiter=marks, quoting=quoting, strict=True)  # type: ignore[arg-type]
        numbered = bool(columns) and all(c.isdigit() for c in columns.values())
        names = [str(i) for i in range(1, len(next(csv.reader([first], delimiter=marks))) + 1)] if numbered else None
        yield from _cells(path, found, names, columns)

    return read


def _cells(path: Path, found: Any, names: list[str] | None, columns: Columns) -> Rows:
    """Rows of cells. Without `names` the first row tells them."""
    while True:
        line = found.line_num + 1
        try:
            cells = next(found)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, FormatError(f"broken table: {error}")
            continue
        if names is None:
            names = [c.strip() for c in cells]
            _check_columns(path, names, columns)
        elif len(cells) != len(names):
            if any(c.strip() for c in cells):
                yield line, FormatError(f"{len(cells)} cells in a table of {len(names)} columns")
        else:
            yield line, _mapped(dict(zip(names, cells, strict=True)), columns)


def _check_columns(path: Path, names: Sequence[str], columns: Columns) -> None:
    for column in columns.values():
        if column not in names:
            there = ", ".join(names[:8])
            raise FormatError(f"no column {column!r}", where=str(path), cure=f"{nearest(column, names)}; have {there}")


def _parquet(path: Path, columns: Columns) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtra("pyarrow", "data") from None
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    try:
        with ParquetFile(path) as table:
            _check_columns(path, table.schema_arrow.names, columns)
            batches = table.iter_batches(batch_size=256)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((n, _mapped(row, columns)) for n, row in enumerate(rows, 1))
    except (ArrowException, OSError) as error:
        raise FormatError(f"not a whole Parquet file: {str(error)[:200]}", where=str(path)) from None


def _conll(path: Path, columns: Columns) -> Rows:
    """A token a line, its tag in the last column, texts parted by blank lines (CoNLL 2003)."""
    if columns:
        raise UsageError("columns of this format have no names", where=str(path), cure="the last one is the tag")
    lines = enumerate(read_text(path).split("\n"), 1)
    for blank, group in itertools.groupby(lines, key=lambda item: not item[1].strip()):
        if blank:
            continue
        told = [(n, line.split("\t") if "\t" in line else line.split()) for n, line in group]
        told = [(n, cells) for n, cells in told if not cells[0].startswith("-DOCSTART-")]
        if any(len(cells) < 2 for _, cells in told):
            yield next(n for n, cells in told if len(cells) < 2), FormatError("a line without a tag")
        elif told:
            tokens, tags = ([cells[k].strip() for _, cells in told] for k in (0, -1))
            yield told[0][0], {"tokens": tokens, "tags": tags}


_READERS: Mapping[str, Callable[[Path, Columns], Rows]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json),
    ".csv": _table(None, csv.QUOTE_MINIMAL),
    ".tsv": _table("\t", csv.QUOTE_NONE),
    ".parquet": _parquet,
    **dict.fromkeys((".conll", ".bio", ".iob"), _conll),
}


def repeated(records: Iterable[Record]) -> int:
    """How many records have an id that came before."""
    seen: set[str] = set()
    count = 0
    for record in records:
        count += record.id in seen
        seen.add(record.id)
    return count
