"""Compiling the loops over bytes with numba: imported only where they run, for it takes half a second."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from ladderlm.store import cache_dir

_SOURCES = ("jit", "scan", "merging", "encoding")


def _compiled_dir() -> Path:
    """Where numba keeps machine code, named by the sources: it does not look at the files a function calls into."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / f"{n}.py").read_bytes() for n in _SOURCES))
    base = here / "__pycache__" if os.access(here, os.W_OK) else cache_dir() / "numba"
    return Path(os.environ.get("NUMBA_CACHE_DIR") or base) / f"text-{digest.hexdigest()[:16]}"


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles `function` on first use, without the GIL, and keeps the machine code on disk."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_COMPILED)
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before


_COMPILED = _compiled_dir()
