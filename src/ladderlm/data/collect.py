"""Text gathered from folders, and from what every machine with Python has: the standard library's own sources."""

from __future__ import annotations

import ast
import glob
import itertools
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from ladderlm import events
from ladderlm.data.records import make_record, read_records, record_id
from ladderlm.errors import FormatError, NotFound
from ladderlm.types import Record

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
RECORD_SUFFIXES = (".jsonl", ".ndjson")
PYTHON = ("python:sources", "python:docs")
PYTHON_LICENCE = "PSF-2.0"
# tests, generated tables, vendored wheels, and a parser of Python 2
_NOT_PYTHON = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__", "ensurepip"}
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+-]+)")


def collect(*paths: str | Path, licence: str = "unknown") -> list[Record]:
    """Text records from files, folders (searched through) and globs: .txt .md .rst .py .jsonl, each perhaps .gz.

    `python:sources` and `python:docs` stand for the standard library (see python_corpus). Sorted by path; hidden
    files, empty files and what is not UTF-8 text are left out, exact duplicates too (both counts are reported as an
    event). `source` is the path within the folder; the licence is the file's own `SPDX-License-Identifier` where it
    has one, else `licence`. Raises NotFound, and FormatError for an empty corpus.
    """
    records, bad = list[Record](), 0
    for name in (p for p in paths if p in PYTHON):
        records += python_corpus("docs" if name == "python:docs" else "sources")
    files = [pair for path in paths if path not in PYTHON for pair in _files(path)]
    for file, source in events.track(files, "collect", unit="files"):
        try:
            found = read_records(file, licence=licence)
        except FormatError:
            if file.name.removesuffix(".gz").endswith(RECORD_SUFFIXES):
                raise
            bad += 1
            continue
        for record in found:
            if record.kind == "text" and record["text"].strip() and "\0" not in record["text"]:
                stated = _SPDX.search(record["text"], 0, 2000)
                own = stated[1] if stated and record.licence == "unknown" else record.licence
                records.append(make_record("text", record.fields, source=source, licence=own, **record.meta))
    unique = dedup(records)
    message = f"{len(unique)} texts; left out {len(records) - len(unique)} duplicates, {bad} unreadable files"
    events.emit("collect", message, data={"texts": len(unique), "duplicates": len(records) - len(unique), "bad": bad})
    if not unique:
        where = ", ".join(map(str, paths))
        raise FormatError("no text found", where=where, cure=f"expected {' '.join(TEXT_SUFFIXES)} or .jsonl files")
    return unique


def _files(path: str | Path) -> Iterator[tuple[Path, str]]:
    """(file, its name within `path`), sorted, without hidden ones."""
    path = Path(path).expanduser()
    if path.is_file():
        yield path, path.name
        return
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
            if file.is_file() and not hidden and _known(file):
                yield file, inside.as_posix()
        return
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise NotFound("no such file or folder", where=str(path), cure="check the path, or quote the glob")
    for match in matches:
        if Path(match).is_file() and _known(Path(match)):
            yield Path(match), match


def _known(file: Path) -> bool:
    return file.name.removesuffix(".gz").endswith(TEXT_SUFFIXES + RECORD_SUFFIXES)


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
