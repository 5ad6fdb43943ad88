"""Inference on the CPU: `load` a model and ask it for logits, answers and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladderlm.errors import UsageError

if TYPE_CHECKING:
    from ladderlm.engine.backend import Backend
    from ladderlm.engine.engine import Engine
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles
    from ladderlm.models.weights import Weights

__all__ = ["check", "load", "on_cpu"]


def load(files: ModelFiles, *, threads: int | None = None) -> Engine:
    """An Engine for `files` on `threads` threads (default: the cores, at most 8). Close it, or use it in `with`.

    Raises UsageError for a model that does not continue text, saying what it does instead.
    """
    check(files)
    from ladderlm.engine.engine import Engine

    return Engine(on_cpu(files.arch, files.weights, threads=threads, key=files.hash), files.tokenizer)


def check(files: ModelFiles) -> None:
    """Raises UsageError for a model that does not continue text, saying what it does instead."""
    arch = files.arch
    if arch.kind != "decoder":
        what = f"{files.name} does not continue text: it {arch.purpose}"
        raise UsageError(what, where=f"{arch.family} {arch.kind}", cure="use it in Python with ladderlm.nn.load_model")


def on_cpu(arch: Architecture, weights: Weights, *, threads: int | None = None, key: str | None = None) -> Backend:
    """The compiled kernels, or the numpy reference for the families they do not run. `key` names a packed copy."""
    from ladderlm.engine.network import Network
    from ladderlm.engine.plain import PlainNetwork

    return Network(arch, weights, threads=threads, key=key) if arch.compiled else PlainNetwork(arch, weights)
