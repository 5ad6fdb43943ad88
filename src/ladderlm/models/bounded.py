"""Files from strangers: mapped or parsed within bounds, so that a hostile one costs neither memory nor time."""

from __future__ import annotations

import json
import mmap
import stat
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.errors import FormatError, NotFound, StorageError
from ladderlm.models.quants import Bytes

MAX_JSON = 8 * 2**20  # bytes; a hundred tensors take ten thousand
_MAX_CONTAINERS, _MAX_STRINGS = 2**18, 2**19  # in memory they are up to twenty times their text


def map_file(path: Path) -> Bytes:
    """The bytes of a regular file, mapped. NotFound, StorageError when it may not be read, FormatError when empty."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise NotFound("not a file", where=str(path))
        with path.open("rb") as f:
            return np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path)) from None
    except ValueError as error:  # mmap refuses an empty file, stat a name with a zero byte
        what = "the file is empty" if "empty" in str(error) else "not the name of a file"
        raise FormatError(what, where=shown(str(path))) from None
    except OSError as error:
        raise StorageError(f"cannot read ({error.strerror})", where=shown(str(path)), cure="check it") from None


def read_json(path: Path) -> Any:
    """The JSON of a small file. NotFound, StorageError, or FormatError when it is unsound or absurdly large."""
    data = map_file(path)
    if len(data) > MAX_JSON:
        raise FormatError(f"{len(data)} bytes of JSON are absurd", where=str(path))
    return parse_json(data.tobytes(), str(path))


def parse_json(data: bytes, where: str) -> Any:
    """JSON from a stranger: no object may name a key twice. FormatError for what is unsound."""
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS or data.count(b'"') > 2 * _MAX_STRINGS:
        raise FormatError("absurdly much JSON", where=where)
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise FormatError("the JSON is nested too deeply", where=where) from None
    except ValueError as error:  # bad syntax, bad UTF-8, too many digits, a key twice
        raise FormatError(f"not valid JSON: {shown(str(error))}", where=where) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a key twice")
    return found


def shown(text: str) -> str:
    """A stranger's text for a message: one line of at most a hundred characters."""
    line = text.encode("unicode_escape").decode("ascii")
    return line if len(line) <= 100 else line[:97] + "..."
