"""Inference on the CPU: `load` a model and ask it for logits, answers and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladderlm.errors import UsageError

if TYPE_CHECKING:
    from ladderlm.engine.engine import Engine
    from ladderlm.models.folder import ModelFiles

__all__ = ["load"]


def load(files: ModelFiles, *, threads: int | None = None) -> Engine:
    """An Engine for `files` on `threads` threads (default: the cores, at most 8). Close it, or use it in `with`.

    Raises UsageError for a model that does not continue text, saying what it does instead.
    """
    arch = files.arch
    if arch.kind != "decoder":
        what = f"{files.name} does not continue text: it {arch.purpose}"
        raise UsageError(what, where=f"{arch.family} {arch.kind}", cure="use it in Python with ladderlm.nn.load_model")
    from ladderlm.engine.engine import Engine

    return Engine(files.arch, files.weights, files.tokenizer, threads=threads, key=files.hash)
