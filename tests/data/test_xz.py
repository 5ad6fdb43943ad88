"""xz files in and out, in bounded memory."""

from __future__ import annotations

import io
import lzma
import random
import tarfile
from pathlib import Path

import pytest

from ladderlm.data.archives import Blob
from ladderlm.data.collect_formats import How, read
from ladderlm.data.records import make_record
from ladderlm.data.stages import Dropped, run_stage, stream, to_line
from ladderlm.data.xz import Xz
from ladderlm.errors import FormatError

NOISE = random.Random(0).randbytes(300_000)


@pytest.mark.parametrize("data", [b"", b"x", NOISE])
def test_streams_one_after_another(data: bytes) -> None:
    packed = lzma.compress(data)
    assert Xz(io.BytesIO(packed)).read() == data
    assert io.BufferedReader(Xz(io.BytesIO(packed + bytes(8) + packed + bytes(4)))).read() == 2 * data


@pytest.mark.parametrize("data", [b"", lzma.compress(NOISE)[:5000], lzma.compress(NOISE)[:-1]])
def test_one_that_is_cut_short(data: bytes) -> None:
    with pytest.raises(EOFError):
        io.BufferedReader(Xz(io.BytesIO(data))).read()


def test_no_more_memory_than_there_is_for_it() -> None:
    greedy = lzma.compress(b"x", lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}])
    with pytest.raises(lzma.LZMAError, match=r"[Mm]emory"):
        Xz(io.BytesIO(greedy)).read()


def test_records_go_in_and_out(tmp_path: Path) -> None:
    records = [make_record("text", {"text": f"Text {i}."}, source="s") for i in range(50)]
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b"".join(map(to_line, records))))
    assert list(stream(tmp_path / "a.jsonl.xz")) == records
    report = run_stage("same", iter, [tmp_path / "a.jsonl.xz"], tmp_path / "b.jsonl.xz", {})
    assert report.records_out == 50
    assert lzma.decompress((tmp_path / "b.jsonl.xz").read_bytes()) == b"".join(map(to_line, records))
    (tmp_path / "c.jsonl.xz").write_bytes(b"no xz file")
    with pytest.raises(FormatError, match="not a whole compressed file"):
        list(stream(tmp_path / "c.jsonl.xz"))


def test_collecting_texts_and_archives() -> None:
    def items(name: str, data: bytes) -> list[str]:
        found = read(Blob(name, io.BytesIO(data)), How())
        return [i.rule if isinstance(i, Dropped) else i["text"] for i in found]

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("inside.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"Text."))
    assert items("a.txt.xz", lzma.compress(b"Text.")) == ["Text."]
    assert items("a.tar.xz", lzma.compress(out.getvalue())) == ["Text."]
    assert items("a.txz", lzma.compress(out.getvalue())) == ["Text."]
    assert items("a.txt.xz", b"no xz") == ["broken-archive"]
    assert items("a.txt.xz", lzma.compress(bytes(80 << 20)))[-1] == "bomb"
