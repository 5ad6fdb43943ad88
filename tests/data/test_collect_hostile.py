"""Corpora that break things end in a clear error or a counted drop, memory bounded (a process of its own, measured)."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ladderlm.data.archives import Blob
from ladderlm.data.collect_formats import How, read
from ladderlm.data.stages import Dropped

MEASURED = """
import json, resource, sys
from ladderlm.data.collect import run_collect
from ladderlm.errors import LadderError
import ladderlm.data.tasks
rule = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = rule()
try:
    report = run_collect(sys.argv[1:-1], sys.argv[-1])
    found = [report.records_out, report.dropped]
except LadderError as error:
    found = [0, str(error)]
print(json.dumps([*found, rule() - before]))
"""


def measured(tmp_path: Path, *sources: Path, limit_mb: int) -> tuple[int, object]:
    """(records, drops by rule or the error's line) of a process that collects; its memory grows by limit_mb at most."""
    import json

    child = subprocess.run([sys.executable, "-c", MEASURED, *map(str, sources), str(tmp_path / "out.jsonl")],
                           env=os.environ, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    records, drops, grown = json.loads(child.stdout)
    assert grown < limit_mb, f"{grown} MB"
    return records, drops


def rules(name: str, data: bytes) -> list[str]:
    """The rules by which the content of a file of this name is left out."""
    return [i.rule for i in read(Blob(name, io.BytesIO(data)), How()) if isinstance(i, Dropped)]


def zipped(name: str, data: bytes | str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def tarred(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(b"x\n" * info.size))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 2 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    ("name", "data", "rule"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"\xff\xfe\xfa", "not-utf-8"),
        ("a.txt", b"a\0b", "binary"),
        ("a.jsonl", b"\xff{}\n", "not-utf-8"),
        ("a.jsonl", b"[" * 100_000, "broken-json"),
        ("a.csv", b'text\n"' + b"a" * (17 << 20), "line-too-long"),
        ("a.gz", b"no gzip", "broken-archive"),
        ("a.txt.gz", gzip.compress(os.urandom(1000))[:500], "broken-archive"),
        ("a.txt.bz2", b"BZh9 no", "broken-archive"),
        ("a.zip", b"PK\3\4 no", "broken-archive"),
        ("a.zip", zipped("../../etc/x.txt", b"x"), "unsafe-path"),
        ("a.zip", zipped("C:\\x.txt", b"x"), "unsafe-path"),
        ("a.zip", zipped("pic.jpg", b"x"), "unknown-type"),
        ("a.tar", b"no tar" * 200, "broken-archive"),
        ("a.tar", tarred(member("/etc/passwd.txt")), "unsafe-path"),
        ("a.tar", tarred(member("a/../../x.txt")), "unsafe-path"),
        ("a.tar", tarred(member("x.txt", tarfile.SYMTYPE, "/etc/passwd")), "link"),
        ("a.zip", zipped("b.zip", zipped("c.zip", zipped("d.zip", zipped("e.txt", "x")))), "nested-too-deep"),
        ("a.xml", b"<a><b>", "unknown-type"),
        ("a.xml", b"<mediawiki><page>", "broken-xml"),
        ("a.xml", b'<!DOCTYPE m [<!ENTITY x "y">]><mediawiki>&x;</mediawiki>', "xml-entities"),
        ("a.docx", b"no docx", "broken-archive"),
        ("a.docx", zipped("other.xml", "<x/>"), "broken-document"),
        ("a.epub", zipped("META-INF/container.xml", "<container/>"), "broken-document"),
    ],
)  # fmt: skip
def test_what_is_not_what_it_says(name, data, rule):
    assert rules(name, data) == [rule]


@pytest.mark.parametrize(
    ("name", "data", "rule", "library"),
    [
        ("a.pdf", b"Dear all, this is no PDF.", "not-a-pdf", "pypdfium2"),
        ("a.pdf", b"%PDF-1.7\n" + b"\xff" * 5000, "not-a-pdf", "pypdfium2"),
        ("a.html", b"<div>" * 200_000 + b"x", "too-deep", "resiliparse"),
        ("a.html", b"<p>word</p>" * 5_000_000, "too-large", "resiliparse"),
        ("a.html", b"<html><body></body></html>", "no-text", "resiliparse"),
        ("a.html", b"", "no-text", "resiliparse"),
        ("a.warc", b"no web archive at all", "broken-archive", "fastwarc"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "broken-parquet", "pyarrow"),
    ],
)  # fmt: skip
def test_documents_that_are_none(name, data, rule, library):
    pytest.importorskip(library)
    assert rules(name, data) == [rule]


def test_pages_with_many_unclosed_elements_are_not_taken_for_deep():
    pytest.importorskip("resiliparse")
    items = list(read(Blob("a.html", io.BytesIO(b"<body>" + b"<p>A word or two.<br>" * 3000)), How()))
    assert [isinstance(i, Dropped) for i in items] == [False]


def test_laughs_in_a_word_document(tmp_path):
    laughs = '<!DOCTYPE w [<!ENTITY a0 "ha">' + "".join(
        f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)
    ) + "]><w>&a9;</w>"  # fmt: skip
    (tmp_path / "laughs.docx").write_bytes(zipped("word/document.xml", laughs))
    records, error = measured(tmp_path, tmp_path / "laughs.docx", limit_mb=40)
    assert (records, "xml-entities 1" in str(error)) == (0, True)


def test_bombs(tmp_path):
    """A quarter of a gigabyte of zeros in a gzip file, of a zip member, of the XML of a document."""
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        for _ in range(256):
            file.write(bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("b.jsonl", "w") as part:
            for _ in range(256):
                part.write(bytes(1 << 20))
        archive.writestr("good.txt", "Good.\n")
    with (
        zipfile.ZipFile(tmp_path / "c.docx", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w") as part,
    ):
        part.write(b"<w><t>")
        for _ in range(256):
            part.write(b" " * (1 << 20))
    records, drops = measured(tmp_path, *(tmp_path / n for n in ("a.txt.gz", "b.zip", "c.docx")), limit_mb=250)
    assert records == 0
    assert "bomb" in str(drops)


@pytest.mark.slow
def test_a_line_of_a_gigabyte(tmp_path):
    for name in ("a.jsonl", "b.txt", "c.csv"):
        with (tmp_path / name).open("wb") as file:  # sparse: no gigabyte on the disk
            file.write(b"text\n" if name == "c.csv" else b"")
            file.truncate(1 << 30)
    (tmp_path / "good.txt").write_text("Good.\n")
    paths = [tmp_path / n for n in ("a.jsonl", "b.txt", "c.csv", "good.txt")]
    records, drops = measured(tmp_path, *paths, limit_mb=450)
    assert (records, drops) == (1, {"line-too-long": 3})


def test_html_of_50_mb(tmp_path):
    pytest.importorskip("resiliparse")
    (tmp_path / "big.html").write_bytes(b"<html><body>" + b"<p>A paragraph of words.</p>" * 1_900_000)
    (tmp_path / "good.html").write_bytes(b"<html><body><p>A paragraph of words.</p></body></html>")
    records, drops = measured(tmp_path, tmp_path / "big.html", tmp_path / "good.html", limit_mb=150)
    assert (records, drops) == (1, {"too-large": 1})
