"""What a model will need of memory, told before it is opened."""

from __future__ import annotations

from pathlib import Path

from ladderlm.models import open_model
from ladderlm.models.reference import split_apart
from ladderlm.talk.device import torch_name


def needed(ref: str, *, kv_bytes: int, device: str = "auto", draft: str | None = None) -> int:
    """Bytes of the weights as they are kept and of the keys and values; of an adapter on its base, only its own.

    An upper bound for keys and values, of which the engine takes what it uses; exact for compiled families' matrices.
    """
    if ref == "echo" or "://" in ref:
        return 0
    if (split := split_apart(ref)) is not None:
        return _size(split[1])
    return _weights(ref, device) + kv_bytes + (_weights(draft, device) if draft else 0)


def _weights(ref: str, device: str) -> int:
    from ladderlm.engine.pack import packed_bytes

    files = open_model(ref)
    if files.arch.kind == "decoder" and torch_name(device) is None and files.arch.compiled:
        return packed_bytes(files.arch, files.weights)
    return 4 * files.arch.parameters  # as float32


def _size(folder: Path) -> int:
    """Bytes of an adapter's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def words(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
