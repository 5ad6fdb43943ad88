"""The text of documents: HTML by its main content (resiliparse), PDF (pdfium), DOCX and EPUB from their zip and XML."""

from __future__ import annotations

import io
import posixpath
import re
import urllib.parse
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from ladderlm.data import xml
from ladderlm.data.archives import Blob, Guarded, Refused, open_zip, seekable
from ladderlm.data.pdf import MAX_TEXT
from ladderlm.data.pdf import read as read_pdf
from ladderlm.errors import MissingExtra

MAX_HTML = 16 << 20  # bytes; the tree of a page takes about 15 times its bytes
MAX_LEVELS = 512  # how deep elements may nest, as in browsers
_CREATIVE = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/(\d\.\d))?", re.I)


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text and what it says of itself; `licence` is "" where it says nothing."""

    text: str
    licence: str = ""
    meta: dict[str, str] = field(default_factory=dict)


# --- HTML ---------------------------------------------------------------------------------------------------------


def html(data: bytes, *, main: bool = True) -> Document:
    """The main content of a page, or with main=False all its text. Raises Refused (too-large, too-deep, no-text)."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise MissingExtra("resiliparse", "data") from None
    if len(data) > MAX_HTML:
        raise Refused("too-large", f"a page of more than {MAX_HTML >> 20} MB")
    if b"\0" in data[:1024] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise Refused("binary")
    tree = HTMLTree.parse(bytes_to_str(data, detect_encoding(data, from_html_meta=True) or "utf-8"))
    if tree.body is None:
        raise Refused("no-text")
    if _may_be_deep(data) and _deep(tree.document):
        raise Refused("too-deep", f"elements nested more than {MAX_LEVELS} deep")
    text = extract_plain_text(tree, main_content=main, alt_texts=False, preserve_formatting=True)
    if not text.strip():
        raise Refused("no-text")
    meta = {"title": title} if (title := " ".join((tree.title or "").split())) else {}
    return Document(text.strip() + "\n", _stated(tree), meta)


def _may_be_deep(data: bytes) -> bool:
    """Whether opening tags ever exceed closing ones by MAX_LEVELS: never less than the true depth, and cheap."""
    raw = np.frombuffer(data + b" ", np.uint8)
    after = raw[np.flatnonzero(raw[:-1] == ord("<")) + 1]
    letter = ((after | 32) >= ord("a")) & ((after | 32) <= ord("z"))
    level = np.cumsum(letter.astype(np.int32) - (after == ord("/")))
    return bool(level.size) and int((level - np.minimum.accumulate(np.minimum(level, 0))).max()) > MAX_LEVELS


def _deep(node: Any) -> bool:
    level = 0
    while node is not None:
        if (child := node.first_child) is not None:
            node, level = child, level + 1
            if level > MAX_LEVELS:
                return True
            continue
        while node is not None and node.next is None:
            node, level = node.parent, level - 1
        node = node.next if node is not None else None
    return False


def _stated(tree: Any) -> str:
    """The SPDX name of the Creative Commons licence that the page links as its own."""
    link = tree.document.query_selector("link[rel~=license], a[rel~=license]")
    return creative_commons(link.getattr("href") or "") if link is not None else ""


def creative_commons(address: str) -> str:
    """ "https://creativecommons.org/licenses/by-sa/4.0/" -> "CC-BY-SA-4.0"; "" for any other address."""
    found = _CREATIVE.search(address)
    if not found:
        return ""
    group, name, version = found[1].lower(), found[2].upper(), found[3]
    if group == "publicdomain":
        return "CC0-1.0" if name == "ZERO" else "public-domain"
    return f"CC-{name}-{version}" if version else f"CC-{name}"


# --- PDF ----------------------------------------------------------------------------------------------------------


def pdf(blob: Blob) -> Document:
    """The text of all pages. Raises Refused (not-a-pdf, encrypted, no-text, too-large, too-slow, broken-pdf)."""
    found = read_pdf(blob)
    if not found["text"]:
        raise Refused("no-text", "pictures of pages, or empty")
    return Document(found["text"] + "\n", "", {"title": found["title"]} if found["title"] else {})


# --- DOCX ---------------------------------------------------------------------------------------------------------


