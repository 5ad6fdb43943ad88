"""A part held out of a stream: the same as in memory, memory bounded; and pieces of texts to measure a model by."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from ladderlm.cli.main import main
from ladderlm.data.records import make_record, plan_split, read_records, split, write_records
from ladderlm.data.split import PIECE, cut, hold_out, run_split
from ladderlm.errors import FormatError, UsageError
from ladderlm.types import Record


def texts(count: int, sources: int) -> list[Record]:
    return [make_record("text", {"text": f"text {i}"}, source=f"s{i % sources}") for i in range(count)]


@pytest.mark.parametrize(("count", "sources", "fraction"), [(200, 20, 0.3), (50, 3, 0.1), (2, 1, 0.01), (3, 1, 0.99)])
def test_files_are_split_as_lists_are(tmp_path: Path, count: int, sources: int, fraction: float) -> None:
    records = texts(count, sources)
    write_records(tmp_path / "all.jsonl", records)
    sides = [tmp_path / "train.jsonl", tmp_path / "test.jsonl"]
    reports = run_split(tmp_path / "all.jsonl", *sides, fraction=fraction, seed=3)
    assert [read_records(side) for side in sides] == list(split(records, fraction, 3))
    assert sum(r.records_out for r in reports) == count
    assert reports[0].dropped == {"test": reports[1].records_out}
    again = run_split(tmp_path / "all.jsonl", *sides, fraction=fraction, seed=3)
    assert all(r.skipped for r in again)


def test_planning_remembers_names_of_two_groups_only() -> None:
    def many(count: int):
        return (Record(f"id{i}", f"source{i}", "", "text", {"text": ""}) for i in range(count))

    plan_split(many(1000), 0.1)
    peaks = []
    for count in (2_000, 40_000):
        tracemalloc.start()
        plan_split(many(count), 0.1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20_000


def test_an_empty_source_is_a_group_like_others() -> None:
    records = [make_record("text", {"text": str(i)}, source="" if i % 2 else "s") for i in range(40)]
    plan = plan_split(records, 0.5, 0, "source")
    assert len({plan.held(r) for r in records}) == 2


def test_bad_lines_end_a_split_or_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(9)) + "{\n")
    with pytest.raises(FormatError, match=r"d\.jsonl:10"):
        run_split(path, tmp_path / "a.jsonl", tmp_path / "b.jsonl", fraction=0.5)
    assert not (tmp_path / "a.jsonl").exists()
    assert main(["data", "split", str(path), "--fraction", "0.5", "--skip-bad", "--json"]) == 0
    assert sum(s["records"] for s in json.loads(capsys.readouterr().out).values()) == 9
    with pytest.raises(UsageError, match="stdin"):
        run_split("-", tmp_path / "a.jsonl", tmp_path / "b.jsonl", fraction=0.5)


def held(tmp_path: Path, records: list[Record], **settings) -> tuple[list[Record], list[Record]]:
    write_records(tmp_path / "once.jsonl", records)
    sides = [tmp_path / "train.jsonl", tmp_path / "held.jsonl"]
    hold_out(tmp_path / "once.jsonl", *sides, **{"share": 0.1, "most": 100_000, **settings})
    return read_records(sides[0]), read_records(sides[1])


def test_of_few_texts_the_ends_are_kept_apart(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} tells of number {i} and of nothing else at all." for i in range(900)]
    long = make_record("text", {"text": "\n\n".join(paragraphs)}, source="book", licence="CC0-1.0", part=1)
    short = make_record("text", {"text": "A note of a line."}, source="note")
    train, pieces = held(tmp_path, [long, short])
    assert train[1] == short
    assert (train[0].source, train[0].licence, train[0].meta["part"]) == ("book", "CC0-1.0", 1)
    told = train[0]["text"].split("\n\n") + [p for piece in pieces for p in piece["text"].split("\n\n")]
    assert [p for p in told if p] == paragraphs
    assert 0.08 < sum(len(p["text"]) for p in pieces) / len(long["text"]) < 0.12
    assert all(PIECE <= len(p["text"]) <= 2 * PIECE for p in pieces[:-1])


def test_of_many_sources_whole_texts_are_kept_apart_and_not_more_than_needed(tmp_path: Path) -> None:
    records = [make_record("text", {"text": f"Text {i}. " + "word " * 300}, source=f"s{i}") for i in range(400)]
    train, pieces = held(tmp_path, records, most=20_000, share=0.5)
    assert not {r.source for r in train} & {r.source for r in pieces}
    assert {r["text"] for r in train} < {r["text"] for r in records}
    assert 10_000 < sum(len(p["text"]) for p in pieces) <= 20_000
    assert len(train) > 360  # twice what is measured is kept apart, not half of all
    again = held(tmp_path, records[::-1], most=20_000, share=0.5)[1]
    assert {r.id for r in again} == {r.id for r in pieces}


def test_of_few_sources_short_texts_are_kept_apart_whole_and_long_ones_by_their_ends(tmp_path: Path) -> None:
    short = [make_record("text", {"text": f"Text {i}. " + "word " * 100}, source="rows") for i in range(100)]
    long = make_record("text", {"text": "".join(f"Line {i} of a book.\n" for i in range(3000))}, source="book")
    train, pieces = held(tmp_path, [*short, long])
    assert {p.source for p in pieces} == {"rows", "book"}
    whole = {r["text"] for r in train if r.source == "rows"} | {p["text"] + " " for p in pieces if p.source == "rows"}
    assert whole == {r["text"] for r in short}
    assert long["text"].startswith(next(r["text"] for r in train if r.source == "book"))


def test_what_is_learnt_is_cut_where_that_is_wanted(tmp_path: Path) -> None:
    long = make_record("text", {"text": "".join(f"Line {i} of a book.\n" for i in range(3000))}, source="book")
    whole, first = held(tmp_path, [long])
    pieces, again = held(tmp_path, [long], longest=5000)
    assert again == first
    assert "".join(p["text"] + "\n" for p in pieces) == whole[0]["text"]
    assert all(5000 <= len(p["text"]) <= 10_000 for p in pieces)


def test_too_little_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too little text"):
        held(tmp_path, [make_record("text", {"text": "short"}, source="s")])


def test_pieces_lose_nothing_but_space_between_them() -> None:
    text = "".join(f"{i} " for i in range(5000))
    pieces = list(cut(text, 1000))
    assert " ".join(pieces).split() == text.split()
    assert next(iter(cut("x" * 30_000, 1000))) == "x" * 1000  # nowhere to cut
