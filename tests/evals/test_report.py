"""Reports: safe, whole, and readable as Markdown and as HTML."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladderlm.evals.curve import Curve, ticks, to_svg
from ladderlm.evals.report import Report, cell


def sample() -> Report:
    report = Report("A <run>", "It **helped**: `x` & <script>alert(1)</script>")
    report.section("Loss").curve("Loss & more", {"train <1>": [(0, 3.0), (10, 1.0)], "held out": [(0, 3.1), (10, 1.3)]})
    report.section("Scores").table(["metric", "value"], [["acc|uracy", 0.51234], ["n", 12345]], "Caption.")
    return report.samples(["prompt", "before", "after"], [["Hi <b>", "line 1\nline 2", "a|b"]]).text("- one\n- two")


def test_files(tmp_path):
    path = sample().write(tmp_path / "r")
    assert path.name == "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["loss-more.svg", "report.html", "report.md"]
    sample().write(tmp_path / "r")  # again, over the old one


def test_html_is_escaped_self_contained_and_without_scripts():
    page = sample().to_html()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<strong>helped</strong>" in page
    assert "<li>one</li><li>two</li>" in page
    assert "line 1\nline 2" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r'(src|href)="http', page)
    assert "A &lt;run&gt;" in page


def test_markdown():
    text = sample().to_markdown()
    assert text.startswith("# A <run>\n")
    assert "| acc\\|uracy | 0.512 |" in text
    assert "| n | 12,345 |" in text
    assert "| `Hi &lt;b&gt;` | line 1<br>line 2 | a\\|b |" in text
    assert "![Loss & more](loss-more.svg)" in text


def test_links_go_nowhere_unsafe():
    page = Report("t", '[a](javascript:alert(1)) [b](https://example.org/x) [c]("onclick=x)').to_html()
    assert "javascript:alert(1)" in page
    assert 'href="javascript' not in page
    assert '<a href="https://example.org/x">b</a>' in page
    assert 'onclick=x"' not in page


@given(st.dictionaries(st.text(max_size=8), st.lists(st.tuples(st.floats(), st.floats()), max_size=6), max_size=3))
def test_any_curve_is_valid_svg(lines):
    finite = {n: [(x, y) for x, y in p if abs(x) < 1e100 and abs(y) < 1e100] for n, p in lines.items()}
    names = {re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", n): p for n, p in finite.items()}
    root = ET.fromstring(to_svg(Curve("c", names)))
    assert root.tag.endswith("svg")


def test_points_that_are_not_numbers_break_the_line():
    svg = to_svg(Curve("c", {"a": [(0, 1.0), (1, math.nan), (2, 1.5), (3, 2.0)]}))
    (path,) = [p for p in re.findall(r'class="line s0" d="([^"]+)"', svg) if "L" in p]
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_long_lines_are_thinned_and_keep_their_end():
    svg = to_svg(Curve("c", {"a": [(i, float(i)) for i in range(50_000)]}))
    assert len(svg) < 40_000


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(0, 10, [0, 2, 4, 6, 8, 10]), (0.1, 0.42, [0.1, 0.2, 0.3, 0.4]), (3, 3, [3])]
)
def test_ticks(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (1234.5, "1,234"), (7, "7"), (True, "yes"), (None, "–"), (math.nan, "–"), ("x", "x")],
)
def test_cells(value, text):
    assert cell(value) == text
