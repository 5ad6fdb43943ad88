"""LadderLM: prompt, fine-tune and build language models. Importing this imports neither torch nor numba."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# The public door: name -> the module that defines it. Loaded at first use.
_HOME = {
    "AlignConfig": "train.align",
    "Chat": "types",
    "Completion": "types",
    "Conversation": "types",
    "Delta": "types",
    "EchoChat": "talk.echo",
    "FinetuneConfig": "train.finetune",
    "LadderError": "errors",
    "Message": "types",
    "Model": "types",
    "PretrainConfig": "train.pretrain",
    "Record": "types",
    "Run": "types",
    "Sampling": "types",
    "Task": "types",
    "Uniform": "engine.uniform",
    "align": "train.align:run",
    "finetune": "train.finetune:run",
    "open_chat": "talk",
    "open_embedder": "engine.embed",
    "open_model": "models",
    "pretrain": "train.pretrain:run",
    "read_image": "talk.images",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ladderlm' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(importlib.import_module(f"ladderlm.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
