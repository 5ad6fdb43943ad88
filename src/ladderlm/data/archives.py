"""Compressed files and archives as streams: members are read one after the other, nothing is ever unpacked to a name.

Hostile input stays bounded: a reader refuses to give more than RATIO bytes for each packed byte (beyond FREE bytes),
a header or document larger than it may be, names that lead out of the archive, links, and nests deeper than DEPTH.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ladderlm.data.stages import unpack_errors, zstd
from ladderlm.data.xz import Xz
from ladderlm.errors import FormatError

RATIO = 200  # text packs 3 to 20 times smaller, the flattest tables and logs up to 100
FREE = 32 << 20  # bytes that any file may unpack to
DEPTH = 3  # an archive within an archive within an archive
MAX_FILE = 256 << 20  # bytes of a file that must lie whole on disk to be read (zip, PDF, Parquet in an archive)
_MAX_HEADER = 16 << 20  # bytes of a tar header or of a zip directory
PACKED = (".gz", ".bz2", ".zst", ".xz")
_SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".tzst": ".tar.zst", ".txz": ".tar.xz"}


class Refused(FormatError):
    """A file that cannot be read, by the rule that says why."""

    def __init__(self, rule: str, why: str = "") -> None:
        super().__init__(why or rule.replace("-", " "))
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Blob:
    """A file or a member of an archive; `file` reads forward only.

    `name` is its path as the user knows it, `label` the name that tells its type once it is unpacked.
    """

    name: str
    file: IO[bytes]
    path: Path | None = None  # where it lies by itself on disk
    label: str = ""

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.label or self.name).suffix.lower()

    def read(self, limit: int) -> bytes:
        """The whole content; Refused when it is longer than `limit` bytes."""
        data = self.file.read(limit + 1)
        if len(data) > limit:
            raise Refused("too-large", f"more than {limit >> 20} MB")
        return data


@contextlib.contextmanager
def open_blob(path: Path, name: str) -> Iterator[Blob]:
    """The file at `path` as a Blob. Raises OSError."""
    with path.open("rb") as file:
        yield Blob(name, file, path)


@contextlib.contextmanager
def seekable(blob: Blob) -> Iterator[tuple[IO[bytes], int]]:
    """(a file that can be gone through in any order, its bytes): itself, or a temporary copy up to MAX_FILE."""
    if blob.path is not None:
        yield blob.file, os.fstat(blob.file.fileno()).st_size
        return
    with tempfile.SpooledTemporaryFile(max_size=4 << 20) as copy:
        size = 0
        while part := blob.file.read(1 << 20):
            if (size := size + len(part)) > MAX_FILE:
                raise Refused("too-large", f"more than {MAX_FILE >> 20} MB within an archive")
            copy.write(part)
        copy.seek(0)
        yield copy, size


class Guarded(io.RawIOBase):
    """Bytes out of `file`, as long as they are not out of proportion to `packed()`, the bytes read to make them."""

    def __init__(self, file: IO[bytes], packed: Callable[[], int]) -> None:
        self._file, self._packed, self._done = file, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._done += len(data)
        if self._done > FREE and self._done > RATIO * max(self._packed(), 1):
            raise Refused("bomb", f"unpacks to more than {RATIO} times its size")
        return len(data)


class _Counted:
    """A file that counts what is read of it, as the decompressors want it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.done = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.done += len(data)
        return data

    def seekable(self) -> bool:
        return False


def is_packed(blob: Blob) -> bool:
    return blob.suffix in PACKED or blob.suffix in _SHORT


def unpack(blob: Blob) -> Blob:
    """What lies in a .gz, .bz2, .zst or .xz file, its label without that ending."""
    label = blob.label or blob.name
    if blob.suffix in _SHORT:
        label = label[: -len(blob.suffix)] + _SHORT[blob.suffix]
    suffix, counted = PurePosixPath(label).suffix.lower(), _Counted(blob.file)
    packed: Any = counted
    opened: Any
    if suffix == ".gz":
        opened = gzip.GzipFile(fileobj=packed, mode="rb")
    elif suffix == ".bz2":
        opened = bz2.BZ2File(packed, "rb")
    elif suffix == ".xz":
        opened = Xz(packed)
    else:
        opened = zstd().open(packed, "rb")
    guarded = Guarded(opened, lambda: counted.done)
    return Blob(blob.name, io.BufferedReader(guarded, 1 << 18), label=label[: -len(suffix)])


