"""Collecting text, and the corpus that every machine has."""

import ast
import json

import pytest

from ladderlm import events
from ladderlm.data.collect import collect, dedup, python_corpus, python_modules, readable
from ladderlm.data.records import make_record
from ladderlm.errors import FormatError, NotFound


def test_collect_a_folder(tmp_path):
    (tmp_path / "b.md").write_text("# Two\n")
    (tmp_path / "a.txt").write_text("One.\n")
    (tmp_path / "copy.txt").write_text("One.\n")
    (tmp_path / "code.py").write_text("# SPDX-License-Identifier: MIT\nx = 1\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.txt").write_text("secret")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.jsonl").write_text(json.dumps({"text": "Three.", "licence": "CC0-1.0"}) + "\n")
    seen = []
    with events.listening(seen.append):
        records = collect(tmp_path, licence="unknown")
    assert [(r.source, r.licence) for r in records] == [
        ("a.txt", "unknown"), ("b.md", "unknown"), ("code.py", "MIT"), ("deep/d.jsonl", "CC0-1.0"),
    ]  # fmt: skip
    assert seen[-1].data == {"texts": 4, "duplicates": 1, "bad": 2}


def test_collect_globs_and_refusals(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n")
    assert [r["text"] for r in collect(tmp_path / "*.txt")] == ["One.\n"]
    with pytest.raises(NotFound):
        collect(tmp_path / "*.md")
    (tmp_path / "none").mkdir()
    with pytest.raises(FormatError, match="no text found"):
        collect(tmp_path / "none")


def test_dedup_keeps_the_first():
    records = [make_record("text", {"text": t}, source=s) for t, s in (("a", "1"), ("b", "2"), ("a", "3"))]
    assert [r.source for r in dedup(records)] == ["1", "2"]


def test_python_modules_are_the_library_without_its_tests():
    names = [name for name, _ in python_modules()]
    assert names == sorted(names, key=lambda n: names.index(n))
    assert {"json.decoder", "os", "argparse", "email"} <= set(names)
    assert not [n for n in names if {"test", "tests", "idle_test", "lib2to3"} & set(n.split("."))]
    assert not [n for n in names if "site-packages" in n]


def test_python_corpus_is_the_same_every_time():
    records = python_corpus()
    assert [r.id for r in records] == [r.id for r in python_corpus()]
    assert sum(len(r["text"]) for r in records) > 5_000_000
    assert {r.licence for r in records} == {"PSF-2.0"}
    assert len({r["text"] for r in records}) == len(records)


def test_python_docs_are_text():
    docs = {r.source: r["text"] for r in python_corpus("docs")}
    assert sum(map(len, docs.values())) > 1_500_000
    page = docs["python/textwrap"]
    assert page.startswith("# textwrap\n\nText wrapping and filling.")
    assert "## dedent(text)\n\nRemove any common leading whitespace" in page


def test_readable_knows_comments_from_strings():
    lines = [
        '"""Module."""',
        "# This comment tells the reader something true.",
        "# ---------",
        'x = """',
        "# Not a comment but a part of one string.",
        '"""',
        "# x = f(a, b, c, d, e, f, [",
        "def f(self, a, *, b):",
        '    """Do."""',
    ]
    source = "\n".join(lines)
    ast.parse(source)
    text = readable("m", source)
    assert text == "# m\n\nModule.\n\nThis comment tells the reader something true.\n\n## f(a, b)\n\nDo.\n"
    assert readable("m", "def (") == ""


def test_a_machine_without_sources(tmp_path):
    with pytest.raises(NotFound, match="not on this machine"):
        python_corpus(root=tmp_path)
