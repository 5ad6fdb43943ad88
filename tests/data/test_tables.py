"""Files of rows in every format, with columns of any name; every row that is none is told with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ladderlm.data.marked import spans, tagged
from ladderlm.data.records import to_record
from ladderlm.data.tables import parse_columns, read_table, repeated
from ladderlm.errors import FormatError, NotFound, UsageError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_columns_of_other_names(tmp_path: Path) -> None:
    text = 'review;stars;id\n"good; really";1;a\nbad;0;b\ntoo;many;cells;here\n\nlast;1;c\n'
    table = read_table(write(tmp_path / "d.csv", text), {"text": "review", "label": "stars"})
    assert [(r.line, r.record["text"], r.record["label"]) for r in table.rows] == [
        (2, "good; really", "1"), (3, "bad", "0"), (6, "last", "1"),
    ]  # fmt: skip
    assert [(b.file, b.line) for b in table.bad] == [("d.csv", 4)]
    assert "4 cells in a table of 3 columns" in table.bad[0].reason
    with pytest.raises(FormatError, match=r"no column 'reviews'.*review"):
        read_table(tmp_path / "d.csv", {"text": "reviews", "label": "stars"})


def test_a_cell_may_hold_line_breaks_and_the_line_told_is_where_it_begins(tmp_path: Path) -> None:
    text = 'text,label\n"one\ntwo\nthree",a\nx\ny,b\n'
    table = read_table(write(tmp_path / "d.csv", text))
    assert [(r.line, r.record["text"]) for r in table.rows] == [(2, "one\ntwo\nthree"), (6, "y")]
    assert [b.line for b in table.bad] == [5]


def test_a_table_without_names_is_told_by_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tsv", 'it "is\t1\nno good\t0\n')
    table = read_table(path, parse_columns(["text=1,label=2"]))
    assert [(r.record["text"], r.record["label"]) for r in table.rows] == [('it "is', "1"), ("no good", "0")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow")
    from pyarrow import parquet

    rows = [{"en": "a house", "de": "ein Haus"}, {"en": None, "de": "x"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    table = read_table(tmp_path / "d.parquet", {"source": "en", "target": "de"})
    assert [r.record["target"] for r in table.rows] == ["ein Haus"]
    assert table.rows[0].record.source == "d.parquet"
    assert [b.line for b in table.bad] == [2]
    write(tmp_path / "e.parquet", "PAR1 not really")
    with pytest.raises(FormatError, match="not a whole Parquet file"):
        read_table(tmp_path / "e.parquet")
    with pytest.raises(NotFound):
        read_table(tmp_path / "none.parquet")


def test_conll(tmp_path: Path) -> None:
    text = "-DOCSTART- O\n\nEmpire B-location\nState I-location\n= O\n\nbroken\n\nBob\tx\tB-person\n"
    table = read_table(write(tmp_path / "d.conll", text))
    first, second = table.records
    assert first["text"] == "Empire State ="
    assert first["spans"] == [{"start": 0, "end": 12, "label": "location"}]
    assert second["spans"] == [{"start": 0, "end": 3, "label": "person"}]
    assert [(b.line, b.reason) for b in table.bad] == [(7, "a line without a tag")]


def test_squad_in_one_object_and_packed(tmp_path: Path) -> None:
    qas = [{"question": "Who?", "id": "1", "answers": [{"text": "Bob", "answer_start": 0}]}]
    whole = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "Bob ran.", "qas": qas}]}]}
    path = tmp_path / "d.json.gz"
    path.write_bytes(gzip.compress(json.dumps(whole, indent=1).encode()))
    (record,) = read_table(path).records
    assert record.kind == "qa"
    assert record["answers"] == [{"text": "Bob", "start": 0}]


@pytest.mark.parametrize(
    ("row", "kind", "fields"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}, "spans",
         {"text": "a b", "spans": [{"start": 2, "end": 3, "label": "x"}]}),
        ({"context": "Bob ran.", "question": "Who?", "answers": {"text": ["Bob"], "answer_start": [0]}}, "qa",
         {"context": "Bob ran.", "question": "Who?", "answers": [{"text": "Bob", "start": 0}]}),
        ({"context": "c", "question": "q", "answers": []}, "qa", {"context": "c", "question": "q", "answers": []}),
        ({"translation": {"en": "a", "de": "b"}}, "translation", {"source": "a", "target": "b"}),
        ({"source": ["One.", "Two."], "target": ["Both."]}, "translation", {"source": "One. Two.", "target": "Both."}),
        ({"article": "long", "highlights": "short"}, "translation", {"source": "long", "target": "short"}),
        ({"query": "q", "positive": "p"}, "triple", {"anchor": "q", "positive": "p", "negative": ""}),
    ],
)  # fmt: skip
def test_layouts(row: dict[str, Any], kind: str, fields: dict[str, Any]) -> None:
    record = to_record(row, "file", "")
    assert (record.kind, dict(record.fields), record.source) == (kind, fields, "file")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a"], "ner_tags": [3]}, "names, not numbers"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "one length"),
        ({"tokens": ["a"], "tags": ["Q-x"]}, "unknown tag"),
        ({"text": "abc", "spans": [{"start": 1, "end": 9, "label": "x"}]}, "from 1 to 9 in a text of 3"),
        ({"text": "abc", "spans": [{"start": 0, "end": 2, "label": "x"}, {"start": 1, "end": 3, "label": "y"}]},
         "lies over another"),
        ({"text": "abc", "spans": [{"start": 0, "end": 2}]}, "no label"),
        ({"context": "Bob", "question": "Who?", "answers": ["Eve"]}, "does not say"),
        ({"context": "Bob", "question": "Who?", "answers": {"text": ["Bob"], "answer_start": [1]}}, "at character 1"),
        ({"context": "Bob", "question": "Who?", "answers": 7}, "an answer must be"),
        ({"source": 3, "target": "x"}, "source must be text"),
    ],
)  # fmt: skip
def test_unsound_rows_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        to_record(row, "file", "")


def test_tags_that_do_not_begin() -> None:
    found = tagged(["a", "b", "c", "d"], ["I-x", "I-x", "I-y", "O"])
    assert found["spans"] == [{"start": 0, "end": 3, "label": "x"}, {"start": 4, "end": 5, "label": "y"}]
    assert spans(found["spans"], found["text"]) == found["spans"]


def test_column_mappings_are_checked() -> None:
    assert parse_columns(["text=review,label=stars", "id=n"]) == {"text": "review", "label": "stars", "id": "n"}
    for bad in ("text", "text=", "=x"):
        with pytest.raises(UsageError, match="not a column mapping"):
            parse_columns([bad])
    with pytest.raises(UsageError, match="mapped twice"):
        parse_columns(["text=a", "text=b"])


def test_every_line_of_a_broken_file_is_accounted_for(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "{", "[1]", "null", '{"x": 1}', '{"text": 3}', "", '{"text": "b"}']
    table = read_table(write(tmp_path / "d.jsonl", "\n".join(lines)))
    assert [r.line for r in table.rows] == [1, 8]
    assert [b.line for b in table.bad] == [2, 3, 4, 5, 6]
    assert repeated([*table.records, *table.records]) == 2


@pytest.mark.parametrize(
    ("name", "columns", "kind", "least", "bad"),
    [
        ("eval/sst2-dev.tsv", {"text": "1", "label": "2"}, "class", 872, 0),
        ("eval/wnut17/emerging.dev.conll", {}, "spans", 1000, 0),
        ("eval/xquad.en.json", {}, "qa", 1190, 0),
        ("eval/scitldr-A-dev.jsonl.gz", {}, "translation", 619, 0),
        ("instruct/alpaca-en-demo.json.gz", {}, "messages", 999, 0),
        ("instruct/glaive-toolcall-demo.json.gz", {}, "messages", 300, 0),
        ("instruct/llms-from-scratch-instructions.json", {}, "messages", 1100, 0),
    ],
)
def test_real_files(name: str, columns: dict[str, str], kind: str, least: int, bad: int) -> None:
    if not (DATA / name).exists():
        pytest.skip("no shared data")
    table = read_table(DATA / name, columns)
    assert {r.kind for r in table.records} == {kind}
    assert len(table.rows) >= least
    assert len(table.bad) == bad
