"""What is in a file, by its name: texts, code, rows, documents, archives, crawls and dumps become text records.

Every reader is a generator that holds one document at a time. What cannot be read is a `Dropped` with its rule; a
missing library is an error.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

from ladderlm.data import archives, extract, xml
from ladderlm.data.archives import Blob, Refused
from ladderlm.data.encodings import UTF8, Recoded, detect
from ladderlm.data.licence_files import LicenceFiles, spdx
from ladderlm.data.records import make_record, to_record
from ladderlm.data.stages import MAX_LINE, Dropped, lines, parse_line
from ladderlm.data.wikitext import plain
from ladderlm.errors import LadderError, MissingExtra
from ladderlm.types import Record

Item = Record | Dropped

WHOLE = 16 << 20  # bytes of a text that stays one document; longer ones are cut into pieces
PIECE = 1 << 20
TEXTS = (".txt", ".text", ".md", ".markdown", ".rst")
ROWS = (".jsonl", ".ndjson")
CODE = {
    ".py": "python", ".pyi": "python", ".c": "c", ".h": "c", ".cc": "c++", ".cpp": "c++", ".cxx": "c++", ".hpp": "c++",
    ".cs": "c#", ".java": "java", ".kt": "kotlin", ".scala": "scala", ".go": "go", ".rs": "rust", ".swift": "swift",
    ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript",
    ".rb": "ruby", ".php": "php", ".pl": "perl", ".lua": "lua", ".r": "r", ".jl": "julia", ".sh": "shell",
    ".sql": "sql", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".erl": "erlang",
    ".clj": "clojure", ".f90": "fortran",
    ".m": "objective-c", ".dart": "dart", ".zig": "zig", ".tex": "latex",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class How:
    """How files are read: the licence of texts that name none, and the column of tables that holds the text."""

    licence: str = "unknown"
    text_field: str = ""
    licences: LicenceFiles = field(default_factory=LicenceFiles)


def known(name: str) -> bool:
    """Whether files of this name are read when they are met in a folder or an archive."""
    suffix = PurePosixPath(name.lower()).suffix
    if suffix in archives.PACKED:
        return known(name[: -len(suffix)])
    return suffix in READERS


def hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)


def read(blob: Blob, how: How, *, named: bool = False, depth: int = 0) -> Iterator[Item]:
    """The records in a file; `named` by the user it is taken for text when its name tells nothing."""
    try:
        yield from _read(blob, how, named, depth)
    except MissingExtra:
        raise
    except Refused as error:
        yield refused(blob.name, error)
    except archives.broken() as error:
        packed = depth or archives.is_packed(blob) or blob.suffix == ".warc"
        yield refused(blob.name, Refused("broken-archive" if packed else "unreadable", str(error)[:200]))


def refused(name: str, error: Refused) -> Dropped:
    """A file that is left out, and why."""
    return Dropped(make_record("text", {"text": ""}, source=name, reason=str(error)), error.rule)


def _read(blob: Blob, how: How, named: bool, depth: int) -> Iterator[Item]:
    if blob.name.lower().endswith((".warc.gz", ".warc.zst")):
        yield from _warc(blob, how)
        return
    packed = archives.is_packed(blob)
    if packed or blob.suffix in (".zip", ".tar"):
        if depth >= archives.DEPTH + (1 if packed else 0):
            raise Refused("nested-too-deep", f"archives within archives, more than {archives.DEPTH} deep")
        if packed:
            inner = archives.unpack(blob)
            yield from read(inner, how, named=named or not known(inner.label), depth=depth + (inner.suffix != ".tar"))
        else:
            yield from _archive(blob, how, depth)
        return
    reader = READERS.get(blob.suffix, (_json if blob.suffix == ".json" else _text) if named else None)
    if reader is None:
        raise Refused("unknown-type", f"files of the type {blob.suffix or 'without an ending'} are not read")
    yield from reader(blob, how)


def _archive(blob: Blob, how: How, depth: int) -> Iterator[Item]:
    for found in archives.members(blob):
        if not isinstance(found, Blob):
            yield refused(*found)
        elif not hidden(found.name):
            if how.licences.is_licence(found.name):
                how.licences.learn(found.name, found.file.read(1 << 16))
            else:
                yield from read(found, how, depth=depth + 1)


# --- Texts --------------------------------------------------------------------------------------------------------


def document(text: str, blob: Blob, how: How, stated: str = "", **meta: Any) -> Item:
    """One text as a record. Its licence: its own word, the SPDX line at its head, the LICENSE beside it, `how`'s."""
    if not text.strip():
        return refused(blob.name, Refused("empty"))
    if "\0" in text:
        return refused(blob.name, Refused("binary"))
    licence = stated or spdx(text) or how.licences.of(blob) or how.licence
    return make_record("text", {"text": text}, source=blob.name, licence=licence, **meta)


