"""Models at rest: references, folders, GGUF, adapters, the catalogue. `open_model` is the door, loaded when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladderlm.models.folder import ModelFiles, save_model
    from ladderlm.models.reference import open_model

__all__ = ["ModelFiles", "open_model", "save_model"]
_HOMES = {"ModelFiles": "folder", "open_model": "reference", "save_model": "folder"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
