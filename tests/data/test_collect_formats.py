"""What collect reads: each kind of file made here byte by byte, its text, source and licence, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from ladderlm.data import collect_formats
from ladderlm.data.archives import Blob
from ladderlm.data.collect import gather, run_collect
from ladderlm.data.stages import Dropped
from ladderlm.errors import FormatError

PAGE = (
    "<!DOCTYPE html><html><head><title>A  title</title></head><body><nav><a href=/>Home</a> <a href=/x>Menu</a></nav>"
    "<article><h1>Heading</h1>"
    + "<p>A paragraph of the article with enough words to count as its content.</p>"
    * 8
    + "<a rel=license href='https://creativecommons.org/licenses/by-sa/4.0/'>CC</a></article>"
    "<footer>Imprint</footer></body></html>"
)


def run(tmp_path: Path, *sources, **settings):
    """(records by source, drops by source) of gather()."""
    items = list(gather(*sources, state=tmp_path / "state", **settings))
    records = {i.source: i for i in items if not isinstance(i, Dropped)}
    return records, {i.record.source: i.rule for i in items if isinstance(i, Dropped)}


def make_zip(files: dict[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def make_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_docx(body: str, title: str = "") -> bytes:
    ns = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    files = {"word/document.xml": f'<?xml version="1.0"?><w:document {ns}><w:body>{body}</w:body></w:document>'}
    if title:
        core = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'
        files["docProps/core.xml"] = f"<coreProperties {core}><dc:title>{title}</dc:title></coreProperties>"
    return make_zip(files)


def make_epub() -> bytes:
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        "<dc:title>The Book</dc:title><dc:creator>Ann Author</dc:creator>"
        "<dc:rights>https://creativecommons.org/licenses/by/4.0/</dc:rights></metadata><manifest>"
        '<item id="b" href="two%20b.xhtml"/><item id="a" href="one.xhtml"/></manifest>'
        '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>'
    )
    container = '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
    chapter = "<html xmlns='http://www.w3.org/1999/xhtml'><body><h1>{0}</h1><p>Text of {0}.</p></body></html>"
    return make_zip({"mimetype": "application/epub+zip", "META-INF/container.xml": container,
                     "OPS/book.opf": package, "OPS/two b.xhtml": chapter.format("Second"),
                     "OPS/one.xhtml": chapter.format("First")})  # fmt: skip


def make_pdf(text: str) -> bytes:
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>", b"<</Title(Minutes)>>",
    ]  # fmt: skip
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    end = b"trailer<</Size %d/Root 1 0 R/Info 6 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(out))
    return out + head + table + end


WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="de"><siteinfo><dbname>dewiki</dbname>
<base>https://de.wikipedia.org/wiki/Hauptseite</base><namespaces><namespace key="0" />
<namespace key="6">Datei</namespace></namespaces></siteinfo>
<page><title>Ein Ort</title><ns>0</ns><revision><contributor><text>no</text></contributor>
<text>[[Datei:Bild.jpg|mini|Ein [[Bild]]]]'''Ein Ort''' &amp;mdash; liegt am [[Fluss|gro&#223;en Fluss]].</text>
</revision></page><page><title>Alt</title><ns>0</ns><redirect title="Ein Ort"/><revision>
<text>#REDIRECT [[Ein Ort]]</text>
</revision></page>
<page><title>Diskussion:Ein Ort</title><ns>1</ns><revision><text>Hm.</text></revision></page></mediawiki>"""


def test_documents(tmp_path):
    pytest.importorskip("resiliparse")
    pytest.importorskip("pypdfium2")
    (tmp_path / "page.html").write_text(PAGE)
    (tmp_path / "book.epub").write_bytes(make_epub())
    (tmp_path / "minutes.pdf").write_bytes(make_pdf("Minutes of the meeting"))
    body = (
        "<w:p><w:r><w:t>One </w:t></w:r><w:r><w:t>paragraph.</w:t></w:r></w:p><w:p><w:del><w:delText>gone</w:delText>"
        "</w:del><w:r><w:t>Two</w:t><w:tab/><w:t>tabs</w:t></w:r></w:p><w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r>"
        "</w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
    )
    (tmp_path / "letter.docx").write_bytes(make_docx(body, "A letter"))
    records, drops = run(tmp_path, tmp_path)
    assert drops == {}
    page = records["page.html"]
    assert page["text"].startswith("Heading\n")
    assert not {"Menu", "Imprint"} & set(page["text"].split())
    assert (page.licence, page.meta["title"]) == ("CC-BY-SA-4.0", "A title")
    book = records["book.epub"]
    assert book["text"].index("Text of First.") < book["text"].index("Text of Second.")
    assert (book.licence, book.meta) == ("CC-BY-4.0", {"title": "The Book", "author": "Ann Author"})
    assert records["minutes.pdf"]["text"] == "Minutes of the meeting\n"
    assert records["minutes.pdf"].meta == {"title": "Minutes"}
    lines = [line.rstrip() for line in records["letter.docx"]["text"].splitlines()]
    assert lines == ["One paragraph.", "", "Two\ttabs", "", "a \tb"]
    assert records["letter.docx"].meta == {"title": "A letter"}


