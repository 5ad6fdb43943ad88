"""Text gathered from files, the web and the hub, and from what every machine with Python has: its library's sources."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import re
import shutil
import sys
import sysconfig
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ladderlm import events
from ladderlm.data.archives import Refused, open_blob
from ladderlm.data.collect_formats import How, hidden, known, read, refused
from ladderlm.data.hub import PREFIX, dataset_files
from ladderlm.data.licence_files import LicenceFiles
from ladderlm.data.records import make_record, record_id
from ladderlm.data.stages import Dropped, StageReport, code_version, done_before, read_report, report_path, writer
from ladderlm.data.web import DEFAULT, Crawler, Manners, crawl, url_list
from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.store import sha256_of, write_json
from ladderlm.types import Record

PYTHON = ("python:sources", "python:docs")
PYTHON_LICENCE = "PSF-2.0"
# tests, generated tables, vendored wheels, and a parser of Python 2
_NOT_PYTHON = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__", "ensurepip"}
_LINKS = ("http://", "https://")
_NOT_TOLD = ("unknown-type", "not-text", "duplicate")  # collect() tells of damage only
_BROKEN_ROWS = ("broken-json", "not-a-record", "line-too-long")


def collect(*paths: str | Path, licence: str = "unknown") -> list[Record]:
    """Text records from files, folders (searched through) and globs, and all else that gather() takes, in memory.

    Exact duplicates and unreadable files are left out (both counts are reported as an event). Raises NotFound, and
    FormatError for an empty corpus or a broken line in a .jsonl file.
    """
    records, bad = list[Record](), 0
    with tempfile.TemporaryDirectory(prefix="ladderlm-") as folder:
        for item in gather(*paths, licence=licence, state=Path(folder)):
            if isinstance(item, Record):
                records.append(item)
            elif item.rule in _BROKEN_ROWS and ":" in item.record.source:
                cure = "correct or remove the line, or: ladderlm data collect, which leaves it out"
                raise FormatError(item.rule.replace("-", " "), where=item.record.source, cure=cure)
            else:
                bad += item.rule not in _NOT_TOLD
    unique = dedup(records)
    message = f"{len(unique)} texts; left out {len(records) - len(unique)} duplicates, {bad} unreadable files"
    events.emit("collect", message, data={"texts": len(unique), "duplicates": len(records) - len(unique), "bad": bad})
    if not unique:
        raise _nothing(paths)
    return unique


def _nothing(paths: Iterable[str | Path], why: str = "") -> FormatError:
    cure = "expected texts, documents, code, tables or archives: ladderlm data collect --help"
    return FormatError("no text found" + (f"; {why}" if why else ""), where=", ".join(map(str, paths)), cure=cure)


def gather(
    *sources: str | Path, licence: str = "unknown", text_field: str = "", state: Path, manners: Manners = DEFAULT
) -> Iterator[Record | Dropped]:
    """Text records, one at a time, and what is left out, by rule.

    A source is a file, folder or glob (types: collect_formats.READERS), `python:sources` or `python:docs` (the
    standard library), a web address (a page, a sitemap, or a file to fetch), `urls:FILE` (a list of pages),
    `hub:datasets/org/name[@revision][:GLOB]`. `source` is the path within the folder. `text_field` names the column
    of tables that holds the text. `state` is a folder that keeps what was fetched. Files come sorted by path; hidden
    ones are passed over. Raises NotFound, MissingExtra, NetworkError.
    """
    how = How(licence, text_field)
    with contextlib.closing(_Web(state, manners)) as web:
        for source in sources:
            name = str(source)
            if name in PYTHON:
                yield from python_corpus("docs" if name == "python:docs" else "sources")
            elif name.startswith(PREFIX):
                for path, inside, stated in dataset_files(name):
                    yield from _read(path, inside, How(stated if stated != "unknown" else licence, text_field), True)
            elif name.startswith("urls:"):
                file = Path(name.removeprefix("urls:")).expanduser()
                yield from crawl(name, url_list(file), web.crawler(), how)
            elif name.startswith(_LINKS):
                yield from _address(name, web.crawler(), how)
            else:
                yield from _local(source, how)


class _Web:
    """A crawler that is made only when a source needs it: its HTTP library takes a while to import."""

    def __init__(self, folder: Path, manners: Manners) -> None:
        self._folder, self._manners, self._made = folder, manners, contextlib.ExitStack()
        self._crawler: Crawler | None = None

    def crawler(self) -> Crawler:
        if self._crawler is None:
            self._crawler = self._made.enter_context(contextlib.closing(Crawler(self._folder, self._manners)))
        return self._crawler

    def close(self) -> None:
        self._made.close()


def _address(url: str, crawler: Crawler, how: How) -> Iterator[Record | Dropped]:
    """A sitemap's pages, a file's records, or one page."""
    path = urllib.parse.urlsplit(url).path
    if path.endswith((".xml", ".xml.gz")):
        host = urllib.parse.urlsplit(url).hostname or ""
        try:
            yield from crawl(url, crawler.sitemap(url), crawler, how, host=host)
        except Refused as error:
            raise FormatError(f"not a sitemap that can be read: {error}", where=url) from None
    elif known(path) and not path.endswith((".html", ".htm", ".txt", ".md", ".xhtml")):
        file = crawler.download(url)
        yield from _read(file, PurePosixPath(path).name, how, True)
    else:
        yield from crawl(url, [url], crawler, how)


def _local(path: str | Path, how: How) -> Iterator[Record | Dropped]:
    files = list(_files(path))
    named, total, done = len(files) == 1 and files[0][0] == Path(path).expanduser(), 0, 0
    total = sum(file.stat().st_size for file, _ in files)
    for file, inside in files:
        yield from _read(file, inside, how, named, done, total)
        done += file.stat().st_size
    if total:
        events.emit("collect", done=total / 1e6, total=total / 1e6, unit="MB", finished=True)


def _read(file: Path, name: str, how: How, named: bool, before: int = 0, total: int = 0) -> Iterator[Record | Dropped]:
    """The records of one file; tells how far it is at most ten times a second."""
    last = time.monotonic()
    try:
        with open_blob(file, name) as blob:
            for item in read(blob, how, named=named):
                yield item
                if total and time.monotonic() - last > 0.1:
                    last = time.monotonic()
                    events.emit("collect", done=(before + blob.file.tell()) / 1e6, total=total / 1e6, unit="MB")
    except OSError as error:
        yield refused(name, Refused("unreadable", str(error)))


def _files(path: str | Path) -> Iterator[tuple[Path, str]]:
    """(file, its name within `path`), sorted, without hidden ones and LICENSE files."""
    path = Path(path).expanduser()
    if path.is_file():
        yield path, path.name
        return
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path).as_posix()
            if file.is_file() and not hidden(inside) and not LicenceFiles.is_licence(inside):
                yield file, inside
        return
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise NotFound("no such file or folder", where=str(path), cure="check the path, or quote the glob")
    for match in matches:
        if Path(match).is_file() and known(match):
            yield Path(match), match


# --- As a stage ---------------------------------------------------------------------------------------------------


def run_collect(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    licence: str = "unknown",
    text_field: str = "",
    manners: Manners = DEFAULT,
    report: str | Path = "",
    dropped: str | Path = "",
) -> StageReport:
    """Gathers texts into `out` without exact repeats, with its report beside it, holding 16 bytes of each.

    What comes over the network is kept in OUT.crawl until the work is done: the same call goes on after a break.
    The same local files and settings are not gathered twice. Raises FormatError when no text was found.
    """
    if any(str(out) == str(source) != "-" for source in sources):
        raise UsageError("the output is one of the inputs", where=str(out), cure="name another file: -o FILE")
    told = Path(report) if report else None if str(out) == "-" else report_path(out)
    inputs, lineage, size = _inputs(sources)
    planned = StageReport("collect", {"licence": licence, "text_field": text_field}, inputs, code_version(),
                          bytes_in=size, lineage=lineage)  # fmt: skip
    if told and (before := done_before(told, planned, out, dropped)):
        events.emit("collect", f"already done: {out} is what these inputs and settings give")
        return before
    drops, changed = Counter[str](), Counter[str]()
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="ladderlm-"))
        state = Path(temporary) if str(out) == "-" else Path(f"{out}.crawl")
        kept = stack.enter_context(writer(out))
        left = stack.enter_context(writer(dropped)) if dropped else None
        items = gather(*sources, licence=licence, text_field=text_field, state=state, manners=manners)
        for item in unique(items):
            if isinstance(item, Record):
                if "recoded" in item.meta:
                    changed[f"recoded-{item.meta['recoded']}"] += 1
                kept.add(item)
                continue
            drops[item.rule] += 1
            if left:
                left.add(dataclasses.replace(item.record, meta={**item.record.meta, "rule": item.rule}))
        if not kept.records:
            most = ", ".join(f"{rule} {n:,}" for rule, n in drops.most_common(4))
            raise _nothing(sources, f"left out: {most}" if most else "")
        if left:
            left.close()
        done = dataclasses.replace(
            planned, records_in=kept.records + drops.total(), records_out=kept.records, bytes_out=kept.bytes,
            dropped=dict(sorted(drops.items())), changed=dict(sorted(changed.items())), output=kept.close(),
        )  # fmt: skip
    shutil.rmtree(Path(f"{out}.crawl"), ignore_errors=True)
    if told:
        write_json(told, done.to_dict())
    return done


def unique(items: Iterable[Record | Dropped]) -> Iterator[Record | Dropped]:
    """The items with exact repeats of a text turned into drops (the first stays): 16 bytes are held of each text."""
    seen: set[bytes] = set()
    for item in items:
        if isinstance(item, Record):
            key = hashlib.blake2b(item["text"].encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key in seen:
                yield Dropped(item, "duplicate")
                continue
            seen.add(key)
        yield item


def _inputs(sources: Iterable[str | Path]) -> tuple[tuple[dict[str, str], ...], tuple[dict[str, Any], ...], int]:
    """Name and sha256 of each source (of a folder: of its files' names and contents; remote: ""), reports, bytes."""
    inputs, lineage, size = [], list[dict[str, Any]](), 0
    for source in sources:
        name = str(source)
        if name in PYTHON:
            inputs.append({"name": name, "sha256": hashlib.sha256(sys.version.encode()).hexdigest()})
            continue
        if name.startswith((*_LINKS, "urls:", PREFIX)):
            inputs.append({"name": name, "sha256": ""})
            continue
        sha, files = hashlib.sha256(), list(_files(source))
        for file, inside in files:
            with contextlib.suppress(OSError):  # it will be counted as unreadable
                content = sha256_of(file)
                sha.update(f"{inside}\0{content}\n".encode("utf-8", "surrogateescape"))
                size += file.stat().st_size
                if (before := read_report(file)) and before.get("output") == content:
                    lineage.append(before)
        inputs.append({"name": Path(name).name, "sha256": sha.hexdigest()})
    return tuple(inputs), tuple(lineage), size


def dedup(records: Iterable[Record]) -> list[Record]:
    """The records without exact repeats of their content, in order (the first stays)."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record_id(record.kind, record.fields), record)
    return list(first.values())


# --- The Python standard library ----------------------------------------------------------------------------------


def python_modules(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """(dotted name, source) of each module of the standard library, sorted; nothing is imported.

    `root` is where the library lies (default: this interpreter's). Raises NotFound when its sources are not there.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in sorted(root.rglob("*.py")) if not _NOT_PYTHON & set(f.relative_to(root).parts)]
    if not files:
        cure = "collect a folder of your own: ladderlm data collect FOLDER"
        raise NotFound("the Python standard library's sources are not on this machine", where=str(root), cure=cure)
    for file in files:
        try:
            source = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # a few old modules are in other encodings
            continue
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if "-" not in name and source.strip():
            yield name, source


def python_corpus(variant: Literal["sources", "docs"] = "sources", root: Path | None = None) -> list[Record]:
    """One text record per module of the standard library, PSF licence, in a fixed order, without repeats.

    `sources` are whole files; `docs` the docstrings and comments alone, rendered as readable text.
    """
    records = []
    for name, source in events.track(python_modules(root), f"python {variant}", unit="modules"):
        text = source if variant == "sources" else readable(name, source)
        if text.strip():
            records.append(make_record("text", {"text": text}, source=f"python/{name}", licence=PYTHON_LICENCE))
    return dedup(records)


def readable(module: str, source: str) -> str:
    """The docstrings and comments of a module as text: a heading per class and function, paragraphs in order."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    pieces: list[tuple[int, str]] = []
    inside: set[int] = set()  # lines within strings: a "#" there is no comment
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.end_lineno:
            inside.update(range(node.lineno, node.end_lineno + 1))
    _docstrings(tree, [], pieces)
    for line, text in _comments(source, inside):
        pieces.append((line, text))
    if not pieces:
        return ""
    return f"# {module}\n\n" + "\n\n".join(text for _, text in sorted(pieces)) + "\n"


def _docstrings(node: ast.AST, path: Sequence[str], out: list[tuple[int, str]]) -> None:
    if isinstance(node, ast.Module) and (text := ast.get_docstring(node)):
        out.append((0, text))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [*path, child.name]
            if text := ast.get_docstring(child):
                call = "" if isinstance(child, ast.ClassDef) else f"({', '.join(arguments(child))})"
                out.append((child.lineno, f"## {'.'.join(names)}{call}\n\n{text}"))
            _docstrings(child, names, out)


def _comments(source: str, inside: set[int]) -> Iterator[tuple[int, str]]:
    """(line, text) of each block of comment lines that holds a sentence rather than code, a rule or a licence head."""
    lines = enumerate(source.splitlines(), 1)
    for is_comment, block in itertools.groupby(lines, lambda x: x[1].lstrip().startswith("#") and x[0] not in inside):
        if is_comment:
            rows = [(number, line.lstrip().lstrip("#").strip()) for number, line in block]
            text = "\n".join(row for _, row in rows if not re.fullmatch(r"[\W_]*|-\*-.*-\*-|!.*python.*", row))
            if len(text.split()) >= 6 and text[0].isupper() and not re.search(r"[=(\[{]\s*$", text):
                yield rows[0][0], text


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of a function's arguments without self and cls."""
    a = function.args
    names = [x.arg for x in (*a.posonlyargs, *a.args)]
    names += [f"*{a.vararg.arg}"] if a.vararg else []
    names += [x.arg for x in a.kwonlyargs] + ([f"**{a.kwarg.arg}"] if a.kwarg else [])
    return [n for n in names if n not in ("self", "cls")]
