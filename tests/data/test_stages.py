"""Stages: streams, reports, drops by rule, work not done twice, and inputs that break things."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ladderlm.data import stages
from ladderlm.data.records import make_record
from ladderlm.data.stages import Dropped, Record, Sources, read_report, rereadable, run_stage, stream, to_line
from ladderlm.errors import FormatError, NotFound, UsageError


def text(value: str, **meta: object) -> Record:
    return make_record("text", {"text": value}, source="test", **meta)


def write(path: Path, *texts: str) -> Path:
    path.write_bytes(b"".join(to_line(text(t)) for t in texts))
    return path


def no_short(records: Iterable[Record]) -> Iterator[Record | Dropped]:
    for record in records:
        yield record if len(record["text"]) > 3 else Dropped(record, "short")


def test_a_stage_keeps_drops_and_tells(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", "long enough", "no"), write(tmp_path / "b.jsonl", "also long", "me")
    out, left = tmp_path / "out.jsonl", tmp_path / "left.jsonl"
    report = run_stage("short", no_short, [a, b], out, {"least": 4}, dropped=left, changed=Counter(fixed=2))
    assert [r["text"] for r in stream(out)] == ["long enough", "also long"]
    assert [(r["text"], r.meta["rule"]) for r in stream(left)] == [("no", "short"), ("me", "short")]
    assert (report.records_in, report.records_out, report.dropped, report.changed) == (4, 2, {"short": 2}, {"fixed": 2})
    assert report.bytes_in == a.stat().st_size + b.stat().st_size
    assert report.bytes_out == out.stat().st_size
    assert read_report(out) == json.loads(json.dumps(report.to_dict()))


def test_records_come_through_unharmed(tmp_path: Path) -> None:
    record = text("é\n\u2028 \U0001f600", page=3, tags=["a"])
    (tmp_path / "a.jsonl").write_bytes(to_line(record))
    assert list(stream(tmp_path / "a.jsonl")) == [record]


def test_work_is_not_done_twice_until_something_changes(tmp_path: Path) -> None:
    runs = []

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        runs.append(1)
        yield from records

    a, out = write(tmp_path / "a.jsonl", "one"), tmp_path / "out.jsonl"
    first = run_stage("s", stage, [a], out, {"x": 1})
    again = run_stage("s", stage, [a], out, {"x": 1})
    assert (len(runs), first.skipped, again.skipped) == (1, False, True)
    assert run_stage("s", stage, [a], out, {"x": 2}).skipped is False
    write(a, "two")
    assert run_stage("s", stage, [a], out, {"x": 2}).skipped is False
    out.write_text("spoiled")
    assert run_stage("s", stage, [a], out, {"x": 2}).skipped is False
    assert run_stage("s", stage, [a], out, {"x": 2}, dropped=tmp_path / "left.jsonl").skipped is False
    assert len(runs) == 5


def test_lineage_follows_from_file_to_file(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", "long enough")
    run_stage("one", no_short, [a], tmp_path / "b.jsonl", {})
    report = run_stage("two", no_short, [tmp_path / "b.jsonl"], tmp_path / "c.jsonl", {})
    assert [r["stage"] for r in report.lineage] == ["one"]
    write(tmp_path / "b.jsonl", "another text")  # no longer what its report tells
    assert run_stage("two", no_short, [tmp_path / "b.jsonl"], tmp_path / "c.jsonl", {}).lineage == ()


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    def fails(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        yield from records
        raise FormatError("no")

    with pytest.raises(FormatError):
        run_stage("s", fails, [write(tmp_path / "a.jsonl", "x")], tmp_path / "out.jsonl", {}, dropped=tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, sink = io.BytesIO(to_line(text("long enough")) + to_line(text("no"))), io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(source))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink))
    report = run_stage("s", no_short, ["-"], "-", {}, report=tmp_path / "r.json")
    assert sink.getvalue() == to_line(text("long enough"))
    assert json.loads((tmp_path / "r.json").read_text())["dropped"] == report.dropped == {"short": 1}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files(tmp_path: Path, suffix: str) -> None:
    if suffix == ".zst":
        pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    a, packed = write(tmp_path / "a.jsonl", "é" * 9000, "b"), tmp_path / f"b.jsonl{suffix}"
    run_stage("s", lambda records: iter(records), [a], packed, {})
    first = packed.read_bytes()
    assert len(first) < 1000
    assert list(stream(packed)) == list(stream(a))
    packed.unlink()
    run_stage("s", lambda records: iter(records), [a], packed, {})
    assert packed.read_bytes() == first
    packed.write_bytes(first[:-20])
    with pytest.raises(FormatError, match="not a whole compressed file"):
        list(stream(packed))


def test_lines_that_are_no_records_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MAX_LINE", 5000)
    good = to_line(text("good"))
    lines = [
        b'{"text": "' + b"x" * 9000 + b'"}\n', b"\xff\xfe{}\n", b'{"text": "torn\n', b"\0\0\0\n", b"[1, 2]\n",
        b"[" * 3000 + b"\n", b'{"kind": "text", "fields": {"text": 3}}\n', b"\n", b'{"nothing": 1}\n',
        b'{"kind": "text", "fields": {"text": "x"}, "licence": 3}\n',
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(good + b"".join(lines) + good.rstrip())
    report = run_stage("s", lambda r: iter(r), [tmp_path / "a.jsonl"], tmp_path / "b.jsonl", {}, dropped=tmp_path / "d")
    assert report.records_out == 2
    assert report.dropped == {"line-too-long": 1, "not-utf-8": 1, "broken-json": 3, "not-a-record": 4}
    with pytest.raises(FormatError, match=r"a\.jsonl:2"):
        list(stream(tmp_path / "a.jsonl"))


def test_no_record_at_all_is_an_error(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 100, b"\x89PNG\r\n\x1a\n" * 50):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(FormatError, match="no readable record"):
            run_stage("s", no_short, [tmp_path / "a.jsonl"], tmp_path / "b.jsonl", {})
    with pytest.raises(NotFound):
        run_stage("s", no_short, [tmp_path / "none.jsonl"], tmp_path / "b.jsonl", {})
    with pytest.raises(UsageError, match="folder"):
        run_stage("s", no_short, [tmp_path], tmp_path / "b.jsonl", {})
    with pytest.raises(UsageError, match="one of the inputs"):
        run_stage("s", no_short, [tmp_path / "a.jsonl"], tmp_path / "a.jsonl", {})


def test_a_document_that_unpacks_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MAX_LINE", 1 << 20)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * (8 << 20)))
    with pytest.raises(FormatError, match="too large"):
        list(stream(tmp_path / "bomb.txt.gz"))


def test_going_through_twice(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", "one", "two")
    once = (text(t) for t in ("one", "two"))
    for records in (Sources("s", [a], lambda d: None), [text("one"), text("two")], once):
        with rereadable(records) as twice:
            assert list(twice) == list(twice) == [text("one"), text("two")]
