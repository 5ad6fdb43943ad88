"""Curves for TensorBoard, written without it.

An event file is a row of records (length, its checksum, data, its checksum; TensorFlow's "TFRecord"), each a protocol
buffer `Event` of which three fields are enough: 1 wall time (double), 2 step (int64), 5 summary, which repeats 1 value:
1 tag (string), 2 simple value (float). The first event names the format's version in field 3. The checksum is CRC-32C
(Castagnoli), rotated and offset ("masked").
"""

from __future__ import annotations

import functools
import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladderlm import store


@functools.cache
def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        rows.append(byte)
    return tuple(rows)


def crc32c(data: bytes) -> int:
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """One record of an event file."""

    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes, a string or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


class Board:
    """An event file in `folder`, one more for each start of a run; steps done again hide those before."""

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._write(struct.pack("<Bd", 0x09, time.time()) + _field(3, b"brain.Event:2"))

    def scalars(self, step: int, figures: Mapping[str, Any]) -> None:
        """Adds the figures of a step; what is not a finite number is left out."""
        values = b""
        for tag, value in figures.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                values += _field(1, _field(1, tag.encode()) + struct.pack("<Bf", 0x15, value))
        self._write(struct.pack("<Bd", 0x09, time.time()) + b"\x10" + _varint(step) + _field(5, values))

    def _write(self, event: bytes) -> None:
        with store.storage_errors(self._path), self._path.open("ab") as file:
            file.write(record(event))
