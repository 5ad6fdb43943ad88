"""The grammar of docstrings."""

import pytest

from ladderlm.data.docstrings import Documented, about, documented, first_sentence, third_person


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of both numbers.\n\nMore.", "Return the sum of both numbers."),
        ("Return the sum\n    of two given numbers. It is exact.", "Return the sum of two given numbers."),
        ("Return some words, e.g. Hello, as one text.", "Return some words, e.g. Hello, as one text."),
        ("Call :func:`os.walk` on each of ``paths``.", "Call `os.walk` on each of `paths`."),
        ("Too short.", ""),
        ("no capital letter at the beginning of it.", ""),
        ("No full stop at the end of it", ""),
        ("S.join(x) -> the string that is joined.", ""),
        ("An unbalanced (bracket in this sentence.", ""),
        ("Internal: this is not for anyone to see.", ""),
        ("", ""),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("verb", "form"),
    [("return", "returns"), ("push", "pushes"), ("try", "tries"), ("play", "plays"), ("do", "does"), ("pass", "passes"),
     ("fix", "fixes"), ("match", "matches"), ("parse", "parses")],
)  # fmt: skip
def test_third_person(verb, form):
    assert third_person(verb) == form


@pytest.mark.parametrize(
    ("kind", "sentence", "full"),
    [
        ("function", "Join two or more paths.", "`m.f` joins two or more paths."),
        ("function", "Returns the largest of them.", "`m.f` returns the largest of them."),
        ("function", "Read a line and return it as text.", "`m.f` reads a line and returns it as text."),
        ("function", "Flush and close the stream.", "`m.f` flushes and closes the stream."),
        ("function", "Return True, otherwise return False.", "`m.f` returns True, otherwise returns False."),
        ("function", "Check for read and write access.", None),
        ("function", "Called when a line is empty.", "`m.f` is called when a line is empty."),
        ("function", "Whether the file is open now.", None),
        ("class", "A class that represents a thread.", "`m.f` is a class that represents a thread."),
        ("class", "An instance of this class represents a file.", None),
        ("class", "Base class for all the handlers.", "`m.f` is the base class for all the handlers."),
    ],
)  # fmt: skip
def test_about_names_the_thing(kind, sentence, full):
    assert about(Documented("m", "f", kind, (), sentence)) == full


def test_the_library_has_thousands():
    items = documented()
    assert len(items) > 3000
    assert len({d.sentence for d in items}) == len(items)
    assert len({d.path for d in items}) == len(items)
    by_path = {d.path: d for d in items}
    assert by_path["shutil.copyfile"].kind == "function"
    assert by_path["threading.Thread"].kind == "class"
    assert about(by_path["threading.Thread"]) == "`threading.Thread` is a class that represents a thread of control."
    assert by_path["textwrap.dedent"].signature == "textwrap.dedent(text)"
