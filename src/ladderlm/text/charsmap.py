"""SentencePiece's compiled normalisation, checked: the library that walks it trusts it blindly.

Layout: the size of a double-array trie in bytes (uint32), the trie (uint32 units, as in darts-clone), then the
replacements, each ended by NUL. A unit with its highest bit set is a value: where its replacement begins.
"""

from __future__ import annotations

import numpy as np

from ladderlm.errors import FormatError


def check_charsmap(data: bytes) -> None:
    """FormatError when a walk through the trie could leave it, or a value is no place in the replacements."""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size % 4 or not 0 < size <= len(data) - 4:
        raise FormatError("the compiled normalisation has no sound size")
    units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    text = data[4 + size :]
    try:
        text.decode()
    except UnicodeDecodeError:
        raise FormatError("the compiled normalisation holds text that is not UTF-8") from None
    inner = units < 2**31
    bases = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))  # where the children of a unit lie
    reached = (bases | 255)[inner]  # a step adds one byte to that by XOR
    starts = {at for at, byte in enumerate(text) if byte & 0xC0 != 0x80}
    values = np.unique(units[~inner] & (2**31 - 1)).tolist()
    if reached.max(initial=0) >= len(units) or not starts.issuperset(values):
        raise FormatError("the compiled normalisation points outside itself")
