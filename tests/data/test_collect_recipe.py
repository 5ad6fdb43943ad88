"""The recipe book-wiki-python, from files to one mixture."""

import html
import json

import pytest

from ladderlm.cli.main import main
from ladderlm.data.collect import python_corpus


def test_book_wiki_python(tmp_path, capsys):
    books, code = tmp_path / "books", tmp_path / "code"
    books.mkdir()
    code.mkdir()
    prose = {r.source: r["text"] for r in python_corpus("docs")}
    for i, name in enumerate(("python/argparse", "python/logging", "python/threading", "python/os")):
        (books / f"{i}.txt").write_text(prose[name], encoding="utf-8")
        (code / f"m{i}.py").write_text(f"def function_{i}():\n    return {i}\n")
    article = html.escape(prose["python/subprocess"])
    dump = f"<mediawiki><page><title>T</title><ns>0</ns><revision><text>{article}</text></revision></page></mediawiki>"
    (tmp_path / "wiki.xml").write_text(dump)
    out = tmp_path / "corpus.jsonl"
    argv = ["data", "recipe", "book-wiki-python", "--books", str(books), "--wiki", str(tmp_path / "wiki.xml")]
    argv += ["--python", str(code), "-o", str(out), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    sources = {json.loads(line)["source"].partition("/")[0] for line in out.read_text().splitlines()}
    assert sources & {"0.txt", "1.txt", "2.txt", "3.txt"}
    assert sources & {"wiki.xml"}
    assert len(report["details"]["parts"]) == 3
    stages = {before["stage"] for before in report["lineage"]}
    assert stages == {"dedup"}
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["skipped"]


@pytest.mark.parametrize("argv", [["--weights", "1,1"], []])
def test_wrong_uses_of_the_recipe(tmp_path, argv):
    assert main(["data", "recipe", "book-wiki-python", "-o", str(tmp_path / "x.jsonl"), *argv]) == 2