# --- Archives -----------------------------------------------------------------------------------------------------

Found = Blob | tuple[str, Refused]


def members(blob: Blob) -> Iterator[Found]:
    """The files within a .zip or .tar, each to be read before the next; (name, Refused) for one that cannot be.

    Raises Refused when the rest of the archive cannot be read.
    """
    yield from _zip(blob) if blob.suffix == ".zip" else _tar(blob)


def _inside(archive: str, name: str) -> str:
    """The member's name after the archive's; Refused where it leads out of it."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0] or "\0" in name:
        raise Refused("unsafe-path", f"the name {name[:80]!r} leads out of the archive")
    return f"{archive}/{path.as_posix()}"


def _zip(blob: Blob) -> Iterator[Found]:
    with seekable(blob) as (file, size):
        archive = open_zip(file, size)
        done = 0
        for info in archive.infolist():
            if info.is_dir():
                continue
            try:
                name = _inside(blob.name, info.filename)
                if info.flag_bits & 1:
                    raise Refused("encrypted")
                opened = archive.open(info)
            except Refused as error:
                yield f"{blob.name}/{info.filename[:200]}", error
                continue
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
                yield f"{blob.name}/{info.filename[:200]}", Refused("broken-archive", str(error)[:200])
                continue
            # members that share their bytes must not together give more than the file may
            if (done := done + info.file_size) > max(FREE, RATIO * size):
                raise Refused("bomb", f"unpacks to more than {RATIO} times its size")
            with opened:
                guarded = Guarded(opened, lambda: max(info.compress_size, 1))  # noqa: B023  (read before the next)
                yield Blob(name, io.BufferedReader(guarded, 1 << 18))


def open_zip(file: IO[bytes], size: int) -> zipfile.ZipFile:
    """A zip file whose directory is not too long to hold. Raises Refused."""
    file.seek(max(0, size - 65_557 - 76))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise Refused("broken-archive", "not a whole zip file")
    directory = struct.unpack_from("<I", tail, at + 12)[0]
    if directory == 0xFFFFFFFF and (wide := tail.rfind(b"PK\6\6", 0, at)) >= 0 and wide + 48 <= len(tail):
        directory = struct.unpack_from("<Q", tail, wide + 40)[0]
    if directory > _MAX_HEADER:
        raise Refused("bomb", "a directory of more files than one archive may hold")
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise Refused("broken-archive", str(error)[:200]) from None


class _Forward:
    """A stream with the forward seeks that tarfile makes between members, and no header longer than it may be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._at = file, 0

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return False

    def seek(self, to: int, whence: int = 0) -> int:
        if whence or to < self._at:
            raise tarfile.ReadError("a tar file that leads backwards")
        while self._at < to and self.read(min(to - self._at, 1 << 20)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise Refused("bomb", "a header longer than any file name")
        data = self._file.read(size)
        self._at += len(data)
        return data


def _tar(blob: Blob) -> Iterator[Found]:
    forward: Any = _Forward(blob.file)
    try:
        archive: Any = tarfile.open(fileobj=forward, mode="r:", errorlevel=0)  # noqa: SIM115  (holds no file of its own)
        while (info := archive.next()) is not None:
            archive.members = []  # it would keep every header
            if info.isdir():
                continue
            try:
                name = _inside(blob.name, info.name)
                if not info.isfile() or info.issparse():
                    raise Refused("link", "a link, device or sparse file")
            except Refused as error:
                yield f"{blob.name}/{info.name[:200]}", error
                continue
            opened = archive.extractfile(info)
            if opened is not None:
                yield Blob(name, io.BufferedReader(_Chunks(opened), 1 << 18))
    except (tarfile.TarError, ValueError, struct.error, EOFError, zlib.error) as error:
        raise Refused("broken-archive", str(error)[:200]) from None


class _Chunks(io.RawIOBase):
    """A member of a tar file, read in parts of at most 1 MB."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), 1 << 20))
        buffer[: len(data)] = data
        return len(data)


def broken() -> tuple[type[Exception], ...]:
    """What reading a member raises when its bytes are broken."""
    return (*unpack_errors(), OSError, zipfile.BadZipFile, tarfile.TarError, RuntimeError, ValueError)
