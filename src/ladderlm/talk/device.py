"""Where a local model runs: the CPU engine, or torch where a GPU is."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ladderlm import engine
from ladderlm.errors import MissingExtra, UsageError, nearest
from ladderlm.types import KVType

if TYPE_CHECKING:
    from ladderlm.engine.engine import Engine
    from ladderlm.models.folder import ModelFiles

DEVICE = "where models run: auto (a GPU if torch sees one, else the CPU), cpu, cuda, cuda:N, mps, torch (on the CPU)"
KV_CACHE_MB = "megabytes for keys and values (default: a quarter of the memory; most of a GPU's)"
KV_CACHE_DTYPE = "how keys and values are kept: float16 beside quantised weights; int8 takes half of that"
DRAFT = "a smaller model with the same tokenizer that guesses what the model writes: same answers, sooner"
NAMES = ("auto", "cpu", "cuda", "mps", "torch")


def load(
    files: ModelFiles,
    device: str = "auto",
    *,
    threads: int | None = None,
    kv_bytes: int | None = None,
    kv_dtype: KVType = "auto",
    draft: ModelFiles | None = None,
) -> Engine:
    """An Engine for `files` on `device`; `threads`, `kv_dtype` and `draft` are the CPU engine's.

    Close it, or use it in `with`.
    Raises UsageError for a device that is not there, MissingExtra where it needs torch and torch is not installed.
    """
    if kv_bytes is not None and kv_bytes < 1:
        raise UsageError("the memory for keys and values must be above 0", where=f"{kv_bytes} bytes")
    if (name := torch_name(device)) is None:
        return engine.load(files, threads=threads, kv_bytes=kv_bytes, kv_dtype=kv_dtype, draft=draft)
    if kv_dtype != "auto":
        raise UsageError("torch keeps keys and values as it computes", where=f"{kv_dtype} on {name}", cure="auto")
    if draft is not None:
        raise UsageError("a draft model guesses on the CPU only", where=draft.name, cure="--device cpu")
    try:
        from ladderlm.nn.backend import load_engine
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "train") from None
    return load_engine(files, device=name, kv_bytes=kv_bytes)


def torch_name(device: str) -> str | None:
    """Torch's name for `device`; None where the CPU engine runs. Raises UsageError for an unknown one."""
    if device.partition(":")[0] not in NAMES:
        raise UsageError(f"unknown device {device!r}", cure=nearest(device, NAMES))
    if device == "cpu" or (device == "auto" and not gpu_there()):
        return None
    return {"auto": "cuda", "torch": "cpu"}.get(device, device)


def gpu_there() -> bool:
    """Whether torch sees a CUDA GPU. torch is only imported, which takes seconds, where a driver is."""
    driver = any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/dxg")) or shutil.which("nvidia-smi")
    if not driver or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