def test_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "One.", "source": "mine", "licence": "MIT"})
        + '\n{"text": "Two."}\n{broken\n\n[1]\n{"prompt": "p", "completion": "c"}\n'
    )
    (tmp_path / "b.csv").write_text('title;text\nT;"Two\nlines"\nU;Three.\n')
    (tmp_path / "c.tsv").write_text("body\tn\nFour.\t1\n")
    records, drops = run(tmp_path, tmp_path, licence="CC0-1.0")
    assert {(r["text"], s, r.licence) for s, r in records.items()} == {
        ("One.", "mine", "MIT"), ("Two.", "a.jsonl", "CC0-1.0"), ("Three.", "b.csv", "CC0-1.0"),
    }  # fmt: skip
    assert drops == {"a.jsonl:3": "broken-json", "a.jsonl:5": "not-a-record", "a.jsonl": "not-text",
                     "c.tsv": "no-text-column"}  # fmt: skip
    records, drops = run(tmp_path, tmp_path / "c.tsv", text_field="body")
    assert records["c.tsv"]["text"] == "Four."
    (tmp_path / "d.json").write_text('[{"body": "Five."}, {"body": 6}]')
    records, drops = run(tmp_path, tmp_path / "d.json", text_field="body")
    assert records["d.json"]["text"] == "Five."
    assert drops == {"d.json:2": "not-a-record"}


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"text": [f"Row {i}." for i in range(200)], "title": ["T"] * 200, "vector": [[0.5]] * 200}
    parquet.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=50)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    items = list(gather(tmp_path, state=tmp_path / "state"))
    texts = [i for i in items if not isinstance(i, Dropped)]
    assert [r["text"] for r in texts] == rows["text"]
    assert texts[0].meta == {"title": "T"}
    assert [(i.record.source, i.rule) for i in items if isinstance(i, Dropped)] == [("b.parquet", "broken-parquet")]
    (tmp_path / "a.zip").write_bytes(make_zip({"in/a.parquet": (tmp_path / "a.parquet").read_bytes()}))
    records, _ = run(tmp_path, tmp_path / "a.zip")
    assert set(records) == {"a.zip/in/a.parquet"}


def test_archives_name_their_members_and_learn_their_licences(tmp_path):
    mit = b"MIT License\n\nPermission is hereby granted, free of charge, to any person"
    files = {"pkg/LICENSE": mit, "pkg/src/a.py": b"x = 1\n", "pkg/src/.hidden.py": b"y", "pkg/pic.png": b"\x89PNG",
             "pkg/b.c": b"/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */\n"}  # fmt: skip
    (tmp_path / "t.tar.gz").write_bytes(make_tar(files, "w:gz"))
    (tmp_path / "z.zip").write_bytes(
        make_zip({"in.tar": make_tar({"deep.txt": b"Deep.\n"}), "c.txt.gz": gzip.compress(b"C.\n")})
    )
    (tmp_path / "s.txt.bz2").write_bytes(bz2.compress(b"Packed.\n"))
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "LICENSE.txt").write_text("Apache License\n   Version 2.0, January 2004\n")
    (tmp_path / "tree" / "sub" / "x.rs").write_text("fn main() {}\n")
    records, drops = run(tmp_path, tmp_path)
    assert {s: r.licence for s, r in records.items()} == {
        "t.tar.gz/pkg/src/a.py": "MIT", "t.tar.gz/pkg/b.c": "GPL-2.0-only WITH Linux-syscall-note",
        "z.zip/in.tar/deep.txt": "unknown", "z.zip/c.txt.gz": "unknown", "s.txt.bz2": "unknown",
        "tree/sub/x.rs": "Apache-2.0",
    }  # fmt: skip
    assert records["tree/sub/x.rs"].meta == {"language": "rust"}
    assert drops == {"t.tar.gz/pkg/pic.png": "unknown-type"}