def _text(blob: Blob, how: How, **meta: Any) -> Iterator[Item]:
    """A text in whatever encoding; one that was not UTF-8 tells it in meta.recoded."""
    start, file = blob.file.read(WHOLE + 1), blob.file
    encoding = detect(start, len(start) <= WHOLE)
    if encoding not in UTF8:
        meta["recoded"] = encoding
        if len(start) > WHOLE:
            file = io.BufferedReader(Recoded(start, file, encoding))
            start, encoding = file.read(WHOLE + 1), "utf-8"
    if len(start) <= WHOLE:
        yield document(start.decode("utf-8-sig" if encoding in UTF8 else encoding), blob, how, **meta)
        return
    for number, piece in enumerate(_pieces(start, file), 1):
        if isinstance(piece, Refused):
            yield refused(f"{blob.name}#{number}", piece)
            continue
        try:
            yield document(piece.decode("utf-8-sig"), blob, how, part=number, **meta)
        except UnicodeDecodeError as error:
            yield refused(f"{blob.name}#{number}", Refused("not-utf-8", f"at byte {error.start} of the piece"))


def _pieces(start: bytes, file: IO[bytes]) -> Iterator[bytes | Refused]:
    """About PIECE bytes each, cut at an empty line, else at a line's end. A line over WHOLE bytes is Refused."""
    held = start
    while held:
        cut = held.find(b"\n\n", PIECE, 2 * PIECE) + 2
        if cut < 2:
            cut = held.find(b"\n", PIECE) + 1
        if not cut and len(held) > WHOLE:
            yield Refused("line-too-long", f"more than {WHOLE >> 20} MB")
            while (held := file.read(1 << 20)) and b"\n" not in held:
                pass
            held = held.partition(b"\n")[2]
            continue
        cut = cut or len(held)
        yield held[:cut]
        held = held[cut:]
        if len(held) < 2 * PIECE or not held:
            held += file.read(WHOLE)


def _code(blob: Blob, how: How) -> Iterator[Item]:
    yield from _text(blob, how, language=CODE[blob.suffix])


# --- Rows ---------------------------------------------------------------------------------------------------------


def _row(row: Any, blob: Blob, how: How) -> Item:
    """A row of a table as a record of its text."""
    if how.text_field and isinstance(row, Mapping):
        if how.text_field not in row:
            columns = ", ".join(map(str, row))[:200]
            raise Refused("no-text-column", f"no column {how.text_field!r} among {columns}")
        row = {"text": row[how.text_field]} | {
            k: v for k, v in row.items() if k in ("title", "url", "source", "licence")
        }
    record = to_record(row, blob.name, "")
    return _textual(record, blob, how)


def _textual(record: Record, blob: Blob, how: How) -> Item:
    if record.kind != "text":
        return Dropped(record, "not-text")
    if not record["text"].strip() or "\0" in record["text"]:
        return Dropped(record, "binary" if "\0" in record["text"] else "empty")
    licence = record.licence if record.licence not in ("", "unknown") else ""
    licence = licence or spdx(record["text"]) or how.licences.of(blob) or how.licence
    return make_record("text", record.fields, source=record.source, licence=licence, **record.meta)


def _jsonl(blob: Blob, how: How) -> Iterator[Item]:
    for number, line in lines(blob.file, blob.name):
        if not line.strip():
            continue
        if how.text_field:
            yield from _json_row(line, number, blob, how)
            continue
        rule, record = parse_line(line, blob.name, "")
        yield _textual(record, blob, how) if record else refused(f"{blob.name}:{number}", Refused(rule))


def _json_row(line: bytes, number: int, blob: Blob, how: How) -> Iterator[Item]:
    try:
        if len(line) > MAX_LINE:
            raise Refused("line-too-long")
        yield _row(json.loads(line.decode("utf-8-sig")), blob, how)
    except Refused as error:
        yield refused(f"{blob.name}:{number}", error)
    except LadderError as error:
        yield refused(f"{blob.name}:{number}", Refused("not-a-record", str(error)))
    except UnicodeDecodeError:
        yield refused(f"{blob.name}:{number}", Refused("not-utf-8"))
    except (ValueError, RecursionError):
        yield refused(f"{blob.name}:{number}", Refused("broken-json"))


