"""Wikitext as plain text, and time that stays linear in hostile markup."""

import time

import pytest

from ladderlm.data.wikitext import plain


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("A [[city|town]] on the [[river]], [[Sea#Depth]].", "A town on the river, Sea."),
        ("x[[File:A.jpg|thumb|A [[big]] picture]]y[[Category:Cities]]", "xy"),
        ("[[fr:Ville]]Text [[:Category:Cities]]", "Text Category:Cities"),
        ("See [https://e.org the page] and [https://e.org].", "See the page and ."),
        ("One<ref name=a>Book, {{p|3}}</ref> two<ref name=a/> three<!-- no [[link]] -->.", "One two three."),
        ("{{Infobox|a={{b|c}}}}Text {{lang|fr|mot}}, {{convert|5|km|mi}}, {{unknown|x}}.", "Text mot, 5 km, ."),
        ("Berlin ({{IPA|x}}; {{lang-de|Berlin}}) is", "Berlin (Berlin) is"),
        ("Paris ({{IPA|x}}) is", "Paris is"),
        ("a\n{| class=x\n|-\n| [[b]] || c {{d}}\n|}\nz", "a\n\nz"),
        ("* one\n## two\n: said\n;term", "- one\n- two\nsaid\nterm"),
        ("Intro.\n\n== A ==\n=== B ===\nText.\n== Empty ==\n== References ==\n* x", "Intro.\n\nA\n\nB\n\nText."),
        ("1 &lt; 2&nbsp;m<br/>next <span style='x'>word</span> __NOTOC__", "1 < 2 m\nnext word"),
        ("open {{never closed and [[neither", "open never closed and neither"),
        ("stray }} and ]] end", "stray  and  end"),
    ],
)
def test_markup(markup, text):
    assert plain(markup) == text


@pytest.mark.parametrize(
    "piece", ["{{", "[[", "<ref>", "<!--", "}}", "{{a|", "[[a|", "[http://x ", "<b ", "''", "(", "=", "\n=a"]
)
def test_hostile_markup_takes_linear_time(piece):
    start = time.process_time()
    plain(piece * (400_000 // len(piece)))
    assert time.process_time() - start < 4