def test_zstandard(tmp_path):
    zstd = pytest.importorskip("backports.zstd")
    (tmp_path / "a.jsonl.zst").write_bytes(zstd.compress(b'{"text": "One."}\n'))
    (tmp_path / "b.tar.zst").write_bytes(zstd.compress(make_tar({"x/b.txt": b"Two.\n"})))
    records, drops = run(tmp_path, tmp_path)
    assert ([r["text"] for r in records.values()], drops) == (["One.", "Two.\n"], {})


def test_a_wikipedia_dump(tmp_path):
    (tmp_path / "dewiki-pages-articles.xml.bz2").write_bytes(bz2.compress(WIKI.encode()))
    (tmp_path / "other.xml").write_text("<rss><item/></rss>")
    records, drops = run(tmp_path, tmp_path)
    assert list(records) == ["dewiki/Ein Ort"]
    article = records["dewiki/Ein Ort"]
    assert article["text"] == "Ein Ort\n\nEin Ort — liegt am großen Fluss.\n"
    assert (article.licence, article.meta["url"]) == ("CC-BY-SA-4.0", "https://de.wikipedia.org/wiki/Ein_Ort")
    assert drops == {
        "dewiki/Alt": "redirect",
        "dewiki/Diskussion:Ein Ort": "not-an-article",
        "other.xml": "unknown-type",
    }


def warc(*records: tuple[str, str, str, bytes]) -> bytes:
    out = b""
    for kind, url, content_type, body in records:
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:uuid:{len(out)}>\r\n"
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        out += head.encode() + body + b"\r\n\r\n"
    return out


@pytest.mark.parametrize("packed", [False, True])
def test_web_archives(tmp_path, packed):
    pytest.importorskip("fastwarc")
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE.encode()
    gone = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\nno"
    image = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG"
    kind = "application/http; msgtype=response"
    data = warc(("response", "https://e.org/a", kind, page), ("response", "https://e.org/b", kind, gone),
                ("response", "https://e.org/c", kind, image),
                ("request", "https://e.org/a", kind, b"GET / HTTP/1.1\r\n"),
                ("conversion", "https://e.org/d", "text/plain", b"Plain text.\n"))  # fmt: skip
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(gzip.compress(data) if packed else data)
    records, drops = run(tmp_path, path)
    assert set(records) == {"https://e.org/a", "https://e.org/d"}
    assert records["https://e.org/a"].meta == {"url": "https://e.org/a", "title": "A title"}
    assert drops == {"https://e.org/b": "http-status", "https://e.org/c": "unknown-type"}


def test_long_texts_are_cut_at_paragraphs(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_formats, "WHOLE", 4000)
    monkeypatch.setattr(collect_formats, "PIECE", 500)
    text = "".join(f"Paragraph {i}. {'word ' * 20}\n\n" for i in range(100)) + "x" * 9000 + "\nThe end.\n"
    (tmp_path / "long.txt").write_text(text)
    pieces = list(gather(tmp_path / "long.txt", state=tmp_path))
    texts = [p["text"] for p in pieces if not isinstance(p, Dropped)]
    assert [p.rule for p in pieces if isinstance(p, Dropped)] == ["line-too-long"]
    assert all(t.startswith("Paragraph") and t.endswith("\n\n") for t in texts[:-1])
    assert len(texts) > 15
    assert "".join(texts[:-1]) + texts[-1] == text.replace("x" * 9000 + "\n", "")


def test_the_stage_reports_and_is_not_done_twice(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("One.\n")
    (tmp_path / "in" / "b.txt").write_text("One.\n")
    (tmp_path / "in" / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    out, left = tmp_path / "out.jsonl", tmp_path / "left.jsonl"
    report = run_collect([tmp_path / "in"], out, dropped=left)
    assert (report.records_in, report.records_out, report.dropped) == (3, 1, {"duplicate": 1, "not-utf-8": 1})
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["output"] == report.output
    lines = [json.loads(line) for line in left.read_text().splitlines()]
    assert {(r["source"], r["meta"]["rule"]) for r in lines} == {("b.txt", "duplicate"), ("bad.txt", "not-utf-8")}
    assert run_collect([tmp_path / "in"], out, dropped=left).skipped
    (tmp_path / "in" / "c.txt").write_text("Two.\n")
    assert not run_collect([tmp_path / "in"], out, dropped=left).skipped
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2" / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(FormatError, match="no text found; left out: not-utf-8 1"):
        run_collect([tmp_path / "in2"], tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_stream_needs_no_file():
    items = list(collect_formats.read(Blob("x/a.md", io.BytesIO(b"# Hi\n")), collect_formats.How()))
    assert [i["text"] for i in items] == ["# Hi\n"]
