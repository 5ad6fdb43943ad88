"""The page of a dataset: whole, escaped, and nothing fetched; stats of a stream."""

import json
import re

from ladderlm.cli.main import main
from ladderlm.data import stats as module
from ladderlm.data.page import render_page
from ladderlm.data.records import make_record
from ladderlm.data.stats import stats


def rows():
    for i in range(40):
        licence, language = "<b>NC</b>" if i % 2 else "cc-by-nc-4.0", "de" if i % 4 else "en"
        fields, source = {"text": "word " * (i % 20 + 1)}, f"https://www.site{i % 3}.org/{i}"
        yield make_record("text", fields, source=source, licence=licence, language=language)


def test_stats_of_a_stream():
    found = stats(rows())
    assert (found.records, found.repeated) == (40, 20)
    assert dict(found.domains) == {"site0.org": 14, "site1.org": 13, "site2.org": 13}
    assert dict(found.languages) == {"de": 30, "en": 10}
    assert found.lengths == (2, 2, 4, 8, 16, 8)  # 1; 2; 3-4; 5-8; 9-16; 17-20
    assert sum(stats(rows(), language=lambda text: "xx").languages.values()) == 40


def test_names_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_NAMES", 5)
    found = stats(make_record("text", {"text": str(i)}, source=f"s{i}") for i in range(30))
    assert found.sources[module.OTHER] == 25
    assert len(found.sources) == 6


def test_an_empty_stream():
    assert stats(iter(())).records == 0
    assert "<h1>x</h1>" in render_page("x", stats(iter(())))


def test_the_page_is_escaped_and_whole():
    page = render_page("<script>alert(1)</script>", stats(rows()))
    assert "<script" not in page
    assert "<b>NC" not in page
    assert not re.search(r"(?:src|href)=|url\(|@import", page)
    assert "non-commercial use only" in page
    assert "prefers-color-scheme:dark" in page


def test_the_verb(tmp_path, capsys):
    file, page = tmp_path / "a.jsonl", tmp_path / "a.html"
    file.write_text(json.dumps({"text": "a b c"}) + "\nbroken\n")
    assert main(["data", "stats", str(file)]) == 1
    assert main(["data", "stats", str(file), "--skip-bad", "--page", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(file)]["words"] == 3
    assert page.read_text().startswith("<!doctype html>")
    file.write_text("")
    assert main(["data", "stats", str(file)]) == 1


def test_a_record_without_words():
    assert stats([make_record("text", {"text": ""}, source="s")]).lengths == (1,)
