"""Shards: what is read is what was written, however it was interrupted; packing loses and cuts hardly anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladderlm.cli.main import main
from ladderlm.data import shards
from ladderlm.data.packing import Shuffle, best_fit
from ladderlm.data.records import make_record, write_records
from ladderlm.data.shards import Shards, is_shards, write_shards
from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.text.bpe import train_bpe
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Record

TEXTS = [f"Story {i}: " + "the fox ran over the hill. " * (i % 13) + "é日" * (i % 3) for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 400)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [
        make_record("text", {"text": t}, source=f"s{i % 2}", licence="CC0-1.0" if i % 2 else "MIT")
        for i, t in enumerate(TEXTS)
    ]


def test_documents_come_back_across_shards(tmp_path: Path, tokenizer: Tokenizer, records: list[Record]) -> None:
    made = write_shards(iter(records), tokenizer, tmp_path / "s", shard_bytes=5000, workers=3, lineage=[{"stage": "x"}])
    assert len(made.edges) > 5
    assert is_shards(tmp_path / "s")
    assert made.documents == len(TEXTS)
    start = [tokenizer.document_start_id]
    assert [made.document(i).tolist() for i in range(200)] == [start + tokenizer.encode(t) for t in TEXTS]
    whole = np.asarray(made)
    assert len(whole) == len(made)
    for a, b in ((0, 7), (int(made.edges[1]) - 3, int(made.edges[3]) + 5), (len(made) - 2, len(made) + 9), (5, 5)):
        assert made[a:b].tolist() == whole[a:b].tolist()
    assert made.index["licences"] == {"MIT": 100, "CC0-1.0": 100}
    assert made.index["lineage"] == [{"stage": "x"}]
    assert made.tokenizer().to_json() == tokenizer.to_json()
    made.verify()
    again = write_shards(records, tokenizer, tmp_path / "t", shard_bytes=5000, workers=1)
    assert again.index["content_sha256"] == made.index["content_sha256"]


def test_only_what_is_missing_or_other_is_written_again(
    tmp_path: Path, tokenizer: Tokenizer, records: list[Record]
) -> None:
    made = write_shards(records, tokenizer, tmp_path, shard_bytes=5000)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.bin")}
    (tmp_path / "00001.json").unlink()
    (tmp_path / "index.json").unlink()
    changed = [*records[:-1], make_record("text", {"text": "another end"}, source="s", licence="MIT")]
    assert write_shards(changed, tokenizer, tmp_path, shard_bytes=5000).documents == made.documents
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.bin")}
    assert {name for name in after if after[name] != before[name]} == {"00001.bin", max(before)}
    with pytest.raises(UsageError, match="another tokenizer"):
        write_shards(records, train_bpe(TEXTS, 265), tmp_path, shard_bytes=5000)


KILLED = """
import sys
from ladderlm.data.records import make_record
from ladderlm.data.shards import write_shards
from ladderlm.text.tokenizer import Tokenizer
records = (make_record("text", {"text": f"story {i} " * 400}, source="s") for i in range(3000))
write_shards(records, Tokenizer.from_file(sys.argv[1]), sys.argv[2], shard_bytes=100_000)
"""


def test_a_killed_run_goes_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file, code = tmp_path / "tokenizer.json", tmp_path / "write.py"
    file.write_text(tokenizer.to_json(), encoding="utf-8")
    code.write_text(KILLED)
    command = [sys.executable, str(code), str(file), str(tmp_path / "killed")]
    process = subprocess.Popen(command)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("killed/*.json"))) < 6 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not is_shards(tmp_path / "killed")
    subprocess.run(command, check=True)
    subprocess.run([*command[:-1], str(tmp_path / "whole")], check=True)
    killed, whole = Shards(tmp_path / "killed"), Shards(tmp_path / "whole")
    assert killed.index == whole.index
    killed.verify()


def test_damage_is_named(tmp_path: Path, tokenizer: Tokenizer, records: list[Record]) -> None:
    made = write_shards(records, tokenizer, tmp_path, shard_bytes=5000)
    for change, error in (
        ({"format": 2}, "format 2"),
        ({"dtype": "nonsense"}, "damaged index"),
        ({"shards": [{**made.index["shards"][0], "name": "../00000"}]}, "outside"),
    ):
        (tmp_path / "index.json").write_text(json.dumps({**made.index, **change}))
        with pytest.raises(FormatError, match=error):
            Shards(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(made.index))
    data = bytearray((tmp_path / "00001.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "00001.bin").write_bytes(data)
    with pytest.raises(FormatError, match=r"00001\.bin"):
        Shards(tmp_path).verify()
    (tmp_path / "00001.bin").write_bytes(data[:-1])
    with pytest.raises(FormatError, match="cut short"):
        Shards(tmp_path)
    with pytest.raises(NotFound):
        Shards(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no text"):
        write_shards([], tokenizer, tmp_path / "none")


def test_the_verb(tmp_path: Path, tokenizer: Tokenizer, records: list[Record], capsys: pytest.CaptureFixture) -> None:
    write_records(tmp_path / "a.jsonl", records)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    arguments = [str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "s"), "--tokenizer", str(tmp_path / "tokenizer.json")]
    assert main(["data", "shard", *arguments]) == 0
    assert "200 documents" in capsys.readouterr().out
    assert Shards(tmp_path / "s").documents == 200
    assert shards.FORMAT == 1


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60), size=st.integers(1, 40))
def test_packing_uses_every_token_once(lengths: list[int], size: int) -> None:
    starts, total = np.cumsum([0, *lengths[:-1]]), sum(lengths)
    rows = best_fit(starts, total, size)
    assert all(0 < sum(n for _, n in row) <= size for row in rows)
    assert sorted(i for row in rows for a, n in row for i in range(a, a + n)) == list(range(total))
    pieces = sum(len(row) for row in rows)
    assert pieces == sum(-(-n // size) for n in lengths)  # no document is cut more often than it must be
    free = [size - sum(n for _, n in row) for row in rows]
    assert sum(f >= size / 2 and f > 0 for f in free) <= 1  # two rows half empty would have been one


def test_shuffling_is_a_permutation_that_depends_on_the_seed() -> None:
    for count in (1, 2, 3, 100, 1000):
        assert sorted(Shuffle(count, 1)) == list(range(count))
    assert list(Shuffle(100, 1, 0)) != list(Shuffle(100, 1, 1))
    assert list(Shuffle(5, 7)) == [Shuffle(5, 7)[i] for i in range(5)]
    order = np.array(Shuffle(10_000, 3))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert 0.2 < (np.diff(order) > 0).mean() < 0.8