def _json(blob: Blob, how: How) -> Iterator[Item]:
    """A .json file: an array of rows, or one row."""
    try:
        rows = json.loads(blob.read(MAX_LINE).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Refused("not-utf-8") from None
    except (ValueError, RecursionError) as error:
        raise Refused("broken-json", str(error)[:200]) from None
    yield from _rows(iter(rows if isinstance(rows, list) else [rows]), blob, how)


def _rows(rows: Iterator[Any], blob: Blob, how: How) -> Iterator[Item]:
    """Rows of one shape: when the first is none that we know, the file is left out with its columns told."""
    first = next(rows, None)
    if first is None:
        raise Refused("empty")
    try:
        yield _row(first, blob, how)
    except Refused:
        raise
    except LadderError as error:
        cure = "; name the column that holds the text: --text-field"
        raise Refused("no-text-column", error.what + (cure if isinstance(first, Mapping) else "")) from None
    for number, row in enumerate(rows, 2):
        try:
            yield _row(row, blob, how)
        except LadderError as error:
            yield refused(f"{blob.name}:{number}", Refused("not-a-record", error.what))


def _csv(blob: Blob, how: How) -> Iterator[Item]:
    file: Any = blob.file if hasattr(blob.file, "peek") else io.BufferedReader(blob.file)
    encoding = detect(file.peek(), False)
    if encoding not in UTF8:
        file = io.BufferedReader(Recoded(b"", file, encoding))

    def decoded() -> Iterator[str]:
        for number, line in lines(file, blob.name):
            if len(line) > WHOLE:
                raise Refused("line-too-long", f"line {number}")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise Refused("not-utf-8", f"line {number}") from None

    text = decoded()
    first = next(text, "")
    if not first.strip():
        raise Refused("empty")
    delimiter = max("\t,;|", key=first.count)
    csv.field_size_limit(WHOLE)
    try:
        rows = csv.DictReader(itertools.chain([first], text), delimiter=delimiter, restkey="")
        named = ({k: v for k, v in row.items() if k and v is not None} for row in rows)
        yield from _recoded(_rows(named, blob, how), encoding)
    except csv.Error as error:
        raise Refused("broken-csv", str(error)) from None


def _recoded(items: Iterator[Item], encoding: str) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Record) and encoding not in UTF8:
            item = dataclasses.replace(item, meta={**item.meta, "recoded": encoding})
        yield item


def _parquet(blob: Blob, how: How) -> Iterator[Item]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtra("pyarrow", "data") from None
    with archives.seekable(blob) as (file, _):
        try:
            table = ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            names = table.schema_arrow.names
            wanted = how.text_field or "text"
            chosen = (
                [n for n in names if n in (wanted, "title", "url", "source", "licence")] if wanted in names else names
            )
            batches = table.iter_batches(batch_size=64, columns=chosen)
            yield from _rows((row for batch in batches for row in batch.to_pylist()), blob, how)
        except (ArrowException, OSError) as error:
            raise Refused("broken-parquet", str(error)[:200]) from None


# --- Documents ----------------------------------------------------------------------------------------------------


def _html(blob: Blob, how: How) -> Iterator[Item]:
    yield _document(extract.html(blob.read(extract.MAX_HTML)), blob, how)


def _pdf(blob: Blob, how: How) -> Iterator[Item]:
    yield _document(extract.pdf(blob), blob, how)


def _docx(blob: Blob, how: How) -> Iterator[Item]:
    yield _document(extract.docx(blob), blob, how)


def _epub(blob: Blob, how: How) -> Iterator[Item]:
    yield _document(extract.epub(blob), blob, how)


def _document(found: extract.Document, blob: Blob, how: How) -> Item:
    return document(found.text, blob, how, found.licence, **found.meta)


# --- Dumps and crawls ---------------------------------------------------------------------------------------------


_PAGE = ("title", "ns", "text", "base", "dbname", "namespace")


def _wiki(blob: Blob, how: How) -> Iterator[Item]:
    """The articles of a MediaWiki dump (https://www.mediawiki.org/wiki/Help:Export), without redirects."""
    page: dict[str, str] = {}
    site, files, inside, length = {"base": "", "dbname": ""}, set[str](), "", 0
    for number, (kind, name, attributes) in enumerate(xml.events(blob.file)):
        if number == 0 and name != "mediawiki":
            raise Refused("unknown-type", f"XML of the kind {name[:50]!r} is not read")
        if kind == "text":
            length += len(name)
            if inside in _PAGE and length <= WHOLE:
                page[inside] = page.get(inside, "") + name
            continue
        if kind == "start":
            inside, length = name, 0
            if name == "page":
                page = {}
            elif name in _PAGE:
                page[name] = ""
            elif name == "redirect":
                page["redirect"] = "yes"
            if name == "namespace" and attributes.get("key") in ("6", "14", "-2"):
                inside = "namespace"
                page["key"] = "file"
            continue
        if name == "namespace" and page.pop("key", ""):
            files.add(page["namespace"].lower())
        elif name in site:
            site[name] = page.get(name, "")
        elif name == "text" and length > WHOLE:
            page["redirect"] = "long"
        elif name == "page":
            yield from _article(page, site, files, blob, how)
        inside = ""


