"""Texts in other encodings than UTF-8: known by their bytes, told in the record, counted."""

from __future__ import annotations

import codecs
import io
import random
from pathlib import Path

import pytest

from ladderlm.data import collect_formats
from ladderlm.data.archives import Blob, Refused
from ladderlm.data.collect import run_collect
from ladderlm.data.collect_formats import How, read
from ladderlm.data.encodings import Recoded, detect
from ladderlm.types import Record

WEST = "Les élèves naïfs “ont été” reçus à l’école — voilà."
GERMAN = "Größe über alles, schöner Käse für fünf Mäuse. " * 4
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 3


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        ("plain", "ascii", "utf-8"), (WEST, "utf-8", "utf-8"), (WEST, "utf-8-sig", "utf-8-sig"),
        (WEST, "utf-16", "utf-16"), (WEST, "utf-32", "utf-32"), (WEST * 9, "utf-16-le", "utf-16-le"),
        (WEST * 9, "utf-16-be", "utf-16-be"), (WEST, "cp1252", "cp1252"), (GERMAN, "latin-1", "cp1252"),
        ("Short café", "latin-1", "cp1252"), ("mañana", "cp1252", "cp1252"),
    ],
)  # fmt: skip
def test_what_a_text_is_in(text: str, encoding: str, found: str) -> None:
    data = text.encode(encoding)
    assert detect(data, True) == found
    item = next(read(Blob("a.txt", io.BytesIO(data)), How()))
    assert isinstance(item, Record)
    assert item["text"] == text
    assert item.meta.get("recoded", "utf-8") == (found if not found.startswith("utf-8") else "utf-8")


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r"])
def test_other_alphabets_need_the_detector(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RUSSIAN.encode(encoding)
    if pytest.importorskip("resiliparse"):
        assert data.decode(detect(data, True)) == RUSSIAN
    monkeypatch.setitem(__import__("sys").modules, "resiliparse.parse.encoding", None)
    with pytest.raises(Refused, match="byte"):
        detect(data, True)
    assert detect(GERMAN.encode("cp1252"), True) == "cp1252"


@pytest.mark.parametrize("data", [random.Random(1).randbytes(5000), b"\xff\xfe\xfa", b"caf\xe9 \x07\x01 bell"])
def test_what_is_no_text_is_left_out(data: bytes) -> None:
    with pytest.raises(Refused):
        detect(data, True)


def test_the_end_of_a_beginning_may_cut_a_character() -> None:
    assert detect("aé".encode()[:-1], False) == "utf-8"
    with pytest.raises(Refused):
        detect(b"a" * 40 + b"\xc3\x81\x8d\xc3", True)


def test_utf8_with_a_wrong_byte_is_not_taken_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (GERMAN * 20).encode() + b"\xfc" + GERMAN.encode()
    with pytest.raises(Refused, match=f"at byte {len((GERMAN * 20).encode())}"):
        detect(data, True)
    assert detect(data, False) == "utf-8"
    late = b"plain letters, " * 8000 + GERMAN.encode("cp1252") * 30
    assert detect(late, True) == "cp1252"
    monkeypatch.setattr(collect_formats, "WHOLE", 3000)
    monkeypatch.setattr(collect_formats, "PIECE", 400)
    pieces = [f"{GERMAN}\n\n".encode() for _ in range(60)]
    pieces[9] = b"\xff" + pieces[9]
    items = list(read(Blob("a.txt", io.BytesIO(b"".join(pieces))), How()))
    assert [i.rule for i in items if not isinstance(i, Record)] == ["not-utf-8"]
    assert len(items) > 10


def test_long_texts_and_tables_are_recoded_as_they_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(collect_formats, "WHOLE", 5000)
    monkeypatch.setattr(collect_formats, "PIECE", 500)
    long = "".join(f"Zeile {i}: Größe.\n\n" for i in range(1000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "long.txt").write_bytes(long.encode("utf-16"))
    (tmp_path / "in" / "rows.csv").write_bytes("text;title\nGrüße;A\nKäse;B\n".encode("cp1252"))
    (tmp_path / "in" / "plain.txt").write_text("Plain.")
    report = run_collect([tmp_path / "in"], tmp_path / "out.jsonl")
    assert report.changed == {"recoded-cp1252": 2, "recoded-utf-16": report.records_out - 3}
    from ladderlm.data.stages import stream

    records = list(stream(tmp_path / "out.jsonl"))
    assert "".join(r["text"] for r in records if r.source == "long.txt") == long
    assert [r["text"] for r in records if r.source == "rows.csv"] == ["Grüße", "Käse"]


def test_recoding_keeps_characters_whole_over_the_edges_of_reads() -> None:
    text = "añb€" * 50_000
    data = codecs.BOM_UTF16_LE + text.encode("utf-16-le")
    assert io.BufferedReader(Recoded(data[:3], io.BytesIO(data[3:]), "utf-16")).read().decode() == text
