"""xz files as streams, in bounded memory: the standard library's reader takes what a file's header asks for."""

from __future__ import annotations

import io
import lzma
from typing import IO, Any

MEMORY = 128 << 20  # bytes; `xz -9` needs 65 MiB, a header may ask for 4 GiB
_CHUNK = 1 << 16


class Xz(io.RawIOBase):
    """The unpacked bytes of `file`. Raises EOFError where it is cut short, lzma.LZMAError where it is broken."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._decoder, self._streams, self._fed = file, self._new(), 0, False

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MEMORY)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if hasattr(self._file, "close"):
            self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self._decoder.eof:  # another stream may follow, after zeros
                data, self._decoder = self._decoder.unused_data, self._new()
                self._streams, self._fed = self._streams + 1, False
            if not data and self._decoder.needs_input:
                data = self._file.read(_CHUNK)
                if not data and self._streams and not self._fed:
                    return 0
                if not data:
                    raise EOFError("an xz file that is cut short")
            if self._streams and not self._fed:
                data = data.lstrip(b"\0")
            self._fed = self._fed or bool(data)
            if out := self._decoder.decompress(data, len(buffer)):
                buffer[: len(out)] = out
                return len(out)