def _article(page: Mapping[str, str], site: Mapping[str, str], files: set[str], blob: Blob, how: How) -> Iterator[Item]:
    title = page.get("title", "").strip()
    source = f"{site['dbname'] or PurePosixPath(blob.name).name}/{title}"
    if page.get("ns", "0") != "0" or page.get("redirect"):
        rule = (
            "too-large" if page.get("redirect") == "long" else "redirect" if page.get("redirect") else "not-an-article"
        )
        yield refused(source, Refused(rule))
        return
    text = plain(page.get("text", ""), files)
    if not text:
        yield refused(source, Refused("empty"))
        return
    wikipedia = "wikipedia.org" in site["base"]
    meta = {"title": title}
    if "/wiki/" in site["base"]:
        meta["url"] = site["base"].rpartition("/wiki/")[0] + "/wiki/" + title.replace(" ", "_")
    named = Blob(source, io.BytesIO())
    yield document(f"{title}\n\n{text}\n", named, how, "CC-BY-SA-4.0" if wikipedia else "", **meta)


def _warc(blob: Blob, how: How) -> Iterator[Item]:
    """The pages of a web archive (ISO 28500): responses by their media type, and WET's plain texts."""
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError:
        raise MissingExtra("fastwarc", "data") from None
    kinds = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    found = 0
    pages = ArchiveIterator(blob.file, record_types=kinds, parse_http=True, auto_decode="all", fsspec_args=False)
    for page in pages:
        found += 1
        address = (page.headers.get("WARC-Target-URI") or "").strip("<>")[:2000] or blob.name
        kind = (page.http_content_type or "").partition(";")[0].strip().lower()
        if page.record_type != WarcRecordType.response:
            kind = (page.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        elif page.http_headers is not None and page.http_headers.status_code != 200:
            yield refused(address, Refused("http-status", str(page.http_headers.status_code)))
            continue
        data = page.reader.read(extract.MAX_HTML + 1)
        yield from web_page(address, kind, data, how)
    if not found:
        raise Refused("broken-archive", "no record of a web archive in it")


def web_page(address: str, kind: str, data: bytes, how: How) -> Iterator[Item]:
    """The records of one answer of a web server, by its media type."""
    suffix = MEDIA.get(kind)
    if suffix is None:
        yield refused(address, Refused("unknown-type", f"pages of the type {kind[:60] or 'unknown'} are not read"))
        return
    page = Blob(address, io.BytesIO(data))
    reader: Callable[[Blob, How], Iterator[Item]] = READERS[suffix]
    try:
        for item in reader(page, how):
            if isinstance(item, Record) and item.source == address and re.match("https?:", address):
                item = make_record("text", item.fields, source=address, licence=item.licence,
                                   **{"url": address, **item.meta})  # fmt: skip
            yield item
    except Refused as error:
        yield refused(address, error)


MEDIA = {"text/html": ".html", "application/xhtml+xml": ".html", "text/plain": ".txt", "text/markdown": ".md",
         "application/pdf": ".pdf"}  # fmt: skip
READERS: dict[str, Callable[[Blob, How], Iterator[Item]]] = {
    **dict.fromkeys(TEXTS, _text), **dict.fromkeys(CODE, _code), **dict.fromkeys(ROWS, _jsonl),
    **dict.fromkeys((".csv", ".tsv"), _csv), ".parquet": _parquet, **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    ".pdf": _pdf, ".docx": _docx, ".epub": _epub, ".xml": _wiki, ".warc": _warc,
    ".zip": lambda blob, how: _archive(blob, how, 0), ".tar": lambda blob, how: _archive(blob, how, 0),
    ".tgz": lambda blob, how: _read(blob, how, False, 0), ".tbz2": lambda blob, how: _read(blob, how, False, 0),
    ".tzst": lambda blob, how: _read(blob, how, False, 0), ".txz": lambda blob, how: _read(blob, how, False, 0),
}  # fmt: skip