def docx(blob: Blob) -> Document:
    """The paragraphs of a Word document; a table row is a line. Raises Refused (broken-document, xml-entities ...)."""
    with seekable(blob) as (file, size):
        archive = open_zip(file, size)
        with _part(archive, "word/document.xml") as part:
            text = "".join(_paragraphs(part)).strip()
        title = _properties(archive)
    if not text:
        raise Refused("no-text")
    return Document(text + "\n", "", {"title": title} if title else {})


def _part(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        info = archive.getinfo(name)
        if info.flag_bits & 1:
            raise Refused("encrypted")
        return io.BufferedReader(Guarded(archive.open(info), lambda: max(info.compress_size, 1)))
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Refused("broken-document", f"no {name}: {error}"[:200]) from None


def _paragraphs(file: IO[bytes]) -> Iterator[str]:
    inside, cells, skipped, length = False, 0, 0, 0
    for kind, name, _ in xml.events(file):
        if name == "Fallback" and kind != "text":  # the same content again, for older readers
            skipped += 1 if kind == "start" else -1
        elif skipped:
            continue
        elif kind == "text":
            if inside:
                if (length := length + len(name)) > MAX_TEXT:
                    raise Refused("too-large")
                yield name
        elif kind == "start":
            inside = name == "t"
            cells += name == "tc"
            if name in ("tab", "br", "cr"):
                yield "\t" if name == "tab" else "\n"
        else:
            inside = False
            cells -= name == "tc"
            if name == "p":
                yield " " if cells else "\n\n"
            elif name in ("tc", "tr") and cells == 0:
                yield "\t" if name == "tc" else "\n"


def _properties(archive: zipfile.ZipFile) -> str:
    if "docProps/core.xml" not in archive.namelist():
        return ""
    title, inside = "", False
    with _part(archive, "docProps/core.xml") as part:
        for kind, name, _ in xml.events(part):
            inside = (kind == "start" and name == "title") or (inside and kind == "text")
            title += name if inside and kind == "text" else ""
    return " ".join(title[:500].split())


# --- EPUB ---------------------------------------------------------------------------------------------------------


def epub(blob: Blob) -> Document:
    """The chapters of a book in reading order. Raises Refused (broken-document, encrypted, no-text ...)."""
    with seekable(blob) as (file, size):
        archive = open_zip(file, size)
        with _part(archive, "META-INF/container.xml") as part:
            roots = [n.attributes.get("full-path", "") for n in xml.events(part) if n.kind == "start"
                     and n.name == "rootfile"]  # fmt: skip
        if not roots:
            raise Refused("broken-document", "no package file is named")
        chapters, meta = _package(archive, roots[0])
        texts, length = [], 0
        for name in chapters:
            with _part(archive, name) as part:
                try:
                    texts.append(html(Blob(name, part).read(MAX_HTML), main=False).text)
                except Refused as error:
                    if error.rule != "no-text":  # a cover is a picture
                        raise
                    continue
            if (length := length + len(texts[-1])) > MAX_TEXT:
                raise Refused("too-large")
    if not texts:
        raise Refused("no-text")
    rights = meta.pop("rights", "")
    licence = creative_commons(rights) or ("public-domain" if "public domain" in rights.lower() else "")
    return Document("\n\n".join(texts), licence, meta)


def _package(archive: zipfile.ZipFile, root: str) -> tuple[list[str], dict[str, str]]:
    """(names of the chapters in order, title, author and rights)."""
    items: dict[str, str] = {}
    spine: list[str] = []
    meta: dict[str, str] = {}
    inside = ""
    with _part(archive, root) as part:
        for kind, name, attributes in xml.events(part):
            if kind == "text":
                if inside and len(meta.get(inside, "")) < 1000:
                    meta[inside] = " ".join((meta.get(inside, "") + " " + name).split())
                continue
            inside = (
                {"title": "title", "creator": "author", "rights": "rights"}.get(name, "") if kind == "start" else ""
            )
            if kind == "start" and name == "item":
                items[attributes.get("id", "")] = attributes.get("href", "")
            elif kind == "start" and name == "itemref":
                spine.append(attributes.get("idref", ""))
    base = posixpath.dirname(root)
    paths = (urllib.parse.unquote(items[i].partition("#")[0]) for i in spine if items.get(i))
    return [posixpath.normpath(posixpath.join(base, p)) for p in paths], meta
