"""Event files as TensorFlow's format has it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ladderlm.train.tensorboard import Board, crc32c, record


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_an_event_file_byte_by_byte(tmp_path: Path) -> None:
    Board(tmp_path).scalars(300, {"loss": 2.5, "note": "left out", "bad": float("nan")})
    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = data[12 : 12 + length]
        assert data[: 16 + length] == record(event)
        events.append(event[9:])  # after the time
        data = data[16 + length :]
    assert events[0] == b"\x1a\x0dbrain.Event:2"
    value = b"\x0a\x04loss\x15" + struct.pack("<f", 2.5)
    assert events[1] == b"\x10\xac\x02" + b"\x2a" + bytes([len(value) + 2]) + b"\x0a" + bytes([len(value)]) + value


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = Board(tmp_path)
    for step in range(5):
        board.scalars(step, {"loss": step / 2})
    loaded = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [e.value for e in loaded.Scalars("loss")] == [0, 0.5, 1, 1.5, 2]
