"""The oldest language model at hand: how small a general compressor makes the text."""

from __future__ import annotations

import lzma

from ladderlm.errors import UsageError


def xz_bits_per_byte(text: str | bytes) -> float:
    """Bits per byte that xz needs, the smaller of `-9` and `-9 --extreme`."""
    data = text.encode() if isinstance(text, str) else text
    if not data:
        raise UsageError("no text to compress")
    return 8 * min(len(lzma.compress(data, preset=p)) for p in (9, 9 | lzma.PRESET_EXTREME)) / len(data)
